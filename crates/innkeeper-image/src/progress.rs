//! Progress and cancelling of long operations.
//!
//! The work itself runs on a blocking thread; [`run`] is the bridge. Dropping its future sets the flag that the work asks
//! between steps and while a child process runs, so the thread ends soon, kills what it started and removes its temporary
//! directory. This module does not draw anything.
//!
//! ```text
//!   async caller ──run()──► blocking thread ──► Context::check() at every step
//!        │ dropped                 ▲
//!        └── CancelOnDrop ─ flag ──┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// What a long operation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Waits for another process which makes the same image.
    Wait,
    /// Asks the package archive or a server what there is.
    Resolve,
    /// Receives bytes.
    Download,
    /// Takes files out of packages or archives.
    Unpack,
    /// Installs packages into a new root.
    Install,
    /// Writes a file system or an archive.
    Write,
    /// Computes digests.
    Verify,
    /// The image is there.
    Done,
}

/// One report of a long operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What is being done.
    pub step: Step,
    /// Bytes done in this step; 0 where bytes are not counted.
    pub done_bytes: u64,
    /// Bytes of this step in all, where known.
    pub total_bytes: Option<u64>,
    /// One short line for a person.
    pub message: String,
}

/// Receives the events of a long operation.
pub trait Progress: Send + Sync {
    /// Takes one event; must not block for long.
    fn event(&self, event: Event);
}

/// Ignores every event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: Event) {}
}

impl<F: Fn(Event) + Send + Sync> Progress for F {
    fn event(&self, event: Event) {
        self(event);
    }
}

/// What blocking work gets: where to report, and whether to go on.
#[derive(Clone)]
pub(crate) struct Context {
    progress: Arc<dyn Progress>,
    cancelled: Arc<AtomicBool>,
    /// Set for a part of the work whose result nobody needs any more.
    stopped: Arc<AtomicBool>,
}

impl Context {
    pub(crate) fn new(progress: Arc<dyn Progress>) -> Context {
        Context {
            progress,
            cancelled: Arc::new(AtomicBool::new(false)),
            stopped: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Makes a context for a part of the work, which can be stopped by itself.
    pub(crate) fn branch(&self) -> Context {
        Context {
            stopped: Arc::new(AtomicBool::new(false)),
            ..self.clone()
        }
    }

    /// Stops what works with this branch.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Fails with [`Error::Cancelled`] once the caller is gone.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) || self.stopped.load(Ordering::Relaxed) {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }

    pub(crate) fn step(&self, step: Step, message: impl Into<String>) {
        self.progress.event(Event {
            step,
            done_bytes: 0,
            total_bytes: None,
            message: message.into(),
        });
    }

    pub(crate) fn bytes(
        &self,
        step: Step,
        done_bytes: u64,
        total_bytes: Option<u64>,
        message: impl Into<String>,
    ) {
        self.progress.event(Event {
            step,
            done_bytes,
            total_bytes,
            message: message.into(),
        });
    }
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs blocking `work`; dropping the returned future cancels it.
pub(crate) async fn run<T: Send + 'static>(
    progress: Arc<dyn Progress>,
    work: impl FnOnce(&Context) -> Result<T> + Send + 'static,
) -> Result<T> {
    let context = Context::new(progress);
    let guard = CancelOnDrop(context.cancelled.clone());
    let result = tokio::task::spawn_blocking(move || work(&context)).await;
    drop(guard);
    match result {
        Ok(result) => result,
        Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
        Err(_) => Err(Error::Cancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropping_the_future_cancels_the_work() {
        let (started, wait_started) = tokio::sync::oneshot::channel();
        let (ended, wait_ended) = tokio::sync::oneshot::channel();
        let future = run(Arc::new(Silent), move |context| {
            started.send(()).expect("the test waits");
            while context.check().is_ok() {
                std::thread::yield_now();
            }
            ended.send(()).expect("the test waits");
            context.check()
        });
        let task = tokio::spawn(future);
        wait_started.await.expect("the work starts");
        task.abort();
        tokio::time::timeout(std::time::Duration::from_secs(5), wait_ended)
            .await
            .expect("in time")
            .expect("ended");
    }
}
