//! The agent's end: a session that is kept for ever.
//!
//! One task connects, waits for the coordinator's `Welcome`, carries the session, and when that ends waits with jitter
//! and tries the next coordinator of the list. A new certificate moves over in place: a second connection is made
//! with it, and only when that is welcome the first one is closed, so that no heartbeat is lost.

pub(crate) mod dial;
pub mod enrol;
mod session;

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::{BulkRequest, Refusal, ToAgent, ToCoordinator};
use keelson_protocol::wire;
use quinn::{AsyncUdpSocket, EndpointConfig, Runtime, SendStream, TokioRuntime};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{debug, info};

use self::dial::Dialled;
use crate::backoff::{Jitter, RECONNECT_MAX, delay_bound};
use crate::bulk::BulkStream;
use crate::clock::{WallClock, system_clock};
use crate::close::{CloseCode, close, spread_of};
use crate::error::{LinkError, SendError};
use crate::identity::Identity;
use crate::queue::{OutQueue, QueueError};
use crate::settings::{CLIENT_EVENTS_MAX, CLOSE_TIMEOUT, DIALS_MAX, ROTATION_OVERLAP};
use crate::socket::enlarge_buffers;
use crate::tls::CaTrust;

/// What a [`LinkClient`] needs.
pub struct ClientConfig {
    /// Coordinators, tried in this order.
    pub coordinators: Vec<SocketAddr>,
    /// How the coordinator is known.
    pub trust: CaTrust,
    /// Makes the `Hello` of each new session.
    pub hello: Box<dyn Fn() -> ToCoordinator + Send + Sync>,
    /// Makes the waits of different machines differ.
    pub seed: u64,
    /// The socket. `None`: one of its own, bound when it is needed.
    pub endpoint: Option<LinkEndpoint>,
    /// Time against which the coordinator's certificate is checked.
    pub clock: WallClock,
}

impl ClientConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(
        coordinators: Vec<SocketAddr>,
        trust: CaTrust,
        hello: Box<dyn Fn() -> ToCoordinator + Send + Sync>,
        seed: u64,
    ) -> Self {
        Self { coordinators, trust, hello, seed, endpoint: None, clock: system_clock() }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("coordinators", &self.coordinators)
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}

/// UDP sockets from which connections are made. Clones are the same sockets; many clients can share one, as the
/// benches do that play a whole fleet.
#[derive(Debug, Clone)]
pub struct LinkEndpoint {
    v4: Option<quinn::Endpoint>,
    v6: Option<quinn::Endpoint>,
    /// Permits to dial.
    dials: Arc<Semaphore>,
}

impl LinkEndpoint {
    /// Binds a socket for each address family among `peers`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The system's error.
    pub fn bind(peers: &[SocketAddr]) -> std::io::Result<Self> {
        let bind = |local: SocketAddr| {
            let runtime = Arc::new(TokioRuntime);
            let socket = UdpSocket::bind(local)?;
            enlarge_buffers(&socket);
            let socket = runtime.wrap_udp_socket(socket)?;
            quinn::Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime)
        };
        let v4 = peers.iter().any(SocketAddr::is_ipv4).then(|| bind((Ipv4Addr::UNSPECIFIED, 0).into()));
        let v6 = peers.iter().any(SocketAddr::is_ipv6).then(|| bind((Ipv6Addr::UNSPECIFIED, 0).into()));
        Ok(Self { v4: v4.transpose()?, v6: v6.transpose()?, dials: dials() })
    }

    /// Uses any socket that quinn can use, for peers of both families: tests give it a simulated network.
    ///
    /// # Errors
    /// The system's error.
    pub fn on_socket(socket: Arc<dyn AsyncUdpSocket>, runtime: Arc<dyn Runtime>) -> std::io::Result<Self> {
        let endpoint =
            quinn::Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime)?;
        Ok(Self { v4: Some(endpoint.clone()), v6: Some(endpoint), dials: dials() })
    }

    fn towards(&self, peer: SocketAddr) -> Option<&quinn::Endpoint> {
        if peer.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    async fn wait_idle(&self) {
        for endpoint in [&self.v4, &self.v6].into_iter().flatten() {
            endpoint.wait_idle().await;
        }
    }
}

fn dials() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(DIALS_MAX))
}

/// What happened on the agent's link.
#[derive(Debug)]
pub enum ClientEvent {
    /// A session stands; its `Welcome` follows as a [`ClientEvent::Message`]. Comes also without a `Disconnected`
    /// before it, when a session moved over to a new certificate. In both cases: what the coordinator has not
    /// acknowledged may be lost, and is to be sent again.
    Connected {
        /// With whom.
        coordinator: SocketAddr,
    },
    /// A message came.
    Message(ToAgent),
    /// The coordinator opened a bulk stream. It waits for [`BulkStream::accept`] or [`BulkStream::refuse`].
    Bulk(BulkRequest, BulkStream),
    /// The session ended, or a try to open one failed.
    Disconnected {
        /// Why, in words.
        why: String,
        /// Why, as a type: an expired certificate needs a new enrolment, the rest heals by itself.
        error: LinkError,
        /// When the next try is made.
        retry_in: Duration,
    },
    /// The coordinator refused this machine. `Disconnected` follows, and tries go on, seldom.
    Refused(Refusal),
}

/// The session that stands, as the [`LinkClient`] sees it.
struct Current {
    connection: quinn::Connection,
    queue: Arc<OutQueue>,
}

#[derive(Default)]
struct Slot(Mutex<Option<Current>>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The agent's end of the link. Dropping it ends the session.
pub struct LinkClient {
    slot: Arc<Slot>,
    identity: watch::Sender<Identity>,
    /// The client's own socket, once it is bound.
    own_endpoint: Arc<OnceLock<LinkEndpoint>>,
    task: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for LinkClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkClient").field("connected", &self.is_connected()).finish_non_exhaustive()
    }
}

impl LinkClient {
    /// Starts to connect, and never stops. Must be called within a tokio runtime. The receiver must be read: when it
    /// is full, the session waits.
    #[must_use]
    pub fn start(config: ClientConfig, identity: Identity) -> (Self, mpsc::Receiver<ClientEvent>) {
        let (events, receiver) = mpsc::channel(CLIENT_EVENTS_MAX);
        let (identity, identities) = watch::channel(identity);
        let slot = Arc::new(Slot::default());
        let own_endpoint = Arc::new(OnceLock::new());
        let driver = Driver {
            jitter: Jitter::new(config.seed),
            own_endpoint: Arc::clone(&own_endpoint),
            config,
            identities,
            slot: Arc::clone(&slot),
            events,
        };
        let task = tokio::spawn(driver.run());
        (Self { slot, identity, own_endpoint, task }, receiver)
    }

    /// Sends a heartbeat. Dropped when there is no session; never blocks.
    pub fn heartbeat(&self, heartbeat: Heartbeat) {
        let slot = self.slot.lock();
        let Some(current) = slot.as_ref() else { return };
        match wire::encode(&heartbeat) {
            // A connection that has just broken is seen by its session; heartbeats are allowed to get lost.
            Ok(bytes) => drop(current.connection.send_datagram(Bytes::from(bytes))),
            Err(error) => debug!(error = %error, "a heartbeat could not be encoded"),
        }
    }

    /// Queues a message; never blocks.
    ///
    /// # Errors
    /// [`SendError::NotConnected`] when there is no session, [`SendError::QueueFull`] when the coordinator does not
    /// take its messages (then the session is closed), [`SendError::Encode`] when the message breaks its limits.
    pub fn send(&self, message: ToCoordinator) -> Result<(), SendError> {
        let framed = wire::encode_framed(&message)?;
        let slot = self.slot.lock();
        let current = slot.as_ref().ok_or(SendError::NotConnected)?;
        match current.queue.push(framed) {
            Ok(()) => Ok(()),
            Err(QueueError::Ended) => Err(SendError::NotConnected),
            Err(QueueError::Full) => {
                let why = "the coordinator does not take its messages";
                current.queue.end(why);
                close(&current.connection, CloseCode::QueueFull, why);
                Err(SendError::QueueFull)
            }
        }
    }

    /// Uses another certificate from now on: a session that stands moves over to it in place, one that does not is
    /// tried with it at once.
    pub fn replace_identity(&self, identity: Identity) {
        self.identity.send_replace(identity);
    }

    /// Whether a session stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.slot.lock().is_some()
    }

    /// Ends the session and waits until the coordinator has been told; with a shared endpoint, whose owner keeps it
    /// alive, it does not wait.
    pub async fn shutdown(self) {
        self.stop();
        if let Some(endpoint) = self.own_endpoint.get() {
            // A coordinator that does not answer sees it from the idle timeout.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
        }
    }

    fn stop(&self) {
        self.task.abort();
        if let Some(current) = self.slot.lock().take() {
            close(&current.connection, CloseCode::Done, "the agent stops");
        }
    }
}

impl Drop for LinkClient {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The task behind a [`LinkClient`].
struct Driver {
    config: ClientConfig,
    identities: watch::Receiver<Identity>,
    own_endpoint: Arc<OnceLock<LinkEndpoint>>,
    slot: Arc<Slot>,
    events: mpsc::Sender<ClientEvent>,
    jitter: Jitter,
}

/// The owner of the client has dropped the receiver: nobody is left to work for.
struct OwnerGone;

impl Driver {
    async fn run(mut self) {
        // Fruitless tries since the last session; also says which coordinator is next.
        let mut failures = 0_u32;
        let mut next = 0_usize;
        while let Some(address) = self.pick(next) {
            let error = match self.dial(address).await {
                Ok(session) => {
                    failures = 0;
                    match self.serve(session, address).await {
                        Ok(error) => error,
                        Err(OwnerGone) => return,
                    }
                }
                Err(error) => error,
            };
            *self.slot.lock() = None;
            let retry_in = self.retry_in(&error, failures);
            failures = failures.saturating_add(1);
            next = next.wrapping_add(1);
            if self.report(error, address, retry_in).await.is_err() {
                return;
            }
            // biased: a new certificate is a reason to try at once, whatever the clock says.
            tokio::select! {
                biased;
                changed = self.identities.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(retry_in) => {}
            }
        }
        debug!("the link has no coordinator address and ends");
    }

    fn pick(&self, next: usize) -> Option<SocketAddr> {
        let count = self.config.coordinators.len();
        self.config.coordinators.get(next.checked_rem(count)?).copied()
    }

    /// How long to wait after `error`.
    fn retry_in(&mut self, error: &LinkError, failures: u32) -> Duration {
        let rounds = failures / u32::try_from(self.config.coordinators.len()).unwrap_or(u32::MAX).max(1);
        let bound = match error {
            // A restart names the time over which the fleet shall spread its return.
            LinkError::Closed { code: CloseCode::Restarting, reason } => {
                spread_of(reason).unwrap_or_default().max(delay_bound(rounds))
            }
            // These do not heal by themselves within seconds.
            LinkError::Refused { .. }
            | LinkError::CertificateExpired
            | LinkError::CertificateRefused { .. }
            | LinkError::Identity { .. } => RECONNECT_MAX,
            _ => delay_bound(rounds),
        };
        self.jitter.below(bound)
    }

    async fn report(
        &mut self,
        error: LinkError,
        address: SocketAddr,
        retry_in: Duration,
    ) -> Result<(), OwnerGone> {
        let why = format!("{address}: {error}");
        debug!(why, ?retry_in, "no session");
        if let LinkError::Refused { refusal } = &error {
            self.emit(ClientEvent::Refused(refusal.clone())).await?;
        }
        self.emit(ClientEvent::Disconnected { why, error, retry_in }).await
    }

    async fn emit(&self, event: ClientEvent) -> Result<(), OwnerGone> {
        self.events.send(event).await.map_err(|_| OwnerGone)
    }

    /// Opens a session with the newest certificate.
    async fn dial(&mut self, address: SocketAddr) -> Result<Dialled, LinkError> {
        let identity = self.identities.borrow_and_update().clone();
        let endpoint = match &self.config.endpoint {
            Some(endpoint) => endpoint,
            None => match self.own_endpoint.get() {
                Some(endpoint) => endpoint,
                None => {
                    let bound = LinkEndpoint::bind(&self.config.coordinators)
                        .map_err(|error| LinkError::Socket { why: error.to_string() })?;
                    self.own_endpoint.get_or_init(|| bound)
                }
            },
        };
        dial::session(
            endpoint,
            address,
            &self.config.trust,
            &identity,
            &self.config.clock,
            &(self.config.hello)(),
        )
        .await
    }

    /// Carries sessions, one after the other, as long as each moves over to the next without a gap.
    async fn serve(&mut self, first: Dialled, address: SocketAddr) -> Result<LinkError, OwnerGone> {
        let mut dialled = first;
        loop {
            let Dialled { connection, mut send, mut recv, welcome } = dialled;
            let queue = Arc::new(OutQueue::default());
            *self.slot.lock() = Some(Current { connection: connection.clone(), queue: Arc::clone(&queue) });
            info!(coordinator = %address, "the link stands");
            self.emit(ClientEvent::Connected { coordinator: address }).await?;
            self.emit(ClientEvent::Message(welcome)).await?;
            let events = self.events.clone();
            let run = session::run(&connection, &mut send, &mut recv, &queue, &events);
            // biased: a session that has ended is not worth moving.
            let outcome = tokio::select! {
                biased;
                ended = run => Err(ended?),
                moved = self.move_over(address) => Ok(moved),
            };
            match outcome {
                Ok(next) => {
                    retire(connection, send);
                    dialled = next;
                }
                Err(error) => return Ok(error),
            }
        }
    }

    /// Waits for a new certificate and opens a second session with it. Ends only with success: as long as the new
    /// certificate is not accepted, the first session goes on.
    async fn move_over(&mut self, address: SocketAddr) -> Dialled {
        if self.identities.changed().await.is_err() {
            // The owner has gone; the task is about to be aborted.
            return std::future::pending().await;
        }
        let mut failures = 0;
        loop {
            match self.dial(address).await {
                Ok(dialled) => return dialled,
                Err(error) => {
                    let retry_in = self.retry_in(&error, failures);
                    info!(error = %error, ?retry_in, "the new link certificate was not accepted yet");
                    failures = failures.saturating_add(1);
                    tokio::time::sleep(retry_in).await;
                }
            }
        }
    }
}

/// Closes a connection whose session has moved, after the heartbeats that are on their way had time to arrive. Until
/// then `control` is kept, because the end of the control stream would end the session.
fn retire(connection: quinn::Connection, control: SendStream) {
    tokio::spawn(async move {
        tokio::time::sleep(ROTATION_OVERLAP).await;
        close(&connection, CloseCode::Replaced, "the machine continues with a newer certificate");
        drop(control);
    });
}
