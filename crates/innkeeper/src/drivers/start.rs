//! Starts processes for a VM: locks, sockets that listen before anybody connects, descriptors by number, and how all of it is undone.
//!
//! Whatever a plan hands over is made by us, so that nobody ever waits for a hypervisor to make it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use innkeeper_api::ErrorKind;
use rustix::fs::{FlockOperation, flock};
use tokio::process::{Child, Command};

use crate::driver::{BootConfig, MachineConfig};
use crate::error::{Error, Result};

/// First descriptor number given to a process: far above what a small process has open itself, so that handing one over never lands
/// on a descriptor that the standard library uses while it spawns.
pub(super) const FIRST_DESCRIPTOR: i32 = 100;

/// A descriptor that a process inherits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Its number there.
    pub(super) number: i32,
    /// What it is.
    pub(super) role: DescriptorRole,
}

/// What a descriptor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DescriptorRole {
    /// A unix stream socket that listens at a path.
    Listener(PathBuf),
    /// A unix stream socket that is connected to the sidecar which listens at a path, and that it has answered.
    Connection(PathBuf),
    /// A named pipe, both of whose ends the process holds: it never sees its reader go.
    #[cfg(target_os = "linux")]
    Pipe(PathBuf),
    /// A lock file, locked, held by nobody else after the start.
    Lock(PathBuf),
}

/// A process beside a hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sidecar {
    /// The executable.
    pub(super) program: PathBuf,
    /// Its arguments.
    pub(super) arguments: Vec<String>,
    /// The descriptors that it inherits.
    pub(super) descriptors: Vec<Descriptor>,
    /// The device that it serves, if that can do without it for a while.
    pub(super) serves: Option<Serves>,
}

/// What a sidecar serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Serves {
    /// Id of the device.
    pub(super) device: String,
    /// The same in words, for people.
    pub(super) what: String,
}

/// A process beside a hypervisor that can't be handed its sockets, and makes them itself: whoever connects has to wait for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SelfMade {
    /// The process.
    pub(super) sidecar: Sidecar,
    /// The socket that is waited for.
    pub(super) awaited: PathBuf,
    /// What else it makes.
    pub(super) others: Vec<PathBuf>,
}

/// Where a process writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) stdout: &'a File,
    pub(super) stderr: &'a File,
}

impl<'a> Output<'a> {
    /// Sends everything to one file.
    pub(super) fn both(file: &'a File) -> Self {
        Output {
            stdout: file,
            stderr: file,
        }
    }
}

/// What was opened before a process is started and is handed over to it.
#[derive(Default)]
pub(super) struct Opened {
    /// The lock file, locked.
    pub(super) lock: Option<File>,
    /// Connections to sidecars, by the path at which they listen.
    pub(super) connections: Vec<(PathBuf, OwnedFd)>,
}

impl Opened {
    fn missing(what: &str) -> Error {
        Error::new(
            ErrorKind::Failure,
            format!("the plan hands over {what} that was not made"),
        )
    }
}

/// Kills what was started and removes what was made, unless disarmed.
#[derive(Default)]
pub(super) struct Undo {
    pub(super) children: Vec<Child>,
    /// Sockets and pipes.
    pub(super) sockets: Vec<PathBuf>,
}

impl Drop for Undo {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Fails only if it has ended. The runtime reaps children that were dropped.
            let _ = child.start_kill();
        }
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Requires that the files and folders of a VM can be opened, so that one that is missing is told by its path.
pub(super) fn require_files(config: &MachineConfig) -> Result<()> {
    let mut files: Vec<(&str, &Path)> = Vec::new();
    if let BootConfig::Direct { kernel, initrd, .. } = &config.boot {
        files.push(("kernel", kernel));
        files.extend(initrd.as_deref().map(|initrd| ("initrd", initrd)));
    }
    files.extend(
        config
            .disks
            .iter()
            .map(|disk| ("disk", disk.path.as_path())),
    );
    files.extend(
        config
            .drives
            .iter()
            .filter_map(|drive| Some(("medium", drive.medium.as_ref()?.path.as_path()))),
    );
    for (what, path) in files {
        File::open(path).map_err(|error| {
            Error::io(
                format!(
                    "the {what} {} of VM {} can't be opened",
                    path.display(),
                    config.name
                ),
                error,
            )
        })?;
    }
    for share in &config.shares {
        std::fs::read_dir(&share.host).map_err(|error| {
            Error::io(
                format!(
                    "the shared folder {} of VM {} can't be opened",
                    share.host.display(),
                    config.name
                ),
                error,
            )
        })?;
    }
    Ok(())
}

/// Takes the lock that the hypervisor inherits. Errors: `Conflict` if one of this VM still runs.
pub(super) fn take_lock(path: &Path, name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| Error::io(format!("can't open the lock {}", path.display()), error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(
            ErrorKind::Conflict,
            format!("a hypervisor of VM {name} is still running"),
        )),
        Err(error) => Err(Error::io(
            format!("can't lock {}", path.display()),
            error.into(),
        )),
    }
}

/// Opens a log to append to it.
pub(super) fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| Error::io(format!("can't open the log {}", path.display()), error))
}

/// Starts a process with its descriptors, an empty environment and a process group of its own.
pub(super) fn spawn(
    program: &Path,
    arguments: &[String],
    descriptors: &[Descriptor],
    mut opened: Opened,
    output: Output<'_>,
    undo: &mut Undo,
) -> Result<Child> {
    let cannot = |error: io::Error| Error::io(format!("can't start {}", program.display()), error);
    let mut mappings = Vec::new();
    for descriptor in descriptors {
        let parent: OwnedFd = match &descriptor.role {
            DescriptorRole::Listener(path) => listen(path, undo)?.into(),
            #[cfg(target_os = "linux")]
            DescriptorRole::Pipe(path) => make_pipe(path, undo)?.into(),
            DescriptorRole::Connection(path) => {
                let place = opened.connections.iter().position(|(at, _)| at == path);
                let place = place.ok_or_else(|| Opened::missing("a connection"))?;
                opened.connections.swap_remove(place).1
            }
            DescriptorRole::Lock(_) => {
                let lock = opened.lock.take();
                lock.ok_or_else(|| Opened::missing("a lock"))?.into()
            }
        };
        mappings.push(FdMapping {
            parent_fd: parent,
            child_fd: descriptor.number,
        });
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        // Not ours, which may be anywhere and would be kept from being unmounted.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(output.stdout.try_clone().map_err(cannot)?))
        .stderr(Stdio::from(output.stderr.try_clone().map_err(cannot)?))
        // A group of its own: Ctrl-C at our terminal is not meant for the VM.
        .process_group(0);
    command.fd_mappings(mappings).map_err(|error| {
        Error::new(ErrorKind::Failure, "the plan uses a descriptor twice").with_source(error)
    })?;
    // The command owns our ends of the descriptors and closes them when it is dropped here.
    command.spawn().map_err(cannot)
}

/// How long a process may take to make its sockets.
const SOCKETS_DEADLINE: Duration = Duration::from_secs(10);

/// How often the kernel is asked whether a socket listens.
const SOCKETS_LOOK: Duration = Duration::from_millis(2);

/// Starts a process that makes its sockets itself, and waits until it listens. Errors: `Failure` if it ends instead, `TimedOut`.
pub(super) async fn spawn_self_made(
    made: &SelfMade,
    output: Output<'_>,
    undo: &mut Undo,
) -> Result<Child> {
    let path = &made.awaited;
    for socket in std::iter::once(path).chain(&made.others) {
        // Gone already is as good; what can't be removed is told by the process.
        let _ = std::fs::remove_file(socket);
        undo.sockets.push(socket.clone());
    }
    let Sidecar {
        program,
        arguments,
        descriptors,
        ..
    } = &made.sidecar;
    let mut child = spawn(
        program,
        arguments,
        descriptors,
        Opened::default(),
        output,
        undo,
    )?;
    match wait_until_it_listens(path, program, &mut child).await {
        Ok(()) => Ok(child),
        Err(error) => {
            undo.children.push(child);
            Err(error)
        }
    }
}

async fn wait_until_it_listens(path: &Path, program: &Path, child: &mut Child) -> Result<()> {
    let program = program.display();
    let listening = async {
        // poll: the kernel says that a socket listens at this path; a connection would be taken for the hypervisor's
        while !listens(path) {
            tokio::time::sleep(SOCKETS_LOOK).await;
        }
    };
    tokio::select! {
        () = listening => Ok(()),
        status = child.wait() => {
            let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(Error::new(ErrorKind::Failure, format!("{program} ended before it listened ({how}); see `inn logs --vmm`")))
        }
        () = tokio::time::sleep(SOCKETS_DEADLINE) => Err(Error::new(
            ErrorKind::TimedOut,
            format!("{program} did not listen at {} within {} s", path.display(), SOCKETS_DEADLINE.as_secs()),
        )),
    }
}

/// Returns whether a unix socket listens at a path.
fn listens(path: &Path) -> bool {
    /// `__SO_ACCEPTCON` in the column `Flags`. Source: proc(5), `/proc/net/unix`.
    const LISTENS: u32 = 1 << 16;
    let table = std::fs::read("/proc/net/unix").unwrap_or_default();
    let is_it = |line: &[u8]| {
        let rest = line
            .strip_suffix(path.as_os_str().as_bytes())?
            .strip_suffix(b" ")?;
        let flags = std::str::from_utf8(rest).ok()?.split_whitespace().nth(3)?;
        Some(u32::from_str_radix(flags, 16).ok()? & LISTENS != 0)
    };
    table
        .split(|byte| *byte == b'\n')
        .any(|line| is_it(line) == Some(true))
}

/// Binds a socket that listens, in place of one that was left.
pub(super) fn listen(path: &Path, undo: &mut Undo) -> Result<UnixListener> {
    let cannot = |error| {
        Error::io(
            format!("can't listen on the socket {}", path.display()),
            error,
        )
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(cannot)?;
    undo.sockets.push(path.to_owned());
    Ok(listener)
}

/// Makes a named pipe, in place of one that was left, and opens both its ends.
#[cfg(target_os = "linux")]
fn make_pipe(path: &Path, undo: &mut Undo) -> Result<File> {
    use rustix::fs::{CWD, FileType, Mode};
    let cannot = |error| Error::io(format!("can't make the pipe {}", path.display()), error);
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(error)),
        _ => {}
    }
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .map_err(|error| cannot(error.into()))?;
    undo.sockets.push(path.to_owned());
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(cannot)
}
