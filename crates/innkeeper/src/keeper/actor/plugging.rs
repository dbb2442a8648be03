//! Devices that can't be saved, such as shared folders: put in when they lack, and missed when the process behind one has ended.
//!
//! ```text
//!  launched, brought back, adopted ─► put_back beside ─► News::PutBack ─► run/ has the new record ─► the guest may mount them
//!  TakenOut, and nobody saves it ──►  put_back                                a guest that let go late
//!  Severed ─► told                                                            nothing can mend it while the guest holds on
//! ```
//!
//! It is asked at the begin of every keeper's watch, so that what a dead one had taken out comes back.

use super::*;

impl Actor {
    /// Puts in, beside the actor, what the machine lacks of the devices that can't be saved.
    pub(super) fn put_back(&self) {
        let agent = self.agent.borrow().clone();
        let machine = self
            .machine
            .clone()
            .filter(|machine| machine.unsaved().is_some());
        let (Some(machine), Ok(config)) = (machine, self.config_of_run()) else {
            if let Some(agent) = agent {
                agent.let_mount();
            }
            return;
        };
        let (news, run) = (self.news.clone(), self.run);
        tokio::spawn(async move {
            if let Some(unsaved) = machine.unsaved() {
                let _ = news.send(News::PutBack(run, unsaved.put_back(&config).await));
            }
        });
    }

    pub(super) fn is_put_back(&mut self, result: Result<serde_json::Value>) {
        match result {
            Ok(record) => self.keep_record(record),
            Err(error) => self.tell_lost_shares(&error),
        }
        // Where it was in vain too: what can't be mounted is told by its name.
        if let Some(agent) = self.agent.borrow().clone() {
            agent.let_mount();
            if std::mem::take(&mut self.mount_again) {
                tokio::spawn(async move { agent.mount_shares_again().await });
            }
        }
    }

    /// Keeps what the next keeper needs to adopt the machine as it is now.
    pub(super) fn keep_record(&mut self, record: serde_json::Value) {
        let run = Run {
            record: Some(record),
            ..self.run_begun()
        };
        if let Err(error) = self.context.bundle.write_run(&run) {
            self.say(&error.chain().join(": "));
        }
    }

    pub(super) fn tell_lost_shares(&mut self, error: &Error) {
        let message = format!(
            "its shared folders could not be given to it: {}",
            error.chain().join(": ")
        );
        let message: String = message.chars().take(LONGEST_PROBLEM).collect();
        self.say(&message);
        self.note(EventKind::Note { message });
    }

    /// The guest let go of a device; unless that is wanted, it gets it back.
    pub(super) fn taken_out(&mut self, device: &str) {
        if self.saving.is_none() {
            self.say(&format!("the guest let go of {device}, which is put back"));
            self.mount_again = true;
            self.put_back();
        }
    }

    /// The process behind a device is gone.
    pub(super) fn severed(&mut self, device: &str) {
        let spec = self.applied.as_ref().unwrap_or(&self.asked);
        let share = spec
            .shares
            .iter()
            .enumerate()
            .find(|(index, _)| crate::engine::configure::share_tag(*index) == device);
        let what = match share {
            Some((_, share)) => format!(
                "virtiofsd of the share {} ended: what touches {} in the guest waits until the VM is stopped and started",
                share.host.display(),
                share.guest.display()
            ),
            None => format!("the process behind {device} ended"),
        };
        self.live.severed.insert(device.to_owned());
        self.say(&what);
        self.note(EventKind::Note { message: what });
    }
}
