//! The receiving side of a copy: writes a stream below one directory, whatever the stream says.
//!
//! The sender is hostile (a guest's files on the host, or the reverse). The receiver holds the directories it is in as
//! open descriptors, creates each entry relative to the innermost with `O_NOFOLLOW`, and accepts only plain names. An
//! existing file is rewritten in place; an existing symlink *at the entry's place* is replaced, never followed; an
//! existing symlink where a directory is needed is refused. Only the destination that the user named is resolved the
//! usual way; so the tree's root is never made a link, or the next copy to the same place would go wherever it points. Blocking
//! file IO.

use super::{CopyError, Decoder, Entry, EntryKind, MAX_DEPTH, Record};
use crate::message::CopySummary;
use bytes::Bytes;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, fchmod, fchown, fstat,
    ftruncate, futimens, mkdirat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How a receiver treats what comes.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverOptions {
    /// Permission bits that are taken over; 0o777 keeps set-user-id files of a guest off the host.
    pub mode_mask: u32,
    /// Owner of what is created; the process's own if absent.
    pub owner: Option<(u32, u32)>,
    /// Makes missing parents of the destination.
    pub create_parents: bool,
}

struct OpenDirectory {
    fd: OwnedFd,
    entry: Entry,
}

/// Writes a tree.
pub struct Receiver {
    options: ReceiverOptions,
    decoder: Decoder,
    parent: OwnedFd,
    /// Name for the root entry; none when the destination is a directory that takes the sender's name.
    root_name: Option<Vec<u8>>,
    directories: Vec<OpenDirectory>,
    file: Option<(OwnedFd, Entry)>,
    path: PathBuf,
    root_seen: bool,
    complete: bool,
    summary: CopySummary,
}

impl Receiver {
    /// Opens the destination: an existing directory receives the tree under the sender's name, anything else is the
    /// tree's new name in an existing (or, if so asked, new) directory.
    pub fn create(destination: &Path, options: ReceiverOptions) -> Result<Receiver, CopyError> {
        let trailing = destination.as_os_str().as_bytes().ends_with(b"/");
        let (directory, root_name) = if destination.is_dir() || (trailing && options.create_parents)
        {
            (destination.to_path_buf(), None)
        } else {
            let name = destination
                .file_name()
                .ok_or_else(|| failed("find", destination, Errno::NOENT))?;
            if trailing {
                return Err(failed("find the directory", destination, Errno::NOENT));
            }
            let parent = match destination.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
                _ => PathBuf::from("."),
            };
            (parent, Some(name.as_bytes().to_vec()))
        };
        if options.create_parents {
            std::fs::create_dir_all(&directory).map_err(|source| CopyError::Io {
                operation: "create the directory",
                path: directory.clone(),
                source,
            })?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::open(&directory, flags, Mode::empty())
            .map_err(|source| failed("open the directory", &directory, source))?;
        Ok(Receiver {
            options,
            decoder: Decoder::default(),
            parent,
            root_name,
            directories: Vec::new(),
            file: None,
            path: directory,
            root_seen: false,
            complete: false,
            summary: CopySummary::default(),
        })
    }

    /// Names the root where the destination does not: by what was asked for, so that the sender can't choose which file of a directory is
    /// written.
    pub fn name_root(&mut self, name: &OsStr) {
        self.root_name
            .get_or_insert_with(|| name.as_bytes().to_vec());
    }

    /// Takes bytes of the stream and writes what they say.
    pub fn push(&mut self, bytes: Bytes) -> Result<(), CopyError> {
        self.decoder.push(bytes);
        while let Some(record) = self.decoder.next_record()? {
            self.record(record)?;
        }
        Ok(())
    }

    /// True when the tree is complete; a stream that ends before it was cut off.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Gives what has been written so far.
    pub fn summary(&self) -> CopySummary {
        self.summary
    }

    fn record(&mut self, record: Record) -> Result<(), CopyError> {
        if self.complete {
            return Err(CopyError::Malformed("records after the end"));
        }
        match (record, &self.file) {
            (Record::Data(bytes), Some((file, _))) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    match rustix::io::write(file, rest) {
                        Ok(count) => rest = &rest[count..],
                        Err(Errno::INTR) => {}
                        Err(source) => return Err(failed("write", &self.path, source)),
                    }
                }
                self.summary.bytes += bytes.len() as u64;
                Ok(())
            }
            (Record::EndOfFile, Some(_)) => {
                if let Some((file, entry)) = self.file.take() {
                    self.finish(&file, &entry)?;
                }
                self.path.pop();
                Ok(())
            }
            (Record::Entry(entry), None) => self.entry(entry),
            (Record::Up, None) => {
                let Some(directory) = self.directories.pop() else {
                    return Err(CopyError::Malformed("a directory ends that never began"));
                };
                self.finish(&directory.fd, &directory.entry)?;
                self.path.pop();
                Ok(())
            }
            (Record::Complete, None) if self.directories.is_empty() && self.root_seen => {
                self.complete = true;
                Ok(())
            }
            _ => Err(CopyError::Malformed("records out of order")),
        }
    }

    fn entry(&mut self, mut entry: Entry) -> Result<(), CopyError> {
        if self.directories.is_empty() {
            if self.root_seen {
                return Err(CopyError::Malformed("a second root"));
            }
            self.root_seen = true;
            // A sender follows a link that is named to it, so an honest stream has none here.
            if matches!(entry.kind, EntryKind::Symlink(_)) {
                return Err(CopyError::Malformed("the root of a tree is a link"));
            }
            if let Some(name) = self.root_name.take() {
                entry.name = name;
            }
        }
        let name = &entry.name;
        if name.is_empty()
            || name.len() > 255
            || name == b"."
            || name == b".."
            || name.contains(&b'/')
            || name.contains(&0)
        {
            return Err(CopyError::UnsafeName(
                String::from_utf8_lossy(name).into_owned(),
            ));
        }
        let name = OsStr::from_bytes(&entry.name).to_owned();
        let parent = self
            .directories
            .last()
            .map_or(self.parent.as_fd(), |directory| directory.fd.as_fd());
        let path = self.path.join(&name);
        self.summary.entries += 1;
        match &entry.kind {
            EntryKind::File => {
                let file = open_file(parent, &name, &path)?;
                self.path = path;
                self.file = Some((file, entry));
            }
            EntryKind::Directory => {
                if self.directories.len() >= MAX_DEPTH {
                    return Err(CopyError::TooDeep(path));
                }
                let fd = open_directory(parent, &name, &path)?;
                self.path = path;
                self.directories.push(OpenDirectory { fd, entry });
            }
            EntryKind::Symlink(target) => {
                let target = OsStr::from_bytes(target);
                match symlinkat(target, parent, &name) {
                    Err(Errno::EXIST) => {
                        unlinkat(parent, &name, AtFlags::empty())
                            .map_err(|source| failed("replace", &path, source))?;
                        symlinkat(target, parent, &name)
                    }
                    result => result,
                }
                .map_err(|source| failed("create the link", &path, source))?;
                let times = times(&entry);
                utimensat(parent, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|source| failed("set the time of", &path, source))?;
                if let Some((user, group)) = self.options.owner {
                    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
                    rustix::fs::chownat(
                        parent,
                        &name,
                        Some(user),
                        Some(group),
                        AtFlags::SYMLINK_NOFOLLOW,
                    )
                    .map_err(|source| failed("set the owner of", &path, source))?;
                }
            }
        }
        Ok(())
    }

    fn finish(&self, fd: &OwnedFd, entry: &Entry) -> Result<(), CopyError> {
        if let Some((user, group)) = self.options.owner {
            // Before the mode: a change of owner clears set-user-id.
            fchown(fd, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))
                .map_err(|source| failed("set the owner of", &self.path, source))?;
        }
        fchmod(
            fd,
            Mode::from_raw_mode((entry.mode & self.options.mode_mask) as _),
        )
        .map_err(|source| failed("set the mode of", &self.path, source))?;
        futimens(fd, &times(entry)).map_err(|source| failed("set the time of", &self.path, source))
    }
}

fn open_file(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<OwnedFd, CopyError> {
    // Non-blocking, so that a pipe in the way is refused instead of waited for.
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(&parent, name, flags, mode) {
        Ok(fd) => {
            let stat = fstat(&fd).map_err(|source| failed("read the state of", path, source))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(CopyError::InTheWay {
                    path: path.to_path_buf(),
                    expected: "regular file",
                });
            }
            ftruncate(&fd, 0).map_err(|source| failed("truncate", path, source))?;
            Ok(fd)
        }
        // A symlink (or a file that is being executed) at this very place is replaced.
        Err(Errno::LOOP | Errno::MLINK | Errno::TXTBSY) => {
            unlinkat(&parent, name, AtFlags::empty())
                .map_err(|source| failed("replace", path, source))?;
            openat(&parent, name, flags | OFlags::EXCL, mode)
                .map_err(|source| failed("create", path, source))
        }
        Err(Errno::NXIO | Errno::ISDIR) => Err(CopyError::InTheWay {
            path: path.to_path_buf(),
            expected: "regular file",
        }),
        Err(source) => Err(failed("create", path, source)),
    }
}

fn open_directory(parent: impl AsFd, name: &OsStr, path: &Path) -> Result<OwnedFd, CopyError> {
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(source) => return Err(failed("create the directory", path, source)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(&parent, name, flags, Mode::empty()).map_err(|source| match source {
        Errno::LOOP | Errno::NOTDIR | Errno::MLINK => CopyError::InTheWay {
            path: path.to_path_buf(),
            expected: "directory",
        },
        other => failed("open the directory", path, other),
    })
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime,
        tv_nsec: entry.mtime_nanoseconds as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn failed(operation: &'static str, path: &Path, source: Errno) -> CopyError {
    CopyError::Io {
        operation,
        path: path.to_path_buf(),
        source: source.into(),
    }
}
