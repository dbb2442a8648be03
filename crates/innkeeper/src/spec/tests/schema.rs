//! The schema beside the reader and the documents: the same fields, the same verdicts.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::super::fields::Sink;
use super::super::*;

/// Collects the names of each object of the schema, by path with `0` for items.
fn collect(schema: &Json, path: &str, names: &mut BTreeMap<String, BTreeSet<String>>) {
    for form in schema["anyOf"].as_array().into_iter().flatten() {
        collect(form, path, names);
    }
    let join = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    if let Some(properties) = schema["properties"].as_object() {
        names
            .entry(path.to_owned())
            .or_default()
            .extend(properties.keys().cloned());
        for (name, value) in properties {
            collect(value, &join(name), names);
        }
    }
    if schema["items"].is_object() {
        collect(&schema["items"], &join("0"), names);
    }
}

fn schema_names() -> BTreeMap<String, BTreeSet<String>> {
    let mut names = BTreeMap::new();
    collect(&schema(), "", &mut names);
    names
}

#[test]
fn schema_and_reader_know_the_same_fields() {
    // Every object stands there as a first item, so that the reader comes to ask for its fields.
    let text = "{boot: {}, disks: [{limits: {}}], networks: [{forwards: [{}]}], shares: [{}], consoles: [{}], seed: {files: [{}]}}";
    let root = node::load(text).unwrap().root;
    let sink = Sink::default();
    reader::read_root(&root, &sink);
    let seen: BTreeMap<String, BTreeSet<String>> = sink
        .seen
        .take()
        .into_iter()
        .map(|(path, names)| (path, names.into_iter().map(str::to_owned).collect()))
        .collect();
    assert_eq!(seen, schema_names());
}

#[test]
fn schema_and_reader_give_the_same_verdicts() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let good = [
        "{}",
        r#"{"image": "debian:12", "cpus": 1024, "memory": "1.5 GiB"}"#,
        r#"{"memory": 1073741824, "arch": "amd64", "accel": "kvm", "driver": "auto"}"#,
        r#"{"boot": {"firmware": "direct", "kernel": "/k", "cmdline": "a b"}}"#,
        r#"{"disks": [{"name": "root"}, {"name": "a", "path": "/x", "format": "raw"}]}"#,
        r#"{"networks": [{"kind": "user", "mac": "52:54:00:12:34:5F", "forwards": ["1:2", "127.0.0.9:65535:2/udp", "[::1]:5:6", {"host_port": 9, "guest_port": 9, "host_address": "::1"}]}]}"#,
        r#"{"networks": []}"#,
        r#"{"cpus": 2, "max_cpus": 4, "memory": "1GiB", "max_memory": "2GiB", "memory_target": "512MiB", "memory_kind": "huge"}"#,
        r#"{"boot": {"firmware": "uefi", "secure_boot": true}, "tpm": true, "watchdog": "reset", "vsock": true, "nested": true}"#,
        r#"{"isolation": "agent", "time_to_live": "8h", "consoles": [{"name": "shell", "log": true}]}"#,
        r#"{"disks": [{"name": "a", "size": "1GiB", "bus": "nvme", "cache": "none", "discard": false, "limits": {"requests": 100, "bandwidth": "10MiB"}}, {"name": "cd", "removable": true}]}"#,
        r#"{"shares": ["/a:/b", "/a:/c:ro", "/a b:/d/", {"host": "/x:y", "guest": "/z"}]}"#,
        r#"{"ready": "serial:login:", "ready_timeout": "1h30min5s"}"#,
        r#"{"ready": "none", "ready_timeout": "10m", "protected": false, "labels": {"a.b/c": ""}}"#,
        r#"{"seed": {"hostname": "a.b", "user": "_x", "ssh_keys": ["ssh-rsa AAAA"], "packages": ["g++"], "commands": [["a", ""]], "mounts": [["a", "b"]], "files": [{"path": "/a", "mode": "0600"}]}}"#,
    ];
    let bad = [
        "[]",
        "1",
        r#"{"cpu": 1}"#,
        r#"{"image": ""}"#,
        r#"{"image": 1}"#,
        r#"{"image": null}"#,
        r#"{"cpus": 0}"#,
        r#"{"cpus": 1025}"#,
        r#"{"cpus": "1"}"#,
        r#"{"memory": 0}"#,
        r#"{"memory": "1X"}"#,
        r#"{"memory": "1.5"}"#,
        r#"{"memory": true}"#,
        r#"{"arch": "sparc"}"#,
        r#"{"accel": ""}"#,
        r#"{"driver": "../x"}"#,
        r#"{"machine": "q35,accel=kvm"}"#,
        r#"{"cpu_model": "-x"}"#,
        r#"{"boot": {"kernel": "k"}}"#,
        r#"{"boot": {"firmware": "efi"}}"#,
        r#"{"boot": []}"#,
        r#"{"disks": [{"size": "1GiB"}]}"#,
        r#"{"disks": [{"name": "A", "size": "1GiB"}]}"#,
        r#"{"disks": [{"name": "aaaaaaaaaaaaaaaaaaaaa", "size": "1GiB"}]}"#,
        r#"{"disks": [{"name": "a", "size": "1GiB", "mount": "/"}]}"#,
        r#"{"disks": [{"name": "a", "path": "/x", "format": "vmdk"}]}"#,
        r#"{"networks": [{"mac": "01:00:00:00:00:00"}]}"#,
        r#"{"networks": [{"mac": "+2:00:00:00:00:+0"}]}"#,
        r#"{"networks": [{"forwards": ["80"]}]}"#,
        r#"{"networks": [{"forwards": ["0.0.0.0:1:2"]}]}"#,
        r#"{"networks": [{"forwards": [{"host_port": 0, "guest_port": 1}]}]}"#,
        r#"{"networks": [{"forwards": [{"host_port": 1, "guest_port": 1, "host_address": "10.0.0.1"}]}]}"#,
        r#"{"networks": [{"kind": "bridge"}]}"#,
        r#"{"shares": ["a:/b"]}"#,
        r#"{"shares": ["/a:/b:xx"]}"#,
        r#"{"shares": ["/a:/"]}"#,
        r#"{"shares": [{"host": "/a"}]}"#,
        r#"{"ready": "login"}"#,
        r#"{"ready": "serial:"}"#,
        r#"{"ready_timeout": "10"}"#,
        r#"{"ready_timeout": 10}"#,
        r#"{"max_cpus": 0}"#,
        r#"{"memory_kind": "giant"}"#,
        r#"{"watchdog": true}"#,
        r#"{"isolation": "none"}"#,
        r#"{"time_to_live": "1"}"#,
        r#"{"consoles": [{"name": "Shell"}]}"#,
        r#"{"consoles": [{"log": true}]}"#,
        r#"{"disks": [{"name": "a", "size": "1GiB", "bus": "ide"}]}"#,
        r#"{"disks": [{"name": "a", "size": "1GiB", "limits": {"requests": 0}}]}"#,
        r#"{"protected": "yes"}"#,
        r#"{"labels": {"a b": "c"}}"#,
        r#"{"labels": {"a": 1}}"#,
        r#"{"seed": {"hostname": "-a"}}"#,
        r#"{"seed": {"user": "Root"}}"#,
        r#"{"seed": {"ssh_keys": ["x"]}}"#,
        r#"{"seed": {"packages": ["-o"]}}"#,
        r#"{"seed": {"commands": ["ls"]}}"#,
        r#"{"seed": {"commands": [[]]}}"#,
        r#"{"seed": {"mounts": [["a"]]}}"#,
        r#"{"seed": {"files": [{"path": "a"}]}}"#,
        r#"{"seed": {"files": [{"path": "/a", "mode": 420}]}}"#,
        r#"{"seed": {"files": [{"path": "/a", "mode": "9"}]}}"#,
    ];
    for (texts, fits) in [(&good[..], true), (&bad[..], false)] {
        for text in texts {
            let json: Json = serde_json::from_str(text).unwrap();
            let read = read(text, "corpus");
            assert_eq!(read.is_ok(), fits, "the reader on {text}: {read:?}");
            assert_eq!(validator.is_valid(&json), fits, "the schema on {text}");
        }
    }
}

#[test]
fn defaults_of_the_schema_are_the_defaults() {
    let mut everything = serde_json::Map::new();
    for (name, field) in schema()["properties"].as_object().unwrap() {
        if let Some(default) = field.get("default") {
            everything.insert(name.clone(), default.clone());
        }
    }
    let text = Json::Object(everything).to_string();
    assert_eq!(read(&text, "defaults"), Ok(VmSpec::default()));
}

#[test]
fn the_documents_name_every_field() {
    let page = include_str!("../../../../../docs/vm-yaml.md");
    for (path, names) in schema_names() {
        for name in names {
            let full = if path.is_empty() {
                name
            } else {
                format!("{path}.{name}")
            };
            let full = full.replace(".0", "[]");
            assert!(
                page.contains(&format!("`{full}`")),
                "docs/vm-yaml.md does not name `{full}`"
            );
        }
    }
}

#[test]
fn the_examples_of_the_documents_are_valid() {
    let page = include_str!("../../../../../docs/vm-yaml.md");
    let mut examples = 0;
    for example in page.split("```yaml\n").skip(1) {
        let text = example.split("```").next().unwrap();
        assert!(
            read(text, "docs/vm-yaml.md").is_ok(),
            "{:?}\n{text}",
            read(text, "example")
        );
        examples += 1;
    }
    assert!(examples > 3);
}
