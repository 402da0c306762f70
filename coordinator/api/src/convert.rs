//! Model types made into documents.
//!
//! Pure functions that the coordinator calls when it answers for [`crate::Fleet`]. `waiting` and the steps of an
//! operation are made here from the plan report, so that command line, web page, API and events say the same sentence.

use std::collections::BTreeMap;

use keelson_model::{
    Blueprint, BlueprintDiff, BlueprintMachine, ClusterSpec, Condition, ConditionStatus, DrainSpec, Effect,
    FleetEvent, LinkState, MachinePhase, Observed, ObservedMachine, Operation, OperationKind, OperationState,
    PlanName, PlanReport, PoolName, Release, Severity, Verdict, WaitingOn,
};
use keelson_protocol::health::{CgroupVersion, Facts, HealthReport, NodeState, UnitHealth, UnitState};
use keelson_protocol::{ClusterName, Generation, MachineId, ReleaseName, WallTime};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::care::{
    act_view, action_view, due_view, evidence_view, fault_class_view, hold_view, incident_view, leaving_view,
    not_well_view, verdict_view,
};
use crate::catalogue::Code;
use crate::problem::Problem;
use crate::types::{
    AgentView, CertificateView, ChangeView, ClusterSpecBody, ClusterSpecView, ClusterState,
    ClusterStatusView, ClusterView, ConditionState, ConditionView, EffectView, EventView, ExposeBody,
    ExposedView, FactsView, LabelsPatch, MachineState, MachineStep, MachineSummary, MachineView, Meta,
    OperationKindView, OperationMetadata, OperationStateView, OperationView, PauseView, PlanPreview,
    PoolStatusView, PressureView, ReleaseView, SeverityView, UnitHealthView, UnitStateView, WaitingView,
    api_version,
};

/// Makes a spec of a request's body.
///
/// # Errors
/// [`Code::NameInvalid`] or [`Code::SpecInvalid`] with the field that is wrong. Whether plan and release exist is not
/// checked here.
pub fn spec_from_body(body: ClusterSpecBody, default_release: &str) -> Result<ClusterSpec, Problem> {
    let name = ClusterName::new(body.name).map_err(|error| Problem::name_invalid("spec.name", error))?;
    let release = body.release.unwrap_or_else(|| default_release.to_owned());
    let known = || Problem::new(Code::ReleaseUnknown, format!("there is no release `{release}`"));
    let release = ReleaseName::new(release.clone())
        .map_err(|error| known().field("spec.release", error.to_string()))?;
    let network = |field: &str, text: Option<String>, default| match text {
        None => Ok(default),
        Some(text) => text.parse::<ipnet::Ipv4Net>().map(|network| network.trunc()).map_err(|_| {
            Problem::spec_invalid(field, format!("`{text}` is not an IPv4 network such as 10.244.0.0/16"))
        }),
    };
    let spec = ClusterSpec {
        name,
        plan: PlanName(body.plan),
        release,
        workers: body.workers,
        drain: crate::care::patched_drain(DrainSpec::default(), body.drain.unwrap_or_default()),
        pools: body.pools.into_iter().map(|(pool, count)| (PoolName(pool), count)).collect(),
        expose: body
            .expose
            .into_iter()
            .map(|expose| keelson_model::ExposeSpec { name: expose.name, node_port: expose.node_port })
            .collect(),
        pod_network: network(
            "spec.podNetwork",
            body.pod_network,
            keelson_model::spec::default_pod_network(),
        )?,
        service_network: network(
            "spec.serviceNetwork",
            body.service_network,
            keelson_model::spec::default_service_network(),
        )?,
        deletion_protection: body.deletion_protection,
        labels: body.labels,
    };
    check_labels(&spec)?;
    Ok(spec)
}

/// The spec's labels after a merge patch (RFC 7396).
///
/// # Errors
/// [`Code::SpecInvalid`] with the label that is wrong.
pub fn patched_labels(spec: &ClusterSpec, patch: LabelsPatch) -> Result<BTreeMap<String, String>, Problem> {
    let mut spec = spec.clone();
    let Some(patch) = patch else { return Ok(BTreeMap::new()) };
    for (key, value) in patch {
        match value {
            Some(value) => spec.labels.insert(key, value),
            None => spec.labels.remove(&key),
        };
    }
    check_labels(&spec)?;
    Ok(spec.labels)
}

fn check_labels(spec: &ClusterSpec) -> Result<(), Problem> {
    spec.check_labels().map_err(|error| Problem::spec_invalid("spec.labels", error))
}

/// A spec as clients see it.
#[must_use]
pub fn spec_view(spec: &ClusterSpec) -> ClusterSpecView {
    ClusterSpecView {
        name: spec.name.to_string(),
        plan: spec.plan.to_string(),
        release: spec.release.to_string(),
        workers: spec.workers,
        pools: spec.pools.iter().map(|(pool, count)| (pool.to_string(), *count)).collect(),
        expose: spec
            .expose
            .iter()
            .map(|expose| ExposeBody { name: expose.name.clone(), node_port: expose.node_port })
            .collect(),
        pod_network: spec.pod_network.to_string(),
        service_network: spec.service_network.to_string(),
        deletion_protection: spec.deletion_protection,
        drain: crate::care::drain_view(spec.drain),
        labels: spec.labels.clone(),
    }
}

/// Whether users want a cluster to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Wanted {
    /// They do.
    Present,
    /// They asked for its removal.
    Absent,
}

/// Entity tag of what users have asked of a cluster that was made at `created`. Steps that the coordinator takes on its
/// way there do not change it: a person who thinks about a change is disturbed only by another person.
#[must_use]
pub fn cluster_etag(spec: &ClusterSpec, created: WallTime, wanted: Wanted) -> String {
    let asked = serde_json::to_vec(&(spec, created, wanted)).expect("a spec has only string keys");
    document_etag(&asked)
}

/// Entity tag of a document whose bytes are these.
#[must_use]
pub fn document_etag(document: &[u8]) -> String {
    hex::encode(&Sha256::digest(document)[..8])
}

/// Everything that a [`ClusterView`] is made of.
#[derive(Debug, Clone)]
pub struct ClusterParts<'a> {
    /// The wish.
    pub spec: &'a ClusterSpec,
    /// The blueprint that is carried out; `None` before the first one.
    pub blueprint: Option<&'a Blueprint>,
    /// What was seen.
    pub observed: &'a Observed,
    /// What the planner says.
    pub report: Option<&'a PlanReport>,
    /// Statements about it.
    pub conditions: &'a [Condition],
    /// Its state in one word.
    pub state: ClusterState,
    /// When it was asked for.
    pub created: WallTime,
    /// Whether it is still wanted.
    pub wanted: Wanted,
    /// The operation that works on it.
    pub operation: Option<&'a Operation>,
    /// Whether repair of its machines is paused, alone or with everything.
    pub repair_paused: Option<PauseView>,
}

/// A cluster as clients see it.
#[must_use]
pub fn cluster_view(parts: &ClusterParts<'_>) -> ClusterView {
    let spec = parts.spec;
    let generation = parts.blueprint.map_or(Generation(0), |blueprint| blueprint.generation);
    let release = parts.blueprint.map_or(&spec.release, |blueprint| &blueprint.release);
    let seen = &parts.observed.machines;
    let machines = parts.blueprint.map_or_else(Vec::new, |blueprint| {
        let view = |machine| machine_summary(machine, release, seen.get(&machine.id));
        blueprint.machines.values().map(view).collect()
    });
    ClusterView {
        api_version: api_version(),
        kind: "Cluster".to_owned(),
        spec: spec_view(spec),
        status: ClusterStatusView {
            name: spec.name.to_string(),
            state: parts.state,
            release: release.to_string(),
            endpoint: parts.observed.endpoint.clone(),
            exposed: exposed_views(parts.observed),
            pools: parts.blueprint.map_or_else(Vec::new, pool_views),
            machines,
            conditions: parts.conditions.iter().map(condition_view).collect(),
            waiting: parts.report.map_or_else(Vec::new, |report| {
                let view = |on| waiting_view(&spec.name, on, parts.observed, parts.created);
                report.waiting.iter().map(view).collect()
            }),
            not_well: parts.blueprint.map_or_else(Vec::new, |blueprint| {
                let ids = blueprint.machines.keys();
                ids.filter_map(|id| not_well_view(&spec.name, id, seen.get(id)?)).collect()
            }),
            repair_paused: parts.repair_paused.clone(),
            created: parts.created.into(),
            operation: parts.operation.filter(|operation| !operation.is_done()).map(|op| op.id.to_string()),
        },
        meta: Meta { generation: generation.0, etag: cluster_etag(spec, parts.created, parts.wanted) },
    }
}

fn pool_views(blueprint: &Blueprint) -> Vec<PoolStatusView> {
    let mut pools: BTreeMap<&PoolName, (u32, u32)> = BTreeMap::new();
    for machine in blueprint.machines.values() {
        let (stay, leave) = pools.entry(&machine.pool).or_default();
        *if machine.leaving { leave } else { stay } += 1;
    }
    let view = |(name, (machines, leaving)): (&PoolName, (u32, u32))| PoolStatusView {
        name: name.to_string(),
        machines,
        leaving,
    };
    pools.into_iter().map(view).collect()
}

fn exposed_views(observed: &Observed) -> Vec<ExposedView> {
    let view =
        |(name, address): (&String, &String)| ExposedView { name: name.clone(), address: address.clone() };
    observed.exposed.iter().map(view).collect()
}

/// A condition as clients see it.
#[must_use]
pub fn condition_view(condition: &Condition) -> ConditionView {
    ConditionView {
        kind: condition.kind.clone(),
        status: match condition.status {
            ConditionStatus::Ok => ConditionState::Ok,
            ConditionStatus::Progressing => ConditionState::Progressing,
            ConditionStatus::Bad => ConditionState::Bad,
            ConditionStatus::Unknown => ConditionState::Unknown,
        },
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        since: condition.since.into(),
    }
}

fn role_text(machine: &BlueprintMachine) -> String {
    let roles: Vec<String> = machine.roles.iter().map(ToString::to_string).collect();
    roles.join("+")
}

/// A machine as its cluster's status shows it.
#[must_use]
pub fn machine_summary(
    machine: &BlueprintMachine,
    release: &ReleaseName,
    seen: Option<&ObservedMachine>,
) -> MachineSummary {
    let (state, since) = seen.map_or((MachineState::Planned, None), machine_state);
    let health = seen.and_then(|seen| seen.health.as_deref());
    MachineSummary {
        id: machine.id.to_string(),
        role: role_text(machine),
        state,
        since: since.map(Into::into),
        verdict: seen.map(|seen| verdict_view(seen.verdict)),
        address: machine.address.to_string(),
        zone: machine.zone.clone(),
        release: release.to_string(),
        agent: seen.map_or_else(no_agent, agent_view),
        health: health.map_or_else(Vec::new, |health| health.units.iter().map(unit_view).collect()),
    }
}

/// The state of a machine in one word, and since when.
///
/// What the provider says comes first (a machine without power cannot be ready), then silence, then what the agent
/// itself says.
#[must_use]
pub fn machine_state(seen: &ObservedMachine) -> (MachineState, Option<WallTime>) {
    match &seen.phase {
        MachinePhase::Planned => (MachineState::Planned, None),
        MachinePhase::Creating { since } => (MachineState::Creating, Some(*since)),
        MachinePhase::Retrying { .. } => (MachineState::Retrying, None),
        MachinePhase::Refused { .. } => (MachineState::Refused, None),
        MachinePhase::Booting { since } => (MachineState::Booting, Some(*since)),
        MachinePhase::Off { since } | MachinePhase::Missing { since } => (MachineState::Off, Some(*since)),
        MachinePhase::Deleting { since, .. } => (MachineState::Deleting, Some(*since)),
        MachinePhase::Enrolled { since } => match (&seen.link, seen.silent, seen.applied) {
            (LinkState::Lost { since, .. }, true, _) => (MachineState::Silent, Some(*since)),
            (_, true, _) => (MachineState::Silent, None),
            (LinkState::Never, false, None) => (MachineState::Connecting, Some(*since)),
            (_, false, None) => (MachineState::Applying, Some(*since)),
            (_, false, Some((generation, state))) => {
                // A report of a new state comes before the heartbeat that tells it.
                let told = seen.health.as_ref().filter(|health| health.generation >= generation);
                (node_state(told.map_or(state, |health| health.state)), None)
            }
        },
    }
}

fn node_state(state: NodeState) -> MachineState {
    match state {
        NodeState::Ready => MachineState::Ready,
        NodeState::Idle | NodeState::Applying => MachineState::Applying,
        NodeState::Degraded => MachineState::Degraded,
        NodeState::Failed => MachineState::Failed,
    }
}

fn no_agent() -> AgentView {
    AgentView { connected: false, version: None, last_heartbeat_ms: None, since: None, message: None }
}

fn agent_view(seen: &ObservedMachine) -> AgentView {
    let (connected, since, message) = match &seen.link {
        LinkState::Never => (false, None, None),
        LinkState::Connected { since, .. } => (true, Some((*since).into()), None),
        LinkState::Lost { since, why } => (false, Some((*since).into()), Some(why.clone())),
    };
    let version = seen.facts.as_deref().map(|facts| facts.agent_version.clone());
    AgentView { connected, version, last_heartbeat_ms: seen.last_heartbeat_ms, since, message }
}

fn unit_view(unit: &UnitHealth) -> UnitHealthView {
    let (state, message) = match &unit.state {
        UnitState::Waiting { on } => (UnitStateView::Waiting, on.clone()),
        UnitState::Starting => (UnitStateView::Starting, String::new()),
        UnitState::Healthy => (UnitStateView::Healthy, String::new()),
        UnitState::Unhealthy { why } => (UnitStateView::Unhealthy, why.clone()),
        UnitState::Down { why } => (UnitStateView::Down, why.clone()),
        UnitState::GivenUp { why } => (UnitStateView::GivenUp, why.clone()),
    };
    let since = unit.since.into();
    UnitHealthView { unit: unit.name.clone(), state, since, restarts: unit.restarts, message }
}

/// A machine in full. `waiting` are the entries of the plan report that concern any machine; only its own are shown.
#[must_use]
pub fn machine_view(
    (blueprint, drain): (&Blueprint, DrainSpec),
    machine: &BlueprintMachine,
    observed: &Observed,
    waiting: &[WaitingOn],
    created: WallTime,
) -> MachineView {
    let seen = observed.machines.get(&machine.id);
    let health = seen.and_then(|seen| seen.health.as_deref());
    let own = |on: &&WaitingOn| on.machine() == Some(&machine.id);
    MachineView {
        api_version: api_version(),
        kind: "Machine".to_owned(),
        cluster: blueprint.cluster.to_string(),
        pool: machine.pool.to_string(),
        summary: machine_summary(machine, &blueprint.release, seen),
        incarnation: machine.incarnation.0,
        image: machine.image.clone(),
        generation: blueprint.generation.0,
        applied_generation: seen.and_then(|seen| seen.applied).map(|(generation, _)| generation.0),
        facts: seen.and_then(|seen| seen.facts.as_deref()).map(facts_view),
        pressure: health.map(pressure_view),
        certificates: health.map_or_else(Vec::new, certificate_views),
        clock_offset_ms: health.and_then(|health| health.clock_offset_ms),
        fault_class: seen.and_then(|seen| seen.verdict.class()).map(fault_class_view),
        // Of a machine that is well it says only what was seen when it last was not.
        evidence: seen
            .filter(|seen| seen.verdict != Verdict::Well)
            .and_then(|seen| seen.evidence.as_ref())
            .map(evidence_view),
        incident: seen.and_then(|seen| seen.care.incident.as_ref()).map(incident_view),
        acting: seen.and_then(|seen| seen.acting).map(action_view),
        due: seen.and_then(|seen| seen.care.due).map(due_view),
        hold: seen
            .and_then(|seen| seen.hold.as_ref())
            .map(|hold| hold_view(hold, &blueprint.cluster, &machine.id)),
        acts: seen.map_or_else(Vec::new, |seen| seen.care.acts.iter().map(act_view).collect()),
        fenced: seen.and_then(|seen| seen.care.fenced).map(Into::into),
        leaving: seen
            .filter(|_| machine.leaving)
            .map(|seen| leaving_view(observed.leaving.get(&machine.id), seen, drain)),
        waiting: waiting
            .iter()
            .filter(own)
            .map(|on| waiting_view(&blueprint.cluster, on, observed, created))
            .collect(),
    }
}

fn facts_view(facts: &Facts) -> FactsView {
    FactsView {
        kernel: facts.kernel.clone(),
        os: facts.os.clone(),
        cgroup_version: match facts.cgroup {
            CgroupVersion::V1 => 1,
            CgroupVersion::V2 => 2,
        },
        cpus: facts.cpus,
        memory_bytes: facts.memory_bytes,
        image_digest: facts.image_digest.clone(),
    }
}

fn pressure_view(health: &HealthReport) -> PressureView {
    PressureView {
        disk_used_percent: health.pressure.disk_used_percent,
        inodes_used_percent: health.pressure.inodes_used_percent,
        memory_available_percent: health.pressure.memory_available_percent,
    }
}

fn certificate_views(health: &HealthReport) -> Vec<CertificateView> {
    let view = |certificate: &keelson_protocol::health::CertificateHealth| CertificateView {
        name: certificate.name.clone(),
        not_after: certificate.not_after.into(),
    };
    health.certificates.iter().map(view).collect()
}

/// The entry of the catalogue for a wait.
#[must_use]
pub fn waiting_code(on: &WaitingOn) -> Code {
    match on {
        WaitingOn::ProviderCreate { .. } => Code::WaitProviderCreate,
        WaitingOn::ProviderRetry { .. } => Code::WaitProviderRetry,
        WaitingOn::ProviderRefused { .. } => Code::WaitProviderRefused,
        WaitingOn::Boot { .. } => Code::WaitBoot,
        WaitingOn::Connect { .. } => Code::WaitConnect,
        WaitingOn::Config { .. } => Code::WaitConfig,
        WaitingOn::Turn { .. } => Code::WaitTurn,
        WaitingOn::EtcdJoin { .. } => Code::WaitEtcdJoin,
        WaitingOn::EtcdSize { .. } => Code::WaitEtcdSize,
        WaitingOn::Leave { .. } => Code::WaitLeave,
        WaitingOn::Repair { .. } => Code::WaitRepair,
        WaitingOn::Unit { .. } => Code::WaitUnit,
        WaitingOn::Silent { .. } => Code::WaitSilent,
        WaitingOn::Off { .. } => Code::WaitOff,
        WaitingOn::ProviderDelete { .. } => Code::WaitProviderDelete,
        WaitingOn::Endpoint { .. } => Code::WaitEndpoint,
        WaitingOn::Unexpose { .. } => Code::WaitUnexpose,
        WaitingOn::Plan { .. } => Code::WaitPlan,
    }
}

/// A wait of `cluster` as clients see it. Since when it lasts is taken from what was seen, else it is `otherwise` (when the
/// operation or the cluster was asked for).
#[must_use]
pub fn waiting_view(
    cluster: &ClusterName,
    on: &WaitingOn,
    observed: &Observed,
    otherwise: WallTime,
) -> WaitingView {
    let seen = on.machine().and_then(|id| observed.machines.get(id));
    WaitingView {
        code: waiting_code(on).to_string(),
        machine: on.machine().map(ToString::to_string),
        text: on.to_string(),
        since: seen.and_then(|seen| waiting_since(on, seen, observed.planned)).unwrap_or(otherwise).into(),
        ends_when: on.ends_when(cluster).into_owned(),
        needs_person: on.needs_person(),
    }
}

fn waiting_since(on: &WaitingOn, seen: &ObservedMachine, planned: Option<WallTime>) -> Option<WallTime> {
    let link = match &seen.link {
        LinkState::Never => None,
        LinkState::Connected { since, .. } | LinkState::Lost { since, .. } => Some(*since),
    };
    match on {
        WaitingOn::Unit { unit, .. } => {
            let units = &seen.health.as_ref()?.units;
            units.iter().find(|health| health.name == *unit).map(|health| health.since)
        }
        WaitingOn::Silent { .. } => seen.heard.or(link),
        WaitingOn::Config { .. } | WaitingOn::Turn { .. } => link.max(planned),
        _ => machine_state(seen).1,
    }
}

/// Progress of an operation, made of the blueprint, what was seen, and the plan report.
#[must_use]
pub fn operation_metadata(
    blueprint: &Blueprint,
    observed: &Observed,
    report: Option<&PlanReport>,
    created: WallTime,
) -> OperationMetadata {
    let waiting = report.map_or(&[][..], |report| &report.waiting);
    let mut of_machine: BTreeMap<&MachineId, &WaitingOn> = BTreeMap::new();
    for on in waiting {
        if let Some(machine) = on.machine() {
            of_machine.entry(machine).or_insert(on);
        }
    }
    let view = |on: &WaitingOn| waiting_view(&blueprint.cluster, on, observed, created);
    let step = |machine: &BlueprintMachine| {
        let on = of_machine.get(&machine.id).copied();
        machine_step(machine, observed, on, on.map(view), created)
    };
    let machines: Vec<MachineStep> = blueprint.machines.values().map(step).collect();
    let there = machines.iter().filter(|step| step.status == ConditionState::Ok).count();
    let percent = (there * 100).checked_div(machines.len()).and_then(|percent| u8::try_from(percent).ok());
    OperationMetadata { waiting: waiting.iter().map(view).collect(), machines, percent }
}

fn machine_step(
    machine: &BlueprintMachine,
    observed: &Observed,
    on: Option<&WaitingOn>,
    wait: Option<WaitingView>,
    created: WallTime,
) -> MachineStep {
    let seen = observed.machines.get(&machine.id);
    let (state, since) = seen.map_or((MachineState::Planned, None), machine_state);
    let status = match (on, state) {
        (Some(WaitingOn::ProviderRefused { .. }), _) => ConditionState::Bad,
        (Some(WaitingOn::Silent { .. }), _) | (None, MachineState::Silent) => ConditionState::Unknown,
        (_, MachineState::Refused | MachineState::Failed | MachineState::Degraded) => ConditionState::Bad,
        (None, MachineState::Ready) => ConditionState::Ok,
        _ => ConditionState::Progressing,
    };
    MachineStep {
        machine: machine.id.to_string(),
        role: role_text(machine),
        step: wait.as_ref().map_or_else(|| state.to_string(), |wait| wait.text.clone()),
        status,
        since: wait.as_ref().map_or_else(|| since.unwrap_or(created).into(), |wait| wait.since),
        ends_when: wait.map(|wait| wait.ends_when),
    }
}

/// An operation as clients see it.
#[must_use]
pub fn operation_view(operation: &Operation, metadata: OperationMetadata) -> OperationView {
    let name = format!("operations/{}", operation.id);
    let problem =
        |code: Code, why: &str| Some(Problem::new(code, why).instance(format!("/v1/{name}")).view());
    let (state, ended, error) = match &operation.state {
        OperationState::Running => (OperationStateView::Running, None, None),
        OperationState::Blocked { why } => {
            (OperationStateView::Blocked, None, problem(Code::OperationBlocked, why))
        }
        OperationState::Succeeded { at } => (OperationStateView::Succeeded, Some((*at).into()), None),
        OperationState::Failed { at, why } => {
            (OperationStateView::Failed, Some((*at).into()), problem(Code::OperationFailed, why))
        }
        OperationState::Cancelled { at, left } => {
            (OperationStateView::Cancelled, Some((*at).into()), problem(Code::OperationCancelled, left))
        }
    };
    OperationView {
        api_version: api_version(),
        kind: "Operation".to_owned(),
        name,
        id: operation.id.to_string(),
        action: match operation.kind {
            OperationKind::CreateCluster => OperationKindView::CreateCluster,
            OperationKind::DeleteCluster => OperationKindView::DeleteCluster,
            OperationKind::ScaleCluster => OperationKindView::ScaleCluster,
        },
        cluster: operation.cluster.to_string(),
        detail: operation.detail.clone(),
        done: operation.is_done(),
        state,
        metadata,
        error,
        created: operation.created.into(),
        ended,
    }
}

/// A release as clients see it; `default` names the one that new clusters get.
#[must_use]
pub fn release_view(release: &Release, default: &ReleaseName) -> ReleaseView {
    ReleaseView {
        api_version: api_version(),
        kind: "Release".to_owned(),
        name: release.name.to_string(),
        default: release.name == *default,
        components: release.components.clone(),
        upgrade_from: release.upgrade_from.iter().map(ToString::to_string).collect(),
        image: release.image.clone(),
    }
}

/// A preview of what a change would do. `to` is `None` when the cluster would be gone.
#[must_use]
pub fn preview(cluster: &ClusterName, diff: &BlueprintDiff, to: Option<Generation>) -> PlanPreview {
    let change = |change: &keelson_model::Change| ChangeView {
        effect: match change.effect {
            Effect::Create => EffectView::Create,
            Effect::Update => EffectView::Update,
            Effect::Replace => EffectView::Replace,
            Effect::Delete => EffectView::Delete,
        },
        object: change.object.clone(),
        detail: change.detail.clone(),
    };
    PlanPreview {
        api_version: api_version(),
        kind: "PlanPreview".to_owned(),
        cluster: cluster.to_string(),
        from_generation: diff.from.map(|generation| generation.0),
        to_generation: to.map(|generation| generation.0),
        changes: diff.changes.iter().map(change).collect(),
        waiting: Vec::new(),
    }
}

/// An event as clients see it.
#[must_use]
pub fn event_view(event: &FleetEvent) -> EventView {
    EventView {
        api_version: api_version(),
        kind: "Event".to_owned(),
        id: event.id,
        at: event.at.into(),
        severity: match event.severity {
            Severity::Info => SeverityView::Info,
            Severity::Warning => SeverityView::Warning,
            Severity::Alarm => SeverityView::Alarm,
        },
        reason: event.reason.clone(),
        cluster: event.cluster.as_ref().map(ToString::to_string),
        machine: event.machine.as_ref().map(ToString::to_string),
        incident: event.incident,
        cause: event.cause.clone(),
        outcome: event.outcome.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_tag_follows_what_users_ask_for() {
        let body = |workers: u16| {
            let body = serde_json::json!({ "name": "demo", "plan": "small", "workers": workers });
            spec_from_body(serde_json::from_value(body).unwrap(), "1.37.2").unwrap()
        };
        let asked = cluster_etag(&body(2), WallTime(1), Wanted::Present);
        assert_eq!(asked, cluster_etag(&body(2), WallTime(1), Wanted::Present));
        for other in [
            cluster_etag(&body(3), WallTime(1), Wanted::Present),
            // Another cluster of the same name.
            cluster_etag(&body(2), WallTime(2), Wanted::Present),
            cluster_etag(&body(2), WallTime(1), Wanted::Absent),
        ] {
            assert_ne!(asked, other);
        }
    }
}
