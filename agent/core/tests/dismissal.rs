//! A machine that was replaced, and came back, leaves for good.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use keelson_protocol::health::{EventKind, NodeState};
use keelson_protocol::message::RefusalCode;
use support::*;

fn offs(world: &World) -> usize {
    world.log.iter().filter(|line| *line == "switch off").count()
}

fn begins_work(world: &World) -> bool {
    world.units.values().any(|unit| unit.running.is_some())
}

#[test]
fn a_machine_whose_place_is_taken_switches_itself_off_and_begins_nothing_after_its_next_boot() {
    let (mut world, _) = ready();
    world.refuse(RefusalCode::OldIncarnation);
    world.run_for(1_000);
    assert!(world.off);
    // Somebody, or a host that comes back once more, switches it on.
    world.reboot();
    world.run_for(600_000);
    assert!(!begins_work(&world) && !world.off, "only a new word of the coordinator switches it off again");
    assert_eq!(world.core.state(), NodeState::Degraded);
    world.refuse(RefusalCode::OldIncarnation);
    world.run_for(1_000);
    assert_eq!((world.off, offs(&world)), (true, 2));
}

#[test]
fn a_machine_that_is_known_again_takes_up_its_work() {
    let (mut world, config) = ready();
    world.refuse(RefusalCode::OldIncarnation);
    world.run_for(1_000);
    world.reboot();
    world.run_for(10_000);
    world.connect();
    world.run_until_ready(60_000);
    world.run_for(5_000);
    world.assert_converged(&config);
    let told = |kind| world.events_of(kind).len();
    assert_eq!((told(EventKind::Fenced), told(EventKind::FenceLifted)), (1, 1));
}

/// The coordinator may have been restored from a copy that is older than the machine.
#[test]
fn a_machine_that_is_unknown_goes_after_ten_minutes_and_not_before() {
    let (mut world, config) = ready();
    for _ in 0..40 {
        world.refuse(RefusalCode::UnknownMachine);
        world.run_for(14_900);
    }
    assert!(!world.off);
    world.assert_converged(&config);
    world.refuse(RefusalCode::UnknownMachine);
    world.run_for(4_000);
    world.refuse(RefusalCode::UnknownMachine);
    world.run_for(1_000);
    assert!(world.off);
}

/// What was said an hour ago says nothing about now.
#[test]
fn an_hour_without_a_word_begins_the_ten_minutes_anew() {
    let (mut world, _) = ready();
    for _ in 0..3 {
        world.refuse(RefusalCode::UnknownMachine);
        world.run_for(3_600_000);
    }
    assert!(!world.off);
}

#[test]
fn a_welcome_between_begins_the_ten_minutes_anew() {
    let (mut world, _) = ready();
    for _ in 0..5 {
        world.refuse(RefusalCode::UnknownMachine);
        for _ in 0..20 {
            world.refuse(RefusalCode::UnknownMachine);
            world.run_for(25_000);
        }
        world.connect();
        world.run_for(1_000);
    }
    assert!(!world.off);
}

#[test]
fn no_other_refusal_ends_the_work_of_a_machine() {
    let (mut world, config) = ready();
    for code in [RefusalCode::SecondHolder, RefusalCode::Version, RefusalCode::Busy, RefusalCode::TokenUsed] {
        world.refuse(code);
        world.run_for(900_000);
        world.refuse(code);
        world.run_for(1_000);
    }
    assert!(!world.off);
    world.assert_converged(&config);
}

#[test]
fn an_agent_that_is_killed_at_any_moment_of_it_goes_all_the_same() {
    for after in 0..8 {
        let (mut world, _) = ready();
        world.refuse(RefusalCode::OldIncarnation);
        world.run_ticks(after);
        if !world.off {
            world.kill_agent();
            world.run_for(2_000);
            world.refuse(RefusalCode::OldIncarnation);
            world.run_for(1_000);
        }
        assert!(world.off, "killed after {after} actions");
        world.reboot();
        world.run_for(60_000);
        assert!(!begins_work(&world), "killed after {after} actions");
    }
}

#[test]
fn a_power_that_does_not_go_is_tried_again() {
    let (mut world, _) = ready();
    world.fails = Box::new(|_| true);
    world.refuse(RefusalCode::OldIncarnation);
    world.run_for(500);
    world.off = false;
    world.fails = Box::new(|_| false);
    world.run_for(10_000);
    assert!(world.off);
}
