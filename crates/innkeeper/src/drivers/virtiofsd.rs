//! Finds virtiofsd, says how it is started for a shared folder (the two programs of that name differ), and asks one that was started
//! whether it answers.
//!
//! ```text
//!  find: --print-capabilities ─► which program ─► --readonly known? ─► started for a moment in each sandbox: the first that answers
//!  greet: GET_FEATURES ─► a reply of 20 bytes: it lives and serves; the connection is then handed to the hypervisor
//! ```
//!
//! A hypervisor that connects to a daemon which does not answer hangs with everything it has, so nobody but us ever waits for one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::driver::ShareConfig;
use crate::error::{Error, Result};

/// How long it may take to say what it can.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long one that was started may take to answer: a start that fails is told within 5 s.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(4);

/// vhost-user's request for what a backend can do, and the same as it stands in front of the answer: request, flags (version 1, and
/// bit 2 in a reply), size of what follows. Source: QEMU `docs/interop/vhost-user.rst`.
const GET_FEATURES: [u32; 3] = [1, 1, 0];
const FEATURES_FOLLOW: [u32; 3] = [1, 5, 8];

/// The daemon that serves shared folders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virtiofsd {
    /// The executable.
    pub program: PathBuf,
    /// Which of the two programs of that name it is.
    pub dialect: VirtiofsdDialect,
    /// `unshare`, where the daemon needs a user namespace made for it.
    pub unshare: Option<PathBuf>,
    /// Whether it serves a folder read-only by itself.
    pub read_only: bool,
    /// How it shuts itself in.
    pub sandbox: VirtiofsdSandbox,
}

/// How virtiofsd keeps itself from everything but the folder that it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VirtiofsdSandbox {
    /// Namespaces of its own, in which there is nothing but the folder.
    Namespace,
    /// None, where this host lets an ordinary user make no namespaces: it can open what its user can. Its system calls are still filtered.
    None,
}

impl VirtiofsdSandbox {
    /// Returns the word that virtiofsd uses.
    pub fn word(self) -> &'static str {
        match self {
            VirtiofsdSandbox::Namespace => "namespace",
            VirtiofsdSandbox::None => "none",
        }
    }
}

/// The two programs named virtiofsd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VirtiofsdDialect {
    /// The C program of QEMU up to 7.2.
    C,
    /// The Rust program that followed it.
    Rust,
}

impl Virtiofsd {
    /// Says how a folder is served on the listening socket that the process inherits under this number. Pure.
    ///
    /// Errors: `Unsupported` or `BadInput` naming the folder that this program can't serve.
    pub(super) fn serve(
        &self,
        share: &ShareConfig,
        descriptor: i32,
    ) -> Result<(PathBuf, Vec<String>)> {
        if share.read_only && !self.read_only {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "this virtiofsd can't serve {} read-only",
                    share.host.display()
                ),
            ));
        }
        let source = path_text(&share.host)?;
        let mut arguments = Vec::new();
        match self.dialect {
            VirtiofsdDialect::C => {
                // Its `-o` splits at commas and has no way to write one.
                if source.contains([',', '\\']) {
                    return Err(Error::new(
                        ErrorKind::BadInput,
                        format!(
                            "this virtiofsd can't serve {source}: its name holds a comma or a backslash"
                        ),
                    ));
                }
                arguments.extend([
                    "-f".to_owned(),
                    format!("--fd={descriptor}"),
                    "-o".to_owned(),
                    format!("source={source},sandbox=namespace,cache=auto,log_level=warn"),
                ]);
            }
            VirtiofsdDialect::Rust => {
                arguments.extend([
                    format!("--fd={descriptor}"),
                    "--shared-dir".to_owned(),
                    source.to_owned(),
                    format!("--sandbox={}", self.sandbox.word()),
                    "--log-level=warn".to_owned(),
                ]);
                if share.read_only {
                    arguments.push("--readonly".to_owned());
                }
            }
        }
        let program = match &self.unshare {
            Some(unshare) => {
                let mut wrapped = vec![
                    "--user".to_owned(),
                    "--map-root-user".to_owned(),
                    "--".to_owned(),
                ];
                wrapped.push(path_text(&self.program)?.to_owned());
                wrapped.append(&mut arguments);
                arguments = wrapped;
                unshare.clone()
            }
            None => self.program.clone(),
        };
        Ok((program, arguments))
    }
}

/// Finds virtiofsd and which of the two programs of that name it is: the newer one names its features.
pub(super) async fn find(candidates: &[PathBuf], path: &[PathBuf]) -> Option<Virtiofsd> {
    let program = candidates.iter().find(|path| path.is_file())?;
    let reply = capabilities(program, None).await?;
    let newer = reply["features"].is_array();
    // The C program makes its namespaces as root only; a user namespace made around it serves as well.
    let unshare = (!newer && !rustix::process::geteuid().is_root())
        .then(|| {
            path.iter()
                .map(|directory| directory.join("unshare"))
                .find(|path| path.is_file())
        })
        .flatten();
    let mut found = Virtiofsd {
        program: program.clone(),
        dialect: VirtiofsdDialect::C,
        unshare,
        read_only: false,
        sandbox: VirtiofsdSandbox::Namespace,
    };
    if newer {
        found.dialect = VirtiofsdDialect::Rust;
        // It names this among its features in no version; one that does not know the word ends with an error.
        found.read_only = capabilities(program, Some("--readonly")).await.is_some();
        #[cfg(target_os = "linux")]
        if !found.answers().await {
            let open = Virtiofsd {
                sandbox: VirtiofsdSandbox::None,
                ..found.clone()
            };
            if open.answers().await {
                found = open;
            }
        }
    }
    Some(found)
}

/// Asks the program what it can do; none if it is not virtiofsd, or does not know the word.
async fn capabilities(program: &Path, word: Option<&str>) -> Option<Value> {
    let mut command = Command::new(program);
    command
        .env_clear()
        .args(word)
        .arg("--print-capabilities")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output())
        .await
        .ok()?
        .ok()?;
    let reply: Value = serde_json::from_slice(&output.stdout).ok()?;
    (output.status.success() && reply["type"] == "fs").then_some(reply)
}

#[cfg(target_os = "linux")]
impl Virtiofsd {
    /// Starts it for a moment, to see whether its sandbox works here.
    async fn answers(&self) -> bool {
        self.try_out().await.is_ok()
    }

    async fn try_out(&self) -> io::Result<()> {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener};
        use std::sync::atomic::{AtomicU32, Ordering};

        use command_fds::{CommandFdExt, FdMapping};

        static COUNT: AtomicU32 = AtomicU32::new(0);
        let descriptor = super::start::FIRST_DESCRIPTOR;
        let share = ShareConfig {
            tag: "trial".to_owned(),
            host: self.program.parent().unwrap_or(Path::new("/")).to_owned(),
            read_only: self.read_only,
        };
        let (program, arguments) = self.serve(&share, descriptor).map_err(io::Error::other)?;
        // Of the abstract kind, which leaves no file; nothing is shared by it but the folder of a program.
        let name = format!(
            "innkeeper-virtiofsd-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let address = SocketAddr::from_abstract_name(name)?;
        let listener = UnixListener::bind_addr(&address)?;
        let connection = UnixStream::connect_addr(&address)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .fd_mappings(vec![FdMapping {
                parent_fd: listener.into(),
                child_fd: descriptor,
            }])
            .map_err(io::Error::other)?;
        let mut child = command.spawn()?;
        // It holds our end of the listener.
        drop(command);
        let greeted = greet(connection, ANSWER_DEADLINE).await;
        child.kill().await?;
        greeted.map(drop)
    }
}

/// Asks a virtiofsd that was started whether it answers, and returns the connection: it takes a single one, so that this one is to be
/// handed over.
///
/// Errors: `TimedOut` if it is silent, `UnexpectedEof` or another if it ended, `InvalidData` if it is none.
pub(super) async fn greet(connection: UnixStream, deadline: Duration) -> io::Result<OwnedFd> {
    connection.set_nonblocking(true)?;
    let mut stream = tokio::net::UnixStream::from_std(connection)?;
    let exchange = async {
        stream.write_all(&words(GET_FEATURES)).await?;
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).await?;
        if reply.starts_with(&words(FEATURES_FOLLOW)) {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it does not speak vhost-user",
            ))
        }
    };
    tokio::time::timeout(deadline, exchange)
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it said nothing for {} s", deadline.as_secs()),
            ))
        })?;
    let connection = stream.into_std()?;
    connection.set_nonblocking(false)?;
    Ok(connection.into())
}

/// Lays out three words as vhost-user has them: in the order of this computer.
fn words(words: [u32; 3]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Returns a path as text. Errors: `BadInput` if it is not UTF-8.
fn path_text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::new(
            ErrorKind::BadInput,
            format!("the path {} is not valid UTF-8: rename it", path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    async fn greeted_by(act: impl FnOnce(UnixStream) + Send + 'static) -> io::Result<OwnedFd> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let peer = std::thread::spawn(move || {
            let mut asked = [0; 12];
            theirs.read_exact(&mut asked).unwrap();
            assert_eq!(asked, words(GET_FEATURES));
            act(theirs);
        });
        let greeted = greet(ours, Duration::from_millis(500)).await;
        peer.join().unwrap();
        greeted
    }

    #[tokio::test]
    async fn only_one_that_answers_is_greeted() {
        let answered = greeted_by(|mut theirs| {
            theirs.write_all(&words(FEATURES_FOLLOW)).unwrap();
            theirs.write_all(&[0; 8]).unwrap();
        });
        assert!(answered.await.is_ok());
        let kind = |greeted: io::Result<OwnedFd>| greeted.err().map(|error| error.kind());
        let ended = greeted_by(drop).await;
        assert_eq!(kind(ended), Some(io::ErrorKind::UnexpectedEof));
        let stranger = greeted_by(|mut theirs| theirs.write_all(&[7; 20]).unwrap()).await;
        assert_eq!(kind(stranger), Some(io::ErrorKind::InvalidData));
        let silent = greeted_by(|mut theirs| {
            // Until the other end gives up.
            let _ = theirs.read(&mut [0]);
        });
        // The thread ends when our end is closed, which the deadline sees to.
        assert_eq!(kind(silent.await), Some(io::ErrorKind::TimedOut));
    }
}
