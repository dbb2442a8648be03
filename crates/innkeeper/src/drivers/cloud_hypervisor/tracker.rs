//! Turns Cloud Hypervisor's events and states into what the engine is told; pure.
//!
//! ```text
//!            resumed                shutdown, and it still answers: Created
//!   Paused ◄────────► Running ──────────────────────────────────────────────► PoweredOff
//!            paused      │  shutdown, and it does not answer any more: it is ending, `Exited` tells why
//!                        │  rebooted: a reset        guest panic: told, the CPUs run on
//! ```
//!
//! `shutdown` alone does not tell a power-off: the hypervisor sends it as well when it ends by an error or a signal. With
//! `--no-shutdown` a guest that powered off leaves it alive, in the state `Created`; so the state is asked for, and that decides.

use super::events::VmmEvent;
use super::wire::VmState;
use crate::driver::MachineEvent;

/// What was last seen of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Running,
    Paused,
    PoweredOff,
}

/// Follows a machine's state.
#[derive(Debug)]
pub(super) struct Tracker {
    seen: Seen,
    panicked: bool,
}

/// What follows from an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing new.
    Nothing,
    /// This is news.
    Tell(MachineEvent),
    /// The machine was shut down; the state must be asked for to know whether the hypervisor lives on.
    AskState,
    /// The guest let go of the device with this identifier.
    Removed(String),
}

impl Tracker {
    /// Starts where a launch ends: the CPUs run.
    pub(super) fn launched() -> (Self, Vec<MachineEvent>) {
        (Tracker::at(Seen::Running), vec![MachineEvent::Running])
    }

    /// Starts where a restore ends: the CPUs stand still.
    pub(super) fn restored() -> (Self, Vec<MachineEvent>) {
        (Tracker::at(Seen::Paused), vec![MachineEvent::Paused])
    }

    /// Starts from the state found at an adoption and what was told while nobody listened.
    pub(super) fn adopted(state: VmState, missed: &[VmmEvent]) -> (Self, Vec<MachineEvent>) {
        let (seen, event) = read_state(state);
        let mut tracker = Tracker::at(seen);
        let mut events = vec![event];
        if missed.iter().any(is_panic) {
            tracker.panicked = true;
            events.push(MachineEvent::GuestPanicked);
        }
        (tracker, events)
    }

    fn at(seen: Seen) -> Self {
        Tracker {
            seen,
            panicked: false,
        }
    }

    /// Takes an event.
    pub(super) fn observe(&mut self, event: &VmmEvent) -> Outcome {
        match (event.source.as_str(), event.event.as_str()) {
            ("vm", "paused") => self.become_seen(Seen::Paused, MachineEvent::Paused),
            ("vm", "resumed") => self.become_seen(Seen::Running, MachineEvent::Resumed),
            ("vm", "rebooted") => {
                self.panicked = false;
                self.seen = Seen::Running;
                Outcome::Tell(MachineEvent::GuestReset)
            }
            ("vm", "shutdown") if self.seen != Seen::PoweredOff => Outcome::AskState,
            ("vm", "device-removed") => Outcome::Removed(event.property("id").to_owned()),
            _ if is_panic(event) && !self.panicked => {
                self.panicked = true;
                Outcome::Tell(MachineEvent::GuestPanicked)
            }
            _ => Outcome::Nothing,
        }
    }

    /// Takes the answer to [`Outcome::AskState`], or the state found after the hypervisor did not answer for a while; tells what differs.
    pub(super) fn observe_state(&mut self, state: VmState) -> Option<MachineEvent> {
        let (seen, event) = read_state(state);
        if seen == self.seen {
            return None;
        }
        self.seen = seen;
        Some(match event {
            MachineEvent::Running => MachineEvent::Resumed,
            event => event,
        })
    }

    fn become_seen(&mut self, seen: Seen, event: MachineEvent) -> Outcome {
        if self.seen == seen || self.seen == Seen::PoweredOff {
            return Outcome::Nothing;
        }
        self.seen = seen;
        Outcome::Tell(event)
    }
}

/// The guest's kernel told its panic by the pvpanic device.
fn is_panic(event: &VmmEvent) -> bool {
    (event.source.as_str(), event.event.as_str()) == ("guest", "panic")
}

fn read_state(state: VmState) -> (Seen, MachineEvent) {
    match state {
        VmState::Running => (Seen::Running, MachineEvent::Running),
        VmState::Created | VmState::Shutdown => (Seen::PoweredOff, MachineEvent::GuestShutdown),
        VmState::Paused | VmState::Other => (Seen::Paused, MachineEvent::Paused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::cloud_hypervisor::events::EventParser;

    fn event(source: &str, event: &str) -> VmmEvent {
        let text = format!(
            "{{\"source\":\"{source}\",\"event\":\"{event}\",\"properties\":{{\"id\":\"x\"}}}}"
        );
        EventParser::default().push(text.as_bytes()).remove(0)
    }

    #[test]
    fn a_shutdown_is_a_power_off_only_if_it_still_answers() {
        let (mut tracker, first) = Tracker::launched();
        assert_eq!(first, [MachineEvent::Running]);
        assert_eq!(tracker.observe(&event("vm", "shutdown")), Outcome::AskState);
        assert_eq!(
            tracker.observe_state(VmState::Created),
            Some(MachineEvent::GuestShutdown)
        );
        assert_eq!(tracker.observe(&event("vm", "shutdown")), Outcome::Nothing);
        assert_eq!(tracker.observe_state(VmState::Created), None);
    }

    #[test]
    fn pauses_and_resets_are_told_once() {
        let (mut tracker, _) = Tracker::launched();
        let told = |event| Outcome::Tell(event);
        assert_eq!(tracker.observe(&event("vm", "pausing")), Outcome::Nothing);
        assert_eq!(
            tracker.observe(&event("vm", "paused")),
            told(MachineEvent::Paused)
        );
        assert_eq!(tracker.observe(&event("vm", "paused")), Outcome::Nothing);
        assert_eq!(
            tracker.observe(&event("vm", "resumed")),
            told(MachineEvent::Resumed)
        );
        assert_eq!(tracker.observe(&event("vm", "rebooting")), Outcome::Nothing);
        assert_eq!(
            tracker.observe(&event("vm", "rebooted")),
            told(MachineEvent::GuestReset)
        );
        assert_eq!(
            tracker.observe(&event("guest", "panic")),
            told(MachineEvent::GuestPanicked)
        );
        assert_eq!(tracker.observe(&event("guest", "panic")), Outcome::Nothing);
        assert_eq!(
            tracker.observe(&event("vm", "device-removed")),
            Outcome::Removed("x".to_owned())
        );
        assert_eq!(
            tracker.observe(&event("vm", "some-new-word")),
            Outcome::Nothing
        );
    }

    #[test]
    fn what_was_found_and_missed_is_told() {
        assert_eq!(
            Tracker::adopted(VmState::Created, &[]).1,
            [MachineEvent::GuestShutdown]
        );
        let (mut tracker, found) = Tracker::adopted(VmState::Running, &[event("guest", "panic")]);
        assert_eq!(found, [MachineEvent::Running, MachineEvent::GuestPanicked]);
        assert_eq!(tracker.observe(&event("guest", "panic")), Outcome::Nothing);
        let (mut tracker, found) = Tracker::restored();
        assert_eq!(found, [MachineEvent::Paused]);
        assert_eq!(
            tracker.observe(&event("vm", "resumed")),
            Outcome::Tell(MachineEvent::Resumed)
        );
    }
}
