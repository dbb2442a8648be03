//! The sending side of a copy: walks a tree and gives it as chunks of the stream.
//!
//! Blocking file IO; one directory is held open per level. Below the root no symlink is followed: each entry is opened
//! relative to its directory with `O_NOFOLLOW`. Files that change while they are read are sent as read.

use super::{CopyError, Entry, EntryKind, MAX_DEPTH, RECORD_HEADER, Record, encode};
use crate::message::CopySummary;
use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// File bytes per chunk: whole pages, and with its header below a frame's payload.
const READ_SIZE: usize = 60 * 1024;

/// Walks a tree.
pub struct Sender {
    directories: Vec<(OwnedFd, Dir)>,
    /// For error messages.
    path: PathBuf,
    file: Option<OwnedFd>,
    pending: VecDeque<Record>,
    summary: CopySummary,
    complete: bool,
}

impl Sender {
    /// Opens the root: a symlink given here is followed. The name told for it is the path's last component.
    pub fn open(path: &Path) -> Result<Sender, CopyError> {
        let resolved =
            std::fs::canonicalize(path).map_err(|source| failed("open", path, source))?;
        let name = match path.file_name() {
            Some(name) => name.as_encoded_bytes().to_vec(),
            // "." or "/": the resolved name, and for the root directory itself one that can be a name.
            None => resolved
                .file_name()
                .map_or(b"root".to_vec(), |name| name.as_encoded_bytes().to_vec()),
        };
        let mut sender = Sender {
            directories: Vec::new(),
            path: resolved.clone(),
            file: None,
            pending: VecDeque::new(),
            summary: CopySummary::default(),
            complete: false,
        };
        let fd = rustix::fs::open(
            &resolved,
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::empty(),
        )
        .map_err(|source| failed("open", &resolved, source.into()))?;
        let stat =
            fstat(&fd).map_err(|source| failed("read the state of", &resolved, source.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => sender.begin_file(fd, name, &stat),
            FileType::Directory => sender.begin_directory(fd, name, &stat)?,
            _ => return Err(CopyError::NotCopyable(resolved)),
        }
        Ok(sender)
    }

    /// Gives what has been sent so far.
    pub fn summary(&self) -> CopySummary {
        self.summary
    }

    /// Reads the next chunk (below 64 KiB); none when all was given.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, CopyError> {
        loop {
            if let Some(record) = self.pending.pop_front() {
                return Ok(Some(encode(&record)));
            }
            if let Some(file) = &self.file {
                let mut chunk = Vec::with_capacity(RECORD_HEADER + READ_SIZE);
                chunk.extend_from_slice(b"D\0\0\0\0");
                let count = loop {
                    match rustix::io::read(file, rustix::buffer::spare_capacity(&mut chunk)) {
                        Ok(count) => break count,
                        Err(rustix::io::Errno::INTR) => {}
                        Err(source) => return Err(failed("read", &self.path, source.into())),
                    }
                };
                if count == 0 {
                    self.file = None;
                    self.path.pop();
                    self.pending.push_back(Record::EndOfFile);
                    self.complete_if_root();
                    continue;
                }
                chunk[1..RECORD_HEADER].copy_from_slice(&(count as u32).to_le_bytes());
                self.summary.bytes += count as u64;
                return Ok(Some(chunk.into()));
            }
            if self.complete {
                return Ok(None);
            }
            self.step()?;
        }
    }

    /// Takes the next entry of the innermost directory.
    fn step(&mut self) -> Result<(), CopyError> {
        let Some((_, directory)) = self.directories.last_mut() else {
            self.complete = true;
            return Ok(());
        };
        match directory.read() {
            None => {
                self.directories.pop();
                self.path.pop();
                self.pending.push_back(Record::Up);
                self.complete_if_root();
                Ok(())
            }
            Some(Err(source)) => Err(failed("read the directory", &self.path, source.into())),
            Some(Ok(entry)) => {
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    return Ok(());
                }
                let name = name.to_owned();
                self.entry(&name)
            }
        }
    }

    fn entry(&mut self, name: &CStr) -> Result<(), CopyError> {
        let Some((parent, _)) = self.directories.last() else {
            return Ok(());
        };
        let path = self
            .path
            .join(Path::new(std::ffi::OsStr::new(&*name.to_string_lossy())));
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It was removed since the directory was read.
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(source) => return Err(failed("read the state of", &path, source.into())),
        };
        let bytes = name.to_bytes().to_vec();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new())
                    .map_err(|source| failed("read the link", &path, source.into()))?;
                self.summary.entries += 1;
                let kind = EntryKind::Symlink(target.into_bytes());
                self.pending
                    .push_back(Record::Entry(described(kind, bytes, &stat)));
            }
            FileType::RegularFile | FileType::Directory => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let fd = match openat(parent, name, flags, Mode::empty()) {
                    Ok(fd) => fd,
                    Err(rustix::io::Errno::NOENT) => return Ok(()),
                    Err(source) => return Err(failed("open", &path, source.into())),
                };
                // What was opened counts, not what stood there a moment ago.
                let stat = fstat(&fd)
                    .map_err(|source| failed("read the state of", &path, source.into()))?;
                self.path = path;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => self.begin_file(fd, bytes, &stat),
                    FileType::Directory => self.begin_directory(fd, bytes, &stat)?,
                    _ => {
                        self.path.pop();
                        self.summary.skipped += 1;
                    }
                }
            }
            _ => self.summary.skipped += 1,
        }
        Ok(())
    }

    fn begin_file(&mut self, fd: OwnedFd, name: Vec<u8>, stat: &Stat) {
        self.summary.entries += 1;
        self.pending
            .push_back(Record::Entry(described(EntryKind::File, name, stat)));
        self.file = Some(fd);
    }

    fn begin_directory(
        &mut self,
        fd: OwnedFd,
        name: Vec<u8>,
        stat: &Stat,
    ) -> Result<(), CopyError> {
        if self.directories.len() >= MAX_DEPTH {
            return Err(CopyError::TooDeep(self.path.clone()));
        }
        let listing = Dir::read_from(&fd)
            .map_err(|source| failed("read the directory", &self.path, source.into()))?;
        self.summary.entries += 1;
        self.pending
            .push_back(Record::Entry(described(EntryKind::Directory, name, stat)));
        self.directories.push((fd, listing));
        Ok(())
    }

    fn complete_if_root(&mut self) {
        if self.directories.is_empty() {
            self.pending.push_back(Record::Complete);
            self.complete = true;
        }
    }
}

#[allow(
    clippy::unnecessary_cast,
    reason = "the fields of stat differ in width between platforms"
)]
fn described(kind: EntryKind, name: Vec<u8>, stat: &Stat) -> Entry {
    Entry {
        kind,
        name,
        mode: stat.st_mode as u32 & 0o7777,
        mtime: stat.st_mtime as i64,
        mtime_nanoseconds: (stat.st_mtime_nsec as u32).min(999_999_999),
        size: stat.st_size as u64,
    }
}

fn failed(operation: &'static str, path: &Path, source: std::io::Error) -> CopyError {
    CopyError::Io {
        operation,
        path: path.to_path_buf(),
        source,
    }
}
