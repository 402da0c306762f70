//! One enrolment: a connection without a certificate, one request, one answer.

use std::sync::Arc;

use keelson_protocol::message::{EnrolReply, EnrolRequest, Refusal, RefusalCode, ToCoordinator};
use keelson_protocol::wire::{DecodeError, Message, encode_framed};
use tokio::sync::oneshot;
use tracing::debug;

use super::{EnrolReplier, LinkEvent, Shared, count};
use crate::close::{CloseCode, close};
use crate::frame::{FrameError, FrameReader};
use crate::settings::ENROL_TIMEOUT;

/// How an enrolment ended that was not answered.
struct Failure {
    code: CloseCode,
    why: String,
}

impl Failure {
    fn new(code: CloseCode, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

pub(super) async fn run(connection: quinn::Connection, shared: Arc<Shared>) {
    let Ok(_permit) = shared.enrolments.try_acquire() else {
        count(&shared.counters.busy);
        close(&connection, CloseCode::Busy, "too many machines enrol at this moment; try again");
        return;
    };
    let ended = match tokio::time::timeout(ENROL_TIMEOUT, exchange(&connection, &shared)).await {
        Ok(ended) => ended,
        Err(_) => Err(Failure::new(CloseCode::Timeout, "the enrolment took too long; try again")),
    };
    match ended {
        Ok(()) => close(&connection, CloseCode::Done, "enrolment answered"),
        Err(failure) => {
            if failure.code != CloseCode::Timeout {
                count(&shared.counters.protocol_errors);
            }
            debug!(address = %connection.remote_address(), why = failure.why, "an enrolment failed");
            close(&connection, failure.code, &failure.why);
        }
    }
}

async fn exchange(connection: &quinn::Connection, shared: &Shared) -> Result<(), Failure> {
    let lost = |error: &dyn std::fmt::Display| Failure::new(CloseCode::Done, error.to_string());
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|error| lost(&error))?;
    let request = match FrameReader::default().read::<EnrolRequest>(&mut recv).await {
        Ok(Some(request)) => request,
        Ok(None) => return Err(Failure::new(CloseCode::Protocol, "the stream ended without a request")),
        Err(FrameError::Decode(DecodeError::Kind { got: ToCoordinator::KIND, .. })) => {
            let why = "a session needs a certificate; enrol first";
            return Err(Failure::new(CloseCode::CertificateRequired, why));
        }
        Err(error) => return Err(Failure::new(CloseCode::Protocol, error.to_string())),
    };
    count(&shared.counters.enrolments);
    let (reply, answer) = oneshot::channel();
    let event = LinkEvent::Enrol { request, peer: connection.remote_address(), reply: EnrolReplier(reply) };
    let answer = match shared.events.send(event).await {
        Ok(()) => answer.await.unwrap_or_else(|_| busy()),
        Err(_) => busy(),
    };
    let framed = encode_framed(&answer).map_err(|error| {
        Failure::new(CloseCode::Busy, format!("the coordinator's answer cannot be sent: {error}"))
    })?;
    send.write_all(&framed).await.map_err(|error| lost(&error))?;
    send.finish().map_err(|error| lost(&error))?;
    // Closing a connection discards what was not delivered, so the machine closes it when it has the answer.
    connection.closed().await;
    Ok(())
}

fn busy() -> EnrolReply {
    EnrolReply::Refused(Refusal {
        code: RefusalCode::Busy,
        text: "the coordinator cannot answer now; the machine tries again".into(),
    })
}
