//! Lays the entries of a layer's archive over a tree: files to the disk, names and attributes to memory.
//!
//! The archive is read by the `tar` crate, which lets PAX sizes win over the header's; around it stands a bound on what it may read into memory
//! for one entry. Nothing is written by a name of the archive.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::rc::Rc;

use tar::{Archive, Entry, EntryType};

use crate::progress::Context;
use crate::root_disk::is_known_attribute;
use crate::root_disk::{Attributes, Blocks, Content, Device, Tree};
use crate::{Error, Result};

/// Bytes of headers, long names and PAX records of one entry at most.
const HEADERS_LIMIT: u64 = 1 << 20;
/// Longest target of a symbolic link (ext4 keeps it in one block).
const LONGEST_TARGET: usize = 4095;
/// What a whiteout's name begins with (OCI image specification, layer.md).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Further marks of the file system that invented whiteouts; they mean nothing elsewhere.
const OTHER_MARKS: &[u8] = b".wh..wh.";

/// Lets at most a budget of bytes through until it is renewed.
struct Budget<R> {
    inner: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Budget<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other(
                "the headers of one entry are larger than 1 MiB",
            ));
        }
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        self.left.set(left - count as u64);
        Ok(count)
    }
}

/// Lays one layer over the tree; reads `plain` to its end.
pub(crate) fn lay_over(
    tree: &mut Tree,
    blocks: &mut Blocks,
    plain: &mut impl Read,
    context: &Context,
) -> Result<()> {
    let malformed =
        |failure: io::Error| Error::malformed("the layer's archive", failure.to_string());
    let left = Rc::new(Cell::new(HEADERS_LIMIT));
    let mut archive = Archive::new(Budget {
        inner: plain,
        left: Rc::clone(&left),
    });
    tree.next_layer();
    let mut entries = archive.entries().map_err(malformed)?;
    loop {
        context.check()?;
        left.set(HEADERS_LIMIT);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(malformed)?;
        left.set(u64::MAX);
        one(tree, blocks, &mut entry)?;
        // All of it is read here, so that only headers are left to the crate.
        io::copy(&mut entry, &mut io::sink()).map_err(malformed)?;
    }
    // Padding behind the archive's end counts for the digest.
    left.set(u64::MAX);
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(malformed)?;
    Ok(())
}

fn one<R: Read>(tree: &mut Tree, blocks: &mut Blocks, entry: &mut Entry<'_, R>) -> Result<()> {
    let path = entry.path_bytes().into_owned();
    let kind = entry.header().entry_type();
    let refused = |problem: &str| {
        let shown: String = String::from_utf8_lossy(&path).chars().take(200).collect();
        Error::malformed(format!("the layer's entry {shown:?}"), problem)
    };
    if matches!(kind, EntryType::XGlobalHeader) {
        return Ok(());
    }
    let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
    let (directory, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
        None => (&b""[..], trimmed),
    };
    if name == OPAQUE {
        return tree.make_opaque(directory);
    }
    if name.starts_with(OTHER_MARKS) {
        return Ok(());
    }
    if let Some(gone) = name.strip_prefix(WHITEOUT) {
        return tree.white_out(directory, gone);
    }
    let attributes = attributes(entry).map_err(|failure| refused(&failure.to_string()))?;
    let number = |value: io::Result<Option<u32>>| match value {
        Ok(Some(number)) if number < 1 << 20 => Ok(number),
        _ => Err(refused("is a device with numbers that Linux does not know")),
    };
    let content = match kind {
        EntryType::Directory => Content::Directory(BTreeMap::new()),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            // Some old archives mark a directory by its name only.
            if path.ends_with(b"/") {
                Content::Directory(BTreeMap::new())
            } else {
                let bytes = entry.size();
                let run = blocks.content(bytes, |buffer| {
                    entry.read(buffer).map_err(|failure| {
                        Error::malformed("the layer's archive", failure.to_string())
                    })
                })?;
                Content::File { run, bytes }
            }
        }
        EntryType::Symlink => {
            let target = entry
                .link_name_bytes()
                .ok_or_else(|| refused("is a symbolic link without a target"))?;
            if target.is_empty() || target.len() > LONGEST_TARGET || target.contains(&0) {
                return Err(refused(
                    "is a symbolic link with an empty target, or one that is too long",
                ));
            }
            Content::Symlink(Box::from(&*target))
        }
        EntryType::Link => {
            let target = entry
                .link_name_bytes()
                .ok_or_else(|| refused("is a hard link without a target"))?;
            return tree.link(&path, &target);
        }
        EntryType::Char | EntryType::Block => Content::Device(Device {
            block: kind == EntryType::Block,
            major: number(entry.header().device_major())?,
            minor: number(entry.header().device_minor())?,
        }),
        EntryType::Fifo => Content::Fifo,
        _ => return Err(refused("is of a kind that a layer can't have")),
    };
    tree.put(&path, attributes, content)
}

/// Owner, mode, time and extended attributes, where PAX records win over the header.
fn attributes<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Attributes> {
    let header = entry.header();
    let too_large = |_| io::Error::other("its owner's number is too large");
    let mut attributes = Attributes {
        mode: (header.mode()? & 0o7777) as u16,
        uid: u32::try_from(header.uid()?).map_err(too_large)?,
        gid: u32::try_from(header.gid()?).map_err(too_large)?,
        modified: i64::try_from(header.mtime().unwrap_or_default()).unwrap_or(i64::MAX),
        extended: BTreeMap::new(),
    };
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        let key = record.key_bytes();
        if key.starts_with(b"GNU.sparse.") {
            return Err(io::Error::other(
                "it is stored as a sparse file in a form that is not read",
            ));
        }
        if key == b"mtime" {
            let text = String::from_utf8_lossy(record.value_bytes());
            let whole = text.split('.').next().unwrap_or_default();
            attributes.modified = whole.parse().unwrap_or(attributes.modified);
        }
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
            && is_known_attribute(name)
        {
            attributes
                .extended
                .insert(name.to_vec(), record.value_bytes().to_vec());
        }
    }
    Ok(attributes)
}
