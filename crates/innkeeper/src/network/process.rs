//! netd as a process: `HELPER netd NAME`.

use std::time::Duration;

use innkeeper_api::ErrorKind;
use innkeeper_net::io::{Network, spawn};
use innkeeper_net::switch::{Switch, SwitchConfig};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use super::server::{Shared, router};
use super::store::NetworkDirectory;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::keeper::{READY, tell};
use crate::store::FileLock;

/// Name of the socket in the network's directory of sockets.
pub(super) const SOCKET: &str = "netd.sock";
/// Answers that are under way may take this long.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Runs the switch of one network until nobody needs it. The caller is a process of its own.
///
/// Tells on standard output whether it listens. Errors: `Conflict` if the network has a netd already.
pub async fn run(host: &Host, name: &str) -> Result<()> {
    // A terminal's hang-up and Ctrl-C are not for us. It fails only if we lead a group already, and then we are away from it too.
    let _ = rustix::process::setsid();
    match prepare(host, name) {
        Ok((_lock, id, listener, shared)) => {
            tell(READY);
            let served = serve(listener, shared).await;
            // Still under the lock: the next netd makes a directory of its own.
            host.root().remove_socket_directory(&id);
            served
        }
        Err(error) => {
            tell(&serde_json::to_string(&error.to_problem()).unwrap_or_default());
            Err(error)
        }
    }
}

fn prepare(host: &Host, name: &str) -> Result<(FileLock, String, UnixListener, Shared)> {
    let directory = NetworkDirectory::find(host.root(), name)?;
    let lock = directory.try_lock()?.ok_or_else(|| {
        Error::new(
            ErrorKind::Conflict,
            format!("the network {name} has a netd already"),
        )
    })?;
    let socket = host
        .root()
        .make_socket_directory(directory.id())?
        .join(SOCKET);
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(|error| {
        Error::new(ErrorKind::Failure, "can't read random numbers").with_source(error)
    })?;
    let switch = Switch::new(&SwitchConfig {
        seed: u64::from_ne_bytes(seed),
        ..SwitchConfig::default()
    });
    let failed = |error| Error::io(format!("can't start the switch of {name}"), error);
    let network = Network::new(switch).map_err(failed)?;
    let network = spawn("switch", network).map_err(failed)?;
    // An earlier one may have been killed; the lock says that it is gone.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket)
        .map_err(|error| Error::io(format!("can't listen on {}", socket.display()), error))?;
    let id = directory.id().to_owned();
    Ok((lock, id, listener, Shared::new(directory, network)?))
}

async fn serve(listener: UnixListener, shared: Shared) -> Result<()> {
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| Error::io("can't take SIGTERM", error))?;
    let until = shared.clone();
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(async move {
        axum::serve(listener, router(shared))
            .with_graceful_shutdown(async move {
                let _ = end.await;
            })
            .await
    });
    tokio::select! {
        () = until.until_end() => {}
        _ = terminate.recv() => {}
    }
    drop(ended);
    // Those who hold ports read for ever, so it is not waited for them.
    let _ = tokio::time::timeout(LAST_WORDS, server).await;
    Ok(())
}
