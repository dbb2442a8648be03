//! What a simulated link does to frames, as asked. Nothing here happens.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How likely something is, exact to a billionth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Probability(u32);

const WHOLE: u32 = 1_000_000_000;

impl Probability {
    /// Never.
    pub const NEVER: Probability = Probability(0);
    /// Always.
    pub const ALWAYS: Probability = Probability(WHOLE);

    /// Makes the probability of so many billionths; none beyond one.
    pub fn from_billionths(billionths: u32) -> Option<Self> {
        (billionths <= WHOLE).then_some(Probability(billionths))
    }

    /// Returns it in billionths.
    pub fn billionths(self) -> u32 {
        self.0
    }

    /// Returns it as a number from 0 to 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / f64::from(WHOLE)
    }
}

/// Says why a text is no percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no percentage: write 0% to 100%, with at most seven digits behind the point, such as 0.5%"
)]
pub struct PercentageError(String);

impl FromStr for Probability {
    type Err = PercentageError;

    /// Reads a percentage, such as `1%` or `0.25%`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || PercentageError(text.to_owned());
        let number = text.strip_suffix('%').ok_or_else(error)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |text: &str, most| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(whole, 3) || !digits(fraction, 7) {
            return Err(error());
        }
        let whole: u32 = whole.parse().map_err(|_| error())?;
        let fraction: u32 = format!("{fraction:0<7}").parse().map_err(|_| error())?;
        Probability::from_billionths(whole * 10_000_000 + fraction).ok_or_else(error)
    }
}

impl fmt::Display for Probability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 10_000_000, self.0 % 10_000_000);
        if fraction == 0 {
            return write!(f, "{whole}%");
        }
        let digits = format!("{fraction:07}");
        write!(f, "{whole}.{}%", digits.trim_end_matches('0'))
    }
}

/// How fast frames leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// Bits of frames in a second, over time; what a real wire puts around a frame is not counted.
    pub bits_per_second: u64,
    /// Bytes that may leave at once after silence.
    pub burst: u32,
}

/// How delays vary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Distribution {
    /// Evenly from the delay less the spread to the delay and the spread.
    #[default]
    Uniform,
    /// Normally, with the spread as standard deviation; never below nothing.
    Normal,
}

/// Variation of the delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jitter {
    /// How much.
    pub spread: Duration,
    /// How it is distributed.
    pub distribution: Distribution,
    /// How much a frame's delay is like that of the one before.
    pub correlation: Probability,
}

/// Which frames get lost on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Loss {
    /// None.
    #[default]
    None,
    /// Each with the same probability, whatever befell the others.
    Random(Probability),
    /// In bursts: the wire is good or bad (E. N. Gilbert 1960, E. O. Elliott 1963), and changes before each frame.
    GilbertElliott {
        /// Probability that a good wire turns bad.
        to_bad: Probability,
        /// Probability that a bad wire turns good.
        to_good: Probability,
        /// Loss while it is good.
        while_good: Probability,
        /// Loss while it is bad.
        while_bad: Probability,
    },
}

/// What is done with frames that wait for the bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discipline {
    /// What does not fit is dropped.
    TailDrop,
    /// That, and frames are dropped early while the waiting stays long (CoDel, RFC 8289).
    CoDel {
        /// Waiting that is acceptable for long; the RFC's is 5 ms.
        target: Duration,
        /// For how long it may be more; the RFC's is 100 ms.
        interval: Duration,
    },
}

/// The queue before the bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimit {
    /// Most bytes of frames in it.
    pub bytes: u32,
    /// How it is kept short.
    pub discipline: Discipline,
}

/// What a link does to frames of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// How fast they leave; at once if missing.
    pub bandwidth: Option<Bandwidth>,
    /// How long the wire is.
    pub delay: Duration,
    /// How the delay varies. Order is kept.
    pub jitter: Option<Jitter>,
    /// Which of them get lost.
    pub loss: Loss,
    /// How likely one arrives twice.
    pub duplicate: Probability,
    /// How likely one is not delayed, and so passes those before it.
    pub reorder: Probability,
    /// How likely one bit of one behind its addresses is turned.
    pub corrupt: Probability,
    /// How many wait.
    pub queue: QueueLimit,
    /// Longest payload that passes, in bytes.
    pub mtu: Option<u16>,
    /// Whether nothing passes at all.
    pub partition: bool,
}

impl Default for Shape {
    /// A link that does nothing.
    fn default() -> Self {
        Shape {
            bandwidth: None,
            delay: Duration::ZERO,
            jitter: None,
            loss: Loss::None,
            duplicate: Probability::NEVER,
            reorder: Probability::NEVER,
            corrupt: Probability::NEVER,
            queue: QueueLimit {
                bytes: 1 << 20,
                discipline: Discipline::TailDrop,
            },
            mtu: None,
            partition: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn percentages_come_back(billionths in 0..=WHOLE) {
            let probability = Probability(billionths);
            prop_assert_eq!(probability.to_string().parse(), Ok(probability));
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        assert_eq!("0.25%".parse(), Ok(Probability(2_500_000)));
        for text in [
            "1",
            "%",
            "-1%",
            "101%",
            "100.1%",
            "1.%",
            ".5%",
            "1e1%",
            "0.12345678%",
            "1 %",
        ] {
            assert!(text.parse::<Probability>().is_err(), "{text}");
        }
    }
}
