//! A spec as a plain tree of names and values: the one form from which it is written and compared.

use super::words::Words;
use super::*;

/// A value of the tree.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    Text(String),
    Number(u32),
    Flag(bool),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

/// Gives every field of a spec, in the order of the documents; what is not asked is left out.
pub(super) fn tree(spec: &VmSpec) -> Vec<(String, Tree)> {
    let mut map = Map::default();
    map.text("image", spec.image.as_deref());
    map.text("arch", spec.arch.map(Words::word));
    map.text(
        "driver",
        Some(match &spec.driver {
            DriverChoice::Auto => "auto",
            DriverChoice::Named(name) => name,
        }),
    );
    map.text(
        "machine",
        Some(match &spec.machine {
            MachineChoice::Auto => "auto",
            MachineChoice::Named(name) => name,
        }),
    );
    map.text("accel", Some(spec.accel.word()));
    map.put("cpus", Tree::Number(spec.cpus));
    map.number("max_cpus", spec.max_cpus);
    map.text("cpu_model", spec.cpu_model.as_deref());
    map.flag_if_set("nested", spec.nested);
    map.text("memory", Some(&spec.memory.to_string()));
    map.size("max_memory", spec.max_memory);
    map.size("memory_target", spec.memory_target);
    map.text("memory_kind", Some(spec.memory_kind.word()));
    map.put("boot", boot(&spec.boot));
    map.list("disks", spec.disks.iter().map(disk));
    map.list("networks", spec.networks.iter().map(network));
    map.list("shares", spec.shares.iter().map(share));
    map.list("consoles", spec.consoles.iter().map(console));
    map.flag_if_set("tpm", spec.tpm);
    map.text("watchdog", spec.watchdog.map(Words::word));
    map.flag_if_set("vsock", spec.vsock);
    map.text("isolation", Some(spec.isolation.word()));
    let time_to_live = spec.time_to_live.map(format_duration);
    map.text("time_to_live", time_to_live.as_deref());
    let ready = spec.ready.as_ref().map(ToString::to_string);
    map.text("ready", ready.as_deref());
    map.text("ready_timeout", Some(&format_duration(spec.ready_timeout)));
    map.put("seed", seed(&spec.seed));
    let labels = spec
        .labels
        .iter()
        .map(|(name, value)| (name.clone(), Tree::Text(value.clone())));
    map.put("labels", Tree::Map(labels.collect()));
    map.put("protected", Tree::Flag(spec.protected));
    map.0
}

#[derive(Default)]
struct Map(Vec<(String, Tree)>);

impl Map {
    fn put(&mut self, name: &str, value: Tree) {
        self.0.push((name.to_owned(), value));
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(text) = value {
            self.put(name, Tree::Text(text.to_owned()));
        }
    }

    fn path(&mut self, name: &str, value: Option<&std::path::Path>) {
        self.text(name, value.map(|path| path.to_string_lossy()).as_deref());
    }

    fn list(&mut self, name: &str, items: impl Iterator<Item = Tree>) {
        self.put(name, Tree::List(items.collect()));
    }

    fn size(&mut self, name: &str, value: Option<Bytes>) {
        self.text(name, value.map(|size| size.to_string()).as_deref());
    }

    fn number(&mut self, name: &str, value: Option<u32>) {
        if let Some(number) = value {
            self.put(name, Tree::Number(number));
        }
    }

    fn flag_if_set(&mut self, name: &str, flag: bool) {
        if flag {
            self.put(name, Tree::Flag(true));
        }
    }
}

fn texts(items: &[String]) -> Tree {
    Tree::List(items.iter().cloned().map(Tree::Text).collect())
}

fn boot(boot: &BootSpec) -> Tree {
    let mut map = Map::default();
    map.text("firmware", boot.firmware.map(Words::word));
    map.path("kernel", boot.kernel.as_deref());
    map.path("initrd", boot.initrd.as_deref());
    map.text("cmdline", boot.cmdline.as_deref());
    map.flag_if_set("secure_boot", boot.secure_boot);
    Tree::Map(map.0)
}

fn disk(disk: &DiskSpec) -> Tree {
    let mut map = Map::default();
    map.text("name", Some(&disk.name));
    map.size("size", disk.size);
    map.path("path", disk.path.as_deref());
    map.text("format", disk.format.map(Words::word));
    map.flag_if_set("read_only", disk.read_only);
    map.path("mount", disk.mount.as_deref());
    if disk.bus != DiskBus::Virtio {
        map.text("bus", Some(disk.bus.word()));
    }
    map.flag_if_set("removable", disk.removable);
    if disk.cache != DiskCache::Writeback {
        map.text("cache", Some(disk.cache.word()));
    }
    if !disk.discard {
        map.put("discard", Tree::Flag(false));
    }
    let mut limits = Map::default();
    limits.number("requests", disk.limits.requests);
    limits.size("bandwidth", disk.limits.bandwidth);
    if !limits.0.is_empty() {
        map.put("limits", Tree::Map(limits.0));
    }
    Tree::Map(map.0)
}

fn console(console: &ConsoleSpec) -> Tree {
    let mut map = Map::default();
    map.text("name", Some(&console.name));
    map.flag_if_set("log", console.log);
    Tree::Map(map.0)
}

fn network(network: &NetworkSpec) -> Tree {
    let mut map = Map::default();
    map.text("kind", Some(network.kind.word()));
    map.text("name", network.name.as_ref().map(VmName::as_str));
    map.text("mac", network.mac.map(|mac| mac.to_string()).as_deref());
    if !network.forwards.is_empty() {
        let forwards = network.forwards.iter().map(ToString::to_string);
        map.list("forwards", forwards.map(Tree::Text));
    }
    Tree::Map(map.0)
}

fn share(share: &ShareSpec) -> Tree {
    let (host, guest) = (share.host.to_string_lossy(), share.guest.to_string_lossy());
    if !host.contains(':') && !guest.contains(':') {
        let option = if share.read_only { ":ro" } else { "" };
        return Tree::Text(format!("{host}:{guest}{option}"));
    }
    let mut map = Map::default();
    map.text("host", Some(&host));
    map.text("guest", Some(&guest));
    map.flag_if_set("read_only", share.read_only);
    Tree::Map(map.0)
}

fn seed(seed: &SeedSpec) -> Tree {
    let mut map = Map::default();
    map.text("hostname", seed.hostname.as_deref());
    map.text("user", seed.user.as_deref());
    map.put("ssh_keys", texts(&seed.ssh_keys));
    map.put("packages", texts(&seed.packages));
    map.list("files", seed.files.iter().map(seed_file));
    map.list("commands", seed.commands.iter().map(|words| texts(words)));
    map.list("mounts", seed.mounts.iter().map(|words| texts(words)));
    map.text("user_data", seed.user_data.as_deref());
    map.0.retain(|(_, value)| *value != Tree::List(Vec::new()));
    Tree::Map(map.0)
}

fn seed_file(file: &SeedFile) -> Tree {
    let mut map = Map::default();
    map.text("path", Some(&file.path));
    map.text("content", Some(&file.content));
    map.text("mode", Some(&format!("{:04o}", file.mode)));
    map.text("owner", file.owner.as_deref());
    Tree::Map(map.0)
}
