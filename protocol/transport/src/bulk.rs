//! Bulk streams: content that is too large for messages (journals, terminals, bundles), with QUIC's flow control.
//!
//! The coordinator opens a stream with a [`BulkRequest`], the agent answers with a [`BulkReply`], and then both sides
//! own the bytes: raw, through `AsyncRead` and `AsyncWrite`, or framed, as [`ShellFrame`]s.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use keelson_protocol::message::{BulkReply, BulkRequest, ShellFrame};
use keelson_protocol::wire::{EncodeError, Message, encode_framed};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::LinkError;
use crate::frame::{self, FrameError, FrameReader, WriteFailed};
use crate::settings::BULK_OPEN_TIMEOUT;

/// Error code of a stream that is given up (RESET_STREAM, STOP_SENDING).
const GIVEN_UP: VarInt = VarInt::from_u32(1);

/// Why a bulk stream could not be opened, read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BulkError {
    /// The session ended, or the peer broke the protocol.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The agent will not send the content.
    #[error("the machine refused: {why}")]
    Refused {
        /// Why, in the agent's words.
        why: String,
    },
    /// The agent did not answer in time, or has as many bulk streams as it may.
    #[error("the machine opened no stream within {within:?}; other transfers may be in its way")]
    Timeout {
        /// How long we waited.
        within: Duration,
    },
    /// The message breaks its own limits.
    #[error("the message cannot be sent")]
    Encode(#[from] EncodeError),
    /// The stream ended where a message had to come, or the other side gave it up.
    #[error("the other side ended the stream too early")]
    Ended,
}

impl From<FrameError> for BulkError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::CutOff | FrameError::Read(ReadError::Reset(_)) => Self::Ended,
            other => Self::Link(other.into()),
        }
    }
}

impl From<WriteFailed> for BulkError {
    fn from(error: WriteFailed) -> Self {
        match error {
            WriteFailed(WriteError::Stopped(_)) => Self::Ended,
            other => Self::Link(other.into()),
        }
    }
}

/// Both directions of a bulk stream. Dropping it gives the stream up.
#[derive(Debug)]
pub struct BulkStream {
    reader: BulkReader,
    writer: BulkWriter,
}

/// The receiving half. Dropping it tells the sender to stop.
#[derive(Debug)]
pub struct BulkReader {
    stream: RecvStream,
    frames: FrameReader,
}

/// The sending half. Dropping it without [`BulkWriter::finish`] resets the stream, so that a cut-off transfer never
/// looks complete.
#[derive(Debug)]
pub struct BulkWriter {
    stream: SendStream,
    finished: bool,
}

impl BulkStream {
    pub(crate) fn new(send: SendStream, recv: RecvStream) -> Self {
        Self {
            reader: BulkReader { stream: recv, frames: FrameReader::default() },
            writer: BulkWriter { stream: send, finished: false },
        }
    }

    /// Opens a stream to the agent and waits for its reply.
    pub(crate) async fn open(
        connection: &quinn::Connection,
        request: &BulkRequest,
    ) -> Result<Self, BulkError> {
        let opened = async {
            let framed = encode_framed(request)?;
            let (send, recv) = connection.open_bi().await.map_err(LinkError::from)?;
            let mut stream = Self::new(send, recv);
            frame::write(&mut stream.writer.stream, &framed).await?;
            match stream.reader.read_message().await?.ok_or(BulkError::Ended)? {
                BulkReply::Accepted => Ok(stream),
                BulkReply::Refused { why } => Err(BulkError::Refused { why }),
            }
        };
        match tokio::time::timeout(BULK_OPEN_TIMEOUT, opened).await {
            Ok(result) => result,
            Err(_) => Err(BulkError::Timeout { within: BULK_OPEN_TIMEOUT }),
        }
    }

    /// Reads the head of a stream that the coordinator opened.
    pub(crate) async fn read_request(&mut self) -> Result<BulkRequest, BulkError> {
        self.reader.read_message().await?.ok_or(BulkError::Ended)
    }

    /// Agent: the content follows.
    ///
    /// # Errors
    /// [`BulkError::Link`] when the session ended.
    pub async fn accept(&mut self) -> Result<(), BulkError> {
        self.writer.write_message(&BulkReply::Accepted).await
    }

    /// Agent: the content will not come.
    ///
    /// # Errors
    /// [`BulkError::Link`] when the session ended.
    pub async fn refuse(mut self, why: &str) -> Result<(), BulkError> {
        self.writer.write_message(&BulkReply::Refused { why: why.to_owned() }).await?;
        self.writer.finish();
        Ok(())
    }

    /// As [`BulkWriter::given_up`].
    pub fn given_up(&self) -> impl Future<Output = ()> + Send + 'static {
        self.writer.given_up()
    }

    /// Takes the halves apart, for one task each.
    #[must_use]
    pub fn split(self) -> (BulkReader, BulkWriter) {
        (self.reader, self.writer)
    }

    /// As [`BulkReader::read_frame`].
    ///
    /// # Errors
    /// As there.
    pub async fn read_frame(&mut self) -> Result<Option<ShellFrame>, BulkError> {
        self.reader.read_frame().await
    }

    /// As [`BulkWriter::write_frame`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_frame(&mut self, frame: &ShellFrame) -> Result<(), BulkError> {
        self.writer.write_frame(frame).await
    }

    /// As [`BulkWriter::finish`].
    pub fn finish(&mut self) {
        self.writer.finish();
    }
}

impl BulkReader {
    /// The next frame of a terminal; `None` when the peer finished. Cancel-safe.
    ///
    /// # Errors
    /// [`BulkError::Link`] when the session ended or the bytes are no frame.
    pub async fn read_frame(&mut self) -> Result<Option<ShellFrame>, BulkError> {
        self.read_message().await
    }

    async fn read_message<M: Message>(&mut self) -> Result<Option<M>, BulkError> {
        Ok(self.frames.read(&mut self.stream).await?)
    }
}

impl BulkWriter {
    /// Sends a frame of a terminal. Not cancel-safe: a frame of which a part was sent breaks the stream.
    ///
    /// # Errors
    /// [`BulkError::Link`] when the session or the stream ended, [`BulkError::Encode`] when the frame is too large.
    pub async fn write_frame(&mut self, frame: &ShellFrame) -> Result<(), BulkError> {
        self.write_message(frame).await
    }

    /// Says that nothing more follows. What was written is still delivered, also after the writer is dropped.
    pub fn finish(&mut self) {
        // An error means that the stream has ended already.
        let _ = self.stream.finish();
        self.finished = true;
    }

    /// Done when the peer wants no more, or the session has ended; also while a write waits. For a stream that is not
    /// finished.
    pub fn given_up(&self) -> impl Future<Output = ()> + Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            // How it ended does not matter to whoever has to stop.
            let _ = stopped.await;
        }
    }

    /// Waits until the peer has all that was written and [`BulkWriter::finish`]ed.
    ///
    /// # Errors
    /// [`BulkError::Link`] when the session ended before.
    pub async fn delivered(&self) -> Result<(), BulkError> {
        match self.stream.stopped().await {
            Ok(_) => Ok(()),
            Err(quinn::StoppedError::ConnectionLost(error)) => Err(LinkError::from(error).into()),
            Err(other) => Err(LinkError::Protocol { why: other.to_string() }.into()),
        }
    }

    async fn write_message<M: Message>(&mut self, message: &M) -> Result<(), BulkError> {
        let framed = encode_framed(message)?;
        Ok(frame::write(&mut self.stream, &framed).await?)
    }
}

impl Drop for BulkWriter {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(GIVEN_UP);
        }
    }
}

impl AsyncRead for BulkReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.stream), context, buffer)
    }
}

impl AsyncWrite for BulkWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.stream), context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.stream), context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for BulkStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(context, buffer)
    }
}

impl AsyncWrite for BulkStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}
