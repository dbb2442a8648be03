//! Networks of our own: each is a directory of files, and a process with a switch (netd) for as long as a VM needs it.
//!
//! ```text
//!  keeper of a VM ──holds a port (HTTP, an endless answer)──► netd of the network ──dials──► hypervisor's socket
//!        │ the answer ends: netd is gone ─► starts it again, and asks again                  (it listens all the time)
//! ```
//! netd holds no state that is not asked of it anew, but how links are shaped (`shapes.json`). A port lives as long as somebody holds it or its hypervisor is connected: so a keeper
//! that dies costs its VM nothing, and netd that dies is back as soon as a keeper notices. Nothing here gives addresses or leads outside.

mod client;
mod process;
mod server;
mod shape;
mod store;

pub(crate) use client::{Netd, PortHolder};
pub use process::run;
pub(crate) use store::NetworkDirectory;

use innkeeper_api::{ErrorKind, LinkShape, NetworkInfo, ShapeRequest};

use crate::error::{Error, Result};
use crate::host::Host;
use crate::spec::VmName;

impl Host {
    /// Makes a network. Errors: `Conflict` if there is one of that name.
    pub fn create_network(&self, name: &VmName) -> Result<NetworkInfo> {
        Ok(NetworkDirectory::create(self.root(), name)?.info())
    }

    /// Tells of every network, in the order of their names.
    pub async fn networks(&self) -> Result<Vec<NetworkInfo>> {
        let mut networks = Vec::new();
        for name in NetworkDirectory::names(self.root())? {
            match self.network(&name).await {
                Ok(network) => networks.push(network),
                // It was removed meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(networks)
    }

    /// Tells of one network. Errors: `NotFound`.
    pub async fn network(&self, name: &str) -> Result<NetworkInfo> {
        let directory = NetworkDirectory::find(self.root(), name)?;
        match self.netd(&directory).info().await {
            Err(error) if error.kind() == ErrorKind::Unreachable => Ok(directory.info()),
            told => told,
        }
    }

    /// Removes a network. Errors: `Conflict` if a VM is on it, naming the VMs.
    pub async fn remove_network(&self, name: &str) -> Result<()> {
        let directory = NetworkDirectory::find(self.root(), name)?;
        let users = self.vms_on(name)?;
        if !users.is_empty() {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the network {name} is used by {}", users.join(", ")),
            )
            .with_hint("take it out of their specs, or remove them, first"));
        }
        let netd = self.netd(&directory);
        match netd.end().await {
            Err(error) if error.kind() != ErrorKind::Unreachable => return Err(error),
            _ => {}
        }
        directory.remove(self.root()).await
    }

    /// Makes an interface's link as bad as is asked, from now on until the VM stops; both directions alike.
    ///
    /// Errors: `BadInput` naming the setting, `Conflict` if the interface is on no network of ours, or the VM does not run.
    pub async fn shape(&self, vm: &str, interface: u32, link: &LinkShape, seed: u64) -> Result<()> {
        let spec = self.root().bundle(vm)?.spec()?;
        let index = usize::try_from(interface).unwrap_or(usize::MAX);
        let Some(network) = spec.networks.get(index) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "{vm} has no interface {interface}: it has {}",
                    spec.networks.len()
                ),
            )
            .with_hint("interfaces are counted from 0"));
        };
        let Some(name) = &network.name else {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("interface {interface} of {vm} is on the hypervisor's user network, which can't be shaped"),
            )
            .with_hint("put it on a network of `inn network create`: `kind: network` with its `name`"));
        };
        shape::link(link)?;
        let directory = NetworkDirectory::find(self.root(), name.as_str())?;
        let request = ShapeRequest {
            vm: vm.to_owned(),
            interface,
            from_guest: Some(link.clone()),
            to_guest: Some(link.clone()),
            seed,
        };
        match self.netd(&directory).shape(&request).await {
            Err(error) if error.kind() == ErrorKind::Unreachable => Err(Error::new(
                ErrorKind::Conflict,
                format!("{vm} does not run, so there is no link to shape"),
            )
            .with_hint(format!("start it with `inn start {vm}`"))),
            answer => answer,
        }
    }

    fn netd(&self, directory: &NetworkDirectory) -> Netd {
        Netd::new(self.root().clone(), self.engine.helper(), directory.clone())
    }

    fn vms_on(&self, network: &str) -> Result<Vec<String>> {
        let mut users = Vec::new();
        for vm in self.root().names()? {
            // A VM whose spec can't be read is on nothing; `inn ls` says what is wrong with it.
            let spec = self.root().bundle(&vm).and_then(|bundle| bundle.spec());
            let uses = spec.is_ok_and(|spec| {
                let names = spec
                    .networks
                    .iter()
                    .filter_map(|network| network.name.as_ref());
                names.into_iter().any(|name| name.as_str() == network)
            });
            if uses {
                users.push(vm);
            }
        }
        Ok(users)
    }
}
