//! Makes a test of each trial with each driver, runs it, and judges it.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use innkeeper::api::DriverReport;
use innkeeper::drivers::fake::FakeName;
use innkeeper::spec::{BootSpec, Bytes, DriverChoice, ReadyWhen, VmSpec};
use innkeeper::testing::conformance::{
    Context, FakeGuest, Guest, PvhGuest, Setup, TRIALS, TinyGuest, Trial,
};
use innkeeper::testing::matrix::{Outcome, Record};
use innkeeper::testing::traces::Traces;
use innkeeper_testbed::{Installation, Programs, agent_program, lend_tiny, results_directory};
use libtest_mimic::{Arguments, Failed, Trial as Test};

const PROGRAMS: Programs = Programs {
    testbed: env!("CARGO_BIN_EXE_testbed"),
    fake_hypervisor: env!("CARGO_BIN_EXE_fake-hypervisor"),
};

/// Emulated guests that may run at once.
const GUESTS_AT_ONCE: usize = 2;

pub(crate) fn main() {
    let mut arguments = Arguments::from_args();
    // Trials wait more than they work, but a loaded computer makes deadlines meaningless.
    arguments.test_threads.get_or_insert(GUESTS_AT_ONCE);
    let mut tests = Vec::new();
    for driver in ["fake", "qemu", "cloud-hypervisor"] {
        tests.extend(TRIALS.iter().map(|trial| test(driver, trial)));
    }
    tests.extend(
        TRIALS
            .iter()
            .filter(|trial| trial.name.contains("lacks"))
            .map(|trial| test("fake-poor", trial)),
    );
    libtest_mimic::run(&arguments, tests).exit();
}

fn test(driver: &'static str, trial: &'static Trial) -> Test {
    Test::test(format!("{driver}::{}", trial.name), move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| Failed::from(error.to_string()))?;
        runtime.block_on(run(driver, trial)).map_err(Failed::from)
    })
}

fn required(driver: &str) -> bool {
    driver.starts_with("fake")
        || std::env::var("INNKEEPER_REQUIRE_DRIVERS")
            .is_ok_and(|list| list.split([',', ' ']).any(|name| name == driver))
}

async fn run(driver: &'static str, trial: &'static Trial) -> Result<(), String> {
    let agent = agent_program();
    let fakes: &[FakeName] = match driver {
        "fake" => &[FakeName::Fake],
        "fake-poor" => &[FakeName::FakePoor],
        _ => &[],
    };
    let installation = Installation::new(PROGRAMS, fakes, agent.clone().ok())
        .map_err(|error| error.to_string())?;
    let host = installation
        .open(None)
        .map_err(|error| error.chain().join(": "))?;
    let report = host
        .report()
        .await
        .map_err(|error| error.chain().join(": "))?
        .drivers
        .into_iter()
        .find(|report| report.driver == driver)
        .ok_or_else(|| format!("this build knows no driver {driver}"))?;
    let skip = |why: String, report: DriverReport| {
        println!("SKIPPED: {driver}::{}: {why}", trial.name);
        record(trial, Outcome::Skipped(why), Duration::ZERO, report)
    };
    if !report.usable {
        let needs: Vec<&str> = report.needs.iter().map(|need| need.what.as_str()).collect();
        let why = format!(
            "the driver {driver} can't be used here: {}",
            needs.join(", ")
        );
        return if required(driver) {
            Err(why)
        } else {
            skip(why, report)
        };
    }
    let (spec, guest): (VmSpec, Box<dyn Guest>) = match driver {
        "qemu" => match lend_tiny(&installation.home()).await {
            Ok(()) => (tiny_spec(), Box::new(TinyGuest)),
            Err(why) if required(driver) => {
                return Err(format!("the image tiny can't be had: {why}"));
            }
            Err(why) => return skip(format!("the image tiny can't be had: {why}"), report),
        },
        "cloud-hypervisor" => (pvh_spec(&installation)?, Box::new(PvhGuest)),
        _ => fake_guest(&installation, driver, agent)?,
    };
    if let Some(why) = trial.lacking(&report, guest.as_ref()) {
        return skip(why, report);
    }
    let _turn = (driver == "qemu")
        .then(turn)
        .transpose()
        .map_err(|error| error.to_string())?;
    let before = Traces::of(&installation.home(), &installation.runtime());
    let started = Instant::now();
    let judged = judge(trial, &installation, driver, spec, guest).await;
    let mut faults: Vec<String> = judged.err().into_iter().collect();
    faults.extend(before.wait_until_gone().await);
    faults.extend(
        installation
            .violations()
            .into_iter()
            .map(|line| format!("the driver contract was broken: {line}")),
    );
    let elapsed = started.elapsed();
    if faults.is_empty() {
        return record(trial, Outcome::Passed, elapsed, report);
    }
    let faults = faults.join("\n");
    record(trial, Outcome::Failed(faults.clone()), elapsed, report)?;
    Err(format!("{faults}\nafter {:.1} s", elapsed.as_secs_f64()))
}

async fn judge(
    trial: &Trial,
    installation: &Installation,
    driver: &str,
    spec: VmSpec,
    guest: Box<dyn Guest>,
) -> Result<(), String> {
    let home = installation.home();
    let setup = Setup {
        open: Box::new({
            let opener = installation.opener();
            move |boot| opener.open(boot)
        }),
        runtime: installation.runtime(),
        driver: driver.to_owned(),
        spec,
        guest,
        files: installation.scratch(),
        patience: Duration::from_secs(if driver == "qemu" { 90 } else { 20 }),
    };
    let context = Context::new(setup).map_err(|error| error.chain().join(": "))?;
    let limit = context.setup.patience * 3;
    let verdict = match tokio::time::timeout(limit, trial.run(&context)).await {
        Ok(verdict) => verdict.map_err(|failure| failure.to_string()),
        Err(_) => Err(format!("it did not end within {} s", limit.as_secs())),
    };
    let logs = if verdict.is_err() {
        logs(&home)
    } else {
        String::new()
    };
    let cleared = match tokio::time::timeout(limit, context.clear()).await {
        Ok(cleared) => {
            cleared.map_err(|failure| format!("what it left can't be removed: {failure}"))
        }
        Err(_) => Err("what it left can't be removed in time".to_owned()),
    };
    verdict
        .map_err(|failure| format!("{failure}{logs}"))
        .and(cleared)
}

/// The ends of the logs of every VM, for whoever reads of a failure.
fn logs(home: &std::path::Path) -> String {
    let mut text = String::new();
    for vm in std::fs::read_dir(home.join("vms"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for log in ["keeper.log", "vmm.log", "serial.log"] {
            let path = vm.path().join("log").join(log);
            let bytes = std::fs::read(&path).unwrap_or_default();
            let tail =
                String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(1500)..]).into_owned();
            text.push_str(&format!("\n-- {}\n{tail}", path.display()));
        }
    }
    let events = std::fs::read_to_string(home.join("events.jsonl")).unwrap_or_default();
    text.push_str(&format!("\n-- events\n{events}"));
    text
}

fn record(
    trial: &Trial,
    outcome: Outcome,
    elapsed: Duration,
    report: DriverReport,
) -> Result<(), String> {
    let directory = results_directory();
    Record::new(trial.name, outcome, elapsed, report)
        .write(&directory)
        .map_err(|error| format!("can't write to {}: {error}", directory.display()))
}

fn tiny_spec() -> VmSpec {
    VmSpec {
        image: Some("tiny".to_owned()),
        driver: DriverChoice::Named("qemu".to_owned()),
        cpus: 1,
        memory: Bytes::mib(256),
        ready_timeout: Duration::from_secs(90),
        ..VmSpec::default()
    }
}

fn pvh_spec(installation: &Installation) -> Result<VmSpec, String> {
    let kernel = installation.scratch().join("kernel");
    std::fs::write(&kernel, innkeeper::testing::pvh::kernel())
        .map_err(|error| error.to_string())?;
    Ok(VmSpec {
        driver: DriverChoice::Named("cloud-hypervisor".to_owned()),
        boot: BootSpec {
            firmware: None,
            kernel: Some(kernel),
            initrd: None,
            cmdline: Some("idle".to_owned()),
            secure_boot: false,
        },
        cpus: 1,
        memory: Bytes::mib(64),
        ready: Some(ReadyWhen::None),
        networks: Vec::new(),
        ..VmSpec::default()
    })
}

fn fake_guest(
    installation: &Installation,
    driver: &str,
    agent: Result<PathBuf, String>,
) -> Result<(VmSpec, Box<dyn Guest>), String> {
    let kernel = installation.scratch().join("kernel");
    std::fs::write(&kernel, "a kernel that nobody runs").map_err(|error| error.to_string())?;
    let network = has_address();
    let spec = VmSpec {
        driver: DriverChoice::Named(driver.to_owned()),
        boot: BootSpec {
            firmware: None,
            kernel: Some(kernel),
            initrd: None,
            cmdline: None,
            secure_boot: false,
        },
        cpus: 1,
        memory: Bytes::mib(64),
        ready: Some(if agent.is_ok() {
            ReadyWhen::Agent
        } else {
            ReadyWhen::None
        }),
        networks: if network.is_ok() {
            VmSpec::default().networks
        } else {
            Vec::new()
        },
        ..VmSpec::default()
    };
    let guest = FakeGuest {
        scratch: installation.scratch(),
        listener: PROGRAMS.testbed.into(),
        agent: agent.map(drop),
        network,
    };
    Ok((spec, Box::new(guest)))
}

/// The fake's guest tells this computer's addresses; without any but loopback it would never count as ready.
fn has_address() -> Result<(), String> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    // Connecting a datagram socket sends nothing: it only chooses the address that would be sent from.
    socket
        .connect("192.0.2.1:9")
        .map_err(|error| format!("this computer has no address but loopback: {error}"))
}

/// Waits for one of the few places for guests, which are counted across processes by locks.
fn turn() -> std::io::Result<File> {
    let user = rustix::process::geteuid().as_raw();
    let open = |place| {
        File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(format!("/tmp/ik-guests-{user}-{place}"))
    };
    let places = (0..GUESTS_AT_ONCE)
        .map(open)
        .collect::<std::io::Result<Vec<File>>>()?;
    loop {
        for place in &places {
            if rustix::fs::flock(place, rustix::fs::FlockOperation::NonBlockingLockExclusive)
                .is_ok()
            {
                return place.try_clone();
            }
        }
        // poll: one of the places is free; flock(2) can wait for one only.
        std::thread::sleep(Duration::from_millis(50));
    }
}
