//! What a machine mends while its coordinator is away, and what has to wait for it.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use std::time::Duration;

use keelson_protocol::health::{EventKind, NodeState, UnitState};
use support::*;

fn state_of(world: &World, unit: &str) -> UnitState {
    let units = world.core.status().units;
    units.into_iter().find(|status| status.name == unit).unwrap().state
}

#[test]
fn files_units_and_routes_come_back_without_a_coordinator() {
    let (mut world, config) = ready();
    world.run_for(1_000);
    world.disconnect();
    // A config of a program, the pod network's, a unit file, and a file with other bits; then everything at once.
    let paths = ["/var/lib/keelson/kubelet.yaml", "/var/lib/keelson/other"];
    for path in paths {
        world.files.remove(path);
    }
    world.files.get_mut("/var/lib/keelson/containerd.toml").unwrap().1 = 0o666;
    world.files.remove("/run/systemd/system/containerd.service");
    world.routes.clear();
    world.stop_by_hand("kubelet.service");
    world.run_for(60_000);
    world.assert_converged(&config);
    world.files.retain(|path, _| path.starts_with("/var/lib/keelson/pki/"));
    for unit in ["kubelet.service", "containerd.service"] {
        world.forget_unit(unit);
    }
    world.run_for(40_000);
    world.run_until_ready(60_000);
    world.assert_converged(&config);
    world.connect();
    world.run_for(5_000);
    let repaired = world.events_of(EventKind::Repaired);
    assert!(repaired.iter().any(|told| told.starts_with("/var/lib/keelson/other: it was missing")));
}

#[test]
fn a_file_that_was_touched_is_looked_at_at_once() {
    let (mut world, config) = ready();
    world.run_for(1_000);
    world.files.remove("/var/lib/keelson/other");
    world.run_for(3_000);
    assert!(!world.files.contains_key("/var/lib/keelson/other"), "nobody has looked yet");
    world.touch_files();
    world.run_for(1_000);
    world.assert_converged(&config);
}

/// A certificate can only be made by an authority: its machine runs on without it, says so, and asks as soon as it can.
#[test]
fn a_lost_certificate_waits_for_the_coordinator_and_takes_nothing_down() {
    let (mut world, config) = ready();
    world.disconnect();
    world.files.remove("/var/lib/keelson/pki/kubelet.key");
    let starts = world.starts();
    world.run_for(600_000);
    assert_eq!(world.starts(), starts, "what has read it goes on");
    assert_eq!(state_of(&world, "kubelet.service"), UnitState::Healthy);
    assert_eq!(world.core.status().why.unwrap(), "certificate kubelet is being asked for");
    // A program that has to start needs it, and waits instead of falling again and again.
    world.crash("kubelet.service");
    world.stop_by_hand("kubelet.service");
    world.run_for(600_000);
    let UnitState::Down { why } = state_of(&world, "kubelet.service") else { panic!("it is not down") };
    assert!(why.ends_with("waits for certificate kubelet"), "{why}");
    world.connect();
    world.run_until_ready(60_000);
    world.assert_converged(&config);
}

#[test]
fn an_expired_certificate_is_renewed_as_soon_as_there_is_a_coordinator() {
    let (mut world, config) = (world(), worker(1));
    world.certificate_life = Duration::from_secs(600);
    world.offer(&config);
    world.run_until_ready(10_000);
    world.disconnect();
    world.run_for(1_200_000);
    assert_eq!(state_of(&world, "kubelet.service"), UnitState::Healthy, "its unit is not stopped for it");
    let starts = world.starts();
    world.log.clear();
    world.connect();
    world.run_for(2_000);
    assert_eq!(world.log, ["install kubelet"]);
    assert_eq!((world.starts(), world.core.state()), (starts, NodeState::Ready));
}

#[test]
fn a_machine_whose_programs_all_die_comes_back_by_itself() {
    let (mut world, config) = ready();
    world.disconnect();
    for _ in 0..3 {
        world.crash("containerd.service");
        world.crash("kubelet.service");
        world.kill_agent();
        world.run_until_ready(60_000);
        world.run_for(70_000);
        world.assert_converged(&config);
    }
}

/// The small worker whose kubelet tells living from working.
fn with_alive() -> World {
    let (mut world, mut config) = (world(), worker(1));
    config.units[0].alive = Some(probe("kubelet lives"));
    world.offer(&config);
    world.run_until_ready(60_000);
    world.run_for(70_000);
    world
}

#[test]
fn what_lives_and_waits_for_others_is_never_restarted() {
    let mut world = with_alive();
    let starts = world.starts();
    world.behaviours.get_mut("kubelet.service").unwrap().hung = true;
    world.run_for(3_600_000);
    assert_eq!(world.starts(), starts);
    let why = "answers, and is not ready: no answer".to_owned();
    assert_eq!(state_of(&world, "kubelet.service"), UnitState::Unhealthy { why });
    world.behaviours.get_mut("kubelet.service").unwrap().hung = false;
    world.run_until_ready(5_000);
}

#[test]
fn what_is_dead_as_well_is_restarted_after_the_same_time_as_ever() {
    let mut world = with_alive();
    world.behaviours.get_mut("kubelet.service").unwrap().hung = true;
    world.run_for(600_000);
    world.silent.insert("kubelet lives".to_owned());
    world.run_for(29_000);
    assert!(!world.log.contains(&"restart kubelet.service".to_owned()));
    // One answer in between is a sign of life.
    world.silent.clear();
    world.run_for(2_000);
    world.silent.insert("kubelet lives".to_owned());
    world.run_for(29_000);
    assert!(!world.log.contains(&"restart kubelet.service".to_owned()));
    world.run_for(5_000);
    assert!(world.log.contains(&"restart kubelet.service".to_owned()), "{:#?}", world.log);
}

#[test]
fn what_lives_is_not_restarted_while_it_starts_either() {
    let mut world = with_alive();
    world.behaviours.get_mut("kubelet.service").unwrap().healthy_after_ms = 3_600_000;
    world.crash("kubelet.service");
    world.run_for(3_000_000);
    assert!(!world.log.contains(&"restart kubelet.service".to_owned()), "{:#?}", world.log);
    world.run_until_ready(700_000);
}

#[test]
fn a_start_that_systemd_waits_for_is_judged_by_the_same_probe() {
    let mut world = with_alive();
    world.behaviours.get_mut("kubelet.service").unwrap().settles_after_ms = Some(3_600_000);
    world.crash("kubelet.service");
    world.run_for(1_800_000);
    assert!(!world.log.contains(&"restart kubelet.service".to_owned()), "{:#?}", world.log);
    let UnitState::Unhealthy { why } = state_of(&world, "kubelet.service") else { panic!("not told") };
    assert!(why.starts_with("answers, and is not ready: "), "{why}");
    world.silent.insert("kubelet lives".to_owned());
    world.run_for(60_000);
    assert!(world.log.contains(&"restart kubelet.service".to_owned()), "{:#?}", world.log);
    world.silent.clear();
    world.behaviours.get_mut("kubelet.service").unwrap().settles_after_ms = None;
    world.run_until_ready(60_000);
}
