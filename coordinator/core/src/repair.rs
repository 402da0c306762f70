//! Repair: the smallest thing that mends a machine, then the next one. What is under way is in the machine's row, so a
//! coordinator that dies in the middle goes on where it was.

use std::collections::BTreeMap;
use std::time::Duration;

use keelson_model::{
    Due, FaultClass, FleetEvent, Hold, LeaseSeen, MachinePhase, RepairAction, Role, SeatBegins, Severity,
    Verdict,
};
use keelson_protocol::health::NodeState;
use keelson_protocol::{ClusterName, MachineId, MonoTime, WallTime};

use crate::detect::{Census, is_unborn};
use crate::effect::ProviderCall;
use crate::findings::{ails, found};
use crate::guard::{Asker, last_repair, prune, retries};
use crate::limits::{
    ACTS_KEPT_MAX, AGENT_DOWN_AFTER, BEGIN_MAX, DISRUPTED_MAX, GIVEN_UP_AFTER, HOLD_TOLD_EVERY, IN_VAIN,
    MENDED_AFTER, MISSING_AFTER, NODE_LOST_AFTER, POWERLESS_AFTER, REBUILD_TRIES_MAX, REPAIRING_AFTER,
};
use crate::metrics::RepairOutcome;
use crate::row::{Act, Asked, Incident};
use crate::state::{CallFor, CoordinatorCore, Machine, Now};

/// What is known of a fault that is open; lost with the process, and found again by the next.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repair {
    /// Since when the verdict is what it is.
    pub(crate) since: Option<MonoTime>,
    /// Since when it is well again.
    well_since: Option<MonoTime>,
    /// What holds it back now.
    pub(crate) hold: Option<Hold>,
    /// When each guard was last told to hold it.
    told: BTreeMap<&'static str, MonoTime>,
}

impl CoordinatorCore {
    /// A verdict is another one than before.
    pub(crate) fn verdict_changed(&mut self, now: Now, id: &MachineId, verdict: Verdict) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let repair = machine.repair.get_or_insert_default();
        repair.since = Some(now.mono);
        // What an agent mends by itself within moments is in its own events, and no incident.
        if verdict.is_fine() || verdict == Verdict::Repairing {
            return;
        }
        // Its power was taken away by us.
        let ours = machine.row.acting.is_some() || machine.row.renew || machine.row.fenced.is_some();
        let Some(class) = verdict.class().filter(|_| !ours) else { return };
        let evidence = found(machine);
        let began = self.began(id, verdict);
        if self.open_incident(now, id, verdict)
            && let Some(began) = began
        {
            self.metrics.detected(class, now.mono.since(began));
        }
        let outcome = format!("{class} fault: {verdict}");
        self.note_repair(now, id, Severity::Warning, "FaultFound", &evidence, &outcome);
    }

    /// When a fault began, as far as can be told: with the last heartbeat; what an agent tells, with the first word of it.
    fn began(&self, id: &MachineId, verdict: Verdict) -> Option<MonoTime> {
        let machine = self.machines.get(id)?;
        match verdict {
            Verdict::Repairing | Verdict::GivenUp => machine.suspected,
            _ => self.last_heard(machine),
        }
    }

    /// Whether it was not open yet.
    fn open_incident(&mut self, now: Now, id: &MachineId, verdict: Verdict) -> bool {
        let number = match self.machines.get(id).map(|machine| &machine.row.incident) {
            Some(None) => self.take_number(crate::row::Counter::Incident),
            _ => return false,
        };
        if let Some(machine) = self.machines.get_mut(id) {
            machine.row.incident = Some(Incident { number, opened: now.wall, verdict, tried: None });
            self.save_machine(id);
        }
        true
    }

    /// Brings a machine's repair on: the next act of it, or the reason why there is none now.
    pub(crate) fn reconcile_repair(&mut self, now: Now, id: &MachineId, census: &Census) {
        if self.close_when_mended(now, id) {
            return;
        }
        let Some(machine) = self.machines.get_mut(id) else { return };
        prune(&mut machine.row, now.wall);
        let Some(machine) = self.machines.get(id) else { return };
        let cluster = machine.row.cluster.clone();
        let planned = self.planned(&cluster, id);
        let Some(planned) = planned.filter(|planned| planned.incarnation == machine.row.incarnation) else {
            return;
        };
        if planned.leaving {
            return self.let_go(now, id, census);
        }
        if is_under_way(machine) {
            return self.call_off_when_alive(now, id);
        }
        if self.repairs_for_long(now, machine) {
            let (cause, what) = ails(machine);
            let began = self.began(id, Verdict::Repairing).unwrap_or(now.mono);
            self.open_incident(now, id, Verdict::Repairing);
            self.metrics.detected(FaultClass::Process, now.mono.since(began));
            let outcome = format!("process fault: {what}");
            return self.note_repair(now, id, Severity::Warning, "FaultFound", &cause, &outcome);
        }
        let hold = match self.next_action(now, machine) {
            Ok(None) => None,
            Ok(Some(action)) => match self.allowed(now, id, action, Asker::Detector, census) {
                Ok(()) => {
                    let why = match self.forgot_itself(machine) {
                        Some(_) => "its disk has lost who it is: it asked to enrol again, with another key"
                            .to_owned(),
                        None => format!("{}; {}", machine.verdict, found(machine)),
                    };
                    return self.act(now, id, action, Asked::Nobody, &why);
                }
                Err(hold) => Some(hold),
            },
            Err(hold) => Some(hold),
        };
        // What is harsher waits for guards of its own, and power need not.
        let machine = self.machines.get(id).filter(|machine| machine.verdict == Verdict::Off);
        let power_held = machine.and_then(|machine| self.power_held(now, machine));
        let hold = power_held.or(hold);
        self.held(now, id, hold);
    }

    /// What keeps a machine that was found without power from being switched on. What a person has asked for, and what was
    /// begun before a pause, goes on.
    pub(crate) fn power_held(&self, now: Now, machine: &Machine) -> Option<Hold> {
        let row = &machine.row;
        let planned = self.planned(&row.cluster, &row.id).filter(|planned| !planned.leaving)?;
        let cluster = self.clusters.get(&row.cluster)?;
        // One that never spoke is asked for anew: that counted when it was asked for first.
        let asked_for = row.enrolled_key.is_none() && machine.attempts > 0;
        if is_under_way(machine) || row.powering || asked_for {
            return None;
        }
        if row.fenced.is_none()
            && let Err(paused) = self.not_paused(cluster)
        {
            return Some(paused);
        }
        // What a quorum lacks is tried again and again.
        let member = planned.roles.contains(&Role::Etcd);
        if member && self.quorum(cluster).outlives_loss(&row.id).is_err() {
            return None;
        }
        retries(now, machine, RepairAction::PowerOn).err()
    }

    /// A machine on its way out that can end no pod any more is not mended: its power is taken away, so that its pods can
    /// be given up.
    fn let_go(&mut self, now: Now, id: &MachineId, census: &Census) {
        let Some(machine) = self.machines.get(id) else { return };
        if machine.row.renew && machine.call.is_none() {
            return self.call_off(now, id, "it leaves the cluster");
        }
        let cluster = machine.row.cluster.clone();
        let ends_pods = match machine.verdict {
            Verdict::Hung | Verdict::AgentDown | Verdict::Missing => false,
            Verdict::GivenUp => {
                let planned = self.planned(&cluster, id);
                !self.drain_is_late(now, machine) || planned.is_some_and(|p| self.keeps_api(&cluster, p))
            }
            _ => true,
        };
        let due = machine.call.is_none() && machine.after.is_none_or(|after| after <= now.mono);
        if ends_pods || machine.row.fenced.is_some() || !due {
            return;
        }
        let hold = match self.next_action(now, machine) {
            Ok(None) => None,
            Ok(Some(_)) => {
                // On an empty disk, and where no machine is any more, nothing runs that a guard could protect.
                let empty = self.forgot_itself(machine).is_some() || machine.verdict == Verdict::Missing;
                let paused = self.clusters.get(&cluster).map_or(Ok(()), |cluster| self.not_paused(cluster));
                let allowed = match empty {
                    true => paused.and_then(|()| self.quorum_allows(id, RepairAction::Recreate)),
                    false => self.allowed(now, id, RepairAction::PowerCycle, Asker::Detector, census),
                };
                let incarnation = machine.row.incarnation;
                match allowed {
                    Ok(()) => return self.call_fence(id, cluster, incarnation),
                    Err(hold) => Some(hold),
                }
            }
            Err(hold) => Some(hold),
        };
        self.held(now, id, hold);
    }

    /// Takes back what was begun for a fault, when the machine turns out to live before its power was taken away. What a
    /// person has asked for of a machine that was well is done.
    fn call_off_when_alive(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get(id) else { return };
        let calls_for_none = match machine.verdict {
            Verdict::Well | Verdict::CutOff | Verdict::Repairing => true,
            // It was begun on other evidence, and this one asks for patience.
            Verdict::AgentDown => !matches!(self.next_action(now, machine), Ok(Some(_))),
            _ => false,
        };
        let due = calls_for_none
            && matches!(machine.row.phase, MachinePhase::Enrolled { .. })
            && machine.row.fenced.is_none()
            && machine.call.is_none()
            && machine.row.asked == Asked::Nobody;
        if due {
            let cause = match machine.verdict {
                Verdict::AgentDown => "it runs, and perhaps only its agent does not",
                _ => "it lives, and its power was not taken away yet",
            };
            self.call_off(now, id, cause);
        }
    }

    /// Takes back what was begun and not done.
    pub(crate) fn call_off(&mut self, now: Now, id: &MachineId, cause: &str) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let action = under_way(machine);
        (machine.row.acting, machine.row.renew, machine.row.forced) = (None, false, false);
        // What was not done is no reason for something harsher. One that keeps its disk gets its power back, and that counts.
        let undone = machine.row.fenced.is_none() || action == RepairAction::Recreate;
        if let Some(act) = machine.row.acts.last_mut().filter(|act| act.action == action) {
            act.called_off |= undone;
        }
        machine.row.asked = Asked::Nobody;
        machine.attempts = 0;
        machine.after = None;
        if let Some(incident) = &mut machine.row.incident {
            incident.tried = None;
            self.metrics.ended(incident.verdict.class(), RepairOutcome::CalledOff);
        }
        self.save_machine(id);
        self.held(now, id, None);
        self.note_repair(now, id, Severity::Info, "RepairCalledOff", cause, &format!("no {action}"));
    }

    /// What mends a machine with this verdict; `None` when nothing is due, or when it mends itself.
    fn next_action(&self, now: Now, machine: &Machine) -> Result<Option<RepairAction>, Hold> {
        let since = machine.repair.as_ref().and_then(|repair| repair.since);
        let lasts = since.map(|since| now.mono.since(since)).unwrap_or_default();
        let (verdict, forgot) = (machine.verdict, self.forgot_itself(machine).is_some());
        Ok(match verdict {
            Verdict::Well | Verdict::Suspected | Verdict::Repairing => None,
            _ if let Err(hold) = self.record_is_newest(&machine.row.id) => return Err(hold),
            Verdict::Off if loses_power_again(machine) => Some(RepairAction::Rebuild),
            _ if lasts < self.patience(machine) => None,
            // Being switched on is the life of a machine, not a repair: `reconcile_machine` does it.
            Verdict::Off => {
                let refused = machine.call.is_none() && machine.attempts > 0;
                (refused && !tried(machine, RepairAction::Rebuild)).then_some(RepairAction::Rebuild)
            }
            Verdict::Missing => Some(RepairAction::Recreate),
            // Its kubelet speaks for it, so that pods run that nobody has to move.
            Verdict::AgentDown if !forgot && lease(machine) == LeaseSeen::Fresh => {
                return Err(Hold::Evidence { verdict });
            }
            Verdict::Hung if is_unborn(now, machine) && self.founds_with_others(machine) => {
                match harsher(machine, forgot) {
                    RepairAction::Recreate => return Err(Hold::Evidence { verdict }),
                    action => Some(action),
                }
            }
            Verdict::GivenUp | Verdict::AgentDown => Some(harsher(machine, forgot)),
            Verdict::Hung if is_unborn(now, machine) => Some(harsher(machine, forgot)),
            // Nothing tells it from its zone, or from the network to it: what costs a boot is tried, and no more.
            Verdict::Hung => match (harsher(machine, forgot), alone(machine)) {
                (action @ RepairAction::PowerCycle, _) | (action, None) => Some(action),
                (_, Some(verdict)) => return Err(Hold::Evidence { verdict }),
            },
            Verdict::CutOff | Verdict::ZoneSilent | Verdict::FleetSilent | Verdict::Undecided => {
                return Err(Hold::Evidence { verdict });
            }
        })
    }

    /// Whether a machine that never spoke is one of several that found an etcd cluster. A new one in its place would have to
    /// join them, and nobody can be joined before they have founded it.
    fn founds_with_others(&self, machine: &Machine) -> bool {
        let founds = |planned: &&keelson_model::BlueprintMachine| {
            planned
                .seat
                .as_ref()
                .is_some_and(|seat| seat.begins == SeatBegins::Founding && seat.members.len() > 1)
        };
        let founded = self.clusters.get(&machine.row.cluster).is_some_and(|c| c.row.was_in_use());
        !founded
            && machine.row.sent.is_none()
            && self.planned(&machine.row.cluster, &machine.row.id).filter(founds).is_some()
    }

    /// How long a machine's verdict must last before something is done about it.
    fn patience(&self, machine: &Machine) -> Duration {
        // Of one that leaves, pods have still to end by themselves.
        let node_is_lost = || {
            let planned = self.planned(&machine.row.cluster, &machine.row.id);
            lease(machine) == LeaseSeen::Stale
                && planned.is_some_and(|planned| planned.only_runs_pods() && !planned.leaving)
        };
        match machine.verdict {
            Verdict::Off => POWERLESS_AFTER,
            Verdict::Missing => MISSING_AFTER,
            Verdict::GivenUp => GIVEN_UP_AFTER,
            Verdict::AgentDown if self.forgot_itself(machine).is_some() => Duration::ZERO,
            Verdict::AgentDown if node_is_lost() => NODE_LOST_AFTER,
            Verdict::AgentDown => AGENT_DOWN_AFTER,
            _ => Duration::ZERO,
        }
    }

    /// What will be done about a machine if its verdict stays what it is, and when: for people, who may not want to wait.
    pub(crate) fn due(&self, now: Now, machine: &Machine) -> Option<Due> {
        let row = &machine.row;
        let planned = self.planned(&row.cluster, &row.id)?;
        let begun = row.acting.is_some() || row.renew || planned.incarnation != row.incarnation;
        if planned.leaving || begun || self.not_paused(self.clusters.get(&row.cluster)?).is_err() {
            return None;
        }
        let action = match machine.verdict {
            Verdict::Missing => RepairAction::Recreate,
            Verdict::AgentDown if lease(machine) == LeaseSeen::Fresh => return None,
            Verdict::GivenUp | Verdict::AgentDown => harsher(machine, self.forgot_itself(machine).is_some()),
            _ => return None,
        };
        let due = machine.repair.as_ref()?.since?.plus(self.patience(machine));
        let at = now.wall.plus(due.since(now.mono));
        // A number of repairs or a cool-down that lasts longer than the patience puts it off.
        let at = match retries(now, machine, action) {
            Ok(()) => at,
            Err(hold) => at.max(hold.until()?),
        };
        (due > now.mono && self.costs_cluster(&row.id, action).is_none()).then_some(Due { action, at })
    }

    /// Whether an agent takes longer to mend something than a restart takes, and that was not told yet.
    fn repairs_for_long(&self, now: Now, machine: &Machine) -> bool {
        let since = machine.repair.as_ref().and_then(|repair| repair.since);
        machine.verdict == Verdict::Repairing
            && machine.row.incident.is_none()
            && since.is_some_and(|since| now.mono.since(since) >= REPAIRING_AFTER)
    }

    /// All guards, and what the cluster itself can stand.
    pub(crate) fn allowed(
        &self,
        now: Now,
        id: &MachineId,
        action: RepairAction,
        asker: Asker,
        census: &Census,
    ) -> Result<(), Hold> {
        if action == RepairAction::Recreate && self.is_only_copy(id) {
            return Err(only_copy());
        }
        self.guard(now, id, action, asker, census)
    }

    /// What speaks against `action` that only the typed name of the cluster overrides, whatever else holds it.
    pub(crate) fn costs_cluster(&self, id: &MachineId, action: RepairAction) -> Option<Hold> {
        if action == RepairAction::Recreate && self.is_only_copy(id) {
            return Some(only_copy());
        }
        self.record_is_newest(id).and_then(|()| self.quorum_allows(id, action)).err()
    }

    /// Whether the infrastructure has no newer incarnation of a machine than the record.
    pub(crate) fn record_is_newest(&self, id: &MachineId) -> Result<(), Hold> {
        self.machines
            .get(id)
            .and_then(|machine| machine.newer)
            .map_or(Ok(()), |newer| Err(Hold::OldRecord { newer }))
    }

    /// Whether a machine's disk is the only one that holds its cluster's state.
    fn is_only_copy(&self, id: &MachineId) -> bool {
        let cluster = self.machines.get(id).and_then(|machine| self.clusters.get(&machine.row.cluster));
        !self.holds_nothing(id)
            && cluster.is_some_and(|cluster| {
                let mut members = cluster.row.blueprint.with_role(Role::Etcd);
                members.next().is_some_and(|member| member.id == *id) && members.next().is_none()
            })
    }

    /// Whether a machine certainly holds nothing that its cluster could lose with it: its disk is blank, gone, or was never
    /// used, and the cluster's API server has never answered, so that nobody can have stored anything.
    pub(crate) fn holds_nothing(&self, id: &MachineId) -> bool {
        let nothing = |machine: &&Machine| {
            let (gone, used) = (machine.verdict == Verdict::Missing, machine.row.sent.is_some());
            gone || !used || self.forgot_itself(machine).is_some()
        };
        let machine = self.machines.get(id).filter(nothing);
        let cluster = machine.and_then(|machine| self.clusters.get(&machine.row.cluster));
        cluster.is_some_and(|cluster| !cluster.row.was_in_use())
    }

    /// Does it: writes it down first.
    pub(crate) fn act(&mut self, now: Now, id: &MachineId, action: RepairAction, asked: Asked, why: &str) {
        let nothing_to_lose = action == RepairAction::Recreate && self.holds_nothing(id);
        self.remember(now, id, action);
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.row.asked = asked;
        match action {
            RepairAction::Recreate => {
                machine.row.renew = true;
                machine.row.forced |= nothing_to_lose;
            }
            RepairAction::PowerOn | RepairAction::PowerCycle | RepairAction::Rebuild => {
                machine.row.acting = Some(action);
            }
        }
        let verdict = machine.verdict;
        if let Some(repair) = &mut machine.repair {
            repair.hold = None;
        }
        let cluster = machine.row.cluster.clone();
        self.open_incident(now, id, verdict);
        if let Some(incident) = self.machines.get_mut(id).and_then(|machine| machine.row.incident.as_mut())
            && incident.tried.replace(action).is_some()
        {
            self.metrics.ended(incident.verdict.class(), RepairOutcome::NotEnough);
        }
        self.save_machine(id);
        self.metrics.repair_begun(action);
        self.note_repair(now, id, Severity::Warning, "RepairBegun", why, &action.to_string());
        self.plan_soon(&cluster);
    }

    /// Takes down what is done to a machine.
    pub(crate) fn remember(&mut self, now: Now, id: &MachineId, action: RepairAction) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        prune(&mut machine.row, now.wall);
        machine.row.acts.push(Act { action, at: now.wall, called_off: false });
        let surplus = machine.row.acts.len().saturating_sub(ACTS_KEPT_MAX);
        machine.row.acts.drain(..surplus);
    }

    fn held(&mut self, now: Now, id: &MachineId, hold: Option<Hold>) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let repair = machine.repair.get_or_insert_default();
        let news = hold.as_ref().map(Hold::guard) != repair.hold.as_ref().map(Hold::guard);
        repair.hold.clone_from(&hold);
        if news && let Some(hold) = hold {
            // Two guards that take turns are told once a minute.
            let before = repair.told.get(hold.guard());
            if before.is_some_and(|told| now.mono.since(*told) < HOLD_TOLD_EVERY) {
                return;
            }
            repair.told.insert(hold.guard(), now.mono);
            let cluster = machine.row.cluster.clone();
            let severity = match hold {
                Hold::Meltdown { .. }
                | Hold::Quorum { .. }
                | Hold::Retries { .. }
                | Hold::OldRecord { .. }
                | Hold::Impossible { .. } => Severity::Alarm,
                Hold::CoolDown { .. } => Severity::Info,
                _ => Severity::Warning,
            };
            let outcome = format!("nothing is done until {}", hold.ends_when(&cluster, id));
            self.touched.insert(cluster);
            self.note_repair(now, id, severity, "RepairHeld", &hold.to_string(), &outcome);
        }
    }

    /// Closes an incident when its machine has worked for a while.
    fn close_when_mended(&mut self, now: Now, id: &MachineId) -> bool {
        let Some(machine) = self.machines.get_mut(id) else { return true };
        let ready = machine.verdict == Verdict::Well
            && machine.heartbeat.is_some_and(|heartbeat| heartbeat.state == NodeState::Ready)
            && machine.row.acting.is_none()
            && !machine.row.renew;
        if machine.row.incident.is_some() {
            // It was opened by an earlier process.
            machine.repair.get_or_insert_default();
        }
        let Some(repair) = &mut machine.repair else { return ready };
        if !ready {
            repair.well_since = None;
            return false;
        }
        let since = *repair.well_since.get_or_insert(now.mono);
        if now.mono.since(since) < MENDED_AFTER {
            return true;
        }
        machine.repair = None;
        let Some(incident) = machine.row.incident.take() else { return true };
        self.save_machine(id);
        let took = now.wall.since(incident.opened).saturating_sub(MENDED_AFTER);
        let class = incident.verdict.class();
        let outcome = incident.tried.map_or(RepairOutcome::Unaided, |_| RepairOutcome::Mended);
        self.metrics.ended(class, outcome);
        if let Some(class) = class {
            self.metrics.mended(class, took);
        }
        let cause = format!("incident {}: {}", incident.number, incident.verdict);
        let outcome = format!("it works again, after {:.1} s", took.as_secs_f64());
        let event = self.event_of(now, id, Severity::Info, "FaultMended");
        self.note(FleetEvent { incident: Some(incident.number), cause, outcome, ..event });
        true
    }

    /// Asks the provider for what an act needs next. Power is taken away before it is given back, and before anything is
    /// made anew.
    pub(crate) fn reconcile_acting(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get(id) else { return };
        let due = machine.call.is_none() && machine.after.is_none_or(|after| after <= now.mono);
        if !due || machine.row.fenced.is_some() || !needs_fence(machine) {
            return;
        }
        let (asked, action) = (machine.row.asked, under_way(machine));
        let (cluster, incarnation) = (machine.row.cluster.clone(), machine.row.incarnation);
        // What was begun by what was known then, perhaps by an earlier process, needs that evidence still.
        let still = asked != Asked::Nobody || machine.verdict.calls_for_repair();
        if !self.warm(now) {
            return;
        }
        // Also when the evidence is another one by now: whoever asks for something else must not be told that it is busy.
        if begins_too_long(now, machine) {
            return self.call_off(now, id, &too_long());
        }
        if !still {
            return;
        }
        if let Err(hold) = self.still_allowed(now, id, action, asked) {
            self.call_off(now, id, &hold.to_string());
            return self.held(now, id, Some(hold));
        }
        self.call_fence(id, cluster, incarnation);
    }

    /// Whether the guards that let an act begin would let it begin now as well.
    fn still_allowed(
        &self,
        now: Now,
        id: &MachineId,
        action: RepairAction,
        asked: Asked,
    ) -> Result<(), Hold> {
        let asker = match asked {
            Asked::PersonDespiteQuorum => return Ok(()),
            // The world may be another one than that in which it was asked for.
            Asked::PersonDespiteGuards => {
                return self.costs_cluster(id, action).map_or_else(|| self.plan_allows(id, action), Err);
            }
            Asked::Person => Asker::Person,
            Asked::Nobody => Asker::Detector,
        };
        self.world_allows(now, id, action, asker, &self.census(now))
    }

    pub(crate) fn call_fence(
        &mut self,
        id: &MachineId,
        cluster: ClusterName,
        incarnation: keelson_protocol::Incarnation,
    ) {
        let call = ProviderCall::Fence { machine: id.clone(), cluster, incarnation };
        let call = self.call(CallFor::Fence(id.clone()), call);
        if let Some(machine) = self.machines.get_mut(id) {
            machine.call = call;
        }
    }

    /// The provider has confirmed that a machine has no power and gets none before we say so.
    pub(crate) fn machine_fenced(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get(id) else { return };
        let leaves = self.planned(&machine.row.cluster, id).is_some_and(|planned| planned.leaving);
        if leaves && machine.verdict.calls_for_repair() && !is_under_way(machine) {
            // Should the quorum need its vote and give it its power back, this counts.
            self.remember(now, id, RepairAction::PowerCycle);
        }
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.row.fenced = Some(now.wall);
        // Fenced once more, because what should have given it its power has failed: that counts on.
        let again = std::mem::take(&mut machine.row.powering);
        machine.attempts = if again { machine.attempts } else { 0 };
        if !matches!(machine.row.phase, MachinePhase::Missing { .. }) {
            machine.row.phase = MachinePhase::Off { since: now.wall };
        }
        (machine.off_since, machine.power_asked) = (Some(now.mono), None);
        machine.evacuated = false;
        machine.after = None;
        let session = machine.session;
        if let Some(session) = session {
            let why = "the machine's power was taken away".to_owned();
            self.on_closed(now, session, why.clone());
            self.effects.push(crate::effect::Effect::Close { session, why });
        }
        self.touch(id);
        self.save_machine(id);
        self.renew_soon(id);
        let cause = if leaves { "it leaves the cluster" } else { "a repair needs it" };
        let outcome = "the infrastructure confirms that it has no power";
        self.note_repair(now, id, Severity::Info, "MachineFenced", cause, outcome);
    }

    /// A machine that does not get its power back after some tries is asked to be switched on as it is from then on: what is
    /// harsher may come then, and whoever asks for something else is not told that it is busy. Another shell is not waited for;
    /// its own may come for as long as it counts as disrupted by us.
    pub(crate) fn give_act_up(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        let long = matches!(machine.row.phase, MachinePhase::Off { since } if now.wall.since(since) >= DISRUPTED_MAX);
        let over = match machine.row.acting {
            Some(RepairAction::Rebuild) => true,
            Some(RepairAction::PowerOn | RepairAction::PowerCycle) => long,
            Some(RepairAction::Recreate) | None => false,
        };
        if !over || machine.attempts < REBUILD_TRIES_MAX {
            return;
        }
        machine.row.acting = None;
        machine.row.asked = Asked::Nobody;
        let why = machine.refusal.clone().unwrap_or_default();
        self.save_machine(id);
        self.note_repair(now, id, Severity::Alarm, "RepairGivenUp", &why, "it is switched on as it is");
    }

    /// One that is to be made anew can be planned anew, now that it has no power.
    fn renew_soon(&mut self, id: &MachineId) {
        let machine = self.machines.get(id).filter(|machine| machine.row.renew);
        if let Some(cluster) = machine.map(|machine| machine.row.cluster.clone()) {
            self.plan_soon(&cluster);
        }
    }

    /// The fence could not be set: nothing harsher may be done.
    pub(crate) fn fence_failed(&mut self, now: Now, id: &MachineId, why: String) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.call = None;
        machine.refusal = Some(why.clone());
        machine.attempts += 1;
        machine.after = Some(now.mono.plus(crate::provider::retry_delay(machine.attempts)));
        machine.fence_failed = Some(now.mono);
        self.held(now, id, Some(Hold::Fence { why }));
    }

    /// An act has come to its end: the machine has its power again.
    pub(crate) fn acted(&mut self, now: Now, id: &MachineId) {
        let Some(machine) = self.machines.get_mut(id) else { return };
        machine.row.fenced = None;
        machine.row.powering = false;
        if !machine.row.renew {
            machine.row.asked = Asked::Nobody;
        }
        if let Some(action) = machine.row.acting.take() {
            self.save_machine(id);
            let outcome = format!("{action} done, the machine starts");
            self.note_repair(now, id, Severity::Info, "RepairDone", "the machine has power", &outcome);
        }
    }

    /// An event of a machine, with its cluster and the incident that is open.
    pub(crate) fn event_of(&self, now: Now, id: &MachineId, severity: Severity, reason: &str) -> FleetEvent {
        let machine = self.machines.get(id);
        let incident = machine.and_then(|machine| machine.row.incident.as_ref());
        FleetEvent {
            cluster: machine.map(|machine| machine.row.cluster.clone()),
            machine: Some(id.clone()),
            incident: incident.map(|incident| incident.number),
            ..self.event(now, severity, reason)
        }
    }

    pub(crate) fn note_repair(
        &mut self,
        now: Now,
        id: &MachineId,
        severity: Severity,
        reason: &str,
        cause: &str,
        outcome: &str,
    ) {
        let event = self.event_of(now, id, severity, reason);
        self.note(FleetEvent { cause: cause.to_owned(), outcome: outcome.to_owned(), ..event });
    }

    /// Whether somebody has paused repair of everything, and since when.
    #[must_use]
    pub fn repair_paused(&self) -> Option<WallTime> {
        self.repair_paused
    }
}

fn only_copy() -> Hold {
    let why = "it holds the only copy of the cluster's state: making it anew would lose the cluster";
    Hold::Impossible { why: why.to_owned() }
}

/// Whether the next thing to do to a machine is to take its power away for certain.
pub(crate) fn needs_fence(machine: &Machine) -> bool {
    machine.row.renew || matches!(machine.row.acting, Some(RepairAction::PowerCycle | RepairAction::Rebuild))
}

/// Whether something was begun long ago, and the machine's power could not be taken for it.
pub(crate) fn begins_too_long(now: Now, machine: &Machine) -> bool {
    let waits = is_under_way(machine) && machine.row.fenced.is_none() && !machine.row.powering;
    waits
        && needs_fence(machine)
        && last_repair(machine).is_none_or(|act| now.wall.since(act.at) >= BEGIN_MAX)
}

/// The same in words.
pub(crate) fn too_long() -> String {
    format!("its power could not be taken away within {} minutes", BEGIN_MAX.as_secs() / 60)
}

/// Whether something is being done to a machine.
pub(crate) fn is_under_way(machine: &Machine) -> bool {
    machine.row.acting.is_some() || machine.row.renew
}

/// What is being done to a machine.
fn under_way(machine: &Machine) -> RepairAction {
    machine.row.acting.unwrap_or(RepairAction::Recreate)
}

/// What the silence of a machine is called that has no other one in its zone, or no peer that could be asked.
fn alone(machine: &Machine) -> Option<Verdict> {
    match &machine.evidence {
        Some(evidence) if evidence.zone_others == 0 => Some(Verdict::ZoneSilent),
        Some(evidence) if evidence.peers.silent > 0 => None,
        _ => Some(Verdict::Undecided),
    }
}

/// The next rung within an incident: power, then a new shell around the disk, then a new machine; that at once where the
/// disk is what is lost.
fn harsher(machine: &Machine, forgot_itself: bool) -> RepairAction {
    if forgot_itself {
        RepairAction::Recreate
    } else if !tried(machine, RepairAction::PowerCycle)
        && (times(machine, RepairAction::PowerCycle) < IN_VAIN || rebuilt_lately(machine))
    {
        RepairAction::PowerCycle
    } else if !tried(machine, RepairAction::Rebuild) {
        RepairAction::Rebuild
    } else {
        RepairAction::Recreate
    }
}

/// How often this was done to a machine within the last hour.
pub(crate) fn times(machine: &Machine, action: RepairAction) -> usize {
    machine.row.acts.iter().filter(|act| act.action == action && !act.called_off).count()
}

/// Whether a machine is off once more though it was switched on several times, and may need another shell.
fn loses_power_again(machine: &Machine) -> bool {
    let off = machine.call.is_none() && !machine.row.powering;
    off && times(machine, RepairAction::PowerOn) >= IN_VAIN && !rebuilt_lately(machine)
}

/// Whether a machine was given another shell within the last hour, or could not be given one: a second one would be no other.
fn rebuilt_lately(machine: &Machine) -> bool {
    machine.row.acts.iter().any(|act| act.action == RepairAction::Rebuild)
}

/// Whether this was done to a machine within its incident.
fn tried(machine: &Machine, action: RepairAction) -> bool {
    let opened = machine.row.incident.as_ref().map(|incident| incident.opened);
    let mut acts = machine.row.acts.iter();
    acts.any(|act| act.action == action && !act.called_off && opened.is_none_or(|opened| act.at >= opened))
}

fn lease(machine: &Machine) -> LeaseSeen {
    machine.evidence.as_ref().map_or(LeaseSeen::Unknown, |evidence| evidence.lease)
}
