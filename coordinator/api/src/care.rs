//! What is known of machines' health made into documents: verdicts, evidence, holds, drains, pauses.
//!
//! Pure functions, as [`crate::convert`]. The sentences are those of the model, so that events, conditions and documents
//! say the same.

use keelson_model::kubernetes::{PodLeft, PodWait};
use keelson_model::{
    Act, DrainSpec, DrainThen, Due, Evidence, FaultClass, HeartbeatSeen, Hold, Incident, LeaseSeen,
    LeaveStep, ObservedMachine, PowerSeen, RepairAction, RepairPreview, Verdict, WaitingOn,
};
use keelson_protocol::{ClusterName, MachineId, WallTime};

use crate::fleet::{Against, RepairWish};
use crate::problem::Problem;
use crate::types::{
    ActView, DrainBody, DrainThenView, DrainView, EvidenceView, FaultClassView, HoldView, IncidentView,
    LeaseView, LeavingView, NotWellView, PauseScopeView, PauseView, PodLeftView, PowerView, RepairActionView,
    RepairCounts, RepairOptionView, RepairOptionsView, RepairStatusView, RepairView, VerdictView,
    VerdictWord, api_version,
};

/// Most machines that are not well in one document; somebody who has more of them has one cause to look for.
pub const NOT_WELL_MAX: usize = 500;

/// A verdict as clients see it.
#[must_use]
pub fn verdict_view(verdict: Verdict) -> VerdictView {
    let word = match verdict {
        Verdict::Well => VerdictWord::Well,
        Verdict::Repairing => VerdictWord::Repairing,
        Verdict::GivenUp => VerdictWord::GivenUp,
        Verdict::Suspected => VerdictWord::Suspected,
        Verdict::CutOff => VerdictWord::CutOff,
        Verdict::AgentDown => VerdictWord::AgentDown,
        Verdict::ZoneSilent => VerdictWord::ZoneSilent,
        Verdict::FleetSilent => VerdictWord::FleetSilent,
        Verdict::Undecided => VerdictWord::Undecided,
        Verdict::Hung => VerdictWord::Hung,
        Verdict::Off => VerdictWord::Off,
        Verdict::Missing => VerdictWord::Missing,
    };
    VerdictView { word, name: verdict.word().to_owned(), text: verdict.to_string() }
}

/// A class of faults as clients see it.
#[must_use]
pub fn fault_class_view(class: FaultClass) -> FaultClassView {
    match class {
        FaultClass::Process => FaultClassView::Process,
        FaultClass::Os => FaultClassView::Os,
        FaultClass::Machine => FaultClassView::Machine,
        FaultClass::Path => FaultClassView::Path,
        FaultClass::Zone => FaultClassView::Zone,
        FaultClass::Coordinator => FaultClassView::Coordinator,
    }
}

/// Evidence as clients see it.
#[must_use]
pub fn evidence_view(evidence: &Evidence) -> EvidenceView {
    EvidenceView {
        heartbeat_ms: match evidence.heartbeat {
            HeartbeatSeen::Never => None,
            HeartbeatSeen::Ago { ms } => Some(ms),
        },
        peers_reached: evidence.peers.reached,
        peers_refused: evidence.peers.refused,
        peers_silent: evidence.peers.silent,
        power: match evidence.power {
            PowerSeen::Unknown => PowerView::Unknown,
            PowerSeen::On => PowerView::On,
            PowerSeen::Off => PowerView::Off,
            PowerSeen::Missing => PowerView::Missing,
        },
        lease: match evidence.lease {
            LeaseSeen::Unknown => LeaseView::Unknown,
            LeaseSeen::Fresh => LeaseView::Fresh,
            LeaseSeen::Stale => LeaseView::Stale,
        },
        zone_heard: evidence.zone_heard,
        zone_others: evidence.zone_others,
        text: evidence.to_string(),
    }
}

/// An incident as clients see it.
#[must_use]
pub fn incident_view(incident: &Incident) -> IncidentView {
    let (number, verdict) = (incident.number, verdict_view(incident.verdict));
    IncidentView { number, opened: incident.opened.into(), verdict }
}

/// A repair as clients see it.
#[must_use]
pub fn action_view(action: RepairAction) -> RepairActionView {
    match action {
        RepairAction::PowerOn => RepairActionView::PowerOn,
        RepairAction::PowerCycle => RepairActionView::PowerCycle,
        RepairAction::Rebuild => RepairActionView::Rebuild,
        RepairAction::Recreate => RepairActionView::Recreate,
    }
}

/// A repair that a client asks for.
#[must_use]
pub fn action_from_view(action: RepairActionView) -> RepairAction {
    match action {
        RepairActionView::PowerOn => RepairAction::PowerOn,
        RepairActionView::PowerCycle => RepairAction::PowerCycle,
        RepairActionView::Rebuild => RepairAction::Rebuild,
        RepairActionView::Recreate => RepairAction::Recreate,
    }
}

/// A hold of a machine of `cluster` as clients see it.
#[must_use]
pub fn hold_view(hold: &Hold, cluster: &ClusterName, machine: &MachineId) -> HoldView {
    HoldView {
        guard: hold.guard().to_owned(),
        text: hold.to_string(),
        ends_when: hold.ends_when(cluster, machine).into_owned(),
        until: hold.until().map(Into::into),
        needs_person: hold.needs_person(),
    }
}

/// A repair that was begun, as clients see it.
#[must_use]
pub fn act_view(act: &Act) -> ActView {
    ActView { action: action_view(act.action), at: act.at.into() }
}

/// A repair that is not due yet, as clients see it.
#[must_use]
pub fn due_view(due: Due) -> ActView {
    ActView { action: action_view(due.action), at: due.at.into() }
}

/// How far a machine is that leaves; without a step nothing depends on it any more.
#[must_use]
pub fn leaving_view(step: Option<&LeaveStep>, seen: &ObservedMachine, drain: DrainSpec) -> LeavingView {
    let since = seen.care.leaving_since;
    let drains = matches!(step, Some(LeaveStep::Queued | LeaveStep::Draining { .. }));
    let forced_at =
        since.filter(|_| drains && drain.then == DrainThen::Force).map(|since| since.plus(drain.timeout()));
    let state = seen.care.drain.as_ref().filter(|_| drains);
    let word = match step {
        Some(LeaveStep::ApiServer) => "apiServer",
        Some(LeaveStep::Workers) => "workers",
        Some(LeaveStep::Queued) => "queued",
        Some(LeaveStep::Draining { .. }) => "draining",
        Some(LeaveStep::Kubernetes { .. }) => "kubernetes",
        Some(LeaveStep::Node) => "node",
        Some(LeaveStep::EtcdClients { .. }) => "etcdClients",
        Some(LeaveStep::EtcdMember) => "etcdMember",
        None => "nothing",
    };
    let gone = "nothing depends on it any more, and it is being removed";
    LeavingView {
        step: word.to_owned(),
        text: step.map_or_else(|| gone.to_owned(), ToString::to_string),
        ends_when: match step {
            // What happens at the end of its time stands beside it.
            Some(LeaveStep::Draining { .. }) => "its pods run elsewhere and its volumes are detached",
            Some(step) => step.ends_when(),
            None => "the provider no longer lists it",
        }
        .to_owned(),
        since: since.map(Into::into),
        forced_at: forced_at.map(Into::into),
        pods: state.map_or_else(Vec::new, |state| state.left.iter().map(pod_left_view).collect()),
        more_pods: state.map_or(0, |state| state.more as u64),
        volumes_attached: state.map_or(0, |state| state.volumes_attached as u64),
    }
}

fn pod_left_view(left: &PodLeft) -> PodLeftView {
    let budgets = match &left.why {
        PodWait::Budget(budget) => vec![budget.name.clone()],
        PodWait::Budgets { names } => names.clone(),
        _ => Vec::new(),
    };
    PodLeftView {
        namespace: left.namespace.clone(),
        pod: left.pod.clone(),
        owner: left.owner.as_ref().map(ToString::to_string),
        budgets,
        text: left.why.to_string(),
        ends_when: left.why.ends_when().to_owned(),
        needs_person: left.why.needs_person(),
    }
}

/// A machine in short when it is not well, or when its incident is open or its repair held; else `None`.
#[must_use]
pub fn not_well_view(cluster: &ClusterName, id: &MachineId, seen: &ObservedMachine) -> Option<NotWellView> {
    let incident = seen.care.incident.as_ref();
    let well = seen.verdict.is_fine();
    if well && incident.is_none() && seen.acting.is_none() && seen.hold.is_none() {
        return None;
    }
    let text = if well && seen.acting.is_none() && seen.hold.is_none() {
        format!("{}; its incident is closed when it has stayed so for a moment", seen.verdict)
    } else {
        let (machine, verdict) = (id.clone(), seen.verdict);
        WaitingOn::Repair { machine, verdict, action: seen.acting, hold: seen.hold.clone() }.to_string()
    };
    Some(NotWellView {
        machine: id.to_string(),
        cluster: cluster.to_string(),
        verdict: verdict_view(seen.verdict),
        fault_class: seen.verdict.class().map(fault_class_view),
        text,
        incident: incident.map(incident_view),
        acting: seen.acting.map(action_view),
        hold: seen.hold.as_ref().map(|hold| hold_view(hold, cluster, id)),
    })
}

/// Repair that somebody has paused; without a cluster it is that of everything.
#[must_use]
pub fn pause_view(
    cluster: Option<&ClusterName>,
    since: WallTime,
    by: Option<&str>,
    reason: Option<&str>,
) -> PauseView {
    PauseView {
        scope: if cluster.is_some() { PauseScopeView::Cluster } else { PauseScopeView::Fleet },
        cluster: cluster.map(ToString::to_string),
        since: since.into(),
        by: by.map(str::to_owned),
        reason: reason.map(str::to_owned),
    }
}

/// Counts machines that are not well.
#[must_use]
pub fn repair_counts(not_well: &[NotWellView]) -> RepairCounts {
    let count = |test: fn(&NotWellView) -> bool| {
        u32::try_from(not_well.iter().filter(|machine| test(machine)).count()).unwrap_or(u32::MAX)
    };
    RepairCounts {
        not_well: count(|_| true),
        incidents: count(|machine| machine.incident.is_some()),
        acting: count(|machine| machine.acting.is_some()),
        held: count(|machine| machine.hold.is_some()),
    }
}

/// How repair stands. `not_well` are all machines that are not well.
#[must_use]
pub fn repair_status_view(paused: Vec<PauseView>, mut not_well: Vec<NotWellView>) -> RepairStatusView {
    not_well.sort_by(|a, b| a.machine.cmp(&b.machine));
    let counts = repair_counts(&not_well);
    not_well.truncate(NOT_WELL_MAX);
    RepairStatusView { api_version: api_version(), kind: "RepairStatus".to_owned(), paused, counts, not_well }
}

/// A repair that a person asked for. `incident` is that of one that has begun; a preview has none.
#[must_use]
pub fn repair_view(preview: &RepairPreview, incident: Option<&Incident>) -> RepairView {
    RepairView {
        api_version: api_version(),
        kind: "Repair".to_owned(),
        machine: preview.machine.to_string(),
        cluster: preview.cluster.to_string(),
        action: action_view(preview.action),
        begun: incident.is_some(),
        what: preview.what(),
        etcd_member: preview.etcd_member.clone(),
        against: preview.against.as_ref().map(|hold| hold_view(hold, &preview.cluster, &preview.machine)),
        incident: incident.map(incident_view),
    }
}

/// Why a repair would not be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotNow {
    /// A guard holds it.
    Held(Hold),
    /// It is of no use, or the machine is busy.
    Other(String),
}

/// Which repairs of a machine of `cluster` a person could ask for.
#[must_use]
pub fn repair_options_view(
    machine: &MachineId,
    cluster: &ClusterName,
    options: impl IntoIterator<Item = (RepairAction, Option<NotNow>)>,
) -> RepairOptionsView {
    let view = |(action, not_now): (RepairAction, Option<NotNow>)| {
        let allowed = not_now.is_none();
        let (hold, why) = match not_now {
            None => (None, None),
            Some(NotNow::Held(hold)) => (Some(hold_view(&hold, cluster, machine)), None),
            Some(NotNow::Other(why)) => (None, Some(why)),
        };
        RepairOptionView { action: action_view(action), allowed, hold, why }
    };
    RepairOptionsView {
        api_version: api_version(),
        kind: "RepairOptions".to_owned(),
        machine: machine.to_string(),
        actions: options.into_iter().map(view).collect(),
    }
}

/// Whether `--override` alone goes against a hold: no loss has to be accepted, and what it costs is known.
pub(crate) fn override_is_enough(hold: &Hold) -> bool {
    !hold.costs_cluster() && !matches!(hold, Hold::Starting { .. })
}

/// What the pods of a machine meet that is repaired against a hold.
fn others(hold: &Hold) -> String {
    match hold {
        Hold::Meltdown { scope, .. } => format!("while other machines of the {scope} are broken"),
        Hold::ApiServer => "and leaves the cluster without an API server until it is back".to_owned(),
        _ => "while another machine of the cluster is being worked on".to_owned(),
    }
}

/// The answer to whoever wants an etcd machine made anew while another member joins or leaves: no override goes before that.
#[must_use]
pub fn member_moves(machine: &MachineId, other: &MachineId) -> Problem {
    Problem::new(
        crate::Code::RepairHeld,
        format!("recreate of machine `{machine}` is held back: {other} joins etcd, or leaves it"),
    )
    .because("etcd members are replaced one at a time, and no override goes before that")
    .remedy(format!("wait for that, or mend the other machine first: keelson why {other}"))
}

/// A guard holds a repair: says what ends that, and with which flags it would go on all the same.
#[must_use]
pub fn repair_held(machine: &MachineId, cluster: &ClusterName, wish: &RepairWish, hold: &Hold) -> Problem {
    let action = wish.action;
    let problem = Problem::new(
        crate::Code::RepairHeld,
        format!("{action} of machine `{machine}` is held back: {hold}"),
    )
    .because(format!("the hold ends when {}", hold.ends_when(cluster, machine)));
    if matches!(hold, Hold::Starting { .. }) {
        return problem.remedy(format!(
            "wait for that, then ask again: keelson machine repair {machine} --action {action}"
        ));
    }
    if override_is_enough(hold) {
        let again = format!("keelson machine repair {machine} --action {action} --override");
        return problem
            .because(format!(
                "going on all the same takes its power away at once, and with it any pods, {}",
                others(hold)
            ))
            .remedy(format!("wait for that, or go on all the same: {again}"));
    }
    let lost = match hold {
        Hold::OldRecord { .. } if action == RepairAction::Recreate => {
            "the newer machine would be removed, with its disk and all that only it holds"
        }
        Hold::OldRecord { .. } => {
            "the machine of the record is meant, which may be gone; the newer one would stay as it is"
        }
        Hold::Impossible { .. } => "everything that the cluster knows would be lost: all its objects",
        _ if action == RepairAction::Recreate => {
            "the cluster's etcd would have no quorum: its API takes no changes until members come back, and what only \
             the lost disks held is lost"
        }
        _ => {
            "the cluster's etcd would have no quorum: its API takes no changes until members come back; the disk stays"
        }
    };
    let again =
        format!("keelson machine repair {machine} --action {action} --override --confirm-loss-of {cluster}");
    let mut problem = problem.because(lost);
    if let Against::Quorum { typed } = &wish.against
        && typed != cluster.as_str()
    {
        problem = problem.because(format!("`{typed}` is not the name of the machine's cluster, `{cluster}`"));
    }
    problem.remedy(format!("wait for that, or accept the loss by the cluster's name: {again}"))
}

/// How pods leave, as clients see it.
#[must_use]
pub fn drain_view(drain: DrainSpec) -> DrainView {
    let then = match drain.then {
        DrainThen::Force => DrainThenView::Force,
        DrainThen::Wait => DrainThenView::Wait,
    };
    DrainView { timeout_s: drain.timeout_s, then }
}

/// How pods leave after a change: what the body leaves out stays.
#[must_use]
pub fn patched_drain(before: DrainSpec, body: DrainBody) -> DrainSpec {
    let then = match body.then {
        None => before.then,
        Some(DrainThenView::Force) => DrainThen::Force,
        Some(DrainThenView::Wait) => DrainThen::Wait,
    };
    DrainSpec { timeout_s: body.timeout_s.unwrap_or(before.timeout_s), then }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]
mod tests {
    use super::*;

    #[test]
    fn an_override_is_advised_only_where_it_is_of_use() {
        let id = |name: &str| -> MachineId { name.parse().unwrap() };
        let (machine, other) = (id("prod-etcd-2"), id("prod-etcd-4"));
        let wish = RepairWish { action: RepairAction::Recreate, against: Against::Nothing };
        let hold = Hold::Busy { machine: other.clone() };
        let held = repair_held(&machine, &"prod".parse().unwrap(), &wish, &hold).view().remedy;
        assert!(held.contains("--override"), "{held}");
        let moves = member_moves(&machine, &other).view().remedy;
        assert!(!moves.contains("--override") && moves.contains("keelson why prod-etcd-4"), "{moves}");
    }
}
