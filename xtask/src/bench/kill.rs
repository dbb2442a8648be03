//! How soon an end is known: `inn kill` until the hypervisor is gone, and a hypervisor that somebody else killed until
//! its keeper tells it as failed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde::Deserialize;

use super::installation::Installation;
use super::milliseconds;
use super::report::{Goal, Row, Unit};

const NAME: &str = "kill";
/// Time between two looks; a part of what is measured, far below the goals.
const LOOK: Duration = Duration::from_micros(500);

/// Measures both, by turns, on a guest that is ready.
pub(super) fn run(installation: &mut Installation, count: usize) -> Result<Vec<Row>> {
    installation.add("create", NAME, &[])?;
    let (mut killed, mut told) = (Vec::new(), Vec::new());
    // One more, since the first of each only warms up.
    for _ in 0..=count {
        killed.push(milliseconds(kill(installation)?));
        told.push(milliseconds(crash(installation)?));
    }
    installation.remove(NAME)?;
    let ended = |name, mut values: Vec<f64>, goal| {
        values.remove(0);
        Row::alone(name, Unit::Milliseconds, values, Goal::Ours(goal))
    };
    Ok(vec![
        ended("inn kill to gone", killed, 50.0)?,
        ended("QEMU killed to told", told, 20.0)?,
    ])
}

/// Starts the VM, waits until it is ready, and gives its hypervisor's process.
fn started(installation: &Installation) -> Result<Pid> {
    installation.run(&["start", "-q", NAME])?;
    let pid = installation.info(NAME)?.vmm_pid;
    pid.and_then(Pid::from_raw)
        .context("inn info names no hypervisor process")
}

fn kill(installation: &Installation) -> Result<Duration> {
    let vmm = started(installation)?;
    let start = Instant::now();
    installation.run(&["kill", "-q", NAME])?;
    while rustix::process::test_kill_process(vmm).is_ok() {
        if start.elapsed() > installation.limit() {
            bail!("the hypervisor is still there after inn kill {NAME}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(start.elapsed())
}

fn crash(installation: &Installation) -> Result<Duration> {
    let vmm = started(installation)?;
    let mut events = Events::from_now(installation)?;
    let start = Instant::now();
    rustix::process::kill_process(vmm, Signal::KILL).context("killing the hypervisor")?;
    while !events.told_failed()? {
        if start.elapsed() > installation.limit() {
            bail!("no event told that {NAME} failed after its hypervisor was killed");
        }
        std::thread::sleep(LOOK);
    }
    let taken = start.elapsed();
    let state = installation.info(NAME)?.state;
    if state != "failed" {
        bail!("{NAME} is {state} after its hypervisor was killed, not failed");
    }
    Ok(taken)
}

/// What is appended to the file of events.
struct Events {
    file: File,
    rest: Vec<u8>,
}

#[derive(Deserialize)]
struct Event {
    vm: Option<String>,
    to: Option<String>,
}

impl Events {
    fn from_now(installation: &Installation) -> Result<Self> {
        let path = installation.events();
        let open = || {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::End(0))?;
            std::io::Result::Ok(file)
        };
        Ok(Self {
            file: open().with_context(|| format!("opening {}", path.display()))?,
            rest: Vec::new(),
        })
    }

    /// Whether a new line tells that the VM failed. A line that is not whole yet is kept for the next look.
    fn told_failed(&mut self) -> Result<bool> {
        self.file
            .read_to_end(&mut self.rest)
            .context("reading the events")?;
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let Some(end) = whole else {
            return Ok(false);
        };
        let lines: Vec<u8> = self.rest.drain(..=end).collect();
        for line in lines.split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            let event: Event = serde_json::from_slice(line).context("reading an event")?;
            if event.vm.as_deref() == Some(NAME) && event.to.as_deref() == Some("failed") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
