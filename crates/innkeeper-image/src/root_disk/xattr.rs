//! Extended attributes as ext4 keeps them: one block a file, entries sorted, hashed (kernel: Documentation/filesystems/ext4/attributes.rst).

use std::collections::BTreeMap;

use super::blocks::BLOCK;

/// Names that can be kept, with their numbers on the disk; longer ones first.
const PREFIXES: &[(&[u8], u8)] = &[
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"user.", 1),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// Size of the header at the block's beginning.
const HEADER: usize = 32;

/// Tells whether an attribute of this name means something on Linux; those of other systems are left out.
pub(crate) fn is_known(name: &[u8]) -> bool {
    split(name).is_some()
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // The two lists are whole names, the others need something behind the point.
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
    })
}

/// Makes the block; none when they do not fit or one is malformed.
pub(crate) fn block(attributes: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    for (name, value) in attributes {
        let (index, rest) = split(name)?;
        if rest.len() > 255 {
            return None;
        }
        let value = match index {
            2 | 3 => on_disk_acl(value)?,
            _ => value.clone(),
        };
        entries.push((index, rest, value));
    }
    entries.sort_by(|a, b| (a.0, a.1.len(), a.1).cmp(&(b.0, b.1.len(), b.1)));
    let mut block = vec![0; BLOCK as usize];
    block[..4].copy_from_slice(&0xEA02_0000_u32.to_le_bytes());
    // One user of this block, and one block.
    block[4..8].copy_from_slice(&1_u32.to_le_bytes());
    block[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let (mut at, mut value_at) = (HEADER, BLOCK as usize);
    let mut whole = 0_u32;
    for (index, name, value) in entries {
        let padded = value.len().next_multiple_of(4);
        let entry = 16 + name.len().next_multiple_of(4);
        // Four zero bytes end the list of entries.
        value_at = value_at
            .checked_sub(padded)
            .filter(|value_at| at + entry + 4 <= *value_at)?;
        let hash = hash(name, &value);
        block[at] = u8::try_from(name.len()).ok()?;
        block[at + 1] = index;
        block[at + 2..at + 4].copy_from_slice(&u16::try_from(value_at).ok()?.to_le_bytes());
        block[at + 8..at + 12].copy_from_slice(&u32::try_from(value.len()).ok()?.to_le_bytes());
        block[at + 12..at + 16].copy_from_slice(&hash.to_le_bytes());
        block[at + 16..at + 16 + name.len()].copy_from_slice(name);
        block[value_at..value_at + value.len()].copy_from_slice(&value);
        whole = whole.rotate_left(16) ^ hash;
        at += entry;
    }
    block[12..16].copy_from_slice(&whole.to_le_bytes());
    Some(block)
}

/// The kernel's ext4_xattr_hash_entry().
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let of_name = name
        .iter()
        .fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    value.chunks(4).fold(of_name, |hash, piece| {
        let mut word = [0; 4];
        word[..piece.len()].copy_from_slice(piece);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

/// An access list as system calls and archives have it (version 2, eight bytes an entry) becomes the disk's (version 1, an id only where one counts).
fn on_disk_acl(value: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != 2 || entries.len() % 8 != 0 {
        return None;
    }
    let mut disk = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        disk.extend_from_slice(&entry[..4]);
        // ACL_USER and ACL_GROUP.
        if matches!(u16::from_le_bytes([entry[0], entry[1]]), 2 | 8) {
            disk.extend_from_slice(&entry[4..]);
        }
    }
    Some(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_attributes_of_linux_are_known() {
        assert!(
            is_known(b"security.capability")
                && is_known(b"user.x")
                && is_known(b"system.posix_acl_access")
        );
        assert!(
            !is_known(b"com.apple.provenance")
                && !is_known(b"user.")
                && !is_known(b"system.posix_acl_accessx")
        );
    }

    #[test]
    fn too_much_does_not_fit() {
        let mut attributes = BTreeMap::from([(b"user.a".to_vec(), vec![7; 4000])]);
        assert!(block(&attributes).is_some());
        attributes.insert(b"user.b".to_vec(), vec![7; 100]);
        assert!(block(&attributes).is_none());
    }
}
