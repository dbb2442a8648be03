//! Requests: which part of the agent serves which, each on a thread of its own.

use crate::guest::exec::Sessions;
use crate::guest::link::Link;
use crate::guest::log::say;
use bytes::Bytes;
use innkeeper_agent::message::{
    Closing, ErrorKind, ExecRequest, Failure, GuestLog, Reply, Request, VsockDirection,
};
use innkeeper_agent::mux::Incoming;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// A mount waits so long for the last kernel module of a guest that has just begun.
const MODULES_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves requests.
pub struct Operations {
    link: Arc<Link>,
    sessions: Arc<Sessions>,
    is_init: bool,
    may_change_system: bool,
}

/// Starts a named thread. Threads of the agent have small stacks: under emulation a fresh page costs.
pub fn spawn(name: &str, act: impl FnOnce() + Send + 'static) {
    let name = name.to_owned();
    let started = std::thread::Builder::new()
        .name(name.clone())
        .stack_size(256 * 1024)
        .spawn(act);
    if let Err(error) = started {
        say(&format!("cannot start the thread {name}: {error}"));
    }
}

impl Operations {
    pub fn new(link: Arc<Link>, is_init: bool, may_change_system: bool) -> Arc<Operations> {
        let sessions = Sessions::new(Arc::clone(&link));
        Arc::new(Operations {
            link,
            sessions,
            is_init,
            may_change_system,
        })
    }

    /// Begins a request; called by the link's reader, so it must not block.
    pub fn open(self: &Arc<Self>, stream: u32, request: &[u8]) {
        let request = match serde_json::from_slice::<Request>(request) {
            Ok(request) => request,
            Err(error) => {
                let message = format!("this agent does not know the request: {error}");
                return self.link.fail(stream, ErrorKind::Unsupported, message);
            }
        };
        let operations = Arc::clone(self);
        let request = match request {
            Request::Vsock { direction, port } => Request::Exec(vsock_program(direction, port)),
            other => other,
        };
        match request {
            Request::Exec(request) => {
                if let Some(session) = self.sessions.prepare(stream, &request) {
                    spawn("exec", move || {
                        operations.sessions.exec(stream, &session, &request)
                    });
                }
            }
            // In the reader's order, so that no data overtakes the attachment.
            Request::Attach(request) => self.sessions.attach(stream, request),
            Request::CopyIn(request) => {
                let incoming = self.subscribe(stream);
                spawn("copy", move || {
                    crate::guest::transfer::copy_in(&operations.link, stream, &request, &incoming)
                });
            }
            Request::CopyOut(request) => {
                let incoming = self.subscribe(stream);
                spawn("copy", move || {
                    crate::guest::transfer::copy_out(&operations.link, stream, &request, &incoming)
                });
            }
            Request::ReadLog { log } => {
                let incoming = self.subscribe(stream);
                spawn("log", move || operations.read_log(stream, log, &incoming));
            }
            other => spawn("request", move || operations.simple(stream, other)),
        }
    }

    fn subscribe(&self, stream: u32) -> Receiver<Incoming> {
        let (sender, receiver) = channel();
        // What is sent to a thread that has ended is dropped: its stream is closed.
        self.link.set_sink(
            stream,
            Arc::new(move |incoming| drop(sender.send(incoming))),
        );
        receiver
    }

    fn simple(&self, stream: u32, request: Request) {
        let changes = matches!(
            request,
            Request::Shutdown { .. }
                | Request::SetTime { .. }
                | Request::BringOnline { .. }
                | Request::Mount(_)
                | Request::Unmount(_)
                | Request::SetHostname { .. }
        );
        if changes && !self.may_change_system {
            let message =
                "the agent serves a socket, not a guest's port: it changes nothing of the system";
            return self.link.fail(stream, ErrorKind::NotPermitted, message);
        }
        let result = match request {
            Request::ListExec => Ok(self.sessions.list()),
            Request::Addresses => crate::guest::network::interfaces()
                .map(|interfaces| Reply::Addresses { interfaces })
                .map_err(|error| failure("list the interfaces", &error)),
            Request::Metrics => Ok(Reply::Metrics(crate::guest::facts::metrics())),
            Request::Readiness => Ok(Reply::Readiness(crate::guest::facts::readiness())),
            Request::SetTime { unix_nanoseconds } => {
                crate::guest::power::set_time(unix_nanoseconds)
                    .map_err(|error| failure("set the clock", &error))
            }
            Request::BringOnline { cpus } => crate::guest::online::bring_online(cpus)
                .map_err(|error| failure("bring CPUs and memory into use", &error)),
            Request::Mount(request) => {
                if self.is_init {
                    crate::guest::modules::wait_for_all(MODULES_TIMEOUT);
                }
                crate::guest::init::mount(&request).map_err(|error| {
                    failure(
                        &format!("mount {} on {}", request.source, request.path),
                        &error,
                    )
                })
            }
            Request::Unmount(request) => crate::guest::unmount::unmount(&request)
                .map_err(|error| failure(&format!("unmount {}", request.path), &error)),
            Request::SetHostname { hostname } => rustix::system::sethostname(hostname.as_bytes())
                .map(|()| {
                    self.link
                        .set_guest(crate::guest::facts::guest_info(self.is_init));
                    Reply::Done
                })
                .map_err(|error| failure("set the host name", &error.into())),
            Request::Shutdown { how } => {
                // The answer first: afterwards nobody is left to give it.
                let _ = self.link.reply(stream, &Reply::Done);
                self.link.close(stream, &Closing::Done);
                return crate::guest::power::shutdown(&self.link, how, self.is_init);
            }
            _ => Err(Failure::new(
                ErrorKind::Unsupported,
                "this agent does not know the request",
            )),
        };
        match result {
            Ok(reply) => {
                let closing = match self.link.reply(stream, &reply) {
                    Ok(()) => Closing::Done,
                    Err(error) => {
                        Closing::Failed(Failure::new(ErrorKind::Other, error.to_string()))
                    }
                };
                self.link.close(stream, &closing);
            }
            Err(failure) => self.link.close(stream, &Closing::Failed(failure)),
        }
        self.sessions.ended();
    }

    fn read_log(&self, stream: u32, log: GuestLog, incoming: &Receiver<Incoming>) {
        let bytes = match log {
            GuestLog::Agent => Ok(crate::guest::log::kept()),
            GuestLog::Kernel => crate::guest::facts::kernel_log(),
            GuestLog::CloudInit => crate::guest::facts::cloud_init_log(),
        };
        match bytes {
            Ok(bytes) => {
                if crate::guest::transfer::send_all(
                    &self.link,
                    stream,
                    Bytes::from(bytes),
                    incoming,
                )
                .is_ok()
                {
                    let _ = self.link.end(stream, 1);
                    self.link.close(stream, &Closing::Done);
                }
            }
            Err(error) => self
                .link
                .close(stream, &Closing::Failed(failure("read the log", &error))),
        }
    }
}

/// The command that joins a vsock port: this very program, so that nothing else need be in the guest.
fn vsock_program(direction: VsockDirection, port: u32) -> ExecRequest {
    let verb = match direction {
        VsockDirection::Connect => "--vsock-connect",
        VsockDirection::Accept => "--vsock-accept",
    };
    ExecRequest {
        argv: ["/proc/self/exe", verb, &port.to_string()]
            .map(str::to_owned)
            .to_vec(),
        // A connection can't be attached again: with its host's end it ends.
        orphan_grace_seconds: Some(0),
        ..ExecRequest::default()
    }
}

/// Words for an IO error.
pub fn failure(operation: &str, error: &std::io::Error) -> Failure {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
        std::io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        _ => ErrorKind::Other,
    };
    Failure::new(kind, format!("the guest cannot {operation}: {error}"))
}
