//! A bundle: one file with all of a machine, a tar archive in zstd frames.
//!
//! ```text
//!   members ─► tar (disks sparse) ─► pieces of 4 MiB ─► a frame each, compressed side by side ─► FILE.part ─► flushed, renamed to FILE
//!                        └─ SHA-256 of all before it is the content of the last member
//! ```
//! The tar is the same for the same members, so an export that was interrupted goes on behind the last whole frame of its part. GNU tar
//! and zstd read it without us: disks are entries of GNU tar's old sparse form (GNU tar manual, "Storing Sparse Files").

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::digest::to_hex;
use crate::foreign::open_plain;
use crate::frames::{self, Frames, PIECE};
use crate::import::file_stamp;
use crate::progress::{self, Context, Progress, Step};
use crate::{Error, Result, atomic, disk, package, sparse};

/// Name of the last member: the SHA-256 of all that is before its content.
const CHECKSUM: &str = "sha256";
const BLOCK: u64 = 512;

/// A member of a bundle.
#[derive(Clone, Debug)]
pub struct BundleMember {
    /// Its name: letters, digits, `.`, `-`, `_` and `/`, at most 99 bytes.
    pub name: String,
    /// Its content.
    pub content: BundleContent,
}

/// The content of a member.
#[derive(Clone, Debug)]
pub enum BundleContent {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A file, whose holes are left out.
    File(PathBuf),
}

/// What an export came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleWritten {
    /// Bytes of the tar archive.
    pub tar_bytes: u64,
    /// Bytes of the file.
    pub stored_bytes: u64,
    /// Bytes of the tar archive that an interrupted export had left.
    pub resumed_bytes: u64,
}

/// A stretch of the tar archive.
enum Segment {
    Bytes(Vec<u8>),
    Range { file: usize, at: u64, length: u64 },
    Zeros(u64),
}

/// The tar archive as a stream.
struct Tar {
    files: Vec<File>,
    segments: std::vec::IntoIter<Segment>,
    now: Option<(Segment, u64)>,
}

impl Tar {
    fn of(members: &[BundleMember]) -> Result<(Tar, u64)> {
        let (mut files, mut segments) = (Vec::new(), Vec::new());
        for member in members {
            check_name(&member.name)?;
            match &member.content {
                BundleContent::Bytes(bytes) => {
                    let header = header(&member.name, bytes.len() as u64, b'0');
                    segments.push(Segment::Bytes(header.to_vec()));
                    segments.push(Segment::Bytes(bytes.clone()));
                    segments.push(Segment::Zeros(padding(bytes.len() as u64)));
                }
                BundleContent::File(path) => {
                    let file = open_plain(path)?;
                    let length = file.metadata().map_err(Error::io("look at", path))?.len();
                    let extents =
                        sparse::extents(&file, length).map_err(Error::io("look at", path))?;
                    segments.push(Segment::Bytes(sparse_header(
                        &member.name,
                        length,
                        &extents,
                    )));
                    let mut stored = 0;
                    for (at, end) in extents {
                        stored += end - at;
                        segments.push(Segment::Range {
                            file: files.len(),
                            at,
                            length: end - at,
                        });
                    }
                    segments.push(Segment::Zeros(padding(stored)));
                    files.push(file);
                }
            }
        }
        segments.push(Segment::Bytes(header(CHECKSUM, 65, b'0').to_vec()));
        let total = segments
            .iter()
            .map(|segment| match segment {
                Segment::Bytes(bytes) => bytes.len() as u64,
                Segment::Range { length, .. } | Segment::Zeros(length) => *length,
            })
            .sum();
        let tar = Tar {
            files,
            segments: segments.into_iter(),
            now: None,
        };
        Ok((tar, total))
    }
}

impl Read for Tar {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let Some((segment, done)) = &mut self.now else {
                match self.segments.next() {
                    Some(segment) => self.now = Some((segment, 0)),
                    None => return Ok(0),
                }
                continue;
            };
            let length = match segment {
                Segment::Bytes(bytes) => bytes.len() as u64,
                Segment::Range { length, .. } | Segment::Zeros(length) => *length,
            };
            let count = buffer
                .len()
                .min(usize::try_from(length - *done).unwrap_or(usize::MAX));
            if count == 0 && !buffer.is_empty() {
                self.now = None;
                continue;
            }
            let target = &mut buffer[..count];
            match segment {
                Segment::Bytes(bytes) => {
                    let from = usize::try_from(*done).unwrap_or(usize::MAX);
                    target.copy_from_slice(&bytes[from..from + count]);
                }
                Segment::Range { file, at, .. } => {
                    self.files[*file].read_exact_at(target, *at + *done)?;
                }
                Segment::Zeros(_) => target.fill(0),
            }
            *done += count as u64;
            return Ok(count);
        }
    }
}

fn check_name(name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && name.len() < 100
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_/".contains(&byte))
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if plain {
        Ok(())
    } else {
        Err(Error::malformed(
            "bundle",
            format!("has a member of the name {name:?}"),
        ))
    }
}

fn padding(length: u64) -> u64 {
    length.next_multiple_of(BLOCK) - length
}

/// Writes a number as tar does: octal, or base 256 where that is too short.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    if value < 1 << (3 * digits) {
        let text = format!("{value:0digits$o}");
        field[..digits].copy_from_slice(text.as_bytes());
    } else {
        let at = field.len() - 8;
        field[0] = 0x80;
        field[at..].copy_from_slice(&value.to_be_bytes());
    }
}

fn header(name: &str, size: u64, kind: u8) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    number(&mut block[100..108], 0o600);
    number(&mut block[108..116], 0);
    number(&mut block[116..124], 0);
    number(&mut block[124..136], size);
    number(&mut block[136..148], 0);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar  \0");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    number(&mut block[148..155], sum);
    block[155] = b' ';
}

fn sparse_header(name: &str, length: u64, extents: &[(u64, u64)]) -> Vec<u8> {
    let stored = extents.iter().map(|(at, end)| end - at).sum();
    let mut list: Vec<(u64, u64)> = extents.iter().map(|(at, end)| (*at, end - at)).collect();
    if extents.last().is_none_or(|(_, end)| *end < length) {
        // Where a file ends with a hole, only this says how long it is.
        list.push((length, 0));
    }
    let mut first = header(name, stored, b'S');
    let put = |block: &mut [u8], at: usize, (offset, count): (u64, u64)| {
        number(&mut block[at..at + 12], offset);
        number(&mut block[at + 12..at + 24], count);
    };
    let (here, rest) = list.split_at(list.len().min(4));
    for (index, entry) in here.iter().enumerate() {
        put(&mut first, 386 + 24 * index, *entry);
    }
    first[482] = u8::from(!rest.is_empty());
    number(&mut first[483..495], length);
    seal(&mut first);
    let mut blocks = first.to_vec();
    let mut chunks = rest.chunks(21).peekable();
    while let Some(chunk) = chunks.next() {
        let mut block = [0; 512];
        for (index, entry) in chunk.iter().enumerate() {
            put(&mut block, 24 * index, *entry);
        }
        block[504] = u8::from(chunks.peek().is_some());
        blocks.extend(block);
    }
    blocks
}

/// Says what is written, so that a part is gone on with only if it would become the same.
fn stamp_of(members: &[BundleMember]) -> String {
    let mut hasher = Sha256::new();
    for member in members {
        hasher.update(member.name.as_bytes());
        match &member.content {
            BundleContent::Bytes(bytes) => {
                hasher.update(Sha256::digest(bytes));
            }
            BundleContent::File(path) => hasher.update(file_stamp(path)),
        }
        hasher.update([0]);
    }
    format!("innkeeper bundle 1 {}", to_hex(&hasher.finalize()))
}

/// Where the part of an export is until it is whole.
pub fn part_path(to: &Path) -> PathBuf {
    let mut name = to.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    to.with_file_name(name)
}

/// Writes a bundle as the new file `to`. What an interrupted export of the same left is gone on with.
pub async fn write_bundle(
    to: &Path,
    members: Vec<BundleMember>,
    progress: Arc<dyn Progress>,
) -> Result<BundleWritten> {
    let to = disk::plain(to)?;
    progress::run(progress, move |context| {
        if fs::symlink_metadata(&to).is_ok() {
            return Err(Error::io("create", &to)(
                std::io::ErrorKind::AlreadyExists.into(),
            ));
        }
        let part = part_path(&to);
        let stamp = stamp_of(&members);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(&part)
            .map_err(Error::io("open", &part))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| Error::io("lock", &part)(error.into()))?;
        let written = write_frames(&file, &part, &members, &stamp, context)?;
        file.sync_all().map_err(Error::io("flush", &part))?;
        // Without replacing: somebody may have made one of that name meanwhile.
        fs::hard_link(&part, &to).map_err(Error::io("create", &to))?;
        fs::remove_file(&part).map_err(Error::io("remove", &part))?;
        atomic::sync_directory(to.parent().unwrap_or(Path::new("/")))?;
        Ok(written)
    })
    .await
}

/// Returns how much of the stream, and of the file, whole frames of an earlier try hold.
fn kept(file: &File, stamp: &str, context: &Context) -> (u64, u64) {
    let mut reader = file;
    if reader.seek(SeekFrom::Start(0)).is_err() {
        return (0, 0);
    }
    let Ok(mut frames) = Frames::new(std::io::BufReader::new(reader)) else {
        return (0, 0);
    };
    if frames.stamp != stamp {
        return (0, 0);
    }
    let (mut stream, mut stored) = (0, frames.stored);
    // Only full pieces: the last one of a stream is shorter, and then there is nothing left to do but to write it again.
    while let Ok(Some(piece)) = frames.next_piece() {
        if piece.len() < PIECE || context.check().is_err() {
            break;
        }
        stream += PIECE as u64;
        stored = frames.stored;
    }
    (stream, stored)
}

fn write_frames(
    mut file: &File,
    part: &Path,
    members: &[BundleMember],
    stamp: &str,
    context: &Context,
) -> Result<BundleWritten> {
    let write = || Error::io("write", part);
    let (resumed, mut stored) = kept(file, stamp, context);
    context.check()?;
    file.set_len(stored).map_err(write())?;
    file.seek(SeekFrom::Start(stored)).map_err(write())?;
    if stored == 0 {
        let frame = frames::stamp(stamp);
        stored += frame.len() as u64;
        file.write_all(&frame).map_err(write())?;
    }
    let (mut tar, total) = Tar::of(members)?;
    let mut hasher = Sha256::new();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut at = 0u64;
    let mut ended = false;
    let mut batch: Vec<Vec<u8>> = Vec::new();
    let mut read_batch = |batch: &mut Vec<Vec<u8>>| -> Result<()> {
        while !ended && batch.len() < threads {
            context.check()?;
            let mut piece = vec![0; PIECE];
            let mut count = 0;
            while count < PIECE {
                match tar.read(&mut piece[count..]) {
                    Ok(0) => {
                        ended = true;
                        break;
                    }
                    Ok(more) => count += more,
                    Err(error) => return Err(Error::io("read", "the machine's disks")(error)),
                }
            }
            hasher.update(&piece[..count]);
            piece.truncate(count);
            if ended {
                // The checksum is of all before it, so what follows is made here.
                let digest = to_hex(&hasher.clone().finalize());
                piece.extend_from_slice(digest.as_bytes());
                piece.push(b'\n');
                // To the end of the block, and the two blocks of zeros that end an archive.
                let end = (total + 65).next_multiple_of(BLOCK) + 2 * BLOCK;
                piece.resize(
                    piece.len() + usize::try_from(end - total - 65).unwrap_or(0),
                    0,
                );
            }
            // The last one may be longer than a piece by the checksum.
            let rest = piece.split_off(piece.len().min(PIECE));
            for piece in [piece, rest] {
                at += piece.len() as u64;
                if at > resumed && !piece.is_empty() {
                    batch.push(piece);
                }
            }
        }
        Ok(())
    };
    read_batch(&mut batch)?;
    let mut done = resumed;
    while !batch.is_empty() {
        let now = std::mem::take(&mut batch);
        let packed = std::thread::scope(|scope| {
            let workers: Vec<_> = now
                .iter()
                .map(|piece| scope.spawn(move || frames::pack(piece)))
                .collect();
            // Meanwhile the next ones are read.
            let next = read_batch(&mut batch);
            let packed: Result<Vec<_>> = workers
                .into_iter()
                .map(|worker| match worker.join() {
                    Ok(packed) => packed,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect();
            next.and(packed)
        })?;
        for frame in packed {
            file.write_all(&frame).map_err(write())?;
            stored += frame.len() as u64;
        }
        done += now.iter().map(|piece| piece.len() as u64).sum::<u64>();
        context.bytes(Step::Write, done, Some(total), "the bundle");
    }
    Ok(BundleWritten {
        tar_bytes: done,
        stored_bytes: stored,
        resumed_bytes: resumed,
    })
}

/// Hashes what is read through it.
struct Hashed<'a, R> {
    inner: R,
    hasher: std::rc::Rc<std::cell::RefCell<Sha256>>,
    context: &'a Context,
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.context.check().map_err(std::io::Error::other)?;
        let count = self.inner.read(buffer)?;
        self.hasher.borrow_mut().update(&buffer[..count]);
        Ok(count)
    }
}

/// Reads the first member of a bundle, whose name must be `name`, up to [`package::TEXT_LIMIT`] bytes.
pub async fn read_bundle_head(path: &Path, name: &str) -> Result<Vec<u8>> {
    let (path, name) = (path.to_owned(), name.to_owned());
    progress::run(Arc::new(progress::Silent), move |_| {
        let frames = Frames::new(std::io::BufReader::new(open_plain(&path)?))?;
        let mut archive = tar::Archive::new(frames);
        let mut entries = archive.entries().map_err(Error::io("read", &path))?;
        let mut entry = match entries.next() {
            Some(entry) => entry.map_err(Error::io("read", &path))?,
            None => return Err(Error::malformed("bundle", "is empty")),
        };
        if entry.path_bytes() != name.as_bytes() || entry.size() > package::TEXT_LIMIT {
            return Err(Error::malformed(
                "bundle",
                format!("does not begin with {name}"),
            ));
        }
        let mut bytes = Vec::new();
        entry
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &path))?;
        Ok(bytes)
    })
    .await
}

/// Unpacks members of a bundle: each to the path it is given, which must not exist, and of the size that is given. A member that is not in
/// the list is passed over.
///
/// Fails with [`Error::Malformed`], and nothing may be used that was written, when a member is missing, or the checksum at the end is
/// missing or wrong.
pub async fn read_bundle(
    path: &Path,
    wanted: BTreeMap<String, (PathBuf, u64)>,
    progress: Arc<dyn Progress>,
) -> Result<()> {
    let path = path.to_owned();
    progress::run(progress, move |context| {
        let refuse = |problem: String| Error::malformed(path.display().to_string(), problem);
        let hasher = std::rc::Rc::new(std::cell::RefCell::new(Sha256::new()));
        let file = open_plain(&path)?;
        let mut archive = tar::Archive::new(Hashed {
            inner: Frames::new(std::io::BufReader::with_capacity(1 << 20, file))?,
            hasher: hasher.clone(),
            context,
        });
        let mut left = wanted;
        for entry in archive.entries().map_err(Error::io("read", &path))? {
            // The header has been read, and no byte behind it.
            let before = hasher.borrow().clone();
            let mut entry = entry.map_err(Error::io("read", &path))?;
            let name = String::from_utf8(entry.path_bytes().into_owned())
                .map_err(|_| refuse("has a name in it that is not UTF-8".to_owned()))?;
            check_name(&name)?;
            let kind = entry.header().entry_type();
            if !matches!(kind, tar::EntryType::Regular | tar::EntryType::GNUSparse) {
                return Err(refuse(format!(
                    "has {name:?} in it, which is no plain file"
                )));
            }
            if name == CHECKSUM {
                let mut told = String::new();
                entry
                    .take(65)
                    .read_to_string(&mut told)
                    .map_err(Error::io("read", &path))?;
                if told.trim_end() != to_hex(&before.finalize()) {
                    return Err(refuse("its checksum is wrong".to_owned()));
                }
                return match left.into_keys().next() {
                    Some(name) => Err(refuse(format!("there is no {name} in it"))),
                    None => Ok(()),
                };
            }
            let Some((to, size)) = left.remove(&name) else {
                continue;
            };
            if entry.size() != size {
                return Err(refuse(format!(
                    "its {name} has {} bytes, and should have {size}",
                    entry.size()
                )));
            }
            context.step(Step::Unpack, name);
            let out = disk::create_file(&to)?;
            package::write_sparse(&mut entry, &out, size, &to, &path)?;
        }
        Err(refuse("it has no checksum at its end".to_owned()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::process::Command;

    fn members(directory: &Path) -> (Vec<BundleMember>, Vec<u8>) {
        let path = directory.join("disk");
        let file = File::create_new(&path).unwrap();
        let size = 48 << 20;
        file.set_len(size).unwrap();
        // More extents than a header holds, and noise that does not compress.
        let mut state = 1u32;
        for index in 0..40u64 {
            let noise: Vec<u8> = (0..300_000)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            file.write_all_at(&noise, index << 20).unwrap();
        }
        let bytes = fs::read(&path).unwrap();
        let members = vec![
            BundleMember {
                name: "bundle.json".into(),
                content: BundleContent::Bytes(b"{}".to_vec()),
            },
            BundleMember {
                name: "disks/root.raw".into(),
                content: BundleContent::File(path),
            },
        ];
        (members, bytes)
    }

    #[tokio::test]
    async fn zstd_and_tar_read_it_and_so_do_we() {
        let directory = tempfile::tempdir().unwrap();
        let (members, bytes) = members(directory.path());
        let to = directory.path().join("a.tar.zst");
        let written = write_bundle(&to, members.clone(), Arc::new(Silent))
            .await
            .unwrap();
        assert_eq!(written.stored_bytes, fs::metadata(&to).unwrap().len());
        assert!(
            written.tar_bytes < 16 << 20,
            "the holes are not in it: {written:?}"
        );
        assert!(!part_path(&to).exists());
        for arguments in [["zstd", "-tq"], ["tar", "--zstd -xf"]] {
            let out = directory.path().join("out");
            let _ = fs::create_dir(&out);
            let output = Command::new(arguments[0])
                .args(arguments[1].split(' '))
                .arg(&to)
                .current_dir(&out)
                .output();
            let Ok(output) = output else {
                println!("skipped: {} is not installed", arguments[0]);
                continue;
            };
            assert!(output.status.success(), "{arguments:?}: {output:?}");
            if arguments[0] == "tar" {
                assert_eq!(fs::read(out.join("disks/root.raw")).unwrap(), bytes);
            }
        }
        assert_eq!(read_bundle_head(&to, "bundle.json").await.unwrap(), b"{}");
        let back = directory.path().join("back");
        let wanted = BTreeMap::from([("disks/root.raw".to_owned(), (back.clone(), 48 << 20))]);
        read_bundle(&to, wanted, Arc::new(Silent)).await.unwrap();
        assert_eq!(fs::read(&back).unwrap(), bytes);
        assert!(
            write_bundle(&to, members, Arc::new(Silent)).await.is_err(),
            "never overwrites"
        );
    }

    #[tokio::test]
    async fn an_interrupted_export_goes_on_and_becomes_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let (members, _) = members(directory.path());
        let whole = directory.path().join("whole");
        write_bundle(&whole, members.clone(), Arc::new(Silent))
            .await
            .unwrap();
        let bytes = fs::read(&whole).unwrap();
        for cut in [0, 5, 70, 100, 5 << 20, bytes.len() - 1, bytes.len()] {
            let to = directory.path().join(format!("cut{cut}"));
            fs::write(part_path(&to), &bytes[..cut]).unwrap();
            let written = write_bundle(&to, members.clone(), Arc::new(Silent))
                .await
                .unwrap();
            assert_eq!(written.resumed_bytes > 0, cut > 4 << 20, "{cut}");
            assert!(fs::read(&to).unwrap() == bytes, "cut at {cut}");
        }
        // A part of something else is begun anew, and so is one whose bytes have changed.
        let to = directory.path().join("other");
        let mut changed = bytes.clone();
        changed[100_000] ^= 1;
        fs::write(part_path(&to), &changed).unwrap();
        write_bundle(&to, members.clone(), Arc::new(Silent))
            .await
            .unwrap();
        assert!(fs::read(&to).unwrap() == bytes);
    }

    #[tokio::test]
    async fn damaged_bundles_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let (members, _) = members(directory.path());
        let to = directory.path().join("a");
        write_bundle(&to, members, Arc::new(Silent)).await.unwrap();
        let bytes = fs::read(&to).unwrap();
        for at in [0, 6, 40, 92, 95, 200, 6 << 20, bytes.len() - 3] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x55;
            let bad = directory.path().join(format!("bad{at}"));
            fs::write(&bad, &changed).unwrap();
            let back = directory.path().join(format!("back{at}"));
            let wanted = BTreeMap::from([("disks/root.raw".to_owned(), (back, 48 << 20))]);
            let outcome = read_bundle(&bad, wanted, Arc::new(Silent)).await;
            // The stamp itself is only for going on.
            assert_eq!(outcome.is_err(), at != 40, "{at}");
        }
        for cut in [0, 7, 50, 3000, bytes.len() / 2, bytes.len() - 1] {
            let bad = directory.path().join(format!("cut{cut}"));
            fs::write(&bad, &bytes[..cut]).unwrap();
            let back = directory.path().join(format!("cutback{cut}"));
            let wanted = BTreeMap::from([("disks/root.raw".to_owned(), (back, 48 << 20))]);
            assert!(
                read_bundle(&bad, wanted, Arc::new(Silent)).await.is_err(),
                "{cut}"
            );
        }
    }
}
