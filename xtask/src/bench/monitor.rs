//! A QMP connection of the benchmark's own: one command at a time, and the events that came meanwhile kept in order.
//!
//! It is what somebody would write who talks to QEMU by hand, and no more: what our driver adds is what is measured.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use super::raw::Deadline;

/// Bytes a second that are as good as no limit.
const BANDWIDTH: u64 = 1 << 40;
/// Number of the descriptor set, and name of the single descriptor.
const SET: u32 = 1;
const FILE: &str = "bench";

/// A monitor that takes commands.
pub(super) struct Monitor {
    stream: UnixStream,
    lines: BufReader<Deadline>,
    events: VecDeque<Value>,
    limit: Duration,
}

impl Monitor {
    /// Waits for the greeting and answers it.
    pub(super) fn new(stream: UnixStream, limit: Duration) -> Result<Self> {
        let deadline = Deadline {
            stream: stream.try_clone()?,
            until: Instant::now() + limit,
        };
        let mut monitor = Self {
            stream,
            lines: BufReader::new(deadline),
            events: VecDeque::new(),
            limit,
        };
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Gives a command and returns what QEMU answers.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let text = format!(
            "{}\n",
            json!({ "execute": command, "arguments": arguments })
        );
        self.stream.write_all(text.as_bytes())?;
        self.answer(command)
    }

    /// Gives a command with a descriptor.
    fn pass(&mut self, command: &str, arguments: Value, file: &File) -> Result<Value> {
        let text = format!(
            "{}\n",
            json!({ "execute": command, "arguments": arguments })
        );
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [file.as_fd()];
        ensure!(
            control.push(SendAncillaryMessage::ScmRights(&descriptors)),
            "no space for a descriptor"
        );
        let parts = [IoSlice::new(text.as_bytes())];
        let sent = rustix::net::sendmsg(&self.stream, &parts, &mut control, SendFlags::empty())
            .with_context(|| format!("sending {command}"))?;
        ensure!(sent == text.len(), "{command} was sent in part");
        self.answer(command)
    }

    fn answer(&mut self, command: &str) -> Result<Value> {
        self.lines.get_mut().until = Instant::now() + self.limit;
        loop {
            let message = self.message()?;
            if let Some(error) = message.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            if message.get("event").is_some() {
                self.events.push_back(message);
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(
            self.lines.read_line(&mut line)? > 0,
            "QEMU closed the connection"
        );
        serde_json::from_str(&line).context("reading what QEMU says")
    }

    /// Whether memory can be saved with a place for every page, which QEMU can from 9.0 on.
    pub(super) fn has_mapped_ram(&mut self) -> Result<bool> {
        let all = self.execute("query-migrate-capabilities", json!({}))?;
        let mut all = all.as_array().into_iter().flatten();
        Ok(all.any(|entry| entry["capability"] == "mapped-ram"))
    }

    /// Writes memory and devices into a file, or reads them from it, with the best settings for either.
    pub(super) fn migrate(&mut self, command: &str, file: &File, mapped: bool) -> Result<()> {
        let capabilities: Vec<Value> = ["events", "mapped-ram"][..if mapped { 2 } else { 1 }]
            .iter()
            .map(|name| json!({ "capability": name, "state": true }))
            .collect();
        self.execute(
            "migrate-set-capabilities",
            json!({ "capabilities": capabilities }),
        )?;
        self.execute(
            "migrate-set-parameters",
            json!({ "max-bandwidth": BANDWIDTH }),
        )?;
        let uri = if mapped {
            self.pass("add-fd", json!({ "fdset-id": SET }), file)?;
            format!("file:/dev/fdset/{SET}")
        } else {
            self.pass("getfd", json!({ "fdname": FILE }), file)?;
            format!("fd:{FILE}")
        };
        self.execute(command, json!({ "uri": uri }))?;
        self.lines.get_mut().until = Instant::now() + self.limit;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.message()?,
            };
            if event["event"] != "MIGRATION" {
                continue;
            }
            match event["data"]["status"].as_str() {
                Some("completed") => return Ok(()),
                Some(status @ ("failed" | "cancelled")) => bail!("{command}: {status}"),
                _ => {}
            }
        }
    }
}
