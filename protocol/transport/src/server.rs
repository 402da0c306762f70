//! The coordinator's end: one UDP socket for enrolments and sessions of the whole fleet.
//!
//! A connection without a certificate may make one enrolment exchange; one with a certificate becomes a session.
//! Everything that happens comes out as [`LinkEvent`]s on one bounded channel; when its owner falls behind, sessions
//! wait, and quinn's small windows make the agents wait. Every limit is in [`crate::settings`].

mod budget;
mod enrolment;
mod session;

use std::fmt;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::{EnrolReply, EnrolRequest, ToCoordinator};
use keelson_protocol::{SecretBytes, WallTime};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, EndpointConfig, Runtime, TokioRuntime};
use ring::rand::SecureRandom;
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::{debug, warn};

pub use self::session::SessionHandle;
use crate::clock::{WallClock, system_clock};
use crate::close::{CloseCode, close, restarting_reason};
use crate::error::is_certificate_failure;
use crate::identity::{Identity, PeerIdentity};
use crate::settings::{
    CLOSE_TIMEOUT, ENROLMENTS_MAX, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, HANDSHAKES_WAITING_MAX, RESET_INTERVAL,
    SESSIONS_MAX,
};
use crate::socket::enlarge_buffers;
use crate::tls::{self, CurrentIdentity, TlsError};

/// What a [`LinkServer`] needs.
pub struct ServerConfig {
    /// The coordinator's certificate and key, from [`crate::LinkCa::issue_server`].
    pub identity: Identity,
    /// The link CA's certificate (DER): only machines with a certificate of it get sessions.
    pub ca_der: Vec<u8>,
    /// From [`crate::LinkCa::reset_key`], so that agents learn at once that a coordinator was killed and started
    /// again. `None`: they learn it from the idle timeout.
    pub reset_key: Option<SecretBytes>,
    /// Most sessions at a time.
    pub sessions_max: usize,
    /// Time against which certificates are checked.
    pub clock: WallClock,
}

impl ServerConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(identity: Identity, ca_der: Vec<u8>) -> Self {
        Self { identity, ca_der, reset_key: None, sessions_max: SESSIONS_MAX, clock: system_clock() }
    }
}

impl fmt::Debug for ServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerConfig").field("sessions_max", &self.sessions_max).finish_non_exhaustive()
    }
}

/// Why the server could not start, or not take a new identity.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Certificates or keys cannot be used.
    #[error("the link's TLS cannot be set up: {why}")]
    Tls {
        /// What is wrong.
        why: String,
    },
    /// The socket cannot be used.
    #[error("the link's UDP socket cannot be used")]
    Socket {
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl From<TlsError> for ServerError {
    fn from(error: TlsError) -> Self {
        Self::Tls { why: error.why }
    }
}

/// Names a session within one run of the server; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What happened on the link. The events of one session come in their order: `Opened`, then messages and heartbeats,
/// then `Closed`, each exactly once where that applies.
#[derive(Debug)]
pub enum LinkEvent {
    /// A machine without a certificate asks for one.
    Enrol {
        /// What it says about itself; nothing of it is proven but by its token.
        request: EnrolRequest,
        /// Where it comes from.
        peer: SocketAddr,
        /// Takes the answer.
        reply: EnrolReplier,
    },
    /// A machine opened a session. The owner answers with `Welcome` or `Refused`.
    Opened {
        /// The session.
        session: SessionHandle,
        /// Who it is, from its certificate.
        peer: PeerIdentity,
        /// Where it comes from.
        address: SocketAddr,
        /// Its `Hello`, always that variant, of a version that is spoken here.
        hello: ToCoordinator,
    },
    /// A heartbeat came.
    Heartbeat {
        /// In which session.
        session: SessionId,
        /// The heartbeat.
        heartbeat: Heartbeat,
    },
    /// A message came; never a `Hello`.
    Message {
        /// In which session.
        session: SessionId,
        /// The message.
        message: ToCoordinator,
    },
    /// A session ended. Nothing more comes of it.
    Closed {
        /// Which session.
        session: SessionId,
        /// Why, in words.
        why: String,
    },
}

/// Takes the answer to an enrolment. Dropped without one, it answers `Busy`.
#[derive(Debug)]
pub struct EnrolReplier(oneshot::Sender<EnrolReply>);

impl EnrolReplier {
    /// Sends the answer. A machine that has gone is no error: it will ask again.
    pub fn send(self, reply: EnrolReply) {
        let _ = self.0.send(reply);
    }
}

/// What a server has seen since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Sessions that are open now.
    pub sessions: usize,
    /// Connections whose handshake was completed.
    pub handshakes: u64,
    /// Connections whose handshake failed, for whatever reason.
    pub handshakes_failed: u64,
    /// Of these: because of the machine's certificate (expired, other CA).
    pub certificates_refused: u64,
    /// Connections that were turned away by a limit.
    pub busy: u64,
    /// Connections that were closed because the peer broke the protocol.
    pub protocol_errors: u64,
    /// Enrolment requests that were handed to the owner.
    pub enrolments: u64,
    /// Datagrams that were no heartbeats.
    pub heartbeats_malformed: u64,
    /// Heartbeats that were dropped because they came too fast.
    pub heartbeats_excess: u64,
}

#[derive(Debug, Default)]
struct Counters {
    handshakes: AtomicU64,
    handshakes_failed: AtomicU64,
    certificates_refused: AtomicU64,
    busy: AtomicU64,
    protocol_errors: AtomicU64,
    enrolments: AtomicU64,
    heartbeats_malformed: AtomicU64,
    heartbeats_excess: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What all connections share.
struct Shared {
    events: mpsc::Sender<LinkEvent>,
    clock: WallClock,
    counters: Counters,
    sessions: AtomicUsize,
    sessions_max: usize,
    next_session: AtomicU64,
    enrolments: Semaphore,
}

impl Shared {
    fn now(&self) -> WallTime {
        (self.clock)()
    }
}

/// The coordinator's end of all links. Dropping it closes them without a word; [`LinkServer::shutdown`] is kinder.
pub struct LinkServer {
    endpoint: quinn::Endpoint,
    identity: Arc<CurrentIdentity>,
    shared: Arc<Shared>,
}

impl fmt::Debug for LinkServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkServer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl LinkServer {
    /// Serves on `socket`. Must be called within a tokio runtime. The server ends when the receiver of `events` is
    /// dropped.
    ///
    /// # Errors
    /// [`ServerError`] when socket or identity cannot be used.
    pub fn start(
        socket: UdpSocket,
        config: ServerConfig,
        events: mpsc::Sender<LinkEvent>,
    ) -> Result<Self, ServerError> {
        enlarge_buffers(&socket);
        let runtime = Arc::new(TokioRuntime);
        let socket = runtime.wrap_udp_socket(socket).map_err(|source| ServerError::Socket { source })?;
        Self::start_on(socket, runtime, config, events)
    }

    /// As [`LinkServer::start`], on any socket that quinn can use: tests give it a simulated network.
    ///
    /// # Errors
    /// As [`LinkServer::start`].
    pub fn start_on(
        socket: Arc<dyn AsyncUdpSocket>,
        runtime: Arc<dyn Runtime>,
        config: ServerConfig,
        events: mpsc::Sender<LinkEvent>,
    ) -> Result<Self, ServerError> {
        let identity = Arc::new(CurrentIdentity::new(&config.identity)?);
        let mut quic = tls::server_config(Arc::clone(&identity), &config.ca_der, Arc::clone(&config.clock))?;
        quic.max_incoming(HANDSHAKES_WAITING_MAX);
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config(config.reset_key.as_ref()),
            Some(quic),
            socket,
            runtime,
        )
        .map_err(|source| ServerError::Socket { source })?;
        let shared = Arc::new(Shared {
            events,
            clock: config.clock,
            counters: Counters::default(),
            sessions: AtomicUsize::new(0),
            sessions_max: config.sessions_max,
            next_session: AtomicU64::new(1),
            enrolments: Semaphore::new(ENROLMENTS_MAX),
        });
        tokio::spawn(accept(endpoint.clone(), Arc::clone(&shared)));
        Ok(Self { endpoint, identity, shared })
    }

    /// Where the server listens.
    ///
    /// # Errors
    /// The system's error.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Shows another certificate to connections from now on. Sessions that stand are not touched. An identity that
    /// cannot be used is refused with a log line, and the old one stays.
    pub fn replace_identity(&self, identity: Identity) {
        if let Err(error) = self.identity.replace(&identity) {
            warn!(error = %error, "the coordinator's new link certificate cannot be used; the old one stays");
        }
    }

    /// What the server has seen.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkStats {
            sessions: self.shared.sessions.load(Ordering::Relaxed),
            handshakes: read(&counters.handshakes),
            handshakes_failed: read(&counters.handshakes_failed),
            certificates_refused: read(&counters.certificates_refused),
            busy: read(&counters.busy),
            protocol_errors: read(&counters.protocol_errors),
            enrolments: read(&counters.enrolments),
            heartbeats_malformed: read(&counters.heartbeats_malformed),
            heartbeats_excess: read(&counters.heartbeats_excess),
        }
    }

    /// Closes every connection with a reason that agents understand as "come back soon", spread by the size of the
    /// fleet, and waits until they have been told.
    pub async fn shutdown(&self) {
        let reason = restarting_reason(self.shared.sessions.load(Ordering::Relaxed));
        let code = quinn::VarInt::from_u64(CloseCode::Restarting.to_wire()).unwrap_or(quinn::VarInt::MAX);
        self.endpoint.close(code, reason.as_bytes());
        if tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await.is_err() {
            debug!("some agents were not told that the coordinator stops; they will see it");
        }
    }
}

impl Drop for LinkServer {
    fn drop(&mut self) {
        close_endpoint(&self.endpoint);
    }
}

fn close_endpoint(endpoint: &quinn::Endpoint) {
    let code = quinn::VarInt::from_u64(CloseCode::Restarting.to_wire()).unwrap_or(quinn::VarInt::MAX);
    endpoint.close(code, b"the coordinator has stopped");
}

/// Takes connections, as many at a time as there are permits.
async fn accept(endpoint: quinn::Endpoint, shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        // biased: an owner that is gone ends the server even while connections come in.
        let incoming = tokio::select! {
            biased;
            () = shared.events.closed() => {
                close_endpoint(&endpoint);
                return;
            }
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        match incoming.accept() {
            Ok(connecting) => {
                tokio::spawn(handshake(connecting, permit, Arc::clone(&shared)));
            }
            Err(error) => {
                count(&shared.counters.handshakes_failed);
                debug!(error = %error, "a connection attempt was invalid");
            }
        }
    }
}

/// Completes a handshake and decides by the certificate what the connection may do.
async fn handshake(connecting: quinn::Connecting, permit: OwnedSemaphorePermit, shared: Arc<Shared>) {
    let address = connecting.remote_address();
    let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            count(&shared.counters.handshakes_failed);
            if is_certificate_failure(&error) {
                count(&shared.counters.certificates_refused);
            }
            debug!(%address, error = %error, "a handshake failed");
            return;
        }
        Err(_) => {
            count(&shared.counters.handshakes_failed);
            debug!(%address, "a handshake took too long");
            return;
        }
    };
    drop(permit);
    count(&shared.counters.handshakes);
    match leaf_of(&connection) {
        // The work after the handshake gets a task of its own, so that what the handshake needed is freed now.
        None => {
            tokio::spawn(enrolment::run(connection, shared));
        }
        Some(leaf) => match PeerIdentity::from_certificate(&leaf) {
            Ok(peer) => {
                tokio::spawn(session::run(connection, peer, shared));
            }
            Err(error) => {
                count(&shared.counters.protocol_errors);
                warn!(%address, error = %error, "a certificate of the link CA names no machine");
                close(&connection, CloseCode::BadCertificate, &error.to_string());
            }
        },
    }
}

/// The peer's leaf certificate, which TLS has verified.
fn leaf_of(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|leaf| leaf.to_vec())
}

fn endpoint_config(reset_key: Option<&SecretBytes>) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    if let Some(key) = reset_key {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.expose_secret());
        config.reset_key(Arc::new(key));
    }
    config.cid_generator(|| Box::new(RandomIds));
    config.min_reset_interval(RESET_INTERVAL);
    config
}

/// Random connection ids. quinn's default ones carry a checksum with a key that is new in each process, by which a
/// restarted coordinator would ignore the packets of old sessions instead of answering with a stateless reset.
struct RandomIds;

/// Length of a connection id in bytes: 2^64 values, so that 25,000 live ones do not collide.
const CONNECTION_ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0_u8; CONNECTION_ID_BYTES];
        ring::rand::SystemRandom::new().fill(&mut bytes).expect("the system has randomness after boot");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
