//! What the states of a machine mean: pure, from what Virtualization.framework tells to what the driver tells.
//!
//! ```text
//!  Starting ─► Running ⇄ Pausing, Paused, Resuming ─► Stopping ─► Stopped
//!                          Paused ⇄ Saving
//!  (restore)   Restoring ─► Paused
//! ```

use crate::driver::MachineEvent;

/// A machine's state, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// The CPUs run.
    Running,
    /// The CPUs stand still.
    Paused,
    /// It failed and can't go on.
    Error,
    /// It is on its way to another state, or stopped: then delegate and requests tell why.
    Else,
}

/// Remembers what was told last.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    told: Option<Seen>,
}

impl Tracker {
    /// Tells what a state that was seen means; nothing if it was told already.
    pub(super) fn observe(&mut self, seen: Seen) -> Option<MachineEvent> {
        if seen == Seen::Else || self.told == Some(seen) {
            return None;
        }
        let before = self.told.replace(seen);
        Some(match (before, seen) {
            (None, Seen::Running) => MachineEvent::Running,
            (_, Seen::Running) => MachineEvent::Resumed,
            (_, Seen::Paused) => MachineEvent::Paused,
            (_, Seen::Error | Seen::Else) => {
                MachineEvent::Faulted("Virtualization.framework can't go on".to_owned())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(seen: &[Seen]) -> Vec<MachineEvent> {
        let mut tracker = Tracker::default();
        seen.iter()
            .filter_map(|seen| tracker.observe(*seen))
            .collect()
    }

    #[test]
    fn a_life_is_told_without_repetitions() {
        use Seen::*;
        assert_eq!(
            told(&[
                Else, Running, Running, Else, Paused, Else, Paused, Else, Running
            ]),
            [
                MachineEvent::Running,
                MachineEvent::Paused,
                MachineEvent::Resumed
            ]
        );
    }

    #[test]
    fn a_restored_machine_is_paused_first() {
        use Seen::*;
        assert_eq!(
            told(&[Else, Paused, Else, Running]),
            [MachineEvent::Paused, MachineEvent::Resumed]
        );
    }

    #[test]
    fn a_failure_is_told_once() {
        assert!(matches!(
            told(&[Seen::Running, Seen::Error, Seen::Error])[..],
            [MachineEvent::Running, MachineEvent::Faulted(_)]
        ));
    }
}
