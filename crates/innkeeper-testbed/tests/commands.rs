//! Whole runs of `inn`: what is written where, and the exit code, from life and from bad input. Each transcript is a snapshot.
//!
//! The commands are processes in an environment of their own, on the strict fake driver; what differs from run to run (directories, ids,
//! times, processes, sizes on disk) is masked. After a wanted change: INSTA_UPDATE=always.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use innkeeper::drivers::fake::FakeName;
use innkeeper::testing::traces::Traces;
use innkeeper_testbed::{Installation, Programs, agent_program};

const PROGRAMS: Programs = Programs {
    testbed: env!("CARGO_BIN_EXE_testbed"),
    fake_hypervisor: env!("CARGO_BIN_EXE_fake-hypervisor"),
};
const INN: &str = env!("CARGO_BIN_EXE_inn-on-fakes");

/// What differs from run to run, and what stands for it.
const MASKS: &[(&str, &str)] = &[
    // Where a guest is may be told before it is ready or after; what took no time is not told as done.
    (r"is ready at [0-9a-f.:, ]+", "is ready"),
    (r"\[stderr\] done: .*\n", ""),
    // What a guest is waited for is told as often as it changes, and that is the guest's affair.
    (r"\[stderr\] waiting until ready: .*\n", ""),
    (r"actual_bytes: \d+", "actual_bytes: [BYTES]"),
    (r"on disk: \S+", "on disk: [SIZE]"),
    (r"/tmp/ik[A-Za-z0-9]+", "[BED]"),
    (
        r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "[ID]",
    ),
    (r"(sha256:|#sha256=)?[0-9a-f]{64}", "[DIGEST]"),
    (
        r"\b(52:54:00|[0-9a-f]{2}(:[0-9a-f]{2}){2})(:[0-9a-f]{2}){3}\b",
        "[MAC]",
    ),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[TIME]"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]"),
    (r"(?m)(host port|port) \d{4,5}", "$1 [PORT]"),
    (r"(keeper|hypervisor|pid|process)( |: +)\d+", "$1$2[PID]"),
    (r"\b\d+(\.\d+)?(ms|s)\b( ago)?", "[DURATION]"),
];

struct Bed {
    installation: Installation,
    before: Traces,
    transcript: String,
    variables: Vec<(String, String)>,
}

impl Bed {
    fn new() -> Bed {
        let agent = agent_program().expect("an agent");
        let installation =
            Installation::new(PROGRAMS, &[FakeName::Fake, FakeName::FakePoor], Some(agent))
                .expect("an installation");
        // Makes the directories.
        drop(installation.open(None).expect("a host"));
        let before = Traces::of(&installation.home(), &installation.runtime());
        let variables = installation.environment();
        Bed {
            installation,
            before,
            transcript: String::new(),
            variables,
        }
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.installation.scratch().join(name);
        std::fs::write(&path, content).expect("written");
        path.display().to_string()
    }

    /// Runs a command line, whose words have no blanks in them, and notes what came of it.
    fn inn(&mut self, line: &str) -> i32 {
        let words: Vec<&str> = line.split(' ').collect();
        self.inn_words(&words)
    }

    fn inn_words(&mut self, words: &[&str]) -> i32 {
        let output = Command::new(INN)
            .arg0("inn")
            .args(words)
            .current_dir(self.installation.scratch())
            .env_clear()
            .envs(self.variables.iter().cloned())
            .stdin(Stdio::null())
            .output()
            .expect("started");
        let code = output.status.code().expect("an exit code");
        self.transcript += &format!("$ inn {}\n", words.join(" "));
        self.transcript += &String::from_utf8(output.stdout).expect("text");
        for line in String::from_utf8(output.stderr).expect("text").lines() {
            self.transcript += &format!("[stderr] {line}\n");
        }
        if code != 0 {
            self.transcript += &format!("[exit {code}]\n");
        }
        self.transcript += "\n";
        code
    }

    /// Compares the transcript, and looks that nothing runs any more.
    fn finish(self, name: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let left = runtime.block_on(self.before.wait_until_gone());
        assert_eq!(left, Vec::<String>::new(), "{}", self.transcript);
        assert_eq!(self.installation.violations(), Vec::<String>::new());
        insta::with_settings!({ filters => MASKS.to_vec(), omit_expression => true }, {
            insta::assert_snapshot!(name, self.transcript);
        });
    }

    fn spec(&self) -> String {
        let kernel = self.file("kernel", "a kernel that nobody runs");
        let spec = format!(
            "# what a test asks for\ndriver: fake\nboot:\n  kernel: {kernel}\ncpus: 1\nmemory: 64MiB\nnetworks: []\nready: agent\n"
        );
        self.file("web.yaml", spec)
    }
}

#[test]
fn a_life() {
    let mut bed = Bed::new();
    bed.spec();
    for line in [
        "ls",
        "create -f web.yaml --name web --dry-run",
        "create -f web.yaml --name web",
        "create -f web.yaml --name web",
        "ls",
        "explain web",
        "set web cpus=2 labels.env=dev",
        "set web memory-",
        "start web",
        "start web",
        "exec web echo hello",
        "exec web false",
        "exec web no-such-command",
        "exec web /etc",
        "set web cpus=1 --dry-run",
        "rename web shop",
        "protect web",
        "rm web --yes",
        "protect web --off",
        "rm web",
        "stop web",
        "stop web",
        "rename web shop",
        "ls -q",
        "rm shop --yes",
        "ls -o json",
        "rm shop --yes",
    ] {
        bed.inn(line);
    }
    bed.finish("a_life");
}

#[test]
fn names_and_specs_that_are_wrong() {
    let mut bed = Bed::new();
    bed.spec();
    bed.file("tabs.yaml", "image: tiny\nboot:\n\tcmdline: x\n");
    bed.file("wrong.yaml", "cpu: 2\nmemory: lots\nimage: tiny\n");
    bed.file(
        "nokernel.yaml",
        "driver: fake\nboot:\n  kernel: /no/such/kernel\n",
    );
    bed.file(
        "machine.yaml",
        "driver: qemu\nmachine: pc-q35-99.9\nboot:\n  kernel: /no/such/kernel\n",
    );
    bed.file(
        "port.yaml",
        "driver: fake-poor\nboot:\n  kernel: /k\nnetworks:\n  - forwards: [\"8080:80\"]\n",
    );
    for line in [
        "create -f web.yaml --name a/b",
        "create -f web.yaml --name Web",
        "create -f web.yaml --name ..",
        "create -f web.yaml --name web --memory 0",
        "create -f web.yaml --name web --memory 100TiB",
        "create -f web.yaml --name web --memory lots",
        "create -f web.yaml --name web --cpus 0",
        "create -f web.yaml --name web --driver xen",
        "create -f tabs.yaml --name web",
        "create -f wrong.yaml --name web",
        "create -f missing.yaml --name web",
        "create -f nokernel.yaml --name web",
        "create -f port.yaml --name web",
        "create --name web",
        "create debain:12 --name web",
        "create Debian:12 --name web",
        "start web",
        "info web -o json",
        "exec web ls",
        "set web cpus=4",
        "lss",
        "image rm tiny --yes",
        "ls -q",
    ] {
        let code = bed.inn(line);
        assert!(code != 0 || line == "ls -q", "{line}: {}", bed.transcript);
    }
    bed.finish("names_and_specs_that_are_wrong");
}

#[test]
fn a_machine_type_that_does_not_exist() {
    let mut bed = Bed::new();
    let kernel = bed.file("kernel", "a kernel that nobody runs");
    bed.file(
        "machine.yaml",
        format!("driver: fake\nmachine: pc-99.9\nboot:\n  kernel: {kernel}\n"),
    );
    assert_ne!(bed.inn("create -f machine.yaml --name web"), 0);
    assert_eq!(bed.inn("ls -q"), 0);
    bed.finish("a_machine_type_that_does_not_exist");
}

#[test]
fn a_port_that_is_taken() {
    let mut bed = Bed::new();
    let kernel = bed.file("kernel", "a kernel that nobody runs");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    bed.file(
        "port.yaml",
        format!("driver: fake\nboot:\n  kernel: {kernel}\nready: none\nnetworks:\n  - forwards: [\"{port}:80\"]\n"),
    );
    assert_eq!(bed.inn("create -f port.yaml --name web"), 4);
    drop(taken);
    assert_eq!(
        bed.inn("create -f port.yaml --name web"),
        0,
        "{}",
        bed.transcript
    );
    let taken = TcpListener::bind(("127.0.0.1", port)).expect("the same port");
    assert_eq!(bed.inn("start web"), 4, "{}", bed.transcript);
    bed.inn("ls");
    drop(taken);
    assert_eq!(bed.inn("start web"), 0, "{}", bed.transcript);
    bed.inn("rm web --force --yes");
    bed.finish("a_port_that_is_taken");
}

#[test]
fn without_qemu() {
    let mut bed = Bed::new();
    let kernel = bed.file("kernel", "a kernel that nobody runs");
    bed.file(
        "qemu.yaml",
        format!("driver: qemu\nboot:\n  kernel: {kernel}\n"),
    );
    let empty = bed.installation.scratch().join("empty");
    std::fs::create_dir(&empty).expect("made");
    bed.variables.retain(|(name, _)| name != "PATH");
    bed.variables
        .push(("PATH".to_owned(), empty.display().to_string()));
    assert_ne!(bed.inn("create -f qemu.yaml --name web"), 0);
    assert_eq!(bed.inn("ls -q"), 0);
    bed.finish("without_qemu");
}

#[test]
fn kvm_that_is_not_permitted() {
    let mut bed = Bed::new();
    let kernel = bed.file("kernel", "a kernel that nobody runs");
    bed.file(
        "kvm.yaml",
        format!("driver: qemu\naccel: kvm\nboot:\n  kernel: {kernel}\n"),
    );
    // What is said depends on why it can't be used here, so this is no snapshot.
    match bed.inn("create -f kvm.yaml --name web --dry-run") {
        0 => println!("skipped: KVM can be used here"),
        code => {
            assert_eq!(code, 5, "{}", bed.transcript);
            assert!(
                bed.transcript.to_lowercase().contains("kvm"),
                "{}",
                bed.transcript
            );
        }
    }
    println!("{}", bed.transcript);
}

/// Serves `/whole.raw`, and `/short.raw` as half of what its length says, to one connection after the other.
fn serve(content: Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // The thread ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 2048];
            let count = stream.read(&mut request).unwrap_or(0);
            let short = request[..count].windows(6).any(|word| word == b"/short");
            let body = match short {
                true => &content[..content.len() / 2],
                false => &content[..],
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                content.len()
            );
            // A client that has read enough hangs up.
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(body));
        }
    });
    port
}

#[test]
fn images_that_can_not_be_had() {
    let mut bed = Bed::new();
    let content: Vec<u8> = vec![7; 2 << 20];
    let whole = bed.file("whole.raw", &content);
    let output = Command::new("sha256sum")
        .arg(&whole)
        .output()
        .expect("sha256sum of coreutils");
    let digest = String::from_utf8_lossy(&output.stdout)[..64].to_owned();
    let wrong = "0".repeat(64);
    let port = serve(content);
    let server = format!("http://127.0.0.1:{port}");
    for line in [
        format!("image pull {server}/whole.raw"),
        format!("image pull {server}/whole.raw#sha256={wrong}"),
        format!("image pull {server}/short.raw#sha256={digest}"),
        "image import whole.raw --name mine --format qcow2".to_owned(),
        "image import no-such.raw --name mine".to_owned(),
        "image import kernel --name mine".to_owned(),
        "image pull no-such:1".to_owned(),
    ] {
        assert_ne!(bed.inn(&line), 0, "{}", bed.transcript);
        bed.inn("image ls -q");
    }
    bed.inn(&format!("image pull {server}/whole.raw#sha256={digest}"));
    bed.inn("image import whole.raw --name mine");
    bed.file(
        "small.yaml",
        format!(
            "driver: fake\nimage: mine\nboot:\n  kernel: {}\ndisks:\n  - name: root\n    size: 1MiB\n",
            bed.file("kernel", "k")
        ),
    );
    assert_ne!(bed.inn("create -f small.yaml --name web"), 0);
    bed.inn("ls -q");
    let left: Vec<_> = std::fs::read_dir(bed.installation.home().join("layers"))
        .expect("layers")
        .map(|entry| entry.expect("an entry").file_name())
        .filter(|name| name.len() == 64)
        .collect();
    assert_eq!(left.len(), 1, "{left:?} {}", bed.transcript);
    bed.inn("image rm mine --yes");
    bed.inn(&format!(
        "image rm {server}/whole.raw#sha256={digest} --yes"
    ));
    bed.finish("images_that_can_not_be_had");
}

#[test]
fn disks_of_their_own() {
    let mut bed = Bed::new();
    bed.file("disk", "");
    for line in [
        "disk create data.raw 1MiB --format raw",
        "disk create data.raw 1MiB --format raw",
        "disk info data.raw",
        "disk resize data.raw 2MiB",
        "disk resize data.raw 1MiB",
        "disk convert data.raw data.qcow2",
        "disk info data.qcow2 -o yaml",
        "disk info data.raw --format qcow2",
        "disk info disk",
        "disk convert disk other.qcow2",
    ] {
        bed.inn(line);
    }
    bed.finish("disks_of_their_own");
}
