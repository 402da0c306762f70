//! A fleet in memory, for tests of the router and of the command line.
//!
//! Nothing here waits: a cluster takes one step towards its goal each time its operation is read, and the clock takes
//! one second with it, so that every test sees the same. Faults are switched on by name.

mod answers;
mod care;
mod cluster;
mod plans;
mod server;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use keelson_model::kubernetes::DrainState;
use keelson_model::{
    ClusterSpec, FleetEvent, Operation, OperationId, OperationKind, OperationState, Plan, PlanName, Release,
    Severity,
};
use keelson_protocol::{ClusterName, MachineId, ReleaseName, WallTime};
use tokio::sync::watch;

use care::Ward;
use cluster::{FakeCluster, Goal};

pub use care::Broken;
pub use server::{TOKEN, TestServer};

/// When the fake world begins: 2026-11-23T12:04:11Z.
pub const BEGIN: WallTime = WallTime(1_795_435_451_000);

/// Stands in every secret that the fake hands out, so that tests can look for it where it must not be.
pub const SECRET_MARKER: &str = "RkFLRS1TRUNSRVQ";

/// Identity of the fake installation.
pub const INSTALL: &str = "fake0001";

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Operations make no progress.
    Stuck,
    /// The provider refuses for good: operations are blocked.
    Blocked,
    /// Operations fail with this reason.
    Fails(String),
    /// One machine of each ready cluster falls silent.
    Silent,
    /// The store cannot be written.
    StoreFull,
    /// The infrastructure refuses for this reason to give machines their power back by a repair, and they are switched on as they
    /// are.
    GivesUp(String),
    /// Repairs are called off for this reason before power is taken away, and the machines work again by themselves.
    CallsOff(String),
}

/// A fleet in memory.
#[derive(Debug)]
pub struct FakeFleet {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    now: WallTime,
    clusters: BTreeMap<ClusterName, FakeCluster>,
    operations: BTreeMap<u64, Operation>,
    events: Vec<FleetEvent>,
    events_kept_from: u64,
    built_in: Vec<Plan>,
    own_plans: BTreeMap<PlanName, Plan>,
    keys: BTreeMap<(String, String), ([u8; 32], OperationId)>,
    fault: Option<Fault>,
    ward: Ward,
}

impl Default for FakeFleet {
    fn default() -> Self {
        let state = State {
            now: BEGIN,
            clusters: BTreeMap::new(),
            operations: BTreeMap::new(),
            events: Vec::new(),
            events_kept_from: 1,
            built_in: Plan::built_in(),
            own_plans: BTreeMap::new(),
            keys: BTreeMap::new(),
            fault: None,
            ward: Ward::default(),
        };
        Self { state: Mutex::new(state), revision: watch::Sender::new(0) }
    }
}

impl FakeFleet {
    /// A fleet without clusters.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the fake")
    }

    /// Switches a fault on, or all off.
    pub fn fault(&self, fault: Option<Fault>) {
        let mut state = self.lock();
        state.fault = fault;
        state.apply_fault();
        drop(state);
        self.touch();
    }

    /// Makes a cluster that is ready.
    ///
    /// # Panics
    /// When the name is not valid: this is for tests.
    pub fn add_ready(&self, name: &str, plan: &str) {
        self.add_labelled(name, plan, &[]);
    }

    /// Makes a cluster with labels that is ready.
    ///
    /// # Panics
    /// When the name is not valid: this is for tests.
    pub fn add_labelled(&self, name: &str, plan: &str, labels: &[(&str, &str)]) {
        let name = ClusterName::new(name).expect("tests use valid names");
        let mut state = self.lock();
        let plan = state.plan(&PlanName(plan.to_owned())).expect("tests use known plans").clone();
        let spec = ClusterSpec {
            name: name.clone(),
            plan: plan.name.clone(),
            release: ReleaseName::new("1.37.2").expect("it is valid"),
            workers: None,
            pools: BTreeMap::new(),
            drain: keelson_model::DrainSpec::default(),
            expose: Vec::new(),
            pod_network: keelson_model::spec::default_pod_network(),
            service_network: keelson_model::spec::default_service_network(),
            deletion_protection: false,
            labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let operation = state.start(OperationKind::CreateCluster, &name);
        let mut cluster = FakeCluster::new(spec, &plan, operation, state.now);
        cluster.finish();
        state.clusters.insert(name.clone(), cluster);
        state.settle(&name);
        drop(state);
        self.touch();
    }

    /// Begins another try at making a cluster that stands, as after a provider has refused one more machine of it.
    ///
    /// # Panics
    /// When there is no such cluster: this is for tests.
    pub fn make_again(&self, name: &str) {
        let name = ClusterName::new(name).expect("tests use valid names");
        let mut state = self.lock();
        let operation = state.start(OperationKind::CreateCluster, &name);
        state.clusters.get_mut(&name).expect("tests make clusters again that there are").operation =
            operation;
        drop(state);
        self.touch();
    }

    /// Breaks a machine: an incident is opened, and the coordinator thinks this of it.
    ///
    /// # Panics
    /// When there is no such machine: this is for tests.
    pub fn break_machine(&self, id: &str, broken: Broken) {
        let id = MachineId::new(id).expect("tests use valid names");
        self.lock().break_machine(&id, broken);
        self.touch();
    }

    /// Lets pods stay on a machine for as long as it leaves; `None` lets them go.
    ///
    /// # Panics
    /// When the id is not valid: this is for tests.
    pub fn block_drain(&self, id: &str, left: Option<DrainState>) {
        let id = MachineId::new(id).expect("tests use valid names");
        self.lock().block_drain(&id, left);
        self.touch();
    }

    /// Adds `count` events about `cluster`.
    ///
    /// # Panics
    /// When the name is not valid: this is for tests.
    pub fn add_events(&self, cluster: &str, count: usize) {
        let name = ClusterName::new(cluster).expect("tests use valid names");
        let mut state = self.lock();
        for number in 0..count {
            state.note(&name, Severity::Info, "Tested", &format!("number {number}"));
        }
        drop(state);
        self.touch();
    }

    /// Forgets all events but the newest `kept`.
    pub fn forget_events(&self, kept: usize) {
        let mut state = self.lock();
        let drop_count = state.events.len().saturating_sub(kept);
        state.events.drain(..drop_count);
        state.events_kept_from = state.events.first().map_or(1, |event| event.id);
    }

    /// How many operations were ever accepted.
    pub fn operation_count(&self) -> usize {
        self.lock().operations.len()
    }

    /// Goes on for one second, as if somebody had read every operation.
    pub fn tick(&self) {
        self.lock().tick();
        self.touch();
    }

    fn touch(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }
}

/// The network of the fake infrastructure.
fn infrastructure() -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert([10, 89, 0, 0].into(), 16)
}

/// The releases of the fake installation; the last one is the default.
fn releases() -> Vec<Release> {
    let release = |name: &str, etcd: &str, image: Option<&str>| Release {
        name: ReleaseName::new(name).expect("it is valid"),
        components: [("kubernetes", name), ("etcd", etcd)]
            .map(|(part, version)| (part.to_owned(), version.to_owned()))
            .into(),
        images: BTreeMap::new(),
        archives: BTreeMap::new(),
        upgrade_from: Vec::new(),
        image: image.map(str::to_owned),
    };
    let mut newest = release("1.37.2", "3.7.3", Some("sha256:2f"));
    newest.upgrade_from.push(ReleaseName::new("1.36.3").expect("it is valid"));
    vec![release("1.36.3", "3.6.16", None), newest]
}

impl State {
    fn start(&mut self, kind: OperationKind, cluster: &ClusterName) -> OperationId {
        self.start_with(kind, cluster, None)
    }

    fn start_with(
        &mut self,
        kind: OperationKind,
        cluster: &ClusterName,
        detail: Option<String>,
    ) -> OperationId {
        let number = self.operations.len() as u64 + 1;
        let id = OperationId(format!("op-{number}"));
        let operation = Operation {
            id: id.clone(),
            kind,
            cluster: cluster.clone(),
            detail,
            created: self.now,
            state: OperationState::Running,
        };
        self.operations.insert(number, operation);
        self.note(cluster, Severity::Info, "OperationAccepted", &format!("{kind} as {id}"));
        id
    }

    fn operation_mut(&mut self, id: &OperationId) -> Option<&mut Operation> {
        self.operations.values_mut().find(|operation| operation.id == *id)
    }

    fn note(&mut self, cluster: &ClusterName, severity: Severity, reason: &str, outcome: &str) {
        self.note_by("admin", cluster, severity, reason, outcome);
    }

    fn note_by(
        &mut self,
        caller: &str,
        cluster: &ClusterName,
        severity: Severity,
        reason: &str,
        outcome: &str,
    ) {
        self.note_on(Some(cluster), caller, severity, reason, outcome);
    }

    fn note_on(
        &mut self,
        cluster: Option<&ClusterName>,
        caller: &str,
        severity: Severity,
        reason: &str,
        outcome: &str,
    ) {
        let event = self.new_event(severity, reason);
        let (cluster, cause) = (cluster.cloned(), format!("asked for by {caller}"));
        self.events.push(FleetEvent { cluster, cause, outcome: outcome.to_owned(), ..event });
    }

    /// The next event, to be filled in.
    fn new_event(&self, severity: Severity, reason: &str) -> FleetEvent {
        FleetEvent {
            incident: None,
            id: self.events.last().map_or(self.events_kept_from, |event| event.id + 1),
            at: self.now,
            severity,
            reason: reason.to_owned(),
            cluster: None,
            machine: None,
            cause: String::new(),
            outcome: String::new(),
        }
    }

    /// Clusters with an operation that has not ended.
    fn in_motion(&self) -> Vec<(ClusterName, OperationId)> {
        let all = self.clusters.iter().map(|(name, cluster)| (name.clone(), cluster.operation.clone()));
        all.filter(|(_, id)| self.moves(id)).collect()
    }

    /// Whether an operation has not ended.
    fn moves(&self, id: &OperationId) -> bool {
        self.operations.values().any(|op| op.id == *id && !op.is_done())
    }

    /// Gives operations in motion the state that the fault makes of them.
    fn apply_fault(&mut self) {
        let now = self.now;
        for (_, id) in self.in_motion() {
            let new_state = match self.fault.clone() {
                Some(Fault::Blocked) => OperationState::Blocked {
                    why: "the provider refused: no right to create machines".to_owned(),
                },
                Some(Fault::Fails(why)) => OperationState::Failed { at: now, why },
                Some(
                    Fault::Stuck | Fault::Silent | Fault::StoreFull | Fault::CallsOff(_) | Fault::GivesUp(_),
                )
                | None => OperationState::Running,
            };
            if let Some(operation) = self.operation_mut(&id) {
                operation.state = new_state;
            }
        }
    }

    /// One second of the fake world.
    fn tick(&mut self) {
        self.now.0 += 1_000;
        self.apply_fault();
        if matches!(self.fault, Some(Fault::Stuck | Fault::Blocked)) {
            return;
        }
        self.advance_repairs();
        let now = self.now;
        let on_their_way: Vec<ClusterName> = self
            .clusters
            .iter()
            .filter(|(_, cluster)| self.moves(&cluster.operation) || !cluster.is_there())
            .map(|(name, _)| name.clone())
            .filter(|name| !self.is_drain_blocked(name))
            .collect();
        for name in on_their_way {
            if let Some(cluster) = self.clusters.get_mut(&name) {
                cluster.advance(now);
            }
            self.settle(&name);
        }
    }

    /// Ends the operation of a cluster that has reached its goal.
    fn settle(&mut self, name: &ClusterName) {
        let now = self.now;
        let Some(cluster) = self.clusters.get(name) else { return };
        if !cluster.is_there() {
            return;
        }
        let (id, gone) = (cluster.operation.clone(), cluster.goal == Goal::Gone);
        // A cluster that followed its plan has no operation of its own.
        if let Some(operation) = self.operation_mut(&id).filter(|operation| !operation.is_done()) {
            operation.state = OperationState::Succeeded { at: now };
            let outcome = if gone { "removed with all its machines" } else { "ready" };
            self.note(name, Severity::Info, "OperationSucceeded", outcome);
        }
        if gone {
            self.clusters.remove(name);
        }
    }
}
