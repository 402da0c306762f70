//! Why a link does not stand, and why a message was not taken.

use std::time::Duration;

use keelson_protocol::message::Refusal;
use keelson_protocol::wire::{DecodeError, EncodeError};
use quinn::{ConnectionError, TransportErrorCode};

use crate::close::CloseCode;

/// Why a connection could not be made, or ended. The same type on both sides; "the other side" is the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Nothing answered.
    #[error("no answer within {within:?}")]
    NoAnswer {
        /// How long we waited.
        within: Duration,
    },
    /// The other side takes no more connections at this moment.
    #[error("the other side takes no more connections now")]
    Busy,
    /// The coordinator's certificate is not the one that we must trust. Somebody else may sit at that address.
    #[error("the coordinator could not prove its identity: {why}")]
    NotTrusted {
        /// What is wrong with its certificate.
        why: String,
    },
    /// The coordinator says that the machine's certificate has expired, or is not valid yet: TLS has one alert for
    /// both (RFC 8446, section 6.2).
    #[error(
        "the machine's link certificate has expired, or one of the clocks is wrong; when the clocks agree, the \
         machine must enrol again with a fresh token"
    )]
    CertificateExpired,
    /// The peer did not accept our certificate.
    #[error("the machine's link certificate was refused: {why}")]
    CertificateRefused {
        /// TLS alert in words.
        why: String,
    },
    /// Our own certificate or key cannot be used.
    #[error("our own identity cannot be used: {why}")]
    Identity {
        /// What is wrong with it.
        why: String,
    },
    /// The coordinator refused the machine, in a message.
    #[error("{refusal}")]
    Refused {
        /// The refusal.
        refusal: Refusal,
    },
    /// The peer closed the connection and said why.
    #[error("the other side closed: {code}: {reason}")]
    Closed {
        /// Why, as a code.
        code: CloseCode,
        /// Why, in words.
        reason: String,
    },
    /// We closed the connection.
    #[error("closed here: {reason}")]
    ClosedHere {
        /// Why, in words.
        reason: String,
    },
    /// The peer sent something that it must not send.
    #[error("protocol error: {why}")]
    Protocol {
        /// What.
        why: String,
    },
    /// The connection was lost without a word.
    #[error("connection lost: {why}")]
    Lost {
        /// How that was seen.
        why: String,
    },
    /// The machine has no socket for that address.
    #[error("no socket: {why}")]
    Socket {
        /// The system's error.
        why: String,
    },
}

/// TLS alerts about certificates (RFC 8446, section 6.2).
const CERTIFICATE_ALERTS: [(u64, &str); 9] = [
    (42, "bad certificate"),
    (43, "unsupported certificate"),
    (44, "certificate revoked"),
    (45, "certificate expired"),
    (46, "certificate unknown"),
    (48, "unknown CA"),
    (49, "access denied"),
    (51, "bad signature"),
    (116, "certificate required"),
];

const ALERT_EXPIRED: u64 = 45;

/// The TLS alert in a QUIC error code (RFC 9001, section 4.8).
fn alert_of(code: TransportErrorCode) -> Option<u64> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then(|| code - 0x100)
}

/// Whether a connection failed because of the peer's certificate, as seen by the side that checked it.
pub(crate) fn is_certificate_failure(error: &ConnectionError) -> bool {
    let ConnectionError::TransportError(error) = error else { return false };
    alert_of(error.code).is_some_and(|alert| CERTIFICATE_ALERTS.iter().any(|(known, _)| *known == alert))
}

impl From<ConnectionError> for LinkError {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(error) if alert_of(error.code) == Some(ALERT_EXPIRED) => {
                Self::NotTrusted { why: format!("{}; is this machine's clock right (NTP)?", error.reason) }
            }
            ConnectionError::TransportError(error) if alert_of(error.code).is_some() => {
                Self::NotTrusted { why: error.reason }
            }
            ConnectionError::ConnectionClosed(close) => match alert_of(close.error_code) {
                Some(ALERT_EXPIRED) => Self::CertificateExpired,
                Some(alert) => Self::CertificateRefused {
                    why: CERTIFICATE_ALERTS
                        .iter()
                        .find(|(known, _)| *known == alert)
                        .map_or_else(|| format!("TLS alert {alert}"), |(_, words)| (*words).to_owned()),
                },
                None if close.error_code == TransportErrorCode::CONNECTION_REFUSED => Self::Busy,
                None => Self::Lost { why: close.to_string() },
            },
            ConnectionError::ApplicationClosed(close) => {
                let code = CloseCode::from_wire(close.error_code.into_inner());
                match code {
                    CloseCode::CertificateExpired => Self::CertificateExpired,
                    CloseCode::Busy => Self::Busy,
                    _ => Self::Closed { code, reason: String::from_utf8_lossy(&close.reason).into_owned() },
                }
            }
            ConnectionError::LocallyClosed => {
                Self::ClosedHere { reason: "the connection was given up".into() }
            }
            other => Self::Lost { why: other.to_string() },
        }
    }
}

impl From<DecodeError> for LinkError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol { why: error.to_string() }
    }
}

/// Why a message was not taken. It will not be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no session.
    #[error("there is no session")]
    NotConnected,
    /// The other side does not take its messages. The session is closed for that.
    #[error("too many messages wait for the other side; the session is closed")]
    QueueFull,
    /// The message breaks its own limits.
    #[error("the message cannot be sent")]
    Encode(#[from] EncodeError),
}
