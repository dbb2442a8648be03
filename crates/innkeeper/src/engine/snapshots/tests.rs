//! Snapshots against a model: whatever is done, in whatever order, each disk holds byte for byte what it should, and a command that is
//! killed at any step leaves the old or the new state.
//!
//! The guest is played by `qemu-io`, which writes to the tops. `Way::Copy` stands for the way in which blocks are shared: the same steps are
//! taken, and only the copying differs. It says nothing of the sharing itself: that wants xfs or btrfs.

use std::path::{Path, PathBuf};
use std::process::Command;

use innkeeper_image::{DiskFormat, LayerId, Store, disk};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::settle::{settle, sweep};
use super::{Wanted, Way, Work};
use crate::snapshot::{Graph, Origin};
use crate::store::{Bundle, Identity, IdentityDisk, Root, read_json};

const SIZE: usize = 1 << 20;
const PIECE: usize = 4096;
const DISKS: [&str; 2] = ["root", "data"];
const SPEC: &str = "version: 1\nimage: none:1\n";

struct Bed {
    images: Store,
    bundle: Bundle,
    _home: Option<tempfile::TempDir>,
}

impl Bed {
    /// A VM with a disk over an image's layer, and one of its own.
    fn new() -> Bed {
        let home = tempfile::Builder::new().prefix("ik").tempdir().unwrap();
        let (root, images) = open(home.path());
        let half = root.begin_creating("vm").unwrap();
        let bundle = half.bundle();
        std::fs::create_dir(bundle.path("disks")).unwrap();
        let layer: LayerId = "a1".repeat(32).parse().unwrap();
        std::fs::write(images.layer_path(&layer), vec![0xEE; SIZE]).unwrap();
        let base = disk::Base {
            path: images.layer_path(&layer),
            format: DiskFormat::Raw,
            virtual_bytes: SIZE as u64,
        };
        disk::create_overlay(&base, SIZE as u64, &bundle.path("disks/root.qcow2")).unwrap();
        std::fs::write(bundle.path("disks/data.raw"), vec![0; SIZE]).unwrap();
        let own = |name: &str, format: &str, layer: Option<String>| IdentityDisk {
            name: name.to_owned(),
            file: format!("disks/{name}.{format}").into(),
            format: format.to_owned(),
            backing_format: layer.as_ref().map(|_| "raw".to_owned()),
            layer,
            size: SIZE as u64,
        };
        let identity = Identity {
            version: 1,
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            created: String::new(),
            driver: "none".to_owned(),
            machine: String::new(),
            arch: "x86_64".to_owned(),
            image: None,
            macs: Vec::new(),
            ssh_port: None,
            dhcp: false,
            boot: None,
            disks: vec![
                own("root", "qcow2", Some(layer.to_string())),
                own("data", "raw", None),
            ],
            seed: false,
            cloned: None,
            generation: 0,
        };
        bundle.write_identity(&identity).unwrap();
        bundle.write_spec_text(SPEC).unwrap();
        std::fs::write(bundle.path("efi-variables.fd"), b"first").unwrap();
        let bundle = half.finish().unwrap();
        Bed {
            images,
            bundle,
            _home: Some(home),
        }
    }

    /// The VM in a home that another process made.
    fn of(home: &Path) -> Bed {
        let (root, images) = open(home);
        let bundle = root.bundle("vm").unwrap();
        Bed {
            images,
            bundle,
            _home: None,
        }
    }

    fn home(&self) -> PathBuf {
        self.bundle.directory().join("../..")
    }

    fn work(&self, way: Way) -> Work<'_> {
        Work {
            images: &self.images,
            bundle: &self.bundle,
            way,
        }
    }

    fn top(&self, name: &str) -> IdentityDisk {
        let identity = self.bundle.identity().unwrap();
        let top = identity.disks.into_iter().find(|disk| disk.name == name);
        top.expect("a disk of that name")
    }

    fn write(&self, name: &str, piece: usize, byte: u8) {
        let top = self.top(name);
        let command = format!("write -q -P {byte} {} {PIECE}", piece * PIECE);
        let wrote = Command::new("qemu-io")
            .args(["-f", &top.format, "-c", &command])
            .arg(self.bundle.path(&top.file))
            .output()
            .expect("qemu-io");
        assert!(wrote.status.success(), "{wrote:?}");
    }

    fn read(&self, path: &Path, format: &str) -> Vec<u8> {
        let out = self.home().join("out.raw");
        let read = Command::new("qemu-img")
            .args(["convert", "-f", format, "-O", "raw"])
            .arg(path)
            .arg(&out)
            .output()
            .expect("qemu-img");
        assert!(read.status.success(), "{read:?}");
        std::fs::read(out).unwrap()
    }

    fn present(&self) -> State {
        let disks = DISKS.map(|name| {
            let top = self.top(name);
            self.read(&self.bundle.path(&top.file), &top.format)
        });
        let firmware = std::fs::read(self.bundle.path("efi-variables.fd")).unwrap();
        State { disks, firmware }
    }

    fn graph(&self) -> Graph {
        self.bundle.snapshots().unwrap().expect("a graph")
    }

    fn held(&self, id: &str) -> State {
        let graph = self.graph();
        let node = graph.node(id).expect("a node");
        let disks = DISKS.map(|name| {
            let disk = node.disks.iter().find(|disk| disk.name == name).unwrap();
            let format = graph.layers[&disk.layer].format;
            self.read(&self.images.frozen_path(&disk.layer), format.as_str())
        });
        let kept = self.bundle.snapshot_directory(id).join("efi-variables.fd");
        let firmware = std::fs::read(kept).unwrap();
        State { disks, firmware }
    }

    /// Looks that nothing is there that nothing counts, and that the metadata of every file are whole.
    fn check_whole(&self) {
        let (identity, graph) = (self.bundle.identity().unwrap(), self.graph());
        assert_eq!(graph.generation, identity.generation);
        assert_eq!(graph.tops, identity.disks);
        let left = sweep(&self.images, &self.bundle, &identity, &graph, true).unwrap();
        assert_eq!(left, Vec::<String>::new());
        assert_eq!(self.images.frozen().unwrap(), graph.needed());
        let layers: Vec<_> = graph.layers.keys().cloned().collect();
        assert_eq!(layers, graph.needed().into_iter().collect::<Vec<_>>());
        for (id, layer) in &graph.layers {
            use std::os::unix::fs::PermissionsExt;
            let path = self.images.frozen_path(id);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o444, "{}", path.display());
            check(&path, layer.format);
        }
        for top in &identity.disks {
            check(&self.bundle.path(&top.file), top.format.parse().unwrap());
        }
    }
}

fn check(path: &Path, format: DiskFormat) {
    if format == DiskFormat::Qcow2 {
        let checked = Command::new("qemu-img")
            .args(["check", "-q", "-U", "-f", "qcow2"])
            .arg(path)
            .output()
            .expect("qemu-img");
        assert!(checked.status.success(), "{}: {checked:?}", path.display());
    }
}

fn open(home: &Path) -> (Root, Store) {
    let root = Root::open(home, &home.join("run"), "boot").unwrap();
    let images = Store::open(root.image_store()).unwrap();
    (root, images)
}

#[derive(Clone, PartialEq, Eq)]
struct State {
    disks: [Vec<u8>; 2],
    firmware: Vec<u8>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A megabyte of numbers helps nobody: the first byte of each piece does.
        let firsts = self.disks.each_ref().map(|disk| {
            let firsts: Vec<u8> = disk.chunks(PIECE).map(|piece| piece[0]).collect();
            firsts
        });
        write!(formatter, "{:?} {firsts:?}", self.firmware)
    }
}

#[derive(Debug, Clone)]
enum Deed {
    Write { disk: usize, piece: usize, byte: u8 },
    Firmware(u8),
    Create,
    Revert(prop::sample::Index),
    Remove(prop::sample::Index),
}

fn deed() -> impl Strategy<Value = Deed> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        5 => (0..2_usize, 0..SIZE / PIECE, 1..=255_u8)
            .prop_map(|(disk, piece, byte)| Deed::Write { disk, piece, byte }),
        1 => any::<u8>().prop_map(Deed::Firmware),
        3 => Just(Deed::Create),
        3 => index().prop_map(Deed::Revert),
        2 => index().prop_map(Deed::Remove),
    ]
}

fn wanted() -> Wanted {
    Wanted {
        name: None,
        description: String::new(),
        origin: Origin::Asked,
    }
}

async fn equals_a_model(way: Way, deeds: &[Deed]) -> Result<(), TestCaseError> {
    let bed = Bed::new();
    let work = bed.work(way);
    let mut now = bed.present();
    let mut held: Vec<(String, State)> = Vec::new();
    for deed in deeds {
        match deed {
            Deed::Write { disk, piece, byte } => {
                bed.write(DISKS[*disk], *piece, *byte);
                now.disks[*disk][piece * PIECE..][..PIECE].fill(*byte);
            }
            Deed::Firmware(byte) => {
                std::fs::write(bed.bundle.path("efi-variables.fd"), [*byte]).unwrap();
                now.firmware = vec![*byte];
            }
            Deed::Create => {
                let (id, _) = work.create(&wanted()).unwrap();
                held.push((id, now.clone()));
            }
            Deed::Revert(index) if !held.is_empty() => {
                let (id, state) = &held[index.index(held.len())];
                work.revert(id).unwrap();
                work.merge().await.unwrap();
                now = state.clone();
            }
            Deed::Remove(index) if !held.is_empty() => {
                let (id, _) = held.remove(index.index(held.len()));
                work.remove(&id).unwrap();
                work.merge().await.unwrap();
            }
            Deed::Revert(_) | Deed::Remove(_) => {}
        }
        prop_assert_eq!(&bed.present(), &now, "after {:?}", deed);
    }
    for (id, state) in &held {
        prop_assert_eq!(&bed.held(id), state);
    }
    if bed.bundle.snapshots().unwrap().is_some() {
        bed.check_whole();
    }
    Ok(())
}

fn any_sequence(way: Way) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let config = Config {
        cases: 12,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&prop::collection::vec(deed(), 1..16), |deeds| {
            runtime.block_on(equals_a_model(way, &deeds))
        })
        .unwrap();
}

#[test]
fn any_sequence_equals_a_model_with_overlays() {
    any_sequence(Way::Overlay);
}

#[test]
fn any_sequence_equals_a_model_with_copies() {
    any_sequence(Way::Copy);
}

#[test]
fn where_nothing_was_changed_nothing_needs_to_be_saved() {
    for way in [Way::Overlay, Way::Copy] {
        let bed = Bed::new();
        let work = bed.work(way);
        assert!(!work.is_untouched(&work.look().unwrap()).unwrap());
        let (id, _) = work.create(&wanted()).unwrap();
        assert!(work.is_untouched(&work.look().unwrap()).unwrap(), "{way:?}");
        bed.write("data", 0, 1);
        assert!(!work.is_untouched(&work.look().unwrap()).unwrap());
        work.revert(&id).unwrap();
        assert!(work.is_untouched(&work.look().unwrap()).unwrap(), "{way:?}");
        std::fs::write(bed.bundle.path("efi-variables.fd"), b"other").unwrap();
        assert!(!work.is_untouched(&work.look().unwrap()).unwrap());
    }
}

#[tokio::test]
async fn a_disk_that_grew_or_came_after_a_snapshot_is_not_lost() {
    let bed = Bed::new();
    let work = bed.work(Way::Overlay);
    let (id, _) = work.create(&wanted()).unwrap();
    let mut identity = bed.bundle.identity().unwrap();
    std::fs::write(bed.bundle.path("disks/late.raw"), b"late").unwrap();
    identity.disks.push(IdentityDisk {
        name: "late".to_owned(),
        file: "disks/late.raw".into(),
        format: "raw".to_owned(),
        backing_format: None,
        layer: None,
        size: 4,
    });
    identity.disks[0].size *= 2;
    bed.bundle.write_identity(&identity).unwrap();
    // Merges what the snapshot was into other tops.
    work.remove(&id).unwrap();
    work.merge().await.unwrap();
    let after = bed.bundle.identity().unwrap();
    assert!(after.generation > identity.generation);
    assert_eq!(after.disks[0].size, identity.disks[0].size);
    assert_eq!(after.disks[2], identity.disks[2]);
    let late = std::fs::read(bed.bundle.path("disks/late.raw")).unwrap();
    assert_eq!(late, b"late");
}

/// What a process that is to be killed does.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
enum Victim {
    Create,
    Revert,
    Remove,
}

/// What the child is told, in a file of the home that it works in.
#[derive(serde::Serialize, serde::Deserialize)]
struct Order {
    victim: Victim,
    overlay: bool,
    step: u32,
}

/// Not a test by itself: what the children of `killed_at_any_step` run, in a home that holds an order.
#[test]
fn obeys_an_order() {
    let Ok(Some(order)) = read_json::<Order>(Path::new("order.json")) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bed = Bed::of(&std::fs::canonicalize(".").unwrap());
    let work = bed.work(if order.overlay {
        Way::Overlay
    } else {
        Way::Copy
    });
    let first = bed.graph().nodes[0].id.clone();
    crate::testing::faults::kill_at(order.step);
    runtime.block_on(async {
        match order.victim {
            Victim::Create => drop(work.create(&wanted()).unwrap()),
            Victim::Revert => drop(work.revert(&first).unwrap()),
            Victim::Remove => {
                work.remove(&first).unwrap();
                work.merge().await.unwrap();
            }
        }
    });
    std::fs::write("done", b"").unwrap();
}

/// Kills a command at its first step, then at the second, until one gets to its end; looks at what each left. Returns how many were killed.
async fn killed_at_any_step(victim: Victim, overlay: bool) -> u32 {
    let way = if overlay { Way::Overlay } else { Way::Copy };
    for step in 1..200 {
        let bed = Bed::new();
        let work = bed.work(way);
        bed.write("root", 1, 1);
        let (first, _) = work.create(&wanted()).unwrap();
        let held_first = bed.present();
        bed.write("root", 2, 2);
        bed.write("data", 2, 2);
        std::fs::write(bed.bundle.path("efi-variables.fd"), b"second").unwrap();
        let (second, _) = work.create(&wanted()).unwrap();
        let held_second = bed.present();
        bed.write("root", 3, 3);
        let before = bed.present();
        let order = Order {
            victim,
            overlay,
            step,
        };
        let order = serde_json::to_vec(&order).unwrap();
        std::fs::write(bed.home().join("order.json"), order).unwrap();
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["engine::snapshots::tests::obeys_an_order", "--exact"])
            .current_dir(bed.home())
            .output()
            .unwrap();
        let done = bed.home().join("done").exists();
        assert_eq!(ended.status.success(), done, "{ended:?}");

        // The next command.
        settle(&bed.images, &bed.bundle).unwrap();
        work.open().unwrap();
        let graph = bed.graph();
        let told = format!("{victim:?}, killed at step {step}: {graph:?}");
        let present = bed.present();
        match victim {
            Victim::Revert => assert!(present == before || present == held_first, "{told}"),
            _ => assert_eq!(present, before, "{told}"),
        }
        let there = |id: &str| graph.node(id).is_some();
        assert!(there(&second), "{told}");
        assert_eq!(bed.held(&second), held_second, "{told}");
        match victim {
            Victim::Remove => {}
            _ => assert!(there(&first), "{told}"),
        }
        if there(&first) {
            assert_eq!(bed.held(&first), held_first, "{told}");
        }
        for node in graph.nodes.iter().skip(2) {
            assert_eq!(bed.held(&node.id), before, "{told}");
        }
        bed.check_whole();
        // And it can go on.
        work.merge().await.unwrap();
        let (third, _) = work.create(&wanted()).unwrap();
        work.revert(&second).unwrap();
        assert_eq!(bed.present(), held_second, "{told}");
        work.revert(&third).unwrap();
        assert_eq!(bed.present(), present, "{told}");
        bed.check_whole();
        if done {
            return step - 1;
        }
    }
    panic!("{victim:?} has no end");
}

#[tokio::test]
async fn a_create_that_is_killed_at_any_step_did_it_or_not() {
    let steps = killed_at_any_step(Victim::Create, true).await;
    assert!(steps > 5, "{steps}");
    let steps = killed_at_any_step(Victim::Create, false).await;
    assert!(steps > 3, "{steps}");
}

#[tokio::test]
async fn a_revert_that_is_killed_at_any_step_did_it_or_not() {
    let steps = killed_at_any_step(Victim::Revert, true).await;
    assert!(steps > 8, "{steps}");
    let steps = killed_at_any_step(Victim::Revert, false).await;
    assert!(steps > 8, "{steps}");
}

#[tokio::test]
async fn a_removal_that_is_killed_at_any_step_did_it_or_not() {
    let steps = killed_at_any_step(Victim::Remove, true).await;
    assert!(steps > 5, "{steps}");
    let steps = killed_at_any_step(Victim::Remove, false).await;
    assert!(steps > 1, "{steps}");
}
