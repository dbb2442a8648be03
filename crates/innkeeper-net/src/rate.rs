//! A token bucket in whole numbers: what a rate allows now, exactly, over any time.

use std::time::Duration;

use crate::time::Time;

/// Tokens are counted in billionths, so that a rate per second and a time in nanoseconds lose nothing to rounding.
const SCALE: i128 = 1_000_000_000;

/// A bucket that fills at a steady rate and holds at most a burst. It may owe.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    per_second: u64,
    /// Tokens that one thing costs for each of its units.
    per_unit: u64,
    burst: u64,
    level: i128,
    filled: Time,
}

impl Bucket {
    /// Makes a full bucket of things in a second. A rate of nothing stays empty once it is used up.
    pub(crate) fn new(per_second: u64, burst: u64, now: Time) -> Self {
        Bucket {
            per_second,
            per_unit: 1,
            burst,
            level: i128::from(burst) * SCALE,
            filled: now,
        }
    }

    /// Makes a full bucket of bits in a second, from which bytes are taken.
    pub(crate) fn of_bits(bits_per_second: u64, burst_bytes: u32, now: Time) -> Self {
        let burst = u64::from(burst_bytes) * 8;
        Bucket {
            per_unit: 8,
            ..Bucket::new(bits_per_second, burst, now)
        }
    }

    fn level_at(&self, now: Time) -> i128 {
        let nanos = i128::from(now.as_nanos().saturating_sub(self.filled.as_nanos()));
        let full = i128::from(self.burst) * SCALE;
        full.min(self.level + nanos * i128::from(self.per_second))
    }

    /// What must be there for so many units: all of them, or a full bucket if they are more than it holds.
    fn needed(&self, units: u64) -> i128 {
        let tokens = u128::from(units) * u128::from(self.per_unit);
        let tokens = tokens.min(u128::from(self.burst)) as i128;
        tokens * SCALE
    }

    /// Tells whether so many are there.
    pub(crate) fn has(&self, units: u64, now: Time) -> bool {
        self.level_at(now) >= self.needed(units).max(1)
    }

    /// Takes so many if they are there.
    pub(crate) fn take(&mut self, units: u64, now: Time) -> bool {
        let there = self.has(units, now);
        if there {
            self.charge(units, now);
        }
        there
    }

    /// Returns when so many are there, not before `from`.
    pub(crate) fn ready(&self, units: u64, from: Time) -> Time {
        let lacking = self.needed(units) - self.level_at(from);
        if lacking <= 0 {
            return from;
        }
        if self.per_second == 0 {
            return Time::from_nanos(u64::MAX);
        }
        let rate = i128::from(self.per_second);
        let nanos = (lacking + rate - 1) / rate;
        from.after(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Takes so many, whether or not they are there.
    pub(crate) fn charge(&mut self, units: u64, now: Time) {
        self.level = self.level_at(now) - i128::from(units) * i128::from(self.per_unit) * SCALE;
        self.filled = self.filled.max(now);
    }
}

#[cfg(test)]
mod tests {
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
                let most = u128::from(burst.max(1)) * 1_000_000_000 + u128::from(now.as_nanos()) * u128::from(rate);
                prop_assert!(u128::from(taken) * 1_000_000_000 <= most);
            }
        }

        #[test]
        fn it_is_ready_when_it_says_and_not_before(rate in 1u64..1_000_000, burst in 1u32..5_000, sizes in prop::collection::vec(1u64..9_000, 1..50)) {
            let mut bucket = Bucket::of_bits(rate, burst, Time::ZERO);
            let mut now = Time::ZERO;
            for size in sizes {
                let ready = bucket.ready(size, now);
                prop_assert!(bucket.has(size, ready));
                if ready > now {
                    prop_assert!(!bucket.has(size, Time::from_nanos(ready.as_nanos() - 1)));
                }
                bucket.charge(size, ready);
                now = ready;
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
