//! `inn ls`: every VM of this host, a line each.

use innkeeper::Host;
use innkeeper::api::{VmInfo, VmState};

use crate::failure::Result;
use crate::output::{Format, Output};
use crate::table::Table;
use crate::{terminal_text, units};

/// List VMs
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn ls
  inn ls -q --state running --state ready
  inn ls --label env=dev -o json")]
pub(crate) struct Args {
    /// Only those in this state (repeatable)
    #[arg(long = "state", value_name = "STATE", value_parser = state)]
    states: Vec<VmState>,

    /// Only those with this label (repeatable; all must match)
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let mut vms = host.list().await?;
        vms.retain(|vm| self.wants(vm));
        if output.quiet && output.format == Format::Table {
            let names: String = vms.iter().map(|vm| format!("{}\n", vm.name)).collect();
            output.text(&names)?;
        } else {
            output.data(&vms, || table(&vms, output.colours))?;
        }
        if vms.is_empty() {
            output.note("no VMs; inn run debian:12 makes one");
        }
        Ok(0)
    }

    fn wants(&self, vm: &VmInfo) -> bool {
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => vm.labels.get(key).is_some_and(|found| found == value),
            None => vm.labels.contains_key(wanted),
        };
        (self.states.is_empty() || self.states.contains(&vm.state)) && self.labels.iter().all(has)
    }
}

/// Reads a state's word.
pub(crate) fn state(text: &str) -> Result<VmState, String> {
    VmState::ALL
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or_else(|| {
            let words: Vec<&str> = VmState::ALL.iter().map(|state| state.as_str()).collect();
            format!("there is no such state: use {}", words.join(", "))
        })
}

/// Returns the colour of a state's word.
fn colour(state: &str) -> &'static str {
    match state {
        "ready" => "\x1b[32m",
        "failed" => "\x1b[31m",
        "stopped" | "suspended" | "paused" => "\x1b[2m",
        _ => "\x1b[33m",
    }
}

fn table(vms: &[VmInfo], colours: bool) -> String {
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        "DRIVER",
        "ARCH",
        ">CPUS",
        ">MEMORY",
        "ADDRESSES",
        "IMAGE",
    ]);
    if colours {
        table.paint(1, colour);
    }
    for vm in vms {
        table.row([
            vm.name.clone(),
            vm.state.to_string(),
            vm.driver.clone(),
            vm.arch.clone(),
            vm.cpus.to_string(),
            units::size(vm.memory_bytes),
            vm.addresses.join(","),
            vm.image.clone().unwrap_or_default(),
        ]);
    }
    if vms.is_empty() {
        return String::new();
    }
    let mut text = table.render();
    for vm in vms {
        for remark in remarks(vm) {
            let remark = terminal_text::one_line(&remark);
            text.push_str(&format!("{}: {remark}\n", vm.name));
        }
    }
    text
}

/// What a line of the table has no room for, and must not be missed.
fn remarks(vm: &VmInfo) -> Vec<String> {
    let mut remarks = Vec::new();
    if let (VmState::Failed, Some(reason)) = (vm.state, &vm.reason) {
        remarks.push(reason.trim().to_owned());
    }
    if let Some(seconds) = vm.agent.silent_seconds {
        remarks.push(format!("agent silent for {}", units::seconds(seconds)));
    }
    if let Some(since) = &vm.stale_since {
        remarks.push(format!(
            "not heard of since {since}; what is shown may be old"
        ));
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_matters() {
        let mut web = super::super::sample::vm("web");
        let mut lost = super::super::sample::vm("lost");
        lost.state = VmState::Failed;
        lost.reason = Some("QEMU ended with code 1: out of memory".into());
        lost.addresses.clear();
        web.agent.silent_seconds = Some(12);
        let vms = [web, lost];
        insta::assert_snapshot!(table(&vms, false));
        insta::assert_snapshot!(table(&vms[1..], true).replace('\x1b', "ESC"));
        assert_eq!(table(&[], false), "");
    }

    #[test]
    fn filters_by_state_and_label() {
        let vm = super::super::sample::vm("web");
        let wants = |states: &[&str], labels: &[&str]| {
            let args = Args {
                states: states.iter().map(|word| state(word).unwrap()).collect(),
                labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            };
            args.wants(&vm)
        };
        assert!(wants(&[], &[]));
        assert!(wants(&["stopped", "ready"], &["env", "env=dev"]));
        assert!(!wants(&["stopped"], &[]));
        assert!(!wants(&[], &["env=prod"]));
        assert!(!wants(&[], &["team"]));
        assert!(state("up").is_err());
    }
}
