//! A private apt: packages of any architecture from the archives this host uses, without touching the system.
//!
//! The sources come from the system's apt configuration (one-line and deb822), so that no archive's address stands in this
//! code, and a mirror that the administrator chose is used. State, cache and configuration are our own directories, which
//! lets an unprivileged user ask for a foreign architecture. apt verifies the archive's signature; a package's SHA-256 from the
//! signed index is verified again when it comes out of our cache. Offline, the last index and cached packages do.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::deb::{Stanza, parse_deb822};
use crate::progress::{Context, Step};
use crate::reference::Arch;
use crate::tool::{self, Tool};
use crate::{Error, Result, atomic, digest};

/// One archive as the system's configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Addresses of the archive.
    pub uris: Vec<String>,
    /// Suites such as `bookworm`, `bookworm-security`.
    pub suites: Vec<String>,
    /// Components such as `main`.
    pub components: Vec<String>,
    /// `Signed-By`: a keyring's path, or keys in the text.
    pub signed_by: Option<String>,
    /// `Trusted: yes`, which turns verification off for a local archive; the administrator said so.
    pub trusted: bool,
}

/// Reads `/etc/apt`-like configuration below `etc`.
pub(crate) fn system_sources(etc: &Path) -> Result<Vec<Source>> {
    let mut files = Vec::new();
    let main = etc.join("sources.list");
    if main.is_file() {
        files.push(main);
    }
    let parts = etc.join("sources.list.d");
    if parts.is_dir() {
        let mut found = fs::read_dir(&parts)
            .map_err(Error::io("list", &parts))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<Vec<_>>>()
            .map_err(Error::io("list", &parts))?;
        found.sort();
        files.extend(found);
    }
    let mut sources = Vec::new();
    for file in files {
        let extension = file
            .extension()
            .and_then(|extension| extension.to_str())
            .unwrap_or_default();
        if !matches!(extension, "list" | "sources") {
            continue;
        }
        // A file that only root may read (it may hold a password) is not for us.
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        sources.extend(if extension == "list" {
            parse_one_line(&text)
        } else {
            parse_sources(&text)
        });
    }
    Ok(sources)
}

/// Returns the proxies and clock settings of the system, which hold for us too, as lines of apt's configuration. `apt-config dump` is
/// apt's own machine-readable form.
pub(crate) fn system_settings(context: &Context) -> Result<Vec<String>> {
    let apt_config = tool::require("apt-config", "apt", "apt")?;
    let dump = Tool::new(&apt_config, "read the system's apt configuration")
        .arg("dump")
        .output(context)?;
    let wanted = |line: &&str| {
        [
            "Acquire::http::Proxy",
            "Acquire::https::Proxy",
            "Acquire::Check-",
        ]
        .iter()
        .any(|key| line.starts_with(key))
    };
    Ok(String::from_utf8_lossy(&dump)
        .lines()
        .filter(wanted)
        .map(str::to_owned)
        .collect())
}

/// Parses the one-line format of `man 5 sources.list`.
pub fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next()?.trim();
            let mut rest = line
                .strip_prefix("deb")?
                .strip_prefix([' ', '\t'])?
                .trim_start();
            let mut options = BTreeMap::new();
            if let Some(inner) = rest.strip_prefix('[') {
                let (list, after) = inner.split_once(']')?;
                options.extend(
                    list.split_whitespace()
                        .filter_map(|option| option.split_once('=')),
                );
                rest = after.trim_start();
            }
            let mut words = rest.split_whitespace().map(str::to_owned);
            Some(Source {
                uris: vec![words.next()?],
                suites: vec![words.next()?],
                components: words.collect(),
                signed_by: options.get("signed-by").map(|&path| path.to_owned()),
                trusted: options.get("trusted") == Some(&"yes"),
            })
        })
        .collect()
}

/// Parses the deb822 format of `man 5 sources.list`.
pub fn parse_sources(text: &str) -> Vec<Source> {
    let words = |stanza: &Stanza, field: &str| {
        stanza
            .get(field)
            .map(|value| {
                value
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .unwrap_or_default()
    };
    parse_deb822(text)
        .iter()
        .filter(|stanza| words(stanza, "types").iter().any(|kind| kind == "deb"))
        .filter(|stanza| stanza.get("enabled").is_none_or(|enabled| enabled != "no"))
        .map(|stanza| Source {
            uris: words(stanza, "uris"),
            suites: words(stanza, "suites"),
            components: words(stanza, "components"),
            signed_by: stanza.get("signed-by").cloned(),
            trusted: stanza
                .get("trusted")
                .is_some_and(|trusted| trusted == "yes"),
        })
        .filter(|source| !source.uris.is_empty() && !source.suites.is_empty())
        .collect()
}

/// The host's distribution from an `os-release` file: `ID` and `VERSION_CODENAME`.
pub(crate) fn host_release() -> Option<(String, String)> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    Some((field("ID")?, field("VERSION_CODENAME")?))
}

/// Keeps the distribution's own archives: those with a suite of this release; other vendors' would only slow the update.
pub(crate) fn of_release(sources: Vec<Source>, codename: &str) -> Vec<Source> {
    let prefix = format!("{codename}-");
    let belongs = |source: &Source| {
        source
            .components
            .iter()
            .any(|component| component == "main")
            && source
                .suites
                .iter()
                .any(|suite| suite == codename || suite.starts_with(&prefix) || suite == "stable")
    };
    sources.into_iter().filter(belongs).collect()
}

/// Writes sources in the deb822 format.
pub(crate) fn write_sources(sources: &[Source]) -> String {
    let mut text = String::new();
    for source in sources {
        text.push_str(&format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\n",
            source.uris.join(" "),
            source.suites.join(" "),
            source.components.join(" ")
        ));
        if let Some(signed_by) = &source.signed_by {
            text.push_str(&format!("Signed-By: {}\n", signed_by.replace('\n', "\n ")));
        }
        if source.trusted {
            text.push_str("Trusted: yes\n");
        }
        text.push('\n');
    }
    text
}

/// A package as the index describes it.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) depends: String,
    architecture: String,
    sha256: String,
    size: u64,
}

/// A private apt for one architecture.
pub(crate) struct Apt {
    configuration: PathBuf,
    packages: PathBuf,
    arch: Arch,
}

impl Apt {
    /// Makes its directories below `cache` and its configuration.
    pub(crate) fn open(
        cache: &Path,
        arch: Arch,
        sources: &[Source],
        context: &Context,
    ) -> Result<Apt> {
        let root = cache.join(format!("apt-{arch}"));
        let root_text = root
            .to_str()
            .filter(|text| !text.contains(['"', '\\', '\n']))
            .ok_or_else(|| {
                Error::invalid(
                    "data directory",
                    root.display().to_string(),
                    "apt can't use a path with quotes or outside of UTF-8",
                )
            })?;
        for part in [
            "state/lists/partial",
            "cache/archives/partial",
            "etc/sources.list.d",
            "etc/apt.conf.d",
            "etc/preferences.d",
            "log",
        ] {
            atomic::create_directory(&root.join(part))?;
        }
        let packages = cache.join("packages");
        atomic::create_directory(&packages)?;
        atomic::write(&root.join("status"), b"", 0o644)?;
        atomic::write(
            &root.join("etc/sources.list.d/system.sources"),
            write_sources(sources).as_bytes(),
            0o644,
        )?;
        let mut text = format!(
            "Dir::State \"{root_text}/state\";\nDir::State::status \"{root_text}/status\";\nDir::Cache \"{root_text}/cache\";\n\
             Dir::Etc \"{root_text}/etc\";\nDir::Etc::trusted \"/etc/apt/trusted.gpg\";\nDir::Etc::trustedparts \"/etc/apt/trusted.gpg.d\";\n\
             Dir::Etc::netrcparts \"/etc/apt/auth.conf.d\";\nDir::Log \"{root_text}/log\";\nAPT::Architecture \"{arch}\";\n\
             APT::Architectures {{ \"{arch}\"; }};\nAPT::Sandbox::User \"\";\nAcquire::Languages \"none\";\nAPT::Install-Recommends \"false\";\n\
             Acquire::Retries \"2\";\nAcquire::http::Timeout \"20\";\n",
            arch = arch.debian_name()
        );
        for line in system_settings(context)? {
            text.push_str(&line);
            text.push('\n');
        }
        let configuration = root.join("apt.conf");
        atomic::write(&configuration, text.as_bytes(), 0o644)?;
        Ok(Apt {
            configuration,
            packages,
            arch,
        })
    }

    fn tool(&self, name: &'static str, operation: String) -> Result<Tool> {
        Ok(Tool::new(&tool::require(name, "apt", "apt")?, operation)
            .env("APT_CONFIG", self.configuration.as_os_str()))
    }

    /// Fetches the index; where the archive can't be reached and an older index is here, that one is used and told.
    pub(crate) fn update(&self, context: &Context) -> Result<()> {
        context.step(
            Step::Resolve,
            format!("asking the package archive ({})", self.arch),
        );
        // Without it a failed fetch is a warning and the exit code 0.
        let updated = self
            .tool("apt-get", "fetch the package index".into())?
            .args(["-q", "-o", "APT::Update::Error-Mode=any", "update"])
            .run(context, |_| {});
        match updated {
            Err(Error::ToolFailed { .. }) if self.has_index() => {
                context.step(
                    Step::Resolve,
                    "the package archive can't be reached; using the index from the last time",
                );
                Ok(())
            }
            other => other,
        }
    }

    fn has_index(&self) -> bool {
        let lists = self.configuration.with_file_name("state").join("lists");
        fs::read_dir(lists).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().contains("Packages"))
        })
    }

    /// The version of a package that apt would install, if the archive has it.
    pub(crate) fn candidate(&self, name: &str, context: &Context) -> Result<Option<Package>> {
        let shown = self
            .tool("apt-cache", format!("look up {name}"))?
            .args(["--no-all-versions", "show", name])
            .output(context);
        let shown = match shown {
            Ok(shown) => shown,
            Err(Error::ToolFailed { .. }) => return Ok(None),
            Err(other) => return Err(other),
        };
        let stanzas = parse_deb822(&String::from_utf8_lossy(&shown));
        let Some(stanza) = stanzas.first() else {
            return Ok(None);
        };
        let field = |field: &str| {
            stanza.get(field).cloned().ok_or_else(|| {
                Error::malformed("package index", format!("{name} has no field {field}"))
            })
        };
        let sha256 = field("sha256")?;
        if !digest::is_hex(&sha256, 64) {
            return Err(Error::malformed(
                "package index",
                format!("{name} has no usable SHA256"),
            ));
        }
        Ok(Some(Package {
            name: field("package")?,
            version: field("version")?,
            depends: stanza.get("depends").cloned().unwrap_or_default(),
            architecture: field("architecture")?,
            sha256,
            size: field("size")?.parse().unwrap_or(0),
        }))
    }

    /// Gives a package's file, downloaded unless it is cached with the right digest.
    pub(crate) fn download(&self, package: &Package, context: &Context) -> Result<PathBuf> {
        // apt's own naming of downloaded files.
        let file_name = format!(
            "{}_{}_{}.deb",
            package.name,
            package.version.replace(':', "%3a"),
            package.architecture
        );
        if file_name.contains('/') {
            return Err(Error::malformed(
                "package index",
                format!("names a package {file_name:?}"),
            ));
        }
        let path = self.packages.join(&file_name);
        if path.is_file() && digest::sha256_file(&path, |_| context.check())?.0 == package.sha256 {
            return Ok(path);
        }
        context.bytes(
            Step::Download,
            0,
            Some(package.size),
            format!("downloading {} {}", package.name, package.version),
        );
        let work = atomic::WorkDirectory::create(&self.packages.join("partial"), "deb")?;
        self.tool("apt-get", format!("download {}", package.name))?
            .args(["-q", "download"])
            .arg(format!("{}={}", package.name, package.version))
            .current_dir(work.path())
            .run(context, |_| {})?;
        let fresh = work.path().join(&file_name);
        let (actual, _) = digest::sha256_file(&fresh, |_| context.check())?;
        if actual != package.sha256 {
            return Err(Error::Checksum {
                url: file_name,
                expected: package.sha256.clone(),
                actual,
            });
        }
        fs::rename(&fresh, &path).map_err(Error::io("rename to", &path))?;
        context.bytes(
            Step::Download,
            package.size,
            Some(package.size),
            format!("downloaded {}", package.name),
        );
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_formats_give_the_same() {
        let one_line = "# comment\ndeb [arch=amd64 signed-by=/usr/share/keyrings/k.gpg] http://mirror.example/debian bookworm main contrib # x\ndeb-src http://mirror.example/debian bookworm main\n";
        let deb822 = "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main contrib\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\nEnabled: no\nURIs: http://off.example\nSuites: x\n";
        assert_eq!(parse_one_line(one_line), parse_sources(deb822));
        assert_eq!(
            parse_sources(&write_sources(&parse_sources(deb822))),
            parse_sources(deb822)
        );
    }

    #[test]
    fn other_vendors_are_left_out() {
        let source = |suite: &str| Source {
            uris: vec!["http://a.example".into()],
            suites: vec![suite.into()],
            components: vec!["main".into()],
            signed_by: None,
            trusted: false,
        };
        let kept = of_release(
            vec![
                source("bookworm"),
                source("nodistro"),
                source("bookworm-security"),
            ],
            "bookworm",
        );
        assert_eq!(kept.len(), 2);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(?s)(deb |Types: deb\n|\\[|\\]|=|.){0,200}") {
            parse_one_line(&text);
            parse_sources(&text);
        }
    }
}
