//! Guards: what must hold before anything is done to a machine that may still be worth something. Every repair passes
//! here, whoever asks for it.

use std::collections::BTreeSet;
use std::time::Duration;

use keelson_model::{BlueprintMachine, Hold, MachinePhase, RepairAction, Role, Scope, Verdict};
use keelson_planner::Quorum;
use keelson_protocol::{Generation, MachineId, MonoTime, WallTime};

use crate::detect::Census;
use crate::leave::has_begun;
use crate::limits::{
    ACTS_PER_HOUR_MAX, BROKEN_PERCENT_MAX, COOL_DOWN_MAX, COOL_DOWN_MIN, DISRUPTED_MAX,
    DISRUPTED_PERCENT_MAX, LIST_LAG_MAX, MEMBER_BACK_MAX, RECREATES_PER_HOUR_MAX,
};
use crate::repair::is_under_way;
use crate::replan::{Serves, said_that_its_member_serves};
use crate::row::{Act, MachineRow};
use crate::state::{Cluster, CoordinatorCore, Machine, Now};

/// The time over which repairs are counted.
pub(crate) const ACTS_WINDOW: Duration = Duration::from_secs(3600);

/// Who asks for a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asker {
    /// The coordinator itself.
    Detector,
    /// A person.
    Person,
}

impl CoordinatorCore {
    /// Whether `action` may be done to a machine now.
    pub(crate) fn guard(
        &self,
        now: Now,
        id: &MachineId,
        action: RepairAction,
        asker: Asker,
        census: &Census,
    ) -> Result<(), Hold> {
        if asker == Asker::Detector
            && let Some(machine) = self.machines.get(id)
        {
            retries(now, machine, action)?;
        }
        self.world_allows(now, id, action, asker, census)
    }

    /// Whether nothing but the machine's own history speaks against `action`. Asked once more before its power is taken
    /// away: between the decision and that the world may have become another one.
    pub(crate) fn world_allows(
        &self,
        now: Now,
        id: &MachineId,
        action: RepairAction,
        asker: Asker,
        census: &Census,
    ) -> Result<(), Hold> {
        let Some(machine) = self.machines.get(id) else { return Ok(()) };
        let Some(cluster) = self.clusters.get(&machine.row.cluster) else { return Ok(()) };
        if asker == Asker::Detector {
            self.not_paused(cluster)?;
        }
        if !action.is_disruptive() {
            return Ok(());
        }
        self.record_is_newest(id)?;
        let Some(planned) = self.planned(&machine.row.cluster, id) else { return Ok(()) };
        // A person may go against the others, so they must not hide that this one holds as well.
        if asker == Asker::Person {
            self.knows_who_works(now)?;
            self.quorum_outlives(cluster, planned, action)?;
            self.another_master(now, cluster, planned)?;
        }
        self.no_meltdown(cluster, planned, census)?;
        self.nobody_else(now, cluster, planned)?;
        if action == RepairAction::Recreate {
            self.no_member_moves(cluster, planned)?;
        }
        if asker == Asker::Detector {
            self.quorum_outlives(cluster, planned, action)?;
            self.another_master(now, cluster, planned)?;
        }
        Ok(())
    }

    /// Just after its start nobody is heard, and all would seem broken.
    fn knows_who_works(&self, now: Now) -> Result<(), Hold> {
        if self.warm(now) {
            return Ok(());
        }
        Err(Hold::Starting { until: now.wall.plus(self.returning_until.since(now.mono)) })
    }

    /// Whether an etcd cluster outlives `action`, whatever else holds.
    pub(crate) fn quorum_allows(&self, id: &MachineId, action: RepairAction) -> Result<(), Hold> {
        let cluster = self.machines.get(id).and_then(|machine| self.clusters.get(&machine.row.cluster));
        let planned = cluster.and_then(|cluster| cluster.row.blueprint.machines.get(id));
        match (cluster, planned) {
            (Some(cluster), Some(planned)) if action.is_disruptive() => {
                self.quorum_outlives(cluster, planned, action)
            }
            _ => Ok(()),
        }
    }

    /// Whether the plan would carry `action` out, whatever else holds: it replaces one etcd member at a time.
    pub(crate) fn plan_allows(&self, id: &MachineId, action: RepairAction) -> Result<(), Hold> {
        let cluster = self.machines.get(id).and_then(|machine| self.clusters.get(&machine.row.cluster));
        let planned = cluster.and_then(|cluster| cluster.row.blueprint.machines.get(id));
        match (cluster, planned) {
            (Some(cluster), Some(planned)) if action == RepairAction::Recreate => {
                self.no_member_moves(cluster, planned)
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn not_paused(&self, cluster: &Cluster) -> Result<(), Hold> {
        if let Some(since) = self.repair_paused {
            return Err(Hold::Paused { scope: Scope::Fleet, since });
        }
        cluster.row.repair_paused.map_or(Ok(()), |since| Err(Hold::Paused { scope: Scope::Cluster, since }))
    }

    /// When much is broken at once, the cause is rarely the machines.
    fn no_meltdown(
        &self,
        cluster: &Cluster,
        planned: &BlueprintMachine,
        census: &Census,
    ) -> Result<(), Hold> {
        // One that never worked is not what has broken, and nothing that others could rely on.
        let machines =
            self.machines_of(&cluster.row.spec.name).filter(|machine| machine.row.enrolled_key.is_some());
        let (mut broken, mut total) = (0, 0);
        for machine in machines {
            total += 1;
            // One on its way out that has no power was switched off by us.
            let gone = machine.row.fenced.is_some()
                && cluster.row.blueprint.machines.get(&machine.row.id).is_some_and(|planned| planned.leaving);
            broken += usize::from(is_broken(machine) && !gone);
        }
        within(Scope::Cluster, broken, total)?;
        let count = |count: crate::detect::Count| (count.total - count.heard) as usize;
        let zone = census.zones.get(&planned.zone).copied().unwrap_or_default();
        within(Scope::Zone, count(zone), zone.total as usize)?;
        within(Scope::Fleet, count(census.fleet), census.fleet.total as usize)
    }

    /// One machine of the control plane at a time; of the workers a few.
    fn nobody_else(&self, now: Now, cluster: &Cluster, planned: &BlueprintMachine) -> Result<(), Hold> {
        let worker = BlueprintMachine::only_runs_pods;
        let same = |other: &&BlueprintMachine| worker(other) == worker(planned);
        let others = cluster.row.blueprint.machines.values().filter(same);
        let total = others.clone().filter(|other| self.has_enrolled(other)).count();
        let mut busy = others.filter(|other| other.id != planned.id && self.is_disrupted(now, other));
        let allowed = if worker(planned) { (total * DISRUPTED_PERCENT_MAX / 100).max(1) } else { 1 };
        match busy.nth(allowed - 1) {
            None => Ok(()),
            Some(other) => Err(Hold::Busy { machine: other.id.clone() }),
        }
    }

    /// Whether a machine ever worked: those that were never made leave no more room for losses.
    pub(crate) fn has_enrolled(&self, planned: &BlueprintMachine) -> bool {
        self.machines.get(&planned.id).is_some_and(|machine| machine.row.enrolled_key.is_some())
    }

    /// Whether a machine does not work because of something that we do, or did a moment ago.
    pub(crate) fn is_disrupted(&self, now: Now, planned: &BlueprintMachine) -> bool {
        let Some(machine) = self.machines.get(&planned.id) else { return false };
        let name = &machine.row.cluster;
        // One that leaves and has no power any more comes back for nobody.
        let goes_still = !machine.parting.removed && machine.row.fenced.is_none();
        // One that waits for a master to work is not what that master's repair may wait for.
        let waits = || self.keeps_api(name, planned) || self.members_in_use(name).contains(&planned.id);
        let leaves = planned.leaving && goes_still && !waits();
        // A drain that a budget blocks takes nothing away, and may wait for just this repair.
        let blocked = machine.parting.drain.as_ref().is_some_and(|drain| drain.blocked().next().is_some());
        // And one whose vote the quorum needs goes only when another member is back.
        let stays = |cluster: &Cluster| {
            planned.roles.contains(&Role::Etcd) && self.quorum(cluster).outlives_loss(&planned.id).is_err()
        };
        let goes = |cluster: &Cluster| has_begun(cluster, machine) && !stays(cluster);
        leaves && !blocked && self.clusters.get(name).is_some_and(goes)
            || is_changing(now, machine)
            || machine.is_heard() && self.was_sent_lately(planned) && !self.is_settled(planned)
            || !planned.leaving && self.is_repaired(now, planned)
    }

    /// Whether a machine is being repaired, or was a moment ago and does not work yet.
    pub(crate) fn is_repaired(&self, now: Now, planned: &BlueprintMachine) -> bool {
        // One whose power cannot be taken away does not hold up the others for ever. A fence may have been set though its
        // answer was lost; what has been off for longer is broken, and not what we keep from working.
        let knows = |machine: &Machine| {
            let since = machine.fence_failed.map(|failed| failed.plus(LIST_LAG_MAX));
            let on = machine.seen_on.is_some_and(|seen| since.is_none_or(|since| seen >= since));
            on || machine.off_since.is_some_and(|since| now.mono.since(since) >= DISRUPTED_MAX)
        };
        let begins = |machine: &Machine| {
            let lately = last_repair(machine).is_some_and(|act| now.wall.since(act.at) < DISRUPTED_MAX);
            let row = &machine.row;
            let taken = row.fenced.is_some() || row.powering || machine.call.is_some() || !knows(machine);
            is_under_way(machine) && (lately || taken)
        };
        self.machines.get(&planned.id).is_some_and(|machine| {
            begins(machine) || machine.row.incarnation != planned.incarnation || is_coming_back(now, machine)
        })
    }

    fn quorum_outlives(
        &self,
        cluster: &Cluster,
        planned: &BlueprintMachine,
        action: RepairAction,
    ) -> Result<(), Hold> {
        if !planned.roles.contains(&Role::Etcd) || self.holds_nothing(&planned.id) {
            return Ok(());
        }
        let quorum = self.quorum(cluster);
        match quorum.outlives_loss(&planned.id) {
            Ok(()) => Ok(()),
            // There is nothing left to lose, and its disk stays: one after the other, until there is a quorum again.
            Err(_) if action != RepairAction::Recreate && !self.may_count(cluster, &planned.id) => Ok(()),
            Err(lost) => {
                let (voters, working, needed) = (lost.voters, lost.working, lost.needed);
                Err(Hold::Quorum { voters, working, needed })
            }
        }
    }

    /// Whether an API server is left where there is more than one. One that does not work is no loss.
    fn another_master(&self, now: Now, cluster: &Cluster, planned: &BlueprintMachine) -> Result<(), Hold> {
        let several = cluster.row.blueprint.with_role(Role::Master).nth(1).is_some();
        if several && self.is_only_api_of(now, cluster, planned) { Err(Hold::ApiServer) } else { Ok(()) }
    }

    /// Whether a machine's API server is the only one of its cluster that works, whatever else on the machine does not. Where it
    /// does not say so itself, and none of the others does, it is the one that answers at the endpoint; and where the coordinator
    /// does not reach that one, it may serve until it says otherwise.
    pub(crate) fn is_only_api_of(&self, now: Now, cluster: &Cluster, planned: &BlueprintMachine) -> bool {
        let serves =
            |one: &BlueprintMachine| self.works(one) || self.serves(one, Role::Master) == Serves::Yes;
        // Whatever is not heard may serve, as long as it has power and knows who it is: with its agent stopped too.
        let perhaps = || {
            self.made(planned).is_some_and(|machine| match machine.is_heard() {
                true => {
                    self.says(planned).is_none()
                        || cluster.kube.answers(now) && self.serves(planned, Role::Master) != Serves::No
                }
                false => {
                    let powerless = matches!(machine.verdict, Verdict::Off | Verdict::Missing);
                    let serves = machine.row.fenced.is_none() && !powerless;
                    cluster.kube.answers(now) && serves && self.forgot_itself(machine).is_none()
                }
            })
        };
        let mut others = cluster.row.blueprint.with_role(Role::Master).filter(|other| other.id != planned.id);
        planned.roles.contains(&Role::Master) && (serves(planned) || perhaps()) && !others.any(serves)
    }

    fn no_member_moves(&self, cluster: &Cluster, planned: &BlueprintMachine) -> Result<(), Hold> {
        if !planned.roles.contains(&Role::Etcd) || self.holds_nothing(&planned.id) {
            return Ok(());
        }
        match self.member_on_its_way(cluster, planned) {
            Some(other) => Err(Hold::Busy { machine: other.clone() }),
            None => Ok(()),
        }
    }

    /// Another etcd machine that joins or leaves: the planner replaces one member at a time.
    fn member_on_its_way<'a>(
        &self,
        cluster: &'a Cluster,
        planned: &BlueprintMachine,
    ) -> Option<&'a MachineId> {
        let standings = self.standings(&cluster.row.spec.name);
        let mut others = cluster.row.blueprint.with_role(Role::Etcd).filter(|other| other.id != planned.id);
        let votes = |other: &BlueprintMachine| {
            standings.is_empty() || standings.get(&other.id) == Some(&keelson_model::Standing::Voter)
        };
        // One that leaves and that the quorum needs waits for just this repair.
        let quorum = self.quorum(cluster);
        let moves = |other: &&BlueprintMachine| match other.leaving {
            true => {
                standings.get(&other.id) != Some(&keelson_model::Standing::Absent)
                    && quorum.outlives_loss(&other.id).is_ok()
            }
            false => !votes(other) && standings.get(&other.id) != Some(&keelson_model::Standing::Absent),
        };
        others.find(moves).map(|other| &other.id)
    }

    /// Whether a quorum may count on a member. One that is only silent may serve its clients all the same.
    fn may_count(&self, cluster: &Cluster, id: &MachineId) -> bool {
        let members = || cluster.row.blueprint.with_role(Role::Etcd);
        let heard = members().filter(|planned| self.made(planned).is_some_and(Machine::is_heard));
        let (fail, work): (Vec<_>, Vec<_>) = heard.partition(|planned| self.member_fails(planned));
        let mut perhaps: BTreeSet<MachineId> = work.into_iter().map(|planned| planned.id.clone()).collect();
        let known = self.quorum_with(cluster, &perhaps);
        // No member works without a quorum: where those that say so, or have not had the time to say anything, make none, one
        // that is taken for dead serves with them, or one that has just been seen to fail.
        let one_serves = (known.has_any() || self.served_last(cluster)) && !known.holds();
        if one_serves {
            perhaps.extend(fail.into_iter().map(|planned| planned.id.clone()));
        }
        let dead = |machine: &Machine| match machine.verdict {
            Verdict::Hung => !one_serves,
            Verdict::Missing => true,
            // One that was off and that power was asked for since may have it, though the answer was lost: until a list that
            // was begun later has it as off.
            Verdict::Off => {
                let asked = machine.power_asked.or_else(|| machine.row.powering.then_some(self.started));
                let seen_since = |asked: MonoTime| {
                    machine.seen_off >= Some(asked.plus(LIST_LAG_MAX)) && machine.seen_off > machine.seen_on
                };
                machine.call.is_none() && asked.is_none_or(seen_since)
            }
            _ => false,
        };
        let silent = |machine: &&Machine| {
            !machine.is_heard() && !dead(machine) && self.forgot_itself(machine).is_none()
        };
        // Of the only one nothing is saved by leaving it as it is.
        if members().count() > 1 {
            let silent = self.machines_of(&cluster.row.spec.name).filter(silent);
            perhaps.extend(silent.map(|machine| machine.row.id.clone()));
        }
        let quorum = self.quorum_with(cluster, &perhaps);
        quorum.holds() && perhaps.contains(id)
    }

    /// Whether a member has served until a moment ago, or one that is only silent, and perhaps only for a moment, has said last that
    /// it serves.
    fn served_last(&self, cluster: &Cluster) -> bool {
        if cluster.etcd.fell.is_some_and(|fell| self.last_look.mono.since(fell) < MEMBER_BACK_MAX) {
            return true;
        }
        let dead = |machine: &Machine| {
            let powerless = matches!(machine.verdict, Verdict::Hung | Verdict::Off | Verdict::Missing);
            powerless || machine.row.fenced.is_some() || self.forgot_itself(machine).is_some()
        };
        let mut members =
            cluster.row.blueprint.with_role(Role::Etcd).filter_map(|planned| self.made(planned));
        members.any(|machine| !machine.is_heard() && !dead(machine) && said_that_its_member_serves(machine))
    }

    /// The etcd cluster as far as it is known, without members that are about to lose their power. Members that founded it vote
    /// until etcd says otherwise.
    pub(crate) fn quorum(&self, cluster: &Cluster) -> Quorum {
        self.quorum_with(cluster, &self.lasting(&cluster.row.blueprint))
    }

    fn quorum_with(&self, cluster: &Cluster, working: &BTreeSet<MachineId>) -> Quorum {
        let mut standings = self.standings(&cluster.row.spec.name);
        if standings.is_empty() {
            let members = cluster.row.blueprint.with_role(Role::Etcd);
            standings = members.map(|m| (m.id.clone(), keelson_model::Standing::Voter)).collect();
        }
        Quorum::of(&standings, working)
    }
}

/// Whether a machine is on its way to a config that it was sent, which may restart what it runs. One that does not get there
/// must not hold up the others for ever.
fn is_changing(now: Now, machine: &Machine) -> bool {
    let lately = |since: MonoTime| now.mono.since(since) < DISRUPTED_MAX;
    machine.is_heard() && machine.applies_since.is_some_and(lately)
}

/// Whether a machine counts as broken for the meltdown guard.
fn is_broken(machine: &Machine) -> bool {
    !machine.verdict.is_fine() && machine.verdict != Verdict::Repairing
}

fn within(scope: Scope, broken: usize, total: usize) -> Result<(), Hold> {
    let allowed = (total * BROKEN_PERCENT_MAX / 100).max(1);
    if broken > allowed { Err(Hold::Meltdown { scope, broken, total, allowed }) } else { Ok(()) }
}

/// The pause after a repair doubles with each one of the last hour, and after some there is none any more.
pub(crate) fn retries(now: Now, machine: &Machine, action: RepairAction) -> Result<(), Hold> {
    // That it was switched on again counts against that alone.
    let powers = action == RepairAction::PowerOn;
    let counts = |act: &&Act| {
        (act.action == RepairAction::PowerOn) == powers
            && !act.called_off
            && now.wall.since(act.at) < ACTS_WINDOW
    };
    let recent: Vec<&Act> = machine.row.acts.iter().filter(counts).collect();
    let Some(last) = recent.last() else { return Ok(()) };
    let recreates: Vec<&Act> =
        recent.iter().copied().filter(|act| act.action == RepairAction::Recreate).collect();
    let limits = [(&recent, ACTS_PER_HOUR_MAX), (&recreates, RECREATES_PER_HOUR_MAX)];
    let asked = if action == RepairAction::Recreate { &limits[..] } else { &limits[..1] };
    for (acts, most) in asked {
        // The one whose hour has to be over before there is room for another.
        if let Some(at) = acts.len().checked_sub(*most).map(|surplus| acts[surplus].at) {
            return Err(Hold::Retries { acts: acts.len(), until: at.plus(ACTS_WINDOW) });
        }
    }
    // Of one that is gone nothing is left that could still come of the last repair.
    let gone = machine.verdict == Verdict::Missing;
    let until = last.at.plus(cool_down(recent.len()));
    if now.wall < until && !gone { Err(Hold::CoolDown { until }) } else { Ok(()) }
}

/// How long a machine is left alone after so many repairs within the hour.
pub(crate) fn cool_down(acts: usize) -> Duration {
    let doublings = u32::try_from(acts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    COOL_DOWN_MIN.saturating_mul(2_u32.saturating_pow(doublings)).min(COOL_DOWN_MAX)
}

/// What was done to a machine last, that it was switched on apart.
pub(crate) fn last_repair(machine: &Machine) -> Option<&Act> {
    machine.row.acts.iter().rfind(|act| act.action != RepairAction::PowerOn)
}

/// Whether a machine that was repaired a moment ago does not work yet. Its time to come back counts from when it was given
/// its power, or was to be made: its fence may have taken long.
fn is_coming_back(now: Now, machine: &Machine) -> bool {
    let Some(act) = last_repair(machine) else { return false };
    let given = match machine.row.phase {
        MachinePhase::Creating { since }
        | MachinePhase::Booting { since }
        | MachinePhase::Enrolled { since } => since,
        _ => machine.row.token_made,
    };
    now.wall.since(act.at.max(given)) < DISRUPTED_MAX && !machine.is_ready_with(Generation(0))
}

/// Drops acts that count no more.
pub(crate) fn prune(row: &mut MachineRow, now: WallTime) {
    row.acts.retain(|act| now.since(act.at) < ACTS_WINDOW);
    row.not_after(now);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_a_repair_doubles_up_to_its_limit() {
        let seconds = [1, 2, 3, 4, 5, 6, 7, 100].map(|acts| cool_down(acts).as_secs());
        assert_eq!(seconds, [45, 90, 180, 360, 720, 900, 900, 900]);
    }
}
