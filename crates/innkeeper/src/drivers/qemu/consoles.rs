//! Opens consoles: the first serial port as `serial`, and those of the config by their names.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use innkeeper_api::ErrorKind;

use super::machine::QemuMachine;
use super::record::Record;
use crate::driver::{Channel, Consoles};
use crate::drivers::channel::AgentChannels;
use crate::error::{Error, Result};

/// Name of the first serial port.
pub(super) const SERIAL: &str = "serial";

/// Name of its socket.
pub(super) const SERIAL_SOCKET: &str = "serial.sock";

/// The connections to consoles, one at a time for each.
#[derive(Debug, Default)]
pub(super) struct ConsoleChannels {
    open: Mutex<HashMap<String, Arc<AgentChannels>>>,
}

impl ConsoleChannels {
    fn of(&self, name: &str) -> Arc<AgentChannels> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.entry(name.to_owned()).or_default().clone()
    }
}

/// Returns the socket of a console.
fn socket(record: &Record, name: &str) -> Option<PathBuf> {
    if name == SERIAL {
        let directory = record.monitor.parent()?;
        return Some(directory.join(SERIAL_SOCKET));
    }
    record.fittings.consoles.get(name).cloned()
}

#[async_trait]
impl Consoles for QemuMachine {
    async fn open(&self, name: &str) -> Result<Box<dyn Channel>> {
        let record = &self.shared.record;
        let Some(socket) = socket(record, name) else {
            let others = record.fittings.consoles.keys().map(String::as_str);
            let names: Vec<&str> = std::iter::once(SERIAL).chain(others).collect();
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "the VM has no console {name:?}; it has {}",
                    names.join(", ")
                ),
            ));
        };
        let channels = self.shared.consoles.of(name);
        let channel = channels.open(&socket).await.map_err(|error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("can't connect to the console {}", socket.display()),
            )
            .with_source(error)
        })?;
        Ok(Box::new(channel))
    }
}
