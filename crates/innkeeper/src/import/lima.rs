//! Lima's templates, and the `lima.yaml` of its instances (lima-vm.io/docs/templates).
//!
//! A template may stand on others (`base`); whoever calls brings their texts. Scripts become scripts of the guest's first boot, unless they
//! have Go template expressions in them, which nobody evaluates here. Folders of the host are not given because a file asks for them.

use std::collections::BTreeSet;

use innkeeper_image::Arch;
use serde_json::{Map, Value};

use super::{ForeignMachine, damaged};
use crate::error::Result;
use crate::spec::{ForwardSpec, Protocol, SeedFile};

/// How deep templates may stand on each other.
const BASE_LIMIT: usize = 16;
/// Where the scripts of a template are in the guest.
const SCRIPTS: &str = "/var/lib/innkeeper/provision";

/// Images of the catalogue, by the words that Lima's templates and the vendors' files begin with.
const KNOWN: &[(&str, &str)] = &[
    ("debian-12", "debian:12"),
    ("debian-13", "debian:13"),
    ("debian", "debian:13"),
    ("ubuntu-22.04", "ubuntu:22.04"),
    ("ubuntu-24.04", "ubuntu:24.04"),
    ("ubuntu-lts", "ubuntu:24.04"),
    ("ubuntu", "ubuntu:24.04"),
];

/// Reads a template. `base` gives the text of one that it stands on by the name there, if it can be had.
pub fn parse(text: &str, base: &dyn Fn(&str) -> Option<String>) -> Result<ForeignMachine> {
    let mut machine = ForeignMachine::of("Lima template");
    let mut merged = Merged::default();
    merged.take(text, base, &mut machine, &mut BTreeSet::new(), 0)?;
    let fields = &merged.fields;
    machine.arch = match string(fields, "arch") {
        None | Some("default") => None,
        Some(arch) => Some(arch.parse::<Arch>().map_err(damaged)?),
    };
    machine.cpus = match fields.get("cpus").and_then(Value::as_u64) {
        Some(cpus) => Some(u32::try_from(cpus).map_err(damaged)?),
        None => None,
    };
    machine.memory = size(fields, "memory")?;
    machine.image_size = size(fields, "disk")?;
    if string(fields, "os").is_some_and(|os| os != "Linux") {
        machine.unmapped(
            "os",
            "guests other than Linux are given disks, not templates",
        );
    }
    image(&merged, &mut machine);
    machine.network(None)?;
    forwards(fields, &mut machine);
    provision(fields, &mut machine);
    leave_out(fields, &mut machine);
    Ok(machine)
}

/// Fields of a template with those of its bases below: lists are joined, the template's own first; else its own wins.
#[derive(Default)]
struct Merged {
    fields: Map<String, Value>,
    bases: Vec<String>,
}

impl Merged {
    fn take(
        &mut self,
        text: &str,
        base: &dyn Fn(&str) -> Option<String>,
        machine: &mut ForeignMachine,
        seen: &mut BTreeSet<String>,
        depth: usize,
    ) -> Result<()> {
        let value: Value = serde_saphyr::from_str(&without_comments(text))
            .map_err(|error| damaged(format!("it is no YAML: {error}")))?;
        let Value::Object(mut own) = value else {
            return Err(damaged("it is no mapping"));
        };
        let bases = own.remove("base").unwrap_or(Value::Null);
        for (key, value) in own {
            match (self.fields.get_mut(&key), value) {
                (_, Value::Null) => {}
                (Some(Value::Array(above)), Value::Array(below)) => above.extend(below),
                (Some(Value::Object(above)), Value::Object(below)) => {
                    for (key, value) in below {
                        above.entry(key).or_insert(value);
                    }
                }
                (Some(_), _) => {}
                (None, value) => {
                    self.fields.insert(key, value);
                }
            }
        }
        let bases = match bases {
            Value::Null => Vec::new(),
            Value::Array(list) => list,
            one => vec![one],
        };
        for entry in bases {
            let name = match &entry {
                Value::String(name) => name.clone(),
                Value::Object(of) => string(of, "url").unwrap_or_default().to_owned(),
                _ => String::new(),
            };
            if depth == BASE_LIMIT || !seen.insert(name.clone()) {
                return Err(damaged("templates stand on each other without an end"));
            }
            self.bases.push(name.clone());
            match base(&name) {
                Some(text) => self.take(&text, base, machine, seen, depth + 1)?,
                None if name.contains("_default/") || known(&name).is_some() => {}
                None => machine.unmapped(
                    format!("base {name}"),
                    "it is not beside this template, and nothing is fetched; put it there",
                ),
            }
        }
        Ok(())
    }
}

/// Drops the lines that begin with `#`: Lima's own templates have more of them in a row than the parser keeps. No script can lose one, for
/// what stands in a template's field is indented.
fn without_comments(text: &str) -> String {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn string<'a>(of: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    of.get(key)?.as_str().filter(|text| !text.is_empty())
}

fn size(of: &Map<String, Value>, key: &str) -> Result<Option<u64>> {
    let Some(value) = of.get(key) else {
        return Ok(None);
    };
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return Err(damaged(format!("{key} is no size"))),
    };
    read_size(&text)
        .map(Some)
        .ok_or_else(|| damaged(format!("{key}: {text:?} is no size up to 64 TiB")))
}

/// Reads a size as Lima does: powers of 1024, whatever the letters (`4GiB`, `4G`, `4GB`).
fn read_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let factor = 1u64 << shift;
    let mut bytes = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    if !part.is_empty() {
        let tenths = part.get(..1)?.parse::<u64>().ok()?;
        bytes = bytes.checked_add(factor / 10 * tenths)?;
    }
    let bytes = bytes.checked_next_multiple_of(512)?;
    (bytes <= 64 << 40).then_some(bytes)
}

/// Returns the catalogue's image that a base or a vendor's file stands for.
fn known(name: &str) -> Option<&'static str> {
    let last = name.rsplit(['/', ':']).next().unwrap_or_default();
    let last = last.strip_suffix(".yaml").unwrap_or(last);
    KNOWN
        .iter()
        .find(|(word, _)| {
            last == *word
                || last
                    .strip_prefix(word)
                    // `debian` alone must not take `debian-11`.
                    .is_some_and(|rest| {
                        word.contains(|c: char| c.is_ascii_digit()) && rest.starts_with('-')
                    })
        })
        .map(|(_, image)| *image)
}

fn image(merged: &Merged, machine: &mut ForeignMachine) {
    let arch = machine.arch.or_else(Arch::host);
    let images = merged.fields.get("images").and_then(Value::as_array);
    let fitting: Vec<&Map<String, Value>> = images
        .into_iter()
        .flatten()
        .filter_map(Value::as_object)
        .filter(|image| {
            let own = string(image, "arch").and_then(|arch| arch.parse::<Arch>().ok());
            own == arch || !image.contains_key("arch")
        })
        .collect();
    for image in &fitting {
        let location = string(image, "location").unwrap_or_default();
        let digest = string(image, "digest").and_then(|digest| digest.strip_prefix("sha256:"));
        if image.contains_key("kernel") || image.contains_key("initrd") {
            continue;
        }
        let is_disk = location.ends_with(".qcow2") || location.ends_with(".img");
        // Catalogues first: what they name is kept up to date, and can be built here.
        if let (Some(digest), true) = (digest, is_disk)
            && location.starts_with("https://")
            && known(location).is_none()
        {
            let format = format!("{location}#sha256={digest}");
            machine.image = Some(format);
            return;
        }
    }
    let by_name = merged
        .bases
        .iter()
        .find_map(|base| known(base))
        .or_else(|| {
            fitting
                .iter()
                .filter_map(|image| string(image, "location"))
                .find_map(known)
        });
    if let Some(name) = by_name {
        machine.image = Some(name.to_owned());
        machine.unmapped(
            "the image's address",
            format!("{name} of our own catalogue is taken, which is the same system"),
        );
    }
    if machine.image.is_none() && !fitting.is_empty() {
        machine.unmapped(
            "images",
            "none of them is a qcow2 disk with a SHA-256 or one that our catalogue has; `inn image import` takes one that was downloaded",
        );
    }
}

fn forwards(fields: &Map<String, Value>, machine: &mut ForeignMachine) {
    let entries = fields.get("portForwards").and_then(Value::as_array);
    for entry in entries.into_iter().flatten().filter_map(Value::as_object) {
        if entry.get("ignore").and_then(Value::as_bool) == Some(true) {
            continue;
        }
        let port = |key: &str| {
            let number = entry.get(key)?.as_u64()?;
            u16::try_from(number).ok().filter(|port| *port != 0)
        };
        let address = string(entry, "hostIP").unwrap_or("127.0.0.1");
        let address = address
            .parse::<std::net::IpAddr>()
            .ok()
            .filter(std::net::IpAddr::is_loopback);
        let protocol = match string(entry, "proto") {
            None | Some("tcp" | "any") => Some(Protocol::Tcp),
            Some("udp") => Some(Protocol::Udp),
            Some(_) => None,
        };
        match (port("guestPort"), address, protocol) {
            (Some(guest_port), Some(host_address), Some(protocol))
                if machine.forwards.len() < super::LIST_LIMIT =>
            {
                machine.forwards.push(ForwardSpec {
                    protocol,
                    host_address,
                    host_port: port("hostPort").unwrap_or(guest_port),
                    guest_port,
                });
            }
            _ => machine.unmapped(
                "a forwarded port, range or socket",
                "only single ports on loopback are forwarded; `inn set -p` adds them",
            ),
        }
    }
}

fn provision(fields: &Map<String, Value>, machine: &mut ForeignMachine) {
    let entries = fields.get("provision").and_then(Value::as_array);
    for (index, entry) in entries
        .into_iter()
        .flatten()
        .take(super::LIST_LIMIT)
        .enumerate()
    {
        let Some(entry) = entry.as_object() else {
            continue;
        };
        let mode = string(entry, "mode").unwrap_or("system");
        let label = format!("provision script {} ({mode})", index + 1);
        let body = string(entry, if mode == "data" { "content" } else { "script" });
        let Some(body) = body else {
            machine.unmapped(label, "it is in another file, or there is nothing in it");
            continue;
        };
        let path = string(entry, "path").unwrap_or_default();
        if body.contains("{{") || path.contains("{{") {
            machine.unmapped(
                label,
                "it has Go template expressions in it, which only Lima evaluates",
            );
            continue;
        }
        match mode {
            "system" | "dependency" => {
                let path = format!("{SCRIPTS}/{}", index + 1);
                machine.seed.files.push(SeedFile {
                    path: path.clone(),
                    content: body.to_owned(),
                    mode: 0o755,
                    owner: None,
                });
                machine.seed.commands.push(vec![path]);
            }
            "data" if path.starts_with('/') => machine.seed.files.push(SeedFile {
                path: path.to_owned(),
                content: body.to_owned(),
                mode: 0o644,
                owner: None,
            }),
            _ => machine.unmapped(
                label,
                "scripts are run at the first boot and as root only; `inn exec` runs others",
            ),
        }
    }
    if !machine.seed.commands.is_empty() {
        machine.unmapped(
            "when scripts run",
            "Lima runs them at every boot, here they run at the first one",
        );
    }
}

/// What a template may say beside, and why it is not taken.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "mounts",
        "folders of this host are not given because a file asks for them; `inn set` or -v gives them",
    ),
    (
        "containerd",
        "it is not installed by us; a provision script or the image has it",
    ),
    (
        "probes",
        "a VM is ready when its agent says so; --ready names something else",
    ),
    ("env", "variables for the whole guest have no counterpart"),
    (
        "networks",
        "the interface gets the user network: out by NAT, in by forwarded ports",
    ),
    (
        "additionalDisks",
        "`inn disk create` and `inn disk attach` give the VM disks",
    ),
    ("copyToHost", "`inn cp` copies files"),
    (
        "vmType",
        "the driver is chosen by what the VM needs; --driver names one",
    ),
    ("vmOpts", "they are for one hypervisor"),
    ("rosetta", "it has no counterpart"),
    ("video", "the display is the driver's own"),
    ("audio", "there is no sound"),
    ("caCerts", "`seed.files` of a spec puts them into the guest"),
    ("hostResolver", "the user network has a resolver of its own"),
    ("dns", "the user network has a resolver of its own"),
    ("firmware", "`inn set` says what starts the VM"),
    ("ssh", "`inn ssh` has a key and a port of its own"),
    ("nestedVirtualization", "`inn set --nested` allows it"),
    (
        "user",
        "the image's user is taken; `seed.user` of a spec names another",
    ),
    (
        "upgradePackages",
        "packages are not upgraded at the first boot",
    ),
    ("timezone", "the guest keeps its own"),
    ("mountType", "the driver chooses"),
    ("cpuType", "the driver chooses"),
];

fn leave_out(fields: &Map<String, Value>, machine: &mut ForeignMachine) {
    for (key, why) in LEFT_OUT {
        let empty = match fields.get(*key) {
            None | Some(Value::Null) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(of)) => of
                .values()
                .all(|value| matches!(value, Value::Null | Value::Bool(false))),
            Some(_) => false,
        };
        if !empty {
            machine.unmapped(*key, *why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "\
base: template:_images/debian-12
cpus: 4
memory: 2GiB
disk: 10G
mounts:
- location: '~'
portForwards:
- guestPort: 80
  hostPort: 8080
- guestPort: 443
  hostIP: 0.0.0.0
- guestSocket: /run/x.sock
provision:
- mode: system
  script: |
    #!/bin/sh
    touch /provisioned
- mode: user
  script: whoami
- mode: system
  script: echo {{.User}}
";

    #[test]
    fn a_template_becomes_a_machine() {
        let machine = parse(TEMPLATE, &|_| None).unwrap();
        assert_eq!(machine.image.as_deref(), Some("debian:12"));
        assert_eq!((machine.cpus, machine.memory), (Some(4), Some(2 << 30)));
        assert_eq!(machine.image_size, Some(10 << 30));
        assert_eq!(machine.forwards.len(), 1);
        assert_eq!(machine.seed.commands, [["/var/lib/innkeeper/provision/1"]]);
        let text = format!("{:?}", machine.unmapped);
        for part in ["mounts", "Go template", "as root only", "socket"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let (spec, _) = machine.into_spec(&[]).unwrap();
        crate::spec::check(&spec).unwrap();
    }

    #[test]
    fn hundreds_of_comments_and_none_of_a_script_are_passed_over() {
        let text = format!("{}{TEMPLATE}", "# remark\n".repeat(5000));
        let machine = parse(&text, &|_| None).unwrap();
        assert!(machine.seed.files[0].content.starts_with("#!/bin/sh\n"));
    }

    #[test]
    fn bases_are_merged_and_must_end() {
        let base = |name: &str| {
            match name {
            "a" => Some("base: b\ncpus: 1\nimages:\n- location: https://x.example/a.qcow2\n  digest: sha256:00\n".to_owned()),
            "b" => Some("cpus: 9\nmemory: 1GiB\n".to_owned()),
            "loop" => Some("base: loop\n".to_owned()),
            _ => None,
        }
        };
        let machine = parse("base: a\n", &base).unwrap();
        assert_eq!((machine.cpus, machine.memory), (Some(1), Some(1 << 30)));
        assert_eq!(
            machine.image.as_deref(),
            Some("https://x.example/a.qcow2#sha256=00")
        );
        let error = parse("base: loop\n", &base).unwrap_err().to_string();
        assert!(error.contains("without an end"), "{error}");
        let machine = parse("base: elsewhere\n", &base).unwrap();
        assert!(machine.unmapped[0].what.contains("elsewhere"));
    }

    #[test]
    fn sizes_are_read_as_lima_reads_them() {
        for (text, bytes) in [
            ("4GiB", Some(4 << 30)),
            ("4G", Some(4 << 30)),
            ("1.5GiB", Some((1 << 30) + (1 << 30) / 10 * 5)),
            ("512MB", Some(512 << 20)),
            ("99999999TiB", None),
            ("x", None),
        ] {
            assert_eq!(
                read_size(text),
                bytes.map(|bytes: u64| bytes.next_multiple_of(512)),
                "{text}"
            );
        }
    }
}
