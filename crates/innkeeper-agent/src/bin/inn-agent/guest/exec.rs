//! Starting commands, and the table of exec sessions.
//!
//! A session belongs to the agent, not to a stream: it outlives its consumer (see `session`), can be listed, and its
//! result is kept until it was collected, for at most [`KEPT_FOR`] and [`KEPT_SESSIONS`] sessions.

use crate::guest::children::Children;
use crate::guest::link::Link;
use crate::guest::log::lock;
use crate::guest::session::{Control, Session, SessionThread};
use crate::guest::users::User;
use innkeeper_agent::message::{AttachRequest, ErrorKind, ExecRequest, Reply, SessionInfo};
use innkeeper_agent::mux::Incoming;
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a result waits for its collector.
pub const KEPT_FOR: Duration = Duration::from_secs(600);
/// Most ended sessions that are kept.
const KEPT_SESSIONS: usize = 64;
/// Most sessions.
const MAX_SESSIONS: usize = 512;
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All exec sessions.
pub struct Sessions {
    link: Arc<Link>,
    children: Arc<Children>,
    table: Mutex<Table>,
}

struct Table {
    next: u64,
    sessions: BTreeMap<u64, Arc<Session>>,
}

/// A started command's ends.
pub struct Started {
    pub pid: u32,
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
}

impl Sessions {
    pub fn new(link: Arc<Link>) -> Arc<Sessions> {
        let children = Children::new();
        let table = Mutex::new(Table {
            next: 1,
            sessions: BTreeMap::new(),
        });
        let sessions = Arc::new(Sessions {
            link: Arc::clone(&link),
            children,
            table,
        });
        let hooked = Arc::downgrade(&sessions);
        link.on_established(move || {
            if let Some(sessions) = hooked.upgrade() {
                sessions.each(|session| session.tell(Control::LinkUp));
            }
        });
        sessions
    }

    fn each(&self, act: impl Fn(&Session)) {
        for session in lock(&self.table).sessions.values() {
            act(session);
        }
    }

    /// Makes a session and subscribes it; called by the link's reader, so that nothing on the stream is missed.
    pub fn prepare(&self, stream: u32, request: &ExecRequest) -> Option<Arc<Session>> {
        let id = {
            let mut table = lock(&self.table);
            if table.sessions.len() >= MAX_SESSIONS {
                drop(table);
                self.link.fail(
                    stream,
                    ErrorKind::Busy,
                    "too many exec sessions in the guest",
                );
                return None;
            }
            let id = table.next;
            table.next += 1;
            id
        };
        match Session::new(id, request) {
            Ok(session) => {
                let session = Arc::new(session);
                self.subscribe(&session, stream);
                let request = AttachRequest {
                    session: id,
                    ..AttachRequest::default()
                };
                session.tell(Control::Attach { stream, request });
                Some(session)
            }
            Err(error) => {
                self.link.fail(
                    stream,
                    ErrorKind::Other,
                    format!("cannot make a session: {error}"),
                );
                None
            }
        }
    }

    /// Starts a prepared session's command and serves it to its end.
    pub fn exec(&self, stream: u32, session: &Arc<Session>, request: &ExecRequest) {
        let user = match request
            .user
            .as_deref()
            .map(crate::guest::users::find)
            .transpose()
        {
            Ok(user) => user,
            Err(message) => return self.link.fail(stream, ErrorKind::NotFound, message),
        };
        let notified = Arc::clone(session);
        let notify = Box::new(move |status| notified.tell(Control::Exited(status)));
        let started = match start(&self.children, request, user.as_ref(), notify) {
            Ok(started) => started,
            Err((kind, message)) => return self.link.fail(stream, kind, message),
        };
        session.set_pid(started.pid);
        lock(&self.table)
            .sessions
            .insert(session.id(), Arc::clone(session));
        SessionThread::new(
            Arc::clone(session),
            Arc::clone(&self.link),
            started,
            request,
        )
        .run();
        lock(&self.table).sessions.remove(&session.id());
    }

    /// Hands a session to another stream.
    pub fn attach(&self, stream: u32, request: AttachRequest) {
        let session = lock(&self.table).sessions.get(&request.session).cloned();
        let Some(session) = session else {
            let message = format!("the guest has no exec session {}", request.session);
            return self.link.fail(stream, ErrorKind::NotFound, message);
        };
        self.subscribe(&session, stream);
        session.tell(Control::Attach { stream, request });
    }

    fn subscribe(&self, session: &Arc<Session>, stream: u32) {
        let session = Arc::clone(session);
        self.link.set_sink(
            stream,
            Arc::new(move |incoming: Incoming| {
                session.tell(Control::Incoming { stream, incoming });
            }),
        );
    }

    pub fn list(&self) -> Reply {
        let sessions: Vec<SessionInfo> = lock(&self.table)
            .sessions
            .values()
            .map(|session| session.info())
            .collect();
        Reply::Sessions { sessions }
    }

    /// Makes room: the oldest results go when there are too many.
    pub fn ended(&self) {
        let table = lock(&self.table);
        let ended: Vec<&Arc<Session>> = table
            .sessions
            .values()
            .filter(|session| session.is_abandoned())
            .collect();
        for session in ended.iter().take(ended.len().saturating_sub(KEPT_SESSIONS)) {
            session.tell(Control::Forget);
        }
    }
}

type StartError = (ErrorKind, String);

fn start(
    children: &Children,
    request: &ExecRequest,
    user: Option<&User>,
    notify: Box<dyn FnOnce(innkeeper_agent::message::ExitStatus) + Send>,
) -> Result<Started, StartError> {
    let other =
        |what: &str, error: std::io::Error| (ErrorKind::Other, format!("cannot {what}: {error}"));
    let Some((program, arguments)) = request.argv.split_first() else {
        return Err((ErrorKind::Invalid, "the command is empty".to_owned()));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    command.env(
        "PATH",
        std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned()),
    );
    let current = crate::guest::users::find(&rustix::process::getuid().as_raw().to_string()).ok();
    if let Some(user) = user.or(current.as_ref()) {
        command
            .env("HOME", &user.home)
            .env("USER", &user.name)
            .env("LOGNAME", &user.name)
            .env("SHELL", &user.shell);
    }
    if let Some(terminal) = &request.tty {
        let term = if terminal.term.is_empty() {
            "xterm-256color"
        } else {
            &terminal.term
        };
        command.env("TERM", term);
    }
    command.envs(&request.env);
    match &request.cwd {
        Some(directory) => {
            // Asked first, or a missing directory would read like a missing command.
            match std::fs::metadata(directory) {
                Ok(metadata) if metadata.is_dir() => {}
                Ok(_) => {
                    return Err((
                        ErrorKind::NotFound,
                        format!("{directory} is no directory in the guest"),
                    ));
                }
                Err(error) => {
                    return Err((
                        ErrorKind::NotFound,
                        format!("cannot enter {directory} in the guest: {error}"),
                    ));
                }
            }
            command.current_dir(directory);
        }
        None => {
            let home = user.or(current.as_ref()).map(|user| user.home.as_str());
            let home = home.filter(|home| std::path::Path::new(home).is_dir());
            command.current_dir(home.unwrap_or("/"));
        }
    }
    let mut terminal = None;
    let mut slave = None;
    if let Some(size) = &request.tty {
        let (main, side) = open_terminal(size.rows, size.columns)
            .map_err(|error| other("open a terminal", error))?;
        let clone = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|error| other("open a terminal", error))
        };
        command
            .stdin(clone(&side)?)
            .stdout(clone(&side)?)
            .stderr(clone(&side)?);
        terminal = Some(main);
        slave = Some(side);
    } else {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }
    prepare_child(&mut command, user.cloned(), terminal.is_some());
    let mut child = children
        .spawn(&mut command, notify)
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => (
                ErrorKind::CommandNotFound,
                format!("the guest has no command {program:?}"),
            ),
            _ => (
                ErrorKind::CannotExecute,
                format!("the guest cannot execute {program:?}: {error}"),
            ),
        })?;
    drop(slave);
    let pid = child.id();
    let started = match terminal {
        Some(main) => Started {
            pid,
            stdin: main
                .try_clone()
                .map_err(|error| other("open a terminal", error))?,
            stdout: main
                .try_clone()
                .map_err(|error| other("open a terminal", error))?,
            stderr: None,
            terminal: Some(main),
        },
        None => match (child.stdin.take(), child.stdout.take(), child.stderr.take()) {
            (Some(stdin), Some(stdout), Some(stderr)) => Started {
                pid,
                stdin: stdin.into(),
                stdout: stdout.into(),
                stderr: Some(stderr.into()),
                terminal: None,
            },
            _ => return Err((ErrorKind::Other, "the command has no pipes".to_owned())),
        },
    };
    for fd in [
        Some(&started.stdin),
        Some(&started.stdout),
        started.stderr.as_ref(),
    ]
    .into_iter()
    .flatten()
    {
        let flags =
            rustix::fs::fcntl_getfl(fd).map_err(|error| other("set up a pipe", error.into()))?;
        rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
            .map_err(|error| other("set up a pipe", error.into()))?;
    }
    Ok(started)
}

fn open_terminal(rows: u16, columns: u16) -> std::io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&main)?;
    unlockpt(&main)?;
    let name = ptsname(&main, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let side = rustix::fs::open(name, flags, Mode::empty())?;
    resize(&main, rows, columns)?;
    Ok((main, side))
}

/// Sets a terminal's size.
pub fn resize(terminal: &OwnedFd, rows: u16, columns: u16) -> std::io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

#[allow(unsafe_code)]
fn prepare_child(command: &mut Command, user: Option<User>, terminal: bool) {
    let in_child = move || {
        // As init the agent blocks the signals that it waits for, and a child would inherit that.
        // SAFETY: the set is a plain value that sigemptyset fills in; both calls are async-signal-safe.
        unsafe {
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        }
        rustix::process::setsid()?;
        if terminal {
            // Standard input is the terminal's side by now.
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Some(user) = &user {
            // SAFETY: plain system calls with the vector's own pointer and length; the kernel only reads from it.
            let refused = unsafe {
                libc::setgroups(user.groups.len() as _, user.groups.as_ptr()) != 0
                    || libc::setgid(user.gid) != 0
                    || libc::setuid(user.uid) != 0
            };
            if refused {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: runs between fork and exec, where only async-signal-safe calls are allowed: the closure makes system calls
    // and touches no allocator and no lock (`user` was cloned before the fork and is only read).
    unsafe {
        command.pre_exec(in_child);
    }
}
