//! One measured run of frames through one hop, for `cargo xtask bench net`: prints a line of JSON.
//!
//! ```text
//!  hop HOP flow SIZE FRAMES each|batch     sender ──► HOP ──► receiver, times until the last frame
//!  hop HOP turn SIZE ROUNDS                one frame to and fro, pinned: endpoints on one CPU, the hop on another
//! ```
//! HOP is `pair` (a socket pair, no hop), `relay` (reads and writes 64 KiB, looks at nothing), `switch`, `switch-idle` (with 100 more ports),
//! `vde:DIRECTORY` (a running vde_switch) or `bridge` (a Linux bridge with two TAPs, made in this process's network namespace: run it in one of its own).

use std::error::Error;
#[cfg(target_os = "linux")]
use std::io::IoSlice;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::ExitCode;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use innkeeper_net::batch;
#[cfg(target_os = "linux")]
use innkeeper_net::io::Attachment;
use innkeeper_net::io::{Handle, Network, StreamPort, Target, spawn};
use innkeeper_net::switch::{PortConfig, Switch, SwitchConfig};

type Failure = Box<dyn Error + Send + Sync>;
type Result<T> = std::result::Result<T, Failure>;

const BLOCK: usize = 64 * 1024;
/// A hop that loses frames has given its last when nothing came for so long.
const SILENCE: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hop: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<String> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [hop, "flow", size, frames, pace @ ("each" | "batch")] => {
            let path = Path::open(hop, None)?;
            flow(path, size.parse()?, frames.parse()?, pace == "batch")
        }
        [hop, "turn", size, rounds] => {
            let path = Path::open(hop, Some(1))?;
            turn(path, size.parse()?, rounds.parse()?)
        }
        _ => Err("usage: hop HOP flow SIZE FRAMES each|batch, or hop HOP turn SIZE ROUNDS".into()),
    }
}

/// An end of a path.
enum End {
    Stream(UnixStream),
    Datagram(UnixDatagram),
    #[cfg(target_os = "linux")]
    Tap(innkeeper_net::io::TapPort),
}

/// What is between the ends.
enum Hop {
    Nothing,
    Relay(Vec<(JoinHandle<()>, Sender<Sender<Duration>>)>),
    Switch(Handle),
    Elsewhere,
}

struct Path {
    left: End,
    right: End,
    hop: Hop,
}

impl Path {
    fn open(name: &str, cpu: Option<usize>) -> Result<Self> {
        let (left, near) = UnixStream::pair()?;
        if name == "pair" {
            return Ok(Path {
                left: End::Stream(left),
                right: End::Stream(near),
                hop: Hop::Nothing,
            });
        }
        if let Some(directory) = name.strip_prefix("vde:") {
            let directory = std::path::Path::new(directory);
            let (left, right) = (plug(directory, "left")?, plug(directory, "right")?);
            return Ok(Path {
                left: End::Datagram(left),
                right: End::Datagram(right),
                hop: Hop::Elsewhere,
            });
        }
        #[cfg(target_os = "linux")]
        if name == "bridge" {
            let (left, right) = bridge()?;
            return Ok(Path {
                left: End::Tap(left),
                right: End::Tap(right),
                hop: Hop::Elsewhere,
            });
        }
        let (far, right) = UnixStream::pair()?;
        let hop = match name {
            "relay" => relay(near, far, cpu)?,
            "switch" => switch(near, far, cpu, 0)?,
            "switch-idle" => switch(near, far, cpu, 100)?,
            _ => return Err(format!("{name:?} is no hop").into()),
        };
        Ok(Path {
            left: End::Stream(left),
            right: End::Stream(right),
            hop,
        })
    }
}

impl Hop {
    /// CPU time that a switch's thread has taken; none of others.
    fn switch_cpu(&self) -> Option<Duration> {
        match self {
            Hop::Switch(handle) => handle.ask(|_| thread_cpu()).ok(),
            Hop::Nothing | Hop::Elsewhere | Hop::Relay(_) => None,
        }
    }
}

#[cfg(target_os = "linux")]
fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
fn thread_cpu() -> Duration {
    Duration::ZERO
}

#[cfg(target_os = "linux")]
fn pin(cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        let mut set = rustix::thread::CpuSet::new();
        set.set(cpu);
        // With one CPU alone there is nothing to choose.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_: Option<usize>) {}

fn relay(near: UnixStream, far: UnixStream, cpu: Option<usize>) -> Result<Hop> {
    let ways = [(near.try_clone()?, far.try_clone()?), (far, near)];
    let threads = ways.map(|(mut from, mut to)| {
        let (ask, asked) = channel::<Sender<Duration>>();
        let thread = std::thread::spawn(move || {
            pin(cpu);
            let mut buffer = vec![0; BLOCK];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..length]).is_err() {
                    return;
                }
                while let Ok(answer) = asked.try_recv() {
                    let _ = answer.send(thread_cpu());
                }
            }
        });
        (thread, ask)
    });
    Ok(Hop::Relay(threads.into()))
}

fn switch(near: UnixStream, far: UnixStream, cpu: Option<usize>, idle: usize) -> Result<Hop> {
    let mut network = Network::new(Switch::new(&SwitchConfig::default()))?;
    for stream in [near, far] {
        let port = StreamPort::new(stream)?;
        network.add(PortConfig::default(), Target::Open(Box::new(port)))?;
    }
    for _ in 0..idle {
        let (ours, theirs) = UnixStream::pair()?;
        let port = StreamPort::new(ours)?;
        network.add(PortConfig::default(), Target::Open(Box::new(port)))?;
        // Open to the end of this process, and silent.
        std::mem::forget(theirs);
    }
    let handle = spawn("switch", network)?;
    handle.ask(move |_| pin(cpu))?;
    Ok(Hop::Switch(handle))
}

/// Plugs into a vde_switch: its control socket wants the address that its frames shall go to, and answers with its own.
///
/// Source: vde-2, `src/vde_switch/datasock.c`, `struct request_v3`.
fn plug(directory: &std::path::Path, name: &str) -> Result<UnixDatagram> {
    let own = directory.join(format!("{name}-{}", std::process::id()));
    let socket = UnixDatagram::bind(&own)?;
    let mut request = Vec::new();
    for word in [0xfeed_face_u32, 3, 0] {
        request.extend(word.to_ne_bytes());
    }
    request.extend(1u16.to_ne_bytes());
    let mut path = own
        .to_str()
        .ok_or("a path that is no text")?
        .as_bytes()
        .to_vec();
    path.resize(108, 0);
    request.extend(path);
    request.extend(b"hop\0");
    let mut control = UnixStream::connect(directory.join("ctl"))?;
    control.write_all(&request)?;
    let mut answer = [0; 110];
    control.read_exact(&mut answer)?;
    let path = answer[2..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    socket.connect(std::str::from_utf8(path)?)?;
    // The switch unplugs who closes this.
    std::mem::forget(control);
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn bridge() -> Result<(innkeeper_net::io::TapPort, innkeeper_net::io::TapPort)> {
    use innkeeper_net::io::TapPort;
    let ip = |line: &str| -> Result<()> {
        let status = std::process::Command::new("ip")
            .args(line.split(' '))
            .status()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("ip {line}: {status}").into())
        }
    };
    ip("link add hop0 type bridge")?;
    let taps = (TapPort::open("hop1")?, TapPort::open("hop2")?);
    for tap in ["hop1", "hop2"] {
        ip(&format!("link set {tap} master hop0"))?;
        ip(&format!("link set {tap} up"))?;
    }
    ip("link set hop0 up")?;
    Ok(taps)
}

fn frame(to: u8, from: u8, size: usize) -> Vec<u8> {
    let mut frame = vec![
        0x52, 0x54, 0, 0, 0, to, 0x52, 0x54, 0, 0, 0, from, 0x88, 0xb5,
    ];
    frame.resize(size, 0);
    frame
}

impl End {
    /// Sends bytes in batch form: all at once if it is a stream, else a frame each.
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            End::Stream(stream) => Ok(stream.write_all(bytes)?),
            End::Datagram(socket) => {
                for frame in batch::frames(bytes) {
                    socket.send(frame)?;
                }
                Ok(())
            }
            #[cfg(target_os = "linux")]
            End::Tap(tap) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    match tap.transmit(&[IoSlice::new(rest)]) {
                        Ok(sent) => rest = &rest[sent..],
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            std::thread::yield_now()
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(())
            }
        }
    }

    /// Reads some bytes of batch form; none when nothing came for a while.
    fn receive(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let length = match self {
            End::Stream(stream) => stream.read(buffer),
            End::Datagram(socket) => {
                let (prefix, room) = buffer.split_at_mut(batch::PREFIX);
                socket.recv(room).map(|length| {
                    prefix.copy_from_slice(&batch::prefix(length));
                    length + batch::PREFIX
                })
            }
            #[cfg(target_os = "linux")]
            End::Tap(tap) => wait_and_read(tap, buffer),
        };
        match length {
            Ok(length) => Ok(length),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn loses(&self) -> bool {
        !matches!(self, End::Stream(_))
    }
}

#[cfg(target_os = "linux")]
fn wait_and_read(
    tap: &mut innkeeper_net::io::TapPort,
    buffer: &mut [u8],
) -> std::io::Result<usize> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    match tap.receive(buffer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        received => return received,
    }
    let silence = Timespec::try_from(SILENCE).ok();
    let ready = poll(
        &mut [PollFd::from_borrowed_fd(tap.fd(), PollFlags::IN)],
        silence.as_ref(),
    )?;
    if ready == 0 {
        Ok(0)
    } else {
        tap.receive(buffer)
    }
}

/// Lets the hop learn where the receiver is.
fn introduce(path: &mut Path, size: usize) -> Result<()> {
    for end in [&path.left, &path.right] {
        match end {
            End::Stream(stream) => stream.set_read_timeout(Some(Duration::from_secs(10)))?,
            End::Datagram(socket) => socket.set_read_timeout(Some(SILENCE))?,
            #[cfg(target_os = "linux")]
            End::Tap(_) => {}
        }
    }
    let mut hello = Vec::new();
    batch::push(&mut hello, &frame(1, 2, size));
    path.right.send(&hello)?;
    let mut buffer = vec![0; BLOCK + batch::PREFIX + batch::LONGEST];
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let length = path.left.receive(&mut buffer)?;
        if batch::frames(&buffer[..length]).any(|got| got == frame(1, 2, size)) {
            return Ok(());
        }
        // A bridge that has just come up is not forwarding yet.
        path.right.send(&hello)?;
    }
    Err("the hop passes nothing".into())
}

fn flow(mut path: Path, size: usize, frames: usize, together: bool) -> Result<String> {
    introduce(&mut path, size)?;
    let Path {
        mut left,
        mut right,
        hop,
    } = path;
    let mut one = Vec::new();
    batch::push(&mut one, &frame(2, 1, size));
    let per_write = if together { BLOCK / one.len() } else { 1 };
    let bytes = one.repeat(per_write);
    let loses = left.loses();
    let total = frames * one.len();
    let before = hop.switch_cpu();
    let began = Instant::now();
    let sender = std::thread::spawn(move || -> Result<End> {
        let mut left_over = frames;
        while left_over > 0 {
            let now = per_write.min(left_over);
            left.send(&bytes[..now * bytes.len() / per_write])?;
            left_over -= now;
        }
        Ok(left)
    });
    let mut buffer = vec![0; BLOCK + batch::PREFIX + batch::LONGEST];
    let most = if loses { buffer.len() } else { BLOCK };
    let (mut received, mut ended) = (0, Instant::now());
    while received < total {
        let length = right.receive(&mut buffer[..most])?;
        if length == 0 {
            break;
        }
        received += length;
        ended = Instant::now();
    }
    let mut left = sender.join().map_err(|_| "the sender panicked")??;
    let elapsed = ended.saturating_duration_since(began);
    if received < total && !loses {
        return Err(format!("{received} of {total} bytes came").into());
    }
    let cpu = match before {
        Some(before) => hop.switch_cpu().map(|cpu| cpu.saturating_sub(before)),
        None => relay_cpu(&hop, &mut left, &one),
    };
    let cpu = cpu.map(|cpu| cpu.as_nanos());
    let came = received / one.len();
    Ok(format!(
        "{{\"frames\":{came},\"sent\":{frames},\"nanos\":{},\"hop_cpu_nanos\":{}}}",
        elapsed.as_nanos(),
        cpu.map_or("null".to_owned(), |cpu| cpu.to_string()),
    ))
}

/// Asks the way from left to right of a relay, which answers behind the frame that is sent then.
fn relay_cpu(hop: &Hop, left: &mut End, one: &[u8]) -> Option<Duration> {
    let Hop::Relay(threads) = hop else {
        return None;
    };
    let (answer, answered) = channel();
    threads.first()?.1.send(answer).ok()?;
    left.send(one).ok()?;
    answered.recv_timeout(Duration::from_secs(5)).ok()
}

fn turn(mut path: Path, size: usize, rounds: usize) -> Result<String> {
    pin(Some(0));
    introduce(&mut path, size)?;
    let Path {
        mut left,
        mut right,
        hop,
    } = path;
    let mut there = Vec::new();
    batch::push(&mut there, &frame(2, 1, size));
    let mut back = Vec::new();
    batch::push(&mut back, &frame(1, 2, size));
    let length = there.len();
    let echo = std::thread::spawn(move || -> Result<()> {
        pin(Some(0));
        let mut buffer = vec![0; BLOCK + batch::PREFIX + batch::LONGEST];
        for _ in 0..rounds {
            if receive_all(&mut right, &mut buffer, length)? {
                return Err("the hop lost a frame".into());
            }
            right.send(&back)?;
        }
        Ok(())
    });
    let mut buffer = vec![0; BLOCK + batch::PREFIX + batch::LONGEST];
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        left.send(&there)?;
        if receive_all(&mut left, &mut buffer, length)? {
            return Err("the hop lost a frame".into());
        }
        times.push(began.elapsed().as_nanos());
    }
    echo.join().map_err(|_| "the echo panicked")??;
    drop(hop);
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 1000).min(times.len() - 1)];
    Ok(format!(
        "{{\"rounds\":{rounds},\"p50_nanos\":{},\"p99_nanos\":{}}}",
        at(500),
        at(990)
    ))
}

/// Reads so many bytes; true if they did not come.
fn receive_all(end: &mut End, buffer: &mut [u8], length: usize) -> Result<bool> {
    let mut received = 0;
    while received < length {
        match end.receive(&mut buffer[received..])? {
            0 => return Ok(true),
            more => received += more,
        }
    }
    Ok(false)
}
