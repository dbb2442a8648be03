//! The one word that a user sees.

use innkeeper_api::VmState;

use super::Power;

/// What is being done to a VM's bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Nothing.
    None,
    /// It is being made.
    Creating,
}

/// Whether the guest is ready as its spec's `ready` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet, or not any more.
    NotReady,
    /// It is.
    Ready,
}

/// Makes the one word of the three tables. An operation on the bundle hides the power, readiness only shows while the guest runs.
pub fn word(operation: Operation, power: &Power, readiness: Readiness) -> VmState {
    match (operation, power, readiness) {
        (Operation::Creating, ..) => VmState::Creating,
        (_, Power::Stopped, _) => VmState::Stopped,
        (_, Power::Starting, _) => VmState::Starting,
        (_, Power::Running, Readiness::NotReady) => VmState::Running,
        (_, Power::Running, Readiness::Ready) => VmState::Ready,
        (_, Power::Pausing, _) => VmState::Pausing,
        (_, Power::Paused, _) => VmState::Paused,
        (_, Power::Resuming, _) => VmState::Resuming,
        (_, Power::Suspending, _) => VmState::Suspending,
        (_, Power::Suspended, _) => VmState::Suspended,
        (_, Power::Stopping, _) => VmState::Stopping,
        (_, Power::Failed(_), _) => VmState::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_never_said_of_what_does_not_run() {
        for power in [
            Power::Stopped,
            Power::Starting,
            Power::Pausing,
            Power::Paused,
            Power::Resuming,
            Power::Suspending,
            Power::Suspended,
            Power::Stopping,
            Power::Failed(String::new()),
        ] {
            assert_ne!(
                word(Operation::None, &power, Readiness::Ready),
                VmState::Ready,
                "{power:?}"
            );
        }
    }
}
