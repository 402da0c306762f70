//! Ctrl-C and SIGTERM: a run that is interrupted first mends what it broke.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{SigSet, Signal};

/// How often a sleeper looks up.
const SLICE: Duration = Duration::from_millis(100);

/// Knows whether somebody has interrupted.
pub(crate) struct Signals {
    interrupted: Arc<AtomicBool>,
}

impl Signals {
    /// Takes both signals. Must be called before other threads are started, which would not wait for it; programs that are
    /// started later get the signals as usual.
    pub(crate) fn take() -> Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block()?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&interrupted);
        let work = move || {
            while set.wait().is_ok() {
                flag.store(true, Ordering::Relaxed);
            }
        };
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
