//! Ends this process at a chosen step of an operation, as a `kill -9` at that moment would: no destructor runs, nothing is flushed.
//!
//! The steps are counted over the life of the process. A test walks them: it ends a command at the first step, then at the second, until
//! the command gets to its end.

use std::sync::atomic::{AtomicU32, Ordering};

/// Steps that are still to be passed; 0 means that none is counted.
static LEFT: AtomicU32 = AtomicU32::new(0);

/// Ends this process at the `number`th step from now, from 1.
pub fn kill_at(number: u32) {
    LEFT.store(number, Ordering::SeqCst);
}

/// Passes a step.
pub(crate) fn step() {
    let before = LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
        left.checked_sub(1)
    });
    if before == Ok(1) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal is on its way.
        loop {
            std::thread::park();
        }
    }
}
