//! Chance that repeats: the same seed gives the same throws, on every computer.
//!
//! Each kind of misfortune has a sequence of its own, so that turning one on leaves the others as they were. Logarithms and the like are
//! those of `libm`, which gives the same bits everywhere.

use std::time::Duration;

use super::shape::{Distribution, Jitter, Loss, Probability};
use crate::time::nanos;

/// Steele, Lea and Flood's SplitMix64 (2014).
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    /// Makes the sequence of a seed that is numbered `which`.
    pub(super) fn new(seed: u64, which: u64) -> Self {
        let mut dice = Dice(seed ^ which.wrapping_mul(0xa076_1d64_78bd_642f));
        dice.0 = dice.next();
        dice
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // The upper half of a product: even to 2^-64 times the bound.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Throws once. What never or always happens takes no throw's outcome into account, yet throws.
    pub(super) fn happens(&mut self, probability: Probability) -> bool {
        self.below(1_000_000_000) < u64::from(probability.billionths())
    }

    /// Returns a number above 0 and at most 1.
    fn share(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Returns a normally distributed number (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(self.share()));
        radius * libm::cos(2.0 * std::f64::consts::PI * self.share())
    }
}

/// Who decides which frames get lost.
#[derive(Debug, Clone)]
pub(super) struct Losing {
    dice: Dice,
    bad: bool,
}

impl Losing {
    pub(super) fn new(dice: Dice) -> Self {
        Losing { dice, bad: false }
    }

    pub(super) fn loses(&mut self, loss: Loss) -> bool {
        match loss {
            Loss::None => false,
            Loss::Random(probability) => self.dice.happens(probability),
            Loss::GilbertElliott {
                to_bad,
                to_good,
                while_good,
                while_bad,
            } => {
                let turns = if self.bad { to_good } else { to_bad };
                self.bad ^= self.dice.happens(turns);
                self.dice
                    .happens(if self.bad { while_bad } else { while_good })
            }
        }
    }
}

/// Who decides how long frames take.
#[derive(Debug, Clone)]
pub(super) struct Delaying {
    dice: Dice,
    /// The normally distributed number of the frame before.
    last: Option<f64>,
}

impl Delaying {
    pub(super) fn new(dice: Dice) -> Self {
        Delaying { dice, last: None }
    }

    pub(super) fn delay(&mut self, delay: Duration, jitter: Option<Jitter>) -> Duration {
        let Some(jitter) = jitter else {
            return delay;
        };
        // An autoregressive sequence keeps the distribution whatever the correlation.
        let likeness = jitter.correlation.as_f64();
        let fresh = self.dice.normal();
        let deviate = match self.last {
            Some(last) => likeness * last + libm::sqrt(1.0 - likeness * likeness) * fresh,
            None => fresh,
        };
        self.last = Some(deviate);
        let share = match jitter.distribution {
            Distribution::Normal => deviate,
            // A normal number's own probability is evenly distributed.
            Distribution::Uniform => libm::erf(deviate / std::f64::consts::SQRT_2),
        };
        let shift = share * nanos(jitter.spread) as f64;
        let nanos = nanos(delay) as f64 + shift;
        // A cast of what is below 0 gives 0, of what is too large the largest.
        Duration::from_nanos(nanos as u64)
    }
}
