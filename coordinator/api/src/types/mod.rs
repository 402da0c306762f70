//! The documents of `/v1`.
//!
//! Every document carries `apiVersion` and `kind`. Fields are only ever added. Clients ignore fields that they do not
//! know in answers; the server refuses fields that it does not know in requests.

mod care;
mod cluster;
mod event;
mod installation;
mod list;
mod machine;
mod operation;
mod plan;
mod release;
mod repair;
mod secret;
mod time;

pub use care::{
    ActView, EvidenceView, FaultClassView, HoldView, IncidentView, LeaseView, LeavingView, NotWellView,
    PauseScopeView, PauseView, PodLeftView, PowerView, RepairActionView, VerdictView, VerdictWord,
};
pub use cluster::{
    ClusterPatchBody, ClusterSpecBody, ClusterSpecPatch, ClusterSpecView, ClusterState, ClusterStatusView,
    ClusterView, ConditionState, ConditionView, DrainBody, DrainThenView, DrainView, ExposeBody, ExposedView,
    KubeconfigRequestBody, KubeconfigView, LabelsPatch, Meta, NewClusterBody, PoolStatusView, ScaleBody,
};
pub use event::{EventView, SeverityView};
pub use installation::{
    ClusterCounts, HealthView, MachineCounts, OperationCounts, ProtocolView, RepairSummary, StatusView,
    VersionView,
};
pub use list::{ListView, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Page, PageRequest};
pub use machine::{
    AgentView, CertificateView, FactsView, MachineState, MachineSummary, MachineView, PressureView,
    ShellRequestBody, UnitHealthView, UnitStateView,
};
pub use operation::{
    MachineStep, OperationKindView, OperationMetadata, OperationStateView, OperationView, WaitingView,
};
pub use plan::{
    ChangeView, EffectView, PlanBody, PlanChangeView, PlanOutcome, PlanPreview, PlanView, PoolBody, PoolView,
    TaintBody, TaintEffectView,
};
pub use release::ReleaseView;
pub use repair::{
    PauseBody, RepairBody, RepairCounts, RepairOptionView, RepairOptionsView, RepairStatusView, RepairView,
};
pub use secret::SecretText;
pub use time::Timestamp;

/// The `apiVersion` of every document.
pub const API_VERSION: &str = "keelson/v1";

/// `apiVersion` for a new document.
pub(crate) fn api_version() -> String {
    API_VERSION.to_owned()
}
