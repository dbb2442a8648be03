//! `inn import`: machines of other products become VMs. The plan is shown first: what maps, what does not and why.

use std::path::PathBuf;

use innkeeper::api::ErrorKind;
use innkeeper::import::ForeignFormat;
use innkeeper::spec::{Arch, Bytes, Firmware};
use innkeeper::{Error, Host, ImportOptions, ImportPlan};

use super::{DryRun, in_short};
use crate::failure::Result;
use crate::output::{Format, Output};
use crate::reporter::Reporter;
use crate::spec_flags::{arch, size};
use crate::terminal_text;
use crate::units;

/// Make a VM of a machine of another product: OVA, OVF, VirtualBox, libvirt, UTM, Lima, Vagrant, a disk alone, or a bundle of inn export
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn import web.ova --dry-run         what maps, what does not and why; nothing is made
  inn import web.ova --name web
  inn import web.xml --allow /var/lib/libvirt/images
  inn import ~/Windows.utm --firmware uefi
  inn import disk.vmdk --cpus 4 --memory 4GiB
  inn import /dev/shm/disk --format vhdx --name old
  inn import template.yaml
  inn import web.tar.zst               a bundle, as inn export writes it")]
pub(crate) struct Args {
    /// File or folder
    path: PathBuf,

    /// Name; its own, or the file's, if none is given
    #[arg(short, long)]
    name: Option<String>,

    /// The file is a disk of this format: raw, qcow2, vmdk, vdi, vhd or vhdx; where it is left out the name's ending tells what it is
    #[arg(long, value_parser = format)]
    format: Option<ForeignFormat>,

    /// What starts it: bios or uefi; what its description says if none is given
    #[arg(long, value_parser = firmware)]
    firmware: Option<Firmware>,

    /// Architecture; what its description says, or this computer's, if none is given
    #[arg(long, value_parser = arch)]
    arch: Option<Arch>,

    /// Virtual CPUs; what its description says if none are given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    cpus: Option<u32>,

    /// Memory, such as 2GiB; what its description says if none is given
    #[arg(short, long, value_name = "SIZE", value_parser = size)]
    memory: Option<Bytes>,

    /// Folder that disks may be in which the description names by absolute paths (repeatable)
    #[arg(long, value_name = "FOLDER")]
    allow: Vec<PathBuf>,

    #[command(flatten)]
    dry_run: DryRun,
}

fn format(text: &str) -> Result<ForeignFormat, String> {
    text.parse()
        .map_err(|_| "write raw, qcow2, vmdk, vdi, vhd or vhdx".to_owned())
}

fn firmware(text: &str) -> Result<Firmware, String> {
    match text {
        "bios" => Ok(Firmware::Bios),
        "uefi" => Ok(Firmware::Uefi),
        _ => Err("write bios or uefi".to_owned()),
    }
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let options = ImportOptions {
            name: self.name,
            format: self.format,
            firmware: self.firmware,
            arch: self.arch,
            cpus: self.cpus,
            memory: self.memory,
            allow: self.allow,
        };
        let plan = host.plan_import(&self.path, &options).await?;
        if self.dry_run.dry_run {
            output.data(&plan, || text(&plan))?;
            return Ok(match plan.problems.is_empty() {
                true => 0,
                false => innkeeper::exit_code(ErrorKind::BadInput),
            });
        }
        if let Some(problem) = plan.problems.first() {
            let shown = self.path.display();
            let error = Error::new(
                ErrorKind::BadInput,
                format!("can't import {shown}: {problem}"),
            );
            return Err(error
                .with_hint(format!(
                    "inn import {shown} --dry-run shows all of the plan"
                ))
                .into());
        }
        if output.format == Format::Table {
            output.note(text(&plan).trim_end());
        }
        let reporter = Reporter::new(output);
        let info = host.import(&self.path, &options, &reporter).await;
        reporter.finish();
        let info = info?;
        output.outcome(&info.name, &info, || {
            let name = &info.name;
            format!(
                "imported {name} ({}); inn start {name} starts it",
                in_short(&info)
            )
        })?;
        Ok(0)
    }
}

fn text(plan: &ImportPlan) -> String {
    let mut text = format!("{} becomes the VM {}\n", plan.source, plan.name);
    for disk in &plan.disks {
        let size = match disk.virtual_bytes {
            0 => "its size is told by unpacking it".to_owned(),
            bytes => units::size(bytes),
        };
        text.push_str(&format!(
            "disk {}: {} ({}, {size})\n",
            disk.name, disk.from, disk.format
        ));
    }
    text.push_str("spec:\n");
    for line in plan.spec.lines() {
        text.push_str(&format!("  {line}\n"));
    }
    if !plan.unmapped.is_empty() {
        text.push_str("not as it was:\n");
    }
    for unmapped in &plan.unmapped {
        text.push_str(&format!("  {}: {}\n", unmapped.what, unmapped.why));
    }
    if !plan.problems.is_empty() {
        text.push_str("it can't be done:\n");
    }
    for problem in &plan.problems {
        text.push_str(&format!("  {problem}\n"));
    }
    // All of it comes from a file that may be hostile.
    terminal_text::lines(&text)
}
