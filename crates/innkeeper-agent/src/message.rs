//! Messages: the JSON that travels in hellos, opens, messages, closes and events.
//!
//! Types only. Unknown fields are ignored and new fields have defaults, because a new host with an old agent (and the
//! reverse) is the normal case; an agent that does not know a request answers [`ErrorKind::Unsupported`]. One stream is
//! one operation:
//!
//! ```text
//!  host                                   agent
//!   Open(Request), Credit(channel)...  ->
//!                                      <-  Message(Reply::...)          0..n
//!   Data / Message(Input)              <-> Data(stdout 1, stderr 2), End
//!                                      <-  Close(Closing)               or from the host, at any time
//! ```
//! The first credit frame of a channel opens its window; every later one also acknowledges that as many bytes were
//! consumed, which is what lets an exec session forget them (see [`Request::Attach`]).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Protocol version; equal majors understand each other.
pub const VERSION: Version = Version { major: 1, minor: 0 };
/// Features of this implementation, named in the hello.
pub const FEATURES: &[&str] = &[
    "exec",
    "attach",
    "copy",
    "metrics",
    "addresses",
    "shutdown",
    "set-time",
    "mount",
    "hostname",
    "cloud-init",
    "read-log",
    "ssh-host-keys",
    "bring-online",
    "vsock",
    "unmount",
];

/// A protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Changes when old peers could misunderstand.
    pub major: u16,
    /// Changes when something is added.
    pub minor: u16,
}

/// Names a side of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol version of the sender.
    pub version: Version,
    /// Random number of the sender's session; a new one means that the sender has forgotten all streams.
    pub nonce: u64,
    /// The receiver's nonce as the sender last heard it.
    #[serde(default)]
    pub echo: Option<u64>,
    /// Features that the sender knows.
    #[serde(default)]
    pub features: Vec<String>,
    /// Name and version of the program, for people.
    #[serde(default)]
    pub software: String,
    /// Guest's facts, in an agent's hello.
    #[serde(default)]
    pub guest: Option<GuestInfo>,
}

/// What an agent says about its guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestInfo {
    /// Host name.
    pub hostname: String,
    /// Kernel name, e.g. `Linux`.
    pub system: String,
    /// Kernel release.
    pub kernel: String,
    /// Machine architecture, as uname says it.
    pub architecture: String,
    /// Pretty name from os-release, if there is one.
    pub distribution: String,
    /// Random id of this boot of the guest (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// True when the agent is process 1.
    pub is_init: bool,
}

/// An operation that the host asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Request {
    /// Runs a command.
    Exec(ExecRequest),
    /// Takes an exec session over, after its consumer or the host died.
    Attach(AttachRequest),
    /// Lists exec sessions.
    ListExec,
    /// Receives a tree into the guest; channel 0 carries entries (see [`crate::copy`]).
    CopyIn(CopyInRequest),
    /// Sends a tree from the guest on channel 1.
    CopyOut(CopyOutRequest),
    /// Asks for interfaces and addresses.
    Addresses,
    /// Asks for counters.
    Metrics,
    /// Asks for readiness details.
    Readiness,
    /// Ends the guest's run.
    Shutdown {
        /// What to do.
        how: ShutdownKind,
    },
    /// Sets the wall clock.
    SetTime {
        /// Nanoseconds since 1970-01-01 UTC.
        unix_nanoseconds: u64,
    },
    /// Brings CPUs and memory into use that were added while it runs.
    BringOnline {
        /// How many CPUs there should be.
        cpus: u32,
    },
    /// Mounts a file system; one that is mounted there already is as good.
    Mount(MountRequest),
    /// Unmounts a file system, or tells what uses it.
    Unmount(UnmountRequest),
    /// Sets the host name until the next boot.
    SetHostname {
        /// The new name.
        hostname: String,
    },
    /// Reads a log; its bytes come on channel 1.
    ReadLog {
        /// Which log.
        log: GuestLog,
    },
    /// Joins a vsock port of the guest to the channels of a command: the answers are those of [`Request::Exec`], and the first line of
    /// standard error is a [`VsockStatus`] in JSON, and after `Listening` so is the next. It goes by the kernel's loopback, so no vsock device is needed.
    Vsock {
        /// From where to where.
        direction: VsockDirection,
        /// Port.
        port: u32,
    },
}

/// Who connects to a vsock port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VsockDirection {
    /// The agent connects to a program of the guest that listens.
    Connect,
    /// The agent listens, and takes one connection that a program of the guest makes (to context id 1).
    Accept,
}

/// What came of a vsock connection by the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "vsock", rename_all = "snake_case")]
pub enum VsockStatus {
    /// It listens; another status follows when somebody has connected.
    Listening,
    /// There is one: what follows on the other channels is its bytes.
    Connected,
    /// There is none.
    Failed {
        /// What is the matter.
        #[serde(default)]
        problem: VsockProblem,
        /// The guest's words, for people.
        #[serde(default)]
        message: String,
    },
}

/// Why there is no vsock connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VsockProblem {
    /// A program of the guest listens on that port.
    InUse,
    /// The guest's kernel has no vsock, or no loopback of it.
    NoVsock,
    /// Nothing listens there, or it does not answer.
    #[default]
    #[serde(other)]
    Unreachable,
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    /// Program and arguments; the program is looked for in `PATH` when it has no slash.
    pub argv: Vec<String>,
    /// Variables added to the agent's own environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: Option<String>,
    /// User name or number, optionally `:group`.
    pub user: Option<String>,
    /// Terminal to give it; standard error then comes on stdout's channel.
    pub tty: Option<Terminal>,
    /// Keeps running, and drops the oldest output, when nobody is attached.
    pub detach: bool,
    /// Seconds from the loss of the consumer to SIGHUP; 10 when absent.
    pub orphan_grace_seconds: Option<u32>,
}

/// A terminal's kind and size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Rows of characters.
    pub rows: u16,
    /// Columns of characters.
    pub columns: u16,
    /// Value of `TERM`.
    #[serde(default)]
    pub term: String,
}

/// Takes over an exec session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachRequest {
    /// Session id from [`Reply::Started`].
    pub session: u64,
    /// Bytes of stdout that were already received; absent means "from the oldest that is kept".
    pub stdout_offset: Option<u64>,
    /// The same for stderr.
    pub stderr_offset: Option<u64>,
}

/// Where a copied tree goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyInRequest {
    /// Destination: an existing directory receives the tree under its own name, anything else is the new name.
    pub path: String,
    /// Makes missing parent directories.
    pub create_parents: bool,
    /// Owner of what is created, as user name or number with an optional `:group`.
    pub owner: Option<String>,
}

/// What to copy out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyOutRequest {
    /// File or directory in the guest; a symlink named here is followed, those below are copied as such.
    pub path: String,
}

/// How a guest ends its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShutdownKind {
    /// Power off.
    Poweroff,
    /// Start again.
    Reboot,
    /// Stop the processors.
    Halt,
}

/// A file system to mount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountRequest {
    /// virtiofs tag, or a device.
    pub source: String,
    /// Absolute mount point; made when missing.
    pub path: String,
    /// File system type; `virtiofs` when empty.
    pub fstype: String,
    /// Mounts read-only.
    pub read_only: bool,
}

/// A file system to unmount.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnmountRequest {
    /// virtiofs tag, as it was mounted.
    pub source: String,
    /// Absolute mount point.
    pub path: String,
}

/// A log that the agent can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestLog {
    /// The kernel's ring buffer.
    Kernel,
    /// cloud-init's output.
    CloudInit,
    /// What the agent itself said.
    Agent,
}

/// What a host sends within a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "input", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Input {
    /// Sends a signal to the command's process group.
    Signal {
        /// Signal number of the guest's kernel (on Linux those of signal(7)).
        number: i32,
    },
    /// Changes the terminal's size.
    Resize {
        /// Rows of characters.
        rows: u16,
        /// Columns of characters.
        columns: u16,
    },
}

/// What an agent answers within a stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// A command runs (or was re-attached).
    Started {
        /// Id for [`Request::Attach`].
        session: u64,
        /// Process id in the guest.
        pid: u32,
        /// Bytes of stdin that the agent has taken over so far.
        #[serde(default)]
        stdin_offset: u64,
        /// Offset of the first stdout byte that follows.
        #[serde(default)]
        stdout_offset: u64,
        /// Offset of the first stderr byte that follows.
        #[serde(default)]
        stderr_offset: u64,
    },
    /// A command ended; follows its last output.
    Exited(ExitStatus),
    /// Sessions that exist.
    Sessions {
        /// All of them, oldest first.
        sessions: Vec<SessionInfo>,
    },
    /// A copy is complete.
    Copied(CopySummary),
    /// Interfaces and addresses.
    Addresses {
        /// All interfaces but loopback.
        interfaces: Vec<Interface>,
    },
    /// Counters.
    Metrics(Metrics),
    /// Readiness details.
    Readiness(Readiness),
    /// Whether a file system is unmounted: it is if nothing uses it.
    Unmounted(MountUsers),
    /// Done, with nothing to tell.
    Done,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
}

impl ExitStatus {
    /// Gives the code a shell would: 128 + n for a signal.
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        }
    }
}

/// An exec session, as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its id.
    pub session: u64,
    /// Process id in the guest.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// True while somebody is attached.
    pub attached: bool,
    /// How it ended, if it did.
    #[serde(default)]
    pub exited: Option<ExitStatus>,
}

/// What a copy moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CopySummary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of file content.
    pub bytes: u64,
    /// Entries of a kind that is not copied (sockets, devices, pipes).
    pub skipped: u64,
}

/// A network interface of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Name in the guest.
    pub name: String,
    /// MAC address as `52:54:00:12:34:56`, empty if it has none.
    pub mac: String,
    /// True when it is up and has a carrier.
    pub up: bool,
    /// Addresses with prefix length, e.g. `10.0.2.15/24`.
    pub addresses: Vec<String>,
}

/// Counters of the guest; sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// Seconds since boot.
    pub uptime_seconds: f64,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// Online processors.
    pub cpus: u32,
    /// Processor time spent not idle since boot, all processors together.
    pub cpu_busy_seconds: f64,
    /// Processor time spent idle since boot, all processors together.
    pub cpu_idle_seconds: f64,
    /// Memory of the guest.
    pub memory_total: u64,
    /// Memory that programs could still get.
    pub memory_available: u64,
    /// Swap space.
    pub swap_total: u64,
    /// Swap space in use.
    pub swap_used: u64,
    /// Mounted file systems on block devices or shares.
    pub filesystems: Vec<Filesystem>,
}

/// A mounted file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filesystem {
    /// Mount point.
    pub path: String,
    /// Device or tag.
    pub source: String,
    /// Type.
    pub fstype: String,
    /// Size in bytes.
    pub total: u64,
    /// Bytes that unprivileged users can still write.
    pub available: u64,
}

/// Details of how ready a guest is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Readiness {
    /// cloud-init's state, if it is there.
    pub cloud_init: Option<CloudInit>,
    /// Public host keys of the SSH server, as in its `.pub` files.
    pub ssh_host_keys: Vec<String>,
    /// What went wrong while the agent, as init, set the guest up.
    pub problems: Vec<String>,
    /// True while the agent, as init, still sets the guest up: network and mounts of the command line.
    pub busy: bool,
}

/// State of cloud-init, from `/run/cloud-init/status.json` and `result.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CloudInit {
    /// True when all stages ended.
    pub done: bool,
    /// Stage that runs now.
    pub stage: Option<String>,
    /// Errors it reports.
    pub errors: Vec<String>,
}

/// What keeps a file system from being unmounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountUsers {
    /// True while it is in use, even if no user of it could be found.
    pub in_use: bool,
    /// Those that were found, at most [`MOUNT_USERS`].
    pub users: Vec<MountUser>,
    /// True when there are more.
    pub more: bool,
}

/// The most users of a file system that are told.
pub const MOUNT_USERS: usize = 32;

/// The most characters of a path or name that are told of one.
pub const MOUNT_USER_TEXT: usize = 256;

/// Something that uses a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountUser {
    /// Process; none for a mount.
    pub pid: Option<u32>,
    /// Name of the process.
    pub command: String,
    /// What it has there.
    pub what: MountUse,
    /// The file or directory.
    pub path: String,
}

/// How something uses a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountUse {
    /// An open file.
    OpenFile,
    /// Its working directory.
    WorkingDirectory,
    /// Its root directory.
    Root,
    /// A file in its memory, such as a program or library.
    MappedFile,
    /// A mount, there or of the same file system elsewhere.
    Mount,
    /// Something else.
    #[default]
    #[serde(other)]
    Other,
}

/// Something that an agent tells by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AgentEvent {
    /// Addresses changed.
    Addresses {
        /// All interfaces but loopback.
        interfaces: Vec<Interface>,
    },
    /// The guest is about to end its run.
    Halting {
        /// How.
        how: ShutdownKind,
    },
    /// Readiness changed.
    Readiness(Readiness),
}

/// Why a stream ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "closing", rename_all = "snake_case")]
pub enum Closing {
    /// The operation is complete.
    Done,
    /// The host has got the result; the agent may forget it.
    Collected,
    /// The host lets a session run on by itself.
    Detached,
    /// The consumer vanished.
    Gone,
    /// The operation failed.
    Failed(Failure),
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Kind, for programs.
    pub kind: ErrorKind,
    /// One sentence, for people.
    pub message: String,
}

impl Failure {
    /// Makes a failure.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure {
            kind,
            message: message.into(),
        }
    }
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The command does not exist (exit code 127).
    CommandNotFound,
    /// The command exists but can't be executed (exit code 126).
    CannotExecute,
    /// A named thing does not exist.
    NotFound,
    /// The guest's system refused.
    NotPermitted,
    /// The request makes no sense.
    Invalid,
    /// This agent does not know the request.
    Unsupported,
    /// A limit of the agent is reached.
    Busy,
    /// The connection to the agent was lost.
    LinkLost,
    /// The peer broke the protocol.
    Protocol,
    /// Anything else.
    #[serde(other)]
    Other,
}
