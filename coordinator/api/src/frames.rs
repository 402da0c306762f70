//! Shell frames on a byte stream, as both ends of an upgraded connection read and write them.

use std::io;

use keelson_protocol::message::ShellFrame;
use keelson_protocol::wire::{self, LENGTH_BYTES};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Most bytes of keys or output in one frame. Leaves room for the envelope in the link's limit.
pub const DATA_BYTES_MAX: usize = 8 * 1024;

/// Reads the next frame; `None` when the other side ended the stream between two frames.
///
/// # Errors
/// When the stream breaks, ends within a frame, or carries something that is no frame. Cancelling it may lose bytes:
/// read in a task of its own.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<ShellFrame>> {
    let mut prefix = [0_u8; LENGTH_BYTES];
    if stream.read(&mut prefix[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..]).await?;
    let length = wire::frame_length::<ShellFrame>(prefix).map_err(invalid)?;
    let mut body = vec![0_u8; length];
    stream.read_exact(&mut body).await?;
    wire::decode(&body).map(Some).map_err(invalid)
}

/// Writes one frame.
///
/// # Errors
/// When the stream breaks, or the frame is larger than the link allows.
pub async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &ShellFrame) -> io::Result<()> {
    let bytes = wire::encode_framed(frame).map_err(invalid)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
