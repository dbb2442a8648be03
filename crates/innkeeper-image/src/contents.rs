//! How far the content of a disk reaches, told from its first bytes: whether its end may be cut off.
//!
//! Pure: it sees the first [`HEAD`] bytes of what a guest sees. All of it was written by a guest, so every number is checked before use.
//! It knows GPT (UEFI specification 2.10, section 5.3), MBR, ext2 to ext4, XFS, btrfs and swap; what it does not know it says.

/// How many bytes of a disk's beginning are looked at.
pub const HEAD: usize = 1 << 20;
const SECTOR: u64 = 512;

/// Where the content of a disk ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Something was recognised, which ends at this byte.
    Known {
        /// The first byte behind the content.
        end: u64,
        /// What it is, for a person.
        what: String,
    },
    /// The beginning is something else.
    Unknown,
}

/// Looks at the first bytes of a disk.
pub fn reach(head: &[u8]) -> Reach {
    let found = gpt(head)
        .or_else(|| ext(head))
        .or_else(|| xfs(head))
        .or_else(|| btrfs(head))
        .or_else(|| swap(head))
        // Last: a file system's own boot sector ends with the same signature.
        .or_else(|| mbr(head));
    match found {
        Some((end, what)) => Reach::Known { end, what },
        None => Reach::Unknown,
    }
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_le(head: &[u8], at: usize) -> Option<u64> {
    bytes(head, at).map(|bytes| u64::from(u32::from_le_bytes(bytes)))
}

fn u64_le(head: &[u8], at: usize) -> Option<u64> {
    bytes(head, at).map(u64::from_le_bytes)
}

fn gpt(head: &[u8]) -> Option<(u64, String)> {
    if head.get(512..520)? != b"EFI PART" {
        return None;
    }
    let table = u64_le(head, 512 + 72)?.checked_mul(SECTOR)?;
    let (count, size) = (u32_le(head, 512 + 80)?, u32_le(head, 512 + 84)?);
    if count > 1024 || !(128..=4096).contains(&size) {
        return None;
    }
    // The table itself must stay, and so must every partition.
    let mut end = table.checked_add(count.checked_mul(size)?)?;
    let mut partitions = 0;
    for index in 0..count {
        let at = usize::try_from(table.checked_add(index.checked_mul(size)?)?).ok()?;
        let kind: [u8; 16] = bytes(head, at)?;
        if kind != [0; 16] {
            partitions += 1;
            let behind = u64_le(head, at + 40)?.checked_add(1)?.checked_mul(SECTOR)?;
            end = end.max(behind);
        }
    }
    // The copy of the table at the end of the disk takes 33 sectors, and a partition tool makes it anew there.
    let end = end.checked_add(33 * SECTOR)?;
    Some((end, format!("a GPT with {partitions} partitions")))
}

fn mbr(head: &[u8]) -> Option<(u64, String)> {
    if bytes(head, 510)? != [0x55, 0xaa] {
        return None;
    }
    let (mut end, mut partitions) = (SECTOR, 0);
    for entry in (446..510).step_by(16) {
        if *head.get(entry + 4)? == 0 {
            continue;
        }
        partitions += 1;
        let behind = u32_le(head, entry + 8)? + u32_le(head, entry + 12)?;
        end = end.max(behind * SECTOR);
    }
    (partitions > 0).then(|| (end, format!("an MBR with {partitions} partitions")))
}

fn ext(head: &[u8]) -> Option<(u64, String)> {
    let block = 1024;
    if bytes(head, block + 56)? != [0x53, 0xef] {
        return None;
    }
    let shift = u32_le(head, block + 24)?;
    if shift > 6 {
        return None;
    }
    // The upper half of the count holds with the 64-bit feature alone.
    let wide = u32_le(head, block + 96)? & 0x80 != 0;
    let high = if wide { u32_le(head, block + 336)? } else { 0 };
    let blocks = high << 32 | u32_le(head, block + 4)?;
    let end = blocks.checked_mul(1024 << shift)?;
    Some((end, "an ext file system".to_owned()))
}

fn xfs(head: &[u8]) -> Option<(u64, String)> {
    if head.get(..4)? != b"XFSB" {
        return None;
    }
    let block = u64::from(u32::from_be_bytes(bytes(head, 4)?));
    let blocks = u64::from_be_bytes(bytes(head, 8)?);
    let end = blocks.checked_mul(block)?;
    Some((end, "an XFS file system".to_owned()))
}

fn btrfs(head: &[u8]) -> Option<(u64, String)> {
    let block = 64 << 10;
    if head.get(block + 64..block + 72)? != b"_BHRfS_M" {
        return None;
    }
    // The size of this device: the item of it begins at 0xc9, and the size is its second number.
    let end = u64_le(head, block + 0xc9 + 8)?;
    Some((end, "a btrfs file system".to_owned()))
}

fn swap(head: &[u8]) -> Option<(u64, String)> {
    if head.get(4086..4096)? != b"SWAPSPACE2" {
        return None;
    }
    let end = u32_le(head, 1028)?.checked_add(1)?.checked_mul(4096)?;
    Some((end, "swap space".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn made_by(program: &str, arguments: &[&str], size: u64) -> Option<Vec<u8>> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(size).unwrap();
        let Some(program) = crate::tool::find(program) else {
            println!("skipped: {program} is not installed");
            return None;
        };
        let output = Command::new(program)
            .args(arguments)
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut head = std::fs::read(&path).unwrap();
        head.truncate(HEAD);
        Some(head)
    }

    #[test]
    fn file_systems_of_their_own_makers_are_recognised() {
        let size = 512 << 20;
        for (program, arguments, what) in [
            ("mke2fs", &["-q", "-F", "-t", "ext4"][..], "ext"),
            ("mkfs.xfs", &["-q"][..], "XFS"),
            ("mkfs.btrfs", &["-q"][..], "btrfs"),
            ("mkswap", &[][..], "swap"),
        ] {
            if let Some(head) = made_by(program, arguments, size) {
                let Reach::Known { end, what: told } = reach(&head) else {
                    panic!("{program} is not recognised");
                };
                assert!(told.contains(what), "{told}");
                assert_eq!(end, size, "{program}");
            }
        }
    }

    #[test]
    fn partitions_reach_as_far_as_the_last() {
        let mut head = vec![0; HEAD];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        head[446 + 4] = 0x83;
        head[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
        head[446 + 12..446 + 16].copy_from_slice(&4096u32.to_le_bytes());
        let Reach::Known { end, .. } = reach(&head) else {
            panic!()
        };
        assert_eq!(end, (2048 + 4096) * 512);
        head[512..520].copy_from_slice(b"EFI PART");
        head[512 + 72..512 + 80].copy_from_slice(&2u64.to_le_bytes());
        head[512 + 80..512 + 84].copy_from_slice(&128u32.to_le_bytes());
        head[512 + 84..512 + 88].copy_from_slice(&128u32.to_le_bytes());
        head[1024] = 1;
        head[1024 + 40..1024 + 48].copy_from_slice(&9999u64.to_le_bytes());
        let Reach::Known { end, what } = reach(&head) else {
            panic!()
        };
        assert_eq!(
            (end, what.as_str()),
            (10_033 * 512, "a GPT with 1 partitions")
        );
    }

    #[test]
    fn what_is_not_known_is_said_and_nothing_panics() {
        assert_eq!(reach(&[]), Reach::Unknown);
        assert_eq!(reach(&vec![0; HEAD]), Reach::Unknown);
        let mut head = vec![0xff; HEAD];
        head[512..520].copy_from_slice(b"EFI PART");
        head[1024 + 56..1024 + 58].copy_from_slice(&[0x53, 0xef]);
        for length in [0, 511, 512, 600, 1023, 1100, 70_000, HEAD] {
            let _ = reach(&head[..length]);
        }
    }
}
