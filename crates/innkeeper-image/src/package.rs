//! Archives that machines travel in: OVA (tar) and Vagrant boxes (tar, mostly with gzip around it).
//!
//! Nothing is unpacked by the names inside. The archive is listed, small files are read into memory, and a disk is either read in place
//! (tar alone) or written out under a name that the caller chooses. Entries that are no plain files in one flat directory are hostile:
//! links, devices, `..`, absolute paths, the same name twice, sizes beyond the archive.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use crate::digest::to_hex;
use crate::foreign::open_plain;
use crate::progress::{self, Context, Progress, Silent, Step};
use crate::vmdk::is_plain_name;
use crate::{Error, Result};

/// Most entries of an archive.
const ENTRIES_LIMIT: usize = 4096;
/// Largest file that is read into memory, in bytes.
pub const TEXT_LIMIT: u64 = 4 << 20;
/// Most bytes of such files together.
const TEXTS_LIMIT: u64 = 32 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const PIECE: usize = 1 << 20;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its size in bytes.
    pub size: u64,
    /// Where its bytes begin in the archive's file; none in a compressed one.
    pub offset: Option<u64>,
    /// Its bytes, if it is one that was asked for.
    pub text: Option<Vec<u8>>,
}

/// An archive's list of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The archive.
    pub path: PathBuf,
    /// Its files by name.
    pub members: BTreeMap<String, Member>,
    compressed: bool,
}

impl Package {
    /// Lists an archive and reads those of its files whose names `wanted` picks, each up to [`TEXT_LIMIT`].
    pub async fn open(path: &Path, wanted: fn(&str) -> bool) -> Result<Package> {
        let path = path.to_owned();
        progress::run(Arc::new(Silent), move |context| {
            let mut file = open_plain(&path)?;
            let mut magic = [0; 2];
            let count = file
                .read_at(&mut magic, 0)
                .map_err(Error::io("read", &path))?;
            let length = file.metadata().map_err(Error::io("look at", &path))?.len();
            let compressed = count == 2 && magic == GZIP;
            let members = if compressed {
                let stream = Watched {
                    inner: MultiGzDecoder::new(std::io::BufReader::with_capacity(PIECE, file)),
                    context,
                };
                list(&path, stream, None, wanted)?
            } else {
                file.seek(SeekFrom::Start(0))
                    .map_err(Error::io("read", &path))?;
                list_seekable(&path, file, length, wanted)?
            };
            Ok(Package {
                path,
                members,
                compressed,
            })
        })
        .await
    }

    /// Returns the text of a file that was picked when it was opened.
    pub fn text(&self, name: &str) -> Result<&str> {
        let bytes = self
            .members
            .get(name)
            .and_then(|member| member.text.as_deref())
            .ok_or_else(|| self.refuse(format!("there is no {name} in it")))?;
        std::str::from_utf8(bytes)
            .map_err(|_| self.refuse(format!("its {name} is not text (UTF-8)")))
    }

    /// Returns the one file whose name ends so.
    pub fn only(&self, ending: &str) -> Result<&str> {
        let mut names = self.members.keys().filter(|name| name.ends_with(ending));
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name),
            (None, _) => Err(self.refuse(format!("there is no {ending} file in it"))),
            (Some(_), Some(_)) => {
                Err(self.refuse(format!("there are several {ending} files in it")))
            }
        }
    }

    fn refuse(&self, problem: String) -> Error {
        Error::malformed(self.path.display().to_string(), problem)
    }

    /// Returns where a file's bytes are in the archive's file; none if the archive is compressed, and it must be unpacked.
    pub fn window(&self, name: &str) -> Option<(u64, u64)> {
        let member = self.members.get(name)?;
        Some((member.offset?, member.size))
    }

    /// Writes files out: each to the path it is given, which must not exist. Their bytes are bounded by what the list said.
    pub async fn unpack(
        &self,
        to: BTreeMap<String, PathBuf>,
        progress: Arc<dyn Progress>,
    ) -> Result<()> {
        let package = self.clone();
        progress::run(progress, move |context| {
            let file = open_plain(&package.path)?;
            let reader: Box<dyn Read> = if package.compressed {
                Box::new(MultiGzDecoder::new(std::io::BufReader::with_capacity(
                    PIECE, file,
                )))
            } else {
                Box::new(file)
            };
            let mut archive = tar::Archive::new(Watched {
                inner: reader,
                context,
            });
            let mut left = to;
            let failed = || Error::io("read", &package.path);
            for entry in archive.entries().map_err(failed())? {
                if left.is_empty() {
                    break;
                }
                let mut entry = entry.map_err(failed())?;
                let Some(name) = plain_entry(&entry, &package.path)? else {
                    continue;
                };
                let Some(target) = left.remove(&name) else {
                    continue;
                };
                let size = package.members.get(&name).map_or(0, |member| member.size);
                context.step(Step::Unpack, name.clone());
                let out = crate::disk::create_file(&target)?;
                write_sparse(&mut entry, &out, size, &target, &package.path)?;
            }
            match left.into_keys().next() {
                Some(name) => Err(package.refuse(format!("there is no {name} in it"))),
                None => Ok(()),
            }
        })
        .await
    }

    /// Computes the SHA-256 of a file in place; none if the archive is compressed.
    pub async fn sha256(&self, name: &str, progress: Arc<dyn Progress>) -> Result<Option<String>> {
        let Some((offset, size)) = self.window(name) else {
            return Ok(None);
        };
        let (path, name) = (self.path.clone(), name.to_owned());
        progress::run(progress, move |context| {
            let file = open_plain(&path)?;
            let mut hasher = Sha256::new();
            let mut buffer = vec![0; PIECE];
            let mut done = 0;
            while done < size {
                context.check()?;
                context.bytes(Step::Verify, done, Some(size), name.clone());
                let wanted = PIECE.min(usize::try_from(size - done).unwrap_or(PIECE));
                file.read_exact_at(&mut buffer[..wanted], offset + done)
                    .map_err(Error::io("read", &path))?;
                hasher.update(&buffer[..wanted]);
                done += wanted as u64;
            }
            Ok(Some(to_hex(&hasher.finalize())))
        })
        .await
    }
}

/// A reader that ends when the caller has gone.
struct Watched<'a, R> {
    inner: R,
    context: &'a Context,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.context.check().map_err(std::io::Error::other)?;
        self.inner.read(buffer)
    }
}

fn list_seekable(
    path: &Path,
    file: File,
    length: u64,
    wanted: fn(&str) -> bool,
) -> Result<BTreeMap<String, Member>> {
    let mut archive = tar::Archive::new(file);
    let failed = || Error::io("read", path);
    let entries = archive.entries_with_seek().map_err(failed())?;
    gather(path, entries, Some(length), wanted)
}

fn list(
    path: &Path,
    stream: impl Read,
    length: Option<u64>,
    wanted: fn(&str) -> bool,
) -> Result<BTreeMap<String, Member>> {
    let mut archive = tar::Archive::new(stream);
    let entries = archive.entries().map_err(Error::io("read", path))?;
    gather(path, entries, length, wanted)
}

/// Lists a tar archive that is in memory, for fuzzing.
pub fn list_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Member>> {
    list(Path::new("archive"), bytes, None, |_| true)
}

fn gather<R: Read>(
    path: &Path,
    entries: tar::Entries<'_, R>,
    length: Option<u64>,
    wanted: fn(&str) -> bool,
) -> Result<BTreeMap<String, Member>> {
    let refuse = |problem: String| Error::malformed(path.display().to_string(), problem);
    let mut members = BTreeMap::new();
    let (mut seen, mut read) = (0, 0);
    for entry in entries {
        let mut entry = entry.map_err(Error::io("read", path))?;
        seen += 1;
        if seen > ENTRIES_LIMIT {
            return Err(refuse(format!("has more than {ENTRIES_LIMIT} entries")));
        }
        let Some(name) = plain_entry(&entry, path)? else {
            continue;
        };
        let (size, at) = (entry.size(), entry.raw_file_position());
        if length.is_some_and(|length| at.checked_add(size).is_none_or(|end| end > length)) {
            return Err(refuse(format!(
                "its {name} ends behind the end of the archive"
            )));
        }
        let mut text = None;
        if wanted(&name) {
            read += size;
            if size > TEXT_LIMIT || read > TEXTS_LIMIT {
                return Err(refuse(format!(
                    "its {name} is larger than such a file may be"
                )));
            }
            let mut bytes = Vec::new();
            entry
                .by_ref()
                .take(TEXT_LIMIT)
                .read_to_end(&mut bytes)
                .map_err(Error::io("read", path))?;
            text = Some(bytes);
        }
        let member = Member {
            size,
            offset: length.map(|_| at),
            text,
        };
        if members.insert(name.clone(), member).is_some() {
            return Err(refuse(format!("has {name} twice")));
        }
    }
    Ok(members)
}

/// Returns the name of an entry that is a plain file in the archive's own directory; none for that directory itself.
fn plain_entry<R: Read>(entry: &tar::Entry<'_, R>, path: &Path) -> Result<Option<String>> {
    let refuse = |problem: String| Error::malformed(path.display().to_string(), problem);
    let bytes = entry.path_bytes();
    let name = std::str::from_utf8(&bytes)
        .map_err(|_| refuse("has a name in it that is not UTF-8".to_owned()))?;
    let kind = entry.header().entry_type();
    let plain = name.strip_prefix("./").unwrap_or(name);
    if kind.is_dir() && matches!(plain, "" | "." | "./") {
        return Ok(None);
    }
    if kind.is_pax_global_extensions() {
        return Ok(None);
    }
    if !matches!(kind, tar::EntryType::Regular | tar::EntryType::Continuous) {
        return Err(refuse(format!(
            "has {name:?} in it, which is no plain file ({kind:?})"
        )));
    }
    if !is_plain_name(plain) {
        return Err(refuse(format!(
            "has {name:?} in it, which is not in the archive's own directory"
        )));
    }
    Ok(Some(plain.to_owned()))
}

/// Writes a stream as a file, zeros as holes; stops where it is longer than `size` or the file system is full.
pub(crate) fn write_sparse(
    from: &mut dyn Read,
    to: &File,
    size: u64,
    target: &Path,
    source: &Path,
) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0u64;
    loop {
        let mut count = 0;
        while count < buffer.len() {
            match from.read(&mut buffer[count..]) {
                Ok(0) => break,
                Ok(more) => count += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", source)(error)),
            }
        }
        if count == 0 {
            break;
        }
        if at + count as u64 > size {
            return Err(Error::malformed(
                source.display().to_string(),
                "has a file that is longer than its header says",
            ));
        }
        let piece = &buffer[..count];
        if piece.iter().any(|byte| *byte != 0) {
            let mut out = to;
            out.seek(SeekFrom::Start(at))
                .and_then(|_| out.write_all(piece))
                .map_err(Error::io("write", target))?;
        }
        at += count as u64;
    }
    if at != size {
        return Err(Error::malformed(
            source.display().to_string(),
            "has a file that is shorter than its header says",
        ));
    }
    to.set_len(size).map_err(Error::io("write", target))
}

/// Writes an OVA as the new file `to`: the descriptor, a manifest with the SHA-256 of every file, and the files.
///
/// The order is the one that the standard wants (DSP0243, section 5.3), so that a reader can begin before all of it has come.
pub async fn write_ova(
    to: &Path,
    name: &str,
    descriptor: Vec<u8>,
    files: Vec<(String, PathBuf)>,
    progress: Arc<dyn Progress>,
) -> Result<()> {
    let (to, name) = (crate::disk::plain(to)?, name.to_owned());
    progress::run(progress, move |context| {
        let directory = to.parent().ok_or_else(|| Error::missing(&to, "write"))?;
        let temporary = tempfile::Builder::new()
            .prefix(".tmp-")
            .tempfile_in(directory)
            .map_err(Error::io("create a file in", directory))?;
        let mut manifest = format!(
            "SHA256({name}.ovf)= {}\n",
            crate::digest::sha256_hex(&descriptor)
        );
        for (file, path) in &files {
            context.step(Step::Verify, file.clone());
            let (hex, _) = crate::digest::sha256_file(path, |_| context.check())?;
            manifest.push_str(&format!("SHA256({file})= {hex}\n"));
        }
        let mut builder = tar::Builder::new(temporary.as_file());
        let failed = || Error::io("write", &to);
        let header = |size: u64| {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_size(size);
            header
        };
        for (file, bytes) in [
            (format!("{name}.ovf"), descriptor),
            (format!("{name}.mf"), manifest.into_bytes()),
        ] {
            builder
                .append_data(&mut header(bytes.len() as u64), file, bytes.as_slice())
                .map_err(failed())?;
        }
        for (file, path) in &files {
            context.step(Step::Write, file.clone());
            let source = open_plain(path)?;
            let size = source.metadata().map_err(Error::io("look at", path))?.len();
            let watched = Watched {
                inner: source,
                context,
            };
            builder
                .append_data(&mut header(size), file, watched)
                .map_err(failed())?;
        }
        builder.finish().map_err(failed())?;
        drop(builder);
        temporary
            .as_file()
            .sync_all()
            .map_err(Error::io("flush", &to))?;
        temporary
            .persist_noclobber(&to)
            .map_err(|failure| failure.error)
            .map_err(Error::io("create", &to))?;
        crate::atomic::sync_directory(directory)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(builder: &mut tar::Builder<Vec<u8>>, name: &str, kind: tar::EntryType, data: &[u8]) {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        // Past the builder's own checks, as an evil archive would be.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if kind == tar::EntryType::Symlink || kind == tar::EntryType::Link {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }

    async fn opened(entries: &[(&str, tar::EntryType, &[u8])]) -> Result<Package> {
        let directory = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, data) in entries {
            entry(&mut builder, name, *kind, data);
        }
        let path = directory.path().join("a.ova");
        std::fs::write(&path, builder.into_inner().unwrap()).unwrap();
        Package::open(&path, |name| name.ends_with(".ovf")).await
    }

    #[tokio::test]
    async fn hostile_entries_are_refused() {
        use tar::EntryType as Kind;
        for (name, kind, why) in [
            ("../a.vmdk", Kind::Regular, "own directory"),
            ("/etc/a.vmdk", Kind::Regular, "own directory"),
            ("a/../../b", Kind::Regular, "own directory"),
            ("..", Kind::Regular, "own directory"),
            ("a.vmdk", Kind::Symlink, "no plain file"),
            ("a.vmdk", Kind::Link, "no plain file"),
            ("a.vmdk", Kind::Char, "no plain file"),
            ("a.vmdk", Kind::Fifo, "no plain file"),
            ("a.vmdk", Kind::GNUSparse, "no plain file"),
            ("a.ovf", Kind::Regular, "twice"),
        ] {
            let error = opened(&[("a.ovf", Kind::Regular, b"x"), (name, kind, b"")])
                .await
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(why) || (kind == Kind::GNUSparse && error.contains("read")),
                "{name} {kind:?}: {error}"
            );
        }
    }

    #[tokio::test]
    async fn a_giant_size_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_path("a.vmdk").unwrap();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(1 << 60);
        header.set_cksum();
        let path = directory.path().join("a.ova");
        std::fs::write(&path, header.as_bytes()).unwrap();
        let error = Package::open(&path, |_| false)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("behind the end"), "{error}");
    }

    #[tokio::test]
    async fn compressed_and_plain_archives_give_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let mut disk = vec![0u8; 3 << 20];
        disk[2 << 20..(2 << 20) + 5].copy_from_slice(b"hello");
        let mut builder = tar::Builder::new(Vec::new());
        entry(&mut builder, "./", tar::EntryType::Directory, b"");
        entry(
            &mut builder,
            "./metadata.json",
            tar::EntryType::Regular,
            b"{}",
        );
        entry(&mut builder, "./box.img", tar::EntryType::Regular, &disk);
        let plain = builder.into_inner().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&plain).unwrap();
        for (name, bytes) in [("plain", plain), ("gz", encoder.finish().unwrap())] {
            let path = directory.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let package = Package::open(&path, |name| name.ends_with(".json"))
                .await
                .unwrap();
            assert_eq!(package.text("metadata.json").unwrap(), "{}");
            assert_eq!(package.only(".img").unwrap(), "box.img");
            assert_eq!(package.window("box.img").is_some(), name == "plain");
            let to = directory.path().join(format!("{name}.out"));
            package
                .unpack(
                    [("box.img".to_owned(), to.clone())].into(),
                    Arc::new(Silent),
                )
                .await
                .unwrap();
            assert_eq!(std::fs::read(&to).unwrap(), disk);
        }
    }
}
