//! The guests that trials are made with: what they have, what they can be told, and how they are made to do something.

use std::path::PathBuf;

use async_trait::async_trait;
use innkeeper_agent::message::{ExecRequest, ShutdownKind};
use innkeeper_api::VmInfo;

use super::{Failure, Verdict};
use crate::Host;

/// Something that a guest may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// An agent.
    Agent,
    /// It mounts the disks that its spec names.
    Mounts,
    /// A console whose output is in the serial log.
    Console,
    /// A network.
    Network,
    /// Processes that live in its memory, and nowhere else.
    Processes,
    /// Something in its memory that can be looked at.
    Memory,
    /// An operating system: it follows the power button, and takes devices and gives them back while it runs.
    System,
    /// Something at its consoles that says back what is typed.
    Echo,
    /// An x86-64 processor and a PC's serial port, for code that trials write themselves.
    Processor,
}

/// Something that a guest's kernel command line can make of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It follows neither an agent nor the power button.
    Deaf,
    /// It does not follow the power button; its agent is there.
    NoButton,
    /// It has no agent and follows the power button.
    ButtonOnly,
    /// Its hypervisor takes some seconds to launch.
    SlowLaunch,
    /// Its hypervisor ends before it answers, with a message.
    FailingLaunch,
    /// Its hypervisor takes some seconds to save it.
    SlowSave,
    /// Its hypervisor can't save it.
    FailingSave,
    /// Its hypervisor takes some seconds to restore it.
    SlowRestore,
    /// Its hypervisor can't restore it.
    FailingRestore,
    /// Its hypervisor does not let its CPUs go after it was restored.
    FailingResume,
    /// It lets go of no device by itself.
    Grips,
    /// It has locked the tray of its drives.
    LockedTray,
}

/// Something that a guest can be made to do, unasked by its keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It powers off.
    PowerOff,
    /// It reboots.
    Reboot,
    /// Its kernel panics.
    Panic,
    /// Its agent falls silent.
    Mute,
    /// Its agent speaks again.
    Unmute,
    /// Its hypervisor ends by itself, with a code.
    Exit,
    /// Its hypervisor lives and answers nothing any more.
    Hang,
    /// It lets go of the devices that it was asked to.
    LetGo,
}

/// The guest at hand.
#[async_trait]
pub trait Guest: Send + Sync {
    /// Says whether it has something; if not, why.
    fn has(&self, part: Part) -> Result<(), String>;

    /// Says whether it can be made to do something; if not, why.
    fn can(&self, act: Act) -> Result<(), String>;

    /// Returns the words for the kernel's command line, if it can be told this.
    fn words(&self, word: Word) -> Option<&'static str>;

    /// What is on its console once it follows the power button, if it does not from the beginning.
    fn heeds_the_button(&self) -> Option<&'static str> {
        None
    }

    /// Makes it do something now.
    async fn act(&self, host: &Host, vm: &VmInfo, act: Act) -> Verdict;

    /// Makes it power off a little later, so that its keeper can be killed before; returns at once.
    async fn power_off_soon(&self, host: &Host, vm: &VmInfo) -> Verdict;

    /// Makes something that is in its memory and nowhere else, and returns it.
    async fn remember(&self, host: &Host, vm: &VmInfo) -> Verdict<String>;

    /// Returns what is in its memory: what `remember` made, or something else after a new boot.
    async fn recall(&self, host: &Host, vm: &VmInfo) -> Verdict<String>;

    /// A directory of the guest in which trials may write.
    fn scratch(&self) -> PathBuf;

    /// The guest's console as a path that a command of the guest can write to.
    fn console(&self, host: &Host, vm: &VmInfo) -> PathBuf;

    /// Makes something in the guest say back what is typed at a console, from now on, whoever comes to it.
    async fn echoes(&self, host: &Host, vm: &VmInfo, console: &str) -> Verdict;

    /// A command of the guest that listens on a TCP port and answers HTTP, and the port.
    fn listener(&self) -> Verdict<(Vec<String>, u16)>;
}

/// The image `tiny`: the agent is init, and busybox is there.
#[derive(Debug, Default)]
pub struct TinyGuest;

/// Runs a command in the guest that goes on without anybody.
async fn detached(host: &Host, vm: &VmInfo, argv: &[&str]) -> Verdict {
    let channel = host.guest(&vm.name).await?;
    let request = ExecRequest {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        detach: true,
        ..ExecRequest::default()
    };
    channel.exec(request).await?.control.detach();
    Ok(())
}

/// Runs a command in the guest and returns what it said.
async fn said(host: &Host, vm: &VmInfo, argv: &[&str]) -> Verdict<String> {
    use tokio::io::AsyncReadExt;
    let channel = host.guest(&vm.name).await?;
    let request = ExecRequest {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    };
    let mut session = channel.exec(request).await?;
    let mut text = String::new();
    session.stdout.read_to_string(&mut text).await?;
    session.wait().await?;
    Ok(text.trim().to_owned())
}

#[async_trait]
impl Guest for TinyGuest {
    fn has(&self, part: Part) -> Result<(), String> {
        match part {
            Part::Processor if !cfg!(target_arch = "x86_64") => {
                Err("the code that trials write themselves is for x86-64".to_owned())
            }
            _ => Ok(()),
        }
    }

    fn can(&self, act: Act) -> Result<(), String> {
        match act {
            Act::PowerOff | Act::Reboot => Ok(()),
            // It panics with `panic=-1`, and so reboots at once: nothing that can be looked at.
            Act::Panic => Err("the tiny guest reboots when its kernel panics".to_owned()),
            Act::Mute | Act::Unmute => {
                Err("the agent is the guest's init, which can't be stopped".to_owned())
            }
            Act::LetGo => Err("a Linux guest lets go of devices by itself".to_owned()),
            Act::Exit | Act::Hang => Err(
                "a real hypervisor does not end or hang by itself when a trial wants it".to_owned(),
            ),
        }
    }

    fn words(&self, word: Word) -> Option<&'static str> {
        match word {
            // `cat` as init waits for input for ever: there is no agent, and nobody listens to the button.
            Word::Deaf => Some("rdinit=/bin/cat"),
            // A shell as init, which waits for the first thing that comes from the power button, the only input device.
            Word::ButtonOnly => Some(
                "rdinit=/bin/sh -- -c \"mount -t devtmpfs d /dev; for m in evdev button; do insmod $(find /lib/modules -name $m.ko*); done; \
                 exec < /dev/input/event0 > /dev/console; echo heeds the button; head -c 24 | wc -c; poweroff -f\"",
            ),
            _ => None,
        }
    }

    fn heeds_the_button(&self) -> Option<&'static str> {
        Some("heeds the button")
    }

    async fn act(&self, host: &Host, vm: &VmInfo, act: Act) -> Verdict {
        let how = match act {
            Act::PowerOff => ShutdownKind::Poweroff,
            Act::Reboot => ShutdownKind::Reboot,
            other => return Err(Failure::new(format!("the tiny guest can't do {other:?}"))),
        };
        Ok(host.guest(&vm.name).await?.shutdown(how).await?)
    }

    async fn power_off_soon(&self, host: &Host, vm: &VmInfo) -> Verdict {
        detached(host, vm, &["sh", "-c", "sleep 2; poweroff"]).await
    }

    async fn remember(&self, host: &Host, vm: &VmInfo) -> Verdict<String> {
        // Its root file system is memory.
        let script =
            "tr -d - < /proc/sys/kernel/random/uuid > /tmp/remembered; cat /tmp/remembered";
        said(host, vm, &["sh", "-c", script]).await
    }

    async fn recall(&self, host: &Host, vm: &VmInfo) -> Verdict<String> {
        said(host, vm, &["sh", "-c", "cat /tmp/remembered 2>&1"]).await
    }

    fn scratch(&self) -> PathBuf {
        PathBuf::from("/tmp")
    }

    fn console(&self, _: &Host, _: &VmInfo) -> PathBuf {
        PathBuf::from("/dev/console")
    }

    async fn echoes(&self, host: &Host, vm: &VmInfo, console: &str) -> Verdict {
        // A port of which nobody holds the other end reads as ended, so `cat` ends between two clients.
        let script = "exec 3<>/dev/virtio-ports/$0; while :; do cat <&3 >&3; sleep 0.02; done";
        detached(host, vm, &["sh", "-c", script, console]).await
    }

    fn listener(&self) -> Verdict<(Vec<String>, u16)> {
        let argv = ["busybox", "httpd", "-f", "-p", "7788", "-h", "/etc"];
        Ok((argv.iter().map(|word| (*word).to_owned()).collect(), 7788))
    }
}

/// A guest of a hundred bytes that prints a marker ([`crate::testing::pvh`]): it has nothing that can be talked to.
#[derive(Debug, Default)]
pub struct PvhGuest;

#[async_trait]
impl Guest for PvhGuest {
    fn has(&self, part: Part) -> Result<(), String> {
        let what = match part {
            Part::Processor => return Ok(()),
            Part::Agent => "agent",
            Part::Mounts => "disks that it mounts",
            Part::Network => "network",
            // Its marker is in the log, but nothing can be written to its console.
            Part::Console => "console that a command can write to",
            Part::Processes => "processes",
            Part::Memory => "way to tell what is in its memory",
            Part::System => "operating system",
            Part::Echo => "program at its consoles",
        };
        Err(format!("the PVH test guest has no {what}"))
    }

    fn can(&self, act: Act) -> Result<(), String> {
        match act {
            // One that is stopped by a signal is sent SIGHUP when its keeper dies, as its process group is orphaned, and ends.
            Act::Hang => {
                Err("a real hypervisor does not hang by itself when a trial wants it".to_owned())
            }
            _ => Err("the PVH test guest takes no orders while it runs".to_owned()),
        }
    }

    fn words(&self, word: Word) -> Option<&'static str> {
        // It stands still, and knows no power button.
        (word == Word::Deaf).then_some("deaf")
    }

    async fn act(&self, _: &Host, _: &VmInfo, act: Act) -> Verdict {
        Err(Failure::new(format!("the PVH test guest can't do {act:?}")))
    }

    async fn power_off_soon(&self, _: &Host, _: &VmInfo) -> Verdict {
        Err(Failure::new("the PVH test guest takes no orders"))
    }

    async fn remember(&self, _: &Host, _: &VmInfo) -> Verdict<String> {
        Err(Failure::new("the PVH test guest remembers nothing"))
    }

    async fn recall(&self, _: &Host, _: &VmInfo) -> Verdict<String> {
        Err(Failure::new("the PVH test guest remembers nothing"))
    }

    fn scratch(&self) -> PathBuf {
        PathBuf::from("/")
    }

    fn console(&self, _: &Host, _: &VmInfo) -> PathBuf {
        PathBuf::from("/dev/console")
    }

    async fn echoes(&self, _: &Host, _: &VmInfo, _: &str) -> Verdict {
        Err(Failure::new(
            "the PVH test guest has nothing at its consoles",
        ))
    }

    fn listener(&self) -> Verdict<(Vec<String>, u16)> {
        Err(Failure::new("the PVH test guest runs no commands"))
    }
}

/// The guest of the fake hypervisor: its agent is the real one, run on this computer.
#[derive(Debug)]
pub struct FakeGuest {
    /// Directory in which trials may write.
    pub scratch: PathBuf,
    /// A program that, given a port, listens on it and answers HTTP until its standard input ends.
    pub listener: PathBuf,
    /// Whether there is an agent to run.
    pub agent: Result<(), String>,
    /// Whether this computer has an address other than loopback, for the agent to tell.
    pub network: Result<(), String>,
}

#[cfg(target_os = "linux")]
impl FakeGuest {
    async fn poke(&self, host: &Host, vm: &VmInfo, word: &str) -> Verdict {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let socket = crate::drivers::fake::poke_socket(&host.root().socket_directory(&vm.id));
        let mut stream = tokio::net::UnixStream::connect(&socket).await?;
        stream.write_all(format!("{word}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        match (word, answer.as_str()) {
            ("exit", _) | (_, "ok\n") => Ok(()),
            (_, other) => Err(Failure::new(format!(
                "the fake hypervisor did not take the poke {word}: {other:?}"
            ))),
        }
    }
}

#[cfg(target_os = "linux")]
#[async_trait]
impl Guest for FakeGuest {
    fn has(&self, part: Part) -> Result<(), String> {
        match part {
            Part::Agent => self.agent.clone(),
            Part::Mounts => Err("the fake's guest is this computer and mounts nothing".to_owned()),
            Part::Console | Part::Memory | Part::System | Part::Echo => Ok(()),
            Part::Network => self.network.clone(),
            Part::Processor => Err("the fake runs no guest's code".to_owned()),
            Part::Processes => {
                Err("the fake's guest is this computer, whose processes are not saved".to_owned())
            }
        }
    }

    fn can(&self, _: Act) -> Result<(), String> {
        Ok(())
    }

    fn words(&self, word: Word) -> Option<&'static str> {
        Some(match word {
            Word::Deaf => "fake.button=ignore fake.shutdown=ignore",
            Word::NoButton => "fake.button=ignore",
            Word::ButtonOnly => "fake.agent=none",
            Word::SlowLaunch => "fake.launch-delay=8000",
            Word::FailingLaunch => "fake.launch-delay=30 fake.launch-fail",
            Word::SlowSave => "fake.save=slow:6000",
            Word::FailingSave => "fake.save=fail",
            Word::SlowRestore => "fake.restore=slow:6000",
            Word::FailingRestore => "fake.restore=fail",
            Word::FailingResume => "fake.resume=fail",
            Word::Grips => "fake.detach=ignore",
            Word::LockedTray => "fake.tray=locked",
        })
    }

    async fn act(&self, host: &Host, vm: &VmInfo, act: Act) -> Verdict {
        let word = match act {
            Act::PowerOff => "poweroff",
            Act::Reboot => "reboot",
            Act::Panic => "panic",
            Act::Mute => "mute",
            Act::Unmute => "unmute",
            Act::Exit => "exit",
            Act::Hang => "hang",
            Act::LetGo => "let-go",
        };
        self.poke(host, vm, word).await
    }

    async fn power_off_soon(&self, _: &Host, _: &VmInfo) -> Verdict {
        // Nothing to prepare: it can be poked while its keeper is dead.
        Ok(())
    }

    async fn remember(&self, host: &Host, vm: &VmInfo) -> Verdict<String> {
        self.recall(host, vm).await
    }

    async fn recall(&self, host: &Host, vm: &VmInfo) -> Verdict<String> {
        let log = host.log_path(&vm.name, crate::LogKind::Serial)?;
        let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        text.lines()
            .filter_map(|line| line.strip_prefix("fake: memory "))
            .filter_map(|line| line.split(' ').next())
            .next_back()
            .map(str::to_owned)
            .ok_or_else(|| Failure::new(format!("the guest told nothing of its memory: {text}")))
    }

    fn scratch(&self) -> PathBuf {
        self.scratch.clone()
    }

    fn console(&self, host: &Host, vm: &VmInfo) -> PathBuf {
        crate::drivers::fake::console(&host.root().socket_directory(&vm.id))
    }

    async fn echoes(&self, _: &Host, _: &VmInfo, _: &str) -> Verdict {
        // Its hypervisor does so by itself.
        Ok(())
    }

    fn listener(&self) -> Verdict<(Vec<String>, u16)> {
        let port = crate::engine::ports::free_port()?;
        Ok((
            vec![
                self.listener.display().to_string(),
                "listen".to_owned(),
                port.to_string(),
            ],
            port,
        ))
    }
}
