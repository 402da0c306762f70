//! A machine whose clock is an hour wrong.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use std::time::Duration;

use keelson_protocol::health::{EventKind, NodeState};
use support::*;

const HOUR_MS: i64 = 3_600_000;

fn installs(world: &World, name: &str) -> usize {
    world.log.iter().filter(|line| **line == format!("install {name}")).count()
}

/// The life of its certificates is shorter than its clock is wrong.
fn short_lived(clock_ms: i64) -> World {
    let mut world = world();
    world.faults.clock_ms = clock_ms;
    world.certificate_life = Duration::from_secs(1_800);
    world.offer(&worker(1));
    world.connect();
    world.run_until_ready(10_000);
    world
}

#[test]
fn certificates_are_renewed_by_the_coordinators_clock() {
    for clock_ms in [HOUR_MS, -HOUR_MS, 0] {
        let mut world = short_lived(clock_ms);
        assert_eq!(installs(&world, "kubelet"), 1, "{clock_ms} ms");
        world.run_for(1_150_000);
        assert_eq!(installs(&world, "kubelet"), 1, "{clock_ms} ms: too early");
        world.run_for(100_000);
        assert_eq!(installs(&world, "kubelet"), 2, "{clock_ms} ms: due after 1200 s");
        world.run_for(7_200_000);
        let renewed = installs(&world, "kubelet");
        assert!((7..=8).contains(&renewed), "{clock_ms} ms: {renewed} in two hours and twenty minutes");
        assert_eq!(world.core.state(), NodeState::Ready);
    }
}

#[test]
fn the_link_certificate_too() {
    for clock_ms in [HOUR_MS, -HOUR_MS] {
        let mut world = short_lived(clock_ms);
        world.link_validity.not_after = world.link_validity.not_before.plus(Duration::from_secs(1_800));
        world.connect();
        world.run_for(1_150_000);
        assert_eq!(installs(&world, "link"), 0, "{clock_ms} ms");
        world.run_for(100_000);
        assert_eq!(installs(&world, "link"), 1, "{clock_ms} ms");
    }
}

#[test]
fn a_wrong_clock_is_told_once_and_once_when_it_is_right_again() {
    for (clock_ms, expected) in [
        (HOUR_MS, "clock: it is 3599.5 s ahead of the coordinator's -> certificates are judged by"),
        (-HOUR_MS, "clock: it is 3600.5 s behind the coordinator's -> certificates are judged by"),
    ] {
        let mut world = short_lived(clock_ms);
        world.run_for(600_000);
        let told = world.events_of(EventKind::ClockWrong);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{told:#?}");
        assert!(world.core.status().clock_offset_ms.unwrap().abs() > HOUR_MS - 1_000);
        world.faults.clock_ms = 0;
        world.run_for(600_000);
        let told = world.events_of(EventKind::ClockWrong);
        assert!(told.len() == 2 && told[1].ends_with("-> it is right again"), "{told:#?}");
    }
    let mut world = short_lived(29_000);
    world.run_for(600_000);
    assert_eq!(world.events_of(EventKind::ClockWrong), [] as [&str; 0]);
}

#[test]
fn a_clock_that_jumps_while_the_coordinator_is_away_hurries_nothing() {
    let mut world = short_lived(0);
    world.run_for(300_000);
    world.disconnect();
    world.faults.clock_ms = HOUR_MS;
    world.run_for(60_000);
    world.connect();
    world.run_for(600_000);
    assert_eq!(installs(&world, "kubelet"), 1);
    assert_eq!(installs(&world, "link"), 0);
}
