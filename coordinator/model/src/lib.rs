//! Specs, plans, blueprints and what was observed.
//!
//! Purpose: the data that planner, executor, store and API share, with its validation and its diffs.
//!
//! Place in the data flow: a `ClusterSpec` becomes, through the planner, a `Blueprint`; `Observed` goes in beside it and
//! a `PlanReport` comes out.
//!
//! Deliberately does not know: providers, SQL, HTTP, clocks. All functions are pure.

pub mod blueprint;
pub mod etcd;
pub mod event;
pub mod fault;
pub mod kubernetes;
pub mod material;
pub mod observed;
pub mod operation;
pub mod plan;
pub mod plan_change;
pub mod plan_check;
pub mod progress;
pub mod quantity;
pub mod release;
pub mod report;
pub mod spec;

pub use blueprint::{
    Blueprint, BlueprintDiff, BlueprintMachine, Change, ClusterNetwork, Effect, EtcdSeat, SeatBegins,
};
pub use event::{FleetEvent, Severity};
pub use fault::{
    Act, Due, Evidence, FaultClass, HeartbeatSeen, Hold, Incident, LeaseSeen, PeersSeen, PowerSeen,
    RepairAction, RepairPreview, Scope, Verdict,
};
pub use material::{Authority, ClusterMaterial};
pub use observed::{Care, LinkState, MachinePhase, Observed, ObservedMachine, Seen};
pub use operation::{Operation, OperationId, OperationKind, OperationState};
pub use plan::{Plan, PlanName, PoolName, PoolPlan, Role, Size, Taint, TaintEffect};
pub use plan_change::{Loss, PoolLoss};
pub use plan_check::{PlanSpecError, SPREAD_MEMBERS_MIN, SPREAD_ZONES_MIN};
pub use progress::{Progress, Standing};
pub use quantity::QuantityError;
pub use release::{Release, ReleaseCatalog};
pub use report::{Condition, ConditionStatus, EtcdHold, LeaveStep, PlanReport, WaitingOn};
pub use spec::{ClusterSpec, DrainSpec, DrainThen, ExposeSpec, SpecError};
