//! Peers in virtual time: when neighbours are asked, what that says about this machine, and questions of the coordinator.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]

mod support;

use keelson_agent_core::{Isolation, IsolationStatus};
use keelson_protocol::config::PeerSpec;
use keelson_protocol::health::EventKind;
use keelson_protocol::limits::PEER_WHY_BYTES_MAX;
use keelson_protocol::message::ToCoordinator;
use keelson_protocol::peer::{PeerAnswer, PeerSaid, PeerTarget};
use keelson_protocol::{Generation, MachineId, SecretBytes, WallTime};
use support::*;

const ANSWERED: PeerSaid = PeerSaid::Answered { round_trip_us: 200 };

fn failed() -> PeerSaid {
    PeerSaid::Failed { why: "no buffer space".to_owned() }
}

/// What is known, without the moment.
fn known(world: &World) -> &'static str {
    match world.core.isolation() {
        Isolation::Connected => "connected",
        Isolation::Unknown { .. } => "unknown",
        Isolation::LinkOnly { .. } => "link only",
        Isolation::Alone { .. } => "alone",
    }
}

#[test]
fn nobody_is_asked_while_the_coordinator_is_there_or_away_for_a_moment() {
    let (mut world, _) = ready();
    world.run_for(3_600_000);
    assert_eq!(known(&world), "connected");
    for _ in 0..10 {
        world.disconnect();
        assert_eq!(known(&world), "unknown");
        world.run_for(4_900);
        world.connect();
        assert_eq!(known(&world), "connected");
        world.run_for(1_000);
    }
    assert_eq!(world.peers_asked, []);
}

/// A silence of the link, step by step: what the neighbours say from some moment on, and what is known a while later.
#[test]
fn isolation_follows_what_the_neighbours_say() {
    fn check(script: &[(&PeerSaid, u64, &str)]) {
        let (mut world, _) = ready();
        world.disconnect();
        for (step, (said, ms, expected)) in script.iter().enumerate() {
            world.peers_say(said);
            world.run_for(*ms);
            assert_eq!(known(&world), *expected, "step {step} of {script:?}");
        }
        world.connect();
        assert_eq!(known(&world), "connected");
    }
    let (silent, refused, failed) = (PeerSaid::Silent, PeerSaid::Refused, failed());
    // The first round comes after five seconds, the second after ten.
    check(&[(&ANSWERED, 4_900, "unknown"), (&ANSWERED, 200, "link only")]);
    check(&[(&refused, 4_900, "unknown"), (&refused, 200, "link only")]);
    check(&[(&silent, 9_900, "unknown"), (&silent, 200, "alone"), (&silent, 600_000, "alone")]);
    check(&[(&silent, 11_000, "alone"), (&ANSWERED, 5_000, "link only"), (&silent, 5_000, "link only")]);
    check(&[(&silent, 11_000, "alone"), (&ANSWERED, 5_000, "link only"), (&silent, 10_000, "alone")]);
    check(&[(&silent, 6_000, "unknown"), (&ANSWERED, 5_000, "link only"), (&silent, 5_000, "link only")]);
    // Who could not ask knows nothing, and nothing new.
    check(&[(&failed, 600_000, "unknown"), (&silent, 5_000, "unknown"), (&silent, 5_000, "alone")]);
    check(&[(&silent, 11_000, "alone"), (&failed, 600_000, "alone"), (&ANSWERED, 5_000, "link only")]);
}

#[test]
fn one_neighbour_that_can_be_reached_is_enough() {
    let (mut world, _) = ready();
    world.peers_say(&PeerSaid::Silent);
    world.peers.insert(neighbours()[2].machine.clone(), PeerSaid::Refused);
    world.disconnect();
    world.run_for(60_000);
    assert_eq!(known(&world), "link only");
    world.peers_say(&PeerSaid::Silent);
    world.peers.insert(neighbours()[0].machine.clone(), failed());
    world.run_for(10_000);
    assert_eq!(known(&world), "alone");
}

#[test]
fn being_cut_off_and_coming_back_is_told_once() {
    let (mut world, _) = ready();
    world.run_for(5_000);
    world.disconnect();
    world.peers_say(&PeerSaid::Silent);
    let lost = world.now;
    world.run_for(60_000);
    // The second round comes after ten seconds, and its answer some milliseconds later.
    let Isolation::Alone { since } = world.core.isolation() else { panic!("{}", known(&world)) };
    assert!((10_000..10_020).contains(&(since.0 - lost)), "{since:?}");
    let status = world.core.status();
    let wall = WallTime(1_700_000_000_000 + i64::try_from(since.0).unwrap());
    assert_eq!(status.isolation, IsolationStatus::Alone { since_ms: wall.0 });
    world.peers_say(&ANSWERED);
    world.run_for(60_000);
    world.peers_say(&PeerSaid::Silent);
    world.run_for(20_000);
    world.connect();
    world.run_for(5_000);
    assert_eq!(
        world.events_of(EventKind::PeersLost),
        [
            "peers: no coordinator for 10 s, and none of 3 neighbours answered 2 times in a row -> this machine is cut off; it goes on as it was told",
            "peers: no coordinator for 125 s, and none of 3 neighbours answered 2 times in a row -> this machine is cut off; it goes on as it was told",
        ]
    );
    assert_eq!(
        world.events_of(EventKind::PeersBack),
        [
            "peers: demo-worker-3 can be reached again -> this machine was cut off for 50 s",
            "peers: the coordinator is back -> this machine was cut off for 14 s",
        ]
    );
}

#[test]
fn a_coordinator_that_is_away_makes_no_event_and_little_work() {
    let (mut world, _) = ready();
    world.run_for(5_000);
    world.disconnect();
    let events = world.core.status().events_waiting;
    world.run_for(3_600_000);
    assert_eq!(known(&world), "link only");
    assert_eq!(world.core.status().events_waiting, events, "{:#?}", world.core.status().events);
    let rounds = world.peers_asked.len();
    assert!((719..=720).contains(&rounds), "{rounds} rounds in an hour");
}

#[test]
fn an_agent_that_starts_without_a_coordinator_asks_its_neighbours() {
    let (mut world, _) = ready();
    world.disconnect();
    world.peers_say(&PeerSaid::Silent);
    world.reboot();
    assert_eq!(known(&world), "unknown");
    world.run_for(11_000);
    assert_eq!(known(&world), "alone");
}

#[test]
fn a_machine_without_neighbours_knows_nothing() {
    let (mut world, config) = ready();
    let mut next = config;
    next.generation = Generation(2);
    next.peers.as_mut().unwrap().neighbours.clear();
    world.offer(&next);
    world.run_until_ready(10_000);
    world.disconnect();
    world.run_for(600_000);
    assert_eq!((known(&world), world.peers_asked.len()), ("unknown", 0));
}

#[test]
fn peers_are_answered_anew_when_key_or_port_change_and_only_then() {
    let (mut world, config) = ready();
    let check = |world: &mut World, change: fn(&mut PeerSpec), steps: usize| {
        let mut next = config.clone();
        next.generation = world.core.generation().unwrap().next();
        change(next.peers.as_mut().unwrap());
        world.log.clear();
        world.offer(&next);
        world.run_for(3_000);
        world.assert_converged(&next);
        assert_eq!(
            world.log.iter().filter(|line| *line == "answer peers").count(),
            steps,
            "{:#?}",
            world.log
        );
    };
    check(&mut world, |peers| peers.neighbours.truncate(1), 0);
    check(&mut world, |peers| peers.key = SecretBytes::new(vec![9; 32]), 1);
    check(&mut world, |peers| peers.listen.set_ip([10, 0, 0, 13].into()), 1);
}

/// Numbers of the questions that were answered.
fn answered(world: &World) -> Vec<u64> {
    let id = |message: &ToCoordinator| match message {
        ToCoordinator::PeersProbed { id, .. } => Some(*id),
        _ => None,
    };
    world.received.iter().filter_map(id).collect()
}

#[test]
fn the_coordinator_gets_what_every_peer_said() {
    let (mut world, _) = ready();
    let names: Vec<MachineId> = neighbours().into_iter().map(|peer| peer.machine).collect();
    world.peers.insert(names[1].clone(), PeerSaid::Refused);
    world.peers.insert(names[2].clone(), PeerSaid::Failed { why: "ä".repeat(PEER_WHY_BYTES_MAX) });
    world.ask(77, neighbours());
    world.run_for(100);
    let cut = PeerSaid::Failed { why: "ä".repeat(PEER_WHY_BYTES_MAX / 2) };
    let said = [ANSWERED, PeerSaid::Refused, cut];
    let answers = names.into_iter().zip(said).map(|(machine, said)| PeerAnswer { machine, said }).collect();
    assert!(world.received.contains(&ToCoordinator::PeersProbed { id: 77, answers }));
    assert_eq!(known(&world), "connected");
}

#[test]
fn an_agent_without_a_config_says_that_it_cannot_ask() {
    let mut world = world();
    world.ask(5, neighbours());
    world.run_for(100);
    let why = "this machine was not told how to ask its peers".to_owned();
    let said = PeerSaid::Failed { why };
    let answer = |peer: PeerTarget| PeerAnswer { machine: peer.machine, said: said.clone() };
    let answers = neighbours().into_iter().map(answer).collect();
    assert!(world.received.contains(&ToCoordinator::PeersProbed { id: 5, answers }));
}

#[test]
fn of_too_many_questions_the_oldest_are_not_answered() {
    let (mut world, _) = ready();
    for id in 1..=7 {
        world.ask(id, neighbours());
    }
    world.run_for(100);
    assert_eq!(answered(&world), [4, 5, 6, 7]);
    world.ask(8, neighbours());
    world.run_for(100);
    assert_eq!(answered(&world), [4, 5, 6, 7, 8]);
}

#[test]
fn a_question_is_not_answered_in_another_session() {
    let (mut world, _) = ready();
    world.ask(1, neighbours());
    world.run_ticks(1);
    world.disconnect();
    world.connect();
    world.run_for(1_000);
    assert_eq!(answered(&world), [] as [u64; 0]);
}
