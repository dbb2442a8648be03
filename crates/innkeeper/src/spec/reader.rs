//! Reads `vm.yaml` into a `VmSpec`, one short function per struct, all problems at once.
//!
//! It looks at nothing outside the text: whether a kernel is there or this host has so much memory is for the engine to say.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::fields::{At, Fields, Sink, quote};
use super::node::{self, Node, Value};
use super::problems::SpecProblems;
use super::short_form::{self, guest_path, host_path};
use super::words::Words;
use super::*;

/// Bounds of what a spec may ask.
pub(super) const CPUS: (u32, u32) = (1, 1024);
const MEMORY: (Bytes, Bytes) = (Bytes::mib(16), Bytes::gib(16 << 10));
const DISK_SIZE: (Bytes, Bytes) = (Bytes::mib(1), Bytes::gib(1 << 20));
const BANDWIDTH: (Bytes, Bytes) = (Bytes::kib(4), Bytes::gib(1 << 10));
const LONGEST_WAIT: Duration = Duration::from_secs(7 * 86_400);
pub(super) const MAX_DISKS: usize = 64;
pub(super) const MAX_NETWORKS: usize = 16;
pub(super) const MAX_FORWARDS: usize = 256;
pub(super) const MAX_SHARES: usize = 64;
pub(super) const MAX_CONSOLES: usize = 8;
pub(super) const MAX_LABELS: usize = 64;
pub(super) const MAX_SEED_ITEMS: usize = 1024;

/// Reads a spec. `origin` names the text in messages, such as the path of the file.
///
/// # Errors
/// Every problem that the text has, with line and column. A text that is not YAML at all has only its first one.
pub fn read(text: &str, origin: &str) -> Result<VmSpec, SpecProblems> {
    let loaded = node::load(text).map_err(|problems| SpecProblems::new(origin, problems))?;
    let sink = Sink::default();
    let spec = read_root(&loaded.root, &sink);
    let mut problems = sink.into_problems();
    problems.extend(loaded.duplicates);
    match spec {
        Some(spec) if problems.is_empty() => Ok(spec),
        _ => Err(SpecProblems::new(origin, problems)),
    }
}

pub(super) fn read_root(root: &Node, sink: &Sink) -> Option<VmSpec> {
    let at = At {
        node: root,
        path: String::new(),
        sink,
    };
    vm(at.fields()?)
}

fn vm(mut fields: Fields<'_>) -> Option<VmSpec> {
    let default = VmSpec::default();
    let mounts = Unique::new();
    let max_cpus_at = fields.find("max_cpus");
    let max_memory_at = fields.find("max_memory");
    let target_at = fields.find("memory_target");
    let isolation_at = fields.find("isolation");
    let spec = VmSpec {
        image: fields.get("image", |at| at.line(4096).map(str::to_owned)),
        arch: fields.get("arch", word),
        driver: fields.get("driver", driver).unwrap_or(default.driver),
        machine: fields.get("machine", machine).unwrap_or(default.machine),
        accel: fields.get("accel", word).unwrap_or(default.accel),
        cpus: fields
            .get("cpus", |at| at.integer(CPUS.0..=CPUS.1))
            .unwrap_or(default.cpus),
        max_cpus: max_cpus_at
            .clone()
            .and_then(|at| at.integer(CPUS.0..=CPUS.1)),
        cpu_model: fields.get("cpu_model", cpu_model),
        nested: fields.get("nested", |at| at.boolean()).unwrap_or(false),
        memory: fields
            .get("memory", |at| size(&at, MEMORY))
            .unwrap_or(default.memory),
        max_memory: max_memory_at.as_ref().and_then(|at| size(at, MEMORY)),
        memory_target: target_at.as_ref().and_then(|at| size(at, MEMORY)),
        memory_kind: fields
            .get("memory_kind", word)
            .unwrap_or(default.memory_kind),
        boot: fields.get("boot", boot).unwrap_or(default.boot),
        disks: fields
            .get("disks", |at| disks(at, &mounts))
            .unwrap_or(default.disks),
        networks: fields.get("networks", networks).unwrap_or(default.networks),
        shares: fields
            .get("shares", |at| shares(at, &mounts))
            .unwrap_or(default.shares),
        consoles: fields.get("consoles", consoles).unwrap_or_default(),
        tpm: fields.get("tpm", |at| at.boolean()).unwrap_or(false),
        watchdog: fields.get("watchdog", word),
        vsock: fields.get("vsock", |at| at.boolean()).unwrap_or(false),
        isolation: isolation_at
            .clone()
            .and_then(word)
            .unwrap_or(default.isolation),
        time_to_live: fields.get("time_to_live", |at| wait(&at)),
        ready: fields.get("ready", |at| at.parse()),
        ready_timeout: fields
            .get("ready_timeout", |at| wait(&at))
            .unwrap_or(default.ready_timeout),
        seed: fields.get("seed", seed).unwrap_or(default.seed),
        labels: fields.get("labels", labels).unwrap_or(default.labels),
        protected: fields
            .get("protected", |at| at.boolean())
            .unwrap_or(default.protected),
    };
    if let (Some(at), Some(most)) = (max_cpus_at, spec.max_cpus)
        && most < spec.cpus
    {
        at.refuse::<()>(format!(
            "is less than `cpus`, which is {}: it is the most that `cpus` can become while it runs",
            spec.cpus
        ));
    }
    if let (Some(at), Some(most)) = (max_memory_at, spec.max_memory)
        && most < spec.memory
    {
        at.refuse::<()>(format!(
            "is less than `memory`, which is {}: it is the most that `memory` can become while it runs",
            spec.memory
        ));
    }
    if let (Some(at), Some(target)) = (target_at, spec.memory_target)
        && target > spec.max_memory.unwrap_or(spec.memory)
    {
        let (field, most) = match spec.max_memory {
            Some(most) => ("max_memory", most),
            None => ("memory", spec.memory),
        };
        at.refuse::<()>(format!("is more than `{field}`, which is {most}"));
    }
    isolation(&spec, isolation_at.as_ref(), &fields);
    fields.finish();
    Some(spec)
}

/// Refuses what the isolation mode does not allow. What it allows is on in the driver's plan.
fn isolation(spec: &VmSpec, at: Option<&At<'_>>, fields: &Fields<'_>) {
    let at = at.unwrap_or(&fields.at);
    let word = spec.isolation.word();
    if spec.isolation != Isolation::Unrestricted {
        for disk in &spec.disks {
            if disk
                .path
                .as_ref()
                .is_some_and(|path| path.starts_with("/dev"))
            {
                at.refuse_with::<()>(
                    format!(
                        "disk {:?} is a device of this computer, which `{word}` does not allow",
                        disk.name
                    ),
                    "write `isolation: unrestricted`, or use a disk image",
                );
            }
        }
    }
    if spec.isolation == Isolation::Agent && spec.time_to_live.is_none() {
        at.refuse_with::<()>(
            "a VM that nobody watches needs an end: `agent` goes with `time_to_live`",
            "add `time_to_live: 8h`",
        );
    }
}

fn consoles(at: At<'_>) -> Option<Vec<ConsoleSpec>> {
    let names = Unique::new();
    at.list(MAX_CONSOLES, |item| console(item, &names))
}

fn console(at: At<'_>, names: &Unique<String>) -> Option<ConsoleSpec> {
    let mut fields = at.fields()?;
    let name = fields.require("name", |at| {
        let name = plain_name(&at, "a console's name")?;
        if matches!(name.as_str(), "serial" | "agent") {
            return at.refuse(format!("{name:?} is the name of one that every VM has"));
        }
        names.add(&at, name.clone(), || {
            format!("two consoles are named {name:?}")
        });
        Some(name)
    });
    let log = fields.get("log", |at| at.boolean()).unwrap_or(false);
    fields.finish();
    Some(ConsoleSpec { name: name?, log })
}

fn word<T: Words>(at: At<'_>) -> Option<T> {
    let text = at.line(64)?;
    T::from_word(text).or_else(|| {
        let known: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
        let hint = format!("write one of: {}", known.join(", "));
        at.refuse_with(format!("{} is not known here", quote(text)), hint)
    })
}

/// Reads a text that begins with a letter or digit and has only letters, digits and the given characters.
fn name_of(at: &At<'_>, most: usize, others: &str, what: &str) -> Option<String> {
    let text = at.line(most)?;
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || others.contains(c))
    {
        return Some(text.to_owned());
    }
    at.refuse_with(
        format!("{} is not {what}", quote(text)),
        format!("begin with a letter or digit, and use only letters, digits and {others}"),
    )
}

fn driver(at: At<'_>) -> Option<DriverChoice> {
    let name = name_of(&at, 32, "-", "a driver's name")?;
    Some(match name.as_str() {
        "auto" => DriverChoice::Auto,
        _ => DriverChoice::Named(name),
    })
}

fn machine(at: At<'_>) -> Option<MachineChoice> {
    let name = name_of(&at, 64, "._-", "a machine type")?;
    Some(match name.as_str() {
        "auto" => MachineChoice::Auto,
        _ => MachineChoice::Named(name),
    })
}

fn cpu_model(at: At<'_>) -> Option<String> {
    name_of(&at, 256, "._,+=-", "a CPU model")
}

fn size(at: &At<'_>, (least, most): (Bytes, Bytes)) -> Option<Bytes> {
    let bytes: Bytes = match &at.node.value {
        Value::Scalar { text, .. } if text.len() <= 64 => match text.parse() {
            Ok(bytes) => bytes,
            Err(error) => return at.refuse(BytesError::to_string(&error)),
        },
        _ => return at.refuse("must be a size such as 512MiB or 20GiB"),
    };
    if bytes < least {
        return at.refuse(format!("{bytes} is too small: at least {least}"));
    }
    if bytes > most {
        return at.refuse(format!("{bytes} is too large: at most {most}"));
    }
    Some(bytes)
}

fn wait(at: &At<'_>) -> Option<Duration> {
    let text = match &at.node.value {
        // A bare number is no text, but what it lacks is a unit, not quotes.
        Value::Scalar { text, .. } => text,
        _ => return at.refuse("must be a duration such as 90s or 10min"),
    };
    let duration = checked(at, parse_duration(text))?;
    if duration.is_zero() || duration > LONGEST_WAIT {
        return at.refuse("must be more than 0s and at most 7d");
    }
    Some(duration)
}

fn checked<T, E: std::fmt::Display>(at: &At<'_>, result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => at.refuse(error.to_string()),
    }
}

fn path_on_host(at: At<'_>) -> Option<PathBuf> {
    checked(&at, host_path(at.any_text()?))
}

fn path_in_guest(at: At<'_>) -> Option<PathBuf> {
    checked(&at, guest_path(at.any_text()?))
}

fn boot(at: At<'_>) -> Option<BootSpec> {
    let mut fields = at.fields()?;
    let firmware = fields.get("firmware", word);
    let kernel = fields.find("kernel");
    let initrd = fields.find("initrd");
    let cmdline = fields.find("cmdline");
    if let Some(firmware @ (Firmware::Uefi | Firmware::Bios)) = firmware {
        for (name, at) in [
            ("kernel", &kernel),
            ("initrd", &initrd),
            ("cmdline", &cmdline),
        ] {
            if let Some(at) = at {
                let word = firmware.word();
                at.refuse_with::<()>(
                    format!("`{name}` needs `firmware: direct`: with `{word}` the guest's own boot loader chooses"),
                    format!("remove `{name}`, or write `firmware: direct`"),
                );
            }
        }
    }
    let secure_at = fields.find("secure_boot");
    let secure_boot = secure_at.as_ref().and_then(|at| at.boolean()) == Some(true);
    if let (Some(at), true) = (&secure_at, secure_boot && firmware != Some(Firmware::Uefi)) {
        at.refuse_with::<()>(
            "only UEFI firmware can refuse unsigned loaders",
            "write `firmware: uefi` beside it",
        );
    }
    let spec = BootSpec {
        secure_boot,
        firmware,
        kernel: kernel.and_then(path_on_host),
        initrd: initrd.and_then(path_on_host),
        cmdline: cmdline.and_then(|at| at.line(2048).map(str::to_owned)),
    };
    fields.finish();
    Some(spec)
}

/// Refuses a value that stands twice where each must be another.
struct Unique<K>(RefCell<HashSet<K>>);

impl<K: Hash + Eq> Unique<K> {
    fn new() -> Self {
        Unique(RefCell::new(HashSet::new()))
    }

    fn add(&self, at: &At<'_>, key: K, message: impl FnOnce() -> String) {
        if !self.0.borrow_mut().insert(key) {
            at.refuse::<()>(message());
        }
    }
}

/// Where something is mounted in the guest: disks and shares together.
type Mounts = Unique<PathBuf>;

fn mount_point(at: At<'_>, mounts: &Mounts) -> Option<PathBuf> {
    let path = path_in_guest(at.clone())?;
    mounts.add(&at, path.clone(), || {
        format!("something else is already mounted at {}", path.display())
    });
    Some(path)
}

fn disks(at: At<'_>, mounts: &Mounts) -> Option<Vec<DiskSpec>> {
    let names = Unique::new();
    at.list(MAX_DISKS, |item| disk(item, &names, mounts))
}

fn disk(at: At<'_>, names: &Unique<String>, mounts: &Mounts) -> Option<DiskSpec> {
    let mut fields = at.fields()?;
    let name = fields.require("name", |at| disk_name(at, names));
    let size_at = fields.find("size");
    let path_at = fields.find("path");
    let format_at = fields.find("format");
    let read_only_at = fields.find("read_only");
    let read_only = read_only_at.as_ref().and_then(|at| at.boolean());
    let mount_at = fields.find("mount");
    let removable_at = fields.find("removable");
    let removable = removable_at.as_ref().and_then(|at| at.boolean()) == Some(true);
    let bus_at = fields.find("bus");
    let bus: Option<DiskBus> = bus_at.clone().and_then(word);
    let is_root = name.as_deref() == Some("root");
    match (&path_at, &format_at) {
        (Some(path), None) => path.refuse_with(
            "a disk with `path` needs `format`: formats are never guessed, since a guest can write what would be guessed",
            "add `format: raw` or `format: qcow2`",
        ),
        (None, Some(format)) => format.refuse_with(
            "`format` goes with `path` only",
            "remove it; a disk of the VM's own has the format that suits its driver",
        ),
        _ => Some(()),
    };
    if let (Some(_), Some(size)) = (&path_at, &size_at) {
        let hint = "remove it, or resize the file by `inn disk resize`";
        size.refuse_with::<()>("a disk with `path` has the size of its file", hint);
    }
    if let (Some(mount), true) = (&mount_at, path_at.is_some() || is_root) {
        mount.refuse::<()>(
            "`mount` is for disks that are made empty: not for `root`, nor with `path`",
        );
    }
    if let (Some(at), true) = (&removable_at, removable) {
        if size_at.is_some() || mount_at.is_some() || is_root {
            at.refuse_with::<()>(
                "a drive with a changeable medium is read from only: it has no `size` or `mount`, and is not `root`",
                "give it `path` and `format`, or nothing for an empty drive",
            );
        }
        if bus == Some(DiskBus::Nvme) {
            at.refuse_with::<()>(
                "an NVMe drive has no changeable medium",
                "leave out `bus`, or write `bus: usb`",
            );
        }
        if let (Some(at), Some(false)) = (&read_only_at, read_only) {
            at.refuse_with::<()>("a drive is read from only", "leave it out");
        }
        for field in ["cache", "discard", "limits"] {
            if let Some(at) = fields.find(field) {
                at.refuse_with::<()>(
                    "a drive has no such setting, only disks have",
                    "leave it out",
                );
            }
        }
    }
    if name.is_some() && !is_root && size_at.is_none() && path_at.is_none() && !removable {
        fields.at.refuse_with::<()>(
            "the disk has neither `size` nor `path`",
            "add `size: 10GiB` for a new one, or `path` and `format` for a file that exists",
        );
    }
    let size = size_at.and_then(|at| size(&at, DISK_SIZE));
    let path = path_at.and_then(path_on_host);
    let format = format_at.and_then(word);
    let mount = mount_at.and_then(|at| mount_point(at, mounts));
    let cache = fields.get("cache", word);
    let discard = fields.get("discard", |at| at.boolean());
    let limits = fields.get("limits", limits);
    fields.finish();
    Some(DiskSpec {
        size,
        path,
        format,
        read_only: removable || read_only == Some(true),
        mount,
        bus: bus.unwrap_or(DiskBus::Virtio),
        removable,
        cache: cache.unwrap_or(DiskCache::Writeback),
        discard: discard.unwrap_or(true),
        limits: limits.unwrap_or_default(),
        ..DiskSpec::named(name?)
    })
}

fn limits(at: At<'_>) -> Option<DiskLimits> {
    let mut fields = at.fields()?;
    let limits = DiskLimits {
        requests: fields.get("requests", |at| at.integer(1..=100_000_000)),
        bandwidth: fields.get("bandwidth", |at| size(&at, BANDWIDTH)),
    };
    fields.finish();
    Some(limits)
}

fn disk_name(at: At<'_>, names: &Unique<String>) -> Option<String> {
    let name = plain_name(&at, "a disk's name")?;
    names.add(&at, name.clone(), || {
        format!("two disks are named {name:?}")
    });
    Some(name)
}

fn plain_name(at: &At<'_>, what: &str) -> Option<String> {
    let text = at.line(20)?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.starts_with('-') || !text.chars().all(allowed) {
        let message = format!("{} is not {what}", quote(text));
        return at.refuse_with(
            message,
            "use a-z, 0-9 and -, beginning with a letter or digit",
        );
    }
    Some(text.to_owned())
}

/// What no two forwards of a VM may share.
type Ports = Unique<(&'static str, IpAddr, u16)>;

fn networks(at: At<'_>) -> Option<Vec<NetworkSpec>> {
    let addresses = Unique::new();
    let ports = Unique::new();
    at.list(MAX_NETWORKS, |item| network(item, &addresses, &ports))
}

fn network(at: At<'_>, addresses: &Unique<MacAddr>, ports: &Ports) -> Option<NetworkSpec> {
    let mut fields = at.clone().fields()?;
    let spec = NetworkSpec {
        kind: fields.get("kind", word).unwrap_or(NetworkKind::User),
        name: fields.get("name", |at| at.parse()),
        mac: fields.get("mac", |at| mac(at, addresses)),
        forwards: fields
            .get("forwards", |at| {
                at.list(MAX_FORWARDS, |item| forward(item, ports))
            })
            .unwrap_or_default(),
    };
    fields.finish();
    match (spec.kind, &spec.name) {
        (NetworkKind::Network, None) => at.refuse_with(
            "a network of our own needs its name",
            "write `name: lan`, and make it with `inn network create lan`",
        ),
        (NetworkKind::User, Some(_)) => at.refuse_with(
            "the user network has no name",
            "write `kind: network` for one that has, or remove `name`",
        ),
        (NetworkKind::Network, Some(_)) if !spec.forwards.is_empty() => at.refuse_with(
            "a network of our own forwards no ports",
            "add a network of kind `user` for the forwards",
        ),
        _ => Some(spec),
    }
}

fn mac(at: At<'_>, addresses: &Unique<MacAddr>) -> Option<MacAddr> {
    let mac: MacAddr = at.parse()?;
    if mac.octets() == [0; 6] {
        return at.refuse("00:00:00:00:00:00 is no address that a guest can have");
    }
    if at.any_text()?.contains('+') {
        return at.refuse("must be six hexadecimal bytes such as 52:54:00:12:34:56");
    }
    addresses.add(&at, mac, || {
        format!("two networks have the MAC address {mac}")
    });
    Some(mac)
}

fn forward(at: At<'_>, ports: &Ports) -> Option<ForwardSpec> {
    let forward = match at.node.value {
        Value::Map(_) => forward_map(at.clone())?,
        _ => at.parse()?,
    };
    let protocol = forward.protocol.word();
    let (address, port) = (forward.host_address, forward.host_port);
    ports.add(&at, (protocol, address, port), || {
        format!("two forwards use port {port}/{protocol} of {address}")
    });
    Some(forward)
}

fn forward_map(at: At<'_>) -> Option<ForwardSpec> {
    let mut fields = at.fields()?;
    let port = |at: At<'_>| at.integer(1..=65_535).map(|port| port as u16);
    let host_port = fields.require("host_port", port);
    let guest_port = fields.require("guest_port", port);
    let host_address = fields.get("host_address", |at| {
        checked(&at, short_form::loopback(at.line(64)?))
    });
    let protocol = fields.get("protocol", word);
    fields.finish();
    Some(ForwardSpec {
        protocol: protocol.unwrap_or(Protocol::Tcp),
        host_address: host_address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host_port: host_port?,
        guest_port: guest_port?,
    })
}

fn shares(at: At<'_>, mounts: &Mounts) -> Option<Vec<ShareSpec>> {
    at.list(MAX_SHARES, |item| share(item, mounts))
}

fn share(at: At<'_>, mounts: &Mounts) -> Option<ShareSpec> {
    if !matches!(at.node.value, Value::Map(_)) {
        let share: ShareSpec = checked(&at, at.any_text()?.parse())?;
        mounts.add(&at, share.guest.clone(), || {
            format!(
                "something else is already mounted at {}",
                share.guest.display()
            )
        });
        return Some(share);
    }
    let mut fields = at.fields()?;
    let host = fields.require("host", path_on_host);
    let guest = fields.require("guest", |at| mount_point(at, mounts));
    let read_only = fields.get("read_only", |at| at.boolean()).unwrap_or(false);
    fields.finish();
    Some(ShareSpec {
        host: host?,
        guest: guest?,
        read_only,
    })
}

fn labels(at: At<'_>) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for (key, at) in at.entries()? {
        let name = key.name.as_str();
        let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        if !begins || name.len() > 63 || !name.chars().all(allowed) {
            at.refuse_with::<()>(
                format!("{} is not a label's name", quote(name)),
                "use at most 63 letters, digits and ._/-, beginning with a letter or digit",
            );
        }
        let value = at.any_text();
        if value
            .is_some_and(|text| text.chars().any(char::is_control) || text.chars().count() > 256)
        {
            at.refuse::<()>("must be one line of at most 256 characters");
        }
        labels.insert(name.to_owned(), value.unwrap_or_default().to_owned());
    }
    if labels.len() > MAX_LABELS {
        return at.refuse(format!("has {} labels: at most {MAX_LABELS}", labels.len()));
    }
    Some(labels)
}

fn seed(at: At<'_>) -> Option<SeedSpec> {
    let mut fields = at.fields()?;
    let texts = |at: At<'_>| at.list(MAX_SEED_ITEMS, argument);
    let spec = SeedSpec {
        hostname: fields.get("hostname", hostname),
        user: fields.get("user", |at| user_name(&at)),
        ssh_keys: fields
            .get("ssh_keys", |at| at.list(MAX_SEED_ITEMS, ssh_key))
            .unwrap_or_default(),
        packages: fields
            .get("packages", |at| {
                at.list(MAX_SEED_ITEMS, |item| {
                    name_of(&item, 256, ".+:=~_/-", "a package")
                })
            })
            .unwrap_or_default(),
        files: fields
            .get("files", |at| at.list(MAX_SEED_ITEMS, seed_file))
            .unwrap_or_default(),
        commands: fields
            .get("commands", |at| {
                at.list(MAX_SEED_ITEMS, |item| command(item, texts))
            })
            .unwrap_or_default(),
        mounts: fields
            .get("mounts", |at| {
                at.list(MAX_SEED_ITEMS, |item| seed_mount(item, texts))
            })
            .unwrap_or_default(),
        user_data: fields.get("user_data", |at| at.any_text().map(str::to_owned)),
    };
    fields.finish();
    Some(spec)
}

fn hostname(at: At<'_>) -> Option<String> {
    let text = at.line(253)?;
    let label = |label: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
        (1..=63).contains(&label.len())
            && label.chars().all(allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.split('.').all(label) {
        return Some(text.to_owned());
    }
    let message = format!("{} is not a host name", quote(text));
    at.refuse_with(
        message,
        "use letters, digits and -, in parts of at most 63 that are joined by dots",
    )
}

fn is_user_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    text.len() <= 32
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && text.chars().all(allowed)
}

fn user_name(at: &At<'_>) -> Option<String> {
    let text = at.line(32)?;
    if is_user_name(text) {
        return Some(text.to_owned());
    }
    let message = format!("{} is not a user's name", quote(text));
    at.refuse_with(
        message,
        "use a-z, 0-9, _ and -, beginning with a letter or _",
    )
}

fn ssh_key(at: At<'_>) -> Option<String> {
    let text = at.line(16_384)?;
    let mut words = text.split(' ');
    let kind = words.next().unwrap_or_default();
    let known = ["ssh-", "ecdsa-", "sk-"]
        .iter()
        .any(|start| kind.starts_with(start));
    if text.contains("PRIVATE KEY") || !known || words.next().is_none_or(str::is_empty) {
        let message = "is not a public SSH key in one line";
        return at.refuse_with(
            message,
            "give the content of a .pub file, such as `ssh-ed25519 AAAA... me`",
        );
    }
    Some(text.to_owned())
}

/// Reads one argument of a command: any text that can be one, so no zero byte.
fn argument(at: At<'_>) -> Option<String> {
    let text = at.any_text()?;
    if text.contains('\0') {
        return at.refuse("must not have a zero byte in it");
    }
    Some(text.to_owned())
}

fn command<'a>(at: At<'a>, texts: impl Fn(At<'a>) -> Option<Vec<String>>) -> Option<Vec<String>> {
    if let Value::Scalar { text, .. } = &at.node.value {
        let hint = format!("write [sh, -c, {}]", quote(text));
        return at.refuse_with(
            "a command is a list of its arguments, not a line for a shell",
            hint,
        );
    }
    let words = texts(at.clone())?;
    if words.first().is_none_or(String::is_empty) {
        return at.refuse("a command needs a program to run");
    }
    Some(words)
}

fn seed_mount<'a>(
    at: At<'a>,
    texts: impl Fn(At<'a>) -> Option<Vec<String>>,
) -> Option<Vec<String>> {
    let words = texts(at.clone())?;
    if !(2..=6).contains(&words.len()) || words.iter().any(String::is_empty) {
        return at.refuse_with(
            "a mount is a list of 2 to 6 words: device, path, type, options, dump, pass",
            "write [/dev/vdb, /data, ext4, \"defaults,nofail\"]",
        );
    }
    Some(words)
}

fn seed_file(at: At<'_>) -> Option<SeedFile> {
    let mut fields = at.fields()?;
    let path = fields.require("path", |at| {
        let text = at.any_text()?;
        checked(&at, guest_path(text).map(|_| text.to_owned()))
    });
    let content = fields.get("content", |at| at.any_text().map(str::to_owned));
    let mode = fields.get("mode", file_mode).unwrap_or(0o644);
    let owner = fields.get("owner", file_owner);
    fields.finish();
    Some(SeedFile {
        path: path?,
        content: content.unwrap_or_default(),
        mode,
        owner,
    })
}

/// Reads permission bits. A plain `0644` is what people mean by it; a plain `644` may be meant either way, so it is refused.
fn file_mode(at: At<'_>) -> Option<u32> {
    let refuse = || {
        let message = "must be permission bits as octal text";
        at.refuse_with(message, "write it in quotes with a leading zero: \"0644\"")
    };
    let Value::Scalar { text, quoted } = &at.node.value else {
        return refuse();
    };
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let octal = (3..=4).contains(&digits.len()) && digits.bytes().all(|b| matches!(b, b'0'..=b'7'));
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if octal && (*quoted || text.starts_with('0')) => Some(mode),
        _ => refuse(),
    }
}

fn file_owner(at: At<'_>) -> Option<String> {
    let text = at.line(65)?;
    let (user, group) = text.split_once(':').unwrap_or((text, "root"));
    if is_user_name(user) && is_user_name(group) {
        return Some(text.to_owned());
    }
    let message = format!("{} is not an owner", quote(text));
    at.refuse_with(message, "write user or user:group")
}
