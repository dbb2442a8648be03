//! One exec session: a thread that moves bytes between a command and whoever is attached.
//!
//! ```text
//!            attach                     Gone: after a grace, SIGHUP
//!  started ────────► attached ─────────────────────────────────────► orphan ──attach──► attached
//!                       │  link lost: waits for a host, then the grace  │
//!                       │ command ended, output sent                    │ command ended
//!                       ▼                                               ▼
//!                    Exited sent ──Collected──► forgotten ◄──too old── result kept
//! ```
//! Output is read only as far as [`WINDOW`] bytes are not acknowledged (a credit frame after the first acknowledges), so
//! a command that nobody reads blocks, as it would on a pipe; what was sent but not acknowledged is kept and sent again
//! to the next consumer from the offset it names. A detached command, and one that was hung up, never blocks: the oldest
//! output is dropped.
//!
//! After the command itself has ended, what is in the pipes by then is still sent; output that its descendants write
//! later is not waited for.

use crate::guest::exec::{KEPT_FOR, Started, resize};
use crate::guest::link::Link;
use crate::guest::log::lock;
use bytes::Bytes;
use innkeeper_agent::message::{
    AttachRequest, Closing, ErrorKind, ExecRequest, ExitStatus, Input, Reply, SessionInfo,
};
use innkeeper_agent::mux::{Incoming, WINDOW};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const KEPT_BYTES: usize = WINDOW as usize;
const KEPT_PIECES: usize = 4096;
/// Grace after a lost link, whose clients need the host to come back first.
const LINK_GRACE: Duration = Duration::from_secs(30);

/// What a session's thread is told.
pub enum Control {
    Attach { stream: u32, request: AttachRequest },
    Incoming { stream: u32, incoming: Incoming },
    Exited(ExitStatus),
    LinkUp,
    Forget,
}

/// A session, as others see it.
pub struct Session {
    id: u64,
    argv: Vec<String>,
    pid: AtomicU32,
    attached: AtomicBool,
    exited: Mutex<Option<ExitStatus>>,
    inbox: Mutex<VecDeque<Control>>,
    wake: OwnedFd,
}

impl Session {
    pub fn new(id: u64, request: &ExecRequest) -> std::io::Result<Session> {
        Ok(Session {
            id,
            argv: request.argv.clone(),
            pid: AtomicU32::new(0),
            attached: AtomicBool::new(false),
            exited: Mutex::new(None),
            inbox: Mutex::new(VecDeque::new()),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn set_pid(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
    }

    pub fn tell(&self, control: Control) {
        lock(&self.inbox).push_back(control);
        // A full counter wakes as well as a raised one.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub fn info(&self) -> SessionInfo {
        SessionInfo {
            session: self.id,
            pid: self.pid.load(Ordering::Relaxed),
            argv: self.argv.clone(),
            attached: self.attached.load(Ordering::Relaxed),
            exited: *lock(&self.exited),
        }
    }

    /// True when it ended and nobody is attached.
    pub fn is_abandoned(&self) -> bool {
        !self.attached.load(Ordering::Relaxed) && lock(&self.exited).is_some()
    }
}

#[derive(Default)]
struct Output {
    fd: Option<OwnedFd>,
    /// Read and not sent, then sent and not acknowledged.
    unsent: VecDeque<Bytes>,
    unacknowledged: VecDeque<Bytes>,
    kept: usize,
    /// Offset of the oldest byte that is kept.
    base: u64,
    window_open: bool,
    end_sent: bool,
}

impl Output {
    fn has_room(&self) -> bool {
        self.kept < KEPT_BYTES && self.unsent.len() + self.unacknowledged.len() < KEPT_PIECES
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.kept += bytes.len();
        self.unsent.push_back(Bytes::copy_from_slice(bytes));
    }

    /// Forgets the oldest bytes.
    fn forget(&mut self, mut count: usize) {
        while count > 0 {
            let queue = if self.unacknowledged.is_empty() {
                &mut self.unsent
            } else {
                &mut self.unacknowledged
            };
            let Some(front) = queue.front_mut() else {
                return;
            };
            let piece = count.min(front.len());
            bytes::Buf::advance(front, piece);
            if front.is_empty() {
                queue.pop_front();
            }
            count -= piece;
            self.kept -= piece;
            self.base += piece as u64;
        }
    }

    /// Prepares to send again from an offset; gives the offset of the next byte.
    fn rewind(&mut self, offset: Option<u64>) -> u64 {
        while let Some(piece) = self.unacknowledged.pop_back() {
            self.unsent.push_front(piece);
        }
        let received = offset.unwrap_or(self.base).saturating_sub(self.base);
        self.forget(
            usize::try_from(received)
                .unwrap_or(usize::MAX)
                .min(self.kept),
        );
        self.window_open = false;
        self.end_sent = false;
        self.base
    }
}

/// The thread's own state.
pub struct SessionThread {
    session: Arc<Session>,
    link: Arc<Link>,
    pid: u32,
    consumer: Option<u32>,
    stdin: Option<OwnedFd>,
    stdin_queue: VecDeque<Bytes>,
    stdin_offset: u64,
    stdin_ended: bool,
    outputs: [Output; 2],
    terminal: Option<OwnedFd>,
    exit: Option<ExitStatus>,
    exit_sent: bool,
    detach: bool,
    hung_up: bool,
    grace: Duration,
    orphan_since_link_lost: bool,
    hang_up_at: Option<Instant>,
    forget_at: Option<Instant>,
    forgotten: bool,
}

impl SessionThread {
    pub fn new(
        session: Arc<Session>,
        link: Arc<Link>,
        started: Started,
        request: &ExecRequest,
    ) -> SessionThread {
        let output = |fd| Output {
            fd,
            ..Output::default()
        };
        SessionThread {
            session,
            link,
            pid: started.pid,
            consumer: None,
            stdin: Some(started.stdin),
            stdin_queue: VecDeque::new(),
            stdin_offset: 0,
            stdin_ended: false,
            outputs: [output(Some(started.stdout)), output(started.stderr)],
            terminal: started.terminal,
            exit: None,
            exit_sent: false,
            detach: request.detach,
            hung_up: false,
            grace: Duration::from_secs(u64::from(request.orphan_grace_seconds.unwrap_or(10))),
            orphan_since_link_lost: false,
            hang_up_at: None,
            forget_at: None,
            forgotten: false,
        }
    }

    /// Serves until the result was collected or is too old.
    pub fn run(mut self) {
        let mut buffer = vec![0; 64 * 1024];
        while !self.forgotten {
            self.control();
            self.send();
            if self.forgotten {
                break;
            }
            let ready = self.wait();
            if ready.iter().any(|ready| *ready) {
                self.write_stdin();
                for index in 0..2 {
                    self.read_output(index, &mut buffer, false);
                }
            }
            self.deadlines();
        }
    }

    /// Waits for the command, the inbox or a deadline; tells whether the command's ends may be ready.
    fn wait(&self) -> [bool; 3] {
        let mut set = vec![PollFd::new(&self.session.wake, PollFlags::IN)];
        let mut which = Vec::new();
        if let (Some(stdin), false) = (&self.stdin, self.stdin_queue.is_empty()) {
            set.push(PollFd::new(stdin, PollFlags::OUT));
            which.push(0);
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if let (Some(fd), true) = (&output.fd, output.has_room() || self.drops_output()) {
                set.push(PollFd::new(fd, PollFlags::IN));
                which.push(index + 1);
            }
        }
        let deadline = [self.hang_up_at, self.forget_at]
            .into_iter()
            .flatten()
            .min();
        let timeout = deadline.map(|deadline| {
            let left =
                deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut ready = [false; 3];
        if poll(&mut set, timeout.as_ref()).is_ok() {
            if !set[0].revents().is_empty() {
                let _ = rustix::io::read(&self.session.wake, &mut [0u8; 8]);
            }
            for (index, entry) in which.iter().zip(&set[1..]) {
                ready[*index] = !entry.revents().is_empty();
            }
        }
        ready
    }

    fn drops_output(&self) -> bool {
        self.consumer.is_none() && (self.detach || self.hung_up)
    }

    fn control(&mut self) {
        loop {
            let Some(control) = lock(&self.session.inbox).pop_front() else {
                return;
            };
            match control {
                Control::Attach { stream, request } => self.attach(stream, &request),
                Control::Incoming { stream, incoming } if self.consumer == Some(stream) => {
                    self.incoming(incoming)
                }
                Control::Incoming { .. } => {}
                Control::Exited(status) => self.exited(status),
                Control::LinkUp => {
                    if std::mem::take(&mut self.orphan_since_link_lost)
                        && self.consumer.is_none()
                        && self.exit.is_none()
                    {
                        self.hang_up_at = Some(Instant::now() + LINK_GRACE.max(self.grace));
                    }
                }
                Control::Forget => {
                    if self.consumer.is_none() {
                        self.forgotten = true;
                    }
                }
            }
        }
    }

    fn attach(&mut self, stream: u32, request: &AttachRequest) {
        if let Some(previous) = self.consumer.replace(stream) {
            self.link.fail(
                previous,
                ErrorKind::Busy,
                "another client attached to the session",
            );
        }
        self.session.attached.store(true, Ordering::Relaxed);
        (self.hang_up_at, self.forget_at, self.orphan_since_link_lost) = (None, None, false);
        self.exit_sent = false;
        let stdout_offset = self.outputs[0].rewind(request.stdout_offset);
        let stderr_offset = self.outputs[1].rewind(request.stderr_offset);
        let stdin_offset = self.stdin_offset;
        let (session, pid) = (self.session.id, self.pid);
        let started = Reply::Started {
            session,
            pid,
            stdin_offset,
            stdout_offset,
            stderr_offset,
        };
        // What fails here is a stream that has just closed; its end is in the inbox.
        let _ = self.link.reply(stream, &started);
        let queued: usize = self.stdin_queue.iter().map(Bytes::len).sum();
        let _ = self
            .link
            .grant(stream, 0, WINDOW.saturating_sub(queued as u32));
    }

    fn incoming(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Data { channel: 0, bytes } => {
                self.stdin_offset += bytes.len() as u64;
                if self.stdin.is_some() && !self.stdin_ended {
                    self.stdin_queue.push_back(bytes);
                    self.write_stdin();
                } else {
                    self.grant_stdin(bytes.len());
                }
            }
            Incoming::End { channel: 0 } => {
                self.stdin_ended = true;
                self.write_stdin();
            }
            Incoming::Credit {
                channel: channel @ (1 | 2),
                delta,
            } => {
                let output = &mut self.outputs[usize::from(channel) - 1];
                if std::mem::replace(&mut output.window_open, true) {
                    output.forget(delta as usize);
                }
            }
            Incoming::Message(json) => match serde_json::from_slice::<Input>(&json) {
                Ok(Input::Signal { number }) => self.signal(number),
                Ok(Input::Resize { rows, columns }) => {
                    if let Some(terminal) = &self.terminal {
                        // A terminal that is gone needs no size.
                        let _ = resize(terminal, rows, columns);
                    }
                }
                // A newer host's input; it knows from the hello what this agent can do.
                Ok(_) | Err(_) => {}
            },
            Incoming::Closed(closing) => self.lost_consumer(&closing),
            Incoming::Data { .. } | Incoming::End { .. } | Incoming::Credit { .. } => {}
        }
    }

    fn lost_consumer(&mut self, closing: &Closing) {
        self.consumer = None;
        self.session.attached.store(false, Ordering::Relaxed);
        match closing {
            Closing::Collected if self.exit.is_some() => self.forgotten = true,
            Closing::Detached => self.detach = true,
            Closing::Failed(failure) if failure.kind == ErrorKind::LinkLost => {
                self.orphan_since_link_lost = true
            }
            _ if self.exit.is_none() && !self.detach => {
                self.hang_up_at = Some(Instant::now() + self.grace)
            }
            _ => {}
        }
        if self.exit.is_some() {
            self.forget_at = Some(Instant::now() + KEPT_FOR);
        }
    }

    #[allow(unsafe_code)]
    fn signal(&self, number: i32) {
        if self.exit.is_none() && (1..=64).contains(&number) {
            // SAFETY: kill touches no memory. The process is not reaped before `Exited` was posted; between reaping and
            // our reading of the inbox the group may be empty, then the kernel answers ESRCH, which is fine.
            unsafe {
                libc::kill(-(self.pid as libc::pid_t), number);
            }
        }
    }

    fn exited(&mut self, status: ExitStatus) {
        let mut buffer = vec![0; 64 * 1024];
        for index in 0..2 {
            self.read_output(index, &mut buffer, true);
        }
        self.exit = Some(status);
        *lock(&self.session.exited) = Some(status);
        (self.stdin, self.terminal, self.hang_up_at) = (None, None, None);
        self.stdin_queue.clear();
        if self.consumer.is_none() {
            self.forget_at = Some(Instant::now() + KEPT_FOR);
        }
    }

    /// Reads what is there; at the command's end the rest of its pipe, whatever is kept already.
    fn read_output(&mut self, index: usize, buffer: &mut [u8], last: bool) {
        // A pipe holds 64 KiB, and at most 1 MiB where somebody raised it: a descendant that writes for ever ends here.
        let mut left = if last { 1024 * 1024 } else { KEPT_BYTES };
        let drops = self.drops_output();
        let output = &mut self.outputs[index];
        while left > 0 && (last || drops || output.has_room()) {
            let Some(fd) = &output.fd else { return };
            let size = buffer.len().min(left);
            match rustix::io::read(fd, &mut buffer[..size]) {
                Ok(0) => output.fd = None,
                Ok(count) => {
                    output.keep(&buffer[..count]);
                    left -= count;
                    if drops && output.kept > KEPT_BYTES {
                        output.forget(output.kept - KEPT_BYTES);
                    }
                    while drops && output.unsent.len() + output.unacknowledged.len() > KEPT_PIECES {
                        let oldest = output
                            .unacknowledged
                            .front()
                            .or(output.unsent.front())
                            .map_or(0, Bytes::len);
                        output.forget(oldest);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // A terminal whose sides are all closed reads as EIO.
                Err(_) => output.fd = None,
            }
        }
        if last {
            output.fd = None;
        }
    }

    fn write_stdin(&mut self) {
        while let (Some(stdin), Some(front)) = (&self.stdin, self.stdin_queue.front_mut()) {
            match rustix::io::write(stdin, front) {
                Ok(count) => {
                    bytes::Buf::advance(front, count);
                    if front.is_empty() {
                        self.stdin_queue.pop_front();
                    }
                    self.grant_stdin(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // The command closed its input: what comes is taken and dropped, as a shell's pipe would.
                    let dropped: usize = self.stdin_queue.iter().map(Bytes::len).sum();
                    self.stdin_queue.clear();
                    self.stdin = None;
                    self.grant_stdin(dropped);
                }
            }
        }
        if self.stdin_ended
            && let Some(stdin) = self.stdin.take()
            && self.terminal.is_some()
        {
            // A terminal has no end to close: end of file is a character there (VEOF, by default ^D).
            let _ = rustix::io::write(&stdin, &[4]);
        }
    }

    fn grant_stdin(&self, count: usize) {
        if let (Some(stream), true) = (self.consumer, count > 0) {
            let _ = self.link.grant(stream, 0, count as u32);
        }
    }

    /// Sends what credit allows, and the result when all is sent.
    fn send(&mut self) {
        let Some(stream) = self.consumer else { return };
        let mut all = true;
        for (output, channel) in self.outputs.iter_mut().zip([1u8, 2]) {
            while let Some(front) = output.unsent.front_mut() {
                let credit = self.link.writable(stream, channel).min(front.len());
                if credit == 0 {
                    break;
                }
                let piece = front.split_to(credit);
                if front.is_empty() {
                    output.unsent.pop_front();
                }
                let failed = self.link.data(stream, channel, piece.clone()).is_err();
                output.unacknowledged.push_back(piece);
                if failed {
                    return;
                }
            }
            if output.fd.is_none() && output.unsent.is_empty() {
                if !output.end_sent {
                    output.end_sent = self.link.end(stream, channel).is_ok();
                }
            } else {
                all = false;
            }
        }
        if let (Some(status), true, false) = (self.exit, all, self.exit_sent) {
            self.exit_sent = self.link.reply(stream, &Reply::Exited(status)).is_ok();
        }
    }

    fn deadlines(&mut self) {
        let now = Instant::now();
        if self.hang_up_at.is_some_and(|at| at <= now) {
            self.hang_up_at = None;
            self.hung_up = true;
            self.signal(1);
            self.stdin = None;
        }
        if self.forget_at.is_some_and(|at| at <= now) {
            self.forgotten = true;
        }
    }
}
