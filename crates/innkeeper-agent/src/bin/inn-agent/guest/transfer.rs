//! Copies between guest and host: the blocking ends of `innkeeper_agent::copy` on a stream's channel.

use crate::guest::link::Link;
use bytes::Bytes;
use innkeeper_agent::copy::{CopyError, Receiver, ReceiverOptions, Sender};
use innkeeper_agent::message::{Closing, CopyInRequest, CopyOutRequest, ErrorKind, Failure, Reply};
use innkeeper_agent::mux::{Incoming, MAX_WINDOW};
use std::path::Path;
use std::sync::mpsc;

/// The consumer went away.
pub struct Gone;

/// Receives a tree on channel 0.
pub fn copy_in(
    link: &Link,
    stream: u32,
    request: &CopyInRequest,
    incoming: &mpsc::Receiver<Incoming>,
) {
    let owner = match request
        .owner
        .as_deref()
        .map(crate::guest::users::find)
        .transpose()
    {
        Ok(user) => user.map(|user| (user.uid, user.gid)),
        Err(message) => return link.fail(stream, ErrorKind::NotFound, message),
    };
    let options = ReceiverOptions {
        mode_mask: 0o7777,
        owner,
        create_parents: request.create_parents,
    };
    let mut receiver = match Receiver::create(Path::new(&request.path), options) {
        Ok(receiver) => receiver,
        Err(error) => return link.close(stream, &Closing::Failed(failure(&error))),
    };
    // What fails on a stream that has just closed shows as the end of `incoming`.
    let _ = link.grant(stream, 0, MAX_WINDOW);
    let mut consumed = 0;
    while let Ok(event) = incoming.recv() {
        match event {
            Incoming::Data { channel: 0, bytes } => {
                let count = bytes.len() as u32;
                if let Err(error) = receiver.push(bytes) {
                    return link.close(stream, &Closing::Failed(failure(&error)));
                }
                // In larger steps than frames: each grant is a frame the other way.
                consumed += count;
                if consumed >= MAX_WINDOW / 8 {
                    let _ = link.grant(stream, 0, consumed);
                    consumed = 0;
                }
                if receiver.is_complete() {
                    let _ = link.reply(stream, &Reply::Copied(receiver.summary()));
                    return link.close(stream, &Closing::Done);
                }
            }
            Incoming::End { channel: 0 } => {
                return link.fail(
                    stream,
                    ErrorKind::Protocol,
                    "the copy ended before its last entry",
                );
            }
            Incoming::Closed(_) => return,
            _ => {}
        }
    }
}

/// Sends a tree on channel 1.
pub fn copy_out(
    link: &Link,
    stream: u32,
    request: &CopyOutRequest,
    incoming: &mpsc::Receiver<Incoming>,
) {
    let mut sender = match Sender::open(Path::new(&request.path)) {
        Ok(sender) => sender,
        Err(error) => return link.close(stream, &Closing::Failed(failure(&error))),
    };
    loop {
        match sender.next_chunk() {
            Ok(Some(chunk)) => {
                if send_all(link, stream, chunk, incoming).is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => return link.close(stream, &Closing::Failed(failure(&error))),
        }
    }
    let _ = link.end(stream, 1);
    let _ = link.reply(stream, &Reply::Copied(sender.summary()));
    link.close(stream, &Closing::Done);
}

/// Sends bytes on channel 1 as credit allows.
pub fn send_all(
    link: &Link,
    stream: u32,
    mut bytes: Bytes,
    incoming: &mpsc::Receiver<Incoming>,
) -> Result<(), Gone> {
    while !bytes.is_empty() {
        // Credit was counted by the mux when it came; the messages only say when to look again.
        let credit = link.writable(stream, 1);
        if credit == 0 {
            match incoming.recv() {
                Ok(Incoming::Closed(_)) | Err(_) => return Err(Gone),
                Ok(_) => continue,
            }
        }
        let piece = bytes.split_to(credit.min(bytes.len()));
        link.data(stream, 1, piece).map_err(|_| Gone)?;
        while let Ok(event) = incoming.try_recv() {
            if matches!(event, Incoming::Closed(_)) {
                return Err(Gone);
            }
        }
    }
    Ok(())
}

fn failure(error: &CopyError) -> Failure {
    let kind = match error.io_kind() {
        Some(std::io::ErrorKind::NotFound) => ErrorKind::NotFound,
        Some(std::io::ErrorKind::PermissionDenied) => ErrorKind::NotPermitted,
        Some(_) => ErrorKind::Other,
        None => ErrorKind::Invalid,
    };
    let message = match std::error::Error::source(error) {
        Some(source) => format!("in the guest: {error}: {source}"),
        None => format!("in the guest: {error}"),
    };
    Failure::new(kind, message)
}
