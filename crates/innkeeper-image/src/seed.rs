//! The NoCloud seed: a small FAT volume labelled `cidata`, from which cloud-init configures a guest at boot.
//!
//! The volume has `user-data`, `meta-data`, `network-config` and `vendor-data` and, where asked for, the guest agent with its systemd unit.
//! The agent is installed by argv lists in `bootcmd`, which run early and at every boot, so an unmodified cloud image has
//! it before its network is up. Documents are JSON, which is YAML: no string can break out (yaml.rs). What a user gives as own user-data is merged
//! by user_data.rs. FAT and not ISO 9660, because every cloud image reads both and one crate writes it whole in memory in a millisecond.

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::{Error, Result, atomic, user_data, yaml};

/// Where the agent is installed in a guest.
pub const AGENT_PATH: &str = "/usr/local/sbin/inn-agent";
/// Name of the agent's systemd unit.
pub const AGENT_UNIT: &str = "inn-agent.service";
const MOUNT_POINT: &str = "/run/innkeeper/seed";
/// Largest volume: an agent and generous files.
const SIZE_LIMIT: usize = 256 << 20;

/// A file that cloud-init writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedFile {
    /// Absolute path in the guest.
    pub path: String,
    /// Any bytes.
    pub content: Vec<u8>,
    /// Permission bits; 0644 if not given.
    pub mode: Option<u32>,
    /// `user:group`; written after users exist.
    pub owner: Option<String>,
}

/// A mount that goes to the guest's fstab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedMount {
    /// Device, `LABEL=…`, or a virtiofs tag.
    pub source: String,
    /// Absolute path in the guest.
    pub target: String,
    /// File system type, such as `ext4` or `virtiofs`.
    pub kind: String,
    /// Mount options; `nofail` keeps a missing one from stopping the boot.
    pub options: Vec<String>,
}

/// One network interface, found by its MAC address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedInterface {
    /// `52:54:00:…`.
    pub mac: String,
    /// Asks for an IPv4 address; also where `addresses` is empty.
    pub dhcp4: bool,
    /// Asks for an IPv6 address.
    pub dhcp6: bool,
    /// Fixed addresses with prefix, such as `10.0.0.5/24`.
    pub addresses: Vec<String>,
    /// Default routes' gateways.
    pub gateways: Vec<String>,
    /// DNS servers.
    pub nameservers: Vec<String>,
}

/// The agent that comes by the seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedAgent {
    /// The static binary on this host.
    pub binary: PathBuf,
    /// Text of the systemd unit; its `ExecStart` is [`AGENT_PATH`].
    pub unit: String,
}

/// What a guest is to be at its first boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// Changes make cloud-init run anew: the VM's identity, and a new one for a clone.
    pub instance_id: String,
    /// The guest's name.
    pub hostname: String,
    /// The user to make, with sudo; without it the image's default user gets the keys.
    pub user: Option<String>,
    /// Public keys, one line each.
    pub ssh_authorized_keys: Vec<String>,
    /// Packages to install.
    pub packages: Vec<String>,
    /// Mounts.
    pub mounts: Vec<SeedMount>,
    /// Files.
    pub write_files: Vec<SeedFile>,
    /// Commands at the first boot, each an argv list.
    pub runcmd: Vec<Vec<String>>,
    /// Interfaces; if empty, the image's own default (DHCP on the first) holds.
    pub network: Vec<SeedInterface>,
    /// Such as `Europe/Berlin`.
    pub timezone: Option<String>,
    /// The user's own user-data: `#cloud-config`, or a script.
    pub user_data: Option<String>,
    /// The agent.
    pub agent: Option<SeedAgent>,
    /// Whether the disk is that of another guest, whose machine id must not be this one's too.
    pub new_machine_id: bool,
}

impl Seed {
    /// The files of the volume, in the order they are written.
    pub fn files(&self) -> Result<BTreeMap<&'static str, Vec<u8>>> {
        let mut files = BTreeMap::new();
        let user_data = user_data::combine(self.cloud_config()?, self.user_data.as_deref())?;
        files.insert("user-data", user_data.into_bytes());
        let meta = json!({"instance-id": self.instance_id, "local-hostname": self.hostname});
        files.insert("meta-data", yaml::emit(&meta).into_bytes());
        files.insert("vendor-data", b"#cloud-config\n{}\n".to_vec());
        if !self.network.is_empty() {
            files.insert(
                "network-config",
                yaml::emit(&self.network_config()?).into_bytes(),
            );
        }
        if let Some(agent) = &self.agent {
            files.insert(
                "inn-agent",
                std::fs::read(&agent.binary).map_err(Error::io("read the agent", &agent.binary))?,
            );
            files.insert(AGENT_UNIT, agent.unit.clone().into_bytes());
        }
        Ok(files)
    }

    /// Makes the volume. It may hold secrets.
    pub fn volume(&self) -> Result<Vec<u8>> {
        volume(&self.files()?).map_err(Error::io("make the seed", Path::new("cidata")))
    }

    /// Writes the volume (mode 0600), replacing an older one whole.
    pub fn write(&self, path: &Path) -> Result<()> {
        atomic::write(path, &self.volume()?, 0o600)
    }

    fn cloud_config(&self) -> Result<Map<String, Value>> {
        let mut config = Map::new();
        let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
        if !self.hostname.is_empty() {
            set("hostname", json!(self.hostname));
            set("preserve_hostname", json!(false));
            set("manage_etc_hosts", json!(true));
        }
        set("ssh_pwauth", json!(false));
        match &self.user {
            Some(name) => {
                if name.is_empty()
                    || name.len() > 32
                    || name.starts_with('-')
                    || name.contains([':', '/', ','])
                    || name.chars().any(|c| c.is_control() || c.is_whitespace())
                {
                    return Err(Error::invalid(
                        "user name",
                        name,
                        "must be 1 to 32 bytes without spaces, ':', ',' and '/'",
                    ));
                }
                let user = json!({
                    "name": name,
                    "shell": "/bin/bash",
                    "groups": ["sudo", "adm"],
                    "sudo": "ALL=(ALL) NOPASSWD:ALL",
                    "lock_passwd": true,
                    "ssh_authorized_keys": self.ssh_authorized_keys,
                });
                set("users", json!([user]));
            }
            None => {
                set("users", json!(["default"]));
                set("ssh_authorized_keys", json!(self.ssh_authorized_keys));
            }
        }
        if let Some(timezone) = &self.timezone {
            set("timezone", json!(timezone));
        }
        if !self.packages.is_empty() {
            set("package_update", json!(true));
            set("packages", json!(self.packages));
        }
        if !self.mounts.is_empty() {
            let mounts: Vec<Value> = self
                .mounts
                .iter()
                .map(|mount| {
                    let options = if mount.options.is_empty() {
                        "defaults,nofail".to_owned()
                    } else {
                        mount.options.join(",")
                    };
                    json!([mount.source, mount.target, mount.kind, options, "0", "0"])
                })
                .collect();
            set("mounts", json!(mounts));
        }
        if !self.write_files.is_empty() {
            set(
                "write_files",
                Value::Array(self.write_files.iter().map(SeedFile::to_json).collect()),
            );
        }
        if !self.runcmd.is_empty() {
            set("runcmd", json!(self.runcmd));
        }
        let mut early: Vec<Vec<String>> = Vec::new();
        if self.new_machine_id {
            early.extend(machine_id_commands());
        }
        if self.agent.is_some() {
            early.extend(agent_commands());
        }
        if !early.is_empty() {
            set("bootcmd", json!(early));
        }
        Ok(config)
    }

    fn network_config(&self) -> Result<Value> {
        let mut ethernets = Map::new();
        for (index, interface) in self.network.iter().enumerate() {
            let mac = interface.mac.to_ascii_lowercase();
            let valid = mac.split(':').count() == 6
                && mac.split(':').all(|part| crate::digest::is_hex(part, 2));
            if !valid {
                return Err(Error::invalid(
                    "MAC address",
                    &interface.mac,
                    "must be six pairs of hexadecimal digits with colons",
                ));
            }
            let mut entry = json!({
                "match": {"macaddress": mac},
                "dhcp4": interface.dhcp4 || (interface.addresses.is_empty() && !interface.dhcp6),
                "dhcp6": interface.dhcp6,
                // The DHCP server knows the VM by its MAC address, also after a clone's machine-id changed.
                "dhcp-identifier": "mac",
            });
            if !interface.addresses.is_empty() {
                entry["addresses"] = json!(interface.addresses);
            }
            if !interface.gateways.is_empty() {
                let to = |gateway: &String| {
                    if gateway.contains(':') {
                        "::/0"
                    } else {
                        "0.0.0.0/0"
                    }
                };
                entry["routes"] = interface
                    .gateways
                    .iter()
                    .map(|gateway| json!({"to": to(gateway), "via": gateway}))
                    .collect();
            }
            if !interface.nameservers.is_empty() {
                entry["nameservers"] = json!({"addresses": interface.nameservers});
            }
            ethernets.insert(format!("nic{index}"), entry);
        }
        Ok(json!({"version": 2, "ethernets": ethernets}))
    }
}

impl SeedFile {
    fn to_json(&self) -> Value {
        use base64::Engine;
        let mut file = json!({
            "path": self.path,
            "encoding": "b64",
            "content": base64::engine::general_purpose::STANDARD.encode(&self.content),
            "permissions": format!("{:04o}", self.mode.unwrap_or(0o644) & 0o7777),
        });
        if let Some(owner) = &self.owner {
            file["owner"] = json!(owner);
            file["defer"] = json!(true);
        }
        file
    }
}

/// Gives the guest a machine id of its own, once for each instance id (cloud-init-per(1)).
fn machine_id_commands() -> Vec<Vec<String>> {
    let once = ["cloud-init-per", "instance"];
    let forget = ["inn-forget-machine-id", "rm", "-f", "/etc/machine-id"];
    let make = ["inn-make-machine-id", "systemd-machine-id-setup"];
    [forget.as_slice(), make.as_slice()]
        .map(|words| {
            once.iter()
                .chain(words)
                .map(|word| (*word).to_owned())
                .collect()
        })
        .into()
}

/// Installs and starts the agent; a boot without the seed still starts what was installed before.
fn agent_commands() -> Vec<Vec<String>> {
    let binary = format!("{MOUNT_POINT}/inn-agent");
    let unit = format!("{MOUNT_POINT}/{AGENT_UNIT}");
    let unit_target = format!("/etc/systemd/system/{AGENT_UNIT}");
    [
        vec!["mkdir", "-p", MOUNT_POINT],
        vec!["mount", "-o", "ro", "LABEL=cidata", MOUNT_POINT],
        vec!["install", "-D", "-m", "0755", &binary, AGENT_PATH],
        vec!["install", "-D", "-m", "0644", &unit, &unit_target],
        vec!["umount", MOUNT_POINT],
        vec!["systemctl", "daemon-reload"],
        vec!["systemctl", "enable", AGENT_UNIT],
        vec!["systemctl", "start", "--no-block", AGENT_UNIT],
    ]
    .into_iter()
    .map(|command| command.into_iter().map(str::to_owned).collect())
    .collect()
}

fn volume(files: &BTreeMap<&'static str, Vec<u8>>) -> std::io::Result<Vec<u8>> {
    let content: usize = files
        .values()
        .map(|bytes| bytes.len().next_multiple_of(4096))
        .sum();
    if content > SIZE_LIMIT {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            "the seed's files are over 256 MiB",
        ));
    }
    // Room for two FATs (4 bytes for each cluster of 4 KiB at most) and the root directory.
    let size = (content + content / 256 + (1 << 20)).next_multiple_of(1 << 20);
    let mut disk = Cursor::new(vec![0; size]);
    let options = fatfs::FormatVolumeOptions::new()
        .volume_label(*b"cidata     ")
        .volume_id(0x1a2b_3c4d)
        .bytes_per_cluster(4096);
    fatfs::format_volume(&mut disk, options)?;
    {
        let file_system = fatfs::FileSystem::new(
            &mut disk,
            fatfs::FsOptions::new().update_accessed_date(false),
        )?;
        let root = file_system.root_dir();
        for (name, bytes) in files {
            let mut file = root.create_file(name)?;
            file.write_all(bytes)?;
            file.flush()?;
        }
    }
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn seed() -> Seed {
        Seed {
            instance_id: "i-1".into(),
            hostname: "web".into(),
            user: Some("ada".into()),
            ssh_authorized_keys: vec!["ssh-ed25519 AAAA ada@host".into()],
            packages: vec!["htop".into()],
            mounts: vec![SeedMount {
                source: "share0".into(),
                target: "/src".into(),
                kind: "virtiofs".into(),
                options: vec![],
            }],
            write_files: vec![SeedFile {
                path: "/etc/x".into(),
                content: b"\x00\xff".to_vec(),
                mode: Some(0o600),
                owner: None,
            }],
            runcmd: vec![vec!["echo".into(), "a b; $(c)".into()]],
            network: vec![SeedInterface {
                mac: "52:54:00:00:00:01".into(),
                dhcp4: true,
                ..SeedInterface::default()
            }],
            timezone: Some("Europe/Berlin".into()),
            ..Seed::default()
        }
    }

    #[test]
    fn a_clone_gets_a_machine_id_before_its_agent() {
        let seed = Seed {
            new_machine_id: true,
            ..Seed::default()
        };
        let config = seed.cloud_config().unwrap();
        let expected = json!([
            [
                "cloud-init-per",
                "instance",
                "inn-forget-machine-id",
                "rm",
                "-f",
                "/etc/machine-id"
            ],
            [
                "cloud-init-per",
                "instance",
                "inn-make-machine-id",
                "systemd-machine-id-setup"
            ],
        ]);
        assert_eq!(config["bootcmd"], expected);
    }

    #[test]
    fn the_documents() {
        let files = seed().files().unwrap();
        let mut text = String::new();
        for (name, bytes) in &files {
            text.push_str(&format!("--- {name}\n{}\n", String::from_utf8_lossy(bytes)));
        }
        insta::assert_snapshot!(text);
    }

    #[test]
    fn the_volume_reads_back_with_its_label() {
        let directory = tempfile::tempdir().unwrap();
        let agent = directory.path().join("agent");
        std::fs::write(&agent, vec![7; 3 << 20]).unwrap();
        let seed = Seed {
            agent: Some(SeedAgent {
                binary: agent,
                unit: "[Unit]\n".into(),
            }),
            ..seed()
        };
        let path = directory.path().join("seed.img");
        seed.write(&path).unwrap();
        let file_system = fatfs::FileSystem::new(
            std::fs::File::options()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap(),
            fatfs::FsOptions::new(),
        )
        .unwrap();
        assert_eq!(
            file_system
                .read_volume_label_from_root_dir()
                .unwrap()
                .as_deref(),
            Some("cidata")
        );
        let mut bytes = Vec::new();
        file_system
            .root_dir()
            .open_file("inn-agent")
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(bytes, vec![7; 3 << 20]);
    }

    #[test]
    fn bad_macs_and_users_are_refused() {
        let mut bad = seed();
        bad.network[0].mac = "52:54".into();
        assert!(bad.files().unwrap_err().to_string().contains("MAC address"));
        assert!(
            Seed {
                user: Some("a b".into()),
                ..seed()
            }
            .files()
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn every_string_arrives_as_it_is(hostname in ".{0,40}", key in any::<String>(), word in any::<String>()) {
            let seed = Seed { hostname: hostname.clone(), ssh_authorized_keys: vec![key.clone()], runcmd: vec![vec![word.clone()]], ..Seed::default() };
            let files = seed.files().unwrap();
            let text = String::from_utf8(files["user-data"].clone()).unwrap();
            prop_assert!(text.starts_with("#cloud-config\n"));
            let parsed: Value = serde_saphyr::from_str(&text).unwrap();
            prop_assert_eq!(&parsed["ssh_authorized_keys"][0], &json!(key));
            prop_assert_eq!(&parsed["runcmd"][0][0], &json!(word));
            let meta: Value = serde_saphyr::from_str(&String::from_utf8(files["meta-data"].clone()).unwrap()).unwrap();
            prop_assert_eq!(&meta["local-hostname"], &json!(hostname));
        }
    }
}
