//! Peer probes: how agents of one cluster ask each other whether they live, without the coordinator.
//!
//! A ping is one UDP datagram, and the pong is the same datagram with another kind and another tag:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | [`MAGIC`] |
//! | 4 | 1 | version, [`VERSION`] |
//! | 5 | 1 | kind: 1 ping, 2 pong |
//! | 6 | 8 | nonce (big endian), drawn anew for each ping |
//! | 14 | 4 | incarnation of the machine that is asked (big endian) |
//! | 18 | 1 | length of the id of the machine that asks, `a` |
//! | 19 | 1 | length of the id of the machine that is asked, `b` |
//! | 20 | `a` | the machine that asks |
//! | 20 + `a` | `b` | the machine that is asked |
//! | 20 + `a` + `b` | 32 | HMAC-SHA256 (RFC 2104) of everything before, with the cluster's key |
//!
//! What follows from that:
//! - only machines of the cluster can ask and answer, because only they have the key;
//! - an answer is never longer than its question, so that nobody can use an agent to flood others;
//! - an old pong answers no new ping, because its nonce is another; an old ping makes its receiver say again that it
//!   lives, which is true;
//! - a replaced machine does not answer for its successor, because the question names the incarnation.
//!
//! The tag is not cut: a whole one is compared in constant time by the library, and 16 bytes more in a datagram that is
//! sent when something is wrong cost nothing. It is checked before any text is looked at or memory is taken.

use std::fmt;
use std::net::Ipv4Addr;

use ring::hmac;
use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, LABEL_BYTES_MAX, MachineId};
use crate::limits::{PEER_KEY_BYTES, PEER_WHY_BYTES_MAX};
use crate::secret::SecretBytes;

/// First bytes of every datagram: what is not ours is told apart before anything is computed.
pub const MAGIC: [u8; 4] = *b"KLPP";
/// Version of the layout. Another one is dropped: agents of one cluster that speak different versions do not hear each
/// other until all are renewed, which counts as silence.
pub const VERSION: u8 = 1;

/// Bytes before the two ids.
const HEAD_BYTES: usize = 20;
/// Bytes of the tag.
const TAG_BYTES: usize = 32;

/// Smallest datagram, in bytes: both ids have one letter.
pub const DATAGRAM_BYTES_MIN: usize = HEAD_BYTES + 2 + TAG_BYTES;
/// Largest datagram, in bytes: both ids are as long as they may be. Far below any path MTU.
pub const DATAGRAM_BYTES_MAX: usize = HEAD_BYTES + 2 * LABEL_BYTES_MAX + TAG_BYTES;

/// A machine to ask.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PeerTarget {
    /// Its id.
    pub machine: MachineId,
    /// Which machine of that id: another one does not answer.
    pub incarnation: Incarnation,
    /// Where it is.
    pub address: Ipv4Addr,
}

/// What came of asking a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// The machine that was asked.
    pub machine: MachineId,
    /// What came.
    pub said: PeerSaid,
}

impl PeerAnswer {
    pub(crate) fn check(&self) -> Result<(), String> {
        match &self.said {
            PeerSaid::Failed { why } if why.len() > PEER_WHY_BYTES_MAX => Err(format!(
                "a reason of {} bytes why {} could not be asked, at most {PEER_WHY_BYTES_MAX} are allowed",
                why.len(),
                self.machine
            )),
            _ => Ok(()),
        }
    }
}

/// What came of asking a machine. Append-only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerSaid {
    /// It answered: the machine, its agent and the way there live.
    Answered {
        /// Time from the ping to its pong, in microseconds.
        round_trip_us: u32,
    },
    /// Its kernel refused (ICMP port unreachable): the machine and the way there live, its agent does not listen. Nobody
    /// signs this, so it is weaker evidence than an answer.
    Refused,
    /// Nothing came, or there is no way there.
    Silent,
    /// It could not be asked. Says nothing about the machine.
    Failed {
        /// Why, in words; at most [`PEER_WHY_BYTES_MAX`] bytes.
        why: String,
    },
}

/// The key of a cluster's peer probes.
#[derive(Clone)]
pub struct PeerKey(hmac::Key);

/// Bytes that are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the key of peer probes has {bytes} bytes, it must have {PEER_KEY_BYTES}")]
pub struct PeerKeyError {
    /// How many there are.
    pub bytes: usize,
}

impl PeerKey {
    /// Takes `secret` as the key.
    ///
    /// # Errors
    /// [`PeerKeyError`] when it has another length than [`PEER_KEY_BYTES`].
    pub fn new(secret: &SecretBytes) -> Result<Self, PeerKeyError> {
        let bytes = secret.expose_secret();
        if bytes.len() != PEER_KEY_BYTES {
            return Err(PeerKeyError { bytes: bytes.len() });
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerKey")
    }
}

/// Question or answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatagramKind {
    /// Are you there?
    Ping,
    /// I am.
    Pong,
}

impl DatagramKind {
    fn byte(self) -> u8 {
        match self {
            Self::Ping => 1,
            Self::Pong => 2,
        }
    }
}

/// A ping or a pong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Question or answer.
    pub kind: DatagramKind,
    /// Tells the answers of one ping from those of all others.
    pub nonce: u64,
    /// Who asks.
    pub asker: MachineId,
    /// Who is asked, and answers.
    pub asked: MachineId,
    /// Which machine of that id.
    pub incarnation: Incarnation,
}

/// Why bytes are no datagram of this cluster. Holds no text, so that a flood of them takes no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Its length or its first bytes are not those of a peer probe.
    #[error("{bytes} bytes that are no peer probe")]
    Foreign {
        /// How many bytes came.
        bytes: usize,
    },
    /// Another version of the layout.
    #[error("peer probe of version {got}, this agent understands {VERSION}")]
    Version {
        /// The version that came.
        got: u8,
    },
    /// A kind that does not exist, or lengths that do not fit.
    #[error("malformed peer probe")]
    Malformed,
    /// It was not made with this cluster's key, or was changed on its way.
    #[error("peer probe with a wrong tag")]
    WrongTag,
}

impl Datagram {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self, key: &PeerKey) -> Vec<u8> {
        let (asker, asked) = (self.asker.as_str().as_bytes(), self.asked.as_str().as_bytes());
        let length = |id: &[u8]| u8::try_from(id.len()).expect("a machine id is a label of at most 63 bytes");
        let mut bytes = Vec::with_capacity(HEAD_BYTES + asker.len() + asked.len() + TAG_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, self.kind.byte()]);
        bytes.extend_from_slice(&self.nonce.to_be_bytes());
        bytes.extend_from_slice(&self.incarnation.0.to_be_bytes());
        bytes.extend_from_slice(&[length(asker), length(asked)]);
        bytes.extend_from_slice(asker);
        bytes.extend_from_slice(asked);
        let tag = hmac::sign(&key.0, &bytes);
        bytes.extend_from_slice(tag.as_ref());
        bytes
    }

    /// Reads untrusted bytes.
    ///
    /// # Errors
    /// [`DatagramError`] says why they are to be dropped.
    pub fn decode(bytes: &[u8], key: &PeerKey) -> Result<Self, DatagramError> {
        let parts = Parts::split(bytes)?;
        hmac::verify(&key.0, parts.signed, parts.tag).map_err(|_| DatagramError::WrongTag)?;
        let id = |bytes: &[u8]| {
            let text = std::str::from_utf8(bytes).map_err(|_| DatagramError::Malformed)?;
            MachineId::new(text).map_err(|_| DatagramError::Malformed)
        };
        Ok(Self {
            kind: parts.kind,
            nonce: parts.nonce,
            asker: id(parts.asker)?,
            asked: id(parts.asked)?,
            incarnation: parts.incarnation,
        })
    }

    /// The answer to this ping: of the same length, and about the same.
    #[must_use]
    pub fn pong(&self) -> Self {
        Self { kind: DatagramKind::Pong, ..self.clone() }
    }
}

/// A datagram whose lengths fit, and nothing more is known of it.
struct Parts<'a> {
    kind: DatagramKind,
    nonce: u64,
    incarnation: Incarnation,
    asker: &'a [u8],
    asked: &'a [u8],
    signed: &'a [u8],
    tag: &'a [u8],
}

impl<'a> Parts<'a> {
    fn split(bytes: &'a [u8]) -> Result<Self, DatagramError> {
        let foreign = DatagramError::Foreign { bytes: bytes.len() };
        if !(DATAGRAM_BYTES_MIN..=DATAGRAM_BYTES_MAX).contains(&bytes.len()) || !bytes.starts_with(&MAGIC) {
            return Err(foreign);
        }
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(foreign)?;
        let [_, _, _, _, version, kind, middle @ .., asker_bytes, asked_bytes] = head;
        if *version != VERSION {
            return Err(DatagramError::Version { got: *version });
        }
        let kind = match kind {
            1 => DatagramKind::Ping,
            2 => DatagramKind::Pong,
            _ => return Err(DatagramError::Malformed),
        };
        let (nonce, incarnation) = middle.split_first_chunk::<8>().ok_or(DatagramError::Malformed)?;
        let incarnation: [u8; 4] = incarnation.try_into().map_err(|_| DatagramError::Malformed)?;
        let (ids, tag) = rest.split_last_chunk::<TAG_BYTES>().ok_or(DatagramError::Malformed)?;
        let (asker, asked) =
            ids.split_at_checked(usize::from(*asker_bytes)).ok_or(DatagramError::Malformed)?;
        if asked.len() != usize::from(*asked_bytes) {
            return Err(DatagramError::Malformed);
        }
        Ok(Self {
            kind,
            nonce: u64::from_be_bytes(*nonce),
            incarnation: Incarnation(u32::from_be_bytes(incarnation)),
            asker,
            asked,
            signed: &bytes[..HEAD_BYTES + ids.len()],
            tag,
        })
    }
}
