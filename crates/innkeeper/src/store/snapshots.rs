//! The snapshots of a VM on disk: the graph, what each keeps beside its disks, and what a revert lays ready.
//!
//! ```text
//!  snapshots.json             the graph; one write of it decides which tops count
//!  snapshots/ID/              UEFI variables, TPM state, memory of that moment
//!  snapshots/.restore-N/      copies of those, to be moved into place by the change to generation N
//! ```

use std::path::PathBuf;

use super::{Bundle, Identity, read_json, write_json};
use crate::error::Result;
use crate::snapshot::Graph;

/// Directory of what snapshots keep.
const DIRECTORY: &str = "snapshots";

impl Bundle {
    /// Reads the graph; none if there never was a snapshot.
    pub(crate) fn snapshots(&self) -> Result<Option<Graph>> {
        let graph: Option<Graph> = read_json(&self.path("snapshots.json"))?;
        if let Some(graph) = &graph {
            graph.check_version()?;
        }
        Ok(graph)
    }

    /// Reads the graph, or makes an empty one. Its tops are those of the identity, which may have grown or got company since, unless a
    /// change of tops is not finished.
    pub(crate) fn snapshots_or_new(&self, identity: &Identity) -> Result<Graph> {
        let Some(mut graph) = self.snapshots()? else {
            return Ok(Graph::new(identity.generation, identity.disks.clone()));
        };
        if graph.generation <= identity.generation {
            graph.tops.clone_from(&identity.disks);
        }
        Ok(graph)
    }

    /// Writes the graph. It is on disk when this returns.
    pub(crate) fn write_snapshots(&self, graph: &Graph) -> Result<()> {
        write_json(&self.path("snapshots.json"), graph)
    }

    /// Returns the directory of what snapshots keep.
    pub(crate) fn snapshots_directory(&self) -> PathBuf {
        self.path(DIRECTORY)
    }

    /// Returns the directory of what one snapshot keeps.
    pub(crate) fn snapshot_directory(&self, id: &str) -> PathBuf {
        self.path(DIRECTORY).join(id)
    }

    /// Returns the directory of what a change to this generation moves into place.
    pub(crate) fn restore_directory(&self, generation: u64) -> PathBuf {
        self.path(DIRECTORY).join(format!(".restore-{generation}"))
    }
}
