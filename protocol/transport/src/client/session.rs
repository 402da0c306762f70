//! One session of an agent: three loops side by side, in one task.

use keelson_protocol::message::ToAgent;
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;
use tracing::debug;

use super::{ClientEvent, OwnerGone};
use crate::bulk::BulkStream;
use crate::close::{CloseCode, close};
use crate::error::LinkError;
use crate::frame::{self, FrameReader};
use crate::queue::OutQueue;
use crate::settings::BULK_OPEN_TIMEOUT;

/// Carries a session until it ends. All loops are dropped when the first of them ends, so none has to be cancel-safe.
pub(super) async fn run(
    connection: &quinn::Connection,
    send: &mut SendStream,
    recv: &mut RecvStream,
    queue: &OutQueue,
    events: &mpsc::Sender<ClientEvent>,
) -> Result<LinkError, OwnerGone> {
    // biased: what the coordinator said is handed on before the end of the connection is.
    let error = tokio::select! {
        biased;
        ended = messages(recv, events) => ended?,
        ended = send_queue(send, queue) => ended,
        ended = bulk_streams(connection, events) => ended,
    };
    let error = match (connection.close_reason(), queue.end_reason()) {
        (Some(quinn::ConnectionError::LocallyClosed), Some(reason)) => LinkError::ClosedHere { reason },
        (Some(quinn::ConnectionError::LocallyClosed) | None, _) => error,
        // A refusal in a message explains more than the close that follows it.
        (Some(_), _) if matches!(error, LinkError::Refused { .. }) => error,
        (Some(closed), _) => closed.into(),
    };
    queue.end("the session has ended");
    close(connection, close_code(&error), &error.to_string());
    Ok(error)
}

fn close_code(error: &LinkError) -> CloseCode {
    if matches!(error, LinkError::Protocol { .. }) { CloseCode::Protocol } else { CloseCode::Done }
}

async fn messages(
    stream: &mut RecvStream,
    events: &mpsc::Sender<ClientEvent>,
) -> Result<LinkError, OwnerGone> {
    let mut reader = FrameReader::default();
    loop {
        match reader.read::<ToAgent>(stream).await {
            Ok(Some(ToAgent::Refused(refusal))) => return Ok(LinkError::Refused { refusal }),
            Ok(Some(message)) => {
                events.send(ClientEvent::Message(message)).await.map_err(|_| OwnerGone)?;
            }
            Ok(None) => {
                // A polite end: the reason comes with the close of the connection that follows.
                return Ok(ended_by_peer());
            }
            Err(error) => return Ok(error.into()),
        }
    }
}

fn ended_by_peer() -> LinkError {
    LinkError::Closed { code: CloseCode::Ended, reason: "the coordinator ended the session".into() }
}

async fn send_queue(stream: &mut SendStream, queue: &OutQueue) -> LinkError {
    while let Some(framed) = queue.pop().await {
        if let Err(error) = frame::write(stream, &framed).await {
            return error.into();
        }
    }
    LinkError::ClosedHere { reason: queue.end_reason().unwrap_or_default() }
}

/// Takes the streams that the coordinator opens; QUIC allows only a few at a time.
async fn bulk_streams(connection: &quinn::Connection, events: &mpsc::Sender<ClientEvent>) -> LinkError {
    loop {
        let (send, recv) = match connection.accept_bi().await {
            Ok(stream) => stream,
            Err(error) => return error.into(),
        };
        // A task for each, so that a head that does not come holds up nothing else.
        tokio::spawn(take_bulk_stream(BulkStream::new(send, recv), events.clone()));
    }
}

async fn take_bulk_stream(mut stream: BulkStream, events: mpsc::Sender<ClientEvent>) {
    match tokio::time::timeout(BULK_OPEN_TIMEOUT, stream.read_request()).await {
        Ok(Ok(request)) => {
            // The owner may be gone; then the stream is given up by being dropped.
            let _ = events.send(ClientEvent::Bulk(request, stream)).await;
        }
        Ok(Err(error)) => debug!(error = %error, "a bulk stream had no valid head"),
        Err(_) => debug!("a bulk stream had no head in time"),
    }
}
