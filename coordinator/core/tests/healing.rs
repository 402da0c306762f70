//! What the coordinator does about machines that fall silent, hang, lose their power or vanish; and what it leaves alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::demo::*;
use common::{World, named};
use keelson_coordinator_core::{
    ClusterState, Override, PauseRequest, PauseScope, RepairOutcome, RepairRequest,
};
use keelson_model::{FaultClass, MachinePhase, RepairAction, Verdict};
use keelson_protocol::MachineId;

/// What came of faults and repairs, by class.
fn outcomes(world: &World) -> Vec<(Option<FaultClass>, RepairOutcome)> {
    world.core.metrics().outcomes.keys().copied().collect()
}

fn fenced(world: &World) -> Vec<String> {
    world.fences.iter().map(ToString::to_string).collect()
}

#[test]
fn a_machine_without_power_is_known_at_once_its_pods_move_and_it_is_switched_on() {
    let mut world = ready("ha");
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(6);
    assert!(world.reasons().contains(&"PodsGivenUp"), "{:?}", world.reasons());
    world.run(30);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    let reasons = world.reasons();
    for reason in ["MachineOff", "FaultFound", "PodsGivenUp", "MachinePoweredOn", "FaultMended"] {
        assert!(reasons.contains(&reason), "{reason} is not among {reasons:?}");
    }
    let incidents: std::collections::BTreeSet<_> =
        world.events.iter().filter_map(|event| event.incident).collect();
    assert_eq!(incidents.len(), 1);
    assert_eq!(outcomes(&world), [(Some(FaultClass::Machine), RepairOutcome::Mended)]);
    assert_eq!(fenced(&world), ["demo-worker-2"], "a list may be old; that pods may move is proven");
    let (_, node) =
        world.nodes[&"demo".parse().unwrap()].iter().find(|(id, _)| *id == "demo-worker-2").unwrap();
    assert!(!node.0.is_out_of_service(), "it is back in service");
}

#[test]
fn a_list_from_before_a_machine_was_switched_on_does_not_take_its_power_again() {
    let mut world = ready("ha");
    let off = |world: &World| world.reasons().iter().filter(|reason| **reason == "MachineOff").count();
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    while !world.reasons().contains(&"MachinePoweredOn") {
        world.run(1);
    }
    // What a list would say that lags behind.
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(4);
    assert_eq!(off(&world), 1, "{:?}", world.reasons());
    // And that it stays off is believed.
    world.run(6);
    assert_eq!(off(&world), 2, "{:?}", world.reasons());
}

#[test]
fn a_hung_machine_is_fenced_and_given_its_power_again() {
    let mut world = ready("ha");
    freeze(&mut world, "worker-2");
    world.run(16);
    assert_eq!((verdict(&world, "worker-2"), fenced(&world).len()), (Verdict::Undecided, 0));
    world.run(10);
    assert_eq!(fenced(&world), ["demo-worker-2"]);
    world.run(30);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert_eq!(fenced(&world).len(), 1);
    let row = &world.core.machine(&id("worker-2")).unwrap().row;
    assert_eq!((row.incident.as_ref(), row.acting, row.fenced), (None, None, None));
}

#[test]
fn a_machine_that_hangs_soon_after_its_boot_is_found_as_fast_as_any_other() {
    let mut world = ready("ha");
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(30);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    world.fences.clear();
    freeze(&mut world, "worker-2");
    world.run(26);
    assert_eq!(fenced(&world), ["demo-worker-2"], "{:?}", waits(&world));
}

#[test]
fn a_machine_that_its_peers_reach_is_left_alone() {
    let mut world = ready("ha");
    freeze(&mut world, "worker-2");
    world.cut_off.insert(id("worker-2"));
    world.run(600);
    assert_eq!(verdict(&world, "worker-2"), Verdict::CutOff);
    assert!(fenced(&world).is_empty());
    let waits = waits(&world);
    assert!(waits[0].contains("nothing is done on this evidence: cut off from the coordinator"), "{waits:?}");
    world.machines.get_mut(&id("worker-2")).unwrap().linked = true;
    world.run(30);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn a_zone_that_falls_silent_is_left_alone() {
    let mut world = ready("ha");
    for name in ["etcd-2", "master-2", "worker-2"] {
        freeze(&mut world, name);
    }
    world.run(600);
    assert_eq!(verdict(&world, "worker-2"), Verdict::ZoneSilent);
    assert!(fenced(&world).is_empty());
}

#[test]
fn a_machine_that_follows_its_zone_back_after_some_seconds_is_left_alone() {
    for returns in [true, false] {
        let mut world = ready("ha");
        for name in ["etcd-2", "master-2", "worker-2"] {
            freeze(&mut world, name);
        }
        world.run(600);
        for name in ["master-2", "worker-2"] {
            world.machines.get_mut(&id(name)).unwrap().linked = true;
        }
        world.run(40);
        assert_eq!((verdict(&world, "etcd-2"), fenced(&world).len()), (Verdict::Undecided, 0));
        world.machines.get_mut(&id("etcd-2")).unwrap().linked = returns;
        world.run(40);
        let expected: &[&str] = if returns { &[] } else { &["demo-etcd-2"] };
        assert_eq!(fenced(&world), expected, "one that stays away is hung");
    }
}

#[test]
fn a_fleet_that_falls_silent_is_left_alone() {
    let mut world = ready("ha");
    for (name, fake) in &mut world.machines {
        fake.linked = name.as_str() == "demo-worker-1";
    }
    world.peers_answer = false;
    world.run(600);
    assert_eq!(verdict(&world, "worker-2"), Verdict::FleetSilent);
    assert!(fenced(&world).is_empty());
}

/// What is silent because it is being removed says nothing of others, however long that takes.
#[test]
fn a_machine_is_repaired_while_others_are_being_removed() {
    let mut world = ready("tiny");
    world.create(&named("other", "ha"));
    world.run(140);
    assert_eq!(world.state("other"), Some(ClusterState::Ready));
    world.refuse_delete = refusal_of("it is still at it");
    world.delete("other");
    world.peers_answer = false;
    world.run(2);
    for fake in world.machines.values_mut() {
        fake.linked = false;
    }
    world.run(200);
    assert_eq!(fenced(&world).first().map(String::as_str), Some("demo-node-1"));
}

/// A cluster of one machine has no peers; what else is silent speaks for it, though nobody wants that any more (seed 4569).
#[test]
fn machines_of_a_cluster_that_goes_still_tell_that_more_is_silent_than_one() {
    for (zones, expected) in [(1, Verdict::ZoneSilent), (3, Verdict::FleetSilent)] {
        let mut world = ready("tiny");
        world.create(&named("other", "ha"));
        world.run(140);
        assert_eq!(world.state("other"), Some(ClusterState::Ready));
        world.refuse_delete = refusal_of("its host is busy");
        let near = |world: &World, machine: &MachineId| {
            let zone = |machine| world.core.machine(machine).unwrap().row.zone.clone();
            zones == 3 || zone(machine) == zone(&id("node-1"))
        };
        let silent: Vec<_> = world.machines.keys().filter(|id| near(&world, id)).cloned().collect();
        for name in &silent {
            world.machines.get_mut(name).unwrap().linked = false;
        }
        world.peers_answer = false;
        world.run(10);
        world.delete("other");
        world.run(600);
        assert_eq!((verdict(&world, "node-1"), fenced(&world).len()), (expected, 0));
        // A removal that never ends does not keep it from its repair for ever.
        world.run(1_000);
        assert_eq!(fenced(&world).first().map(String::as_str), Some("demo-node-1"));
    }
}

#[test]
fn when_much_breaks_at_once_nothing_is_taken_away() {
    let mut world = ready("ha");
    for name in ["worker-1", "worker-2", "master-3"] {
        freeze(&mut world, name);
    }
    world.run(60);
    assert!(fenced(&world).is_empty(), "{:?}", fenced(&world));
    assert!(waits(&world).iter().any(|wait| wait.contains("are broken at once")), "{:?}", waits(&world));
}

/// Four machines are few: one that hangs is repaired, and two at once are not.
#[test]
fn a_small_cluster_is_protected_from_a_common_cause_too() {
    let mut world = ready("small");
    freeze(&mut world, "worker-1");
    world.run(120);
    assert_eq!(fenced(&world), ["demo-worker-1"]);
    world.run(200);
    world.fences.clear();
    for name in ["worker-1", "worker-2"] {
        freeze(&mut world, name);
    }
    world.run(200);
    assert_eq!(fenced(&world), [] as [&str; 0]);
    let why = "2 of 4 machines of the cluster are broken at once, more than 1: the cause lies elsewhere";
    assert!(waits(&world).iter().any(|wait| wait.contains(why)), "{:?}", waits(&world));
}

#[test]
fn of_the_control_plane_one_machine_is_repaired_at_a_time_and_never_at_the_cost_of_the_quorum() {
    let mut world = ready("ha");
    freeze(&mut world, "etcd-1");
    freeze(&mut world, "etcd-2");
    // The quorum is gone already and their disks stay: one after the other.
    loses_quorum(&mut world, "etcd-3");
    let mut steps = 0;
    while fenced(&world).len() < 2 {
        world.step();
        steps += 1;
        assert!(steps < 1_000, "{:?}", waits(&world));
        if !world.fences.is_empty() && verdict(&world, "etcd-1") == Verdict::Well {
            has_quorum(&mut world, "etcd-3");
        }
    }
    assert!(powered(&world, "etcd-1") && verdict(&world, "etcd-1") == Verdict::Well);
    world.run(200);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    assert_eq!(fenced(&world), ["demo-etcd-1", "demo-etcd-2"]);
}

#[test]
fn a_worker_that_vanished_is_made_anew() {
    let mut world = ready("ha");
    let before = world.core.machine(&id("worker-2")).unwrap().row.incarnation;
    world.machines.remove(&id("worker-2"));
    world.run(100);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
    let row = &world.core.machine(&id("worker-2")).unwrap().row;
    assert!(row.incarnation > before);
    assert_eq!(row.acts.len(), 1, "its record of repairs goes on");
    assert!(world.reasons().contains(&"FaultMended"));
}

#[test]
fn an_etcd_member_whose_disk_vanished_is_replaced() {
    let mut world = ready("ha");
    world.machines.remove(&id("etcd-2"));
    world.run(200);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
    let members = &world.members[&"demo".parse().unwrap()];
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names.len(), 3);
    assert!(names.iter().any(|name| name.starts_with("demo-etcd-2-i")), "{names:?}");
    assert!(members.iter().all(|member| !member.learner));
}

#[test]
fn a_machine_that_boots_with_an_empty_disk_is_made_anew_and_not_switched_off_and_on() {
    for name in ["worker-2", "etcd-2", "master-2"] {
        let mut world = ready("ha");
        let before = world.core.machine(&id(name)).unwrap().row.incarnation;
        world.machines.get_mut(&id(name)).unwrap().lose_disk();
        world.run(80);
        assert!(world.core.machine(&id(name)).unwrap().row.incarnation > before, "{:?}", waits(&world));
        assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
        let mut begun = world.events.iter().filter(|event| event.reason == "RepairBegun");
        assert!(begun.next().unwrap().cause.contains("its disk has lost who it is"));
        assert_eq!(begun.count(), 0);
    }
}

#[test]
fn the_only_etcd_member_is_made_anew_when_its_blank_disk_never_held_anything() {
    let mut world = World::new();
    world.create(&named("demo", "small"));
    while world.core.machine(&id("etcd-1")).is_none_or(|machine| machine.session.is_none()) {
        world.step();
    }
    assert_eq!(world.state("demo"), Some(ClusterState::Creating));
    let before = world.core.machine(&id("etcd-1")).unwrap().row.incarnation;
    world.machines.get_mut(&id("etcd-1")).unwrap().lose_disk();
    world.run(200);
    assert!(world.core.machine(&id("etcd-1")).unwrap().row.incarnation > before, "{:?}", waits(&world));
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn the_only_etcd_member_that_vanishes_before_its_cluster_was_ready_is_made_anew() {
    for steps in 0..3 {
        let mut world = World::new();
        world.create(&named("demo", "tiny"));
        world.run(steps);
        world.machines.remove(&id("node-1"));
        world.run(250);
        assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{steps}: {:?}", waits(&world));
    }
}

#[test]
fn the_only_etcd_member_whose_disk_was_lost_later_is_left_to_a_person() {
    let mut world = ready("small");
    world.machines.get_mut(&id("etcd-1")).unwrap().lose_disk();
    world.run(200);
    assert!(waits(&world)[0].contains("the only copy of the cluster's state"), "{:?}", waits(&world));
}

#[test]
fn the_only_etcd_member_is_never_made_anew() {
    let mut world = ready("small");
    world.machines.remove(&id("etcd-1"));
    world.run(200);
    assert!(matches!(world.core.machine(&id("etcd-1")).unwrap().row.phase, MachinePhase::Missing { .. }));
    assert!(waits(&world)[0].contains("the only copy of the cluster's state"), "{:?}", waits(&world));
    assert_eq!(world.state("demo"), Some(ClusterState::Failed));
}

#[test]
fn a_fence_that_cannot_be_set_holds_everything_harsher() {
    let mut world = ready("ha");
    world.refuse_fence = Some(keelson_coordinator_core::ProviderFailure {
        remedy: keelson_coordinator_core::Remedy::Retry,
        text: "the host does not answer".to_owned(),
    });
    freeze(&mut world, "worker-2");
    world.run(200);
    assert!(world.machines[&id("worker-2")].on);
    assert!(
        waits(&world)[0].contains("its power could not be taken away for certain: the host does not answer")
    );
    world.refuse_fence = None;
    world.run(200);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn a_machine_that_is_heard_again_before_its_power_was_taken_keeps_it() {
    let mut world = ready("ha");
    world.refuse_fence = Some(keelson_coordinator_core::ProviderFailure {
        remedy: keelson_coordinator_core::Remedy::Retry,
        text: "the host does not answer".to_owned(),
    });
    freeze(&mut world, "worker-2");
    world.run(40);
    assert!(!fenced(&world).is_empty());
    world.machines.get_mut(&id("worker-2")).unwrap().linked = true;
    world.run(10);
    let tried = fenced(&world).len();
    world.refuse_fence = None;
    world.run(60);
    assert_eq!(fenced(&world).len(), tried);
    assert!(world.reasons().contains(&"RepairCalledOff"), "{:?}", world.reasons());
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    let hung = Some(FaultClass::Os);
    assert_eq!(outcomes(&world), [(hung, RepairOutcome::Unaided), (hung, RepairOutcome::CalledOff)]);
}

#[test]
fn a_machine_that_hangs_again_and_again_is_made_anew_and_then_left() {
    let mut world = ready("ha");
    let before = world.core.machine(&id("worker-2")).unwrap().row.incarnation;
    let mut recreated = false;
    for _ in 0..3000 {
        freeze(&mut world, "worker-2");
        world.step();
        recreated |= world.core.machine(&id("worker-2")).is_some_and(|m| m.row.incarnation > before);
    }
    assert!(recreated);
    assert!(fenced(&world).len() <= 6, "{}", fenced(&world).len());
    assert!(world.reasons().contains(&"RepairHeld"));
    assert!(outcomes(&world).contains(&(Some(FaultClass::Os), RepairOutcome::NotEnough)));
}

#[test]
fn repair_that_is_paused_waits_and_goes_on_when_it_is_resumed() {
    for scope in [PauseScope::Fleet, PauseScope::Cluster("demo".parse().unwrap())] {
        let mut world = ready("ha");
        let effects =
            world.core.pause_repair(world.now(), &PauseRequest::new(scope.clone(), "somebody")).unwrap();
        world.carry_out(effects);
        world.restart();
        world.run(140);
        freeze(&mut world, "worker-2");
        world.run(100);
        assert!(fenced(&world).is_empty());
        assert!(waits(&world)[0].contains("is paused"), "{:?}", waits(&world));
        assert_eq!(world.state("demo"), Some(ClusterState::Degraded), "what was paused has not failed");
        let effects =
            world.core.resume_repair(world.now(), &PauseRequest::new(scope.clone(), "somebody")).unwrap();
        world.carry_out(effects);
        world.run(60);
        assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    }
}

#[test]
fn a_person_repairs_through_the_same_guards() {
    let mut world = ready("ha");
    let request = |name: &str, action, over| RepairRequest {
        machine: id(name),
        action,
        over,
        caller: "somebody".to_owned(),
    };
    let cycle = request("worker-2", RepairAction::PowerCycle, Override::None);
    let effects = world.core.repair_machine(world.now(), &cycle).unwrap();
    world.carry_out(effects);
    // Again, while it is under way; and another one beside it.
    let busy = world.core.repair_machine(world.now(), &cycle).unwrap_err().to_string();
    assert_eq!(busy, "machine demo-worker-2: power-cycle is under way");
    let other = request("worker-1", RepairAction::Recreate, Override::None);
    let held = world.core.repair_machine(world.now(), &other).unwrap_err().to_string();
    assert!(held.contains("demo-worker-2 is being worked on"), "{held}");
    world.run(40);
    assert_eq!(
        (fenced(&world), world.state("demo")),
        (vec!["demo-worker-2".to_owned()], Some(ClusterState::Ready))
    );
    // One member does not work: no other may be taken away, however much somebody wants it.
    freeze(&mut world, "etcd-1");
    world.run(8);
    for over in [Override::None, Override::Guards, Override::Quorum { typed: "prod".to_owned() }] {
        let act = request("etcd-2", RepairAction::Recreate, over);
        let held = world.core.repair_machine(world.now(), &act).unwrap_err().to_string();
        assert!(held.contains("only 1 of 3 etcd members would work, and 2 must"), "{held}");
    }
    thaw(&mut world, "etcd-1");
    world.run(40);
    // A machine that is being made anew, and one that leaves.
    world.boot_ms = 20_000;
    repair(&mut world, "worker-1", RepairAction::Recreate, Override::None);
    let refused = |world: &World, name: &str| refusal(world, name, RepairAction::Recreate, Override::Guards);
    let busy = "machine demo-worker-1: it is being made anew already";
    assert_eq!(refused(&world, "worker-1").to_string(), busy);
    world.run(120);
    world.scale("demo", "worker", 2);
    world.run(2);
    let leaves = "machine demo-worker-3: it is leaving the cluster";
    assert_eq!(refused(&world, "worker-3").to_string(), leaves);
    let unknown = request("worker-9", RepairAction::PowerCycle, Override::None);
    assert!(
        world.core.repair_machine(world.now(), &unknown).unwrap_err().to_string().contains("does not exist")
    );
}

#[test]
fn the_only_member_is_made_anew_when_its_loss_was_typed() {
    let mut world = ready("small");
    world.machines.remove(&id("etcd-1"));
    world.run(40);
    let act = RepairRequest {
        machine: id("etcd-1"),
        action: RepairAction::Recreate,
        over: Override::Quorum { typed: "demo".to_owned() },
        caller: "somebody".to_owned(),
    };
    let effects = world.core.repair_machine(world.now(), &act).unwrap();
    world.carry_out(effects);
    world.run(60);
    assert_eq!(waits(&world), [] as [&str; 0]);
}

#[test]
fn a_machine_that_has_power_is_not_switched_on() {
    let mut world = ready("ha");
    let request = |name: &str, action| RepairRequest {
        machine: id(name),
        action,
        over: Override::Quorum { typed: "demo".to_owned() },
        caller: "somebody".to_owned(),
    };
    let on = request("worker-2", RepairAction::PowerOn);
    assert_eq!(
        world.core.repair_machine(world.now(), &on).unwrap_err().to_string(),
        "power-on of demo-worker-2 is of no use: it has power already: power-cycle takes its power away and gives it back"
    );
    let options = world.core.repair_options(world.now(), &id("worker-2"));
    let allowed: Vec<RepairAction> =
        options.iter().filter(|(_, checked)| checked.is_ok()).map(|(action, _)| *action).collect();
    assert_eq!(allowed, [RepairAction::PowerCycle, RepairAction::Rebuild, RepairAction::Recreate]);
    world.machines.remove(&id("worker-2"));
    world.run(8);
    let missing = world.core.check_repair(world.now(), &on).unwrap_err().to_string();
    assert!(missing.contains("there is nothing to switch on"), "{missing}");
}

#[test]
fn a_preview_names_the_etcd_member_that_goes() {
    let world = ready("ha");
    let preview = |name: &str, action| {
        let (machine, caller) = (id(name), "somebody".to_owned());
        let request = RepairRequest { machine, action, over: Override::None, caller };
        world.core.preview_repair(world.now(), &request).unwrap()
    };
    let etcd = preview("etcd-2", RepairAction::Recreate);
    assert_eq!(etcd.etcd_member.as_deref(), Some("demo-etcd-2"));
    assert!(etcd.what()[1].contains("etcd member demo-etcd-2 is taken out"), "{:?}", etcd.what());
    assert_eq!(preview("worker-2", RepairAction::Recreate).etcd_member, None);
}

#[test]
fn who_paused_repair_and_why_outlives_the_coordinator_and_not_the_cluster() {
    let mut world = ready("small");
    let scope = PauseScope::Cluster("demo".parse().unwrap());
    let reason = Some("the switch is exchanged".to_owned());
    let request = PauseRequest { reason: reason.clone(), ..PauseRequest::new(scope.clone(), "somebody") };
    let effects = world.core.pause_repair(world.now(), &request).unwrap();
    let since = world.core.paused_since(&scope);
    world.carry_out(effects);
    world.restart();
    world.run(10);
    let note = world.core.paused_by(&scope).unwrap();
    assert_eq!((note.by.as_str(), &note.reason), ("somebody", &reason));
    assert_eq!(world.core.paused_by(&PauseScope::Fleet), None);
    // Asking again keeps since when it is.
    let effects = world.core.pause_repair(world.now(), &request).unwrap();
    world.carry_out(effects);
    assert_eq!(world.core.paused_since(&scope), since);
    assert!(world.events.iter().any(|event| event.cause == "somebody asked for it: the switch is exchanged"));
    let effects = world.core.delete_cluster(world.now(), &"demo".parse().unwrap()).unwrap().effects;
    world.carry_out(effects);
    world.run(60);
    assert_eq!((world.state("demo"), world.core.paused_by(&scope)), (None, None));
}

/// Dies before each effect of a power cycle, and of a machine that is made anew.
#[test]
fn a_coordinator_killed_at_any_moment_of_a_repair_finishes_it_without_doing_it_twice() {
    for vanishes in [false, true] {
        let start = ready("small");
        for die_before in 1.. {
            let mut world = start.clone();
            world.die_after(die_before);
            if vanishes {
                world.machines.remove(&id("worker-2"));
            } else {
                freeze(&mut world, "worker-2");
            }
            world.run(60);
            let survived = world.die_before.take().is_some();
            // A new coordinator first lets the fleet come back.
            world.run(140);
            assert_eq!(waits(&world), [] as [&str; 0], "killed before effect {die_before}");
            // A fence whose answer was lost is set again; that changes nothing.
            assert!(fenced(&world).len() <= 2, "killed before effect {die_before}");
            if survived {
                break;
            }
        }
    }
}
