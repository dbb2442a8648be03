//! Figures of a running VM, from the hypervisor's process, its counters and the agent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use innkeeper_api::VmStats;

use super::agent::AgentLink;
use crate::driver::Machine;

/// CPU use is measured over this long.
const SAMPLE: Duration = Duration::from_millis(200);
/// The agent may take this long to count.
const AGENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Fills in what can be known. What can't stays empty: no figure is guessed.
pub(crate) async fn collect(
    mut stats: VmStats,
    machine: Option<Arc<dyn Machine>>,
    agent: Option<AgentLink>,
) -> VmStats {
    let Some(machine) = machine else { return stats };
    let pid = machine.pid();
    let before = (Instant::now(), process_usage(pid));
    let (blocks, metrics, ()) = tokio::join!(
        async {
            match machine.block_statistics() {
                Some(counter) => counter.block_totals().await.ok(),
                None => None,
            }
        },
        async {
            match &agent {
                Some(agent) => tokio::time::timeout(AGENT_TIMEOUT, agent.metrics())
                    .await
                    .ok()
                    .flatten(),
                None => None,
            }
        },
        tokio::time::sleep(SAMPLE),
    );
    if let Some(after) = process_usage(pid) {
        stats.cpu_seconds = Some(after.cpu_seconds);
        stats.host_memory_bytes = Some(after.resident_bytes);
        if let (at, Some(earlier)) = before {
            let used = after.cpu_seconds - earlier.cpu_seconds;
            stats.cpu_percent = Some(100.0 * used / at.elapsed().as_secs_f64());
        }
    }
    if let Some(blocks) = blocks {
        stats.disk_read_bytes = Some(blocks.read_bytes);
        stats.disk_written_bytes = Some(blocks.written_bytes);
    }
    if let Some(metrics) = metrics {
        stats.guest_memory_total_bytes = Some(metrics.memory_total);
        stats.guest_memory_available_bytes = Some(metrics.memory_available);
        stats.guest_load = Some(metrics.load[0]);
    }
    stats
}

struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
}

/// Reads a process's CPU time and resident memory (proc_pid_stat(5), fields 14, 15 and 24).
#[cfg(target_os = "linux")]
fn process_usage(pid: u32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    Some(Usage {
        cpu_seconds: (number(14)? + number(15)?) as f64 / ticks,
        resident_bytes: number(24)? * rustix::param::page_size() as u64,
    })
}

#[cfg(not(target_os = "linux"))]
fn process_usage(_: u32) -> Option<Usage> {
    None
}
