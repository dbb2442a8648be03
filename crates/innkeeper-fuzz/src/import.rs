//! Machines and disks of other products: whatever they say, a spec that comes of them can be read, and names lead nowhere.

use innkeeper::import::{
    ForeignMachine, libvirt as read_libvirt, lima as read_lima, ovf as read_ovf,
};
use innkeeper::import::{utm as read_utm, vagrant as read_vagrant, vbox as read_vbox};
use innkeeper::spec::{read as read_spec, write as write_spec};
use innkeeper_image::contents::reach;
use innkeeper_image::{ForeignFormat, parse};

use crate::text;

/// A machine has bounds, and makes a spec that can be written and read, or none.
fn check(machine: ForeignMachine) {
    assert!(machine.drives.len() <= 64 && machine.networks.len() <= 64);
    assert!(machine.unmapped.len() <= 256);
    for drive in &machine.drives {
        assert!(drive.size.is_none_or(|size| size <= 64 << 40));
    }
    let sizes = vec![1 << 20; machine.drives.len()];
    if let Ok((spec, _)) = machine.into_spec(&sizes) {
        let written = write_spec(&spec);
        // What a descriptor says may be more than a spec may say; then that is told, and nothing is made.
        if let Ok(again) = read_spec(&written, "imported.yaml") {
            assert_eq!(again, spec, "{written}");
        }
    }
}

pub(crate) fn ovf(data: &[u8]) {
    if let Some(text) = text(data) {
        if let Ok(machine) = read_ovf::parse(text) {
            check(machine);
        }
        for digest in read_ovf::manifest(text).values() {
            assert!(!digest.contains('\n'));
        }
    }
}

pub(crate) fn libvirt(data: &[u8]) {
    if let Some(Ok(machine)) = text(data).map(read_libvirt::parse) {
        check(machine);
    }
}

pub(crate) fn vbox(data: &[u8]) {
    if let Some(Ok(machine)) = text(data).map(read_vbox::parse) {
        check(machine);
    }
}

pub(crate) fn utm(data: &[u8]) {
    if let Ok(machine) = read_utm::parse(data) {
        check(machine);
    }
}

/// A template that stands on itself must end.
pub(crate) fn lima(data: &[u8]) {
    if let Some(text) = text(data) {
        for base in [None, Some(text.to_owned())] {
            if let Ok(machine) = read_lima::parse(text, &|_| base.clone()) {
                check(machine);
            }
        }
    }
}

pub(crate) fn vagrant(data: &[u8]) {
    if let Some(Ok(read_vagrant::VagrantBox::Libvirt(machine))) =
        text(data).map(read_vagrant::parse)
    {
        check(*machine);
    }
}

/// The first and last bytes of a disk of each format; the names in it are of files beside it.
pub(crate) fn foreign_disk(data: &[u8]) {
    let tail = &data[data.len().saturating_sub(512)..];
    for format in ForeignFormat::ALL {
        if let Ok(names) = parse::check_foreign_disk(format, data, tail, data.len() as u64) {
            assert!(names.iter().all(|name| parse::is_plain_name(name)));
        }
    }
}

pub(crate) fn vmdk(data: &[u8]) {
    if let Ok(disk) = parse::read_vmdk(data) {
        assert!((1..=64 << 40).contains(&disk.virtual_bytes));
        assert!(disk.extents.iter().all(|name| parse::is_plain_name(name)));
    }
}

/// A tar archive: every file in it has a plain name, and a text that fits into the archive.
pub(crate) fn package(data: &[u8]) {
    if let Ok(members) = parse::list_archive(data) {
        for (name, member) in members {
            assert!(parse::is_plain_name(&name));
            assert!(member.text.is_none_or(|text| text.len() <= data.len()));
        }
    }
}

pub(crate) fn disk_content(data: &[u8]) {
    let _ = reach(data);
}
