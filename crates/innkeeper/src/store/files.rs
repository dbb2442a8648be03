//! Whole-file reads and writes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// Files of ours are small; anything larger is not ours.
const LARGEST: u64 = 4 << 20;

/// Whether what is written must outlive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// It is on disk when the write returns.
    Durable,
    /// It speaks of this boot of the computer only; syncing it would cost milliseconds for nothing.
    ThisBoot,
}

/// Replaces a file by one with this content, or leaves it as it was. The data is on disk when this returns.
pub fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    write(path, content, Lasting::Durable)
}

/// Replaces a file by one with this content, or leaves it as it was.
pub fn write(path: &Path, content: &[u8], lasting: Lasting) -> Result<()> {
    let failed = |error| Error::io(format!("can't write {}", path.display()), error);
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(directory)
        .map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    if lasting == Lasting::Durable {
        file.as_file().sync_data().map_err(failed)?;
    }
    file.persist(path).map_err(|error| failed(error.error))?;
    match lasting {
        Lasting::Durable => File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed),
        Lasting::ThisBoot => Ok(()),
    }
}

/// Replaces a file by this value as JSON. The data is on disk when this returns.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_whole(path, &json(path, value)?)
}

/// Makes a value into JSON as our files have it.
pub fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::io(format!("can't write {}", path.display()), error.into()))?;
    text.push(b'\n');
    Ok(text)
}

/// Reads a file of ours as text; none if it does not exist.
pub fn read_text(path: &Path) -> Result<Option<String>> {
    let failed = |error| Error::io(format!("can't read {}", path.display()), error);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    let read = file
        .take(LARGEST + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if read as u64 > LARGEST {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is larger than 4 MiB",
        )));
    }
    Ok(Some(text))
}

/// Reads a JSON file of ours; none if it does not exist.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(text) = read_text(path)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Error::new(
            innkeeper_api::ErrorKind::Failure,
            format!("{} is damaged", path.display()),
        )
        .with_source(error)
    })
}
