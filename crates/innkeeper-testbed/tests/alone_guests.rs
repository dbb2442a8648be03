//! Guests that take the whole machine: a full Debian with cloud-init and SSH, and a guest of another architecture. On real QEMU.
#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};
use std::time::Duration;

use innkeeper::api::{EventKind, VmInfo, VmState};
use innkeeper::guest::message::ExecRequest;
use innkeeper::progress::Silent;
use innkeeper::spec::{Arch, Bytes, SeedFile, VmSpec};
use innkeeper::testing::traces::Traces;
use innkeeper::{Host, WaitFor};
use innkeeper_testbed::qemu::{missing, usable};
use innkeeper_testbed::{Installation, Programs, lend, libexec};
use tokio::io::AsyncReadExt;

const PROGRAMS: Programs = Programs {
    testbed: env!("CARGO_BIN_EXE_testbed"),
    fake_hypervisor: env!("CARGO_BIN_EXE_fake-hypervisor"),
};
/// A full guest under emulation on a busy computer: measured 60 to 260 s to the end of cloud-init.
const BOOT: Duration = Duration::from_secs(500);
const SHORT: Duration = Duration::from_secs(120);

async fn wait(host: &Host, name: &str, goal: WaitFor, limit: Duration) -> VmInfo {
    match host.wait(name, goal, Some(limit), &|_| ()).await {
        Ok(info) => info,
        Err(error) => {
            let serial = host
                .log_path(name, innkeeper::LogKind::Serial)
                .expect("a path");
            let log = std::fs::read(serial).unwrap_or_default();
            let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(4000)..]).into_owned();
            panic!("{}\nserial console:\n{tail}", error.chain().join(": "));
        }
    }
}

async fn output(host: &Host, name: &str, command: &[&str]) -> String {
    let request = ExecRequest {
        argv: command.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    };
    let guest = host.guest(name).await.expect("a way to the agent");
    let mut session = guest.exec(request).await.expect("the command runs");
    let mut text = String::new();
    session
        .stdout
        .read_to_string(&mut text)
        .await
        .expect("its output");
    session.wait().await.expect("its end");
    text.trim().to_owned()
}

#[tokio::test]
async fn a_debian_guest_lives_a_whole_life() {
    let installation = Installation::new(PROGRAMS, &[], None).expect("an installation");
    let host = installation.open(None).expect("a host");
    if !usable(&host).await && missing("QEMU can't run guests here") {
        return;
    }
    if libexec().is_none() && missing("INNKEEPER_LIBEXEC does not say where the static agents are")
    {
        return;
    }
    lend(&installation.home(), "debian:12", None)
        .await
        .expect("the image");
    let before = Traces::of(&installation.home(), &installation.runtime());
    let mut spec = VmSpec {
        image: Some("debian:12".to_owned()),
        memory: Bytes::gib(1),
        ..VmSpec::default()
    };
    spec.seed.user = Some("guest".to_owned());
    spec.seed.files.push(SeedFile {
        path: "/etc/innkeeper-test".to_owned(),
        content: "a: 'b' \"c\" $(d)\n\ttab\n".to_owned(),
        mode: 0o640,
        owner: None,
    });
    host.create("deb", spec, &Silent).await.expect("created");
    host.start("deb").await.expect("started");

    // Ready means: the agent came by the seed, there is an address, and cloud-init ended without an error.
    let ready = wait(&host, "deb", WaitFor::Ready, BOOT).await;
    assert!(
        ready
            .agent
            .os
            .as_deref()
            .is_some_and(|os| os.contains("Debian")),
        "{:?}",
        ready.agent
    );
    assert!(!ready.addresses.is_empty());
    assert_eq!(output(&host, "deb", &["hostname"]).await, "deb");
    assert_eq!(
        output(&host, "deb", &["cat", "/etc/innkeeper-test"]).await,
        "a: 'b' \"c\" $(d)\n\ttab"
    );
    assert_eq!(
        output(
            &host,
            "deb",
            &["stat", "-c", "%a %U", "/etc/innkeeper-test"]
        )
        .await,
        "640 root"
    );

    let ssh = Command::new("ssh")
        .args(["-o", "BatchMode=yes"])
        .args(host.ssh_arguments("deb").await.expect("ssh arguments"))
        .args(["id", "-un"])
        .stdin(Stdio::null())
        .output()
        .expect("ssh is installed");
    let said = String::from_utf8_lossy(&ssh.stdout).into_owned();
    assert!(
        ssh.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&ssh.stderr)
    );
    assert_eq!(said.trim(), "guest");

    // A reboot inside keeps it running: the same hypervisor, another boot of the guest.
    let boot = output(&host, "deb", &["cat", "/proc/sys/kernel/random/boot_id"]).await;
    output(&host, "deb", &["systemctl", "--no-block", "reboot"]).await;
    let rebooted = |host: &Host| {
        let events = host.events(Some("deb")).expect("events");
        events
            .iter()
            .any(|event| event.kind == EventKind::GuestReboot)
    };
    let deadline = std::time::Instant::now() + SHORT;
    // poll: the log of events tells of the reboot
    while !rebooted(&host) {
        assert!(
            std::time::Instant::now() < deadline,
            "the guest did not reboot"
        );
        // poll: as above
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let again = wait(&host, "deb", WaitFor::Ready, BOOT).await;
    assert_eq!(again.vmm_pid, ready.vmm_pid);
    assert_ne!(
        output(&host, "deb", &["cat", "/proc/sys/kernel/random/boot_id"]).await,
        boot
    );

    // A power-off inside ends in stopped, not in failed.
    output(&host, "deb", &["systemctl", "--no-block", "poweroff"]).await;
    let off = wait(&host, "deb", WaitFor::State(VmState::Stopped), SHORT).await;
    assert_eq!((off.reason, off.vmm_pid), (None, None));
    host.remove("deb", false).await.expect("removed");
    assert_eq!(before.wait_until_gone().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_guest_of_another_architecture_runs() {
    let installation = Installation::new(PROGRAMS, &[], None).expect("an installation");
    let host = installation.open(None).expect("a host");
    let (arch, machine) = match Arch::host() {
        Some(Arch::Arm64) => (Arch::X86_64, "x86_64"),
        _ => (Arch::Arm64, "aarch64"),
    };
    let agent = libexec().map(|directory| directory.join(format!("agent-linux-{arch}")));
    if !agent.is_some_and(|agent| agent.is_file()) {
        // It can be made only where a std for it is at hand; `cargo xtask agent` says what lacks.
        println!("skipped: there is no agent for {arch}");
        return;
    }
    if !usable(&host).await && missing("QEMU can't run guests here") {
        return;
    }
    lend(&installation.home(), "tiny", Some(arch))
        .await
        .expect("the image");
    let spec = VmSpec {
        image: Some("tiny".to_owned()),
        arch: Some(arch),
        memory: Bytes::mib(512),
        ..VmSpec::default()
    };
    host.create("foreign", spec, &Silent)
        .await
        .expect("created");
    host.start("foreign").await.expect("started");
    let info = wait(&host, "foreign", WaitFor::Ready, SHORT).await;
    assert_eq!(info.accel.as_deref(), Some("tcg"));
    assert_eq!(output(&host, "foreign", &["uname", "-m"]).await, machine);
    host.remove("foreign", true).await.expect("removed");
}
