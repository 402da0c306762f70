//! The only clock of the coordinator.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use keelson_coordinator_core::Now;
use keelson_protocol::{MonoTime, WallTime};

/// Reads both clocks at one moment. Its monotonic zero is the moment at which it was made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    zero: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { zero: Instant::now() }
    }

    pub(crate) fn now(self) -> Now {
        let mono = u64::try_from(self.zero.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { mono: MonoTime(mono), wall: wall_now() }
    }
}

/// The wall clock.
pub(crate) fn wall_now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
