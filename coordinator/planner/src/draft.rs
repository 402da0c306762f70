//! A blueprint in the making: one method for each step of [`crate::plan`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_model::spec::POD_PREFIX_PER_MACHINE;
use keelson_model::{
    Blueprint, BlueprintMachine, ClusterNetwork, EtcdHold, EtcdSeat, PoolName, PoolPlan, Role,
    SPREAD_MEMBERS_MIN, SPREAD_ZONES_MIN, SeatBegins, Standing,
};
use keelson_protocol::{Generation, Incarnation, MachineId};

use crate::plan::{PlanError, PlanInput, Planned, RENDERING};
use crate::quorum::Quorum;

pub(crate) struct Draft<'a> {
    input: &'a PlanInput<'a>,
    machines: BTreeMap<MachineId, BlueprintMachine>,
    next_number: BTreeMap<PoolName, u32>,
    next_incarnation: Incarnation,
    address_cursor: Ipv4Addr,
    own_addresses: BTreeSet<Ipv4Addr>,
    pod_parts: BTreeSet<Ipv4Net>,
    /// Why no etcd member may change now; empty when one may.
    etcd_busy: Vec<EtcdHold>,
    held: Option<EtcdHold>,
    lacking: Option<PlanError>,
}

impl<'a> Draft<'a> {
    pub(crate) fn from_parent(input: &'a PlanInput<'a>) -> Self {
        let machines = input.parent.map(|parent| parent.machines.clone()).unwrap_or_default();
        Self {
            next_number: input.parent.map(|parent| parent.next_number.clone()).unwrap_or_default(),
            next_incarnation: input.next_incarnation,
            address_cursor: input.next_address.max(input.place.first_address),
            own_addresses: machines.values().map(|machine| machine.address).collect(),
            pod_parts: machines.values().filter_map(|machine| machine.pods).collect(),
            etcd_busy: input.parent.map(|parent| etcd_holds(input, parent)).unwrap_or_default(),
            held: None,
            lacking: None,
            machines,
            input,
        }
    }

    /// Not all that the spec wants can be planned.
    pub(crate) fn lack(&mut self, error: PlanError) {
        self.lacking = Some(error);
    }

    pub(crate) fn remove_all(&mut self) {
        self.machines.clear();
    }

    /// Takes out the leaving machines that nothing depends on any more.
    pub(crate) fn remove_released(&mut self) {
        let released = &self.input.progress.released;
        self.machines.retain(|id, machine| !(machine.leaving && released.contains(id)));
    }

    /// Gives a new incarnation, with an empty disk, to each machine that is to be made anew. It keeps its name, its zone
    /// and its addresses.
    pub(crate) fn renew(&mut self) {
        let ids: Vec<MachineId> = self.machines.keys().cloned().collect();
        let mut renewed = false;
        for id in ids.into_iter().filter(|id| self.input.progress.renew.contains(id)) {
            let incarnation = self.next_incarnation;
            let Some(machine) = self.machines.get(&id) else { continue };
            let member = machine.roles.contains(&Role::Etcd);
            let forced = self.input.progress.forced.contains(&id);
            // One in each step, whatever became of the others.
            if member && (renewed || !forced && !self.may_renew_member(&id)) {
                continue;
            }
            renewed |= member;
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            machine.incarnation = incarnation;
            machine.seat = None;
            self.next_incarnation = Incarnation(incarnation.0 + 1);
            if member {
                self.etcd_busy.push(EtcdHold::Joining { machine: id });
            }
        }
    }

    /// A member that is lost may be replaced while no other comes or goes, and when the others have a quorum of the whole
    /// though its replacement fails as well. One that leaves and that the quorum needs waits for just this.
    fn may_renew_member(&mut self, id: &MachineId) -> bool {
        let progress = self.input.progress;
        let quorum = Quorum::of(&progress.etcd, &progress.ready);
        let absent = |machine: &MachineId| progress.etcd.get(machine) == Some(&Standing::Absent);
        let moves = |hold: &&EtcdHold| match hold {
            EtcdHold::Unready { .. } => false,
            EtcdHold::Leaving { machine } => {
                machine != id && !absent(machine) && quorum.outlives_loss(machine).is_ok()
            }
            // One that is not even added yet takes no part, and may never come.
            EtcdHold::Joining { machine } => machine != id && !absent(machine),
        };
        let other = self.etcd_busy.iter().find(moves).cloned();
        let outlived = quorum.outlives_loss(id).is_ok();
        self.held = other.or_else(|| {
            (!outlived).then(|| self.etcd_busy.iter().find(|hold| hold.machine() != id).cloned()).flatten()
        });
        self.held.is_none() && outlived
    }

    /// Sends machines of pools that shrank on their way out: first those that do not work, then of the fullest zone,
    /// then the newest. Of etcd nobody goes whose loss would leave a zone with a majority, now or further on.
    pub(crate) fn retire_surplus(&mut self) {
        for machine in self.machines.values_mut() {
            if self.input.plan.pool(&machine.pool).is_none() && !machine.roles.contains(&Role::Etcd) {
                machine.leaving = true;
            }
        }
        for pool in &self.input.plan.pools {
            let count = usize::from(self.input.spec.count(self.input.plan, pool));
            while self.staying(&pool.name).count() > count {
                let Some(id) = self.first_to_go(pool, count) else { break };
                if pool.roles.contains(&Role::Etcd) {
                    if !self.may_change_etcd(Some(&id)) {
                        break;
                    }
                    self.etcd_busy.push(EtcdHold::Leaving { machine: id.clone() });
                }
                if let Some(machine) = self.machines.get_mut(&id) {
                    machine.leaving = true;
                }
            }
        }
    }

    fn staying(&self, pool: &PoolName) -> impl Iterator<Item = &BlueprintMachine> {
        self.machines.values().filter(move |machine| machine.pool == *pool && !machine.leaving)
    }

    fn first_to_go(&self, pool: &PoolPlan, target: usize) -> Option<MachineId> {
        let in_zone = |zone: &str| self.staying(&pool.name).filter(|machine| machine.zone == zone).count();
        let unwell = |machine: &BlueprintMachine| self.input.progress.unwell.contains(&machine.id);
        let rank = |machine: &&BlueprintMachine| {
            (unwell(machine), in_zone(&machine.zone), number(machine), machine.id.clone())
        };
        let spread = |machine: &&BlueprintMachine| {
            let mut zones: BTreeMap<&str, usize> = self
                .staying(&pool.name)
                .map(|machine| (machine.zone.as_str(), in_zone(&machine.zone)))
                .collect();
            zones.entry(&machine.zone).and_modify(|members| *members -= 1);
            stays_spread(&zones, target)
        };
        let matters = pool.roles.contains(&Role::Etcd) && self.input.place.zones.len() >= SPREAD_ZONES_MIN;
        let safe = self.staying(&pool.name).filter(spread).max_by_key(rank).filter(|_| matters);
        safe.or_else(|| self.staying(&pool.name).max_by_key(rank)).map(|machine| machine.id.clone())
    }

    /// Whether a member of the etcd cluster may come, or `going` may go; when not, that is what the spec waits for.
    fn may_change_etcd(&mut self, going: Option<&MachineId>) -> bool {
        // Whatever is wrong with it ends when it goes.
        let concerns_going = |hold: &EtcdHold| match hold {
            EtcdHold::Unready { machine } | EtcdHold::Joining { machine } => Some(machine) == going,
            EtcdHold::Leaving { .. } => false,
        };
        self.held = self.etcd_busy.iter().find(|hold| !concerns_going(hold)).cloned();
        self.held.is_none()
    }

    pub(crate) fn add_missing(&mut self) -> Result<(), PlanError> {
        for pool in &self.input.plan.pools {
            let count = usize::from(self.input.spec.count(self.input.plan, pool));
            while self.staying(&pool.name).count() < count {
                let member = pool.roles.contains(&Role::Etcd);
                // All founding members come at once; those that join later one by one.
                let joins = member && self.input.parent.is_some_and(|parent| !parent.machines.is_empty());
                if joins && !self.may_change_etcd(None) {
                    break;
                }
                let id = self.add_machine(pool)?;
                if joins {
                    self.etcd_busy.push(EtcdHold::Joining { machine: id });
                }
            }
        }
        Ok(())
    }

    fn add_machine(&mut self, pool: &PoolPlan) -> Result<MachineId, PlanError> {
        let image = self.input.release.image.clone();
        let image = image.ok_or_else(|| PlanError::NoImage { release: self.input.release.name.clone() })?;
        let number = self.next_number.get(&pool.name).copied().unwrap_or(1);
        let id = MachineId::new(format!("{}-{}-{number}", self.input.spec.name, pool.name))?;
        let machine = BlueprintMachine {
            incarnation: self.next_incarnation,
            pool: pool.name.clone(),
            roles: pool.roles.clone(),
            zone: self.emptiest_zone(pool)?,
            address: self.take_address()?,
            pods: if pool.has_nodes() { Some(self.take_pod_part()?) } else { None },
            image,
            size: pool.size,
            labels: pool.labels.clone(),
            taints: pool.taints.clone(),
            seat: None,
            leaving: false,
            id: id.clone(),
        };
        // What cannot be added leaves no trace.
        self.next_number.insert(pool.name.clone(), number + 1);
        self.next_incarnation = Incarnation(self.next_incarnation.0 + 1);
        self.machines.insert(id.clone(), machine);
        Ok(id)
    }

    /// The zone with the fewest members of etcd, for one that is one; then with the fewest machines of the pool, then of
    /// the cluster, then the first in the list.
    fn emptiest_zone(&self, pool: &PoolPlan) -> Result<String, PlanError> {
        let zones = &self.input.place.zones;
        let load = |zone: &&String| {
            let here = || self.machines.values().filter(|machine| machine.zone == **zone);
            let member = |machine: &&BlueprintMachine| {
                pool.roles.contains(&Role::Etcd) && machine.roles.contains(&Role::Etcd) && !machine.leaving
            };
            let of_pool = self.staying(&pool.name).filter(|machine| machine.zone == **zone).count();
            (here().filter(member).count(), of_pool, here().count())
        };
        let allowed = |zone: &&String| pool.zones.is_empty() || pool.zones.contains(zone);
        let none = || PlanError::NoZone { pool: pool.name.clone(), known: zones.join(", ") };
        zones.iter().filter(allowed).min_by_key(load).cloned().ok_or_else(none)
    }

    fn take_address(&mut self) -> Result<Ipv4Addr, PlanError> {
        let network = self.input.place.network;
        let (first, end) = (u32::from(self.input.place.first_address), u32::from(network.broadcast()));
        let cursor = u32::from(self.address_cursor);
        for candidate in (cursor..end).chain(first..cursor.min(end)) {
            let candidate = Ipv4Addr::from(candidate);
            if !self.input.taken.contains_key(&candidate) && !self.own_addresses.contains(&candidate) {
                self.address_cursor = candidate;
                self.own_addresses.insert(candidate);
                return Ok(candidate);
            }
        }
        Err(PlanError::AddressesUsedUp { network })
    }

    fn take_pod_part(&mut self) -> Result<Ipv4Net, PlanError> {
        let network = self.input.spec.pod_network;
        let parts = network
            .subnets(POD_PREFIX_PER_MACHINE)
            .expect("the spec was checked: its pod network is at least one machine's part");
        for part in parts {
            if self.pod_parts.insert(part) {
                return Ok(part);
            }
        }
        Err(PlanError::PodNetworkUsedUp { network })
    }

    /// Gives every etcd machine that has none a seat, with the members as they are at this moment; and another one to those
    /// that were not added yet, when the members have become others meanwhile.
    pub(crate) fn take_seats(&mut self) {
        let parent = self.input.parent;
        let standings = &self.input.progress.etcd;
        let absent = |id: &MachineId| standings.get(id) == Some(&Standing::Absent);
        // A blueprint from before there were seats: its members founded the cluster.
        let founded = |id: &MachineId| {
            let before = parent.and_then(|parent| parent.machines.get(id));
            before.is_some_and(|before| {
                before.seat.is_none()
                    && Some(before.incarnation) == self.machines.get(id).map(|m| m.incarnation)
            })
        };
        let first = parent.is_none_or(|parent| parent.machines.is_empty());
        let alone = self.machines.values().filter(|machine| machine.roles.contains(&Role::Etcd)).count() == 1;
        // The only member has nobody to join. It is made anew only when its state was given up.
        let founding = |id: &MachineId| first || alone || founded(id);
        let members: BTreeMap<MachineId, Ipv4Addr> = self
            .machines
            .values()
            .filter(|machine| machine.roles.contains(&Role::Etcd))
            .map(|machine| (machine.id.clone(), machine.address))
            .collect();
        let seats: Vec<(MachineId, EtcdSeat)> = members
            .keys()
            .filter_map(|id| {
                let machine = &self.machines[id];
                let begins = if founding(id) { SeatBegins::Founding } else { SeatBegins::Joining };
                let there = |(other, _): &(&MachineId, &Ipv4Addr)| *other == id || !absent(other);
                let joined = members.iter().filter(there).map(|(id, address)| (id.clone(), *address));
                let new = || EtcdSeat { begins, members: joined.collect() };
                match &machine.seat {
                    None => Some((id.clone(), new())),
                    Some(seat) if seat.begins == SeatBegins::Joining && absent(id) && !machine.leaving => {
                        let seat_now = EtcdSeat { begins: SeatBegins::Joining, ..new() };
                        (seat_now != *seat).then(|| (id.clone(), seat_now))
                    }
                    Some(_) => None,
                }
            })
            .collect();
        for (id, seat) in seats {
            if let Some(machine) = self.machines.get_mut(&id) {
                machine.seat = Some(seat);
            }
        }
    }

    pub(crate) fn finish(self) -> Planned {
        let spec = self.input.spec;
        let parent = self.input.parent;
        let draft = Blueprint {
            cluster: spec.name.clone(),
            generation: parent.map_or(Generation(1), |parent| parent.generation.next()),
            parent: parent.map(|parent| parent.generation),
            rendering: RENDERING,
            release: spec.release.clone(),
            network: ClusterNetwork {
                pods: spec.pod_network,
                services: spec.service_network,
                domain: "cluster.local".to_owned(),
            },
            machines: self.machines,
            next_number: self.next_number,
            expose: spec.expose.clone(),
        };
        let blueprint = match parent {
            Some(parent) if same_content(parent, &draft) => parent.clone(),
            _ => draft,
        };
        Planned { blueprint, held: self.held, lacking: self.lacking }
    }
}

/// Whether members in these zones can shrink to `target`, one by one, so that no zone ever has a majority of those that
/// are left.
fn stays_spread(zones: &BTreeMap<&str, usize>, target: usize) -> bool {
    let left: usize = zones.values().sum();
    if left < SPREAD_MEMBERS_MIN {
        return true;
    }
    if zones.values().any(|members| *members > left / 2) {
        return false;
    }
    left <= target
        || zones.iter().filter(|(_, members)| **members > 0).any(|(zone, members)| {
            let mut fewer = zones.clone();
            fewer.insert(zone, members - 1);
            stays_spread(&fewer, target)
        })
}

/// All reasons why no member of a standing etcd cluster may change now.
fn etcd_holds(input: &PlanInput, parent: &Blueprint) -> Vec<EtcdHold> {
    let hold = |machine: &BlueprintMachine| {
        let id = machine.id.clone();
        if machine.leaving {
            Some(EtcdHold::Leaving { machine: id })
        } else if input.progress.etcd.get(&machine.id) != Some(&Standing::Voter) {
            Some(EtcdHold::Joining { machine: id })
        } else if !input.progress.ready.contains(&machine.id) {
            Some(EtcdHold::Unready { machine: id })
        } else {
            None
        }
    };
    parent.with_role(Role::Etcd).filter_map(hold).collect()
}

fn same_content(parent: &Blueprint, draft: &Blueprint) -> bool {
    let renumbered = Blueprint { generation: parent.generation, parent: parent.parent, ..draft.clone() };
    *parent == renumbered
}

/// The number at the end of a machine's name.
fn number(machine: &BlueprintMachine) -> u32 {
    machine.id.as_str().rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
