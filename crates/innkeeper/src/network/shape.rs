//! From a shape as it is asked to one as the link takes it, and back. Pure.

use std::time::Duration;

use innkeeper_api::{ErrorKind, LinkShape};
use innkeeper_net::link::{Bandwidth, Distribution, Jitter, Loss, Probability, Shape};

use crate::error::{Error, Result};

/// Longest delay that a link has; frames on their way take memory.
const LONGEST: Duration = Duration::from_secs(60);
/// Time whose bandwidth passes at once: what a switch needs that is not asked every microsecond.
const BURST: Duration = Duration::from_millis(5);
/// A burst holds a few frames at least.
const LEAST_BURST: u64 = 3 * 1514;

/// Reads a shape. Errors: `BadInput` naming the setting.
pub(super) fn link(asked: &LinkShape) -> Result<Shape> {
    let (delay, spread) = (
        Duration::from_micros(asked.delay_us),
        Duration::from_micros(asked.jitter_us),
    );
    for (setting, time) in [("delay", delay), ("jitter", spread)] {
        if time > LONGEST {
            return Err(bad(format!(
                "{setting}: at most 60 s, not {} s",
                time.as_secs_f64()
            )));
        }
    }
    if asked.bits_per_second == Some(0) {
        return Err(
            bad("bandwidth: must not be 0").with_hint("to let nothing pass, use `--partition`")
        );
    }
    let loss = percentage("loss", asked.loss.as_deref())?;
    Ok(Shape {
        bandwidth: asked.bits_per_second.map(|bits_per_second| {
            let burst = u128::from(bits_per_second) * BURST.as_nanos() / 8_000_000_000;
            let burst = u64::try_from(burst).unwrap_or(u64::MAX).max(LEAST_BURST);
            Bandwidth {
                bits_per_second,
                burst: u32::try_from(burst).unwrap_or(u32::MAX),
            }
        }),
        delay,
        jitter: (!spread.is_zero()).then_some(Jitter {
            spread,
            distribution: Distribution::Uniform,
            correlation: Probability::NEVER,
        }),
        loss: if loss == Probability::NEVER {
            Loss::None
        } else {
            Loss::Random(loss)
        },
        duplicate: percentage("duplicate", asked.duplicate.as_deref())?,
        reorder: percentage("reorder", asked.reorder.as_deref())?,
        corrupt: percentage("corrupt", asked.corrupt.as_deref())?,
        partition: asked.partition,
        ..Shape::default()
    })
}

/// Writes a shape that [`link`] has made.
pub(super) fn told(shape: &Shape) -> LinkShape {
    let percentage = |value: Probability| (value != Probability::NEVER).then(|| value.to_string());
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    LinkShape {
        bits_per_second: shape.bandwidth.map(|bandwidth| bandwidth.bits_per_second),
        delay_us: micros(shape.delay),
        jitter_us: shape.jitter.map_or(0, |jitter| micros(jitter.spread)),
        loss: match shape.loss {
            Loss::Random(probability) => percentage(probability),
            Loss::None | Loss::GilbertElliott { .. } => None,
        },
        duplicate: percentage(shape.duplicate),
        reorder: percentage(shape.reorder),
        corrupt: percentage(shape.corrupt),
        partition: shape.partition,
    }
}

fn percentage(setting: &str, text: Option<&str>) -> Result<Probability> {
    match text {
        None => Ok(Probability::NEVER),
        Some(text) => text
            .parse()
            .map_err(|error| bad(format!("{setting}: {error}"))),
    }
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadInput, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_told() {
        let asked = LinkShape {
            bits_per_second: Some(1_000_000),
            delay_us: 80_000,
            jitter_us: 5_000,
            loss: Some("1.5%".to_owned()),
            duplicate: Some("2%".to_owned()),
            reorder: Some("3%".to_owned()),
            corrupt: Some("0.001%".to_owned()),
            partition: true,
        };
        assert_eq!(told(&link(&asked).expect("a shape")), asked);
        assert_eq!(
            link(&LinkShape::default()).expect("a shape"),
            Shape::default()
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |asked: LinkShape| link(&asked).expect_err("a wrong shape").to_string();
        let loss = LinkShape {
            loss: Some("2".to_owned()),
            ..LinkShape::default()
        };
        assert!(wrong(loss).starts_with("loss: "));
        let delay = LinkShape {
            delay_us: 61_000_000,
            ..LinkShape::default()
        };
        assert!(wrong(delay).starts_with("delay: "));
        let bandwidth = LinkShape {
            bits_per_second: Some(0),
            ..LinkShape::default()
        };
        assert!(wrong(bandwidth).starts_with("bandwidth: "));
    }
}
