//! Wall-clock time for TLS.
//!
//! rustls asks for the time when it checks certificates. Programs give it the system's clock; tests give it one that
//! follows tokio's paused time, so that a certificate can expire within a test.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keelson_protocol::WallTime;
use rustls::pki_types::UnixTime;

/// Tells the wall-clock time.
pub type WallClock = Arc<dyn Fn() -> WallTime + Send + Sync>;

/// The clock of this machine.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place of this crate where the system's clock is read")]
pub fn system_clock() -> WallClock {
    Arc::new(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    })
}

/// A [`WallClock`] in the form that rustls takes.
pub(crate) struct TlsClock(pub(crate) WallClock);

impl fmt::Debug for TlsClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsClock")
    }
}

impl rustls::time_provider::TimeProvider for TlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        let ms = u64::try_from((self.0)().0).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}
