//! Sessions: who gets one, how it ends, and how an agent comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::time::Duration;

use keelson_protocol::limits::SILENT_AFTER;
use keelson_protocol::message::{Refusal, RefusalCode, ToAgent, ToCoordinator};
use keelson_protocol::wire::ProtocolVersion;
use keelson_protocol::{Incarnation, WallTime};
use keelson_transport::{ClientEvent, CloseCode, Identity, LEAF_LIFE, LinkCa, LinkError, SendError};
use keelson_transport_tests::{Agent, Coordinator, LinkModel, Seen, World, hello};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test(start_paused = true)]
async fn the_identity_of_a_session_is_the_certificates() {
    let world = World::new(1);
    let mut coordinator = Coordinator::start(&world, 1);
    let config = world.client_config(1, &[coordinator.address]);
    let identity = world.identity_with(&world.ca, 5, 3, HOUR);
    // The hello is that of machine 1; only the certificate counts.
    let _agent = Agent::start_with(config, 1, identity);
    let (peer, _) = coordinator.opened().await;
    assert_eq!((peer.machine, peer.incarnation), (World::machine_id(5), Incarnation(3)));
    assert_eq!(peer.not_after.since(peer.not_before), 2 * HOUR);
}

#[tokio::test(start_paused = true)]
async fn agents_return_soon_after_a_polite_restart() {
    let world = World::new(2);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    coordinator.opened().await;
    coordinator.link.shutdown().await;
    let (error, _) = agent.disconnected().await;
    assert!(matches!(error, LinkError::Closed { code: CloseCode::Restarting, .. }), "{error}");
    drop(coordinator);
    let begin = Instant::now();
    let mut coordinator = Coordinator::start(&world, 1);
    coordinator.opened().await;
    assert!(begin.elapsed() < Duration::from_millis(1_500), "{:?}", begin.elapsed());
}

/// How long machine 1 has no session when the coordinator is killed and started again at once.
async fn away_after_kill(reset_key: bool) -> Duration {
    let world = World::new(3);
    let config = || {
        let mut config = world.server_config();
        config.reset_key = config.reset_key.filter(|_| reset_key);
        config
    };
    let mut first = Coordinator::start_with(&world, 1, config());
    tokio::spawn(Agent::start(&world, 1, &[first.address]).live());
    first.heartbeat().await;
    let begin = Instant::now();
    // The socket of the second takes the place of the first's, which can say nothing any more.
    let mut second = Coordinator::start_with(&world, 1, config());
    second.opened().await;
    drop(first);
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_killed_coordinator_is_noticed_by_its_stateless_reset() {
    let away = away_after_kill(true).await;
    assert!(away < SILENT_AFTER, "{away:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_reset_key_the_idle_timeout_notices() {
    let away = away_after_kill(false).await;
    assert!((Duration::from_secs(8)..Duration::from_secs(13)).contains(&away), "{away:?}");
}

#[tokio::test(start_paused = true)]
async fn the_next_coordinator_is_used_when_the_first_is_dead() {
    let world = World::new(4);
    let addresses = [World::coordinator_address(1), World::coordinator_address(2)];
    let mut second = Coordinator::start(&world, 2);
    let begin = Instant::now();
    let mut agent = Agent::start(&world, 1, &addresses);
    let (error, retry_in) = agent.disconnected().await;
    assert!(matches!(error, LinkError::NoAnswer { .. }), "{error}");
    assert!(retry_in < Duration::from_millis(100), "{retry_in:?}");
    assert_eq!(agent.connected().await, addresses[1]);
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    second.opened().await;

    // And back, when the second dies and the first lives.
    let mut first = Coordinator::start(&world, 1);
    second.link.shutdown().await;
    assert_eq!(agent.connected().await, addresses[0]);
    first.opened().await;
}

#[tokio::test(start_paused = true)]
async fn a_fleet_returns_after_a_restart_without_a_storm() {
    const AGENTS: u16 = 150;
    let world = World::new(5);
    let mut coordinator = Coordinator::start(&world, 1);
    for number in 0..AGENTS {
        tokio::spawn(Agent::start(&world, number, &[coordinator.address]).live());
    }
    for _ in 0..AGENTS {
        coordinator.opened().await;
    }
    let begin = Instant::now();
    coordinator.link.shutdown().await;
    drop(coordinator);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut returns = Vec::new();
    for _ in 0..AGENTS {
        coordinator.opened().await;
        returns.push(begin.elapsed());
    }
    assert!(returns[returns.len() - 1] < Duration::from_secs(5), "{returns:?}");
    // Spread over the first backoff at least: never more than a third within ten milliseconds.
    let densest = returns.iter().map(|start| {
        returns.iter().filter(|at| (*start..*start + Duration::from_millis(10)).contains(*at)).count()
    });
    assert!(densest.max().unwrap_or(0) <= usize::from(AGENTS) / 3, "{returns:?}");
}

async fn first_error(world: &World, identity: Identity) -> (LinkError, Coordinator) {
    let coordinator = Coordinator::start(world, 1);
    let config = world.client_config(1, &[coordinator.address]);
    let mut agent = Agent::start_with(config, 1, identity);
    let (error, _) = agent.disconnected().await;
    (error, coordinator)
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_refused() {
    let world = World::new(6);
    let identity = world.identity_with(&world.ca, 1, 1, HOUR);
    tokio::time::advance(HOUR + Duration::from_secs(2)).await;
    let (error, mut coordinator) = first_error(&world, identity).await;
    assert_eq!(error, LinkError::CertificateExpired);
    assert!(coordinator.all_within(Duration::from_secs(1)).await.is_empty());
    assert_eq!(coordinator.link.stats().certificates_refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_not_valid_yet_is_refused_like_an_expired_one() {
    let world = World::new(7);
    let request = keelson_transport::make_key_request().unwrap();
    // It begins earlier by its life.
    let later = world.now().plus(2 * HOUR);
    let chain = world
        .ca
        .sign_machine(&request.signing_request, &World::machine_id(1), Incarnation(1), later, HOUR)
        .unwrap();
    let (error, coordinator) = first_error(&world, Identity { chain, key: request.key }).await;
    // TLS has one alert for both.
    assert_eq!(error, LinkError::CertificateExpired);
    assert_eq!(coordinator.link.stats().certificates_refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_another_ca_is_refused() {
    let world = World::new(8);
    let other = LinkCa::generate("test link CA", world.now(), LEAF_LIFE).unwrap();
    let (error, mut coordinator) = first_error(&world, world.identity_with(&other, 1, 1, HOUR)).await;
    assert!(matches!(error, LinkError::CertificateRefused { .. }), "{error}");
    assert!(coordinator.all_within(Duration::from_secs(1)).await.is_empty());
    assert_eq!(coordinator.link.stats().certificates_refused, 1);
}

#[tokio::test(start_paused = true)]
async fn the_coordinators_own_certificate_is_no_machines() {
    let world = World::new(9);
    let identity = world.ca.issue_server(world.now(), HOUR).unwrap();
    let (error, coordinator) = first_error(&world, identity).await;
    assert!(matches!(error, LinkError::CertificateRefused { .. }), "{error}");
    assert_eq!(coordinator.link.stats().sessions, 0);
}

#[tokio::test(start_paused = true)]
async fn a_machine_cannot_play_the_coordinator() {
    let world = World::new(10);
    let mut config = world.server_config();
    config.identity = world.identity(2);
    let coordinator = Coordinator::start_with(&world, 1, config);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    let (error, _) = agent.disconnected().await;
    assert!(matches!(error, LinkError::NotTrusted { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_coordinator_of_another_ca_is_not_trusted() {
    let world = World::new(11);
    let other = LinkCa::generate("test link CA", world.now(), LEAF_LIFE).unwrap();
    let mut config = world.server_config();
    config.identity = other.issue_server(world.now(), HOUR).unwrap();
    let coordinator = Coordinator::start_with(&world, 1, config);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    let (error, _) = agent.disconnected().await;
    assert!(matches!(&error, LinkError::NotTrusted { why } if why.contains(&other.fingerprint())), "{error}");
    assert_eq!(coordinator.link.stats().sessions, 0);
}

#[tokio::test(start_paused = true)]
async fn a_leaf_of_another_ca_behind_the_right_ca_certificate_is_not_trusted() {
    let world = World::new(12);
    let other = LinkCa::generate("test link CA", world.now(), LEAF_LIFE).unwrap();
    let mut config = world.server_config();
    config.identity = other.issue_server(world.now(), HOUR).unwrap();
    config.identity.chain[1] = world.ca.certificate_der().to_vec();
    let coordinator = Coordinator::start_with(&world, 1, config);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    let (error, _) = agent.disconnected().await;
    assert!(matches!(error, LinkError::NotTrusted { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_with_its_certificate() {
    let world = World::new(13);
    let mut coordinator = Coordinator::start(&world, 1);
    let config = world.client_config(1, &[coordinator.address]);
    let begin = Instant::now();
    let mut agent = Agent::start_with(config, 1, world.identity_with(&world.ca, 1, 1, HOUR));
    agent.connected().await;
    coordinator.opened().await;
    // An hour of keep-alives.
    let ended = tokio::time::timeout(2 * HOUR, async {
        loop {
            if let Some(ClientEvent::Disconnected { error, .. }) = agent.events.recv().await {
                return error;
            }
        }
    });
    assert_eq!(ended.await.unwrap(), LinkError::CertificateExpired);
    assert!((HOUR - Duration::from_secs(2)..HOUR + Duration::from_secs(2)).contains(&begin.elapsed()));
    assert!(coordinator.closed().await.1.contains("expired"));
}

#[tokio::test(start_paused = true)]
async fn an_agent_of_another_version_is_refused_with_both_versions() {
    let world = World::new(14);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut config = world.client_config(1, &[coordinator.address]);
    config.hello = Box::new(|| {
        let mut hello = hello(1);
        if let ToCoordinator::Hello { version_min, version_max, .. } = &mut hello {
            (*version_min, *version_max) = (ProtocolVersion(8), ProtocolVersion(9));
        }
        hello
    });
    let mut agent = Agent::start_with(config, 1, world.identity(1));
    let ClientEvent::Refused(refusal) = agent.next().await else { panic!("no refusal") };
    assert_eq!(refusal.code, RefusalCode::Version);
    assert!(refusal.text.contains("8 to 9") && refusal.text.contains("1 to 1"), "{}", refusal.text);
    let (error, _) = agent.disconnected().await;
    assert_eq!(error, LinkError::Refused { refusal });
    drop(agent);
    assert!(coordinator.all_within(Duration::from_secs(5)).await.is_empty());
    assert_eq!(coordinator.link.stats().sessions, 0);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_by_the_owner_arrives_before_the_end() {
    let world = World::new(15);
    let mut coordinator = Coordinator::start(&world, 1);
    coordinator.stay_silent();
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    let (_, session) = coordinator.opened().await;
    let refusal = Refusal { code: RefusalCode::SecondHolder, text: "another machine has this name".into() };
    session.send(ToAgent::Refused(refusal.clone())).unwrap();
    session.close("second holder");
    let ClientEvent::Refused(got) = agent.next().await else { panic!("no refusal") };
    assert_eq!(got, refusal);
    assert_eq!(agent.disconnected().await.0, LinkError::Refused { refusal });
    assert_eq!(coordinator.closed().await, (session.id(), "second holder".to_owned()));
    assert!(!agent.link.is_connected());
    assert_eq!(
        agent.link.send(ToCoordinator::TimeRequest { asked_at: WallTime(0) }),
        Err(SendError::NotConnected)
    );
}

#[tokio::test(start_paused = true)]
async fn a_polite_close_delivers_what_was_queued() {
    let world = World::new(16);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    let (_, session) = coordinator.opened().await;
    for through in 0..50 {
        session.send(ToAgent::EventsStored { through }).unwrap();
    }
    session.close("the test is over");
    for through in 0..50 {
        assert_eq!(agent.message().await, ToAgent::EventsStored { through });
    }
    let (error, _) = agent.disconnected().await;
    let LinkError::Closed { code, .. } = &error else { panic!("{error}") };
    assert_eq!(*code, CloseCode::Ended);
    assert_eq!(coordinator.closed().await.1, "the test is over");
    assert_eq!(session.send(ToAgent::EventsStored { through: 0 }), Err(SendError::NotConnected));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_take_its_messages_loses_its_session() {
    let world = World::new(17);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    let (_, session) = coordinator.opened().await;
    // The agent reads no event from here on. Its channel, QUIC's windows and the queue fill up, in this order.
    let long = "x".repeat(60_000);
    let mut sent = 0;
    let error = loop {
        let message = ToAgent::CertificateRefused { name: "kubelet".into(), why: long.clone() };
        match session.send(message) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 1_000, "nothing limits the queue");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(error, SendError::QueueFull);
    assert!(coordinator.closed().await.1.contains("does not take its messages"));
    let (error, _) = agent.disconnected().await;
    assert!(matches!(error, LinkError::Closed { code: CloseCode::QueueFull, .. }), "{error}");
    agent.connected().await;
    coordinator.opened().await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_behind_makes_the_agent_wait() {
    let world = World::new(18);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    coordinator.opened().await;
    let message = |asked_at| ToCoordinator::TimeRequest { asked_at: WallTime(asked_at) };
    coordinator.stall();
    for asked_at in 0..40 {
        agent.link.send(message(asked_at)).unwrap();
    }
    coordinator.go_on();
    for asked_at in 0..40 {
        assert_eq!(coordinator.message().await.1, message(asked_at));
    }
    // At once, far more than the queue holds: the client says so instead of growing.
    let refused = (0..1_000).find_map(|n| agent.link.send(message(n)).err());
    assert_eq!(refused, Some(SendError::QueueFull));
    let (error, _) = agent.disconnected().await;
    assert!(matches!(error, LinkError::ClosedHere { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn more_sessions_than_allowed_are_turned_away() {
    let world = World::new(19);
    let mut config = world.server_config();
    config.sessions_max = 2;
    let mut coordinator = Coordinator::start_with(&world, 1, config);
    let mut agents = Vec::new();
    for number in 0..2 {
        agents.push(Agent::start(&world, number, &[coordinator.address]));
        coordinator.opened().await;
    }
    let mut third = Agent::start(&world, 2, &[coordinator.address]);
    assert_eq!(third.disconnected().await.0, LinkError::Busy);
    assert_eq!(coordinator.link.stats().busy, 1);
    drop(agents.pop());
    coordinator.closed().await;
    third.connected().await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_says_so() {
    let world = World::new(20);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 1, &[coordinator.address]);
    agent.connected().await;
    coordinator.opened().await;
    let begin = Instant::now();
    agent.link.shutdown().await;
    let (_, why) = coordinator.closed().await;
    assert!(why.contains("the agent stops"), "{why}");
    assert!(begin.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_without_a_session_is_dropped() {
    let world = World::new(21);
    let mut agent = Agent::start(&world, 1, &[World::coordinator_address(1)]);
    agent.beat();
    agent.disconnected().await;
    let mut coordinator = Coordinator::start(&world, 1);
    agent.connected().await;
    agent.beat();
    assert_eq!(coordinator.heartbeat().await.1.sequence, 2);
}

#[tokio::test(start_paused = true)]
async fn a_fleet_that_cannot_reach_anybody_backs_off() {
    let world = World::new(22);
    world.network.set_default(LinkModel::CUT);
    let mut agent = Agent::start(&world, 1, &[World::coordinator_address(1)]);
    let mut longest = Duration::ZERO;
    for _ in 0..30 {
        longest = longest.max(agent.disconnected().await.1);
    }
    assert!((Duration::from_secs(8)..Duration::from_secs(15)).contains(&longest), "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_comes_of_a_session_after_it_closed() {
    let world = World::new(23);
    let mut coordinator = Coordinator::start(&world, 1);
    tokio::spawn(Agent::start(&world, 1, &[coordinator.address]).live());
    let (_, session) = coordinator.opened().await;
    coordinator.heartbeat().await;
    session.close("for a test");
    let mut closed = false;
    for seen in coordinator.all_within(Duration::from_secs(10)).await {
        match seen {
            Seen::Closed(id, _) if id == session.id() => {
                assert!(!closed, "closed twice");
                closed = true;
            }
            Seen::Heartbeat(id, ..) | Seen::Message(id, _) if id == session.id() => {
                assert!(!closed, "something came after the end");
            }
            _ => {}
        }
    }
    assert!(closed);
}
