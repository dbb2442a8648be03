//! The machine that the double pretends to have: its states, its calls, its events.
//!
//! ```text
//!  none ─ vm.create ─► Created ─ vm.boot ─► Running ◄─ resume, pause ─► Paused
//!   └──── vm.restore ────────────────────────────────────────────────► Paused
//!  Running ─ the guest powers off ─► Created, and the process lives on
//! ```

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::schema::{self, list};
use crate::script::Script;
use crate::vsock::Vsock;
use crate::{http, share};

/// How long the guest takes to let go of a device.
const EJECT: Duration = Duration::from_millis(50);

/// State of the machine, in the interface's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    None,
    Created,
    Running,
    Paused,
}

struct Machine {
    script: Script,
    events: File,
    state: State,
    config: Value,
    balloon: u64,
    /// Identifiers that the guest has not let go of.
    ejecting: BTreeSet<String>,
    shares: Vec<UnixStream>,
    vsock: Option<Vsock>,
}

/// What comes of a call.
enum Answer {
    Empty,
    Body(Value),
    /// Status and sentences, the outermost first.
    Refused(u16, Vec<String>),
    /// Status and a body of another shape.
    Odd(u16, &'static str),
    End,
}

fn refused(status: u16, sentences: &[&str]) -> Answer {
    let all = std::iter::once(&"Error from API").chain(sentences);
    Answer::Refused(status, all.map(|text| (*text).to_owned()).collect())
}

/// Runs the double until it is told to end.
pub fn run(script: Script) -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--landlock") && script.is("landlock", "none") {
        return Err(io::Error::other(
            "Error applying landlock to http-server thread",
        ));
    }
    let number = |option: &str| -> Option<i32> {
        let at = arguments.iter().position(|argument| argument == option)?;
        arguments.get(at + 1)?.strip_prefix("fd=")?.parse().ok()
    };
    let api = number("--api-socket").ok_or_else(|| io::Error::other("no --api-socket fd="))?;
    let listener = UnixListener::from(share::inherited(api)?);
    let probed = !arguments
        .iter()
        .any(|argument| argument == "--event-monitor");
    let events = match number("--event-monitor") {
        Some(number) => File::options()
            .write(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(format!("/proc/self/fd/{number}"))?,
        None => File::options().write(true).open("/dev/null")?,
    };
    if !probed {
        for needed in ["--no-shutdown", "--seccomp"] {
            if !arguments.iter().any(|argument| argument == needed) {
                script.violated(&format!("started without {needed}"));
            }
        }
    }
    let mut machine = Machine {
        script,
        events,
        state: State::None,
        config: Value::Null,
        balloon: 0,
        ejecting: BTreeSet::new(),
        shares: Vec::new(),
        vsock: None,
    };
    machine.event("vmm", "starting", None);
    loop {
        let (mut stream, _) = listener.accept()?;
        let Some(request) = http::read(&mut stream)? else {
            continue;
        };
        if machine.script.is("calls", "stall") {
            // It lives and carries nothing out.
            // poll: the script says so no more
            while machine.script.is("calls", "stall") {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let answer = machine.call(&request);
        // Who asked may have given up.
        let _ = match &answer {
            Answer::Empty => http::answer(&mut stream, 204, ""),
            Answer::Body(body) => http::answer(&mut stream, 200, &body.to_string()),
            Answer::Refused(status, sentences) => {
                http::answer(&mut stream, *status, &json!(sentences).to_string())
            }
            Answer::Odd(status, body) => http::answer(&mut stream, *status, body),
            Answer::End => http::answer(&mut stream, 200, ""),
        };
        if let Answer::End = answer {
            machine.event("vm", "deleted", None);
            machine.event("vmm", "shutdown", None);
            return Ok(());
        }
    }
}

impl Machine {
    fn event(&mut self, source: &str, event: &str, id: Option<&str>) {
        if self.script.is("events", "lost") {
            // As if the pipe were full.
            return;
        }
        let noise = if self.script.is("events", "noisy") {
            "{ no event }\n\u{1}{\"other\": {}}\n"
        } else {
            ""
        };
        let event = json!({
            "timestamp": { "secs": 0, "nanos": 1 },
            "source": source,
            "event": event,
            "properties": id.map(|id| json!({ "id": id, "bdf": "0000:00:05.0" })),
        });
        let text = serde_json::to_string_pretty(&event).unwrap_or_default();
        // The real one drops what does not fit as well.
        let _ = self
            .events
            .write_all(format!("{noise}{text}\n\n").as_bytes());
    }

    fn call(&mut self, request: &http::Request) -> Answer {
        let endpoint = request.path.strip_prefix("/api/v1/").unwrap_or_default();
        let body: Value = if request.body.is_empty() {
            Value::Null
        } else {
            match serde_json::from_slice(&request.body) {
                Ok(body) => body,
                Err(_) => return self.wrong(format!("{endpoint}: the body is no JSON")),
            }
        };
        match (request.method.as_str(), endpoint) {
            ("GET", "vmm.ping") => self.ping(),
            ("GET", "vm.info") => self.info(),
            ("GET", "vm.counters") => Answer::Body(json!({
                "disk-root": { "read_bytes": 4096, "write_bytes": 512, "new": 1.5 },
            })),
            ("PUT", "vm.create") => self.create(body),
            ("PUT", "vm.boot") => self.boot(),
            ("PUT", "vm.pause") => self.turn(State::Running, State::Paused, "paused"),
            ("PUT", "vm.resume") => self.turn(State::Paused, State::Running, "resumed"),
            ("PUT", "vm.power-button") => self.button(),
            ("PUT", "vm.resize") => self.resize(&body),
            ("PUT", "vm.add-disk") => self.add_disk(body),
            ("PUT", "vm.remove-device") => self.remove(&body),
            ("PUT", "vm.snapshot") => self.snapshot(&body),
            ("PUT", "vm.restore") => self.restore(&body),
            ("PUT", "vmm.shutdown") => {
                if self.state == State::Running {
                    self.event("vm", "shutdown", None);
                }
                Answer::End
            }
            (method, endpoint) => self.wrong(format!("{method} {endpoint}: there is no such call")),
        }
    }

    /// The real one would ignore it, or fail in its own way.
    fn wrong(&self, what: String) -> Answer {
        self.script.violated(&what);
        Answer::Odd(400, "{\"error\":\"Bad Request\"}")
    }

    fn ping(&self) -> Answer {
        let version = self
            .script
            .says("version")
            .unwrap_or_else(|| "54.0.0".to_owned());
        Answer::Body(json!({
            "build_version": format!("v{version}"),
            "version": version,
            "pid": std::process::id(),
            "features": ["io_uring", "kvm"],
        }))
    }

    fn info(&self) -> Answer {
        let state = match self.state {
            State::None => {
                return refused(404, &["The VM info is not available", "VM is not created"]);
            }
            State::Created => "Created",
            State::Running => "Running",
            State::Paused => "Paused",
        };
        let memory = &self.config["memory"];
        let all =
            memory["size"].as_u64().unwrap_or(0) + memory["hotplugged_size"].as_u64().unwrap_or(0);
        Answer::Body(json!({
            "config": self.config,
            "state": state,
            "memory_actual_size": all.saturating_sub(self.balloon),
            "device_tree": {},
        }))
    }

    fn create(&mut self, body: Value) -> Answer {
        if self.state != State::None {
            self.script
                .violated("vm.create while there is a config: delete it first");
            return refused(
                500,
                &["The VM could not be created", "VM is already created"],
            );
        }
        if let Err(what) = schema::check("VmConfig", &body) {
            return self.wrong(what);
        }
        for trap in schema::traps(&body) {
            self.script.violated(&trap);
        }
        // Almost nothing is checked here; what is wrong comes out when it boots.
        self.config = body;
        self.state = State::Created;
        if self.script.is("create", "fail") {
            // The config stays.
            return refused(
                500,
                &["The VM could not be created", "Cannot apply landlock"],
            );
        }
        Answer::Empty
    }

    fn boot(&mut self) -> Answer {
        if self.state != State::Created {
            self.script
                .violated("vm.boot without a machine that was created");
            return refused(404, &["The VM could not boot", "VM is not created"]);
        }
        self.event("vm", "booting", None);
        match self.script.says("boot").as_deref() {
            Some("fail") => {
                return refused(
                    500,
                    &["The VM could not boot", "Cannot open the kernel file"],
                );
            }
            Some("fail-empty") => return Answer::Odd(500, ""),
            Some("fail-object") => {
                return Answer::Odd(500, "{\"error\":\"Internal Server Error\"}");
            }
            Some("die") => std::process::exit(3),
            _ => {}
        }
        if let Err(error) = self.begin() {
            return refused(500, &["The VM could not boot", &error.to_string()]);
        }
        self.event("vm", "booted", None);
        if self.script.is("boot", "power-off") {
            // The guest was quicker than the answer.
            self.power_off();
        }
        Answer::Empty
    }

    /// The guest begins its run: devices connect, the serial port speaks.
    fn begin(&mut self) -> io::Result<()> {
        self.shares.clear();
        for fs in list(&self.config["fs"]) {
            let socket = PathBuf::from(fs["socket"].as_str().unwrap_or_default());
            self.shares.push(share::connect(&socket)?);
        }
        if let Some(socket) = self.config["vsock"]["socket"].as_str() {
            // What an earlier boot listened at goes first.
            self.vsock = None;
            self.vsock = Some(Vsock::listen(Path::new(socket), &self.script)?);
        }
        if self.config["serial"]["mode"] == "Tty" {
            println!("MARKER");
        }
        self.state = State::Running;
        Ok(())
    }

    fn power_off(&mut self) {
        self.shares.clear();
        self.vsock = None;
        self.state = State::Created;
        self.event("vm", "shutdown", None);
    }

    fn turn(&mut self, from: State, to: State, event: &str) -> Answer {
        if self.state != from {
            return refused(
                500,
                &["The VM could not change its state", "VM is not running"],
            );
        }
        self.state = to;
        self.event("vm", event, None);
        Answer::Empty
    }

    fn button(&mut self) -> Answer {
        if self.state == State::Created {
            return refused(
                500,
                &["The power button could not be pressed", "VM is not running"],
            );
        }
        match self.script.says("button").as_deref() {
            Some("power-off") => self.power_off(),
            Some("reboot") => {
                self.event("vm", "rebooting", None);
                if let Err(error) = self.begin() {
                    eprintln!("the VM could not reboot: {error}");
                    std::process::exit(1);
                }
                self.event("vm", "rebooted", None);
            }
            Some("panic") => self.event("guest", "panic", None),
            Some("crash") => {
                // What an error of its own looks like: the event of a power-off, and the end.
                self.event("vm", "shutdown", None);
                eprintln!("a thread panicked");
                std::process::exit(1);
            }
            // The guest does not listen, and the answer is the same.
            _ => {}
        }
        Answer::Empty
    }

    fn resize(&mut self, body: &Value) -> Answer {
        if let Err(what) = schema::check("VmResize", body) {
            return self.wrong(what);
        }
        if self.script.is("resize", "pending") {
            return Answer::Odd(429, "[\"Too Many Requests\"]");
        }
        if let Some(count) = body["desired_vcpus"].as_u64() {
            if count > self.config["cpus"]["max_vcpus"].as_u64().unwrap_or(0) {
                self.script.violated("vm.resize: more CPUs than max_vcpus");
            }
            self.config["cpus"]["boot_vcpus"] = json!(count);
        }
        if let Some(size) = body["desired_ram"].as_u64() {
            let base = self.config["memory"]["size"].as_u64().unwrap_or(0);
            if size < base
                || size > base + self.config["memory"]["hotplug_size"].as_u64().unwrap_or(0)
            {
                self.script.violated("vm.resize: memory out of its bounds");
            }
            self.config["memory"]["hotplugged_size"] = json!(size.saturating_sub(base));
        }
        if let Some(size) = body["desired_balloon"].as_u64() {
            if self.config["balloon"].is_null() {
                self.script.violated("vm.resize: there is no balloon");
            }
            self.balloon = size;
        }
        Answer::Empty
    }

    fn add_disk(&mut self, body: Value) -> Answer {
        if let Err(what) = schema::check("disks", &body) {
            return self.wrong(what);
        }
        for trap in schema::disk_traps(&body) {
            self.script.violated(&trap);
        }
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        self.settle();
        if self.ejecting.contains(&id) {
            return refused(
                500,
                &[
                    "The disk could not be added",
                    "Identifier disk is not unique",
                ],
            );
        }
        let taken = list(&self.config["disks"])
            .iter()
            .any(|disk| disk["id"] == id.as_str());
        if taken {
            self.script
                .violated("vm.add-disk: that identifier is attached");
        }
        if !self.config["disks"].is_array() {
            self.config["disks"] = json!([]);
        }
        if let Some(disks) = self.config["disks"].as_array_mut() {
            disks.push(body);
        }
        Answer::Body(json!({ "id": id, "bdf": "0000:00:05.0" }))
    }

    fn remove(&mut self, body: &Value) -> Answer {
        if let Err(what) = schema::check("VmRemoveDevice", body) {
            return self.wrong(what);
        }
        let id = body["id"].as_str().unwrap_or_default().to_owned();
        let Some(disks) = self.config["disks"].as_array_mut() else {
            return refused(404, &["The device could not be removed"]);
        };
        let before = disks.len();
        // Gone from the config at once; the device stays until the guest lets go.
        disks.retain(|disk| disk["id"] != id.as_str());
        if disks.len() == before {
            return refused(404, &["The device could not be removed"]);
        }
        self.ejecting.insert(id.clone());
        if !self.script.is("eject", "never") {
            std::thread::sleep(EJECT);
            self.settle();
        }
        Answer::Empty
    }

    /// The guest lets go of what it was asked to.
    fn settle(&mut self) {
        if self.script.is("eject", "never") {
            return;
        }
        for id in std::mem::take(&mut self.ejecting) {
            self.event("vm", "device-removed", Some(&id));
        }
    }

    fn snapshot(&mut self, body: &Value) -> Answer {
        if let Err(what) = schema::check("VmSnapshotConfig", body) {
            return self.wrong(what);
        }
        if self.state != State::Paused {
            self.script
                .violated("vm.snapshot of a machine that is not paused");
        }
        if self.script.is("snapshot", "fail") {
            return refused(
                500,
                &["The VM could not be snapshot", "No space left on device"],
            );
        }
        let url = body["destination_url"].as_str().unwrap_or_default();
        let directory = PathBuf::from(url.strip_prefix("file://").unwrap_or_default());
        let empty = std::fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_none());
        if !empty {
            self.script
                .violated("vm.snapshot into what is no empty directory");
            return refused(500, &["The VM could not be snapshot"]);
        }
        let files = [
            ("config.json", self.config.to_string()),
            ("state.json", "{}".to_owned()),
            ("memory-ranges", "memory".to_owned()),
        ];
        for (name, text) in files {
            if std::fs::write(directory.join(name), text).is_err() {
                return refused(500, &["The VM could not be snapshot"]);
            }
        }
        Answer::Empty
    }

    fn restore(&mut self, body: &Value) -> Answer {
        if let Err(what) = schema::check("RestoreConfig", body) {
            return self.wrong(what);
        }
        if self.state != State::None {
            self.script.violated("vm.restore while there is a machine");
            return refused(
                500,
                &["The VM could not be restored", "VM is already created"],
            );
        }
        if self.script.is("restore", "no-userfaultfd") && body["memory_restore_mode"] == "OnDemand"
        {
            return refused(
                500,
                &[
                    "The VM could not be restored",
                    "userfaultfd is not permitted",
                ],
            );
        }
        let url = body["source_url"].as_str().unwrap_or_default();
        let directory = PathBuf::from(url.strip_prefix("file://").unwrap_or_default());
        let read = |name: &str| std::fs::read(directory.join(name)).ok();
        let config =
            read("config.json").and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let (Some(config), Some(_), Some(_)) = (config, read("state.json"), read("memory-ranges"))
        else {
            return refused(
                500,
                &[
                    "The VM could not be restored",
                    "missing field `memory_manager`",
                ],
            );
        };
        for disk in list(&config["disks"]) {
            if disk["path"]
                .as_str()
                .is_none_or(|path| File::open(path).is_err())
            {
                return refused(
                    500,
                    &["The VM could not be restored", "Cannot open the disk"],
                );
            }
        }
        self.config = config;
        self.state = State::Paused;
        self.event("vm", "restored", None);
        Answer::Empty
    }
}
