//! Whether the guest is ready as its spec says, and what it waits for if not. Judging is pure; watching the serial log and the SSH port
//! is done by [`Watcher`].

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::machine::Readiness;
use crate::spec::ReadyWhen;

/// How often the serial log and the SSH port are looked at. Neither tells when it changes.
const LOOK: Duration = Duration::from_millis(100);
/// How long an SSH server may take to say its version.
const BANNER_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of the serial log is read at once.
const PIECE: usize = 64 << 10;

/// What is known of a guest's way to readiness in this boot of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Facts {
    /// The agent has said hello.
    pub agent: bool,
    /// The agent says that it has set the guest up.
    pub settled: bool,
    /// The VM has shares.
    pub shares: bool,
    /// The agent was asked to mount them, and has answered.
    pub shares_done: bool,
    /// The VM has a network.
    pub network: bool,
    /// Number of addresses known.
    pub addresses: usize,
    /// What cloud-init tells.
    pub cloud_init: Option<CloudInit>,
    /// An SSH server answered.
    pub ssh: bool,
    /// The marker was seen on the serial console.
    pub serial: bool,
    /// The guest's kernel panicked.
    pub panicked: bool,
}

/// How far cloud-init is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CloudInit {
    /// It is at work.
    Running,
    /// It has finished without error.
    Done,
    /// It has finished with these errors.
    Failed(Vec<String>),
    /// The guest has none.
    Absent,
}

/// A sign that was seen outside the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// An SSH server answered.
    Ssh,
    /// The marker was seen on the serial console.
    Serial,
}

impl Facts {
    pub(crate) fn note_sign(&mut self, sign: Sign) {
        match sign {
            Sign::Ssh => self.ssh = true,
            Sign::Serial => self.serial = true,
        }
    }
}

/// Judges whether a running guest is ready; if not, says what it waits for.
pub(crate) fn assess(ready: &ReadyWhen, facts: &Facts) -> (Readiness, Option<String>) {
    let not_yet = |what: &str| (Readiness::NotReady, Some(what.to_owned()));
    if facts.panicked {
        return not_yet("the guest's kernel panicked; see `inn logs --serial`");
    }
    match ready {
        ReadyWhen::None => (Readiness::Ready, None),
        ReadyWhen::Ssh if facts.ssh => (Readiness::Ready, None),
        ReadyWhen::Ssh => not_yet("waiting for the SSH server"),
        ReadyWhen::Serial(_) if facts.serial => (Readiness::Ready, None),
        ReadyWhen::Serial(marker) => {
            not_yet(&format!("waiting for {marker:?} on the serial console"))
        }
        ReadyWhen::Agent | ReadyWhen::CloudInit if !facts.agent => not_yet("waiting for the agent"),
        ReadyWhen::Agent | ReadyWhen::CloudInit if facts.network && facts.addresses == 0 => {
            not_yet("waiting for an address")
        }
        ReadyWhen::Agent | ReadyWhen::CloudInit if !facts.settled => {
            not_yet("waiting for the guest to set itself up")
        }
        ReadyWhen::Agent | ReadyWhen::CloudInit if facts.shares && !facts.shares_done => {
            not_yet("waiting for the shares to be mounted")
        }
        ReadyWhen::Agent => (Readiness::Ready, None),
        ReadyWhen::CloudInit => match &facts.cloud_init {
            Some(CloudInit::Done) => (Readiness::Ready, None),
            Some(CloudInit::Failed(errors)) => not_yet(&format!(
                "cloud-init ended with errors: {}",
                errors.join("; ")
            )),
            Some(CloudInit::Absent) => not_yet("the guest has no cloud-init; set `ready: agent`"),
            Some(CloudInit::Running) | None => not_yet("waiting for cloud-init"),
        },
    }
}

/// Looks for signs that nobody tells; ends when dropped.
pub(crate) struct Watcher {
    task: Option<JoinHandle<()>>,
    again: Arc<Notify>,
}

impl Watcher {
    /// Begins to look for what `ready` needs. The serial log is read from its beginning: it speaks of this run only.
    pub(crate) fn spawn(
        ready: &ReadyWhen,
        serial_log: PathBuf,
        ssh_port: Option<u16>,
        signs: mpsc::UnboundedSender<Sign>,
    ) -> Self {
        let again = Arc::new(Notify::new());
        let notify = again.clone();
        let task = match ready {
            ReadyWhen::Serial(marker) => {
                let marker = marker.clone().into_bytes();
                Some(tokio::spawn(async move {
                    let mut search = SerialSearch::new(marker);
                    loop {
                        while !search.look(&serial_log).unwrap_or(false) {
                            tokio::time::sleep(LOOK).await;
                        }
                        let _ = signs.send(Sign::Serial);
                        notify.notified().await;
                    }
                }))
            }
            ReadyWhen::Ssh => ssh_port.map(|port| {
                tokio::spawn(async move {
                    loop {
                        while !ssh_answers(port).await {
                            tokio::time::sleep(LOOK).await;
                        }
                        let _ = signs.send(Sign::Ssh);
                        notify.notified().await;
                    }
                })
            }),
            _ => None,
        };
        Watcher { task, again }
    }

    /// The guest has rebooted: looks anew.
    pub(crate) fn again(&self) {
        self.again.notify_one();
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn ssh_answers(port: u16) -> bool {
    // A forward takes the connection whether or not anybody listens in the guest: only the banner tells (RFC 4253, section 4.2).
    let banner = async {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        let mut start = [0u8; 4];
        stream.read_exact(&mut start).await?;
        io::Result::Ok(&start == b"SSH-")
    };
    matches!(
        tokio::time::timeout(BANNER_TIMEOUT, banner).await,
        Ok(Ok(true))
    )
}

/// Looks for a marker in a growing file, also across two reads of it.
struct SerialSearch {
    marker: Vec<u8>,
    offset: u64,
    kept: Vec<u8>,
}

impl SerialSearch {
    fn new(marker: Vec<u8>) -> Self {
        SerialSearch {
            marker,
            offset: 0,
            kept: Vec::new(),
        }
    }

    fn look(&mut self, log: &Path) -> io::Result<bool> {
        let mut file = File::open(log)?;
        // It was turned over: what is left of it is read from its beginning.
        if file.metadata()?.len() < self.offset {
            self.offset = 0;
        }
        file.seek(SeekFrom::Start(self.offset))?;
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece)?;
            if read == 0 {
                return Ok(false);
            }
            self.offset += read as u64;
            self.kept.extend_from_slice(&piece[..read]);
            if self
                .kept
                .windows(self.marker.len().max(1))
                .any(|window| window == self.marker)
            {
                self.kept.clear();
                return Ok(true);
            }
            let keep = self.kept.len().saturating_sub(self.marker.len());
            self.kept.drain(..keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_marker_is_found_across_writes_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serial.log");
        let mut log = File::create(&path).unwrap();
        let mut search = SerialSearch::new(b"READY".to_vec());
        assert!(!search.look(&path).unwrap());
        log.write_all(b"booting REA").unwrap();
        assert!(!search.look(&path).unwrap());
        log.write_all(b"DY\n").unwrap();
        assert!(search.look(&path).unwrap());
        assert!(!search.look(&path).unwrap());
    }

    #[test]
    fn ready_only_when_all_that_is_asked_is_there() {
        let mut facts = Facts {
            network: true,
            ..Facts::default()
        };
        assert_eq!(assess(&ReadyWhen::CloudInit, &facts).0, Readiness::NotReady);
        facts.agent = true;
        assert_eq!(
            assess(&ReadyWhen::Agent, &facts).0,
            Readiness::NotReady,
            "no address yet"
        );
        facts.addresses = 1;
        assert_eq!(
            assess(&ReadyWhen::Agent, &facts).0,
            Readiness::NotReady,
            "still busy"
        );
        facts.settled = true;
        assert_eq!(assess(&ReadyWhen::Agent, &facts), (Readiness::Ready, None));
        assert_eq!(assess(&ReadyWhen::CloudInit, &facts).0, Readiness::NotReady);
        facts.cloud_init = Some(CloudInit::Failed(vec!["no space".to_owned()]));
        assert!(
            assess(&ReadyWhen::CloudInit, &facts)
                .1
                .unwrap()
                .contains("no space")
        );
        facts.cloud_init = Some(CloudInit::Done);
        assert_eq!(assess(&ReadyWhen::CloudInit, &facts).0, Readiness::Ready);
        facts.panicked = true;
        assert_eq!(assess(&ReadyWhen::CloudInit, &facts).0, Readiness::NotReady);
    }
}
