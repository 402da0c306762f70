//! The status socket: whoever connects gets the status as one JSON object.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::shell::Input;

/// A reader that is slower than this is let go.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the socket, readable for root only, and answers on it for ever.
pub(crate) fn serve(path: PathBuf, inputs: mpsc::Sender<Input>) -> io::Result<()> {
    // One that a killed agent left; that no other agent listens on it is known by the lock.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        loop {
            // One after the other: only root asks, and an answer takes microseconds.
            match listener.accept().await {
                Ok((stream, _)) => {
                    let answered = tokio::time::timeout(ANSWER_TIMEOUT, answer(stream, &inputs)).await;
                    debug!(?answered, "status asked");
                }
                // Out of file descriptors: it passes.
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: UnixStream, inputs: &mpsc::Sender<Input>) -> io::Result<()> {
    let (reply, status) = oneshot::channel();
    inputs.send(Input::Status(reply)).await.map_err(io::Error::other)?;
    let status = status.await.map_err(io::Error::other)?;
    stream.write_all(&serde_json::to_vec(&status)?).await?;
    stream.shutdown().await
}
