//! The root directory of an installation, and what it holds.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use innkeeper_api::ErrorKind;

use super::{Bundle, EventLog, FileLock, is_locked};
use crate::error::{Error, Result};

/// Hidden prefix of a VM that is being made.
const CREATING: &str = ".creating-";
/// Hidden prefix of a VM that is being taken apart.
const DELETING: &str = ".deleting-";
/// Longest path of a unix socket that every system takes (macOS: `sun_path` has 104 bytes with the final zero).
const LONGEST_SOCKET_PATH: usize = 103;

/// The root directory (`INNKEEPER_HOME`) and the runtime directory for sockets.
#[derive(Debug, Clone)]
pub struct Root {
    home: PathBuf,
    sockets: PathBuf,
    boot_id: String,
}

impl Root {
    /// Opens an installation, making its directories if need be, private to the user.
    ///
    /// `runtime` is where sockets go; it is made if need be and must belong to this user alone.
    pub fn open(home: &Path, runtime: &Path, boot_id: &str) -> Result<Root> {
        if !home.is_absolute() {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!(
                    "the data directory {} is not an absolute path",
                    home.display()
                ),
            )
            .with_hint("set INNKEEPER_HOME to an absolute path"));
        }
        for directory in [home.to_owned(), home.join("vms")] {
            make_private(&directory)?;
        }
        let canonical = fs::canonicalize(home)
            .map_err(|error| Error::io(format!("can't open {}", home.display()), error))?;
        // Two installations of one user must not meet in the runtime directory.
        let sockets = runtime.join(short_hash(canonical.as_os_str().as_encoded_bytes()));
        let longest = sockets.join("0123456789abcdef").join("serial0.sock");
        if longest.as_os_str().len() > LONGEST_SOCKET_PATH {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!(
                    "the runtime directory {} is too long for sockets",
                    runtime.display()
                ),
            )
            .with_hint("set XDG_RUNTIME_DIR to a shorter path"));
        }
        Ok(Root {
            home: canonical,
            sockets,
            boot_id: boot_id.to_owned(),
        })
    }

    /// Returns the root directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Returns the identifier of this boot of the computer.
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// Returns the log of events.
    pub fn event_log(&self) -> EventLog {
        EventLog::new(self.home.join("events.jsonl"))
    }

    /// Returns the directory of images and layers.
    pub fn image_store(&self) -> PathBuf {
        self.home.clone()
    }

    fn vms(&self) -> PathBuf {
        self.home.join("vms")
    }

    /// Returns where the sockets of the VM with this id are.
    pub fn socket_directory(&self, id: &str) -> PathBuf {
        self.sockets.join(id.get(..16).unwrap_or(id))
    }

    /// Makes the directory for a VM's sockets, and those above it, private to the user.
    pub fn make_socket_directory(&self, id: &str) -> Result<PathBuf> {
        if let Some(runtime) = self.sockets.parent() {
            make_private(runtime)?;
        }
        make_private(&self.sockets)?;
        let directory = self.socket_directory(id);
        make_private(&directory)?;
        Ok(directory)
    }

    /// Removes the directory of a VM's sockets, and those above it if they are empty.
    pub fn remove_socket_directory(&self, id: &str) {
        let _ = fs::remove_dir_all(self.socket_directory(id));
        let _ = fs::remove_dir(&self.sockets);
    }

    /// Returns the names of all VMs that exist, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = self.entries(|name| (!name.starts_with('.')).then(|| name.to_owned()))?;
        names.sort();
        Ok(names)
    }

    /// Returns the names of VMs that somebody is making just now.
    pub fn being_created(&self) -> Result<Vec<String>> {
        let names = self.entries(|name| name.strip_prefix(CREATING).map(str::to_owned))?;
        Ok(names
            .into_iter()
            .filter(|name| is_locked(&self.creating(name).join("lock")).unwrap_or(true))
            .collect())
    }

    /// Returns the identifiers of all VMs, and of those that are being made or taken apart.
    pub(crate) fn owners(&self) -> Vec<String> {
        // One that is renamed while this is read is seen under either name, or at the second look.
        let mut owners = Vec::new();
        for _ in 0..2 {
            let names = self
                .entries(|name| Some(name.to_owned()))
                .unwrap_or_default();
            owners.extend(names.iter().filter_map(|name| {
                let bundle = Bundle::new(name.clone(), self.vms().join(name), self.boot_id.clone());
                Some(bundle.identity().ok()?.id)
            }));
        }
        owners
    }

    fn entries(&self, pick: impl Fn(&str) -> Option<String>) -> Result<Vec<String>> {
        let failed = |error| Error::io(format!("can't list {}", self.vms().display()), error);
        let mut names = Vec::new();
        for entry in fs::read_dir(self.vms()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if let Some(name) = entry.file_name().to_str().and_then(&pick) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Returns the bundle of a VM that exists.
    ///
    /// Errors: `NotFound` if there is none of that name, naming the nearest one.
    pub fn bundle(&self, name: &str) -> Result<Bundle> {
        check_name(name)?;
        let bundle = self.bundle_at(name);
        if bundle.directory().is_dir() {
            return Ok(bundle);
        }
        if is_locked(&self.creating(name).join("lock"))? {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{name} is still being created"),
            ));
        }
        let near = self
            .names()?
            .into_iter()
            .map(|known| (strsim::damerau_levenshtein(&known, name), known))
            .filter(|(distance, _)| *distance <= 2)
            .min();
        let error = Error::new(ErrorKind::NotFound, format!("there is no VM named {name}"));
        Err(match near {
            Some((_, known)) => error.with_hint(format!("did you mean {known}?")),
            None => error.with_hint("`inn ls` lists the VMs that exist"),
        })
    }

    /// Returns the place of a bundle, whether it exists or not.
    pub fn bundle_at(&self, name: &str) -> Bundle {
        Bundle::new(name.to_owned(), self.vms().join(name), self.boot_id.clone())
    }

    fn creating(&self, name: &str) -> PathBuf {
        self.vms().join(format!("{CREATING}{name}"))
    }

    /// Begins to make a VM: a hidden directory whose lock is held until the returned value is finished or dropped.
    ///
    /// Errors: `Conflict` if a VM of that name exists or is being made.
    pub fn begin_creating(&self, name: &str) -> Result<HalfMade> {
        check_name(name)?;
        if self.bundle_at(name).directory().exists() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("a VM named {name} exists already"),
            )
            .with_hint(format!(
                "choose another name with `--name`, or start it with `inn start {name}`"
            )));
        }
        let directory = self.creating(name);
        let being_made = || {
            Error::new(
                ErrorKind::Conflict,
                format!("{name} is being created by another command"),
            )
        };
        if directory.exists() {
            // Left by a creator that died, unless its lock is held.
            let Some(_lock) = FileLock::try_take(&directory.join("lock"))? else {
                return Err(being_made());
            };
            fs::remove_dir_all(&directory).map_err(|error| {
                Error::io(
                    format!("can't remove the half-made {}", directory.display()),
                    error,
                )
            })?;
        }
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(being_made()),
            Err(error) => {
                return Err(Error::io(
                    format!("can't make {}", directory.display()),
                    error,
                ));
            }
        }
        let Some(lock) = FileLock::try_take(&directory.join("lock"))? else {
            return Err(being_made());
        };
        Ok(HalfMade {
            bundle: Bundle::new(name.to_owned(), directory, self.boot_id.clone()).half_made(),
            destination: self.bundle_at(name),
            lock: Some(lock),
        })
    }

    /// Takes a VM out of the list for good: from here on it does not exist. The caller holds its lock and empties the returned directory.
    pub fn begin_deleting(&self, bundle: &Bundle) -> Result<PathBuf> {
        let hidden = self.vms().join(format!("{DELETING}{}", random_id()?));
        fs::rename(bundle.directory(), &hidden).map_err(|error| {
            Error::io(
                format!("can't remove {}", bundle.directory().display()),
                error,
            )
        })?;
        Ok(hidden)
    }

    /// Gives a VM another name. The caller holds its lock.
    pub fn rename(&self, from: &Bundle, to: &str) -> Result<Bundle> {
        check_name(to)?;
        let destination = self.bundle_at(to);
        let exists = || {
            Error::new(
                ErrorKind::Conflict,
                format!("a VM named {to} exists already"),
            )
        };
        if self.creating(to).exists() {
            return Err(exists());
        }
        move_without_replacing(from.directory(), destination.directory()).map_err(|error| {
            match error.kind() {
                io::ErrorKind::AlreadyExists => exists(),
                _ => Error::io(format!("can't rename {} to {to}", from.name()), error),
            }
        })?;
        Ok(destination)
    }

    /// Finds what crashes left half-made or half-removed; returns the hidden directories that nobody holds.
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let hidden = self.entries(|name| {
            (name.starts_with(CREATING) || name.starts_with(DELETING)).then(|| name.to_owned())
        })?;
        let mut found = Vec::new();
        for name in hidden {
            let directory = self.vms().join(name);
            if !is_locked(&directory.join("lock"))? {
                found.push(directory);
            }
        }
        Ok(found)
    }
}

/// A VM that is being made. Dropping it removes all of it.
#[derive(Debug)]
pub struct HalfMade {
    bundle: Bundle,
    destination: Bundle,
    lock: Option<FileLock>,
}

impl HalfMade {
    /// Returns the bundle while it is being made; its directory is a hidden one.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// Returns the bundle's place once it is made.
    pub fn destination(&self) -> &Bundle {
        &self.destination
    }

    /// Makes it exist under its name, all at once. All of it is on disk when this returns.
    pub fn finish(mut self) -> Result<Bundle> {
        let name = self.destination.name().to_owned();
        let directory = self.bundle.directory();
        sync_tree(directory)
            .map_err(|error| Error::io(format!("can't write {}", directory.display()), error))?;
        move_without_replacing(self.bundle.directory(), self.destination.directory()).map_err(
            |error| match error.kind() {
                io::ErrorKind::AlreadyExists => Error::new(
                    ErrorKind::Conflict,
                    format!("a VM named {name} exists already"),
                ),
                _ => Error::io(format!("can't finish creating {name}"), error),
            },
        )?;
        self.lock = None;
        if let Some(vms) = self.destination.directory().parent() {
            File::open(vms)
                .and_then(|vms| vms.sync_all())
                .map_err(|error| Error::io(format!("can't write {}", vms.display()), error))?;
        }
        Ok(self.destination.clone())
    }
}

/// Puts a directory and all that is in it on disk. All at once, so that a file system commits its journal once, not once for each file.
fn sync_tree(directory: &Path) -> io::Result<()> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(directory) = directories.get(next).cloned() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
        next += 1;
    }
    for paths in [files, directories] {
        std::thread::scope(|scope| {
            let syncs: Vec<_> = paths
                .iter()
                .map(|path| scope.spawn(move || File::open(path)?.sync_all()))
                .collect();
            syncs.into_iter().try_for_each(|sync| {
                sync.join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
            })
        })?;
    }
    Ok(())
}

impl Drop for HalfMade {
    fn drop(&mut self) {
        if self.lock.is_some() {
            let _ = fs::remove_dir_all(self.bundle.directory());
        }
    }
}

#[cfg(target_os = "linux")]
fn move_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

#[cfg(not(target_os = "linux"))]
fn move_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    // A directory replaces only an empty one here, and a bundle is never empty.
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        other => other,
    }
}

/// Makes a directory and those above it; the last one is private. Refuses one that belongs to somebody else.
fn make_private(path: &Path) -> Result<()> {
    let failed = |error| {
        Error::io(
            format!("can't make the directory {}", path.display()),
            error,
        )
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(above) = path.parent() {
                fs::create_dir_all(above).map_err(failed)?;
            }
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed(error));
                }
                _ => {}
            }
        }
        Err(error) => return Err(failed(error)),
        Ok(_) => {}
    }
    let found = fs::metadata(path).map_err(failed)?;
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::new(
            ErrorKind::NotPermitted,
            format!("{} belongs to another user", path.display()),
        )
        .with_hint("set INNKEEPER_HOME and XDG_RUNTIME_DIR to directories of your own"));
    }
    if found.permissions().mode() & 0o022 != 0 {
        return Err(Error::new(
            ErrorKind::NotPermitted,
            format!("{} can be written by other users", path.display()),
        )
        .with_hint(format!("run: chmod go-w {}", path.display())));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    name.parse::<crate::spec::VmName>()
        .map(drop)
        .map_err(|error| Error::new(ErrorKind::BadInput, error.to_string()))
}

/// FNV-1a, 64 bits, in hexadecimal: only to keep two installations apart, not against anybody.
fn short_hash(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{:08x}", hash >> 32)
}

/// Makes a random identifier of 32 hexadecimal digits.
pub fn random_id() -> Result<String> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Failure, "can't read random numbers").with_source(error)
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
