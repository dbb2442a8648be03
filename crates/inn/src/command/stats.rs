//! `inn stats`: what running VMs use.

use std::time::Duration;

use innkeeper::Host;
use innkeeper::api::{VmState, VmStats};

use super::duration;
use crate::failure::Result;
use crate::many;
use crate::output::{Format, Output};
use crate::table::Table;
use crate::units;

/// Show what running VMs use: CPU, memory, disk and network
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inn stats
  inn stats web -o json
  inn stats -f --every 5s")]
pub(crate) struct Args {
    /// VMs; all that run if none is given
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// Go on, until interrupted
    #[arg(short, long)]
    follow: bool,

    /// Time between two looks with -f, at least 100ms
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    every: Duration,
}

impl Args {
    pub(crate) async fn run(self, host: &Host, output: &Output) -> Result<u8> {
        if !self.follow {
            let (stats, code) = self.look(host, output).await?;
            output.data(&stats, || table(&stats))?;
            return Ok(code);
        }
        let mut ticks = tokio::time::interval(self.every.max(Duration::from_millis(100)));
        loop {
            ticks.tick().await;
            let (stats, _) = self.look(host, output).await?;
            output.piece(&stats, || {
                // The cursor goes home and what is below is cleared: a picture that changes in place.
                let home = if output.colours { "\x1b[H\x1b[2J" } else { "" };
                format!("{home}{}", table(&stats))
            })?;
        }
    }

    async fn look(&self, host: &Host, output: &Output) -> Result<(Vec<VmStats>, u8)> {
        if !self.names.is_empty() {
            return many::each(&self.names, output, async |name| {
                Ok(host.stats(name).await?)
            })
            .await;
        }
        let vms = host
            .list()
            .await?
            .into_iter()
            .filter(|vm| vm.vmm_pid.is_some());
        let names: Vec<String> = vms.map(|vm| vm.name).collect();
        if names.is_empty() && output.format == Format::Table {
            output.note("no VM runs");
        }
        many::each(&names, output, async |name| Ok(host.stats(name).await?)).await
    }
}

fn table(stats: &[VmStats]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        ">UPTIME",
        ">CPU",
        ">HOST MEMORY",
        ">GUEST MEMORY",
        ">LOAD",
        ">DISK READ",
        ">WRITTEN",
        ">NET IN",
        ">OUT",
    ]);
    let size = |bytes: Option<u64>| bytes.map(units::size).unwrap_or_default();
    for one in stats {
        let guest = match (
            one.guest_memory_total_bytes,
            one.guest_memory_available_bytes,
        ) {
            (Some(total), Some(available)) => {
                let used = units::size(total.saturating_sub(available));
                format!("{used} of {}", units::size(total))
            }
            (total, _) => size(total),
        };
        table.row([
            one.name.clone(),
            one.state
                .as_ref()
                .map(VmState::to_string)
                .unwrap_or_default(),
            one.uptime_seconds
                .map(|it| units::seconds(it as u64))
                .unwrap_or_default(),
            one.cpu_percent
                .map(|it| format!("{it:.0}%"))
                .unwrap_or_default(),
            size(one.host_memory_bytes),
            guest,
            one.guest_load
                .map(|it| format!("{it:.2}"))
                .unwrap_or_default(),
            size(one.disk_read_bytes),
            size(one.disk_written_bytes),
            size(one.network_received_bytes),
            size(one.network_sent_bytes),
        ]);
    }
    if stats.is_empty() {
        return String::new();
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_what_is_known() {
        let busy = VmStats {
            name: "web".into(),
            state: Some(VmState::Ready),
            uptime_seconds: Some(3700.5),
            cpu_percent: Some(151.6),
            host_memory_bytes: Some(700 << 20),
            guest_memory_total_bytes: Some(2 << 30),
            guest_memory_available_bytes: Some(3 << 29),
            guest_load: Some(0.5),
            disk_read_bytes: Some(1 << 20),
            ..VmStats::default()
        };
        let idle = VmStats {
            name: "db".into(),
            ..VmStats::default()
        };
        insta::assert_snapshot!(table(&[busy, idle]));
        assert_eq!(table(&[]), "");
    }
}
