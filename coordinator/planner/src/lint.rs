//! Finds blueprints that must never be carried out. Runs on every blueprint before it becomes the target.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use keelson_model::{Blueprint, Role, SPREAD_MEMBERS_MIN, SPREAD_ZONES_MIN};
use keelson_protocol::{Generation, MachineId};

use crate::plan::{Addresses, Place};

/// What is wrong with a blueprint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The cluster has machines, and none of them has this role.
    NoMachineWithRole {
        /// The role.
        role: Role,
    },
    /// Etcd needs an odd number of founding members for a useful quorum.
    EvenEtcd {
        /// How many members there are.
        members: usize,
    },
    /// More than one etcd member comes, goes or is renewed in one step.
    MembersChangeAtOnce {
        /// Which.
        machines: Vec<MachineId>,
    },
    /// A machine is gone from the blueprint that was not on its way out.
    NotReleased {
        /// The machine.
        machine: MachineId,
    },
    /// A zone holds so many etcd members that its loss would cost the quorum, though there are zones enough.
    ZoneMajority {
        /// The zone.
        zone: String,
    },
    /// A machine with the role etcd has no seat, or one without the role has.
    WrongSeat {
        /// The machine.
        machine: MachineId,
    },
    /// Two machines have one address.
    AddressTwice {
        /// The address.
        address: Ipv4Addr,
        /// One of the machines.
        machine: MachineId,
    },
    /// An address is outside the infrastructure's network or belongs to somebody else.
    AddressForeign {
        /// The machine.
        machine: MachineId,
        /// The address.
        address: Ipv4Addr,
    },
    /// Two machines share addresses of pods.
    PodsTwice {
        /// One of the machines.
        machine: MachineId,
    },
    /// A machine that runs pods has no addresses for them, or they are outside the cluster's pod network.
    PodsForeign {
        /// The machine.
        machine: MachineId,
    },
    /// A machine is in a zone that does not exist.
    UnknownZone {
        /// The machine.
        machine: MachineId,
        /// The zone.
        zone: String,
    },
    /// A machine's number was given away before, or will be given again.
    NumberReused {
        /// The machine.
        machine: MachineId,
    },
    /// Two machines have one incarnation.
    IncarnationTwice {
        /// One of the machines.
        machine: MachineId,
    },
    /// The generation does not follow the parent's.
    Generation {
        /// The parent's.
        parent: Generation,
        /// This one's.
        got: Generation,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMachineWithRole { role } => write!(f, "no machine has the role {role}"),
            Self::EvenEtcd { members } => write!(f, "{members} etcd members: the number must be odd"),
            Self::MembersChangeAtOnce { machines } => {
                let names: Vec<&str> = machines.iter().map(MachineId::as_str).collect();
                write!(f, "etcd members change at once: {}", names.join(", "))
            }
            Self::NotReleased { machine } => write!(f, "{machine} vanishes without having left the cluster"),
            Self::ZoneMajority { zone } => write!(f, "{zone} holds a majority of the etcd members"),
            Self::WrongSeat { machine } => write!(f, "{machine}: its role and its seat in etcd do not agree"),
            Self::AddressTwice { address, machine } => write!(f, "{machine}: {address} is used twice"),
            Self::AddressForeign { machine, address } => write!(f, "{machine}: {address} is not ours to use"),
            Self::PodsTwice { machine } => write!(f, "{machine}: its pod addresses are used twice"),
            Self::PodsForeign { machine } => write!(f, "{machine}: its pod addresses are missing or outside"),
            Self::UnknownZone { machine, zone } => write!(f, "{machine}: zone {zone} does not exist"),
            Self::NumberReused { machine } => write!(f, "{machine}: its number was not the next one"),
            Self::IncarnationTwice { machine } => write!(f, "{machine}: its incarnation is used twice"),
            Self::Generation { parent, got } => write!(f, "generation {got} does not follow {parent}"),
        }
    }
}

/// All findings on `blueprint`; empty when it may be carried out.
#[must_use]
pub fn lint(
    blueprint: &Blueprint,
    parent: Option<&Blueprint>,
    place: &Place,
    taken: &Addresses,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    roles(blueprint, &mut findings);
    etcd(blueprint, parent, place, &mut findings);
    steps(blueprint, parent, &mut findings);
    addresses(blueprint, place, taken, &mut findings);
    pods(blueprint, &mut findings);
    names(blueprint, place, &mut findings);
    if let Some(parent) = parent
        && blueprint != parent
        && (blueprint.generation != parent.generation.next() || blueprint.parent != Some(parent.generation))
    {
        findings.push(Finding::Generation { parent: parent.generation, got: blueprint.generation });
    }
    findings
}

fn roles(blueprint: &Blueprint, findings: &mut Vec<Finding>) {
    if blueprint.machines.is_empty() {
        return;
    }
    for role in [Role::Etcd, Role::Master, Role::Worker] {
        if blueprint.with_role(role).next().is_none() {
            findings.push(Finding::NoMachineWithRole { role });
        }
    }
}

fn etcd(blueprint: &Blueprint, parent: Option<&Blueprint>, place: &Place, findings: &mut Vec<Finding>) {
    for machine in blueprint.machines.values() {
        if machine.roles.contains(&Role::Etcd) != machine.seat.is_some() {
            findings.push(Finding::WrongSeat { machine: machine.id.clone() });
        }
    }
    let members = blueprint.with_role(Role::Etcd).count();
    let founded = parent.is_none_or(|parent| parent.machines.is_empty());
    if founded && members > 0 && members.is_multiple_of(2) {
        findings.push(Finding::EvenEtcd { members });
    }
    let staying = blueprint.staying(Role::Etcd).count();
    if staying < SPREAD_MEMBERS_MIN || place.zones.len() < SPREAD_ZONES_MIN {
        return;
    }
    for zone in &place.zones {
        let here = blueprint.staying(Role::Etcd).filter(|machine| machine.zone == *zone).count();
        if here > staying / 2 {
            findings.push(Finding::ZoneMajority { zone: zone.clone() });
        }
    }
}

/// What a step from one blueprint to the next may change.
fn steps(blueprint: &Blueprint, parent: Option<&Blueprint>, findings: &mut Vec<Finding>) {
    let Some(parent) = parent.filter(|parent| !parent.machines.is_empty()) else { return };
    if blueprint.machines.is_empty() {
        // The whole cluster goes.
        return;
    }
    let gone = parent.machines.values().filter(|old| !blueprint.machines.contains_key(&old.id));
    let unreleased = gone.filter(|old| !old.leaving);
    findings.extend(unreleased.map(|old| Finding::NotReleased { machine: old.id.clone() }));
    let changed = |machine: &&keelson_model::BlueprintMachine| match parent.machines.get(&machine.id) {
        None => true,
        Some(old) => (old.incarnation, old.leaving) != (machine.incarnation, machine.leaving),
    };
    let changed: Vec<MachineId> =
        blueprint.with_role(Role::Etcd).filter(changed).map(|machine| machine.id.clone()).collect();
    if changed.len() > 1 {
        findings.push(Finding::MembersChangeAtOnce { machines: changed });
    }
}

fn addresses(blueprint: &Blueprint, place: &Place, taken: &Addresses, findings: &mut Vec<Finding>) {
    let mut seen = BTreeSet::new();
    for machine in blueprint.machines.values() {
        let address = machine.address;
        if !seen.insert(address) {
            findings.push(Finding::AddressTwice { address, machine: machine.id.clone() });
        }
        let foreign = taken.get(&address).is_some_and(|holder| *holder != blueprint.cluster);
        if !place.network.contains(&address) || address < place.first_address || foreign {
            findings.push(Finding::AddressForeign { machine: machine.id.clone(), address });
        }
    }
}

fn pods(blueprint: &Blueprint, findings: &mut Vec<Finding>) {
    let mut seen = BTreeSet::new();
    for machine in blueprint.machines.values() {
        let runs_pods = machine.roles.contains(&Role::Worker) || machine.roles.contains(&Role::Master);
        let fits = machine.pods.is_some_and(|pods| blueprint.network.pods.contains(&pods));
        if runs_pods && !fits {
            findings.push(Finding::PodsForeign { machine: machine.id.clone() });
        }
        if let Some(pods) = machine.pods
            && !seen.insert(pods)
        {
            findings.push(Finding::PodsTwice { machine: machine.id.clone() });
        }
    }
}

fn names(blueprint: &Blueprint, place: &Place, findings: &mut Vec<Finding>) {
    let mut incarnations = BTreeMap::new();
    for machine in blueprint.machines.values() {
        if !place.zones.contains(&machine.zone) {
            findings.push(Finding::UnknownZone { machine: machine.id.clone(), zone: machine.zone.clone() });
        }
        if incarnations.insert(machine.incarnation, machine.id.clone()).is_some() {
            findings.push(Finding::IncarnationTwice { machine: machine.id.clone() });
        }
        let prefix = format!("{}-{}-", blueprint.cluster, machine.pool);
        let number = machine.id.as_str().strip_prefix(&prefix).and_then(|digits| digits.parse::<u32>().ok());
        let next = blueprint.next_number.get(&machine.pool).copied().unwrap_or(0);
        if number.is_none_or(|number| number >= next) {
            findings.push(Finding::NumberReused { machine: machine.id.clone() });
        }
    }
}
