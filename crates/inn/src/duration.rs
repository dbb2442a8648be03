//! Durations as people write them on the command line: `90s`, `10min`, `1h30m`.

use std::time::Duration;

/// Longest time that is accepted: a year.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// Reads one or more numbers with units: `ms`, `s`, `m` or `min`, `h`, `d`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let malformed = || format!("{text:?} is not a duration: write 90s, 10min or 1h30min");
    let mut total = Duration::ZERO;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(malformed());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit());
        let (number, tail) = rest.split_at(digits.ok_or_else(malformed)?);
        let letters = tail.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, tail) = tail.split_at(letters.unwrap_or(tail.len()));
        let number: u64 = number.parse().map_err(|_| malformed())?;
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" | "sec" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(malformed()),
        };
        total = number
            .checked_mul(milliseconds)
            .and_then(|part| total.checked_add(Duration::from_millis(part)))
            .filter(|sum| *sum <= LONGEST)
            .ok_or_else(|| format!("{text:?} is too long: at most 366d"))?;
        rest = tail;
    }
    Ok(total)
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
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "10", "s", "-1s", "1.5h", "1y", "999999999999d", "1h 30"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text: String) {
            let _ = parse(&text);
        }
    }
}
