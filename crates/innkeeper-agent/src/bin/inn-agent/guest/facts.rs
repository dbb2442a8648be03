//! What the agent tells about its guest: facts, counters, readiness, logs. Reads /proc, /sys and /run only.

use innkeeper_agent::message::{AgentEvent, CloudInit, Filesystem, GuestInfo, Metrics, Readiness};
use std::io::{Error, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const MAX_FILE: u64 = 1024 * 1024;
/// Problems that the agent met as init.
pub static PROBLEMS: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

/// Whether the agent, as init, still sets the guest up.
pub static BUSY: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn read(path: impl AsRef<Path>) -> std::io::Result<String> {
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(MAX_FILE)
        .read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn read_or_empty(path: impl AsRef<Path>) -> String {
    read(path).unwrap_or_default()
}

pub fn guest_info(is_init: bool) -> GuestInfo {
    let uname = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    let release = read_or_empty("/etc/os-release");
    let pretty = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    GuestInfo {
        hostname: text(uname.nodename()),
        system: text(uname.sysname()),
        kernel: text(uname.release()),
        architecture: text(uname.machine()),
        distribution: pretty.unwrap_or_default().trim_matches('"').to_owned(),
        boot_id: read_or_empty("/proc/sys/kernel/random/boot_id")
            .trim()
            .to_owned(),
        is_init,
    }
}

pub fn metrics() -> Metrics {
    let uptime = read_or_empty("/proc/uptime");
    let load = read_or_empty("/proc/loadavg");
    let mut loads = load
        .split_whitespace()
        .map(|word| word.parse().unwrap_or(0.0));
    let stat = read_or_empty("/proc/stat");
    let cpu = stat
        .lines()
        .find_map(|line| line.strip_prefix("cpu "))
        .unwrap_or_default();
    // user nice system idle iowait irq softirq steal, in USER_HZ, which is 100 on every architecture we serve (proc(5)).
    let ticks: Vec<f64> = cpu
        .split_whitespace()
        .take(8)
        .map(|word| word.parse().unwrap_or(0.0))
        .collect();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    let memory = read_or_empty("/proc/meminfo");
    let kibibytes = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        let number = line
            .and_then(|rest| rest.split_whitespace().next())
            .and_then(|word| word.parse::<u64>().ok());
        number.unwrap_or(0) * 1024
    };
    Metrics {
        uptime_seconds: uptime
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(0.0),
        load: std::array::from_fn(|_| loads.next().unwrap_or(0.0)),
        cpus: stat
            .lines()
            .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
            .count() as u32,
        cpu_busy_seconds: (ticks.iter().sum::<f64>() - idle) / 100.0,
        cpu_idle_seconds: idle / 100.0,
        memory_total: kibibytes("MemTotal:"),
        memory_available: kibibytes("MemAvailable:"),
        swap_total: kibibytes("SwapTotal:"),
        swap_used: kibibytes("SwapTotal:").saturating_sub(kibibytes("SwapFree:")),
        filesystems: filesystems(),
    }
}

/// Mounted file systems on devices or shares. A virtiofs whose daemon died would hang statvfs, so shares get no sizes.
fn filesystems() -> Vec<Filesystem> {
    let mut found: Vec<Filesystem> = Vec::new();
    for line in read_or_empty("/proc/self/mounts").lines() {
        let mut words = line.split(' ');
        let (Some(source), Some(path), Some(fstype)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let device = source.starts_with("/dev/");
        if !(device || fstype == "virtiofs")
            || found.iter().any(|known| known.source == source)
            || found.len() >= 256
        {
            continue;
        }
        let path = unescape(path);
        let stat = if device {
            rustix::fs::statvfs(&path).ok()
        } else {
            None
        };
        let bytes = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
            stat.as_ref().map_or(0, |stat| blocks(stat) * stat.f_frsize)
        };
        found.push(Filesystem {
            source: source.to_owned(),
            fstype: fstype.to_owned(),
            total: bytes(|stat| stat.f_blocks),
            available: bytes(|stat| stat.f_bavail),
            path,
        });
    }
    found
}

/// Undoes the octal escapes of /proc/mounts (getmntent(3)): space, tab, newline, backslash.
pub fn unescape(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

pub fn readiness() -> Readiness {
    let mut keys = Vec::new();
    if let Ok(entries) = std::fs::read_dir("/etc/ssh") {
        for entry in entries.flatten().take(256) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("ssh_host_") && name.ends_with("_key.pub") {
                keys.extend(read(entry.path()).ok().map(|key| key.trim().to_owned()));
            }
        }
    }
    keys.sort();
    Readiness {
        cloud_init: cloud_init(Path::new("/run/cloud-init"))
            .or_else(|| cloud_init_is_configured().then(CloudInit::default)),
        ssh_host_keys: keys,
        problems: crate::guest::log::lock(&PROBLEMS).clone(),
        busy: BUSY.load(std::sync::atomic::Ordering::SeqCst),
    }
}

/// Reads cloud-init's own status files (its documentation, "Reported finish state": status.json and result.json).
/// Whether cloud-init is installed and not switched off, by its own files (cloud-init's documentation, "boot stages").
fn cloud_init_is_configured() -> bool {
    Path::new("/etc/cloud/cloud.cfg").exists()
        && !Path::new("/etc/cloud/cloud-init.disabled").exists()
        && !Path::new("/run/cloud-init/disabled").exists()
}

/// Tells the host when cloud-init has ended. Its files are looked at every half second until then: the directory that could be watched
/// is made by cloud-init itself.
pub fn watch_cloud_init(link: Arc<crate::guest::link::Link>) {
    const LOOK: Duration = Duration::from_millis(500);
    if !cloud_init_is_configured() {
        return;
    }
    crate::guest::operations::spawn("cloud-init", move || {
        loop {
            let readiness = readiness();
            if readiness.cloud_init.as_ref().is_none_or(|state| state.done) {
                link.push(&AgentEvent::Readiness(readiness));
                return;
            }
            std::thread::sleep(LOOK);
        }
    });
}

fn cloud_init(directory: &Path) -> Option<CloudInit> {
    let status: serde_json::Value =
        serde_json::from_str(&read(directory.join("status.json")).ok()?).ok()?;
    let result: Option<serde_json::Value> = read(directory.join("result.json"))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    let status = &status["v1"];
    let mut errors = Vec::new();
    let mut take = |value: &serde_json::Value| {
        for error in value
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|error| error.as_str())
            .take(64)
        {
            let error: String = error.chars().take(500).collect();
            if !errors.contains(&error) {
                errors.push(error);
            }
        }
    };
    if let Some(stages) = status.as_object() {
        for stage in stages.values() {
            take(&stage["errors"]);
        }
    }
    if let Some(result) = &result {
        take(&result["v1"]["errors"]);
    }
    Some(CloudInit {
        done: result.is_some(),
        stage: status["stage"].as_str().map(str::to_owned),
        errors,
    })
}

pub fn cloud_init_log() -> std::io::Result<Vec<u8>> {
    tail(Path::new("/var/log/cloud-init-output.log"))
}

fn tail(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Seek, SeekFrom};
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_FILE)))?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the kernel's messages from /dev/kmsg: one record per read, EAGAIN at the end (kernel: dev-kmsg ABI).
pub fn kernel_log() -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open("/dev/kmsg")?;
    let mut all = Vec::new();
    let mut record = [0u8; 8192];
    while all.len() < MAX_FILE as usize {
        match file.read(&mut record) {
            Ok(0) => break,
            Ok(count) => {
                // "priority,sequence,microseconds,flags;message"
                let text = String::from_utf8_lossy(&record[..count]).into_owned();
                let (prefix, message) = text.split_once(';').unwrap_or(("", &text));
                let micros: u64 = prefix
                    .split(',')
                    .nth(2)
                    .and_then(|word| word.parse().ok())
                    .unwrap_or(0);
                let line = message.lines().next().unwrap_or_default();
                all.extend_from_slice(
                    format!(
                        "[{:5}.{:06}] {line}\n",
                        micros / 1_000_000,
                        micros % 1_000_000
                    )
                    .as_bytes(),
                );
            }
            // Records that were overwritten while we read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(Error::new(error.kind(), error)),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::cloud_init;

    #[test]
    fn cloud_init_is_done_when_the_result_is_there_and_its_errors_are_told_once() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(cloud_init(directory.path()), None);
        let status = r#"{"v1":{"stage":"modules-final","init":{"errors":["no"],"start":1.0},"datasource":"x"}}"#;
        std::fs::write(directory.path().join("status.json"), status).unwrap();
        let state = cloud_init(directory.path()).unwrap();
        assert_eq!(
            (state.done, state.stage.as_deref()),
            (false, Some("modules-final"))
        );
        std::fs::write(
            directory.path().join("result.json"),
            r#"{"v1":{"errors":["no","disk"]}}"#,
        )
        .unwrap();
        let state = cloud_init(directory.path()).unwrap();
        assert!(state.done);
        assert_eq!(state.errors, ["no", "disk"]);
    }
}
