//! The guest that is not there: its power state, its memory, its agent's process, its console.
//!
//! Its memory is one random word, chosen at boot and printed on the serial console, and again when it comes back from disk.
//!
//! ```text
//!  boot ─► Running ◄──► Paused ◄── restored
//!             │ button, shutdown, poke        (reboot: the agent's process is replaced)
//!             ▼
//!            Off ── quit ──► the process ends
//! ```
//! Orders that touch the agent's process go through the main thread, since a child dies with the thread that made it.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use innkeeper::drivers::fake::{ControlMessage, GuestState, Plan, SavedGuest};
use rustix::process::{Pid, Signal, kill_process};

use crate::consoles::Consoles;
use crate::devices::Devices;
use crate::run::broken;
use crate::saving::Saving;

/// What is done to the guest as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    PowerOff,
    Reboot,
    /// It was restored, and its CPUs run for the first time.
    Wake,
}

pub(crate) struct Inside {
    pub(crate) state: GuestState,
    pub(crate) memory: String,
    pub(crate) devices: Devices,
    pub(crate) saving: Saving,
    agent: Option<Child>,
    /// Takes what happens to the control connection.
    listener: Option<Sender<ControlMessage>>,
    /// The control connection, to be cut.
    control: Option<UnixStream>,
    hangs: bool,
}

pub(crate) struct Guest {
    pub(crate) plan: Plan,
    inside: Mutex<Inside>,
    orders: Sender<Order>,
    ordered: Mutex<Option<Receiver<Order>>>,
    pub(crate) consoles: Consoles,
}

impl Guest {
    pub(crate) fn new(plan: Plan, restored: Option<SavedGuest>) -> io::Result<Arc<Guest>> {
        let (orders, ordered) = channel();
        let consoles = Consoles::new(&plan)?;
        let inside = Inside {
            state: match &restored {
                Some(_) => GuestState::Paused,
                None => GuestState::Running,
            },
            memory: match &restored {
                Some(saved) => saved.memory.clone(),
                None => random_word()?,
            },
            devices: Devices::new(&plan)?,
            saving: Saving::new(&plan, restored.as_ref()),
            agent: None,
            listener: None,
            control: None,
            hangs: false,
        };
        Ok(Arc::new(Guest {
            plan,
            inside: Mutex::new(inside),
            orders,
            ordered: Mutex::new(Some(ordered)),
            consoles,
        }))
    }

    pub(crate) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets who hears of events, and gives the state of now.
    pub(crate) fn listen(&self, listener: Sender<ControlMessage>) -> GuestState {
        let mut inside = self.inside();
        inside.listener = Some(listener);
        inside.state
    }

    pub(crate) fn tell(inside: &Inside, message: ControlMessage) {
        if let Some(listener) = &inside.listener {
            // A listener that is gone is replaced by the next connection.
            let _ = listener.send(message);
        }
    }

    /// Writes to the serial console.
    pub(crate) fn print(&self, text: &str) {
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.plan.serial_log)
            .and_then(|mut log| log.write_all(text.as_bytes()));
        self.consoles.show(0, text.as_bytes());
        if let Err(error) = written {
            eprintln!("fake: can't write the serial log: {error}");
        }
    }

    /// Prints what is written to the pipe that stands for `/dev/console`.
    pub(crate) fn read_console(self: &Arc<Self>) -> io::Result<()> {
        // Opened for writing too, so that it never reads as ended.
        let mut pipe = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.plan.console)?;
        let guest = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count) = pipe.read(&mut buffer) {
                guest.print(&String::from_utf8_lossy(&buffer[..count]));
            }
        });
        Ok(())
    }

    /// Starts the guest, unless it was restored: then it stands still. Main thread only.
    pub(crate) fn begin(&self) -> io::Result<()> {
        let (state, memory) = {
            let inside = self.inside();
            (inside.state, inside.memory.clone())
        };
        if state == GuestState::Paused {
            self.print(&format!("fake: memory {memory} (restored)\n"));
            return Ok(());
        }
        self.print(&format!("Linux version 0.0 (fake) {}\n", self.plan.name));
        self.print(&format!("fake: memory {memory}\n"));
        self.start_agent()
    }

    /// Starts the guest's agent. Main thread only.
    fn start_agent(&self) -> io::Result<()> {
        let mut inside = self.inside();
        if let Some(program) = self
            .plan
            .agent_program
            .as_ref()
            .filter(|_| !self.plan.script.no_agent)
        {
            let child = Command::new(std::env::current_exe()?)
                .arg("-guest")
                .args([program, &self.plan.guest_port])
                .arg(std::process::id().to_string())
                .env_clear()
                .env(
                    "PATH",
                    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                )
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?;
            inside.agent = Some(child);
        }
        Ok(())
    }

    /// Carries out orders for ever. Main thread only.
    pub(crate) fn follow_orders<T>(&self) -> io::Result<T> {
        let ordered = self
            .ordered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let ordered = ordered.ok_or_else(|| io::Error::other("orders are followed already"))?;
        loop {
            match ordered.recv().map_err(io::Error::other)? {
                Order::PowerOff if self.inside().state != GuestState::Off => {
                    self.end_agent();
                    self.print("reboot: Power down\n");
                    let mut inside = self.inside();
                    inside.state = GuestState::Off;
                    Self::tell(&inside, ControlMessage::State(GuestState::Off));
                    drop(inside);
                    self.check_disks();
                }
                Order::Reboot if self.inside().state != GuestState::Off => {
                    self.end_agent();
                    self.print("reboot: Restarting system\n");
                    Self::tell(&self.inside(), ControlMessage::Reset);
                    let memory = random_word()?;
                    {
                        let mut inside = self.inside();
                        inside.state = GuestState::Running;
                        inside.memory = memory;
                    }
                    self.begin()?;
                }
                Order::Wake => {
                    self.start_agent()?;
                    // It may have been paused again meanwhile.
                    if self.inside().state == GuestState::Paused {
                        self.signal_agent(Signal::STOP);
                    }
                }
                Order::PowerOff | Order::Reboot => {}
            }
        }
    }

    pub(crate) fn order(&self, order: Order) {
        // The main thread takes orders for as long as the process lives.
        let _ = self.orders.send(order);
    }

    fn end_agent(&self) {
        if let Some(mut agent) = self.inside().agent.take() {
            // Fails only if it has ended.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// Stops or continues the agent's process: a guest that hangs.
    pub(crate) fn signal_agent(&self, signal: Signal) {
        let pid = self
            .inside()
            .agent
            .as_ref()
            .and_then(|agent| Pid::from_raw(agent.id().cast_signed()));
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    pub(crate) fn panic(&self) {
        self.print("Kernel panic - not syncing: fake\n");
        Self::tell(&self.inside(), ControlMessage::Panicked);
    }

    pub(crate) fn remember_control(&self, stream: &UnixStream) {
        self.inside().control = stream.try_clone().ok();
    }

    pub(crate) fn hangs(&self) -> bool {
        self.inside().hangs
    }

    /// Cuts the control connection and greets nobody from now on.
    pub(crate) fn hang(&self) {
        let mut inside = self.inside();
        inside.hangs = true;
        if let Some(control) = inside.control.take() {
            // Fails only if the peer has closed it.
            let _ = control.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Presses the power button.
    pub(crate) fn button(&self) {
        if !self.plan.script.ignore_button {
            self.order(Order::PowerOff);
        }
    }

    /// The agent was asked to shut the guest down.
    pub(crate) fn shutdown(&self, order: Order) {
        if !self.plan.script.ignore_shutdown {
            self.order(order);
        }
    }

    /// Stops the CPUs.
    pub(crate) fn pause(&self) -> Result<(), String> {
        let mut inside = self.inside();
        match inside.state {
            GuestState::Off => return Err("the guest has powered off".to_owned()),
            GuestState::Paused => return Err("it is paused already".to_owned()),
            GuestState::Running => {}
        }
        inside.state = GuestState::Paused;
        Self::tell(&inside, ControlMessage::State(GuestState::Paused));
        drop(inside);
        self.signal_agent(Signal::STOP);
        Ok(())
    }

    /// Continues the CPUs. What was saved of them is worth nothing from here on.
    pub(crate) fn resume(&self) -> Result<(), String> {
        let mut inside = self.inside();
        match inside.state {
            GuestState::Off => return Err("the guest has powered off".to_owned()),
            GuestState::Running => return Err("it runs already".to_owned()),
            GuestState::Paused => {}
        }
        if self.plan.script.resume_fail && inside.saving.is_restored() {
            return Err("can't continue, as told".to_owned());
        }
        let woken = inside.saving.let_go(&self.plan);
        inside.state = GuestState::Running;
        Self::tell(&inside, ControlMessage::State(GuestState::Running));
        let left = inside.devices.let_go_of_what_was_asked(&self.plan);
        for device in left {
            Self::tell(&inside, ControlMessage::Detached(device));
        }
        drop(inside);
        if woken {
            self.order(Order::Wake);
        } else {
            self.signal_agent(Signal::CONT);
        }
        Ok(())
    }

    /// Ends the process, if the contract lets whoever asked.
    pub(crate) fn quit(&self) -> Result<(), String> {
        if self.inside().state == GuestState::Off {
            return Ok(());
        }
        broken(&self.plan, "told to quit while the guest runs")
    }

    /// Nobody but the hypervisor may write to the disks of a guest that runs, and this one never does.
    fn check_disks(&self) {
        if let Some(name) = self.inside().devices.changed_disk() {
            broken(
                &self.plan,
                &format!("somebody else wrote to its disk {name} while it ran"),
            );
        }
    }
}

/// Makes a word that no other guest has.
pub(crate) fn random_word() -> io::Result<String> {
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}
