//! Images of a registry: got from a real one on loopback, shared, gone on with, verified; and run as machines on QEMU.
#![cfg(target_os = "linux")]

mod server;

use std::collections::BTreeMap;
use std::process::{Command, Output};

use innkeeper::Host;
use innkeeper::progress::Silent;
use innkeeper::testing::traces::Traces;
use innkeeper_testbed::{Installation, Programs, agent_program, lend_tiny};
use server::{Registry, TestImage, layer};

const PROGRAMS: Programs = Programs {
    testbed: env!("CARGO_BIN_EXE_testbed"),
    fake_hypervisor: env!("CARGO_BIN_EXE_fake-hypervisor"),
};
const INN: &str = env!("CARGO_BIN_EXE_inn-on-fakes");

const ENTRY: &str =
    "#!/bin/sh\necho \"args: $*\"\nid -un\npwd\necho \"$GREETING\"\ncat /etc/motd\nexit 7\n";

/// The lower layer: busybox from this computer, users.
fn base() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| std::fs::read(path).ok());
    let busybox = busybox.expect("busybox-static is installed");
    let files = BTreeMap::from([
        ("bin/busybox", busybox),
        (
            "etc/passwd",
            b"root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\n".to_vec(),
        ),
        ("etc/group", b"root:x:0:\nann:x:1000:\n".to_vec()),
        ("etc/motd", b"old\n".to_vec()),
    ]);
    layer(
        &files,
        &[
            "bin/sh",
            "bin/id",
            "bin/cat",
            "bin/pwd",
            "bin/touch",
            "bin/ls",
        ]
        .map(|name| (name, "bin/busybox")),
    )
}

fn image(motd: &str) -> TestImage {
    let upper = BTreeMap::from([
        ("etc/.wh.motd", Vec::new()),
        ("entry", ENTRY.as_bytes().to_vec()),
        ("etc/motd", motd.as_bytes().to_vec()),
    ]);
    TestImage {
        layers: vec![base(), layer(&upper, &[])],
        configuration: serde_json::json!({
            "User": "ann", "Env": ["PATH=/bin", "GREETING=hello there"], "Entrypoint": ["/entry"], "Cmd": ["a", "b"], "WorkingDir": "/work/here",
        }),
    }
}

/// An installation with kernel and busybox of the minimal guest; none, saying why, where that can't be had.
async fn installation() -> Option<(Installation, Host)> {
    let installation =
        Installation::new(PROGRAMS, &[], agent_program().ok()).expect("an installation");
    let host = installation.open(None).expect("a host");
    if let Err(why) = lend_tiny(&installation.home()).await {
        println!("SKIPPED: the image tiny can't be had: {why}");
        return None;
    }
    Some((installation, host))
}

fn inn(installation: &Installation, words: &[&str]) -> Output {
    let output = Command::new(INN)
        .args(words)
        .env_clear()
        .envs(installation.environment())
        .output();
    output.expect("inn is run")
}

fn gets(registry: &Registry, what: &str) -> usize {
    registry
        .log()
        .lines()
        .filter(|line| line.contains(&format!("\"GET /v2/{what}")))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_got_once_verified_and_gone_on_with() {
    let Some(registry) = Registry::start(None) else {
        return;
    };
    let Some((installation, host)) = installation().await else {
        return;
    };
    let first = registry.put("team/tool", "1", &image("new\n"));
    let name = format!("oci:{}/team/tool:1", registry.host());
    let got = host
        .pull_image(&name, None, &Silent)
        .await
        .unwrap_or_else(|error| panic!("{:?}", error.chain()));
    assert!(got.files.contains_key("root") && got.reference == name);
    // A second image on the same base: only what is new is received.
    let second = registry.put("team/tool", "2", &image("newer\n"));
    assert_eq!(first[0], second[0]);
    let other = format!("oci:{}/team/tool:2", registry.host());
    host.pull_image(&other, None, &Silent).await.expect("got");
    assert_eq!(
        gets(&registry, &format!("team/tool/blobs/sha256:{}", first[0])),
        1,
        "{}",
        registry.log()
    );
    // Again: what the tag leads to is asked, and nothing received.
    host.pull_image(&other, None, &Silent).await.expect("got");
    assert_eq!(
        gets(&registry, &format!("team/tool/blobs/sha256:{}", second[1])),
        1
    );
    // The base goes with the last image that has it.
    let base = installation.home().join("layers").join(&first[0]);
    host.remove_image(&name, None, false)
        .await
        .expect("removed");
    assert!(base.is_file());
    host.remove_image(&other, None, false)
        .await
        .expect("removed");
    assert!(!base.exists());
    // A download that was cut off goes on from where it was.
    let partial = installation
        .home()
        .join("cache/download")
        .join(format!("{}.part", first[0]));
    let whole = std::fs::read(registry.blob_file(&first[0])).expect("the blob");
    std::fs::write(&partial, &whole[..whole.len() / 2]).expect("written");
    host.pull_image(&name, None, &Silent).await.expect("got");
    assert!(registry.log().contains("\" 206 "), "{}", registry.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_promised_is_refused() {
    let Some(registry) = Registry::start(None) else {
        return;
    };
    let Some((installation, host)) = installation().await else {
        return;
    };
    let digests = registry.put("tool", "1", &image("new\n"));
    let name = format!("oci:{}/tool:1", registry.host());
    let missing = host
        .pull_image(&format!("oci:{}/tool:2", registry.host()), None, &Silent)
        .await;
    let chain = missing.expect_err("there is none").chain().join(": ");
    assert!(chain.contains("does not have it"), "{chain}");
    let pinned = format!("oci:{}/tool@sha256:{}", registry.host(), "0".repeat(64));
    assert!(host.pull_image(&pinned, None, &Silent).await.is_err());
    // The registry does not look at what it serves; we do.
    let file = registry.blob_file(&digests[1]);
    let mut bytes = std::fs::read(&file).expect("the blob");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).expect("written");
    let chain = host
        .pull_image(&name, None, &Silent)
        .await
        .expect_err("damaged")
        .chain()
        .join(": ");
    assert!(
        chain.contains("checksum") || chain.contains("digest"),
        "{chain}"
    );
    assert!(
        host.images()
            .await
            .expect("a list")
            .iter()
            .all(|image| image.reference != name)
    );
    assert_eq!(
        std::fs::read_dir(installation.home().join("cache/build"))
            .expect("listed")
            .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_from_the_file_of_credentials() {
    // user:secret, bcrypt of cost 5.
    let Some(registry) = Registry::start(Some(
        "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n",
    )) else {
        return;
    };
    let Some((installation, host)) = installation().await else {
        return;
    };
    registry.put("tool", "1", &image("new\n"));
    let name = format!("oci:{}/tool:1", registry.host());
    let chain = host
        .pull_image(&name, None, &Silent)
        .await
        .expect_err("no password")
        .chain()
        .join(": ");
    assert!(chain.contains("wants a user"), "{chain}");
    let docker = installation.scratch().join("docker");
    std::fs::create_dir_all(&docker).expect("made");
    let configuration =
        serde_json::json!({"auths": {registry.host(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    std::fs::write(docker.join("config.json"), configuration.to_string()).expect("written");
    let output = Command::new(INN)
        .args(["image", "pull", &name])
        .env_clear()
        .envs(installation.environment())
        .env("DOCKER_CONFIG", &docker)
        .output()
        .expect("inn is run");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_runs_as_it_says_and_its_exit_code_comes_back() {
    let Some(registry) = Registry::start(None) else {
        return;
    };
    let Some((installation, host)) = installation().await else {
        return;
    };
    let report = host.report().await.expect("a report");
    if !report
        .drivers
        .iter()
        .any(|report| report.driver == "qemu" && report.usable)
    {
        println!("SKIPPED: QEMU can't be used here");
        return;
    }
    registry.put("team/tool", "1", &image("new\n"));
    let name = format!("oci:{}/team/tool:1", registry.host());
    let before = Traces::of(&installation.home(), &installation.runtime());
    let output = inn(&installation, &["run", &name, "--rm", "--memory", "256MiB"]);
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(
        (out.as_ref(), output.status.code()),
        ("args: a b\nann\n/work/here\nhello there\nnew\n", Some(7)),
        "{err}"
    );
    // Other arguments, and a machine that stays: what it writes is there after a restart.
    let output = inn(
        &installation,
        &[
            "run", &name, "--name", "kept", "--memory", "256MiB", "--", "x y",
        ],
    );
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("args: x y\n"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for words in [
        &["exec", "kept", "/bin/touch", "/kept"][..],
        &["restart", "kept"],
        &["exec", "kept", "/bin/ls", "/kept"],
        &["rm", "--force", "--yes", "kept"],
    ] {
        let output = inn(&installation, words);
        assert!(
            output.status.success(),
            "{words:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    drop(before);
}
