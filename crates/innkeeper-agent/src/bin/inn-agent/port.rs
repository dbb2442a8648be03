//! Finding and opening the agent's end of the channel.

use innkeeper_agent::unit::PORT_NAME;
use rustix::fs::{Mode, OFlags};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the channel is.
pub enum Port {
    /// The virtio-serial port with the agent's name.
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
        loop {
            match self.try_open() {
                Ok(fd) => return fd,
                Err(error) => {
                    if !said && pause > Duration::from_millis(500) {
                        said = true;
                        crate::log::say(&format!("waiting for the host's channel: {error}"));
                    }
                }
            }
            // Neither sysfs nor a socket's path can be waited on by poll; this only paces the looking.
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn try_open(&self) -> std::io::Result<OwnedFd> {
        match self {
            Port::Named => open_device(&named_device()?),
            Port::Device(path) => open_device(path),
            Port::Unix(path) => {
                let stream = std::os::unix::net::UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(stream.into())
            }
        }
    }
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
