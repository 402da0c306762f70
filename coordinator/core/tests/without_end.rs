//! What could wait without end, or happen to all at once: each of these once did.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use std::collections::BTreeMap;

use common::demo::*;
use common::{World, named};
use keelson_coordinator_core::{ClusterState, Effect, EnrolId, Input, Override, REFUSALS_TOLD_MAX};
use keelson_model::{OperationKind, RepairAction};
use keelson_protocol::message::{EnrolRequest, ToAgent, ToCoordinator};
use keelson_protocol::{Generation, Incarnation, MachineId, SecretBytes};

#[test]
fn a_power_cycle_whose_power_does_not_come_back_ends_in_a_rebuild() {
    let mut world = ready("ha");
    world.refuse_power = refusal_of("its host is broken");
    freeze(&mut world, "worker-2");
    world.run(100);
    assert_eq!(acts(&world, "worker-2"), [RepairAction::PowerCycle], "{:?}", waits(&world));
    world.run(900);
    assert!(acts(&world, "worker-2").contains(&RepairAction::Rebuild), "{:?}", waits(&world));
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn a_person_is_not_told_for_ever_that_a_power_cycle_is_under_way() {
    let mut world = ready("ha");
    let failure = refusal_of("its host is broken");
    (world.refuse_power, world.refuse_rebuild) = (failure.clone(), failure);
    repair(&mut world, "worker-2", RepairAction::PowerCycle, Override::None);
    world.run(400);
    repair(&mut world, "worker-2", RepairAction::Recreate, Override::None);
    world.run(60);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

/// Perhaps for days, and its certificates grow old meanwhile.
#[test]
fn a_machine_that_waits_for_its_turn_renews_its_certificates() {
    let mut world = World::new();
    world.create(&named("demo", "small"));
    world.run(250);
    world.no_room.extend([id("master-2"), id("master-3")]);
    world.scale("demo", "master", 3);
    world.run(120);
    assert!(waits(&world).iter().any(|wait| wait.contains("gets its config after")), "{:?}", waits(&world));
    let before = world.machines[&id("master-1")].generation.unwrap();
    assert!(before < world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint.generation);
    let asks = |world: &mut World, generation: Generation| {
        let session = world.machines[&id("master-1")].session.unwrap();
        let name = "kube-apiserver".to_owned();
        let message = ToCoordinator::SignCertificate { name, generation, signing_request: vec![1] };
        world.core.handle(world.now(), Input::Message { session, message })
    };
    let signed = |effect: &Effect| matches!(effect, Effect::SignLeaf { .. });
    assert!(asks(&mut world, before).iter().any(signed));
    // One that works on what nobody has sent it is another matter.
    let refused = |effect: &Effect| matches!(effect, Effect::Send { message, .. } if matches!(**message, ToAgent::CertificateRefused { .. }));
    assert!(asks(&mut world, Generation(before.0 - 1)).iter().any(refused));
}

/// How each API server is to run, by the configs that were sent since this was last asked.
fn api_servers(world: &mut World) -> BTreeMap<MachineId, Vec<String>> {
    let mut commands = BTreeMap::new();
    for sent in std::mem::take(&mut world.sent) {
        let ToAgent::Config(config) = sent else { continue };
        if let Some(unit) = config.units.iter().find(|unit| unit.name == "kube-apiserver.service") {
            commands.insert(config.machine.clone(), unit.command.clone());
        }
    }
    commands
}

#[test]
fn masters_of_a_cluster_that_was_never_whole_begin_anew_one_after_the_other() {
    let mut world = World::new();
    world.no_room.insert(id("worker-1"));
    world.create(&named("demo", "ha"));
    world.run(200);
    assert!(world.core.cluster(&"demo".parse().unwrap()).unwrap().row.first_ready.is_none());
    let (mut serves, mut began, mut steps) = (api_servers(&mut world), BTreeMap::new(), 0);
    world.apply_ms = 4_000;
    world.scale("demo", "etcd", 5);
    for _ in 0..500 {
        world.step();
        for (machine, command) in api_servers(&mut world) {
            let before = serves.insert(machine.clone(), command.clone());
            if before.is_some_and(|before| before != command) {
                began.insert(machine, world.ms);
                steps += 1;
            }
        }
        began.retain(|_, at| *at + world.apply_ms > world.ms);
        assert!(began.len() <= 1, "{:?} begin anew together", began.keys());
    }
    assert!(steps >= 3, "{:?}", waits(&world));
}

#[test]
fn cancelling_its_create_does_not_remove_a_cluster_that_answers() {
    let mut world = World::new();
    world.no_room.insert(id("worker-1"));
    let created = world.create(&named("demo", "ha"));
    assert_eq!(created.operation.kind, OperationKind::CreateCluster);
    world.run(200);
    let refused = world.core.cancel_operation(world.now(), &created.operation.id).unwrap_err().to_string();
    assert!(refused.contains("its API server has answered"), "{refused}");
}

#[test]
fn machines_that_nobody_could_reach_found_their_cluster_when_somebody_can() {
    let mut world = World::new();
    world.mute.extend(["etcd-1", "etcd-2", "etcd-3"].map(id));
    world.create(&named("demo", "ha"));
    world.run(4_000);
    assert!(acts(&world, "etcd-1").contains(&RepairAction::Rebuild), "{:?}", waits(&world));
    world.mute.clear();
    world.run(400);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

/// The others have founded it without the one that is mute, so that there is something to join.
#[test]
fn a_founding_machine_that_never_speaks_is_made_anew_when_the_others_have_founded() {
    let mut world = World::new();
    world.mute.insert(id("etcd-3"));
    world.create(&named("demo", "ha"));
    world.run(2_000);
    assert!(acts(&world, "etcd-3").contains(&RepairAction::Recreate), "{:?}", waits(&world));
    world.mute.clear();
    world.run(1_000);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn machines_that_are_made_by_the_dozen_keep_no_list_waiting() {
    let mut world = ready("tiny");
    world.create(&named("many", "ha"));
    world.scale("many", "worker", 40);
    world.answers_late = true;
    world.run(120);
    assert!(world.awaits_list());
}

#[test]
fn a_worker_that_gets_no_power_may_leave() {
    let mut world = ready("ha");
    world.refuse_power = refusal_of("its host is broken");
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(30);
    assert!(machine(&world, "worker-2").row.powering, "{:?}", waits(&world));
    let left = pool(&world, "worker").len() - 1;
    world.scale("demo", "worker", u16::try_from(left).unwrap());
    world.run(200);
    assert!(!world.machines.contains_key(&id("worker-2")), "{:?}", waits(&world));
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn what_could_not_begin_ends_although_the_whole_zone_is_silent_by_then() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    freeze(&mut world, "worker-2");
    world.run(40);
    assert_eq!(machine(&world, "worker-2").row.acting, Some(RepairAction::PowerCycle));
    let cluster = world.core.cluster(&"demo".parse().unwrap()).unwrap();
    let blueprint = cluster.row.blueprint.clone();
    let zone = &blueprint.machines[&id("worker-2")].zone;
    for planned in blueprint.machines.values().filter(|planned| planned.zone == *zone) {
        world.machines.get_mut(&planned.id).unwrap().linked = false;
    }
    world.run(1_300);
    assert_eq!(machine(&world, "worker-2").row.acting, None, "{:?}", waits(&world));
}

#[test]
fn an_address_that_is_not_given_up_is_told_with_its_cause() {
    let mut world = ready("small");
    world.refuse_unexpose = refusal_of("no permission for load balancers");
    world.delete("demo");
    world.run(200);
    assert!(world.machines.is_empty());
    let told = waits(&world);
    assert!(
        told.len() == 1 && told[0].ends_with("and is asked again: no permission for load balancers"),
        "{told:?}"
    );
    let events = world.events.iter().filter(|event| event.cause == "no permission for load balancers");
    assert_eq!(events.count(), 1, "told once");
    world.refuse_unexpose = None;
    world.run(100);
    assert_eq!(world.state("demo"), None);
}

/// What was done a moment ago is no older because somebody has set the clock.
#[test]
fn a_clock_that_is_set_ahead_lets_no_second_master_go() {
    let mut world = ready("ha");
    world.boot_ms = 60_000;
    repair(&mut world, "master-1", RepairAction::PowerCycle, Override::None);
    world.run(4);
    assert!(powered(&world, "master-1"));
    world.wall_jump_ms += 150_000;
    freeze(&mut world, "master-2");
    world.run(80);
    assert!(!world.fences.contains(&id("master-2")), "{:?}", waits(&world));
    world.run(400);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn each_machine_that_cannot_be_removed_is_told_once() {
    let mut world = ready("small");
    for name in ["lost-7", "lost-8"] {
        let mut orphan = world.machines[&id("etcd-1")].clone();
        orphan.linked = false;
        world.machines.insert(id(name), orphan);
    }
    world.refuse_delete = refusal_of("its disk is in use");
    world.run(2_000);
    let told = |world: &World, reason: &str| {
        let of = world.events.iter().filter(|event| event.reason == reason);
        of.map(|event| event.machine.clone().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(told(&world, "OrphanStays"), [id("lost-7"), id("lost-8")]);
    world.refuse_delete = refusal_of("its host is away");
    world.run(200);
    assert_eq!(told(&world, "OrphanStays").len(), 4, "another cause is news");
    world.refuse_delete = None;
    world.run(200);
    assert_eq!(told(&world, "OrphanRemoved"), [id("lost-7"), id("lost-8")]);
}

#[test]
fn refusals_are_told_in_measure_whoever_asks() {
    let mut world = ready("small");
    let ask = |world: &mut World, name: &str| {
        let token = SecretBytes::new(vec![0; 32]);
        let request =
            EnrolRequest { machine: id(name), incarnation: Incarnation(1), token, signing_request: vec![1] };
        world.input(Input::Enrol { id: EnrolId(0), request, key_hash: Some("key".to_owned()) });
    };
    let told = |world: &World| {
        let refused = world.events.iter().filter(|event| event.reason == "EnrolmentRefused");
        refused.count()
    };
    (0..100).for_each(|_| ask(&mut world, "stranger-1"));
    assert_eq!(told(&world), 1);
    (0..5_000).for_each(|stranger| ask(&mut world, &format!("stranger-{stranger}")));
    assert_eq!(told(&world), REFUSALS_TOLD_MAX);
    ask(&mut world, "worker-1");
    assert_eq!(told(&world), REFUSALS_TOLD_MAX + 1, "strangers do not hide what befalls a machine of ours");
    world.events.clear();
    world.run(2 * 310);
    ask(&mut world, "stranger-1");
    assert_eq!(told(&world), 1, "after five minutes it is news again");
}

#[test]
fn etcd_that_answers_nothing_is_told_with_its_cause() {
    let mut world = ready("ha");
    world.etcd_silent = true;
    world.scale("demo", "etcd", 5);
    world.run(2 * 50);
    let told = |world: &World| {
        let failed = world.events.iter().filter(|event| event.reason == "EtcdCallFailed");
        failed.map(|event| event.cause.clone()).collect::<Vec<_>>()
    };
    assert!(told(&world).is_empty(), "an election is no failure");
    world.run(2 * 600);
    assert_eq!(told(&world), ["there is no leader"]);
    world.etcd_silent = false;
    world.run(500);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn changes_that_etcd_refuses_are_told_although_it_lists_its_members() {
    let mut world = ready("ha");
    world.etcd_refuses = Some("unhealthy cluster".to_owned());
    world.scale("demo", "etcd", 5);
    world.run(2 * 200);
    let told: Vec<&str> =
        world.events.iter().filter(|e| e.reason == "EtcdCallFailed").map(|e| e.cause.as_str()).collect();
    assert!(matches!(told[..], [one] if one.ends_with("unhealthy cluster") && one.len() > 20), "{told:?}");
    world.etcd_refuses = None;
    world.run(500);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

/// Each of them gets its power by a call that hangs, and the list is what tells of all else.
#[test]
fn machines_that_get_no_power_by_the_dozen_keep_no_list_waiting() {
    let mut world = ready("ha");
    world.scale("demo", "worker", 40);
    world.run(400);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
    world.answers_late = true;
    for number in 1..=40 {
        world.machines.get_mut(&id(&format!("worker-{number}"))).unwrap().power_off();
    }
    world.answer_once();
    for _ in 0..60 {
        world.step();
        world.answer_lists();
    }
    world.run(10);
    assert!(world.awaits_list());
}
