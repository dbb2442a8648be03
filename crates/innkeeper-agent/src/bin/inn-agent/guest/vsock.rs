//! Sockets by vsock: the agent's listener where the host's channel is one, and the small program that joins a vsock port to its standard
//! input and output.
//!
//! ```text
//!  inn-agent --vsock-connect PORT [CID]   connects; the guest itself (context id 1) unless told otherwise
//!  inn-agent --vsock-accept PORT          waits for one connection
//!  both: standard error gets a line of JSON for each step (`VsockStatus`), then standard input and output are the connection
//! ```
//!
//! The agent runs that program for a host whose guest has no vsock device: the kernel's loopback transport carries what is between the
//! programs of the guest. Source: vsock(7); kernel header uapi/linux/vm_sockets.h.

use std::io::{Read, Write};
use std::mem::size_of;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use innkeeper_agent::message::{VsockProblem, VsockStatus};

/// Context id of the guest itself, by the loopback transport.
pub const LOCAL: u32 = libc::VMADDR_CID_LOCAL;

/// `_IO(7, 0xb9)`.
const GET_LOCAL_CID: libc::c_ulong = 0x7b9;

/// How long the kernel's modules are waited for in a guest whose init is the agent.
const MODULES_DEADLINE: Duration = Duration::from_secs(10);

/// Joins a connection to standard input and output.
pub fn program(words: &[String]) -> ExitCode {
    wait_for_modules();
    let number = |text: &String| text.parse::<u32>().ok();
    let opened = match words {
        [verb, port] if verb == "--vsock-connect" => number(port).map(|port| connect(LOCAL, port)),
        [verb, port, cid] if verb == "--vsock-connect" => match (number(port), number(cid)) {
            (Some(port), Some(cid)) => Some(connect(cid, port)),
            _ => None,
        },
        [verb, port] if verb == "--vsock-accept" => number(port).map(|port| {
            let listener = listen(port)?;
            tell(&VsockStatus::Listening);
            accept(&listener, 0)
        }),
        _ => None,
    };
    let Some(opened) = opened else {
        eprintln!("usage: inn-agent --vsock-connect PORT [CID] | --vsock-accept PORT");
        return ExitCode::from(2);
    };
    match opened {
        Ok((stream, _)) => {
            tell(&VsockStatus::Connected);
            join(stream)
        }
        Err(error) => {
            tell(&VsockStatus::Failed {
                problem: problem(&error),
                message: error.to_string(),
            });
            ExitCode::FAILURE
        }
    }
}

/// Waits, where init is the agent, until it has tried all modules: vsock is among the last, and readiness does not wait for it.
fn wait_for_modules() {
    let of = |process: &str| std::fs::metadata(format!("/proc/{process}/exe"));
    let is_init = matches!((of("1"), of("self")), (Ok(init), Ok(own))
        if (init.dev(), init.ino()) == (own.dev(), own.ino()));
    let started = Instant::now();
    // poll: init has tried all modules
    while is_init
        && !std::path::Path::new(crate::guest::modules::TRIED_MARK).exists()
        && started.elapsed() < MODULES_DEADLINE
    {
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn tell(status: &VsockStatus) {
    if let Ok(mut line) = serde_json::to_vec(status) {
        line.push(b'\n');
        // Whoever is gone needs no status.
        let _ = std::io::stderr().write_all(&line);
    }
}

fn problem(error: &std::io::Error) -> VsockProblem {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => VsockProblem::InUse,
        // No family, no transport for the address, no device behind it.
        Some(libc::EAFNOSUPPORT | libc::ENODEV | libc::ENETUNREACH | libc::EADDRNOTAVAIL) => {
            VsockProblem::NoVsock
        }
        _ => VsockProblem::Unreachable,
    }
}

/// Passes bytes on both ways until both have ended.
fn join(stream: UnixStream) -> ExitCode {
    let Ok(mut to) = stream.try_clone() else {
        return ExitCode::FAILURE;
    };
    let feed = std::thread::spawn(move || {
        copy(&mut std::io::stdin().lock(), &mut to);
        // Refused where the peer has closed already.
        let _ = to.shutdown(Shutdown::Write);
    });
    {
        let mut from = &stream;
        let mut output = std::io::stdout().lock();
        copy(&mut from, &mut output);
    }
    // The reader of our output learns of its end now, and not only with that of our input.
    close_output();
    let _ = feed.join();
    ExitCode::SUCCESS
}

fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        // Standard output gathers lines, which a connection must not wait for.
        if to.write_all(&buffer[..count]).is_err() || to.flush().is_err() {
            return;
        }
    }
}

#[allow(unsafe_code)]
fn close_output() {
    // SAFETY: the descriptor is not used any more: the lock on standard output was given up, and nothing is printed after this.
    unsafe {
        libc::close(libc::STDOUT_FILENO);
    }
}

/// Connects. A vsock stream takes the same calls as any stream socket once it is connected, so it is held as one of the standard
/// library's; its addresses must not be asked for.
fn connect(cid: u32, port: u32) -> std::io::Result<(UnixStream, u32)> {
    let socket = socket(0)?;
    let address = address(cid, port);
    checked(|| {
        #[allow(unsafe_code)]
        // SAFETY: the address is a whole sockaddr_vm that lives through the call, and its size is told.
        unsafe {
            libc::connect(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_vm>() as libc::socklen_t,
            )
        }
    })?;
    Ok((UnixStream::from(socket), cid))
}

/// Listens on a port of the guest, whichever context id it is reached by.
pub fn listen(port: u32) -> std::io::Result<OwnedFd> {
    let socket = socket(libc::SOCK_NONBLOCK)?;
    let address = address(libc::VMADDR_CID_ANY, port);
    checked(|| {
        #[allow(unsafe_code)]
        // SAFETY: as in `connect`.
        unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_vm>() as libc::socklen_t,
            )
        }
    })?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

/// Takes the next connection, and tells the context id that it comes from. `flags` are those of the accepted socket.
pub fn accept(listener: &OwnedFd, flags: libc::c_int) -> std::io::Result<(UnixStream, u32)> {
    let mut set = [rustix::event::PollFd::new(
        listener,
        rustix::event::PollFlags::IN,
    )];
    // A signal ends the wait early; the call below then says that nothing is there.
    while let Err(rustix::io::Errno::INTR) = rustix::event::poll(&mut set, None) {}
    try_accept(listener, flags)
}

/// Takes a connection that waits. Errors: `WouldBlock` if none does.
pub fn try_accept(listener: &OwnedFd, flags: libc::c_int) -> std::io::Result<(UnixStream, u32)> {
    let mut peer = address(0, 0);
    let mut length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    let accepted = checked(|| {
        #[allow(unsafe_code)]
        // SAFETY: the kernel writes at most `length` bytes of an address, which is the size of `peer`.
        unsafe {
            libc::accept4(
                listener.as_raw_fd(),
                (&raw mut peer).cast(),
                &raw mut length,
                libc::SOCK_CLOEXEC | flags,
            )
        }
    })?;
    #[allow(unsafe_code)]
    // SAFETY: a descriptor that the kernel has just made, and that nobody else holds.
    let stream = unsafe { OwnedFd::from_raw_fd(accepted) };
    Ok((UnixStream::from(stream), peer.svm_cid))
}

/// Returns the guest's context id, if there is a host that reaches it by vsock.
pub fn context_id() -> Option<u32> {
    let device = std::fs::File::open("/dev/vsock").ok()?;
    let mut cid: u32 = 0;
    checked(|| {
        #[allow(unsafe_code)]
        // SAFETY: this ioctl writes one u32 to the address.
        unsafe {
            libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID as _, &raw mut cid)
        }
    })
    .ok()?;
    // 0 to 2 are the hypervisor, the guest itself and the host; the last number stands for none.
    (cid > libc::VMADDR_CID_HOST && cid != libc::VMADDR_CID_ANY).then_some(cid)
}

fn socket(flags: libc::c_int) -> std::io::Result<OwnedFd> {
    let socket = checked(|| {
        #[allow(unsafe_code)]
        // SAFETY: takes no memory.
        unsafe {
            libc::socket(
                libc::AF_VSOCK,
                libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags,
                0,
            )
        }
    })?;
    #[allow(unsafe_code)]
    // SAFETY: a descriptor that the kernel has just made, and that nobody else holds.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}

fn checked(mut call: impl FnMut() -> libc::c_int) -> std::io::Result<libc::c_int> {
    loop {
        match call() {
            -1 => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            done => return Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_becomes_a_problem_that_the_host_knows() {
        let of = |number| problem(&std::io::Error::from_raw_os_error(number));
        assert_eq!(of(libc::EADDRINUSE), VsockProblem::InUse);
        assert_eq!(of(libc::ENODEV), VsockProblem::NoVsock);
        assert_eq!(of(libc::ECONNRESET), VsockProblem::Unreachable);
    }
}
