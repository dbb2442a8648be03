//! Reads Debian packages and control data ("deb822").
//!
//! A package's files come from `dpkg-deb --fsys-tarfile`, which streams a tar; nothing is unpacked to a directory, so
//! that no path in a package can lead anywhere. Packages were verified by apt before they get here.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Component, Path};

use crate::progress::Context;
use crate::tool::{self, Tool};
use crate::{Error, Result};

/// Largest file that is taken out of a package.
const FILE_LIMIT: u64 = 256 << 20;

/// One paragraph of control data: field names in lower case to values, continuation lines joined by newlines.
pub type Stanza = BTreeMap<String, String>;

/// Parses control data as in `man 5 deb822`; lines that are no field are skipped, never a panic.
pub fn parse_deb822(text: &str) -> Vec<Stanza> {
    let mut stanzas = Vec::new();
    let mut current = Stanza::new();
    let mut last_field: Option<String> = None;
    for line in text.lines() {
        if line.trim().is_empty() {
            if !current.is_empty() {
                stanzas.push(std::mem::take(&mut current));
            }
            last_field = None;
        } else if line.starts_with('#') {
            continue;
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = last_field.as_ref().and_then(|field| current.get_mut(field)) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            let name = name.trim().to_ascii_lowercase();
            current.insert(name.clone(), value.trim().to_owned());
            last_field = Some(name);
        }
    }
    if !current.is_empty() {
        stanzas.push(current);
    }
    stanzas
}

/// Names and exact versions (`(= V)`) of a dependency field; of alternatives, the first.
pub fn dependencies(field: &str) -> Vec<(String, Option<String>)> {
    field
        .split(',')
        .filter_map(|part| {
            let first = part.split('|').next()?.trim();
            let (name, rest) = first.split_once(['(', ' ']).unwrap_or((first, ""));
            let name = name.trim().split(':').next()?.to_owned();
            let version = rest
                .trim_start_matches('(')
                .trim()
                .strip_prefix("= ")
                .map(|v| v.trim_end_matches(')').trim().to_owned());
            (!name.is_empty()).then_some((name, version))
        })
        .collect()
}

/// Streams a package's regular files to `take` as (path without leading `./`, content), for those that `wanted` names.
pub(crate) fn read_files(
    package: &Path,
    context: &Context,
    wanted: impl Fn(&str) -> bool + Send,
    take: impl FnMut(&str, Vec<u8>) -> Result<()> + Send,
) -> Result<()> {
    let dpkg_deb = tool::require("dpkg-deb", "dpkg", "dpkg")?;
    let name = package.display().to_string();
    Tool::new(&dpkg_deb, format!("read {name}"))
        .arg("--fsys-tarfile")
        .arg(package)
        .stream(
            context,
            |_| {},
            move |mut stdout| {
                read_archive(&mut stdout, &name, wanted, take)?;
                // dpkg-deb would report a broken pipe if the padding at the end stayed unread.
                std::io::copy(stdout, &mut std::io::sink())
                    .map_err(|source| Error::malformed(name, source.to_string()))?;
                Ok(())
            },
        )
}

/// Gives the regular files of a tar archive to `take`, for those that `wanted` names; `name` is the archive's, for messages.
///
/// Fails with [`Error::Malformed`] when the archive is damaged, has a path that is not plain, or a wanted file that is too large.
pub fn read_archive(
    archive: &mut impl Read,
    name: &str,
    wanted: impl Fn(&str) -> bool,
    mut take: impl FnMut(&str, Vec<u8>) -> Result<()>,
) -> Result<()> {
    let mut seen = HashSet::new();
    let mut archive = tar::Archive::new(archive);
    let damaged = |source: std::io::Error| Error::malformed(name, source.to_string());
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(damaged)?.into_owned();
        let Some(path) = plain_path(&path) else {
            return Err(Error::malformed(
                name,
                format!("contains the path {:?}", path.display()),
            ));
        };
        if !wanted(&path) || !seen.insert(path.clone()) {
            continue;
        }
        if entry.size() > FILE_LIMIT {
            return Err(Error::malformed(
                name,
                format!("{path} has {} bytes", entry.size()),
            ));
        }
        // Not with the capacity that the header tells: the bytes need not follow.
        let mut bytes = Vec::new();
        entry
            .by_ref()
            .take(FILE_LIMIT)
            .read_to_end(&mut bytes)
            .map_err(damaged)?;
        take(&path, bytes)?;
    }
    Ok(())
}

/// A relative path of plain names, or none.
pub(crate) fn plain_path(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::CurDir => {}
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stanzas_fields_and_continuations() {
        let text = "Package: linux\nDepends: a (= 1.2), b:any | c, d (>= 3)\n\n# comment\nTypes: deb\nSigned-By:\n one\n two\n";
        let stanzas = parse_deb822(text);
        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[1]["signed-by"], "\none\ntwo");
        let found = dependencies(&stanzas[0]["depends"]);
        assert_eq!(
            found,
            [
                ("a".into(), Some("1.2".into())),
                ("b".into(), None),
                ("d".into(), None)
            ]
        );
    }

    #[test]
    fn only_plain_paths_are_taken() {
        assert_eq!(plain_path(Path::new("./a/b")).as_deref(), Some("a/b"));
        assert_eq!(plain_path(Path::new("../a")), None);
        assert_eq!(plain_path(Path::new("/etc/passwd")), None);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(?s).{0,300}") {
            for stanza in parse_deb822(&text) {
                for value in stanza.values() {
                    dependencies(value);
                }
            }
        }
    }
}
