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
mod detect;
mod effect;
mod enrol;
mod etcd;
mod findings;
mod guard;
mod leave;
mod limits;
mod machine;
mod metrics;
mod nodes;
mod peers;
mod plans;
mod progress;
mod provider;
mod repair;
mod repair_command;
mod replan;
mod rollout;
mod row;
mod scale;
mod session;
mod state;

pub use command::{Accepted, ClusterChange, CommandError, CreateCluster, Preview, Protection};
pub use effect::{
    CallId, Effect, EnrolId, HealthCheck, Input, ProviderAnswer, ProviderCall, ProviderFailure, Remedy,
    SeenMachine, SessionId,
};
pub use etcd::EtcdWatch;
pub use guard::Asker;
pub use leave::Parting;
pub use limits::*;
pub use metrics::{AgentRepair, Metrics, RepairOutcome, TIMING_LIMITS_MS, Timing};
pub use nodes::{KubeWatch, NodeWatch};
pub use peers::PeerWord;
pub use plans::{Harm, HarmKind, PlanChange, PlanRefused};
pub use progress::ClusterState;
pub use repair_command::{Override, PauseRequest, PauseScope, RepairRequest};
pub use row::{
    Act, Asked, ClusterRow, Counter, IdempotencyRow, Incident, MachineRow, PauseNote, Row, Saved, SentConfig,
};
pub use scale::ScalePool;
pub use state::{Cluster, CoordinatorCore, Exposure, Machine, Now, Settings};
