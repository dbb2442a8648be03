//! Streams of a copy that no honest sender makes: whatever they say, nothing outside the destination is made, changed or removed.
//!
//! The streams are put together here byte by byte, not by the crate's own encoder, which could not say most of this.

use bytes::Bytes;
use innkeeper_agent::copy::{CopyError, MAX_DEPTH, Receiver, ReceiverOptions};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const FILE: u8 = 0;
const DIRECTORY: u8 = 1;
const LINK: u8 = 2;

fn record(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn entry_with(kind: u8, mode: u32, size: u64, name: &[u8], target: &[u8]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend_from_slice(&mode.to_le_bytes());
    body.extend_from_slice(&1_000_000_000_i64.to_le_bytes());
    body.extend_from_slice(&0_u32.to_le_bytes());
    body.extend_from_slice(&size.to_le_bytes());
    body.extend_from_slice(&(name.len() as u16).to_le_bytes());
    body.extend_from_slice(name);
    body.extend_from_slice(target);
    record(b'E', &body)
}

fn file(name: &[u8], content: &[u8]) -> Vec<u8> {
    let begin = entry_with(FILE, 0o644, content.len() as u64, name, b"");
    [begin, record(b'D', content), record(b'F', b"")].concat()
}

fn directory(name: &[u8], inside: &[Vec<u8>]) -> Vec<u8> {
    let begin = entry_with(DIRECTORY, 0o755, 0, name, b"");
    [begin, inside.concat(), record(b'U', b"")].concat()
}

fn link(name: &[u8], target: &[u8]) -> Vec<u8> {
    entry_with(LINK, 0o777, 0, name, target)
}

/// A destination with a neighbour that must stay as it is.
struct Place {
    around: tempfile::TempDir,
    before: BTreeMap<PathBuf, String>,
}

/// Everything below a directory but the destination: kind, mode, content or target of each.
fn survey(root: &Path, found: &mut BTreeMap<PathBuf, String>) {
    for entry in std::fs::read_dir(root).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.ends_with("destination") {
            continue;
        }
        let metadata = path.symlink_metadata().expect("its state");
        let what = match metadata.file_type() {
            kind if kind.is_file() => {
                format!("{:?}", std::fs::read(&path).expect("its content"))
            }
            kind if kind.is_symlink() => format!("{:?}", std::fs::read_link(&path)),
            _ => String::new(),
        };
        let time = metadata.mtime();
        found.insert(
            path.clone(),
            format!("{:o} {time} {what}", metadata.permissions().mode()),
        );
        if metadata.is_dir() {
            survey(&path, found);
        }
    }
}

impl Place {
    fn new() -> Place {
        let around = tempfile::tempdir().expect("a directory");
        let neighbour = around.path().join("neighbour");
        std::fs::create_dir_all(neighbour.join("inner")).expect("made");
        std::fs::write(neighbour.join("keys"), "the user's own").expect("written");
        std::fs::create_dir(around.path().join("destination")).expect("made");
        let mut before = BTreeMap::new();
        survey(around.path(), &mut before);
        Place { around, before }
    }

    fn destination(&self) -> PathBuf {
        self.around.path().join("destination")
    }

    fn neighbour(&self, name: &str) -> Vec<u8> {
        let path = self.around.path().join("neighbour").join(name);
        path.into_os_string().into_encoded_bytes()
    }

    /// Receives a stream and looks around.
    fn receive(&self, what: &str, stream: Vec<u8>) -> Result<u64, CopyError> {
        let options = ReceiverOptions {
            mode_mask: 0o777,
            owner: None,
            create_parents: false,
        };
        let received = Receiver::create(&self.destination(), options).and_then(|mut receiver| {
            // In pieces, as a link gives them.
            for piece in stream.chunks(61) {
                receiver.push(Bytes::copy_from_slice(piece))?;
            }
            Ok(receiver.summary().entries)
        });
        let mut after = BTreeMap::new();
        survey(self.around.path(), &mut after);
        assert_eq!(after, self.before, "{what}: the neighbour was touched");
        received
    }

    fn refused(&self, what: &str, stream: Vec<u8>) -> String {
        match self.receive(what, stream) {
            Err(error) => error.to_string(),
            Ok(entries) => panic!("{what}: {entries} entries were taken"),
        }
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let place = Place::new();
    let absolute = place.neighbour("keys");
    let mut with_nul = b"a\0b".to_vec();
    for name in [
        b"../neighbour/keys".as_slice(),
        b"..",
        b".",
        b"",
        b"a/b",
        b"/",
        b"neighbour/../../x",
        &absolute,
        &[b'n'; 256],
    ] {
        let what = String::from_utf8_lossy(name).into_owned();
        place.refused(&what, file(name, b"hostile"));
        place.refused(&what, directory(name, &[file(b"keys", b"hostile")]));
        place.refused(&what, directory(b"tree", &[file(name, b"hostile")]));
        place.refused(&what, directory(b"tree", &[directory(name, &[])]));
        place.refused(&what, directory(b"tree", &[link(name, b"target")]));
    }
    with_nul.extend_from_slice(b"/x");
    place.refused("a NUL", file(b"keys\0", b"hostile"));
    place.refused(
        "a NUL and a slash",
        directory(b"tree", &[file(&with_nul, b"")]),
    );
}

#[test]
fn nothing_is_written_through_a_link() {
    let place = Place::new();
    let (neighbour, keys) = (place.neighbour(""), place.neighbour("keys"));
    for target in [
        neighbour.as_slice(),
        b"../../neighbour",
        b"../../neighbour/",
    ] {
        let what = String::from_utf8_lossy(target).into_owned();
        // A link to a directory, then that directory's entries.
        let through = [
            link(b"inner", target),
            directory(b"inner", &[file(b"keys", b"hostile")]),
        ];
        let said = place.refused(&what, directory(b"tree", &through));
        assert!(said.contains("directory"), "{said}");
    }
    for target in [
        keys.as_slice(),
        b"../../neighbour/keys",
        b"../../neighbour/new",
    ] {
        let what = String::from_utf8_lossy(target).into_owned();
        // A link to a file, then that file: the link is replaced.
        let through = [link(b"keys", target), file(b"keys", b"mine")];
        place
            .receive(&what, directory(b"tree", &through))
            .expect("replaced");
        let made = place.destination().join("tree/keys");
        assert!(made.symlink_metadata().expect("there").is_file(), "{what}");
        assert_eq!(std::fs::read(&made).expect("read"), b"mine");
        // And the other way round: a link over the file is a link, and the file's content is nowhere else.
        let over = [file(b"other", b"mine"), link(b"other", target)];
        place
            .receive(&what, directory(b"tree", &over))
            .expect("replaced");
        // A link over a directory that the stream is in.
        let under = [directory(b"deep", &[]), link(b"deep", target)];
        place.refused(&what, directory(b"tree", &under));
    }
}

#[test]
fn links_that_were_there_before_are_not_followed() {
    let place = Place::new();
    let tree = place.destination().join("tree");
    std::fs::create_dir(&tree).expect("made");
    symlink("../../neighbour", tree.join("inner")).expect("a link");
    symlink("../../neighbour/keys", tree.join("keys")).expect("a link");
    place.refused(
        "a directory over a link",
        directory(
            b"tree",
            &[directory(b"inner", &[file(b"keys", b"hostile")])],
        ),
    );
    place
        .receive(
            "a file over a link",
            directory(b"tree", &[file(b"keys", b"mine")]),
        )
        .expect("replaced");
}

#[test]
fn the_root_is_never_a_link() {
    // Otherwise a second copy to the same place would be written wherever it points.
    let place = Place::new();
    let said = place.refused("a root that is a link", link(b"tree", b"../neighbour"));
    assert!(said.contains("link"), "{said}");
    assert!(place.destination().join("tree").symlink_metadata().is_err());
}

#[test]
fn the_sender_does_not_choose_which_file_of_a_directory_it_writes() {
    let place = Place::new();
    let options = ReceiverOptions {
        mode_mask: 0o777,
        owner: None,
        create_parents: false,
    };
    let mut receiver = Receiver::create(&place.destination(), options).expect("opened");
    receiver.name_root("asked".as_ref());
    let stream = [file(b".profile", b"hostile"), record(b'Z', b"")].concat();
    receiver.push(stream.into()).expect("taken");
    assert!(receiver.is_complete());
    let names: Vec<_> = std::fs::read_dir(place.destination())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["asked"]);
}

#[test]
fn depth_is_bounded() {
    let place = Place::new();
    let deep = |levels: usize| -> Vec<u8> {
        let begin = entry_with(DIRECTORY, 0o755, 0, b"d", b"");
        begin.repeat(levels)
    };
    place.refused("5000 levels", deep(5000));
    assert_eq!(
        place
            .receive("as deep as may be", deep(MAX_DEPTH))
            .expect("taken"),
        MAX_DEPTH as u64
    );
    let wide: Vec<Vec<u8>> = (0..3000)
        .map(|index| directory(format!("d{index}").as_bytes(), &[]))
        .collect();
    assert_eq!(
        place
            .receive("3000 beside each other", directory(b"tree", &wide))
            .expect("taken"),
        3001
    );
}

#[test]
fn sizes_that_are_told_are_not_believed() {
    let place = Place::new();
    // An entry that says to be large is written as long as it is.
    let begin = entry_with(FILE, 0o644, u64::MAX, b"large", b"");
    let stream = [begin, record(b'D', b"small"), record(b'F', b"")].concat();
    place.receive("a size of 2^64-1", stream).expect("taken");
    let made = place.destination().join("large");
    assert_eq!(std::fs::metadata(made).expect("there").len(), 5);
    // Lengths of records are bounded before anything is gathered for them.
    for tag in [b'D', b'E', b'F', b'U', b'Z', b'?', 0] {
        let mut header = vec![tag];
        header.extend_from_slice(&u32::MAX.to_le_bytes());
        let stream = [entry_with(FILE, 0o644, 0, b"f", b""), header].concat();
        place.refused("a record of 4 GiB", stream);
    }
    let mut name_too_long = entry_with(FILE, 0o644, 0, b"name", b"");
    name_too_long[5 + 25..5 + 27].copy_from_slice(&u16::MAX.to_le_bytes());
    place.refused("a name longer than its record", name_too_long);
}

#[test]
fn devices_and_other_kinds_are_refused() {
    let place = Place::new();
    for kind in 3..=255 {
        let stream = directory(
            b"tree",
            &[entry_with(kind, 0o644, 0, b"device", b"\x08\0\0\0")],
        );
        place.refused("an unknown kind", stream);
    }
    place.refused(
        "a file with a target",
        entry_with(FILE, 0o644, 0, b"f", b"target"),
    );
    place.refused("a link without one", directory(b"tree", &[link(b"l", b"")]));
    // Kinds in the mode's high bits, and set-user-id, are cut off.
    let stream = [
        entry_with(FILE, 0o060_000 | 0o6755, 0, b"mode", b""),
        record(b'F', b""),
    ]
    .concat();
    place.receive("a device's mode", stream).expect("taken");
    let made = std::fs::metadata(place.destination().join("mode")).expect("there");
    assert!(made.is_file());
    assert_eq!(made.permissions().mode() & 0o7777, 0o755);
}

// Making a named pipe is only to be had on Linux here.
#[cfg(target_os = "linux")]
#[test]
fn what_is_in_the_way_is_not_followed_or_waited_for() {
    let place = Place::new();
    let pipe = place.destination().join("pipe");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .expect("a pipe");
    std::fs::create_dir(place.destination().join("directory")).expect("made");
    std::fs::write(place.destination().join("file"), "x").expect("written");
    place.refused("a file over a pipe", file(b"pipe", b"x"));
    place.refused("a file over a directory", file(b"directory", b"x"));
    place.refused("a directory over a file", directory(b"file", &[]));
}

#[test]
fn names_twice_stay_inside() {
    let place = Place::new();
    let twice = [
        file(b"a", b"first and longer"),
        file(b"a", b"second"),
        directory(b"b", &[file(b"a", b"1")]),
        directory(b"b", &[file(b"a", b"2")]),
        link(b"c", b"a"),
        link(b"c", b"b"),
    ];
    place
        .receive("names twice", directory(b"tree", &twice))
        .expect("taken");
    let tree = place.destination().join("tree");
    assert_eq!(std::fs::read(tree.join("a")).expect("read"), b"second");
    assert_eq!(std::fs::read(tree.join("b/a")).expect("read"), b"2");
    assert_eq!(
        std::fs::read_link(tree.join("c")).expect("a link"),
        Path::new("b")
    );
    let two_roots = [file(b"one", b"1"), file(b"two", b"2")].concat();
    place.refused("two roots", two_roots);
}

#[test]
fn odd_names_are_kept_and_told_without_their_control_characters() {
    let place = Place::new();
    let odd = b"a\nb\x1b]0;title\x07\xff\xc3";
    place
        .receive("an odd name", directory(b"tree", &[file(odd, b"x")]))
        .expect("taken");
    use std::os::unix::ffi::OsStrExt;
    let made = place
        .destination()
        .join("tree")
        .join(std::ffi::OsStr::from_bytes(odd));
    assert_eq!(std::fs::read(made).expect("read"), b"x");
    let said = place.refused(
        "a directory over it",
        directory(b"tree", &[directory(odd, &[])]),
    );
    assert!(!said.chars().any(char::is_control), "{said:?}");
    let slash = [odd.as_slice(), b"/x"].concat();
    let said = place.refused("a path in it", file(&slash, b"x"));
    assert!(!said.chars().any(char::is_control), "{said:?}");
}

#[test]
fn records_out_of_order_are_refused() {
    let place = Place::new();
    for (what, stream) in [
        ("data first", record(b'D', b"x")),
        ("an end first", record(b'F', b"")),
        ("up first", record(b'U', b"")),
        ("complete first", record(b'Z', b"")),
        (
            "up past the root",
            [directory(b"t", &[]), record(b'U', b"")].concat(),
        ),
        (
            "an entry within a file",
            [entry_with(FILE, 0, 0, b"f", b""), file(b"g", b"")].concat(),
        ),
        (
            "complete within a directory",
            [
                entry_with(DIRECTORY, 0o755, 0, b"d", b""),
                record(b'Z', b""),
            ]
            .concat(),
        ),
        (
            "more after the end",
            [file(b"f", b""), record(b'Z', b""), file(b"g", b"")].concat(),
        ),
    ] {
        place.refused(what, stream);
    }
}
