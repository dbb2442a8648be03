//! A running machine: what can be asked of it, and the task that watches it and tells what happens.
//!
//! ```text
//!  VZ ── states, delegate ──► supervise ──► MachineEvent ... Exited
//!  Machine (asks) ── quit, kill ──► end ──►    │ lets go of the machine and of the run's lock
//! ```
//!
//! The machine lives as long as the task does, whether or not anybody listens: dropping [`Running`] does not end it, the process's end does.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use innkeeper_api::{ErrorKind, Unsupported};
use innkeeper_net::MacAddr;
use innkeeper_vz::{Event, MachineIdentifier, State, VirtualMachine, VzError};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::super::objects::{MachinePlan, UsbStick};
use super::super::plan::{AGENT_PORT, disk_image, stick_uuid};
use super::super::ports::Port;
use super::super::saved::{Details, STATE_FILE, hexadecimal};
use super::super::tracker::{Seen, Tracker};
use super::walk::storage;
use super::{Record, vz_error};
use crate::driver::{
    Balloon, Channel, Consoles, DiskConfig, ExitReport, Hotplug, Machine, MachineEvent, Medium,
    NicConfig, Pause, Running, SavedMachine, Suspend, Vsock,
};
use crate::error::{Error, Result};
use crate::spec::{Bytes, DiskBus};

/// How long an orderly end may take: the disks' caches are written.
const QUIT_DEADLINE: Duration = Duration::from_secs(60);

/// How long macOS may take to stop a machine before it is let go of all the same.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Memory targets go in steps of this many bytes.
const MEMORY_STEP: u64 = 1024 * 1024;

/// Connections of a guest to one port that wait to be taken.
const BACKLOG: usize = 16;

/// What a launch leaves behind to be supervised.
pub(super) struct Launched {
    pub(super) machine: VirtualMachine,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) ports: HashMap<String, Port>,
    pub(super) plan: MachinePlan,
    pub(super) identifier: MachineIdentifier,
    pub(super) id: String,
    pub(super) build: String,
    pub(super) lock: File,
    pub(super) log: File,
    pub(super) record: Record,
}

/// What the machine and its supervisor share.
struct Shared {
    /// There until the machine has ended.
    machine: Mutex<Option<Arc<VirtualMachine>>>,
    ports: HashMap<String, Port>,
    /// What the machine is made of now.
    plan: Mutex<MachinePlan>,
    identifier: MachineIdentifier,
    id: String,
    build: String,
    pid: u32,
    expected: AtomicBool,
    sender: mpsc::UnboundedSender<MachineEvent>,
    /// Set by who wants the machine to be let go of.
    end: watch::Sender<bool>,
    /// Set when that has been done.
    ended: watch::Sender<bool>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn machine(&self) -> Result<Arc<VirtualMachine>> {
        locked(&self.machine)
            .clone()
            .ok_or_else(|| Error::new(ErrorKind::Unreachable, "the machine has ended"))
    }

    fn tell(&self, event: MachineEvent) {
        // Nobody listens: the machine goes on all the same.
        let _ = self.sender.send(event);
    }

    /// Lets go of the machine and waits until that has been done.
    async fn end(&self) {
        self.end.send_replace(true);
        // Fails only if the supervisor is gone, and the machine with it.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

/// Begins to supervise a machine that was just started.
pub(super) fn supervise(launched: Launched) -> Result<Running> {
    let (sender, events) = mpsc::unbounded_channel();
    let record = serde_json::to_value(&launched.record).map_err(|error| {
        Error::new(ErrorKind::Failure, "the record can't be written down").with_source(error)
    })?;
    let shared = Arc::new(Shared {
        machine: Mutex::new(Some(Arc::new(launched.machine))),
        ports: launched.ports,
        plan: Mutex::new(launched.plan),
        identifier: launched.identifier,
        id: launched.id,
        build: launched.build,
        pid: launched.record.pid,
        expected: AtomicBool::new(false),
        sender,
        end: watch::Sender::new(false),
        ended: watch::Sender::new(false),
    });
    let supervisor = Supervisor {
        shared: shared.clone(),
        tracker: Tracker::default(),
        lock: launched.lock,
        log: launched.log,
    };
    tokio::spawn(supervisor.run(launched.events));
    Ok(Running {
        machine: Box::new(VzMachine { shared }),
        events,
        record,
    })
}

struct Supervisor {
    shared: Arc<Shared>,
    tracker: Tracker,
    lock: File,
    log: File,
}

impl Supervisor {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut end = self.shared.end.subscribe();
        let error = loop {
            tokio::select! {
                // What happened before it was let go of is told before.
                biased;
                event = events.recv() => match event {
                    Some(Event::StoppedWithError(error)) => break Some(error),
                    Some(event) => self.take(event),
                    None => break Some(VzError::gone()),
                },
                _ = end.wait_for(|end| *end) => break None,
            }
        };
        self.finish(error);
    }

    fn say(&mut self, line: &str) {
        // A full disk is not a reason to end a machine.
        let _ = writeln!(self.log, "{line}");
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::State(state) => {
                let seen = match state {
                    State::Running => Seen::Running,
                    State::Paused => Seen::Paused,
                    State::Error => Seen::Error,
                    _ => Seen::Else,
                };
                if let Some(event) = self.tracker.observe(seen) {
                    self.shared.tell(event);
                }
            }
            Event::GuestStopped => self.shared.tell(MachineEvent::GuestShutdown),
            Event::NetworkLost(mac, error) => {
                let mac = mac.unwrap_or_else(|| "of unknown address".to_owned());
                self.say(&format!("the network of interface {mac} is gone: {error}"));
            }
            Event::StoppedWithError(_) => {}
        }
    }

    /// Lets go of the machine, cleans up, tells.
    fn finish(mut self, error: Option<VzError>) {
        drop(locked(&self.shared.machine).take());
        let log_tail = error.map_or_else(String::new, |error| {
            let mut said = format!("Virtualization.framework ended the machine: {error}");
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                said.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            self.say(&said);
            said
        });
        let Supervisor { shared, lock, .. } = self;
        // Free before the end is told: who hears of it may launch again.
        drop(lock);
        shared.tell(MachineEvent::Exited(ExitReport {
            code: None,
            signal: None,
            expected: shared.expected.load(Ordering::SeqCst),
            log_tail,
        }));
        shared.ended.send_replace(true);
    }
}

/// A running machine of Virtualization.framework.
struct VzMachine {
    shared: Arc<Shared>,
}

#[async_trait]
impl Machine for VzMachine {
    fn pid(&self) -> u32 {
        self.shared.pid
    }

    fn accel(&self) -> &str {
        "hvf"
    }

    async fn power_button(&self) -> Result<()> {
        self.shared
            .machine()?
            .request_stop()
            .await
            .map_err(|error| vz_error(error, "macOS did not press the power button"))
    }

    async fn quit(&self) -> Result<()> {
        let Ok(machine) = self.shared.machine() else {
            return Ok(());
        };
        let before = self.shared.expected.swap(true, Ordering::SeqCst);
        let stopped = match tokio::time::timeout(QUIT_DEADLINE, machine.stop()).await {
            Ok(result) => result.map_err(|error| vz_error(error, "macOS did not stop the machine")),
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "macOS did not stop the machine within {} s",
                    QUIT_DEADLINE.as_secs()
                ),
            )),
        };
        if stopped.is_err() {
            self.shared.expected.store(before, Ordering::SeqCst);
            return stopped;
        }
        drop(machine);
        self.shared.end().await;
        Ok(())
    }

    async fn kill(&self) -> Result<()> {
        self.shared.expected.store(true, Ordering::SeqCst);
        if let Ok(machine) = self.shared.machine() {
            // Whether it worked or not: letting go of the machine ends it.
            let _ = tokio::time::timeout(KILL_DEADLINE, machine.stop()).await;
        }
        self.shared.end().await;
        Ok(())
    }

    async fn agent_channel(&self) -> Result<Box<dyn Channel>> {
        self.open(AGENT_PORT).await
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn suspend(&self) -> Option<&dyn Suspend> {
        Some(self)
    }

    fn balloon(&self) -> Option<&dyn Balloon> {
        let has_one = locked(&self.shared.plan).balloon.is_some();
        has_one.then_some(self)
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        let has_controller = locked(&self.shared.plan).usb_controller.is_some();
        has_controller.then_some(self)
    }

    fn vsock(&self) -> Option<&dyn Vsock> {
        let has_device = locked(&self.shared.plan).socket;
        has_device.then_some(self)
    }

    fn consoles(&self) -> Option<&dyn Consoles> {
        Some(self)
    }
}

#[async_trait]
impl Pause for VzMachine {
    async fn pause(&self) -> Result<()> {
        let machine = self.shared.machine()?;
        let paused = machine.pause().await;
        paused.map_err(|error| vz_error(error, "macOS did not pause the machine"))
    }

    async fn resume(&self) -> Result<()> {
        let machine = self.shared.machine()?;
        let resumed = machine.resume().await;
        resumed.map_err(|error| vz_error(error, "macOS did not resume the machine"))
    }
}

#[async_trait]
impl Suspend for VzMachine {
    async fn save(&self, directory: &Path) -> Result<SavedMachine> {
        let file = directory.join(STATE_FILE);
        let machine = self.shared.machine()?;
        machine
            .save(&file)
            .await
            .map_err(|error| vz_error(error, "macOS did not save the machine"))?;
        let synced = tokio::task::spawn_blocking({
            let directory = directory.to_owned();
            move || {
                File::open(file)?
                    .sync_all()
                    .and_then(|()| File::open(directory)?.sync_all())
            }
        });
        match synced.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Error::io("can't keep the saved state", error)),
            Err(error) => {
                return Err(
                    Error::new(ErrorKind::Failure, "can't keep the saved state").with_source(error)
                );
            }
        }
        let details = Details {
            file: STATE_FILE.to_owned(),
            machine_identifier: hexadecimal(self.shared.identifier.as_bytes()),
            plan: locked(&self.shared.plan).clone(),
        };
        Ok(SavedMachine {
            directory: directory.to_owned(),
            version: self.shared.build.clone(),
            details: details.to_value()?,
        })
    }

    async fn obstacle(&self) -> Result<Option<Unsupported>> {
        Ok(self
            .shared
            .machine()?
            .unsaveable()
            .map(|error| Unsupported {
                field: String::new(),
                reason: format!("macOS can't save this machine: {error}"),
                hint: None,
            }))
    }
}

#[async_trait]
impl Balloon for VzMachine {
    async fn set_target(&self, memory: Bytes) -> Result<()> {
        let largest = locked(&self.shared.plan).memory;
        let target = memory.get() / MEMORY_STEP * MEMORY_STEP;
        if target == 0 || target > largest {
            return Err(Error::new(
                ErrorKind::BadInput,
                format!("a memory target is between 1 MiB and the machine's {largest} bytes"),
            ));
        }
        let machine = self.shared.machine()?;
        let set = machine.set_memory_target(target).await;
        set.map_err(|error| vz_error(error, "macOS did not take the memory target"))
    }

    async fn actual(&self) -> Result<Bytes> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "Virtualization.framework does not tell how far a guest has followed its memory target",
        ))
    }
}

impl VzMachine {
    fn has_stick(&self, name: &str) -> bool {
        let plan = locked(&self.shared.plan);
        let sticks = plan.usb_controller.iter().flat_map(|it| &it.sticks);
        sticks.into_iter().any(|stick| stick.name == name)
    }

    fn only_usb<T>(what: &str) -> Result<T> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!("Virtualization.framework can't {what} while the machine runs"),
        ))
    }
}

#[async_trait]
impl Hotplug for VzMachine {
    async fn attach_disk(&self, disk: &DiskConfig) -> Result<()> {
        if disk.bus != DiskBus::Usb {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "disk {}: Virtualization.framework attaches USB disks alone while the machine runs",
                    disk.name
                ),
            )
            .with_hint("set its bus to usb"));
        }
        if self.has_stick(&disk.name) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("a disk {} is attached already", disk.name),
            ));
        }
        let attachment = disk_image(disk)?;
        let uuid = stick_uuid(&self.shared.id, &disk.name);
        let planned = attachment.clone();
        self.shared
            .machine()?
            .attach_usb(uuid, move || storage(&planned))
            .await
            .map_err(|error| vz_error(error, format!("macOS did not attach disk {}", disk.name)))?;
        if let Some(controller) = &mut locked(&self.shared.plan).usb_controller {
            controller.sticks.push(UsbStick {
                name: disk.name.clone(),
                uuid,
                attachment,
            });
        }
        Ok(())
    }

    async fn request_detach_disk(&self, name: &str) -> Result<()> {
        if !self.has_stick(name) {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no USB disk {name} is attached"),
            ));
        }
        self.shared
            .machine()?
            .detach_usb(stick_uuid(&self.shared.id, name))
            .await
            .map_err(|error| vz_error(error, format!("macOS did not detach disk {name}")))?;
        if let Some(controller) = &mut locked(&self.shared.plan).usb_controller {
            controller.sticks.retain(|stick| stick.name != name);
        }
        self.shared.tell(MachineEvent::Detached(name.to_owned()));
        Ok(())
    }

    async fn change_medium(&self, _name: &str, _medium: Option<&Medium>) -> Result<()> {
        Self::only_usb("change a medium")
    }

    async fn attach_nic(&self, _nic: &NicConfig) -> Result<()> {
        Self::only_usb("attach an interface")
    }

    async fn request_detach_nic(&self, _mac: MacAddr) -> Result<()> {
        Self::only_usb("detach an interface")
    }
}

/// Makes a channel of a connection's descriptor, which is a stream socket.
fn channel(descriptor: OwnedFd) -> std::io::Result<Box<dyn Channel>> {
    let stream = StdUnixStream::from(descriptor);
    stream.set_nonblocking(true)?;
    Ok(Box::new(UnixStream::from_std(stream)?))
}

#[async_trait]
impl Vsock for VzMachine {
    async fn connect(&self, port: u32) -> Result<Box<dyn Channel>> {
        let connected = self.shared.machine()?.connect(port).await;
        let descriptor = connected.map_err(|error| {
            Error::new(
                ErrorKind::Unreachable,
                format!("nothing in the guest answers on vsock port {port}"),
            )
            .with_source(error)
        })?;
        channel(descriptor)
            .map_err(|error| Error::io(format!("can't use vsock port {port}"), error))
    }

    async fn listen(&self, port: u32) -> Result<mpsc::Receiver<Box<dyn Channel>>> {
        let mut connections = self.shared.machine()?.listen(port).await.map_err(|error| {
            Error::new(
                ErrorKind::Conflict,
                format!("can't listen on vsock port {port}"),
            )
            .with_source(error)
        })?;
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            loop {
                let descriptor = tokio::select! {
                    descriptor = connections.recv() => descriptor,
                    () = sender.closed() => None,
                };
                let Some(descriptor) = descriptor else {
                    return;
                };
                // One that can't be used is closed, which the guest sees.
                if let Ok(channel) = channel(descriptor)
                    && sender.send(channel).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

#[async_trait]
impl Consoles for VzMachine {
    async fn open(&self, name: &str) -> Result<Box<dyn Channel>> {
        let consoles = |name: &&str| *name != AGENT_PORT;
        let found = Some(name).filter(consoles);
        let Some(port) = found.and_then(|name| self.shared.ports.get(name)) else {
            let mut names: Vec<&str> = self
                .shared
                .ports
                .keys()
                .map(String::as_str)
                .filter(consoles)
                .collect();
            names.sort_unstable();
            return Err(
                Error::new(ErrorKind::NotFound, format!("no console is named {name}"))
                    .with_hint(format!("there are: {}", names.join(", "))),
            );
        };
        port.open().await
    }
}
