//! Machines as the other products write them, in short, and hostile ones.

use super::*;
use crate::spec;

const OVF: &str = r#"<?xml version="1.0"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References><File ovf:href="web-disk1.vmdk" ovf:id="file1"/></References>
  <DiskSection><Info>disks</Info>
    <Disk ovf:capacity="10" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <VirtualSystem ovf:id="web">
    <OperatingSystemSection ovf:id="96"><Description>Debian_64</Description></OperatingSystemSection>
    <VirtualHardwareSection>
      <System><vssd:VirtualSystemType>KIND</vssd:VirtualSystemType></System>
      <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
      <Item><rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>1024</rasd:VirtualQuantity></Item>
      <Item><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>AHCI</rasd:ResourceSubType><rasd:ResourceType>20</rasd:ResourceType></Item>
      <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>/disk/vmdisk1</rasd:HostResource><rasd:InstanceID>4</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
      <Item><rasd:Connection>bridged</rasd:Connection><rasd:InstanceID>5</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType></Item>
      <Item><rasd:ElementName>sound</rasd:ElementName><rasd:InstanceID>6</rasd:InstanceID><rasd:ResourceType>35</rasd:ResourceType></Item>
      EXTRA
    </VirtualHardwareSection>
    MACHINE
  </VirtualSystem>
</Envelope>"#;

fn ovf_of(kind: &str, extra: &str, machine: &str) -> String {
    OVF.replace("KIND", kind)
        .replace("EXTRA", extra)
        .replace("MACHINE", machine)
}

#[test]
fn an_ovf_of_either_flavour() {
    let vmware = ovf_of(
        "vmx-19",
        r#"<vmw:Config xmlns:vmw="u" vmw:key="firmware" vmw:value="efi"/>"#,
        "",
    );
    let virtualbox = ovf_of(
        "virtualbox-2.2",
        "",
        r#"<vbox:Machine xmlns:vbox="u"><Hardware><Firmware type="EFI"/></Hardware></vbox:Machine>"#,
    );
    for (text, source) in [(vmware, "VMware"), (virtualbox, "VirtualBox")] {
        let machine = ovf::parse(&text).unwrap();
        assert!(machine.source.contains(source));
        assert_eq!(machine.name.as_deref(), Some("web"));
        assert_eq!(machine.arch, Some(Arch::X86_64));
        assert_eq!((machine.cpus, machine.memory), (Some(2), Some(1 << 30)));
        assert_eq!(machine.firmware, Some(Firmware::Uefi));
        let drive = &machine.drives[0];
        assert_eq!(drive.place, DrivePlace::Beside("web-disk1.vmdk".into()));
        assert_eq!(drive.format, ForeignFormat::Vmdk);
        assert_eq!((drive.size, drive.bus.as_str()), (Some(10 << 30), "SATA"));
        let (spec, unmapped) = machine.into_spec(&[10 << 30]).unwrap();
        spec::check(&spec).unwrap();
        assert_eq!(spec.disks[0].name, "root");
        let told = format!("{unmapped:?}");
        for part in ["bridged", "sound", "disks on SATA"] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}

#[test]
fn hostile_ovfs_are_refused_in_a_sentence() {
    let good = ovf_of("vmx-19", "", "");
    for (from, to, why) in [
        (
            "ovf:capacity=\"10\"",
            "ovf:capacity=\"99999999999\"",
            "64 TiB",
        ),
        ("ovf:capacity=\"10\"", "ovf:capacity=\"-1\"", "no number"),
        ("byte * 2^30", "byte * 2^99", "not known"),
        ("byte * 2^30", "furlongs", "not known"),
        (
            "ovf:fileRef=\"file1\"",
            "ovf:fileRef=\"file9\"",
            "not listed",
        ),
        ("/disk/vmdisk1", "/disk/other", "not listed"),
        (
            "ovf:href=\"web-disk1.vmdk\"",
            "ovf:href=\"https://x.example/d.vmdk\"",
            "on a server",
        ),
        (
            "<rasd:VirtualQuantity>2<",
            "<rasd:VirtualQuantity>many<",
            "no number",
        ),
        (
            "<?xml version=\"1.0\"?>",
            "<!DOCTYPE x SYSTEM 'file:///etc/passwd'>",
            "document type",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        let error = ovf::parse(&good.replacen(from, to, 1)).unwrap_err();
        let text = error.chain().join(": ");
        assert!(text.contains(why), "{to}: {text}");
    }
    let devices = "<Item><ResourceType>10</ResourceType></Item>".repeat(65);
    assert!(ovf::parse(&ovf_of("vmx-19", &devices, "")).is_err());
    let mut machine = ovf::parse(&good).unwrap();
    machine.cpus = Some(100_000);
    assert!(machine.into_spec(&[512]).is_err());
}

#[test]
fn manifests_have_their_digests_and_no_others() {
    let found = ovf::manifest("SHA256(a.ovf)= AB\nSHA1(b)= cd\nSHA256 (c d.vmdk) = ef\nrubbish\n");
    assert_eq!(found.len(), 2);
    assert_eq!(found["a.ovf"], "ab");
    assert_eq!(found["c d.vmdk"], "ef");
}

#[test]
fn a_libvirt_domain() {
    let text = r#"<domain type="kvm" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>web</name><memory unit="GiB">2</memory><vcpu current="2">4</vcpu>
  <os firmware="efi"><type arch="aarch64" machine="virt-9.0">hvm</type></os>
  <devices>
    <disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="/var/lib/libvirt/images/web.qcow2"/><target dev="vda" bus="virtio"/></disk>
    <disk type="file" device="cdrom"><target dev="sda" bus="sata"/></disk>
    <disk type="block" device="disk"><source dev="/dev/sdb"/><target dev="vdb" bus="virtio"/></disk>
    <interface type="network"><mac address="52:54:00:12:34:56"/><source network="default"/></interface>
    <tpm model="tpm-crb"><backend type="emulator" version="2.0"/></tpm>
    <hostdev mode="subsystem" type="pci"/>
  </devices>
</domain>"#;
    let machine = libvirt::parse(text).unwrap();
    assert_eq!(machine.arch, Some(Arch::Arm64));
    assert_eq!((machine.cpus, machine.memory), (Some(2), Some(2 << 30)));
    assert_eq!(machine.firmware, Some(Firmware::Uefi));
    assert!(machine.tpm);
    assert_eq!(machine.drives.len(), 1);
    assert_eq!(
        machine.drives[0].place,
        DrivePlace::At("/var/lib/libvirt/images/web.qcow2".into())
    );
    assert_eq!(
        machine.networks[0].unwrap().to_string(),
        "52:54:00:12:34:56"
    );
    let told = format!("{:?}", machine.unmapped);
    for part in [
        "sda (cdrom)",
        "vdb of the type block",
        "device of the host",
        "network of the type network",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let (spec, _) = machine.into_spec(&[1 << 30]).unwrap();
    spec::check(&spec).unwrap();
    for (from, to) in [
        ("hvm", "exe"),
        ("GiB", "PiB"),
        ("aarch64", "vax"),
        ("qcow2\"/>", "luks\"/>"),
    ] {
        assert!(libvirt::parse(&text.replacen(from, to, 1)).is_err(), "{to}");
    }
}

#[test]
fn a_virtualbox_machine() {
    let text = r#"<VirtualBox xmlns="http://www.virtualbox.org/" version="1.19-linux">
  <Machine uuid="{1}" name="Web" OSType="Debian_64">
    <MediaRegistry><HardDisks><HardDisk uuid="{a}" location="Web.vdi" format="VDI" type="Normal"/></HardDisks></MediaRegistry>
    <Hardware>
      <CPU count="3"/><Memory RAMSize="1536"/><Firmware type="EFI"/>
      <Network><Adapter slot="0" enabled="true" MACAddress="080027AABBCC"><NAT>
        <Forwarding name="ssh" proto="1" hostip="127.0.0.1" hostport="2222" guestport="22"/>
        <Forwarding name="open" proto="1" hostip="0.0.0.0" hostport="80" guestport="80"/></NAT></Adapter>
        <Adapter slot="1" enabled="false"/></Network>
      <StorageControllers><StorageController name="SATA" type="AHCI">
        <AttachedDevice type="HardDisk" port="0" device="0"><Image uuid="{a}"/></AttachedDevice>
        <AttachedDevice passthrough="false" type="DVD" port="1"/></StorageController></StorageControllers>
    </Hardware></Machine></VirtualBox>"#;
    let machine = vbox::parse(text).unwrap();
    assert_eq!((machine.cpus, machine.memory), (Some(3), Some(1536 << 20)));
    assert_eq!(
        machine.drives[0].place,
        DrivePlace::Beside("Web.vdi".into())
    );
    assert_eq!(machine.drives[0].format, ForeignFormat::Vdi);
    assert_eq!(machine.forwards.len(), 1);
    assert_eq!(
        machine.networks[0].unwrap().to_string(),
        "08:00:27:aa:bb:cc"
    );
    let (spec, _) = machine.into_spec(&[1 << 30]).unwrap();
    spec::check(&spec).unwrap();
    let child = text.replace(
        "type=\"Normal\"/>",
        "type=\"Normal\"><HardDisk uuid=\"{b}\" location=\"s.vdi\" format=\"VDI\"/></HardDisk>",
    );
    let error =
        vbox::parse(&child.replace("<Image uuid=\"{a}\"", "<Image uuid=\"{b}\"")).unwrap_err();
    assert!(error.to_string().contains("snapshot"), "{error}");
}

#[test]
fn utm_bundles_of_both_generations() {
    let text = r#"<?xml version="1.0"?><plist version="1.0"><dict>
<key>Backend</key><string>QEMU</string><key>ConfigurationVersion</key><integer>4</integer>
<key>Information</key><dict><key>Name</key><string>Web</string></dict>
<key>System</key><dict><key>Architecture</key><string>aarch64</string><key>CPUCount</key><integer>0</integer><key>MemorySize</key><integer>2048</integer></dict>
<key>QEMU</key><dict><key>UEFIBoot</key><true/><key>TPMDevice</key><true/></dict>
<key>Drive</key><array><dict><key>ImageName</key><string>disk.qcow2</string><key>ImageType</key><string>Disk</string><key>Interface</key><string>VirtIO</string></dict>
<dict><key>ImageType</key><string>CD</string></dict></array>
<key>Network</key><array><dict><key>MacAddress</key><string>52:54:00:00:00:01</string><key>Mode</key><string>Emulated</string>
<key>PortForward</key><array><dict><key>HostAddress</key><string>127.0.0.1</string><key>HostPort</key><integer>2222</integer><key>GuestPort</key><integer>22</integer><key>Protocol</key><string>TCP</string></dict></array></dict></array>
<key>Sound</key><array><dict><key>Hardware</key><string>intel-hda</string></dict></array>
</dict></plist>"#;
    let machine = utm::parse(text.as_bytes()).unwrap();
    assert_eq!(machine.arch, Some(Arch::Arm64));
    assert_eq!((machine.cpus, machine.memory), (None, Some(2 << 30)));
    assert_eq!(
        machine.drives[0].place,
        DrivePlace::Beside("Data/disk.qcow2".into())
    );
    assert_eq!(machine.forwards.len(), 1);
    assert!(machine.tpm);
    let (spec, _) = machine.into_spec(&[1 << 30]).unwrap();
    spec::check(&spec).unwrap();
    let old = r#"<plist version="1.0"><dict><key>ConfigurationVersion</key><integer>2</integer>
<key>System</key><dict><key>Architecture</key><string>x86_64</string><key>Memory</key><integer>512</integer></dict>
<key>Drives</key><array><dict><key>ImagePath</key><string>disk-0.qcow2</string><key>InterfaceType</key><string>ide</string></dict></array></dict></plist>"#;
    let machine = utm::parse(old.as_bytes()).unwrap();
    assert_eq!(
        machine.drives[0].place,
        DrivePlace::Beside("Images/disk-0.qcow2".into())
    );
    for bad in [
        "",
        "<plist version=\"1.0\"><array/></plist>",
        "<plist version=\"1.0\"><dict><key>ConfigurationVersion</key><integer>9</integer></dict></plist>",
    ] {
        assert!(utm::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn vagrant_boxes() {
    let parsed = vagrant::parse(r#"{"provider":"libvirt","format":"qcow2","virtual_size":40}"#);
    let Ok(vagrant::VagrantBox::Libvirt(machine)) = parsed else {
        panic!("{parsed:?}");
    };
    assert_eq!(
        machine.drives[0].place,
        DrivePlace::Beside("box.img".into())
    );
    assert_eq!(machine.drives[0].size, Some(40 << 30));
    assert_eq!(
        vagrant::parse(r#"{"provider":"virtualbox"}"#).unwrap(),
        vagrant::VagrantBox::VirtualBox
    );
    for bad in [
        r#"{"provider":"hyperv"}"#,
        r#"{"provider":"libvirt","disks":[{"path":"../x"}]}"#,
        r#"{"provider":"libvirt","format":"raw;x"}"#,
        r#"{"provider":"libvirt","virtual_size":18446744073709551615}"#,
        "",
    ] {
        assert!(vagrant::parse(bad).is_err(), "{bad}");
    }
}
