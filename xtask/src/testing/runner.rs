//! Runs a plan: lists the tests of every executable, runs each in a process of its own, judges by its exit code.
//!
//! It speaks the interface that libtest and its stand-ins share (`--list --format terse`, `--exact NAME`), so no
//! summary is parsed. A test that hangs is killed with its process group and fails. What a test leaves behind becomes
//! a child of this process (it is a subreaper), is reaped when it ends by itself, and fails the run when it does not.
//! A subreaper that reaps also keeps zombies away in containers whose first process does not.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, waitpid};

use super::plan::{Plan, TestExecutable};

/// After this a test is killed.
const LIMIT: Duration = Duration::from_secs(600);
/// How long processes that tests left may take to end by themselves.
const GRACE: Duration = Duration::from_secs(5);
/// How often ends are looked for.
const POLL: Duration = Duration::from_millis(10);
/// The end of a failed test's output that is shown.
const SHOWN_OUTPUT: u64 = 64 * 1024;

/// The sums of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

struct Test<'a> {
    executable: &'a TestExecutable,
    name: String,
}

impl Test<'_> {
    fn title(&self) -> String {
        format!("{} {}", self.executable.name, self.name)
    }
}

/// Runs everything in the plan that its filter lets through.
pub(crate) fn run(plan: &Plan) -> Result<Tally> {
    become_subreaper()?;
    let mut tally = Tally::default();
    let (mut shared, mut alone) = (Vec::new(), Vec::new());
    for executable in &plan.executables {
        let ignored: HashSet<String> = list(plan, executable, true)?.into_iter().collect();
        for name in list(plan, executable, false)? {
            let test = Test { executable, name };
            if plan
                .filter
                .as_ref()
                .is_some_and(|filter| !test.title().contains(filter))
            {
                continue;
            }
            if ignored.contains(&test.name) {
                println!("SKIP {}", test.title());
                tally.skipped += 1;
            } else if executable.alone {
                alone.push(test);
            } else {
                shared.push(test);
            }
        }
    }
    let failures = Mutex::new(Vec::new());
    let passed = AtomicUsize::new(0);
    // Ours to wait for; everything else that shows up as a child was left by a test.
    let own = Mutex::new(HashSet::new());
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !finished.load(Ordering::Relaxed) {
                reap_orphans(&own);
                std::thread::sleep(POLL);
            }
        });
        for (tests, jobs) in [(&shared, plan.jobs), (&alone, 1)] {
            let next = AtomicUsize::new(0);
            std::thread::scope(|workers| {
                for _ in 0..jobs {
                    workers.spawn(|| {
                        while let Some(test) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
                            match run_one(plan, test, &own) {
                                Ok(()) => {
                                    passed.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(error) => {
                                    println!("FAIL {}: {error:#}", test.title());
                                    lock(&failures).push(test.title());
                                }
                            }
                        }
                    });
                }
            });
        }
        finished.store(true, Ordering::Relaxed);
    });
    tally.passed = passed.into_inner();
    let mut failures = failures
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    failures.extend(leftovers());
    for failure in &failures {
        println!("failed: {failure}");
    }
    tally.failed = failures.len();
    Ok(tally)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn command(plan: &Plan, executable: &TestExecutable) -> Command {
    let mut command = Command::new(&executable.path);
    command
        .env_clear()
        .envs(&plan.environment)
        .env("CARGO_MANIFEST_DIR", &executable.directory)
        .current_dir(&executable.directory)
        .stdin(Stdio::null());
    command
}

fn list(plan: &Plan, executable: &TestExecutable, ignored: bool) -> Result<Vec<String>> {
    let mut command = command(plan, executable);
    command.args(["--list", "--format", "terse"]);
    if ignored {
        command.arg("--ignored");
    }
    let output = command
        .output()
        .with_context(|| format!("starting {}", executable.path.display()))?;
    ensure!(
        output.status.success(),
        "{} cannot list its tests: {}",
        executable.name,
        output.status
    );
    Ok(names(
        &String::from_utf8(output.stdout).context("names of tests")?,
    ))
}

/// Names in libtest's terse list: `NAME: test` per line.
fn names(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_owned)
        .collect()
}

fn run_one(plan: &Plan, test: &Test<'_>, own: &Mutex<HashSet<i32>>) -> Result<()> {
    let (mut output, second) = anonymous_file(&plan.scratch)?;
    let third = output.try_clone()?;
    let start = Instant::now();
    let mut command = command(plan, test.executable);
    command
        .args(["--exact", &test.name, "--nocapture"])
        .stdout(second)
        .stderr(third)
        .process_group(0);
    let mut child = {
        // Under the lock, or the reaper could take the child before it is known as ours.
        let mut own = lock(own);
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", test.executable.path.display()))?;
        own.insert(raw(child.id()));
        child
    };
    let mut timed_out = false;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > LIMIT && !timed_out {
            timed_out = true;
            if let Some(group) = Pid::from_raw(raw(child.id())) {
                // It may have ended this instant; then there is nothing to kill.
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        std::thread::sleep(POLL);
    };
    lock(own).remove(&raw(child.id()));
    let seconds = start.elapsed().as_secs_f64();
    if status.success() && !timed_out {
        println!("PASS [{seconds:8.3}s] {}", test.title());
        return Ok(());
    }
    let end = output.seek(SeekFrom::End(0))?;
    output.seek(SeekFrom::Start(end.saturating_sub(SHOWN_OUTPUT)))?;
    let mut text = Vec::new();
    output.take(SHOWN_OUTPUT).read_to_end(&mut text)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "---- {}", test.title())?;
    out.write_all(&text)?;
    writeln!(out, "----")?;
    drop(out);
    ensure!(!timed_out, "killed after {} s", LIMIT.as_secs());
    anyhow::bail!("{status} after {seconds:.3} s")
}

fn raw(id: u32) -> i32 {
    // Linux's largest process id is 2^22, so this never saturates.
    i32::try_from(id).unwrap_or(i32::MAX)
}

/// A file without a name, twice opened: a process that outlives its test can hold it open, unlike a pipe, without
/// making us wait.
fn anonymous_file(directory: &Path) -> Result<(File, File)> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let path = directory.join(format!(
        "output-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    ));
    let file = File::options()
        .create_new(true)
        .read(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("making {}", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    let second = file.try_clone()?;
    Ok((file, second))
}

#[cfg(target_os = "linux")]
fn become_subreaper() -> Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("becoming a subreaper")
}

#[cfg(not(target_os = "linux"))]
fn become_subreaper() -> Result<()> {
    Ok(())
}

/// A child of this process, as /proc tells it.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    id: i32,
    name: String,
    ended: bool,
    parent: i32,
}

/// Reads proc_pid_stat(5); the name stands in parentheses and may hold anything, so the last one counts.
fn parse_stat(text: &str) -> Option<Process> {
    let (head, rest) = text.rsplit_once(')')?;
    let (id, name) = head.split_once(" (")?;
    let mut fields = rest.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    Some(Process {
        id: id.parse().ok()?,
        name: name.to_owned(),
        ended,
        parent: fields.next()?.parse().ok()?,
    })
}

fn children() -> Vec<Process> {
    let this = raw(std::process::id());
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|byte| byte.is_ascii_digit())
        })
        .filter_map(|entry| parse_stat(&fs::read_to_string(entry.path().join("stat")).ok()?))
        .filter(|process| process.parent == this)
        .collect()
}

fn reap_orphans(own: &Mutex<HashSet<i32>>) {
    let own = lock(own);
    for process in children() {
        if process.ended && !own.contains(&process.id) {
            // Only we reap it; a failure means that it is gone already.
            let _ = waitpid(Pid::from_raw(process.id), WaitOptions::NOHANG);
        }
    }
}

/// Waits for what tests left running; kills and names what does not end.
fn leftovers() -> Vec<String> {
    let none = Mutex::new(HashSet::new());
    let mut named = Vec::new();
    let deadline = Instant::now() + GRACE;
    let last = deadline + GRACE;
    loop {
        reap_orphans(&none);
        let alive = children();
        let now = Instant::now();
        if alive.is_empty() || now > last {
            return named;
        }
        if now > deadline {
            for process in alive.iter().filter(|process| !process.ended) {
                let text = format!(
                    "process {} ({}) was left running by a test",
                    process.id, process.name
                );
                if !named.contains(&text) {
                    named.push(text);
                }
                if let Some(id) = Pid::from_raw(process.id) {
                    let _ = kill_process(id, Signal::KILL);
                }
            }
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terse_lists_are_read() {
        let listing = "a::b: test\nwith: colon: test\nbench: benchmark\n\n";
        assert_eq!(names(listing), ["a::b", "with: colon"]);
    }

    #[test]
    fn hostile_process_names_are_read() {
        let process = parse_stat("12 (a) Z 1 (x) S 7 12 12 0").expect("a process");
        assert_eq!(
            process,
            Process {
                id: 12,
                name: "a) Z 1 (x".to_owned(),
                ended: false,
                parent: 7
            }
        );
        assert!(parse_stat("3 (x) Z 1 0").expect("a process").ended);
        assert_eq!(parse_stat("nonsense"), None);
    }
}
