//! Machines of the fake fleet that are not well, their repair, and drains that do not go on.
//!
//! The fake repairs nothing by itself: a machine that a test breaks stays broken until somebody asks for its repair, which
//! then takes some reads of the machine. The rules are those of the coordinator as far as a client sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_model::kubernetes::DrainState;
use keelson_model::{
    Act, BlueprintMachine, Due, Evidence, FleetEvent, HeartbeatSeen, Hold, Incident, LeaseSeen, LeaveStep,
    LinkState, MachinePhase, Observed, PlanReport, RepairAction, RepairPreview, Role, Scope, Severity,
    Verdict, WaitingOn,
};
use keelson_protocol::{ClusterName, MachineId, WallTime};

use super::cluster::FakeCluster;
use super::{Fault, State};
use crate::auth::Caller;
use crate::care::{
    NotNow, not_well_view, override_is_enough, pause_view, repair_held, repair_options_view,
    repair_status_view, repair_view,
};
use crate::catalogue::Code;
use crate::fleet::{Against, Pause, RepairWish};
use crate::problem::Problem;
use crate::types::{ClusterState, NotWellView, PauseView, RepairOptionsView, RepairStatusView, RepairView};

/// After how long a machine is power cycled whose agent is down.
const AGENT_DOWN_AFTER: Duration = Duration::from_secs(300);
/// The same of a worker that Kubernetes has lost with it.
const NODE_LOST_AFTER: Duration = Duration::from_secs(60);
/// Reads of a machine until its repair is done: its power is taken, it starts, it works.
const STEPS_OF_REPAIR: u32 = 3;

/// A fault that a test makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// What the coordinator thinks of the machine.
    pub verdict: Verdict,
    /// What speaks for that.
    pub evidence: Evidence,
    /// What holds its repair back.
    pub hold: Option<Hold>,
}

#[derive(Debug, Clone)]
struct Ill {
    cluster: ClusterName,
    broken: Option<Broken>,
    incident: Incident,
    acting: Option<RepairAction>,
    acts: Vec<Act>,
    fenced: Option<WallTime>,
    steps_left: u32,
}

#[derive(Debug, Clone)]
struct Paused {
    since: WallTime,
    by: String,
    reason: Option<String>,
}

/// Health of the fake's machines.
#[derive(Debug, Default)]
pub(super) struct Ward {
    ill: BTreeMap<MachineId, Ill>,
    paused: BTreeMap<Option<ClusterName>, Paused>,
    drains: BTreeMap<MachineId, DrainState>,
    incidents: u64,
}

impl Ward {
    fn incident(&mut self, now: WallTime, verdict: Verdict) -> Incident {
        self.incidents += 1;
        Incident { number: self.incidents, opened: now, verdict, tried: None }
    }

    fn pause_of(&self, cluster: &ClusterName) -> Option<(Scope, &Paused)> {
        let fleet = self.paused.get(&None).map(|paused| (Scope::Fleet, paused));
        fleet.or_else(|| self.paused.get(&Some(cluster.clone())).map(|paused| (Scope::Cluster, paused)))
    }

    /// What holds the repair of a machine back that the coordinator would make.
    fn hold(&self, ill: &Ill) -> Option<Hold> {
        let broken = ill.broken.as_ref().filter(|_| ill.acting.is_none())?;
        let paused = self.pause_of(&ill.cluster);
        paused.map(|(scope, paused)| Hold::Paused { scope, since: paused.since }).or(broken.hold.clone())
    }
}

impl State {
    /// Everything that is seen of a cluster, with what is wrong with its machines.
    pub(super) fn observed(&self, cluster: &FakeCluster) -> Observed {
        let mut observed = cluster.observed(self.fault.as_ref());
        for (id, ill) in self.ward.ill.iter().filter(|(_, ill)| ill.cluster == cluster.spec.name) {
            let Some(seen) = observed.machines.get_mut(id) else { continue };
            let since = ill.incident.opened;
            if let Some(broken) = &ill.broken {
                (seen.verdict, seen.evidence) = (broken.verdict, Some(broken.evidence.clone()));
                seen.link = LinkState::Lost { since, why: "no heartbeat for 2.8 s".to_owned() };
                (seen.silent, seen.heard) = (true, Some(since));
                seen.last_heartbeat_ms = match broken.evidence.heartbeat {
                    HeartbeatSeen::Never => None,
                    HeartbeatSeen::Ago { ms } => Some(ms),
                };
                match broken.verdict {
                    Verdict::Off => seen.phase = MachinePhase::Off { since },
                    Verdict::Missing => seen.phase = MachinePhase::Missing { since },
                    _ => {}
                }
            }
            (seen.acting, seen.hold) = (ill.acting, self.ward.hold(ill));
            let waits = seen.verdict == Verdict::AgentDown && seen.acting.is_none() && seen.hold.is_none();
            let node_is_lost = broken_lease(ill) == LeaseSeen::Stale
                && cluster.blueprint.machines.get(id).is_some_and(BlueprintMachine::only_runs_pods);
            let at = since.plus(if node_is_lost { NODE_LOST_AFTER } else { AGENT_DOWN_AFTER });
            seen.care.due = waits.then_some(Due { action: RepairAction::PowerCycle, at });
            seen.care.incident = Some(ill.incident.clone());
            (seen.care.acts, seen.care.fenced) = (ill.acts.clone(), ill.fenced);
        }
        for (id, state) in self.drains_of(cluster) {
            let Some(machine) = cluster.blueprint.machines.get(id) else { continue };
            let mut seen = cluster.standing(machine);
            (seen.care.leaving_since, seen.care.drain) = (Some(cluster.step_since), Some(state.clone()));
            observed.machines.insert(id.clone(), seen);
            observed.leaving.insert(id.clone(), LeaveStep::Draining { left: state.to_string() });
        }
        observed
    }

    /// What a cluster waits for, with what is wrong with its machines.
    pub(super) fn report(&self, cluster: &FakeCluster) -> PlanReport {
        let mut report = cluster.report(self.fault.as_ref());
        for (id, state) in self.drains_of(cluster) {
            report.waiting.retain(|wait| wait.machine() != Some(id));
            let step = LeaveStep::Draining { left: state.to_string() };
            report.waiting.push(WaitingOn::Leave { machine: id.clone(), step });
        }
        let ill = self.ward.ill.iter().filter(|(_, ill)| ill.cluster == cluster.spec.name);
        let waits = ill.filter(|(_, ill)| ill.broken.is_some() || ill.acting.is_some());
        report.waiting.extend(waits.map(|(id, ill)| WaitingOn::Repair {
            machine: id.clone(),
            verdict: ill.broken.as_ref().map_or(Verdict::Well, |broken| broken.verdict),
            action: ill.acting,
            hold: self.ward.hold(ill),
        }));
        report
    }

    /// The state of a cluster with what is wrong with its machines.
    pub(super) fn cluster_state(&self, cluster: &FakeCluster) -> ClusterState {
        let state = cluster.state(self.fault.as_ref());
        let report = self.report(cluster);
        let repairs = |wait: &WaitingOn| matches!(wait, WaitingOn::Repair { .. });
        let standing = matches!(state, ClusterState::Ready | ClusterState::Updating);
        match state {
            _ if !standing => state,
            _ if report.waiting.iter().any(WaitingOn::is_failure) => ClusterState::Failed,
            _ if report.waiting.iter().any(repairs) => ClusterState::Degraded,
            state => state,
        }
    }

    fn drains_of(&self, cluster: &FakeCluster) -> impl Iterator<Item = (&MachineId, &DrainState)> {
        let leaving = |id: &MachineId| cluster.blueprint.machines.get(id).is_some_and(|m| m.leaving);
        self.ward.drains.iter().filter(move |(id, _)| leaving(id))
    }

    /// Whether something keeps a cluster's leaving machines.
    pub(super) fn is_drain_blocked(&self, name: &ClusterName) -> bool {
        self.clusters.get(name).is_some_and(|cluster| self.drains_of(cluster).next().is_some())
    }

    pub(super) fn break_machine(&mut self, id: &MachineId, broken: Broken) {
        let found = self.clusters.values().find(|cluster| cluster.blueprint.machines.contains_key(id));
        let cluster = found.expect("tests break machines that there are").spec.name.clone();
        let incident = self.ward.incident(self.now, broken.verdict);
        let ill = Ill {
            cluster,
            broken: Some(broken.clone()),
            incident,
            acting: None,
            acts: Vec::new(),
            fenced: None,
            steps_left: 0,
        };
        let hold = self.ward.hold(&ill);
        self.ward.ill.insert(id.clone(), ill);
        let class = broken.verdict.class().map_or_else(|| "no".to_owned(), |class| class.to_string());
        let outcome = format!("{class} fault: {}", broken.verdict);
        self.note_ill(id, Severity::Warning, "FaultFound", &broken.evidence.to_string(), &outcome);
        if let Some(hold) = hold {
            let cluster = self.ward.ill[id].cluster.clone();
            let outcome = format!("nothing is done until {}", hold.ends_when(&cluster, id));
            self.note_ill(id, Severity::Warning, "RepairHeld", &hold.to_string(), &outcome);
        }
    }

    pub(super) fn block_drain(&mut self, id: &MachineId, state: Option<DrainState>) {
        match state {
            Some(state) => self.ward.drains.insert(id.clone(), state),
            None => self.ward.drains.remove(id),
        };
    }

    fn note_ill(&mut self, id: &MachineId, severity: Severity, reason: &str, cause: &str, outcome: &str) {
        let Some(ill) = self.ward.ill.get(id) else { return };
        let (cluster, number) = (ill.cluster.clone(), ill.incident.number);
        let event = self.new_event(severity, reason);
        self.events.push(FleetEvent {
            cluster: Some(cluster),
            machine: Some(id.clone()),
            incident: Some(number),
            cause: cause.to_owned(),
            outcome: outcome.to_owned(),
            ..event
        });
    }

    /// Whether a repair of this machine is under way.
    pub(super) fn is_under_repair(&self, id: &MachineId) -> bool {
        self.ward.ill.get(id).is_some_and(|ill| ill.acting.is_some() || ill.broken.is_none())
    }

    /// One step of all repairs that are under way.
    pub(super) fn advance_repairs(&mut self) {
        let ids: Vec<MachineId> =
            self.ward.ill.keys().filter(|id| self.is_under_repair(id)).cloned().collect();
        for id in ids {
            let now = self.now;
            let ended = match &self.fault {
                Some(Fault::CallsOff(why)) => Some((Severity::Info, "RepairCalledOff", why.clone())),
                Some(Fault::GivesUp(why)) => Some((Severity::Alarm, "RepairGivenUp", why.clone())),
                _ => None,
            };
            let Some(ill) = self.ward.ill.get_mut(&id) else { continue };
            if let Some(((severity, reason, why), action)) = ended.zip(ill.acting) {
                (ill.acting, ill.broken, ill.steps_left) = (None, None, 1);
                self.note_ill(&id, severity, reason, &why, &format!("no {action}"));
                continue;
            }
            ill.steps_left = ill.steps_left.saturating_sub(1);
            match (ill.steps_left, ill.acting) {
                (2, Some(action)) if action != RepairAction::PowerOn => {
                    ill.fenced = Some(now);
                    let outcome = "the infrastructure confirms that it has no power";
                    self.note_ill(&id, Severity::Info, "MachineFenced", "a repair needs it", outcome);
                }
                (1, Some(action)) => {
                    (ill.acting, ill.broken, ill.fenced) = (None, None, None);
                    let outcome = format!("{action} done, the machine starts");
                    self.note_ill(&id, Severity::Info, "RepairDone", "the machine has power", &outcome);
                }
                (0, _) => {
                    let took = now.since(ill.incident.opened).as_secs_f64();
                    let cause = format!("incident {}: {}", ill.incident.number, ill.incident.verdict);
                    let outcome = format!("it works again, after {took:.1} s");
                    self.note_ill(&id, Severity::Info, "FaultMended", &cause, &outcome);
                    self.ward.ill.remove(&id);
                }
                _ => {}
            }
        }
    }

    pub(super) fn pauses(&self) -> Vec<PauseView> {
        let view = |(cluster, paused): (&Option<ClusterName>, &Paused)| {
            pause_view(cluster.as_ref(), paused.since, Some(&paused.by), paused.reason.as_deref())
        };
        self.ward.paused.iter().map(view).collect()
    }

    pub(super) fn pause_of(&self, cluster: &ClusterName) -> Option<PauseView> {
        let (scope, paused) = self.ward.pause_of(cluster)?;
        let cluster = (scope == Scope::Cluster).then_some(cluster);
        Some(pause_view(cluster, paused.since, Some(&paused.by), paused.reason.as_deref()))
    }

    pub(super) fn not_well(&self) -> Vec<NotWellView> {
        let mut views = Vec::new();
        for cluster in self.clusters.values() {
            let observed = self.observed(cluster);
            let seen = observed.machines.iter();
            views.extend(seen.filter_map(|(id, seen)| not_well_view(&cluster.spec.name, id, seen)));
        }
        views
    }

    pub(super) fn repair_status(&self) -> RepairStatusView {
        repair_status_view(self.pauses(), self.not_well())
    }

    /// Pauses repair, or resumes it.
    pub(super) fn set_paused(
        &mut self,
        pause: Pause,
        caller: &Caller,
        pauses: bool,
    ) -> Result<RepairStatusView, Problem> {
        if let Some(name) = &pause.cluster {
            self.cluster(name)?;
        }
        let scope = pause.cluster.clone();
        let reason = pause.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        let (word, outcome) = if pauses {
            let since = self.ward.paused.get(&scope).map_or(self.now, |paused| paused.since);
            let paused = Paused { since, by: caller.0.clone(), reason: pause.reason };
            self.ward.paused.insert(scope.clone(), paused);
            ("RepairPaused", "nothing disruptive is done on its own until it is resumed")
        } else {
            self.ward.paused.remove(&scope);
            ("RepairResumed", "repairs that were held go on")
        };
        let event = self.new_event(Severity::Warning, word);
        let cause = format!("{} asked for it{reason}", caller.0);
        self.events.push(FleetEvent { cluster: scope, cause, outcome: outcome.to_owned(), ..event });
        Ok(self.repair_status())
    }

    pub(super) fn repair_options(&self, id: &MachineId) -> Result<RepairOptionsView, Problem> {
        let cluster = &self.cluster_with(id)?.spec.name;
        let option = |action| {
            let wish = RepairWish { action, against: Against::Nothing };
            let not_now = match self.refusal(id, &wish) {
                Ok(None) => None,
                Ok(Some(hold)) => Some(NotNow::Held(hold)),
                Err(problem) => {
                    // What was asked for stands beside it.
                    let detail = problem.view().detail;
                    let why = detail.split_once(": ").map_or(detail.as_str(), |(_, why)| why);
                    Some(NotNow::Other(why.to_owned()))
                }
            };
            (action, not_now)
        };
        Ok(repair_options_view(id, cluster, RepairAction::ALL.map(option)))
    }

    pub(super) fn preview_repair(&self, id: &MachineId, wish: &RepairWish) -> Result<RepairPreview, Problem> {
        let cluster = self.cluster_with(id)?;
        let name = &cluster.spec.name;
        let against = self.refusal(id, wish)?;
        if let Some(hold) = &against {
            let goes_on = match &wish.against {
                // What it would cost is not known yet.
                _ if matches!(hold, Hold::Starting { .. }) => false,
                Against::Nothing => false,
                Against::Guards => override_is_enough(hold),
                Against::Quorum { typed } => typed == name.as_str(),
            };
            if !goes_on {
                return Err(repair_held(id, name, wish, hold));
            }
        }
        let roles = cluster.blueprint.machines.get(id).map(|machine| machine.roles.clone());
        let has = |role: Role| roles.as_ref().is_some_and(|roles| roles.contains(&role));
        Ok(RepairPreview {
            machine: id.clone(),
            cluster: name.clone(),
            action: wish.action,
            pods: has(Role::Worker) || has(Role::Master),
            only_api: has(Role::Master) && !self.another_master_works(cluster, id),
            etcd_member: has(Role::Etcd).then(|| id.to_string()),
            against,
        })
    }

    pub(super) fn repair(
        &mut self,
        id: &MachineId,
        wish: &RepairWish,
        caller: &Caller,
    ) -> Result<RepairView, Problem> {
        let preview = self.preview_repair(id, wish)?;
        let now = self.now;
        if !self.ward.ill.contains_key(id) {
            let incident = self.ward.incident(now, Verdict::Well);
            let (cluster, acts) = (preview.cluster.clone(), Vec::new());
            let ill =
                Ill { cluster, broken: None, incident, acting: None, acts, fenced: None, steps_left: 0 };
            self.ward.ill.insert(id.clone(), ill);
        }
        if let Some(ill) = self.ward.ill.get_mut(id) {
            (ill.acting, ill.steps_left) = (Some(wish.action), STEPS_OF_REPAIR);
            ill.acts.push(Act { action: wish.action, at: now, called_off: false });
        }
        let forced = if wish.against == Against::Nothing { "" } else { ", against the guards" };
        let cause = format!("{} asked for it{forced}", caller.0);
        self.note_ill(id, Severity::Warning, "RepairBegun", &cause, &wish.action.to_string());
        let incident = self.ward.ill.get(id).map(|ill| ill.incident.clone());
        Ok(repair_view(&preview, incident.as_ref()))
    }

    fn another_master_works(&self, cluster: &FakeCluster, id: &MachineId) -> bool {
        let works = |other: &BlueprintMachine| other.id != *id && !self.ward.ill.contains_key(&other.id);
        cluster.blueprint.with_role(Role::Master).any(works)
    }

    fn cluster_with(&self, id: &MachineId) -> Result<&FakeCluster, Problem> {
        let found = self.clusters.values().find(|cluster| cluster.blueprint.machines.contains_key(id));
        found.ok_or_else(|| Problem::machine_not_found(id))
    }

    /// The hold that a person meets; an error when the repair makes no sense now.
    fn refusal(&self, id: &MachineId, wish: &RepairWish) -> Result<Option<Hold>, Problem> {
        let (cluster, action) = (self.cluster_with(id)?, wish.action);
        let busy = |why: &str| {
            let problem = Problem::new(Code::MachineBusy, format!("machine {id}: {why}"));
            problem.remedy(format!("wait until that is done; how far it is: keelson why {id}"))
        };
        if cluster.blueprint.machines.get(id).is_some_and(|machine| machine.leaving) {
            return Err(busy("it is leaving the cluster"));
        }
        let ill = self.ward.ill.get(id);
        if let Some(under_way) = ill.and_then(|ill| ill.acting) {
            return Err(busy(&format!("{under_way} is under way")));
        }
        let broken = ill.and_then(|ill| ill.broken.as_ref());
        let off = broken.is_some_and(|broken| broken.verdict == Verdict::Off);
        if action == RepairAction::PowerOn && !off {
            let what = format!(
                "power-on of {id} is of no use: it has power already: power-cycle takes its power away and gives it back"
            );
            return Err(Problem::new(Code::RepairUseless, what)
                .remedy(format!("see which repairs are possible now: keelson why {id}")));
        }
        if !action.is_disruptive() {
            return Ok(None);
        }
        let etcd = |machine: &keelson_model::BlueprintMachine| machine.roles.contains(&Role::Etcd);
        let machines = &cluster.blueprint.machines;
        let only = machines.get(id).is_some_and(etcd) && machines.values().filter(|m| etcd(m)).count() == 1;
        if action == RepairAction::Recreate && only {
            let why = "it holds the only copy of the cluster's state: making it anew would lose the cluster"
                .to_owned();
            return Ok(Some(Hold::Impossible { why }));
        }
        let busy =
            self.ward.ill.iter().find(|(other, ill)| {
                *other != id && ill.cluster == cluster.spec.name && ill.acting.is_some()
            });
        let busy = busy.map(|(other, _)| Hold::Busy { machine: other.clone() });
        let hold = broken.and_then(|broken| broken.hold.as_ref()).filter(|hold| holds_persons(hold));
        Ok(hold.cloned().or(busy))
    }
}

fn broken_lease(ill: &Ill) -> LeaseSeen {
    ill.broken.as_ref().map_or(LeaseSeen::Unknown, |broken| broken.evidence.lease)
}

/// Whether a guard holds what a person asks for too, and not only what the coordinator does by itself.
fn holds_persons(hold: &Hold) -> bool {
    matches!(hold, Hold::Starting { .. } | Hold::Meltdown { .. } | Hold::Busy { .. } | Hold::Quorum { .. })
}
