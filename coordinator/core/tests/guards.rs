//! What must hold until a repair is done: the world may be another one than when it was decided.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::World;
use common::demo::*;
use keelson_coordinator_core::{
    ClusterState, DISRUPTED_MAX, EnrolId, Input, Override, PauseRequest, PauseScope, RepairRequest,
};
use keelson_model::{FleetEvent, MachinePhase, RepairAction, Verdict};
use keelson_protocol::SecretBytes;
use keelson_protocol::message::EnrolRequest;

#[test]
fn a_fence_that_comes_late_is_not_set_when_much_has_broken_meanwhile() {
    let mut world = ready("ha");
    freeze(&mut world, "worker-2");
    refuse_fences(&mut world);
    world.run(30);
    assert!(!world.fences.is_empty(), "{:?}", waits(&world));
    for name in ["worker-1", "master-3"] {
        freeze(&mut world, name);
    }
    world.run(12);
    world.fences.clear();
    world.refuse_fence = None;
    world.run(120);
    assert!(world.fences.is_empty(), "{:?}", world.fences);
    assert!(waits(&world).iter().any(|wait| wait.contains("are broken at once")), "{:?}", waits(&world));
}

#[test]
fn a_pause_holds_what_was_decided_and_not_done() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    freeze(&mut world, "worker-2");
    world.run(30);
    assert!(!world.fences.is_empty());
    let request = PauseRequest::new(PauseScope::Fleet, "somebody");
    let effects = world.core.pause_repair(world.now(), &request).unwrap();
    world.carry_out(effects);
    world.fences.clear();
    world.refuse_fence = None;
    world.run(120);
    assert!(world.fences.is_empty() && powered(&world, "worker-2"));
    assert!(world.reasons().contains(&"RepairCalledOff"), "{:?}", world.reasons());
    let effects = world.core.resume_repair(world.now(), &request).unwrap();
    world.carry_out(effects);
    world.run(120);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
    // What was not done is no reason for more.
    assert_eq!(acts(&world, "worker-2"), [RepairAction::PowerCycle]);
    // What goes on already cannot be resumed, and is not told.
    let before = world.reasons().len();
    let effects = world.core.resume_repair(world.now(), &request).unwrap();
    world.carry_out(effects);
    assert_eq!(world.reasons().len(), before);
}

#[test]
fn a_machine_that_vanishes_while_it_is_repaired_is_made_anew() {
    let mut world = ready("ha");
    let before = incarnation(&world, "worker-2");
    world.evacuates_slowly = true;
    freeze(&mut world, "worker-2");
    while world.fences.is_empty() {
        world.step();
    }
    world.machines.remove(&id("worker-2"));
    world.evacuate_at_last();
    world.run(300);
    assert!(incarnation(&world, "worker-2") > before, "{:?}", waits(&world));
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn what_is_missing_is_only_made_anew_whoever_asks() {
    let mut world = ready("ha");
    world.machines.remove(&id("worker-2"));
    world.run(4);
    assert!(matches!(world.core.machine(&id("worker-2")).unwrap().row.phase, MachinePhase::Missing { .. }));
    for action in [RepairAction::PowerOn, RepairAction::PowerCycle, RepairAction::Rebuild] {
        let (machine, caller) = (id("worker-2"), "somebody".to_owned());
        let request = RepairRequest { machine, action, over: Override::Guards, caller };
        let refused = world.core.check_repair(world.now(), &request).unwrap_err().to_string();
        assert!(refused.contains("recreate makes it anew"), "{refused}");
    }
}

#[test]
fn a_person_repairs_what_the_evidence_alone_would_leave() {
    for (name, cut_off) in [("worker-2", true), ("worker-2", false)] {
        let mut world = ready("ha");
        freeze(&mut world, name);
        if cut_off {
            world.cut_off.insert(id(name));
        } else {
            // Its whole zone.
            freeze(&mut world, "etcd-2");
            freeze(&mut world, "master-2");
        }
        world.run(60);
        let verdict = world.core.machine(&id(name)).unwrap().verdict;
        assert_eq!(verdict, if cut_off { Verdict::CutOff } else { Verdict::ZoneSilent });
        assert!(world.fences.is_empty());
        let over = if cut_off { Override::None } else { Override::Guards };
        refuse_fences(&mut world);
        repair(&mut world, name, RepairAction::PowerCycle, over);
        world.run(20);
        world.fences.clear();
        world.refuse_fence = None;
        world.run(60);
        assert_eq!(world.fences, [id(name)], "{verdict}: {:?}", waits(&world));
        thaw(&mut world, name);
        world.run(30);
        assert!(world.core.machine(&id(name)).unwrap().row.acting.is_none());
    }
}

#[test]
fn a_kubelet_that_renews_its_lease_speaks_for_a_machine_that_a_new_coordinator_never_heard() {
    let mut world = ready("ha");
    freeze(&mut world, "worker-2");
    world.cut_off.insert(id("worker-2"));
    // The way of the peers is broken as well, the one to the API server is whole.
    world.peers_answer = false;
    world.run(20);
    world.restart();
    world.run(400);
    assert_eq!(world.core.machine(&id("worker-2")).unwrap().verdict, Verdict::CutOff);
    assert!(world.fences.is_empty(), "{:?}", waits(&world));
}

#[test]
fn no_machine_is_switched_on_while_its_pods_are_still_being_given_up() {
    let mut world = ready("ha");
    world.evacuates_slowly = true;
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(40);
    assert!(!powered(&world, "worker-2"), "its pods would run again under the call that forces them away");
    world.evacuate_at_last();
    world.run(40);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

/// Somebody asks for a certificate of a machine, with its token.
fn ask(world: &mut World, name: &str, key: &str) {
    let machine = &world.machines[&id(name)];
    let request = EnrolRequest {
        machine: id(name),
        incarnation: machine.incarnation,
        token: SecretBytes::new(machine.token.expose_secret().to_vec()),
        signing_request: vec![1],
    };
    world.input(Input::Enrol { id: EnrolId(7), request, key_hash: Some(key.to_owned()) });
}

#[test]
fn a_machine_whose_certificate_has_expired_is_known_by_the_key_that_it_renewed() {
    let mut world = ready("ha");
    let session = world.machines[&id("worker-2")].session.unwrap();
    for key in ["first", "second"] {
        let (signing_request, key_hash) = (vec![1], Some(key.to_owned()));
        world.input(Input::RenewLink { session, signing_request, key_hash });
    }
    world.restart();
    let refused = |world: &World| world.reasons().contains(&"EnrolmentRefused");
    for key in ["key of demo-worker-2 on disk 1", "first", "second"] {
        ask(&mut world, "worker-2", key);
        assert!(!refused(&world), "{key}");
    }
    ask(&mut world, "worker-2", "never seen");
    assert!(refused(&world));
}

#[test]
fn somebody_else_with_a_machines_token_costs_it_nothing() {
    let mut world = ready("ha");
    let before = incarnation(&world, "worker-2");
    // While it is heard; then it reboots, and is silent for longer than a slow heartbeat.
    ask(&mut world, "worker-2", "of somebody else");
    freeze(&mut world, "worker-2");
    world.run(16);
    thaw(&mut world, "worker-2");
    world.run(40);
    assert!(world.fences.is_empty(), "{:?}", world.reasons());
    // While it is cut off, and its peers reach it.
    freeze(&mut world, "worker-2");
    world.cut_off.insert(id("worker-2"));
    for _ in 0..120 {
        world.step();
        ask(&mut world, "worker-2", "of somebody else");
    }
    assert_eq!(world.core.machine(&id("worker-2")).unwrap().verdict, Verdict::CutOff);
    assert_eq!((world.fences.len(), incarnation(&world, "worker-2")), (0, before));
}

#[test]
fn the_next_machine_of_the_control_plane_waits_until_the_last_one_works() {
    let mut world = ready("ha");
    freeze(&mut world, "master-1");
    while world.fences.is_empty() {
        world.step();
    }
    // It gets its power back, and its agent is slow.
    while !powered(&world, "master-1") {
        world.step();
    }
    freeze(&mut world, "master-1");
    let (machine, caller) = (id("master-2"), "somebody".to_owned());
    let other = RepairRequest { machine, action: RepairAction::PowerCycle, over: Override::None, caller };
    world.run(4);
    let held = world.core.check_repair(world.now(), &other).unwrap_err().to_string();
    assert!(held.contains("demo-master-1 is being worked on"), "{held}");
    thaw(&mut world, "master-1");
    world.run(30);
    world.core.check_repair(world.now(), &other).unwrap();
}

/// The time in which a machine has to come back does not run while its power could not be taken.
#[test]
fn a_machine_whose_fence_took_long_is_waited_for_as_any_other() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    repair(&mut world, "master-1", RepairAction::Recreate, Override::None);
    world.run(200);
    world.refuse_fence = None;
    let incarnation = |world: &World| world.core.machine(&id("master-1")).map(|m| m.row.incarnation);
    let before = incarnation(&world);
    while incarnation(&world) == before {
        world.step();
    }
    let (machine, caller) = (id("master-2"), "somebody".to_owned());
    let other = RepairRequest { machine, action: RepairAction::PowerCycle, over: Override::None, caller };
    let held = world.core.check_repair(world.now(), &other).unwrap_err().to_string();
    assert!(held.contains("demo-master-1 is being worked on"), "{held}");
    world.run(60);
    world.core.check_repair(world.now(), &other).unwrap();
}

#[test]
fn a_typed_override_is_for_what_held_then_and_no_other_time() {
    let mut world = ready("ha");
    let typed = Override::Quorum { typed: "demo".to_owned() };
    repair(&mut world, "etcd-1", RepairAction::Recreate, typed.clone());
    assert!(!world.core.machine(&id("etcd-1")).unwrap().row.forced, "nothing held it");
    world.run(80);
    freeze(&mut world, "etcd-2");
    world.run(8);
    refuse_fences(&mut world);
    repair(&mut world, "etcd-1", RepairAction::PowerCycle, typed.clone());
    assert!(!world.core.machine(&id("etcd-1")).unwrap().row.forced, "its disk stays");
    world.refuse_fence = None;
    world.run(300);
    freeze(&mut world, "etcd-2");
    world.run(8);
    refuse_fences(&mut world);
    repair(&mut world, "etcd-1", RepairAction::Recreate, typed);
    assert!(world.core.machine(&id("etcd-1")).unwrap().row.forced);
}

#[test]
fn a_machine_that_leaves_and_is_repaired_counts_against_other_drains() {
    let mut world = ready("ha");
    freeze(&mut world, "worker-3");
    while world.fences.is_empty() || !powered(&world, "worker-3") {
        world.step();
    }
    freeze(&mut world, "worker-3");
    world.scale("demo", "worker", 1);
    world.run(160);
    let when = |name: &str, reason: &str| {
        let is = |event: &&FleetEvent| event.machine == Some(id(name)) && event.reason == reason;
        world.events.iter().find(is).unwrap_or_else(|| panic!("{reason} of {name}")).id
    };
    assert!(when("worker-3", "NodeRemoved") < when("worker-2", "NodeDraining"), "{:?}", world.reasons());
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn repairs_and_drains_share_one_budget() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    repair(&mut world, "worker-1", RepairAction::PowerCycle, Override::None);
    world.scale("demo", "worker", 2);
    world.run(20);
    let blueprint = &world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint;
    let leaves = blueprint.machines.values().find(|machine| machine.leaving).unwrap().id.clone();
    assert_ne!(leaves, id("worker-1"));
    let pods = |world: &World| world.nodes[&"demo".parse().unwrap()].get(leaves.as_str()).map(|node| node.1);
    assert_eq!(pods(&world), Some(2), "it waits for the repair of the other");
    world.refuse_fence = None;
    world.run(160);
    assert_eq!(pods(&world), None);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn machines_that_return_while_a_coordinator_reads_what_it_missed_are_counted_on_afterwards() {
    for tick_first in [true, false] {
        let mut world = ready("ha");
        world.ms += 60_000;
        if tick_first {
            world.input(Input::Tick);
        }
        for name in ["etcd-1", "etcd-2", "etcd-3"] {
            flap(&mut world, name);
        }
        if !tick_first {
            world.input(Input::Tick);
        }
        // What they say now may be old.
        world.step();
        let quorum = refusal(&world, "etcd-1", RepairAction::Recreate, Override::Guards).to_string();
        assert!(quorum.contains("just started"), "{quorum}");
        world.run(80);
        let asked = request("etcd-1", RepairAction::Recreate, Override::None);
        assert_eq!(world.core.check_repair(world.now(), &asked).map_err(|held| held.to_string()), Ok(()));
    }
}

#[test]
fn a_machine_that_waits_long_for_its_power_is_worked_on_until_it_has_it() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    let effects =
        world.core.repair_machine(world.now(), &request("worker-2", RepairAction::Rebuild, Override::None));
    world.carry_out(effects.unwrap());
    world.run(2 * u32::try_from(DISRUPTED_MAX.as_secs()).unwrap());
    world.refuse_rebuild = world.refuse_fence.take();
    while !machine(&world, "worker-2").row.powering {
        world.step();
    }
    for _ in 0..2 {
        let held = refusal(&world, "worker-1", RepairAction::PowerCycle, Override::None).to_string();
        assert!(held.contains("demo-worker-2 is being worked on"), "{held}");
        // Its answer comes, and it is asked for again later.
        world.step();
    }
}
