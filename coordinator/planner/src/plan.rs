//! The plan: which machines a cluster has, where, with which addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use keelson_model::spec::POD_PREFIX_PER_MACHINE;
use keelson_model::{
    Blueprint, BlueprintMachine, ClusterNetwork, ClusterSpec, Plan, PoolName, PoolPlan, Release, Role,
    SpecError,
};
use keelson_protocol::{ClusterName, Generation, Incarnation, MachineId, NameError, ReleaseName};

/// Version of [`crate::node`]'s output. Grows with every change of it, so that machines made by an older coordinator get
/// the new config under a new generation.
pub const RENDERING: u32 = 3;

/// Where machines can be placed: what the planner knows of the infrastructure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Network that machines' addresses are taken from.
    pub network: Ipv4Net,
    /// First address that a machine may have.
    pub first_address: Ipv4Addr,
    /// Fault domains, at least one.
    pub zones: Vec<String>,
}

/// Addresses in use in the whole installation, and by which cluster.
pub type Addresses = BTreeMap<Ipv4Addr, ClusterName>;

/// Whether the cluster shall exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// It shall.
    Present,
    /// It shall be removed.
    Absent,
}

/// Everything that a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct PlanInput<'a> {
    /// What the user asks for.
    pub spec: &'a ClusterSpec,
    /// Whether the cluster shall exist.
    pub wanted: Wanted,
    /// The plan that the spec names.
    pub plan: &'a Plan,
    /// The release that the spec names.
    pub release: &'a Release,
    /// The blueprint in force.
    pub parent: Option<&'a Blueprint>,
    /// Where machines can be placed.
    pub place: &'a Place,
    /// Addresses in use, and by which cluster.
    pub taken: &'a Addresses,
    /// Where the search for free addresses begins; it goes round to [`Place::first_address`] when it meets the end.
    pub next_address: Ipv4Addr,
    /// Incarnation for the first new machine; each further one gets the next number.
    pub next_incarnation: Incarnation,
}

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The spec breaks a rule.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No node image carries the release.
    #[error(
        "this installation has no node image of release {release}; build one with `cargo xtask image build`"
    )]
    NoImage {
        /// The release.
        release: ReleaseName,
    },
    /// The infrastructure's network is full.
    #[error("network {network} has no free address left")]
    AddressesUsedUp {
        /// The network.
        network: Ipv4Net,
    },
    /// The pod network is full.
    #[error("pod network {network} has no free part left")]
    PodNetworkUsedUp {
        /// The network.
        network: Ipv4Net,
    },
    /// The infrastructure has no zone.
    #[error("the infrastructure offers no zone")]
    NoZone,
    /// A machine's name would be no valid name.
    #[error("a machine cannot be named")]
    Name(#[from] NameError),
}

/// Makes the blueprint that follows `input.parent`. When nothing changes it is the parent itself, so that planning
/// again on a planned world changes nothing.
///
/// # Errors
/// [`PlanError`] says what makes the spec impossible.
pub fn plan(input: &PlanInput) -> Result<Blueprint, PlanError> {
    let mut draft = Draft::from_parent(input);
    match input.wanted {
        Wanted::Absent => draft.machines.clear(),
        Wanted::Present => {
            input.spec.check(input.plan, input.place.network)?;
            draft.remove_surplus();
            draft.add_missing()?;
        }
    }
    Ok(draft.finish())
}

struct Draft<'a> {
    input: &'a PlanInput<'a>,
    machines: BTreeMap<MachineId, BlueprintMachine>,
    next_number: BTreeMap<PoolName, u32>,
    next_incarnation: Incarnation,
    address_cursor: Ipv4Addr,
    own_addresses: BTreeSet<Ipv4Addr>,
    pod_parts: BTreeSet<Ipv4Net>,
}

impl<'a> Draft<'a> {
    fn from_parent(input: &'a PlanInput<'a>) -> Self {
        let machines = input.parent.map(|parent| parent.machines.clone()).unwrap_or_default();
        Self {
            next_number: input.parent.map(|parent| parent.next_number.clone()).unwrap_or_default(),
            next_incarnation: input.next_incarnation,
            address_cursor: input.next_address.max(input.place.first_address),
            own_addresses: machines.values().map(|machine| machine.address).collect(),
            pod_parts: machines.values().filter_map(|machine| machine.pods).collect(),
            machines,
            input,
        }
    }

    /// Takes machines of pools that shrank, the newest first.
    fn remove_surplus(&mut self) {
        for (index, pool) in self.input.plan.pools.iter().enumerate() {
            let count = usize::from(self.input.spec.pool_count(self.input.plan, index));
            let mut members: Vec<(u32, MachineId)> = self
                .machines
                .values()
                .filter(|m| m.pool == pool.name)
                .map(|m| (number(m), m.id.clone()))
                .collect();
            members.sort();
            for (_, id) in members.into_iter().skip(count) {
                self.machines.remove(&id);
            }
        }
    }

    fn add_missing(&mut self) -> Result<(), PlanError> {
        for (index, pool) in self.input.plan.pools.iter().enumerate() {
            let count = usize::from(self.input.spec.pool_count(self.input.plan, index));
            let have = self.machines.values().filter(|machine| machine.pool == pool.name).count();
            for _ in have..count {
                self.add_machine(pool)?;
            }
        }
        Ok(())
    }

    fn add_machine(&mut self, pool: &PoolPlan) -> Result<(), PlanError> {
        let image = self.input.release.image.clone();
        let image = image.ok_or_else(|| PlanError::NoImage { release: self.input.release.name.clone() })?;
        let number = self.next_number.entry(pool.name.clone()).or_insert(1);
        let id = MachineId::new(format!("{}-{}-{number}", self.input.spec.name, pool.name))?;
        *number += 1;
        let runs_pods = pool.roles.contains(&Role::Worker) || pool.roles.contains(&Role::Master);
        let machine = BlueprintMachine {
            incarnation: self.next_incarnation,
            pool: pool.name.clone(),
            roles: pool.roles.clone(),
            zone: self.emptiest_zone(&pool.name)?,
            address: self.take_address()?,
            pods: if runs_pods { Some(self.take_pod_part()?) } else { None },
            image,
            size: pool.size,
            id: id.clone(),
        };
        self.next_incarnation = Incarnation(self.next_incarnation.0 + 1);
        self.machines.insert(id, machine);
        Ok(())
    }

    /// The zone with the fewest machines of the pool, then of the cluster, then the first in the list.
    fn emptiest_zone(&self, pool: &PoolName) -> Result<String, PlanError> {
        let load = |zone: &String| {
            let here = |machine: &&BlueprintMachine| machine.zone == *zone;
            let of_pool = self.machines.values().filter(here).filter(|machine| machine.pool == *pool).count();
            (of_pool, self.machines.values().filter(here).count())
        };
        self.input.place.zones.iter().min_by_key(|zone| load(zone)).cloned().ok_or(PlanError::NoZone)
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

    fn finish(self) -> Blueprint {
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
        match parent {
            Some(parent) if same_content(parent, &draft) => parent.clone(),
            _ => draft,
        }
    }
}

fn same_content(parent: &Blueprint, draft: &Blueprint) -> bool {
    let renumbered = Blueprint { generation: parent.generation, parent: parent.parent, ..draft.clone() };
    *parent == renumbered
}

/// The number at the end of a machine's name.
fn number(machine: &BlueprintMachine) -> u32 {
    machine.id.as_str().rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
