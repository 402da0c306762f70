//! The HTTPS API of the coordinator: its types, its errors, its router and its server.
//!
//! Purpose: everything that a client sees. The types of `/v1` ([`types`]), the errors with their catalogue
//! ([`problem`], [`catalogue`]), the trait that the coordinator implements ([`fleet::Fleet`]) with what a list can be
//! asked for ([`query`], [`selector`]), the router on top of it ([`router`]) and the loop that serves it over TLS
//! ([`serve`]).
//!
//! Place in the data flow: a request becomes a call of [`fleet::Fleet`]; its answer, made of model types by
//! [`convert`], becomes a document. The command line uses the same types from the other side.
//!
//! Deliberately does not know: the store, the planner, providers, the link. It never decides anything about a cluster.

pub mod auth;
pub mod care;
pub mod catalogue;
pub mod convert;
#[cfg(feature = "fake")]
pub mod fake;
pub mod fleet;
pub mod frames;
pub mod plans;
pub mod problem;
pub mod query;
pub mod router;
pub mod selector;
pub mod serve;
pub mod types;

pub use auth::AuthConfig;
pub use catalogue::{Code, ExitCode};
pub use fleet::Fleet;
pub use problem::Problem;
pub use router::router;
pub use serve::serve;
