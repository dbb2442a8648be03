//! How fast a guest is under our plan, against the same hypervisor started by hand with the best options that we know.
//!
//! Both guests are raw QEMU: one with the very arguments that the driver planned, one with what people recommend put in their place, so
//! that nothing differs but the plan (a keeper is on no path of a guest's CPU, disk or user network). Both run at once and take turns.
//! A shell on the serial console does the work, beside the agent as init:
//!
//! ```text
//!  rdinit=/bin/sh ─► a shell in the background that keeps the console ─► exec /init ─► marker ─► work, said to be done by one line
//! ```

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::installation::Installation;
use super::raw::{Deadline, RawRunning, RawVm, wait_for};
use super::report::{Goal, Row};
use super::start::MARKER;
use super::{Pair, measure};

const NAME: &str = "guest";
const SPEC: &str = "image: tiny\ncpus: 2\nmemory: 1GiB\ndisks:\n  - name: data\n    size: 1GiB\n";
/// At most 3% slower.
const SPEED: Goal = Goal::Ratio(1.03);
/// What goes over the network in one go, in bytes.
const NETWORK: u64 = 16 << 20;
/// What the first shell says when it reads.
const SHELL: &[u8] = b"job control turned off";

/// What a guest does in one go; each takes some tenths of a second under emulation, so that turns are quick.
const DISK_WORK: [(&str, &str); 4] = [
    (
        "disk, writes of 1 MiB",
        "dd if=/dev/zero of=/dev/vda bs=1M count=128 oflag=direct",
    ),
    (
        "disk, reads of 1 MiB",
        "dd if=/dev/vda of=/dev/null bs=1M count=128 iflag=direct",
    ),
    (
        "disk, writes of 4 KiB",
        "dd if=/dev/zero of=/dev/vda bs=4k count=1024 oflag=direct",
    ),
    (
        "disk, reads of 4 KiB",
        "dd if=/dev/vda of=/dev/null bs=4k count=1024 iflag=direct",
    ),
];
const CPU_WORK: &str = "dd if=/dev/zero bs=1M count=16 | sha256sum";

/// Measures all.
pub(super) fn run(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    let spec = installation.root().join("guest.yaml");
    std::fs::write(&spec, SPEC).with_context(|| format!("writing {}", spec.display()))?;
    installation.add("create", NAME, &["-f", &spec.to_string_lossy()])?;
    installation.run(&["start", "-q", "--no-wait", NAME])?;
    let pid = installation.info(NAME)?.vmm_pid;
    let pid = pid.context("inn info names no hypervisor process")?;
    let directory = installation.root().join("guest");
    let planned = RawVm::like(pid, &directory.join("ours"))?;
    installation.run(&["kill", "-q", NAME])?;
    let words = planned
        .option("-append")
        .context("the VM has no kernel command line")?;
    let append = format!("rdinit=/bin/sh {words}");
    let planned = planned.with(&[("-append", &append)])?;
    let peers = [("cached by the host", false), ("uncached, io_uring", true)];
    let limit = installation.limit();
    let (source, sink) = (serve(Serving::Source)?, serve(Serving::Sink)?);
    let network = [
        (
            "network, into the guest",
            format!("nc 10.0.2.2 {source} >/dev/null"),
        ),
        (
            "network, out of the guest",
            format!(
                "dd if=/dev/zero bs=64k count={} | nc 10.0.2.2 {sink}",
                NETWORK >> 16
            ),
        ),
    ];
    let ours = RefCell::new(Guest::boot(&planned, limit)?);
    let mut rows = Vec::new();
    for (peer, direct) in peers {
        let by_hand = by_hand(
            &planned,
            &directory.join(if direct { "direct" } else { "cached" }),
            direct,
        )?;
        let theirs = RefCell::new(Guest::boot(&by_hand, limit)?);
        let mut work: Vec<(&str, &str)> = DISK_WORK.to_vec();
        if !direct {
            work.push(("CPU, SHA-256", CPU_WORK));
            work.extend(network.iter().map(|(name, text)| (*name, text.as_str())));
        }
        let list = work
            .into_iter()
            .map(|(name, text)| {
                let (ours, theirs, text) = (&ours, &theirs, text.to_owned());
                let again = text.clone();
                let of = if name.starts_with("disk") {
                    format!("{name}, by hand {peer}")
                } else {
                    name.to_owned()
                };
                Pair {
                    name: of,
                    ours: Box::new(move || ours.borrow_mut().work(&text)),
                    theirs: Box::new(move || theirs.borrow_mut().work(&again)),
                    goal: Some(SPEED),
                }
            })
            .collect();
        rows.extend(measure(list, pairs)?);
    }
    drop(ours);
    installation.remove(NAME)?;
    Ok(rows)
}

/// The planned machine with what people recommend for speed in place of what we chose, and a disk of its own.
fn by_hand(planned: &RawVm, directory: &Path, direct: bool) -> Result<RawVm> {
    let mut vm = planned.moved(directory)?;
    let arguments = vm.arguments_mut();
    let mut cpus = String::from("1");
    let mut at = 0;
    while at < arguments.len() {
        let option = arguments[at].clone();
        let Some(value) = arguments.get_mut(at + 1) else {
            break;
        };
        match option.as_str() {
            "-accel" if value == "tcg" => *value = "tcg,thread=multi,tb-size=1024".to_owned(),
            "-smp" => cpus = value.split(',').next().unwrap_or("1").to_owned(),
            "-blockdev" => *value = faster_node(value, directory, direct)?,
            "-device" if value.starts_with("virtio-blk-pci") => {
                value.push_str(&format!(
                    ",iothread=bench,num-queues={cpus},queue-size=1024"
                ));
            }
            "-device" if value.contains("virtio-blk-pci") => {
                let mut device: Value = serde_json::from_str(value).context("a device")?;
                device["iothread"] = json!("bench");
                device["queue-size"] = json!(1024);
                *value = device.to_string();
            }
            "-device" if value.starts_with("virtio-net-pci") => {
                value.push_str(",rx_queue_size=1024,tx_queue_size=256");
            }
            "-sandbox" => {
                arguments.drain(at..at + 2);
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    arguments.extend(["-object", "iothread,id=bench"].map(str::to_owned));
    Ok(vm)
}

/// Gives a disk's node another file with the same content, and the fastest way to it.
fn faster_node(text: &str, directory: &Path, direct: bool) -> Result<String> {
    let mut node: Value = serde_json::from_str(text).context("a block node that is no JSON")?;
    let before = node["file"]["filename"]
        .as_str()
        .context("a node without a file")?;
    let before = PathBuf::from(before);
    let after = directory.join("disk");
    std::fs::copy(&before, &after).with_context(|| format!("copying {}", before.display()))?;
    node["file"]["filename"] = json!(after);
    node["file"]["aio"] = json!("io_uring");
    if direct {
        node["cache"] = json!({ "direct": true, "no-flush": false });
        node["file"]["cache"] = json!({ "direct": true, "no-flush": false });
    }
    Ok(node.to_string())
}

/// A raw guest with a shell on its serial console.
struct Guest {
    _running: RawRunning,
    console: UnixStream,
    limit: Duration,
}

impl Guest {
    fn boot(vm: &RawVm, limit: Duration) -> Result<Self> {
        let mut running = vm.start(&[], &["serial0"])?;
        let mut guest = Self {
            console: running.stream("serial0")?,
            _running: running,
            limit,
        };
        guest.until(SHELL)?;
        guest.say("stty -echo; (sh </dev/console >/dev/console 2>&1 &); exec /init")?;
        guest.until(MARKER)?;
        guest.work("true")?;
        Ok(guest)
    }

    fn say(&mut self, text: &str) -> Result<()> {
        self.console
            .write_all(format!("{text}\n").as_bytes())
            .context("writing to the guest's console")
    }

    fn until(&mut self, marker: &[u8]) -> Result<()> {
        let reader = Deadline {
            stream: self.console.try_clone()?,
            until: Instant::now() + self.limit,
        };
        let word = String::from_utf8_lossy(marker).into_owned();
        ensure!(
            wait_for(reader, marker).with_context(|| format!("waiting for {word}"))?,
            "the guest ended before it said {word}"
        );
        Ok(())
    }

    /// Lets the shell do something, and says how long it took.
    fn work(&mut self, text: &str) -> Result<Duration> {
        let begun = Instant::now();
        // In two parts, so that an echo of the command is not taken for its end.
        self.say(&format!("{text} 2>/dev/null && echo inn-bench-\"done\""))?;
        self.until(b"inn-bench-done")?;
        Ok(begun.elapsed())
    }
}

/// What a peer of the guest does.
#[derive(Clone, Copy)]
enum Serving {
    /// Sends [`NETWORK`] bytes and ends.
    Source,
    /// Takes as many and ends.
    Sink,
}

/// Serves on a port of the loopback for as long as this process lives.
fn serve(what: Serving) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("binding a port")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let served = stream.and_then(|stream| exchange(stream, what));
            if let Err(error) = served {
                eprintln!("xtask: serving a guest: {error}");
            }
        }
    });
    Ok(port)
}

fn exchange(mut stream: TcpStream, what: Serving) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    let mut left = NETWORK;
    while left > 0 {
        match what {
            Serving::Source => {
                stream.write_all(&buffer)?;
                left -= buffer.len() as u64;
            }
            Serving::Sink => match stream.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => left = left.saturating_sub(count as u64),
            },
        }
    }
    Ok(())
}
