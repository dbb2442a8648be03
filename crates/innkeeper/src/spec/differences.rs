//! What differs between two specs, and which of it needs a restart.

use super::VmSpec;
use super::tree::{Tree, tree};

/// Fields whose change holds at once, since only our own processes read them.
const LIVE: [&str; 5] = [
    "labels",
    "protected",
    "ready",
    "ready_timeout",
    "time_to_live",
];

/// Gives the paths of the fields that differ, such as `cpus` or `disks.root.size`, in the order of the documents.
///
/// Disks are told apart by name; a disk that only one of the two has is named whole (`disks.data`), and `disks` stands for another
/// order of the same ones. Networks are told apart by number, other lists as a whole.
pub fn differences(asked: &VmSpec, applied: &VmSpec) -> Vec<String> {
    let mut paths = Vec::new();
    maps("", &tree(asked), &tree(applied), &mut paths);
    paths
}

/// Tells whether a change of this field holds without a restart of the VM.
pub fn is_live(path: &str) -> bool {
    let top = path.split('.').next().unwrap_or_default();
    LIVE.contains(&top)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn find<'a>(entries: &'a [(String, Tree)], name: &str) -> Option<&'a Tree> {
    entries
        .iter()
        .find(|(other, _)| other == name)
        .map(|(_, value)| value)
}

fn maps(path: &str, asked: &[(String, Tree)], applied: &[(String, Tree)], paths: &mut Vec<String>) {
    for (name, value) in asked {
        match find(applied, name) {
            Some(other) => values(&join(path, name), value, other, paths),
            None => paths.push(join(path, name)),
        }
    }
    let gone = applied
        .iter()
        .filter(|(name, _)| find(asked, name).is_none());
    paths.extend(gone.map(|(name, _)| join(path, name)));
}

fn values(path: &str, asked: &Tree, applied: &Tree, paths: &mut Vec<String>) {
    match (asked, applied) {
        (Tree::Map(asked), Tree::Map(applied)) => maps(path, asked, applied, paths),
        (Tree::List(asked), Tree::List(applied)) if matches!(path, "disks" | "networks") => {
            let before = paths.len();
            let items = if path == "disks" { named } else { numbered };
            maps(path, &items(asked), &items(applied), paths);
            if paths.len() == before && asked != applied {
                paths.push(path.to_owned());
            }
        }
        _ if asked != applied => paths.push(path.to_owned()),
        _ => {}
    }
}

/// Gives the items of a list by their `name`, or by number where they have none.
fn named(items: &[Tree]) -> Vec<(String, Tree)> {
    let name = |(index, item): (usize, &Tree)| {
        let name = match item {
            Tree::Map(entries) => match find(entries, "name") {
                Some(Tree::Text(name)) => name.clone(),
                _ => index.to_string(),
            },
            _ => index.to_string(),
        };
        (name, item.clone())
    };
    items.iter().enumerate().map(name).collect()
}

/// Gives the items of a list by number: a network's name is not the interface's, and several may be on one network.
fn numbered(items: &[Tree]) -> Vec<(String, Tree)> {
    let items = items.iter().cloned().enumerate();
    items
        .map(|(index, item)| (index.to_string(), item))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::read;

    fn between(asked: &str, applied: &str) -> Vec<String> {
        differences(
            &read(asked, "asked").unwrap(),
            &read(applied, "applied").unwrap(),
        )
    }

    #[test]
    fn fields_are_named_by_path() {
        let asked = "cpus: 4\nboot: {cmdline: quiet}\ndisks: [{name: root, size: 20GiB}, {name: b, size: 1GiB}]\nlabels: {a: x}\n";
        let applied = "disks: [{name: root, size: 10GiB}, {name: c, size: 1GiB}]\nlabels: {a: y, b: z}\nnetworks: [{forwards: ['1:2']}]\n";
        let expected = [
            "cpus",
            "boot.cmdline",
            "disks.root.size",
            "disks.b",
            "disks.c",
            "networks.0.forwards",
            "labels.a",
            "labels.b",
        ];
        assert_eq!(between(asked, applied), expected);
        assert_eq!(between(asked, asked), [""; 0]);
    }

    #[test]
    fn the_order_of_disks_counts() {
        let one = "disks: [{name: a, size: 1GiB}, {name: b, size: 1GiB}]";
        let other = "disks: [{name: b, size: 1GiB}, {name: a, size: 1GiB}]";
        assert_eq!(between(one, other), ["disks"]);
    }

    #[test]
    fn only_what_our_own_processes_read_is_live() {
        for path in [
            "labels",
            "labels.env",
            "protected",
            "ready",
            "ready_timeout",
        ] {
            assert!(is_live(path), "{path}");
        }
        for path in ["cpus", "disks.labels.size", "seed.user", "readyness", ""] {
            assert!(!is_live(path), "{path}");
        }
    }
}
