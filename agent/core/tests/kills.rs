//! Whatever moment the agent is killed at, and whatever steps fail: the machine still becomes what the config wants,
//! and then rests.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use keelson_protocol::Generation;
use proptest::prelude::*;
use support::*;

/// A disturbance after so many actions and events.
#[derive(Debug, Clone, Copy)]
enum Blow {
    Kill,
    Reboot,
    Disconnect,
    NextConfig,
    /// The next config is as the first one was.
    TakenBack,
    Crash,
    /// The disk has no room for the ledger until the next one of these.
    Room,
}

fn blows() -> impl Strategy<Value = Vec<(u64, Blow)>> {
    let blow = prop_oneof![
        5 => Just(Blow::Kill),
        1 => Just(Blow::Reboot),
        1 => Just(Blow::Disconnect),
        2 => Just(Blow::NextConfig),
        1 => Just(Blow::TakenBack),
        1 => Just(Blow::Crash),
        1 => Just(Blow::Room),
    ];
    prop::collection::vec((0_u64..80, blow), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_machine_converges_and_rests(blows in blows(), failing in 0_u64..7) {
        converges_and_rests(&blows, failing);
    }
}

/// Blows that were once too much, in a form that proptest had made small.
#[test]
fn the_machine_converges_after_what_was_once_too_much() {
    use Blow::{Crash, Disconnect, Kill, NextConfig, Reboot, Room, TakenBack};
    let found: &[(&[(u64, Blow)], u64)] = &[
        // The only record was of a start that was never carried out.
        (
            &[
                (24, NextConfig),
                (17, TakenBack),
                (79, Kill),
                (37, Kill),
                (0, Room),
                (0, NextConfig),
                (12, Crash),
                (78, Kill),
                (0, NextConfig),
            ],
            6,
        ),
        // Started while files of a withdrawn config were being written.
        (&[(6, Kill), (52, NextConfig), (0, TakenBack)], 5),
        // Its file was removed while it was being started.
        (
            &[
                (7, Kill),
                (20, Kill),
                (45, Kill),
                (51, NextConfig),
                (2, Reboot),
                (77, Crash),
                (44, NextConfig),
            ],
            3,
        ),
        // systemd had started it again with files of a withdrawn config.
        (&[(61, Crash), (25, NextConfig), (0, TakenBack), (3, Crash)], 2),
        (&[(24, Disconnect), (15, Crash), (72, Crash), (2, NextConfig), (34, TakenBack)], 2),
    ];
    found.iter().for_each(|(blows, failing)| converges_and_rests(blows, *failing));
}

fn converges_and_rests(blows: &[(u64, Blow)], failing: u64) {
    let (mut world, mut config) = (world(), worker(1));
    if failing > 1 {
        world.fails = Box::new(move |step| step.is_multiple_of(failing));
    }
    world.overtaken = failing % 2 == 1;
    world.offer(&config);
    for (ticks, blow) in blows {
        world.run_ticks(*ticks);
        match blow {
            Blow::Kill => world.kill_agent(),
            Blow::Reboot => world.reboot(),
            Blow::Disconnect => world.disconnect(),
            Blow::Room => world.disk_full = !world.disk_full,
            Blow::NextConfig => config = varied(config.generation.next()),
            Blow::TakenBack => config = worker(config.generation.0 + 1),
            Blow::Crash => {
                let running = world.units.iter().find(|(_, unit)| unit.running.is_some());
                if let Some(name) = running.map(|(name, _)| name.clone()) {
                    world.crash(&name);
                }
            }
        }
        if !world.connected {
            world.connect();
        }
        // The coordinator sends the whole config whenever it likes.
        world.offer(&config);
    }
    world.fails = Box::new(|_| false);
    world.disk_full = false;
    world.run_until_ready(1_500_000);
    // What failed again and again is tried once a minute.
    world.run_for(65_000);
    world.assert_converged(&config);
    let starts = world.starts();
    world.run_for(200_000);
    assert_eq!(world.starts(), starts, "it does not rest: {:#?}", &world.log);
    world.assert_converged(&config);
    assert!(!world.stored_numbers().is_empty());
}

/// Configs that differ in everything that can differ.
fn varied(generation: Generation) -> keelson_protocol::config::NodeConfig {
    let mut config = worker(generation.0);
    let n = generation.0;
    config.files[0] = file("/var/lib/keelson/containerd.toml", &format!("version = {}", n / 2));
    config.files[2] = file("/var/lib/keelson/other", &format!("{n}"));
    if n.is_multiple_of(2) {
        config.units[0].command.push(format!("--v={}", n / 4));
        config.routes.clear();
    }
    if n.is_multiple_of(3) {
        config.units.remove(0);
        config.certificates.clear();
    }
    if n.is_multiple_of(5) {
        config.balancer = None;
        config.peers = None;
    }
    if n.is_multiple_of(7)
        && let Some(peers) = &mut config.peers
    {
        peers.key = keelson_protocol::SecretBytes::new(vec![8; 32]);
    }
    config
}
