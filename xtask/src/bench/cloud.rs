//! What `inn run` costs over Cloud Hypervisor's own interface called in a row, with the same guest of a hundred bytes.
//!
//! Ours is the whole command with the keeper that it starts, and makes the VM as well. Theirs is the start of the process, a ping,
//! `vm.create` and `vm.boot`, to its answer.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::io::FdFlags;

use super::installation::Installation;
use super::raw::Killed;
use super::report::{Goal, Row};
use super::{Pair, measure};
use crate::process::say;

/// The guest that the tests of the driver write.
#[path = "../../../crates/innkeeper/src/testing/pvh.rs"]
#[allow(dead_code)] // The tests read its marker.
mod pvh;

const NAME: &str = "cloud";

/// Measures `inn run` to the running hypervisor; nothing where there is none.
pub(super) fn run(installation: &mut Installation, pairs: usize) -> Result<Vec<Row>> {
    let Some(program) = program() else {
        say("cloud-hypervisor is not on the PATH: nothing is measured");
        return Ok(Vec::new());
    };
    let directory = installation.root().join("cloud");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("making {}", directory.display()))?;
    let kernel = directory.join("kernel");
    std::fs::write(&kernel, pvh::kernel())?;
    let spec = directory.join("vm.yaml");
    std::fs::write(
        &spec,
        format!(
            "driver: cloud-hypervisor\nboot:\n  kernel: {}\ncpus: 1\nmemory: 64MiB\nnetworks: []\n",
            kernel.display()
        ),
    )?;
    let spec = spec.to_str().context("the path is no text")?;
    installation.note(NAME);
    let limit = installation.limit();
    let installation = &*installation;
    measure(
        vec![Pair {
            name: "run by Cloud Hypervisor".to_owned(),
            ours: Box::new(|| {
                let taken = installation.run(&["run", "-q", "--name", NAME, "-f", spec])?;
                installation.run(&["rm", "-q", "--force", "--yes", NAME])?;
                Ok(taken)
            }),
            theirs: Box::new(|| raw(&program, &directory, &kernel, limit)),
            goal: Some(Goal::Difference(60.0)),
        }],
        pairs,
    )
}

fn program() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join("cloud-hypervisor"))
        .find(|path| path.is_file())
}

/// Starts one by hand with the arguments that ours has, and has the guest booted.
fn raw(program: &Path, directory: &Path, kernel: &Path, limit: Duration) -> Result<Duration> {
    let socket = directory.join("api.sock");
    // Of the round before.
    let _ = std::fs::remove_file(&socket);
    let config = serde_json::json!({
        "cpus": { "boot_vcpus": 1, "max_vcpus": 1 },
        "memory": { "size": 64 << 20 },
        "payload": { "kernel": kernel, "cmdline": "console=ttyS0" },
        "serial": { "mode": "Tty" },
        "console": { "mode": "Off" },
    });
    let start = Instant::now();
    let listener = UnixListener::bind(&socket)?;
    rustix::io::fcntl_setfd(&listener, FdFlags::empty())
        .context("letting a socket be inherited")?;
    let mut command = Command::new(program);
    command
        .arg("--api-socket")
        .arg(format!("fd={}", listener.as_raw_fd()))
        .arg("--event-monitor")
        .arg(format!("path={}", directory.join("events").display()))
        .args(["--no-shutdown", "--seccomp", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _process = Killed(command.spawn()?);
    drop(listener);
    call(&socket, "GET", "vmm.ping", "", limit)?;
    call(&socket, "PUT", "vm.create", &config.to_string(), limit)?;
    call(&socket, "PUT", "vm.boot", "", limit)?;
    Ok(start.elapsed())
}

fn call(socket: &Path, method: &str, endpoint: &str, body: &str, limit: Duration) -> Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(limit))?;
    write!(
        stream,
        "{method} /api/v1/{endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(
        answer.starts_with(b"HTTP/1.1 20"),
        "{endpoint} was refused: {}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}
