//! An agent that takes part in everything and writes down what it sees.

use std::net::SocketAddr;
use std::time::Duration;

use keelson_protocol::limits::HEARTBEAT_INTERVAL;
use keelson_protocol::message::{BulkRequest, ToAgent};
use keelson_transport::{BulkStream, ClientConfig, ClientEvent, Identity, LinkClient, LinkError};
use tokio::sync::mpsc;

use crate::world::{World, heartbeat, within};

/// The stub.
#[derive(Debug)]
pub struct Agent {
    /// The client under test.
    pub link: LinkClient,
    /// What comes out of it.
    pub events: mpsc::Receiver<ClientEvent>,
    number: u16,
    sequence: u64,
}

impl Agent {
    /// Machine `number` with a fresh certificate.
    #[must_use]
    pub fn start(world: &World, number: u16, coordinators: &[SocketAddr]) -> Self {
        Self::start_with(world.client_config(number, coordinators), number, world.identity(number))
    }

    /// As [`Agent::start`], with settings and certificate of one's own.
    #[must_use]
    pub fn start_with(config: ClientConfig, number: u16, identity: Identity) -> Self {
        let (link, events) = LinkClient::start(config, identity);
        Self { link, events, number, sequence: 0 }
    }

    /// The next thing that happens.
    pub async fn next(&mut self) -> ClientEvent {
        self.wait_for("an event of the agent", Some).await
    }

    /// The next thing that `wanted` wants; everything before it is passed over.
    async fn wait_for<T>(&mut self, what: &str, mut wanted: impl FnMut(ClientEvent) -> Option<T>) -> T {
        within(what, async {
            loop {
                let event = self.events.recv().await.expect("the client runs");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        })
        .await
    }

    /// Waits for a session and its welcome.
    pub async fn connected(&mut self) -> SocketAddr {
        let coordinator = self
            .wait_for("a session of the agent", |event| match event {
                ClientEvent::Connected { coordinator } => Some(coordinator),
                _ => None,
            })
            .await;
        assert!(matches!(self.next().await, ClientEvent::Message(ToAgent::Welcome { .. })));
        coordinator
    }

    /// The next end of a session or of a try.
    pub async fn disconnected(&mut self) -> (LinkError, Duration) {
        self.wait_for("the end of the agent's session", |event| match event {
            ClientEvent::Disconnected { error, retry_in, .. } => Some((error, retry_in)),
            _ => None,
        })
        .await
    }

    /// The next message.
    pub async fn message(&mut self) -> ToAgent {
        self.wait_for("a message to the agent", |event| match event {
            ClientEvent::Message(message) => Some(message),
            _ => None,
        })
        .await
    }

    /// The next bulk stream.
    pub async fn bulk(&mut self) -> (BulkRequest, BulkStream) {
        self.wait_for("a bulk stream", |event| match event {
            ClientEvent::Bulk(request, stream) => Some((request, stream)),
            _ => None,
        })
        .await
    }

    /// Sends the next heartbeat.
    pub fn beat(&mut self) {
        self.sequence += 1;
        self.link.heartbeat(heartbeat(self.number, self.sequence));
    }

    /// Sends a heartbeat each second, for ever, and drops every event.
    pub async fn live(mut self) {
        let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
        loop {
            // biased: a heartbeat that is due goes first. Both are cancel-safe.
            tokio::select! {
                biased;
                _ = ticks.tick() => self.beat(),
                event = self.events.recv() => if event.is_none() { return },
            }
        }
    }
}
