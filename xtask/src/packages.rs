//! Installs Debian packages: as root, or by sudo; says which and why before it does.
//!
//! ```text
//! missing? ── none ──► done
//!    │
//!    ▼   (indexes missing or stale: update, ask again)
//! simulate plain install ── works ──► install
//!    │ fails
//!    ▼
//! simulate with NAME-backports added privately ── works ──► install from there
//!    │ fails
//!    ▼
//! error; optional packages are left out one by one, aloud
//! ```
//! The second road is for machines where one package of a family (say, `qemu-utils`) came from backports, while the
//! configured sources hold the release only: apt then refuses its siblings. The system's own configuration is not
//! changed; a private copy of it gets one more source, of the same mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{self, find_program, is_root, say};
use crate::requirements::{Purpose, Requirement, missing};

/// Installs what the purpose needs and the host lacks.
///
/// Errors when something that is not optional can't be installed; the message names the packages.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    let lacking = missing(purpose);
    if lacking.is_empty() {
        return Ok(());
    }
    for requirement in &lacking {
        say(&format!(
            "missing: {} ({})",
            requirement.package, requirement.why
        ));
    }
    let (optional, needed): (Vec<_>, Vec<_>) = lacking.into_iter().partition(|item| item.optional);
    if find_program("apt-get").is_none() {
        return without_apt(&needed);
    }
    if !needed.is_empty() {
        install(&needed)?;
    }
    for requirement in optional {
        if let Err(error) = install(&[requirement]) {
            say(&format!(
                "going on without {} ({}): {error:#}",
                requirement.package, requirement.why
            ));
        }
    }
    let still: Vec<_> = missing(purpose)
        .into_iter()
        .filter(|item| !item.optional)
        .collect();
    if still.is_empty() {
        Ok(())
    } else {
        without_apt(&still).context("apt-get ended well, but")
    }
}

fn without_apt(needed: &[Requirement]) -> Result<()> {
    if needed.is_empty() {
        return Ok(());
    }
    let list: Vec<_> = needed
        .iter()
        .map(|item| format!("{} ({}, {:?})", item.package, item.why, item.presence))
        .collect();
    bail!(
        "not found on this host, install by hand: {}",
        list.join("; ")
    )
}

fn install(requirements: &[Requirement]) -> Result<()> {
    let packages: Vec<&str> = requirements.iter().map(|item| item.package).collect();
    if simulate(&[], &packages)? {
        return apt_get(&[], &install_arguments(&packages));
    }
    say("apt-get cannot install them from what it knows; renewing its package lists");
    // One unreachable extra repository must not stop us: what counts is the next simulation.
    if let Err(error) = apt_get(&[], &["update"]) {
        say(&format!("{error:#}; trying with the lists as they are"));
    }
    if simulate(&[], &packages)? {
        return apt_get(&[], &install_arguments(&packages));
    }
    let release = Release::of_this_host()?;
    say(&format!(
        "the configured sources cannot give {}: adding {} of the same mirror for this one install",
        packages.join(" "),
        release.backports()
    ));
    let sources = BackportsSources::make(&release)?;
    let options = sources.options();
    if let Err(error) = apt_get(&options, &["update"]) {
        say(&format!("{error:#}; trying with the lists as they are"));
    }
    let backports = release.backports();
    let mut arguments = install_arguments(&family(&packages));
    arguments.splice(1..1, ["-t", &backports]);
    if !simulate_arguments(&options, &arguments)? {
        bail!(
            "apt-get can install {} neither from the configured sources nor with {backports}; run `apt-get install {}` to see why",
            packages.join(" "),
            packages.join(" ")
        );
    }
    apt_get(&options, &arguments)
}

/// QEMU's packages must come from one release: name them together, or apt keeps the old half.
fn family<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let mut all = packages.to_vec();
    if packages
        .iter()
        .any(|package| package.starts_with("qemu-system-"))
    {
        all.push("qemu-system-common");
    }
    all
}

fn install_arguments<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    // Without `--no-remove` apt takes away what the host already has when a release's packages exclude it.
    let mut arguments = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
    arguments.extend(packages);
    arguments
}

fn simulate(options: &[String], packages: &[&str]) -> Result<bool> {
    simulate_arguments(options, &install_arguments(packages))
}

fn simulate_arguments(options: &[String], arguments: &[&str]) -> Result<bool> {
    // The exit code is the answer; the text is not read.
    let mut command = Command::new("apt-get");
    command.args(options).arg("--simulate").args(arguments);
    Ok(process::output(&mut command)?.status.success())
}

fn apt_get(options: &[String], arguments: &[&str]) -> Result<()> {
    let mut command = as_root()?;
    command
        .args([
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
        ])
        .args(options)
        .args(arguments);
    process::run(&mut command)
}

/// `env`, run as root: assignments and a command are to be added.
fn as_root() -> Result<Command> {
    if is_root() {
        return Ok(Command::new("env"));
    }
    let Some(sudo) = find_program("sudo") else {
        bail!(
            "packages must be installed, which needs root: run this once as root, or install sudo"
        );
    };
    let mut command = Command::new(sudo);
    if !std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        // Nobody is there to type a password: fail at once instead of hanging.
        command.arg("-n");
    }
    command.arg("env");
    Ok(command)
}

/// The distribution's release as its own file tells it.
#[derive(Debug, PartialEq, Eq)]
struct Release {
    codename: String,
}

impl Release {
    fn of_this_host() -> Result<Self> {
        let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
        Self::parse(&text)
    }

    /// Reads `VERSION_CODENAME` of os-release(5).
    fn parse(text: &str) -> Result<Self> {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .map(|value| value.trim_matches(['"', '\'']))
            .filter(|value| !value.is_empty() && value.chars().all(|c| c.is_ascii_alphanumeric()))
            .context(
                "/etc/os-release names no VERSION_CODENAME, so there are no backports to look for",
            )?;
        Ok(Self {
            codename: value.to_owned(),
        })
    }

    fn backports(&self) -> String {
        format!("{}-backports", self.codename)
    }
}

/// A private directory of apt sources: the system's own, and the backports of the same mirror.
struct BackportsSources {
    directory: PathBuf,
}

impl BackportsSources {
    fn make(release: &Release) -> Result<Self> {
        let parts = Path::new("/etc/apt/sources.list.d");
        let directory = std::env::temp_dir().join(format!("innkeeper-apt-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let made = Self { directory };
        let mut mirror = fs::read_to_string("/etc/apt/sources.list")
            .ok()
            .and_then(|text| mirror_of_list(&text, &release.codename));
        if let Ok(entries) = fs::read_dir(parts) {
            for entry in entries {
                let path = entry?.path();
                let Some(name) = path.file_name() else {
                    continue;
                };
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                fs::write(made.directory.join(name), &text)?;
                mirror = mirror.or_else(|| match path.extension().and_then(|e| e.to_str()) {
                    Some("sources") => mirror_of_deb822(&text, &release.codename),
                    Some("list") => mirror_of_list(&text, &release.codename),
                    _ => None,
                });
            }
        }
        let mirror = mirror.with_context(|| {
            format!(
                "apt's sources name no mirror of {}, so its backports cannot be added",
                release.codename
            )
        })?;
        let mut entry = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\n",
            mirror.uri,
            release.backports()
        );
        if let Some(key) = mirror.signed_by {
            entry.push_str(&format!("Signed-By: {key}\n"));
        }
        fs::write(made.directory.join("innkeeper-backports.sources"), entry)?;
        Ok(made)
    }

    fn options(&self) -> Vec<String> {
        vec![
            "-o".to_owned(),
            format!("Dir::Etc::SourceParts={}", self.directory.display()),
        ]
    }
}

impl Drop for BackportsSources {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            say(&format!(
                "could not remove {}: {error}",
                self.directory.display()
            ));
        }
    }
}

/// Where a release comes from.
#[derive(Debug, PartialEq, Eq)]
struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

/// The mirror of a release in a deb822-style file (sources.list(5)).
fn mirror_of_deb822(text: &str, codename: &str) -> Option<Mirror> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza
                .lines()
                .filter(|line| !line.starts_with('#'))
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let offered = field("Suites")?
            .split_whitespace()
            .any(|suite| suite == codename);
        let binary = field("Types")?.split_whitespace().any(|kind| kind == "deb");
        (offered && binary && field("Enabled") != Some("no")).then_some(())?;
        Some(Mirror {
            uri: field("URIs")?.split_whitespace().next()?.to_owned(),
            signed_by: field("Signed-By")
                .filter(|value| value.starts_with('/'))
                .map(str::to_owned),
        })
    })
}

/// The mirror of a release in a one-line-style file (sources.list(5)).
fn mirror_of_list(text: &str, codename: &str) -> Option<Mirror> {
    text.lines().find_map(|line| {
        let rest = line
            .trim()
            .strip_prefix("deb")?
            .strip_prefix([' ', '\t'])?
            .trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let uri = words.next()?;
        (words.next()? == codename).then_some(())?;
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="))
            .map(str::to_owned);
        Some(Mirror {
            uri: uri.to_owned(),
            signed_by,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_is_found_in_deb822() {
        let text = "Types: deb\nURIs: http://m.example/sec\nSuites: bookworm-security\n\n\
                    Types: deb deb-src\n# a comment\nURIs: http://m.example/debian\nSuites: bookworm bookworm-updates\n\
                    Components: main\nSigned-By: /usr/share/keyrings/k.gpg\n";
        assert_eq!(
            mirror_of_deb822(text, "bookworm"),
            Some(Mirror {
                uri: "http://m.example/debian".to_owned(),
                signed_by: Some("/usr/share/keyrings/k.gpg".to_owned())
            })
        );
        assert_eq!(mirror_of_deb822(text, "trixie"), None);
    }

    #[test]
    fn mirror_is_found_in_one_line_files() {
        let text = "# deb http://no.example/debian bookworm main\n\
                    deb-src http://no.example/debian bookworm main\n\
                    deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm main\n";
        assert_eq!(
            mirror_of_list(text, "bookworm"),
            Some(Mirror {
                uri: "http://m.example/debian".to_owned(),
                signed_by: Some("/k.gpg".to_owned())
            })
        );
        assert_eq!(mirror_of_list(text, "bookworm-updates"), None);
    }

    #[test]
    fn release_is_read_or_refused() {
        let release = Release::parse("ID=debian\nVERSION_CODENAME=bookworm\n").expect("a release");
        assert_eq!(release.backports(), "bookworm-backports");
        assert!(Release::parse("ID=other\n").is_err());
        assert!(Release::parse("VERSION_CODENAME=\"a b/../\"\n").is_err());
    }

    #[test]
    fn qemu_comes_with_its_family() {
        assert_eq!(
            family(&["qemu-system-x86"]),
            ["qemu-system-x86", "qemu-system-common"]
        );
        assert_eq!(family(&["ovmf"]), ["ovmf"]);
    }
}
