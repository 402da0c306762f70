//! Who serves at this moment, and what is not taken away while it does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod common;

use common::demo::*;
use common::{World, named};
use keelson_coordinator_core::{CommandError, Input, MEMBER_BACK_MAX, Override, ProviderFailure, Remedy};
use keelson_model::{Hold, RepairAction, Verdict};
use keelson_protocol::health::{Heartbeat, NodeState, UnitState};
use keelson_protocol::message::ToAgent;

const API: &str = "kube-apiserver.service";
const ETCD: &str = "etcd.service";

fn down() -> UnitState {
    UnitState::Down { why: "no member of etcd answers".to_owned() }
}

/// Says of a master that it is not ready, and of its API server that it is in this state.
fn fell(world: &mut World, master: &str, state: UnitState) {
    world.says.insert(id(master), NodeState::Degraded);
    world.step();
    world.tell_unit(&id(master), API, state);
}

/// Whether a machine has the newest config.
fn is_current(world: &World, name: &str) -> bool {
    let newest = world.core.cluster(&"demo".parse().unwrap()).unwrap().row.blueprint.generation;
    world.machines[&id(name)].generation == Some(newest)
}

#[test]
fn masters_that_serve_and_are_not_ready_do_not_wait_for_each_other() {
    let mut world = ready("ha");
    fell(&mut world, "master-1", UnitState::Healthy);
    fell(&mut world, "master-2", UnitState::Healthy);
    world.scale("demo", "etcd", 5);
    world.run(10);
    assert!(is_current(&world, "master-1") && !is_current(&world, "master-2"), "{:?}", waits(&world));
    assert!(!is_current(&world, "master-3"), "what works waits for what does not");
}

/// Its scheduler fell for a moment, and its API server is all that is left (seed 142).
#[test]
fn the_last_api_server_is_not_begun_anew_because_something_else_fell() {
    let mut world = ready("ha");
    freeze(&mut world, "master-2");
    world.machines.get_mut(&id("master-3")).unwrap().power_off();
    refuse_fences(&mut world);
    world.run(60);
    fell(&mut world, "master-1", UnitState::Healthy);
    world.scale("demo", "etcd", 5);
    for _ in 0..100 {
        world.step();
        assert!(!is_current(&world, "master-1"), "{:?}", waits(&world));
    }
    fell(&mut world, "master-1", down());
    // One of the others was sent its config when it had just fallen silent, and may be beginning anew.
    world.run(2 * 120);
    assert!(is_current(&world, "master-1"), "{:?}", waits(&world));
}

/// How the API server of a machine is to run, by the config that it was sent last.
fn api_command(world: &World, name: &str) -> Vec<String> {
    let config = world.sent.iter().rev().find_map(|sent| match sent {
        ToAgent::Config(config) if config.machine == id(name) => Some(config),
        _ => None,
    });
    config.unwrap().units.iter().find(|unit| unit.name == API).unwrap().command.clone()
}

/// An agent that has just started says of each program that it starts.
#[test]
fn masters_that_may_serve_do_not_wait_for_each_other() {
    let mut world = ready("ha");
    for master in ["master-1", "master-2", "master-3"] {
        fell(&mut world, master, UnitState::Starting);
    }
    world.scale("demo", "etcd", 5);
    world.run(10);
    assert!(is_current(&world, "master-1") && !is_current(&world, "master-2"), "{:?}", waits(&world));
}

/// Its member of etcd works, and says nothing about its API server.
#[test]
fn a_stacked_master_without_an_api_server_comes_before_the_one_that_has_one() {
    let mut world = ready("ha-stacked");
    for (master, api) in [("master-1", UnitState::Healthy), ("master-2", down()), ("master-3", down())] {
        world.says.insert(id(master), NodeState::Degraded);
        world.step();
        world.tell_units(&id(master), [(ETCD, UnitState::Healthy), (API, api)]);
    }
    world.scale("demo", "master", 5);
    for _ in 0..30 {
        world.step();
        assert!(!is_current(&world, "master-1"), "{:?}", waits(&world));
    }
    assert!(is_current(&world, "master-2"), "{:?}", waits(&world));
}

/// A power cycle that a person asks for is refused without an override, and its preview says what it costs.
#[test]
fn the_last_api_server_is_known_by_what_it_serves() {
    let mut world = ready("ha");
    for master in ["master-2", "master-3"] {
        fell(&mut world, master, down());
    }
    fell(&mut world, "master-1", UnitState::Healthy);
    let held = refusal(&world, "master-1", RepairAction::PowerCycle, Override::None);
    assert!(matches!(&held, CommandError::Held { hold, .. } if **hold == Hold::ApiServer), "{held:?}");
    let over = request("master-1", RepairAction::PowerCycle, Override::Guards);
    assert!(world.core.preview_repair(world.now(), &over).unwrap().only_api);
    // Another one serves, whatever else is wrong with it.
    fell(&mut world, "master-2", UnitState::Healthy);
    let held = refusal_or_none(&world, "master-1");
    assert_ne!(held, Some(Hold::ApiServer));
}

fn refusal_or_none(world: &World, name: &str) -> Option<Hold> {
    let asked = request(name, RepairAction::PowerCycle, Override::None);
    match world.core.check_repair(world.now(), &asked) {
        Err(CommandError::Held { hold, .. }) => Some(*hold),
        _ => None,
    }
}

#[test]
fn a_master_that_is_given_up_keeps_its_power_while_it_has_the_last_api_server() {
    let mut world = ready("ha");
    world.scale("demo", "worker", 9);
    world.run(200);
    for master in ["master-2", "master-3"] {
        fell(&mut world, master, down());
    }
    world.says.insert(id("master-1"), NodeState::Failed);
    world.step();
    world.tell_unit(&id("master-1"), API, UnitState::Healthy);
    world.run(240);
    assert_eq!(verdict(&world, "master-1"), Verdict::GivenUp);
    assert_eq!(acts(&world, "master-1"), [], "{:?}", waits(&world));
    let waits = waits(&world);
    assert!(waits.iter().any(|wait| wait.contains("no other master works")), "{waits:?}");
    fell(&mut world, "master-2", UnitState::Healthy);
    world.run(200);
    assert_eq!(acts(&world, "master-1").first(), Some(&RepairAction::PowerCycle));
}

/// Nobody could look at its nodes from here, and its users may have.
#[test]
fn a_cluster_that_was_ready_counts_as_used_although_the_coordinator_never_reached_it() {
    let mut world = World::new();
    world.endpoint_silent = true;
    world.create(&named("demo", "ha"));
    world.run(250);
    let row = &world.core.cluster(&"demo".parse().unwrap()).unwrap().row;
    assert!(row.first_ready.is_some() && row.first_answer.is_none());
    assert!(waits(&world).iter().any(|wait| wait.contains("outside address")), "{:?}", waits(&world));
    world.apply_ms = 4_000;
    world.scale("demo", "etcd", 5);
    let commands = |world: &World| ["master-1", "master-2", "master-3"].map(|name| api_command(world, name));
    let first = commands(&world);
    let mut before = first.clone();
    for _ in 0..400 {
        world.step();
        let now = commands(&world);
        let began = (0..3).filter(|n| now[*n] != before[*n]).count();
        assert!(began <= 1, "{began} masters begin anew together");
        before = now;
    }
    assert!((0..3).all(|n| before[n] != first[n]), "{:?}", waits(&world));
}

#[test]
fn what_a_machine_said_before_it_was_cut_off_is_not_believed_when_it_comes_back() {
    let mut world = ready("ha");
    world.cut_off.insert(id("master-2"));
    world.lose_configs.insert(id("master-2"));
    freeze(&mut world, "master-2");
    world.run(40);
    let before = api_command(&world, "master-1");
    world.scale("demo", "etcd", 5);
    world.run(60);
    assert_eq!(api_command(&world, "master-1"), before, "{:?}", waits(&world));
    world.says.insert(id("master-2"), NodeState::Degraded);
    world.machines.get_mut(&id("master-2")).unwrap().session = None;
    thaw(&mut world, "master-2");
    for _ in 0..20 {
        world.step();
        assert_eq!(api_command(&world, "master-1"), before, "{:?}", waits(&world));
    }
    world.says.remove(&id("master-2"));
    world.run(400);
    assert_ne!(api_command(&world, "master-1"), before, "{:?}", waits(&world));
}

#[test]
fn no_master_begins_anew_while_the_power_of_another_one_is_about_to_go() {
    let mut world = ready("ha");
    world.answers_late = true;
    repair(&mut world, "master-2", RepairAction::PowerCycle, Override::None);
    world.scale("demo", "etcd", 5);
    for _ in 0..20 {
        world.step();
        assert!(!is_current(&world, "master-1") && !is_current(&world, "master-3"), "{:?}", waits(&world));
    }
    world.answers_late = false;
    world.run(600);
    assert!(
        ["master-1", "master-2", "master-3"].iter().all(|name| is_current(&world, name)),
        "{:?}",
        waits(&world)
    );
}

#[test]
fn nobody_takes_power_in_the_moment_after_another_master_got_its_config() {
    let mut world = ready("ha");
    let before = api_command(&world, "master-1");
    world.scale("demo", "etcd", 5);
    world.step();
    // The config comes through, and the heartbeat that tells of it is still to come.
    for _ in 0..100 {
        thaw(&mut world, "master-1");
        world.step();
        freeze(&mut world, "master-1");
        world.step();
        if api_command(&world, "master-1") != before {
            break;
        }
    }
    assert!(
        world.machines[&id("master-1")].generation
            > Some(machine(&world, "master-1").heartbeat.unwrap().generation)
    );
    let held = refusal(&world, "master-2", RepairAction::PowerCycle, Override::None);
    assert!(
        matches!(&held, CommandError::Held { hold, .. } if matches!(**hold, Hold::Busy { .. })),
        "{held:?}"
    );
}

/// The coordinator hears nobody, one member is gone, and another one was given its power a moment ago by a call whose answer was
/// lost: it may be what the third one has a quorum with (seed 202).
#[test]
fn a_member_that_may_have_its_power_back_counts_for_the_quorum() {
    let mut world = ready("ha-stacked");
    world.mute.extend(world.machines.keys().cloned().collect::<Vec<_>>());
    world.restart();
    world.run(400);
    world.machines.remove(&id("master-2"));
    world.machines.get_mut(&id("master-1")).unwrap().power_off();
    world.lose_power_answers = true;
    let mut steps = 0;
    while !powered(&world, "master-1") {
        world.step();
        steps += 1;
        assert!(steps < 200, "{:?}", waits(&world));
    }
    world.refuse_list = Some(ProviderFailure { remedy: Remedy::Retry, text: "busy".to_owned() });
    world.run(4);
    assert_eq!(verdict(&world, "master-1"), Verdict::Off);
    let held = refusal(&world, "master-3", RepairAction::Rebuild, Override::Guards);
    assert!(
        matches!(&held, CommandError::Held { hold, .. } if matches!(**hold, Hold::Quorum { .. })),
        "{held:?}"
    );
}

/// No etcd member works alone: one of the two that nobody reaches serves with it, whatever they are taken for (seed 2003).
#[test]
fn what_a_member_has_its_quorum_with_keeps_its_power() {
    let mut world = ready("ha");
    freeze(&mut world, "etcd-2");
    freeze(&mut world, "etcd-3");
    world.run(200);
    assert_eq!(verdict(&world, "etcd-2"), Verdict::Hung);
    assert!(world.fences.is_empty(), "{:?}", world.fences);
    loses_quorum(&mut world, "etcd-1");
    world.run(20);
    assert_eq!(world.fences.len(), 1, "{:?}", waits(&world));
}

/// Two hosts are broken for good. Both disks may be elsewhere, and there is nothing left to lose.
#[test]
fn members_that_get_no_power_are_rebuilt_though_the_quorum_is_lost() {
    let mut world = ready("ha");
    world.refuse_power =
        Some(ProviderFailure { remedy: Remedy::Retry, text: "its host is broken".to_owned() });
    for name in ["etcd-1", "etcd-2"] {
        world.machines.get_mut(&id(name)).unwrap().power_off();
    }
    loses_quorum(&mut world, "etcd-3");
    let begun = |world: &World| {
        let rebuilds = |event: &&keelson_model::FleetEvent| event.outcome == "rebuild";
        world.events.iter().filter(|event| event.reason == "RepairBegun").filter(rebuilds).count()
    };
    world.run(1_000);
    assert!(begun(&world) >= 1, "{:?}", waits(&world));
}

/// A cluster whose other masters have long been up without their API servers.
fn one_api_left() -> World {
    let mut world = ready("ha");
    for master in ["master-2", "master-3"] {
        fell(&mut world, master, down());
    }
    world.run(400);
    world
}

/// Its session stands and its heartbeats are lost: what it serves is not known (seeds 142 and 2118).
#[test]
fn the_last_api_server_is_not_begun_anew_while_nobody_hears_it() {
    let mut world = one_api_left();
    world.scale("demo", "etcd", 5);
    world.mute.insert(id("master-1"));
    for _ in 0..1_000 {
        world.step();
        assert!(!is_current(&world, "master-1"), "{:?}", waits(&world));
    }
}

/// All sessions are new, and nobody has said yet what it serves.
#[test]
fn the_last_api_server_is_not_begun_anew_as_soon_as_it_is_back() {
    let mut world = one_api_left();
    world.lose_configs.insert(id("master-1"));
    world.scale("demo", "etcd", 5);
    world.run(1_000);
    world.lose_configs.clear();
    world.restart();
    for _ in 0..1_000 {
        world.step();
        for master in ["master-2", "master-3"] {
            world.tell_unit(&id(master), API, down());
        }
        assert!(!is_current(&world, "master-1"), "{:?}", waits(&world));
    }
}

/// A newer coordinator runs the machines differently, and the first one's API server did not come up with that.
#[test]
fn a_config_that_broke_a_master_goes_no_further_because_another_one_comes_back() {
    let mut world = ready("ha-stacked");
    world.says.insert(id("master-1"), NodeState::Degraded);
    world.disk.saved.clusters[0].blueprint.rendering = 0;
    for machine in &mut world.disk.saved.machines {
        machine.sent.as_mut().unwrap().services = "as before".to_owned();
    }
    world.restart();
    world.run(4);
    world.tell_units(&id("master-1"), [(ETCD, UnitState::Healthy), (API, down())]);
    world.run(400);
    assert!(is_current(&world, "master-1") && !is_current(&world, "master-2"), "{:?}", waits(&world));
    for master in ["master-2", "master-3"] {
        flap(&mut world, master);
        for _ in 0..100 {
            world.step();
            assert!(!is_current(&world, master), "{:?}", waits(&world));
        }
    }
}

/// One member's host is broken for good, and the agent of another one hangs: the third one has its quorum with that.
fn two_members_left() -> World {
    let mut world = ready("ha");
    world.refuse_power = Some(ProviderFailure { remedy: Remedy::Retry, text: "broken".to_owned() });
    world.refuse_rebuild.clone_from(&world.refuse_power);
    world.machines.get_mut(&id("etcd-3")).unwrap().power_off();
    world.run(10);
    world
}

/// And the third one says so, while the other one is taken for hung.
fn one_serves_beside_one_that_hangs() -> World {
    let mut world = two_members_left();
    world.tell_unit(&id("etcd-2"), ETCD, UnitState::Healthy);
    freeze(&mut world, "etcd-1");
    world.run(60);
    assert_eq!(verdict(&world, "etcd-1"), Verdict::Hung);
    world
}

fn is_held_for_the_quorum(world: &World, name: &str) {
    let held = refusal(world, name, RepairAction::PowerCycle, Override::Guards);
    assert!(
        matches!(&held, CommandError::Held { hold, .. } if matches!(**hold, Hold::Quorum { .. })),
        "{held:?}"
    );
}

#[test]
fn a_member_that_has_just_come_back_may_have_a_quorum_with_one_that_hangs() {
    let mut world = two_members_left();
    freeze(&mut world, "etcd-1");
    world.run(60);
    assert_eq!(verdict(&world, "etcd-1"), Verdict::Hung);
    is_held_for_the_quorum(&world, "etcd-1");
    flap(&mut world, "etcd-2");
    is_held_for_the_quorum(&world, "etcd-1");
}

#[test]
fn a_member_that_falls_silent_may_still_serve_with_one_that_hangs() {
    let mut world = one_serves_beside_one_that_hangs();
    is_held_for_the_quorum(&world, "etcd-1");
    world.peers_answer = false;
    freeze(&mut world, "etcd-2");
    while !machine(&world, "etcd-2").silent {
        world.step();
    }
    is_held_for_the_quorum(&world, "etcd-1");
}

#[test]
fn a_member_that_ended_a_moment_ago_will_need_one_that_hangs() {
    let mut world = one_serves_beside_one_that_hangs();
    world.tell_unit(&id("etcd-2"), ETCD, down());
    is_held_for_the_quorum(&world, "etcd-1");
    world.step();
    is_held_for_the_quorum(&world, "etcd-1");
    assert_eq!(acts(&world, "etcd-1"), []);
    // It does not come back, so nothing is left to lose.
    world.run(2 * u32::try_from(MEMBER_BACK_MAX.as_secs()).unwrap());
    assert_eq!(acts(&world, "etcd-1"), [RepairAction::PowerCycle]);
}

/// Their probes are not asked in the same moment.
#[test]
fn a_member_that_has_just_been_seen_to_fail_may_be_what_another_one_serves_with() {
    let mut world = two_members_left();
    loses_quorum(&mut world, "etcd-2");
    world.run(40);
    is_held_for_the_quorum(&world, "etcd-2");
}

#[test]
fn a_member_works_by_what_it_says_since_it_is_back() {
    let mut world = ready("ha");
    world.tell_unit(&id("etcd-2"), ETCD, UnitState::Healthy);
    let asked = request("etcd-3", RepairAction::PowerCycle, Override::Guards);
    world.core.check_repair(world.now(), &asked).unwrap();
    let machine = &world.machines[&id("etcd-2")];
    let heartbeat = Heartbeat {
        sequence: machine.sequence + 1,
        boot: machine.boot,
        generation: machine.generation.unwrap(),
        state: NodeState::Degraded,
        report: 1,
    };
    let session = machine.session.unwrap();
    world.input(Input::Heartbeat { session, heartbeat });
    is_held_for_the_quorum(&world, "etcd-3");
}

/// Its agent hangs, and somebody answers at the endpoint.
#[test]
fn a_master_that_is_taken_for_hung_may_have_the_last_api_server() {
    let mut world = one_api_left();
    freeze(&mut world, "master-1");
    for _ in 0..200 {
        world.step();
        assert_eq!(acts(&world, "master-1"), []);
    }
    assert_eq!(verdict(&world, "master-1"), Verdict::Hung);
    world.endpoint_silent = true;
    world.run(200);
    assert_eq!(acts(&world, "master-1").first(), Some(&RepairAction::PowerCycle), "{:?}", waits(&world));
}

/// Some answers get lost (seed 8099).
#[test]
fn one_call_that_fails_does_not_say_that_nobody_serves() {
    let mut world = one_api_left();
    freeze(&mut world, "master-1");
    for step in 0..400 {
        world.endpoint_silent = step % 20 < 10;
        world.step();
        assert_eq!(acts(&world, "master-1"), []);
    }
    assert_eq!(verdict(&world, "master-1"), Verdict::Hung);
}

/// The coordinator is the only one that does not reach the endpoint.
#[test]
fn a_master_that_has_just_come_back_may_have_the_last_api_server() {
    let mut world = one_api_left();
    fell(&mut world, "master-1", UnitState::Healthy);
    world.endpoint_silent = true;
    world.run(100);
    assert_eq!(refusal_or_none(&world, "master-1"), Some(Hold::ApiServer));
    flap(&mut world, "master-1");
    world.step();
    assert_eq!(refusal_or_none(&world, "master-1"), Some(Hold::ApiServer));
}
