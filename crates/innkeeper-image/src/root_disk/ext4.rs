//! Writes ext4: content first, one file after the other, then everything that says where it is.
//!
//! ```text
//!  0            1                           FIRST
//!  superblock │ descriptors, room for more │ content │ attributes, links, extents, directories │ bitmaps │ inodes │ journal │ free
//! ```
//! Blocks of 4 KiB; extents, flexible groups, a journal (a machine may be killed at any time), no checksums. Zeros are not written: the file
//! is sparse. Some groups begin with copies of the superblock and the descriptors; the numbers that are given out here pass over
//! those places, and `physical` puts them back in. The layout is the kernel's Documentation/filesystems/ext4; the tests let e2fsck
//! judge it. Growing to a larger disk is the guest kernel's, which does it only with copies where `sparse_super` has them.

use std::collections::HashMap;

use super::blocks::{
    BLOCK, BLOCKS_PER_GROUP, Blocks, COPIES, DESCRIPTOR_BLOCKS, FIRST, contiguous, physical, pieces,
};
use super::inode::{INODE_SIZE, Inode};
use super::tree::{Content, Node, NodeId, Run, Tree};
use super::xattr;
use crate::{Error, Result};

/// Inodes of a group at most: the bits of one block.
const MOST_INODES_PER_GROUP: u64 = 8 * BLOCK;
/// One inode for 16 KiB, as mke2fs has it.
const INODES_PER_GROUP: u64 = 8192;
const DESCRIPTOR_SIZE: u64 = 32;
const JOURNAL_BLOCKS: u64 = 16_384;
const JOURNAL_INODE: u32 = 8;
/// First inode that is not reserved.
const FIRST_INODE: u32 = 11;
/// Free space that a disk has at least, beside what its image needs.
const LEAST_FREE_BLOCKS: u64 = 65_536;

/// What tells this file system from others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) uuid: [u8; 16],
    /// At most 16 bytes, filled up with zeros.
    pub(crate) label: [u8; 16],
    /// Seconds since 1970.
    pub(crate) created: u32,
}

/// A file system that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    /// Size of the disk in bytes.
    pub(crate) bytes: u64,
}

/// Everything behind the content while it is written.
struct Writer<'a> {
    tree: &'a Tree,
    blocks: Blocks,
    numbers: HashMap<NodeId, u32>,
    inodes: Vec<Inode>,
    directories: Vec<bool>,
}

/// Writes all that is not content; the disk is at least `least` bytes and has room to work in.
pub(crate) fn finish(
    tree: &Tree,
    blocks: Blocks,
    identity: Identity,
    least: u64,
) -> Result<Finished> {
    let mut writer = Writer {
        tree,
        blocks,
        numbers: HashMap::new(),
        inodes: Vec::new(),
        directories: Vec::new(),
    };
    // Extents, directories and tables may go beyond what content may take.
    writer.blocks.limit = u64::from(u32::MAX);
    let (order, parents) = writer.number();
    for node in order {
        let inode = writer.inode(node, parents.get(&node).copied().unwrap_or(NodeId::ROOT))?;
        writer.inodes.push(inode);
        writer
            .directories
            .push(matches!(tree.node(node).content, Content::Directory(_)));
    }
    writer.tables(identity, least)
}

impl Writer<'_> {
    /// Gives every node its number, directories before what is in them. The root is not counted: it is inode 2.
    fn number(&mut self) -> (Vec<NodeId>, HashMap<NodeId, NodeId>) {
        let (mut order, mut parents) = (vec![NodeId::ROOT], HashMap::new());
        self.numbers.insert(NodeId::ROOT, 2);
        let (mut at, mut next) = (0, FIRST_INODE);
        while let Some(id) = order.get(at).copied() {
            at += 1;
            if let Content::Directory(children) = &self.tree.node(id).content {
                for name in children.values() {
                    if let std::collections::hash_map::Entry::Vacant(vacant) =
                        self.numbers.entry(name.node)
                    {
                        vacant.insert(next);
                        next += 1;
                        order.push(name.node);
                        parents.insert(name.node, id);
                    }
                }
            }
        }
        (order, parents)
    }

    fn inode(&mut self, id: NodeId, parent: NodeId) -> Result<Inode> {
        let node = self.tree.node(id);
        let permissions = node.attributes.mode;
        let mut used = 0;
        let mut inode = match &node.content {
            Content::Directory(children) => {
                let subdirectories = children
                    .values()
                    .filter(|name| {
                        matches!(self.tree.node(name.node).content, Content::Directory(_))
                    })
                    .count();
                let run = self.directory(id, parent, node)?;
                let mut inode = Inode::new(
                    0o040_000,
                    permissions,
                    2 + subdirectories as u32,
                    run.blocks * BLOCK,
                );
                used = inode.set_extents(run, &mut self.blocks)?;
                inode
            }
            Content::File { run, bytes } => {
                let mut inode = Inode::new(0o100_000, permissions, node.links, *bytes);
                used = inode.set_extents(*run, &mut self.blocks)?;
                inode
            }
            Content::Symlink(target) => {
                let mut inode = Inode::new(0o120_000, 0o777, node.links, target.len() as u64);
                if target.len() < 60 {
                    inode.0[0x28..0x28 + target.len()].copy_from_slice(target);
                } else {
                    let run = self.blocks.bytes(target)?;
                    used = inode.set_extents(run, &mut self.blocks)?;
                }
                inode
            }
            Content::Device(device) => {
                let kind = if device.block { 0o060_000 } else { 0o020_000 };
                let mut inode = Inode::new(kind, permissions, node.links, 0);
                let (major, minor) = (device.major, device.minor);
                // The kernel's old_encode_dev() where it is enough, else new_encode_dev() in the second word.
                if major < 256 && minor < 256 {
                    inode.set32(0x28, major << 8 | minor);
                } else {
                    inode.set32(
                        0x2C,
                        minor & 0xFF | (major & 0xFFF) << 8 | (minor & 0xF_FF00) << 12,
                    );
                }
                inode
            }
            Content::Fifo => Inode::new(0o010_000, permissions, node.links, 0),
        };
        inode.set_owner(node.attributes.uid, node.attributes.gid);
        inode.set_times(node.attributes.modified);
        if !node.attributes.extended.is_empty() {
            let block = xattr::block(&node.attributes.extended).ok_or_else(|| {
                Error::malformed(
                    "a file of the layer",
                    "has extended attributes that ext4 can't hold (4 KiB)",
                )
            })?;
            let run = self.blocks.bytes(&block)?;
            inode.set32(0x68, physical(run.start) as u32);
            used += 1;
        }
        inode.set_blocks(used);
        Ok(inode)
    }

    fn directory(&mut self, id: NodeId, parent: NodeId, node: &Node) -> Result<Run> {
        let Content::Directory(children) = &node.content else {
            return Ok(Run::default());
        };
        let mut bytes: Vec<u8> = Vec::with_capacity(BLOCK as usize);
        // Where the last entry begins: it reaches to the end of its block.
        let mut last = 0;
        let own = [(&b"."[..], id), (&b".."[..], parent)];
        let all = own
            .into_iter()
            .chain(children.iter().map(|(name, found)| (&**name, found.node)));
        for (name, node) in all {
            let length = (8 + name.len()).next_multiple_of(4);
            let in_block = bytes.len() % BLOCK as usize;
            if in_block + length > BLOCK as usize || (in_block == 0 && !bytes.is_empty()) {
                close(&mut bytes, last);
            }
            last = bytes.len();
            let kind = match self.tree.node(node).content {
                Content::File { .. } => 1,
                Content::Directory(_) => 2,
                Content::Device(device) if !device.block => 3,
                Content::Device(_) => 4,
                Content::Fifo => 5,
                Content::Symlink(_) => 7,
            };
            let number = self.numbers.get(&node).copied().unwrap_or_default();
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(&(length as u16).to_le_bytes());
            bytes.extend_from_slice(&[name.len() as u8, kind]);
            bytes.extend_from_slice(name);
            bytes.resize(last + length, 0);
        }
        close(&mut bytes, last);
        self.blocks.bytes(&bytes)
    }

    fn tables(mut self, identity: Identity, least: u64) -> Result<Finished> {
        self.blocks.flush()?;
        let used = self.blocks.next;
        let inodes = u64::from(FIRST_INODE) + self.inodes.len() as u64;
        let mut groups = least.div_ceil(BLOCK * BLOCKS_PER_GROUP).max(1);
        let shape = loop {
            let shape = Shape::new(groups, inodes, used);
            let room = physical(shape.end) + LEAST_FREE_BLOCKS <= groups * BLOCKS_PER_GROUP;
            if room && shape.per_group <= MOST_INODES_PER_GROUP {
                break shape;
            }
            groups += 1;
            if groups > DESCRIPTOR_BLOCKS * (BLOCK / DESCRIPTOR_SIZE) {
                return Err(Error::malformed(
                    "the image",
                    "needs a disk of more than 2 TiB",
                ));
            }
        };
        let disk = groups * BLOCKS_PER_GROUP * BLOCK;
        self.blocks
            .file
            .set_len(disk)
            .map_err(Error::io("grow", &self.blocks.path))?;
        self.journal(&shape, identity)?;
        self.inode_tables(&shape)?;
        let free_blocks = self.bitmaps_and_descriptors(&shape)?;
        self.superblocks(&shape, identity, free_blocks)?;
        self.blocks
            .file
            .sync_data()
            .map_err(Error::io("flush", &self.blocks.path))?;
        Ok(Finished { bytes: disk })
    }

    fn journal(&mut self, shape: &Shape, identity: Identity) -> Result<()> {
        // All big-endian (kernel: Documentation/filesystems/ext4/journal.rst); start 0: nothing to replay.
        let mut block = vec![0; BLOCK as usize];
        for (at, value) in [
            (0x0, 0xC03B_3998_u32),
            (0x4, 4),
            (0xC, BLOCK as u32),
            (0x10, JOURNAL_BLOCKS as u32),
            (0x14, 1),
            (0x18, 1),
            (0x40, 1),
        ] {
            block[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        block[0x30..0x40].copy_from_slice(&identity.uuid);
        self.blocks.write(shape.journal, &block)
    }

    fn inode_tables(&mut self, shape: &Shape) -> Result<()> {
        let run = Run {
            start: shape.journal,
            blocks: JOURNAL_BLOCKS,
        };
        let mut journal = Inode::new(0o100_000, 0o600, 1, JOURNAL_BLOCKS * BLOCK);
        let used = journal.set_extents(run, &mut self.blocks)?;
        journal.set_blocks(used);
        let mut table = vec![0; INODE_SIZE * FIRST_INODE as usize];
        let mut place = |number: u32, inode: &Inode| {
            let at = (number as usize - 1) * INODE_SIZE;
            table.resize(table.len().max(at + INODE_SIZE), 0);
            table[at..at + INODE_SIZE].copy_from_slice(&inode.0);
        };
        place(JOURNAL_INODE, &journal);
        for (index, inode) in self.inodes.iter().enumerate() {
            place(number_of(index), inode);
        }
        table.resize(table.len().next_multiple_of(BLOCK as usize), 0);
        let per_group = shape.per_group as usize * INODE_SIZE;
        for (start, piece) in shape.tables.iter().zip(table.chunks(per_group)) {
            self.blocks.write(*start, piece)?;
        }
        Ok(())
    }

    /// Gives the count of free blocks.
    fn bitmaps_and_descriptors(&mut self, shape: &Shape) -> Result<u64> {
        let groups = shape.groups as usize;
        let mut block_bits = vec![0_u8; groups * BLOCK as usize];
        let descriptor_blocks = (shape.groups * DESCRIPTOR_SIZE).div_ceil(BLOCK);
        for group in std::iter::once(0).chain(shape.copies()) {
            let start = group * BLOCKS_PER_GROUP;
            set_bits(&mut block_bits, start, start + 1 + descriptor_blocks);
        }
        for (start, end) in pieces(FIRST, shape.end) {
            set_bits(&mut block_bits, start, end);
        }
        let skipped = shape.skipped.iter();
        for run in self.tree.freed.iter().chain(skipped) {
            for (start, end) in pieces(run.start, run.start + run.blocks) {
                clear_bits(&mut block_bits, start, end);
            }
        }
        let mut inode_bits = vec![0_u8; groups * BLOCK as usize];
        let mut directories = vec![0_u16; groups];
        let last = number_of(self.inodes.len()).max(FIRST_INODE);
        for number in 1..last {
            let (group, bit) = shape.place(number);
            inode_bits[group * BLOCK as usize + bit / 8] |= 1 << (bit % 8);
        }
        for (index, _) in self.directories.iter().enumerate().filter(|(_, is)| **is) {
            directories[shape.place(number_of(index)).0] += 1;
        }
        let mut descriptors = vec![0; (descriptor_blocks * BLOCK) as usize];
        let mut all_free = 0;
        for (group, directories) in directories.iter().enumerate() {
            let range = group * BLOCK as usize..(group + 1) * BLOCK as usize;
            let used: u32 = block_bits[range.clone()]
                .iter()
                .map(|byte| byte.count_ones())
                .sum();
            let used_inodes: u32 = inode_bits[range.clone()]
                .iter()
                .map(|byte| byte.count_ones())
                .sum();
            let free = BLOCKS_PER_GROUP - u64::from(used);
            all_free += free;
            // Bits behind the last inode stand for nothing and are taken.
            set_bits(
                &mut inode_bits[range],
                shape.per_group,
                MOST_INODES_PER_GROUP,
            );
            let at = group * DESCRIPTOR_SIZE as usize;
            let descriptor = &mut descriptors[at..at + DESCRIPTOR_SIZE as usize];
            for (at, block) in [
                (0x0, shape.used + group as u64),
                (0x4, shape.used + shape.groups + group as u64),
                (0x8, shape.tables[group]),
            ] {
                descriptor[at..at + 4].copy_from_slice(&(physical(block) as u32).to_le_bytes());
            }
            descriptor[0xC..0xE].copy_from_slice(&(free as u16).to_le_bytes());
            let free_inodes = shape.per_group - u64::from(used_inodes);
            descriptor[0xE..0x10].copy_from_slice(&(free_inodes as u16).to_le_bytes());
            descriptor[0x10..0x12].copy_from_slice(&directories.to_le_bytes());
        }
        self.blocks.write(shape.used, &block_bits)?;
        self.blocks.write(shape.used + shape.groups, &inode_bits)?;
        for group in std::iter::once(0).chain(shape.copies()) {
            self.blocks
                .write_physical(group * BLOCKS_PER_GROUP + 1, &descriptors)?;
        }
        Ok(all_free)
    }

    fn superblocks(&mut self, shape: &Shape, identity: Identity, free_blocks: u64) -> Result<()> {
        let mut block = vec![0; BLOCK as usize];
        let superblock = &mut block[1024..2048];
        let inodes = shape.groups * shape.per_group;
        let used_inodes = u64::from(number_of(self.inodes.len()).max(FIRST_INODE)) - 1;
        for (at, value) in [
            (0x0, inodes as u32),
            (0x4, (shape.groups * BLOCKS_PER_GROUP) as u32),
            (0xC, free_blocks as u32),
            (0x10, (inodes - used_inodes) as u32),
            // Blocks and clusters of 1 KiB times 2^2.
            (0x18, 2),
            (0x1C, 2),
            (0x20, BLOCKS_PER_GROUP as u32),
            (0x24, BLOCKS_PER_GROUP as u32),
            (0x28, shape.per_group as u32),
            (0x30, identity.created),
            (0x40, identity.created),
            // Revision 1: sizes that are not the first ones.
            (0x4C, 1),
            (0x54, FIRST_INODE),
            // has_journal, ext_attr, dir_index.
            (0x5C, 0x4 | 0x8 | 0x20),
            // filetype, extent, flex_bg.
            (0x60, 0x2 | 0x40 | 0x200),
            // sparse_super, large_file, huge_file, dir_nlink, extra_isize.
            (0x64, 0x1 | 0x2 | 0x8 | 0x20 | 0x40),
            (0xE0, JOURNAL_INODE),
            // user_xattr and acl.
            (0x100, 0xC),
            (0x108, identity.created),
            // The hash of directories takes bytes as signed, as it is on x86.
            (0x160, 1),
        ] {
            superblock[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        for (at, value) in [
            // Never checked because of a count of mounts.
            (0x36, 0xFFFF_u16),
            (0x38, 0xEF53),
            // Unmounted cleanly; errors are told and work goes on.
            (0x3A, 1),
            (0x3C, 1),
            (0x58, INODE_SIZE as u16),
            (0x15C, 32),
            (0x15E, 32),
        ] {
            superblock[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        superblock[0x68..0x78].copy_from_slice(&identity.uuid);
        superblock[0x78..0x88].copy_from_slice(&identity.label);
        superblock[0xEC..0xFC].copy_from_slice(&identity.uuid);
        // half_md4, and 2^4 groups are one flexible group.
        superblock[0xFC] = 1;
        superblock[0x174] = 4;
        self.blocks.write_physical(0, &block)?;
        // A copy begins its block, and says which group it stands in.
        block.copy_within(1024..2048, 0);
        block[1024..].fill(0);
        for group in shape.copies() {
            block[0x5A..0x5C].copy_from_slice(&(group as u16).to_le_bytes());
            self.blocks
                .write_physical(group * BLOCKS_PER_GROUP, &block)?;
        }
        Ok(())
    }
}

/// Number of the inode at an index of the list: the root is first in it and has 2.
fn number_of(index: usize) -> u32 {
    match index {
        0 => 2,
        _ => FIRST_INODE + index as u32 - 1,
    }
}

/// How the disk is laid out.
struct Shape {
    groups: u64,
    /// Inodes of a group.
    per_group: u64,
    /// The first block behind content and directories.
    used: u64,
    /// Where each group's table of inodes begins.
    tables: Vec<u64>,
    /// Blocks that were passed over, since a table must lie in one piece.
    skipped: Vec<Run>,
    journal: u64,
    /// The first block behind everything.
    end: u64,
}

impl Shape {
    fn new(groups: u64, inodes: u64, used: u64) -> Shape {
        let per_group = inodes
            .div_ceil(groups)
            .max(INODES_PER_GROUP)
            .next_multiple_of(16);
        let length = per_group / 16;
        let (mut at, mut tables, mut skipped) = (used + 2 * groups, Vec::new(), Vec::new());
        for _ in 0..groups {
            let left = contiguous(at);
            if left < length {
                skipped.push(Run {
                    start: at,
                    blocks: left,
                });
                at += left;
            }
            tables.push(at);
            at += length;
        }
        Shape {
            groups,
            per_group,
            used,
            tables,
            skipped,
            journal: at,
            end: at + JOURNAL_BLOCKS,
        }
    }

    /// Groups of this disk that begin with copies.
    fn copies(&self) -> impl Iterator<Item = u64> + use<> {
        let groups = self.groups;
        COPIES.into_iter().filter(move |group| *group < groups)
    }

    /// Group of an inode, and its bit there.
    fn place(&self, number: u32) -> (usize, usize) {
        let index = u64::from(number) - 1;
        (
            (index / self.per_group) as usize,
            (index % self.per_group) as usize,
        )
    }
}

/// Lets the last entry reach to the end of its block.
fn close(bytes: &mut Vec<u8>, last: usize) {
    let end = bytes.len().next_multiple_of(BLOCK as usize);
    bytes.resize(end, 0);
    bytes[last + 4..last + 6].copy_from_slice(&((end - last) as u16).to_le_bytes());
}

fn set_bits(bits: &mut [u8], from: u64, to: u64) {
    for bit in from..to {
        bits[(bit / 8) as usize] |= 1 << (bit % 8);
    }
}

fn clear_bits(bits: &mut [u8], from: u64, to: u64) {
    for bit in from..to {
        bits[(bit / 8) as usize] &= !(1 << (bit % 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Context, Silent};
    use crate::root_disk::Attributes;
    use crate::tool::{self, Tool};
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    fn disk_with(path: &Path, bytes: u64, read: impl FnMut(&mut [u8]) -> Result<usize>) {
        let (mut tree, mut blocks) = (Tree::new(), Blocks::create(path, 1 << 40).unwrap());
        tree.next_layer();
        let run = blocks.content(bytes, read).unwrap();
        let content = Content::File { run, bytes };
        tree.put(b"large", Attributes::default(), content).unwrap();
        let identity = Identity {
            uuid: [7; 16],
            label: [0; 16],
            created: 0,
        };
        let made = finish(&tree, blocks, identity, 1 << 30).unwrap();
        assert_eq!(made.bytes, path.metadata().unwrap().len());
        run_tool("e2fsck", &["-f", "-n"], path);
    }

    fn run_tool(name: &'static str, arguments: &[&str], path: &Path) {
        let program = tool::require(name, "e2fsprogs", "e2fsprogs").unwrap();
        let context = Context::new(std::sync::Arc::new(Silent));
        let tool = Tool::new(&program, "look at the disk").args(arguments.iter().copied());
        tool.arg(path).output(&context).unwrap();
    }

    #[test]
    fn a_file_of_many_extents_is_sound() {
        let directory = tempfile::tempdir().unwrap();
        disk_with(&directory.path().join("disk"), 700 << 20, |buffer| {
            buffer.fill(0);
            Ok(buffer.len())
        });
    }

    #[test]
    fn content_passes_over_the_places_of_copies() {
        let directory = tempfile::tempdir().unwrap();
        let (path, copy) = (directory.path().join("disk"), directory.path().join("copy"));
        // A mark in every MiB; the copies of group 1 lie at 128 MiB.
        let mut at = 0_u64;
        disk_with(&path, 200 << 20, |buffer| {
            buffer.fill(0);
            buffer[..8].copy_from_slice(&(at + 1).to_le_bytes());
            at += buffer.len() as u64;
            Ok(buffer.len())
        });
        run_tool(
            "debugfs",
            &["-R", &format!("dump /large {}", copy.display())],
            &path,
        );
        let copy = File::open(copy).unwrap();
        for at in (0..200_u64).map(|number| number << 20) {
            let mut mark = [0; 8];
            copy.read_exact_at(&mut mark, at).unwrap();
            assert_eq!(u64::from_le_bytes(mark), at + 1);
        }
    }
}
