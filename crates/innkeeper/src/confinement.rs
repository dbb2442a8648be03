//! What the processes of a running VM may do, read from the kernel: what was asked for when they were started is not believed.

use innkeeper_api::ErrorKind;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::host::Host;

/// What one process of a VM may do. Source of the facts: proc_pid_status(5), proc_pid_fd(5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Confinement {
    /// What it is to the VM: `keeper`, `hypervisor`, or a process beside the hypervisor by its program's name.
    pub role: String,
    /// Its process id.
    pub pid: u32,
    /// Whether nothing that it starts can have more privileges than it (`NoNewPrivs`).
    pub no_new_privileges: bool,
    /// Whether system calls are filtered (`Seccomp` is 2).
    pub seccomp: bool,
    /// Capabilities in force, as the kernel's bit mask in hexadecimal; zeros are none.
    pub capabilities: String,
    /// User id in force.
    pub user: u32,
    /// Directory that it works in.
    pub directory: String,
    /// How many descriptors it has open.
    pub descriptors: usize,
    /// Whether its environment is empty.
    pub environment_empty: bool,
}

impl Host {
    /// Tells what the processes of a running VM may do.
    ///
    /// Errors: `Conflict` if it does not run, `Unsupported` where the kernel has no /proc.
    pub async fn confinement(&self, vm: &str) -> Result<Vec<Confinement>> {
        let bundle = self.root().bundle(vm)?;
        let info = self.engine.look(&bundle).await?;
        let Some(hypervisor) = info.vmm_pid else {
            return Err(
                Error::new(ErrorKind::Conflict, format!("{vm} does not run"))
                    .with_hint(format!("start it with `inn start {vm}`")),
            );
        };
        let mut told = Vec::new();
        if let Some(keeper) = info.keeper_pid.filter(|pid| *pid != hypervisor) {
            told.push(read(keeper, "keeper")?);
        }
        told.push(read(hypervisor, "hypervisor")?);
        let record = bundle.run()?.and_then(|run| run.record).unwrap_or_default();
        for sidecar in record["sidecars"].as_array().into_iter().flatten() {
            let pid = sidecar["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok());
            if let Some(pid) = pid {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
                told.push(read(pid, name.as_deref().unwrap_or("sidecar").trim())?);
            }
        }
        Ok(told)
    }
}

#[cfg(target_os = "linux")]
fn read(pid: u32, role: &str) -> Result<Confinement> {
    let at = |name: &str| format!("/proc/{pid}/{name}");
    let failed = |what: &str| {
        let message = format!("can't look at the {role} (process {pid})");
        let what = at(what);
        move |error| Error::io(message, error).while_doing(format!("can't read {what}"))
    };
    let status = std::fs::read_to_string(at("status")).map_err(failed("status"))?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .unwrap_or_default()
            .to_owned()
    };
    let user = field("Uid");
    Ok(Confinement {
        role: role.to_owned(),
        pid,
        no_new_privileges: field("NoNewPrivs") == "1",
        seccomp: field("Seccomp") == "2",
        capabilities: field("CapEff"),
        // Real, effective, saved, file system.
        user: user
            .split_whitespace()
            .nth(1)
            .and_then(|user| user.parse().ok())
            .unwrap_or_default(),
        directory: std::fs::read_link(at("cwd"))
            .map_err(failed("cwd"))?
            .display()
            .to_string(),
        descriptors: std::fs::read_dir(at("fd")).map_err(failed("fd"))?.count(),
        environment_empty: std::fs::read(at("environ"))
            .map_err(failed("environ"))?
            .is_empty(),
    })
}

#[cfg(not(target_os = "linux"))]
fn read(_: u32, _: &str) -> Result<Confinement> {
    Err(Error::new(
        ErrorKind::Unsupported,
        "what a process may do can't be read from this system's kernel",
    ))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_read() {
        let told = read(std::process::id(), "test").unwrap();
        assert_eq!(told.user, rustix::process::geteuid().as_raw());
        assert!(told.descriptors >= 3, "{told:?}");
        assert_eq!(told.capabilities.len(), 16);
        assert!(!told.environment_empty);
        assert!(read(u32::MAX, "nobody").is_err());
    }
}
