//! Writes an archive: the same entries give the same bytes, whoever makes it and when.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// A file in an archive.
pub(super) struct Entry {
    name: String,
    content: Vec<u8>,
    mode: u32,
}

impl Entry {
    /// Takes a file of this computer.
    pub(super) fn file(name: &str, path: &Path, mode: u32) -> Result<Self> {
        let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Entry::bytes(name, content, mode))
    }

    /// Takes bytes.
    pub(super) fn bytes(name: &str, content: Vec<u8>, mode: u32) -> Self {
        Entry {
            name: name.to_owned(),
            content,
            mode,
        }
    }
}

/// Writes an archive whose entries stand below one directory, whole or not at all.
pub(super) fn write(path: &Path, root: &str, entries: &[Entry]) -> Result<()> {
    let tar = tar_of(root, entries).context("packing")?;
    let compressed = compress_to_vec(tar.as_slice(), CompressionLevel::Fastest);
    let fresh = path.with_extension("new");
    fs::write(&fresh, compressed).with_context(|| format!("writing {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("renaming to {}", path.display()))
}

fn tar_of(root: &str, entries: &[Entry]) -> std::io::Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|one, other| one.name.cmp(&other.name));
    for entry in sorted {
        let mut header = tar::Header::new_gnu();
        header.set_size(entry.content.len() as u64);
        header.set_mode(entry.mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_entry_type(tar::EntryType::Regular);
        let name = format!("{root}/{}", entry.name);
        builder.append_data(&mut header, name, entry.content.as_slice())?;
    }
    builder.into_inner()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn an_archive_comes_back_and_is_the_same_twice() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("one.tar.zst");
        let entries = [
            Entry::bytes("b", b"second".to_vec(), 0o644),
            Entry::bytes("bin/a", vec![7; 300_000], 0o755),
        ];
        write(&path, "root", &entries).unwrap();
        let first = fs::read(&path).unwrap();
        write(&path, "root", &entries).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        let decoder = ruzstd::decoding::StreamingDecoder::new(first.as_slice()).unwrap();
        let mut archive = tar::Archive::new(decoder);
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let path = entry.path().unwrap().display().to_string();
            found.push((path, entry.header().mode().unwrap(), content.len()));
        }
        assert_eq!(
            found,
            [
                ("root/b".to_owned(), 0o644, 6),
                ("root/bin/a".to_owned(), 0o755, 300_000)
            ]
        );
    }
}
