//! A network on a thread of its own, and the handle by which others ask it for things.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use super::network::Network;

type Request = Box<dyn FnOnce(&mut Network) + Send>;

/// Says that the network's thread has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the network has ended")]
pub struct Stopped;

/// Asks a running network for things. The network ends when it is dropped.
#[derive(Debug)]
pub struct Handle {
    requests: Option<Sender<Request>>,
    bell: UnixStream,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// Runs a network on a thread of its own.
///
/// # Errors
/// When there is no thread or no socket for it.
pub fn spawn(name: &str, mut network: Network) -> io::Result<Handle> {
    let (bell, ear) = UnixStream::pair()?;
    ear.set_nonblocking(true)?;
    bell.set_nonblocking(true)?;
    network.watch(ear.as_fd())?;
    let (requests, asked) = channel();
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || run(&mut network, ear, &asked))?;
    Ok(Handle {
        requests: Some(requests),
        bell,
        thread: Some(thread),
    })
}

fn run(network: &mut Network, mut ear: UnixStream, asked: &Receiver<Request>) -> io::Result<()> {
    loop {
        if !network.turn(None)? {
            continue;
        }
        let mut rings = [0; 64];
        match ear.read(&mut rings) {
            // The handle is gone.
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        while let Ok(request) = asked.try_recv() {
            request(network);
        }
    }
}

impl Handle {
    /// Lets the network's thread run a function between two batches, and waits for what it gives.
    ///
    /// # Errors
    /// When the network has ended.
    pub fn ask<T: Send + 'static>(
        &self,
        function: impl FnOnce(&mut Network) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered): (SyncSender<T>, _) = sync_channel(1);
        let request: Request = Box::new(move |network| {
            // Whoever asked may have stopped waiting.
            let _ = answer.send(function(network));
        });
        let requests = self.requests.as_ref().ok_or(Stopped)?;
        requests.send(request).map_err(|_| Stopped)?;
        match (&self.bell).write(&[1]) {
            Ok(_) => {}
            // It has been rung often enough already.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Stopped),
        }
        answered.recv().map_err(|_| Stopped)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.requests = None;
        // A socket that is closed already has told it.
        let _ = self.bell.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // It ends by itself; what it says at its end has nobody to hear it.
            let _ = thread.join();
        }
    }
}
