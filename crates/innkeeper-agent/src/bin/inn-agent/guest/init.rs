//! The agent as process 1 of a minimal guest: mounts, modules, name, network, power button; then it serves.
//!
//! ```text
//!  mount /proc /sys /dev ─► modules of the channel ─► [root disk] ─► open the port ─► serve
//!                                        │                    ▼
//!                                        └─► beside it: network, inn.mount= disks ─► "INNKEEPER-READY" ─► other modules, power button
//! ```
//! Words of the kernel's command line: `inn.root=UUID=…` (see `root`), `inn.hostname=NAME`, `inn.net=` (see `network`), `inn.time=UNIXSECONDS`,
//! `inn.mount=DEVICE|serial=NAME|TAG:PATH:FSTYPE[:ro]`. What goes wrong is said on the console and told as a readiness
//! problem; it never stops the guest, for process 1 must not end.

use crate::guest::log::{lock, say};
use crate::guest::port::Port;
use innkeeper_agent::message::{MountRequest, Reply, ShutdownKind};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use std::ffi::CString;
use std::io::{Error, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the console shows when the agent can be reached.
const READY: &str = "INNKEEPER-READY\n";

/// Sets the guest up and serves; does not return, whatever happens.
pub fn run() -> ! {
    if std::panic::catch_unwind(serve).is_err() {
        say("the agent failed as init; the guest runs on without it");
    }
    loop {
        std::thread::park();
    }
}

fn serve() {
    let signals = block_signals();
    for (source, path, fstype, flags, data) in [
        (
            "proc",
            "/proc",
            "proc",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            "",
        ),
        (
            "sysfs",
            "/sys",
            "sysfs",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            "",
        ),
        (
            "devtmpfs",
            "/dev",
            "devtmpfs",
            MountFlags::NOSUID,
            "mode=0755",
        ),
    ] {
        mount_system(source, path, fstype, flags, data);
    }
    open_console();
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mut modules = crate::guest::modules::listed();
    problems(crate::guest::modules::load(&modules.channel, &command_line));
    let own_root = words(&command_line, "inn.root=").next();
    if let Some(root) = own_root {
        // All of them now: they lie in the initramfs, which is left.
        for rest in [&mut modules.network, &mut modules.later] {
            problems(crate::guest::modules::load(rest, &command_line));
            rest.clear();
        }
        if let Err(problem) = crate::guest::root::switch(root) {
            problems([format!("inn.root={root}: {problem}")]);
        }
    }
    for (source, path, fstype, flags, data) in [
        (
            "devpts",
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            "gid=5,mode=620,ptmxmode=666",
        ),
        (
            "tmpfs",
            "/dev/shm",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            "mode=1777",
        ),
        (
            "tmpfs",
            "/run",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            "mode=0755",
        ),
        (
            "tmpfs",
            "/tmp",
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            "mode=1777",
        ),
        (
            "cgroup2",
            "/sys/fs/cgroup",
            "cgroup2",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            "",
        ),
    ] {
        // What an image keeps below these on its own disk must stay to be seen.
        if own_root.is_none() || !matches!(path, "/run" | "/tmp") {
            mount_system(source, path, fstype, flags, data);
        }
    }
    if let Some(name) = words(&command_line, "inn.hostname=").next()
        && let Err(error) = rustix::system::sethostname(name.as_bytes())
    {
        problems([format!("cannot set the host name {name}: {error}")]);
    }
    if let Some(seconds) = words(&command_line, "inn.time=").next()
        && let Err(error) = seconds
            .parse::<u64>()
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error))
            .and_then(|seconds| {
                crate::guest::power::set_time(seconds.saturating_mul(1_000_000_000))
            })
    {
        problems([format!("cannot set the clock to {seconds}: {error}")]);
    }
    let (link, operations) = crate::guest::serve::start(true, true);
    watch_signals(signals, Arc::clone(&link));
    let beside = Arc::clone(&link);
    crate::guest::facts::BUSY.store(true, std::sync::atomic::Ordering::SeqCst);
    let (reachable, reached) = std::sync::mpsc::channel();
    crate::guest::operations::spawn("setup", move || {
        set_up(&modules, &command_line, beside, &reached)
    });
    crate::guest::link::run(&link, Port::Named, &operations, || {
        // The other end ends with its thread only.
        let _ = reachable.send(());
    })
}

/// What is done beside serving: first the network and the mounts that were asked for, then the marker on the console, then the rest.
fn set_up(
    modules: &crate::guest::modules::Modules,
    command_line: &str,
    link: Arc<crate::guest::link::Link>,
    reached: &std::sync::mpsc::Receiver<()>,
) {
    problems(crate::guest::network::bring_loopback_up().err());
    problems(crate::guest::modules::load(&modules.network, command_line));
    for value in words(command_line, "inn.net=") {
        let result = crate::guest::network::parse(value)
            .and_then(|configuration| crate::guest::network::configure(&configuration));
        problems(result.err());
    }
    // Disks need the rest of the modules, and so does a host's channel that did not come up with the first; else nothing waits for those.
    let mounts: Vec<&str> = words(command_line, "inn.mount=").collect();
    let is_open = reached.try_recv().is_ok();
    let early = !is_open || !mounts.is_empty();
    if early {
        problems(crate::guest::modules::load(&modules.later, command_line));
    }
    for value in &mounts {
        let result = parse_mount(value).and_then(|request| {
            mount_when_there(&request).map_err(|error| format!("inn.mount={value}: {error}"))
        });
        problems(result.err());
    }
    crate::guest::facts::BUSY.store(false, std::sync::atomic::Ordering::SeqCst);
    if is_open || reached.recv().is_ok() {
        name_ports();
        // A guest without a console has nobody to tell.
        let _ = std::io::stdout().write_all(READY.as_bytes());
    }
    let readiness = crate::guest::facts::readiness();
    link.push(&innkeeper_agent::message::AgentEvent::Readiness(readiness));
    if !early {
        problems(crate::guest::modules::load(&modules.later, command_line));
    }
    crate::guest::modules::all_tried();
    name_ports();
    watch_power_button(&link);
}

/// The port of the agent is named by now; the others are, at the latest, when all modules have been tried.
fn name_ports() {
    let named = crate::guest::port::link_names();
    problems(
        named
            .err()
            .map(|error| format!("cannot name the ports: {error}")),
    );
}

fn problems(found: impl IntoIterator<Item = String>) {
    for problem in found {
        say(&problem);
        lock(&crate::guest::facts::PROBLEMS).push(problem);
    }
}

fn words<'a>(command_line: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    command_line
        .split_whitespace()
        .filter_map(move |word| word.strip_prefix(prefix))
}

fn mount_system(source: &str, path: &str, fstype: &str, flags: MountFlags, data: &str) {
    let result = std::fs::create_dir_all(path).and_then(|()| {
        let data = CString::new(data)?;
        match rustix::mount::mount(source, path, fstype, flags, Some(data.as_c_str())) {
            // The kernel may have mounted /dev itself.
            Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
            Err(error) => Err(error.into()),
        }
    });
    if let Err(error) = result {
        problems([format!("cannot mount {path}: {error}")]);
    }
}

/// Makes /dev/console standard input and output: an initramfs without that node starts init without any.
fn open_console() {
    let Ok(console) =
        rustix::fs::open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
    else {
        return;
    };
    // Fails only for a descriptor that is none; the three standard ones may always be replaced.
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
    // On an empty process the console itself may have become one of the three: then it has to stay.
    if std::os::fd::AsRawFd::as_raw_fd(&console) < 3 {
        std::mem::forget(console);
    }
}

fn parse_mount(value: &str) -> Result<MountRequest, String> {
    let parts: Vec<&str> = value.split(':').collect();
    let (source, path, fstype, read_only) = match parts[..] {
        [source, path, fstype] => (source, path, fstype, false),
        [source, path, fstype, "ro"] => (source, path, fstype, true),
        _ => {
            return Err(format!(
                "inn.mount={value}: it must be SOURCE:PATH:FSTYPE[:ro]"
            ));
        }
    };
    Ok(MountRequest {
        source: source.to_owned(),
        path: path.to_owned(),
        fstype: fstype.to_owned(),
        read_only,
    })
}

fn mount_when_there(request: &MountRequest) -> std::io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match mount(request) {
            Err(error) if error.kind() == ErrorKind::NotFound && Instant::now() < deadline => {
                // Its driver probes beside us; without udev nobody tells.
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.map(|_| ()),
        }
    }
}

/// A share may so long be unknown to the kernel: a device that is put into a running machine takes its time under emulation.
const SHARE_TIMEOUT: Duration = Duration::from_secs(6);

/// Mounts what a host or the command line asks for; a source `serial=NAME` is the virtio disk with that serial.
pub fn mount(request: &MountRequest) -> std::io::Result<Reply> {
    let path = Path::new(&request.path);
    if !path.is_absolute() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "the mount point must be an absolute path",
        ));
    }
    let source = match request.source.strip_prefix("serial=") {
        Some(serial) => disk_by_serial(serial)?,
        None => request.source.clone(),
    };
    std::fs::create_dir_all(path)?;
    let fstype = if request.fstype.is_empty() {
        "virtiofs"
    } else {
        &request.fstype
    };
    // Asked for anew by a keeper that does not know what its predecessor had mounted.
    let is_mounted = || crate::guest::unmount::is_mounted(&source, &request.path, fstype);
    if is_mounted() {
        return Ok(Reply::Done);
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if request.read_only {
        flags |= MountFlags::RDONLY;
    }
    let data = None::<&std::ffi::CStr>;
    let deadline = Instant::now() + SHARE_TIMEOUT;
    loop {
        match rustix::mount::mount(source.as_str(), path, fstype, flags, data) {
            // Somebody was quicker.
            Err(rustix::io::Errno::BUSY) if is_mounted() => return Ok(Reply::Done),
            // The kernel knows no share of that name yet: its device may just have been put in.
            Err(rustix::io::Errno::INVAL) if fstype == "virtiofs" && Instant::now() < deadline => {
                // poll: the mount works
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result.map(|()| Reply::Done).map_err(Into::into),
        }
    }
}

fn disk_by_serial(wanted: &str) -> std::io::Result<String> {
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        if std::fs::read_to_string(entry.path().join("serial"))
            .is_ok_and(|serial| serial.trim() == wanted)
        {
            return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
        }
    }
    Err(Error::new(
        ErrorKind::NotFound,
        format!("no disk has the serial {wanted}"),
    ))
}

/// SIGTERM, SIGINT (Ctrl-Alt-Del), SIGPWR and busybox's SIGUSR1/SIGUSR2 end the run; process 1 ignores what it does not
/// handle, so a thread waits for them while all others, which start later, have them blocked.
#[allow(unsafe_code)]
fn block_signals() -> libc::sigset_t {
    let wanted = [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGPWR,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ];
    // SAFETY: the set is a plain value that the calls fill in before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in wanted {
            libc::sigaddset(&mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        // Ctrl-Alt-Del becomes SIGINT to process 1 instead of an immediate reset (reboot(2)).
        libc::reboot(libc::RB_DISABLE_CAD);
        set
    }
}

#[allow(unsafe_code)]
fn watch_signals(set: libc::sigset_t, link: Arc<crate::guest::link::Link>) {
    crate::guest::operations::spawn("signals", move || {
        loop {
            let mut number = 0;
            // SAFETY: both pointers are to live values of this thread.
            if unsafe { libc::sigwait(&set, &mut number) } != 0 {
                return;
            }
            // What busybox's reboot, halt and poweroff send to process 1 (its init.c), Ctrl-Alt-Del, and a power failure.
            let how = match number {
                libc::SIGINT | libc::SIGTERM => ShutdownKind::Reboot,
                libc::SIGUSR1 => ShutdownKind::Halt,
                _ => ShutdownKind::Poweroff,
            };
            say("asked to end the run by a signal");
            crate::guest::power::shutdown(&link, how, true);
        }
    });
}

/// Waits for the ACPI power button, an input device, and powers off.
fn watch_power_button(link: &crate::guest::link::Link) {
    let Some(device) = power_button() else { return };
    loop {
        let mut set = [PollFd::new(&device, PollFlags::IN)];
        if poll(&mut set, None).is_err() {
            continue;
        }
        // struct input_event: two words of time, then type u16, code u16, value i32.
        let mut event = [0u8; 24];
        let Ok(count) = rustix::io::read(&device, &mut event) else {
            return;
        };
        let base = 2 * size_of::<usize>();
        if count < base + 8 {
            return;
        }
        let half = |at: usize| u16::from_ne_bytes([event[at], event[at + 1]]);
        // EV_KEY, KEY_POWER, pressed.
        if half(base) == 1 && half(base + 2) == 116 && event[base + 4] == 1 {
            say("the power button was pressed");
            crate::guest::power::shutdown(link, ShutdownKind::Poweroff, true);
        }
    }
}

fn power_button() -> Option<std::os::fd::OwnedFd> {
    for entry in std::fs::read_dir("/sys/class/input").ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let label = std::fs::read_to_string(entry.path().join("device/name")).unwrap_or_default();
        if name.starts_with("event") && label.trim() == "Power Button" {
            let path = format!("/dev/input/{name}");
            return rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::parse_mount;

    #[test]
    fn mounts_of_the_command_line_are_read() {
        let request = parse_mount("serial=data:/data:ext4:ro").unwrap();
        assert_eq!(
            (
                request.source.as_str(),
                request.path.as_str(),
                request.read_only
            ),
            ("serial=data", "/data", true)
        );
        assert!(parse_mount("/dev/vda:/data").is_err());
    }
}
