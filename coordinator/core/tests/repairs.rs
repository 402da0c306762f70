//! Repairs from beginning to end: across coordinators, lost answers, and what people ask for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::demo::*;
use common::{World, hello};
use keelson_coordinator_core::{
    AgentRepair, ClusterState, Effect, Input, Override, PauseRequest, PauseScope, ProviderFailure, Remedy,
    SessionId,
};
use keelson_model::{FaultClass, MachinePhase, RepairAction, Verdict};
use keelson_protocol::health::{AgentEvent, EventKind, NodeState, UnitState};
use keelson_protocol::message::{RefusalCode, ToAgent, ToCoordinator};
use keelson_protocol::{BootId, Generation, WallTime};

/// Steps of half a second in which a new coordinator lets its fleet come back.
const WARM: u32 = 70;

fn fences(world: &World) -> Vec<String> {
    world.fences.iter().map(ToString::to_string).collect()
}

fn told(world: &World, reason: &str) -> bool {
    world.events.iter().any(|event| event.reason == reason)
}

/// Generation of the config that a machine works on.
fn generation(world: &World, name: &str) -> Option<Generation> {
    world.machines[&id(name)].generation
}

/// Steps until `name` has lost its power to a fence.
fn until_fenced(world: &mut World, name: &str) {
    for _ in 0..200 {
        if world.fences.contains(&id(name)) {
            return;
        }
        world.step();
    }
    panic!("{name} was not fenced: {:?}", waits(world));
}

/// Steps until `name` has its power back. That it has, the coordinator hears in the next step.
fn until_powered(world: &mut World, name: &str) {
    for _ in 0..200 {
        if powered(world, name) {
            return;
        }
        world.step();
    }
    panic!("{name} has no power: {:?}", waits(world));
}

#[test]
fn an_override_names_the_quorum_also_behind_other_guards() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    freeze(&mut world, "etcd-1");
    world.run(40);
    assert_eq!(machine(&world, "etcd-1").row.acting, Some(RepairAction::PowerCycle));
    for action in [RepairAction::PowerCycle, RepairAction::Recreate] {
        for over in [Override::None, Override::Guards] {
            let refused = refusal(&world, "etcd-2", action, over).to_string();
            assert!(refused.contains("only 1 of 3 etcd members would work"), "{refused}");
        }
    }
}

#[test]
fn the_last_master_that_works_keeps_its_power() {
    let mut world = ready("ha");
    for name in ["master-2", "master-3"] {
        freeze(&mut world, name);
        world.cut_off.insert(id(name));
    }
    world.run(20);
    let refused = refusal(&world, "master-1", RepairAction::PowerCycle, Override::None).to_string();
    assert!(refused.contains("the cluster would have no API server meanwhile"), "{refused}");
    repair(&mut world, "master-1", RepairAction::PowerCycle, Override::Guards);
}

#[test]
fn an_override_is_for_the_quorum_that_there_was() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    repair(&mut world, "etcd-1", RepairAction::PowerCycle, Override::Guards);
    world.run(4);
    freeze(&mut world, "etcd-2");
    world.run(8);
    world.fences.clear();
    world.refuse_fence = None;
    world.run(40);
    assert!(told(&world, "RepairCalledOff"), "{:?}", world.reasons());
    assert!(!world.fences.contains(&id("etcd-1")), "{:?}", fences(&world));
    world.run(160);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn two_overrides_at_once_do_not_cost_the_quorum() {
    let mut world = ready("ha");
    repair(&mut world, "etcd-1", RepairAction::PowerCycle, Override::Guards);
    let refused = refusal(&world, "etcd-2", RepairAction::PowerCycle, Override::Guards).to_string();
    assert!(refused.contains("only 1 of 3 etcd members would work"), "{refused}");
    for _ in 0..10 {
        world.step();
        let works = world.machines[&id("etcd-1")].session.is_some() && powered(&world, "etcd-1");
        if !works {
            let refused = refusal(&world, "etcd-2", RepairAction::PowerCycle, Override::Guards).to_string();
            assert!(refused.contains("only 1 of 3 etcd members would work"), "{refused}");
        }
    }
    world.run(100);
    assert_eq!(fences(&world), ["demo-etcd-1"]);
}

/// Two of three members are cut off from the coordinator, and serve their clients.
#[test]
fn a_quorum_that_is_only_not_heard_is_kept() {
    let mut world = ready("ha");
    for name in ["etcd-1", "etcd-2"] {
        freeze(&mut world, name);
        world.cut_off.insert(id(name));
    }
    world.run(40);
    let refused = refusal(&world, "etcd-1", RepairAction::PowerCycle, Override::Guards).to_string();
    assert!(refused.contains("only 1 of 3 etcd members would work"), "{refused}");
}

#[test]
fn what_a_person_goes_against_is_in_the_record() {
    let mut world = ready("ha");
    for name in ["worker-2", "master-2", "etcd-2"] {
        freeze(&mut world, name);
    }
    world.run(40);
    repair(&mut world, "worker-2", RepairAction::PowerCycle, Override::Guards);
    let begun = world.events.iter().find(|event| event.reason == "RepairBegun").unwrap();
    assert!(begun.cause.contains("somebody asked for it, although 3 of"), "{}", begun.cause);
}

#[test]
fn an_incident_ends_though_the_coordinator_was_started_again_meanwhile() {
    let mut world = ready("ha");
    freeze(&mut world, "worker-2");
    until_fenced(&mut world, "worker-2");
    until_powered(&mut world, "worker-2");
    world.run(2);
    assert!(machine(&world, "worker-2").row.incident.is_some());
    world.restart();
    world.run(WARM + 30);
    assert_eq!(machine(&world, "worker-2").row.incident, None);
    assert!(told(&world, "FaultMended"), "{:?}", world.reasons());
}

#[test]
fn the_incident_of_a_machine_that_is_made_anew_ends() {
    let mut world = ready("ha");
    repair(&mut world, "worker-2", RepairAction::Recreate, Override::None);
    world.run(120);
    assert_eq!(machine(&world, "worker-2").row.incident, None, "{:?}", world.reasons());
}

#[test]
fn a_coordinator_that_died_while_it_gave_power_takes_it_from_nobody() {
    let mut world = ready("ha");
    world.boot_ms = 3_000;
    freeze(&mut world, "worker-2");
    until_fenced(&mut world, "worker-2");
    until_powered(&mut world, "worker-2");
    world.restart();
    world.run(WARM + 60);
    assert_eq!(fences(&world), ["demo-worker-2"], "{:?}", world.reasons());
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn a_machine_that_boots_slowly_keeps_its_power_though_nobody_heard_that_it_has_it() {
    let mut world = ready("ha");
    (world.lose_power_answers, world.boot_ms) = (true, 15_000);
    freeze(&mut world, "worker-2");
    until_fenced(&mut world, "worker-2");
    world.run(60);
    assert_eq!(fences(&world), ["demo-worker-2"], "{:?}", world.reasons());
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn what_a_person_has_asked_for_outlives_the_coordinator() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    repair(&mut world, "worker-2", RepairAction::PowerCycle, Override::None);
    world.run(4);
    world.restart();
    world.fences.clear();
    world.run(10);
    for over in [Override::Guards, Override::Quorum { typed: "demo".to_owned() }] {
        let refused = refusal(&world, "worker-1", RepairAction::PowerCycle, over).to_string();
        assert!(refused.contains("the coordinator has just started"), "{refused}");
    }
    world.refuse_fence = None;
    world.run(WARM + 60);
    assert!(!told(&world, "RepairCalledOff"), "{:?}", world.reasons());
    assert_eq!(fences(&world), ["demo-worker-2"]);
}

#[test]
fn a_new_machine_that_never_speaks_is_found_and_tried_again() {
    let mut world = ready("ha");
    world.stillborn.insert(id("worker-4"));
    world.scale("demo", "worker", 4);
    world.run(300);
    assert!(matches!(machine(&world, "worker-4").row.phase, MachinePhase::Booting { .. }));
    assert_eq!(fences(&world), [] as [&str; 0]);
    world.run(150);
    assert!(told(&world, "FaultFound"), "{:?}", world.reasons());
    assert_eq!(fences(&world), ["demo-worker-4"]);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn a_new_machine_that_is_gone_before_it_spoke_is_made_once_more() {
    let mut world = ready("ha");
    world.stillborn.insert(id("worker-4"));
    world.scale("demo", "worker", 4);
    world.run(20);
    world.machines.remove(&id("worker-4"));
    world.run(100);
    assert_eq!(world.events.iter().filter(|event| event.reason == "MachineOff").count(), 1);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn an_answer_that_comes_after_the_machine_has_spoken_says_nothing() {
    let mut world = ready("ha");
    (world.lose_answers, world.answers_late) = (1, true);
    world.scale("demo", "worker", 4);
    world.run(6);
    world.answers_late = false;
    for _ in 0..20 {
        world.step();
        let phase = world.core.machine(&id("worker-4")).map(|machine| machine.row.phase.clone());
        assert!(!matches!(phase, Some(MachinePhase::Retrying { .. })), "{:?}", world.reasons());
    }
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn an_agent_that_is_down_on_a_node_that_works_is_left_to_a_person() {
    let mut world = ready("ha");
    freeze(&mut world, "worker-2");
    world.cut_off.insert(id("worker-2"));
    world.refused.insert(id("worker-2"));
    world.run(1_200);
    assert_eq!(verdict(&world, "worker-2"), Verdict::AgentDown);
    assert_eq!(fences(&world), [] as [&str; 0], "{:?}", world.reasons());
    assert!(told(&world, "RepairHeld"), "{:?}", world.reasons());
    // Its kubelet falls silent as well.
    world.cut_off.remove(&id("worker-2"));
    world.run(300);
    assert_eq!(fences(&world), ["demo-worker-2"], "{:?}", waits(&world));
}

#[test]
fn a_worker_that_kubernetes_has_lost_with_its_agent_waits_a_minute_and_others_five() {
    let mut world = ready("ha");
    for (name, earliest, latest) in [("worker-2", 100, 180), ("etcd-1", 560, 660)] {
        freeze(&mut world, name);
        world.agentless.insert(id(name));
        world.run(60);
        assert_eq!(verdict(&world, name), Verdict::AgentDown, "{name} {:?}", machine(&world, name).evidence);
        let due = world.core.observed_machine(machine(&world, name), world.now()).care.due.unwrap();
        assert_eq!(due.action, RepairAction::PowerCycle);
        let request = PauseRequest::new(PauseScope::Fleet, "somebody");
        let effects = world.core.pause_repair(world.now(), &request).unwrap();
        world.carry_out(effects);
        let paused = world.core.observed_machine(machine(&world, name), world.now());
        assert_eq!(paused.care.due, None, "what is paused is not due");
        let effects = world.core.resume_repair(world.now(), &request).unwrap();
        world.carry_out(effects);
        let in_steps = due.at.since(world.now().wall).as_millis() / 500;
        assert!((earliest - 60..latest - 60).contains(&in_steps), "{name}: due in {in_steps} steps");
        world.run(u32::try_from(in_steps).unwrap() - 2);
        assert!(!world.fences.contains(&id(name)), "{:?}", waits(&world));
        thaw(&mut world, name);
        world.agentless.clear();
        world.run(120);
        assert_eq!(verdict(&world, name), Verdict::Well);
    }
    freeze(&mut world, "worker-2");
    world.agentless.insert(id("worker-2"));
    world.run(190);
    assert_eq!(fences(&world), ["demo-worker-2"], "{:?}", waits(&world));
}

#[test]
fn a_machine_that_gets_no_power_is_made_anew_around_its_disk() {
    let mut world = ready("ha");
    let text = "its host is broken".to_owned();
    world.refuse_power = Some(ProviderFailure { remedy: Remedy::Retry, text });
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(300);
    assert!(!powered(&world, "worker-2"));
    assert_eq!(acts(&world, "worker-2"), [RepairAction::PowerOn], "asked for in vain it is one time");
    let why = "switched off, and the provider says: its host is broken";
    assert_eq!(waits(&world), [why]);
    world.run(160);
    assert_eq!(acts(&world, "worker-2"), [RepairAction::PowerOn, RepairAction::Rebuild]);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn a_machine_that_cannot_be_made_anew_around_its_disk_is_switched_on_as_it_is() {
    let mut world = ready("ha");
    let failure = ProviderFailure { remedy: Remedy::Retry, text: "its host is broken".to_owned() };
    (world.refuse_power, world.refuse_rebuild) = (Some(failure.clone()), Some(failure));
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(500);
    assert!(told(&world, "RepairGivenUp"), "{:?}", world.reasons());
    assert!(fences(&world).len() <= 5, "{:?}", fences(&world));
    world.refuse_power = None;
    world.run(100);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn a_person_has_a_machine_made_anew_that_gets_no_power() {
    let mut world = ready("ha");
    let failure = ProviderFailure { remedy: Remedy::Retry, text: "its host is broken".to_owned() };
    world.refuse_power = Some(failure);
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(60);
    let before = incarnation(&world, "worker-2");
    repair(&mut world, "worker-2", RepairAction::Recreate, Override::None);
    world.run(60);
    assert!(incarnation(&world, "worker-2") > before, "{:?}", waits(&world));
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn a_member_that_cannot_be_made_anew_gets_its_power_back_though_etcd_is_silent() {
    let mut world = ready("ha");
    world.etcd_silent = true;
    refuse_fences(&mut world);
    repair(&mut world, "etcd-1", RepairAction::Recreate, Override::None);
    // A new coordinator does not know the members.
    world.restart();
    world.refuse_fence = None;
    world.fences.clear();
    until_fenced(&mut world, "etcd-1");
    world.run(300);
    assert!(!powered(&world, "etcd-1"), "{:?}", waits(&world));
    world.run(160);
    assert!(powered(&world, "etcd-1"), "{:?}", waits(&world));
    // It was not made anew, which may be done twice an hour (seed 8978).
    assert_eq!(acts(&world, "etcd-1"), [RepairAction::PowerOn]);
    world.etcd_silent = false;
    world.run(200);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

/// Its successor is planned and not made yet: what is planned cannot be taken back.
#[test]
fn a_machine_that_comes_back_before_its_successor_is_made_is_refused() {
    let mut world = ready("ha");
    let before = incarnation(&world, "worker-2");
    world.evacuates_slowly = true;
    repair(&mut world, "worker-2", RepairAction::Recreate, Override::None);
    until_fenced(&mut world, "worker-2");
    world.step();
    let planned = |world: &World| {
        world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint.machines[&id("worker-2")]
            .incarnation
    };
    assert!(planned(&world) > before && incarnation(&world, "worker-2") == before);
    let hello = hello(BootId(77), None);
    world.input(Input::Opened {
        session: SessionId(9_999),
        machine: id("worker-2"),
        incarnation: before,
        hello,
    });
    let refused = world.sent.iter().any(|message| match message {
        ToAgent::Refused(refusal) => refusal.code == RefusalCode::OldIncarnation,
        _ => false,
    });
    assert!(refused && machine(&world, "worker-2").session.is_none());
    world.evacuate_at_last();
    world.run(120);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

/// Its list leaves out machines that are heard, so that it says nothing of one that is not.
#[test]
fn a_list_that_leaves_out_who_speaks_makes_nobody_missing() {
    let mut world = ready("ha");
    world.unlisted.extend(["worker-1", "worker-2"].map(id));
    world.peers_answer = false;
    freeze(&mut world, "worker-2");
    world.run(30);
    assert_ne!(verdict(&world, "worker-2"), Verdict::Missing);
    assert_eq!(acts(&world, "worker-2"), []);
}

#[test]
fn a_machine_that_its_peers_reach_is_not_missing_whatever_a_list_says() {
    let mut world = ready("ha");
    world.unlisted.insert(id("worker-2"));
    freeze(&mut world, "worker-2");
    world.cut_off.insert(id("worker-2"));
    world.run(60);
    assert_eq!(verdict(&world, "worker-2"), Verdict::CutOff);
    assert_eq!(acts(&world, "worker-2"), []);
}

/// An old or damaged copy of the database.
#[test]
fn machines_of_a_cluster_of_which_nothing_is_known_are_left_alone() {
    let mut world = ready("ha");
    let before = world.machines.len();
    world.disk.saved.material.clear();
    world.restart();
    world.run(100);
    assert_eq!(world.machines.len(), before);
    assert_eq!(world.fences, []);
}

/// Nobody waits for what the last repair brought: it is gone.
#[test]
fn a_machine_that_is_gone_again_is_made_anew_at_once() {
    let mut world = ready("ha");
    for _ in 0..2 {
        world.machines.remove(&id("worker-2"));
        world.run(40);
        assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
    }
    world.machines.remove(&id("worker-2"));
    world.run(60);
    assert!(waits(&world).iter().any(|wait| wait.contains("2 times")), "{:?}", waits(&world));
}

/// An old list is no reason to give up a disk, and reason enough to give power back.
#[test]
fn a_member_that_the_quorum_came_to_need_gets_its_power_back_after_a_minute() {
    let mut world = ready("ha");
    repair(&mut world, "etcd-1", RepairAction::Recreate, Override::None);
    until_fenced(&mut world, "etcd-1");
    world.etcd_silent = true;
    world.machines.get_mut(&id("etcd-2")).unwrap().lose_disk();
    freeze(&mut world, "etcd-2");
    world.run(160);
    assert!(powered(&world, "etcd-1"), "{:?}", waits(&world));
}

/// What etcd said before may no longer hold: another member may have died a moment ago.
#[test]
fn the_disk_of_a_member_is_given_up_only_when_etcd_has_answered_without_it() {
    let mut world = ready("ha");
    let before = incarnation(&world, "etcd-1");
    repair(&mut world, "etcd-1", RepairAction::Recreate, Override::None);
    world.etcd_silent = true;
    world.run(30);
    assert_eq!(fences(&world), ["demo-etcd-1"]);
    assert_eq!(incarnation(&world, "etcd-1"), before);
    world.etcd_silent = false;
    world.run(120);
    assert!(incarnation(&world, "etcd-1") > before);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn nobody_else_of_the_control_plane_is_repaired_while_one_takes_another_config() {
    let mut world = ready("ha");
    world.says.insert(id("master-1"), NodeState::Applying);
    freeze(&mut world, "master-2");
    world.run(60);
    assert_eq!(fences(&world), [] as [&str; 0]);
    assert!(
        waits(&world).iter().any(|wait| wait.contains("demo-master-1 is being worked on")),
        "{:?}",
        waits(&world)
    );
    // One that does not get there keeps nobody from being mended.
    world.run(240);
    assert_eq!(fences(&world), ["demo-master-2"]);
}

/// It works with the old config, and taking the new one is a restart of its programs like any other.
#[test]
fn a_master_whose_config_was_lost_waits_for_its_turn_again() {
    let mut world = ready("ha");
    world.scale("demo", "etcd", 5);
    let sent = |world: &World| machine(world, "master-1").row.sent.clone().unwrap().services;
    let mut future = world.clone();
    future.run(300);
    let last = sent(&future);
    // The config that is lost is the one after which nothing changes any more.
    for _ in 0..300 {
        world.lose_configs.insert(id("master-1"));
        world.step();
        if world.lose_configs.is_empty() && sent(&world) == last {
            break;
        }
        thaw(&mut world, "master-1");
    }
    assert_eq!(sent(&world), last);
    let before = generation(&world, "master-1");
    world.says.insert(id("master-2"), NodeState::Applying);
    world.run(2);
    thaw(&mut world, "master-1");
    world.run(40);
    assert_eq!(generation(&world, "master-1"), before, "{:?}", waits(&world));
    world.says.clear();
    world.run(300);
    assert!(generation(&world, "master-1") > before);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn what_programs_cost_is_counted_by_class() {
    let mut world = ready("ha");
    world.says.insert(id("worker-2"), NodeState::Degraded);
    world.run(4);
    world.says.insert(id("worker-2"), NodeState::Failed);
    world.run(4);
    assert_eq!(verdict(&world, "worker-2"), Verdict::GivenUp);
    let process = world.core.metrics().detections[&FaultClass::Process];
    assert_eq!(process.count, 1);
    assert!(process.sum_ms >= 2_000, "from the first word of it, not from the last heartbeat: {process:?}");
    freeze(&mut world, "worker-1");
    world.run(60);
    assert_eq!(world.core.metrics().detections[&FaultClass::Os].count, 1);
    assert_eq!(world.core.metrics().mended[&FaultClass::Os].count, 1);
}

/// An agent says again what it has had no answer to, also to a new coordinator.
#[test]
fn what_agents_mend_is_told_and_counted_once() {
    let mut world = ready("ha");
    let kinds =
        [EventKind::Repaired, EventKind::RepairFailed, EventKind::Repaired, EventKind::RepairWithheld];
    let event = |(sequence, kind)| AgentEvent {
        sequence,
        at: WallTime(0),
        kind,
        subject: "etcd.service".to_owned(),
        cause: "it does not answer".to_owned(),
        outcome: "begun anew".to_owned(),
    };
    let events: Vec<AgentEvent> = (1..).zip(kinds).map(event).collect();
    let say = |world: &mut World, through: usize| {
        let session = world.machines[&id("etcd-1")].session.unwrap();
        let message = ToCoordinator::Events(events[..through].to_vec());
        let effects = world.core.handle(world.now(), Input::Message { session, message });
        let stored = ToAgent::EventsStored { through: events[through - 1].sequence };
        let answer = |effect: &Effect| matches!(effect, Effect::Send { message, .. } if **message == stored);
        assert!(effects.iter().any(answer), "{effects:?}");
        world.carry_out(effects);
    };
    say(&mut world, 3);
    say(&mut world, 4);
    let counts = [(AgentRepair::Made, 2), (AgentRepair::Failed, 1), (AgentRepair::Withheld, 1)];
    assert_eq!(world.core.metrics().agent_repairs, counts.into());
    world.restart();
    world.run(4);
    say(&mut world, 4);
    assert_eq!(world.core.metrics().agent_repairs, [].into());
    let of_agent = |reason: &&str| ["Repaired", "RepairFailed", "RepairWithheld"].contains(reason);
    assert_eq!(world.reasons().into_iter().filter(of_agent).count(), 4);
}

#[test]
fn a_machine_is_made_anew_twice_an_hour_and_then_only_by_a_person() {
    let mut world = ready("ha");
    for _ in 0..2 {
        world.machines.remove(&id("worker-2"));
        world.run(200);
        assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
    }
    world.machines.remove(&id("worker-2"));
    world.run(200);
    let told = waits(&world);
    assert!(
        told.iter().any(|wait| wait.contains("it was repaired 2 times in an hour, to no avail")),
        "{told:?}"
    );
    assert!(!world.machines.contains_key(&id("worker-2")));
    // Until the first one is an hour old.
    world.run(7_000);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn who_mends_a_machine_that_is_degraded_is_told_as_it_is() {
    let kubelet = ("kubelet.service", UnitState::Healthy);
    let fails = UnitState::Unhealthy { why: "PLEG is not healthy".to_owned() };
    let waits = UnitState::Waiting { on: "node-ready".to_owned() };
    let asks = UnitState::Waiting { on: "its Node: container runtime is down".to_owned() };
    let starts = ("kubelet.service", UnitState::Starting);
    for (units, expected) in [
        (
            [kubelet.clone(), ("node-ready", fails.clone()), ("dns-answers", waits)],
            "node-ready fails: PLEG is not healthy",
        ),
        (
            [kubelet.clone(), kubelet.clone(), ("node-ready", asks)],
            "node-ready waits for its Node: container runtime is down",
        ),
        ([starts, ("node-ready", fails), kubelet.clone()], "its agent has been mending it"),
        ([kubelet.clone(), kubelet.clone(), kubelet], "its agent cannot note what it does"),
    ] {
        let mut world = ready("ha");
        world.says.insert(id("worker-1"), NodeState::Degraded);
        world.step();
        world.tell_units(&id("worker-1"), units);
        world.run(200);
        let found = world.events.iter().find(|event| event.reason == "FaultFound").unwrap();
        assert!(found.cause.contains(expected), "{found:?}");
    }
}

#[test]
fn a_lost_member_is_made_anew_when_the_one_that_joins_votes_and_no_override_goes_before_that() {
    let mut world = ready("ha");
    let pause = PauseRequest::new(PauseScope::Fleet, "the night shift");
    world.core.pause_repair(world.now(), &pause).unwrap();
    world.scale("demo", "etcd", 5);
    let demo = "demo".parse().unwrap();
    while !world.members[&demo].iter().any(|member| member.learner) {
        world.step();
    }
    world.machines.remove(&id("etcd-4"));
    world.machines.remove(&id("etcd-2"));
    world.run(10);
    assert_eq!((verdict(&world, "etcd-2"), verdict(&world, "etcd-4")), (Verdict::Missing, Verdict::Missing));
    let refused = refusal(&world, "etcd-2", RepairAction::Recreate, Override::Guards).to_string();
    assert!(refused.contains("demo-etcd-4"), "{refused}");
    repair(&mut world, "etcd-4", RepairAction::Recreate, Override::Guards);
    world.run(60);
    repair(&mut world, "etcd-2", RepairAction::Recreate, Override::Guards);
    world.run(100);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
    assert!(!told(&world, "RepairCalledOff"), "{:?}", world.reasons());
}

#[test]
fn a_member_that_was_without_power_for_long_waits_for_its_plan_from_when_it_is_asked_for() {
    let mut world = ready("ha");
    let pause = PauseRequest::new(PauseScope::Fleet, "the night shift");
    world.core.pause_repair(world.now(), &pause).unwrap();
    world.machines.remove(&id("etcd-2"));
    world.run(10);
    world.etcd_silent = true;
    repair(&mut world, "etcd-2", RepairAction::Recreate, Override::Guards);
    world.run(400);
    assert!(told(&world, "RepairCalledOff"), "{:?}", world.reasons());
    assert!(machine(&world, "etcd-2").row.fenced.is_some());
    world.events.clear();
    repair(&mut world, "etcd-2", RepairAction::Recreate, Override::Guards);
    world.run(20);
    assert!(!told(&world, "RepairCalledOff"), "{:?}", world.reasons());
    world.etcd_silent = false;
    world.run(100);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}
