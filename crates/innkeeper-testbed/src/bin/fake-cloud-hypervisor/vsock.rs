//! The vsock device of the double: a unix socket on the host, as the real one's; the guest's programs are processes of the test.
//!
//! ```text
//!  host: connect to the device's socket, "CONNECT PORT\n" ─► a program that waits at guest.sock with that port ─► "OK NUMBER\n", then bytes
//!  a program that listens in the guest: connects to DIRECTORY/guest.sock; with `agent=listens` it is taken for the agent, on port 1021
//! ```

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crate::script::Script;

/// Port on which the agent listens. Not taken from the product: it is what agents in the field listen on, and must not change unseen.
const AGENT_PORT: &str = "1021";

/// Longest line that a host may begin with.
const LONGEST: usize = 32;

pub struct Vsock {
    socket: PathBuf,
    guest: Option<PathBuf>,
    _threads: Vec<JoinHandle<()>>,
}

impl Vsock {
    pub fn listen(socket: &Path, script: &Script) -> io::Result<Vsock> {
        let listener = UnixListener::bind(socket)?;
        let guest = script
            .is("agent", "listens")
            .then(|| script.at("guest.sock"));
        let agents = match &guest {
            Some(path) => {
                let _ = std::fs::remove_file(path);
                Some(UnixListener::bind(path)?)
            }
            None => None,
        };
        let thread = std::thread::spawn({
            let script = script.clone();
            move || {
                for stream in listener.incoming().flatten() {
                    if let Err(error) = serve(stream, agents.as_ref(), &script) {
                        eprintln!("vsock: {error}");
                    }
                }
            }
        });
        Ok(Vsock {
            socket: socket.to_owned(),
            guest,
            _threads: vec![thread],
        })
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // The thread waits on; nobody finds it any more.
        let _ = std::fs::remove_file(&self.socket);
        if let Some(guest) = &self.guest {
            let _ = std::fs::remove_file(guest);
        }
    }
}

/// Serves one connection of the host. Like the real one, a port on which nothing listens closes it without a word.
fn serve(mut host: UnixStream, agents: Option<&UnixListener>, script: &Script) -> io::Result<()> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        if line.len() == LONGEST || host.read(&mut byte)? == 0 {
            script.violated(&format!(
                "vsock: {:?} is no CONNECT",
                String::from_utf8_lossy(&line)
            ));
            return Ok(());
        }
        line.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&line).into_owned();
    let Some(port) = line.strip_prefix("CONNECT ").map(str::trim_end) else {
        script.violated(&format!("vsock: {line:?} is no CONNECT"));
        return Ok(());
    };
    let (Some(agents), true) = (agents, port == AGENT_PORT) else {
        return Ok(());
    };
    // The guest's kernel takes a connection before the agent does, which serves one at a time.
    host.write_all(b"OK 1073741824\n")?;
    let agents = agents.try_clone()?;
    std::thread::spawn(move || {
        let joined = agents.accept().and_then(|(guest, _)| join(host, guest));
        if let Err(error) = joined {
            eprintln!("vsock: {error}");
        }
    });
    Ok(())
}

fn join(host: UnixStream, guest: UnixStream) -> io::Result<()> {
    let (mut from_host, mut to_guest) = (host.try_clone()?, guest.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_host, &mut to_guest);
        // The real one knows no half-closed connections.
        let _ = to_guest.shutdown(Shutdown::Both);
    });
    let (mut from_guest, mut to_host) = (guest, host);
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_guest, &mut to_host);
        let _ = to_host.shutdown(Shutdown::Both);
    });
    Ok(())
}
