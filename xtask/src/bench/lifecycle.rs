//! What `inn pause`, `resume`, `suspend` and a start from a saved state add to the same done by hand over QMP, what such a start is
//! worth against a cold boot, and what is written.
//!
//! ```text
//!  inn:  pause ─► resume ─► suspend ─► start --no-wait (from saved) ─► idle again ┐ round by round
//!  raw:  stop  ─► cont   ─► migrate, sync, end ─► spawn, incoming, cont ─► idle   ┘
//! ```
//!
//! The answer of a guest is what `inn start` waits for: the agent's hello, and what it says of its state and its addresses. Both guests are the same machine with the same 1 GiB. The raw side has its control connection already and syncs what it wrote, as a
//! saved state that is to outlive a crash must be.

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::installation::Installation;
use super::monitor::Monitor;
use super::raw::{RawRunning, RawVm};
use super::report::{Goal, Row, Unit};
use super::start::MARKER;
use super::{Pair, measure};

const NAME: &str = "life";
const COLD: &str = "cold";
/// Memory of the guest, in KiB.
const MEMORY_KIB: u64 = 1 << 20;
/// Most that we may add, in milliseconds.
const ADDED: Goal = Goal::Difference(20.0);
/// How long a process is looked at to tell whether it is idle, and how many ticks of 10 ms it may use meanwhile.
const LOOK: Duration = Duration::from_millis(200);
const IDLE_TICKS: u64 = 4;

/// Measures all.
pub(super) fn run(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    for name in [NAME, COLD] {
        installation.add("create", name, &["--memory", "1GiB"])?;
    }
    installation.run(&["start", "-q", NAME])?;
    let vmm = vmm(installation, NAME)?;
    let directory = installation.root().join("raw");
    let vm = RawVm::like(vmm, &directory)?;
    let (mut rows, mapped) = {
        let installation = &*installation;
        let raw = Raw::boot(vm, &directory, installation.limit())?;
        let mapped = raw.mapped;
        let raw = RefCell::new(raw);
        idle(vmm, installation.limit())?;
        let rows = measure(added(installation, &raw), pairs)?;
        (rows, mapped)
    };
    let sizes = RefCell::new(Vec::new());
    {
        let installation = &*installation;
        let again = |pair: &RefCell<Vec<(f64, f64)>>| -> Result<Duration> {
            // Both are off meanwhile but the one that is timed.
            pair.borrow_mut().push(suspend_and_compare(installation)?);
            installation.run(&["start", "-q", NAME])
        };
        let ratio = if mapped { 0.06 } else { 0.10 };
        rows.extend(measure(
            vec![Pair {
                name: "start from saved to an answer, against cold".to_owned(),
                ours: Box::new(|| again(&sizes)),
                theirs: Box::new(|| {
                    let taken = installation.run(&["start", "-q", COLD])?;
                    installation.run(&["kill", "-q", COLD])?;
                    Ok(taken)
                }),
                goal: Some(Goal::Ratio(ratio)),
            }],
            pairs,
        )?);
    }
    rows.push(Row::of_pairs_in(
        "saved on disk, against touched memory".to_owned(),
        Unit::Mebibytes,
        &sizes.into_inner(),
        Some(Goal::Ratio(1.0)),
    )?);
    for name in [NAME, COLD] {
        installation.remove(name)?;
    }
    Ok(rows)
}

/// The pairs that say what we add. Each side leaves what the next pair needs.
fn added<'a>(installation: &'a Installation, raw: &'a RefCell<Raw>) -> Vec<Pair<'a>> {
    let pair = |name: &str, ours, theirs| Pair {
        name: name.to_owned(),
        ours,
        theirs,
        goal: Some(ADDED),
    };
    vec![
        pair(
            "inn pause",
            Box::new(|| installation.run(&["pause", "-q", NAME])),
            Box::new(|| raw.borrow_mut().timed("stop")),
        ),
        pair(
            "inn resume",
            Box::new(|| installation.run(&["resume", "-q", NAME])),
            Box::new(|| raw.borrow_mut().timed("cont")),
        ),
        pair(
            "inn suspend",
            Box::new(|| installation.run(&["suspend", "-q", NAME])),
            Box::new(|| raw.borrow_mut().save()),
        ),
        pair(
            "inn start --no-wait, from saved",
            Box::new(|| {
                let taken = installation.run(&["start", "-q", "--no-wait", NAME])?;
                // Untimed: until its agent answers and nothing of the return goes on.
                installation.run(&["start", "-q", NAME])?;
                idle(vmm(installation, NAME)?, installation.limit())?;
                Ok(taken)
            }),
            Box::new(|| raw.borrow_mut().restore()),
        ),
    ]
}

fn vmm(installation: &Installation, name: &str) -> Result<i32> {
    let pid = installation.info(name)?.vmm_pid;
    pid.context("inn info names no hypervisor process")
}

/// Suspends, and says how many MiB were written and how many the guest had touched.
fn suspend_and_compare(installation: &Installation) -> Result<(f64, f64)> {
    let pid = vmm(installation, NAME)?;
    idle(pid, installation.limit())?;
    let touched = touched(pid)?;
    installation.run(&["suspend", "-q", NAME])?;
    let path = installation
        .root()
        .join(format!("home/vms/{NAME}/saved/machine/memory"));
    let metadata =
        std::fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?;
    // In blocks of 512 bytes, whatever the file system's.
    let written = metadata.blocks() as f64 / 2048.0;
    Ok((written, touched))
}

/// How much of the guest's memory a hypervisor really has, in MiB. Source: Linux, Documentation/filesystems/proc.rst, `smaps`.
fn touched(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let kibibytes = resident(&text, MEMORY_KIB)
        .with_context(|| format!("{path} has no mapping of {MEMORY_KIB} KiB"))?;
    Ok(kibibytes as f64 / 1024.0)
}

/// Finds the resident part of a mapping of so many KiB.
fn resident(smaps: &str, size_kib: u64) -> Option<u64> {
    let value = |line: &str, name: &str| -> Option<u64> {
        let rest = line.strip_prefix(name)?.strip_suffix("kB")?;
        rest.trim().parse().ok()
    };
    let mut lines = smaps.lines();
    lines.find(|line| value(line, "Size:") == Some(size_kib))?;
    lines.find_map(|line| value(line, "Rss:"))
}

/// Waits until a process hardly uses the CPU: a guest that has just come up is still busy.
fn idle(pid: i32, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    let mut before = ticks(pid)?;
    // poll: the ticks that the process used since the last look
    loop {
        std::thread::sleep(LOOK);
        let now = ticks(pid)?;
        if now.saturating_sub(before) <= IDLE_TICKS {
            return Ok(());
        }
        ensure!(
            Instant::now() < until,
            "process {pid} is still busy after {} s",
            limit.as_secs()
        );
        before = now;
    }
}

/// Ticks of the CPU that a process used. Source: proc_pid_stat(5), fields 14 and 15; the name in field 2 may have blanks.
fn ticks(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let (_, rest) = text.rsplit_once(')').context("a stat without a name")?;
    let mut fields = rest.split_whitespace().skip(11);
    let mut next = || -> Result<u64> { Ok(fields.next().context("a short stat")?.parse()?) };
    Ok(next()? + next()?)
}

/// The raw guest, which lives from round to round.
struct Raw {
    vm: RawVm,
    state: PathBuf,
    limit: Duration,
    mapped: bool,
    running: Option<(RawRunning, Monitor)>,
}

impl Raw {
    fn boot(vm: RawVm, directory: &Path, limit: Duration) -> Result<Self> {
        let mut running = vm.start(&[], &["qmp", "serial0"])?;
        let serial = running.reader("serial0", limit)?;
        if !super::raw::wait_for(serial, MARKER)? {
            bail!("the raw guest ended before it was up");
        }
        let mut monitor = Monitor::new(running.stream("qmp")?, limit)?;
        let mapped = monitor.has_mapped_ram()?;
        idle(running.pid()?, limit)?;
        Ok(Self {
            vm,
            state: directory.join("state"),
            limit,
            mapped,
            running: Some((running, monitor)),
        })
    }

    fn timed(&mut self, command: &str) -> Result<Duration> {
        let (_, monitor) = self.running.as_mut().context("the raw guest is off")?;
        let begun = Instant::now();
        monitor.execute(command, json!({}))?;
        Ok(begun.elapsed())
    }

    /// Stops, writes, syncs and ends it.
    fn save(&mut self) -> Result<Duration> {
        let (running, mut monitor) = self.running.take().context("the raw guest is off")?;
        let begun = Instant::now();
        monitor.execute("stop", json!({}))?;
        let file = File::create(&self.state).context("making the raw state")?;
        monitor.migrate("migrate", &file, self.mapped)?;
        file.sync_all().context("syncing the raw state")?;
        drop(running);
        Ok(begun.elapsed())
    }

    /// Spawns it anew, lets it read, and lets its CPUs go.
    fn restore(&mut self) -> Result<Duration> {
        let mut running = self.vm.start(&["-S", "-incoming", "defer"], &["qmp"])?;
        let begun = running.begun;
        let mut monitor = Monitor::new(running.stream("qmp")?, self.limit)?;
        let file = File::open(&self.state).context("opening the raw state")?;
        monitor.migrate("migrate-incoming", &file, self.mapped)?;
        monitor.execute("cont", json!({}))?;
        let taken = begun.elapsed();
        // Untimed: a file system may take most of a second to free its blocks.
        std::fs::remove_file(&self.state).context("removing the raw state")?;
        idle(running.pid()?, self.limit)?;
        self.running = Some((running, monitor));
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_memory_is_found_by_its_size() {
        let text = "7f00-7f01 rw-p 0 00:00 0\nSize:  132 kB\nRss:  4 kB\n\
                    7f10-7f20 rw-p 0 00:00 0\nSize:  1048576 kB\nKernelPageSize: 4 kB\nRss:  95000 kB\n";
        assert_eq!(resident(text, 1 << 20), Some(95_000));
        assert_eq!(resident(text, 1 << 21), None);
    }
}
