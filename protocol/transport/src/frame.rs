//! Messages on streams: length, envelope, payload.
//!
//! The length is checked before anything is allocated, and memory grows only with bytes that really came.

use keelson_protocol::wire::{self, DecodeError, LENGTH_BYTES, Message};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};

use crate::error::LinkError;

/// Memory that is set aside for a message before its bytes come, in bytes. Most messages fit.
const FIRST_BYTES: usize = 1024;

/// Why no message could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The bytes are no message of the expected kind.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The stream ended within a message.
    #[error("the stream ended within a message")]
    CutOff,
    /// The stream or its connection broke.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl FrameError {
    /// The error of the connection, when that is what broke.
    pub(crate) fn connection(&self) -> Option<&ConnectionError> {
        match self {
            Self::Read(ReadError::ConnectionLost(error)) => Some(error),
            _ => None,
        }
    }
}

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Read(ReadError::ConnectionLost(error)) => error.into(),
            other => Self::Protocol { why: other.to_string() },
        }
    }
}

/// Reads messages from a stream. Cancel-safe: a read that is dropped goes on where it was.
#[derive(Debug, Default)]
pub(crate) struct FrameReader {
    prefix: [u8; LENGTH_BYTES],
    prefix_filled: usize,
    body: Vec<u8>,
}

impl FrameReader {
    /// The next message; `None` when the stream ended before one began.
    pub(crate) async fn read<M: Message>(
        &mut self,
        stream: &mut RecvStream,
    ) -> Result<Option<M>, FrameError> {
        while self.prefix_filled < LENGTH_BYTES {
            match stream.read(&mut self.prefix[self.prefix_filled..]).await? {
                Some(bytes) => self.prefix_filled += bytes,
                None if self.prefix_filled == 0 => return Ok(None),
                None => return Err(FrameError::CutOff),
            }
        }
        let length = wire::frame_length::<M>(self.prefix)?;
        if self.body.capacity() == 0 {
            self.body.reserve_exact(length.min(FIRST_BYTES));
        }
        while self.body.len() < length {
            match stream.read_chunk(length - self.body.len(), true).await? {
                Some(chunk) => self.body.extend_from_slice(&chunk.bytes),
                None => return Err(FrameError::CutOff),
            }
        }
        let message = wire::decode(&self.body)?;
        // Nothing of a large message stays allocated in a session that is idle for hours.
        *self = Self::default();
        Ok(Some(message))
    }
}

/// A stream takes no more.
#[derive(Debug)]
pub(crate) struct WriteFailed(pub(crate) WriteError);

impl From<WriteFailed> for LinkError {
    fn from(WriteFailed(error): WriteFailed) -> Self {
        match error {
            WriteError::ConnectionLost(error) => error.into(),
            other => Self::Protocol { why: format!("the other side takes no more messages: {other}") },
        }
    }
}

/// Writes `framed` bytes.
pub(crate) async fn write(stream: &mut SendStream, framed: &[u8]) -> Result<(), WriteFailed> {
    stream.write_all(framed).await.map_err(WriteFailed)
}
