//! Brings the forwarder back when it has died. Users reach their clusters through it, and nobody else would notice.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::site::Site;

/// How often the kernel is asked whether the forwarder lives: it costs two system calls.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long one look may take. A call that changes the forwards may hold their lock meanwhile; then the next look serves.
const LOOK_WAIT: Duration = Duration::from_secs(2);

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
            let mut told = None;
            while stopped.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                let seen = site.ensure_forwarder(&program, Instant::now() + LOOK_WAIT);
                let why = seen.err().map(|why| why.to_string());
                if let Some(why) = why.as_ref().filter(|_| told != why) {
                    tracing::warn!(
                        error = why,
                        "exposed services may not be reachable: their forwarder does not run"
                    );
                }
                told = why;
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
