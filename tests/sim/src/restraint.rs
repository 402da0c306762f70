//! What nobody is to do: repair while a person has paused it, and give a machine its power again and again.

use std::collections::{BTreeMap, BTreeSet};

use keelson_coordinator_core::{Asked, Counter, PauseRequest, PauseScope, ProviderCall};
use keelson_model::Role;
use keelson_protocol::{Incarnation, MachineId};

use crate::check::{Checker, ON_ITS_WAY_MS, POWERED_PER_HOUR_MAX};
use crate::infrastructure::machine_of;
use crate::trace::Decision;
use crate::world::{Ix, World};

/// Part of a cluster's machines that may be down when another one is fenced, in percent; at least one.
const BROKEN_PERCENT_MAX: usize = 25;
/// A machine that has been down for so long is known to be, in milliseconds.
const DOWN_NOTICED_MS: u64 = 60_000;
/// Over this time it counts how often a machine is given its power, in milliseconds.
const HOUR_MS: u64 = 3_600_000;

/// What is known of it.
#[derive(Debug, Default)]
pub(crate) struct Restraint {
    /// When a person paused repair, and until when.
    pause: Option<(u64, u64)>,
    /// Machines to which something was being done when the pause began, or has been done since because a person asked:
    /// that goes on.
    excused: BTreeSet<MachineId>,
    /// When the last call came that takes or gives a machine's power. Its answer takes a while.
    called: BTreeMap<MachineId, u64>,
    /// When machines were given power that nobody had asked for, within the last hour.
    powered: BTreeMap<(MachineId, Incarnation), Vec<u64>>,
}

impl World {
    /// A person pauses repair of everything.
    pub(crate) fn pause_repair(&mut self, for_ms: u64) {
        let request = PauseRequest::new(PauseScope::Fleet, "an operator");
        let now = self.coordinator_now();
        let Some(core) = self.coordinator.core.as_mut().filter(|_| self.coordinator.frozen_until <= self.now)
        else {
            return;
        };
        let effects = core.pause_repair(now, &request).unwrap_or_default();
        self.carry_out(effects);
        self.restraint.pause = Some((self.now, self.now + for_ms));
        let rows = self.store.machines.values();
        let begun = rows.filter(|row| {
            row.acting.is_some()
                || row.renew
                || row.fenced.is_some()
                || row.powering
                || row.asked != Asked::Nobody
        });
        let calls = self.restraint.called.iter().filter(|(_, at)| **at + ON_ITS_WAY_MS > self.now);
        self.restraint.excused = begun.map(|row| &row.id).chain(calls.map(|(id, _)| id)).cloned().collect();
    }

    /// The person who has paused repair looks whether the work is done.
    pub(crate) fn resume_repair(&mut self) {
        let over = self.restraint.pause.is_none_or(|(_, until)| until <= self.now);
        let now = self.coordinator_now();
        let Some(core) = self.coordinator.core.as_mut().filter(|core| core.repair_paused().is_some()) else {
            return;
        };
        if over && self.coordinator.frozen_until <= self.now {
            let request = PauseRequest::new(PauseScope::Fleet, "an operator");
            let effects = core.resume_repair(now, &request).unwrap_or_default();
            self.carry_out(effects);
            self.restraint.pause = None;
            self.note(Decision::User("repair goes on".to_owned()));
        }
    }

    /// The pause ends with the next look.
    pub(crate) fn pause_ends(&mut self) {
        if let Some((_, until)) = &mut self.restraint.pause {
            *until = 0;
        }
    }

    /// A call is about to be carried out: not of a machine that a pause protects.
    pub(crate) fn check_pause(&mut self, call: &ProviderCall) {
        let disrupts = matches!(
            call,
            ProviderCall::Fence { .. } | ProviderCall::PowerOn { .. } | ProviderCall::Rebuild { .. }
        );
        let called = machine_of(call).filter(|_| disrupts);
        let Some(ix) = called.and_then(|id| self.by_id.get(&id).copied()) else { return };
        let id = self.machines[ix].id.clone();
        self.restraint.called.insert(id.clone(), self.now);
        let paused = self.store.counters.get(&Counter::RepairPaused).is_some_and(|at| *at > 0);
        let Some((since, _)) = self.restraint.pause.filter(|_| paused) else { return };
        let goes_on = since + ON_ITS_WAY_MS > self.now || self.restraint.excused.contains(&id);
        if self.is_spared(ix) && !goes_on {
            let words = crate::infrastructure::words(call).unwrap_or_default();
            self.violate(Checker::Restraint, format!("{words}, and repair is paused"));
        }
        // What was on its way, and what a person asked for, takes more than one call.
        self.restraint.excused.insert(id);
    }

    /// A machine is about to be fenced: not while so many others are down that the cause lies elsewhere.
    pub(crate) fn check_meltdown(&mut self, ix: Ix) {
        let machine = &self.machines[ix];
        let Some(row) = self.store.clusters.get(&machine.cluster).filter(|_| self.is_spared(ix)) else {
            return;
        };
        let enrolled =
            |id: &MachineId| self.store.machines.get(id).is_some_and(|row| row.enrolled_key.is_some());
        let planned: Vec<_> = row.blueprint.machines.values().filter(|other| enrolled(&other.id)).collect();
        let most = (planned.len() * BROKEN_PERCENT_MAX / 100).max(1);
        let down = |other: &MachineId, incarnation: Incarnation| {
            let mut all = self.machines.iter().rev();
            let found = all.find(|machine| machine.id == *other && machine.incarnation == incarnation);
            let since = found.and_then(|machine| machine.down_since);
            since.is_some_and(|since| since + DOWN_NOTICED_MS <= self.now)
        };
        let others = planned.iter().filter(|other| other.id != machine.id && !other.leaving);
        let others = others.filter(|other| down(&other.id, other.incarnation)).count();
        // One without power is only to be proven so, for its pods. The plan may have become smaller since it was decided.
        if !machine.is_off() && others > most {
            let what = format!("{} is fenced while {others} others are down, {most} may be", machine.id);
            self.violate(Checker::Restraint, what);
        }
    }

    /// Whether a machine is to stay, and nobody has asked that anything is done to it.
    fn is_spared(&self, ix: Ix) -> bool {
        let machine = &self.machines[ix];
        let wanted = self.store.clusters.get(&machine.cluster).is_some_and(|row| row.wanted);
        let planned = self.store.planned(&machine.id, machine.incarnation);
        wanted
            && planned.is_some_and(|planned| !planned.leaving)
            && self.asked_of(&machine.id) == Asked::Nobody
    }

    /// A machine that was there has been given its power. A member of etcd that its quorum lacks may be given it without end,
    /// and who knows at each moment which that is: none of them is looked at.
    pub(crate) fn check_powered(&mut self, ix: Ix) {
        let machine = &self.machines[ix];
        let planned = self.store.planned(&machine.id, machine.incarnation);
        if !self.is_spared(ix) || planned.is_some_and(|planned| planned.roles.contains(&Role::Etcd)) {
            return;
        }
        let (id, incarnation) = (self.machines[ix].id.clone(), self.machines[ix].incarnation);
        let now = self.now;
        let powered = self.restraint.powered.entry((id.clone(), incarnation)).or_default();
        powered.retain(|at| at + HOUR_MS > now);
        powered.push(now);
        if powered.len() > POWERED_PER_HOUR_MAX {
            let what = format!("{id} was given its power {} times within an hour", powered.len());
            self.violate(Checker::Restraint, what);
        }
    }
}
