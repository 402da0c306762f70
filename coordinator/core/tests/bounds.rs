//! What bounds repair: how often, how much at once, and on what evidence.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::demo::*;
use common::{World, hello, named, small};
use keelson_coordinator_core::{
    ClusterState, CoordinatorCore, Effect, Input, Override, PROVIDER_CALLS_MAX, PauseRequest, PauseScope,
    ProviderCall, SessionId,
};
use keelson_model::{ConditionStatus, MachinePhase, RepairAction, Severity, Verdict};
use keelson_protocol::{BootId, Incarnation, MachineId};

fn told(world: &World, reason: &str) -> bool {
    world.events.iter().any(|event| event.reason == reason)
}

fn pause(world: &mut World) -> PauseRequest {
    let request = PauseRequest::new(PauseScope::Cluster("demo".parse().unwrap()), "somebody");
    let effects = world.core.pause_repair(world.now(), &request).unwrap();
    world.carry_out(effects);
    request
}

/// Steps until `name` has its power.
fn until_power(world: &mut World, name: &str) {
    for _ in 0..400 {
        if powered(world, name) {
            return;
        }
        world.step();
    }
    panic!("{name}: {:?}", waits(world));
}

/// Takes the power of machines whenever they have some, and counts how often the first one was given its own.
fn lose_power_for(world: &mut World, names: &[&str], steps: u32) -> u32 {
    let mut given = 0;
    for _ in 0..steps {
        for (number, name) in names.iter().enumerate() {
            if let Some(fake) = world.machines.get_mut(&id(name)).filter(|fake| fake.on) {
                fake.power_off();
                given += u32::from(number == 0);
            }
        }
        world.step();
    }
    given - 1
}

#[test]
fn a_machine_that_loses_its_power_again_and_again_gets_a_shell_and_then_a_person() {
    let mut world = ready("ha");
    let before = incarnation(&world, "worker-2");
    let given = lose_power_for(&mut world, &["worker-2"], 3_400);
    let count = |action| acts(&world, "worker-2").iter().filter(|done| **done == action).count();
    assert_eq!((count(RepairAction::PowerOn), count(RepairAction::Rebuild)), (6, 1));
    assert_eq!(incarnation(&world, "worker-2"), before, "its disk stays");
    assert!(given <= 7, "it was given its power {given} times");
    let alarmed =
        world.events.iter().any(|event| event.reason == "RepairHeld" && event.severity == Severity::Alarm);
    assert!(alarmed, "{:?}", world.reasons());
    world.run(7_400);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "the next hour has power for it again");
}

#[test]
fn a_member_that_the_quorum_lacks_is_switched_on_however_often_it_was() {
    let mut world = ready("ha");
    let given = lose_power_for(&mut world, &["etcd-1", "etcd-2"], 1_200);
    assert!(given > 20, "{given}");
    let rebuilds = world.events.iter().filter(|event| event.reason == "RepairBegun");
    assert!(rebuilds.count() <= 2, "each gets one other shell an hour");
    world.run(120);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn pods_do_not_wait_for_the_power_of_a_machine_that_lost_it_again() {
    let mut world = ready("ha");
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    until_power(&mut world, "worker-2");
    world.run(10);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    world.events.clear();
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(20);
    assert!(told(&world, "PodsGivenUp") && !powered(&world, "worker-2"), "{:?}", world.reasons());
    let why = "what the last repair brought is waited for";
    assert!(waits(&world)[0].contains(why), "{:?}", waits(&world));
    world.run(120);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn a_machine_that_is_switched_off_during_a_pause_stays_so() {
    let mut world = ready("ha");
    let request = pause(&mut world);
    for name in ["worker-2", "worker-3"] {
        world.machines.get_mut(&id(name)).unwrap().power_off();
    }
    world.run(600);
    assert!(!powered(&world, "worker-2") && world.fences.is_empty() && !told(&world, "PodsGivenUp"));
    assert!(waits(&world)[0].contains("is paused"), "{:?}", waits(&world));
    world.restart();
    world.run(200);
    assert!(!powered(&world, "worker-2") && world.fences.is_empty());
    repair(&mut world, "worker-3", RepairAction::PowerOn, Override::None);
    until_power(&mut world, "worker-3");
    assert!(!powered(&world, "worker-2"), "a person asked for the other one");
    let effects = world.core.resume_repair(world.now(), &request).unwrap();
    world.carry_out(effects);
    world.run(60);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn power_cycles_that_help_for_moments_only_are_followed_by_a_new_shell() {
    let mut world = ready("ha");
    for _ in 0..4 {
        world.fences.clear();
        freeze(&mut world, "worker-2");
        while world.fences.is_empty() {
            world.step();
        }
        thaw(&mut world, "worker-2");
        world.run(60);
        assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
        world.run(1_000);
    }
    let cycle = RepairAction::PowerCycle;
    assert_eq!(acts(&world, "worker-2"), [cycle, cycle, cycle, RepairAction::Rebuild]);
}

#[test]
fn what_breaks_in_one_zone_holds_its_repairs_though_the_cluster_could_stand_more() {
    let mut world = ready("ha");
    for name in ["etcd-2", "worker-2"] {
        freeze(&mut world, name);
    }
    world.run(120);
    assert!(world.fences.is_empty(), "{:?}", world.fences);
    let why = "2 of 3 machines of the zone are broken at once, more than 1";
    assert!(waits(&world).iter().any(|wait| wait.contains(why)), "{:?}", waits(&world));
}

#[test]
fn what_breaks_in_each_cluster_of_a_fleet_holds_all_repairs() {
    let names = ["one", "two", "six"];
    let mut world = World::new();
    for name in names {
        let mut spec = named(name, "small");
        spec.workers = Some(1);
        world.create(&spec);
    }
    world.run(300);
    let machine = |name: &str, pool: &str| MachineId::new(format!("{name}-{pool}-1")).unwrap();
    // One of each cluster and of each zone.
    let zone = |world: &World, id: &MachineId| {
        let blueprints = world.core.clusters().map(|cluster| &cluster.row.blueprint.machines);
        blueprints.filter_map(|machines| machines.get(id)).next().unwrap().zone.clone()
    };
    let mut broken: Vec<MachineId> = Vec::new();
    for name in names {
        let zones: Vec<String> = broken.iter().map(|id| zone(&world, id)).collect();
        let pools = ["worker", "master", "etcd"].map(|pool| machine(name, pool));
        broken.extend(pools.into_iter().find(|id| !zones.contains(&zone(&world, id))));
    }
    assert_eq!(broken.len(), 3, "{broken:?}");
    world.fences.clear();
    for id in &broken {
        world.machines.get_mut(id).unwrap().linked = false;
    }
    world.run(60);
    assert!(world.fences.is_empty(), "{:?}", world.fences);
    let waits: Vec<String> = names
        .iter()
        .flat_map(|name| world.core.waiting(&name.parse().unwrap(), world.now()))
        .map(|wait| wait.to_string())
        .collect();
    let why = "3 of 9 machines of the fleet are broken at once, more than 2";
    assert!(waits.iter().any(|wait| wait.contains(why)), "{waits:?}");
}

#[test]
fn machines_that_were_never_made_leave_no_more_room_for_losses() {
    let mut world = ready("ha");
    refuse_creates(&mut world);
    world.scale("demo", "worker", 40);
    world.run(60);
    for name in ["worker-1", "worker-2", "master-3"] {
        freeze(&mut world, name);
    }
    world.run(80);
    assert!(world.fences.is_empty(), "{:?}", world.fences);
    let why = "3 of 9 machines of the cluster are broken at once, more than 2";
    assert!(waits(&world).iter().any(|wait| wait.contains(why)), "{:?}", waits(&world));
    // Neither do they let more of those that work be repaired side by side.
    world.boot_ms = 30_000;
    thaw(&mut world, "master-3");
    world.run(50);
    assert_eq!(world.fences.len(), 1, "{:?}", world.fences);
}

#[test]
fn a_machine_whose_power_cannot_be_taken_does_not_hold_up_the_others() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    freeze(&mut world, "worker-2");
    world.run(100);
    assert_eq!(acts(&world, "worker-2"), [RepairAction::PowerCycle]);
    freeze(&mut world, "worker-3");
    world.run(40);
    assert_eq!(acts(&world, "worker-3"), []);
    assert!(waits(&world).iter().any(|wait| wait.contains("demo-worker-2 is being worked on")));
    world.run(300);
    assert_eq!(acts(&world, "worker-3"), [RepairAction::PowerCycle], "{:?}", waits(&world));
    world.refuse_fence = None;
    world.run(300);
    for name in ["worker-2", "worker-3"] {
        thaw(&mut world, name);
    }
    world.run(400);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn what_a_person_asked_for_is_not_done_long_after() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    repair(&mut world, "worker-2", RepairAction::PowerCycle, Override::None);
    world.run(1_300);
    let off = world.events.iter().find(|event| event.reason == "RepairCalledOff");
    let off = off.unwrap_or_else(|| panic!("{:?}", world.reasons()));
    assert_eq!(off.cause, "its power could not be taken away within 10 minutes");
    world.fences.clear();
    world.refuse_fence = None;
    world.run(300);
    assert!(world.fences.is_empty() && world.state("demo") == Some(ClusterState::Ready));
}

#[test]
fn a_repair_that_was_begun_on_silence_is_not_done_when_only_the_agent_is_down() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    freeze(&mut world, "worker-2");
    world.run(40);
    assert_eq!(acts(&world, "worker-2"), [RepairAction::PowerCycle]);
    // Its kernel answers again, and its kubelet renews its lease.
    world.cut_off.insert(id("worker-2"));
    world.refused.insert(id("worker-2"));
    world.run(30);
    assert_eq!(verdict(&world, "worker-2"), Verdict::AgentDown);
    assert!(told(&world, "RepairCalledOff"), "{:?}", world.reasons());
    world.fences.clear();
    world.refuse_fence = None;
    world.run(100);
    assert!(world.fences.is_empty(), "{:?}", waits(&world));
}

#[test]
fn a_leaving_machine_that_hangs_goes_as_soon_as_its_power_can_be_taken() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    world.budgets.insert("demo-worker-3".to_owned());
    world.scale("demo", "worker", 2);
    world.run(20);
    freeze(&mut world, "worker-3");
    world.run(400);
    assert_eq!(acts(&world, "worker-3"), [], "what was not done does not count");
    assert!(
        !told(&world, "RepairHeld") || world.events.iter().all(|event| !event.cause.contains("times in"))
    );
    world.refuse_fence = None;
    world.run(80);
    assert_eq!(pool(&world, "worker").len(), 2, "{:?}", waits(&world));
}

#[test]
fn a_session_that_was_on_its_way_when_the_power_went_is_no_life() {
    let mut world = ready("ha");
    freeze(&mut world, "worker-2");
    world.evacuates_slowly = true;
    let row = |world: &World| machine(world, "worker-2").row.clone();
    while row(&world).fenced.is_none() {
        world.step();
    }
    let incarnation = row(&world).incarnation;
    let opened = Input::Opened {
        session: SessionId(9_999),
        machine: id("worker-2"),
        incarnation,
        hello: hello(BootId(77), None),
    };
    let effects = world.core.handle(world.now(), opened);
    assert!(matches!(row(&world).phase, MachinePhase::Off { .. }), "{:?}", row(&world).phase);
    assert!(row(&world).fenced.is_some());
    world.carry_out(effects);
    world.evacuate_at_last();
    world.run(60);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn a_wall_clock_that_was_set_back_hides_no_silence() {
    let mut world = ready("ha");
    // It was given its power at a time that is to come again.
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    world.run(60);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
    world.fences.clear();
    world.wall_jump_ms = -3_600_000;
    freeze(&mut world, "worker-2");
    world.restart();
    world.run(250);
    assert_eq!(world.fences, [id("worker-2")], "{:?}", waits(&world));
}

#[test]
fn a_machine_that_boots_keeps_its_time_for_it_when_the_coordinator_is_started_again() {
    let mut world = ready("ha");
    world.boot_ms = 50_000;
    world.machines.get_mut(&id("worker-2")).unwrap().power_off();
    until_power(&mut world, "worker-2");
    world.run(4);
    world.restart();
    world.run(150);
    assert_eq!(acts(&world, "worker-2"), [RepairAction::PowerOn]);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn a_machine_that_is_newer_than_the_record_is_left_to_a_person_and_its_number_is_not_given_again() {
    let mut world = ready("ha");
    for name in ["worker-2", "etcd-2"] {
        world.machines.get_mut(&id(name)).unwrap().incarnation = Incarnation(70);
    }
    world.restart();
    world.run(600);
    let why = "newer than the record: was an old copy of the database restored?";
    assert!(waits(&world).iter().any(|wait| wait.contains(why)), "{:?}", waits(&world));
    assert!(world.fences.is_empty() && world.machines.contains_key(&id("worker-2")));
    assert!(incarnation(&world, "worker-2") < Incarnation(70));
    // One list that leaves it out changes nothing.
    world.unlisted.insert(id("worker-2"));
    world.run(100);
    let why = refusal(&world, "worker-2", RepairAction::Recreate, Override::Guards).to_string();
    assert!(why.contains("was an old copy of the database restored?"), "{why}");
    assert!(incarnation(&world, "worker-2") < Incarnation(70));
    let typed = Override::Quorum { typed: "demo".to_owned() };
    repair(&mut world, "worker-2", RepairAction::Recreate, typed);
    world.run(100);
    assert_eq!(incarnation(&world, "worker-2"), Incarnation(71));
}

#[test]
fn a_machine_to_be_made_anew_gets_its_power_back_when_its_cluster_cannot_be_planned() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    repair(&mut world, "worker-2", RepairAction::Recreate, Override::None);
    world.settings.releases.releases.clear();
    world.restart();
    world.refuse_fence = None;
    world.run(160);
    assert!(!powered(&world, "worker-2"), "{:?}", waits(&world));
    world.run(500);
    assert!(powered(&world, "worker-2"), "{:?}", waits(&world));
    assert!(told(&world, "RepairCalledOff"), "{:?}", world.reasons());
}

#[test]
fn a_machine_that_is_not_made_yet_has_no_power_to_take() {
    let mut world = ready("ha");
    refuse_creates(&mut world);
    world.scale("demo", "worker", 4);
    world.run(20);
    let why = refusal(&world, "worker-4", RepairAction::PowerCycle, Override::None).to_string();
    assert!(why.contains("it is not made yet"), "{why}");
}

#[test]
fn nobody_at_the_endpoint_is_a_fault_of_it() {
    let mut world = ready("ha");
    world.endpoint_silent = true;
    world.run(200);
    assert_eq!(world.state("demo"), Some(ClusterState::Degraded));
    let conditions = &world.core.cluster(&"demo".parse().unwrap()).unwrap().row.conditions;
    let bad: Vec<String> = conditions
        .iter()
        .filter(|condition| condition.status == ConditionStatus::Bad)
        .map(|condition| format!("{}: {}", condition.kind, condition.message))
        .collect();
    let why = "the API server's outside address: the API server cannot be reached: connection refused";
    assert_eq!(bad, [format!("Ready: {why}"), format!("Endpoint: {why}")]);
    assert!(world.fences.is_empty());
    world.endpoint_silent = false;
    world.run(20);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready));
}

#[test]
fn a_provider_that_gives_no_list_is_told_once() {
    let mut world = ready("ha");
    world.refuse_list = Some(keelson_coordinator_core::ProviderFailure {
        remedy: keelson_coordinator_core::Remedy::Retry,
        text: "machine.json holds no valid state".to_owned(),
    });
    // A machine that is silent has it asked each second.
    freeze(&mut world, "worker-2");
    world.run(600);
    assert!(acts(&world, "worker-2").is_empty(), "nobody knows whether it has power");
    let told = |reason: &str| world.events.iter().filter(|event| event.reason == reason).count();
    assert_eq!((told("ProviderListFailed"), told("ProviderListBack")), (1, 0));
    let alarm = world.events.iter().find(|event| event.reason == "ProviderListFailed").unwrap();
    assert_eq!(
        (alarm.severity, alarm.cause.as_str()),
        (Severity::Alarm, "machine.json holds no valid state")
    );
    world.refuse_list = None;
    world.run(400);
    assert!(world.events.iter().any(|event| event.reason == "ProviderListBack"));
    assert_eq!(acts(&world, "worker-2"), [RepairAction::PowerCycle]);
}

#[test]
fn a_machine_without_power_that_cannot_be_fenced_for_another_shell_is_switched_on_as_it_is() {
    let mut world = ready("ha");
    refuse_fences(&mut world);
    lose_power_for(&mut world, &["worker-2"], 900);
    assert!(told(&world, "RepairBegun"), "{:?}", acts(&world, "worker-2"));
    // It holds up nobody else for long.
    freeze(&mut world, "worker-3");
    world.run(400);
    assert_eq!(acts(&world, "worker-3"), [RepairAction::PowerCycle], "{:?}", waits(&world));
    world.run(1_300);
    assert!(told(&world, "RepairCalledOff"), "{:?}", world.reasons());
    world.refuse_fence = None;
    thaw(&mut world, "worker-3");
    world.run(2_000);
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
}

#[test]
fn pods_move_as_soon_as_the_api_server_answers_while_the_power_is_held() {
    for restarts in [false, true] {
        let mut world = ready("ha");
        lose_power_for(&mut world, &["worker-2"], 20);
        until_power(&mut world, "worker-2");
        world.run(60);
        world.machines.get_mut(&id("worker-2")).unwrap().power_off();
        world.endpoint_silent = true;
        world.events.clear();
        world.run(30);
        assert!(!powered(&world, "worker-2") && !told(&world, "PodsGivenUp"));
        world.endpoint_silent = false;
        if restarts {
            world.restart();
            world.run(75);
        }
        world.run(10);
        assert!(told(&world, "PodsGivenUp"), "{restarts}: {:?}", world.reasons());
    }
}

#[test]
fn a_clock_that_is_set_back_makes_no_repair_of_long_ago_one_of_this_fault() {
    let mut world = ready("ha");
    for action in [RepairAction::PowerCycle, RepairAction::Rebuild] {
        repair(&mut world, "worker-2", action, Override::None);
        world.run(300);
    }
    assert_eq!(world.state("demo"), Some(ClusterState::Ready), "{:?}", waits(&world));
    world.run(2_000);
    world.fences.clear();
    freeze(&mut world, "worker-2");
    world.wall_jump_ms = -3_600_000;
    while world.fences.is_empty() {
        world.step();
    }
    assert_eq!(acts(&world, "worker-2").last(), Some(&RepairAction::PowerCycle));
}

#[test]
fn addresses_that_the_infrastructure_does_not_give_leave_room_for_power_fences_and_its_list() {
    let mut world = World::new();
    for number in 0..PROVIDER_CALLS_MAX {
        world.create(&small(&format!("c{number}")));
    }
    world.run(60);
    let mut core = CoordinatorCore::restore(world.settings.clone(), world.disk.saved.clone(), world.now());
    let (mut asked, mut lists) = (0, 0);
    for _ in 0..10 {
        world.ms += 500;
        for effect in core.handle(world.now(), Input::Tick) {
            match effect {
                Effect::Provider { call: ProviderCall::Expose { .. }, .. } => asked += 1,
                Effect::Provider { call: ProviderCall::List, .. } => lists += 1,
                _ => {}
            }
        }
    }
    assert_eq!((asked, lists), (PROVIDER_CALLS_MAX - 3, 1));
}
