//! Brings CPUs and memory into use that were added while the guest runs: Linux leaves that to user space.

use innkeeper_agent::message::Reply;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Source: kernel documentation, `core-api/cpu_hotplug.rst` and `admin-guide/mm/memory-hotplug.rst`.
const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";

/// How long the kernel may take until it has found what was added.
const FOUND: Duration = Duration::from_secs(5);

/// Waits until there are so many CPUs, and brings everything that is offline into use.
pub fn bring_online(cpus: u32) -> std::io::Result<Reply> {
    let deadline = Instant::now() + FOUND;
    let wanted = usize::try_from(cpus).unwrap_or(usize::MAX);
    while numbered(CPUS, "cpu").len() < wanted && Instant::now() < deadline {
        // The kernel makes the directory when the firmware has told it; sysfs tells nobody.
        std::thread::sleep(Duration::from_millis(10));
    }
    for cpu in numbered(CPUS, "cpu") {
        // The first one of some machines can't be taken offline and has no such file.
        turn_on(&cpu.join("online"), "0", "1")?;
    }
    for block in numbered(MEMORY, "memory") {
        turn_on(&block.join("state"), "offline", "online")?;
    }
    let found = numbered(CPUS, "cpu").len();
    if found < wanted {
        let message = format!("the kernel has found {found} of {wanted} CPUs");
        return Err(std::io::Error::other(message));
    }
    Ok(Reply::Done)
}

fn turn_on(file: &Path, off: &str, on: &str) -> std::io::Result<()> {
    match std::fs::read_to_string(file) {
        Ok(state) if state.trim() == off => std::fs::write(file, on),
        _ => Ok(()),
    }
}

/// Returns the entries of a directory whose name is a word and a number.
fn numbered(directory: &str, word: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(word));
            number.is_some_and(|number| {
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            })
        })
        .map(|entry| entry.path())
        .collect()
}
