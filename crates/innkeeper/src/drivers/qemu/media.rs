//! Changes what lies in a CD drive.
//!
//! ```text
//!  new medium opened ─► tray opened ─► old one out, closed ─► new one in ─► tray closed
//!   └ can't be: nothing is touched      └ locked by the guest: Conflict
//! ```

use innkeeper_api::ErrorKind;
use serde_json::{Value, json};

use super::block;
use super::machine::Shared;
use crate::driver::Medium;
use crate::error::{Error, Result};

/// How often a tray is opened that the guest closes again.
const TRIES: u32 = 10;

/// What is known of a drive.
#[derive(Debug, PartialEq, Eq)]
struct Drive {
    locked: bool,
    open: bool,
    /// Node of what lies in it.
    node: Option<String>,
}

impl Shared {
    /// Puts a medium into a drive, or takes out what is in it.
    pub(super) async fn change_medium(&self, name: &str, medium: Option<&Medium>) -> Result<()> {
        let id = block::drive_id(name);
        let reply = self.execute("query-block", json!({})).await?;
        let Some(drive) = read_drive(&reply, &id) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("the VM has no drive {name}"),
            ));
        };
        if drive.locked && !drive.open {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the guest has locked the tray of drive {name}"),
            )
            .with_hint("unmount or eject it in the guest first"));
        }
        let added = match medium {
            Some(medium) => Some(self.add_medium(name, medium, drive.node.as_deref()).await?),
            None => None,
        };
        let changed = self
            .exchange(&id, drive.node.as_deref(), added.as_deref())
            .await;
        if changed.is_err()
            && let Some(node) = &added
        {
            // Refused if it is in the drive after all.
            let _ = self
                .execute("blockdev-del", json!({ "node-name": node }))
                .await;
        }
        changed
    }

    /// Opens a medium under a name that is free, while the old one is still in the drive.
    async fn add_medium(&self, name: &str, medium: &Medium, old: Option<&str>) -> Result<String> {
        std::fs::File::open(&medium.path).map_err(|error| {
            Error::io(
                format!("the medium {} can't be opened", medium.path.display()),
                error,
            )
        })?;
        let mut node = block::medium(name, medium)?;
        let mut node_name = block::medium_node(name);
        if old == Some(&node_name) {
            node_name = format!("other-{}", &node_name["medium-".len()..]);
        }
        node["node-name"] = json!(node_name);
        self.execute("blockdev-add", node).await?;
        Ok(node_name)
    }

    async fn exchange(&self, id: &str, old: Option<&str>, new: Option<&str>) -> Result<()> {
        if let Some(old) = old {
            self.in_open_tray(id, "blockdev-remove-medium", json!({ "id": id }))
                .await?;
            // Refused for one that QEMU removes by itself.
            let _ = self
                .execute("blockdev-del", json!({ "node-name": old }))
                .await;
        }
        if let Some(new) = new {
            self.in_open_tray(
                id,
                "blockdev-insert-medium",
                json!({ "id": id, "node-name": new }),
            )
            .await?;
        }
        self.execute("blockdev-close-tray", json!({ "id": id }))
            .await
            .map(drop)
    }
}

impl Shared {
    /// Does what an open tray is needed for. A guest that looks at its drives, as one that boots does, may close it in between.
    async fn in_open_tray(&self, id: &str, command: &str, arguments: Value) -> Result<()> {
        let mut tries = 1;
        loop {
            self.execute("blockdev-open-tray", json!({ "id": id }))
                .await?;
            let Err(error) = self.execute(command, arguments.clone()).await else {
                return Ok(());
            };
            let reply = self.execute("query-block", json!({})).await?;
            let closed = read_drive(&reply, id).is_some_and(|drive| !drive.open);
            if !closed || tries == TRIES {
                return Err(error);
            }
            tries += 1;
        }
    }
}

/// Finds a drive in a reply of `query-block`; it is named there by its id or by its path.
fn read_drive(reply: &Value, id: &str) -> Option<Drive> {
    reply
        .as_array()?
        .iter()
        .find(|entry| {
            entry["qdev"]
                .as_str()
                .is_some_and(|qdev| qdev.rsplit('/').next() == Some(id))
        })
        .map(|entry| Drive {
            locked: entry["locked"].as_bool().unwrap_or(false),
            open: entry["tray_open"].as_bool().unwrap_or(false),
            node: entry["inserted"]["node-name"].as_str().map(str::to_owned),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_is_found_by_its_id_or_its_path() {
        let reply = json!([
            { "qdev": "disk-drive-cd", "locked": true },
            { "qdev": "/machine/peripheral/drive-cd", "locked": false, "tray_open": true, "inserted": { "node-name": "medium-cd" } },
        ]);
        let expected = Drive {
            locked: false,
            open: true,
            node: Some("medium-cd".to_owned()),
        };
        assert_eq!(read_drive(&reply, "drive-cd"), Some(expected));
        assert_eq!(read_drive(&reply, "cd"), None);
        assert_eq!(read_drive(&json!({}), "drive-cd"), None);
    }
}
