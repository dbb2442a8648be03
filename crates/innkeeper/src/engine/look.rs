//! Looking at VMs: what is told is true now, or says since when it may not be.

use std::time::{Duration, Instant};

use innkeeper_api::{AgentInfo, ErrorKind, VmInfo, VmState};

use super::Engine;
use super::recover::{self, Found};
use crate::clock::timestamp;
use crate::error::Result;
use crate::keeper::{Live, describe};
use crate::machine::{Operation, Power, Readiness, word};
use crate::store::Bundle;

/// How long a VM may be between two owners before what is told of it counts as old.
const BETWEEN_TIMEOUT: Duration = Duration::from_secs(3);
/// How often it is looked at again in between.
const TRY_AGAIN: Duration = Duration::from_millis(2);

impl Engine {
    /// Tells what is to be told of one VM.
    pub(crate) async fn look(&self, bundle: &Bundle) -> Result<VmInfo> {
        let started = Instant::now();
        loop {
            if !bundle.run_directory().exists() {
                return self.describe_off(bundle);
            }
            match self.keeper(bundle)?.info().await {
                Ok(info) => return Ok(info),
                Err(error) if error.kind() == ErrorKind::Unreachable => {}
                Err(error) => return self.describe_stale(bundle, &error.to_string()),
            }
            match bundle.try_lock()? {
                Some(lock) => match recover::find(bundle)? {
                    Found::Nothing => {}
                    Found::Ended(recorded) => {
                        let identity = bundle.identity()?;
                        let settled = recover::settle(&self.root, bundle, &identity, &recorded);
                        if settled.is_err() {
                            // It can't be written down now, as on a full disk; it is true all the same.
                            return self
                                .describe_as(bundle, Live::of_files(bundle, Some(recorded)));
                        }
                    }
                    // Only a keeper can tell: the guest may have powered off while nobody watched.
                    Found::Running(_) | Found::Orphan => {
                        drop(lock);
                        self.need_keeper(bundle).await?;
                    }
                },
                // A keeper is just beginning or ending.
                None if started.elapsed() < BETWEEN_TIMEOUT => tokio::time::sleep(TRY_AGAIN).await,
                None => return self.describe_stale(bundle, "its keeper does not answer"),
            }
        }
    }

    /// Tells of every VM, in the order of their names.
    pub(crate) async fn look_at_all(&self) -> Result<Vec<VmInfo>> {
        let mut told = Vec::new();
        let mut running = Vec::new();
        for name in self.root.names()? {
            let bundle = self.root.bundle_at(&name);
            if bundle.run_directory().exists() {
                running.push(bundle);
            } else {
                told.push(self.describe_or_say_why(&bundle, self.describe_off(&bundle)));
            }
        }
        let looks =
            futures_util::future::join_all(running.iter().map(|bundle| self.look(bundle))).await;
        for (bundle, look) in running.iter().zip(looks) {
            told.push(self.describe_or_say_why(bundle, look));
        }
        told.extend(self.root.being_created()?.into_iter().map(|name| {
            blank(
                name,
                word(Operation::Creating, &Power::Stopped, Readiness::NotReady),
                None,
            )
        }));
        told.retain(|info| {
            info.state == VmState::Creating || self.root.bundle_at(&info.name).directory().exists()
        });
        told.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(told)
    }

    /// One VM with a damaged file must not hide the others.
    fn describe_or_say_why(&self, bundle: &Bundle, look: Result<VmInfo>) -> VmInfo {
        look.unwrap_or_else(|error| {
            let mut info = blank(
                bundle.name().to_owned(),
                VmState::Failed,
                Some(error.chain().join(": ")),
            );
            info.directory = bundle.directory().display().to_string();
            info
        })
    }

    fn describe_off(&self, bundle: &Bundle) -> Result<VmInfo> {
        self.describe_as(bundle, Live::of_files(bundle, bundle.recorded()?))
    }

    fn describe_as(&self, bundle: &Bundle, live: Live) -> Result<VmInfo> {
        // What a suspended VM goes on with is the spec of its run, whatever is asked by now.
        let applied = match live.power {
            Power::Suspended => Some(bundle.saved_spec()?),
            _ => None,
        };
        Ok(describe(
            bundle,
            &bundle.identity()?,
            &bundle.spec()?,
            applied.as_ref(),
            &live,
            &self.ssh_key(),
        ))
    }

    fn describe_stale(&self, bundle: &Bundle, why: &str) -> Result<VmInfo> {
        let run = bundle.run()?;
        let mut live = Live::off(Power::Running, run.map(|run| run.started));
        live.stale_since = Some(timestamp());
        live.waiting_for = Some(why.to_owned());
        let applied = bundle.applied_spec()?;
        Ok(describe(
            bundle,
            &bundle.identity()?,
            &bundle.spec()?,
            applied.as_ref(),
            &live,
            &self.ssh_key(),
        ))
    }
}

fn blank(name: String, state: VmState, reason: Option<String>) -> VmInfo {
    VmInfo {
        name,
        id: String::new(),
        state,
        reason,
        driver: String::new(),
        arch: String::new(),
        image: None,
        cpus: 0,
        memory_bytes: 0,
        addresses: Vec::new(),
        created: String::new(),
        since: None,
        stale_since: None,
        spec_problem: None,
        restart_required: Vec::new(),
        agent: AgentInfo::default(),
        ssh: None,
        disks: Vec::new(),
        networks: Vec::new(),
        forwards: Vec::new(),
        shares: Vec::new(),
        labels: std::collections::BTreeMap::new(),
        protected: false,
        machine: None,
        accel: None,
        keeper_pid: None,
        vmm_pid: None,
        directory: String::new(),
    }
}
