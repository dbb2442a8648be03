//! `inn snapshot`: moments of a VM to go back to.

use innkeeper::snapshot::{SnapshotCost, SnapshotDifference, SnapshotDone, SnapshotInfo};
use innkeeper::{Host, Present};

use super::{DryRun, Yes, snapshot_tree};
use crate::confirm::confirm;
use crate::failure::Result;
use crate::output::Output;
use crate::table::{Block, Table};
use crate::units;

/// Moments of a VM to go back to
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Snapshot {
    /// Make a snapshot of a VM that does not run: its disks, its spec, and the memory of a suspended one
    #[command(after_help = "Examples:
  inn snapshot create web
  inn snapshot create web before-upgrade --description \"version 1, all tests pass\"")]
    Create {
        /// VM
        vm: String,
        /// Name; s1, s2 and so on if none is given
        name: Option<String>,
        /// What there is to know about it
        #[arg(short, long, value_name = "TEXT", default_value_t)]
        description: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// List the snapshots of a VM
    #[command(
        visible_alias = "list",
        after_help = "Examples:
  inn snapshot ls web
  inn snapshot ls web -o json"
    )]
    Ls {
        /// VM
        vm: String,
    },
    /// Draw the snapshots of a VM, which came of which, and where the VM is now
    #[command(after_help = "Examples:
  inn snapshot tree web")]
    Tree {
        /// VM
        vm: String,
    },
    /// Show everything that is known of a snapshot
    #[command(
        visible_alias = "info",
        after_help = "Examples:
  inn snapshot show web before-upgrade"
    )]
    Show(Which),
    /// Tell how a snapshot differs from another one, or from the present state
    #[command(after_help = "Examples:
  inn snapshot diff web s1
  inn snapshot diff web s1 s2")]
    Diff {
        #[command(flatten)]
        which: Which,
        /// The other snapshot; the present state if none is given
        other: Option<String>,
    },
    /// Go back to a snapshot; the present state is saved as a snapshot first, unless nothing was changed
    #[command(
        visible_alias = "restore",
        after_help = "Examples:
  inn snapshot revert web before-upgrade
  inn snapshot revert web before-upgrade --discard --yes"
    )]
    Revert {
        #[command(flatten)]
        which: Which,
        /// Lose the present state instead of saving it
        #[arg(long)]
        discard: bool,
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Give a snapshot another name
    #[command(after_help = "Examples:
  inn snapshot rename web s1 fresh")]
    Rename {
        #[command(flatten)]
        which: Which,
        /// New name
        to: String,
    },
    /// Write what there is to know about a snapshot
    #[command(after_help = "Examples:
  inn snapshot describe web s1 \"just installed\"")]
    Describe {
        #[command(flatten)]
        which: Which,
        /// The text; empty removes it
        text: String,
    },
    /// Remove a snapshot; what later ones need of it is merged into them
    #[command(visible_aliases = ["delete", "remove"], after_help = "Examples:
  inn snapshot rm web s1
  inn snapshot rm web s1 --yes")]
    Rm {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        dry_run: DryRun,
    },
}

/// A snapshot of a VM.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// VM
    vm: String,
    /// Snapshot: its name, or the beginning of its id
    snapshot: String,
}

impl Snapshot {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        match self {
            Snapshot::Create {
                vm,
                name,
                description,
                dry_run,
            } => {
                let cost = host.plan_snapshot_create(&vm).await?;
                if dry_run.dry_run {
                    output.dry_run(&steps(&cost))?;
                    return Ok(0);
                }
                warn(&cost, output);
                let done = host
                    .snapshot_create(&vm, name.as_deref(), &description)
                    .await?;
                let name = done.snapshot.name.clone();
                output.outcome(&name, &done, || {
                    let what = if done.snapshot.memory {
                        "disks and memory"
                    } else {
                        "disks"
                    };
                    format!("{vm}: snapshot {name} made ({what}{})", copied(&done))
                })?;
                for disk in &done.left_out {
                    output.warning(&format!(
                        "disk {disk} is a file of its own elsewhere, and no part of the snapshot"
                    ));
                }
            }
            Snapshot::Ls { vm } => {
                let tree = host.snapshots(&vm).await?;
                let names: Vec<&str> = tree.snapshots.iter().map(|one| one.name.as_str()).collect();
                if output.quiet && !output.is_data() {
                    for name in names {
                        output.line(name)?;
                    }
                } else {
                    output.data(&tree, || table(&tree.snapshots))?;
                }
            }
            Snapshot::Tree { vm } => {
                let tree = host.snapshots(&vm).await?;
                output.data(&tree, || snapshot_tree::draw(&tree))?;
            }
            Snapshot::Show(which) => {
                let snapshot = host.snapshot(&which.vm, &which.snapshot).await?;
                output.data(&snapshot, || block(&snapshot))?;
            }
            Snapshot::Diff { which, other } => {
                let difference = host
                    .snapshot_diff(&which.vm, &which.snapshot, other.as_deref())
                    .await?;
                output.data(&difference, || differences(&difference))?;
            }
            Snapshot::Revert {
                which,
                discard,
                yes,
                dry_run,
            } => revert(&which, discard, yes.yes, dry_run.dry_run, host, output).await?,
            Snapshot::Rename { which, to } => {
                let done = host
                    .snapshot_edit(&which.vm, &which.snapshot, Some(&to), None)
                    .await?;
                let before = &which.snapshot;
                output.outcome(&to, &done, || {
                    format!("{}: snapshot {before} is now {to}", which.vm)
                })?;
            }
            Snapshot::Describe { which, text } => {
                let done = host
                    .snapshot_edit(&which.vm, &which.snapshot, None, Some(&text))
                    .await?;
                let name = &done.snapshot.name;
                output.outcome(name, &done, || {
                    format!("{}: snapshot {name} is described", which.vm)
                })?;
            }
            Snapshot::Rm {
                which,
                yes,
                dry_run,
            } => {
                let (vm, name) = (&which.vm, &which.snapshot);
                let cost = host.plan_snapshot_remove(vm, name).await?;
                if dry_run.dry_run {
                    output.dry_run(&steps(&cost))?;
                    return Ok(0);
                }
                confirm(&format!("remove snapshot {name} of {vm}?"), yes.yes)?;
                warn(&cost, output);
                let done = host.snapshot_remove(vm, name).await?;
                output.outcome(&done.snapshot.name, &done, || {
                    let name = &done.snapshot.name;
                    format!("{vm}: snapshot {name} removed{}", merged(&done))
                })?;
            }
        }
        Ok(0)
    }
}

async fn revert(
    which: &Which,
    discard: bool,
    yes: bool,
    dry_run: bool,
    host: &Host,
    output: &Output,
) -> Result<()> {
    let (vm, name) = (&which.vm, &which.snapshot);
    let present = match discard {
        true => Present::Discard,
        false => Present::Save,
    };
    let cost = host.plan_snapshot_revert(vm, name, present).await?;
    if dry_run {
        return output.dry_run(&steps(&cost));
    }
    if discard {
        let question = format!("go back to {name} and lose what {vm} is now?");
        confirm(&question, yes)?;
    }
    warn(&cost, output);
    let done = host.snapshot_revert(vm, name, present).await?;
    output.outcome(vm, &done, || {
        let saved = match &done.saved {
            Some(saved) => format!("; what it was is {}", saved.name),
            None => String::new(),
        };
        let name = &done.snapshot.name;
        format!("{vm} is back at {name}{saved}{}", copied(&done))
    })
}

/// Says before the work begins that bytes must be copied, and how many.
fn warn(cost: &SnapshotCost, output: &Output) {
    if cost.copies_bytes > 0 {
        let bytes = units::size(cost.copies_bytes);
        output.note(&format!("about {bytes} must be copied"));
    }
}

fn steps(cost: &SnapshotCost) -> Vec<String> {
    let mut steps = cost.steps.clone();
    if cost.copies_bytes > 0 {
        steps.push(format!("copy about {}", units::size(cost.copies_bytes)));
    }
    steps
}

fn copied(done: &SnapshotDone) -> String {
    match done.copied_bytes {
        0 => String::new(),
        bytes => format!(", {} copied", units::size(bytes)),
    }
}

fn merged(done: &SnapshotDone) -> String {
    match done.copied_bytes {
        0 => String::new(),
        bytes => format!(", {} merged", units::size(bytes)),
    }
}

fn table(snapshots: &[SnapshotInfo]) -> String {
    let mut table = Table::new(&["NAME", "CREATED", "AFTER", "HOLDS", ">SIZE", "DESCRIPTION"]);
    for one in snapshots {
        let parent = snapshots
            .iter()
            .find(|other| Some(&other.id) == one.parent.as_ref());
        let holds = if one.memory { "disks, memory" } else { "disks" };
        table.row([
            one.name.clone(),
            one.created.clone(),
            parent.map(|parent| parent.name.clone()).unwrap_or_default(),
            holds.to_owned(),
            units::size(one.bytes),
            one.description.clone(),
        ]);
    }
    table.render()
}

fn block(snapshot: &SnapshotInfo) -> String {
    let mut block = Block::default();
    block
        .line("name", &snapshot.name)
        .line("id", &snapshot.id)
        .line("created", &snapshot.created);
    if !snapshot.description.is_empty() {
        block.line("description", &snapshot.description);
    }
    let holds = if snapshot.memory {
        "disks and memory"
    } else {
        "disks"
    };
    block
        .optional("after", snapshot.parent.clone())
        .line("holds", holds)
        .line("on disk", units::size(snapshot.bytes))
        .lines(
            "disks",
            snapshot.disks.iter().map(|disk| {
                let (size, layer) = (units::size(disk.size_bytes), units::size(disk.layer_bytes));
                format!("{}: {size}, {layer} in {}", disk.name, disk.layer)
            }),
        )
        .lines("clones", snapshot.clones.iter().cloned());
    block.render()
}

fn differences(difference: &SnapshotDifference) -> String {
    let mut block = Block::default();
    block
        .line("from", &difference.from)
        .line("to", &difference.to);
    if difference.spec.is_empty() && difference.disks.is_empty() {
        block.line("spec", "the same");
    }
    block
        .lines("spec", difference.spec.iter().cloned())
        .lines("disks", difference.disks.iter().cloned())
        .optional("written", difference.written_bytes.map(units::size));
    block.render()
}
