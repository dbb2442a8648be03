//! vsock ports of the host on which somebody waits for connections of the guest.
//!
//! A client takes one connection at a time. Between two of its requests the port stays open for a moment, so that what the guest connects
//! meanwhile waits instead of being refused.
//!
//! ```text
//!  taken ──a connection, or the client gone──► kept for LINGER ──taken again──► taken
//!                                                    └── not taken: closed
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use innkeeper_agent::message::VsockDirection;
use innkeeper_api::ErrorKind;
use tokio::sync::mpsc;

use super::agent::AgentLink;
use crate::driver::{Channel, Machine};
use crate::error::{Error, Result};

/// How long a port stays open after its last client.
const LINGER: Duration = Duration::from_secs(2);

type Connections = mpsc::Receiver<Box<dyn Channel>>;

/// A port: taken by a client, or kept for the next.
enum Port {
    Taken,
    Kept {
        since: u64,
        connections: Connections,
    },
}

/// The ports of one keeper. Clones share them.
#[derive(Clone, Default)]
pub(super) struct VsockPorts {
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    /// Counts what was kept, so that a late end does not meet what was kept anew.
    kept: u64,
    ports: HashMap<u32, Port>,
}

/// A port that a client has taken; it is kept for the next one when this is dropped.
struct Taken {
    ports: VsockPorts,
    port: u32,
    connections: Option<Connections>,
}

impl VsockPorts {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes all of them: the machine that they belonged to is gone.
    pub(super) fn clear(&self) {
        self.lock().ports.clear();
    }

    /// Waits for the next connection that the guest makes to a port. Errors: `Conflict` if somebody waits for it already.
    pub(super) async fn accept(
        &self,
        port: u32,
        machine: &Arc<dyn Machine>,
        agent: Option<AgentLink>,
    ) -> Result<Box<dyn Channel>> {
        let mut taken = self.take(port)?;
        if taken.connections.is_none() {
            taken.connections = Some(match (machine.vsock(), agent) {
                (Some(vsock), _) => vsock.listen(port).await?,
                (None, Some(agent)) => by_agent(agent, port).await?,
                (None, None) => return Err(no_way(port)),
            });
        }
        let next = match &mut taken.connections {
            Some(connections) => connections.recv().await,
            None => None,
        };
        next.ok_or_else(|| {
            taken.connections = None;
            Error::new(
                ErrorKind::Unreachable,
                format!("vsock port {port} was closed meanwhile"),
            )
        })
    }

    fn take(&self, port: u32) -> Result<Taken> {
        let connections = match self.lock().ports.insert(port, Port::Taken) {
            Some(Port::Taken) => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("somebody waits for connections to vsock port {port} already"),
                ));
            }
            Some(Port::Kept { connections, .. }) => Some(connections),
            None => None,
        };
        Ok(Taken {
            ports: self.clone(),
            port,
            connections,
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut table = self.ports.lock();
        table.ports.remove(&self.port);
        let Some(connections) = self.connections.take() else {
            return;
        };
        table.kept += 1;
        let since = table.kept;
        table
            .ports
            .insert(self.port, Port::Kept { since, connections });
        drop(table);
        let (ports, port) = (self.ports.clone(), self.port);
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            let mut table = ports.lock();
            if matches!(table.ports.get(&port), Some(Port::Kept { since: of, .. }) if *of == since)
            {
                table.ports.remove(&port);
            }
        });
    }
}

/// What a client is told where nothing leads to the guest's ports.
pub(super) fn no_way(port: u32) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("nothing leads to vsock port {port}: this machine has no vsock device, and no channel to an agent"),
    )
    .with_hint("set `vsock=true` and restart it; `inn explain` tells whether its driver can")
}

/// Lets the agent listen: each connection is one command of its, and the next listens as soon as one has connected.
async fn by_agent(agent: AgentLink, port: u32) -> Result<Connections> {
    let (sender, receiver) = mpsc::channel(1);
    let mut next = agent.vsock(VsockDirection::Accept, port).await;
    if let Err(error) = next {
        return Err(error);
    }
    tokio::spawn(async move {
        // An agent that can't listen any more ends the port; whoever waits is told.
        while let Ok(listening) = next {
            let connected = tokio::select! {
                connected = listening.connected() => connected,
                () = sender.closed() => return,
            };
            let Ok(channel) = connected else { return };
            let channel: Box<dyn Channel> = Box::new(channel);
            if sender.send(channel).await.is_err() {
                return;
            }
            next = agent.vsock(VsockDirection::Accept, port).await;
        }
    });
    Ok(receiver)
}
