//! The seed of a VM: what its first boot is told, and the agent that comes with it.

use innkeeper_image::{Seed, SeedAgent, SeedFile, SeedInterface, SeedMount};

use super::Engine;
use super::configure::{arch_of, is_switched};
use innkeeper_net::MacAddr;

use crate::error::Result;
use crate::spec::VmSpec;
use crate::store::{Bundle, Identity};

impl Engine {
    /// Writes `seed.img`.
    pub(super) fn write_seed(
        &self,
        bundle: &Bundle,
        identity: &Identity,
        name: &str,
        spec: &VmSpec,
    ) -> Result<()> {
        let asked = &spec.seed;
        let mut keys = vec![self.public_key()?];
        keys.extend(asked.ssh_keys.iter().cloned());
        let mut mounts: Vec<SeedMount> = asked
            .mounts
            .iter()
            .filter_map(|fields| mount(fields))
            .collect();
        mounts.extend(spec.disks.iter().filter_map(|disk| {
            Some(SeedMount {
                // udev names virtio disks by their serial, which is the disk's name.
                source: format!("/dev/disk/by-id/virtio-{}", disk.name),
                target: disk.mount.as_ref()?.display().to_string(),
                kind: "auto".to_owned(),
                options: vec![
                    if disk.read_only { "ro" } else { "defaults" }.to_owned(),
                    "nofail".to_owned(),
                ],
            })
        }));
        let seed = Seed {
            instance_id: identity.id.clone(),
            hostname: asked.hostname.clone().unwrap_or_else(|| name.to_owned()),
            user: identity.image.as_ref().and_then(|image| image.user.clone()),
            ssh_authorized_keys: keys,
            packages: asked.packages.clone(),
            mounts,
            write_files: asked
                .files
                .iter()
                .map(|file| SeedFile {
                    path: file.path.clone(),
                    content: file.content.clone().into_bytes(),
                    mode: Some(file.mode),
                    owner: file.owner.clone(),
                })
                .collect(),
            runcmd: asked.commands.clone(),
            network: identity
                .macs
                .iter()
                .enumerate()
                .map(|(index, mac)| SeedInterface {
                    mac: mac.to_string(),
                    // Nobody gives addresses on a network of our own yet, and waiting for one would hold the boot up.
                    dhcp4: !is_switched(spec, index),
                    dhcp6: false,
                    addresses: is_switched(spec, index)
                        .then(|| format!("{}/{}", mac.link_local(), MacAddr::LINK_LOCAL_PREFIX))
                        .into_iter()
                        .collect(),
                    gateways: Vec::new(),
                    nameservers: Vec::new(),
                })
                .collect(),
            timezone: None,
            user_data: asked.user_data.clone(),
            agent: Some(SeedAgent {
                binary: self.agents.find(arch_of(identity)?)?,
                unit: innkeeper_agent::unit::UNIT_TEXT.to_owned(),
            }),
            new_machine_id: identity.cloned.is_some(),
        };
        bundle.write_seed(&seed.volume()?)
    }
}

/// A mount as the spec writes it: device, path, and perhaps type and options.
fn mount(fields: &[String]) -> Option<SeedMount> {
    let mut fields = fields.iter().cloned();
    Some(SeedMount {
        source: fields.next()?,
        target: fields.next()?,
        kind: fields.next().unwrap_or_else(|| "auto".to_owned()),
        options: fields
            .next()
            .map(|options| options.split(',').map(str::to_owned).collect())
            .unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_seed_puts_the_agent_where_its_unit_looks_for_it() {
        assert_eq!(
            innkeeper_image::AGENT_PATH,
            innkeeper_agent::unit::AGENT_PATH
        );
        assert_eq!(
            innkeeper_image::AGENT_UNIT,
            innkeeper_agent::unit::UNIT_NAME
        );
    }
}
