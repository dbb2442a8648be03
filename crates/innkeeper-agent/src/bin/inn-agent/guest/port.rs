//! Finding and opening the agent's end of the channel.
//!
//! A machine has a virtio-serial port with the agent's name, or a vsock device by which its host connects to us: whichever comes up
//! first is served. Connections that do not come from the host are closed at once: by the loopback any user of the guest could make one,
//! and whoever is served commands the guest. The port is one that only root may listen on, so nobody else can stand in for the agent.

use innkeeper_agent::unit::{PORT_NAME, VSOCK_PORT};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the channel is.
pub enum Port {
    /// The virtio-serial port with the agent's name, or the host's connection by vsock.
    Named,
    /// A device by its path.
    Device(PathBuf),
    /// A unix socket to connect to.
    Unix(PathBuf),
}

impl Port {
    /// Opens the port without blocking mode; waits until it is there.
    pub fn open(&self) -> OwnedFd {
        let mut pause = Duration::from_millis(1);
        let mut said = false;
        let mut listener = None;
        loop {
            match self.try_open(&mut listener) {
                Ok(fd) => return fd,
                Err(error) => {
                    if !said && pause > Duration::from_millis(500) {
                        said = true;
                        crate::guest::log::say(&format!("waiting for the host's channel: {error}"));
                    }
                }
            }
            // Neither sysfs nor a socket's path can be waited on by poll; this only paces the looking. The host's connection ends it early.
            match &listener {
                Some(listener) => wait(listener, pause),
                None => std::thread::sleep(pause),
            }
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Tells whether what was opened is used up with the host that it served.
    pub fn is_used_up(fd: &OwnedFd) -> bool {
        let kind =
            rustix::fs::fstat(fd).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
        matches!(kind, Ok(rustix::fs::FileType::Socket))
    }

    fn try_open(&self, listener: &mut Option<OwnedFd>) -> std::io::Result<OwnedFd> {
        match self {
            Port::Named => match named_device() {
                Ok(device) => open_device(&device),
                Err(error) => take_host(listener)?.ok_or(error),
            },
            Port::Device(path) => open_device(path),
            Port::Unix(path) => {
                let stream = std::os::unix::net::UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
        }
    }
}

/// Takes the host's connection by vsock, if one waits. The listener is made as soon as there is a device.
fn take_host(listener: &mut Option<OwnedFd>) -> std::io::Result<Option<OwnedFd>> {
    let listener = match listener {
        Some(listener) => listener,
        None if crate::guest::vsock::context_id().is_none() => return Ok(None),
        None => listener.insert(crate::guest::vsock::listen(VSOCK_PORT)?),
    };
    loop {
        match crate::guest::vsock::try_accept(listener, libc::SOCK_NONBLOCK) {
            Ok((stream, libc::VMADDR_CID_HOST)) => return Ok(Some(stream.into())),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn wait(listener: &OwnedFd, limit: Duration) {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    // However it ends, it is looked again.
    let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit));
}

fn open_device(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Names the ports in `/dev/virtio-ports`, as udev does where there is one. A name is the host's word, so it is checked.
pub fn link_names() -> std::io::Result<()> {
    const LINKS: &str = "/dev/virtio-ports";
    std::fs::create_dir_all(LINKS)?;
    for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        let name = name.trim_end();
        if name.is_empty() || name.starts_with('.') || name.contains('/') {
            continue;
        }
        let device = Path::new("..").join(entry.file_name());
        match std::os::unix::fs::symlink(device, Path::new(LINKS).join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn named_device() -> std::io::Result<PathBuf> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        // A port may have no name yet: it comes by a message of its own.
        let Ok(name) = std::fs::read_to_string(entry.path().join("name")) else {
            continue;
        };
        if name.trim_end() == PORT_NAME {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        format!("no virtio-serial port is named {PORT_NAME}"),
    ))
}
