//! When to try again: jittered exponential backoff, as a pure function.
//!
//! Full jitter, after "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015): of all variants it makes the
//! least work for a server that many clients return to, and takes hardly longer.

use std::time::Duration;

/// Upper bound of the first delay.
pub const RECONNECT_MIN: Duration = Duration::from_millis(100);

/// Upper bound of every delay. A fleet of 20,000 then tries 2,700 times a second, which a coordinator can answer.
pub const RECONNECT_MAX: Duration = Duration::from_secs(15);

/// A small random sequence from a seed (SplitMix64; Steele, Lea and Flood, OOPSLA 2014). Not for secrets.
#[derive(Debug, Clone)]
pub struct Jitter(u64);

impl Jitter {
    /// Starts the sequence of `seed`. Agents use different seeds, or they all return at the same moment.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration from zero up to, but without, `bound`.
    pub fn below(&mut self, bound: Duration) -> Duration {
        let bound_us = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.next() % bound_us)
    }
}

/// Upper bound of the delay after `rounds` fruitless rounds over all coordinators.
#[must_use]
pub fn delay_bound(rounds: u32) -> Duration {
    RECONNECT_MIN.saturating_mul(2_u32.saturating_pow(rounds)).min(RECONNECT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_its_limit() {
        for (rounds, expected_ms) in
            [(0, 100), (1, 200), (2, 400), (7, 12_800), (8, 15_000), (40, 15_000), (u32::MAX, 15_000)]
        {
            assert_eq!(delay_bound(rounds), Duration::from_millis(expected_ms), "{rounds} rounds");
        }
    }

    #[test]
    fn delays_fill_the_whole_range_evenly() {
        let mut counts = [0_u32; 10];
        for seed in 0..10_000 {
            let delay = Jitter::new(seed).below(RECONNECT_MAX);
            assert!(delay < RECONNECT_MAX);
            counts[usize::try_from(delay.as_millis() / 1_500).expect("below 10")] += 1;
        }
        assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_bound_of_zero_is_no_delay() {
        assert_eq!(Jitter::new(7).below(Duration::ZERO), Duration::ZERO);
    }
}
