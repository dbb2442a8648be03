//! The double of virtiofsd, and the hypervisor's side of it: a byte there and a byte back stand for vhost-user's first messages.
//!
//! Like the real one it serves a single connection and ends when that closes.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use crate::script::Script;

/// How long the hypervisor waits for virtiofsd, as the real one does; and between two attempts.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_millis(20));

/// Takes a descriptor that was inherited. A borrowed number would need `unsafe`; the kernel hands out a copy as well.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}

/// Plays virtiofsd.
pub fn serve(script: &Script) -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .iter()
        .any(|argument| argument == "--print-capabilities")
    {
        println!("{{\"type\": \"fs\", \"features\": [\"read-only\"]}}");
        return Ok(());
    }
    let number: i32 = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--fd=")?.parse().ok())
        .ok_or_else(|| io::Error::other("virtiofsd needs --fd"))?;
    match script.says("virtiofsd").as_deref() {
        Some("dead") => return Err(io::Error::other("can't serve: told to be dead")),
        Some("mute") => loop {
            std::thread::park();
        },
        _ => {}
    }
    let listener = UnixListener::from(inherited(number)?);
    let (mut stream, _) = listener.accept()?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

/// Connects as the hypervisor does: until it works, and without an answer for a minute.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let start = std::time::Instant::now();
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(PATIENCE.0))?;
            let mut byte = [b'?'];
            if stream
                .write_all(&byte)
                .and_then(|()| stream.read_exact(&mut byte))
                .is_ok()
            {
                return Ok(stream);
            }
        }
        if start.elapsed() > PATIENCE.0 {
            return Err(io::Error::other("vhost-user: no answer"));
        }
        // poll: virtiofsd listens again
        std::thread::sleep(PATIENCE.1);
    }
}
