//! Devices that another process serves (shared folders): how they are started with the machine, and how they leave it and come back.
//!
//! ```text
//!  start:     virtiofsd listens ─► we connect, it answers ─► the connection is QEMU's        silent: told within 5 s, nothing started
//!  take out:  device_del ─► (the guest lets go) ─► DEVICE_DELETED ─► chardev-remove ─► virtiofsd ends, having lost its peer
//!  put back:  virtiofsd anew ─► it answers ─► getfd, chardev-add, device_add at a free port
//! ```
//!
//! What such a process knows is in no file of ours, so that a machine is saved without these devices. QEMU is only ever given a connection
//! on which somebody answered: it stands still with everything that it has while it waits for one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use innkeeper_api::ErrorKind;
use serde_json::{Value, json};
use tokio::process::Child;
use tokio::sync::mpsc;

use super::arguments::Options;
use super::board::Board;
use super::device::Device;
use super::hotplug::Present;
use super::machine::{COMMAND_DEADLINE, QemuMachine, Shared};
use super::process::{Process, ProcessIdentity};
use super::record::{SidecarRecord, log_tail};
use super::suspend::next_event;
use crate::driver::{MachineConfig, Unsaved};
use crate::drivers::start::{
    Descriptor, DescriptorRole, FIRST_DESCRIPTOR, Opened, Output, Serves, Sidecar, Undo, open_log,
    spawn,
};
use crate::drivers::virtiofsd::{self, Virtiofsd};
use crate::error::{Error, Result};

/// How long a guest may take to let go of a device: five seconds are between button and power where PCI Express does it by itself.
const LET_GO_DEADLINE: Duration = Duration::from_secs(20);

/// How long QEMU may hold on to what a device used after the device is gone.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a process that was told to end, or is ending, may take.
const END_DEADLINE: Duration = Duration::from_secs(1);

/// A device with the process that serves it.
#[derive(Debug)]
pub(super) struct Served {
    /// Id of the device.
    pub(super) id: String,
    /// Where the process listens, until it is connected.
    pub(super) socket: PathBuf,
    /// The process.
    pub(super) sidecar: Sidecar,
    driver: String,
    character_device: String,
    tag: String,
}

/// Returns the id of the device of share number `index`.
pub(super) fn share_id(index: usize) -> String {
    format!("share{index}-device")
}

/// Returns the name that the engine has for a device of this kind; none if it is of another.
pub(super) fn name_of(id: &str) -> Option<&str> {
    let name = id.strip_suffix("-device")?;
    let number = name.strip_prefix("share")?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

/// Lists such devices of a machine. Pure.
///
/// Errors: `Unsupported` or `BadInput` naming what can't be served.
pub(super) fn of(
    config: &MachineConfig,
    board: Board,
    virtiofsd: Option<&Virtiofsd>,
) -> Result<Vec<Served>> {
    let mut served = Vec::new();
    for (index, share) in config.shares.iter().enumerate() {
        let daemon = virtiofsd.ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "shared folders need virtiofsd, which was not found on this host",
            )
        })?;
        let id = share_id(index);
        let character_device = format!("share{index}");
        let socket = config
            .paths
            .sockets
            .join(format!("{character_device}.sock"));
        let (program, arguments) = daemon.serve(share, FIRST_DESCRIPTOR)?;
        served.push(Served {
            sidecar: Sidecar {
                program,
                arguments,
                descriptors: vec![Descriptor {
                    number: FIRST_DESCRIPTOR,
                    role: DescriptorRole::Listener(socket.clone()),
                }],
                serves: Some(Serves {
                    device: id.clone(),
                    what: format!(
                        "virtiofsd, which is to serve the folder {},",
                        share.host.display()
                    ),
                }),
            },
            id,
            socket,
            driver: format!("vhost-user-fs-{}", board.bus()),
            character_device,
            tag: share.tag.clone(),
        });
    }
    Ok(served)
}

impl Served {
    /// Returns the value of `-chardev` for a connection that is inherited under this number.
    pub(super) fn character_device(&self, descriptor: i32) -> String {
        Options::new("socket")
            .set("id", &self.character_device)
            .set("fd", descriptor.to_string())
            .build()
    }

    /// Describes the device.
    pub(super) fn device(&self, bus: Option<String>) -> Device {
        Device::new(&self.driver, &self.id)
            .on(bus)
            .set("chardev", self.character_device.as_str())
            .set("tag", self.tag.as_str())
    }
}

/// Connects to a process that was just started, and sees that it answers.
///
/// Errors: `TimedOut` if it is silent, `Failure` with the end of the log if it ended.
pub(super) async fn connect(
    sidecar: &Sidecar,
    child: &mut Child,
    socket: &Path,
    deadline: Duration,
    log: (&Path, u64),
) -> Result<OwnedFd> {
    let what = sidecar
        .serves
        .as_ref()
        .map_or("a process", |serves| serves.what.as_str());
    // We made the socket and it listens, whether or not anybody takes the connection.
    let greeted = async { virtiofsd::greet(UnixStream::connect(socket)?, deadline).await };
    let error = match greeted.await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    // Whoever lost its peer usually finds a process that is just ending; its log says more than the connection.
    let ended = tokio::time::timeout(END_DEADLINE, child.wait()).await;
    let said = match log_tail(log.0, log.1) {
        tail if tail.is_empty() => "it wrote nothing to its log".to_owned(),
        tail => format!("its log ends with: {tail}"),
    };
    Err(match ended {
        Ok(Ok(status)) => Error::new(
            ErrorKind::Failure,
            format!("{what} ended before it answered ({status}); {said}"),
        ),
        _ if error.kind() == io::ErrorKind::TimedOut => Error::new(
            ErrorKind::TimedOut,
            format!("{what} does not answer; {said}"),
        )
        .with_source(error)
        .with_hint(
            "start it again; if that does not help, look what keeps its folder from being read",
        ),
        _ => Error::new(
            ErrorKind::Failure,
            format!("{what} does not serve it; {said}"),
        )
        .with_source(error),
    })
}

/// Follows a process that serves a device, and tells when it is gone.
pub(super) fn watch(sidecar: &SidecarRecord, ended: &mpsc::UnboundedSender<String>) {
    let Some(device) = sidecar.device.clone() else {
        return;
    };
    let (identity, ended) = (sidecar.process.clone(), ended.clone());
    tokio::spawn(async move {
        if let Ok(Some(process)) = Process::open(&identity) {
            tokio::select! {
                _ = process.gone() => {}
                () = ended.closed() => return,
            }
        }
        // Nobody takes it any more when the machine is gone.
        let _ = ended.send(device);
    });
}

impl Shared {
    /// Returns the devices of this kind that the machine has.
    async fn served(&self) -> Result<Vec<Present>> {
        let mut present = self.present().await?;
        present.retain(|device| name_of(&device.id).is_some());
        Ok(present)
    }

    /// Says which device has lost the process that serves it; none if it is no longer there itself.
    pub(super) async fn severed(&self, id: &str) -> Option<String> {
        let there = self.served().await.ok()?;
        there
            .iter()
            .any(|device| device.id == id)
            .then(|| name_of(id).map(str::to_owned))?
    }

    /// Waits until these devices are gone.
    async fn until_gone(&self, ids: &[String]) -> Result<()> {
        let mut events = self.signals.subscribe();
        let gone = async {
            loop {
                let left = self.served().await?;
                if !left.iter().any(|device| ids.contains(&device.id)) {
                    return Ok(());
                }
                // poll: the devices that QEMU has, after every event
                next_event(&mut events, "DEVICE_DELETED").await;
            }
        };
        match tokio::time::timeout(LET_GO_DEADLINE, gone).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "the guest was asked to let go of its shared folders, and did not within {} s",
                    LET_GO_DEADLINE.as_secs()
                ),
            )
            .with_hint(
                "a guest lets go of devices when it has booted and its kernel knows how; try again",
            )),
        }
    }

    /// Removes the connection of a device that is gone; its process ends by that.
    async fn remove_character_device(&self, name: &str) -> Result<()> {
        let begun = Instant::now();
        loop {
            let listed = self.execute("query-chardev", json!({})).await?;
            let there = listed
                .as_array()
                .into_iter()
                .flatten()
                .any(|entry| entry["label"] == name);
            if !there {
                return Ok(());
            }
            let removed = self.execute("chardev-remove", json!({ "id": name })).await;
            match removed {
                Ok(_) => return Ok(()),
                Err(error) if begun.elapsed() > REMOVE_DEADLINE => return Err(error),
                // poll: the device's last traces are gone, so that nothing uses it
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn put_one_back(&self, served: &Served, bus: String) -> Result<SidecarRecord> {
        self.remove_character_device(&served.character_device)
            .await?;
        let log = open_log(&self.record.log)?;
        let length = log.metadata().map_or(0, |metadata| metadata.len());
        let mut undo = Undo::default();
        let child = spawn(
            &served.sidecar.program,
            &served.sidecar.arguments,
            &served.sidecar.descriptors,
            Opened::default(),
            Output::both(&log),
            &mut undo,
        )?;
        undo.children.push(child);
        let Some(child) = undo.children.last_mut() else {
            return Err(Error::new(ErrorKind::Failure, "it was not started"));
        };
        let pid = child.id().unwrap_or_default();
        let connection = connect(
            &served.sidecar,
            child,
            &served.socket,
            virtiofsd::ANSWER_DEADLINE,
            (&self.record.log, length),
        )
        .await?;
        let process = ProcessIdentity::of(pid, None)
            .map_err(|error| Error::io(format!("process {pid} is gone"), error))?;
        let name = &served.character_device;
        self.qmp()
            .pass(
                "getfd",
                json!({ "fdname": name }),
                connection.as_fd(),
                COMMAND_DEADLINE,
            )
            .await
            .map_err(|error| {
                super::launch::qmp_error(error, "QEMU did not take the connection to virtiofsd")
            })?;
        let address = json!({ "type": "fd", "data": { "str": name } });
        self.execute(
            "chardev-add",
            json!({ "id": name, "backend": {
                "type": "socket", "data": { "addr": address, "server": false },
            }}),
        )
        .await?;
        let device = served.device(Some(bus)).arguments();
        if let Err(error) = self.execute("device_add", device).await {
            let _ = self.remove_character_device(name).await;
            return Err(error);
        }
        // It ends with its connection, which is QEMU's now; the runtime reaps it. The socket is of no more use.
        undo.children.clear();
        Ok(SidecarRecord {
            process,
            device: Some(served.id.clone()),
        })
    }
}

#[async_trait]
impl Unsaved for QemuMachine {
    async fn present(&self) -> Result<Vec<String>> {
        let served = self.shared.served().await?;
        Ok(served
            .iter()
            .filter_map(|device| name_of(&device.id))
            .map(str::to_owned)
            .collect())
    }

    async fn take_out(&self) -> Result<()> {
        let shared = &self.shared;
        let _one_at_a_time = shared.changing.lock().await;
        let mut ids = Vec::new();
        for Present { id, .. } in shared.served().await? {
            shared.execute("device_del", json!({ "id": id })).await?;
            ids.push(id);
        }
        shared.until_gone(&ids).await?;
        for name in ids.iter().filter_map(|id| name_of(id)) {
            shared.remove_character_device(name).await?;
        }
        Ok(())
    }

    async fn put_back(&self, config: &MachineConfig) -> Result<Value> {
        let shared = &self.shared;
        let _one_at_a_time = shared.changing.lock().await;
        let board = shared.board()?;
        let virtiofsd = shared.record.fittings.virtiofsd.as_ref();
        for served in of(config, board, virtiofsd)? {
            let present = shared.present().await?;
            if present.iter().any(|device| device.id == served.id) {
                continue;
            }
            let bus = shared.free_port(&present).await?;
            let sidecar = shared.put_one_back(&served, bus).await?;
            watch(&sidecar, &shared.ended);
            shared.add_sidecar(sidecar);
        }
        shared.record_now().to_value()
    }
}

/// Connects to every process of a plan that serves a device, all of which were just started.
///
/// Errors: as [`connect`]; the deadline is that of all together.
pub(super) async fn connect_all(
    sidecars: &[Sidecar],
    children: &mut [Child],
    log: (&Path, u64),
) -> Result<Vec<(PathBuf, OwnedFd)>> {
    let deadline = Instant::now() + virtiofsd::ANSWER_DEADLINE;
    let mut connections = Vec::new();
    for (sidecar, child) in sidecars.iter().zip(children) {
        if sidecar.serves.is_none() {
            continue;
        }
        for descriptor in &sidecar.descriptors {
            if let DescriptorRole::Listener(socket) = &descriptor.role {
                let left = deadline.saturating_duration_since(Instant::now());
                let connection = connect(sidecar, child, socket, left, log).await?;
                connections.push((socket.clone(), connection));
            }
        }
    }
    Ok(connections)
}

/// Ids of the devices whose processes ended, by which the supervisor hears of them.
pub(super) type Ended = mpsc::UnboundedReceiver<String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shares_are_taken_for_shares() {
        assert_eq!(name_of(&share_id(12)), Some("share12"));
        for id in [
            "share-device",
            "sharex-device",
            "disk-share0",
            "share0",
            "share0-device-2",
        ] {
            assert_eq!(name_of(id), None, "{id}");
        }
    }

    async fn refusal(script: &str) -> (Error, Duration) {
        let directory = tempfile::tempdir().unwrap();
        let (socket, log) = (directory.path().join("s"), directory.path().join("log"));
        let sidecar = Sidecar {
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            descriptors: vec![Descriptor {
                number: FIRST_DESCRIPTOR,
                role: DescriptorRole::Listener(socket),
            }],
            serves: Some(Serves {
                device: share_id(0),
                what: "virtiofsd, which is to serve the folder /srv,".to_owned(),
            }),
        };
        let (file, mut undo) = (open_log(&log).unwrap(), Undo::default());
        let child = spawn(
            &sidecar.program,
            &sidecar.arguments,
            &sidecar.descriptors,
            Opened::default(),
            Output::both(&file),
            &mut undo,
        );
        undo.children.push(child.unwrap());
        let begun = Instant::now();
        let sidecars = [sidecar];
        let connected = connect_all(&sidecars, &mut undo.children, (&log, 0)).await;
        (connected.unwrap_err(), begun.elapsed())
    }

    #[tokio::test]
    async fn one_that_ends_or_is_silent_is_told_within_five_seconds() {
        let (ended, _) = refusal("echo no such folder >&2; exit 3").await;
        assert_eq!(ended.kind(), ErrorKind::Failure);
        let said = ended.to_string();
        for word in ["virtiofsd", "/srv", "no such folder"] {
            assert!(said.contains(word), "{said}");
        }
        // It holds its socket, on which nobody ever takes a connection.
        let (silent, took) = refusal("exec sleep 1000").await;
        assert_eq!(silent.kind(), ErrorKind::TimedOut, "{silent}");
        assert!(silent.to_string().contains("/srv"), "{silent}");
        assert!(took < Duration::from_secs(6), "{took:?}");
    }
}
