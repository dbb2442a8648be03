//! Vagrant boxes: `metadata.json` says for which provider; a libvirt box has disks, a virtualbox box an OVF. Its Vagrantfile is a program
//! in Ruby, and no program of a box is run.

use innkeeper_image::ForeignFormat;
use serde::Deserialize;

use super::{DrivePlace, ForeignDrive, ForeignMachine, damaged};
use crate::error::Result;

/// What a box is for.
#[derive(Debug, Clone, PartialEq)]
pub enum VagrantBox {
    /// libvirt: all is in `metadata.json`.
    Libvirt(Box<ForeignMachine>),
    /// VirtualBox: the machine is in the box's OVF.
    VirtualBox,
}

#[derive(Deserialize)]
struct Metadata {
    provider: String,
    format: Option<String>,
    /// In GiB.
    virtual_size: Option<u64>,
    #[serde(default)]
    disks: Vec<Disk>,
    architecture: Option<String>,
}

#[derive(Deserialize)]
struct Disk {
    path: Option<String>,
    name: Option<String>,
    format: Option<String>,
}

/// Reads `metadata.json`.
pub fn parse(text: &str) -> Result<VagrantBox> {
    let metadata: Metadata =
        serde_json::from_str(text).map_err(|error| damaged(format!("metadata.json: {error}")))?;
    match metadata.provider.as_str() {
        "libvirt" => libvirt(metadata).map(|machine| VagrantBox::Libvirt(Box::new(machine))),
        "virtualbox" => Ok(VagrantBox::VirtualBox),
        other => Err(damaged(format!(
            "the box is for the provider {other:?}; those for libvirt and virtualbox are read"
        ))),
    }
}

/// Notes what every box has that is not taken.
pub fn leave_out(machine: &mut ForeignMachine) {
    machine.unmapped(
        "Vagrantfile",
        "it is a program, and is not run; what it would set up is not set up",
    );
    machine.unmapped(
        "user vagrant",
        "the box has it with a key that everybody knows: replace the key in the guest",
    );
}

fn libvirt(metadata: Metadata) -> Result<ForeignMachine> {
    let mut machine = ForeignMachine::of("Vagrant box for libvirt");
    machine.arch = metadata
        .architecture
        .as_deref()
        .map(|arch| arch.parse().map_err(damaged))
        .transpose()?;
    let format = |word: Option<&str>| -> Result<ForeignFormat> {
        word.unwrap_or("qcow2").parse().map_err(damaged)
    };
    if metadata.disks.is_empty() {
        let size = metadata
            .virtual_size
            .map(|size| {
                size.checked_mul(1 << 30)
                    .filter(|bytes| *bytes <= 64 << 40)
                    .ok_or_else(|| damaged("its disk is over 64 TiB"))
            })
            .transpose()?;
        machine.drive(ForeignDrive {
            place: DrivePlace::Beside("box.img".to_owned()),
            format: format(metadata.format.as_deref())?,
            bus: "virtio".to_owned(),
            size,
        })?;
    }
    for (index, disk) in metadata.disks.iter().enumerate() {
        let name = disk
            .path
            .clone()
            .or_else(|| disk.name.clone())
            .unwrap_or_else(|| format!("box_{}.img", index + 1));
        if !innkeeper_image::parse::is_plain_name(&name) {
            return Err(damaged(format!(
                "the disk {name:?} is not in the box's own directory"
            )));
        }
        machine.drive(ForeignDrive {
            place: DrivePlace::Beside(name),
            format: format(disk.format.as_deref())?,
            bus: "virtio".to_owned(),
            size: None,
        })?;
    }
    // A box for libvirt has one interface, Vagrant's own for management.
    machine.network(None)?;
    Ok(machine)
}
