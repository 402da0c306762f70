//! Why a connection is closed: the QUIC application close codes of the link (RFC 9000, section 19.19).
//!
//! TLS alerts speak of certificates only; everything else that a peer must understand is said by one of these codes
//! and a reason in words. Codes are append-only.

use std::fmt;
use std::time::Duration;

use quinn::VarInt;

use crate::backoff::RECONNECT_MAX;
use crate::settings::{CLOSE_REASON_BYTES_MAX, HANDSHAKE_PACE};

/// Why one side closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloseCode {
    /// What the connection was for is done.
    Done,
    /// The coordinator stops or restarts; come back soon.
    Restarting,
    /// A message was malformed, too large, or not allowed where it came.
    Protocol,
    /// A session was asked for without a certificate: enrol first.
    CertificateRequired,
    /// An enrolment was asked for with a certificate: open a session instead.
    AlreadyEnrolled,
    /// The certificate of the session ended while the session was open.
    CertificateExpired,
    /// The certificate is valid, but names no machine.
    BadCertificate,
    /// The receiver did not take its messages for too long.
    QueueFull,
    /// Something that had to come did not come in time.
    Timeout,
    /// The coordinator has no room for this now; try again later.
    Busy,
    /// The owner of the session ended it.
    Ended,
    /// The same machine continues on a newer connection.
    Replaced,
    /// A code that this build does not know.
    Unknown(u64),
}

const CODES: [(u32, CloseCode); 12] = [
    (0, CloseCode::Done),
    (1, CloseCode::Restarting),
    (2, CloseCode::Protocol),
    (3, CloseCode::CertificateRequired),
    (4, CloseCode::AlreadyEnrolled),
    (5, CloseCode::CertificateExpired),
    (6, CloseCode::BadCertificate),
    (7, CloseCode::QueueFull),
    (8, CloseCode::Timeout),
    (9, CloseCode::Busy),
    (10, CloseCode::Ended),
    (11, CloseCode::Replaced),
];

impl CloseCode {
    /// The code on the wire.
    #[must_use]
    pub fn to_wire(self) -> u64 {
        match self {
            Self::Unknown(code) => code,
            known => CODES.iter().find(|(_, code)| *code == known).map_or(0, |(wire, _)| u64::from(*wire)),
        }
    }

    /// The meaning of a code on the wire.
    #[must_use]
    pub fn from_wire(wire: u64) -> Self {
        CODES
            .iter()
            .find(|(known, _)| u64::from(*known) == wire)
            .map_or(Self::Unknown(wire), |(_, code)| *code)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Done => "done",
            Self::Restarting => "the coordinator restarts",
            Self::Protocol => "protocol error",
            Self::CertificateRequired => "a session needs a certificate",
            Self::AlreadyEnrolled => "enrolment with a certificate",
            Self::CertificateExpired => "certificate expired",
            Self::BadCertificate => "the certificate names no machine",
            Self::QueueFull => "messages were not taken",
            Self::Timeout => "timed out",
            Self::Busy => "busy",
            Self::Ended => "ended",
            Self::Replaced => "replaced by a newer connection",
            Self::Unknown(code) => return write!(f, "close code {code}"),
        })
    }
}

/// Closes `connection`; `reason` is cut to what fits a packet. A connection that is closed already keeps its reason.
pub(crate) fn close(connection: &quinn::Connection, code: CloseCode, reason: &str) {
    if connection.close_reason().is_some() {
        return;
    }
    let wire = VarInt::from_u64(code.to_wire()).unwrap_or(VarInt::MAX);
    connection.close(wire, cut(reason).as_bytes());
}

pub(crate) fn cut(reason: &str) -> &str {
    let mut end = reason.len().min(CLOSE_REASON_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

const SPREAD_KEY: &str = "spread_ms=";

/// The reason of [`CloseCode::Restarting`]: tells a fleet of `sessions` agents over which time to spread its return, so
/// that a small fleet is back at once and a large one does not storm.
pub(crate) fn restarting_reason(sessions: usize) -> String {
    let spread =
        HANDSHAKE_PACE.saturating_mul(u32::try_from(sessions).unwrap_or(u32::MAX)).min(RECONNECT_MAX);
    format!("the coordinator restarts; {SPREAD_KEY}{}", spread.as_millis())
}

/// Reads the spread out of the reason of a [`CloseCode::Restarting`]; never longer than [`RECONNECT_MAX`].
pub(crate) fn spread_of(reason: &str) -> Option<Duration> {
    let (_, digits) = reason.split_once(SPREAD_KEY)?;
    let ms = digits.parse::<u64>().ok()?;
    Some(Duration::from_millis(ms).min(RECONNECT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire() {
        for (wire, code) in CODES {
            assert_eq!(code.to_wire(), u64::from(wire));
            assert_eq!(CloseCode::from_wire(u64::from(wire)), code);
        }
        assert_eq!(CloseCode::from_wire(99), CloseCode::Unknown(99));
        assert_eq!(CloseCode::Unknown(99).to_wire(), 99);
    }

    #[test]
    fn a_restart_spreads_a_fleet_by_its_size() {
        fn check(sessions: usize, expected_ms: u64) {
            let spread = spread_of(&restarting_reason(sessions));
            assert_eq!(spread, Some(Duration::from_millis(expected_ms)), "{sessions} sessions");
        }
        check(0, 0);
        check(3, 1);
        check(20_000, 10_000);
        check(1_000_000, 15_000);
        assert_eq!(spread_of("the coordinator restarts"), None);
        assert_eq!(spread_of("spread_ms=99999999"), Some(RECONNECT_MAX));
        assert_eq!(spread_of("spread_ms=-1"), None);
    }

    #[test]
    fn reasons_are_cut_between_characters() {
        let long = "é".repeat(CLOSE_REASON_BYTES_MAX);
        assert_eq!(cut(&long).len(), CLOSE_REASON_BYTES_MAX);
        assert_eq!(cut(&format!("x{long}")).len(), CLOSE_REASON_BYTES_MAX - 1);
        assert_eq!(cut("short"), "short");
    }
}
