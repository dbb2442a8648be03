//! The power table: what the hypervisor's events make of a VM.

/// What a VM's hypervisor does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Power {
    /// There is none.
    Stopped,
    /// It is being launched.
    Starting,
    /// It runs the guest.
    Running,
    /// The CPUs are being stopped.
    Pausing,
    /// The CPUs stand still.
    Paused,
    /// The CPUs are being continued, or a saved machine is being brought back.
    Resuming,
    /// Memory and devices are being written to disk.
    Suspending,
    /// There is none; memory and devices are on disk.
    Suspended,
    /// The guest was asked to power off.
    Stopping,
    /// It ended unasked, or could not be launched.
    Failed(String),
}

/// What happened to a VM's hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PowerEvent {
    /// We began to launch it, or to bring it back from what was saved.
    Launch,
    /// It answered and the CPUs run.
    Launched,
    /// We asked the guest to power off.
    StopAsked,
    /// We gave up waiting for the guest to power off.
    StopGivenUp,
    /// We asked it to stop the CPUs.
    PauseAsked,
    /// It did not stop them.
    PauseGivenUp,
    /// The CPUs stand still.
    Paused,
    /// We asked it to continue the CPUs.
    ResumeAsked,
    /// It did not continue them.
    ResumeGivenUp,
    /// The CPUs run again.
    Resumed,
    /// We began to save it.
    SuspendAsked,
    /// It could not be saved; the CPUs still stand still.
    SuspendGivenUp,
    /// It can't be saved as it is; the CPUs were never stopped.
    SuspendRefused,
    /// It is gone, and what was saved is on disk: it was suspended, or bringing it back failed.
    Saved,
    /// It is gone, as it should: the guest powered off, or we ended it.
    Gone,
    /// It is gone, or could not be launched, and nobody asked for that.
    Broke(String),
}

impl Power {
    /// Returns what `event` makes of this, or none if it changes nothing here.
    pub fn next(&self, event: PowerEvent) -> Option<Power> {
        use PowerEvent as On;
        Some(match (self, event) {
            (Power::Stopped | Power::Failed(_), On::Launch) => Power::Starting,
            (Power::Suspended, On::Launch) => Power::Resuming,
            (Power::Starting | Power::Resuming, On::Launched) => Power::Running,
            (Power::Running, On::PauseAsked) => Power::Pausing,
            (Power::Pausing, On::PauseGivenUp) => Power::Running,
            (Power::Running | Power::Starting | Power::Pausing, On::Paused) => Power::Paused,
            (Power::Paused, On::ResumeAsked) => Power::Resuming,
            (Power::Resuming, On::ResumeGivenUp) => Power::Paused,
            (Power::Paused | Power::Resuming, On::Resumed) => Power::Running,
            (Power::Running | Power::Paused, On::SuspendAsked) => Power::Suspending,
            (Power::Suspending, On::SuspendGivenUp) => Power::Paused,
            (Power::Suspending, On::SuspendRefused) => Power::Running,
            (Power::Suspending | Power::Resuming, On::Saved) => Power::Suspended,
            (Power::Running, On::StopAsked) => Power::Stopping,
            (Power::Stopping, On::StopGivenUp) => Power::Running,
            (Power::Stopped | Power::Failed(_) | Power::Suspended, On::Gone | On::Broke(_)) => {
                return None;
            }
            (_, On::Gone) => Power::Stopped,
            (_, On::Broke(reason)) => Power::Failed(reason),
            _ => return None,
        })
    }

    /// Says whether a hypervisor is there, or about to be.
    pub fn is_live(&self) -> bool {
        !matches!(self, Power::Stopped | Power::Failed(_) | Power::Suspended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events() -> impl Strategy<Value = PowerEvent> {
        prop_oneof![
            Just(PowerEvent::Launch),
            Just(PowerEvent::Launched),
            Just(PowerEvent::StopAsked),
            Just(PowerEvent::StopGivenUp),
            Just(PowerEvent::PauseAsked),
            Just(PowerEvent::PauseGivenUp),
            Just(PowerEvent::Paused),
            Just(PowerEvent::ResumeAsked),
            Just(PowerEvent::ResumeGivenUp),
            Just(PowerEvent::Resumed),
            Just(PowerEvent::SuspendAsked),
            Just(PowerEvent::SuspendGivenUp),
            Just(PowerEvent::SuspendRefused),
            Just(PowerEvent::Saved),
            Just(PowerEvent::Gone),
            Just(PowerEvent::Broke("it broke".to_owned())),
        ]
    }

    proptest! {
        /// Whatever happened before, a hypervisor that is gone leaves `stopped`, `failed` or what was `suspended`, and from there only a
        /// launch leads on.
        #[test]
        fn gone_is_gone(history in prop::collection::vec(events(), 0..40), broke: bool) {
            let mut power = Power::Stopped;
            for event in history {
                if let Some(next) = power.next(event) { power = next; }
            }
            let end = if broke { PowerEvent::Broke("why".to_owned()) } else { PowerEvent::Gone };
            if let Some(next) = power.next(end) { power = next; }
            prop_assert!(!power.is_live());
            for event in [
                PowerEvent::Launched, PowerEvent::StopAsked, PowerEvent::PauseAsked, PowerEvent::Paused, PowerEvent::ResumeAsked,
                PowerEvent::Resumed, PowerEvent::SuspendAsked, PowerEvent::Saved, PowerEvent::Gone,
            ] {
                prop_assert_eq!(power.next(event), None);
            }
            let launched = if power == Power::Suspended { Power::Resuming } else { Power::Starting };
            prop_assert_eq!(power.next(PowerEvent::Launch), Some(launched));
        }

        /// A VM is suspended only by having been saved, and leaves that only by coming back.
        #[test]
        fn suspended_only_by_saving(history in prop::collection::vec(events(), 0..60)) {
            let mut power = Power::Stopped;
            for event in history {
                if let Some(next) = power.next(event.clone()) {
                    prop_assert!(next != Power::Suspended || event == PowerEvent::Saved);
                    if power == Power::Suspended {
                        prop_assert_eq!(&event, &PowerEvent::Launch);
                    }
                    power = next;
                }
            }
        }

        /// A VM is never told failed without a reason that was given.
        #[test]
        fn failed_only_by_breaking(history in prop::collection::vec(events(), 0..40)) {
            let mut power = Power::Stopped;
            for event in history {
                let broke = matches!(event, PowerEvent::Broke(_));
                if let Some(next) = power.next(event) {
                    prop_assert!(!matches!(next, Power::Failed(_)) || broke);
                    power = next;
                }
            }
        }
    }
}
