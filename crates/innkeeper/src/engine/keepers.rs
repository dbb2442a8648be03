//! Finding and starting keepers.

use std::time::{Duration, Instant};

use innkeeper_api::{
    Accepted, ErrorKind, KillRequest, PauseRequest, RestartRequest, ResumeRequest, StartRequest,
    StopOutcome, StopRequest, StoppedBy, SuspendRequest, VmState,
};

use super::Engine;
use crate::companion::Helper;
use crate::error::{Error, Result};
use crate::keeper::KeeperClient;
use crate::store::{Bundle, FileLock, Identity};

/// How long another command may hold a VM before we give up.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a lock is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(2);

impl Engine {
    /// Returns where a VM's keeper listens.
    pub(super) fn keeper_socket(&self, identity: &Identity) -> std::path::PathBuf {
        self.root.socket_directory(&identity.id).join("keeper.sock")
    }

    /// Returns the way to a VM's keeper, whether one listens or not.
    pub(crate) fn keeper(&self, bundle: &Bundle) -> Result<KeeperClient> {
        Ok(KeeperClient::new(
            bundle.name(),
            self.keeper_socket(&bundle.identity()?),
        ))
    }

    /// Takes a VM's lock, waiting a little for a command or an ending keeper that has it, and finishes what an interrupted one left.
    ///
    /// Errors: `Conflict` if it is held for longer, `NotFound` if the VM was removed meanwhile.
    pub(super) async fn lock(&self, bundle: &Bundle) -> Result<FileLock> {
        let started = Instant::now();
        loop {
            if let Some(lock) = bundle.try_lock()? {
                super::snapshots::settle(&self.images, bundle)?;
                return Ok(lock);
            }
            self.root.bundle(bundle.name())?;
            if started.elapsed() > LOCK_TIMEOUT {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("another command, or its keeper, holds {}", bundle.name()),
                )
                .with_hint("try again when it has finished"));
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
    }

    /// Starts a keeper and waits until it listens. If another one is there already, that one serves as well.
    pub(crate) async fn spawn_keeper(&self, bundle: &Bundle) -> Result<()> {
        let name = bundle.name();
        let what = format!("the keeper of {name}");
        let hint = format!("see `inn logs --keeper {name}`");
        let log = bundle.path("log/keeper.log");
        self.helper()
            .start("keeper", name, &what, &log, &hint)
            .await
    }

    /// Returns what starts our own processes.
    pub(crate) fn helper(&self) -> Helper {
        Helper {
            executable: self.helper.clone(),
            environment: self.helper_environment.clone(),
            home: self.root.home().to_owned(),
        }
    }

    /// Returns the way to a keeper that listens, starting one if need be.
    pub(crate) async fn need_keeper(&self, bundle: &Bundle) -> Result<KeeperClient> {
        let keeper = self.keeper(bundle)?;
        let started = Instant::now();
        loop {
            match keeper.info().await {
                Ok(_) => return Ok(keeper),
                Err(error) if error.kind() == ErrorKind::Unreachable => {}
                Err(error) => return Err(error),
            }
            match self.spawn_keeper(bundle).await {
                Ok(()) => return Ok(keeper),
                // Another command was faster, or an earlier keeper is just ending.
                Err(error)
                    if error.kind() == ErrorKind::Conflict && started.elapsed() < LOCK_TIMEOUT =>
                {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts a VM; returns when its hypervisor runs.
    pub(crate) async fn start(&self, name: &str) -> Result<Accepted> {
        let bundle = self.root.bundle(name)?;
        self.need_keeper(&bundle)
            .await?
            .ask("/v1/vm/start", &StartRequest {})
            .await
            .map_err(|error| error.while_doing(format!("can't start {name}")))
    }

    /// Stops a VM's CPUs; returns when they stand still.
    pub(crate) async fn pause(&self, name: &str) -> Result<Accepted> {
        self.move_running(name, "pause", &PauseRequest {}).await
    }

    /// Continues a VM, from disk if it is suspended; returns when its CPUs run.
    pub(crate) async fn resume(&self, name: &str) -> Result<Accepted> {
        self.move_running(name, "resume", &ResumeRequest {}).await
    }

    /// Writes a VM's memory and devices to disk; returns when its hypervisor is gone.
    pub(crate) async fn suspend(&self, name: &str) -> Result<Accepted> {
        self.move_running(name, "suspend", &SuspendRequest {}).await
    }

    async fn move_running(
        &self,
        name: &str,
        verb: &str,
        request: &impl serde::Serialize,
    ) -> Result<Accepted> {
        let bundle = self.root.bundle(name)?;
        self.need_keeper(&bundle)
            .await?
            .ask(&format!("/v1/vm/{verb}"), request)
            .await
            .map_err(|error| error.while_doing(format!("can't {verb} {name}")))
    }

    /// Stops a VM.
    pub(crate) async fn stop(&self, name: &str, request: &StopRequest) -> Result<StopOutcome> {
        self.end(name, "/v1/vm/stop", request)
            .await
            .map_err(|error| error.while_doing(format!("can't stop {name}")))
    }

    /// Ends a VM's hypervisor.
    pub(crate) async fn kill(&self, name: &str) -> Result<StopOutcome> {
        self.end(name, "/v1/vm/kill", &KillRequest {})
            .await
            .map_err(|error| error.while_doing(format!("can't kill {name}")))
    }

    /// Stops and starts a VM; returns when the hypervisor of the new run runs.
    pub(crate) async fn restart(
        &self,
        name: &str,
        request: &RestartRequest,
    ) -> Result<StopOutcome> {
        let bundle = self.root.bundle(name)?;
        self.need_keeper(&bundle)
            .await?
            .ask("/v1/vm/restart", request)
            .await
            .map_err(|error| error.while_doing(format!("can't restart {name}")))
    }

    async fn end(
        &self,
        name: &str,
        path: &str,
        request: &impl serde::Serialize,
    ) -> Result<StopOutcome> {
        let bundle = self.root.bundle(name)?;
        let keeper = self.keeper(&bundle)?;
        match keeper.ask(path, request).await {
            Err(error) if error.kind() == ErrorKind::Unreachable => {}
            other => return other,
        }
        // No keeper: what it left is settled, or adopted, by looking.
        let info = self.look(&bundle).await?;
        if info.keeper_pid.is_none() && info.state != VmState::Suspended {
            return Ok(StopOutcome {
                by: StoppedBy::AlreadyStopped,
                elapsed_ms: 0,
            });
        }
        self.need_keeper(&bundle).await?.ask(path, request).await
    }
}
