//! Making one connection: handshake, `Hello`, `Welcome`.

use std::net::SocketAddr;

use keelson_protocol::message::{ToAgent, ToCoordinator};
use keelson_protocol::wire::{VERSION_MAX, VERSION_MIN, encode_framed};
use quinn::{ConnectError, RecvStream, SendStream};

use super::LinkEndpoint;
use crate::ca::SERVER_NAME;
use crate::clock::WallClock;
use crate::close::{CloseCode, close};
use crate::error::LinkError;
use crate::frame::{self, FrameReader};
use crate::identity::Identity;
use crate::settings::{HANDSHAKE_TIMEOUT, WELCOME_TIMEOUT};
use crate::tls::{self, CaTrust};

/// A session that was welcomed.
pub(super) struct Dialled {
    pub(super) connection: quinn::Connection,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    /// Always a `Welcome`.
    pub(super) welcome: ToAgent,
}

/// Opens a session.
pub(super) async fn session(
    endpoint: &LinkEndpoint,
    address: SocketAddr,
    trust: &CaTrust,
    identity: &Identity,
    clock: &WallClock,
    hello: &ToCoordinator,
) -> Result<Dialled, LinkError> {
    // The wait for a permit counts for no time-out; the semaphore is never closed.
    let _permit = endpoint.dials.acquire().await;
    let connection = connect(endpoint, address, trust, Some(identity), clock).await?;
    // With TLS 1.3 the client is done before the coordinator has looked at its certificate, so only the answer to the
    // hello proves that a session stands.
    match tokio::time::timeout(WELCOME_TIMEOUT, greet(&connection, hello)).await {
        Ok(Ok((send, recv, welcome))) => Ok(Dialled { connection, send, recv, welcome }),
        Ok(Err(error)) => {
            // What the coordinator said when it closed explains more than the stream that broke by it.
            let error = connection.close_reason().map_or(error.clone(), |closed| match closed {
                quinn::ConnectionError::LocallyClosed => error,
                closed => closed.into(),
            });
            close(&connection, CloseCode::Done, &error.to_string());
            Err(error)
        }
        Err(_) => {
            close(&connection, CloseCode::Timeout, "no welcome came");
            Err(LinkError::NoAnswer { within: WELCOME_TIMEOUT })
        }
    }
}

async fn greet(
    connection: &quinn::Connection,
    hello: &ToCoordinator,
) -> Result<(SendStream, RecvStream, ToAgent), LinkError> {
    let framed = encode_framed(hello).map_err(|error| LinkError::Protocol { why: error.to_string() })?;
    let (mut send, mut recv) = connection.open_bi().await?;
    frame::write(&mut send, &framed).await?;
    match FrameReader::default().read::<ToAgent>(&mut recv).await? {
        Some(ToAgent::Welcome { version, .. }) if !(VERSION_MIN..=VERSION_MAX).contains(&version) => {
            Err(LinkError::Protocol {
                why: format!("the coordinator chose version {version}, which is not spoken here"),
            })
        }
        Some(welcome @ ToAgent::Welcome { .. }) => Ok((send, recv, welcome)),
        Some(ToAgent::Refused(refusal)) => Err(LinkError::Refused { refusal }),
        Some(_) => Err(LinkError::Protocol { why: "the first message was no welcome".into() }),
        None => Err(LinkError::Protocol { why: "the coordinator ended the stream without a welcome".into() }),
    }
}

/// Makes a connection; without an identity it can only enrol.
pub(super) async fn connect(
    endpoint: &LinkEndpoint,
    address: SocketAddr,
    trust: &CaTrust,
    identity: Option<&Identity>,
    clock: &WallClock,
) -> Result<quinn::Connection, LinkError> {
    let config = tls::client_config(trust, identity, clock.clone())
        .map_err(|error| LinkError::Identity { why: error.why })?;
    let endpoint = endpoint
        .towards(address)
        .ok_or_else(|| LinkError::Socket { why: format!("none for the address family of {address}") })?;
    let connecting = endpoint.connect_with(config, address, SERVER_NAME).map_err(|error| match error {
        ConnectError::InvalidRemoteAddress(_) => {
            LinkError::Socket { why: format!("{address} is no address to connect to") }
        }
        other => LinkError::Socket { why: other.to_string() },
    })?;
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(connection) => Ok(connection?),
        Err(_) => Err(LinkError::NoAnswer { within: HANDSHAKE_TIMEOUT }),
    }
}
