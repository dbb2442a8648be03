//! Forwards, shares and readiness in one word each, as on the command line: `8080:80/udp`, `/src:/work:ro`, `serial:login:`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use super::words::Words;
use super::{ForwardSpec, Protocol, ReadyWhen, ShareSpec};

/// Says why a text is no forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// It is not made of ports.
    #[error(
        "{0:?} is not a forward: write HOST_PORT:GUEST_PORT, such as 8080:80 or 127.0.0.1:5353:53/udp"
    )]
    Malformed(String),
    /// A port is none.
    #[error("{0:?} is not a port: write a number from 1 to 65535")]
    Port(String),
    /// The address is none.
    #[error("{0:?} is not an address: write 127.0.0.1 or [::1], or leave it out")]
    Address(String),
    /// The address would let other computers in.
    #[error(
        "{0} is not a loopback address: a VM in isolated mode can be reached from this computer only, so write 127.0.0.1 or [::1]"
    )]
    NotLoopback(IpAddr),
    /// The protocol is none.
    #[error("{0:?} is not a protocol of forwards: write tcp or udp")]
    Protocol(String),
}

/// Says why a text is no share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// It is not made of two paths.
    #[error("{0:?} is not a share: write HOST:GUEST or HOST:GUEST:ro, both as absolute paths")]
    Malformed(String),
    /// What follows the paths is unknown.
    #[error("{0:?} is not an option of shares: write `ro`, or leave it out")]
    Option(String),
    /// A path can't be used.
    #[error(transparent)]
    Path(#[from] PathError),
}

/// Says why a text is no path that a spec can name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It depends on a shell.
    #[error("{0:?} begins with `~`, which only a shell knows: write the whole path from /")]
    Home(String),
    /// It depends on a current directory.
    #[error("{0:?} is a relative path: write the whole path from /")]
    Relative(String),
    /// It goes up.
    #[error("{0:?} has `..` in it: write the path that it leads to")]
    Parent(String),
    /// It is the root of the guest.
    #[error("{0:?} is the guest's own root: name a folder below it")]
    Root(String),
    /// It has characters that no path should have.
    #[error("{0:?} has control characters in it")]
    Control(String),
    /// It is too long.
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
}

/// Longest path that is read, in bytes: Linux's PATH_MAX (include/uapi/linux/limits.h) without the final zero.
const MAX_PATH: usize = 4095;

/// Reads an absolute path on this host.
pub(super) fn host_path(text: &str) -> Result<PathBuf, PathError> {
    let owned = || text.to_owned();
    if text.len() > MAX_PATH {
        Err(PathError::TooLong)
    } else if text.chars().any(char::is_control) {
        Err(PathError::Control(owned()))
    } else if text.starts_with('~') {
        Err(PathError::Home(owned()))
    } else if !text.starts_with('/') {
        Err(PathError::Relative(owned()))
    } else {
        Ok(PathBuf::from(text))
    }
}

/// Reads an absolute path in a guest, which is not its root and goes nowhere up.
pub(super) fn guest_path(text: &str) -> Result<PathBuf, PathError> {
    let path = host_path(text)?;
    let up = |component: Component<'_>| component == Component::ParentDir;
    if path.components().any(up) {
        Err(PathError::Parent(text.to_owned()))
    } else if path == Path::new("/") {
        Err(PathError::Root(text.to_owned()))
    } else {
        Ok(path)
    }
}

/// Reads a port.
pub(super) fn port(text: &str) -> Result<u16, ForwardError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(ForwardError::Port(text.chars().take(40).collect())),
    }
}

/// Reads a loopback address, with or without the brackets that IPv6 has before a port.
pub(super) fn loopback(text: &str) -> Result<IpAddr, ForwardError> {
    let bare = text
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(text);
    let malformed = |_| ForwardError::Address(text.chars().take(60).collect());
    let address: IpAddr = bare.parse().map_err(malformed)?;
    if address.is_loopback() {
        Ok(address)
    } else {
        Err(ForwardError::NotLoopback(address))
    }
}

impl FromStr for ForwardSpec {
    type Err = ForwardError;

    /// Reads `[ADDRESS:]HOST_PORT:GUEST_PORT[/tcp|/udp]`; the address is 127.0.0.1 if none is given, the protocol TCP.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ForwardError::Malformed(text.chars().take(80).collect());
        let (ports, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((ports, word)) => {
                let unknown = || ForwardError::Protocol(word.chars().take(40).collect());
                (ports, Protocol::from_word(word).ok_or_else(unknown)?)
            }
        };
        let (rest, guest) = ports.rsplit_once(':').ok_or_else(malformed)?;
        let (host_address, host) = match rest.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), rest),
            Some((address, _)) if address.contains(':') && !address.starts_with('[') => {
                return Err(malformed());
            }
            Some((address, host)) => (loopback(address)?, host),
        };
        Ok(ForwardSpec {
            protocol,
            host_address,
            host_port: port(host)?,
            guest_port: port(guest)?,
        })
    }
}

impl fmt::Display for ForwardSpec {
    /// Writes it as it is read, without what is the default.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_address {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => {}
            IpAddr::V4(address) => write!(f, "{address}:")?,
            IpAddr::V6(address) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}", self.host_port, self.guest_port)?;
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

impl FromStr for ShareSpec {
    type Err = ShareError;

    /// Reads `HOST:GUEST[:ro]`. A path with a colon in it has no such form: in `vm.yaml` it is written as a map.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ShareError::Malformed(text.chars().take(120).collect());
        let mut parts = text.split(':');
        let host = parts.next().ok_or_else(malformed)?;
        let guest = parts.next().ok_or_else(malformed)?;
        let read_only = match parts.next() {
            None => false,
            Some("ro") => true,
            Some("rw") => false,
            Some(other) => return Err(ShareError::Option(other.chars().take(40).collect())),
        };
        if parts.next().is_some() || host.is_empty() || guest.is_empty() {
            return Err(malformed());
        }
        Ok(ShareSpec {
            host: host_path(host)?,
            guest: guest_path(guest)?,
            read_only,
        })
    }
}

/// Says why a text is no kind of readiness.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadyError {
    /// The word is unknown.
    #[error("{0:?} is no way to be ready: write agent, cloud-init, ssh, serial:MARKER or none")]
    Unknown(String),
    /// The marker is missing or can't stand in a line.
    #[error("the marker after `serial:` must be one line of 1 to 256 characters")]
    Marker,
}

impl FromStr for ReadyWhen {
    type Err = ReadyError;

    /// Reads `agent`, `cloud-init`, `ssh`, `serial:MARKER` or `none`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "agent" => Ok(ReadyWhen::Agent),
            "cloud-init" => Ok(ReadyWhen::CloudInit),
            "ssh" => Ok(ReadyWhen::Ssh),
            "none" => Ok(ReadyWhen::None),
            other => match other.strip_prefix("serial:") {
                None => Err(ReadyError::Unknown(text.chars().take(40).collect())),
                Some(marker) => {
                    let length = marker.chars().count();
                    if marker.chars().any(char::is_control) || !(1..=256).contains(&length) {
                        return Err(ReadyError::Marker);
                    }
                    Ok(ReadyWhen::Serial(marker.to_owned()))
                }
            },
        }
    }
}

impl fmt::Display for ReadyWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadyWhen::Agent => f.write_str("agent"),
            ReadyWhen::CloudInit => f.write_str("cloud-init"),
            ReadyWhen::Ssh => f.write_str("ssh"),
            ReadyWhen::Serial(marker) => write!(f, "serial:{marker}"),
            ReadyWhen::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_and_written() {
        for (text, written) in [
            ("8080:80", "8080:80"),
            ("127.0.0.1:8080:80/tcp", "8080:80"),
            ("5353:53/udp", "5353:53/udp"),
            ("127.0.0.2:1:2", "127.0.0.2:1:2"),
            ("[::1]:1:65535/udp", "[::1]:1:65535/udp"),
        ] {
            assert_eq!(
                text.parse::<ForwardSpec>().map(|f| f.to_string()),
                Ok(written.to_owned())
            );
        }
    }

    #[test]
    fn forwards_that_open_the_computer_are_refused() {
        for text in ["0.0.0.0:80:80", "[::]:80:80", "192.168.1.2:80:80"] {
            let read = text.parse::<ForwardSpec>();
            assert!(
                matches!(read, Err(ForwardError::NotLoopback(_))),
                "{text}: {read:?}"
            );
        }
        for text in [
            "",
            "80",
            ":",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "65536:1",
            "+1:2",
            "a:b",
            "1:2:3:4",
            "::1:1:2",
            "1:2/sctp",
            "localhost:1:2",
        ] {
            assert!(text.parse::<ForwardSpec>().is_err(), "{text}");
        }
    }

    #[test]
    fn shares_are_read() {
        let share: ShareSpec = "/src:/work:ro".parse().unwrap();
        assert_eq!(
            (share.host.to_str(), share.guest.to_str(), share.read_only),
            (Some("/src"), Some("/work"), true)
        );
        for text in [
            "",
            "/a",
            "/a:",
            ":/b",
            "a:/b",
            "~/a:/b",
            "/a:b",
            "/a:/",
            "/a:/b/../c",
            "/a:/b:rx",
            "/a:/b:ro:",
            "/a\n:/b",
        ] {
            assert!(text.parse::<ShareSpec>().is_err(), "{text:?}");
        }
    }
}
