//! Carries out a plan: checks, locks, opens, makes the machine on its queue, starts or restores it. Dropping it at any point lets go of
//! the machine, which ends it.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use innkeeper_api::ErrorKind;
use innkeeper_vz::{MachineIdentifier, VirtualMachine};
use rustix::fs::{FlockOperation, flock};

use super::super::host::VzHost;
use super::super::objects::{MachinePlan, Platform, SerialAttachment};
use super::super::plan::{AGENT_PORT, SERIAL};
use super::super::ports::{Port, Unheard};
use super::super::saved::{Details, hexadecimal};
use super::machine::{Launched, supervise};
use super::walk::{Opened, walk};
use super::{Record, vz_error};
use crate::driver::{BootConfig, MachineConfig, Running};
use crate::error::{Error, Result};

/// Makes the machine of a plan, and starts it or brings it back from a saved state.
pub(in super::super) async fn launch(
    plan: MachinePlan,
    config: &MachineConfig,
    host: &VzHost,
    boot_id: &str,
    saved: Option<(&Path, Details)>,
) -> Result<Running> {
    let name = &config.name;
    require_files(config)?;
    let lock = take_lock(&config.paths.vmm_lock, name)?;
    let log = append_to(&config.paths.vmm_log)?;
    let identifier = identifier(&plan.platform, name)?;
    if let Some((_, details)) = &saved
        && details.machine_identifier != hexadecimal(identifier.as_bytes())
    {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the state of VM {name} was saved by a machine with another identifier"),
        )
        .with_hint("start the VM anew"));
    }
    let (ports, guest_ends) = open_ports(&plan, config)?;
    let opened = Opened {
        ports: guest_ends,
        identifier: identifier.clone(),
    };
    let walked = plan.clone();
    let label = format!("org.innkeeper.vm.{}", config.id);
    let (machine, events) = VirtualMachine::new(&label, move || walk(&walked, opened))
        .await
        .map_err(|error| vz_error(error, format!("macOS refuses to make VM {name}")))?;
    match &saved {
        None => machine
            .start()
            .await
            .map_err(|error| vz_error(error, format!("macOS does not start VM {name}")))?,
        Some((directory, details)) => {
            // A name alone: what was written down must not lead out of the directory.
            let file = Path::new(&details.file).file_name().unwrap_or_default();
            machine
                .restore(&directory.join(file))
                .await
                .map_err(|error| vz_error(error, format!("macOS does not bring VM {name} back")))?;
        }
    }
    if let Some(balloon) = &plan.balloon {
        machine
            .set_memory_target(balloon.target)
            .await
            .map_err(|error| vz_error(error, format!("VM {name} takes no memory target")))?;
    }
    let record = Record {
        pid: std::process::id(),
        boot_id: boot_id.to_owned(),
        lock: config.paths.vmm_lock.clone(),
    };
    supervise(Launched {
        machine,
        events,
        ports,
        plan,
        identifier,
        id: config.id.clone(),
        build: host.build.clone(),
        lock,
        log,
        record,
    })
}

fn require_files(config: &MachineConfig) -> Result<()> {
    let cannot = |what: &str, path: &Path, error| {
        let name = &config.name;
        Error::io(
            format!("the {what} {} of VM {name} can't be opened", path.display()),
            error,
        )
    };
    let mut files: Vec<(&str, &Path)> = Vec::new();
    if let BootConfig::Direct { kernel, initrd, .. } = &config.boot {
        files.push(("kernel", kernel));
        files.extend(initrd.as_deref().map(|initrd| ("initrd", initrd)));
    }
    files.extend(config.disks.iter().map(|disk| ("disk", &*disk.path)));
    for (what, path) in files {
        File::open(path).map_err(|error| cannot(what, path, error))?;
    }
    for share in &config.shares {
        std::fs::read_dir(&share.host)
            .map_err(|error| cannot("shared folder", &share.host, error))?;
    }
    Ok(())
}

fn take_lock(path: &Path, name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| Error::io(format!("can't open the lock {}", path.display()), error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::new(
            ErrorKind::Conflict,
            format!("a hypervisor of VM {name} is still running"),
        )),
        Err(error) => Err(Error::io(
            format!("can't lock {}", path.display()),
            error.into(),
        )),
    }
}

fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|error| Error::io(format!("can't open the log {}", path.display()), error))
}

/// Reads the machine's identifier, or makes one and writes it down, whole or not at all.
fn identifier(platform: &Platform, name: &str) -> Result<MachineIdentifier> {
    let (path, make): (_, fn() -> _) = match platform {
        Platform::Generic {
            machine_identifier, ..
        } => (machine_identifier, MachineIdentifier::new_generic),
        Platform::Mac {
            machine_identifier, ..
        } => (machine_identifier, MachineIdentifier::new_mac),
    };
    match std::fs::read(path) {
        Ok(bytes) => return Ok(MachineIdentifier::from_bytes(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Error::io(format!("can't read {}", path.display()), error));
        }
    }
    let made = make()
        .map_err(|error| vz_error(error, format!("can't make an identifier for VM {name}")))?;
    let partial = path.with_extension("partial");
    let write = || -> io::Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&partial)?;
        file.write_all(made.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&partial, path)
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&partial);
        Error::io(format!("can't write {}", path.display()), error)
    })?;
    Ok(made)
}

/// Opens the ports that the keeper serves: ours, and the guest's ends by name.
fn open_ports(
    plan: &MachinePlan,
    config: &MachineConfig,
) -> Result<(HashMap<String, Port>, HashMap<String, UnixStream>)> {
    let attachments = plan
        .serial
        .iter()
        .chain(plan.consoles.iter().flatten().map(|port| &port.attachment));
    let (mut ports, mut ends) = (HashMap::new(), HashMap::new());
    for attachment in attachments {
        let SerialAttachment::Handles { name } = attachment else {
            continue;
        };
        let unheard = if name == AGENT_PORT {
            Unheard::Waits
        } else if name == SERIAL {
            Unheard::Taken(Some(append_to(&config.paths.serial_log)?))
        } else {
            let console = config.consoles.iter().find(|console| console.name == *name);
            let log = console.and_then(|console| console.log.as_deref());
            Unheard::Taken(log.map(append_to).transpose()?)
        };
        let cannot = |error| Error::io(format!("can't open the port {name}"), error);
        let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
        ports.insert(
            name.clone(),
            Port::serve(name, ours, unheard).map_err(cannot)?,
        );
        ends.insert(name.clone(), theirs);
    }
    Ok((ports, ends))
}
