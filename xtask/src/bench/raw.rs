//! Raw QEMU with everything that a VM of ours has: the argv of its running hypervisor, started by hand.
//!
//! Our QEMU finds its sockets as descriptors that it inherits (`-chardev socket,id=ID,fd=N,...`). Here they are bound
//! and handed over the same way, at other numbers and paths, so that nothing differs but who starts it. Nobody talks on
//! the agent's channel.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::FdFlags;

/// A child that is killed and waited for however the measurement ends.
pub(super) struct Killed(pub(super) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail only when it has ended and been waited for, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The recipe of a raw VM.
#[derive(Clone)]
pub(super) struct RawVm {
    argv: Vec<String>,
    directory: PathBuf,
}

impl RawVm {
    /// Reads the argv of a running hypervisor; sockets and logs of the raw one come into the directory.
    pub(super) fn like(vmm_pid: i32, directory: &Path) -> Result<Self> {
        let path = format!("/proc/{vmm_pid}/cmdline");
        let bytes = std::fs::read(&path).with_context(|| format!("reading {path}"))?;
        let argv: Vec<String> = bytes
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8(word.to_vec()).with_context(|| format!("in {path}")))
            .collect::<Result<_>>()?;
        ensure!(!argv.is_empty(), "{path} is empty: it has ended");
        std::fs::create_dir_all(directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(Self {
            argv,
            directory: directory.to_owned(),
        })
    }

    /// Returns the value of an option that takes one.
    pub(super) fn option(&self, name: &str) -> Option<&str> {
        let at = self.argv.iter().position(|word| word == name)?;
        self.argv.get(at + 1).map(String::as_str)
    }

    /// Returns a VM with other values of options that it has.
    pub(super) fn with(&self, options: &[(&str, &str)]) -> Result<Self> {
        let mut other = self.clone();
        for (name, value) in options {
            let at = other.argv.iter().position(|word| word == name);
            let place = at.and_then(|at| other.argv.get_mut(at + 1));
            *place.with_context(|| format!("the VM has no {name}"))? = (*value).to_owned();
        }
        Ok(other)
    }

    /// Returns the same VM with sockets and logs in another directory.
    pub(super) fn moved(&self, directory: &Path) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(Self {
            argv: self.argv.clone(),
            directory: directory.to_owned(),
        })
    }

    /// The arguments, to be changed.
    pub(super) fn arguments_mut(&mut self) -> &mut Vec<String> {
        &mut self.argv
    }

    /// Measures from the spawn until QEMU has answered its first command: a greeting comes long before it takes any.
    pub(super) fn until_it_answers(&self, limit: Duration) -> Result<Duration> {
        self.measure("qmp", limit, |mut reader| {
            reader.stream.write_all(
                b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-status\"}\n",
            )?;
            wait_for(reader, b"\"running\"")
        })
    }

    /// Measures from the spawn until the marker comes out of the socket of a chardev.
    pub(super) fn until(&self, chardev: &str, marker: &[u8], limit: Duration) -> Result<Duration> {
        self.measure(chardev, limit, |reader| wait_for(reader, marker))
    }

    /// Starts it, with more arguments at the end, and leaves it running.
    ///
    /// The chardevs that are named are connected to before QEMU exists.
    pub(super) fn start(&self, more: &[&str], chardevs: &[&str]) -> Result<RawRunning> {
        let mut argv = self.argv.clone();
        let mut listeners = Vec::new();
        let mut streams = Vec::new();
        for argument in &mut argv[1..] {
            let Some(id) = inherited(argument).map(str::to_owned) else {
                continue;
            };
            let socket = self.directory.join(format!("{id}.sock"));
            // Of the round before.
            let _ = std::fs::remove_file(&socket);
            let listener = UnixListener::bind(&socket)
                .with_context(|| format!("binding {}", socket.display()))?;
            rustix::io::fcntl_setfd(&listener, FdFlags::empty())
                .context("letting a socket be inherited")?;
            let log = self.directory.join(format!("{id}.log"));
            *argument = rewritten(argument, listener.as_raw_fd(), &log)?;
            if chardevs.contains(&id.as_str()) {
                let stream =
                    UnixStream::connect(&socket).context("connecting to the raw VM's socket")?;
                streams.push((id, stream));
            }
            listeners.push(listener);
        }
        if let Some(missing) = chardevs
            .iter()
            .find(|id| streams.iter().all(|(other, _)| other != **id))
        {
            bail!("QEMU has no socket named {missing}");
        }
        let mut command = Command::new(&argv[0]);
        command
            .args(&argv[1..])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit());
        let begun = Instant::now();
        let child = Killed(
            command
                .spawn()
                .with_context(|| format!("starting {}", argv[0]))?,
        );
        // Only QEMU holds them now, so that its end ends the streams.
        drop(listeners);
        Ok(RawRunning {
            begun,
            child,
            streams,
        })
    }

    fn measure(
        &self,
        chardev: &str,
        limit: Duration,
        find: impl FnOnce(Deadline) -> std::io::Result<bool>,
    ) -> Result<Duration> {
        let mut running = self.start(&[], &[chardev])?;
        let reader = Deadline {
            stream: running.stream(chardev)?,
            until: running.begun + limit,
        };
        let found = find(reader).with_context(|| format!("waiting for {chardev} of the raw VM"))?;
        let taken = running.begun.elapsed();
        drop(running);
        if !found {
            bail!("the raw QEMU ended before {chardev} said what was waited for");
        }
        Ok(taken)
    }
}

/// A raw VM that runs until this is dropped.
pub(super) struct RawRunning {
    /// When it was spawned.
    pub(super) begun: Instant,
    child: Killed,
    streams: Vec<(String, UnixStream)>,
}

impl RawRunning {
    /// Takes the connection to a chardev that it was started with.
    pub(super) fn stream(&mut self, chardev: &str) -> Result<UnixStream> {
        let at = self.streams.iter().position(|(id, _)| id == chardev);
        let at = at.with_context(|| format!("{chardev} is not connected to"))?;
        Ok(self.streams.swap_remove(at).1)
    }

    /// Takes the connection to a chardev, to be read for so long from now on.
    pub(super) fn reader(&mut self, chardev: &str, limit: Duration) -> Result<Deadline> {
        Ok(Deadline {
            stream: self.stream(chardev)?,
            until: Instant::now() + limit,
        })
    }

    /// Its process.
    pub(super) fn pid(&self) -> Result<i32> {
        i32::try_from(self.child.0.id()).context("a process number that is none")
    }
}

/// The id of a chardev whose socket is inherited; none for every other argument.
fn inherited(argument: &str) -> Option<&str> {
    let rest = argument.strip_prefix("socket,")?;
    let value = |name: &str| {
        rest.split(',')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    value("fd")?;
    value("id")
}

/// The chardev with another descriptor and another log.
fn rewritten(argument: &str, descriptor: i32, log: &Path) -> Result<String> {
    // A doubled comma stands for one in a value; splitting would tear it.
    ensure!(
        !argument.contains(",,"),
        "a path with a comma is not supported here: {argument}"
    );
    let parts: Vec<String> = argument
        .split(',')
        .map(|part| match part.split_once('=') {
            Some(("fd", _)) => format!("fd={descriptor}"),
            Some(("logfile", _)) => format!("logfile={}", log.display()),
            _ => part.to_owned(),
        })
        .collect();
    Ok(parts.join(","))
}

/// A stream that fails with `TimedOut` when the time is up, however slowly it dribbles.
pub(super) struct Deadline {
    pub(super) stream: UnixStream,
    pub(super) until: Instant,
}

impl Read for Deadline {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let late = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read(buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Err(late()),
            // QEMU died with the connection still in the queue.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
            other => other,
        }
    }
}

/// Reads until the marker; false at the end of the stream. Keeps no more than the marker's length of what was read.
pub(super) fn wait_for(mut stream: impl Read, marker: &[u8]) -> std::io::Result<bool> {
    let mut window = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(false);
        }
        window.extend_from_slice(&buffer[..count]);
        if window.windows(marker.len()).any(|part| part == marker) {
            return Ok(true);
        }
        let keep = window.len().min(marker.len().saturating_sub(1));
        window.drain(..window.len() - keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, the worst way to cut a marker.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = self.0.len().min(1);
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    #[test]
    fn markers_are_found_across_reads() {
        assert!(wait_for(Dribble(b"boot REREADY\n"), b"READY").expect("read"));
        assert!(!wait_for(Dribble(b"boot READ Y"), b"READY").expect("read"));
    }

    #[test]
    fn only_inherited_sockets_are_changed() {
        let serial =
            "socket,id=serial0,fd=101,server=on,wait=off,logfile=/v/serial.log,logappend=on";
        assert_eq!(inherited(serial), Some("serial0"));
        assert_eq!(
            rewritten(serial, 7, Path::new("/t/serial0.log")).expect("a chardev"),
            "socket,id=serial0,fd=7,server=on,wait=off,logfile=/t/serial0.log,logappend=on"
        );
        for other in ["socket,id=a,path=/fd=1", "chardev=qmp,mode=control", "max"] {
            assert_eq!(inherited(other), None, "{other}");
        }
        assert!(rewritten("socket,id=a,fd=1,logfile=/a,,b", 7, Path::new("/t")).is_err());
    }

    #[test]
    fn a_silent_stream_ends_at_its_deadline() {
        let (stream, _other) = UnixStream::pair().expect("a pair");
        let until = Instant::now() + Duration::from_millis(20);
        let error = wait_for(Deadline { stream, until }, b"x").expect_err("a deadline");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    }
}
