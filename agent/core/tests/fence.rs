//! A machine that is cut off gives up its work, and takes it up again.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use keelson_protocol::Generation;
use keelson_protocol::health::{EventKind, NodeState, UnitState};
use keelson_protocol::peer::PeerSaid;
use support::repair::*;
use support::*;

const ANSWERED: PeerSaid = PeerSaid::Answered { round_trip_us: 200 };
const ENDED: &str = "fence: ended kubepods";
const REBOOT: &str = "fence-reboot: reboot";

/// Cuts the machine off from everything.
fn cut(world: &mut World) {
    world.peers_say(&PeerSaid::Silent);
    world.silent.insert("API server".to_owned());
    world.silent.insert("API server at 10.0.0.2:6443".to_owned());
    world.disconnect();
}

fn runs(world: &World, unit: &str) -> bool {
    world.units.get(unit).is_some_and(|unit| unit.running.is_some())
}

fn fenced() -> (World, keelson_protocol::config::NodeConfig) {
    let (mut world, config) = remedied_and_ready();
    cut(&mut world);
    world.run_for(120_000);
    assert!(world.core.fenced_since().is_some());
    (world, config)
}

#[test]
fn a_machine_that_nobody_reaches_stops_its_work_after_its_lease_and_not_before() {
    let (mut world, _) = remedied_and_ready();
    cut(&mut world);
    // Two rounds of silent neighbours make it alone after ten seconds, three answers of the API server are bad ten
    // seconds later, and then its lease of a minute begins to run.
    world.run_for(78_000);
    assert!(runs(&world, "kubelet.service") && world.acts().is_empty());
    world.run_for(10_000);
    assert_eq!(world.acts(), [ENDED]);
    assert!(!runs(&world, "kubelet.service") && !runs(&world, "containerd.service"));
    let stop = |unit: &str| world.log.iter().position(|line| *line == format!("stop {unit}")).unwrap();
    let ended = world.log.iter().position(|line| line == ENDED).unwrap();
    assert!(stop("kubelet.service") < ended && stop("containerd.service") < ended, "{:#?}", world.log);
    world.run_for(3_600_000);
    assert_eq!(world.acts(), [ENDED], "once");
    assert!(!runs(&world, "kubelet.service"));
    assert_eq!(world.core.state(), NodeState::Degraded);
    let kubelet = world.core.status().units.remove(0);
    assert!(matches!(&kubelet.state, UnitState::Waiting { on } if on.contains("cut off")), "{kubelet:?}");
}

#[test]
fn it_takes_its_work_up_again_when_any_of_the_three_answers() {
    fn check(back: fn(&mut World), cause: &str) {
        let (mut world, config) = fenced();
        back(&mut world);
        world.run_for(10_000);
        assert_eq!(world.core.fenced_since(), None, "{cause}");
        world.silent.clear();
        world.peers_say(&ANSWERED);
        world.connect();
        world.run_until_ready(60_000);
        world.run_for(5_000);
        world.assert_converged(&config);
        assert_eq!(world.events_of(EventKind::Fenced).len(), 1);
        let lifted = world.events_of(EventKind::FenceLifted);
        assert!(
            lifted[0].starts_with(&format!("fence: {cause} -> what was stopped is started")),
            "{lifted:#?}"
        );
        assert_eq!(world.events_of(EventKind::UnitFailed), [] as [&str; 0], "nothing fell");
    }
    check(World::connect, "the coordinator is back");
    check(|world| world.peers_say(&ANSWERED), "a neighbour can be reached again");
    check(|world| world.silent.clear(), "API server answers again");
}

#[test]
fn nothing_starts_again_while_processes_are_still_being_ended() {
    let (mut world, _) = remedied_and_ready();
    world.faults.act_ms = 9_000;
    cut(&mut world);
    while !world.log.iter().any(|line| line == ENDED) {
        world.run_for(100);
    }
    world.peers_say(&ANSWERED);
    world.silent.clear();
    world.run_for(6_000);
    assert_eq!(world.core.fenced_since(), None);
    assert!(!runs(&world, "containerd.service") && !runs(&world, "kubelet.service"), "{:#?}", world.log);
    world.run_for(30_000);
    assert!(runs(&world, "containerd.service") && runs(&world, "kubelet.service"), "{:#?}", world.log);
}

#[test]
fn one_of_the_three_is_enough_to_go_on() {
    fn check(spared: fn(&mut World)) {
        let (mut world, config) = remedied_and_ready();
        cut(&mut world);
        spared(&mut world);
        world.run_for(3_600_000);
        assert_eq!(world.core.fenced_since(), None);
        world.assert_converged(&config);
    }
    check(World::connect);
    check(|world| world.peers_say(&ANSWERED));
    check(|world| world.peers_say(&PeerSaid::Refused));
    check(|world| world.silent.clear());
}

#[test]
fn a_machine_without_neighbours_or_without_a_lease_goes_on() {
    fn check(change: fn(&mut keelson_protocol::config::NodeConfig)) {
        let (mut world, mut config) = remedied_and_ready();
        config.generation = Generation(2);
        change(&mut config);
        world.offer(&config);
        world.run_until_ready(10_000);
        cut(&mut world);
        world.run_for(3_600_000);
        assert_eq!(world.core.fenced_since(), None);
        world.assert_converged(&config);
    }
    check(|config| config.peers.as_mut().unwrap().neighbours.clear());
    check(|config| config.peers = None);
    check(|config| config.lease = None);
}

#[test]
fn a_lease_that_was_renewed_begins_anew() {
    let (mut world, _) = remedied_and_ready();
    cut(&mut world);
    for _ in 0..20 {
        world.run_for(60_000);
        world.silent.remove("API server");
        world.run_for(10_000);
        world.silent.insert("API server".to_owned());
    }
    assert_eq!(world.core.fenced_since(), None);
}

#[test]
fn the_fence_holds_over_kills_and_reboots() {
    let (mut world, _) = fenced();
    for reboots in [false, true, false] {
        world.log.clear();
        if reboots {
            world.reboot();
        } else {
            world.kill_agent();
        }
        world.run_for(600_000);
        assert!(!runs(&world, "kubelet.service") && !runs(&world, "containerd.service"));
        assert!(!world.log.iter().any(|line| line.starts_with("start kubelet")), "{:#?}", world.log);
        assert_eq!(world.core.state(), NodeState::Degraded);
    }
    world.silent.clear();
    world.peers_say(&ANSWERED);
    world.run_until_ready(60_000);
    world.connect();
    world.run_for(10_000);
    assert_eq!(world.events_of(EventKind::Fenced).len(), 1, "told once");
}

#[test]
fn a_kill_at_any_moment_of_fencing_leaves_nothing_running() {
    for ticks in (0..160).step_by(3) {
        let (mut world, config) = remedied_and_ready();
        cut(&mut world);
        world.run_for(79_000);
        world.run_ticks(ticks);
        world.kill_agent();
        world.run_for(120_000);
        assert!(world.core.fenced_since().is_some(), "after {ticks} ticks");
        assert!(
            !runs(&world, "kubelet.service") && !runs(&world, "containerd.service"),
            "after {ticks} ticks"
        );
        assert!(world.acts().contains(&ENDED), "after {ticks} ticks");
        world.silent.clear();
        world.peers_say(&ANSWERED);
        world.run_until_ready(60_000);
        world.assert_converged(&config);
    }
}

#[test]
fn what_does_not_end_ends_with_the_machine() {
    let (mut world, _) = remedied_and_ready();
    world.faults.failing_act = Some(ENDED.to_owned());
    cut(&mut world);
    // Eighty seconds until the lease is over, and ninety in which all has to end.
    world.run_for(160_000);
    assert!(!world.acts().contains(&REBOOT), "{:#?}", world.log);
    // Without the wait after the last try to end it.
    world.run_for(25_000);
    assert_eq!(world.acts().iter().filter(|act| **act == REBOOT).count(), 1);
    world.faults.failing_act = None;
    world.run_for(600_000);
    assert_eq!(world.acts().iter().filter(|act| **act == REBOOT).count(), 1, "{:#?}", world.acts());
    assert_eq!(world.acts().last(), Some(&ENDED));
    assert!(!runs(&world, "kubelet.service") && !runs(&world, "containerd.service"));
    world.connect();
    world.run_for(10_000);
    let told = world.events_of(EventKind::RepairFailed);
    assert_eq!(told.len(), 1, "{told:#?}");
    assert!(told[0].contains("does not end -> the machine is rebooted"), "{told:#?}");
    assert_eq!(world.events_of(EventKind::Fenced).len(), 1);
}

#[test]
fn containers_end_although_a_unit_does_not_stop() {
    let (mut world, _) = remedied_and_ready();
    world.faults.unstoppable = Some("kubelet.service".to_owned());
    cut(&mut world);
    world.run_for(140_000);
    assert_eq!(world.acts(), [ENDED], "once");
    assert!(runs(&world, "kubelet.service"));
    world.run_for(300_000);
    assert_eq!(world.acts(), [ENDED, REBOOT, ENDED], "its next boot begins nothing, and ends what is left");
    assert!(!runs(&world, "kubelet.service"));
}

/// Without the message bus no unit can be stopped and no reboot ordered, and systemd begins anew what was ended.
#[test]
fn what_cannot_be_stopped_is_ended_again_when_no_reboot_can_be_ordered() {
    let (mut world, _) = remedied_and_ready();
    world.faults.unstoppable = Some("kubelet.service".to_owned());
    world.faults.failing_act = Some("reboot".to_owned());
    cut(&mut world);
    world.run_for(600_000);
    let count = |act: &str| world.acts().iter().filter(|done| **done == act).count();
    assert!(count(REBOOT) > 4 && count(ENDED) > 4, "{:#?}", world.acts());
    assert!(world.acts().windows(3).all(|acts| acts.contains(&ENDED)), "{:#?}", world.acts());
    assert!(world.ticks < 20_000, "{} steps", world.ticks);
}

/// The message bus does not come up, and systemd is told to reboot past it: nothing has been started since the last time.
#[test]
fn a_boot_that_began_nothing_is_the_last_one_although_nothing_can_be_seen() {
    let (mut world, _) = fenced();
    let before = world.acts().len();
    world.faults.blind = true;
    world.reboot();
    world.run_for(600_000);
    assert_eq!(world.acts()[before..], [ENDED]);
    // Another agent in the same boot knows as much.
    world.kill_agent();
    world.run_for(600_000);
    assert_eq!(world.acts()[before..], [ENDED, ENDED]);
}

#[test]
fn nothing_is_mended_while_the_machine_has_given_up_its_work() {
    let (mut world, _) = fenced();
    world.faults.disk_percent = 95;
    world.run_for(600_000);
    assert_eq!(world.acts(), [ENDED]);
}
