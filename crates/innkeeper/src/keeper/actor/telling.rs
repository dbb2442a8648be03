//! What is told of the VM: the state, its changes, the log of events.

use super::*;
use crate::spec::{NetworkKind, NetworkSpec};

impl Actor {
    pub(super) fn state(&self) -> VmState {
        crate::machine::word(Operation::None, &self.live.power, self.live.readiness)
    }

    pub(super) fn power(&mut self, event: PowerEvent) {
        let before = self.state();
        if let Some(next) = self.live.power.next(event) {
            self.live.power = next;
            self.live.since = Some(timestamp());
            self.note_state(before);
        }
    }

    pub(super) fn publish(&mut self) {
        let before = self.state();
        let spec = self.applied.as_ref().unwrap_or(&self.asked);
        if self.live.power == Power::Running && self.live.stale_since.is_none() {
            let ready = ready_when(&self.context.identity, spec);
            // Nobody gives addresses on a network of our own, so none is waited for.
            let user = |network: &NetworkSpec| network.kind == NetworkKind::User;
            self.facts.network = spec.networks.iter().any(user);
            self.facts.shares = !spec.shares.is_empty();
            self.facts.addresses = self.live.addresses.len();
            (self.live.readiness, self.live.waiting_for) = assess(&ready, &self.facts);
        } else if self.live.power != Power::Running {
            self.live.readiness = Readiness::NotReady;
            self.live.waiting_for = None;
        }
        if self.state() != before {
            self.live.since = Some(timestamp());
            self.note_state(before);
        }
        // A VM that is launched, or can't be reached, has a keeper as well: commands must find it there.
        self.live.keeper_pid = self.live.power.is_live().then(std::process::id);
        let context = &self.context;
        let told = describe(
            &context.bundle,
            &context.identity,
            &self.asked,
            self.applied.as_ref(),
            &self.live,
            &context.key,
        );
        self.info.send_if_modified(|info| {
            let changed = **info != told;
            if changed {
                *info = Arc::new(told);
            }
            changed
        });
    }

    /// Takes the spec as it is on disk by now, if its file is not the one that was seen last: people edit it by hand.
    ///
    /// One that can't be read is told, and what was asked before stays.
    pub(super) fn look_at_spec(&mut self) {
        let path = self.context.bundle.path("vm.yaml");
        let seen = std::fs::metadata(path).ok().map(|file| {
            use std::os::unix::fs::MetadataExt;
            (file.ino(), file.size(), file.mtime(), file.mtime_nsec())
        });
        if seen.is_some() && seen == self.spec_seen {
            return;
        }
        self.spec_seen = seen;
        match self.context.bundle.spec() {
            Ok(spec) => {
                self.live.spec_problem = None;
                let fields = crate::spec::differences(&spec, &self.asked);
                if !fields.is_empty() {
                    self.asked = spec;
                    self.note(EventKind::SpecChanged { fields });
                }
            }
            Err(error) => {
                let problem: String = error.chain().join(": ");
                self.live.spec_problem = Some(problem.chars().take(LONGEST_PROBLEM).collect());
            }
        }
    }

    pub(super) fn note_state(&self, from: VmState) {
        let to = self.state();
        if from != to {
            let reason = match &self.live.power {
                Power::Failed(reason) => Some(reason.clone()),
                _ => None,
            };
            self.note(EventKind::State { from, to, reason });
        }
    }

    pub(super) fn note(&self, kind: EventKind) {
        if let Err(error) = self
            .context
            .root
            .event_log()
            .append(Some(self.context.bundle.name()), kind)
        {
            self.say(&format!(
                "can't write the event log: {}",
                error.chain().join(": ")
            ));
        }
    }

    pub(super) fn say(&self, message: &str) {
        self.context.log.say(message);
    }
}
