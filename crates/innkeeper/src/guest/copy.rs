//! Copies between host and guest: trees stream through, file IO on a blocking thread.

use super::GuestError;
use super::channel::{GuestChannel, unexpected};
use super::stream::Stream;
use bytes::Bytes;
use innkeeper_agent::copy::{CopyError, Receiver, ReceiverOptions, Sender};
use innkeeper_agent::message::{
    Closing, CopyInRequest, CopyOutRequest, CopySummary, Reply, Request,
};
use innkeeper_agent::mux::MAX_WINDOW;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;

/// Chunks (64 KiB each) between the file thread and the link.
const QUEUE: usize = 8;

/// Counts the bytes of a copy while it runs.
#[derive(Clone, Debug, Default)]
pub struct CopyProgress {
    bytes: Arc<AtomicU64>,
}

impl CopyProgress {
    /// Gives the bytes of the stream (content and entries) that have passed.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn add(&self, count: usize) {
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
}

impl GuestChannel {
    /// Copies a file or tree of the host into the guest. An existing directory as destination receives it under its own
    /// name. Cancelling leaves what was written.
    pub async fn copy_in(
        &self,
        source: &Path,
        request: CopyInRequest,
        progress: &CopyProgress,
    ) -> Result<CopySummary, GuestError> {
        let failed = |source_error| GuestError::Copy {
            path: source.to_path_buf(),
            source: source_error,
        };
        let path = source.to_path_buf();
        let (chunks, mut received) = mpsc::channel::<Bytes>(QUEUE);
        let (opened, open_result) = tokio::sync::oneshot::channel::<()>();
        let walk = tokio::task::spawn_blocking(move || -> Result<u64, CopyError> {
            let mut sender = Sender::open(&path)?;
            // The guest is asked only when there is something to send.
            let _ = opened.send(());
            while let Some(chunk) = sender.next_chunk()? {
                if chunks.blocking_send(chunk).is_err() {
                    break;
                }
            }
            Ok(sender.summary().skipped)
        });
        if open_result.await.is_err() {
            return Err(walked(walk)
                .await
                .err()
                .map_or(GuestError::LinkLost, failed));
        }
        let stream = Stream::open(self.connection(), &Request::CopyIn(request), [0, 0])?;
        while let Some(chunk) = received.recv().await {
            let count = chunk.len();
            stream.send(0, chunk).await?;
            progress.add(count);
        }
        drop(received);
        let skipped = walked(walk).await.map_err(failed)?;
        match stream.reply().await? {
            Reply::Copied(summary) => {
                stream.set_farewell(Closing::Done);
                Ok(CopySummary { skipped, ..summary })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Copies a file or tree of the guest to the host, whatever the guest sends staying below the destination. A directory as destination
    /// receives it under the last name of the path that was asked for, or as `root` where that has none (`/`, `a/..`): the guest chooses
    /// no name at the top. Set-user-id bits are not taken over.
    pub async fn copy_out(
        &self,
        request: CopyOutRequest,
        destination: &Path,
        progress: &CopyProgress,
    ) -> Result<CopySummary, GuestError> {
        let failed = |source_error| GuestError::Copy {
            path: destination.to_path_buf(),
            source: source_error,
        };
        let path = destination.to_path_buf();
        let options = ReceiverOptions {
            mode_mask: 0o777,
            owner: None,
            create_parents: false,
        };
        let asked = Path::new(&request.path).file_name();
        let name = asked.unwrap_or("root".as_ref()).to_owned();
        let receiver = tokio::task::spawn_blocking(move || {
            let mut receiver = Receiver::create(&path, options)?;
            receiver.name_root(&name);
            Ok(receiver)
        });
        let mut receiver = walked(receiver).await.map_err(failed)?;
        let stream = Stream::open(
            self.connection(),
            &Request::CopyOut(request),
            [MAX_WINDOW, 0],
        )?;
        let (chunks, mut received) = mpsc::channel::<Bytes>(QUEUE);
        let writer = tokio::task::spawn_blocking(move || -> Result<Receiver, CopyError> {
            while let Some(chunk) = received.blocking_recv() {
                receiver.push(chunk)?;
            }
            Ok(receiver)
        });
        let mut ended = Ok(());
        loop {
            match stream.next_bytes(1).await {
                Ok(Some(bytes)) => {
                    progress.add(bytes.len());
                    if chunks.send(bytes).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    ended = Err(error);
                    break;
                }
            }
        }
        drop(chunks);
        let receiver = walked(writer).await.map_err(failed)?;
        ended?;
        let reply = stream.reply().await?;
        let Reply::Copied(told) = reply else {
            return Err(unexpected(&reply));
        };
        if !receiver.is_complete() {
            return Err(failed(CopyError::Malformed(
                "it ended before its last entry",
            )));
        }
        stream.set_farewell(Closing::Done);
        Ok(CopySummary {
            skipped: told.skipped,
            ..receiver.summary()
        })
    }
}

async fn walked<T>(task: tokio::task::JoinHandle<Result<T, CopyError>>) -> Result<T, CopyError> {
    match task.await {
        Ok(result) => result,
        Err(error) => Err(CopyError::Io {
            operation: "run the thread for",
            path: "the copy".into(),
            source: std::io::Error::other(error),
        }),
    }
}
