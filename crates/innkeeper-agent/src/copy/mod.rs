//! File trees as a byte stream: what `copy_in` and `copy_out` carry on their data channel.
//!
//! A stream is a walk of a tree, told as records of a tag byte, a length (u32, little-endian) and a body:
//!
//! ```text
//!  'E' entry      kind u8, mode u32, mtime seconds i64, nanoseconds u32, size u64, name length u16, name, link target
//!  'D' data       bytes of the file that the last entry named, any number of times
//!  'F' end        of the file
//!  'U' up         the directory that was entered last is complete
//!  'Z' complete   the tree is complete
//! ```
//! An entry carries a single name, never a path: the receiver is always in a directory that it opened itself, so that a
//! hostile sender has no way to say "elsewhere" but a name with a slash, `..`, or a symlink in the way, and all three are
//! refused by [`Receiver`]. Hard links, devices, sockets and pipes are not carried; holes of sparse files are not kept.

mod receive;
mod send;

pub use receive::{Receiver, ReceiverOptions};
pub use send::Sender;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::path::PathBuf;

/// Deepest nesting of directories that is copied.
pub const MAX_DEPTH: usize = 256;
const RECORD_HEADER: usize = 5;
const ENTRY_FIXED: usize = 1 + 4 + 8 + 4 + 8 + 2;
const MAX_ENTRY: usize = ENTRY_FIXED + 255 + 4096;
const MAX_DATA: usize = 16 * 1024 * 1024;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; its data follows.
    File,
    /// A directory; its entries follow up to an `Up`.
    Directory,
    /// A symbolic link and its target, which is never followed.
    Symlink(Vec<u8>),
}

/// A file, directory or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Name within its directory, as bytes: names need not be UTF-8.
    pub name: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, seconds since 1970-01-01 UTC.
    pub mtime: i64,
    /// Nanoseconds of it.
    pub mtime_nanoseconds: u32,
    /// Size in bytes when the walk saw it; the data may turn out shorter or longer.
    pub size: u64,
}

/// A record of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry begins.
    Entry(Entry),
    /// Bytes of the current file.
    Data(Bytes),
    /// The current file is complete.
    EndOfFile,
    /// The current directory is complete.
    Up,
    /// The tree is complete.
    Complete,
}

/// Why a copy failed.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The file system refused.
    #[error("cannot {operation} {}", shown(path))]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The stream of the other side is not one.
    #[error("the copy stream is malformed: {0}")]
    Malformed(&'static str),
    /// A name that could lead elsewhere.
    #[error("refusing the entry name {0:?}: it is no plain file name")]
    UnsafeName(String),
    /// Something in the way that must not be written through.
    #[error("refusing to write through {}: it is not a {expected}", shown(path))]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// Directories nested deeper than [`MAX_DEPTH`].
    #[error("{} is nested deeper than {MAX_DEPTH} directories", shown(.0))]
    TooDeep(PathBuf),
    /// The source is of a kind that is not copied.
    #[error("{} is neither a file, a directory nor a symlink", shown(.0))]
    NotCopyable(PathBuf),
}

/// Returns a path for a message. A name in it may be the sender's, and must not move the cursor of whoever reads it or begin a line.
fn shown(path: &std::path::Path) -> String {
    escaped(&path.to_string_lossy())
}

fn escaped(text: &str) -> String {
    text.chars()
        .map(|character| match character.is_control() {
            true => character.escape_default().to_string(),
            false => character.to_string(),
        })
        .collect()
}

impl CopyError {
    /// Gives the kind of the underlying IO error, if there is one.
    pub fn io_kind(&self) -> Option<std::io::ErrorKind> {
        match self {
            CopyError::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

/// Encodes a record. Data is better written by [`Sender`], which reads straight behind the record's header.
pub fn encode(record: &Record) -> Bytes {
    let mut out = BytesMut::new();
    match record {
        Record::Entry(entry) => {
            let (kind, target): (u8, &[u8]) = match &entry.kind {
                EntryKind::File => (0, &[]),
                EntryKind::Directory => (1, &[]),
                EntryKind::Symlink(target) => (2, target),
            };
            out.put_u8(b'E');
            out.put_u32_le((ENTRY_FIXED + entry.name.len() + target.len()) as u32);
            out.put_u8(kind);
            out.put_u32_le(entry.mode);
            out.put_i64_le(entry.mtime);
            out.put_u32_le(entry.mtime_nanoseconds);
            out.put_u64_le(entry.size);
            out.put_u16_le(entry.name.len() as u16);
            out.put_slice(&entry.name);
            out.put_slice(target);
        }
        Record::Data(bytes) => {
            out.put_u8(b'D');
            out.put_u32_le(bytes.len() as u32);
            out.put_slice(bytes);
        }
        Record::EndOfFile => out.put_slice(b"F\0\0\0\0"),
        Record::Up => out.put_slice(b"U\0\0\0\0"),
        Record::Complete => out.put_slice(b"Z\0\0\0\0"),
    }
    out.freeze()
}

/// Cuts a byte stream into records; data comes in pieces as it arrives, never gathered.
#[derive(Default)]
pub struct Decoder {
    partial: BytesMut,
    data_left: usize,
    input: Bytes,
}

impl Decoder {
    /// Takes bytes; call [`Decoder::next_record`] until it gives none before the next call.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(self.input.is_empty());
        self.input = bytes;
    }

    /// Takes the next record, or none when more bytes are needed.
    pub fn next_record(&mut self) -> Result<Option<Record>, CopyError> {
        loop {
            if self.data_left > 0 {
                if self.input.is_empty() {
                    return Ok(None);
                }
                let piece = self.input.split_to(self.data_left.min(self.input.len()));
                self.data_left -= piece.len();
                return Ok(Some(Record::Data(piece)));
            }
            if !self.fill(RECORD_HEADER) {
                return Ok(None);
            }
            let length = u32::from_le_bytes([
                self.partial[1],
                self.partial[2],
                self.partial[3],
                self.partial[4],
            ]) as usize;
            match self.partial[0] {
                b'D' if length <= MAX_DATA => {
                    self.partial.clear();
                    self.data_left = length;
                }
                b'E' if (ENTRY_FIXED..=MAX_ENTRY).contains(&length) => {
                    if !self.fill(RECORD_HEADER + length) {
                        return Ok(None);
                    }
                    let body = self.partial.split().freeze().slice(RECORD_HEADER..);
                    return decode_entry(body).map(|entry| Some(Record::Entry(entry)));
                }
                tag @ (b'F' | b'U' | b'Z') if length == 0 => {
                    self.partial.clear();
                    return Ok(Some(match tag {
                        b'F' => Record::EndOfFile,
                        b'U' => Record::Up,
                        _ => Record::Complete,
                    }));
                }
                _ => return Err(CopyError::Malformed("unknown or oversized record")),
            }
        }
    }

    fn fill(&mut self, wanted: usize) -> bool {
        let missing = wanted
            .saturating_sub(self.partial.len())
            .min(self.input.len());
        let piece = self.input.split_to(missing);
        self.partial.extend_from_slice(&piece);
        self.partial.len() >= wanted
    }
}

fn decode_entry(mut body: Bytes) -> Result<Entry, CopyError> {
    // The caller checked that the fixed part is there.
    let kind = body.get_u8();
    let mode = body.get_u32_le();
    let mtime = body.get_i64_le();
    let mtime_nanoseconds = body.get_u32_le();
    let size = body.get_u64_le();
    let name_length = usize::from(body.get_u16_le());
    if name_length > body.len() || mtime_nanoseconds >= 1_000_000_000 {
        return Err(CopyError::Malformed(
            "an entry's fields contradict each other",
        ));
    }
    let name = body.split_to(name_length).to_vec();
    let kind = match (kind, body.is_empty()) {
        (0, true) => EntryKind::File,
        (1, true) => EntryKind::Directory,
        (2, false) => EntryKind::Symlink(body.to_vec()),
        _ => return Err(CopyError::Malformed("unknown kind of entry")),
    };
    Ok(Entry {
        kind,
        name,
        mode,
        mtime,
        mtime_nanoseconds,
        size,
    })
}
