//! `inn cp`: files and trees between this computer and a guest, either way.

use std::path::PathBuf;
use std::time::Duration;

use innkeeper::api::ErrorKind;
use innkeeper::guest::message::{CopyInRequest, CopyOutRequest, CopySummary};
use innkeeper::guest::{CopyProgress, GuestChannel};
use innkeeper::progress::{Progress, Unit, Update};
use innkeeper::spec::VmName;
use innkeeper::{Error, Host};

use super::DryRun;
use crate::failure::{Failure, Result};
use crate::output::{Format, Output};
use crate::reporter::Reporter;
use crate::units;

/// Copy files and directories into a running VM, or out of it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn cp notes.txt web:/root/
  inn cp site web:/var/www --owner www-data
  inn cp web:/var/log ./logs
  inn cp ./a:b web:/tmp/               a path here with a colon in it begins with ./ or /")]
pub(crate) struct Args {
    /// What is copied: a path here, or NAME:PATH in a VM; a directory with all that is in it
    #[arg(value_name = "FROM", value_parser = place)]
    from: Place,

    /// Where it goes: into a directory that exists, or to a new name
    #[arg(value_name = "TO", value_parser = place)]
    to: Place,

    /// Owner of what is made in the guest
    #[arg(long, value_name = "USER[:GROUP]")]
    owner: Option<String>,

    /// Make missing directories above the new name in the guest
    #[arg(short, long)]
    parents: bool,

    #[command(flatten)]
    dry_run: DryRun,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// On this computer.
    Here(PathBuf),
    /// In a VM.
    Guest { name: String, path: String },
}

/// Which way a copy goes.
#[derive(Debug)]
enum Way {
    In {
        from: PathBuf,
        request: CopyInRequest,
    },
    Out {
        request: CopyOutRequest,
        to: PathBuf,
    },
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let dry_run = self.dry_run.dry_run;
        let (name, way) = self.way()?;
        if dry_run {
            let info = host.info(&name).await?;
            output.dry_run(&[format!("{} (now {})", way.step(&name), info.state)])?;
            return Ok(0);
        }
        if let Way::In { from, .. } = &way {
            // A name that was mistyped is told before the guest is disturbed.
            std::fs::symlink_metadata(from)
                .map_err(|source| Error::io(format!("reading {}", from.display()), source))?;
        }
        let guest = host.guest(&name).await?;
        let reporter = Reporter::new(output);
        let summary = copy(&guest, &way, &reporter).await;
        reporter.finish();
        let summary = summary.map_err(|error| error.while_doing(way.step(&name)))?;
        tell(&summary, output)?;
        Ok(0)
    }

    fn way(self) -> Result<(String, Way)> {
        match (self.from, self.to) {
            (Place::Here(from), Place::Guest { name, path }) => {
                let request = CopyInRequest {
                    path,
                    create_parents: self.parents,
                    owner: self.owner,
                };
                Ok((name, Way::In { from, request }))
            }
            (Place::Guest { .. }, Place::Here(_)) if self.owner.is_some() || self.parents => Err(
                Failure::usage("--owner and --parents are for copies into a VM, and this goes out"),
            ),
            (Place::Guest { name, path }, Place::Here(to)) => {
                let request = CopyOutRequest { path };
                Ok((name, Way::Out { request, to }))
            }
            (Place::Here(_), Place::Here(_)) => Err(Error::new(
                ErrorKind::BadInput,
                "both paths are on this computer",
            )
            .with_hint("write NAME:PATH for the one in a VM")
            .into()),
            (Place::Guest { name: from, .. }, Place::Guest { name: to, .. }) => Err(Error::new(
                ErrorKind::Unsupported,
                "a copy from VM to VM is not done in one step",
            )
            .with_hint(format!("copy from {from} to here first, then on to {to}"))
            .into()),
        }
    }
}

impl Way {
    fn step(&self, name: &str) -> String {
        match self {
            Way::In { from, request } => {
                format!("copy {} to {name}:{}", from.display(), request.path)
            }
            Way::Out { request, to } => {
                format!("copy {name}:{} to {}", request.path, to.display())
            }
        }
    }

    /// Returns the size of what is copied, where that is known without a walk.
    fn total(&self) -> Option<u64> {
        match self {
            Way::In { from, .. } => std::fs::metadata(from)
                .ok()
                .filter(std::fs::Metadata::is_file)
                .map(|metadata| metadata.len()),
            Way::Out { .. } => None,
        }
    }
}

async fn copy(
    guest: &GuestChannel,
    way: &Way,
    reporter: &Reporter,
) -> innkeeper::Result<CopySummary> {
    let progress = CopyProgress::default();
    let total = way.total();
    let copying = async {
        match way {
            Way::In { from, request } => guest.copy_in(from, request.clone(), &progress).await,
            Way::Out { request, to } => guest.copy_out(request.clone(), to, &progress).await,
        }
    };
    let mut copying = std::pin::pin!(copying);
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    loop {
        tokio::select! {
            copied = &mut copying => return copied.map_err(Error::from),
            _ = ticks.tick() => reporter.report(Update {
                step: "copying",
                detail: "",
                done: progress.bytes(),
                total,
                unit: Unit::Bytes,
            }),
        }
    }
}

fn tell(summary: &CopySummary, output: &Output) -> Result<()> {
    if summary.skipped > 0 {
        let count = units::count(summary.skipped as usize, "socket, device or pipe");
        output.warning(&format!("left out: {count}"));
    }
    if output.format != Format::Table {
        return output.data(summary, String::new);
    }
    let entries = match summary.entries {
        1 => "1 entry".to_owned(),
        entries => format!("{entries} entries"),
    };
    output.note(&format!("copied {entries}, {}", units::size(summary.bytes)));
    Ok(())
}

/// Reads a path, or NAME:PATH. What begins with `/` or `.` is a path here, whatever else is in it.
fn place(text: &str) -> Result<Place, String> {
    if text.is_empty() {
        return Err("a path is empty".to_owned());
    }
    let here = || Ok(Place::Here(PathBuf::from(text)));
    if text.starts_with(['/', '.', '~']) {
        return here();
    }
    let Some((name, path)) = text.split_once(':') else {
        return here();
    };
    name.parse::<VmName>()
        .map_err(|error| format!("{error} (a path here with a colon in it begins with ./ or /)"))?;
    if !path.starts_with('/') {
        return Err(format!(
            "write {name}:/... with the whole path in the guest"
        ));
    }
    Ok(Place::Guest {
        name: name.to_owned(),
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_here_or_in_a_vm() {
        let here = |path: &str| Ok(Place::Here(PathBuf::from(path)));
        assert_eq!(place("notes.txt"), here("notes.txt"));
        assert_eq!(place("./a:b"), here("./a:b"));
        assert_eq!(place("/a:b"), here("/a:b"));
        let guest = Place::Guest {
            name: "web".into(),
            path: "/var/log:x".into(),
        };
        assert_eq!(place("web:/var/log:x"), Ok(guest));
        for text in ["", "web:", "web:relative", "Web:/x", "a/b:/x", ":/x"] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ways_that_are_none_are_refused() {
        let way = |from: &str, to: &str, parents| {
            let args = Args {
                from: place(from).unwrap(),
                to: place(to).unwrap(),
                owner: None,
                parents,
                dry_run: DryRun { dry_run: false },
            };
            args.way().map(|(name, way)| way.step(&name))
        };
        assert_eq!(way("a", "web:/b", true).unwrap(), "copy a to web:/b");
        assert_eq!(way("web:/b", "a", false).unwrap(), "copy web:/b to a");
        for (from, to, parents, code) in [
            ("a", "b", false, 2),
            ("web:/b", "a", true, 2),
            ("web:/a", "db:/b", false, 5),
        ] {
            let Err(Failure::Told { error, .. }) = way(from, to, parents) else {
                panic!("{from} {to}");
            };
            assert_eq!(error.exit_code(), code);
        }
    }
}
