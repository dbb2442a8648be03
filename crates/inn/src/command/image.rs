//! `inn image`: the images in the store, and those that can be had.

use std::path::PathBuf;

use innkeeper::spec::{Arch, DiskFormat};
use innkeeper::{CatalogueEntry, Host, ImageInfo};
use serde::Serialize;

use super::{DryRun, Yes, disk};
use crate::confirm::confirm;
use crate::failure::Result;
use crate::output::{Format, Output};
use crate::reporter::Reporter;
use crate::spec_flags::arch;
use crate::table::{Block, Table};
use crate::units;

/// Images that VMs are made from
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Image {
    /// List the images in the store
    #[command(
        visible_alias = "list",
        after_help = "Examples:
  inn image ls
  inn image ls --all                   also what can be pulled or built"
    )]
    Ls {
        /// Also those that can be pulled or built
        #[arg(short, long)]
        all: bool,
    },
    /// Get an image, unless it is in the store already
    #[command(after_help = "Examples:
  inn image pull debian:12
  inn image pull tiny --arch arm64
  inn image pull https://example.org/disk.qcow2#sha256=DIGEST")]
    Pull(Which),
    /// Build an image anew from packages, even if it is in the store
    #[command(after_help = "Examples:
  inn image build debian:12")]
    Build(Which),
    /// Add a disk image of yours to the store
    #[command(after_help = "Examples:
  inn image import disk.qcow2 --name mine:1
  inn image import /dev/vg/system --format raw --name mine:2")]
    Import {
        /// Disk image
        path: PathBuf,
        /// Name that it gets
        #[arg(short, long)]
        name: String,
        /// Format of the file: qcow2 or raw; where it is left out the file's name must end in .qcow2, .raw or .img
        #[arg(long, value_parser = disk::format)]
        format: Option<DiskFormat>,
        /// Architecture of its system; this computer's if none is given
        #[arg(long, value_parser = arch)]
        arch: Option<Arch>,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Show everything that is known of an image
    #[command(
        visible_alias = "inspect",
        after_help = "Examples:
  inn image info debian:12 -o json"
    )]
    Info {
        /// Image
        image: String,
        /// Architecture; this computer's if none is given
        #[arg(long, value_parser = arch)]
        arch: Option<Arch>,
    },
    /// Remove an image from the store; refused while a VM needs it
    #[command(visible_aliases = ["delete", "remove"], after_help = "Examples:
  inn image rm debian:12 --yes")]
    Rm {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        yes: Yes,
    },
}

/// An image to get or to remove.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Image, such as debian:12, tiny, a path, or a URL with #sha256=DIGEST
    image: String,
    /// Architecture; this computer's if none is given
    #[arg(long, value_parser = arch)]
    arch: Option<Arch>,
    #[command(flatten)]
    dry_run: DryRun,
}

impl Image {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        match self {
            Image::Ls { all } => list(all, host, output).await?,
            Image::Pull(which) => {
                if which.dry_run.dry_run {
                    output.dry_run(&[pull_step(&which, host).await])?;
                    return Ok(0);
                }
                let reporter = Reporter::new(output);
                let image = host.pull_image(&which.image, which.arch, &reporter).await;
                reporter.finish();
                added("have", &image?, output)?;
            }
            Image::Build(which) => {
                if which.dry_run.dry_run {
                    output.dry_run(&[format!("build {} anew", which.image)])?;
                    return Ok(0);
                }
                let reporter = Reporter::new(output);
                let image = host.build_image(&which.image, which.arch, &reporter).await;
                reporter.finish();
                added("built", &image?, output)?;
            }
            Image::Import {
                path,
                name,
                format,
                arch,
                dry_run,
            } => {
                let format = disk::named(&path, format, "--format")?;
                if dry_run.dry_run {
                    let file = host.disk_info(&path, format).await?;
                    let size = units::size(file.actual_bytes);
                    output.dry_run(&[format!("add {} ({size}) as {name}", path.display())])?;
                    return Ok(0);
                }
                let reporter = Reporter::new(output);
                let image = host
                    .import_image(&path, &name, format, arch, &reporter)
                    .await;
                reporter.finish();
                added("added", &image?, output)?;
            }
            Image::Info { image, arch } => {
                let image = host.image(&image, arch).await?;
                output.data(&image, || block(&image))?;
            }
            Image::Rm { which, yes } => remove(&which, yes, host, output).await?,
        }
        Ok(0)
    }
}

fn added(verb: &str, image: &ImageInfo, output: &Output) -> Result<()> {
    output.outcome(&image.reference, image, || {
        format!(
            "{verb} {} for {}, {}",
            image.reference,
            image.arch,
            units::size(image.size_bytes)
        )
    })
}

async fn pull_step(which: &Which, host: &Host) -> String {
    let name = &which.image;
    if let Ok(image) = host.image(name, which.arch).await {
        return format!(
            "do nothing: {} for {} is in the store",
            image.reference, image.arch
        );
    }
    let catalogue = host.catalogue();
    match catalogue.iter().find(|entry| entry.reference == *name) {
        Some(entry) => format!("get {name}, which is {}", entry.how),
        None => format!("look for {name} and get it"),
    }
}

async fn remove(which: &Which, yes: Yes, host: &Host, output: &Output) -> Result<()> {
    // The library says first whether it may go, so that nobody is asked in vain.
    let image = host.remove_image(&which.image, which.arch, true).await?;
    let size = units::size(image.size_bytes);
    let what = format!("{} for {} ({size})", image.reference, image.arch);
    if which.dry_run.dry_run {
        return output.dry_run(&[format!("remove {what}")]);
    }
    confirm(&format!("remove the image {what}?"), yes.yes)?;
    let image = host.remove_image(&which.image, which.arch, false).await?;
    output.outcome(&image.reference, &image, || format!("removed {what}"))
}

/// What `ls --all` tells programs.
#[derive(Serialize)]
struct All<'a> {
    images: &'a [ImageInfo],
    catalogue: &'a [CatalogueEntry],
}

async fn list(all: bool, host: &Host, output: &Output) -> Result<()> {
    let images = host.images().await?;
    if output.quiet && output.format == Format::Table {
        let names: String = images
            .iter()
            .map(|image| format!("{}\n", image.reference))
            .collect();
        return output.text(&names);
    }
    if all {
        let catalogue = host.catalogue();
        let both = All {
            images: &images,
            catalogue: &catalogue,
        };
        return output.data(&both, || {
            let stored = table(&images);
            let gap = if stored.is_empty() { "" } else { "\n" };
            format!("{stored}{gap}Can be had:\n{}", catalogue_table(&catalogue))
        });
    }
    output.data(&images, || table(&images))?;
    if images.is_empty() {
        output.note("no images yet; inn image ls --all shows what can be had");
    }
    Ok(())
}

fn table(images: &[ImageInfo]) -> String {
    let mut table = Table::new(&["IMAGE", "ARCH", ">SIZE", "CREATED", "USED BY"]);
    for image in images {
        table.row([
            image.reference.clone(),
            image.arch.clone(),
            units::size(image.size_bytes),
            image.created.clone(),
            image.used_by.join(","),
        ]);
    }
    if images.is_empty() {
        return String::new();
    }
    table.render()
}

fn catalogue_table(entries: &[CatalogueEntry]) -> String {
    let mut table = Table::new(&["IMAGE", "ARCH", "HOW", "TRIED", "WHAT"]);
    for entry in entries {
        table.row([
            entry.reference.clone(),
            entry.arches.join(","),
            entry.how.clone(),
            if entry.tried { "yes" } else { "no" }.to_owned(),
            entry.description.clone(),
        ]);
    }
    table.render()
}

fn block(image: &ImageInfo) -> String {
    let mut block = Block::default();
    block
        .line("image", &image.reference)
        .line("architecture", &image.arch)
        .line("size", units::size(image.size_bytes))
        .line("digest", &image.digest)
        .line("created", &image.created)
        .line("source", &image.source)
        .lines("used by", image.used_by.iter().cloned());
    let files = image.files.iter();
    block.lines(
        "files",
        files.map(|(role, path)| format!("{role}: {}", path.display())),
    );
    block.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_images_and_what_can_be_had() {
        let image = ImageInfo {
            reference: "debian:12".into(),
            arch: "x86_64".into(),
            digest: "sha256:00ff".into(),
            size_bytes: 325 << 20,
            created: "2026-11-21T07:00:00Z".into(),
            source: "built from packages".into(),
            used_by: vec!["web".into(), "db".into()],
            files: [("root".to_owned(), PathBuf::from("/data/layers/ab"))].into(),
        };
        let entry = CatalogueEntry {
            reference: "tiny".into(),
            arches: vec!["x86_64".into(), "arm64".into()],
            description: "a kernel, busybox and the agent".into(),
            how: "built".into(),
            tried: true,
        };
        insta::assert_snapshot!("table", table(std::slice::from_ref(&image)));
        insta::assert_snapshot!("catalogue", catalogue_table(&[entry]));
        insta::assert_snapshot!("block", block(&image));
    }
}
