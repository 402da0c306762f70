//! Why a cluster is not yet as its blueprint says.

use keelson_model::{
    Blueprint, LeaveStep, LinkState, MachinePhase, Observed, ObservedMachine, SeatBegins, Standing, WaitingOn,
};
use keelson_protocol::MachineId;
use keelson_protocol::health::{HealthReport, NodeState, UnitState};

/// Everything that `blueprint` waits for, in the order of its machines; empty when `observed` is as planned.
#[must_use]
pub fn waiting(blueprint: &Blueprint, observed: &Observed) -> Vec<WaitingOn> {
    let mut waits = Vec::new();
    for (id, planned) in &blueprint.machines {
        if planned.leaving {
            let step = observed.leaving.get(id).cloned().unwrap_or(LeaveStep::Node);
            waits.push(WaitingOn::Leave { machine: id.clone(), step });
            continue;
        }
        match observed.machines.get(id) {
            None => waits.push(WaitingOn::ProviderCreate { machine: id.clone() }),
            Some(machine) => waits.extend(machine_waits(blueprint, observed, id, machine)),
        }
    }
    waits.extend(observed.etcd_hold.clone().map(|hold| WaitingOn::EtcdSize { hold }));
    for (id, machine) in &observed.machines {
        if !blueprint.machines.contains_key(id) {
            let why = match &machine.phase {
                MachinePhase::Deleting { why, .. } => why.clone(),
                _ => None,
            };
            waits.push(WaitingOn::ProviderDelete { machine: id.clone(), why });
        }
    }
    if !blueprint.machines.is_empty() && observed.endpoint.is_none() {
        waits.push(WaitingOn::Endpoint { why: None });
    }
    waits
}

fn machine_waits(
    blueprint: &Blueprint,
    observed: &Observed,
    id: &MachineId,
    machine: &ObservedMachine,
) -> Vec<WaitingOn> {
    if machine.hold.is_some() || machine.acting.is_some() {
        let (verdict, action, hold) = (machine.verdict, machine.acting, machine.hold.clone());
        return vec![WaitingOn::Repair { machine: id.clone(), verdict, action, hold }];
    }
    let wait = match &machine.phase {
        MachinePhase::Planned | MachinePhase::Creating { .. } => {
            WaitingOn::ProviderCreate { machine: id.clone() }
        }
        MachinePhase::Retrying { why, attempts, next } => WaitingOn::ProviderRetry {
            machine: id.clone(),
            why: why.clone(),
            attempts: *attempts,
            next: *next,
        },
        MachinePhase::Refused { why } => WaitingOn::ProviderRefused { machine: id.clone(), why: why.clone() },
        MachinePhase::Booting { .. } => WaitingOn::Boot { machine: id.clone() },
        MachinePhase::Off { .. } | MachinePhase::Missing { .. } => {
            WaitingOn::Off { machine: id.clone(), why: machine.refusal.clone() }
        }
        MachinePhase::Deleting { why, .. } => {
            WaitingOn::ProviderDelete { machine: id.clone(), why: why.clone() }
        }
        MachinePhase::Enrolled { .. } => {
            let mut waits = etcd_waits(blueprint, observed, id);
            // A member that joins is the reason for whatever its machine does not do yet.
            if waits.is_empty() {
                waits = link_waits(blueprint, observed, id, machine);
            }
            return waits;
        }
    };
    vec![wait]
}

/// The agent's own unit.
const AGENT_UNIT: &str = "keelson-agent.service";

fn etcd_waits(blueprint: &Blueprint, observed: &Observed, id: &MachineId) -> Vec<WaitingOn> {
    let seat = blueprint.machines.get(id).and_then(|machine| machine.seat.as_ref());
    let joins = seat.is_some_and(|seat| seat.begins == SeatBegins::Joining);
    let standing = observed.etcd.get(id).copied();
    if !joins || standing == Some(Standing::Voter) {
        return Vec::new();
    }
    vec![WaitingOn::EtcdJoin { machine: id.clone(), standing }]
}

fn link_waits(
    blueprint: &Blueprint,
    observed: &Observed,
    id: &MachineId,
    machine: &ObservedMachine,
) -> Vec<WaitingOn> {
    if machine.silent {
        return vec![WaitingOn::Silent { machine: id.clone() }];
    }
    if !matches!(machine.link, LinkState::Connected { .. }) {
        return vec![WaitingOn::Connect { machine: id.clone() }];
    }
    if let Some(behind) = observed.turns.get(id) {
        return vec![WaitingOn::Turn { machine: id.clone(), behind: behind.clone() }];
    }
    let wait_for_config = || vec![WaitingOn::Config { machine: id.clone() }];
    if let Some((generation, NodeState::Ready)) = machine.applied
        && generation >= blueprint.generation
    {
        return Vec::new();
    }
    // The report of a state arrives before the heartbeat that tells it.
    let told_ready =
        |health: &HealthReport| health.generation >= blueprint.generation && health.state == NodeState::Ready;
    if machine.health.as_deref().is_some_and(told_ready) {
        return Vec::new();
    }
    let received = machine.health.as_ref().is_some_and(|health| health.generation >= blueprint.generation);
    if !received {
        return wait_for_config();
    }
    let units = machine.health.iter().flat_map(|health| &health.units);
    let waits: Vec<WaitingOn> = units
        .filter_map(|unit| {
            Some(WaitingOn::Unit {
                machine: id.clone(),
                unit: unit.name.clone(),
                state: describe(&unit.state)?,
            })
        })
        .collect();
    // All that it runs is well, and the agent says that it is not: it cannot note what it does.
    let degraded = machine.health.as_ref().is_some_and(|health| health.state == NodeState::Degraded);
    if waits.is_empty() && degraded {
        let state = "cannot write its ledger: is the disk full, or read-only, or does it hang?".to_owned();
        return vec![WaitingOn::Unit { machine: id.clone(), unit: AGENT_UNIT.to_owned(), state }];
    }
    if waits.is_empty() { wait_for_config() } else { waits }
}

/// A unit's state in words; `None` when it is healthy.
fn describe(state: &UnitState) -> Option<String> {
    match state {
        UnitState::Healthy => None,
        UnitState::Waiting { on } => Some(format!("waits for {on}")),
        UnitState::Starting => Some("is starting".to_owned()),
        UnitState::Unhealthy { why } => Some(format!("does not answer: {why}")),
        UnitState::Down { why } => Some(format!("is down: {why}")),
        UnitState::GivenUp { why } => Some(format!("was given up: {why}")),
    }
}
