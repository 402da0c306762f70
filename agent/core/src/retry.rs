//! When to try again: backoff, jitter, and the schedule of enrolment.

use std::time::Duration;

use keelson_protocol::message::RefusalCode;

/// Shortest wait before something is tried again.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest wait before something is tried again: long enough to cost nothing, short enough that nobody drives to the
/// data centre while the agent sleeps.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Enrolment asks again this often after a refusal that only a person can lift: a new token may lie in the metadata.
const ENROL_REFUSED_RETRY: Duration = Duration::from_secs(30);

/// Seed of the agent's jitter. Not a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The next draw (SplitMix64, Steele, Lea and Flood 2014).
    pub(crate) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration between zero and `most`.
    pub(crate) fn jitter(&mut self, most: Duration) -> Duration {
        let most_ms = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(1);
        Duration::from_millis(self.draw() % most_ms)
    }
}

/// Doubling wait between tries, from one second to one minute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    /// How often it failed in a row.
    pub failures: u32,
}

impl Backoff {
    /// The wait after `failures` failures in a row; zero after none.
    #[must_use]
    pub fn delay(self) -> Duration {
        match self.failures {
            0 => Duration::ZERO,
            n => BACKOFF_MIN.saturating_mul(1 << (n - 1).min(16)).min(BACKOFF_MAX),
        }
    }
}

/// How long enrolment waits after its `attempt`-th failure (from 1), and why it failed: `None` when nobody answered.
/// A machine that boots before its coordinator must come quickly once it is there, so the wait grows to ten seconds only.
#[must_use]
pub fn enrol_retry_delay(attempt: u32, refusal: Option<RefusalCode>, seed: &mut Seed) -> Duration {
    let base = match refusal {
        Some(RefusalCode::Busy) | None => {
            Duration::from_millis(250).saturating_mul(1 << attempt.min(10)).min(Duration::from_secs(10))
        }
        Some(_) => ENROL_REFUSED_RETRY,
    };
    base / 2 + seed.jitter(base / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_a_minute() {
        let seconds = |failures| Backoff { failures }.delay().as_secs();
        let table: Vec<u64> = [0, 1, 2, 3, 6, 7, 8, 1000].into_iter().map(seconds).collect();
        assert_eq!(table, [0, 1, 2, 4, 32, 60, 60, 60]);
    }

    #[test]
    fn enrolment_is_quick_for_silence_and_slow_for_a_refusal() {
        let mut seed = Seed(1);
        for attempt in 1..50 {
            assert!(enrol_retry_delay(attempt, None, &mut seed) <= Duration::from_secs(10));
            let refused = enrol_retry_delay(attempt, Some(RefusalCode::TokenUsed), &mut seed);
            assert!(refused >= Duration::from_secs(15) && refused <= Duration::from_secs(30));
        }
    }
}
