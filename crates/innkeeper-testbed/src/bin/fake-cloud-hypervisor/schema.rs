//! The fields that the interface knows, and what the driver must never leave out: the real one ignores what it does not know, and has
//! defaults that are traps. Source: `vmm/src/api/openapi/cloud-hypervisor.yaml` of Cloud Hypervisor.

use serde_json::Value;

/// Fields of each object that may be sent, by its name in the interface.
const OBJECTS: &[(&str, &[&str])] = &[
    (
        "VmConfig",
        &[
            "cpus",
            "memory",
            "payload",
            "rate_limit_groups",
            "disks",
            "net",
            "rng",
            "balloon",
            "fs",
            "pmem",
            "serial",
            "console",
            "debug_console",
            "devices",
            "vdpa",
            "vsock",
            "numa",
            "iommu",
            "watchdog",
            "pvpanic",
            "pci_segments",
            "platform",
            "tpm",
            "landlock_enable",
            "landlock_rules",
        ],
    ),
    (
        "cpus",
        &[
            "boot_vcpus",
            "max_vcpus",
            "topology",
            "kvm_hyperv",
            "max_phys_bits",
            "nested",
            "affinity",
            "features",
            "core_scheduling",
        ],
    ),
    (
        "memory",
        &[
            "size",
            "hotplug_size",
            "hotplugged_size",
            "mergeable",
            "hotplug_method",
            "shared",
            "hugepages",
            "hugepage_size",
            "prefault",
            "reserve",
            "thp",
            "zones",
        ],
    ),
    (
        "payload",
        &[
            "firmware",
            "kernel",
            "cmdline",
            "initramfs",
            "igvm",
            "host_data",
        ],
    ),
    (
        "disks",
        &[
            "path",
            "readonly",
            "direct",
            "iommu",
            "num_queues",
            "queue_size",
            "vhost_user",
            "vhost_socket",
            "rate_limiter_config",
            "pci_segment",
            "pci_device_id",
            "id",
            "serial",
            "rate_limit_group",
            "queue_affinity",
            "backing_files",
            "sparse",
            "image_type",
            "lock_granularity",
        ],
    ),
    ("rate_limiter_config", &["bandwidth", "ops"]),
    ("bandwidth", &["size", "one_time_burst", "refill_time"]),
    ("ops", &["size", "one_time_burst", "refill_time"]),
    (
        "rng",
        &["src", "iommu", "id", "pci_segment", "pci_device_id"],
    ),
    (
        "balloon",
        &[
            "size",
            "deflate_on_oom",
            "free_page_reporting",
            "id",
            "pci_segment",
            "pci_device_id",
            "iommu",
        ],
    ),
    (
        "fs",
        &[
            "tag",
            "socket",
            "num_queues",
            "queue_size",
            "pci_segment",
            "pci_device_id",
            "id",
        ],
    ),
    ("serial", &["file", "socket", "mode"]),
    (
        "console",
        &[
            "file",
            "socket",
            "mode",
            "iommu",
            "id",
            "pci_segment",
            "pci_device_id",
        ],
    ),
    (
        "vsock",
        &[
            "cid",
            "socket",
            "iommu",
            "pci_segment",
            "pci_device_id",
            "id",
        ],
    ),
    (
        "platform",
        &[
            "num_pci_segments",
            "iommu_segments",
            "iommu_address_width_bits",
            "system_serial_number",
            "serial_number",
            "system_uuid",
            "uuid",
            "oem_strings",
            "tdx",
            "sev_snp",
            "iommufd",
        ],
    ),
    ("tpm", &["socket"]),
    ("landlock_rules", &["path", "access"]),
    (
        "VmResize",
        &["desired_vcpus", "desired_ram", "desired_balloon"],
    ),
    ("VmRemoveDevice", &["id"]),
    ("VmSnapshotConfig", &["destination_url"]),
    (
        "RestoreConfig",
        &[
            "source_url",
            "prefault",
            "memory_restore_mode",
            "resume",
            "zone_updates",
        ],
    ),
];

/// Checks an object and those in it; says the first field that the interface does not know.
pub fn check(name: &str, value: &Value) -> Result<(), String> {
    let Some((_, fields)) = OBJECTS.iter().find(|(object, _)| *object == name) else {
        return Err(format!("the double does not know the object {name}"));
    };
    let Some(map) = value.as_object() else {
        return Err(format!("{name} is no object"));
    };
    for (field, value) in map {
        if !fields.contains(&field.as_str()) {
            return Err(format!("unknown field {name}.{field}"));
        }
        match value {
            Value::Null => return Err(format!("{name}.{field} is null")),
            Value::Object(_) => check(field, value)?,
            Value::Array(list) => {
                for entry in list.iter().filter(|entry| entry.is_object()) {
                    check(field, entry)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Says what of a machine's config would fall into a trap of the real one.
pub fn traps(config: &Value) -> Vec<String> {
    let mut traps = Vec::new();
    if config["console"]["mode"] != "Off" {
        traps.push("console.mode is not Off: its default writes to the standard output".to_owned());
    }
    match config["serial"]["mode"].as_str() {
        Some("Tty" | "Off" | "Null") => {}
        Some("Socket") if config["serial"]["socket"].is_string() => {}
        Some("Socket") => traps.push("serial.mode Socket without a path panics".to_owned()),
        Some("File") => traps.push("serial.mode File empties its file at every boot".to_owned()),
        other => traps.push(format!("serial.mode is {other:?}")),
    }
    for disk in list(&config["disks"]) {
        traps.extend(disk_traps(disk));
    }
    if !list(&config["fs"]).is_empty() && config["memory"]["shared"] != true {
        traps.push("fs needs memory.shared".to_owned());
    }
    traps
}

/// Says what of a disk would fall into a trap of the real one.
pub fn disk_traps(disk: &Value) -> Vec<String> {
    let mut traps = Vec::new();
    if !disk["image_type"].is_string() {
        traps.push(
            "a disk without image_type: raw is guessed, and its first sector can't be written"
                .to_owned(),
        );
    }
    if !disk["id"].is_string() {
        traps.push("a disk without id: its place changes when the guest boots anew".to_owned());
    }
    traps
}

/// The entries of a list that may not be there.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
