//! Clocks of machines: each sees only its own, which runs a little too fast or too slow and may be set.

use keelson_protocol::{MonoTime, WallTime};

/// The wall clock at the beginning of every run: a moment in 2027.
pub(crate) const WALL_BASE_MS: i64 = 1_800_000_000_000;
/// Millionths in a whole.
const MILLION: i64 = 1_000_000;

/// Both clocks of a machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    /// When its kernel started, in milliseconds of the world.
    booted: u64,
    /// What its monotonic clock said then.
    base: u64,
    drift_ppm: i64,
    /// How far its wall clock is set wrong.
    wall_offset_ms: i64,
}

impl Clock {
    pub(crate) fn new(booted: u64, base: u64, drift_ppm: i64) -> Self {
        Self { booted, base, drift_ppm, wall_offset_ms: 0 }
    }

    fn ran(&self, now: u64) -> i64 {
        let passed = i64::try_from(now.saturating_sub(self.booted)).unwrap_or(i64::MAX / MILLION);
        passed + passed * self.drift_ppm / MILLION
    }

    pub(crate) fn mono(&self, now: u64) -> MonoTime {
        MonoTime(self.base + u64::try_from(self.ran(now)).unwrap_or(0))
    }

    pub(crate) fn wall(&self, now: u64) -> WallTime {
        let booted = i64::try_from(self.booted).unwrap_or(i64::MAX);
        WallTime(WALL_BASE_MS + booted + self.ran(now) + self.wall_offset_ms)
    }

    /// The first moment of the world at which the monotonic clock says `mono` or more.
    pub(crate) fn when(&self, mono: MonoTime) -> u64 {
        let ran = i64::try_from(mono.0.saturating_sub(self.base)).unwrap_or(i64::MAX / MILLION);
        let guess = ran * MILLION / (MILLION + self.drift_ppm);
        let mut at = self.booted + u64::try_from(guess).unwrap_or(0);
        while self.mono(at) < mono {
            at += 1;
        }
        at
    }

    pub(crate) fn jump(&mut self, by_ms: i64) {
        self.wall_offset_ms += by_ms;
    }

    /// The wall clock is set right, as time servers do.
    pub(crate) fn set_right(&mut self) {
        self.wall_offset_ms = 0;
    }

    /// A new boot: the monotonic clock begins anew, the wall clock goes on, as it is kept by a battery.
    pub(crate) fn reboot(&mut self, now: u64, base: u64) {
        *self = Self { booted: now, base, ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_first_moment_that_a_clock_reaches_a_time() {
        for drift in [-200, 0, 150] {
            let clock = Clock::new(5_000, 77, drift);
            for mono in [78, 1_000, 12_345, 9_876_543] {
                let at = clock.when(MonoTime(mono));
                assert!(clock.mono(at).0 >= mono && (at == 5_000 || clock.mono(at - 1).0 < mono));
            }
        }
    }
}
