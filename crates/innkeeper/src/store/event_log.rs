//! The log of events: one JSON line each, appended by whichever process acts.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use innkeeper_api::{Event, EventKind};

use crate::error::{Error, Result};

/// The log is turned over once when it grows past this.
const TURN_OVER: u64 = 8 << 20;
/// No event is longer than this; a longer line is damage.
const LONGEST_LINE: u64 = 64 << 10;

/// `events.jsonl` of an installation.
#[derive(Debug, Clone)]
pub struct EventLog {
    path: PathBuf,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    inode: u64,
    offset: u64,
}

impl EventLog {
    pub(super) fn new(path: PathBuf) -> Self {
        EventLog { path }
    }

    /// Appends an event. A line is written with one call, so that lines of two processes never mix.
    pub fn append(&self, vm: Option<&str>, kind: EventKind) -> Result<()> {
        let failed = |error| Error::io(format!("can't write {}", self.path.display()), error);
        let event = Event {
            time: humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string(),
            vm: vm.map(str::to_owned),
            kind,
        };
        let mut line = serde_json::to_vec(&event).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&self.path)
            .map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > TURN_OVER {
            std::fs::rename(&self.path, self.path.with_extension("jsonl.1")).map_err(failed)?;
            file = OpenOptions::new()
                .append(true)
                .create(true)
                .mode(0o600)
                .open(&self.path)
                .map_err(failed)?;
        }
        file.write_all(&line).map_err(failed)
    }

    /// Reads the events after `place` (from the beginning if none is given) and the place after them. A damaged line is passed over.
    pub fn read(&self, place: Option<Place>) -> Result<(Vec<Event>, Place)> {
        let failed = |error| Error::io(format!("can't read {}", self.path.display()), error);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((
                    Vec::new(),
                    Place {
                        inode: 0,
                        offset: 0,
                    },
                ));
            }
            Err(error) => return Err(failed(error)),
        };
        let inode = file.metadata().map_err(failed)?.ino();
        let mut offset = place
            .filter(|place| place.inode == inode)
            .map_or(0, |place| place.offset);
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut reader = BufReader::new(file);
        let mut events = Vec::new();
        loop {
            let mut line = Vec::new();
            let read = reader
                .by_ref()
                .take(LONGEST_LINE)
                .read_until(b'\n', &mut line)
                .map_err(failed)?;
            if read == 0 || (line.last() != Some(&b'\n') && (read as u64) < LONGEST_LINE) {
                return Ok((events, Place { inode, offset }));
            }
            offset += read as u64;
            if let Ok(event) = serde_json::from_slice(&line) {
                events.push(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_on_from_a_place_and_passes_over_damage() {
        let directory = tempfile::tempdir().unwrap();
        let log = EventLog::new(directory.path().join("events.jsonl"));
        assert_eq!(log.read(None).unwrap().0, vec![]);
        log.append(Some("web"), EventKind::Removed).unwrap();
        let (events, place) = log.read(None).unwrap();
        assert_eq!(events.len(), 1);
        let mut file = OpenOptions::new()
            .append(true)
            .open(directory.path().join("events.jsonl"))
            .unwrap();
        file.write_all(b"{\"half\":\n").unwrap();
        log.append(
            None,
            EventKind::Note {
                message: "hello".to_owned(),
            },
        )
        .unwrap();
        file.write_all(b"{\"not yet whole").unwrap();
        let (events, _) = log.read(Some(place)).unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(
            events[0].kind,
            EventKind::Note {
                message: "hello".to_owned()
            }
        );
    }
}
