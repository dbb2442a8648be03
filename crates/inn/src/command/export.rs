//! `inn export`: takes a stopped VM out, for other products or to bring it back.

use std::path::PathBuf;

use innkeeper::api::ErrorKind;
use innkeeper::{Error, ExportForm, Host};

use super::DryRun;
use crate::failure::Result;
use crate::output::Output;
use crate::reporter::Reporter;
use crate::terminal_text;
use crate::units;

/// Write a stopped VM as one file: an OVA, a disk, or a bundle that inn import brings back
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn export web web.tar.zst      all of it, compressed and with checksums; goes on where it was interrupted
  inn export web web.ova          for VirtualBox, VMware and others
  inn export web root.qcow2
  inn export web data.img --disk data
  inn export web /dev/shm/web --form bundle")]
pub(crate) struct Args {
    /// VM
    name: String,

    /// File that is made; its ending (.tar.zst, .ova, .qcow2, .raw, .img) tells the form
    #[arg(value_name = "FILE")]
    to: PathBuf,

    /// Form: bundle, ova, qcow2 or raw
    #[arg(long, value_parser = form)]
    form: Option<ExportForm>,

    /// Disk to write, for the forms of one disk; the first if none is given
    #[arg(long)]
    disk: Option<String>,

    #[command(flatten)]
    dry_run: DryRun,
}

fn form(text: &str) -> Result<ExportForm, String> {
    match text {
        "bundle" => Ok(ExportForm::Bundle),
        "ova" => Ok(ExportForm::Ova),
        "qcow2" => Ok(ExportForm::Qcow2),
        "raw" => Ok(ExportForm::Raw),
        _ => Err("write bundle, ova, qcow2 or raw".to_owned()),
    }
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let shown = self.to.display().to_string();
        let form = self.form.or_else(|| ExportForm::from_name(&self.to));
        let Some(form) = form else {
            let error = Error::new(
                ErrorKind::BadInput,
                format!("the form of {shown} is not told by its name"),
            );
            return Err(error
                .with_hint("add --form bundle, ova, qcow2 or raw")
                .into());
        };
        if self.dry_run.dry_run {
            let info = host.info(&self.name).await?;
            let step = format!("write {} (now {}) to {shown}", self.name, info.state);
            output.dry_run(&[step])?;
            return Ok(0);
        }
        let reporter = Reporter::new(output);
        let disk = self.disk.as_deref();
        let done = host
            .export(&self.name, &self.to, form, disk, &reporter)
            .await;
        reporter.finish();
        let done = done?;
        for left in &done.left_out {
            output.note(&format!("left out: {}", terminal_text::lines(left)));
        }
        output.outcome(&shown, &done, || {
            let resumed = match done.resumed_bytes {
                0 => String::new(),
                bytes => format!(", going on behind {}", units::size(bytes)),
            };
            format!("wrote {shown} ({}{resumed})", units::size(done.bytes))
        })?;
        Ok(0)
    }
}
