//! VMDK, as far as it must be read before QEMU may: whether a disk names other files, and which.
//!
//! A VMDK is one file with a sparse header (`KDMV`) and a descriptor inside, or a text descriptor that names extent files. Either may
//! name a parent, and a descriptor's names may lead anywhere. The layout is in VMware's "Virtual Disk Format 5.0". Pure.

use crate::{Error, Result};

/// First bytes of a file with a sparse header.
pub(crate) const MAGIC: [u8; 4] = *b"KDMV";
/// Longest text descriptor that is read, in bytes.
pub const DESCRIPTOR_LIMIT: usize = 1 << 20;
const SECTOR: u64 = 512;
const EXTENTS_LIMIT: usize = 1024;

/// What a disk's first bytes say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vmdk {
    /// The size a guest sees, in bytes.
    pub virtual_bytes: u64,
    /// Names of the files beside it that its data are in; empty for a file that holds all of itself.
    pub extents: Vec<String>,
}

fn refuse(problem: impl Into<String>) -> Error {
    Error::malformed("VMDK image", problem)
}

/// Reads the beginning of a disk: a sparse header with the descriptor behind it, or a text descriptor.
///
/// Fails with [`Error::Malformed`] when it is neither, names a parent, or names a file that is not one beside it.
pub fn read(head: &[u8]) -> Result<Vmdk> {
    if head.starts_with(&MAGIC) {
        return sparse(head);
    }
    let text = head.strip_suffix(b"\0").unwrap_or(head);
    let end = text
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(text.len());
    let text = std::str::from_utf8(&text[..end])
        .map_err(|_| refuse("is neither a sparse disk nor a text descriptor"))?;
    if !text.trim_start().starts_with("# Disk DescriptorFile") {
        return Err(refuse("is neither a sparse disk nor a text descriptor"));
    }
    let descriptor = descriptor(text)?;
    let external = [
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "vmfs",
        "vmfsSparse",
    ];
    if !external.contains(&descriptor.kind.as_str()) {
        return Err(refuse(format!(
            "is of the kind {:?}, which can't be read",
            descriptor.kind
        )));
    }
    let virtual_bytes = checked_size(descriptor.sectors)?;
    Ok(Vmdk {
        virtual_bytes,
        extents: descriptor.files,
    })
}

/// Checks the header of an extent that a descriptor names as sparse.
pub fn check_sparse_extent(head: &[u8]) -> Result<()> {
    if head.starts_with(&MAGIC) {
        return capacity(head).map(drop);
    }
    if head.starts_with(b"COWD") {
        return Ok(());
    }
    Err(refuse("has a piece that is not sparse, though it says so"))
}

fn number<const N: usize>(head: &[u8], at: usize) -> Result<u64> {
    let bytes = head
        .get(at..at + N)
        .ok_or_else(|| refuse("is cut off in its header"))?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// QEMU takes a header without capacity for a reason to open the descriptor inside it as one more disk.
fn capacity(head: &[u8]) -> Result<u64> {
    if !(1..=3).contains(&number::<4>(head, 4)?) {
        return Err(refuse("has a version that is not known"));
    }
    checked_size(number::<8>(head, 12)?)
}

fn checked_size(sectors: u64) -> Result<u64> {
    match sectors.checked_mul(SECTOR) {
        Some(bytes) if (1..=crate::qcow2::SIZE_LIMIT).contains(&bytes) => Ok(bytes),
        _ => Err(refuse("has a size of zero or over 64 TiB")),
    }
}

fn sparse(head: &[u8]) -> Result<Vmdk> {
    let virtual_bytes = capacity(head)?;
    let (at, length) = (number::<8>(head, 28)?, number::<8>(head, 36)?);
    if at == 0 || length == 0 {
        return Err(refuse(
            "is one piece of a disk; import the text descriptor that names its pieces",
        ));
    }
    let range = at
        .checked_mul(SECTOR)
        .zip(length.checked_mul(SECTOR))
        .and_then(|(at, length)| Some((at, at.checked_add(length)?)))
        .filter(|(_, end)| *end <= head.len() as u64)
        .ok_or_else(|| refuse("has its descriptor out of bounds"))?;
    let bytes = &head[range.0 as usize..range.1 as usize];
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]);
    let descriptor = descriptor(&text)?;
    if !["monolithicSparse", "streamOptimized"].contains(&descriptor.kind.as_str()) {
        return Err(refuse(format!(
            "holds all its data by its header, and is {:?} by its descriptor",
            descriptor.kind
        )));
    }
    // The one extent that it names is itself, by a name that it may have had elsewhere.
    Ok(Vmdk {
        virtual_bytes,
        extents: Vec::new(),
    })
}

struct Descriptor {
    kind: String,
    sectors: u64,
    files: Vec<String>,
}

fn descriptor(text: &str) -> Result<Descriptor> {
    let mut found = Descriptor {
        kind: String::new(),
        sectors: 0,
        files: Vec::new(),
    };
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let access = line.split_whitespace().next().unwrap_or_default();
        if ["RW", "RDONLY", "NOACCESS"].contains(&access) {
            extent(line, &mut found)?;
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let value = value.trim().trim_matches('"');
        match key.trim().to_ascii_lowercase().as_str() {
            "createtype" => value.clone_into(&mut found.kind),
            "parentcid" if !value.eq_ignore_ascii_case("ffffffff") => {
                return Err(refuse(
                    "is a snapshot over another disk; merge it into that one first, where it came from",
                ));
            }
            "parentfilenamehint" => return Err(refuse("names a parent disk")),
            _ => {}
        }
    }
    Ok(found)
}

fn extent(line: &str, found: &mut Descriptor) -> Result<()> {
    let mut words = line.splitn(4, char::is_whitespace);
    let (_, sectors, kind) = (words.next(), words.next(), words.next());
    let sectors: u64 = sectors
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| refuse("has an extent without a size"))?;
    found.sectors = found
        .sectors
        .checked_add(sectors)
        .ok_or_else(|| refuse("has a size of zero or over 64 TiB"))?;
    match kind {
        Some("ZERO") => return Ok(()),
        Some("FLAT" | "SPARSE" | "VMFS" | "VMFSSPARSE") => {}
        kind => {
            return Err(refuse(format!(
                "has an extent of the kind {:?}, which can't be read",
                kind.unwrap_or_default()
            )));
        }
    }
    let name = words
        .next()
        .and_then(|rest| rest.trim().strip_prefix('"'))
        .and_then(|rest| rest.split('"').next())
        .ok_or_else(|| refuse("has an extent without a file"))?;
    if !is_plain_name(name) {
        return Err(refuse(format!(
            "names a file that is not beside it: {name:?}"
        )));
    }
    if found.files.len() == EXTENTS_LIMIT {
        return Err(refuse("names more than 1024 files"));
    }
    found.files.push(name.to_owned());
    Ok(())
}

/// Says whether a name is one of a file in the same directory, which no program takes for an address or an option.
pub fn is_plain_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && !name.starts_with('-')
        && name.len() <= 255
        && !name
            .chars()
            .any(|character| matches!(character, '/' | '\\' | ':') || character.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAT: &str = "# Disk DescriptorFile\nversion=1\nCID=1234\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n# Extent description\nRW 2048 FLAT \"a-flat.vmdk\" 0\n";

    #[test]
    fn a_descriptor_names_files_beside_it_only() {
        let disk = read(FLAT.as_bytes()).unwrap();
        assert_eq!(disk.virtual_bytes, 1 << 20);
        assert_eq!(disk.extents, ["a-flat.vmdk"]);
        for evil in [
            "/etc/passwd",
            "../a",
            "a/b",
            "..",
            "nbd:localhost:10809",
            "json:{}",
            "-x",
            "",
            "C:\\x",
        ] {
            let text = FLAT.replace("a-flat.vmdk", evil);
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("not beside it"), "{evil}: {error}");
        }
    }

    #[test]
    fn parents_raw_devices_and_sizes_out_of_bounds_are_refused() {
        for (from, to, why) in [
            ("parentCID=ffffffff", "parentCID=1", "snapshot"),
            ("CID=1234", "parentFileNameHint=\"/x\"", "parent disk"),
            ("FLAT", "VMFSRDM", "can't be read"),
            ("monolithicFlat", "fullDevice", "can't be read"),
            ("2048", "99999999999999999", "64 TiB"),
            ("2048", "18446744073709551616", "without a size"),
            ("2048", "0", "64 TiB"),
            ("# Disk", "# disc", "neither"),
        ] {
            let text = FLAT.replacen(from, to, 1);
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(why), "{to}: {error}");
        }
    }
}
