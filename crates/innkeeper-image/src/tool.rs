//! Runs external programs by argv array, never through a shell.
//!
//! A [`Tool`] is looked for in `PATH` and, since administrators' programs are not in every user's `PATH`, in the `sbin`
//! directories. It runs in the C locale. While it runs the caller's cancelling is watched; a cancelled program's process
//! group gets SIGTERM (mmdebstrap cleans up on it) and, ten seconds later, SIGKILL.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::progress::Context;
use crate::{Error, Result};

/// Bytes of standard error that are kept for a message.
const STDERR_KEPT: usize = 8 << 10;
/// Bytes of standard output that a program may give us.
const STDOUT_LIMIT: u64 = 64 << 20;

/// Finds a program in `PATH` or the administrators' directories.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            [
                "/usr/sbin",
                "/sbin",
                "/usr/local/sbin",
                "/opt/homebrew/opt/e2fsprogs/sbin",
                "/opt/homebrew/bin",
            ]
            .map(PathBuf::from),
        )
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Finds a program or says which package has it.
pub(crate) fn require(
    name: &'static str,
    debian_package: &str,
    brew_package: &str,
) -> Result<PathBuf> {
    find(name).ok_or_else(|| Error::ToolMissing {
        tool: name,
        fix: if cfg!(target_os = "macos") {
            format!("install it: brew install {brew_package}")
        } else {
            format!("install it: sudo apt-get install {debian_package}")
        },
    })
}

/// A program that will be run.
pub(crate) struct Tool {
    command: Command,
    name: String,
    operation: String,
    input: Vec<u8>,
}

impl Tool {
    /// `operation` completes "was to ...".
    pub(crate) fn new(program: &Path, operation: impl Into<String>) -> Tool {
        let mut command = Command::new(program);
        command
            .env("LC_ALL", "C.UTF-8")
            .env("LANGUAGE", "C")
            .stdin(Stdio::null())
            .process_group(0);
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Tool {
            command,
            name,
            operation: operation.into(),
            input: Vec::new(),
        }
    }

    /// Gives it a few bytes as standard input; they must fit into a pipe (4 KiB do everywhere).
    pub(crate) fn input(mut self, bytes: impl Into<Vec<u8>>) -> Tool {
        self.input = bytes.into();
        self.command.stdin(Stdio::piped());
        self
    }

    pub(crate) fn arg(mut self, argument: impl Into<OsString>) -> Tool {
        self.command.arg(argument.into());
        self
    }

    pub(crate) fn args<A: Into<OsString>>(
        mut self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Tool {
        self.command.args(arguments.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Tool {
        self.command.env(name, value.into());
        self
    }

    pub(crate) fn current_dir(mut self, path: &Path) -> Tool {
        self.command.current_dir(path);
        self
    }

    /// Runs to the end and gives standard output.
    pub(crate) fn output(self, context: &Context) -> Result<Vec<u8>> {
        self.stream(
            context,
            |_| {},
            |stdout| {
                let mut bytes = Vec::new();
                stdout
                    .take(STDOUT_LIMIT)
                    .read_to_end(&mut bytes)
                    .map_err(|source| Error::Io {
                        operation: "read the output of",
                        path: "a program".into(),
                        source,
                    })?;
                Ok(bytes)
            },
        )
    }

    /// Runs to the end and tells each line of standard error as it comes.
    pub(crate) fn run(self, context: &Context, line: impl FnMut(&str) + Send) -> Result<()> {
        self.stream(context, line, |stdout| {
            std::io::copy(stdout, &mut std::io::sink())
                .map(drop)
                .map_err(|source| Error::Io {
                    operation: "read the output of",
                    path: "a program".into(),
                    source,
                })
        })
    }

    /// Runs to the end while `consume` reads standard output on a thread of its own.
    pub(crate) fn stream<T: Send>(
        mut self,
        context: &Context,
        mut line: impl FnMut(&str) + Send,
        consume: impl FnOnce(&mut dyn Read) -> Result<T> + Send,
    ) -> Result<T> {
        context.check()?;
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .map_err(Error::io("run", self.command.get_program()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input says by its status whether it needed it.
            let _ = stdin.write_all(&self.input);
        }
        let mut stdout = child
            .stdout
            .take()
            .ok_or_else(|| Error::malformed("child", "has no standard output"))?;
        let stderr = child
            .stderr
            .take()
            .ok_or_else(|| Error::malformed("child", "has no standard error"))?;
        std::thread::scope(|scope| {
            let messages = scope.spawn(move || collect_lines(stderr, &mut line));
            // The pipe is closed when the consumer ends, also early, so that the program ends by SIGPIPE instead of hanging.
            let consumer = scope.spawn(move || consume(&mut stdout));
            let status = wait(&mut child, context);
            let consumed = consumer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let stderr = messages
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let status = status?;
            if status.success() {
                return consumed;
            }
            // A consumer's failure made the program fail, rarely the other way round: SIGPIPE tells which.
            use std::os::unix::process::ExitStatusExt;
            if let Err(failure) = consumed
                && (status.signal() == Some(13) || stderr.contains("Broken pipe"))
            {
                return Err(failure);
            }
            Err(Error::ToolFailed {
                tool: self.name,
                operation: self.operation,
                status: status.to_string(),
                stderr,
            })
        })
    }
}

fn collect_lines(stderr: impl Read, line: &mut impl FnMut(&str)) -> String {
    let mut kept = String::new();
    let mut reader = BufReader::new(stderr);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        // A line is bounded too: what is longer comes in pieces.
        match reader
            .by_ref()
            .take(STDERR_KEPT as u64)
            .read_until(b'\n', &mut bytes)
        {
            Ok(0) | Err(_) => return kept.trim().to_owned(),
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        line(text.trim_end());
        kept.push_str(&text);
        while kept.len() > STDERR_KEPT {
            let cut = kept.find('\n').map_or(kept.len(), |at| at + 1);
            kept.drain(..cut);
        }
    }
}

fn wait(child: &mut Child, context: &Context) -> Result<ExitStatus> {
    let mut pause = Duration::from_micros(200);
    let mut asked_to_end: Option<Instant> = None;
    loop {
        if let Some(status) = child
            .try_wait()
            .map_err(Error::io("wait for", "a program"))?
        {
            context.check()?;
            return Ok(status);
        }
        if context.check().is_err() {
            let group = rustix::process::Pid::from_child(child);
            let signal = match asked_to_end {
                None => Some(rustix::process::Signal::TERM),
                Some(since) if since.elapsed() > Duration::from_secs(10) => {
                    Some(rustix::process::Signal::KILL)
                }
                Some(_) => None,
            };
            asked_to_end.get_or_insert_with(Instant::now);
            if let Some(signal) = signal {
                // It may have ended in between; then there is nothing to signal, and the next round reaps it.
                let _ = rustix::process::kill_process_group(group, signal);
            }
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;
    use std::sync::Arc;

    fn context() -> Context {
        Context::new(Arc::new(Silent))
    }

    #[test]
    fn output_and_failure() {
        let echo = find("echo").expect("echo is everywhere");
        let bytes = Tool::new(&echo, "say")
            .args(["a b", "$HOME"])
            .output(&context())
            .unwrap();
        assert_eq!(bytes, b"a b $HOME\n");
        let ls = find("ls").expect("ls is everywhere");
        let failure = Tool::new(&ls, "list")
            .arg("/nonexistent/x")
            .output(&context())
            .unwrap_err();
        assert!(
            matches!(&failure, Error::ToolFailed { stderr, .. } if stderr.contains("/nonexistent/x")),
            "{failure}"
        );
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let message = require("no-such-tool-here", "no-such-package", "x")
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("no-such-package") || cfg!(target_os = "macos"),
            "{message}"
        );
    }
}
