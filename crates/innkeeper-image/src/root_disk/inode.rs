//! Inodes of ext4, and the extents that say where their content lies.

use super::blocks::{BLOCK, Blocks, contiguous, physical};
use super::tree::Run;
use crate::{Error, Result};

pub(super) const INODE_SIZE: usize = 256;
const LONGEST_EXTENT: u64 = 32_768;
const EXTENTS_IN_BLOCK: usize = 340;
const EXTENTS_IN_INODE: usize = 4;
const EXTENTS_FLAG: u32 = 0x8_0000;

/// An inode on its way to the table.
pub(super) struct Inode(pub(super) [u8; INODE_SIZE]);

impl Inode {
    pub(super) fn new(kind: u16, permissions: u16, links: u32, size: u64) -> Inode {
        let mut inode = Inode([0; INODE_SIZE]);
        inode.set16(0x0, kind | permissions & 0o7777);
        inode.set32(0x4, size as u32);
        inode.set32(0x6C, (size >> 32) as u32);
        // A directory with more names than the field holds has 1 (feature dir_nlink).
        inode.set16(
            0x1A,
            u16::try_from(links)
                .ok()
                .filter(|links| *links <= 65_000)
                .unwrap_or(1),
        );
        inode.set16(0x80, 32);
        inode
    }

    pub(super) fn set16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn set32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    pub(super) fn set_owner(&mut self, uid: u32, gid: u32) {
        self.set16(0x2, uid as u16);
        self.set16(0x78, (uid >> 16) as u16);
        self.set16(0x18, gid as u16);
        self.set16(0x7A, (gid >> 16) as u16);
    }

    pub(super) fn set_times(&mut self, seconds: i64) {
        // 34 bits: the low word is signed, two bits of the extra word say how often 2^32 is to be added.
        let seconds = seconds.clamp(i64::from(i32::MIN), (1 << 34) - 1 + i64::from(i32::MIN));
        let low = seconds as u32;
        let epoch = ((seconds - i64::from(low as i32)) >> 32) as u32 & 3;
        for (at, extra) in [(0x8, 0x8C), (0xC, 0x84), (0x10, 0x88), (0x90, 0x94)] {
            self.set32(at, low);
            self.set32(extra, epoch);
        }
    }

    /// Counts blocks as the field wants them, in sectors of 512 bytes.
    pub(super) fn set_blocks(&mut self, blocks: u64) {
        let sectors = blocks * (BLOCK / 512);
        self.set32(0x1C, sectors as u32);
        self.set16(0x74, (sectors >> 32) as u16);
    }

    /// Enters where the content is; further blocks go to `blocks`. Gives how many blocks it takes.
    pub(super) fn set_extents(&mut self, run: Run, blocks: &mut Blocks) -> Result<u64> {
        self.set32(0x20, EXTENTS_FLAG);
        let mut extents = Vec::new();
        let mut at = 0;
        while at < run.blocks {
            let length = (run.blocks - at)
                .min(LONGEST_EXTENT)
                .min(contiguous(run.start + at));
            extents.push((at as u32, length as u16, physical(run.start + at)));
            at += length;
        }
        if extents.len() <= EXTENTS_IN_INODE {
            self.0[0x28..0x28 + 60].copy_from_slice(&extent_node(&extents, EXTENTS_IN_INODE, 60));
            return Ok(run.blocks);
        }
        let leaves: Vec<_> = extents.chunks(EXTENTS_IN_BLOCK).collect();
        if leaves.len() > EXTENTS_IN_INODE {
            return Err(Error::malformed(
                "a file of the layer",
                "is larger than 170 GiB",
            ));
        }
        let mut root = vec![0; 60];
        root[..12].copy_from_slice(&extent_header(leaves.len(), EXTENTS_IN_INODE, 1));
        for (index, leaf) in leaves.iter().enumerate() {
            let place = blocks.bytes(&extent_node(leaf, EXTENTS_IN_BLOCK, BLOCK as usize))?;
            let entry = 12 + 12 * index;
            root[entry..entry + 4].copy_from_slice(&leaf[0].0.to_le_bytes());
            root[entry + 4..entry + 8]
                .copy_from_slice(&(physical(place.start) as u32).to_le_bytes());
        }
        self.0[0x28..0x28 + 60].copy_from_slice(&root);
        Ok(run.blocks + leaves.len() as u64)
    }
}

fn extent_header(entries: usize, most: usize, depth: u16) -> [u8; 12] {
    let mut header = [0; 12];
    header[..2].copy_from_slice(&0xF30A_u16.to_le_bytes());
    header[2..4].copy_from_slice(&(entries as u16).to_le_bytes());
    header[4..6].copy_from_slice(&(most as u16).to_le_bytes());
    header[6..8].copy_from_slice(&depth.to_le_bytes());
    header
}

fn extent_node(extents: &[(u32, u16, u64)], most: usize, size: usize) -> Vec<u8> {
    let mut node = vec![0; size];
    node[..12].copy_from_slice(&extent_header(extents.len(), most, 0));
    for (index, (logical, length, physical)) in extents.iter().enumerate() {
        let at = 12 + 12 * index;
        node[at..at + 4].copy_from_slice(&logical.to_le_bytes());
        node[at + 4..at + 6].copy_from_slice(&length.to_le_bytes());
        node[at + 8..at + 12].copy_from_slice(&(*physical as u32).to_le_bytes());
    }
    node
}
