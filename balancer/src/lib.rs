//! Leads TCP connections to the targets of a service that work.
//!
//! Purpose: the part that the balancer of every agent and the forwarder of the local provider share. [`Targets`] knows
//! which targets work and which one's turn it is, [`Checks`] asks each of them all the time, [`carry`] leads a
//! connection to one and ends it when that one dies.
//!
//! Place in the data flow: whoever listens owns one [`Targets`] for each service, changes its list as it is told, and
//! hands every accepted connection to [`carry`].
//!
//! Deliberately does not know: how a target is reached or asked (the caller brings both), what the bytes mean, where
//! the lists come from. It balances connections, not requests, and looks at no byte.
//!
//! Two rules keep a wrong check from making an outage worse: where no target is proven to work all of them are tried,
//! and a connection is ended only while another target is proven to work.

mod carry;
mod checks;
mod health;
mod targets;

pub use carry::carry;
pub use checks::{Ask, CHECK_EVERY, CHECK_TIMEOUT, Checks};
pub use health::Answer;
pub use targets::{Candidate, Targets};
