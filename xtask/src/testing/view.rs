//! Lets an unprivileged user reach directories that lie under a closed one (say, a clone in root's home directory),
//! without changing anybody's permissions: in a private mount namespace, the closed directory is covered by an empty
//! one that holds only the needed directories, at their own paths. The namespace ends with the process.
//!
//! ```text
//! /root (0700)/clone  ──►  /run/…view/0 = bind of /root/clone
//!                          /root = tmpfs (0755), /root/clone = bind of /run/…view/0
//! ```
//! It is also the place where a `/dev/null` that only root may write, as some containers have it, is replaced.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

/// What to open, and what to run there.
#[derive(Args)]
pub(crate) struct ViewArguments {
    /// A directory that must be reachable; may stand several times.
    #[arg(long)]
    need: Vec<PathBuf>,
    /// An own directory for putting it together.
    #[arg(long)]
    stage: PathBuf,
    /// The command that this process becomes.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn enter(_arguments: &ViewArguments) -> anyhow::Result<()> {
    anyhow::bail!(
        "mount namespaces are there on Linux only: run the tests as a user that is not root"
    )
}

#[cfg(target_os = "linux")]
pub(crate) use linux::enter;

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::{self, DirBuilder};
    use std::io::ErrorKind;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use anyhow::{Context, Result, bail};
    use rustix::fs::{CWD, FileType, Mode};
    use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive};

    use super::ViewArguments;

    pub(crate) fn enter(arguments: &ViewArguments) -> Result<()> {
        let needed = outermost(&arguments.need);
        let mut closed = Vec::new();
        for path in &needed {
            if let Some(ancestor) = closed_ancestor(path)? {
                if &ancestor == path {
                    bail!(
                        "{0} is closed to other users: run `chmod o+rx {0}`, or clone elsewhere",
                        path.display()
                    );
                }
                closed.push((ancestor, path.clone()));
            }
        }
        let stage = &arguments.stage;
        match DirBuilder::new().mode(0o700).create(stage) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("making {}", stage.display()));
            }
            _ => {}
        }
        tmpfs(stage)?;
        for (index, (_, path)) in closed.iter().enumerate() {
            let copy = stage.join(index.to_string());
            fs::create_dir(&copy)?;
            mount_bind_recursive(path, &copy)
                .with_context(|| format!("binding {}", path.display()))?;
        }
        let mut covered: Vec<&PathBuf> = closed.iter().map(|(ancestor, _)| ancestor).collect();
        covered.sort();
        covered.dedup();
        for path in covered {
            tmpfs(path)?;
        }
        for (index, (_, path)) in closed.iter().enumerate() {
            fs::create_dir_all(path)
                .with_context(|| format!("making {} in the view", path.display()))?;
            mount_bind_recursive(stage.join(index.to_string()), path)
                .with_context(|| format!("binding {}", path.display()))?;
        }
        mend_null_device(stage)?;
        let mut command = Command::new(&arguments.command[0]);
        command.args(&arguments.command[1..]);
        let error = command.exec();
        Err(error).with_context(|| format!("becoming {}", crate::process::shown(&command)))
    }

    fn tmpfs(path: &Path) -> Result<()> {
        mount(
            "tmpfs",
            path,
            "tmpfs",
            MountFlags::NOSUID,
            Some(c"mode=0755"),
        )
        .with_context(|| {
            format!(
                "covering {}; tests as root need the right to mount",
                path.display()
            )
        })
    }

    /// The needed paths without those that lie in another one.
    fn outermost(paths: &[PathBuf]) -> Vec<PathBuf> {
        let mut sorted = paths.to_vec();
        sorted.sort();
        sorted.dedup();
        let all = sorted.clone();
        sorted.retain(|path| {
            !all.iter()
                .any(|other| other != path && path.starts_with(other))
        });
        sorted
    }

    /// The outermost directory on the way to a path (or itself) that others may not enter.
    fn closed_ancestor(path: &Path) -> Result<Option<PathBuf>> {
        let mut ancestors: Vec<&Path> = path.ancestors().collect();
        ancestors.reverse();
        for ancestor in ancestors {
            let found = fs::metadata(ancestor)
                .with_context(|| format!("looking at {}", ancestor.display()))?;
            if found.mode() & 0o001 == 0 {
                return Ok(Some(ancestor.to_path_buf()));
            }
        }
        Ok(None)
    }

    fn mend_null_device(stage: &Path) -> Result<()> {
        if fs::metadata("/dev/null")
            .context("looking at /dev/null")?
            .mode()
            & 0o006
            == 0o006
        {
            return Ok(());
        }
        crate::process::say("/dev/null is not writable for all: replacing it for the tests");
        let node = stage.join("null");
        // 1:3 is the null device (the kernel's admin-guide/devices.txt).
        rustix::fs::mknodat(
            CWD,
            &node,
            FileType::CharacterDevice,
            Mode::from(0o666),
            rustix::fs::makedev(1, 3),
        )
        .context("making a null device")?;
        rustix::fs::chmod(&node, Mode::from(0o666)).context("opening the null device")?;
        mount_bind(&node, "/dev/null").context("replacing /dev/null")
    }

    #[cfg(test)]
    mod tests {
        use std::os::unix::fs::PermissionsExt;

        use super::*;

        #[test]
        fn inner_paths_come_with_outer_ones() {
            let paths = ["/a/b", "/a", "/a", "/ab"].map(PathBuf::from);
            assert_eq!(outermost(&paths), ["/a", "/ab"].map(PathBuf::from));
        }

        #[test]
        fn the_outermost_closed_directory_is_found() {
            let root = tempfile::tempdir().expect("a directory");
            fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("mode");
            let closed = root.path().join("closed");
            fs::create_dir_all(closed.join("in")).expect("directories");
            fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("mode");
            let found = closed_ancestor(&closed.join("in"))
                .expect("an answer")
                .expect("a closed one");
            // The temporary directory itself may lie under a closed one.
            assert!(closed.starts_with(&found));
        }
    }
}
