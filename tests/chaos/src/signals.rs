//! Ctrl-C and SIGTERM: a run that is interrupted first mends what it broke.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::runtime;

/// How often a sleeper looks up.
const SLICE: Duration = Duration::from_millis(100);

/// Knows whether somebody has interrupted.
pub(crate) struct Signals {
    interrupted: Arc<AtomicBool>,
}

impl Signals {
    /// Takes both signals. They are handled and not blocked: programs that are started inherit a block, and a coordinator
    /// that was started again could not be asked to end.
    pub(crate) fn take() -> Result<Self> {
        let runtime = runtime()?;
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        let listen = async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                flag.store(true, Ordering::Relaxed);
            }
        };
        let work = move || runtime.block_on(listen);
        std::thread::Builder::new().name("signals".to_owned()).spawn(work)?;
        Ok(Self { interrupted })
    }

    pub(crate) fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Sleeps.
    ///
    /// # Errors
    /// When somebody interrupts.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            if self.interrupted() {
                bail!("interrupted");
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(SLICE));
        }
    }
}
