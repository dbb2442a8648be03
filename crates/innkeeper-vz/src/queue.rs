//! A value that lives on a serial dispatch queue: made there, used there, dropped there.
//!
//! The invariant of this module, on which the whole crate rests: the value inside [`OnQueue`] is touched by closures on its queue alone.
//! It is upheld by the one field being private here, and by every way to it going through `exec_async`.

use std::sync::{Arc, Mutex, PoisonError};

use block2::{DynBlock, RcBlock};
use dispatch2::{DispatchQueue, DispatchQueueAttr, DispatchRetained};
use objc2_foundation::NSError;
use tokio::sync::oneshot;

use crate::error::VzError;

/// The block that VZ calls once when something is done.
pub(crate) type Handler = DynBlock<dyn Fn(*mut NSError)>;

struct OnQueue<T>(T);

// SAFETY: the value is made, used and dropped on its serial queue alone, so no two threads ever touch it at once, and none touches it
// without the queue's ordering. Only `Confined` makes one.
unsafe impl<T> Send for OnQueue<T> {}
// SAFETY: as above: references to it are used on the queue alone.
unsafe impl<T> Sync for OnQueue<T> {}

/// A value on a queue of its own. Dropping it drops the value on the queue.
pub(crate) struct Confined<T: 'static> {
    queue: DispatchRetained<DispatchQueue>,
    /// There until this is dropped.
    held: Option<Arc<OnQueue<T>>>,
}

impl<T: 'static> Confined<T> {
    /// Makes a queue, and on it the value and what else is told of it.
    pub(crate) async fn new<R: Send + 'static>(
        label: &str,
        make: impl FnOnce(&DispatchQueue) -> Result<(T, R), VzError> + Send + 'static,
    ) -> Result<(Self, R), VzError> {
        let queue = DispatchQueue::new(label, DispatchQueueAttr::SERIAL);
        let (sender, receiver) = oneshot::channel();
        let own = queue.clone();
        queue.exec_async(move || {
            let made = make(&own).map(|(value, told)| {
                let confined = Confined {
                    queue: own.clone(),
                    held: Some(Arc::new(OnQueue(value))),
                };
                (confined, told)
            });
            // Nobody waits any more: what was made is dropped, which comes back to this queue.
            let _ = sender.send(made);
        });
        receiver.await.unwrap_or_else(|_| Err(VzError::gone()))
    }

    /// Runs a closure on the queue, without waiting for it.
    pub(crate) fn tell(&self, work: impl FnOnce(&T) + Send + 'static) {
        let Some(held) = self.held.clone() else {
            return;
        };
        self.queue.exec_async(move || {
            work(&held.0);
            // Here and not with the closure: on the queue, whoever else held it last.
            drop(held);
        });
    }

    /// Runs a closure on the queue and returns what it returns.
    pub(crate) async fn ask<R: Send + 'static>(
        &self,
        work: impl FnOnce(&T) -> R + Send + 'static,
    ) -> Result<R, VzError> {
        let (sender, receiver) = oneshot::channel();
        self.tell(move |value| {
            let _ = sender.send(work(value));
        });
        receiver.await.map_err(|_| VzError::gone())
    }

    /// Begins something on the queue that ends by calling a handler, and waits for that.
    ///
    /// Dropping the future does not end what was begun; VZ has no way to.
    pub(crate) async fn complete(
        &self,
        begin: impl FnOnce(&T, &Handler) -> Result<(), VzError> + Send + 'static,
    ) -> Result<(), VzError> {
        let (sender, receiver) = oneshot::channel();
        self.tell(move |value| {
            let reply = Reply::new(sender);
            let (told, refused) = (reply.clone(), reply);
            let handler = RcBlock::new(move |error: *mut NSError| {
                // SAFETY: VZ passes null or an error that lives for the call.
                told.send(unsafe { VzError::from_handler(error) });
            });
            if let Err(error) = begin(value, &handler) {
                refused.send(Err(error));
            }
        });
        receiver.await.unwrap_or_else(|_| Err(VzError::gone()))
    }
}

/// The answer to somebody who waits, given once. A block may be let go of on any thread, hence the lock.
pub(crate) struct Reply<R>(Arc<Mutex<Option<oneshot::Sender<R>>>>);

impl<R> Reply<R> {
    pub(crate) fn new(sender: oneshot::Sender<R>) -> Self {
        Reply(Arc::new(Mutex::new(Some(sender))))
    }

    /// Answers, unless that was done already or nobody waits.
    pub(crate) fn send(&self, answer: R) {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            let _ = sender.send(answer);
        }
    }
}

impl<R> Clone for Reply<R> {
    fn clone(&self) -> Self {
        Reply(self.0.clone())
    }
}

impl<T: 'static> Drop for Confined<T> {
    fn drop(&mut self) {
        let held = self.held.take();
        self.queue.exec_async(move || drop(held));
    }
}
