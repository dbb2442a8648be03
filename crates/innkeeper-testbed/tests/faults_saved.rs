//! What is left of a suspend or a return from disk that is interrupted: keepers and hypervisors killed at any moment of either.
//!
//! What counts is what the next command finds: a VM that runs, stands still or is suspended, with the memory that it had; or one that
//! failed, with a reason. Never one whose saved memory is used after its CPUs had run on: the fake hypervisor watches that.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use innkeeper::Host;
use innkeeper::api::{VmInfo, VmState};
use innkeeper::drivers::fake::FakeName;
use innkeeper::progress::Silent;
use innkeeper::spec::{BootSpec, Bytes, DriverChoice, ReadyWhen, VmSpec};
use innkeeper::testing::conformance::{FakeGuest, Guest, TinyGuest};
use innkeeper::testing::traces::{Traces, processes};
use innkeeper::{StopOptions, WaitFor};
use innkeeper_testbed::{Installation, Programs, agent_program, lend_tiny};
use rustix::process::{Pid, Signal, kill_process};

const PROGRAMS: Programs = Programs {
    testbed: env!("CARGO_BIN_EXE_testbed"),
    fake_hypervisor: env!("CARGO_BIN_EXE_fake-hypervisor"),
};
const NAME: &str = "victim";
const LIMIT: Duration = Duration::from_secs(90);

struct Bed {
    host: Host,
    installation: Installation,
    guest: Box<dyn Guest>,
    before: Traces,
}

impl Bed {
    fn begin(fakes: &[FakeName]) -> (Installation, Host) {
        let installation =
            Installation::new(PROGRAMS, fakes, agent_program().ok()).expect("an installation");
        let host = installation.open(None).expect("a host");
        (installation, host)
    }

    async fn finish(
        installation: Installation,
        host: Host,
        spec: VmSpec,
        guest: Box<dyn Guest>,
    ) -> Bed {
        let before = Traces::of(&installation.home(), &installation.runtime());
        host.create(NAME, spec, &Silent).await.expect("created");
        Bed {
            host,
            installation,
            guest,
            before,
        }
    }

    /// On the fake hypervisor, which is told how slow it is.
    async fn fake(words: &str) -> Bed {
        let (installation, host) = Bed::begin(&[FakeName::Fake]);
        let kernel = installation.scratch().join("kernel");
        std::fs::write(&kernel, "a kernel that nobody runs").expect("a kernel");
        let spec = VmSpec {
            driver: DriverChoice::Named("fake".to_owned()),
            boot: BootSpec {
                firmware: None,
                kernel: Some(kernel),
                initrd: None,
                cmdline: Some(words.to_owned()),
                secure_boot: false,
            },
            cpus: 1,
            memory: Bytes::mib(64),
            networks: Vec::new(),
            ready: Some(ReadyWhen::None),
            ..VmSpec::default()
        };
        let guest = FakeGuest {
            scratch: installation.scratch(),
            listener: PROGRAMS.testbed.into(),
            agent: Ok(()),
            network: Ok(()),
        };
        Bed::finish(installation, host, spec, Box::new(guest)).await
    }

    /// On QEMU with the image tiny; none, saying why, where that can't be had.
    async fn qemu() -> Option<Bed> {
        let (installation, host) = Bed::begin(&[]);
        let usable = host.report().await.is_ok_and(|report| {
            report
                .drivers
                .iter()
                .any(|report| report.driver == "qemu" && report.usable)
        });
        if !usable {
            println!("SKIPPED: QEMU can't be used here");
            return None;
        }
        if let Err(why) = lend_tiny(&installation.home()).await {
            println!("SKIPPED: the image tiny can't be had: {why}");
            return None;
        }
        let spec = VmSpec {
            image: Some("tiny".to_owned()),
            driver: DriverChoice::Named("qemu".to_owned()),
            cpus: 1,
            memory: Bytes::mib(256),
            ready_timeout: LIMIT,
            ..VmSpec::default()
        };
        Some(Bed::finish(installation, host, spec, Box::new(TinyGuest)).await)
    }

    /// Makes the VM run and returns what is in its memory.
    async fn remembering(&self) -> String {
        self.host.start(NAME).await.expect("started");
        let info = self
            .host
            .wait(NAME, WaitFor::Ready, Some(LIMIT), &|_| ())
            .await
            .expect("ready");
        self.guest
            .remember(&self.host, &info)
            .await
            .expect("something in its memory")
    }

    async fn info(&self, round: &str) -> VmInfo {
        self.host
            .info(NAME)
            .await
            .unwrap_or_else(|error| panic!("{round}: {:?}", error.chain()))
    }

    /// Waits until nothing is being done to the VM, and nothing half-saved is there.
    async fn settled(&self, round: &str) -> VmInfo {
        let passing = [
            VmState::Starting,
            VmState::Stopping,
            VmState::Pausing,
            VmState::Resuming,
            VmState::Suspending,
        ];
        self.past(&passing, round).await
    }

    /// Waits until a VM whose hypervisor was killed is told as what it is; its end may be told after the end of what was being done.
    async fn ended(&self, round: &str) -> VmInfo {
        let live = [
            VmState::Starting,
            VmState::Running,
            VmState::Ready,
            VmState::Stopping,
            VmState::Pausing,
            VmState::Paused,
            VmState::Resuming,
            VmState::Suspending,
        ];
        self.past(&live, round).await
    }

    async fn past(&self, passing: &[VmState], round: &str) -> VmInfo {
        let started = Instant::now();
        loop {
            let info = self.info(round).await;
            if !passing.contains(&info.state) && info.stale_since.is_none() {
                let half = std::path::Path::new(&info.directory).join("saved.new");
                assert!(
                    !half.exists(),
                    "{round}: something half-saved is left, and it is {}",
                    info.state
                );
                return info;
            }
            assert!(
                started.elapsed() < LIMIT,
                "{round}: it stays {}",
                info.state
            );
            // poll: its state is settled
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Makes the VM run from wherever an interruption left it; its memory must be what it was.
    async fn brings_back(&self, memory: &str, round: &str) -> VmState {
        let found = self.settled(round).await;
        match found.state {
            VmState::Suspended => drop(
                self.host
                    .start(NAME)
                    .await
                    .unwrap_or_else(|error| panic!("{round}: {:?}", error.chain())),
            ),
            VmState::Paused => drop(
                self.host
                    .resume(NAME)
                    .await
                    .unwrap_or_else(|error| panic!("{round}: {:?}", error.chain())),
            ),
            VmState::Running | VmState::Ready => {}
            other => panic!("{round}: it is {other} ({:?})", found.reason),
        }
        let info = self
            .host
            .wait(NAME, WaitFor::Ready, Some(LIMIT), &|_| ())
            .await
            .unwrap_or_else(|error| panic!("{round}: {:?}", error.chain()));
        let now = self.guest.recall(&self.host, &info).await.expect("memory");
        assert_eq!(
            now, memory,
            "{round}: it was {}, and has another memory",
            found.state
        );
        self.blameless(round);
        found.state
    }

    fn blameless(&self, round: &str) {
        assert_eq!(
            self.installation.violations(),
            Vec::<String>::new(),
            "{round}"
        );
    }

    /// Kills, after a while, whoever is there whose command line holds these words.
    async fn kill_after(&self, delay: Duration, words: &[&str]) {
        // poll: this round's moment for the kill
        tokio::time::sleep(delay).await;
        for process in processes(&self.installation.home()) {
            if words.iter().any(|word| process.contains(word))
                && let Some(pid) = process
                    .split(' ')
                    .next()
                    .and_then(|pid| pid.parse().ok())
                    .and_then(Pid::from_raw)
            {
                // Fails only if it has ended by itself.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    async fn nothing_left(self) {
        self.host.remove(NAME, true).await.expect("removed");
        assert_eq!(self.before.wait_until_gone().await, Vec::<String>::new());
        self.blameless("at the end");
    }
}

const KEEPER: &[&str] = &[" keeper victim"];
const HYPERVISOR: &[&str] = &["-plan"];
const BOTH: &[&str] = &[" keeper victim", "-plan"];

#[tokio::test]
async fn a_keeper_killed_while_it_suspends_loses_nothing() {
    let bed = Bed::fake("fake.save=slow:40").await;
    let memory = bed.remembering().await;
    let mut found = Vec::new();
    for moment in 0..18u32 {
        let delay = Duration::from_millis(5) * moment;
        let round = format!("killed after {delay:?}");
        let (suspend, ()) = tokio::join!(bed.host.suspend(NAME), bed.kill_after(delay, KEEPER));
        let state = bed.brings_back(&memory, &round).await;
        if suspend.is_ok() {
            assert_eq!(state, VmState::Suspended, "{round}: it was told suspended");
        }
        found.push(state);
    }
    assert!(
        found.contains(&VmState::Paused),
        "no round hit the save: {found:?}"
    );
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_keeper_killed_while_it_brings_back_loses_nothing() {
    let bed = Bed::fake("fake.restore=slow:30").await;
    let memory = bed.remembering().await;
    let mut interrupted = 0;
    for moment in 0..20u32 {
        let delay = Duration::from_millis(5) * moment;
        let round = format!("killed after {delay:?}");
        bed.host.suspend(NAME).await.expect("suspended");
        let (start, ()) = tokio::join!(bed.host.start(NAME), bed.kill_after(delay, KEEPER));
        interrupted += u32::from(start.is_err());
        bed.brings_back(&memory, &round).await;
    }
    assert!(interrupted > 2, "only {interrupted} rounds hit the return");
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_hypervisor_killed_while_it_is_saved_is_failed_or_suspended() {
    let bed = Bed::fake("fake.save=slow:40").await;
    let mut failed = 0;
    for (moment, whom) in (0..16u32).flat_map(|moment| [(moment, HYPERVISOR), (moment, BOTH)]) {
        let delay = Duration::from_millis(5) * moment;
        let round = format!("{whom:?} killed after {delay:?}");
        let memory = bed.remembering().await;
        let (suspend, ()) = tokio::join!(bed.host.suspend(NAME), bed.kill_after(delay, whom));
        let info = bed.ended(&round).await;
        match info.state {
            VmState::Suspended => drop(bed.brings_back(&memory, &round).await),
            VmState::Failed => {
                assert!(info.reason.is_some(), "{round}: it failed for no reason");
                assert!(suspend.is_err(), "{round}: it was told suspended");
                failed += 1;
            }
            other => panic!("{round}: it is {other} ({:?})", info.reason),
        }
        if info.state == VmState::Suspended {
            bed.host.kill(NAME).await.expect("killed");
        }
        bed.blameless(&round);
    }
    assert!(failed > 2, "only {failed} rounds hit the save");
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_hypervisor_killed_while_it_comes_back_never_lets_old_memory_run_twice() {
    let bed = Bed::fake("fake.restore=slow:20").await;
    let mut kept = 0;
    for (moment, whom) in (0..16u32).flat_map(|moment| [(moment, HYPERVISOR), (moment, BOTH)]) {
        let delay = Duration::from_millis(4) * moment;
        let round = format!("{whom:?} killed after {delay:?}");
        let memory = bed.remembering().await;
        bed.host.suspend(NAME).await.expect("suspended");
        let (_, ()) = tokio::join!(bed.host.start(NAME), bed.kill_after(delay, whom));
        let info = bed.settled(&round).await;
        match info.state {
            VmState::Suspended => {
                kept += 1;
                bed.brings_back(&memory, &round).await;
                bed.host.kill(NAME).await.expect("killed");
            }
            VmState::Failed => assert!(info.reason.is_some(), "{round}: it failed for no reason"),
            VmState::Running | VmState::Ready => {
                bed.host.kill(NAME).await.expect("killed");
            }
            other => panic!("{round}: it is {other} ({:?})", info.reason),
        }
        bed.blameless(&round);
    }
    assert!(kept > 2, "only {kept} rounds hit the return");
    bed.nothing_left().await;
}

#[tokio::test]
async fn what_is_half_saved_is_swept() {
    let bed = Bed::fake("quiet").await;
    let info = bed.info("new").await;
    let half = std::path::Path::new(&info.directory).join("saved.new/machine");
    std::fs::create_dir_all(&half).expect("a directory");
    std::fs::write(half.join("memory"), "half of it").expect("a file");
    let told = bed.host.tidy_up(true).await.expect("looked");
    assert!(
        told.iter().any(|line| line.contains("saved.new")),
        "{told:?}"
    );
    assert!(half.exists(), "a dry run removed it");
    bed.host.tidy_up(false).await.expect("tidied");
    assert!(!half.exists(), "it was not removed");
    // What is being saved is not swept: its keeper holds the VM.
    bed.remembering().await;
    std::fs::create_dir_all(&half).expect("a directory");
    bed.host.tidy_up(false).await.expect("tidied");
    assert!(half.exists(), "what may be being saved was removed");
    bed.host
        .stop(
            NAME,
            StopOptions {
                timeout: LIMIT,
                force: false,
            },
        )
        .await
        .expect("stopped");
    assert!(!half.exists(), "the end of the run did not remove it");
    bed.nothing_left().await;
}

#[tokio::test]
async fn a_real_guest_loses_nothing_when_its_keeper_is_killed() {
    let Some(bed) = Bed::qemu().await else { return };
    let memory = bed.remembering().await;
    for milliseconds in [20, 120, 400] {
        let delay = Duration::from_millis(milliseconds);
        let round = format!("suspending, killed after {delay:?}");
        let (_, ()) = tokio::join!(bed.host.suspend(NAME), bed.kill_after(delay, KEEPER));
        bed.brings_back(&memory, &round).await;
    }
    for milliseconds in [60, 250, 700] {
        let delay = Duration::from_millis(milliseconds);
        let round = format!("coming back, killed after {delay:?}");
        bed.host
            .suspend(NAME)
            .await
            .unwrap_or_else(|error| panic!("{round}: {:?}", error.chain()));
        let (_, ()) = tokio::join!(bed.host.start(NAME), bed.kill_after(delay, KEEPER));
        bed.brings_back(&memory, &round).await;
    }
    bed.nothing_left().await;
}
