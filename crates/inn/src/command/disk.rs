//! `inn disk`: disk files, apart from any VM. Formats are always named, by a flag or by the end of the file's name, and never guessed from
//! what is in a file: a guest could have written it.

use std::path::PathBuf;

use innkeeper::spec::{Bytes, DiskFormat};
use innkeeper::{DiskCheck, DiskFile, Host, Shrinking};

use super::{DryRun, Yes, disk_of_vm};
use crate::confirm::confirm;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::reporter::Reporter;
use crate::spec_flags::size;
use crate::table::Block;
use crate::units;

/// Disk files: make, grow, convert, look at; attach them to VMs
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Disk {
    /// Make an empty disk file
    #[command(after_help = "Examples:
  inn disk create data.qcow2 20GiB
  inn disk create data.img 1GiB --format raw")]
    Create {
        /// File that is made
        path: PathBuf,
        /// Size that a guest sees
        #[arg(value_parser = size)]
        size: Bytes,
        /// Format: qcow2 or raw
        #[arg(long, value_parser = format, default_value = "qcow2")]
        format: DiskFormat,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Change the size of a disk file that no VM uses now
    #[command(after_help = "Examples:
  inn disk resize data.qcow2 40GiB
  inn disk resize data.img 512MiB --shrink --yes")]
    Resize {
        /// Disk file
        path: PathBuf,
        /// New size
        #[arg(value_parser = size)]
        size: Bytes,
        /// Format of the file: qcow2 or raw; where it is left out the file's name must end in .qcow2, .raw or .img
        #[arg(long, value_parser = format)]
        format: Option<DiskFormat>,
        /// Allow a smaller size, if what is on the disk ends before it
        #[arg(long)]
        shrink: bool,
        /// Cut it off without looking at what is on it: what is beyond the new size is lost
        #[arg(long, requires = "shrink")]
        unchecked: bool,
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Write a disk file anew in another format
    #[command(after_help = "Examples:
  inn disk convert data.img data.qcow2
  inn disk convert /dev/vg/data data.qcow2 --from raw")]
    Convert {
        /// Disk file that is read
        source: PathBuf,
        /// File that is made
        target: PathBuf,
        /// Format of the one that is read; where it is left out its name must tell
        #[arg(long, value_parser = format, value_name = "FORMAT")]
        from: Option<DiskFormat>,
        /// Format of the one that is made; where it is left out its name must tell
        #[arg(long, value_parser = format, value_name = "FORMAT")]
        to: Option<DiskFormat>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Show what a disk file is
    #[command(
        visible_alias = "inspect",
        after_help = "Examples:
  inn disk info data.qcow2
  inn disk info /dev/vg/data --format raw -o json"
    )]
    Info {
        /// Disk file
        path: PathBuf,
        /// Format of the file: qcow2 or raw; where it is left out the file's name must end in .qcow2, .raw or .img
        #[arg(long, value_parser = format)]
        format: Option<DiskFormat>,
    },
    /// Check a disk file that no VM uses now; exit code 1 if something is wrong with it
    #[command(after_help = "Examples:
  inn disk check data.qcow2
  inn disk check data.qcow2 --repair")]
    Check {
        /// Disk file
        path: PathBuf,
        /// Format of the file: qcow2 or raw; where it is left out the file's name must end in .qcow2, .raw or .img
        #[arg(long, value_parser = format)]
        format: Option<DiskFormat>,
        /// Mend what can be mended
        #[arg(long)]
        repair: bool,
    },
    /// Give back the space in a disk file that is unused or zero; what a guest sees stays the same
    #[command(after_help = "Examples:
  inn disk compact data.qcow2")]
    Compact {
        /// Disk file
        path: PathBuf,
        /// Format of the file: qcow2 or raw; where it is left out the file's name must end in .qcow2, .raw or .img
        #[arg(long, value_parser = format)]
        format: Option<DiskFormat>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Remove a disk file that no VM has
    #[command(visible_aliases = ["delete", "remove"], after_help = "Examples:
  inn disk rm data.qcow2 --yes")]
    Rm {
        /// Disk file
        path: PathBuf,
        /// Format of the file: qcow2 or raw; where it is left out the file's name must end in .qcow2, .raw or .img
        #[arg(long, value_parser = format)]
        format: Option<DiskFormat>,
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        dry_run: DryRun,
    },
    Attach(disk_of_vm::Attach),
    Detach(disk_of_vm::Detach),
    Insert(disk_of_vm::Insert),
    Eject(disk_of_vm::Eject),
}

impl Disk {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        match self {
            Disk::Attach(args) => args.run(host, output).await?,
            Disk::Detach(args) => args.run(host, output).await?,
            Disk::Insert(args) => args.run(host, output).await?,
            Disk::Eject(args) => args.run(host, output).await?,
            Disk::Create {
                path,
                size,
                format,
                dry_run,
            } => {
                if dry_run.dry_run {
                    must_not_exist(&path)?;
                    let format = word(format);
                    output.dry_run(&[format!("make {} ({format}, {size})", path.display())])?;
                    return Ok(0);
                }
                made(
                    "made",
                    &host.disk_create(&path, size, format).await?,
                    output,
                )?;
            }
            Disk::Resize {
                path,
                size,
                format,
                shrink,
                unchecked,
                yes,
                dry_run,
            } => {
                let format = named(&path, format, "--format")?;
                let now = host.disk_info(&path, format).await?;
                let (old, shown) = (units::size(now.virtual_bytes), path.display());
                if dry_run.dry_run {
                    output.dry_run(&[format!("change {shown} from {old} to {size}")])?;
                    return Ok(0);
                }
                if shrink && size.get() < now.virtual_bytes {
                    confirm(
                        &format!("cut {shown} from {old} to {size}, losing the rest?"),
                        yes.yes,
                    )?;
                }
                let shrinking = match (shrink, unchecked) {
                    (false, _) => Shrinking::Refuse,
                    (true, false) => Shrinking::Checked,
                    (true, true) => Shrinking::Unchecked,
                };
                let file = host.disk_resize(&path, format, size, shrinking).await?;
                made("resized", &file, output)?;
            }
            Disk::Convert {
                source,
                target,
                from,
                to,
                dry_run,
            } => {
                let from = named(&source, from, "--from")?;
                let to = named(&target, to, "--to")?;
                if dry_run.dry_run {
                    let file = host.disk_info(&source, from).await?;
                    must_not_exist(&target)?;
                    let size = units::size(file.virtual_bytes);
                    let (source, target) = (source.display(), target.display());
                    let step = format!("write {source} ({size}) as {} to {target}", word(to));
                    output.dry_run(&[step])?;
                    return Ok(0);
                }
                let reporter = Reporter::new(output);
                let file = host
                    .disk_convert(&source, from, &target, to, &reporter)
                    .await;
                reporter.finish();
                made("wrote", &file?, output)?;
            }
            Disk::Info { path, format } => {
                let format = named(&path, format, "--format")?;
                let file = host.disk_info(&path, format).await?;
                output.data(&file, || block(&file))?;
            }
            Disk::Check {
                path,
                format,
                repair,
            } => {
                let format = named(&path, format, "--format")?;
                let check = host.disk_check(&path, format, repair).await?;
                output.outcome(&path.display().to_string(), &check, || verdict(&check))?;
                return Ok(if check.is_sound() { 0 } else { 1 });
            }
            Disk::Compact {
                path,
                format,
                dry_run,
            } => compact(&path, format, dry_run, host, output).await?,
            Disk::Rm {
                path,
                format,
                yes,
                dry_run,
            } => {
                let format = named(&path, format, "--format")?;
                let file = host.disk_remove(&path, format, true).await?;
                let what = format!("{} ({})", path.display(), units::size(file.virtual_bytes));
                if dry_run.dry_run {
                    output.dry_run(&[format!("remove {what}")])?;
                    return Ok(0);
                }
                confirm(&format!("remove {what}?"), yes.yes)?;
                let file = host.disk_remove(&path, format, false).await?;
                made("removed", &file, output)?;
            }
        }
        Ok(0)
    }
}

/// Reads a format's word.
pub(crate) fn format(text: &str) -> Result<DiskFormat, String> {
    match text {
        "raw" => Ok(DiskFormat::Raw),
        "qcow2" => Ok(DiskFormat::Qcow2),
        _ => Err("write raw or qcow2".to_owned()),
    }
}

/// Returns the format of a file: as the flag says, else as the end of its name does.
pub(crate) fn named(
    path: &std::path::Path,
    format: Option<DiskFormat>,
    flag: &str,
) -> Result<DiskFormat> {
    format
        .or_else(|| DiskFormat::from_extension(path))
        .ok_or_else(|| {
            let message = format!("the format of {} is not told by its name", path.display());
            let error = innkeeper::Error::new(innkeeper::api::ErrorKind::BadInput, message);
            let hint =
                format!("add {flag} raw or {flag} qcow2; it is not guessed from the content");
            Failure::from(error.with_hint(hint))
        })
}

fn word(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

fn must_not_exist(path: &std::path::Path) -> Result<()> {
    if std::fs::symlink_metadata(path).is_ok() {
        let message = format!("{} exists already", path.display());
        let kind = innkeeper::api::ErrorKind::Conflict;
        return Err(Failure::from(innkeeper::Error::new(kind, message)));
    }
    Ok(())
}

fn made(verb: &str, file: &DiskFile, output: &Output) -> Result<()> {
    let path = file.path.display().to_string();
    output.outcome(&path, file, || {
        let size = units::size(file.virtual_bytes);
        format!("{verb} {path} ({}, {size})", file.format)
    })
}

async fn compact(
    path: &std::path::Path,
    format: Option<DiskFormat>,
    dry_run: DryRun,
    host: &Host,
    output: &Output,
) -> Result<()> {
    let format = named(path, format, "--format")?;
    if dry_run.dry_run {
        let size = units::size(host.disk_info(path, format).await?.actual_bytes);
        return output.dry_run(&[format!(
            "write {} anew, which takes {size} now, without what is unused",
            path.display()
        )]);
    }
    let reporter = Reporter::new(output);
    let done = host.disk_compact(path, format, &reporter).await;
    reporter.finish();
    let (before, file) = done?;
    output.outcome(&path.display().to_string(), &file, || {
        let (before, after) = (units::size(before), units::size(file.actual_bytes));
        format!("compacted {} from {before} to {after}", path.display())
    })
}

fn verdict(check: &DiskCheck) -> String {
    let shown = check.path.display();
    if check.is_sound() {
        return match check.format.as_str() {
            "raw" => format!("{shown} is sound: a raw disk has no metadata that could be damaged"),
            _ => format!("{shown} is sound"),
        };
    }
    format!(
        "{shown} is not sound: {} errors, {} clusters that nothing uses, {} places that could not be checked; --repair mends what it can",
        check.corruptions, check.leaks, check.check_errors
    )
}

fn block(file: &DiskFile) -> String {
    let mut block = Block::default();
    block
        .line("file", file.path.display().to_string())
        .line("format", &file.format)
        .line("size", units::size(file.virtual_bytes))
        .line("on disk", units::size(file.actual_bytes))
        .optional(
            "over",
            file.backing.as_ref().map(|path| path.display().to_string()),
        );
    block.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_a_disk() {
        let file = DiskFile {
            path: "data.qcow2".into(),
            format: "qcow2".into(),
            virtual_bytes: 20 << 30,
            actual_bytes: 200 << 10,
            backing: Some("/layers/ab".into()),
        };
        assert_eq!(
            block(&file),
            "file:    data.qcow2\nformat:  qcow2\nsize:    20GiB\non disk: 200KiB\nover:    /layers/ab\n"
        );
    }

    #[test]
    fn a_format_is_told_by_the_flag_or_the_name() {
        let named = |path: &str, format| named(path.as_ref(), format, "--format").ok();
        assert_eq!(named("a.qcow2", None), Some(DiskFormat::Qcow2));
        assert_eq!(named("a.IMG", None), Some(DiskFormat::Raw));
        assert_eq!(
            named("a.qcow2", Some(DiskFormat::Raw)),
            Some(DiskFormat::Raw)
        );
        for path in ["a", "a.vmdk", ".qcow2", "qcow2", "a.qcow2.bak"] {
            assert_eq!(named(path, None), None, "{path}");
        }
    }

    #[test]
    fn formats_are_words() {
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            assert_eq!(super::format(word(format)), Ok(format));
        }
        assert!(super::format("vmdk").is_err());
    }
}
