//! The agent's channel: whole frames from the host to the guest agent and back, but for requests that would end the guest's run.
//!
//! The agent runs on this computer, which must stay: a shutdown is taken out of the frames and answered here, as a guest's agent would.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use innkeeper_agent::frame::{HEADER_LEN, Header, HeaderError, Kind};
use innkeeper_agent::message::{AgentEvent, Closing, Reply, Request, ShutdownKind};

use crate::control::is_open;
use crate::guest::{Guest, Order};
use crate::run::broken;

pub(crate) fn start(guest: &Arc<Guest>, hosts: UnixListener, agents: UnixListener) {
    let (queue, accepted) = channel();
    let checked = guest.clone();
    std::thread::spawn(move || {
        let mut current: Option<UnixStream> = None;
        while let Ok((stream, _)) = hosts.accept() {
            if current.as_ref().is_some_and(is_open) {
                broken(
                    &checked.plan,
                    "the agent's channel was opened while it was open",
                );
            }
            current = stream.try_clone().ok();
            if queue.send(stream).is_err() {
                return;
            }
        }
    });
    let guest = guest.clone();
    std::thread::spawn(move || connect(&guest, &accepted, &agents));
}

/// Joins one host at a time to one agent at a time. An agent is only taken while there is a host, as a virtio port opens.
fn connect(guest: &Arc<Guest>, hosts: &Receiver<UnixStream>, agents: &UnixListener) {
    while let Ok(host) = hosts.recv() {
        while is_open(&host) {
            // While a guest boots, its host may vanish; then the agent finds its connection closed and comes again.
            let Ok((agent, _)) = agents.accept() else {
                return;
            };
            if !is_open(&agent) {
                continue;
            }
            let (Ok(to_agent), Ok(from_host), Ok(to_host)) =
                (agent.try_clone(), host.try_clone(), host.try_clone())
            else {
                return;
            };
            // Both directions write to the host: whole frames each.
            let to_host = Arc::new(Mutex::new(to_host));
            let answers = to_host.clone();
            let reader = std::thread::spawn(move || {
                // However it ends, the other direction ends with it; a host that stays gets the next agent.
                let _ = from_agent(agent, &to_host);
            });
            let gone = to_agent_of(guest, from_host, &answers, to_agent);
            let _ = reader.join();
            if gone {
                break;
            }
        }
    }
}

fn from_agent(mut agent: UnixStream, host: &Mutex<UnixStream>) -> io::Result<()> {
    let copied = (|| loop {
        let (_, bytes) = read_frame(&mut agent)?;
        lock(host).write_all(&bytes)?;
    })();
    // Wakes the other direction, which waits for the host: see `to_agent_of`.
    let _ = agent.shutdown(std::net::Shutdown::Both);
    copied
}

/// Passes the host's frames to the agent until one of them is gone; says whether it is the host.
fn to_agent_of(
    guest: &Guest,
    mut host: UnixStream,
    answers: &Mutex<UnixStream>,
    mut agent: UnixStream,
) -> bool {
    loop {
        // Waits for either: a frame of the host, or the end of the agent.
        match wait(&host, &agent) {
            Waited::Agent => return false,
            Waited::Host => {}
        }
        let Ok((header, bytes)) = read_frame(&mut host) else {
            let _ = agent.shutdown(std::net::Shutdown::Both);
            return true;
        };
        if let Some(how) = header.and_then(|header| asks_for_shutdown(&header, &bytes)) {
            let stream = header.map_or(0, |header| header.stream);
            if answer_shutdown(&mut lock(answers), stream, how).is_ok() {
                guest.shutdown(if how == ShutdownKind::Reboot {
                    Order::Reboot
                } else {
                    Order::PowerOff
                });
            }
            continue;
        }
        if agent.write_all(&bytes).is_err() {
            return !is_open(&host);
        }
    }
}

fn lock(stream: &Mutex<UnixStream>) -> std::sync::MutexGuard<'_, UnixStream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Waited {
    Host,
    Agent,
}

fn wait(host: &UnixStream, agent: &UnixStream) -> Waited {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        let mut set = [
            PollFd::new(host, PollFlags::IN),
            PollFd::new(agent, PollFlags::RDHUP),
        ];
        match poll(&mut set, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return Waited::Host,
            Ok(_)
                if set[1]
                    .revents()
                    .intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR) =>
            {
                return Waited::Agent;
            }
            Ok(_) if !set[0].revents().is_empty() => return Waited::Host,
            Ok(_) => {}
        }
    }
}

/// Reads a whole frame; its header is none if its kind is unknown.
fn read_frame(from: &mut UnixStream) -> io::Result<(Option<Header>, Vec<u8>)> {
    let mut bytes = vec![0; HEADER_LEN];
    from.read_exact(&mut bytes)?;
    let mut fixed = [0; HEADER_LEN];
    fixed.copy_from_slice(&bytes);
    let (header, length) = match Header::decode(&fixed) {
        Ok(header) => (Some(header), header.length),
        Err(HeaderError::UnknownKind { length }) => (None, length),
        Err(HeaderError::Garbage) => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "out of step"));
        }
    };
    bytes.resize(HEADER_LEN + length as usize, 0);
    from.read_exact(&mut bytes[HEADER_LEN..])?;
    Ok((header, bytes))
}

fn asks_for_shutdown(header: &Header, frame: &[u8]) -> Option<ShutdownKind> {
    if header.kind != Kind::Open {
        return None;
    }
    match serde_json::from_slice(&frame[HEADER_LEN..]) {
        Ok(Request::Shutdown { how }) => Some(how),
        _ => None,
    }
}

/// Answers as the agent does: the promise, the end of the stream, the announcement.
fn answer_shutdown(host: &mut UnixStream, stream: u32, how: ShutdownKind) -> io::Result<()> {
    let mut frames = frame(Kind::Message, stream, serde_json::to_vec(&Reply::Done)?);
    frames.extend(frame(
        Kind::Close,
        stream,
        serde_json::to_vec(&Closing::Done)?,
    ));
    frames.extend(frame(
        Kind::Event,
        0,
        serde_json::to_vec(&AgentEvent::Halting { how })?,
    ));
    host.write_all(&frames)
}

fn frame(kind: Kind, stream: u32, payload: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = Header {
        kind,
        channel: 0,
        stream,
        length,
    }
    .encode()
    .to_vec();
    bytes.extend(payload);
    bytes
}
