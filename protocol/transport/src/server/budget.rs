//! How much a peer may send on average: a token bucket, as a pure value.

use std::time::Duration;

use tokio::time::Instant;

/// A bucket of tokens that fills with time.
#[derive(Debug)]
pub(super) struct Budget {
    /// When the bucket would be full.
    full_at: Instant,
    /// Time that one token takes to come back.
    per_token: Duration,
    /// Time that the whole bucket takes.
    whole: Duration,
}

impl Budget {
    /// A full bucket of `burst` tokens, of which `per_second` come back each second.
    pub(super) fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        let per_token = Duration::from_secs(1) / per_second;
        Self { full_at: now, per_token, whole: per_token * burst }
    }

    /// Takes a token. When there is none, says how long it takes until there is one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let full_at = self.full_at.max(now) + self.per_token;
        let missing = full_at - now;
        if missing > self.whole {
            return Err(missing - self.whole);
        }
        self.full_at = full_at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_average_counts() {
        let start = Instant::now();
        let mut budget = Budget::new(3, 2, start);
        for _ in 0..3 {
            assert_eq!(budget.take(start), Ok(()));
        }
        assert_eq!(budget.take(start), Err(Duration::from_millis(500)));
        let later = start + Duration::from_millis(500);
        assert_eq!(budget.take(later), Ok(()));
        assert_eq!(budget.take(later), Err(Duration::from_millis(500)));
        let rested = start + Duration::from_secs(60);
        assert_eq!((0..10).filter(|_| budget.take(rested).is_ok()).count(), 3);
    }
}
