//! Networks of our own with real guests: two tiny VMs on one network reach each other, netd may die, and a link can be made bad.
#![cfg(target_os = "linux")]

use std::time::{Duration, Instant};

use innkeeper::api::{ErrorKind, LinkShape, NetworkInfo};
use innkeeper::guest::message::ExecRequest;
use innkeeper::progress::Silent;
use innkeeper::spec::{Bytes, NetworkKind, NetworkSpec, VmName, VmSpec};
use innkeeper::testing::traces::Traces;
use innkeeper::{Host, WaitFor};
use innkeeper_testbed::qemu::{missing, usable};
use innkeeper_testbed::{Installation, Programs, lend_tiny, libexec};
use tokio::io::AsyncReadExt;

const PROGRAMS: Programs = Programs {
    testbed: env!("CARGO_BIN_EXE_testbed"),
    fake_hypervisor: env!("CARGO_BIN_EXE_fake-hypervisor"),
};
const BOOT: Duration = Duration::from_secs(180);
const SHORT: Duration = Duration::from_secs(30);

fn name(text: &str) -> VmName {
    text.parse().expect("a name")
}

fn on(network: &str) -> VmSpec {
    VmSpec {
        image: Some("tiny".to_owned()),
        memory: Bytes::new(256 << 20),
        networks: vec![NetworkSpec {
            kind: NetworkKind::Network,
            name: Some(name(network)),
            mac: None,
            forwards: Vec::new(),
        }],
        ..VmSpec::default()
    }
}

/// Runs a command in a guest; gives its exit code and its output.
async fn run(host: &Host, vm: &str, command: &[&str]) -> (i32, String) {
    let request = ExecRequest {
        argv: command.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    };
    let guest = host.guest(vm).await.expect("a way to the agent");
    let mut session = guest.exec(request).await.expect("the command runs");
    let mut text = String::new();
    session
        .stdout
        .read_to_string(&mut text)
        .await
        .expect("its output");
    let exit = session.wait().await.expect("its end");
    (exit.shell_code(), text)
}

async fn pings(host: &Host, vm: &str, address: &str) -> bool {
    run(host, vm, &["ping", "-c", "1", "-W", "1", address])
        .await
        .0
        == 0
}

async fn until(what: &str, limit: Duration, mut reached: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !reached().await {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        // poll: what `what` names
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// Whether every port of the network is connected, of so many.
fn whole(network: &NetworkInfo, ports: usize) -> bool {
    network.ports.len() == ports && network.ports.iter().all(|port| port.connected)
}

#[tokio::test]
async fn guests_on_one_network_reach_each_other_and_no_other_network() {
    let installation = Installation::new(PROGRAMS, &[], None).expect("an installation");
    let host = installation.open(None).expect("a host");
    if !usable(&host).await && missing("QEMU can't run guests here") {
        return;
    }
    if libexec().is_none() && missing("INNKEEPER_LIBEXEC does not say where the static agents are")
    {
        return;
    }
    lend_tiny(&installation.home()).await.expect("the image");
    let before = Traces::of(&installation.home(), &installation.runtime());
    for network in ["lan", "apart"] {
        host.create_network(&name(network)).expect("a network");
    }
    for (vm, network) in [("one", "lan"), ("two", "lan"), ("three", "apart")] {
        host.create(vm, on(network), &Silent).await.expect("a VM");
        host.start(vm).await.expect("it starts");
    }
    let mut addresses = Vec::new();
    for vm in ["one", "two", "three"] {
        let ready = host.wait(vm, WaitFor::Ready, Some(BOOT), &|_| ()).await;
        let info = ready.unwrap_or_else(|error| panic!("{vm}: {}", error.chain().join(": ")));
        addresses.push(info.networks[0].mac.clone());
    }
    let address = |index: usize| {
        let mac: innkeeper::spec::MacAddr = addresses[index].parse().expect("an address");
        mac.link_local().to_string()
    };
    let (two, three) = (address(1), address(2));
    until("one reaches two", SHORT, async || {
        pings(&host, "one", &two).await
    })
    .await;
    assert!(!pings(&host, "one", &three).await, "networks are not apart");
    // By IPv6, at the address that the guest made itself, once it has found out that nobody else has it.
    let mac: innkeeper::spec::MacAddr = addresses[1].parse().expect("an address");
    let [a, b, c, d, e, f] = mac.octets();
    // RFC 4291, appendix A.
    let own = format!(
        "fe80::{:x}{b:02x}:{c:x}ff:fe{d:02x}:{e:x}{f:02x}%eth0",
        a ^ 2
    );
    until("one reaches two by IPv6", SHORT, async || {
        let ping = ["ping6", "-c", "1", "-W", "1", &own];
        run(&host, "one", &ping).await.0 == 0
    })
    .await;

    netd_may_die(&host, &two).await;
    a_link_may_be_bad(&host, &two).await;
    // A netd that is killed makes no link good.
    let cut = LinkShape {
        partition: true,
        ..LinkShape::default()
    };
    host.shape("one", 0, &cut, 1).await.expect("it is shaped");
    kill_netd(&host).await;
    assert!(!pings(&host, "one", &two).await, "a partition did not last");

    let refused = host.remove_network("lan").await.expect_err("VMs are on it");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("one, two"), "{refused}");
    for vm in ["one", "two", "three"] {
        host.kill(vm).await.expect("it ends");
        host.remove(vm, false).await.expect("it is removed");
    }
    for network in ["lan", "apart"] {
        until("the network has no ports", SHORT, async || {
            host.network(network)
                .await
                .expect("a network")
                .ports
                .is_empty()
        })
        .await;
        host.remove_network(network).await.expect("it is removed");
    }
    assert!(host.networks().await.expect("a list").is_empty());
    assert_eq!(before.wait_until_gone().await, Vec::<String>::new());
}

/// Killed, it is back with all its ports within two seconds, and no VM has noticed.
async fn netd_may_die(host: &Host, two: &str) {
    kill_netd(host).await;
    until("one reaches two again", SHORT, async || {
        pings(host, "one", two).await
    })
    .await;
}

async fn kill_netd(host: &Host) {
    let before = host.network("lan").await.expect("a network");
    assert!(whole(&before, 2), "{before:?}");
    let pid = before.pid.expect("a process");
    kill(pid);
    let took = until("the ports are back", SHORT, async || {
        let now = host.network("lan").await.expect("a network");
        now.pid.is_some_and(|now| now != pid) && whole(&now, 2)
    })
    .await;
    println!("netd and its ports were back after {} ms", took.as_millis());
}

/// With a delay the round trip takes at least as long; with a partition nothing comes; cleared, all is as before.
async fn a_link_may_be_bad(host: &Host, two: &str) {
    let shape = |link: LinkShape| async move {
        host.shape("one", 0, &link, 1).await.expect("it is shaped");
    };
    shape(LinkShape {
        delay_us: 80_000,
        ..LinkShape::default()
    })
    .await;
    let (code, text) = run(host, "one", &["ping", "-c", "3", "-W", "5", two]).await;
    assert_eq!(code, 0, "{text}");
    let times: Vec<f64> = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("time=")?.parse().ok())
        .collect();
    println!("round trips over two directions of 80 ms: {times:?} ms");
    assert_eq!(times.len(), 3, "{text}");
    assert!(times.iter().all(|time| *time >= 160.0), "{times:?}");
    let told = host.network("lan").await.expect("a network");
    let port = told
        .ports
        .iter()
        .find(|port| port.vm == "one")
        .expect("a port");
    assert_eq!(
        port.to_guest.as_ref().map(|link| link.delay_us),
        Some(80_000)
    );
    shape(LinkShape {
        partition: true,
        ..LinkShape::default()
    })
    .await;
    assert!(
        !pings(host, "one", two).await,
        "a partition lets something pass"
    );
    shape(LinkShape::default()).await;
    until("one reaches two again", SHORT, async || {
        pings(host, "one", two).await
    })
    .await;
}

fn kill(pid: u32) {
    let status = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .expect("kill runs");
    assert!(status.success());
}

/// What can be told without a guest.
#[tokio::test]
async fn networks_are_made_told_and_removed() {
    let installation = Installation::new(PROGRAMS, &[], None).expect("an installation");
    let host = installation.open(None).expect("a host");
    assert!(host.networks().await.expect("a list").is_empty());
    let made = host.create_network(&name("lan")).expect("a network");
    assert_eq!((made.name.as_str(), made.pid), ("lan", None));
    let twice = host.create_network(&name("lan")).expect_err("it is there");
    assert_eq!(twice.kind(), ErrorKind::Conflict);
    assert_eq!(host.network("lan").await.expect("it is there"), made);
    let unknown = host.network("../vms").await.expect_err("no such network");
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let unknown = host
        .remove_network("wan")
        .await
        .expect_err("no such network");
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    host.remove_network("lan").await.expect("it is removed");
    assert!(host.networks().await.expect("a list").is_empty());
}
