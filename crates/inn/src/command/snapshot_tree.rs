//! Draws the snapshots of a VM as a tree, with where the VM is now.

use innkeeper::snapshot::{SnapshotInfo, SnapshotTree};

use crate::terminal_text;
use crate::units;

/// Draws it, one snapshot a line, with a line for the present state.
pub(crate) fn draw(tree: &SnapshotTree) -> String {
    let mut text = format!("{}\n", terminal_text::one_line(&tree.vm));
    branches(tree, None, "", &mut text);
    text
}

enum Branch<'a> {
    Snapshot(&'a SnapshotInfo),
    Now,
}

fn branches(tree: &SnapshotTree, after: Option<&str>, indent: &str, text: &mut String) {
    let mut branches: Vec<Branch<'_>> = tree
        .snapshots
        .iter()
        .filter(|snapshot| parent(tree, snapshot) == after)
        .map(Branch::Snapshot)
        .collect();
    if tree.now.as_deref() == after {
        branches.push(Branch::Now);
    }
    let last = branches.len();
    for (number, branch) in branches.into_iter().enumerate() {
        let (corner, below) = if number + 1 == last {
            ("└── ", "    ")
        } else {
            ("├── ", "│   ")
        };
        match branch {
            Branch::Now => text.push_str(&format!("{indent}{corner}{}\n", now(tree))),
            Branch::Snapshot(snapshot) => {
                text.push_str(&format!("{indent}{corner}{}\n", line(snapshot)));
                let indent = format!("{indent}{below}");
                branches_below(tree, snapshot, &indent, text);
            }
        }
    }
}

fn branches_below(tree: &SnapshotTree, snapshot: &SnapshotInfo, indent: &str, text: &mut String) {
    branches(tree, Some(&snapshot.id), indent, text);
}

/// A parent that is not there counts as none, so that nothing is left undrawn.
fn parent<'a>(tree: &SnapshotTree, snapshot: &'a SnapshotInfo) -> Option<&'a str> {
    let parent = snapshot.parent.as_deref()?;
    tree.snapshots
        .iter()
        .any(|other| other.id == parent)
        .then_some(parent)
}

fn now(tree: &SnapshotTree) -> String {
    match tree.untouched {
        Some(true) => format!("now ({}, nothing changed since)", tree.state),
        _ => format!("now ({})", tree.state),
    }
}

fn line(snapshot: &SnapshotInfo) -> String {
    // To the minute: `ls` tells the rest.
    let created = snapshot.created.get(..16).unwrap_or(&snapshot.created);
    let mut line = format!("{}  {}", snapshot.name, created.replace('T', " "));
    line.push_str(&format!("  {}", units::size(snapshot.bytes)));
    if snapshot.memory {
        line.push_str(", with memory");
    }
    if !snapshot.description.is_empty() {
        line.push_str(&format!("  {}", snapshot.description));
    }
    terminal_text::one_line(&line)
}

#[cfg(test)]
mod tests {
    use innkeeper::api::VmState;
    use innkeeper::snapshot::Origin;

    use super::*;

    fn snapshot(name: &str, parent: Option<&str>) -> SnapshotInfo {
        SnapshotInfo {
            id: name.to_owned(),
            name: name.to_owned(),
            description: String::new(),
            created: "2026-11-21T15:04:05.123Z".to_owned(),
            parent: parent.map(str::to_owned),
            origin: Origin::Asked,
            memory: false,
            disks: Vec::new(),
            bytes: 3 << 20,
            clones: Vec::new(),
        }
    }

    #[test]
    fn branches_and_where_the_vm_is_now() {
        let described = SnapshotInfo {
            description: "just \x1b[31minstalled".to_owned(),
            memory: true,
            ..snapshot("s1", None)
        };
        let tree = SnapshotTree {
            vm: "web".to_owned(),
            state: VmState::Stopped,
            now: Some("s2".to_owned()),
            untouched: Some(false),
            snapshots: vec![
                described,
                snapshot("s2", Some("s1")),
                snapshot("before-s1", Some("s1")),
                snapshot("lost", Some("gone")),
            ],
        };
        insta::assert_snapshot!(draw(&tree));
    }

    #[test]
    fn a_vm_without_snapshots_is_where_it_is() {
        let tree = SnapshotTree {
            vm: "web".to_owned(),
            state: VmState::Running,
            now: None,
            untouched: None,
            snapshots: Vec::new(),
        };
        assert_eq!(draw(&tree), "web\n└── now (running)\n");
    }
}
