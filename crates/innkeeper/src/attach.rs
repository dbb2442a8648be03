//! Attaching and detaching: changes of the spec that a running machine is given at once, and that are taken back if it can't be.

use std::path::Path;

use innkeeper_api::ErrorKind;

use crate::error::{Error, Result};
use crate::host::{DetachOptions, Host, SpecChange};
use crate::spec::{DiskBus, DiskFormat, DiskSpec, NetworkKind, NetworkSpec};

type Edits = Vec<(String, Option<String>)>;

impl Host {
    /// Attaches a disk to a VM, now if it runs. Errors: why the running machine did not take it; its spec is as it was then.
    pub async fn attach_disk(
        &self,
        vm: &str,
        disk: &DiskSpec,
        dry_run: bool,
    ) -> Result<SpecChange> {
        let name = &disk.name;
        if self.has_disk(vm, name)? {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("{vm} has a disk named {name} already"),
            )
            .with_hint("give it another name, with --name"));
        }
        let mut edits: Edits = Vec::new();
        let mut set = |field: &str, value: Option<String>| {
            if value.is_some() {
                edits.push((format!("disks.{name}.{field}"), value));
            }
        };
        set("size", disk.size.map(|size| size.to_string()));
        set("path", disk.path.as_deref().map(text).transpose()?);
        set("format", disk.format.map(|format| format.to_string()));
        set("read_only", disk.read_only.then(|| "true".to_owned()));
        set(
            "bus",
            match disk.bus {
                DiskBus::Virtio => None,
                DiskBus::Nvme => Some("nvme".to_owned()),
                DiskBus::Usb => Some("usb".to_owned()),
            },
        );
        self.change_or_take_back(vm, &edits, dry_run).await
    }

    /// Detaches a disk file from a VM, now if it runs; the file stays.
    ///
    /// Errors: `TimedOut` if the guest does not let go in time; the disk goes when it does, or with the next start.
    pub async fn detach_disk(
        &self,
        vm: &str,
        disk: &str,
        options: DetachOptions,
    ) -> Result<SpecChange> {
        self.need_disk(vm, disk)?;
        let edits = vec![(format!("disks.{disk}"), None)];
        let change = self
            .set_within(vm, &edits, options.dry_run, options.timeout)
            .await?;
        told(vm, change)
    }

    /// Puts a medium into a VM's drive, now if it runs.
    pub async fn insert_medium(
        &self,
        vm: &str,
        drive: &str,
        path: &Path,
        format: DiskFormat,
        dry_run: bool,
    ) -> Result<SpecChange> {
        self.need_disk(vm, drive)?;
        let edits = vec![
            (format!("disks.{drive}.path"), Some(text(path)?)),
            (format!("disks.{drive}.format"), Some(format.to_string())),
        ];
        self.change_or_take_back(vm, &edits, dry_run).await
    }

    /// Takes the medium out of a VM's drive, now if it runs.
    pub async fn eject_medium(&self, vm: &str, drive: &str, dry_run: bool) -> Result<SpecChange> {
        self.need_disk(vm, drive)?;
        let edits = vec![
            (format!("disks.{drive}.path"), None),
            (format!("disks.{drive}.format"), None),
        ];
        self.change_or_take_back(vm, &edits, dry_run).await
    }

    /// Adds a network interface to a VM, now if it runs.
    pub async fn attach_network(
        &self,
        vm: &str,
        network: &NetworkSpec,
        dry_run: bool,
    ) -> Result<SpecChange> {
        let index = self.root().bundle(vm)?.spec()?.networks.len();
        let mut edits: Edits = Vec::new();
        if !self.writes_networks(vm)? {
            // The one that a spec has without naming it stays.
            for before in 0..index {
                edits.push((format!("networks.{before}.kind"), Some("user".to_owned())));
            }
        }
        let kind = match network.kind {
            NetworkKind::User => "user",
            NetworkKind::Network => "network",
        };
        edits.push((format!("networks.{index}.kind"), Some(kind.to_owned())));
        if let Some(name) = &network.name {
            edits.push((format!("networks.{index}.name"), Some(name.to_string())));
        }
        if let Some(mac) = network.mac {
            edits.push((format!("networks.{index}.mac"), Some(mac.to_string())));
        }
        for (number, forward) in network.forwards.iter().enumerate() {
            edits.push((
                format!("networks.{index}.forwards.{number}"),
                Some(forward.to_string()),
            ));
        }
        self.change_or_take_back(vm, &edits, dry_run).await
    }

    /// Removes a VM's last network interface, now if it runs. Errors: as [`Host::detach_disk`].
    pub async fn detach_network(&self, vm: &str, options: DetachOptions) -> Result<SpecChange> {
        let networks = self.root().bundle(vm)?.spec()?.networks;
        let edits = match networks.len() {
            0 => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("{vm} has no network interface"),
                ));
            }
            1 => vec![("networks".to_owned(), Some("[]".to_owned()))],
            count => vec![(format!("networks.{}", count - 1), None)],
        };
        let change = self
            .set_within(vm, &edits, options.dry_run, options.timeout)
            .await?;
        told(vm, change)
    }

    /// Says whether the text of a spec names its network interfaces, or has the usual one by saying nothing.
    fn writes_networks(&self, vm: &str) -> Result<bool> {
        let text = self.spec_text(vm)?;
        let without = crate::spec::Edit {
            path: "networks.0".to_owned(),
            value: None,
        };
        // Removing what is not there changes nothing; removing one of several would change the others, and is refused.
        Ok(crate::spec::edit(&text, &[without]).map_or(true, |edited| edited != text))
    }

    fn has_disk(&self, vm: &str, disk: &str) -> Result<bool> {
        let spec = self.root().bundle(vm)?.spec()?;
        Ok(spec.disks.iter().any(|other| other.name == disk))
    }

    fn need_disk(&self, vm: &str, disk: &str) -> Result<()> {
        if self.has_disk(vm, disk)? {
            return Ok(());
        }
        let spec = self.root().bundle(vm)?.spec()?;
        let names: Vec<&str> = spec.disks.iter().map(|disk| disk.name.as_str()).collect();
        let error = Error::new(
            ErrorKind::NotFound,
            format!("the spec of {vm} names no disk {disk}"),
        );
        Err(match names.as_slice() {
            [] => error,
            names => error.with_hint(format!("it names {}", names.join(", "))),
        })
    }

    /// Changes the spec; if the running machine does not take the change, the spec becomes what it was.
    async fn change_or_take_back(
        &self,
        vm: &str,
        edits: &Edits,
        dry_run: bool,
    ) -> Result<SpecChange> {
        let before = self.spec_text(vm)?;
        let change = self.set(vm, edits, dry_run).await;
        match change.and_then(|change| told(vm, change)) {
            Err(error) => {
                let now = self.spec_text(vm)?;
                if now != before {
                    // What runs has not changed, so there is nothing to give it; why not is what the caller is told.
                    let _ = self.replace_spec(vm, &now, &before).await;
                }
                Err(error)
            }
            done => done,
        }
    }
}

/// Turns a change that the running machine did not take into an error.
fn told(vm: &str, change: SpecChange) -> Result<SpecChange> {
    let ours = |field: &str| {
        change
            .changed
            .iter()
            .any(|changed| changed == field || changed.starts_with(&format!("{field}.")))
    };
    let Some(later) = change.later.iter().find(|later| ours(&later.field)) else {
        return Ok(change);
    };
    let error = match &later.problem {
        Some(problem) => Error::from_problem(problem.clone()),
        None => Error::new(ErrorKind::Unsupported, later.reason.clone()),
    };
    Err(error.while_doing(format!("{vm} runs, and can't be changed so now")))
}

fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(
            ErrorKind::BadInput,
            format!(
                "{} is not UTF-8, so it can't stand in a spec",
                path.display()
            ),
        )
    })
}
