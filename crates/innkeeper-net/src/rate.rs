//! A token bucket in whole numbers: what a rate allows now, exactly, over any time.

use crate::time::Time;

/// Tokens are counted in billionths, so that a rate per second and a time in nanoseconds lose nothing to rounding.
const SCALE: u128 = 1_000_000_000;

/// A bucket that fills at a steady rate and holds at most a burst.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    per_second: u64,
    burst: u64,
    level: u128,
    filled: Time,
}

impl Bucket {
    /// Makes a full bucket. A rate of nothing stays empty once it is used up.
    pub(crate) fn new(per_second: u64, burst: u64, now: Time) -> Self {
        Bucket {
            per_second,
            burst,
            level: u128::from(burst) * SCALE,
            filled: now,
        }
    }

    fn fill(&mut self, now: Time) {
        let nanos = u128::from(now.as_nanos().saturating_sub(self.filled.as_nanos()));
        let full = u128::from(self.burst) * SCALE;
        self.level = full.min(self.level + nanos * u128::from(self.per_second));
        self.filled = self.filled.max(now);
    }

    /// Tells whether `tokens` are there.
    pub(crate) fn has(&mut self, tokens: u64, now: Time) -> bool {
        self.fill(now);
        self.level >= u128::from(tokens) * SCALE
    }

    /// Takes `tokens` if they are there.
    pub(crate) fn take(&mut self, tokens: u64, now: Time) -> bool {
        let there = self.has(tokens, now);
        if there {
            self.level -= u128::from(tokens) * SCALE;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(rate in 0u64..10_000, burst in 0u64..1_000, waits in prop::collection::vec(0u64..5_000_000, 1..300)) {
            let mut bucket = Bucket::new(rate, burst, Time::ZERO);
            let (mut now, mut taken) = (Time::ZERO, 0u64);
            for wait in waits {
                now = now.after(Duration::from_nanos(wait));
                while bucket.take(1, now) {
                    taken += 1;
                }
                let most = u128::from(burst) * SCALE + u128::from(now.as_nanos()) * u128::from(rate);
                prop_assert!(u128::from(taken) * SCALE <= most);
            }
        }
    }

    #[test]
    fn a_steady_taker_gets_the_whole_rate() {
        let mut bucket = Bucket::new(3, 1, Time::ZERO);
        let taken = (0..10_000_u64)
            .filter(|millis| bucket.take(1, Time::ZERO.after(Duration::from_millis(*millis))))
            .count();
        assert!((30..=31).contains(&taken), "{taken}");
    }
}
