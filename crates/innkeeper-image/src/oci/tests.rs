//! Layers made here become disks that e2fsck and debugfs judge; hostile ones are refused.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::blob::{Expected, Packing};
use super::*;
use crate::progress::Silent;
use crate::tool::{self, Tool};

/// An archive of a test.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Layer {
        Layer(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, size: usize) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size as u64);
        header
    }

    /// The name goes in as it is: the builder would refuse what a hostile one has.
    fn name(header: &mut tar::Header, name: &str) {
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    }

    fn add(mut self, kind: tar::EntryType, name: &str, target: &str, content: &[u8]) -> Layer {
        let mut header = Layer::header(kind, content.len());
        Layer::name(&mut header, name);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: impl AsRef<[u8]>) -> Layer {
        self.add(tar::EntryType::Regular, name, "", content.as_ref())
    }

    fn directory(self, name: &str) -> Layer {
        self.add(tar::EntryType::Directory, name, "", b"")
    }

    fn link(self, name: &str, target: &str) -> Layer {
        self.add(tar::EntryType::Symlink, name, target, b"")
    }

    fn hard(self, name: &str, target: &str) -> Layer {
        self.add(tar::EntryType::Link, name, target, b"")
    }

    fn device(mut self, name: &str, kind: tar::EntryType, major: u32, minor: u32) -> Layer {
        let mut header = Layer::header(kind, 0);
        Layer::name(&mut header, name);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        self.0.append(&header, &b""[..]).unwrap();
        self
    }

    fn records(mut self, records: &[(&str, &[u8])]) -> Layer {
        self.0
            .append_pax_extensions(records.iter().copied())
            .unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn context() -> Context {
    Context::new(Arc::new(Silent))
}

fn pack(plain: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::None => plain.to_vec(),
        Packing::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Packing::Zstd => {
            ruzstd::encoding::compress_to_vec(plain, ruzstd::encoding::CompressionLevel::Fastest)
        }
    }
}

fn make(directory: &Path, layers: &[(Vec<u8>, Packing)]) -> Result<PathBuf> {
    let path = directory.join("root");
    let mut root = RootWriter::create(&path)?;
    for (index, (plain, packing)) in layers.iter().enumerate() {
        let packed = pack(plain, *packing);
        let file = directory.join(format!("layer{index}"));
        std::fs::write(&file, &packed).unwrap();
        let expected = Expected {
            packed: digest::sha256_hex(&packed),
            plain: digest::sha256_hex(plain),
            packing: *packing,
        };
        root.layer(&file, expected, &context())?;
    }
    root.finish(&digest::sha256_hex(b"x"), "/srv/work")?;
    Ok(path)
}

fn check(path: &Path) {
    let e2fsck = tool::require("e2fsck", "e2fsprogs", "e2fsprogs").unwrap();
    // -n: changes nothing; any finding is a status other than 0.
    Tool::new(&e2fsck, "check the disk")
        .args(["-f", "-n"])
        .arg(path)
        .output(&context())
        .unwrap();
}

fn debugfs(path: &Path, request: &str) -> String {
    let debugfs = tool::require("debugfs", "e2fsprogs", "e2fsprogs").unwrap();
    let output = Tool::new(&debugfs, "look into the disk")
        .args(["-R", request])
        .arg(path)
        .output(&context())
        .unwrap();
    String::from_utf8(output).unwrap()
}

#[test]
fn layers_become_a_disk_that_is_sound() {
    let directory = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|number| number.to_le_bytes())
        .collect();
    let acl: &[u8] = &[
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0xE8, 3, 0, 0, 4, 0, 4, 0, 255,
        255, 255, 255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
    ];
    let mut first = Layer::new()
        .directory("./")
        .directory("usr/lib")
        .link("lib", "usr/lib")
        .file("etc/motd", "hello\n")
        .file("large", &large)
        .file("zeros", vec![0; 1 << 20])
        .file("empty", "")
        .link("long", &"x/".repeat(45))
        .hard("etc/motd2", "etc/motd")
        .device("dev/null", tar::EntryType::Char, 1, 3)
        .device("dev/wide", tar::EntryType::Block, 259, 70_000)
        .add(tar::EntryType::Fifo, "fifo", "", b"")
        .records(&[
            (
                "SCHILY.xattr.security.capability",
                &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
            ("SCHILY.xattr.user.note", b"n"),
            ("SCHILY.xattr.com.apple.x", b"n"),
        ])
        .file("ping", "p")
        .records(&[("SCHILY.xattr.system.posix_acl_access", acl)])
        .file("acl", "p");
    for number in 0..400 {
        first = first.file(
            &format!("many/a file with a rather long name {number}"),
            number.to_string(),
        );
    }
    let second = Layer::new()
        .file("lib/new.so", "new")
        .file("many/.wh.a file with a rather long name 7", "")
        .file(".wh.large", "")
        .file("etc/motd", "changed\n");
    let third = Layer::new().directory("lib").file("lib/only", "here");
    let path = make(
        directory.path(),
        &[
            (first.bytes(), Packing::Gzip),
            (second.bytes(), Packing::Zstd),
            (third.bytes(), Packing::None),
        ],
    )
    .unwrap();
    check(&path);
    assert_eq!(debugfs(&path, "cat /etc/motd"), "changed\n");
    assert_eq!(debugfs(&path, "cat /etc/motd2"), "hello\n");
    assert_eq!(debugfs(&path, "cat /usr/lib/new.so"), "new");
    assert_eq!(debugfs(&path, "cat /lib/only"), "here");
    assert_eq!(debugfs(&path, "cat /large"), "");
    assert_eq!(
        debugfs(&path, "cat \"/many/a file with a rather long name 399\""),
        "399"
    );
    assert_eq!(
        debugfs(&path, "cat \"/many/a file with a rather long name 7\""),
        ""
    );
    assert!(
        debugfs(&path, "stat /dev/wide").contains("259:70000"),
        "{}",
        debugfs(&path, "stat /dev/wide")
    );
    assert!(debugfs(&path, "stat /long").contains("Size: 90"));
    let attributes = debugfs(&path, "ea_list /ping");
    assert!(
        attributes.contains("security.capability (20)") && attributes.contains("user.note"),
        "{attributes}"
    );
    assert!(!attributes.contains("apple"), "{attributes}");
    assert!(debugfs(&path, "ea_list /acl").contains("posix_acl_access"));
    for made in ["/proc", "/tmp", "/srv/work"] {
        assert!(
            debugfs(&path, &format!("stat {made}")).contains("Type: directory"),
            "{made}"
        );
    }
    use std::os::unix::fs::MetadataExt;
    let metadata = path.metadata().unwrap();
    assert_eq!(metadata.len(), LEAST_DISK);
    // Zeros take no room, nor do the tables of what is free.
    assert!(
        metadata.blocks() * 512 < 20 << 20,
        "{}",
        metadata.blocks() * 512
    );
}

#[test]
fn many_directories_are_sound() {
    let directory = tempfile::tempdir().unwrap();
    let mut layer = Layer::new();
    for outer in 0..70 {
        for inner in 0..30 {
            layer = layer.file(&format!("d{outer}/e/f{inner}"), [outer; 5]);
        }
    }
    let path = make(directory.path(), &[(layer.bytes(), Packing::None)]).unwrap();
    check(&path);
    assert_eq!(debugfs(&path, "cat /d69/e/f29"), "EEEEE");
}

#[test]
fn the_same_layers_make_the_same_disk() {
    let made: Vec<_> = (0..2)
        .map(|_| {
            let directory = tempfile::tempdir().unwrap();
            let layer = Layer::new().file("b", "1").directory("a").file("a/c", "2");
            let path = make(directory.path(), &[(layer.bytes(), Packing::None)]).unwrap();
            let mut start = vec![0; 8 << 20];
            std::os::unix::fs::FileExt::read_exact_at(
                &std::fs::File::open(path).unwrap(),
                &mut start,
                0,
            )
            .unwrap();
            digest::sha256_hex(&start)
        })
        .collect();
    assert_eq!(made[0], made[1]);
}

#[test]
fn hostile_layers_are_refused() {
    let cases: BTreeMap<&str, Layer> = BTreeMap::from([
        (
            "names the directory above",
            Layer::new().file("../../etc/passwd", "x"),
        ),
        ("by ..", Layer::new().file("../outside/.wh.victim", "")),
        ("without a name", Layer::new().file("a/.wh...", "")),
        (
            "is a hard link to \"/etc/shadow\"",
            Layer::new().hard("a", "/etc/shadow"),
        ),
        (
            "hard link to a directory",
            Layer::new().directory("d").hard("a", "d"),
        ),
        (
            "above by ..",
            Layer::new().file("f", "").hard("a", "x/../f"),
        ),
        ("no directory", Layer::new().file("f", "").file("f/x", "")),
        (
            "too many symbolic links",
            Layer::new().link("a", "b").link("b", "a").file("a/x", ""),
        ),
        ("replace the root", Layer::new().file(".", "x")),
        (
            "numbers that Linux",
            Layer::new().device("d", tar::EntryType::Char, 1 << 20, 3),
        ),
        (
            "kind that a layer",
            Layer::new().add(tar::EntryType::new(b'Q'), "q", "", b""),
        ),
        ("without a target", Layer::new().link("a", "")),
        (
            "headers of one entry",
            Layer::new()
                .add(tar::EntryType::GNULongName, "x", "", &vec![b'a'; 2 << 20])
                .file("b", ""),
        ),
        (
            "longer than 4096",
            Layer::new()
                .add(tar::EntryType::GNULongName, "x", "", &[b'a'; 5000])
                .file("b", ""),
        ),
        (
            "longer than 255",
            Layer::new()
                .add(tar::EntryType::GNULongName, "x", "", &[b'a'; 300])
                .file("b", ""),
        ),
        (
            "attributes that ext4",
            Layer::new()
                .records(&[("SCHILY.xattr.user.a", &[1; 8000])])
                .file("b", ""),
        ),
        (
            "more than 128 GiB",
            Layer::new()
                .records(&[("size", b"999999999999999")])
                .file("b", ""),
        ),
        (
            "sparse file in a form",
            Layer::new()
                .records(&[("GNU.sparse.major", b"1")])
                .file("b", ""),
        ),
    ]);
    for (part, layer) in cases {
        let directory = tempfile::tempdir().unwrap();
        let failure = make(directory.path(), &[(layer.bytes(), Packing::Gzip)]).expect_err(part);
        assert!(failure.to_string().contains(part), "{part}: {failure}");
    }
}

#[test]
fn a_link_to_the_outside_stays_inside() {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let name = outside.display().to_string();
    let layers = [
        (Layer::new().link("a", &name).bytes(), Packing::None),
        (
            Layer::new()
                .file("a/x", "inside")
                .file("a/.wh.y", "")
                .bytes(),
            Packing::None,
        ),
    ];
    let path = make(directory.path(), &layers).unwrap();
    check(&path);
    assert_eq!(debugfs(&path, &format!("cat {name}/x")), "inside");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn wrong_digests_and_broken_packing_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let plain = Layer::new().file("a", "b").bytes();
    let packed = pack(&plain, Packing::Gzip);
    let right = Expected {
        packed: digest::sha256_hex(&packed),
        plain: digest::sha256_hex(&plain),
        packing: Packing::Gzip,
    };
    let cut = packed[..packed.len() - 9].to_vec();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 100 << 20]).unwrap();
    let bomb = encoder.finish().unwrap();
    let expected_of = |packed: &[u8]| Expected {
        packed: digest::sha256_hex(packed),
        ..right.clone()
    };
    for (bytes, expected, part) in [
        (
            &packed,
            Expected {
                packed: "0".repeat(64),
                ..right.clone()
            },
            "its content has the digest",
        ),
        (
            &packed,
            Expected {
                plain: "0".repeat(64),
                ..right.clone()
            },
            "unpacked it has the digest",
        ),
        (&cut, expected_of(&cut), "sha256:"),
        (&bomb, expected_of(&bomb), "200 times its size"),
    ] {
        let file = directory.path().join("layer");
        std::fs::write(&file, bytes).unwrap();
        let path = directory.path().join("root");
        let failure = RootWriter::create(&path)
            .unwrap()
            .layer(&file, expected, &context())
            .unwrap_err();
        assert!(failure.to_string().contains(part), "{failure}");
        std::fs::remove_file(path).unwrap();
    }
}
