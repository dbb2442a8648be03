//! Whose tests they are: the user that root makes for them, or the caller; and the directories that user owns.
//!
//! Made once and kept: images that tests build (a minute or two each) live in its `INNKEEPER_HOME`. Temporary files
//! do not: they are removed before each run.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::plan::Plan;
use crate::process::{self, find_program, say};

const NAME: &str = "innkeeper-test";
/// Short: a unix socket's path must stay under 104 bytes on all hosts.
const HOME: &str = "/var/lib/innkeeper-test";
/// How many subordinate ids an image build in a user namespace needs.
const SUBORDINATE_IDS: u64 = 65_536;

/// A user and its private directory.
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    home: PathBuf,
}

impl Account {
    /// The caller itself, with directories under its cache directory.
    pub(crate) fn own() -> Result<Self> {
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
            .context(
                "neither HOME nor XDG_CACHE_HOME is set: the tests have no place for their files",
            )?;
        let account = Self {
            name: "(caller)".to_owned(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            home: cache.join("innkeeper-test"),
        };
        fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
        account.make_directories()?;
        Ok(account)
    }

    /// The user `innkeeper-test`, made if it is not there. Needs root.
    pub(crate) fn make() -> Result<Self> {
        if ids_of(NAME)?.is_none() {
            say(&format!(
                "making the unprivileged user {NAME}, as whom the tests run"
            ));
            let useradd =
                find_program("useradd").context("useradd is missing: install package passwd")?;
            process::run(Command::new(useradd).args([
                "--user-group",
                "--no-create-home",
                "--home-dir",
                HOME,
                "--shell",
                "/usr/sbin/nologin",
                NAME,
            ]))?;
        }
        let (uid, gid) = ids_of(NAME)?
            .with_context(|| format!("user {NAME} was made but is not in /etc/passwd"))?;
        ensure!(
            uid != 0,
            "user {NAME} is root: remove it from /etc/passwd, then run this again"
        );
        for (file, flag) in [
            ("/etc/subuid", "--add-subuids"),
            ("/etc/subgid", "--add-subgids"),
        ] {
            let text = read_or_empty(Path::new(file))?;
            if let Some(range) = lacking_range(&text, NAME) {
                say(&format!("giving user {NAME} subordinate ids in {file}"));
                let usermod = find_program("usermod")
                    .context("usermod is missing: install package passwd")?;
                process::run(Command::new(usermod).args([flag, &range, NAME]))?;
            }
        }
        join_kvm_group()?;
        let account = Self {
            name: NAME.to_owned(),
            uid,
            gid,
            home: PathBuf::from(HOME),
        };
        account.make_directories()?;
        Ok(account)
    }

    fn make_directories(&self) -> Result<()> {
        for fresh in [self.scratch(), self.home.join("run")] {
            match fs::remove_dir_all(&fresh) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("emptying {}", fresh.display()));
                }
                _ => {}
            }
        }
        let directories = [
            self.home.clone(),
            self.scratch(),
            self.home.join("run"),
            self.home.join("innkeeper"),
        ];
        for path in directories {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(error).with_context(|| format!("making {}", path.display()));
                }
                _ => {}
            }
            if process::is_root() {
                chown(&path, Some(self.uid), Some(self.gid))
                    .with_context(|| format!("giving {} away", path.display()))?;
            }
        }
        Ok(())
    }

    /// Where temporary files go; emptied before each run.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.home.join("tmp")
    }

    /// A directory only for root, where the view is put together.
    pub(crate) fn stage(&self) -> PathBuf {
        PathBuf::from("/run/innkeeper-test-view")
    }

    /// Writes the plan where this user can read it.
    pub(crate) fn write_plan(&self, plan: &Plan) -> Result<PathBuf> {
        let path = self.scratch().join("plan.json");
        fs::write(&path, serde_json::to_vec_pretty(plan)?)
            .with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// The whole environment of a test; nothing of the caller's leaks in but what is named here.
    pub(crate) fn environment(&self, libexec: &Path) -> BTreeMap<String, String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut environment: BTreeMap<String, String> = [
            ("HOME", text(&self.home)),
            ("USER", self.name.clone()),
            ("LOGNAME", self.name.clone()),
            ("TMPDIR", text(&self.scratch())),
            ("XDG_RUNTIME_DIR", text(&self.home.join("run"))),
            ("INNKEEPER_HOME", text(&self.home.join("innkeeper"))),
            ("INNKEEPER_LIBEXEC", text(libexec)),
            ("INNKEEPER_REQUIRE_DRIVERS", "qemu".to_owned()),
            ("INSTA_WORKSPACE_ROOT", text(crate::workspace::root())),
            ("INSTA_UPDATE", "no".to_owned()),
            ("LANG", "C.UTF-8".to_owned()),
            (
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            ),
            ("RUST_BACKTRACE", "1".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for name in [
            "CI",
            "INNKEEPER_ACCEL",
            "INNKEEPER_REQUIRE_DRIVERS",
            "PROPTEST_CASES",
            "NO_COLOR",
        ] {
            if let Ok(value) = std::env::var(name) {
                environment.insert(name.to_owned(), value);
            }
        }
        environment
    }
}

/// Lets the user open /dev/kvm where its group may.
fn join_kvm_group() -> Result<()> {
    let Ok(device) = fs::metadata("/dev/kvm") else {
        return Ok(());
    };
    let (mode, group) = (device.mode(), device.gid());
    if !device.file_type().is_char_device() || mode & 0o006 == 0o006 {
        return Ok(());
    }
    if mode & 0o060 != 0o060 || group == 0 {
        say("/dev/kvm is for root only, so the tests run without KVM");
        return Ok(());
    }
    let Some(name) = group_name(&fs::read_to_string("/etc/group")?, group) else {
        say(&format!(
            "/dev/kvm belongs to group {group}, which has no name: the tests run without KVM"
        ));
        return Ok(());
    };
    let usermod = find_program("usermod").context("usermod is missing: install package passwd")?;
    process::run(Command::new(usermod).args(["--append", "--groups", &name, NAME]))
}

fn read_or_empty(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("reading {}", path.display())),
    }
}

/// User and group id of a local user, from passwd(5).
fn ids_of(user: &str) -> Result<Option<(u32, u32)>> {
    let text = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
    let Some(line) = text
        .lines()
        .find(|line| line.split(':').next() == Some(user))
    else {
        return Ok(None);
    };
    let fields: Vec<&str> = line.split(':').collect();
    let (Some(uid), Some(gid)) = (fields.get(2), fields.get(3)) else {
        bail!("/etc/passwd has a broken line for {user}");
    };
    Ok(Some((
        uid.parse().context("user id")?,
        gid.parse().context("group id")?,
    )))
}

fn group_name(groups: &str, gid: u32) -> Option<String> {
    groups.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse() == Ok(gid)).then(|| fields[0].to_owned())
    })
}

/// A free range for the user, as `FIRST-LAST`, if subuid(5) gives it none that is long enough.
fn lacking_range(text: &str, user: &str) -> Option<String> {
    let mut free = 100_000_u64;
    for line in text.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(first), Some(count)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (Ok(first), Ok(count)) = (first.parse::<u64>(), count.parse::<u64>()) else {
            continue;
        };
        if name == user && count >= SUBORDINATE_IDS {
            return None;
        }
        free = free.max(first.saturating_add(count));
    }
    Some(format!("{free}-{}", free + SUBORDINATE_IDS - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_given_once_and_never_overlaps() {
        assert_eq!(lacking_range("", "t").as_deref(), Some("100000-165535"));
        assert_eq!(
            lacking_range("a:100000:65536\n", "t").as_deref(),
            Some("165536-231071")
        );
        assert_eq!(lacking_range("a:100000:65536\nt:165536:65536\n", "t"), None);
        assert_eq!(
            lacking_range("t:100000:10\nbroken\n", "t").as_deref(),
            Some("100010-165545")
        );
    }

    #[test]
    fn groups_are_found_by_id() {
        assert_eq!(
            group_name("root:x:0:\nkvm:x:106:a\n", 106).as_deref(),
            Some("kvm")
        );
        assert_eq!(group_name("root:x:0:\n", 106), None);
    }

    #[test]
    fn the_environment_is_closed() {
        let account = Account {
            name: "t".to_owned(),
            uid: 1,
            gid: 1,
            home: PathBuf::from("/h"),
        };
        let environment = account.environment(Path::new("/l"));
        assert_eq!(environment["INNKEEPER_LIBEXEC"], "/l");
        assert!(!environment.contains_key("CARGO_HOME"));
    }
}
