//! The envelope: how a message becomes bytes, and how untrusted bytes become a message or a typed refusal.
//!
//! Layout: `version` (u16, big endian), `kind` (u8), then the postcard encoding of the message. Streams put the length
//! (u32, big endian) before it. The length is checked against the kind's limit before anything is decoded; bytes that
//! are left over are an error. Enums in messages are append-only and fields never move: golden bytes of every released
//! version are kept in `protocol/golden`.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the link protocol. Announced in `Hello` and `Welcome`; both sides speak the lower of the two highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProtocolVersion(pub u16);

impl fmt::Display for ProtocolVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The oldest version that this build understands.
pub const VERSION_MIN: ProtocolVersion = ProtocolVersion(1);
/// The newest version that this build understands, and the one that it sends.
pub const VERSION_MAX: ProtocolVersion = ProtocolVersion(1);

/// Two sides have no protocol version in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the other side speaks link versions {min} to {max}, this one {} to {}; upgrade the older side",
    VERSION_MIN,
    VERSION_MAX
)]
pub struct NoCommonVersion {
    /// The other side's oldest version.
    pub min: ProtocolVersion,
    /// The other side's newest version.
    pub max: ProtocolVersion,
}

/// The version that both sides speak: the lower of the two newest, when the other side's range `min..=max` has it.
///
/// # Errors
/// [`NoCommonVersion`] when the ranges do not meet.
pub fn negotiate(min: ProtocolVersion, max: ProtocolVersion) -> Result<ProtocolVersion, NoCommonVersion> {
    let common = max.min(VERSION_MAX);
    if min <= common && VERSION_MIN <= common { Ok(common) } else { Err(NoCommonVersion { min, max }) }
}

/// Bytes of the envelope before the payload.
pub const ENVELOPE_BYTES: usize = 3;
/// Bytes of the length before an envelope on a stream.
pub const LENGTH_BYTES: usize = 4;

/// A message with its place in the protocol.
pub trait Message: Serialize + DeserializeOwned {
    /// Tells messages apart; never reused.
    const KIND: u8;
    /// Name for errors.
    const NAME: &'static str;
    /// Largest encoding with envelope, in bytes.
    const BYTES_MAX: usize;
    /// Checks what the type cannot say: counts and lengths of what it holds.
    ///
    /// # Errors
    /// A sentence that says what is out of bounds.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Why a message could not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The message is larger than its kind allows.
    #[error("{name} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLarge {
        /// Kind of message.
        name: &'static str,
        /// Its size in bytes.
        bytes: usize,
        /// The limit in bytes.
        bytes_max: usize,
    },
    /// The message breaks its own rules.
    #[error("{name} is not valid: {why}")]
    Invalid {
        /// Kind of message.
        name: &'static str,
        /// Which rule.
        why: String,
    },
    /// The serializer refused, which no message type of ours can cause.
    #[error("{name} could not be encoded")]
    Postcard {
        /// Kind of message.
        name: &'static str,
        /// The serializer's error.
        #[source]
        source: postcard::Error,
    },
}

/// Why bytes are no message of the kind that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than the kind allows; refused before decoding.
    #[error("{bytes} bytes were announced for {name}, at most {bytes_max} are allowed")]
    TooLarge {
        /// Kind of message.
        name: &'static str,
        /// Announced size in bytes.
        bytes: usize,
        /// The limit in bytes.
        bytes_max: usize,
    },
    /// Fewer bytes than an envelope has.
    #[error("{bytes} bytes are too few for {name}")]
    TooShort {
        /// Kind of message.
        name: &'static str,
        /// Size in bytes.
        bytes: usize,
    },
    /// The sender speaks a version that this build does not understand.
    #[error("protocol version {got} is not understood here: {min} to {max} are; upgrade the older side")]
    Version {
        /// The sender's version.
        got: ProtocolVersion,
        /// Oldest understood here.
        min: ProtocolVersion,
        /// Newest understood here.
        max: ProtocolVersion,
    },
    /// Another kind of message than the place allows.
    #[error("kind {got} came where {name} was expected")]
    Kind {
        /// Expected kind of message.
        name: &'static str,
        /// The kind that came.
        got: u8,
    },
    /// The payload is no encoding of the kind.
    #[error("{name} is malformed")]
    Malformed {
        /// Kind of message.
        name: &'static str,
    },
    /// The payload decodes, but breaks the kind's rules.
    #[error("{name} is not valid: {why}")]
    Invalid {
        /// Kind of message.
        name: &'static str,
        /// Which rule.
        why: String,
    },
}

/// Encodes `message` with its envelope.
///
/// # Errors
/// [`EncodeError::TooLarge`] or [`EncodeError::Invalid`] when the message breaks its own limits.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, EncodeError> {
    message.check().map_err(|why| EncodeError::Invalid { name: M::NAME, why })?;
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&VERSION_MAX.0.to_be_bytes());
    bytes.push(M::KIND);
    let bytes = postcard::to_extend(message, bytes)
        .map_err(|source| EncodeError::Postcard { name: M::NAME, source })?;
    if bytes.len() > M::BYTES_MAX {
        return Err(EncodeError::TooLarge { name: M::NAME, bytes: bytes.len(), bytes_max: M::BYTES_MAX });
    }
    Ok(bytes)
}

/// Encodes `message` with its envelope and, before it, its length: the form that streams carry.
///
/// # Errors
/// As [`encode`].
pub fn encode_framed<M: Message>(message: &M) -> Result<Vec<u8>, EncodeError> {
    let body = encode(message)?;
    let length = u32::try_from(body.len()).expect("every BYTES_MAX is below 4 GiB");
    let mut framed = Vec::with_capacity(LENGTH_BYTES + body.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&body);
    Ok(framed)
}

/// Reads the length before an envelope and checks it against the kind's limit, so that no reader allocates more.
///
/// # Errors
/// [`DecodeError::TooLarge`] or [`DecodeError::TooShort`].
pub fn frame_length<M: Message>(prefix: [u8; LENGTH_BYTES]) -> Result<usize, DecodeError> {
    let bytes = usize::try_from(u32::from_be_bytes(prefix)).expect("usize has at least 32 bits here");
    if bytes > M::BYTES_MAX {
        return Err(DecodeError::TooLarge { name: M::NAME, bytes, bytes_max: M::BYTES_MAX });
    }
    if bytes < ENVELOPE_BYTES {
        return Err(DecodeError::TooShort { name: M::NAME, bytes });
    }
    Ok(bytes)
}

/// Decodes an envelope and its message. The bytes are untrusted.
///
/// # Errors
/// [`DecodeError`] names what is wrong with them.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, DecodeError> {
    if bytes.len() > M::BYTES_MAX {
        return Err(DecodeError::TooLarge { name: M::NAME, bytes: bytes.len(), bytes_max: M::BYTES_MAX });
    }
    let [high, low, kind, payload @ ..] = bytes else {
        return Err(DecodeError::TooShort { name: M::NAME, bytes: bytes.len() });
    };
    let got = ProtocolVersion(u16::from_be_bytes([*high, *low]));
    if !(VERSION_MIN..=VERSION_MAX).contains(&got) {
        return Err(DecodeError::Version { got, min: VERSION_MIN, max: VERSION_MAX });
    }
    if *kind != M::KIND {
        return Err(DecodeError::Kind { name: M::NAME, got: *kind });
    }
    let (message, rest) =
        postcard::take_from_bytes::<M>(payload).map_err(|_| DecodeError::Malformed { name: M::NAME })?;
    if !rest.is_empty() {
        return Err(DecodeError::Malformed { name: M::NAME });
    }
    message.check().map_err(|why| DecodeError::Invalid { name: M::NAME, why })?;
    Ok(message)
}
