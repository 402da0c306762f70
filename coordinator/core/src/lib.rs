//! What the coordinator decides.
//!
//! Purpose: [`CoordinatorCore`] holds clusters, machines and operations, and turns what happens into effects.
//!
//! Place in the data flow: the shell gives inputs (link events, provider answers, time) and commands (from the API) and
//! carries out the effects in order; a `Persist` is on disk before the next effect begins.
//!
//! Deliberately does not know: clocks, entropy, sockets, SQL, providers by name. Same inputs, same effects.
//!
//! Everything is level-triggered: after each input the core compares what shall be with what was seen and asks for what
//! is missing. So a crash between any two effects, a lost answer or a doubled one needs no code of its own.

mod command;
mod effect;
mod enrol;
mod etcd;
mod leave;
mod limits;
mod machine;
mod metrics;
mod plans;
mod progress;
mod provider;
mod replan;
mod rollout;
mod row;
mod scale;
mod session;
mod state;

pub use command::{Accepted, CommandError, CreateCluster, Preview, Protection};
pub use effect::{
    CallId, Effect, EnrolId, Input, ProviderAnswer, ProviderCall, ProviderFailure, Remedy, SeenMachine,
    SessionId,
};
pub use etcd::EtcdWatch;
pub use limits::*;
pub use metrics::Metrics;
pub use plans::{Harm, HarmKind, PlanChange, PlanRefused};
pub use progress::ClusterState;
pub use row::{ClusterRow, Counter, IdempotencyRow, MachineRow, Row, Saved, SentConfig};
pub use scale::ScalePool;
pub use state::{Cluster, CoordinatorCore, Exposure, Machine, Now, Settings};
