//! The description of a machine for other products: OVF 1.0 (DMTF DSP0243), as VirtualBox and VMware read it. Pure.

use quick_xml::escape::escape;

use crate::spec::{Arch, MacAddr, VmSpec};

/// A disk of a package.
pub(crate) struct OvfDisk {
    /// Its file in the package.
    pub file: String,
    /// The size that a guest sees, in bytes.
    pub capacity: u64,
    /// The size of its file, in bytes.
    pub stored: u64,
}

/// What is told of a machine.
pub(crate) struct OvfMachine<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its architecture.
    pub arch: Arch,
    /// Its spec.
    pub spec: &'a VmSpec,
    /// Whether UEFI starts it.
    pub uefi: bool,
    /// The MAC address of each interface.
    pub macs: &'a [MacAddr],
}

const HEAD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
"#;

/// Writes the description.
pub(crate) fn ovf(machine: &OvfMachine<'_>, disks: &[OvfDisk]) -> String {
    let name = escape(machine.name);
    let mut text = HEAD.to_owned();
    text.push_str("  <References>\n");
    for (index, disk) in disks.iter().enumerate() {
        text.push_str(&format!(
            "    <File ovf:id=\"file{index}\" ovf:href=\"{}\" ovf:size=\"{}\"/>\n",
            escape(&disk.file),
            disk.stored
        ));
    }
    text.push_str("  </References>\n  <DiskSection>\n    <Info>Disks</Info>\n");
    for (index, disk) in disks.iter().enumerate() {
        text.push_str(&format!(
            "    <Disk ovf:diskId=\"disk{index}\" ovf:fileRef=\"file{index}\" ovf:capacity=\"{}\" ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/>\n",
            disk.capacity
        ));
    }
    // CIM_OperatingSystem: 101 is Linux of 64 bits.
    let system = match machine.arch {
        Arch::Arm64 => "Linux_arm64",
        _ => "Linux_64",
    };
    text.push_str(&format!(
        "  </DiskSection>\n  <NetworkSection>\n    <Info>Networks</Info>\n    <Network ovf:name=\"NAT\"/>\n  </NetworkSection>\n  <VirtualSystem ovf:id=\"{name}\">\n    <Info>A virtual machine</Info>\n    <Name>{name}</Name>\n    <OperatingSystemSection ovf:id=\"101\">\n      <Info>The guest's system</Info>\n      <Description>{system}</Description>\n    </OperatingSystemSection>\n    <VirtualHardwareSection>\n      <Info>Hardware</Info>\n      <System>\n        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        <vssd:InstanceID>0</vssd:InstanceID>\n        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>\n        <vssd:VirtualSystemType>vmx-14</vssd:VirtualSystemType>\n      </System>\n"
    ));
    let mut id = 0;
    // The children of an item are in the order of their names, as the schema wants it.
    let mut item = |fields: &[(&str, String)]| {
        id += 1;
        let mut all: Vec<(&str, String)> = fields.to_vec();
        all.push(("InstanceID", id.to_string()));
        all.sort();
        text.push_str("      <Item>\n");
        for (key, value) in all {
            text.push_str(&format!(
                "        <rasd:{key}>{}</rasd:{key}>\n",
                escape(&value)
            ));
        }
        text.push_str("      </Item>\n");
        id
    };
    let cpus = machine.spec.cpus;
    item(&[
        ("AllocationUnits", "hertz * 10^6".into()),
        ("ElementName", format!("{cpus} virtual CPUs")),
        ("ResourceType", "3".into()),
        ("VirtualQuantity", cpus.to_string()),
    ]);
    let memory = machine.spec.memory.get() >> 20;
    item(&[
        ("AllocationUnits", "byte * 2^20".into()),
        ("ElementName", format!("{memory} MB of memory")),
        ("ResourceType", "4".into()),
        ("VirtualQuantity", memory.to_string()),
    ]);
    let controller = item(&[
        ("Address", "0".into()),
        ("ElementName", "SATA controller".into()),
        ("ResourceSubType", "vmware.sata.ahci".into()),
        ("ResourceType", "20".into()),
    ]);
    for (index, disk) in disks.iter().enumerate() {
        item(&[
            ("AddressOnParent", index.to_string()),
            ("ElementName", disk.file.clone()),
            ("HostResource", format!("ovf:/disk/disk{index}")),
            ("Parent", controller.to_string()),
            ("ResourceType", "17".into()),
        ]);
    }
    for (index, mac) in machine.macs.iter().enumerate() {
        item(&[
            ("Address", mac.to_string()),
            ("AddressOnParent", (7 + index).to_string()),
            ("AutomaticAllocation", "true".into()),
            ("Connection", "NAT".into()),
            ("ElementName", format!("Network adapter {}", index + 1)),
            ("ResourceSubType", "E1000".into()),
            ("ResourceType", "10".into()),
        ]);
    }
    let firmware = if machine.uefi { "efi" } else { "bios" };
    let mut config = |key: &str, value: &str| {
        text.push_str(&format!(
            "      <vmw:Config ovf:required=\"false\" vmw:key=\"{key}\" vmw:value=\"{value}\"/>\n"
        ));
    };
    config("firmware", firmware);
    if machine.uefi && machine.spec.boot.secure_boot {
        config("bootOptions.efiSecureBootEnabled", "true");
    }
    text.push_str("    </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import;
    use crate::spec::Firmware;

    #[test]
    fn what_is_written_is_read_as_the_same_machine() {
        let mut spec = VmSpec {
            cpus: 3,
            memory: crate::spec::Bytes::mib(1536),
            ..VmSpec::default()
        };
        spec.boot.firmware = Some(Firmware::Uefi);
        spec.boot.secure_boot = true;
        let macs = ["52:54:00:12:34:56".parse().unwrap()];
        let machine = OvfMachine {
            name: "web",
            arch: Arch::X86_64,
            spec: &spec,
            uefi: true,
            macs: &macs,
        };
        let disks = [
            OvfDisk {
                file: "web-root.vmdk".into(),
                capacity: 10 << 30,
                stored: 1,
            },
            OvfDisk {
                file: "web-a&b.vmdk".into(),
                capacity: 1 << 30,
                stored: 1,
            },
        ];
        let read = import::ovf::parse(&ovf(&machine, &disks)).unwrap();
        assert_eq!(read.name.as_deref(), Some("web"));
        assert_eq!((read.cpus, read.memory), (Some(3), Some(1536 << 20)));
        assert_eq!(read.arch, Some(Arch::X86_64));
        assert!(read.secure_boot && read.firmware == Some(Firmware::Uefi));
        assert_eq!(read.networks, [Some(macs[0])]);
        let places: Vec<_> = read
            .drives
            .iter()
            .map(|drive| drive.place.clone())
            .collect();
        assert_eq!(
            places,
            ["web-root.vmdk", "web-a&b.vmdk"].map(|name| import::DrivePlace::Beside(name.into()))
        );
        assert_eq!(read.drives[1].size, Some(1 << 30));
    }
}
