//! What adoption needs to know of a running QEMU, as it is kept by the engine, and the log's last lines.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use innkeeper_api::ErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fittings::Fittings;
use super::process::ProcessIdentity;
use super::shape::Shape;
use crate::error::{Error, Result};

/// Most that is told of a log, in bytes.
const TAIL_LIMIT: u64 = 2048;

/// A running QEMU, for whoever adopts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Boot of the host in which it was launched.
    pub(super) boot_id: String,
    /// QEMU itself; its `pid` stands at the top, where the contract wants it.
    #[serde(flatten)]
    pub(super) process: ProcessIdentity,
    /// The processes that end with it.
    pub(super) sidecars: Vec<ProcessIdentity>,
    /// Version of QEMU.
    pub(super) version: String,
    /// How CPUs are run.
    pub(super) accelerator: String,
    /// Whether the power button does anything.
    pub(super) power_button: bool,
    /// Control socket.
    pub(super) monitor: PathBuf,
    /// Agent's socket.
    pub(super) agent: PathBuf,
    /// Every socket that is removed when it is gone.
    pub(super) sockets: Vec<PathBuf>,
    /// Where it writes its messages.
    pub(super) log: PathBuf,
    /// What the machine is made of.
    #[serde(default)]
    pub(super) shape: Shape,
    /// What it has that is asked for while it runs.
    #[serde(default)]
    pub(super) fittings: Fittings,
}

impl Record {
    /// Reads a record.
    ///
    /// Errors: `Failure` if it is none of this driver's.
    pub(super) fn read(value: &Value) -> Result<Self> {
        Record::deserialize(value).map_err(|error| {
            Error::new(
                ErrorKind::Failure,
                "the record of the running QEMU can't be read",
            )
            .with_source(error)
        })
    }

    /// Writes it for the engine to keep.
    pub(super) fn to_value(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|error| {
            Error::new(
                ErrorKind::Failure,
                "the record of the running QEMU can't be written",
            )
            .with_source(error)
        })
    }

    /// Returns what a status word means for this machine: where the watchdog is to power it off, a machine that it stopped is off.
    pub(super) fn meaning<'a>(&self, status: &'a str) -> &'a str {
        if status == "watchdog" && self.fittings.watchdog_powers_off {
            "shutdown"
        } else {
            status
        }
    }

    /// Removes the sockets that the launch made.
    pub(super) fn remove_sockets(&self) {
        for socket in &self.sockets {
            // Gone already is as good; anything else is found by the next launch, which reports it.
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Returns the last lines of a log from an offset on, at most 2 KiB, without control characters; empty if it can't be read.
pub(super) fn log_tail(path: &Path, from: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        // A log shorter than the offset was rotated since.
        let from = if from > end { 0 } else { from };
        file.seek(SeekFrom::Start(from.max(end.saturating_sub(TAIL_LIMIT))))?;
        let mut tail = Vec::new();
        file.take(TAIL_LIMIT).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let mut text: String = String::from_utf8_lossy(&tail)
        .chars()
        .map(|c| if c.is_control() && c != '\n' { ' ' } else { c })
        .collect();
    text.truncate(text.trim_end().len());
    // Replacement characters are longer than the bytes that they stand for.
    while text.len() as u64 > TAIL_LIMIT {
        text.remove(0);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_bounded_and_clean() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, b"old\nnew \x1b[31m\xffline\n").unwrap();
        assert_eq!(log_tail(&path, 4), "new  [31m\u{fffd}line");
        assert_eq!(log_tail(&path, 1000), "old\nnew  [31m\u{fffd}line");
        std::fs::write(&path, vec![0xff; 10_000]).unwrap();
        assert!(log_tail(&path, 0).len() <= 2048);
        assert_eq!(log_tail(&directory.path().join("none"), 0), "");
    }
}
