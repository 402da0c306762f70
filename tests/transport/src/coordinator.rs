//! A coordinator that welcomes every machine and writes down what it sees.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keelson_protocol::health::Heartbeat;
use keelson_protocol::message::{EnrolReply, EnrolRequest, ToAgent, ToCoordinator};
use keelson_protocol::wire::VERSION_MAX;
use keelson_transport::{
    EnrolReplier, LEAF_LIFE, LinkEvent, LinkServer, PeerIdentity, ServerConfig, SessionHandle, SessionId,
    WallClock,
};
use quinn::TokioRuntime;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::world::{World, within};

/// Events that wait for the test.
const EVENTS_MAX: usize = 1_024;

/// Something that the coordinator saw.
#[derive(Debug)]
pub enum Seen {
    /// A machine asks for a certificate. Not answered by the stub.
    Enrol(EnrolRequest, EnrolReplier),
    /// A session was opened and welcomed.
    Opened(PeerIdentity, SessionHandle),
    /// A heartbeat came.
    Heartbeat(SessionId, Heartbeat, Instant),
    /// A message came.
    Message(SessionId, ToCoordinator),
    /// A session ended.
    Closed(SessionId, String),
}

/// The stub. A task of its own welcomes machines, so that a test may look at any side first.
pub struct Coordinator {
    /// The server under test.
    pub link: LinkServer,
    /// Where it listens.
    pub address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
    mood: watch::Sender<Mood>,
}

/// What the stub's task does with events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// Welcomes machines.
    Friendly,
    /// Leaves the answer to the test.
    Silent,
    /// Takes no event at all.
    Stalled,
}

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Coordinator {
    /// Coordinator `number` of the world, with the usual settings.
    #[must_use]
    pub fn start(world: &World, number: u8) -> Self {
        Self::start_with(world, number, world.server_config())
    }

    /// As [`Coordinator::start`], with settings of one's own.
    #[must_use]
    pub fn start_with(world: &World, number: u8, config: ServerConfig) -> Self {
        let address = World::coordinator_address(number);
        let socket = world.network.socket(address);
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let link =
            LinkServer::start_on(socket, Arc::new(TokioRuntime), config, sender).expect("the server starts");
        let (mood, moods) = watch::channel(Mood::Friendly);
        let (seen_sender, seen) = mpsc::unbounded_channel();
        tokio::spawn(answer(events, seen_sender, moods, world.clock()));
        Self { link, address, seen, mood }
    }

    /// Answers no `Hello` from now on; the test does.
    pub fn stay_silent(&self) {
        self.mood.send_replace(Mood::Silent);
    }

    /// Takes no event from now on, like a core that is busy with something else.
    pub fn stall(&self) {
        self.mood.send_replace(Mood::Stalled);
    }

    /// Is friendly again.
    pub fn go_on(&self) {
        self.mood.send_replace(Mood::Friendly);
    }

    /// Everything that happens during `time`.
    pub async fn all_within(&mut self, time: Duration) -> Vec<Seen> {
        let end = Instant::now() + time;
        let mut all = Vec::new();
        while let Ok(Some(seen)) = tokio::time::timeout_at(end, self.seen.recv()).await {
            all.push(seen);
        }
        all
    }

    /// The next thing that `wanted` wants; everything before it is passed over.
    async fn wait_for<T>(&mut self, what: &str, mut wanted: impl FnMut(Seen) -> Option<T>) -> T {
        within(what, async {
            loop {
                let seen = self.seen.recv().await.expect("the server runs");
                if let Some(found) = wanted(seen) {
                    return found;
                }
            }
        })
        .await
    }

    /// The next session that is opened.
    pub async fn opened(&mut self) -> (PeerIdentity, SessionHandle) {
        self.wait_for("a session", |seen| match seen {
            Seen::Opened(peer, session) => Some((peer, session)),
            _ => None,
        })
        .await
    }

    /// The next session that ends.
    pub async fn closed(&mut self) -> (SessionId, String) {
        self.wait_for("the end of a session", |seen| match seen {
            Seen::Closed(session, why) => Some((session, why)),
            _ => None,
        })
        .await
    }

    /// The next heartbeat.
    pub async fn heartbeat(&mut self) -> (SessionId, Heartbeat) {
        self.wait_for("a heartbeat", |seen| match seen {
            Seen::Heartbeat(session, heartbeat, _) => Some((session, heartbeat)),
            _ => None,
        })
        .await
    }

    /// The next message.
    pub async fn message(&mut self) -> (SessionId, ToCoordinator) {
        self.wait_for("a message", |seen| match seen {
            Seen::Message(session, message) => Some((session, message)),
            _ => None,
        })
        .await
    }

    /// The next enrolment.
    pub async fn enrolment(&mut self) -> (EnrolRequest, EnrolReplier) {
        self.wait_for("an enrolment", |seen| match seen {
            Seen::Enrol(request, replier) => Some((request, replier)),
            _ => None,
        })
        .await
    }

    /// Signs what an enrolment asks for.
    ///
    /// # Panics
    /// When the request cannot be signed.
    #[must_use]
    pub fn sign(world: &World, request: &EnrolRequest) -> EnrolReply {
        let chain = world
            .ca
            .sign_machine(
                &request.signing_request,
                &request.machine,
                request.incarnation,
                world.now(),
                LEAF_LIFE,
            )
            .expect("the request is signed");
        EnrolReply::Accepted { chain }
    }
}

async fn answer(
    mut events: mpsc::Receiver<LinkEvent>,
    seen: mpsc::UnboundedSender<Seen>,
    mut moods: watch::Receiver<Mood>,
    clock: WallClock,
) {
    loop {
        if moods.wait_for(|mood| *mood != Mood::Stalled).await.is_err() {
            return;
        }
        // biased: a stall counts from the moment it is asked for. Both are cancel-safe.
        let event = tokio::select! {
            biased;
            changed = moods.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            event = events.recv() => event,
        };
        let next = match event {
            None => return,
            Some(LinkEvent::Enrol { request, reply, .. }) => Seen::Enrol(request, reply),
            Some(LinkEvent::Opened { session, peer, hello, .. }) => {
                assert!(matches!(hello, ToCoordinator::Hello { .. }), "{hello:?}");
                if *moods.borrow() == Mood::Friendly {
                    let welcome = ToAgent::Welcome { version: VERSION_MAX, now: clock() };
                    session.send(welcome).expect("an empty queue takes a welcome");
                }
                Seen::Opened(peer, session)
            }
            Some(LinkEvent::Heartbeat { session, heartbeat }) => {
                Seen::Heartbeat(session, heartbeat, Instant::now())
            }
            Some(LinkEvent::Message { session, message }) => Seen::Message(session, message),
            Some(LinkEvent::Closed { session, why }) => Seen::Closed(session, why),
        };
        // A test that has seen enough has dropped its end; the server goes on.
        let _ = seen.send(next);
    }
}
