//! Durations, written as people write them: `90s`, `10min`, `1h30min`.

use std::time::Duration;

const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("min", 60_000),
    ("s", 1000),
    ("ms", 1),
];

/// Says why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// It is not made of numbers with units, largest first.
    #[error(
        "{0:?} is not a duration: write numbers with units, largest first, such as 90s, 10min or 1h30min"
    )]
    Malformed(String),
    /// It does not fit.
    #[error("{0:?} is too long")]
    TooLong(String),
}

/// Reads numbers with the units `d`, `h`, `min` (or `m`), `s` and `ms`, each at most once and largest first.
///
/// # Errors
/// A text that is no such duration, or one beyond 2^64 milliseconds.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let malformed = || DurationError::Malformed(text.chars().take(40).collect());
    let too_long = || DurationError::TooLong(text.chars().take(40).collect());
    let mut rest = text.trim();
    let mut milliseconds = 0u64;
    let mut smallest = u64::MAX;
    if rest.is_empty() {
        return Err(malformed());
    }
    while !rest.is_empty() {
        let split = rest
            .find(|c: char| !c.is_ascii_digit())
            .ok_or_else(malformed)?;
        let (number, after) = rest.split_at(split);
        let end = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(end);
        let unit = if unit == "m" { "min" } else { unit };
        let (_, factor) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(malformed)?;
        if number.is_empty() || *factor >= smallest {
            return Err(malformed());
        }
        let part = number
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(*factor))
            .ok_or_else(too_long)?;
        milliseconds = milliseconds.checked_add(part).ok_or_else(too_long)?;
        smallest = *factor;
        rest = next;
    }
    Ok(Duration::from_millis(milliseconds))
}

/// Writes a duration as it is read, to the millisecond: `1h30min`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, factor) in UNITS {
        if rest >= factor {
            text.push_str(&format!("{}{unit}", rest / factor));
            rest %= factor;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, seconds) in [
            ("90s", 90),
            ("10min", 600),
            ("10m", 600),
            ("1h30min", 5400),
            ("1d", 86400),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        assert_eq!(parse_duration("1s500ms"), Ok(Duration::from_millis(1500)));
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in [
            "", "90", "s", "1x", "-1s", "30min1h", "1s1s", "1.5h", "1h 30min",
        ] {
            let read = parse_duration(text);
            assert!(
                matches!(read, Err(DurationError::Malformed(_))),
                "{text}: {read:?}"
            );
        }
        let read = parse_duration("99999999999999999999s");
        assert!(matches!(read, Err(DurationError::TooLong(_))), "{read:?}");
    }

    proptest::proptest! {
        #[test]
        fn writes_what_it_reads(milliseconds: u64) {
            let duration = Duration::from_millis(milliseconds);
            proptest::prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
