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

/// Copies all data of `from` into `to`, which is empty, by the kernel (copy_file_range(2)) where it can; holes stay holes. Returns how many
/// bytes were copied.
pub(crate) fn copy_data(from: &File, to: &File) -> io::Result<u64> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let (mut at, mut copied) = (0, 0);
    while at < length {
        let (data, end) = extent(from, at, length)?;
        at = data;
        while at < end {
            let count = copy_piece(from, to, at, end - at)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at += count;
            copied += count;
        }
    }
    Ok(copied)
}

#[cfg(target_os = "linux")]
fn copy_piece(from: &File, to: &File, at: u64, length: u64) -> io::Result<u64> {
    use rustix::io::Errno;
    let (mut read_at, mut write_at) = (at, at);
    let length = usize::try_from(length.min(1 << 30)).unwrap_or(PIECE);
    match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), length) {
        Ok(count) => Ok(count as u64),
        Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
            copy_by_hand(from, to, at, length as u64)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn copy_piece(from: &File, to: &File, at: u64, length: u64) -> io::Result<u64> {
    copy_by_hand(from, to, at, length)
}

fn copy_by_hand(from: &File, to: &File, at: u64, length: u64) -> io::Result<u64> {
    let mut piece = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
    let count = from.read_at(&mut piece, at)?;
    to.write_all_at(&piece[..count], at)?;
    Ok(count as u64)
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
    fn data_are_copied_and_holes_stay() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        let source = File::create(&from).unwrap();
        source.set_len((64 << 20) + 5).unwrap();
        source.write_all_at(&[7; 70_000], (20 << 20) + 3).unwrap();
        source.write_all_at(b"end", (64 << 20) + 2).unwrap();
        let source = File::open(&from).unwrap();
        let copied = copy_data(&source, &File::create_new(&to).unwrap()).unwrap();
        assert!(copied < 1 << 20, "{copied}");
        let digest = |path: &Path| sha256_file(path, |_| Ok(())).unwrap();
        assert_eq!(digest(&to), digest(&from));
        let target = File::create_new(directory.path().join("by-hand")).unwrap();
        let begin = (20 << 20) + 3;
        assert_eq!(copy_by_hand(&source, &target, begin, 5).unwrap(), 5);
        let mut piece = [0; 5];
        let target = File::open(directory.path().join("by-hand")).unwrap();
        target.read_exact_at(&mut piece, begin).unwrap();
        assert_eq!(piece, [7; 5]);
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
