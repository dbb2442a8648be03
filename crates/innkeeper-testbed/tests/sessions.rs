//! `inn exec` as a process with pipes, while the keeper that it speaks through is killed: nothing of its input is lost or doubled.
//!
//! Run on the fake hypervisor, whose guest is the real agent, and on QEMU where it can run guests.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use innkeeper::drivers::fake::FakeName;
use innkeeper::progress::Silent;
use innkeeper::spec::{BootSpec, Bytes, DriverChoice, ReadyWhen, VmSpec};
use innkeeper::testing::traces::Traces;
use innkeeper::{Host, WaitFor};
use innkeeper_testbed::{Installation, Programs, agent_program, lend_tiny, libexec};

const PROGRAMS: Programs = Programs {
    testbed: env!("CARGO_BIN_EXE_testbed"),
    fake_hypervisor: env!("CARGO_BIN_EXE_fake-hypervisor"),
};
const INN: &str = env!("CARGO_BIN_EXE_inn-on-fakes");
const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const INPUT: usize = 8 * MIB;

/// Bytes without a period that a window could hide behind.
fn input() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(INPUT);
    while bytes.len() < INPUT {
        // xorshift64, https://www.jstatsoft.org/article/view/v008i14
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn digest(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum of coreutils");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(bytes).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    String::from_utf8(output.stdout).expect("text")
}

/// Ends a child that a failed test would leave.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Kills the VM's keeper three times while a command reads its input through it.
async fn a_piped_command_survives(installation: &Installation, host: &Host, name: &str) {
    let bytes = input();
    let wanted = digest(&bytes);
    let mut inn = Reaped(
        Command::new(INN)
            .args(["exec", "-i", name, "sha256sum"])
            .env_clear()
            .envs(installation.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started"),
    );
    let fed = Arc::new(AtomicUsize::new(0));
    let (killed, was_killed) = std::sync::mpsc::channel::<()>();
    let mut stdin = inn.0.stdin.take().expect("a pipe");
    let told = Arc::clone(&fed);
    let feeder = std::thread::spawn(move || {
        for (index, piece) in bytes.chunks(64 * 1024).enumerate() {
            // The last MiB waits, so that no kill comes too late.
            if (index + 1) * 64 * 1024 == INPUT - MIB {
                for _ in 0..3 {
                    was_killed.recv().map_err(std::io::Error::other)?;
                }
            }
            stdin.write_all(piece)?;
            told.fetch_add(piece.len(), Ordering::Relaxed);
        }
        Ok::<(), std::io::Error>(())
    });
    let mut keepers = Vec::new();
    for threshold in [MIB, 3 * MIB, 5 * MIB] {
        let started = Instant::now();
        while fed.load(Ordering::Relaxed) < threshold {
            assert!(started.elapsed() < LIMIT, "only {fed:?} bytes went in");
            if let Some(status) = inn.0.try_wait().expect("asked") {
                let mut said = String::new();
                let mut stderr = inn.0.stderr.take().expect("a pipe");
                stderr.read_to_string(&mut said).expect("read");
                panic!("it ended before its input did, {status}: {said}");
            }
            // poll: so many bytes of input were taken
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let keeper = loop {
            let pid = host.info(name).await.expect("a look").keeper_pid;
            match pid {
                Some(pid) if !keepers.contains(&pid) => break pid,
                _ => assert!(started.elapsed() < LIMIT, "no new keeper came"),
            }
            // poll: another keeper than the killed one
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        keepers.push(keeper);
        let pid = rustix::process::Pid::from_raw(keeper as i32).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("killed");
        killed.send(()).expect("told");
    }
    let waited = tokio::task::spawn_blocking(move || {
        let mut told = [String::new(), String::new()];
        let mut stdout = inn.0.stdout.take().expect("a pipe");
        stdout.read_to_string(&mut told[0]).expect("read");
        let mut stderr = inn.0.stderr.take().expect("a pipe");
        stderr.read_to_string(&mut told[1]).expect("read");
        (inn.0.wait().expect("an end"), told)
    });
    let (status, [stdout, stderr]) = tokio::time::timeout(LIMIT, waited)
        .await
        .expect("in time")
        .expect("an end");
    assert!(status.success(), "{status}: {stderr}");
    assert_eq!(stdout, wanted, "{stderr}");
    feeder.join().expect("no panic").expect("all was fed");
}

async fn run(installation: &Installation, host: &Host, spec: VmSpec) {
    let before = Traces::of(&installation.home(), &installation.runtime());
    host.create("piped", spec, &Silent).await.expect("created");
    host.start("piped").await.expect("started");
    host.wait("piped", WaitFor::Ready, Some(LIMIT), &|_| ())
        .await
        .expect("ready");
    a_piped_command_survives(installation, host, "piped").await;
    host.remove("piped", true).await.expect("removed");
    assert_eq!(before.wait_until_gone().await, Vec::<String>::new());
    assert_eq!(installation.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn piped_input_survives_the_keepers_death() {
    let agent = agent_program().expect("an agent");
    let installation =
        Installation::new(PROGRAMS, &[FakeName::Fake], Some(agent)).expect("an installation");
    let host = installation.open(None).expect("a host");
    let kernel = installation.scratch().join("kernel");
    std::fs::write(&kernel, "a kernel that nobody runs").expect("a kernel");
    let spec = VmSpec {
        driver: DriverChoice::Named("fake".to_owned()),
        boot: BootSpec {
            firmware: None,
            kernel: Some(kernel),
            initrd: None,
            cmdline: None,
            secure_boot: false,
        },
        cpus: 1,
        memory: Bytes::mib(64),
        networks: Vec::new(),
        ready: Some(ReadyWhen::Agent),
        ..VmSpec::default()
    };
    run(&installation, &host, spec).await;
}

#[tokio::test]
async fn piped_input_survives_the_keepers_death_on_qemu() {
    let installation = Installation::new(PROGRAMS, &[], None).expect("an installation");
    let host = installation.open(None).expect("a host");
    let report = host.report().await.expect("a report");
    let usable = report
        .drivers
        .iter()
        .any(|driver| driver.driver == "qemu" && driver.usable);
    if !usable || libexec().is_none() {
        let required = std::env::var("INNKEEPER_REQUIRE_DRIVERS")
            .is_ok_and(|names| names.split(',').any(|name| name == "qemu"));
        assert!(!required, "INNKEEPER_REQUIRE_DRIVERS asks for qemu");
        println!("skipped: QEMU can't run guests here, or INNKEEPER_LIBEXEC is not set");
        return;
    }
    lend_tiny(&installation.home()).await.expect("the image");
    let spec = VmSpec {
        image: Some("tiny".to_owned()),
        memory: Bytes::mib(128),
        ..VmSpec::default()
    };
    run(&installation, &host, spec).await;
}
