//! Specs, their changes, and what a hypervisor says on its control socket.

use innkeeper::drivers::qemu::count_messages;
use innkeeper::spec::{Edit, edit as edit_spec, read as read_spec, write};

use crate::text;

/// A spec that is read is written as one that reads the same.
pub(crate) fn read(data: &[u8]) {
    if let Some(text) = text(data)
        && let Ok(spec) = read_spec(text, "fuzz.yaml")
    {
        let written = write(&spec);
        match read_spec(&written, "written.yaml") {
            Ok(again) => assert_eq!(again, spec, "{written}"),
            Err(problems) => panic!("what was written can't be read: {problems}\n{written}"),
        }
    }
}

/// Two lines of path and value (`-` removes), then the spec: an edit gives a spec that can be read, or changes nothing.
pub(crate) fn edit(data: &[u8]) {
    let Some(text) = text(data) else {
        return;
    };
    let mut parts = text.splitn(3, '\n');
    let (Some(path), Some(value), Some(spec)) = (parts.next(), parts.next(), parts.next()) else {
        return;
    };
    let edits = [Edit {
        path: path.to_owned(),
        value: (value != "-").then(|| value.to_owned()),
    }];
    if let Ok(edited) = edit_spec(spec, &edits)
        && let Err(problems) = read_spec(&edited, "edited.yaml")
    {
        panic!("what was edited can't be read: {problems}\n{edited}");
    }
}

/// Of any stream no more messages are read than it has lines.
pub(crate) fn qmp_lines(data: &[u8]) {
    let lines = data.iter().filter(|byte| **byte == b'\n').count();
    assert!(count_messages(data) <= lines);
}
