//! Chooses and orders kernel modules for the tiny guest.
//!
//! Debian's packages carry no `modules.dep` (depmod makes it on installation), so dependencies come from each module's own
//! `.modinfo` section (`depends=a,b`). Modules which a kernel has built in are in `modules.builtin`. The list is in two
//! groups: what the guest needs to be ready, and the rest, which loads after that.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Error, Result};

/// Needed before the agent can say that it is ready: the transports and its serial port.
pub(crate) const READY_MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_mmio",
    "virtio_console",
];

/// What the network needs: loaded next, since most guests are ready only with an address.
pub(crate) const NETWORK_MODULES: &[&str] = &["virtio_net", "af_packet"];

/// Loaded after that: disks, shares, randomness, memory, power button, file systems, checksums and the TPM.
pub(crate) const LATER_MODULES: &[&str] = &[
    "pvpanic_mmio",
    "pvpanic_pci",
    "virtio_blk",
    "virtio_rng",
    "virtiofs",
    "vmw_vsock_virtio_transport",
    "vsock_loopback",
    "button",
    "evdev",
    "virtio_balloon",
    "virtio_mem",
    "virtio_scsi",
    "sd_mod",
    "sr_mod",
    "nvme",
    "virtio_input",
    "crc32c_generic",
    "crc32c_intel",
    "libcrc32c",
    "ext4",
    "overlay",
    "isofs",
    "nls_ascii",
    "nls_cp437",
    "nls_utf8",
    "vfat",
    "squashfs",
    "erofs",
    "loop",
    "qemu_fw_cfg",
    "tpm_tis",
    "tpm_crb",
];

/// One module: where it lies in the package and its bytes, decompressed.
pub(crate) struct Module {
    /// Path without leading slash, as in the guest, ending in `.ko`.
    pub(crate) path: String,
    /// The ELF object.
    pub(crate) content: Vec<u8>,
}

/// Chosen modules in load order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Names of the first group.
    pub(crate) ready: Vec<String>,
    /// Names of the second group.
    pub(crate) network: Vec<String>,
    /// Names of the third group.
    pub(crate) later: Vec<String>,
}

/// A module's name as the kernel writes it, from its file name: `kernel/x/virtio-rng.ko.xz` is `virtio_rng`.
pub(crate) fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    Some(stem.replace('-', "_"))
}

/// Names in a `modules.builtin` file.
pub(crate) fn builtin_names(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(name_of).collect()
}

/// Takes the modules of both groups with all they depend on; a wanted module that the kernel lacks is left out in the second group
/// and is an error in the first, unless it is built in or belongs to a transport this architecture may lack.
pub(crate) fn select(
    modules: &BTreeMap<String, Module>,
    builtin: &BTreeSet<String>,
) -> Result<Selection> {
    let mut visited = BTreeSet::new();
    let mut ready = Vec::new();
    for name in READY_MODULES {
        // Split off virtio_pci in 5.18; its absence in other kernels is no lack.
        let optional = name.starts_with("virtio_pci_") || *name == "virtio_mmio";
        if modules.contains_key(*name) {
            visit(name, modules, builtin, &mut visited, &mut ready, 0)?;
        } else if !builtin.contains(*name) && !optional {
            return Err(Error::Unsupported {
                what: "the tiny guest".into(),
                reason: format!("its kernel package has no module {name}"),
                fix: "use an image such as debian:12".into(),
            });
        }
    }
    let mut optional = |names: &[&str]| {
        let mut group = Vec::new();
        for name in names {
            // A convenience whose dependency is in a part of the tree that was not read is left out as a whole.
            let (mut visited_with, mut group_with) = (visited.clone(), group.clone());
            if modules.contains_key(*name)
                && visit(
                    name,
                    modules,
                    builtin,
                    &mut visited_with,
                    &mut group_with,
                    0,
                )
                .is_ok()
            {
                (visited, group) = (visited_with, group_with);
            }
        }
        group
    };
    let network = optional(NETWORK_MODULES);
    let later = optional(LATER_MODULES);
    Ok(Selection {
        ready,
        network,
        later,
    })
}

fn visit(
    name: &str,
    modules: &BTreeMap<String, Module>,
    builtin: &BTreeSet<String>,
    visited: &mut BTreeSet<String>,
    order: &mut Vec<String>,
    depth: usize,
) -> Result<()> {
    if builtin.contains(name) || !visited.insert(name.to_owned()) {
        return Ok(());
    }
    let module = modules.get(name).ok_or_else(|| {
        Error::malformed(
            "kernel package",
            format!("lacks the module {name} that another one needs"),
        )
    })?;
    if depth > 32 {
        return Err(Error::malformed(
            "kernel package",
            format!("module dependencies go too deep at {name}"),
        ));
    }
    for dependency in depends_of(&module.content)? {
        visit(&dependency, modules, builtin, visited, order, depth + 1)?;
    }
    order.push(name.to_owned());
    Ok(())
}

/// Reads `depends=` from the `.modinfo` section of a 64-bit little-endian ELF object.
pub fn depends_of(module: &[u8]) -> Result<Vec<String>> {
    let information = section(module, b".modinfo")
        .ok_or_else(|| Error::malformed("kernel module", "has no .modinfo section"))?;
    let depends = information
        .split(|byte| *byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .unwrap_or_default();
    Ok(depends
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect())
}

/// Finds a section by name; ELF-64 layout from the System V ABI: e_shoff 0x28, e_shentsize 0x3a, e_shnum 0x3c, e_shstrndx 0x3e.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let half = |at: usize| {
        Some(usize::from(u16::from_le_bytes(
            elf.get(at..at + 2)?.try_into().ok()?,
        )))
    };
    let word = |at: usize| {
        Some(u32::from_le_bytes(elf.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize)
    };
    let long = |at: usize| {
        usize::try_from(u64::from_le_bytes(
            elf.get(at..at.checked_add(8)?)?.try_into().ok()?,
        ))
        .ok()
    };
    let table = long(0x28)?;
    let (entry_size, count, names_index) = (half(0x3a)?, half(0x3c)?, half(0x3e)?);
    if entry_size < 64 {
        return None;
    }
    let header = |index: usize| table.checked_add(index.checked_mul(entry_size)?);
    let content = |index: usize| {
        let at = header(index)?;
        let start = long(at.checked_add(0x18)?)?;
        let length = long(at.checked_add(0x20)?)?;
        elf.get(start..start.checked_add(length)?)
    };
    let names = content(names_index)?;
    (0..count).find_map(|index| {
        let name = names.get(word(header(index)?)?..)?;
        let name = name.split(|byte| *byte == 0).next()?;
        (name == wanted).then(|| content(index)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An ELF with the two sections that are read.
    fn object(depends: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let information = format!("license=GPL\0depends={depends}\0name=x\0");
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let names_at = elf.len() as u64;
        elf.extend_from_slice(names);
        let information_at = elf.len() as u64;
        elf.extend_from_slice(information.as_bytes());
        let table = elf.len() as u64;
        let mut add = |name: u32, at: u64, length: u64| {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&at.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&length.to_le_bytes());
            elf.extend_from_slice(&header);
        };
        add(1, information_at, information.len() as u64);
        add(10, names_at, names.len() as u64);
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3a..0x3c].copy_from_slice(&64_u16.to_le_bytes());
        elf[0x3c..0x3e].copy_from_slice(&2_u16.to_le_bytes());
        elf[0x3e..0x40].copy_from_slice(&1_u16.to_le_bytes());
        elf
    }

    fn tree(list: &[(&str, &str)]) -> BTreeMap<String, Module> {
        list.iter()
            .map(|(name, depends)| {
                (
                    (*name).to_owned(),
                    Module {
                        path: format!("{name}.ko"),
                        content: object(depends),
                    },
                )
            })
            .collect()
    }

    #[test]
    fn dependencies_come_first_and_groups_are_kept() {
        let modules = tree(&[
            ("virtio_console", "virtio,virtio-ring"),
            ("virtio_ring", "virtio"),
            ("virtio", ""),
            ("virtio_pci", "virtio_ring,virtio"),
            ("virtio_net", "virtio,failover"),
            ("failover", ""),
        ]);
        let selection = select(&modules, &BTreeSet::new()).unwrap();
        assert_eq!(
            selection.ready,
            ["virtio", "virtio_ring", "virtio_pci", "virtio_console"]
        );
        assert_eq!(selection.network, ["failover", "virtio_net"]);
    }

    #[test]
    fn a_kernel_without_the_console_is_refused_unless_built_in() {
        let modules = tree(&[("virtio", ""), ("virtio_ring", ""), ("virtio_pci", "")]);
        assert!(
            select(&modules, &BTreeSet::new())
                .unwrap_err()
                .to_string()
                .contains("virtio_console")
        );
        let builtin = builtin_names("kernel/drivers/char/virtio_console.ko\n");
        assert_eq!(select(&modules, &builtin).unwrap().ready.len(), 3);
    }

    #[test]
    fn cycles_end() {
        let modules = tree(&[
            ("virtio", "virtio_ring"),
            ("virtio_ring", "virtio"),
            ("virtio_pci", ""),
            ("virtio_console", ""),
        ]);
        assert_eq!(select(&modules, &BTreeSet::new()).unwrap().ready.len(), 4);
    }

    proptest! {
        #[test]
        fn arbitrary_objects_never_panic(flip in proptest::collection::vec((0..500_usize, any::<u8>()), 0..20)) {
            let mut elf = object("a,b");
            for (at, byte) in flip {
                let length = elf.len();
                elf[at % length] = byte;
            }
            let _ = depends_of(&elf);
        }
    }
}
