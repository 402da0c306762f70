//! What the coordinator does for the API.
//!
//! The coordinator implements [`Fleet`] on top of its core; the router calls nothing else. All checks of form (JSON,
//! names, pages, headers) are done before a method is called; all checks of state are the implementation's.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use keelson_model::{ClusterSpec, OperationId, Plan, PlanName, PoolName, RepairAction};
use keelson_protocol::{ClusterName, MachineId};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::auth::Caller;
use crate::plans::plan_etag;
use crate::problem::Problem;
use crate::query::{ClusterQuery, MachineQuery};
use crate::types::{
    ClusterView, DrainBody, EventView, HealthView, KubeconfigView, LabelsPatch, MachineView, OperationView,
    Page, PageRequest, PlanChangeView, PlanPreview, PlanView, ReleaseView, RepairOptionsView,
    RepairStatusView, RepairView, SeverityView, ShellRequestBody, StatusView, VersionView,
};

/// What a method of [`Fleet`] gives back: implementations write `Box::pin(async move { ... })`.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Problem>>;

/// Bytes of a log as they come.
pub type LogStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// Both directions of a shell: `ShellFrame`s, framed as `keelson_protocol::wire` does.
pub trait ShellPipe: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ShellPipe for T {}

/// Whatever the API shows, and whatever it can change.
pub trait Fleet: Send + Sync + 'static {
    /// Who answers.
    fn version(&self) -> Answer<'_, VersionView>;

    /// The fleet on one screen.
    fn status(&self) -> Answer<'_, StatusView>;

    /// Whether the coordinator can do its work: `/healthz` and `/readyz`.
    fn health(&self) -> Answer<'_, HealthView>;

    /// Metrics in Prometheus' text format: `/metrics`.
    fn metrics(&self) -> Answer<'_, String>;

    /// Goes up whenever anything that the API shows may have changed (not for heartbeats). Wakes the event stream and
    /// waits for operations; the router wakes at most ten times a second, so it may be raised as often as is handy.
    fn revision(&self) -> watch::Receiver<u64>;

    /// The clusters that are asked for. Use [`ClusterQuery::cut`].
    fn clusters(&self, query: ClusterQuery) -> Answer<'_, Page<ClusterView>>;

    /// One cluster. [`crate::catalogue::Code::ClusterNotFound`] when there is none.
    fn cluster(&self, name: ClusterName) -> Answer<'_, ClusterView>;

    /// What making this cluster would do. Refuses what [`Fleet::create_cluster`] would refuse, and changes nothing.
    fn preview_create(&self, spec: ClusterSpec) -> Answer<'_, PlanPreview>;

    /// Accepts the wish for a cluster; it is on disk when this returns.
    ///
    /// With an [`Idempotency`]: the same key, caller and body give the operation of the first time, though it may have
    /// ended; the same key and caller with another body is [`Problem::idempotency_key_reused`]. It is kept, in the
    /// transaction that accepts the wish, for [`IDEMPOTENCY_KEPT`].
    fn create_cluster(
        &self,
        spec: ClusterSpec,
        idempotency: Option<Idempotency>,
    ) -> Answer<'_, OperationView>;

    /// Changes what needs no new plan, all of it or nothing. Refuses by [`IfMatch::check`].
    fn update_cluster(
        &self,
        name: ClusterName,
        if_match: IfMatch,
        change: ClusterChange,
    ) -> Answer<'_, ClusterView>;

    /// What removing this cluster would do. Refuses what [`Fleet::delete_cluster`] would refuse.
    fn preview_delete(&self, name: ClusterName) -> Answer<'_, PlanPreview>;

    /// Accepts the wish that a cluster be gone; also while it is being made. Refuses by [`IfMatch::check`] and when it
    /// is protected. A cluster that is being removed already gives the operation that does it, whatever `if_match` says: a
    /// request that is sent a second time finds what the first one began.
    fn delete_cluster(&self, name: ClusterName, if_match: IfMatch) -> Answer<'_, OperationView>;

    /// What another size of a pool would come to. Refuses what [`Fleet::scale_cluster`] would refuse.
    fn preview_scale(&self, name: ClusterName, size: PoolSize) -> Answer<'_, PlanPreview>;

    /// Accepts the wish for another size of a pool. Refuses by [`IfMatch::check`]. A wish that is under way already is
    /// replaced by the newer one; one for the same size gives the operation that is under way, whatever `if_match` says.
    fn scale_cluster(
        &self,
        name: ClusterName,
        if_match: IfMatch,
        size: PoolSize,
    ) -> Answer<'_, OperationView>;

    /// Issues a client certificate of cluster-admin for `ttl`. Before that an event `KubeconfigIssued` is on disk, with
    /// `caller`, the cluster and the end of the certificate's life. The answer is secret.
    fn kubeconfig(&self, name: ClusterName, ttl: Duration, caller: Caller) -> Answer<'_, KubeconfigView>;

    /// The machines that are asked for, in order of their ids. Use [`MachineQuery::takes`].
    fn machines(&self, query: MachineQuery) -> Answer<'_, Page<MachineView>>;

    /// One machine.
    fn machine(&self, id: MachineId) -> Answer<'_, MachineView>;

    /// Which repairs of a machine a person could ask for now, and what holds the others.
    fn repair_options(&self, id: MachineId) -> Answer<'_, RepairOptionsView>;

    /// What [`Fleet::repair_machine`] would do. Refuses what that would refuse.
    fn preview_repair(&self, id: MachineId, wish: RepairWish) -> Answer<'_, RepairView>;

    /// Begins a repair, through those of the coordinator's guards that hold a person too: meltdown, one at a time, the
    /// quorum, the only copy. It is on disk, with an event that names `caller`, when this returns.
    fn repair_machine(&self, id: MachineId, wish: RepairWish, caller: Caller) -> Answer<'_, RepairView>;

    /// How repair stands in the whole fleet.
    fn repair_status(&self) -> Answer<'_, RepairStatusView>;

    /// Pauses repair until it is resumed. It is on disk, with an event that names `caller`, when this returns.
    fn pause_repair(&self, pause: Pause, caller: Caller) -> Answer<'_, RepairStatusView>;

    /// Resumes repair; that it is not paused is success. An event names `caller`.
    fn resume_repair(&self, pause: Pause, caller: Caller) -> Answer<'_, RepairStatusView>;

    /// The journal of a machine.
    fn machine_logs(&self, id: MachineId, request: LogsRequest) -> Answer<'_, LogStream>;

    /// A command on a pseudo terminal of a machine. Before the caller gets it, an event `ShellOpened` is on disk, with
    /// `caller`, the machine and the program; not its arguments, which may hold a secret.
    fn machine_shell(
        &self,
        id: MachineId,
        request: ShellRequestBody,
        caller: Caller,
    ) -> Answer<'_, Box<dyn ShellPipe>>;

    /// Operations, newest first, of one cluster or of all. Use [`Page::downwards`].
    fn operations(&self, cluster: Option<ClusterName>, page: PageRequest) -> Answer<'_, Page<OperationView>>;

    /// One operation, with its progress.
    fn operation(&self, id: OperationId) -> Answer<'_, OperationView>;

    /// Cancels an operation. Cancelling one that is cancelled already gives it back unchanged.
    fn cancel_operation(&self, id: OperationId) -> Answer<'_, OperationView>;

    /// All plans.
    fn plans(&self) -> Answer<'_, Vec<PlanView>>;

    /// What [`Fleet::apply_plan`] would do. Refuses what that would refuse, and changes nothing.
    fn preview_plan(&self, plan: Plan) -> Answer<'_, PlanChangeView>;

    /// Takes a plan, new or changed; clusters that use it follow. Refuses by [`IfMatch::check_plan`], by [`Plan::check`],
    /// plans that are built in, and a change that would harm a cluster. It is on disk, with an event `PlanApplied` that
    /// names `caller`, when this returns. A plan that is like this already changes nothing.
    fn apply_plan(&self, plan: Plan, if_match: IfMatch, caller: Caller) -> Answer<'_, PlanChangeView>;

    /// Removes a plan. Refuses plans that are built in and plans that clusters use. An event `PlanDeleted` names `caller`.
    fn delete_plan(&self, name: PlanName, caller: Caller) -> Answer<'_, PlanChangeView>;

    /// All releases. Exactly one should be the default.
    fn releases(&self) -> Answer<'_, Vec<ReleaseView>>;

    /// Events that match, at most `query.limit`, oldest first also for [`EventRange::Newest`].
    fn events(&self, query: EventQuery) -> Answer<'_, EventBatch>;
}

/// How long an [`Idempotency`] is kept.
pub const IDEMPOTENCY_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Tells a repeated request from a new one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Idempotency {
    /// The `Idempotency-Key` of the request.
    pub key: String,
    /// Who asked.
    pub caller: String,
    /// SHA-256 of method, path and body.
    pub body_sha256: [u8; 32],
}

/// Which state of an object a change was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// Any state (`If-Match: *`).
    Any,
    /// One of these entity tags, without quotes.
    OneOf(Vec<String>),
    /// None: there is no such object (`If-None-Match: *`).
    Absent,
}

impl IfMatch {
    /// Checks that the change was made for the object's state `etag` ([`crate::types::Meta::etag`]).
    ///
    /// # Errors
    /// [`Problem::precondition_failed`].
    pub fn check(&self, etag: &str) -> Result<(), Problem> {
        match self {
            Self::Any => Ok(()),
            Self::OneOf(tags) if tags.iter().any(|tag| tag == etag) => Ok(()),
            Self::OneOf(_) | Self::Absent => Err(Problem::precondition_failed(etag)),
        }
    }

    /// Checks that the change was made for the plan that is there now, if one is. A plan that is as it is wanted was
    /// changed for nobody: a request that is sent a second time finds what the first one did.
    ///
    /// # Errors
    /// [`Problem::precondition_failed`].
    pub fn check_plan(&self, before: Option<&Plan>, wanted: &Plan) -> Result<(), Problem> {
        let checked = match (self, before) {
            (_, Some(before)) if before == wanted => Ok(()),
            (_, Some(before)) => self.check(&plan_etag(before)),
            (Self::Any | Self::Absent, None) => Ok(()),
            (Self::OneOf(_), None) => Err(Problem::precondition_failed("gone")),
        };
        checked.map_err(|problem| {
            let name = &wanted.name;
            problem.remedy(format!(
                "Look at what is there now (`keelson plan show {name}`), then apply yours again."
            ))
        })
    }
}

/// Whether deletion is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// A size for a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSize {
    /// The pool.
    pub pool: PoolName,
    /// How many machines it shall have.
    pub count: u16,
    /// How pods leave machines that go, from now on; what is absent stays as it is.
    pub drain: DrainBody,
}

/// What changes of a cluster; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterChange {
    /// Whether deletion is refused.
    pub protection: Option<Protection>,
    /// A merge patch of its labels: [`crate::convert::patched_labels`].
    pub labels: Option<LabelsPatch>,
    /// How pods leave machines that go: [`crate::care::patched_drain`].
    pub drain: Option<DrainBody>,
}

/// A repair that a person asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairWish {
    /// What shall be done.
    pub action: RepairAction,
    /// Against which guards.
    pub against: Against,
}

/// How far a caller goes against the guards of repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Against {
    /// Not at all.
    Nothing,
    /// Against all but that of the etcd quorum.
    Guards,
    /// Against that as well: the cluster's name was typed, as a sign that its loss is understood.
    Quorum {
        /// What was typed.
        typed: String,
    },
}

/// Which repair is paused or resumed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// That of this cluster; of everything when absent.
    pub cluster: Option<ClusterName>,
    /// Why, in the caller's words.
    pub reason: Option<String>,
}

/// Which lines of a machine's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogsRequest {
    /// Only this unit.
    pub unit: Option<String>,
    /// How many of the last lines.
    pub lines: u32,
    /// Whether to go on with new ones.
    pub follow: Follow,
}

/// Whether a stream ends or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// It ends with what is there.
    No,
    /// It goes on with what comes.
    Yes,
}

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventQuery {
    /// Which part of the record.
    pub range: EventRange,
    /// At most so many.
    pub limit: usize,
    /// Only of this cluster.
    pub cluster: Option<ClusterName>,
    /// Only of this machine.
    pub machine: Option<MachineId>,
    /// Only of an incident.
    pub incident: OfIncident,
    /// Only this severe or more.
    pub severity_min: SeverityView,
}

/// Events of which incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfIncident {
    /// Of any, and of none.
    Whatever,
    /// Of any.
    Any,
    /// Of this one.
    Number(u64),
}

impl OfIncident {
    /// Whether an event of `incident` is one of them.
    #[must_use]
    pub fn takes(self, incident: Option<u64>) -> bool {
        match self {
            Self::Whatever => true,
            Self::Any => incident.is_some(),
            Self::Number(number) => incident == Some(number),
        }
    }
}

/// Which part of the record of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventRange {
    /// The oldest ones with an id above this.
    After(u64),
    /// The newest ones.
    Newest,
}

/// Some events, and what else there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventBatch {
    /// Events that match, oldest first.
    pub items: Vec<EventView>,
    /// Id of the oldest event that is kept, whether it matches or not; 0 when there is none.
    pub oldest: u64,
    /// Id of the newest event, whether it matches or not; 0 when there is none.
    pub newest: u64,
}
