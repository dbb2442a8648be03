//! Keeps logs from growing for ever, although other processes hold them open.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use crate::clock::timestamp;

/// A log is turned over when it has grown past this.
const TURN_OVER: u64 = 8 << 20;
/// Ranges that are cut out of a file are multiples of this, which every file system's block size divides.
const GRAIN: u64 = 64 << 10;

/// The keeper's own log: one line for each thing worth knowing.
#[derive(Debug, Clone)]
pub(crate) struct KeeperLog(Arc<File>);

impl KeeperLog {
    /// Opens the log for appending.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(KeeperLog(Arc::new(
            OpenOptions::new().append(true).create(true).open(path)?,
        )))
    }

    /// Writes a line. A log that can't be written to, as on a full disk, must not end a VM: the line is lost.
    pub(crate) fn say(&self, message: &str) {
        let line = format!("{} {}\n", timestamp(), message.replace('\n', " | "));
        let _ = (&*self.0).write_all(line.as_bytes());
    }
}

/// Moves the older part of a log to `LOG.1` once it is larger than 8 MiB.
///
/// The hypervisor writes to the file by an open descriptor in append mode, so the file itself must stay. Where the file system can, the
/// older part is cut out of its beginning in one step and no byte is lost (ext4, XFS: `fallocate(2)`, `FALLOC_FL_COLLAPSE_RANGE`);
/// elsewhere the file is emptied after the copy, and what is written in between those two steps is lost.
pub(crate) fn turn_over(path: &Path) -> io::Result<()> {
    turn_over_past(path, TURN_OVER)
}

fn turn_over_past(path: &Path, limit: u64) -> io::Result<()> {
    let mut log = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(log) => log,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let size = log.metadata()?.len();
    if size <= limit {
        return Ok(());
    }
    // A range that reaches the end of the file can't be cut out.
    let older = (size - 1) / GRAIN * GRAIN;
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    let mut copy = File::create(&name)?;
    io::copy(&mut (&mut log).take(older), &mut copy)?;
    if cut_beginning(&log, older).is_err() {
        log.seek(SeekFrom::Start(older))?;
        io::copy(&mut log, &mut copy)?;
        log.set_len(0)?;
    }
    copy.flush()
}

#[cfg(target_os = "linux")]
fn cut_beginning(log: &File, length: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    Ok(fallocate(log, FallocateFlags::COLLAPSE_RANGE, 0, length)?)
}

#[cfg(not(target_os = "linux"))]
fn cut_beginning(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Returns the last bytes of a log as text, from the beginning of a line, at most `limit` bytes.
pub(crate) fn tail(path: &Path, limit: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut log = File::open(path)?;
        let size = log.metadata()?.len();
        log.seek(SeekFrom::Start(size.saturating_sub(limit)))?;
        let mut bytes = Vec::new();
        log.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    match text.find('\n') {
        Some(end) if bytes.len() as u64 == limit => text[end + 1..].trim_end().to_owned(),
        _ => text.trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost_and_the_writer_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serial.log");
        let mut writer = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        let lines: Vec<String> = (0..40_000).map(|n| format!("line {n}\n")).collect();
        writer
            .write_all(lines[..30_000].concat().as_bytes())
            .unwrap();
        turn_over_past(&path, 200_000).unwrap();
        writer
            .write_all(lines[30_000..].concat().as_bytes())
            .unwrap();
        let mut whole = std::fs::read_to_string(directory.path().join("serial.log.1")).unwrap();
        whole.push_str(&std::fs::read_to_string(&path).unwrap());
        assert_eq!(whole, lines.concat());
        assert!(std::fs::metadata(&path).unwrap().len() < 200_000);
    }

    #[test]
    fn a_small_log_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("serial.log");
        std::fs::write(&path, "hello\n").unwrap();
        turn_over(&path).unwrap();
        assert!(!directory.path().join("serial.log.1").exists());
        assert_eq!(tail(&path, 100), "hello");
        assert_eq!(tail(&directory.path().join("none"), 100), "");
    }
}
