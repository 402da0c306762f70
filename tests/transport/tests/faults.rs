//! A network that loses, delays, reorders, doubles and cuts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::BTreeSet;
use std::time::Duration;

use keelson_protocol::WallTime;
use keelson_protocol::limits::HEARTBEAT_INTERVAL;
use keelson_protocol::message::{ToAgent, ToCoordinator};
use keelson_transport::{LinkError, SessionHandle};
use keelson_transport_tests::{Agent, Coordinator, LinkModel, Seen, World};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

struct Outcome {
    heartbeats: Vec<u64>,
    messages: Vec<i64>,
    sessions: usize,
    received: Vec<u64>,
}

/// Two minutes over such a network: a heartbeat a second, a message each second both ways.
async fn two_minutes(seed: u64, model: LinkModel) -> Outcome {
    let world = World::new(seed);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    let (_, session) = coordinator.opened().await;
    world.network.set_default(model);
    let mut outcome = Outcome { heartbeats: vec![], messages: vec![], sessions: 1, received: vec![] };
    let speak = async {
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        let mut received = Vec::new();
        for number in 0..120 {
            ticks.tick().await;
            agent.beat();
            agent.link.send(ToCoordinator::TimeRequest { asked_at: WallTime(number) }).unwrap();
            session.send(ToAgent::EventsStored { through: number.unsigned_abs() }).unwrap();
        }
        while received.len() < 120 {
            if let ToAgent::EventsStored { through } = agent.message().await {
                received.push(through);
            }
        }
        received
    };
    let listen = async {
        for seen in coordinator.all_within(3 * MINUTE).await {
            match seen {
                Seen::Heartbeat(_, heartbeat, _) => outcome.heartbeats.push(heartbeat.sequence),
                Seen::Message(_, ToCoordinator::TimeRequest { asked_at }) => {
                    outcome.messages.push(asked_at.0)
                }
                Seen::Opened(..) => outcome.sessions += 1,
                other => panic!("{other:?}"),
            }
        }
    };
    let (received, ()) = tokio::join!(speak, listen);
    outcome.received = received;
    outcome
}

fn assert_all_messages(outcome: &Outcome) {
    assert_eq!(outcome.sessions, 1, "the session broke");
    assert_eq!(outcome.messages, (0..120).collect::<Vec<_>>());
    assert_eq!(outcome.received, (0..120).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn loss_costs_heartbeats_but_no_message_and_no_session() {
    for seed in 0..10 {
        let model = LinkModel { delay: Duration::from_millis(20), loss_permille: 200, ..LinkModel::GOOD };
        let outcome = two_minutes(seed, model).await;
        assert_all_messages(&outcome);
        let arrived = outcome.heartbeats.len();
        assert!((70..118).contains(&arrived), "seed {seed}: {arrived} of 120 heartbeats with 20 % loss");
    }
}

#[tokio::test(start_paused = true)]
async fn reordered_and_doubled_packets_change_nothing() {
    for seed in 0..10 {
        let model = LinkModel {
            delay: Duration::from_millis(5),
            jitter: Duration::from_millis(400),
            duplicate_permille: 300,
            ..LinkModel::GOOD
        };
        let outcome = two_minutes(seed, model).await;
        assert_all_messages(&outcome);
        let distinct = outcome.heartbeats.iter().collect::<BTreeSet<_>>();
        assert_eq!(distinct.len(), outcome.heartbeats.len(), "a heartbeat came twice");
        assert_eq!(distinct.len(), 120, "nothing was lost, so every heartbeat arrives");
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_cut_is_survived_within_the_session() {
    let world = World::new(1);
    let mut coordinator = Coordinator::start(&world, 1);
    tokio::spawn(Agent::start(&world, 1, &[coordinator.address]).live());
    let (_, session) = coordinator.opened().await;
    coordinator.heartbeat().await;
    world.network.set_default(LinkModel::CUT);
    assert!(coordinator.all_within(Duration::from_secs(6)).await.is_empty());
    world.network.set_default(LinkModel::GOOD);
    assert_eq!(coordinator.heartbeat().await.0, session.id());
}

/// Cuts one direction, and returns how long each side took to see it, and how long the agent took to come back after
/// the cut was healed.
async fn one_way(to_coordinator: bool) -> (Duration, Duration, Duration) {
    let world = World::new(2);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    let (_, session) = coordinator.opened().await;
    let (machine, server) = (World::machine_ip(1), coordinator.address.ip());
    let path = if to_coordinator { (machine, server) } else { (server, machine) };
    world.network.set_path(path.0, path.1, LinkModel::CUT);
    let begin = Instant::now();
    let (agent_saw, coordinator_saw) = tokio::join!(
        async {
            let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
            loop {
                // biased: both are cancel-safe.
                tokio::select! {
                    biased;
                    _ = ticks.tick() => agent.beat(),
                    (error, _) = agent.disconnected() => {
                        assert!(matches!(error, LinkError::Lost { .. }), "{error}");
                        return begin.elapsed();
                    }
                }
            }
        },
        async {
            loop {
                let (closed, _) = coordinator.closed().await;
                if closed == session.id() {
                    return begin.elapsed();
                }
            }
        }
    );
    assert!(!agent.link.is_connected());
    world.network.set_path(path.0, path.1, LinkModel::GOOD);
    let healed = Instant::now();
    agent.connected().await;
    (agent_saw, coordinator_saw, healed.elapsed())
}

fn assert_seconds(what: &str, got: Duration, range: std::ops::Range<u64>) {
    assert!(
        (Duration::from_secs(range.start)..Duration::from_secs(range.end)).contains(&got),
        "{what}: {got:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cut_towards_the_coordinator_is_seen_by_both_sides_and_heals() {
    let (agent, coordinator, back) = one_way(true).await;
    assert_seconds("agent", agent, 9..15);
    assert_seconds("coordinator", coordinator, 9..15);
    assert_seconds("back", back, 0..20);
}

#[tokio::test(start_paused = true)]
async fn a_cut_towards_the_machine_is_seen_by_both_sides_and_heals() {
    let (agent, coordinator, back) = one_way(false).await;
    assert_seconds("agent", agent, 9..15);
    // The coordinator hears heartbeats until the agent gives up, or the agent's close arrives.
    assert_seconds("coordinator", coordinator, 9..25);
    assert_seconds("back", back, 0..20);
}

#[tokio::test(start_paused = true)]
async fn a_large_config_arrives_over_a_bad_network() {
    let world = World::new(3);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    let session: SessionHandle = coordinator.opened().await.1;
    world.network.set_default(LinkModel {
        delay: Duration::from_millis(20),
        loss_permille: 20,
        ..LinkModel::GOOD
    });
    let chain = (0..40_u8).map(|byte| vec![byte; 100_000]).collect::<Vec<_>>();
    let message = ToAgent::Certificate { name: "large".into(), chain };
    session.send(message.clone()).unwrap();
    assert_eq!(agent.message().await, message);
}
