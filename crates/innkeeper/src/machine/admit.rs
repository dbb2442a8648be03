//! Admission: may this be asked now?

use super::{Operation, Power};

/// What a user can ask of a VM that depends on where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Run it.
    Start,
    /// Let the guest power off.
    Stop,
    /// End the hypervisor.
    Kill,
    /// Stop the CPUs.
    Pause,
    /// Continue the CPUs, of a suspended one after bringing it back.
    Resume,
    /// Write memory and devices to disk and end the hypervisor.
    Suspend,
    /// Throw away what was saved.
    Discard,
    /// Stop and start.
    Restart,
    /// Remove it.
    Remove {
        /// Kill it first if it runs.
        force: bool,
    },
    /// Give it another name.
    Rename,
    /// Change its snapshots, or go back to one, while it does not run.
    Snapshot,
}

/// Whether a request is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is taken.
    Enqueue,
    /// Nothing needs to be done.
    AlreadySo,
    /// It can't be done now, for this reason; the second text is what would help.
    Denied(String, Option<&'static str>),
}

/// Decides whether `request` may be carried out on a VM in this state. Pure.
pub fn admit(operation: Operation, power: &Power, protected: bool, request: Request) -> Decision {
    let denied = |reason: &str, hint| Decision::Denied(reason.to_owned(), hint);
    match operation {
        Operation::None => {}
        Operation::Creating => return denied("it is still being created", None),
    }
    match (request, power) {
        (Request::Start, Power::Stopped | Power::Failed(_) | Power::Suspended) => Decision::Enqueue,
        (Request::Start, Power::Starting | Power::Running | Power::Resuming) => Decision::AlreadySo,
        (Request::Start, Power::Pausing | Power::Paused) => denied(
            "it is paused, not stopped",
            Some("continue it with `inn resume`"),
        ),
        (Request::Start, Power::Suspending) => denied(
            "it is being suspended",
            Some("wait until it is, or break that off with `inn resume`"),
        ),
        (Request::Start, Power::Stopping) => denied(
            "it is stopping",
            Some("wait until it is stopped, or use `inn restart`"),
        ),

        (Request::Stop | Request::Kill, Power::Stopped | Power::Failed(_)) => Decision::AlreadySo,
        (Request::Stop | Request::Kill | Request::Restart, Power::Suspended) => {
            denied(SUSPENDED, Some(BOOT_ANEW))
        }
        (Request::Stop, Power::Starting | Power::Resuming) => denied(
            "it is still starting",
            Some("wait for it, or use `inn kill`"),
        ),
        (Request::Stop, Power::Pausing | Power::Paused) => denied(
            "it is paused, so the guest can't follow",
            Some("use `inn resume` first, or `inn kill`"),
        ),
        (Request::Stop, Power::Suspending) => denied(
            "it is being suspended",
            Some("wait until it is, or break that off with `inn resume`"),
        ),
        (Request::Stop, Power::Running | Power::Stopping) => Decision::Enqueue,
        (Request::Kill, _) => Decision::Enqueue,

        (
            Request::Restart,
            Power::Starting | Power::Pausing | Power::Paused | Power::Resuming | Power::Suspending,
        ) => denied("it does not run", Some("use `inn kill` and `inn start`")),
        (Request::Restart, _) => Decision::Enqueue,

        (Request::Pause, Power::Running) => Decision::Enqueue,
        (Request::Pause, Power::Pausing | Power::Paused) => Decision::AlreadySo,
        (Request::Pause, _) => denied("it does not run", None),

        // Of one that is being suspended it breaks that off.
        (Request::Resume, Power::Paused | Power::Suspended | Power::Suspending) => {
            Decision::Enqueue
        }
        (Request::Resume, Power::Running | Power::Resuming) => Decision::AlreadySo,
        (Request::Resume, Power::Pausing) => denied("it is still pausing", Some("try again")),
        (Request::Resume, _) => denied("it is not paused", Some("start it with `inn start`")),

        (Request::Suspend, Power::Running | Power::Paused) => Decision::Enqueue,
        (Request::Suspend, Power::Suspended) => Decision::AlreadySo,
        (Request::Suspend, Power::Suspending) => denied("it is being suspended already", None),
        (Request::Suspend, _) => denied("it does not run", None),

        (Request::Discard, Power::Suspended) => Decision::Enqueue,
        (Request::Discard, Power::Stopped | Power::Failed(_)) => Decision::AlreadySo,
        (Request::Discard, _) => denied("it is not suspended", None),

        (Request::Remove { .. }, _) if protected => denied(
            "it is protected from removal",
            Some("use `inn protect --off` first"),
        ),
        (Request::Remove { force: true }, _) => Decision::Enqueue,
        (Request::Remove { force: false }, Power::Stopped | Power::Failed(_)) => Decision::Enqueue,
        (Request::Remove { force: false }, Power::Suspended) => denied(
            "it is suspended, and what its guest was doing would be lost",
            Some("use `--force` if that may be"),
        ),
        (Request::Remove { force: false }, _) => {
            denied("it is running", Some("stop it first, or use `--force`"))
        }

        (Request::Rename, Power::Stopped | Power::Failed(_)) => Decision::Enqueue,
        (Request::Rename, Power::Suspended) => denied(SUSPENDED, Some(BOOT_ANEW)),
        (Request::Snapshot, Power::Stopped | Power::Failed(_) | Power::Suspended) => {
            Decision::Enqueue
        }
        (Request::Snapshot, _) => denied(
            "it runs, and this is done to one that stands still",
            Some("stop it with `inn stop`, or keep what it is doing with `inn suspend`"),
        ),

        (Request::Rename, _) => denied("only a stopped VM can be renamed", Some("stop it first")),
    }
}

const SUSPENDED: &str = "it is suspended, not stopped";
const BOOT_ANEW: &str =
    "continue it with `inn start`, or give up what was saved with `inn start --discard-saved`";

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: [Power; 7] = [
        Power::Starting,
        Power::Running,
        Power::Pausing,
        Power::Paused,
        Power::Resuming,
        Power::Suspending,
        Power::Stopping,
    ];

    #[test]
    fn kill_is_never_denied_once_created() {
        for power in LIVE {
            assert_eq!(
                admit(Operation::None, &power, true, Request::Kill),
                Decision::Enqueue,
                "{power:?}"
            );
        }
        assert_eq!(
            admit(Operation::None, &Power::Stopped, false, Request::Kill),
            Decision::AlreadySo
        );
    }

    #[test]
    fn nothing_live_is_removed_or_renamed_unasked() {
        for power in LIVE {
            for request in [Request::Remove { force: false }, Request::Rename] {
                assert!(
                    matches!(
                        admit(Operation::None, &power, false, request),
                        Decision::Denied(..)
                    ),
                    "{power:?} {request:?}"
                );
            }
        }
    }

    #[test]
    fn what_was_saved_is_not_lost_unasked() {
        for request in [
            Request::Stop,
            Request::Kill,
            Request::Restart,
            Request::Rename,
            Request::Remove { force: false },
        ] {
            assert!(
                matches!(
                    admit(Operation::None, &Power::Suspended, false, request),
                    Decision::Denied(..)
                ),
                "{request:?}"
            );
        }
        for request in [Request::Start, Request::Resume, Request::Discard] {
            assert_eq!(
                admit(Operation::None, &Power::Suspended, false, request),
                Decision::Enqueue
            );
        }
    }

    #[test]
    fn protection_beats_force() {
        for power in LIVE.into_iter().chain([Power::Stopped]) {
            let decision = admit(
                Operation::None,
                &power,
                true,
                Request::Remove { force: true },
            );
            assert!(matches!(decision, Decision::Denied(..)), "{power:?}");
        }
    }

    #[test]
    fn a_second_start_is_told() {
        assert_eq!(
            admit(Operation::None, &Power::Starting, false, Request::Start),
            Decision::AlreadySo
        );
        assert_eq!(
            admit(Operation::None, &Power::Running, false, Request::Start),
            Decision::AlreadySo
        );
    }

    #[test]
    fn a_half_made_vm_takes_nothing() {
        for request in [
            Request::Start,
            Request::Kill,
            Request::Remove { force: true },
        ] {
            assert!(matches!(
                admit(Operation::Creating, &Power::Stopped, false, request),
                Decision::Denied(..)
            ));
        }
    }
}
