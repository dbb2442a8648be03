//! Numbers as people read them.

/// Writes a number of bytes with a binary unit and at most one decimal: `1.5GiB`, `512MiB`, `0B`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    // What would round to 1024 of a unit is 1 of the next.
    while unit + 1 < UNITS.len() && value >= 1023.95 {
        value /= 1024.0;
        unit += 1;
    }
    let text = format!("{value:.1}");
    format!(
        "{}{}",
        text.strip_suffix(".0").unwrap_or(&text),
        UNITS[unit]
    )
}

/// Writes seconds as the two largest units: `12s`, `3m 5s`, `2h 10m`, `4d 1h`.
pub(crate) fn seconds(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// Writes milliseconds: `40ms`, `2.5s`, `1m 5s`.
pub(crate) fn milliseconds(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds}ms"),
        1000..60_000 => format!("{:.1}s", milliseconds as f64 / 1000.0),
        _ => seconds(milliseconds / 1000),
    }
}

/// Writes a count with its noun: `1 CPU`, `2 CPUs`.
pub(crate) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (1536 << 20, "1.5GiB"),
            ((1 << 30) - 1, "1GiB"),
            (u64::MAX, "16EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn times_are_short() {
        assert_eq!(seconds(59), "59s");
        assert_eq!(seconds(185), "3m 5s");
        assert_eq!(seconds(7800), "2h 10m");
        assert_eq!(seconds(90_000), "1d 1h");
        assert_eq!(milliseconds(40), "40ms");
        assert_eq!(milliseconds(2540), "2.5s");
        assert_eq!(count(1, "CPU"), "1 CPU");
    }
}
