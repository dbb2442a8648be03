//! The last lines of a hypervisor's log, for whoever reads of its end.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most that is told of a log, in bytes.
const TAIL_LIMIT: u64 = 2048;

/// Returns the last lines of a log from an offset on, at most 2 KiB, without control characters; empty if it can't be read.
pub(super) fn log_tail(path: &Path, from: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        // A log shorter than the offset was rotated since.
        let from = if from > end { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(TAIL_LIMIT))))?;
        let mut tail = Vec::new();
        file.take(TAIL_LIMIT).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let mut text: String = String::from_utf8_lossy(&tail)
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect();
    text.truncate(text.trim_end().len());
    // Replacement characters are longer than the bytes that they stand for.
    while text.len() as u64 > TAIL_LIMIT {
        text.remove(0);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_bounded_and_clean() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, b"old\nnew \x1b[31m\xffline\n").unwrap();
        assert_eq!(log_tail(&path, 4), "new  [31m\u{fffd}line");
        assert_eq!(log_tail(&path, 1000), "old\nnew  [31m\u{fffd}line");
        std::fs::write(&path, vec![0xff; 10_000]).unwrap();
        assert!(log_tail(&path, 0).len() <= 2048);
        assert_eq!(log_tail(&directory.path().join("none"), 0), "");
    }
}
