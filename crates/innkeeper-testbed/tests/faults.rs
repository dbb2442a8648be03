//! What is left when things go wrong: commands and keepers killed at any moment, a disk that is full, many at once.
//!
//! Everything runs on the fake hypervisor, whose processes are real. A kill sweeps over the whole duration of what it kills, so that every
//! step is hit by some round; what counts is what the next command finds.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use innkeeper::api::{ErrorKind, VmState};
use innkeeper::drivers::fake::FakeName;
use innkeeper::progress::Silent;
use innkeeper::spec::{BootSpec, Bytes, DiskFormat, DriverChoice, ReadyWhen, VmSpec};
use innkeeper::testing::traces::{Traces, processes};
use innkeeper::{Host, WaitFor};
use innkeeper_testbed::{Installation, Programs, agent_program};

const PROGRAMS: Programs = Programs {
    testbed: env!("CARGO_BIN_EXE_testbed"),
    fake_hypervisor: env!("CARGO_BIN_EXE_fake-hypervisor"),
};
const LIMIT: Duration = Duration::from_secs(30);
/// Moments at which a command is killed, spread over its duration.
const MOMENTS: u32 = 16;

struct Bed {
    host: Host,
    installation: Installation,
    before: Traces,
}

impl Bed {
    /// An installation with one image, from which disks are thin tops.
    async fn new() -> Bed {
        let installation = Installation::new(PROGRAMS, &[FakeName::Fake], agent_program().ok())
            .expect("an installation");
        let host = installation.open(None).expect("a host");
        std::fs::write(
            installation.scratch().join("kernel"),
            "a kernel that nobody runs",
        )
        .expect("a kernel");
        let disk = installation.scratch().join("disk.raw");
        std::fs::write(&disk, vec![7; 1 << 20]).expect("a disk");
        host.import_image(&disk, "blank", DiskFormat::Raw, None, &Silent)
            .await
            .expect("an image");
        let before = Traces::of(&installation.home(), &installation.runtime());
        Bed {
            host,
            installation,
            before,
        }
    }

    fn kernel(&self) -> PathBuf {
        self.installation.scratch().join("kernel")
    }

    fn spec(&self) -> VmSpec {
        VmSpec {
            driver: DriverChoice::Named("fake".to_owned()),
            boot: BootSpec {
                firmware: None,
                kernel: Some(self.kernel()),
                initrd: None,
                cmdline: None,
                secure_boot: false,
            },
            cpus: 1,
            memory: Bytes::mib(64),
            networks: Vec::new(),
            ready: Some(if agent_program().is_ok() {
                ReadyWhen::Agent
            } else {
                ReadyWhen::None
            }),
            ..VmSpec::default()
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        self.wrapped(&[], words)
    }

    /// A command of `testbed`, behind programs that set something up for it.
    fn wrapped(&self, before: &[&str], words: &[&str]) -> Command {
        let argv: Vec<&str> = before
            .iter()
            .copied()
            .chain([PROGRAMS.testbed])
            .chain(words.iter().copied())
            .collect();
        let mut command = Command::new(argv[0]);
        command
            .args(&argv[1..])
            .env_clear()
            .envs(self.installation.environment())
            .stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn create_words<'a>(&self, name: &'a str, kernel: &'a str) -> Vec<&'a str> {
        vec!["create", name, "blank", kernel]
    }

    /// Names of the VMs that hold a lease of the image.
    async fn users(&self) -> Vec<String> {
        self.host
            .image("blank", None)
            .await
            .expect("the image")
            .used_by
    }

    /// Whatever a killed command left, the next one must make sense of it: the VM is there whole, or not at all.
    async fn whole_or_nothing(&self, name: &str, round: &str) -> bool {
        let there = match self.host.info(name).await {
            Ok(info) => {
                assert!(
                    matches!(info.state, VmState::Stopped),
                    "{round}: it is {} ({:?})",
                    info.state,
                    info.reason
                );
                true
            }
            Err(error) => {
                assert_eq!(
                    error.kind(),
                    ErrorKind::NotFound,
                    "{round}: {:?}",
                    error.chain()
                );
                false
            }
        };
        let listed: Vec<String> = self
            .host
            .list()
            .await
            .expect("a list")
            .into_iter()
            .map(|info| info.name)
            .collect();
        assert_eq!(
            listed.contains(&name.to_owned()),
            there,
            "{round}: the list tells {listed:?}"
        );
        there
    }

    /// Ends the test: everything was removed, and nothing is left.
    async fn nothing_left(self) {
        for info in self.host.list().await.expect("a list") {
            self.host.remove(&info.name, true).await.expect("removed");
        }
        self.host.tidy_up(false).await.expect("tidied");
        assert_eq!(self.users().await, Vec::<String>::new(), "leases are left");
        assert_eq!(self.before.wait_until_gone().await, Vec::<String>::new());
        assert_eq!(self.installation.violations(), Vec::<String>::new());
        self.host
            .remove_image("blank", None, false)
            .await
            .expect("an image that nobody uses can be removed");
    }
}

fn kill_after(mut child: Child, delay: Duration) -> Output {
    // poll: this round's moment for the kill
    std::thread::sleep(delay);
    // Fails only if it has ended already: the last rounds are meant to.
    let _ = child.kill();
    child.wait_with_output().expect("an end")
}

#[tokio::test]
async fn a_create_killed_at_any_moment_leaves_a_whole_vm_or_none() {
    let bed = Bed::new().await;
    let kernel = bed.kernel().display().to_string();
    let words = bed.create_words("victim", &kernel);
    let started = Instant::now();
    let output = bed.command(&words).output().expect("started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let duration = started.elapsed();
    assert!(bed.whole_or_nothing("victim", "unkilled").await);
    assert_eq!(bed.users().await, ["victim"]);
    bed.host.remove("victim", false).await.expect("removed");
    let mut survived = 0;
    for moment in 0..=MOMENTS {
        let round = format!("killed at {moment}/{MOMENTS}");
        kill_after(
            bed.command(&words).spawn().expect("started"),
            duration * moment / MOMENTS,
        );
        if bed.whole_or_nothing("victim", &round).await {
            survived += 1;
            bed.host.start("victim").await.expect("it starts");
            bed.host.remove("victim", true).await.expect("removed");
        }
        // The name is free at once, whatever the dead process held.
        bed.host
            .create("victim", bed.spec(), &Silent)
            .await
            .unwrap_or_else(|error| panic!("{round}: {:?}", error.chain()));
        bed.host.remove("victim", false).await.expect("removed");
    }
    assert!(survived <= MOMENTS, "no round was killed before its end");
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_create_killed_at_its_named_steps_leaves_nothing_and_gives_its_leases_back() {
    let bed = Bed::new().await;
    let kernel = bed.kernel().display().to_string();
    let mut words = bed.create_words("victim", &kernel);
    words.push("creating");
    for _ in 0..3 {
        let output = bed.command(&words).output().expect("started");
        assert!(!output.status.success(), "it was not killed");
        assert!(!bed.whole_or_nothing("victim", "killed at a step").await);
    }
    let found = bed.host.tidy_up(true).await.expect("looked");
    assert_eq!(found.len(), 1, "{found:?}");
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_create_that_stands_still_holds_its_name_until_it_is_dead() {
    let bed = Bed::new().await;
    let kernel = bed.kernel().display().to_string();
    let mut words = bed.create_words("held", &kernel);
    words.push("stop:creating");
    let mut child = bed.command(&words).spawn().expect("started");
    let started = Instant::now();
    while !bed
        .host
        .list()
        .await
        .expect("a list")
        .iter()
        .any(|info| info.name == "held" && info.state == VmState::Creating)
    {
        assert!(
            started.elapsed() < LIMIT,
            "it is never told as being created"
        );
        // poll: the child holds the lock of a VM that it creates
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let second = bed
        .host
        .create("held", bed.spec(), &Silent)
        .await
        .expect_err("the name is held");
    assert_eq!(second.kind(), ErrorKind::Conflict, "{:?}", second.chain());
    let looked = bed
        .host
        .info("held")
        .await
        .expect_err("it does not exist yet");
    assert_eq!(looked.kind(), ErrorKind::Conflict, "{:?}", looked.chain());
    assert_eq!(
        bed.host.tidy_up(false).await.expect("tidied"),
        Vec::<String>::new(),
        "what a living process makes is not cleared away"
    );
    child.kill().expect("killed");
    child.wait().expect("an end");
    bed.host
        .create("held", bed.spec(), &Silent)
        .await
        .expect("the dead hold nothing");
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_removal_killed_at_any_moment_leaves_a_whole_vm_or_none() {
    let bed = Bed::new().await;
    bed.host
        .create("victim", bed.spec(), &Silent)
        .await
        .expect("created");
    let started = Instant::now();
    assert!(
        bed.command(&["remove", "victim"])
            .output()
            .expect("started")
            .status
            .success()
    );
    let duration = started.elapsed();
    for moment in 0..=MOMENTS {
        let round = format!("killed at {moment}/{MOMENTS}");
        bed.host
            .create("victim", bed.spec(), &Silent)
            .await
            .unwrap_or_else(|error| panic!("{round}: {:?}", error.chain()));
        kill_after(
            bed.command(&["remove", "victim"]).spawn().expect("started"),
            duration * moment / MOMENTS,
        );
        if bed.whole_or_nothing("victim", &round).await {
            bed.host.remove("victim", false).await.expect("removed");
        }
    }
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_start_command_killed_at_any_moment_leaves_order() {
    let bed = Bed::new().await;
    bed.host
        .create("victim", bed.spec(), &Silent)
        .await
        .expect("created");
    for moment in 0..=MOMENTS {
        let delay = Duration::from_millis(60) * moment / MOMENTS;
        kill_after(
            bed.command(&["start", "victim"]).spawn().expect("started"),
            delay,
        );
        settle(&bed, "victim").await;
        bed.host
            .start("victim")
            .await
            .expect("it starts, or runs already");
        bed.host
            .wait("victim", WaitFor::Ready, Some(LIMIT), &|_| ())
            .await
            .expect("ready");
        bed.host.kill("victim").await.expect("killed");
    }
    bed.nothing_left().await;
}

/// Waits until a VM is neither starting nor stopping; what it is then must be true.
async fn settle(bed: &Bed, name: &str) -> VmState {
    let started = Instant::now();
    loop {
        let info = bed.host.info(name).await.expect("it can be looked at");
        let lives = !processes(&bed.installation.home()).is_empty();
        match info.state {
            VmState::Starting | VmState::Stopping => {}
            VmState::Running | VmState::Ready => {
                assert!(lives, "it is told {} and there is no process", info.state);
                return info.state;
            }
            _ => return info.state,
        }
        assert!(started.elapsed() < LIMIT, "it stays {}", info.state);
        // poll: its state is settled
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_keeper_killed_while_it_starts_leaves_no_hypervisor_that_nobody_knows() {
    let bed = Bed::new().await;
    let mut spec = bed.spec();
    spec.boot.cmdline = Some("fake.launch-delay=60".to_owned());
    bed.host
        .create("victim", spec, &Silent)
        .await
        .expect("created");
    for moment in 0..12u32 {
        let round = format!("killed after {} ms", moment * 10);
        let kill = async {
            let keeper = keeper_of(&bed, "victim").await;
            // poll: this round's moment for the kill
            tokio::time::sleep(Duration::from_millis(10) * moment).await;
            let _ = rustix::process::kill_process(keeper, rustix::process::Signal::KILL);
        };
        let (started, ()) = tokio::join!(bed.host.start("victim"), kill);
        let state = settle(&bed, "victim").await;
        assert!(
            matches!(
                state,
                VmState::Running | VmState::Ready | VmState::Failed | VmState::Stopped
            ),
            "{round}: it is {state}, the start gave {started:?}"
        );
        let hypervisors: Vec<String> = processes(&bed.installation.home())
            .into_iter()
            .filter(|process| process.contains("-plan"))
            .collect();
        let expected = usize::from(matches!(state, VmState::Running | VmState::Ready));
        assert_eq!(
            hypervisors.len(),
            expected,
            "{round}: it is {state}, and there are {hypervisors:?}"
        );
        bed.host
            .start("victim")
            .await
            .unwrap_or_else(|error| panic!("{round}: {:?}", error.chain()));
        bed.host.kill("victim").await.expect("killed");
    }
    bed.nothing_left().await;
}

/// Waits for a VM's keeper and returns its process.
async fn keeper_of(bed: &Bed, name: &str) -> rustix::process::Pid {
    let words = format!(" keeper {name}");
    let started = Instant::now();
    loop {
        let found = processes(&bed.installation.home())
            .into_iter()
            .find(|process| process.contains(&words));
        let pid = found
            .as_deref()
            .and_then(|process| process.split(' ').next())
            .and_then(|pid| pid.parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            return pid;
        }
        assert!(started.elapsed() < LIMIT, "there is no keeper");
        // poll: a keeper of this VM runs
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_nothing_is_half_made() {
    let bed = Bed::new().await;
    let kernel = bed.kernel().display().to_string();
    let mut refused = 0;
    // A limit of the size of files stands for a disk that is full: writing past it fails in the same way, at another place for each limit.
    for limit in [
        0, 1, 64, 300, 600, 900, 1200, 2000, 4096, 20_000, 70_000, 200_000, 10_000_000,
    ] {
        let words = bed.create_words("victim", &kernel);
        let limit_words = format!("--fsize={limit}");
        let output = bed
            .wrapped(
                &["env", "--ignore-signal=XFSZ", "prlimit", &limit_words],
                &words,
            )
            .output()
            .expect("started: it needs env of coreutils and prlimit of util-linux");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let there = bed
            .whole_or_nothing("victim", &format!("limit {limit}"))
            .await;
        if output.status.success() {
            assert!(there, "limit {limit}: success, and there is no VM");
            bed.host.remove("victim", false).await.expect("removed");
        } else {
            refused += 1;
            assert_eq!(output.status.code(), Some(9), "limit {limit}: {said}");
            assert!(!there, "limit {limit}: an error, and there is a VM: {said}");
            assert_eq!(
                bed.users().await,
                Vec::<String>::new(),
                "limit {limit}: a lease is left"
            );
            let hidden = std::fs::read_dir(bed.installation.home().join("vms"))
                .expect("a directory")
                .count();
            assert_eq!(
                hidden, 0,
                "limit {limit}: something half-made is left: {said}"
            );
        }
    }
    assert!(refused > 3, "only {refused} limits were felt");
    bed.host
        .create("victim", bed.spec(), &Silent)
        .await
        .expect("there is space again");
    bed.nothing_left().await;
}

#[tokio::test]
async fn on_a_full_disk_what_is_done_is_told_as_done() {
    let bed = Bed::new().await;
    let kernel = bed.kernel().display().to_string();
    let disk_is_full = ["env", "--ignore-signal=XFSZ", "prlimit", "--fsize=600000"];
    // Everything but the event log, which has grown past the limit, can be written.
    let line = "{\"time\":\"2026-01-01T00:00:00.000Z\",\"event\":\"removed\"}\n";
    let log = bed.installation.home().join("events.jsonl");
    std::fs::write(&log, line.repeat(12_000)).expect("written");
    let created = bed
        .wrapped(&disk_is_full, &bed.create_words("full", &kernel))
        .output()
        .expect("started");
    let there = bed
        .whole_or_nothing("full", "an event log that can't grow")
        .await;
    assert_eq!(
        created.status.success(),
        there,
        "{}",
        String::from_utf8_lossy(&created.stderr)
    );
    if !there {
        bed.host
            .create("full", bed.spec(), &Silent)
            .await
            .expect("created");
    }
    let removed = bed
        .wrapped(&disk_is_full, &["remove", "full"])
        .output()
        .expect("started");
    assert!(
        removed.status.success(),
        "removing makes space: {}",
        String::from_utf8_lossy(&removed.stderr)
    );
    assert!(!bed.whole_or_nothing("full", "removed").await);
    let hidden = std::fs::read_dir(bed.installation.home().join("vms"))
        .expect("a directory")
        .count();
    assert_eq!(hidden, 0, "the removed VM still takes space");
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_start_on_a_full_disk_is_told_and_leaves_order() {
    let bed = Bed::new().await;
    bed.host
        .create("victim", bed.spec(), &Silent)
        .await
        .expect("created");
    let mut refused = 0;
    for limit in [0, 10, 100, 200, 400, 800, 2000, 100_000_000] {
        let limit_words = format!("--fsize={limit}");
        let output = bed
            .wrapped(
                &["env", "--ignore-signal=XFSZ", "prlimit", &limit_words],
                &["start", "victim"],
            )
            .output()
            .expect("started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let state = settle(&bed, "victim").await;
        if output.status.success() {
            assert!(
                matches!(state, VmState::Running | VmState::Ready),
                "limit {limit}: it is {state}: {said}"
            );
        } else {
            refused += 1;
            assert!(
                matches!(state, VmState::Stopped | VmState::Failed),
                "limit {limit}: it is {state}: {said}"
            );
            let hypervisors = processes(&bed.installation.home())
                .into_iter()
                .filter(|process| process.contains("-plan"));
            assert_eq!(
                hypervisors.collect::<Vec<_>>(),
                Vec::<String>::new(),
                "limit {limit}: {said}"
            );
        }
        bed.host
            .kill("victim")
            .await
            .unwrap_or_else(|error| panic!("limit {limit}: {:?}", error.chain()));
        bed.host
            .start("victim")
            .await
            .unwrap_or_else(|error| panic!("limit {limit}: {:?}", error.chain()));
        bed.host.kill("victim").await.expect("killed");
    }
    assert!(refused > 1, "only {refused} limits were felt");
    bed.nothing_left().await;
}

#[tokio::test]
async fn damaged_files_hide_no_other_vm_and_can_be_removed() {
    let bed = Bed::new().await;
    for name in ["whole", "hollow", "torn"] {
        bed.host
            .create(name, bed.spec(), &Silent)
            .await
            .expect("created");
    }
    let vms = bed.installation.home().join("vms");
    std::fs::remove_file(vms.join("hollow/identity.json")).expect("removed");
    std::fs::write(vms.join("torn/vm.yaml"), "cpus: [").expect("written");
    let listed = bed.host.list().await.expect("a list");
    let states: Vec<(&str, VmState)> = listed
        .iter()
        .map(|info| (info.name.as_str(), info.state))
        .collect();
    assert_eq!(
        states,
        [
            ("hollow", VmState::Failed),
            ("torn", VmState::Failed),
            ("whole", VmState::Stopped)
        ]
    );
    assert!(
        listed
            .iter()
            .filter(|info| info.state == VmState::Failed)
            .all(|info| info.reason.is_some())
    );
    bed.host.start("whole").await.expect("the whole one starts");
    for name in ["hollow", "torn"] {
        let refused = bed
            .host
            .start(name)
            .await
            .expect_err("a damaged VM does not start");
        assert!(
            refused
                .chain()
                .iter()
                .any(|sentence| sentence.contains(name)),
            "{:?}",
            refused.chain()
        );
    }
    bed.host.remove("torn", false).await.expect("removed");
    bed.host
        .remove("hollow", true)
        .await
        .expect("removed by force");
    bed.host.remove("whole", true).await.expect("removed");
    // What only the lost identity named is found by those who look after the store, not here.
    assert!(bed.host.list().await.expect("a list").is_empty());
    assert_eq!(bed.installation.violations(), Vec::<String>::new());
}
