//! The double of virtiofsd, and the hypervisor's side of it: vhost-user's first question, and its answer.
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
    let folder = arguments
        .iter()
        .skip_while(|argument| *argument != "--shared-dir")
        .nth(1);
    // It is tried out with the folder that it is in; what the script says is meant for the folder of a VM.
    let tried_out = folder.map(Path::new) == std::env::current_exe()?.parent()
        || folder.map(Path::new)
            == Path::new(&std::env::args().next().unwrap_or_default()).parent();
    let number: i32 = arguments
        .iter()
        .find_map(|argument| argument.strip_prefix("--fd=")?.parse().ok())
        .ok_or_else(|| io::Error::other("virtiofsd needs --fd"))?;
    match script.says("virtiofsd").as_deref().filter(|_| !tried_out) {
        Some("dead") => return Err(io::Error::other("can't serve: told to be dead")),
        Some("mute") => loop {
            std::thread::park();
        },
        _ => {}
    }
    let listener = UnixListener::from(inherited(number)?);
    let (mut stream, _) = listener.accept()?;
    let mut question = [0; 12];
    loop {
        match stream.read_exact(&mut question) {
            Ok(()) => stream.write_all(&answer())?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// GET_FEATURES, and the answer to it. Source: QEMU `docs/interop/vhost-user.rst`.
fn question() -> Vec<u8> {
    [1u32, 1, 0]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

fn answer() -> Vec<u8> {
    let words = [1u32, 5, 8, 0, 0];
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Connects as the hypervisor does: until it works, and without an answer for a minute.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let start = std::time::Instant::now();
    loop {
        if let Ok(mut stream) = UnixStream::connect(socket) {
            stream.set_read_timeout(Some(PATIENCE.0))?;
            if stream
                .write_all(&question())
                .and_then(|()| stream.read_exact(&mut [0; 20]))
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
