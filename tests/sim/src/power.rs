//! Power of machines: what the provider does to them, and what happens to them.

use keelson_protocol::{BootId, MachineId, SecretBytes};
use keelson_providers::MachineState;

use crate::case::Fault;
use crate::check::Checker;
use crate::clock::Clock;
use crate::host::{Disk, Host};
use crate::kube::FakeKube;
use crate::link::Link;
use crate::machine::{Machine, Power};
use crate::trace::Decision;
use crate::world::{Ix, SimEvent, World};

/// How long a kernel and systemd take to start an agent, in milliseconds.
const BOOT_MS: (u64, u64) = (1_500, 4_000);
/// How long a boot lasts on a machine that does not bear it, in milliseconds.
const BAD_BOOT_MS: (u64, u64) = (1_000, 30_000);
/// What a monotonic clock says when systemd starts, in milliseconds.
const BOOTED_MS: (u64, u64) = (500, 2_000);

impl World {
    /// The provider has, or may have, done something to a machine: the world follows.
    pub(crate) fn power_changed(&mut self, id: &MachineId) {
        let view = self.infrastructure.provider.view(id);
        let known = self.by_id.get(id).copied();
        let same =
            |ix: &Ix| view.as_ref().is_some_and(|v| v.key.incarnation == self.machines[*ix].incarnation);
        if let Some(ix) = known.filter(|ix| !same(ix)) {
            self.destroy(ix);
        }
        let Some(view) = view else { return };
        let ix = match self.by_id.get(id) {
            Some(ix) => *ix,
            None => self.make(&view),
        };
        match (view.state, self.machines[ix].power) {
            (MachineState::On, Power::Off) => self.boot(ix),
            (MachineState::Off | MachineState::Creating, Power::On | Power::Frozen) => self.power_off(ix),
            _ => {}
        }
    }

    fn make(&mut self, view: &keelson_providers::MachineView) -> Ix {
        let ix = self.machines.len();
        let (id, cluster) = (view.key.machine.clone(), view.key.cluster.clone());
        let tree = self.tree.child("machine").child(id.as_str()).child(&view.key.incarnation.to_string());
        let mut random = tree.child("host").stream();
        let drift = i64::from(self.weather.drift_ppm);
        let drift =
            i64::try_from(random.below(2 * u64::from(self.weather.drift_ppm) + 1)).unwrap_or(0) - drift;
        let clock = Clock::new(self.now, 0, drift);
        let zones = &self.coordinator_settings().place.zones;
        let zone = zones.iter().position(|zone| *zone == view.zone).unwrap_or(0);
        let net = tree.child("net").stream();
        let who = (id.clone(), view.key.incarnation, cluster.clone());
        let mut machine = Machine::new(who, (zone, view.address), clock, random, net);
        if let Some(request) = self.infrastructure.provider.request(&id) {
            machine.token = SecretBytes::from(&request.metadata.token);
        }
        self.machines.push(machine);
        self.by_id.insert(id, ix);
        self.by_address.insert(view.address, ix);
        self.members.entry(cluster.clone()).or_default().insert(ix);
        let kube = self.tree.child("kubernetes").child(cluster.as_str());
        self.kubes.entry(cluster).or_insert_with(|| FakeKube::new(kube.stream()));
        ix
    }

    /// The machine is no more, and neither is its disk.
    fn destroy(&mut self, ix: Ix) {
        let (id, incarnation) = (self.machines[ix].id.clone(), self.machines[ix].incarnation);
        if self.store.planned(&id, incarnation).is_some() {
            let what = format!("{id} incarnation {incarnation} is destroyed, and a blueprint names it");
            self.violate(Checker::Disk, what);
        }
        self.check_member_lost(ix);
        let cluster = self.store.clusters.get(&self.machines[ix].cluster);
        if !self.machines[ix].is_off() && cluster.is_some_and(|row| row.wanted) {
            self.check_act(ix, "it is destroyed");
        }
        self.power_off(ix);
        self.remove(ix);
    }

    /// A machine that has no power is no more.
    fn remove(&mut self, ix: Ix) {
        let machine = &mut self.machines[ix];
        // Its disk is still there, should its host come back.
        let disk = std::mem::take(&mut machine.host.disk);
        machine.host = Host { disk, ..Host::default() };
        let (id, address, cluster) = (machine.id.clone(), machine.address, machine.cluster.clone());
        self.by_id.remove(&id);
        self.by_address.remove(&address);
        let emptied = self.members.get_mut(&cluster).is_some_and(|members| {
            members.remove(&ix);
            members.is_empty()
        });
        if emptied {
            self.members.remove(&cluster);
            self.etcds.remove(&cluster);
            self.kubes.remove(&cluster);
        }
    }

    pub(crate) fn boot(&mut self, ix: Ix) {
        let now = self.now;
        let machine = &mut self.machines[ix];
        (machine.power, machine.down_since) = (Power::On, None);
        machine.boots += 1;
        machine.boot_id = BootId(u128::from(machine.random.number()));
        machine.host.reboot();
        let base = machine.random.between(BOOTED_MS.0, BOOTED_MS.1);
        machine.clock.reboot(now, base);
        let event = SimEvent::Booted(ix as u32, machine.boots);
        let at = now + machine.random.between(BOOT_MS.0, BOOT_MS.1);
        self.queue.push(at, event);
        self.told(ix, "boots");
        let machine = &mut self.machines[ix];
        if now < machine.bad_until {
            let at = at + machine.random.between(BAD_BOOT_MS.0, BAD_BOOT_MS.1);
            self.queue.push(at, SimEvent::BootFails(ix as u32, machine.boots));
        }
    }

    /// A machine that does not bear its boots hangs or loses its power.
    pub(crate) fn boot_fails(&mut self, ix: Ix, boot: u32) {
        let machine = &self.machines[ix];
        let until = machine.bad_until;
        if machine.boots != boot || machine.power != Power::On || self.now >= until {
            return;
        }
        match machine.hangs {
            true => self.freeze(ix, until - self.now),
            false => self.lose_power(ix),
        }
    }

    /// From now on no boot of a machine lasts, and neither does this one.
    pub(crate) fn bears_no_boot(&mut self, ix: Ix, for_ms: u64, hangs: bool) {
        let machine = &mut self.machines[ix];
        (machine.bad_until, machine.hangs) = (self.now + for_ms, hangs);
        let boot = machine.boots;
        self.boot_fails(ix, boot);
    }

    /// Everything that runs there ends at once.
    pub(crate) fn power_off(&mut self, ix: Ix) {
        let now = self.now;
        let machine = &mut self.machines[ix];
        machine.power = Power::Off;
        machine.down_since.get_or_insert(now);
        machine.backlog.clear();
        machine.dies_after = None;
        machine.agent = None;
        machine.host.reboot();
        self.path_changed(ix);
        self.machines[ix].link = Link::default();
        self.told(ix, "has no power");
    }

    pub(crate) fn freeze(&mut self, ix: Ix, for_ms: u64) {
        let machine = &mut self.machines[ix];
        if machine.power != Power::On {
            return;
        }
        (machine.power, machine.down_since) = (Power::Frozen, Some(self.now));
        let (id, event) = (machine.id.clone(), SimEvent::Thaw(ix as u32, machine.boots));
        self.infrastructure.provider.set_state(&id, MachineState::Frozen);
        self.queue.push(self.now + for_ms, event);
        self.path_changed(ix);
    }

    pub(crate) fn thaw(&mut self, ix: Ix, boot: u32) {
        let machine = &mut self.machines[ix];
        if machine.power != Power::Frozen || machine.boots != boot {
            return;
        }
        (machine.power, machine.down_since) = (Power::On, None);
        let (id, backlog) = (machine.id.clone(), std::mem::take(&mut machine.backlog));
        self.infrastructure.provider.set_state(&id, MachineState::On);
        // A wake that is late is due now.
        if let Some(agent) = &mut self.machines[ix].agent {
            agent.wakes_now(self.now);
        }
        backlog.into_iter().for_each(|event| self.queue.push(self.now, event));
        self.path_changed(ix);
        self.told(ix, "goes on");
    }

    /// A machine's kernel starts again, on whatever disk it has.
    pub(crate) fn reboot(&mut self, ix: Ix) {
        self.power_off(ix);
        self.seen_as(ix, MachineState::On);
        self.boot(ix);
    }

    /// A machine loses its power, and nobody is told. If a repair took it before, that is over.
    pub(crate) fn lose_power(&mut self, ix: Ix) {
        if !self.machines[ix].is_off() && !self.was_taken_away(ix) {
            self.taken.remove(&self.machines[ix].id);
        }
        self.seen_as(ix, MachineState::Off);
        self.power_off(ix);
    }

    /// The provider's view of a machine changes, if it has one.
    fn seen_as(&mut self, ix: Ix, state: MachineState) {
        if !self.was_taken_away(ix) {
            self.infrastructure.provider.set_state(&self.machines[ix].id, state);
        }
    }

    /// Whether the provider has given a machine up, and perhaps made another one in its place.
    pub(crate) fn was_taken_away(&self, ix: Ix) -> bool {
        self.by_id.get(&self.machines[ix].id) != Some(&ix)
    }

    /// Machines that were taken away, have disks that know who they are, and whose place is another's or nobody's by what the
    /// coordinator has on disk.
    pub(crate) fn may_come_back(&self) -> Vec<Ix> {
        let may = |ix: &Ix| {
            let machine = &self.machines[*ix];
            let row = self.store.machines.get(&machine.id).map(|row| row.incarnation);
            let planned = self.store.clusters.get(&machine.cluster);
            let planned = planned.and_then(|row| row.blueprint.machines.get(&machine.id));
            let newest = row.max(planned.map(|planned| planned.incarnation));
            let disk = &machine.host.disk;
            self.was_taken_away(*ix)
                && machine.is_off()
                && disk.ledger.is_some()
                && disk.identity.is_some()
                && newest.is_none_or(|newest| newest > machine.incarnation)
        };
        (0..self.machines.len()).filter(may).collect()
    }

    /// A machine that was taken away and runs all the same.
    pub(crate) fn runs_unknown(&self) -> Option<String> {
        let mut ghosts = (0..self.machines.len()).filter(|ix| self.was_taken_away(*ix));
        let ghost = ghosts.find(|ix| !self.machines[*ix].is_off()).map(|ix| &self.machines[ix])?;
        Some(format!("{} incarnation {} was taken away, and runs", ghost.id, ghost.incarnation))
    }

    /// Whether the world may take a machine's disk: it never costs a cluster its quorum by itself.
    pub(crate) fn may_lose_disk(&self, ix: Ix) -> bool {
        let machine = &self.machines[ix];
        let (Some(data), Some(etcd)) = (machine.host.disk.etcd, self.etcds.get(&machine.cluster)) else {
            return true;
        };
        // The disk of a machine that is being made anew is as good as gone: that it goes may have been decided a moment ago.
        let keeps = |other: &Ix| {
            let Machine { id, incarnation, .. } = &self.machines[*other];
            let renewed = self.store.machines.get(id).is_some_and(|row| row.renew);
            self.store.planned(id, *incarnation).is_some() && !renewed
        };
        let stays = |address| self.by_address.get(address).is_some_and(keeps);
        let kept =
            etcd.voters().filter(|voter| voter.id != data && self.has_data(voter) && stays(&voter.address));
        kept.count() >= etcd.needed()
    }

    /// The infrastructure loses a machine with its disk, and nobody is told.
    pub(crate) fn vanish(&mut self, ix: Ix) {
        let id = self.machines[ix].id.clone();
        self.infrastructure.provider.lose(&id);
        self.power_off(ix);
        self.remove(ix);
    }

    /// A machine's disk is replaced by a blank one.
    pub(crate) fn lose_disk(&mut self, ix: Ix) {
        self.machines[ix].host.disk = Disk::default();
        self.machines[ix].kept = None;
        self.reboot(ix);
    }

    /// What users of scripts call the fault on a machine.
    pub(crate) fn fault_on(&mut self, ix: Ix, fault: &Fault) {
        let machine = Some(self.machines[ix].id.to_string());
        self.note(Decision::Fault { machine, what: fault.to_string() });
    }
}
