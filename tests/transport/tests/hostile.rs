//! Peers that keep no rule. Each is told what it did wrong, costs little, and harms nobody else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use keelson_protocol::limits;
use keelson_protocol::message::{EnrolRequest, ToAgent, ToCoordinator};
use keelson_protocol::wire::{self, Message, VERSION_MAX, encode, encode_framed};
use keelson_protocol::{Incarnation, SecretBytes, WallTime};
use keelson_transport::settings::{
    HEARTBEAT_BURST_MAX, HEARTBEATS_MALFORMED_MAX, HEARTBEATS_PER_SECOND_MAX, MESSAGE_BURST_MAX,
};
use keelson_transport::{ClientEvent, CloseCode, LinkError, SessionHandle};
use keelson_transport_tests::raw::{self, RawConfig};
use keelson_transport_tests::{Agent, Coordinator, Seen, World, heartbeat, hello};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionError, EndpointConfig, TokioRuntime};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::Instant;

fn time_request() -> ToCoordinator {
    ToCoordinator::TimeRequest { asked_at: WallTime(1) }
}

fn enrol_request() -> EnrolRequest {
    EnrolRequest {
        machine: World::machine_id(1),
        incarnation: Incarnation(1),
        token: SecretBytes::new(vec![1]),
        signing_request: vec![2],
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// Sends `bytes` on the first stream, and returns how the coordinator closes.
async fn first_bytes(config: impl Fn(&World) -> RawConfig, bytes: &[u8]) -> (CloseCode, String) {
    let world = World::new(1);
    let mut coordinator = Coordinator::start(&world, 1);
    let connection = raw::connect(&world, 1, coordinator.address, config(&world)).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    let (code, reason) = raw::close_of(&connection).await;
    let seen = coordinator.all_within(Duration::from_secs(1)).await;
    assert!(seen.is_empty(), "the owner was bothered: {seen:?}");
    let stats = coordinator.link.stats();
    assert_eq!((stats.protocol_errors, stats.sessions), (1, 0), "{stats:?}");
    (CloseCode::from_wire(code), reason)
}

fn machine(world: &World) -> RawConfig {
    RawConfig::with(world.identity(1))
}

fn nobody(_: &World) -> RawConfig {
    RawConfig::anonymous()
}

#[tokio::test(start_paused = true)]
async fn a_session_without_a_certificate_is_told_to_enrol() {
    let (code, reason) = first_bytes(nobody, &encode_framed(&hello(1)).unwrap()).await;
    assert_eq!(
        (code, reason.as_str()),
        (CloseCode::CertificateRequired, "a session needs a certificate; enrol first")
    );
}

#[tokio::test(start_paused = true)]
async fn an_enrolment_with_a_certificate_is_told_to_open_a_session() {
    let (code, reason) = first_bytes(machine, &encode_framed(&enrol_request()).unwrap()).await;
    assert_eq!(code, CloseCode::AlreadyEnrolled, "{reason}");
}

async fn check_protocol(config: impl Fn(&World) -> RawConfig, bytes: &[u8], expected: &str) {
    let (code, reason) = first_bytes(config, bytes).await;
    assert_eq!(code, CloseCode::Protocol, "{reason}");
    assert!(reason.contains(expected), "`{reason}` says nothing of `{expected}`");
}

#[tokio::test(start_paused = true)]
async fn bad_first_messages_of_an_enrolment() {
    let good = encode(&enrol_request()).unwrap();
    let mut wrong_version = good.clone();
    wrong_version[1] = 9;
    let mut wrong_kind = good.clone();
    wrong_kind[2] = ToAgent::KIND;
    let trailing = [&good[..], &[0]].concat();
    check_protocol(nobody, &framed(&wrong_version), "version 9").await;
    check_protocol(nobody, &framed(&wrong_kind), "kind 5").await;
    check_protocol(nobody, &framed(&trailing), "malformed").await;
    check_protocol(nobody, &framed(&good[..good.len() - 1]), "malformed").await;
    check_protocol(nobody, &framed(&[0, 1]), "too few").await;
    // Only the length is sent: it is refused before any content comes.
    let too_long = u32::try_from(limits::ENROL_BYTES_MAX + 1).unwrap();
    check_protocol(nobody, &too_long.to_be_bytes(), "16385 bytes were announced").await;
    check_protocol(nobody, &u32::MAX.to_be_bytes(), "4294967295 bytes were announced").await;
}

#[tokio::test(start_paused = true)]
async fn bad_first_messages_of_a_session() {
    let good = encode(&hello(1)).unwrap();
    let mut wrong_version = good.clone();
    wrong_version[0] = 1;
    let mut wrong_kind = good.clone();
    wrong_kind[2] = 99;
    check_protocol(machine, &framed(&wrong_version), "version 257").await;
    check_protocol(machine, &framed(&wrong_kind), "kind 99").await;
    check_protocol(machine, &framed(&good[..10]), "malformed").await;
    check_protocol(machine, &encode_framed(&time_request()).unwrap(), "no hello").await;
    let too_long = u32::try_from(limits::TO_COORDINATOR_BYTES_MAX + 1).unwrap();
    check_protocol(machine, &too_long.to_be_bytes(), "were announced").await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_closed() {
    for (config, limit_s) in [(machine as fn(&World) -> RawConfig, 5), (nobody, 5)] {
        let world = World::new(2);
        let coordinator = Coordinator::start(&world, 1);
        let connection = raw::connect(&world, 1, coordinator.address, config(&world)).await.unwrap();
        let begin = Instant::now();
        let (code, _) = raw::close_of(&connection).await;
        assert_eq!(CloseCode::from_wire(code), CloseCode::Timeout);
        assert_eq!(begin.elapsed().as_secs(), limit_s);
    }
}

/// A session that stands, held by a peer that keeps no rule.
struct RawSession {
    connection: quinn::Connection,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    handle: SessionHandle,
}

async fn session(world: &World, coordinator: &mut Coordinator) -> RawSession {
    let connection = raw::connect(world, 1, coordinator.address, machine(world)).await.unwrap();
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(&encode_framed(&hello(1)).unwrap()).await.unwrap();
    let (_, handle) = coordinator.opened().await;
    RawSession { connection, send, recv, handle }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_to_listen_loses_its_session() {
    let world = World::new(14);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut peer = session(&world, &mut coordinator).await;
    peer.recv.stop(7_u32.into()).unwrap();
    // The coordinator has something to say once a second, and notices.
    let close = tokio::spawn({
        let connection = peer.connection.clone();
        async move { raw::close_of(&connection).await }
    });
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    while peer.handle.send(ToAgent::EventsStored { through: 1 }).is_ok() {
        ticks.tick().await;
    }
    let (code, reason) = close.await.unwrap();
    assert_eq!(CloseCode::from_wire(code), CloseCode::Protocol, "{reason}");
    coordinator.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_hello_ends_the_session() {
    let world = World::new(3);
    let mut coordinator = Coordinator::start(&world, 1);
    let RawSession { connection, mut send, recv: _recv, .. } = session(&world, &mut coordinator).await;
    send.write_all(&encode_framed(&hello(1)).unwrap()).await.unwrap();
    assert_eq!(raw::close_of(&connection).await, (2, "a second hello came".into()));
    assert_eq!(coordinator.closed().await.1, "a second hello came");
}

#[tokio::test(start_paused = true)]
async fn rubbish_within_a_session_ends_it() {
    let world = World::new(4);
    let mut coordinator = Coordinator::start(&world, 1);
    let too_many_events = framed(&[&[0, 1, ToCoordinator::KIND, 2], &[0xff; 20][..]].concat());
    let cases = [
        (framed(&[0, 1, ToCoordinator::KIND, 77]), "malformed"),
        (too_many_events, "malformed"),
        (vec![0xff; 4], "announced"),
    ];
    for (bytes, expected) in cases {
        let RawSession { connection, mut send, recv: _recv, .. } = session(&world, &mut coordinator).await;
        send.write_all(&encode_framed(&time_request()).unwrap()).await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let (code, reason) = raw::close_of(&connection).await;
        assert_eq!(CloseCode::from_wire(code), CloseCode::Protocol);
        assert!(reason.contains(expected), "{reason}");
        // What came before it counts.
        assert_eq!(coordinator.message().await.1, time_request());
        coordinator.closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_cut_off_ends_the_session() {
    let world = World::new(5);
    let mut coordinator = Coordinator::start(&world, 1);
    let RawSession { connection, mut send, recv: _recv, .. } = session(&world, &mut coordinator).await;
    let bytes = encode_framed(&time_request()).unwrap();
    send.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    send.finish().unwrap();
    assert_eq!(raw::close_of(&connection).await.1, "the stream ended within a message");
}

#[tokio::test(start_paused = true)]
async fn a_session_has_one_stream_of_the_agents() {
    let world = World::new(6);
    let mut coordinator = Coordinator::start(&world, 1);
    let RawSession { connection, send: _send, recv: _recv, .. } = session(&world, &mut coordinator).await;
    let second = tokio::time::timeout(Duration::from_secs(5), connection.open_bi()).await;
    assert!(second.is_err(), "a second stream could be opened");
    let one_way = tokio::time::timeout(Duration::from_secs(5), connection.open_uni()).await;
    assert!(one_way.is_err(), "a one-way stream could be opened");
}

#[tokio::test(start_paused = true)]
async fn a_few_malformed_heartbeats_are_forgiven() {
    let world = World::new(7);
    let mut coordinator = Coordinator::start(&world, 1);
    let RawSession { connection, send: _send, recv: _recv, .. } = session(&world, &mut coordinator).await;
    let mut wrong_version = encode(&heartbeat(1, 1)).unwrap();
    wrong_version[1] = 7;
    let bad = [
        vec![],
        vec![0, 1],
        wrong_version,
        encode(&time_request()).unwrap(),
        vec![0; limits::HEARTBEAT_BYTES_MAX + 1],
    ];
    let send = async |bytes: Vec<u8>| connection.send_datagram_wait(Bytes::from(bytes)).await.unwrap();
    for bytes in bad.iter().cycle().take(HEARTBEATS_MALFORMED_MAX as usize) {
        send(bytes.clone()).await;
        // One at a time: the coordinator keeps only the newest few that it has not read.
        send(encode(&heartbeat(1, 5)).unwrap()).await;
        assert_eq!(coordinator.heartbeat().await.1.sequence, 5);
    }
    assert_eq!(coordinator.link.stats().heartbeats_malformed, u64::from(HEARTBEATS_MALFORMED_MAX));
    send(vec![1, 2, 3]).await;
    let (code, reason) = raw::close_of(&connection).await;
    assert_eq!(CloseCode::from_wire(code), CloseCode::Protocol);
    assert!(reason.starts_with("9 malformed heartbeats"), "{reason}");
    coordinator.closed().await;
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_heartbeats_reaches_nobody() {
    let world = World::new(8);
    let mut coordinator = Coordinator::start(&world, 1);
    let RawSession { connection, send: _send, recv: _recv, .. } = session(&world, &mut coordinator).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    for sequence in 0..1_000 {
        ticks.tick().await;
        connection.send_datagram(Bytes::from(encode(&heartbeat(1, sequence)).unwrap())).unwrap();
    }
    let passed = coordinator.all_within(Duration::from_secs(1)).await.len() as u64;
    // Ten seconds.
    let most = u64::from(HEARTBEAT_BURST_MAX + 10 * HEARTBEATS_PER_SECOND_MAX);
    assert!((most - 2..=most).contains(&passed), "{passed} passed");
    let stats = coordinator.link.stats();
    assert_eq!((stats.heartbeats_excess + passed, stats.sessions), (1_000, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_messages_is_slowed_down() {
    let world = World::new(9);
    let mut coordinator = Coordinator::start(&world, 1);
    let RawSession { connection: _connection, mut send, recv: _recv, .. } =
        session(&world, &mut coordinator).await;
    let message = encode_framed(&time_request()).unwrap();
    let flood = tokio::spawn(async move {
        for _ in 0..5_000 {
            send.write_all(&message).await.unwrap();
        }
        send
    });
    let passed = coordinator.all_within(Duration::from_secs(10)).await.len();
    let most = MESSAGE_BURST_MAX as usize + 11 * 32;
    assert!((MESSAGE_BURST_MAX as usize..most).contains(&passed), "{passed} passed in 10 s");
    flood.abort();
}

#[tokio::test(start_paused = true)]
async fn another_application_protocol_is_refused() {
    let world = World::new(10);
    let coordinator = Coordinator::start(&world, 1);
    for alpn in [b"keelson/2".to_vec(), b"h3".to_vec()] {
        let config = RawConfig { alpn, ..machine(&world) };
        let error = raw::connect(&world, 1, coordinator.address, config).await.unwrap_err();
        // 120 is TLS's no_application_protocol (RFC 7301, section 3.2).
        let ConnectionError::ConnectionClosed(close) = &error else { panic!("{error}") };
        assert_eq!(u64::from(close.error_code), 0x100 + 120);
    }
    assert_eq!(coordinator.link.stats().handshakes_failed, 2);
}

#[tokio::test(start_paused = true)]
async fn strangers_that_say_nothing_keep_no_machine_out() {
    let world = World::new(11);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut strangers = Vec::new();
    for number in 0..160 {
        strangers
            .push(raw::connect(&world, number, coordinator.address, RawConfig::anonymous()).await.unwrap());
    }
    // They use up all enrolments, and the rest of them is turned away at once.
    assert!(coordinator.link.stats().busy >= 30, "{:?}", coordinator.link.stats());
    let mut agent = Agent::start(&world, 200, &[coordinator.address]);
    let begin = Instant::now();
    agent.connected().await;
    coordinator.opened().await;
    assert!(begin.elapsed() < Duration::from_millis(100), "{:?}", begin.elapsed());
}

/// A coordinator with a good certificate that sends `bytes` as its first and only answer.
async fn answer_of_a_bad_coordinator(bytes: Vec<u8>) -> LinkError {
    let world = World::new(12);
    let identity = world.ca.issue_server(world.now(), Duration::from_secs(3_600)).unwrap();
    let chain = identity.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivatePkcs8KeyDer::from(identity.key.expose_secret().to_vec()).into();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"keelson/1".to_vec()];
    let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let address = World::coordinator_address(1);
    let endpoint = quinn::Endpoint::new_with_abstract_socket(
        EndpointConfig::default(),
        Some(config),
        world.network.socket(address),
        Arc::new(TokioRuntime),
    )
    .unwrap();
    tokio::spawn(async move {
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        let (mut send, _recv) = connection.accept_bi().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        connection.closed().await;
    });
    let mut agent = Agent::start(&world, 1, &[address]);
    agent.disconnected().await.0
}

#[tokio::test(start_paused = true)]
async fn an_agent_believes_no_rubbish_either() {
    let too_long = u32::try_from(limits::TO_AGENT_BYTES_MAX + 1).unwrap().to_be_bytes().to_vec();
    let welcome = ToAgent::Welcome { version: wire::ProtocolVersion(VERSION_MAX.0 + 1), now: WallTime(0) };
    let cases = [
        (too_long, "were announced"),
        (framed(&[0, 1, ToAgent::KIND, 99]), "malformed"),
        (encode_framed(&time_request()).unwrap(), "kind 4"),
        (encode_framed(&ToAgent::EventsStored { through: 1 }).unwrap(), "no welcome"),
        (encode_framed(&welcome).unwrap(), "version 2"),
    ];
    for (bytes, expected) in cases {
        let error = answer_of_a_bad_coordinator(bytes).await;
        assert!(
            matches!(&error, LinkError::Protocol { why } if why.contains(expected)),
            "{error}, not {expected}"
        );
    }
    let error = answer_of_a_bad_coordinator(vec![]).await;
    assert!(matches!(error, LinkError::NoAnswer { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn one_bad_peer_does_not_disturb_another() {
    let world = World::new(13);
    let mut coordinator = Coordinator::start(&world, 1);
    let mut agent = Agent::start(&world, 7, &[coordinator.address]);
    agent.connected().await;
    let good = coordinator.opened().await.1.id();
    let RawSession { connection, mut send, recv: _recv, .. } = session(&world, &mut coordinator).await;
    send.write_all(&[0xff; 64]).await.unwrap();
    raw::close_of(&connection).await;
    agent.beat();
    let mut beats = 0;
    for seen in coordinator.all_within(Duration::from_secs(2)).await {
        match seen {
            Seen::Heartbeat(session, ..) if session == good => beats += 1,
            Seen::Closed(session, _) => assert_ne!(session, good),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(beats, 1);
    assert!(!matches!(agent.events.try_recv(), Ok(ClientEvent::Disconnected { .. })));
}
