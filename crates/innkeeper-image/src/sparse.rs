//! Copies a file and computes its digest in one pass, without reading its holes or filling them.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom as Extent;
use sha2::{Digest, Sha256};

use crate::digest::to_hex;
use crate::{Error, Result};

/// How much is read at once.
const PIECE: usize = 1 << 20;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// Copies `from` to the new file `to`; returns the SHA-256 of all its bytes, holes included. `watch` hears the bytes so far and may stop
/// the work.
pub(crate) fn copy_hashed(
    from: &Path,
    to: &Path,
    mut watch: impl FnMut(u64) -> Result<()>,
) -> Result<String> {
    let source = File::open(from).map_err(Error::io("open", from))?;
    let length = source.metadata().map_err(Error::io("look at", from))?.len();
    let mut target = File::create_new(to).map_err(Error::io("make", to))?;
    target.set_len(length).map_err(Error::io("make", to))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < length {
        let (data, end) = extent(&source, at, length).map_err(Error::io("read", from))?;
        while at < data {
            let count = PIECE.min(usize::try_from(data - at).unwrap_or(PIECE));
            hasher.update(&ZEROS[..count]);
            at += count as u64;
            watch(at)?;
        }
        target
            .seek(SeekFrom::Start(at))
            .map_err(Error::io("write", to))?;
        while at < end {
            let wanted = PIECE.min(usize::try_from(end - at).unwrap_or(PIECE));
            let piece = &mut buffer[..wanted];
            source
                .read_exact_at(piece, at)
                .map_err(Error::io("read", from))?;
            hasher.update(&*piece);
            target.write_all(piece).map_err(Error::io("write", to))?;
            at += wanted as u64;
            watch(at)?;
        }
    }
    Ok(to_hex(&hasher.finalize()))
}

/// Lists where the data of a file are, as beginnings and ends.
pub(crate) fn extents(file: &File, length: u64) -> io::Result<Vec<(u64, u64)>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < length {
        let (data, end) = extent(file, at, length)?;
        if end > data {
            found.push((data, end));
        }
        at = end.max(at + 1);
    }
    Ok(found)
}

/// Returns where the next data begin and end; both are the end of the file if only a hole is left. A file system that knows no holes
/// has data from beginning to end (lseek(2)).
fn extent(file: &File, at: u64, length: u64) -> io::Result<(u64, u64)> {
    let data = match rustix::fs::seek(file, Extent::Data(at)) {
        Ok(data) => data.clamp(at, length),
        Err(rustix::io::Errno::NXIO) => return Ok((length, length)),
        Err(rustix::io::Errno::INVAL) => return Ok((at, length)),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, Extent::Hole(data)) {
        Ok(end) => end.clamp(data, length),
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::INVAL) => length,
        Err(error) => return Err(error.into()),
    };
    Ok((data, end))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::digest::sha256_file;

    #[test]
    fn holes_stay_holes_and_the_digest_is_of_all() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let file = File::create(&from).unwrap();
        file.set_len((64 << 20) + 5).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(&[7; 70_000], (20 << 20) + 3).unwrap();
        file.write_all_at(b"end", (64 << 20) + 2).unwrap();
        let mut seen = 0;
        let hex = copy_hashed(&from, &to, |done| {
            seen = done;
            Ok(())
        })
        .unwrap();
        let (expected, length) = sha256_file(&from, |_| Ok(())).unwrap();
        assert_eq!((hex, seen), (expected.clone(), length));
        assert_eq!(sha256_file(&to, |_| Ok(())).unwrap(), (expected, length));
        let blocks = |path: &Path| std::fs::metadata(path).unwrap().blocks();
        assert!(blocks(&to) <= blocks(&from) + 64, "{}", blocks(&to));
    }

    #[test]
    fn nothing_and_only_a_hole_are_copied() {
        let directory = tempfile::tempdir().unwrap();
        for length in [0, 3 << 20] {
            let from = directory.path().join(format!("from-{length}"));
            let to = directory.path().join(format!("to-{length}"));
            File::create(&from).unwrap().set_len(length).unwrap();
            let hex = copy_hashed(&from, &to, |_| Ok(())).unwrap();
            assert_eq!(sha256_file(&to, |_| Ok(())).unwrap(), (hex, length));
        }
    }
}
