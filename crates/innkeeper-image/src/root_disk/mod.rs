//! Root file systems that are put together in memory and written as ext4, without root and without an unpacked directory.
//!
//! ```text
//!   layers, oldest first ──► Tree (names, owners, modes, links, devices, attributes)   in memory
//!                       └──► Blocks (content of files, one after the other)            straight to its place on the disk
//!   at the end: Tree + Blocks ──► inodes, directories, bitmaps, journal, superblock    ext4.rs
//! ```
//! Nothing here touches a path of this computer but the one disk that is written: a name of an archive is a key of a map. mke2fs wants an
//! unpacked directory (or, since 1.47.1, a tar without whiteouts), and the crate for it knows no devices and no names that
//! are not UTF-8; so the writer is ours.

mod blocks;
mod ext4;
mod inode;
mod tree;
mod xattr;

pub(crate) use blocks::Blocks;
pub(crate) use ext4::{Identity, finish};
pub(crate) use tree::{Attributes, Content, Device, Tree};
pub(crate) use xattr::is_known as is_known_attribute;
