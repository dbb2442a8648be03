//! Edits keep what people wrote.

use super::super::*;

const TEXT: &str = "\
# The web server.
image: debian:12   # the image

cpus: 2 # two
boot:
    # inner
    cmdline: \"quiet\"  # k
disks:
- name: root   # r
  size: 10GiB
- {name: data, size: 5GiB}  # d
labels: {a: b, c: d} # l
# tail
";

fn set(path: &str, value: &str) -> Edit {
    Edit {
        path: path.to_owned(),
        value: Some(value.to_owned()),
    }
}

fn unset(path: &str) -> Edit {
    Edit {
        path: path.to_owned(),
        value: None,
    }
}

fn one(text: &str, edit: Edit) -> String {
    super::super::edit(text, &[edit]).unwrap()
}

#[test]
fn one_line_changes() {
    for (edit, old, new) in [
        (set("cpus", "4"), "cpus: 2 # two", "cpus: 4 # two"),
        (
            set("boot.cmdline", "a: #b"),
            "\"quiet\"  # k",
            "\"a: #b\"  # k",
        ),
        (
            set("disks.root.size", "20GiB"),
            "  size: 10GiB",
            "  size: 20GiB",
        ),
        (set("disks.data.size", "6GiB"), "size: 5GiB}", "size: 6GiB}"),
        (set("labels.a", "x, y"), "{a: b,", "{a: \"x, y\","),
        (set("labels.env", "4"), "c: d} # l", "c: d, env: \"4\"} # l"),
        (
            set("labels.e.f", "true"),
            "c: d} # l",
            "c: d, e.f: \"true\"} # l",
        ),
        (unset("labels.c"), "{a: b, c: d} # l", "{a: b} # l"),
        (unset("cpus"), "cpus: 2 # two\n", ""),
        (unset("disks.data"), "- {name: data, size: 5GiB}  # d\n", ""),
        (
            set("protected", "true"),
            "# tail\n",
            "# tail\nprotected: true\n",
        ),
        (
            set("seed.user", "me"),
            "# tail\n",
            "# tail\nseed:\n  user: me\n",
        ),
    ] {
        let edited = one(TEXT, edit.clone()).replace('\'', "\"");
        assert_eq!(edited, TEXT.replace(old, new), "{edit:?}");
    }
}

#[test]
fn missing_parents_and_items_are_made() {
    let text = "image: tiny\n";
    for edit in [
        set("disks.root.size", "20GiB"),
        set("disks.data.size", "1GiB"),
        set("networks.0.mac", "52:54:00:00:00:01"),
        set("networks.0.forwards.0", "8080:80"),
        set("shares.0", "/a:/b:ro"),
        set("seed.packages", "[git, curl]"),
        set("labels.1", "one"),
        set("boot.cmdline", "a\\b 'c'"),
    ] {
        let edited = one(text, edit.clone());
        assert!(edited.starts_with(text), "{edited}");
        let spec = read(&edited, "edited").unwrap();
        assert_ne!(spec, read(text, "before").unwrap(), "{edit:?}: {edited}");
    }
    let both = [
        set("disks.root.size", "9GiB"),
        set("disks.data.size", "1GiB"),
    ];
    let edited = super::super::edit(text, &both).unwrap();
    assert_eq!(read(&edited, "edited").unwrap().disks.len(), 2, "{edited}");
}

#[test]
fn other_shapes_of_text_work() {
    assert_eq!(one("---\n", set("cpus", "4")), "---\ncpus: 4\n");
    assert_eq!(one("", set("cpus", "4")), "cpus: 4\n");
    assert_eq!(one("# hi\n", set("cpus", "4")), "# hi\ncpus: 4\n");
    assert_eq!(
        one("image: tiny\r\ncpus: 2 # c\r\n", set("memory", "2GiB")),
        "image: tiny\r\ncpus: 2 # c\r\nmemory: 2GiB\r\n"
    );
    assert_eq!(
        read(&one("image: tiny", set("cpus", "4")), "x")
            .unwrap()
            .cpus,
        4
    );
    let json = one(
        "{\"image\": \"tiny\", \"cpus\": 2}\n",
        set("boot.cmdline", "x"),
    );
    assert_eq!(
        read(&json, "json").unwrap().boot.cmdline.as_deref(),
        Some("x")
    );
}

#[test]
fn removing_what_is_not_there_changes_nothing() {
    for path in [
        "memory",
        "boot.kernel",
        "disks.other.size",
        "labels.zzz",
        "seed.user",
        "shares.3",
    ] {
        assert_eq!(one(TEXT, unset(path)), TEXT, "{path}");
    }
}

#[test]
fn refused_edits() {
    let told = |edit: Edit| crate::Error::from(super::super::edit(TEXT, &[edit]).unwrap_err());
    let cases = [
        set("cpu", "4"),
        set("boot.kernal", "/k"),
        set("", "x"),
        set("cpus.x", "4"),
        set("labels.", "4"),
        set("cpus", "many"),
        set("cpus", "0"),
        set("protected", "maybe"),
        set("shares.5", "/a:/b"),
        set("seed.packages", "git"),
        set("seed.packages", "&a [*a]"),
        set("disks.DATA.size", "1GiB"),
        set("labels.a b", "x"),
    ];
    let lines: Vec<String> = cases
        .into_iter()
        .map(|edit| {
            let error = told(edit.clone());
            format!(
                "{}={}\n  {}\n  hint: {:?}",
                edit.path,
                edit.value.unwrap_or_default(),
                error.chain().join(": "),
                error.hint()
            )
        })
        .collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn an_invalid_file_can_be_mended() {
    let broken = "cpus: 0 # oops\n";
    assert_eq!(one(broken, set("cpus", "1")), "cpus: 1 # oops\n");
    assert!(super::super::edit(broken, &[set("memory", "1GiB")]).is_err());
}
