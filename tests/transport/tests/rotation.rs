//! New certificates in place: nobody outside sees that anything happened.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::Duration;

use keelson_protocol::limits::HEARTBEAT_INTERVAL;
use keelson_protocol::{Incarnation, WallTime};
use keelson_transport::{LEAF_LIFE, LinkCa, LinkError, renew_at};
use keelson_transport_tests::{Agent, Coordinator, LinkModel, Seen, World};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3_600);

#[test]
fn certificates_are_renewed_after_two_thirds_of_their_life() {
    for (not_before, not_after, expected) in [
        (0, 24 * 3_600_000, 16 * 3_600_000),
        (1_000, 4_000, 3_000),
        (0, 1, 0),
        (0, 2, 1),
        (-300, 0, -100),
        (5, 5, 5),
        (9, 5, 9),
        (0, i64::MAX, 6_148_914_691_236_517_204),
    ] {
        assert_eq!(
            renew_at(WallTime(not_before), WallTime(not_after)),
            WallTime(expected),
            "{not_before}..{not_after}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_moves_to_a_new_certificate_without_losing_a_heartbeat() {
    for (seed, model) in [
        (1, LinkModel::GOOD),
        (
            2,
            LinkModel {
                delay: Duration::from_millis(80),
                jitter: Duration::from_millis(5),
                ..LinkModel::GOOD
            },
        ),
    ] {
        let world = World::new(seed);
        world.network.set_default(model);
        let mut coordinator = Coordinator::start(&world, 1);
        let mut agent = Agent::start(&world, 1, &[coordinator.address]);
        agent.connected().await;
        let mut open = vec![coordinator.opened().await.1.id()];
        let live = async {
            let mut ticks = tokio::time::interval(Duration::from_millis(300));
            for beat in 0..200 {
                ticks.tick().await;
                agent.beat();
                if beat % 40 == 20 {
                    let next = world.identity_with(&world.ca, 1, 1, LEAF_LIFE + Duration::from_secs(beat));
                    agent.link.replace_identity(next);
                }
                while let Ok(event) = agent.events.try_recv() {
                    let lost = matches!(event, keelson_transport::ClientEvent::Disconnected { .. });
                    assert!(!lost, "{event:?}");
                }
            }
        };
        let mut heartbeats = Vec::new();
        let mut replaced = 0;
        let listen = async {
            for seen in coordinator.all_within(Duration::from_secs(70)).await {
                match seen {
                    Seen::Heartbeat(session, heartbeat, _) => {
                        assert!(open.contains(&session));
                        heartbeats.push(heartbeat.sequence);
                    }
                    Seen::Opened(peer, session) => {
                        assert_eq!(peer.incarnation, Incarnation(1));
                        open.push(session.id());
                        assert!(open.len() <= 2, "at most two sessions at a time");
                    }
                    Seen::Closed(session, why) => {
                        assert!(why.contains("newer certificate"), "{why}");
                        open.retain(|id| *id != session);
                        replaced += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::join!(live, listen);
        heartbeats.sort_unstable();
        assert_eq!(heartbeats, (1..=200).collect::<Vec<_>>(), "seed {seed}");
        assert_eq!((replaced, open.len()), (5, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_renews_in_time_never_notices_that_certificates_end() {
    let world = World::new(3);
    let mut coordinator = Coordinator::start(&world, 1);
    let config = world.client_config(1, &[coordinator.address]);
    let mut agent = Agent::start_with(config, 1, world.identity_with(&world.ca, 1, 1, HOUR));
    agent.connected().await;
    let begin = Instant::now();
    let live = async {
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        let mut renew = begin + HOUR * 2 / 3;
        while begin.elapsed() < 4 * HOUR {
            ticks.tick().await;
            agent.beat();
            if Instant::now() >= renew {
                agent.link.replace_identity(world.identity_with(&world.ca, 1, 1, HOUR));
                renew += HOUR * 2 / 3;
            }
            while let Ok(event) = agent.events.try_recv() {
                let lost = matches!(event, keelson_transport::ClientEvent::Disconnected { .. });
                assert!(!lost, "{event:?}");
            }
        }
    };
    let mut sequences = Vec::new();
    let listen = async {
        for seen in coordinator.all_within(4 * HOUR + Duration::from_secs(5)).await {
            if let Seen::Heartbeat(_, heartbeat, _) = seen {
                sequences.push(heartbeat.sequence);
            }
        }
    };
    tokio::join!(live, listen);
    let count = sequences.len() as u64;
    assert_eq!(sequences, (1..=count).collect::<Vec<_>>());
    assert!(count >= 4 * 3_600, "{count}");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_not_accepted_does_not_end_the_session() {
    let world = World::new(4);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    let (_, session) = coordinator.opened().await;
    let other = LinkCa::generate("other", world.now(), LEAF_LIFE).unwrap();
    agent.link.replace_identity(world.identity_with(&other, 1, 1, HOUR));
    let seen = coordinator.all_within(Duration::from_secs(60)).await;
    assert!(seen.is_empty(), "{seen:?}");
    assert!(coordinator.link.stats().certificates_refused >= 1);
    agent.beat();
    assert_eq!(coordinator.heartbeat().await.0, session.id());
    // And a good one is taken afterwards.
    agent.link.replace_identity(world.identity(1));
    let (_, moved) = coordinator.opened().await;
    assert_eq!(coordinator.closed().await.0, session.id());
    agent.beat();
    assert_eq!(coordinator.heartbeat().await.0, moved.id());
}

#[tokio::test(start_paused = true)]
async fn a_new_certificate_ends_the_wait_for_the_next_try() {
    let world = World::new(5);
    let mut coordinator = Coordinator::start(&world, 1);
    let expired = world.identity_with(&world.ca, 1, 1, Duration::from_secs(1));
    tokio::time::advance(Duration::from_secs(3)).await;
    let config = world.client_config(1, &[coordinator.address]);
    let mut agent = Agent::start_with(config, 1, expired);
    let (error, _) = agent.disconnected().await;
    assert_eq!(error, LinkError::CertificateExpired);
    let begin = Instant::now();
    agent.link.replace_identity(world.identity(1));
    agent.connected().await;
    coordinator.opened().await;
    assert!(begin.elapsed() < Duration::from_millis(100), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_coordinators_certificate_changes_under_open_sessions() {
    let world = World::new(6);
    let mut config = world.server_config();
    config.identity = world.ca.issue_server(world.now(), HOUR).unwrap();
    let mut coordinator = Coordinator::start_with(&world, 1, config);
    let mut first = Agent::start(&world, 1, &[coordinator.address]);
    first.connected().await;
    let (_, session) = coordinator.opened().await;

    // Without the new certificate, machines that come after the end of the old one trust nobody.
    let after_end = 2 * HOUR;
    let seen = coordinator.all_within(after_end).await;
    assert!(seen.is_empty(), "{seen:?}");
    let mut late = Agent::start(&world, 2, &[coordinator.address]);
    let (error, _) = late.disconnected().await;
    assert!(matches!(error, LinkError::NotTrusted { .. }), "{error}");

    coordinator.link.replace_identity(world.ca.issue_server(world.now(), HOUR).unwrap());
    late.connected().await;
    let (peer, _) = coordinator.opened().await;
    assert_eq!(peer.machine, World::machine_id(2));
    // The session that stood all the time still stands.
    first.beat();
    assert_eq!(coordinator.heartbeat().await.0, session.id());
}

#[tokio::test(start_paused = true)]
async fn an_identity_that_cannot_be_used_leaves_the_old_one_in_place() {
    let world = World::new(7);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut broken = world.ca.issue_server(world.now(), HOUR).unwrap();
    broken.key = world.identity(1).key;
    coordinator.link.replace_identity(broken);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    coordinator.opened().await;
}
