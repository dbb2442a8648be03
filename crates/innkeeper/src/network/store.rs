//! `networks/NAME/`: what is kept of a network. `network.json` is written once; `lock` is held by its netd; `netd.log` is what that says.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use innkeeper_api::{ErrorKind, NetworkInfo, ShapeRequest};
use serde::{Deserialize, Serialize};

use crate::clock::timestamp;
use crate::error::{Error, Result};
use crate::spec::VmName;
use crate::store::{FileLock, Root, random_id, read_json, write_json};

/// How long a netd that was told to end may take.
const ENDS_TIMEOUT: Duration = Duration::from_secs(5);

/// What is chosen once for a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Chosen {
    id: String,
    created: String,
}

/// The directory of a network that exists.
#[derive(Debug, Clone)]
pub(crate) struct NetworkDirectory {
    name: String,
    path: PathBuf,
    chosen: Chosen,
}

fn all(root: &Root) -> PathBuf {
    root.home().join("networks")
}

impl NetworkDirectory {
    pub(crate) fn create(root: &Root, name: &VmName) -> Result<Self> {
        let private = |path: &Path| DirBuilder::new().mode(0o700).recursive(true).create(path);
        let failed =
            |path: &Path, error| Error::io(format!("can't make {}", path.display()), error);
        private(&all(root)).map_err(|error| failed(&all(root), error))?;
        let path = all(root).join(name.as_str());
        // The directory appears with its file in it, or not at all.
        let new = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(all(root))
            .map_err(|error| failed(&path, error))?;
        let chosen = Chosen {
            id: random_id()?,
            created: timestamp(),
        };
        write_json(&new.path().join("network.json"), &chosen)?;
        match std::fs::rename(new.path(), &path) {
            Ok(()) => drop(new.keep()),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("a network named {name} exists already"),
                ));
            }
            Err(error) => return Err(failed(&path, error)),
        }
        Ok(NetworkDirectory {
            name: name.to_string(),
            path,
            chosen,
        })
    }

    /// Returns the network of this name. Errors: `NotFound`.
    pub(crate) fn find(root: &Root, name: &str) -> Result<Self> {
        let not_found = || {
            Error::new(
                ErrorKind::NotFound,
                format!("there is no network named {name}"),
            )
            .with_hint("`inn network ls` lists those that exist, `inn network create` makes one")
        };
        let name: VmName = name.parse().map_err(|_| not_found())?;
        let path = all(root).join(name.as_str());
        let chosen = read_json(&path.join("network.json"))?.ok_or_else(not_found)?;
        Ok(NetworkDirectory {
            name: name.to_string(),
            path,
            chosen,
        })
    }

    /// Returns the names of all networks, sorted.
    pub(crate) fn names(root: &Root) -> Result<Vec<String>> {
        let failed = |error| Error::io(format!("can't list {}", all(root).display()), error);
        let entries = match std::fs::read_dir(all(root)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            names.extend(
                name.to_str()
                    .filter(|name| !name.starts_with('.'))
                    .map(str::to_owned),
            );
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn id(&self) -> &str {
        &self.chosen.id
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("netd.log")
    }

    /// Returns what links were shaped to when a netd was killed.
    pub(super) fn shapes(&self) -> Result<Vec<ShapeRequest>> {
        Ok(read_json(&self.path.join("shapes.json"))?.unwrap_or_default())
    }

    pub(super) fn write_shapes(&self, shapes: &[ShapeRequest]) -> Result<()> {
        write_json(&self.path.join("shapes.json"), &shapes)
    }

    /// Takes the lock that a netd holds for its life; none if one has it.
    pub(crate) fn try_lock(&self) -> Result<Option<FileLock>> {
        FileLock::try_take(&self.path.join("lock"))
    }

    /// Tells what the files tell.
    pub(crate) fn info(&self) -> NetworkInfo {
        NetworkInfo {
            name: self.name.clone(),
            created: self.chosen.created.clone(),
            pid: None,
            ports: Vec::new(),
        }
    }

    /// Removes the directory, once its netd has ended.
    pub(crate) async fn remove(&self, root: &Root) -> Result<()> {
        let deadline = Instant::now() + ENDS_TIMEOUT;
        let _lock = loop {
            if let Some(lock) = self.try_lock()? {
                break lock;
            }
            if Instant::now() > deadline {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("the netd of {} does not end", self.name),
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        root.remove_socket_directory(self.id());
        std::fs::remove_dir_all(&self.path)
            .map_err(|error| Error::io(format!("can't remove {}", self.path.display()), error))
    }
}
