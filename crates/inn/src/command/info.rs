//! `inn info`: everything that is known of a VM.

use innkeeper::Host;
use innkeeper::api::{AgentInfo, AgentState, DiskInfo, ShareState, VmInfo};

use crate::failure::Result;
use crate::output::Output;
use crate::table::Block;
use crate::units;

/// Show everything that is known of a VM
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn info web
  inn info web -o json")]
pub(crate) struct Args {
    /// VM
    name: String,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        let info = host.info(&self.name).await?;
        output.data(&info, || block(&info))?;
        Ok(0)
    }
}

fn block(vm: &VmInfo) -> String {
    let mut block = Block::default();
    block.line("name", &vm.name);
    let since = vm.since.as_ref().map(|since| format!(" since {since}"));
    block.line(
        "state",
        format!("{}{}", vm.state, since.unwrap_or_default()),
    );
    block.optional("reason", vm.reason.clone());
    block.optional(
        "not heard of since",
        vm.stale_since
            .as_ref()
            .map(|since| format!("{since}; what is shown may be old")),
    );
    block.optional("spec problem", vm.spec_problem.clone());
    if !vm.restart_required.is_empty() {
        let fields = vm.restart_required.join(", ");
        let text = format!("{fields} changed; inn restart {} applies it", vm.name);
        block.line("restart required", text);
    }
    block.line("agent", agent(&vm.agent));
    block.optional("guest", guest(&vm.agent));
    let machine = vm.machine.as_ref().map(|machine| format!(", {machine}"));
    let accel = vm.accel.as_ref().map(|accel| format!(", {accel}"));
    block.line(
        "driver",
        format!(
            "{}{}{}",
            vm.driver,
            machine.unwrap_or_default(),
            accel.unwrap_or_default()
        ),
    );
    let cpus = units::count(vm.cpus as usize, "CPU");
    let memory = units::size(vm.memory_bytes);
    block.line("hardware", format!("{}, {cpus}, {memory}", vm.arch));
    block.optional("image", vm.image.clone());
    block.lines("disks", vm.disks.iter().map(disk));
    block.lines(
        "networks",
        vm.networks
            .iter()
            .map(|nic| format!("{} {}", nic.network, nic.mac)),
    );
    block.lines("addresses", vm.addresses.iter().cloned());
    block.lines(
        "forwards",
        vm.forwards.iter().map(|forward| {
            let (address, port) = (&forward.host_address, forward.host_port);
            format!(
                "{address}:{port} -> {}/{}",
                forward.guest_port, forward.protocol
            )
        }),
    );
    block.lines(
        "shares",
        vm.shares.iter().map(|share| {
            let mode = if share.read_only { " (read-only)" } else { "" };
            let state = match share.state {
                ShareState::Idle | ShareState::Served => String::new(),
                ShareState::Lost => format!(
                    ": its virtiofsd ended, so what touches it waits; inn restart {} brings it back",
                    vm.name
                ),
            };
            format!("{} -> {}{mode}{state}", share.host, share.guest)
        }),
    );
    block.optional(
        "ssh",
        vm.ssh.as_ref().map(|ssh| {
            let (file, port) = (&ssh.identity_file, ssh.port);
            format!(
                "inn ssh {}, or ssh -i {file} -p {port} {}@{}",
                vm.name, ssh.user, ssh.host
            )
        }),
    );
    block.lines(
        "labels",
        vm.labels
            .iter()
            .map(|(key, value)| format!("{key}={value}")),
    );
    if vm.protected {
        block.line(
            "protected",
            format!("yes; inn protect --off {} allows rm", vm.name),
        );
    }
    block.line("created", &vm.created);
    block.line("directory", &vm.directory);
    let processes: Vec<String> = [("keeper", vm.keeper_pid), ("hypervisor", vm.vmm_pid)]
        .into_iter()
        .filter_map(|(what, pid)| pid.map(|pid| format!("{what} {pid}")))
        .collect();
    if !processes.is_empty() {
        block.line("processes", processes.join(", "));
    }
    block.line("id", &vm.id);
    block.render()
}

fn agent(agent: &AgentInfo) -> String {
    let version = agent
        .version
        .as_ref()
        .map(|version| format!(" (version {version})"));
    let state = match agent.state {
        AgentState::None => "none".to_owned(),
        AgentState::Waiting => "has not said hello yet".to_owned(),
        AgentState::Ready => "answers".to_owned(),
        AgentState::Silent => {
            let seconds = agent.silent_seconds.unwrap_or_default();
            format!("silent for {}", units::seconds(seconds))
        }
    };
    state + &version.unwrap_or_default()
}

fn guest(agent: &AgentInfo) -> Option<String> {
    match (&agent.hostname, &agent.os) {
        (Some(hostname), Some(os)) => Some(format!("{hostname}, {os}")),
        (Some(one), None) | (None, Some(one)) => Some(one.clone()),
        (None, None) => None,
    }
}

fn disk(disk: &DiskInfo) -> String {
    let mode = if disk.read_only { ", read-only" } else { "" };
    let layer = disk
        .layer
        .as_ref()
        .map(|layer| format!(" over layer {layer}"));
    format!(
        "{}: {}, {}{mode}, {}{}",
        disk.name,
        units::size(disk.size_bytes),
        disk.format,
        disk.path,
        layer.unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_one_of_everything() {
        let mut vm = super::super::sample::vm("web");
        insta::assert_snapshot!("ready", block(&vm));
        vm.agent.state = AgentState::Silent;
        vm.agent.silent_seconds = Some(12);
        vm.spec_problem = Some("vm.yaml:3:1: `cpus` must be a number".into());
        vm.shares[0].state = ShareState::Lost;
        vm.restart_required = vec!["cpus".into(), "memory".into()];
        vm.protected = true;
        vm.stale_since = Some("2026-11-21T07:02:00Z".into());
        vm.agent.os = Some("evil\x1b]0;title\x07".into());
        insta::assert_snapshot!("silent", block(&vm));
    }

    #[test]
    fn json_has_the_promised_names() {
        let json = serde_json::to_value(super::super::sample::vm("web")).unwrap();
        for name in [
            "name",
            "state",
            "driver",
            "cpus",
            "memory_bytes",
            "addresses",
        ] {
            assert!(json.get(name).is_some(), "{name}");
        }
        assert_eq!(json["state"], "ready");
    }
}
