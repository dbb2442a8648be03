//! Puts a user's own user-data together with ours.
//!
//! Own text is never rewritten: it travels as one part of a MIME message and ours as another, since reading YAML here and writing it again would
//! change what cloud-init sees (`0644` is octal to PyYAML). Of two `#cloud-config` parts cloud-init merges ours into the user's: the user's
//! value wins, lists become ours followed by theirs, maps are merged in the same way. Scripts, boothooks, include
//! lists, part handlers and templates go beside ours. What is compressed or a MIME message already is refused.

use base64::Engine;
use serde_json::{Map, Value};

use crate::{Error, Result, yaml};

/// Largest own user-data in bytes.
const SIZE_LIMIT: usize = 8 << 20;

/// How cloud-init merges ours into what it has read before (cloudinit.mergers): what is there stays, lists get ours in front.
const MERGE_HEADER: &str = "X-Merge-Type: list(prepend)+dict(no_replace,recurse_list)+str()\n";

/// First words of a document and what cloud-init calls it.
const KINDS: &[(&str, &str)] = &[
    ("#!", "text/x-shellscript"),
    ("#cloud-boothook", "text/cloud-boothook"),
    ("#include", "text/x-include-url"),
    ("#part-handler", "text/part-handler"),
    ("## template: jinja", "text/jinja2"),
    ("#cloud-config-archive", "text/cloud-config-archive"),
];

/// Gives the document for cloud-init.
pub(crate) fn combine(ours: Map<String, Value>, own: Option<&str>) -> Result<String> {
    let cloud_config = |config: Map<String, Value>| {
        format!("#cloud-config\n{}", yaml::emit(&Value::Object(config)))
    };
    let Some(own) = own else {
        return Ok(cloud_config(ours));
    };
    if own.len() > SIZE_LIMIT {
        return Err(invalid("is over 8 MiB"));
    }
    if let Some((_, kind)) = KINDS.iter().find(|(start, _)| own.starts_with(start)) {
        return Ok(mime(&[
            ("text/cloud-config", "", &cloud_config(ours)),
            (kind, "", own),
        ]));
    }
    if own.lines().next().map(str::trim_end) != Some("#cloud-config") {
        return Err(invalid("must begin with #cloud-config, or #! for a script"));
    }
    // Parsed only to refuse here what would fail unseen in the guest.
    let parsed: Value =
        serde_saphyr::from_str(own).map_err(|failure| invalid(format!("is no YAML: {failure}")))?;
    if !parsed.is_object() && !parsed.is_null() {
        return Err(invalid("must be a mapping of keys to values"));
    }
    Ok(mime(&[
        ("text/cloud-config", "", own),
        ("text/cloud-config", MERGE_HEADER, &cloud_config(ours)),
    ]))
}

fn invalid(problem: impl Into<String>) -> Error {
    Error::Invalid {
        what: "user-data",
        value: "of the VM".into(),
        problem: problem.into(),
    }
}

/// Parts are base64, so that no content can look like the boundary.
fn mime(parts: &[(&str, &str, &str)]) -> String {
    const BOUNDARY: &str = "==innkeeper==";
    let mut text =
        format!("Content-Type: multipart/mixed; boundary=\"{BOUNDARY}\"\nMIME-Version: 1.0\n\n");
    for (kind, header, content) in parts {
        text.push_str(&format!(
            "--{BOUNDARY}\nContent-Type: {kind}; charset=\"utf-8\"\nMIME-Version: 1.0\n{header}Content-Transfer-Encoding: base64\n\n"
        ));
        let encoded = base64::engine::general_purpose::STANDARD.encode(content);
        for line in encoded.as_bytes().chunks(76) {
            // Base64 is ASCII.
            text.push_str(&String::from_utf8_lossy(line));
            text.push('\n');
        }
    }
    text.push_str(&format!("--{BOUNDARY}--\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn ours() -> Map<String, Value> {
        json!({"hostname": "a", "runcmd": [["x"]], "nested": {"a": 1, "b": 2}})
            .as_object()
            .unwrap()
            .clone()
    }

    #[test]
    fn own_text_travels_unchanged_and_ours_is_merged_into_it() {
        let own = "#cloud-config\nhostname: b\npermissions: 0644\n";
        let text = combine(ours(), Some(own)).unwrap();
        let encoded = base64::engine::general_purpose::STANDARD.encode(own);
        let own_at = text.find(&encoded).expect("unchanged");
        assert!(own_at < text.find("X-Merge-Type").expect("ours comes second"));
    }

    #[test]
    fn scripts_travel_as_a_second_part() {
        let text = combine(ours(), Some("#!/bin/sh\necho hello\n")).unwrap();
        assert!(text.starts_with("Content-Type: multipart/mixed"));
        assert!(text.contains("text/x-shellscript") && text.contains("text/cloud-config"));
        assert!(text.contains(
            &base64::engine::general_purpose::STANDARD.encode("#!/bin/sh\necho hello\n")
        ));
    }

    #[test]
    fn what_is_neither_is_refused_with_the_fix() {
        for own in [
            "hostname: x",
            "#cloud-config\n- a list",
            "#cloud-config\na: [",
            "",
        ] {
            let message = combine(ours(), Some(own)).unwrap_err().to_string();
            assert!(message.starts_with("user-data"), "{message}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_user_data_never_panics(own in "(#cloud-config\n|#!)?(?s).{0,200}") {
            let _ = combine(ours(), Some(&own));
        }
    }
}
