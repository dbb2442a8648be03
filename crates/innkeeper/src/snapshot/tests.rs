//! The graph by examples.

use super::layers::Into;
use super::*;

fn id(digit: char) -> FrozenId {
    FrozenId::from_digits(&digit.to_string().repeat(32)).unwrap()
}

fn top(below: Option<char>) -> IdentityDisk {
    IdentityDisk {
        name: "root".to_owned(),
        file: "disks/root.1.qcow2".into(),
        format: "qcow2".to_owned(),
        backing_format: below.map(|_| "qcow2".to_owned()),
        layer: below.map(|digit| id(digit).to_string()),
        size: 1 << 20,
    }
}

fn node(name: &str, parent: Option<&str>, layer: char) -> Node {
    Node {
        id: format!("id-{name}"),
        name: name.to_owned(),
        description: String::new(),
        created: "2026-11-21T00:00:00Z".to_owned(),
        parent: parent.map(|parent| format!("id-{parent}")),
        origin: Origin::Asked,
        disks: vec![FrozenDisk {
            name: "root".to_owned(),
            layer: id(layer),
            size: 1 << 20,
        }],
        spec: String::new(),
        macs: Vec::new(),
        kept: Kept::default(),
    }
}

fn layer(graph: &mut Graph, digit: char, below: Option<char>) {
    let layer = Layer {
        format: DiskFormat::Qcow2,
        size: 1 << 20,
        below: below.map(|below| Below {
            layer: id(below).to_string(),
            format: DiskFormat::Qcow2,
        }),
    };
    graph.layers.insert(id(digit), layer);
}

/// a ◄─┬─ b ◄── top
///     └─ c
fn branched() -> Graph {
    let mut graph = Graph::new(1, vec![top(Some('b'))]);
    for (digit, below) in [('a', None), ('b', Some('a')), ('c', Some('a'))] {
        layer(&mut graph, digit, below);
    }
    graph.add(node("one", None, 'a'));
    graph.add(node("other", Some("one"), 'c'));
    graph.add(node("two", Some("one"), 'b'));
    graph
}

#[test]
fn what_goes_leaves_those_after_it_where_it_was() {
    let mut graph = branched();
    graph.remove("id-one");
    assert!(graph.nodes.iter().all(|node| node.parent.is_none()));
    assert_eq!(graph.now.as_deref(), Some("id-two"));
    graph.remove("id-two");
    assert_eq!(graph.now, None);
}

#[test]
fn a_layer_that_two_read_is_not_merged_and_one_that_one_reads_is() {
    let mut graph = branched();
    assert_eq!(graph.next_merge(|_| true), None, "all are nodes'");
    graph.remove("id-one");
    assert_eq!(graph.next_merge(|_| true), None, "two read through it");
    assert_eq!(graph.needed().len(), 3);
    graph.remove("id-other");
    assert_eq!(graph.needed(), BTreeSet::from([id('a'), id('b')]));
    graph.forget_unneeded();
    let merge = graph.next_merge(|_| true).unwrap();
    assert_eq!(
        (&merge.gone, &merge.into),
        (&id('a'), &Into::Layer(id('b')))
    );
    assert_eq!(graph.next_merge(|_| false), None, "a clone needs it");
    graph.merged(&merge);
    graph.forget_unneeded();
    assert_eq!(graph.layers.len(), 1);
    graph.remove("id-two");
    assert_eq!(
        graph.next_merge(|_| true).unwrap().into,
        Into::Top("root".to_owned())
    );
}

#[test]
fn a_node_is_found_by_name_or_by_the_beginning_of_its_id() {
    let graph = branched();
    assert_eq!(graph.find("two").unwrap().name, "two");
    assert_eq!(graph.find("id-two").unwrap().name, "two");
    assert_eq!(graph.find("id-tw").unwrap().name, "two");
    assert!(graph.find("id-").is_err(), "too short");
    assert_eq!(
        graph.find("tow").unwrap_err().hint(),
        Some("did you mean two?")
    );
}

#[test]
fn names_that_were_not_given() {
    let mut graph = Graph::new(0, Vec::new());
    assert_eq!(graph.next_name(), "s1");
    graph.add(node("s3", None, 'a'));
    graph.add(node("before-s3", None, 'a'));
    assert_eq!(graph.next_name(), "s4");
    assert_eq!(graph.free_name("before-s3"), "before-s3-2");
    assert!(graph.check_name("s3").is_err());
    assert!(graph.check_name("s5").is_ok());
}

#[test]
fn a_ring_in_a_damaged_file_is_no_endless_loop() {
    let mut graph = Graph::new(1, vec![top(Some('a'))]);
    layer(&mut graph, 'a', Some('b'));
    layer(&mut graph, 'b', Some('a'));
    assert_eq!(graph.needed().len(), 2);
    assert_eq!(graph.chain(&id('a')).len(), 2);
}

use std::collections::BTreeSet;
