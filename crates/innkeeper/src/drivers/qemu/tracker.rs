//! Turns QEMU's events and status words into what the engine is told; pure.
//!
//! ```text
//!            RESUME                     SHUTDOWN(guest)
//!   Paused ◄────────► Running ────────────────────────────► PoweredOff
//!            STOP        │  GUEST_PANICKED                    (STOP follows and says nothing new)
//!                        ├────────────────────────────► Panicked
//!                        │  STOP, status internal-error
//!                        └────────────────────────────► Faulted
//! ```
//!
//! QEMU sends STOP after every one of these; only the first of a pair is news. Source: QEMU QMP reference, `RunState` and run-state events.

use std::time::Duration;

use super::qmp::QmpEvent;
use crate::driver::MachineEvent;

/// Resets this close together are one: SeaBIOS, entered by a soft reset, resets the machine once more by itself.
const SAME_RESET: Duration = Duration::from_millis(500);

/// What was last seen of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Running,
    Paused,
    PoweredOff,
    Panicked,
    Faulted,
}

/// Follows a machine's state.
#[derive(Debug)]
pub(super) struct Tracker {
    seen: Seen,
    last_reset: Option<Duration>,
}

/// What follows from an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing new.
    Nothing,
    /// This is news.
    Tell(MachineEvent),
    /// The CPUs stopped; the status must be asked for to know why.
    AskStatus,
}

impl Tracker {
    /// Starts from the status that `query-status` gave, and tells it.
    ///
    /// A launch always begins with `Running`; what else was found follows.
    pub(super) fn start(status: &str, launched: bool) -> (Self, Vec<MachineEvent>) {
        let (seen, event) = read_status(status);
        let mut events = vec![event];
        if launched && seen != Seen::Running {
            events.insert(0, MachineEvent::Running);
        }
        let tracker = Tracker {
            seen,
            last_reset: None,
        };
        (tracker, events)
    }

    /// Takes an event.
    pub(super) fn observe(&mut self, event: &QmpEvent) -> Outcome {
        let by_guest = event.data["guest"].as_bool().unwrap_or(false);
        let reason = event.data["reason"].as_str().unwrap_or_default();
        match event.name.as_str() {
            "STOP" if self.seen == Seen::Running => Outcome::AskStatus,
            "RESUME" if self.seen != Seen::Running => {
                self.seen = Seen::Running;
                Outcome::Tell(MachineEvent::Resumed)
            }
            "RESET" if by_guest => {
                let before = self.last_reset.replace(event.at);
                if before.is_some_and(|before| event.at.abs_diff(before) < SAME_RESET) {
                    Outcome::Nothing
                } else {
                    Outcome::Tell(MachineEvent::GuestReset)
                }
            }
            "SHUTDOWN" if reason == "guest-panic" => self.become_panicked(),
            "SHUTDOWN" if by_guest && self.seen != Seen::PoweredOff => {
                self.seen = Seen::PoweredOff;
                Outcome::Tell(MachineEvent::GuestShutdown)
            }
            "GUEST_PANICKED" => self.become_panicked(),
            _ => Outcome::Nothing,
        }
    }

    /// Takes the answer to [`Outcome::AskStatus`], or the status found after the connection was lost; tells what differs.
    pub(super) fn observe_status(&mut self, status: &str) -> Option<MachineEvent> {
        let (seen, event) = read_status(status);
        if seen == self.seen {
            return None;
        }
        let event = match (self.seen, seen) {
            (_, Seen::Running) => MachineEvent::Resumed,
            _ => event,
        };
        self.seen = seen;
        Some(event)
    }

    /// Takes it that the guest was powered off by something else than itself; told once.
    pub(super) fn powered_off(&mut self) -> Option<MachineEvent> {
        self.observe_status("shutdown")
    }

    /// Takes it that the CPUs stopped and nobody could say why.
    pub(super) fn paused(&mut self) -> Option<MachineEvent> {
        self.observe_status("paused")
    }

    fn become_panicked(&mut self) -> Outcome {
        if self.seen == Seen::Panicked {
            return Outcome::Nothing;
        }
        self.seen = Seen::Panicked;
        Outcome::Tell(MachineEvent::GuestPanicked)
    }
}

fn read_status(status: &str) -> (Seen, MachineEvent) {
    match status {
        "running" => (Seen::Running, MachineEvent::Running),
        "shutdown" => (Seen::PoweredOff, MachineEvent::GuestShutdown),
        "guest-panicked" => (Seen::Panicked, MachineEvent::GuestPanicked),
        "internal-error" => (
            Seen::Faulted,
            MachineEvent::Faulted(
                "QEMU stopped the CPUs after an internal error of the accelerator".to_owned(),
            ),
        ),
        // `io-error` too: with room made on the disk the guest can go on.
        _ => (Seen::Paused, MachineEvent::Paused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event(name: &str, data: Value) -> QmpEvent {
        QmpEvent {
            name: name.to_owned(),
            data,
            at: Duration::ZERO,
        }
    }

    #[test]
    fn a_power_off_is_told_once_and_its_stop_not_at_all() {
        let (mut tracker, first) = Tracker::start("running", true);
        assert_eq!(first, [MachineEvent::Running]);
        let shutdown = event(
            "SHUTDOWN",
            json!({"guest": true, "reason": "guest-shutdown"}),
        );
        assert_eq!(
            tracker.observe(&shutdown),
            Outcome::Tell(MachineEvent::GuestShutdown)
        );
        assert_eq!(tracker.observe(&event("STOP", json!({}))), Outcome::Nothing);
        assert_eq!(tracker.observe(&shutdown), Outcome::Nothing);
    }

    #[test]
    fn our_own_quit_is_no_guest_shutdown() {
        let (mut tracker, _) = Tracker::start("running", true);
        for reason in ["host-qmp-quit", "host-signal"] {
            let shutdown = event("SHUTDOWN", json!({"guest": false, "reason": reason}));
            assert_eq!(tracker.observe(&shutdown), Outcome::Nothing);
        }
    }

    #[test]
    fn a_panic_is_told_once() {
        let (mut tracker, _) = Tracker::start("running", true);
        let panicked = event("GUEST_PANICKED", json!({"action": "pause"}));
        assert_eq!(
            tracker.observe(&panicked),
            Outcome::Tell(MachineEvent::GuestPanicked)
        );
        assert_eq!(tracker.observe(&panicked), Outcome::Nothing);
        assert_eq!(
            tracker.observe(&event("STOP", Value::Null)),
            Outcome::Nothing
        );
    }

    #[test]
    fn a_stop_is_explained_by_the_status() {
        let (mut tracker, _) = Tracker::start("running", true);
        assert_eq!(
            tracker.observe(&event("STOP", Value::Null)),
            Outcome::AskStatus
        );
        assert_eq!(tracker.observe_status("paused"), Some(MachineEvent::Paused));
        assert_eq!(
            tracker.observe(&event("RESUME", Value::Null)),
            Outcome::Tell(MachineEvent::Resumed)
        );
        assert_eq!(
            tracker.observe(&event("STOP", Value::Null)),
            Outcome::AskStatus
        );
        assert!(matches!(
            tracker.observe_status("internal-error"),
            Some(MachineEvent::Faulted(_))
        ));
    }

    #[test]
    fn what_was_found_is_told() {
        assert_eq!(
            Tracker::start("shutdown", false).1,
            [MachineEvent::GuestShutdown]
        );
        assert_eq!(
            Tracker::start("shutdown", true).1,
            [MachineEvent::Running, MachineEvent::GuestShutdown]
        );
        assert_eq!(
            Tracker::start("guest-panicked", false).1,
            [MachineEvent::GuestPanicked]
        );
        let (mut tracker, found) = Tracker::start("some-new-word", false);
        assert_eq!(found, [MachineEvent::Paused]);
        assert_eq!(
            tracker.observe_status("running"),
            Some(MachineEvent::Resumed)
        );
    }

    #[test]
    fn a_reset_by_the_host_is_not_the_guests() {
        let (mut tracker, _) = Tracker::start("running", true);
        let reset = |guest: bool, milliseconds: u64| QmpEvent {
            at: Duration::from_millis(milliseconds),
            ..event("RESET", json!({"guest": guest, "reason": "guest-reset"}))
        };
        let told = Outcome::Tell(MachineEvent::GuestReset);
        assert_eq!(tracker.observe(&reset(false, 1000)), Outcome::Nothing);
        assert_eq!(tracker.observe(&reset(true, 2000)), told);
        assert_eq!(tracker.observe(&reset(true, 2030)), Outcome::Nothing);
        assert_eq!(tracker.observe(&reset(true, 4000)), told);
    }
}
