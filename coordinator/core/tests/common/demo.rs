//! A cluster named `demo`, what happens to its machines, and what people ask for.

use keelson_coordinator_core::{
    ClusterState, CommandError, Input, Machine, Override, ProviderFailure, Remedy, RepairRequest,
};
use keelson_model::{RepairAction, Verdict};
use keelson_protocol::health::{NodeState, UnitState};
use keelson_protocol::{Incarnation, MachineId};

use super::{World, named};

/// The machine of the cluster with this name.
pub(crate) fn id(name: &str) -> MachineId {
    format!("demo-{name}").parse().unwrap()
}

/// A ready cluster of `plan`, and a coordinator that has been up for long.
pub(crate) fn ready(plan: &str) -> World {
    let mut world = World::new();
    world.create(&named("demo", plan));
    world.run(250);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    world.events.clear();
    world.fences.clear();
    world
}

pub(crate) fn freeze(world: &mut World, name: &str) {
    if let Some(machine) = world.machines.get_mut(&id(name)) {
        machine.linked = false;
    }
}

pub(crate) fn thaw(world: &mut World, name: &str) {
    world.machines.get_mut(&id(name)).unwrap().linked = true;
}

/// A machine's session ends, and it opens another one at once.
pub(crate) fn flap(world: &mut World, name: &str) {
    let session = world.machines[&id(name)].session.unwrap();
    world.input(Input::Closed { session, why: "the link broke".to_owned() });
    world.connect(&id(name));
}

/// The infrastructure sets no fence for now.
pub(crate) fn refuse_fences(world: &mut World) {
    let text = "the host does not answer".to_owned();
    world.refuse_fence = Some(ProviderFailure { remedy: Remedy::Retry, text });
}

pub(crate) fn request(name: &str, action: RepairAction, over: Override) -> RepairRequest {
    RepairRequest { machine: id(name), action, over, caller: "somebody".to_owned() }
}

/// A person asks for a repair, and is not refused.
pub(crate) fn repair(world: &mut World, name: &str, action: RepairAction, over: Override) {
    let effects = world.core.repair_machine(world.now(), &request(name, action, over)).unwrap();
    world.carry_out(effects);
}

/// What the infrastructure says when it does not do something now.
pub(crate) fn refusal_of(text: &str) -> Option<ProviderFailure> {
    Some(ProviderFailure { remedy: Remedy::Retry, text: text.to_owned() })
}

/// Why a person's repair would be refused.
pub(crate) fn refusal(world: &World, name: &str, action: RepairAction, over: Override) -> CommandError {
    world.core.check_repair(world.now(), &request(name, action, over)).unwrap_err()
}

pub(crate) fn machine<'a>(world: &'a World, name: &str) -> &'a Machine {
    world.core.machine(&id(name)).unwrap()
}

pub(crate) fn verdict(world: &World, name: &str) -> Verdict {
    machine(world, name).verdict
}

pub(crate) fn incarnation(world: &World, name: &str) -> Incarnation {
    machine(world, name).row.incarnation
}

pub(crate) fn powered(world: &World, name: &str) -> bool {
    world.machines[&id(name)].on
}

/// What was done to a machine within the hour.
pub(crate) fn acts(world: &World, name: &str) -> Vec<RepairAction> {
    machine(world, name).row.acts.iter().filter(|act| !act.called_off).map(|act| act.action).collect()
}

/// The provider has no room for new machines.
pub(crate) fn refuse_creates(world: &mut World) {
    let failure = || ProviderFailure { remedy: Remedy::Retry, text: "no room".to_owned() };
    world.refuse = std::iter::repeat_with(failure).take(10_000).collect();
}

/// Names of the machines of a pool at the provider.
pub(crate) fn pool(world: &World, pool: &str) -> Vec<String> {
    let machines = world.machines.keys().map(ToString::to_string);
    machines.filter(|id| id.starts_with(&format!("demo-{pool}-"))).collect()
}

/// What the cluster waits for.
pub(crate) fn waits(world: &World) -> Vec<String> {
    world.core.waiting(&"demo".parse().unwrap(), world.now()).iter().map(ToString::to_string).collect()
}

/// Says of a machine with etcd that its member has no quorum.
pub(crate) fn loses_quorum(world: &mut World, name: &str) {
    world.says.insert(id(name), NodeState::Degraded);
    world.step();
    let why = "connection refused".to_owned();
    world.tell_unit(&id(name), "etcd.service", UnitState::Unhealthy { why });
}

/// Says of a machine with etcd that its member serves.
pub(crate) fn has_quorum(world: &mut World, name: &str) {
    if world.says.remove(&id(name)).is_some() {
        world.tell_unit(&id(name), "etcd.service", UnitState::Healthy);
    }
}
