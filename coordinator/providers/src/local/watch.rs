//! Brings the forwarder back when it has died. Users reach their clusters through it, and nobody else would notice.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use keelson_protocol::errors::chain;

use super::site::Site;

/// How often it is looked whether the forwarder lives: while it does, that costs two system calls.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A thread that looks after the forwarder, and ends when this is dropped.
pub(crate) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to look after the forwarder of `site`, which is `program`.
    ///
    /// # Errors
    /// The host allows no further thread.
    pub(crate) fn begin(site: Arc<Site>, program: PathBuf) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let look = move || {
            let mut told = false;
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let failed = site.revive_forwarder(&program).err();
                if let Some(error) = failed.as_ref().filter(|_| !told) {
                    let why = chain(error);
                    tracing::warn!(error = why, "users may not reach what is exposed: no forwarder runs");
                }
                told = failed.is_some();
            }
        };
        let thread = thread::Builder::new().name("forwarder-watch".to_owned()).spawn(look)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panics only with the program.
            let _ = thread.join();
        }
    }
}
