//! The command line, the checks of the plan, and the start of the threads.

use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use innkeeper::drivers::fake::{Plan, SavedGuest, violated};
use rustix::fs::FileType;

use crate::channel;
use crate::control;
use crate::guest::Guest;
use crate::saving;

/// Longest path of a unix socket that every system takes (macOS: `sun_path` has 104 bytes with the final zero).
const LONGEST_SOCKET_PATH: usize = 103;
/// Exit code of a process that was used against the contract.
pub(crate) const VIOLATED: i32 = 70;

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let text = match words.as_slice() {
        ["-guest", program, socket, parent] => return become_guest(program, socket, parent),
        ["-name", _, "-plan", text] => *text,
        _ => {
            eprintln!("usage: fake-hypervisor -name NAME -plan JSON");
            return ExitCode::from(2);
        }
    };
    let plan: Plan = match serde_json::from_str(text) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("the plan can't be read: {error}");
            return ExitCode::from(2);
        }
    };
    if plan.name != words[1] {
        broken(&plan, "the name in the process list is not the VM's");
    }
    check(&plan);
    // Held by nobody: it paces a launch that a trial wants slow.
    std::thread::sleep(Duration::from_millis(plan.script.launch_delay_ms));
    if plan.script.launch_fail {
        eprintln!("fake: can't start, as told");
        return ExitCode::FAILURE;
    }
    let restored = plan.restore.clone().map(|directory| {
        // The same, for a restore.
        std::thread::sleep(Duration::from_millis(plan.script.restore_delay_ms));
        saving::read(&plan, &directory)
    });
    if plan.script.restore_fail && restored.is_some() {
        eprintln!("fake: can't restore, as told");
        return ExitCode::FAILURE;
    }
    match serve(plan, restored) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("fake: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes the guest's agent, which dies with the hypervisor.
fn become_guest(program: &str, socket: &str, parent: &str) -> ExitCode {
    let mortal =
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // The parent may have died before the signal was set, even before this process could ask who it is.
    let now = rustix::process::getppid().map(|pid| pid.as_raw_pid().to_string());
    if mortal.is_err() || now.as_deref() != Some(parent) {
        return ExitCode::FAILURE;
    }
    let error = Command::new(program)
        .args(["--connect", &format!("unix:{socket}")])
        .exec();
    eprintln!("fake: can't start the agent {program}: {error}");
    ExitCode::FAILURE
}

/// Writes a breach of the contract down and ends the process.
pub(crate) fn broken(plan: &Plan, what: &str) -> ! {
    let line = format!("{}: {what}", plan.name);
    violated(&plan.violations, &line);
    eprintln!("contract violated: {line}");
    std::process::exit(VIOLATED);
}

/// Checks what the contract requires of whoever launches.
fn check(plan: &Plan) {
    let sockets = [&plan.control, &plan.agent, &plan.guest_port, &plan.poke];
    for path in sockets
        .into_iter()
        .chain(plan.consoles.iter().map(|console| &console.socket))
    {
        if path.as_os_str().len() > LONGEST_SOCKET_PATH {
            broken(
                plan,
                &format!("the socket's path {} is too long", path.display()),
            );
        }
    }
    let absolute = sockets.into_iter().chain([&plan.console, &plan.serial_log]);
    for path in absolute
        .chain(&plan.files)
        .chain(&plan.folders)
        .chain(plan.disks.iter().map(|disk| &disk.path))
        .chain(plan.drives.iter().filter_map(|drive| drive.medium.as_ref()))
        .chain(&plan.restore)
    {
        if !path.is_absolute() {
            broken(plan, &format!("the path {} is relative", path.display()));
        }
    }
    for file in &plan.files {
        require(plan, std::fs::File::open(file).map(drop), file);
    }
    for medium in plan.drives.iter().filter_map(|drive| drive.medium.as_ref()) {
        require(plan, std::fs::File::open(medium).map(drop), medium);
    }
    for folder in &plan.folders {
        require(plan, std::fs::read_dir(folder).map(drop), folder);
    }
    for disk in &plan.disks {
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(!disk.read_only)
            .open(&disk.path);
        require(plan, opened.map(drop), &disk.path);
    }
    if plan.max_cpus < plan.cpus || plan.max_memory < plan.memory {
        broken(plan, "it may be given less than it has");
    }
    if plan.id.len() != 32 || plan.cpus == 0 || plan.memory == 0 {
        broken(plan, "it has no identifier, no CPU or no memory");
    }
    if !lock_is_held() {
        broken(
            plan,
            "it was launched without the locked file as its standard input",
        );
    }
}

/// Says whether standard input is a file that is locked, by us.
fn lock_is_held() -> bool {
    use std::os::fd::AsFd;
    let stdin = std::io::stdin();
    let Ok(path) = std::fs::read_link("/proc/self/fd/0") else {
        return false;
    };
    // Locking it once more through the same open file succeeds only if nobody else has it; through another one it must fail.
    let ours = rustix::fs::flock(
        stdin.as_fd(),
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    )
    .is_ok();
    let seen = std::fs::File::open(path).map(|file| {
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
    });
    ours && seen.unwrap_or(false)
}

fn require(plan: &Plan, opened: std::io::Result<()>, path: &Path) {
    if let Err(error) = opened {
        broken(
            plan,
            &format!("{} can't be opened: {error}", path.display()),
        );
    }
}

enum Never {}

fn serve(plan: Plan, restored: Option<SavedGuest>) -> std::io::Result<Never> {
    let listen = |path: &Path| {
        let _ = std::fs::remove_file(path);
        UnixListener::bind(path)
    };
    let guest_port = listen(&plan.guest_port)?;
    let agent = listen(&plan.agent)?;
    let poke = listen(&plan.poke)?;
    let _ = std::fs::remove_file(&plan.console);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &plan.console,
        FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )?;
    let guest = Guest::new(plan, restored)?;
    guest.read_console()?;
    channel::start(&guest, agent, guest_port);
    control::start_pokes(&guest, poke);
    // Last: whoever can connect to it finds everything else there.
    let control = listen(&guest.plan.control)?;
    control::start(&guest, control);
    guest.begin()?;
    // The agent is a child of this very thread, and dies with it.
    guest.follow_orders()
}
