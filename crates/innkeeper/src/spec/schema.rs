//! The JSON Schema (2020-12) of `vm.yaml`: what editors and programs check before we do.
//!
//! It says less than the reader, never more: bounds of sizes written as text, and rules between fields, are the reader's alone.

use serde_json::{Value, json};

use super::reader::{
    CPUS, MAX_CONSOLES, MAX_DISKS, MAX_FORWARDS, MAX_LABELS, MAX_NETWORKS, MAX_SEED_ITEMS,
    MAX_SHARES,
};
use super::words::Words;
use super::*;

const ABSOLUTE: &str = "^/";
const BELOW_ROOT: &str = "^/.*[^/]";
const SIZE: &str = r"^\s*[0-9]+((\.[0-9]{1,9})?\s*[kKmMgGtT]([iI]?[bB])?|\s*[bB])?\s*$";
const DURATION: &str = "^([0-9]+d)?([0-9]+h)?([0-9]+m(in)?)?([0-9]+s)?([0-9]+ms)?$";
const FORWARD: &str =
    r"^((127\.[0-9.]+|\[[0-9a-fA-F:.]+\]|::1):)?[0-9]{1,5}:[0-9]{1,5}(/(tcp|udp))?$";
const SHARE: &str = "^/[^:]*:/[^:]*[^/:][^:]*(:r[ow])?$";
const MAC: &str = "^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$";
const READY: &str = "^(agent|cloud-init|ssh|none|serial:.+)$";
const USER: &str = "^[a-z_][a-z0-9_-]{0,31}$";
const OWNER: &str = "^[a-z_][a-z0-9_-]{0,31}(:[a-z_][a-z0-9_-]{0,31})?$";
const LABEL: &str = "^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$";

/// Gives the schema of `vm.yaml`.
pub fn schema() -> Value {
    let default = VmSpec::default();
    let mut schema = object(
        "What is asked of a VM.",
        &[],
        json!({
            "image": text("Image that the root disk, or the kernel, comes from: `debian:12`, `tiny`, a path, or a URL with `#sha256=`.", "."),
            "arch": words::<Arch>("Architecture of the guest; this computer's if none is given.", None),
            "driver": with_default(text("Driver that runs it, by name; `auto` takes the lightest that can.", "^[A-Za-z0-9][A-Za-z0-9-]{0,31}$"), json!("auto")),
            "machine": with_default(text("Machine type as the driver names it, such as `q35`, `microvm` or `virt`; `auto` takes the best.", "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), json!("auto")),
            "accel": words("How CPUs are run; `auto` takes hardware where a trial shows that it works.", Some(default.accel)),
            "cpus": {"description": "Virtual CPUs.", "type": "integer", "minimum": CPUS.0, "maximum": CPUS.1, "default": default.cpus},
            "max_cpus": {"description": "Virtual CPUs that it may be given while it runs.", "type": "integer", "minimum": CPUS.0, "maximum": CPUS.1},
            "nested": flag("Whether the guest may run virtual machines itself."),
            "cpu_model": text("CPU model as the driver names it; the best safe one if none is given.", "^[A-Za-z0-9][A-Za-z0-9._,+=-]{0,255}$"),
            "memory": with_default(size("Memory, from 16MiB to 16TiB."), json!(default.memory.to_string())),
            "max_memory": size("Memory that it may be given while it runs, from 16MiB to 16TiB."),
            "memory_target": size("Memory that the guest is asked to keep within, by a balloon; no balloon if none is given."),
            "memory_kind": words("What memory is made of: pages of the usual size, or huge pages that the host has set aside.", Some(default.memory_kind)),
            "boot": boot(),
            "disks": list("Disks; `root` comes from the image.", MAX_DISKS, disk(), json!([])),
            "networks": list("Network interfaces; one on the user-mode network if the field is missing.", MAX_NETWORKS, network(), json!([{"kind": "user"}])),
            "shares": list("Folders of this computer that the guest sees.", MAX_SHARES, share(), json!([])),
            "consoles": list("Consoles beside the first serial port.", MAX_CONSOLES, console(), json!([])),
            "tpm": flag("Whether there is a TPM 2.0."),
            "watchdog": words::<WatchdogAction>("What happens when the guest stops feeding the watchdog; no watchdog if none is given.", None),
            "vsock": flag("Whether sockets of the guest can be reached by vsock."),
            "isolation": words("How much of this computer it may touch.", Some(default.isolation)),
            "time_to_live": text("How long it may run before it is stopped, such as `8h`; needed with `isolation: agent`.", DURATION),
            "ready": text("When the guest counts as ready: `agent`, `cloud-init`, `ssh`, `serial:MARKER` (the serial console printed it) or `none`; what fits the image if none is given.", READY),
            "ready_timeout": with_default(text("How long it may take to become ready, such as `90s`, `10min` or `1h30min`.", DURATION), json!(format_duration(default.ready_timeout))),
            "seed": seed(),
            "labels": {
                "description": "Labels, for people and programs.", "type": "object", "default": {}, "maxProperties": MAX_LABELS,
                "propertyNames": {"pattern": LABEL}, "additionalProperties": {"type": "string", "maxLength": 256},
            },
            "protected": flag("Whether `inn rm` is refused."),
        }),
    );
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Innkeeper vm.yaml");
    schema
}

fn object(description: &str, required: &[&str], properties: Value) -> Value {
    let mut object = json!({
        "description": description, "type": "object", "properties": properties, "additionalProperties": false,
    });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn text(description: &str, pattern: &str) -> Value {
    json!({"description": description, "type": "string", "pattern": pattern})
}

fn size(description: &str) -> Value {
    json!({"description": description, "type": ["string", "integer"], "pattern": SIZE, "minimum": 1})
}

fn flag(description: &str) -> Value {
    json!({"description": description, "type": "boolean", "default": false})
}

fn words<T: Words>(description: &str, default: Option<T>) -> Value {
    let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
    let choice = json!({"description": description, "type": "string", "enum": words});
    match default {
        Some(value) => with_default(choice, json!(value.word())),
        None => choice,
    }
}

fn list(description: &str, most: usize, items: Value, default: Value) -> Value {
    json!({"description": description, "type": "array", "maxItems": most, "items": items, "default": default})
}

fn with_default(mut schema: Value, default: Value) -> Value {
    schema["default"] = default;
    schema
}

fn boot() -> Value {
    object(
        "How it boots. `kernel`, `initrd` and `cmdline` go with a direct boot only.",
        &[],
        json!({
            "firmware": words::<Firmware>("What starts the guest; what the image asks for if none is given.", None),
            "kernel": text("Linux kernel on this computer, as an absolute path; the image's if none is given.", ABSOLUTE),
            "initrd": text("Initial RAM disk on this computer, as an absolute path.", ABSOLUTE),
            "cmdline": text("Words added to the kernel's command line.", "."),
            "secure_boot": flag("Whether the firmware refuses loaders that are not signed; with `firmware: uefi` only."),
        }),
    )
}

fn disk() -> Value {
    object(
        "A disk: `root`, a new one with `size`, or an existing file with `path` and `format`.",
        &["name"],
        json!({
            "name": text("Name, unique in this VM.", "^[a-z0-9][a-z0-9-]{0,19}$"),
            "size": size("Size that the guest sees, from 1MiB to 1024TiB; for `root` the image's if none is given."),
            "path": text("Existing file on this computer to attach, as an absolute path.", ABSOLUTE),
            "format": words::<DiskFormat>("Format of the file; must be given with `path`.", None),
            "read_only": flag("Whether the guest can't write to it."),
            "mount": text("Where the guest mounts it, for disks that are made empty (formatted as ext4).", BELOW_ROOT),
            "bus": words("What the guest sees it as.", Some(DiskBus::Virtio)),
            "removable": flag("Whether it is a CD drive, whose medium can be changed; without `path` it is empty."),
            "cache": words("How this computer caches it; with `unsafe` a crash of this computer may lose everything on it.", Some(DiskCache::Writeback)),
            "discard": {"description": "Whether blocks that the guest discards are given back.", "type": "boolean", "default": true},
            "limits": object("How much traffic it may have.", &[], json!({
                "requests": {"description": "Requests a second.", "type": "integer", "minimum": 1, "maximum": 100_000_000},
                "bandwidth": size("Bytes a second, from 4KiB to 1TiB."),
            })),
        }),
    )
}

fn console() -> Value {
    object(
        "A console.",
        &["name"],
        json!({
            "name": text("Name, unique in this VM, by which `inn console` and the guest find it.", "^[a-z0-9][a-z0-9-]{0,19}$"),
            "log": flag("Whether what the guest writes to it is kept in a log."),
        }),
    )
}

fn network() -> Value {
    let port = |description: &str| json!({"description": description, "type": "integer", "minimum": 1, "maximum": 65535});
    let map = object(
        "A forward in full.",
        &["host_port", "guest_port"],
        json!({
            "host_port": port("Port on this computer."),
            "guest_port": port("Port in the guest."),
            "host_address": with_default(text("Loopback address on this computer.", r"^(127\.|\[?::1\]?$|\[?[0-9a-fA-F:]+:127\.)|^\[?[0:]*:0*1\]?$"), json!("127.0.0.1")),
            "protocol": words("Protocol.", Some(Protocol::Tcp)),
        }),
    );
    let mut short = text(
        "A forward in short: `[ADDRESS:]HOST_PORT:GUEST_PORT[/tcp|/udp]`.",
        FORWARD,
    );
    short["examples"] = json!(["8080:80", "127.0.0.1:5353:53/udp"]);
    object(
        "A network interface.",
        &[],
        json!({
            "kind": words("What it is connected to.", Some(NetworkKind::User)),
            "name": text("Name of the network, for kind `network` alone.", "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"),
            "mac": text("MAC address, unicast; made once and kept if none is given.", MAC),
            "forwards": list("Ports of this computer, on loopback, that lead into the guest.", MAX_FORWARDS, json!({"anyOf": [short, map]}), json!([])),
        }),
    )
}

fn share() -> Value {
    let map = object(
        "A share in full, for paths with a colon.",
        &["host", "guest"],
        json!({
            "host": text("Folder on this computer, as an absolute path.", ABSOLUTE),
            "guest": text("Where the guest sees it, as an absolute path.", BELOW_ROOT),
            "read_only": flag("Whether the guest can't write to it."),
        }),
    );
    let mut short = text("A share in short: `HOST:GUEST[:ro]`.", SHARE);
    short["examples"] = json!(["/home/me/src:/src:ro"]);
    json!({"anyOf": [short, map]})
}

fn seed() -> Value {
    let texts = |description: &str, item: Value| list(description, MAX_SEED_ITEMS, item, json!([]));
    let words = |least: usize, most: usize| json!({"type": "array", "minItems": least, "maxItems": most, "items": {"type": "string"}});
    let file = object(
        "A file.",
        &["path"],
        json!({
            "path": text("Where, as an absolute path.", BELOW_ROOT),
            "content": {"description": "What is in it.", "type": "string", "default": ""},
            "mode": with_default(text("Permission bits as octal text.", "^(0o)?[0-7]{3,4}$"), json!("0644")),
            "owner": with_default(text("Owner, as `user` or `user:group`.", OWNER), json!("root:root")),
        }),
    );
    object(
        "What the guest is told at its first boot, by cloud-init where the image has it.",
        &[],
        json!({
            "hostname": text("Name of the guest; the VM's name if none is given.", r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"),
            "user": text("User that is made, with sudo; the image's own if none is given.", USER),
            "ssh_keys": texts("Public SSH keys beside this installation's own.", json!({"type": "string", "pattern": "^(ssh-|ecdsa-|sk-)[^ ]* [^ ]"})),
            "packages": texts("Packages that are installed.", json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9.+:=~_/-]{0,255}$"})),
            "files": texts("Files that are written.", file),
            "commands": texts("Commands that are run once at the end, each a list of its arguments.", words(1, MAX_SEED_ITEMS)),
            "mounts": texts("Mounts, each a list: device, path, type, options, dump, pass.", words(2, 6)),
            "user_data": {"description": "Own cloud-init user data, merged with ours.", "type": "string"},
        }),
    )
}
