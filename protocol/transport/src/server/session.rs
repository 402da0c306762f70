//! One session: a machine with a certificate, from its `Hello` to the end of the connection.
//!
//! One task carries the session. It runs three small loops side by side (messages in, messages out, end of the
//! certificate's life) that are all dropped when the first of them ends, so none of them has to be cancel-safe.
//! Heartbeats have a task of their own: nearly everything that comes are heartbeats, and one must not wake the rest.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::{BulkRequest, EnrolRequest, Refusal, RefusalCode, ToAgent, ToCoordinator};
use keelson_protocol::wire::{self, DecodeError, Message, negotiate};
use quinn::{RecvStream, SendStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::budget::Budget;
use super::{LinkEvent, SessionId, Shared, count};
use crate::bulk::{BulkError, BulkStream};
use crate::close::{CloseCode, close};
use crate::error::{LinkError, SendError};
use crate::frame::{self, FrameError, FrameReader};
use crate::identity::PeerIdentity;
use crate::queue::{OutQueue, QueueError};
use crate::settings::{
    CLOSE_TIMEOUT, HEARTBEAT_BURST_MAX, HEARTBEATS_MALFORMED_MAX, HEARTBEATS_PER_SECOND_MAX, HELLO_TIMEOUT,
    MESSAGE_BURST_MAX, MESSAGES_PER_SECOND_MAX,
};

/// The owner's hold on a session. Clones are the same session. It keeps the memory of the connection, so it is to be
/// dropped when `Closed` comes.
#[derive(Clone)]
pub struct SessionHandle {
    inner: Arc<Inner>,
}

struct Inner {
    id: SessionId,
    connection: quinn::Connection,
    queue: OutQueue,
}

impl fmt::Debug for SessionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionHandle").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl SessionHandle {
    /// Which session.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.inner.id
    }

    /// Queues a message; never blocks.
    ///
    /// # Errors
    /// [`SendError::Encode`] when the message breaks its limits, [`SendError::NotConnected`] when the session has
    /// ended, [`SendError::QueueFull`] when the agent does not take its messages: then the session is closed, and
    /// the agent comes back for the whole state.
    pub fn send(&self, message: ToAgent) -> Result<(), SendError> {
        let framed = wire::encode_framed(&message)?;
        match self.inner.queue.push(framed) {
            Ok(()) => Ok(()),
            Err(QueueError::Ended) => Err(SendError::NotConnected),
            Err(QueueError::Full) => {
                let why = "the agent does not take its messages";
                self.inner.queue.end(why);
                close(&self.inner.connection, CloseCode::QueueFull, why);
                Err(SendError::QueueFull)
            }
        }
    }

    /// Ends the session after what is queued has been delivered (at most [`CLOSE_TIMEOUT`]); the agent is told `why`.
    pub fn close(&self, why: impl Into<String>) {
        self.inner.queue.end(&why.into());
    }

    /// Opens a bulk stream and waits for the agent's reply.
    ///
    /// # Errors
    /// [`BulkError`] says whether the agent refused, did not answer, or is gone.
    pub async fn open_bulk(&self, request: BulkRequest) -> Result<BulkStream, BulkError> {
        BulkStream::open(&self.inner.connection, &request).await
    }

    /// Round-trip time of the connection, as QUIC measures it.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.inner.connection.rtt()
    }
}

/// Why a session ends.
enum End {
    /// The connection broke, or one of the sides closed it.
    Connection(LinkError),
    /// We close it.
    Here(CloseCode, String),
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        match error.connection() {
            Some(connection) => Self::Connection(connection.clone().into()),
            None => Self::Here(CloseCode::Protocol, error.to_string()),
        }
    }
}

/// Counts a session as open until it is dropped.
struct OpenSession<'a>(&'a Shared);

impl<'a> OpenSession<'a> {
    fn new(shared: &'a Shared) -> Option<Self> {
        let before = shared.sessions.fetch_add(1, Ordering::Relaxed);
        let open = Self(shared);
        (before < shared.sessions_max).then_some(open)
    }
}

impl Drop for OpenSession<'_> {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn run(connection: quinn::Connection, peer: PeerIdentity, shared: Arc<Shared>) {
    let Some(_open) = OpenSession::new(&shared) else {
        count(&shared.counters.busy);
        close(&connection, CloseCode::Busy, "the coordinator has as many sessions as it may");
        return;
    };
    let address = connection.remote_address();
    let opened = tokio::time::timeout(HELLO_TIMEOUT, Box::pin(open(&connection)));
    let (hello, send, recv) = match opened.await {
        Ok(Ok(opened)) => opened,
        Ok(Err(end)) => {
            let why = finish(&connection, &shared, end);
            debug!(machine = %peer.machine, %address, why, "a session did not begin");
            return;
        }
        Err(_) => {
            close(&connection, CloseCode::Timeout, "no hello came");
            return;
        }
    };
    let id = SessionId(shared.next_session.fetch_add(1, Ordering::Relaxed));
    let life = peer.not_after.since(shared.now());
    let inner = Arc::new(Inner { id, connection: connection.clone(), queue: OutQueue::default() });
    let session = SessionHandle { inner: Arc::clone(&inner) };
    if shared.events.send(LinkEvent::Opened { session, peer, address, hello }).await.is_err() {
        close(&connection, CloseCode::Restarting, "the coordinator stops");
        return;
    }
    let mut beats = JoinSet::new();
    beats.spawn(heartbeats(connection.clone(), id, Arc::clone(&shared)));
    // biased: what a machine said before it closed the connection is still read.
    let end = tokio::select! {
        biased;
        end = messages(recv, id, &shared) => end,
        Some(Ok(end)) = beats.join_next() => end,
        end = send_queue(send, &inner.queue) => end,
        () = tokio::time::sleep(life) => {
            End::Here(CloseCode::CertificateExpired, "the certificate of this session has expired".into())
        }
    };
    let mut why = finish(&connection, &shared, end);
    // When the owner closed, its reason is better than "closed here".
    inner.queue.end(&why);
    if let Some(reason) = inner.queue.end_reason() {
        why = reason;
    }
    drop(inner);
    // Nothing comes after `Closed`.
    beats.shutdown().await;
    // The owner may be gone; then nobody needs to know.
    let _ = shared.events.send(LinkEvent::Closed { session: id, why }).await;
}

/// Closes the connection as `end` demands, and says why in words.
fn finish(connection: &quinn::Connection, shared: &Shared, end: End) -> String {
    let (code, why) = match end {
        End::Connection(error @ LinkError::Protocol { .. }) => (CloseCode::Protocol, error.to_string()),
        // The connection is closed already; closing it once more changes nothing.
        End::Connection(error) => (CloseCode::Done, error.to_string()),
        End::Here(code, why) => (code, why),
    };
    if matches!(code, CloseCode::Protocol | CloseCode::AlreadyEnrolled) {
        count(&shared.counters.protocol_errors);
    }
    close(connection, code, &why);
    why
}

/// Waits for the control stream and the `Hello` on it.
async fn open(connection: &quinn::Connection) -> Result<(ToCoordinator, SendStream, RecvStream), End> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|error| End::Connection(error.into()))?;
    let hello = match FrameReader::default().read::<ToCoordinator>(&mut recv).await {
        Ok(Some(hello)) => hello,
        Ok(None) => {
            return Err(End::Here(CloseCode::Protocol, "the control stream ended without a hello".into()));
        }
        Err(FrameError::Decode(DecodeError::Kind { got: EnrolRequest::KIND, .. })) => {
            let why = "this machine has a certificate; it opens a session instead of enrolling".into();
            return Err(End::Here(CloseCode::AlreadyEnrolled, why));
        }
        Err(error) => return Err(error.into()),
    };
    let ToCoordinator::Hello { version_min, version_max, .. } = &hello else {
        return Err(End::Here(CloseCode::Protocol, "the first message was no hello".into()));
    };
    if let Err(error) = negotiate(*version_min, *version_max) {
        let refusal = Refusal { code: RefusalCode::Version, text: error.to_string() };
        if let Ok(framed) = wire::encode_framed(&ToAgent::Refused(refusal))
            && frame::write(&mut send, &framed).await.is_ok()
        {
            drain(send).await;
        }
        return Err(End::Here(CloseCode::Ended, error.to_string()));
    }
    // What the coordinator says is of more use than the content of a journal.
    let _ = send.set_priority(1);
    Ok((hello, send, recv))
}

/// Reads datagrams. When the owner is behind, quinn keeps the newest few and drops the rest.
async fn heartbeats(connection: quinn::Connection, session: SessionId, shared: Arc<Shared>) -> End {
    let mut malformed = 0;
    let mut budget = Budget::new(HEARTBEAT_BURST_MAX, HEARTBEATS_PER_SECOND_MAX, Instant::now());
    loop {
        let bytes = match connection.read_datagram().await {
            Ok(bytes) => bytes,
            Err(error) => return End::Connection(error.into()),
        };
        match wire::decode::<Heartbeat>(&bytes) {
            Ok(heartbeat) => {
                if budget.take(Instant::now()).is_err() {
                    count(&shared.counters.heartbeats_excess);
                } else if shared.events.send(LinkEvent::Heartbeat { session, heartbeat }).await.is_err() {
                    return owner_gone();
                }
            }
            Err(error) => {
                count(&shared.counters.heartbeats_malformed);
                malformed += 1;
                if malformed > HEARTBEATS_MALFORMED_MAX {
                    let why = format!("{malformed} malformed heartbeats, the last one: {error}");
                    return End::Here(CloseCode::Protocol, why);
                }
            }
        }
    }
}

/// Reads the control stream. A peer that sends too much waits in its own send buffer.
async fn messages(mut stream: RecvStream, session: SessionId, shared: &Shared) -> End {
    let mut reader = FrameReader::default();
    let mut budget = Budget::new(MESSAGE_BURST_MAX, MESSAGES_PER_SECOND_MAX, Instant::now());
    loop {
        let message = match reader.read::<ToCoordinator>(&mut stream).await {
            Ok(Some(ToCoordinator::Hello { .. })) => {
                return End::Here(CloseCode::Protocol, "a second hello came".into());
            }
            Ok(Some(message)) => message,
            Ok(None) => return End::Here(CloseCode::Done, "the agent ended the session".into()),
            Err(error) => return error.into(),
        };
        while let Err(wait) = budget.take(Instant::now()) {
            tokio::time::sleep(wait).await;
        }
        if shared.events.send(LinkEvent::Message { session, message }).await.is_err() {
            return owner_gone();
        }
    }
}

/// Sends what the owner queued, until the owner ends the session.
async fn send_queue(mut stream: SendStream, queue: &OutQueue) -> End {
    while let Some(framed) = queue.pop().await {
        if let Err(error) = frame::write(&mut stream, &framed).await {
            return End::Connection(error.into());
        }
    }
    let why = queue.end_reason().unwrap_or_default();
    drain(stream).await;
    End::Here(CloseCode::Ended, why)
}

/// Waits until the agent has all that was written: closing the connection would discard it.
async fn drain(mut stream: SendStream) {
    if stream.finish().is_ok() {
        // A peer that does not take it in time will not get it.
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, stream.stopped()).await;
    }
}

fn owner_gone() -> End {
    End::Here(CloseCode::Restarting, "the coordinator stops".into())
}
