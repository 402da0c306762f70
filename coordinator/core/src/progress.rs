//! How far clusters and operations are, and why they are not further.

use keelson_model::{
    Condition, ConditionStatus, FleetEvent, LinkState, Operation, OperationKind, OperationState, Role,
    Severity, Verdict, WaitingOn,
};
use keelson_planner::waiting;
use keelson_protocol::ClusterName;
use keelson_protocol::health::{Heartbeat, NodeState};

use crate::limits::{IDEMPOTENCY_LIFE, OPERATION_LIFE};
use crate::provider::API_EXPOSURE;
use crate::row::Row;
use crate::state::{Cluster, CoordinatorCore, Machine, Now};

/// The state of a cluster in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterState {
    /// It was never ready yet.
    Creating,
    /// It is as its blueprint says.
    Ready,
    /// It was ready, works, and becomes what was asked for.
    Updating,
    /// It was ready, and something does not work.
    Degraded,
    /// It is being removed.
    Deleting,
    /// It cannot go on without a person.
    Failed,
}

impl CoordinatorCore {
    /// What a cluster waits for.
    #[must_use]
    pub fn waiting(&self, name: &ClusterName, now: Now) -> Vec<WaitingOn> {
        let Some(cluster) = self.clusters.get(name) else { return Vec::new() };
        let mut waits = waiting(&cluster.row.blueprint, &self.observed(name, now));
        let api = cluster.exposures.get(API_EXPOSURE);
        let stood = cluster.row.was_in_use() && cluster.row.wanted;
        let silent = || cluster.kube.silent_why(now).filter(|_| stood);
        let why = api.and_then(|exposure| exposure.error.clone()).or_else(silent);
        let endpoint = |wait: &WaitingOn| matches!(wait, WaitingOn::Endpoint { .. });
        if why.is_some() || waits.iter().any(endpoint) {
            waits.retain(|wait| !endpoint(wait));
            waits.push(WaitingOn::Endpoint { why });
        }
        waits.extend(cluster.lacking.clone().map(|why| WaitingOn::Plan { why }));
        if !cluster.row.wanted && !cluster.unexposed && (waits.is_empty() || cluster.unexpose_error.is_some())
        {
            waits.push(WaitingOn::Unexpose { why: cluster.unexpose_error.clone() });
        }
        waits
    }

    /// The state of a cluster in one word.
    #[must_use]
    pub fn cluster_state(&self, cluster: &Cluster, now: Now) -> ClusterState {
        let waits = self.waiting(&cluster.row.spec.name, now);
        state_of(cluster, &self.judged_waits(&waits))
    }

    /// What a cluster waits for, with what does not work before what is still to come.
    fn judged_waits<'a>(&self, waits: &'a [WaitingOn]) -> Vec<Judged<'a>> {
        let judge = |wait| Judged { wait, is_fault: self.is_fault(wait) };
        let mut judged: Vec<Judged> = waits.iter().map(judge).collect();
        judged.sort_by_key(|judged| !judged.is_fault);
        judged
    }

    /// Whether a wait of a cluster that stood tells of something that does not work. The rest is what a change brings with
    /// it: machines that come, go, and start with another config.
    fn is_fault(&self, wait: &WaitingOn) -> bool {
        let machine = wait.machine().and_then(|id| self.machines.get(id));
        match wait {
            WaitingOn::Repair { .. }
            | WaitingOn::Off { .. }
            | WaitingOn::Silent { .. }
            | WaitingOn::ProviderRefused { .. }
            | WaitingOn::ProviderRetry { .. }
            | WaitingOn::Plan { .. }
            | WaitingOn::ProviderDelete { why: Some(_), .. }
            | WaitingOn::Endpoint { why: Some(_) }
            | WaitingOn::Unexpose { why: Some(_) } => true,
            WaitingOn::Connect { .. } => machine.is_some_and(|machine| {
                matches!(machine.link, LinkState::Lost { .. }) || is_in_trouble(machine)
            }),
            _ => machine.is_some_and(is_in_trouble),
        }
    }

    /// Brings conditions and operations up to date, and forgets the cluster when it is gone.
    pub(crate) fn reconcile_progress(&mut self, now: Now, name: &ClusterName) {
        let waits = self.waiting(name, now);
        self.update_conditions(now, name, &waits);
        self.update_operations(now, name, &waits);
        self.finish_delete(now, name);
    }

    fn update_conditions(&mut self, now: Now, name: &ClusterName, waits: &[WaitingOn]) {
        if self.only_returning(now, name, waits) {
            return;
        }
        let judged = self.judged_waits(waits);
        let Some(cluster) = self.clusters.get_mut(name) else { return };
        let first = waits.is_empty() && cluster.row.first_ready.is_none() && cluster.row.wanted;
        if first {
            cluster.row.first_ready = Some(now.wall);
        }
        let conditions = conditions(cluster, &judged, now);
        if conditions == cluster.row.conditions && !first {
            return;
        }
        let before = std::mem::replace(&mut cluster.row.conditions, conditions);
        let row = cluster.row.clone();
        self.rows.push(Row::Cluster(Box::new(row.clone())));
        for condition in row.conditions {
            let old = before.iter().find(|old| old.kind == condition.kind).map(|old| old.status);
            if old.is_some() && old != Some(condition.status) {
                self.note_condition(now, name, &condition);
            }
        }
    }

    /// Whether all that a cluster waits for is that its machines come back to a coordinator that has just started: what
    /// was not seen yet is as it was.
    fn only_returning(&self, now: Now, name: &ClusterName, waits: &[WaitingOn]) -> bool {
        let stood = self.clusters.get(name).is_some_and(|cluster| cluster.row.first_ready.is_some());
        let returns = |wait: &WaitingOn| {
            let machine = wait.machine().and_then(|id| self.machines.get(id));
            // With its session it has not told its state yet.
            let unheard = machine.is_some_and(|machine| machine.heartbeat.is_none() && !machine.silent);
            unheard && matches!(wait, WaitingOn::Connect { .. } | WaitingOn::Config { .. })
        };
        stood && !self.warm(now) && !waits.is_empty() && waits.iter().all(returns)
    }

    fn note_condition(&mut self, now: Now, name: &ClusterName, condition: &Condition) {
        let severity = match condition.status {
            ConditionStatus::Ok | ConditionStatus::Progressing => Severity::Info,
            ConditionStatus::Bad | ConditionStatus::Unknown => Severity::Warning,
        };
        let event = self.event(now, severity, "ConditionChanged");
        self.note(FleetEvent {
            cluster: Some(name.clone()),
            cause: condition.message.clone(),
            outcome: format!("{} is {}", condition.kind, condition.status),
            ..event
        });
    }

    /// Ends operations whose work is done, and says of those that only a person can bring on why they wait. They go on when the
    /// cause is gone: the provider is asked again and again.
    fn update_operations(&mut self, now: Now, name: &ClusterName, waits: &[WaitingOn]) {
        let planned = self.clusters.get(name).is_some_and(|cluster| !cluster.plan_due);
        let refused = waits.iter().find(|wait| wait.is_failure()).map(|wait| {
            let machine = wait.machine().map(|id| format!("{id}: ")).unwrap_or_default();
            format!("{machine}{wait}")
        });
        let open: Vec<Operation> = self
            .open_operations(name)
            .filter(|operation| operation.kind != OperationKind::DeleteCluster)
            .cloned()
            .collect();
        for operation in open {
            let state = match &refused {
                _ if waits.is_empty() && planned => OperationState::Succeeded { at: now.wall },
                Some(why) => OperationState::Blocked { why: why.clone() },
                None => OperationState::Running,
            };
            if state == operation.state {
                continue;
            }
            let operation = Operation { state, ..operation };
            if operation.is_done() {
                self.end_operation(now, operation)
            } else {
                self.save_operation(operation)
            }
        }
    }

    fn end_operation(&mut self, now: Now, operation: Operation) {
        let event = self.event(now, Severity::Info, "OperationEnded");
        let took = now.wall.since(operation.created).as_secs();
        self.note(FleetEvent {
            cluster: Some(operation.cluster.clone()),
            cause: "everything is as the blueprint says".to_owned(),
            outcome: format!("{}: operation {} ended after {took} s", operation.what(), operation.id),
            ..event
        });
        self.save_operation(operation);
    }

    /// Forgets a cluster whose machines and exposures are gone.
    fn finish_delete(&mut self, now: Now, name: &ClusterName) {
        let Some(cluster) = self.clusters.get(name) else { return };
        if cluster.row.wanted || !cluster.unexposed || self.machines_of(name).next().is_some() {
            return;
        }
        self.clusters.remove(name);
        self.free_addresses(name);
        self.rows.push(Row::RemoveCluster(name.clone()));
        self.forget_pause(name);
        if let Some(operation) = self.running(name, OperationKind::DeleteCluster).cloned() {
            let state = OperationState::Succeeded { at: now.wall };
            self.end_operation(now, Operation { state, ..operation });
        }
    }

    /// Drops what was kept for long enough.
    pub(crate) fn forget_old(&mut self, now: Now) {
        let old = |at, life| now.wall.since(at) > life;
        let keys: Vec<String> = self
            .idempotency
            .values()
            .filter(|row| old(row.at, IDEMPOTENCY_LIFE))
            .map(|row| row.key.clone())
            .collect();
        for key in keys {
            self.idempotency.remove(&key);
            self.rows.push(Row::RemoveIdempotency(key));
        }
        let ended = self.operations.values().filter(|op| op.is_done() && old(op.created, OPERATION_LIFE));
        let ids: Vec<_> = ended.map(|operation| operation.id.clone()).collect();
        for id in ids {
            self.operations.remove(&id);
            self.rows.push(Row::RemoveOperation(id));
        }
    }
}

/// Whether something is wrong with a machine. One that we have switched off on its way out is as it shall be.
fn is_in_trouble(machine: &Machine) -> bool {
    let held = machine.repair.as_ref().is_some_and(|repair| repair.hold.is_some());
    let fine = machine.verdict.is_fine() || machine.verdict == Verdict::Off;
    // What it says itself is known before it is judged.
    let says_so = |heartbeat: Heartbeat| matches!(heartbeat.state, NodeState::Degraded | NodeState::Failed);
    machine.row.incident.is_some() || held || !fine || machine.heartbeat.is_some_and(says_so)
}

/// A wait, and whether it tells of something that does not work.
struct Judged<'a> {
    wait: &'a WaitingOn,
    is_fault: bool,
}

fn state_of(cluster: &Cluster, waits: &[Judged]) -> ClusterState {
    if !cluster.row.wanted {
        return ClusterState::Deleting;
    }
    if waits.iter().any(|judged| judged.wait.is_failure()) {
        return ClusterState::Failed;
    }
    // Between two steps of a plan nothing is waited for, and the spec is not reached all the same.
    let planned = !cluster.plan_due || cluster.row.first_ready.is_none();
    match (waits.is_empty() && planned, cluster.row.first_ready) {
        (true, _) => ClusterState::Ready,
        (false, None) => ClusterState::Creating,
        (false, Some(_)) if waits.iter().any(|judged| judged.is_fault) => ClusterState::Degraded,
        (false, Some(_)) => ClusterState::Updating,
    }
}

/// One statement for each part of a cluster, each with the first reason why it does not hold.
fn conditions(cluster: &Cluster, waits: &[Judged], now: Now) -> Vec<Condition> {
    let parts = [
        ("Etcd", Some(Role::Etcd)),
        ("ControlPlane", Some(Role::Master)),
        ("Workers", Some(Role::Worker)),
        ("Endpoint", None),
    ];
    let mut conditions: Vec<Condition> = parts
        .into_iter()
        .map(|(kind, role)| {
            let concerned: Vec<&Judged> =
                waits.iter().filter(|judged| concerns(cluster, judged.wait, role)).collect();
            condition(cluster, kind, &concerned, now)
        })
        .collect();
    let all: Vec<&Judged> = waits.iter().collect();
    conditions.insert(0, condition(cluster, "Ready", &all, now));
    conditions
}

fn concerns(cluster: &Cluster, wait: &WaitingOn, role: Option<Role>) -> bool {
    match (wait.machine(), role) {
        (None, None) => true,
        (Some(id), Some(role)) => {
            cluster.row.blueprint.machines.get(id).is_some_and(|machine| machine.roles.contains(&role))
        }
        _ => false,
    }
}

fn condition(cluster: &Cluster, kind: &str, waits: &[&Judged], now: Now) -> Condition {
    let (status, reason, message) = match waits.first() {
        None if !cluster.row.wanted => {
            (ConditionStatus::Progressing, "Deleting".to_owned(), "it is being removed".to_owned())
        }
        None => (ConditionStatus::Ok, "AsPlanned".to_owned(), "as the blueprint says".to_owned()),
        Some(first) => {
            let wait = first.wait;
            let machine = wait.machine().map(|id| format!("{id}: ")).unwrap_or_default();
            let more =
                if waits.len() > 1 { format!(" (and {} more)", waits.len() - 1) } else { String::new() };
            (status_of(cluster, first), reason(wait).to_owned(), format!("{machine}{wait}{more}"))
        }
    };
    let before = cluster.row.conditions.iter().find(|old| old.kind == kind && old.status == status);
    let since = before.map_or(now.wall, |old| old.since);
    Condition { kind: kind.to_owned(), status, reason, message, since }
}

fn status_of(cluster: &Cluster, judged: &Judged) -> ConditionStatus {
    let stood = cluster.row.first_ready.is_some() && cluster.row.wanted;
    match judged.wait {
        WaitingOn::ProviderRefused { .. } => ConditionStatus::Bad,
        WaitingOn::Silent { .. } => ConditionStatus::Unknown,
        _ if stood && judged.is_fault => ConditionStatus::Bad,
        _ => ConditionStatus::Progressing,
    }
}

/// The variant's name: stable, for scripts.
fn reason(wait: &WaitingOn) -> &'static str {
    match wait {
        WaitingOn::ProviderCreate { .. } => "ProviderCreate",
        WaitingOn::ProviderRetry { .. } => "ProviderRetry",
        WaitingOn::ProviderRefused { .. } => "ProviderRefused",
        WaitingOn::Boot { .. } => "Boot",
        WaitingOn::Connect { .. } => "Connect",
        WaitingOn::Config { .. } => "Config",
        WaitingOn::Turn { .. } => "Turn",
        WaitingOn::EtcdJoin { .. } => "EtcdJoin",
        WaitingOn::EtcdSize { .. } => "EtcdSize",
        WaitingOn::Leave { .. } => "Leave",
        WaitingOn::Repair { .. } => "Repair",
        WaitingOn::Unit { .. } => "Unit",
        WaitingOn::Silent { .. } => "Silent",
        WaitingOn::Off { .. } => "Off",
        WaitingOn::ProviderDelete { .. } => "ProviderDelete",
        WaitingOn::Plan { .. } => "Plan",
        WaitingOn::Endpoint { .. } => "Endpoint",
        WaitingOn::Unexpose { .. } => "Unexpose",
    }
}
