//! Child processes: one thread reaps all of them, and tells who waits for one.
//!
//! As init the agent also gets orphans that it never started, so nobody else may wait. Starting holds the same lock as
//! reaping: a child that ends at once is reaped only after it is known, and the standard library can collect a child
//! whose exec failed, as it insists on doing.

use crate::guest::log::{lock, say};
use innkeeper_agent::message::ExitStatus;
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, wait, waitid};
use std::collections::HashMap;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};

type Notify = Box<dyn FnOnce(ExitStatus) + Send>;

/// The reaper.
pub struct Children {
    waiting: Mutex<HashMap<i32, Notify>>,
    started: Condvar,
}

impl Children {
    pub fn new() -> Arc<Children> {
        let children = Arc::new(Children {
            waiting: Mutex::new(HashMap::new()),
            started: Condvar::new(),
        });
        let reaper = Arc::clone(&children);
        crate::guest::operations::spawn("reaper", move || reaper.reap());
        children
    }

    /// Starts a command; `notify` is called from the reaper's thread when it has ended.
    pub fn spawn(
        &self,
        command: &mut Command,
        notify: Notify,
    ) -> std::io::Result<std::process::Child> {
        let mut waiting = lock(&self.waiting);
        let child = command.spawn()?;
        waiting.insert(child.id() as i32, notify);
        drop(waiting);
        self.started.notify_all();
        Ok(child)
    }

    fn reap(&self) {
        loop {
            match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::CHILD) => {
                    let waiting = lock(&self.waiting);
                    if waiting.is_empty() {
                        // A child of before may have left orphans to us as init; the timeout finds those.
                        let _ = self
                            .started
                            .wait_timeout(waiting, std::time::Duration::from_secs(1));
                    }
                    continue;
                }
                Err(error) => say(&format!("cannot wait for children: {error}")),
            }
            let mut ended = Vec::new();
            let mut waiting = lock(&self.waiting);
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                let status = match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => ExitStatus::Code(code),
                    (None, Some(signal)) => ExitStatus::Signal(signal),
                    (None, None) => continue,
                };
                if let Some(notify) = waiting.remove(&pid.as_raw_nonzero().get()) {
                    ended.push((notify, status));
                }
            }
            drop(waiting);
            for (notify, status) in ended {
                notify(status);
            }
        }
    }
}
