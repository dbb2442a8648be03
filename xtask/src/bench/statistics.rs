//! What a series of pairs says: medians, and 95% intervals of difference and ratio by the bootstrap over pairs.
//!
//! Pure, and the same numbers give the same answer: the resampling has its own seeded generator.

use serde::Serialize;

/// Resamples of the bootstrap; enough for two stable digits of an interval.
const RESAMPLES: usize = 4000;

/// A value and its 95% interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// What the pairs say, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) pairs: usize,
    pub(crate) ours_ms: f64,
    pub(crate) theirs_ms: f64,
    /// Median of our side alone, for limits that are absolute.
    pub(crate) ours_alone_ms: Estimate,
    /// Median of the pairs' differences, ours less theirs.
    pub(crate) difference_ms: Estimate,
    /// Median of the pairs' ratios, ours over theirs.
    pub(crate) ratio: Estimate,
    /// Two-sided sign test: how likely so uneven a split is when neither is quicker.
    pub(crate) sign_test_p: f64,
}

/// The middle value, the mean of the two middle ones; none for no values.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        Some(upper)
    } else {
        Some(f64::midpoint(sorted[sorted.len() / 2 - 1], upper))
    }
}

/// Summarises pairs of (ours, theirs) in milliseconds; none for no pairs.
pub(crate) fn summarise(pairs: &[(f64, f64)]) -> Option<Summary> {
    let ours: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
    let theirs: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
    let differences: Vec<f64> = pairs.iter().map(|pair| pair.0 - pair.1).collect();
    let ratios: Vec<f64> = pairs
        .iter()
        .map(|pair| pair.0 / pair.1.max(f64::MIN_POSITIVE))
        .collect();
    Some(Summary {
        pairs: pairs.len(),
        ours_ms: median(&ours)?,
        theirs_ms: median(&theirs)?,
        ours_alone_ms: bootstrap(&ours)?,
        difference_ms: bootstrap(&differences)?,
        ratio: bootstrap(&ratios)?,
        sign_test_p: sign_test(&differences),
    })
}

/// The median and its 95% interval; none for no values.
pub(crate) fn bootstrap(values: &[f64]) -> Option<Estimate> {
    let value = median(values)?;
    let mut random = SplitMix(0x9e37_79b9_7f4a_7c15);
    let mut medians = Vec::with_capacity(RESAMPLES);
    let mut sample = vec![0.0; values.len()];
    for _ in 0..RESAMPLES {
        for slot in &mut sample {
            *slot = values[random.below(values.len())];
        }
        medians.push(median(&sample)?);
    }
    medians.sort_by(f64::total_cmp);
    Some(Estimate {
        value,
        low: medians[RESAMPLES / 40],
        high: medians[RESAMPLES - 1 - RESAMPLES / 40],
    })
}

fn sign_test(differences: &[f64]) -> f64 {
    let less = differences
        .iter()
        .filter(|difference| **difference < 0.0)
        .count();
    let more = differences
        .iter()
        .filter(|difference| **difference > 0.0)
        .count();
    let (count, fewer) = (less + more, less.min(more));
    // Binomial terms by their logarithms, so that long series do not overflow.
    let mut logarithm = -(count as f64) * std::f64::consts::LN_2;
    let mut sum = 0.0;
    for index in 0..=fewer {
        sum += logarithm.exp();
        logarithm += ((count - index) as f64).ln() - ((index + 1) as f64).ln();
    }
    (2.0 * sum).min(1.0)
}

/// Steele, Lea and Flood's SplitMix64: small, and good enough for resampling.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn medians_of_odd_and_even_series() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_clear_difference_is_clear() {
        let pairs: Vec<_> = (0..15)
            .map(|i| (20.0 + f64::from(i % 3), 10.0 + f64::from(i % 2)))
            .collect();
        let summary = summarise(&pairs).expect("a summary");
        assert!(
            summary.difference_ms.low > 8.0 && summary.difference_ms.high < 13.0,
            "{summary:?}"
        );
        assert!(summary.ratio.low > 1.7, "{summary:?}");
        assert!((summary.sign_test_p - 2.0 / 32768.0).abs() < 1e-9);
    }

    #[test]
    fn no_difference_is_none() {
        let pairs: Vec<_> = (0..20)
            .map(|i| {
                if i % 2 == 0 {
                    (10.0, 11.0)
                } else {
                    (11.0, 10.0)
                }
            })
            .collect();
        let summary = summarise(&pairs).expect("a summary");
        assert!(summary.difference_ms.low <= 0.0 && summary.difference_ms.high >= 0.0);
        assert!((summary.sign_test_p - 1.0).abs() < 1e-9);
    }

    proptest! {
        // Each case resamples thousands of times.
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn intervals_hold_their_value(pairs in prop::collection::vec((0.1..1e6_f64, 0.1..1e6_f64), 1..30)) {
            let summary = summarise(&pairs).expect("a summary");
            for estimate in [summary.difference_ms, summary.ratio] {
                prop_assert!(estimate.low <= estimate.value && estimate.value <= estimate.high);
            }
            prop_assert!((0.0..=1.0).contains(&summary.sign_test_p));
        }
    }
}
