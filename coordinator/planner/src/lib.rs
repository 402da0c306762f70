//! From spec and observation to a blueprint, and from a blueprint to what each machine is told.
//!
//! Purpose: [`plan`] decides everything about a cluster's machines; [`lint`] finds blueprints that must never be carried
//! out; [`waiting`] says why a cluster is not yet as planned; [`node::node_config`] renders one machine's config.
//!
//! Place in the data flow: the coordinator's core calls these and carries out what comes back.
//!
//! Deliberately does not know: clocks, providers by name, the link. Same arguments, same answer.

mod draft;
pub mod lint;
mod membership;
pub mod node;
mod plan;
pub mod quorum;
mod waiting;

pub use lint::{Finding, lint};
pub use membership::{MemberView, is_of, next_member_call, standing};
pub use plan::{Addresses, Place, PlanError, PlanInput, Planned, RENDERING, Wanted, plan};
pub use quorum::{Quorum, QuorumLost};
pub use waiting::waiting;
