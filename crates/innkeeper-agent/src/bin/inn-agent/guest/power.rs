//! Ending the guest's run, and its clock.
//!
//! ```text
//!  full guest:  announce ─► signal to systemd, else the program poweroff/reboot/halt
//!  as init:     announce ─► SIGTERM to all ─► wait ─► SIGKILL ─► sync ─► unmount ─► reboot(2)
//! ```

use crate::guest::link::Link;
use crate::guest::log::say;
use innkeeper_agent::message::{AgentEvent, Reply, ShutdownKind};
use rustix::process::{Signal, kill_process};
use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec, clock_settime};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long processes get between SIGTERM and SIGKILL when the agent is init.
const TERMINATION: Duration = Duration::from_secs(5);

pub fn set_time(unix_nanoseconds: u64) -> std::io::Result<Reply> {
    let time = Timespec {
        tv_sec: (unix_nanoseconds / 1_000_000_000) as i64,
        tv_nsec: (unix_nanoseconds % 1_000_000_000) as _,
    };
    clock_settime(ClockId::Realtime, time)?;
    Ok(Reply::Done)
}

/// Ends the run. As init it does not return.
pub fn shutdown(link: &Link, how: ShutdownKind, is_init: bool) {
    link.push(&AgentEvent::Halting { how });
    link.flush(Duration::from_millis(500));
    if is_init {
        end_as_init(how);
    }
    if let Err(message) = ask_the_init(how) {
        say(&message);
    }
}

#[allow(unsafe_code)]
fn ask_the_init(how: ShutdownKind) -> Result<(), String> {
    if Path::new("/run/systemd/system").is_dir() {
        // systemd(1), "Signals": SIGRTMIN+3 halt.target, +4 poweroff.target, +5 reboot.target.
        let offset = match how {
            ShutdownKind::Halt => 3,
            ShutdownKind::Poweroff => 4,
            ShutdownKind::Reboot => 5,
        };
        // SAFETY: kill touches no memory.
        if unsafe { libc::kill(1, libc::SIGRTMIN() + offset) } == 0 {
            return Ok(());
        }
    }
    let program = match how {
        ShutdownKind::Poweroff => "poweroff",
        ShutdownKind::Reboot => "reboot",
        ShutdownKind::Halt => "halt",
    };
    // The reaper collects it.
    match std::process::Command::new(program).spawn() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("cannot run {program}: {error}")),
    }
}

/// Ends the run as process 1.
pub fn end_as_init(how: ShutdownKind) -> ! {
    signal_all(Signal::TERM);
    let deadline = Instant::now() + TERMINATION;
    while others_run() && Instant::now() < deadline {
        // The reaper thread collects them; there is no event for "the last one is gone".
        std::thread::sleep(Duration::from_millis(5));
    }
    signal_all(Signal::KILL);
    rustix::fs::sync();
    unmount_all();
    let command = match how {
        ShutdownKind::Poweroff => RebootCommand::PowerOff,
        ShutdownKind::Reboot => RebootCommand::Restart,
        ShutdownKind::Halt => RebootCommand::Halt,
    };
    if let Err(error) = rustix::system::reboot(command) {
        say(&format!("the kernel refused to end the run: {error}"));
    }
    loop {
        // Process 1 must not end; a halted machine stays here.
        std::thread::park();
    }
}

/// Signals every process but process 1 and the kernel's threads.
fn signal_all(signal: Signal) {
    for pid in user_processes() {
        // A process that has just ended is what we want.
        let _ = kill_process(pid, signal);
    }
}

fn others_run() -> bool {
    !user_processes().is_empty()
}

fn user_processes() -> Vec<rustix::process::Pid> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return found;
    };
    for entry in entries.flatten() {
        let Some(number) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // Threads of the kernel have an empty command line, and so have zombies.
        let program = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if number > 1 && !program.is_empty() {
            found.extend(rustix::process::Pid::from_raw(number));
        }
    }
    found
}

fn unmount_all() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut words = line.split(' ');
        let (Some(_), Some(path), Some(fstype)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if matches!(
            fstype,
            "proc" | "sysfs" | "devtmpfs" | "devpts" | "rootfs" | "cgroup2" | "tmpfs"
        ) {
            continue;
        }
        let path = crate::guest::facts::unescape(path);
        if let Err(error) = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()) {
            say(&format!(
                "cannot unmount {path}: {error}; making it read-only"
            ));
            let read_only =
                rustix::mount::mount_remount(&path, rustix::mount::MountFlags::RDONLY, c"");
            if let Err(error) = read_only {
                say(&format!("cannot make {path} read-only: {error}"));
            }
        }
    }
}
