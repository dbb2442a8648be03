//! The parts of a VM that its spec may change after creation: disks that grow or come anew, interfaces that come or go.

use std::path::PathBuf;

use innkeeper_api::ErrorKind;
use innkeeper_image::disk;
use innkeeper_net::MacAddr;

use crate::error::{Error, Result};
use crate::spec::{DiskFormat, DiskSpec, NetworkSpec, VmSpec};
use crate::store::{Bundle, Identity, IdentityDisk};

/// Makes an empty disk in a bundle; formatted if the spec says where it is mounted.
pub(crate) async fn make_empty_disk(bundle: &Bundle, disk: &DiskSpec) -> Result<IdentityDisk> {
    let Some(size) = disk.size else {
        return Err(Error::new(
            ErrorKind::BadInput,
            format!(
                "disks.{}: no size is given and no image to take it from",
                disk.name
            ),
        )
        .with_hint("add `size: 20GiB`, or `path` and `format` of an existing file"));
    };
    let file = PathBuf::from(format!("disks/{}.raw", disk.name));
    let path = bundle.path(&file);
    match disk.mount {
        Some(_) => innkeeper_image::make_ext4(&path, size.get(), &disk.name).await?,
        None => disk::create(&path, DiskFormat::Raw, size.get()).await?,
    }
    Ok(IdentityDisk {
        name: disk.name.clone(),
        file,
        format: DiskFormat::Raw.to_string(),
        backing_format: None,
        layer: None,
        size: size.get(),
    })
}

/// Returns the MAC address of an interface: the one that is asked for, or a random one.
pub(crate) fn mac_address(network: &NetworkSpec) -> Result<MacAddr> {
    if let Some(mac) = network.mac {
        return Ok(mac);
    }
    random_mac()
}

/// Makes a random MAC address.
pub(crate) fn random_mac() -> Result<MacAddr> {
    let mut bytes = [0u8; 6];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Failure, "can't read random numbers").with_source(error)
    })?;
    Ok(MacAddr::from_random(bytes))
}

/// Brings a stopped VM's parts to what its spec asks for: disks grow, disks and interfaces that are new are made. The caller holds the VM's lock.
///
/// After a crash in the middle it can be repeated: a disk that exists but is not in the identity is made anew, one that has grown already is left.
pub(crate) async fn reconcile(
    bundle: &Bundle,
    identity: &Identity,
    spec: &VmSpec,
) -> Result<Identity> {
    let mut wanted = identity.clone();
    for asked in spec.disks.iter().filter(|disk| disk.is_own()) {
        match wanted.disks.iter_mut().find(|own| own.name == asked.name) {
            Some(own) => {
                let Some(size) = asked.size.filter(|size| size.get() > own.size) else {
                    continue;
                };
                let format: DiskFormat = own.format.parse()?;
                disk::resize(
                    &bundle.path(&own.file),
                    format,
                    size.get(),
                    disk::Shrink::Refuse,
                )
                .await?;
                own.size = size.get();
            }
            None => {
                let leftover = bundle.path(format!("disks/{}.raw", asked.name));
                match std::fs::remove_file(&leftover) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io(
                            format!("can't remove {}", leftover.display()),
                            error,
                        ));
                    }
                    _ => {}
                }
                wanted.disks.push(make_empty_disk(bundle, asked).await?);
            }
        }
    }
    wanted.macs.truncate(spec.networks.len());
    for (index, network) in spec.networks.iter().enumerate() {
        match (wanted.macs.get_mut(index), network.mac) {
            (Some(own), Some(asked)) => *own = asked,
            (Some(_), None) => {}
            (None, _) => wanted.macs.push(mac_address(network)?),
        }
    }
    if wanted != *identity {
        bundle.write_identity(&wanted)?;
    }
    Ok(wanted)
}
