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
    /// The CPUs stand still.
    Paused,
    /// The guest was asked to power off.
    Stopping,
    /// It ended unasked, or could not be launched.
    Failed(String),
}

/// What happened to a VM's hypervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PowerEvent {
    /// We began to launch it.
    Launch,
    /// It answered and the CPUs run.
    Launched,
    /// We asked the guest to power off.
    StopAsked,
    /// We gave up waiting for the guest to power off.
    StopGivenUp,
    /// The CPUs stand still.
    Paused,
    /// The CPUs run again.
    Resumed,
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
            (Power::Starting, On::Launched) => Power::Running,
            (Power::Running | Power::Paused, On::StopAsked) => Power::Stopping,
            (Power::Stopping, On::StopGivenUp) => Power::Running,
            (Power::Running | Power::Starting, On::Paused) => Power::Paused,
            (Power::Paused, On::Resumed) => Power::Running,
            (Power::Stopped | Power::Failed(_), On::Gone | On::Broke(_)) => return None,
            (_, On::Gone) => Power::Stopped,
            (_, On::Broke(reason)) => Power::Failed(reason),
            _ => return None,
        })
    }

    /// Says whether a hypervisor is there, or about to be.
    pub fn is_live(&self) -> bool {
        !matches!(self, Power::Stopped | Power::Failed(_))
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
            Just(PowerEvent::Paused),
            Just(PowerEvent::Resumed),
            Just(PowerEvent::Gone),
            Just(PowerEvent::Broke("it broke".to_owned())),
        ]
    }

    proptest! {
        /// Whatever happened before, a hypervisor that is gone leaves `stopped` or `failed`, and from there only a launch leads on.
        #[test]
        fn gone_is_gone(history in prop::collection::vec(events(), 0..40), broke: bool) {
            let mut power = Power::Stopped;
            for event in history {
                if let Some(next) = power.next(event) { power = next; }
            }
            let end = if broke { PowerEvent::Broke("why".to_owned()) } else { PowerEvent::Gone };
            if let Some(next) = power.next(end) { power = next; }
            prop_assert!(!power.is_live());
            for event in [PowerEvent::Launched, PowerEvent::StopAsked, PowerEvent::Paused, PowerEvent::Resumed, PowerEvent::Gone] {
                prop_assert_eq!(power.next(event), None);
            }
            prop_assert_eq!(power.next(PowerEvent::Launch), Some(Power::Starting));
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
