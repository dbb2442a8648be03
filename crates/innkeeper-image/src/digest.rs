//! SHA-256 and SHA-512 of streams, as lower-case hexadecimal.
//!
//! One pass: [`HashingWriter`] hashes what it passes on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256, Sha512};

use crate::{Error, Result};

/// A running digest of either kind.
pub(crate) enum Hasher {
    /// 64 hexadecimal digits.
    Sha256(Sha256),
    /// 128 hexadecimal digits.
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// Takes the kind from the length of the expected hexadecimal digest.
    pub(crate) fn for_hex(expected: &str) -> Result<Hasher> {
        if is_hex(expected, 64) {
            Ok(Hasher::Sha256(Sha256::new()))
        } else if is_hex(expected, 128) {
            Ok(Hasher::Sha512(Box::new(Sha512::new())))
        } else {
            Err(Error::invalid(
                "digest",
                expected,
                "must be 64 (SHA-256) or 128 (SHA-512) hexadecimal digits",
            ))
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn hex(self) -> String {
        match self {
            Hasher::Sha256(hasher) => to_hex(&hasher.finalize()),
            Hasher::Sha512(hasher) => to_hex(&hasher.finalize()),
        }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| {
            [
                DIGITS[usize::from(byte >> 4)] as char,
                DIGITS[usize::from(byte & 15)] as char,
            ]
        })
        .collect()
}

/// Whether `text` is exactly `length` hexadecimal digits.
pub(crate) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// SHA-256 of bytes in memory.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    to_hex(&Sha256::digest(bytes))
}

/// SHA-256 and length of a file; `watch` hears the bytes so far and may stop the work.
pub(crate) fn sha256_file(
    path: &Path,
    mut watch: impl FnMut(u64) -> Result<()>,
) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer).map_err(Error::io("read", path))?;
        if count == 0 {
            return Ok((to_hex(&hasher.finalize()), total));
        }
        hasher.update(&buffer[..count]);
        total += count as u64;
        watch(total)?;
    }
}

/// Hashes what it passes on.
pub(crate) struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    written: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(crate) fn new(inner: W) -> HashingWriter<W> {
        HashingWriter {
            inner,
            hasher: Sha256::new(),
            written: 0,
        }
    }

    /// The inner writer, the digest and the count of bytes.
    pub(crate) fn finish(self) -> (W, String, u64) {
        (self.inner, to_hex(&self.hasher.finalize()), self.written)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_digest_of_abc() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_hex(b"abc"), expected);
        let mut writer = HashingWriter::new(Vec::new());
        writer.write_all(b"abc").unwrap();
        let (bytes, digest, count) = writer.finish();
        assert_eq!(
            (bytes.as_slice(), digest.as_str(), count),
            (b"abc".as_slice(), expected, 3)
        );
        assert!(Hasher::for_hex("12").is_err());
    }
}
