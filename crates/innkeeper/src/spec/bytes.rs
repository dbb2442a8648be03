//! Sizes in bytes, written as people write them.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(u64);

/// Says why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BytesError {
    /// It is not a number with a unit.
    #[error("{0:?} is not a size: write a number with a unit, such as 512MiB or 20GiB")]
    Malformed(String),
    /// It does not fit.
    #[error("{0:?} is too large: at most 8EiB")]
    TooLarge(String),
}

const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl Bytes {
    /// Makes a size of so many bytes.
    pub const fn new(bytes: u64) -> Self {
        Bytes(bytes)
    }

    /// Makes a size of so many kibibytes.
    pub const fn kib(count: u64) -> Self {
        Bytes(count << 10)
    }

    /// Makes a size of so many mebibytes.
    pub const fn mib(count: u64) -> Self {
        Bytes(count << 20)
    }

    /// Makes a size of so many gibibytes.
    pub const fn gib(count: u64) -> Self {
        Bytes(count << 30)
    }

    /// Returns the number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = BytesError;

    /// Reads `2GiB`, `512M`, `1.5G`, `4096`, `20GB`: binary units however they are written (`G`, `GB` and `GiB` are 2^30, as in
    /// QEMU, Lima and Docker), any case, an optional space before the unit.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || BytesError::Malformed(text.to_owned());
        let trimmed = text.trim();
        let split = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return Err(malformed()),
        };
        let too_large = || BytesError::TooLarge(text.to_owned());
        let bytes = match number.split_once('.') {
            None => number
                .parse::<u64>()
                .map_err(|_| {
                    if number.is_empty() {
                        malformed()
                    } else {
                        too_large()
                    }
                })?
                .checked_mul(factor)
                .ok_or_else(too_large)?,
            Some((whole, fraction)) => {
                if whole.is_empty()
                    || fraction.is_empty()
                    || fraction.len() > 9
                    || fraction.contains('.')
                    || factor == 1
                {
                    return Err(malformed());
                }
                let whole = whole
                    .parse::<u64>()
                    .map_err(|_| too_large())?
                    .checked_mul(factor)
                    .ok_or_else(too_large)?;
                let numerator = u128::from(fraction.parse::<u64>().map_err(|_| malformed())?)
                    * u128::from(factor);
                let part = numerator / 10u128.pow(fraction.len() as u32);
                whole.checked_add(part as u64).ok_or_else(too_large)?
            }
        };
        if bytes > 1 << 63 {
            Err(too_large())
        } else {
            Ok(Bytes(bytes))
        }
    }
}

impl fmt::Display for Bytes {
    /// Writes the largest unit that divides it: `2GiB`, `1536MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in UNITS {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return f.pad(&format!("{}{unit}", self.0 / size));
            }
        }
        f.pad("0B")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("2g", 2 << 30),
            ("20 GB", 20 << 30),
            ("512M", 512 << 20),
            ("1.5G", 3 << 29),
            ("4096", 4096),
            ("1TiB", 1 << 40),
            ("7b", 7),
        ] {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes::new(bytes)), "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for bytes in [0, 1, 1023, 1024, 1536 << 20, 2 << 30, 1 << 40, 3 << 41] {
            assert_eq!(
                Bytes::new(bytes).to_string().parse::<Bytes>(),
                Ok(Bytes::new(bytes))
            );
        }
        assert_eq!(Bytes::mib(1536).to_string(), "1536MiB");
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in [
            "", "G", "-1G", "1..5G", "1.G", ".5G", "1,5G", "two", "1X", "1.5", "0x10",
        ] {
            assert!(
                matches!(text.parse::<Bytes>(), Err(BytesError::Malformed(_))),
                "{text}"
            );
        }
        for text in ["99999999999999999999", "9999999999TiB", "16777216TiB"] {
            assert!(
                matches!(text.parse::<Bytes>(), Err(BytesError::TooLarge(_))),
                "{text}"
            );
        }
    }
}
