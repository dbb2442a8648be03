//! The keeper's side of a serial or console port: what the guest writes goes to a log and to the client, if there is one.
//!
//! ```text
//!  guest ─ VZ ─ stream socket ─► task ─┬─► log
//!                    ▲                 └─► client, the newest alone
//!                    └───────────────────── client
//! ```
//!
//! A console is read whether or not somebody looks, since a guest stands still when its console does; a client that does not keep up
//! is put off. The agent's port is read only for a client, and nothing of it is lost.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdUnixStream;

use innkeeper_api::ErrorKind;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::driver::Channel;
use crate::error::{Error, Result};

/// Bytes that are taken at once.
const CHUNK: usize = 64 * 1024;

/// Bytes that may wait for a console's client before it is put off.
const BEHIND: usize = 1024 * 1024;

/// What is done with what the guest writes while nobody listens.
#[derive(Debug)]
pub(super) enum Unheard {
    /// It is taken, and written to the log if there is one.
    Taken(Option<File>),
    /// It waits for the next client.
    Waits,
}

/// A port, served by a task that ends with it or when the guest's side closes.
#[derive(Debug)]
pub(super) struct Port {
    name: String,
    clients: mpsc::Sender<StdUnixStream>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Port {
    /// Begins to serve a port, of which `guest` is our end.
    pub(super) fn serve(name: &str, guest: StdUnixStream, unheard: Unheard) -> io::Result<Self> {
        guest.set_nonblocking(true)?;
        let guest = UnixStream::from_std(guest)?;
        let (clients, incoming) = mpsc::channel(1);
        let task = tokio::spawn(Server::new(guest, unheard).run(incoming));
        Ok(Port {
            name: name.to_owned(),
            clients,
            task,
        })
    }

    /// Makes a channel to the port; the one before ends.
    pub(super) async fn open(&self) -> Result<Box<dyn Channel>> {
        let cannot = |error| Error::io(format!("can't open the port {}", self.name), error);
        let (ours, theirs) = StdUnixStream::pair().map_err(cannot)?;
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).map_err(cannot)?;
        }
        let theirs = UnixStream::from_std(theirs).map_err(cannot)?;
        self.clients.send(ours).await.map_err(|_| {
            Error::new(
                ErrorKind::Unreachable,
                format!("the machine has closed its port {}", self.name),
            )
        })?;
        Ok(Box::new(theirs))
    }
}

struct Server {
    guest: UnixStream,
    unheard: Unheard,
    client: Option<UnixStream>,
    to_guest: VecDeque<u8>,
    to_client: VecDeque<u8>,
}

impl Server {
    fn new(guest: UnixStream, unheard: Unheard) -> Self {
        Server {
            guest,
            unheard,
            client: None,
            to_guest: VecDeque::new(),
            to_client: VecDeque::new(),
        }
    }

    async fn run(mut self, mut incoming: mpsc::Receiver<StdUnixStream>) {
        let mut chunk = vec![0; CHUNK];
        loop {
            let listens = self.client.is_some() && self.to_client.is_empty();
            let reads_guest = listens || matches!(self.unheard, Unheard::Taken(_));
            let reads_client = self.client.is_some() && self.to_guest.is_empty();
            let writes_client = self.client.is_some() && !self.to_client.is_empty();
            let client = self.client.as_ref();
            let step = tokio::select! {
                next = incoming.recv() => match next {
                    Some(next) => self.take(next),
                    None => return,
                },
                ready = self.guest.readable(), if reads_guest => match ready {
                    Ok(()) => self.read_guest(&mut chunk),
                    Err(_) => return,
                },
                ready = self.guest.writable(), if !self.to_guest.is_empty() => match ready {
                    Ok(()) => write(&self.guest, &mut self.to_guest),
                    Err(_) => return,
                },
                ready = ready_to_read(client), if reads_client => {
                    if ready.and_then(|()| self.read_client(&mut chunk)).is_err() {
                        self.put_off();
                    }
                    Ok(())
                },
                ready = ready_to_write(client), if writes_client => {
                    if ready.and_then(|()| self.write_client()).is_err() {
                        self.put_off();
                    }
                    Ok(())
                },
            };
            // The guest's side has closed: the machine is gone.
            if step.is_err() {
                return;
            }
        }
    }

    fn take(&mut self, client: StdUnixStream) -> io::Result<()> {
        self.put_off();
        // Fails only if the runtime is about to end.
        self.client = UnixStream::from_std(client).ok();
        Ok(())
    }

    fn put_off(&mut self) {
        self.client = None;
        self.to_client.clear();
        self.to_guest.clear();
    }

    fn read_guest(&mut self, chunk: &mut [u8]) -> io::Result<()> {
        let count = match self.guest.try_read(chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Unheard::Taken(Some(log)) = &mut self.unheard {
            // A full disk must not stop the guest.
            let _ = log.write_all(&chunk[..count]);
        }
        if self.client.is_some() {
            self.to_client.extend(&chunk[..count]);
            if self.to_client.len() > BEHIND {
                self.put_off();
            }
        }
        Ok(())
    }

    fn read_client(&mut self, chunk: &mut [u8]) -> io::Result<()> {
        let Some(client) = &self.client else {
            return Ok(());
        };
        match client.try_read(chunk) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.to_guest.extend(&chunk[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn write_client(&mut self) -> io::Result<()> {
        match &self.client {
            Some(client) => write(client, &mut self.to_client),
            None => Ok(()),
        }
    }
}

async fn ready_to_read(stream: Option<&UnixStream>) -> io::Result<()> {
    match stream {
        Some(stream) => stream.readable().await,
        None => std::future::pending().await,
    }
}

async fn ready_to_write(stream: Option<&UnixStream>) -> io::Result<()> {
    match stream {
        Some(stream) => stream.writable().await,
        None => std::future::pending().await,
    }
}

/// Writes as much as there is room for.
fn write(stream: &UnixStream, bytes: &mut VecDeque<u8>) -> io::Result<()> {
    let (first, _) = bytes.as_slices();
    match stream.try_write(first) {
        Ok(count) => {
            bytes.drain(..count);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn served(unheard: Unheard) -> (Port, UnixStream) {
        let (ours, guest) = StdUnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let port = Port::serve("test", ours, unheard).unwrap();
        (port, UnixStream::from_std(guest).unwrap())
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(DEADLINE, future)
            .await
            .expect("within the deadline")
    }

    #[tokio::test]
    async fn a_console_is_logged_unheard_and_heard() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let log = file.reopen().unwrap();
        let (port, mut guest) = served(Unheard::Taken(Some(log)));
        // More than a socket holds: it must be taken though nobody listens.
        let lines = vec![b'x'; 2 * BEHIND];
        within(guest.write_all(&lines)).await.unwrap();
        let mut client = within(port.open()).await.unwrap();
        within(client.write_all(b"ls\n")).await.unwrap();
        let mut typed = [0; 3];
        within(guest.read_exact(&mut typed)).await.unwrap();
        assert_eq!(&typed, b"ls\n");
        within(guest.write_all(b"out")).await.unwrap();
        within(client.read_exact(&mut typed)).await.unwrap();
        assert!(typed.ends_with(b"out") || typed == *b"xxx");
        drop(guest);
        let mut rest = Vec::new();
        within(client.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(
            file.as_file().metadata().unwrap().len(),
            2 * BEHIND as u64 + 3
        );
        assert!(within(port.open()).await.is_err());
    }

    #[tokio::test]
    async fn a_console_goes_on_when_its_client_does_not_read() {
        let (port, mut guest) = served(Unheard::Taken(None));
        let mut client = within(port.open()).await.unwrap();
        within(client.write_all(b"x")).await.unwrap();
        within(guest.read_exact(&mut [0])).await.unwrap();
        within(guest.write_all(&vec![b'x'; 4 * BEHIND]))
            .await
            .unwrap();
        // It was put off, and the port serves the next one.
        let mut next = within(port.open()).await.unwrap();
        within(next.write_all(b"y")).await.unwrap();
        within(guest.read_exact(&mut [0])).await.unwrap();
    }

    #[tokio::test]
    async fn the_agents_port_loses_nothing_and_has_one_client() {
        let (port, mut guest) = served(Unheard::Waits);
        within(guest.write_all(b"hello")).await.unwrap();
        let mut first = within(port.open()).await.unwrap();
        let mut hello = [0; 5];
        within(first.read_exact(&mut hello)).await.unwrap();
        assert_eq!(&hello, b"hello");
        let mut second = within(port.open()).await.unwrap();
        assert_eq!(within(first.read(&mut hello)).await.unwrap(), 0);
        within(guest.write_all(b"again")).await.unwrap();
        within(second.read_exact(&mut hello)).await.unwrap();
        assert_eq!(&hello, b"again");
    }
}
