//! Changes that come before the last one was carried out, or take it back: what runs is what is wanted, whatever a record says.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use keelson_protocol::Generation;
use keelson_protocol::config::NodeConfig;
use support::*;

fn as_generation(config: &NodeConfig, generation: u64) -> NodeConfig {
    NodeConfig { generation: Generation(generation), ..config.clone() }
}

fn logged(world: &World, entry: &str) -> usize {
    world.log.iter().filter(|line| *line == entry).count()
}

/// Plays until `entry` is logged once more.
fn run_until_logged(world: &mut World, entry: &str) {
    let before = logged(world, entry);
    while logged(world, entry) == before {
        world.run_ticks(1);
    }
}

/// A command that was changed and is taken back, while the disk took no record: its last one is of the command that is
/// wanted again.
#[test]
fn a_unit_that_the_disk_knows_only_an_older_start_of_is_started_anew() {
    for rebooted in [false, true] {
        let (mut world, config) = ready();
        world.disk_full = true;
        if rebooted {
            world.reboot();
            world.run_for(30_000);
        }
        let mut next = config.clone();
        next.generation = Generation(2);
        next.units[0].command.push("--v=4".to_owned());
        world.offer(&next);
        world.run_for(30_000);
        world.assert_converged(&next);
        let mut back = config;
        back.generation = Generation(3);
        world.offer(&back);
        while world.log.iter().filter(|line| line.contains("write /run/")).count() < 5 {
            world.run_ticks(1);
        }
        world.kill_agent();
        world.offer(&back);
        world.run_for(30_000);
        world.assert_converged(&back);
        world.disk_full = false;
        world.run_for(30_000);
        world.assert_converged(&back);
    }
}

/// It may have read what is wanted no more, though its start was ordered with what is wanted again.
#[test]
fn a_unit_that_is_being_started_while_its_inputs_change_and_change_back_is_started_anew() {
    for (ticks, between) in (0..120).flat_map(|ticks| (0..12).map(move |between| (ticks, between))) {
        let (mut world, config) = (world(), worker(1));
        world.overtaken = true;
        world.offer(&config);
        world.run_ticks(ticks);
        let mut next = config.clone();
        next.generation = Generation(2);
        next.files[0] = file("/var/lib/keelson/containerd.toml", "version = 4");
        world.offer(&next);
        world.run_ticks(between);
        let mut back = config;
        back.generation = Generation(3);
        world.offer(&back);
        world.run_until_ready(60_000);
        world.run_for(5_000);
        world.assert_converged(&back);
    }
}

/// systemd may have started it again with files that are wanted no more.
#[test]
fn a_unit_whose_files_were_changed_and_changed_back_is_started_anew_when_it_fell_meanwhile() {
    for killed in [false, true] {
        let (mut world, config) = ready();
        let mut next = as_generation(&config, 2);
        next.files[0] = file("/var/lib/keelson/containerd.toml", "version = 4");
        // What comes before it does not end, so that the agent does not start it itself.
        next.units[2].command.push("--again".to_owned());
        world.behaviours.get_mut("prepare.service").unwrap().crashes_after_ms = Some(1);
        world.offer(&next);
        run_until_logged(&mut world, "write /var/lib/keelson/containerd.toml");
        if killed {
            world.kill_agent();
        }
        world.crash("containerd.service");
        world.run_for(1_500);
        world.behaviours.get_mut("prepare.service").unwrap().crashes_after_ms = None;
        let back = as_generation(&config, 3);
        world.offer(&back);
        world.run_until_ready(600_000);
        world.run_for(5_000);
        world.assert_converged(&back);
    }
}

/// Nothing of the change has reached the unit: what serves is left alone.
#[test]
fn a_unit_whose_change_could_not_be_written_and_is_taken_back_runs_on() {
    let (mut world, config) = ready();
    world.disk_full = true;
    let mut next = as_generation(&config, 2);
    next.files[0] = file("/var/lib/keelson/containerd.toml", "version = 4");
    world.offer(&next);
    world.run_for(30_000);
    let starts = world.starts();
    let back = as_generation(&config, 3);
    world.offer(&back);
    world.run_for(30_000);
    world.disk_full = false;
    world.run_for(90_000);
    world.assert_converged(&back);
    assert_eq!(world.starts(), starts, "{:#?}", world.log);
}

/// Half of what it was to do may have been done.
#[test]
fn a_oneshot_whose_change_is_taken_back_while_it_runs_does_the_first_thing_again() {
    let (mut world, config) = ready();
    let mut next = as_generation(&config, 2);
    next.units[2].command.push("--other".to_owned());
    world.offer(&next);
    run_until_logged(&mut world, "restart prepare.service");
    let back = as_generation(&config, 3);
    world.offer(&back);
    world.run_until_ready(60_000);
    world.run_for(5_000);
    assert_eq!(world.units["prepare.service"].starts, 3, "{:#?}", world.log);
}

#[test]
fn a_oneshot_that_hangs_in_what_is_taken_back_is_begun_anew_at_once() {
    let (mut world, config) = ready();
    let mut next = as_generation(&config, 2);
    next.units[2].command.push("--other".to_owned());
    world.oneshot_ms = 10_000_000;
    world.offer(&next);
    world.run_for(5_000);
    world.oneshot_ms = ONESHOT_MS;
    let back = as_generation(&config, 3);
    world.offer(&back);
    let took = world.run_until_ready(600_000);
    assert!(took < 5_000, "{took} ms");
    world.assert_converged(&back);
}

/// Nobody has stopped it yet, so that it may have read what is wanted no more.
#[test]
fn a_unit_that_is_wanted_no_more_and_wanted_again_is_started_anew() {
    let (mut world, config) = ready();
    world.faults.unstoppable = Some("kubelet.service".to_owned());
    let mut next = as_generation(&config, 2);
    next.units.remove(0);
    next.files[1] = file("/var/lib/keelson/kubelet.yaml", "a: 2");
    world.offer(&next);
    run_until_logged(&mut world, "stop kubelet.service");
    world.crash("kubelet.service");
    world.run_for(1_500);
    let back = as_generation(&config, 3);
    world.offer(&back);
    world.run_until_ready(60_000);
    world.run_for(5_000);
    world.assert_converged(&back);
}

/// Which one is there nobody knows once the new one is being written.
#[test]
fn a_certificate_whose_change_is_taken_back_while_it_is_written_is_asked_for_again() {
    for killed in [false, true] {
        let (mut world, config) = ready();
        let mut next = as_generation(&config, 2);
        next.certificates[0].dns_names.push("other".to_owned());
        world.offer(&next);
        run_until_logged(&mut world, "install kubelet");
        if killed {
            world.kill_agent();
        }
        let back = as_generation(&config, 3);
        world.offer(&back);
        world.run_until_ready(60_000);
        world.run_for(5_000);
        assert_eq!(logged(&world, "install kubelet"), 3, "{:#?}", world.log);
        world.assert_converged(&back);
    }
}

#[test]
fn a_unit_whose_certificate_was_changed_and_changed_back_is_started_anew_when_it_fell_meanwhile() {
    let (mut world, config) = ready();
    world.silent.insert("API server at 10.0.0.2:6443".to_owned());
    let mut next = as_generation(&config, 2);
    next.certificates[0].dns_names.push("other".to_owned());
    world.offer(&next);
    run_until_logged(&mut world, "install kubelet");
    world.run_for(100);
    world.crash("kubelet.service");
    world.run_for(1_500);
    let starts = world.units["kubelet.service"].starts;
    let back = as_generation(&config, 3);
    world.offer(&back);
    world.silent.clear();
    world.run_until_ready(60_000);
    world.run_for(5_000);
    assert_eq!(world.units["kubelet.service"].starts, starts + 1, "{:#?}", world.log);
}

/// It is not stopped as long as it may be started, whatever was seen of it last.
#[test]
fn a_unit_that_is_wanted_no_more_while_it_is_started_does_not_run_on() {
    for ticks in 0..150 {
        let (mut world, config) = (world(), worker(1));
        world.overtaken = true;
        world.offer(&config);
        world.run_ticks(ticks);
        let mut next = as_generation(&config, 2);
        next.units.remove(0);
        world.offer(&next);
        world.run_until_ready(60_000);
        world.run_for(5_000);
        world.assert_converged(&next);
    }
}
