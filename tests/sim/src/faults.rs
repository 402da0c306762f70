//! Faults strike, and end.

use keelson_coordinator_core::{Input, Override};
use keelson_providers::MachineState;

use crate::case::{Fault, Side, Target};
use crate::machine::Power;
use crate::network::Cut;
use crate::trace::Decision;
use crate::world::{Ix, SimEvent, World};

impl World {
    /// The fault of the case with this number happens, if it still may.
    pub(crate) fn strike(&mut self, number: usize) {
        if self.stormy {
            let fault = self.faults[number].what.clone();
            self.happens(&fault);
        }
    }

    /// A fault happens now.
    pub fn happens(&mut self, fault: &Fault) {
        match fault {
            Fault::DiskLost { target } | Fault::Vanish { target } => {
                let vanishes = matches!(fault, Fault::Vanish { .. });
                let there = |ix: &Ix| vanishes || self.machines[*ix].power == Power::On;
                if let Some(ix) = self.target(target).filter(there).filter(|ix| self.may_lose_disk(*ix)) {
                    self.fault_on(ix, fault);
                    self.happens_to(ix, fault);
                }
            }
            Fault::PowerLoss { target }
            | Fault::Reboot { target }
            | Fault::Freeze { target, .. }
            | Fault::AgentCrash { target, .. }
            | Fault::AgentOut { target, .. }
            | Fault::DiskFull { target, .. }
            | Fault::BadBoots { target, .. }
            | Fault::UnitCrash { target, .. }
            | Fault::UnitHang { target, .. }
            | Fault::ClockJump { target, .. } => {
                if let Some(ix) = self.target(target).filter(|ix| self.machines[*ix].power == Power::On) {
                    self.fault_on(ix, fault);
                    self.happens_to(ix, fault);
                }
            }
            Fault::ComesBack { target } => {
                let gone = self.may_come_back();
                if let Some(ix) = self.among(target, &gone) {
                    self.fault_on(ix, fault);
                    self.boot(ix);
                }
            }
            Fault::RepairByHand { target, action, over } => {
                if let Some(ix) = self.target(target) {
                    self.fault_on(ix, fault);
                    let over = if *over { Override::Guards } else { Override::None };
                    self.asks_for_repair(self.machines[ix].id.clone(), *action, over);
                }
            }
            Fault::Partition { side, way, for_ms } => {
                let Some(cut) = self.side(side) else { return };
                let machine = match cut {
                    Cut::Machine(ix) | Cut::Link(ix) => Some(self.machines[ix].id.to_string()),
                    _ => None,
                };
                self.note(Decision::Fault { machine, what: fault.to_string() });
                let number = self.network.cut(cut, *way);
                self.queue.push(self.now + for_ms, SimEvent::Heals(number));
                self.paths_changed();
            }
            other => {
                self.note(Decision::Fault { machine: None, what: other.to_string() });
                self.happens_to_all(other);
            }
        }
    }

    fn happens_to(&mut self, ix: Ix, fault: &Fault) {
        match fault {
            Fault::PowerLoss { .. } => self.lose_power(ix),
            Fault::Reboot { .. } => self.reboot(ix),
            Fault::Freeze { for_ms, .. } => self.freeze(ix, *for_ms),
            Fault::AgentCrash { actions, .. } => self.machines[ix].dies_after = Some(*actions),
            Fault::AgentOut { for_ms, .. } => {
                self.machines[ix].agent_out_until = self.now + for_ms;
                self.kill_agent(ix);
            }
            Fault::DiskFull { for_ms, .. } => {
                self.machines[ix].host.disk.full = true;
                self.queue.push(self.now + for_ms, SimEvent::DiskFreed(ix as u32));
            }
            Fault::BadBoots { for_ms, hangs, .. } => self.bears_no_boot(ix, *for_ms, *hangs),
            Fault::DiskLost { .. } => self.lose_disk(ix),
            Fault::Vanish { .. } => self.vanish(ix),
            Fault::UnitCrash { unit, .. } => {
                if let Some(unit) = self.unit(ix, *unit) {
                    self.unit_ends(ix, &unit, "it was killed by signal 11");
                }
            }
            Fault::UnitHang { unit, .. } => {
                let Some(name) = self.unit(ix, *unit) else { return };
                self.told(ix, &format!("{name} hangs"));
                if let Some(unit) = self.machines[ix].host.unit_mut(&name) {
                    unit.hung = true;
                }
            }
            Fault::ClockJump { by_ms, .. } => self.machines[ix].clock.jump(*by_ms),
            _ => {}
        }
    }

    fn happens_to_all(&mut self, fault: &Fault) {
        match fault {
            Fault::CoordinatorCrash { effects, down_ms } if self.coordinator.core.is_some() => {
                self.coordinator.die_after(*effects, *down_ms);
            }
            Fault::CoordinatorFreeze { for_ms } => {
                self.coordinator.frozen_until = self.now + for_ms;
                self.queue.push(self.now + for_ms, SimEvent::CoordinatorThaws);
                self.paths_changed();
            }
            Fault::ProviderOut { for_ms } => self.infrastructure.out_until = self.now + for_ms,
            Fault::ZoneFull { zone, for_ms } => {
                self.infrastructure.full_until.insert(zone.clone(), self.now + for_ms);
            }
            Fault::ProviderListsNothing { for_ms } => {
                self.infrastructure.lists_nothing_until = self.now + for_ms;
            }
            Fault::RepairPaused { for_ms } => self.pause_repair(*for_ms),
            Fault::CoordinatorClock { off_ms } if self.coordinator_lives() => {
                self.coordinator.wall_offset_ms = *off_ms;
                // One that dies before its next tick takes the step for time in which it was away, as everybody would.
                let dies = self.coordinator.dies_before.take();
                self.input(Input::Tick);
                self.coordinator.dies_before = dies;
            }
            Fault::BudgetsHold { for_ms } => self.budgets_hold_until = self.now + for_ms,
            Fault::HeartbeatsLost { permille, for_ms } => {
                self.network.lose_heartbeats(*permille, self.now + for_ms);
            }
            _ => {}
        }
    }

    fn target(&self, target: &Target) -> Option<Ix> {
        match target {
            Target::Named(id) => self.by_id.get(id).copied(),
            Target::Drawn(draw) => {
                let number = draw.checked_rem(self.by_id.len() as u64)?;
                self.by_id.values().nth(usize::try_from(number).unwrap_or(0)).copied()
            }
        }
    }

    /// The newest of some machines with a name, or any of them by a draw.
    fn among(&self, target: &Target, machines: &[Ix]) -> Option<Ix> {
        match target {
            Target::Named(id) => machines.iter().copied().rfind(|ix| self.machines[*ix].id == *id),
            Target::Drawn(draw) => {
                let number = draw.checked_rem(machines.len() as u64)?;
                machines.get(usize::try_from(number).unwrap_or(0)).copied()
            }
        }
    }

    fn side(&self, side: &Side) -> Option<Cut> {
        match side {
            Side::Coordinator => Some(Cut::Coordinator),
            Side::Machine(target) => self.target(target).map(Cut::Machine),
            Side::Link(target) => self.target(target).map(Cut::Link),
            Side::Zone(zone) => {
                let zones = &self.coordinator_settings().place.zones;
                zones.iter().position(|known| known == zone).map(Cut::Zone)
            }
        }
    }

    fn unit(&self, ix: Ix, draw: u64) -> Option<String> {
        let units = self.machines[ix].host.running();
        let number = usize::try_from(draw % (units.len().max(1) as u64)).unwrap_or(0);
        units.get(number).cloned()
    }

    /// From now on nothing goes wrong: whatever still lasts ends. Machines without power stay so; to switch them on is not
    /// the world's.
    pub(crate) fn calm(&mut self) {
        self.stormy = false;
        self.network.heal_all();
        self.infrastructure.out_until = 0;
        self.infrastructure.lists_nothing_until = 0;
        self.infrastructure.full_until.clear();
        self.budgets_hold_until = 0;
        self.pause_ends();
        self.coordinator.dies_before = None;
        self.coordinator.frozen_until = 0;
        self.coordinator.wall_offset_ms = 0;
        for ix in 0..self.machines.len() {
            self.machines[ix].host.disk.full = false;
            self.machines[ix].dies_after = None;
            self.machines[ix].bad_until = 0;
            self.machines[ix].agent_out_until = 0;
            // By one that was set back twice, no certificate would ever be valid.
            self.machines[ix].clock.set_right();
            if self.machines[ix].is_frozen() {
                let boots = self.machines[ix].boots;
                self.thaw(ix, boots);
            }
        }
        self.start_coordinator();
        self.paths_changed();
        self.input(Input::Tick);
        self.note(Decision::Fault { machine: None, what: "nothing goes wrong from here on".to_owned() });
        let states = self.infrastructure.provider.views();
        debug_assert!(states.iter().all(|view| view.state != MachineState::Frozen), "all were thawed");
    }
}
