//! `inn disk attach`, `detach`, `insert`, `eject`: the disks of a VM, now if it runs, and in its spec.

use std::path::PathBuf;

use innkeeper::spec::{Bytes, DiskBus, DiskFormat, DiskSpec};
use innkeeper::{Error, Host, SpecChange};

use super::set;
use super::{DetachFlags, DryRun};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::spec_flags::size;

/// Attach a disk to a VM; at once if it runs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn disk attach web /srv/data.qcow2
  inn disk attach web --name scratch --size 10GiB
  inn disk attach web /srv/stick.img --format raw --bus usb --read-only")]
pub(crate) struct Attach {
    /// VM
    vm: String,
    /// Disk file; none for a new empty disk of the VM's own, with --size
    #[arg(required_unless_present = "size")]
    path: Option<PathBuf>,
    /// Format of the file, qcow2 or raw, if its name does not tell; never guessed from what is in it
    #[arg(long, value_parser = super::disk::format)]
    format: Option<DiskFormat>,
    /// Size of a new disk
    #[arg(long, value_parser = size, conflicts_with_all = ["path", "format"], requires = "name")]
    size: Option<Bytes>,
    /// Name of the disk in the spec; by default from the file's name
    #[arg(long)]
    name: Option<String>,
    /// What the guest sees it as
    #[arg(long, value_enum, default_value = "virtio")]
    bus: Bus,
    /// Let the guest only read it
    #[arg(long)]
    read_only: bool,
    #[command(flatten)]
    dry_run: DryRun,
}

/// What a guest sees a disk as.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Bus {
    Virtio,
    Nvme,
    Usb,
}

/// Detach a disk file from a VM; at once if it runs, when its guest lets go
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn disk detach web data
  inn disk detach web data --timeout 5s")]
pub(crate) struct Detach {
    /// VM
    vm: String,
    /// Name of the disk in the spec
    disk: String,
    #[command(flatten)]
    how: DetachFlags,
}

/// Put a medium into a VM's drive (a disk with `removable: true`)
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn disk insert web cd /srv/debian.iso")]
pub(crate) struct Insert {
    /// VM
    vm: String,
    /// Name of the drive in the spec
    drive: String,
    /// Medium
    path: PathBuf,
    /// Format of the medium: raw or qcow2
    #[arg(long, value_parser = super::disk::format, default_value = "raw")]
    format: DiskFormat,
    #[command(flatten)]
    dry_run: DryRun,
}

/// Take the medium out of a VM's drive
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn disk eject web cd")]
pub(crate) struct Eject {
    /// VM
    vm: String,
    /// Name of the drive in the spec
    drive: String,
    #[command(flatten)]
    dry_run: DryRun,
}

impl Attach {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<()> {
        let path = self.path.map(absolute).transpose()?;
        let name = match (self.name, &path) {
            (Some(name), _) => name,
            (None, Some(path)) => name_of(path),
            (None, None) => return Err(Failure::usage("give the new disk a name with --name")),
        };
        let format = path
            .as_deref()
            .map(|path| super::disk::named(path, self.format, "--format"))
            .transpose()?;
        let disk = DiskSpec {
            size: self.size,
            path,
            format,
            read_only: self.read_only,
            bus: match self.bus {
                Bus::Virtio => DiskBus::Virtio,
                Bus::Nvme => DiskBus::Nvme,
                Bus::Usb => DiskBus::Usb,
            },
            ..DiskSpec::named(&name)
        };
        let dry_run = self.dry_run.dry_run;
        let change = host.attach_disk(&self.vm, &disk, dry_run).await?;
        tell(&self.vm, &change, dry_run, "attached", &name, output)
    }
}

impl Detach {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<()> {
        let options = self.how.options();
        let change = host.detach_disk(&self.vm, &self.disk, options).await?;
        let dry_run = options.dry_run;
        tell(&self.vm, &change, dry_run, "detached", &self.disk, output)
    }
}

impl Insert {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<()> {
        let dry_run = self.dry_run.dry_run;
        let path = absolute(self.path)?;
        let change = host
            .insert_medium(&self.vm, &self.drive, &path, self.format, dry_run)
            .await?;
        let what = path.display().to_string();
        tell(&self.vm, &change, dry_run, "inserted", &what, output)
    }
}

impl Eject {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<()> {
        let dry_run = self.dry_run.dry_run;
        let change = host.eject_medium(&self.vm, &self.drive, dry_run).await?;
        let what = format!("what was in {}", self.drive);
        tell(&self.vm, &change, dry_run, "ejected", &what, output)
    }
}

/// Says what was done.
pub(crate) fn tell(
    vm: &str,
    change: &SpecChange,
    dry_run: bool,
    done: &str,
    what: &str,
    output: &Output,
) -> Result<()> {
    if dry_run {
        return output.dry_run(&set::steps(change));
    }
    output.outcome(vm, change, || {
        let when = if change.changed.is_empty() {
            "; it was like that before"
        } else if change.restart_required.is_empty() {
            ""
        } else {
            ", from its next start"
        };
        format!("{done} {what}: {vm}{when}")
    })
}

/// Makes a file's path whole: the spec is read by programs in other folders too.
fn absolute(path: PathBuf) -> Result<PathBuf> {
    let cannot = |source| Error::io(format!("can't find {}", path.display()), source);
    Ok(std::path::absolute(&path).map_err(cannot)?)
}

/// Makes a disk's name of a file's: `/srv/My data.qcow2` becomes `my-data`.
fn name_of(path: &std::path::Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let plain: String = stem
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(20)
        .collect();
    match plain.trim_matches('-') {
        "" => "disk".to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_makes_a_disks_name() {
        for (path, name) in [
            ("/srv/My data.qcow2", "my-data"),
            ("/é.img", "disk"),
            ("/a-very-long-name-of-a-disk.raw", "a-very-long-name-of"),
        ] {
            assert_eq!(name_of(path.as_ref()), name);
        }
    }
}
