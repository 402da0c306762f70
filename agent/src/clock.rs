//! The two clocks. Nothing else in the agent asks for the time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keelson_protocol::{MonoTime, WallTime};
use nix::time::{ClockId, clock_gettime};

/// Time since the boot of the kernel, suspended time included: a machine that slept must see that it is late.
pub(crate) fn mono() -> MonoTime {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    MonoTime(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// The wall clock.
pub(crate) fn wall() -> WallTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}
