//! `inn cp` both ways, against the raw channel: another port of the same virtio-serial device of the same VM, which
//! `dd` in the guest reads or writes without our protocol.
//!
//! The port is plugged into the running VM. The control connection is the keeper's, so the keeper is killed for that
//! moment; the next command starts one that takes the VM over. Beside it: how long `inn exec` takes while a copy runs.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use super::installation::{Installation, finish_within, wait_within};
use super::raw::{Deadline, Killed};
use super::report::{Goal, Row, Unit};
use super::{Pair, measure, milliseconds};
use crate::process::{output, say, shown};

const NAME: &str = "copy";
const PORT: &str = "bench-raw";
const IN_GUEST: &str = "/tmp/copied";
const BLOCK: u64 = 65536;
/// At least 70% of the channel.
const RATIO: f64 = 1.0 / 0.7;

/// Measures both ways with a file of so many MiB, then `exec` beside a copy.
pub(super) fn run(
    installation: &mut Installation,
    pairs: usize,
    size_mib: u64,
) -> Result<Vec<Row>> {
    ensure!(
        (1..=1024).contains(&size_mib),
        "the size must be 1 to 1024 MiB: the guest's /tmp holds no more"
    );
    installation.add("run", NAME, &["--memory", "3GiB"])?;
    let bench = Copying::new(installation, size_mib << 20)?;
    let mut rows = measure(
        vec![
            Pair {
                name: format!("cp {size_mib} MiB into guest"),
                ours: Box::new(|| bench.in_ours()),
                theirs: Box::new(|| bench.in_raw()),
                goal: Some(Goal::Ratio(RATIO)),
            },
            // The file is there: both sides of the pair above leave it.
            Pair {
                name: format!("cp {size_mib} MiB out of guest"),
                ours: Box::new(|| bench.out_ours()),
                theirs: Box::new(|| bench.out_raw()),
                goal: Some(Goal::Ratio(RATIO)),
            },
        ],
        pairs,
    )?;
    for row in &rows {
        let speed = |milliseconds: f64| size_mib as f64 * 1000.0 / milliseconds;
        let theirs = row.peer.as_ref().map_or(f64::NAN, |peer| peer.theirs_ms);
        say(&format!(
            "{}: {:.0} MiB/s, raw {:.0} MiB/s",
            row.name,
            speed(row.ours.value),
            speed(theirs)
        ));
    }
    rows.push(Row::alone(
        "inn exec beside a copy",
        Unit::Milliseconds,
        bench.beside(pairs)?,
        Goal::Ours(100.0),
    )?);
    bench.clear()?;
    drop(bench);
    installation.remove(NAME)?;
    Ok(rows)
}

/// Writes a file that nothing can compress or leave out as a hole.
pub(super) fn write_noise(path: &Path, size: u64) -> Result<()> {
    let source = File::open("/dev/urandom").context("opening /dev/urandom")?;
    let mut file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    std::io::copy(&mut source.take(size), &mut file)
        .with_context(|| format!("writing {}", path.display()))?;
    Ok(())
}

/// A VM with a raw port, and a file to copy.
struct Copying<'a> {
    installation: &'a Installation,
    limit: Duration,
    size: u64,
    source: PathBuf,
    back: PathBuf,
    /// Device file of the raw port in the guest.
    device: String,
    stream: UnixStream,
}

impl<'a> Copying<'a> {
    fn new(installation: &'a Installation, size: u64) -> Result<Self> {
        let socket = installation.root().join("raw-port.sock");
        plug(installation, &socket)?;
        let stream = UnixStream::connect(&socket).context("connecting to the raw port")?;
        let bench = Self {
            installation,
            limit: installation.limit() * 10,
            size,
            source: installation.root().join("source"),
            back: installation.root().join("back"),
            device: device(installation)?,
            stream,
        };
        bench.stream.set_write_timeout(Some(bench.limit))?;
        write_noise(&bench.source, size)?;
        Ok(bench)
    }

    fn cp(&self, from: &Path, to: &Path) -> Command {
        let mut command = self.installation.command(&["cp", "-q"]);
        command.arg(from).arg(to);
        command
    }

    fn in_guest(&self) -> PathBuf {
        PathBuf::from(format!("{NAME}:{IN_GUEST}"))
    }

    fn in_ours(&self) -> Result<Duration> {
        self.clear()?;
        finish_within(self.cp(&self.source, &self.in_guest()), self.limit)
    }

    fn out_ours(&self) -> Result<Duration> {
        self.clear_back()?;
        let taken = finish_within(self.cp(&self.in_guest(), &self.back), self.limit)?;
        self.check_back()?;
        Ok(taken)
    }

    fn in_raw(&self) -> Result<Duration> {
        self.clear()?;
        let start = Instant::now();
        let mut child = self.dd(&self.device, IN_GUEST)?;
        let mut file = File::open(&self.source).context("opening the file to copy")?;
        let sent =
            std::io::copy(&mut file, &mut &self.stream).context("writing to the raw port")?;
        ensure!(sent == self.size, "only {sent} bytes went to the raw port");
        let (status, taken) = wait_within(&mut child.0, start, self.limit).context("dd")?;
        ensure!(status.success(), "dd in the guest ended with {status}");
        Ok(taken)
    }

    fn out_raw(&self) -> Result<Duration> {
        self.clear_back()?;
        let start = Instant::now();
        let mut child = self.dd(IN_GUEST, &self.device)?;
        let mut file = File::create(&self.back).context("making the file that comes back")?;
        let reader = Deadline {
            stream: self.stream.try_clone()?,
            until: start + self.limit,
        };
        std::io::copy(&mut reader.take(self.size), &mut file).context("reading the raw port")?;
        let (status, taken) = wait_within(&mut child.0, start, self.limit).context("dd")?;
        ensure!(status.success(), "dd in the guest ended with {status}");
        self.check_back()?;
        Ok(taken)
    }

    /// Starts `dd` in the guest; blocks are filled up, since a port gives what is there.
    fn dd(&self, from: &str, to: &str) -> Result<Killed> {
        let count = self.size / BLOCK;
        let words = [
            "exec".to_owned(),
            NAME.to_owned(),
            "dd".to_owned(),
            format!("if={from}"),
            format!("of={to}"),
            format!("bs={BLOCK}"),
            format!("count={count}"),
            "iflag=fullblock".to_owned(),
        ];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = self.installation.command(&words);
        // dd counts its blocks there.
        command.stderr(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", shown(&command)))?;
        Ok(Killed(child))
    }

    /// Removes the file in the guest, whose /tmp can't hold two.
    fn clear(&self) -> Result<()> {
        self.installation
            .run(&["exec", NAME, "rm", "-f", IN_GUEST])
            .map(|_| ())
    }

    fn clear_back(&self) -> Result<()> {
        match std::fs::remove_file(&self.back) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("removing the file that came back")
            }
            _ => Ok(()),
        }
    }

    fn check_back(&self) -> Result<()> {
        let length = std::fs::metadata(&self.back)
            .context("looking at the file that came back")?
            .len();
        ensure!(length == self.size, "{length} bytes came back");
        Ok(())
    }

    /// Times `inn exec` while a copy into the guest runs; only those that the copy outlived count.
    fn beside(&self, count: usize) -> Result<Vec<f64>> {
        let mut values = Vec::new();
        let until = Instant::now() + self.limit;
        while values.len() < count {
            self.clear()?;
            let mut command = self.cp(&self.source, &self.in_guest());
            let mut copy = Killed(command.spawn().context("starting inn cp")?);
            // Its file is there when the first bytes have come, so that the copy is under way.
            let status = loop {
                let taken = self.installation.run(&["exec", NAME, "true"])?;
                if let Some(status) = copy.0.try_wait()? {
                    break status;
                }
                values.push(milliseconds(taken));
                ensure!(Instant::now() < until, "inn cp takes too long");
            };
            ensure!(status.success(), "inn cp ended with {status}");
        }
        Ok(values)
    }
}

/// Plugs a port into the running VM's virtio-serial device, whose other end listens at the socket.
fn plug(installation: &Installation, socket: &Path) -> Result<()> {
    let keeper = installation.info(NAME)?.keeper_pid;
    let keeper = keeper
        .and_then(Pid::from_raw)
        .context("inn info names no keeper")?;
    rustix::process::kill_process(keeper, Signal::KILL).context("killing the keeper")?;
    let control = control_socket(&installation.root().join("run"))?;
    let mut stream = UnixStream::connect(&control)
        .with_context(|| format!("connecting to {}", control.display()))?;
    let mut lines = BufReader::new(Deadline {
        stream: stream.try_clone()?,
        until: Instant::now() + installation.limit(),
    });
    let mut execute = |command: Value| -> Result<()> {
        stream.write_all(format!("{command}\n").as_bytes())?;
        loop {
            let mut line = String::new();
            ensure!(
                lines.read_line(&mut line)? > 0,
                "QEMU closed the connection"
            );
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(());
            }
        }
    };
    execute(json!({"execute": "qmp_capabilities"}))?;
    execute(
        json!({"execute": "chardev-add", "arguments": {"id": PORT, "backend": {"type": "socket", "data": {
        "addr": {"type": "unix", "data": {"path": socket}}, "server": true, "wait": false}}}}),
    )?;
    execute(
        json!({"execute": "device_add", "arguments": {"driver": "virtserialport", "bus": "ports.0",
        "chardev": PORT, "name": PORT, "id": PORT}}),
    )
}

/// The control socket of the only VM that runs.
fn control_socket(runtime: &Path) -> Result<PathBuf> {
    let mut found = Vec::new();
    for home in std::fs::read_dir(runtime).context("reading the runtime directory")? {
        for vm in std::fs::read_dir(home?.path()).context("reading the runtime directory")? {
            let socket = vm?.path().join("qmp.sock");
            if socket.exists() {
                found.push(socket);
            }
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([socket]) => Ok(socket),
        Err(other) => bail!("{} control sockets where one VM runs", other.len()),
    }
}

/// The device file of the raw port in the guest, as soon as the guest has it.
fn device(installation: &Installation) -> Result<String> {
    let until = Instant::now() + installation.limit();
    let said = |words: &[&str]| -> Result<String> {
        let mut command = installation.command(&[&["exec", NAME], words].concat());
        let output = output(command.stdout(Stdio::piped()))?;
        let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "{}: {error}", shown(&command));
        Ok(String::from_utf8(output.stdout)?)
    };
    loop {
        for port in said(&["ls", "/sys/class/virtio-ports"])?.lines() {
            let name = format!("/sys/class/virtio-ports/{port}/name");
            if said(&["cat", &name])?.trim() == PORT {
                return Ok(format!("/dev/{port}"));
            }
        }
        ensure!(Instant::now() < until, "the guest did not see the raw port");
    }
}
