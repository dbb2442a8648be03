//! The other end of netd's socket, and the task in a keeper that keeps a port of its VM held, whatever becomes of netd.

use std::path::PathBuf;
use std::time::Duration;

use innkeeper_api::{ErrorKind, NetworkInfo, PortRequest, ShapeRequest};
use tokio::task::AbortHandle;

use super::process::SOCKET;
use super::store::NetworkDirectory;
use crate::companion::Helper;
use crate::error::Result;
use crate::keeper::KeeperClient;
use crate::store::Root;

/// How long after a failure it is tried again: ports are to be back within two seconds.
const TRY_AGAIN: Duration = Duration::from_millis(200);

/// A way to the netd of a network, whether one listens or not.
#[derive(Debug, Clone)]
pub(crate) struct Netd {
    directory: NetworkDirectory,
    helper: Helper,
    client: KeeperClient,
}

impl Netd {
    pub(crate) fn new(root: Root, helper: Helper, directory: NetworkDirectory) -> Self {
        let socket: PathBuf = root.socket_directory(directory.id()).join(SOCKET);
        let client = KeeperClient::of("netd", directory.name(), socket);
        Netd {
            directory,
            helper,
            client,
        }
    }

    /// Reads what netd tells. Errors: `Unreachable` if none listens.
    pub(super) async fn info(&self) -> Result<NetworkInfo> {
        self.client.read("/v1/network").await
    }

    pub(super) async fn shape(&self, request: &ShapeRequest) -> Result<()> {
        self.client.ask("/v1/network/shape", request).await
    }

    pub(super) async fn end(&self) -> Result<()> {
        self.client.ask("/v1/network/end", &()).await
    }

    /// Starts netd if none listens.
    async fn start(&self) -> Result<()> {
        let name = self.directory.name();
        let log = self.directory.log();
        let (what, hint) = (
            format!("the netd of {name}"),
            format!("see {}", log.display()),
        );
        match self.helper.start("netd", name, &what, &log, &hint).await {
            // Another keeper was faster, or an earlier one is just ending.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
            started => started,
        }
    }

    /// Holds a port until netd is gone.
    async fn hold(&self, request: &PortRequest) -> Result<()> {
        let held = match self.client.hold("/v1/network/port", request).await {
            Err(error) if error.kind() == ErrorKind::Unreachable => {
                self.start().await?;
                self.client.hold("/v1/network/port", request).await?
            }
            held => held?,
        };
        held.until_gone().await;
        Ok(())
    }
}

/// Keeps a port held; lets go when it is dropped.
#[derive(Debug)]
pub(crate) struct PortHolder {
    task: AbortHandle,
    /// What it holds.
    pub(crate) request: PortRequest,
}

impl PortHolder {
    /// Begins to hold a port. What goes wrong is given to `say`, once for each kind of failure, and tried again.
    pub(crate) fn spawn(
        netd: Netd,
        request: PortRequest,
        say: impl Fn(&str) + Send + 'static,
    ) -> Self {
        let asked = request.clone();
        let task = tokio::spawn(async move {
            let mut said = String::new();
            loop {
                match netd.hold(&asked).await {
                    Ok(()) => said.clear(),
                    Err(error) => {
                        let text = error.chain().join(": ");
                        if text != said {
                            say(&text);
                            said = text;
                        }
                    }
                }
                tokio::time::sleep(TRY_AGAIN).await;
            }
        });
        PortHolder {
            task: task.abort_handle(),
            request,
        }
    }
}

impl Drop for PortHolder {
    fn drop(&mut self) {
        self.task.abort();
    }
}
