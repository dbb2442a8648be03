//! The control socket, for the driver, and the socket by which a trial makes the guest do something.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use innkeeper::api::ErrorKind;
use innkeeper::drivers::fake::{
    ControlAnswer, ControlMessage, ControlRequest, GuestState, Numbered,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::guest::{Guest, Order};
use crate::run::broken;
use crate::saving;

/// Serves one control connection at a time; a second one beside a living one breaks the contract.
pub(crate) fn start(guest: &Arc<Guest>, listener: UnixListener) {
    let guest = guest.clone();
    std::thread::spawn(move || {
        let mut current: Option<UnixStream> = None;
        while let Ok((stream, _)) = listener.accept() {
            if current.as_ref().is_some_and(is_open) {
                broken(
                    &guest.plan,
                    "a second control connection beside a living one",
                );
            }
            current = stream.try_clone().ok();
            guest.remember_control(&stream);
            if guest.plan.script.mute_control || guest.hangs() {
                continue;
            }
            let guest = guest.clone();
            std::thread::spawn(move || serve(&guest, stream));
        }
    });
}

/// Says whether the peer of a stream is still there.
pub(crate) fn is_open(stream: &UnixStream) -> bool {
    let mut set = [PollFd::new(stream, PollFlags::RDHUP)];
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut set, Some(&zero)).is_ok()
        && !set[0]
            .revents()
            .intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
}

fn serve(guest: &Arc<Guest>, stream: UnixStream) {
    let Ok(writer) = stream.try_clone() else {
        return;
    };
    let writer = Arc::new(Mutex::new(writer));
    let (events, happened) = std::sync::mpsc::channel();
    let state = guest.listen(events);
    if !say(&writer, &ControlMessage::Greeting(state)) {
        return;
    }
    let events_writer = writer.clone();
    std::thread::spawn(move || {
        while let Ok(message) = happened.recv() {
            if !say(&events_writer, &message) {
                return;
            }
        }
    });
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let Numbered { id, request } = match serde_json::from_str(&line) {
            Ok(request) => request,
            Err(error) => broken(
                &guest.plan,
                &format!("an unknown request on the control connection: {line}: {error}"),
            ),
        };
        if let ControlRequest::Save(directory) = request {
            let writer = writer.clone();
            saving::save(guest, directory, move |answer| {
                // Whoever asked may be gone.
                say(&writer, &ControlMessage::Answer(id, answer));
            });
            continue;
        }
        let quits = request == ControlRequest::Quit;
        let answer = ControlMessage::Answer(id, answer(guest, request));
        let said = say(&writer, &answer);
        if quits {
            std::process::exit(0);
        }
        if !said {
            return;
        }
    }
}

fn answer(guest: &Guest, request: ControlRequest) -> ControlAnswer {
    let plan = &guest.plan;
    let done = |result: Result<(), String>| match result {
        Ok(()) => ControlAnswer::Done,
        Err(why) => ControlAnswer::Refused(ErrorKind::Failure, why),
    };
    match request {
        ControlRequest::Button => {
            guest.button();
            ControlAnswer::Done
        }
        ControlRequest::Pause => done(guest.pause()),
        ControlRequest::Resume => done(guest.resume()),
        ControlRequest::Blocks => ControlAnswer::Blocks(4096, 8192),
        ControlRequest::Quit => done(guest.quit()),
        ControlRequest::Size => {
            let inside = guest.inside();
            ControlAnswer::Size(inside.devices.cpus, inside.devices.memory)
        }
        ControlRequest::Actual => ControlAnswer::Bytes(guest.inside().devices.actual(plan)),
        ControlRequest::Save(_) => broken(plan, "a save came where none is taken"),
        change => changed(guest, change),
    }
}

/// Changes the machine, and tells the guest.
fn changed(guest: &Guest, request: ControlRequest) -> ControlAnswer {
    let plan = &guest.plan;
    let mut inside = guest.inside();
    if inside.state == GuestState::Off {
        return ControlAnswer::Refused(ErrorKind::Conflict, "the guest has powered off".to_owned());
    }
    let devices = &mut inside.devices;
    let result = match request {
        ControlRequest::Cpus(count) => {
            devices.set_cpus(plan, count);
            Ok(())
        }
        ControlRequest::Memory(size) => devices.set_memory(plan, size),
        ControlRequest::Target(target) => {
            devices.set_target(plan, target);
            Ok(())
        }
        ControlRequest::AttachDisk(disk) => devices.attach_disk(plan, disk),
        ControlRequest::DetachDisk(name) => devices.request_detach_disk(&name),
        ControlRequest::Medium(name, medium) => devices.change_medium(plan, &name, medium),
        ControlRequest::AttachNic(nic) => devices.attach_nic(plan, &nic),
        ControlRequest::DetachNic(mac) => devices.request_detach_nic(&mac),
        other => broken(plan, &format!("no change of the machine: {other:?}")),
    };
    if let Err((kind, why)) = result {
        return ControlAnswer::Refused(kind, why);
    }
    // A guest that stands still lets go of nothing.
    if inside.state == GuestState::Running {
        for device in inside.devices.let_go_of_what_was_asked(plan) {
            Guest::tell(&inside, ControlMessage::Detached(device));
        }
    }
    let told = inside.devices.describe();
    drop(inside);
    guest.print(&told);
    ControlAnswer::Done
}

fn say(writer: &Mutex<UnixStream>, message: &ControlMessage) -> bool {
    let Ok(mut line) = serde_json::to_vec(message) else {
        return false;
    };
    line.push(b'\n');
    writer
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .write_all(&line)
        .is_ok()
}

/// Serves pokes: a word, answered by `ok` once it was passed on.
pub(crate) fn start_pokes(guest: &Arc<Guest>, listener: UnixListener) {
    let guest = guest.clone();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let mut word = String::new();
            let mut reader = BufReader::new(&stream);
            if reader.read_line(&mut word).is_err() {
                continue;
            }
            match word.trim() {
                "poweroff" => guest.order(Order::PowerOff),
                "reboot" => guest.order(Order::Reboot),
                "panic" => guest.panic(),
                "mute" => guest.signal_agent(Signal::STOP),
                "unmute" => guest.signal_agent(Signal::CONT),
                "hang" => guest.hang(),
                "let-go" => {
                    let mut inside = guest.inside();
                    for device in inside.devices.let_go() {
                        Guest::tell(&inside, ControlMessage::Detached(device));
                    }
                }
                "exit" => {
                    eprintln!("fake: ends by itself, as told");
                    std::process::exit(3);
                }
                other => broken(&guest.plan, &format!("an unknown poke: {other:?}")),
            }
            // A poker that went away does not care.
            let _ = (&stream).write_all(b"ok\n");
        }
    });
}
