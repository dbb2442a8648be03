//! What an installation has on this computer: files, and processes that know of it. A trial must leave none that were not there before.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long what ends by itself may take to be gone.
const GRACE: Duration = Duration::from_secs(8);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// What may come and stay: the event log, what probes remember, the installation's key, and locks of the image store.
const MAY_STAY: &[&str] = &["events.jsonl", "cache", "ssh", "layers/.lock", "images"];

/// Files of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    home: PathBuf,
    runtime: PathBuf,
    files: BTreeSet<PathBuf>,
}

impl Traces {
    /// Notes every file of an installation.
    pub fn of(home: &Path, runtime: &Path) -> Traces {
        let mut files = BTreeSet::new();
        collect(home, home, &mut files);
        collect(runtime, runtime, &mut files);
        Traces {
            home: home.to_owned(),
            runtime: runtime.to_owned(),
            files,
        }
    }

    /// Waits until nothing is there but what was noted; returns what stays, a line each.
    pub async fn wait_until_gone(&self) -> Vec<String> {
        let started = Instant::now();
        loop {
            let mut left: Vec<String> = Traces::of(&self.home, &self.runtime)
                .files
                .difference(&self.files)
                .map(|path| format!("left behind: {}", path.display()))
                .collect();
            left.extend(
                processes(&self.home)
                    .into_iter()
                    .chain(processes(&self.runtime))
                    .map(|process| format!("left running: {process}")),
            );
            if left.is_empty() || started.elapsed() > GRACE {
                return left;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

fn collect(root: &Path, directory: &Path, files: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let relative = path.strip_prefix(root).unwrap_or(&path);
        if MAY_STAY.iter().any(|stays| relative.starts_with(stays)) {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(root, &path, files);
            // A directory counts by what is in it; those of VMs and of sockets count themselves.
            if relative.starts_with("vms") && relative != Path::new("vms") {
                files.insert(path);
            }
        } else {
            files.insert(path);
        }
    }
}

/// Returns processes, other than this one, that run with a path below `home` in their arguments, environment, directory or open files.
#[cfg(target_os = "linux")]
pub fn processes(home: &Path) -> Vec<String> {
    use std::os::unix::ffi::OsStrExt;
    let needle = home.as_os_str().as_bytes();
    let mentions = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let own = std::process::id().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name
            .to_str()
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()) && **name != own)
        else {
            continue;
        };
        let process = entry.path();
        let arguments = std::fs::read(process.join("cmdline")).unwrap_or_default();
        let knows = mentions(&arguments)
            || std::fs::read(process.join("environ"))
                .is_ok_and(|environment| mentions(&environment))
            || std::fs::read_link(process.join("cwd"))
                .is_ok_and(|path| mentions(path.as_os_str().as_bytes()))
            || std::fs::read_dir(process.join("fd")).is_ok_and(|descriptors| {
                descriptors.flatten().any(|fd| {
                    std::fs::read_link(fd.path())
                        .is_ok_and(|path| mentions(path.as_os_str().as_bytes()))
                })
            });
        if knows {
            let words = String::from_utf8_lossy(&arguments).replace('\0', " ");
            found.push(format!(
                "{pid} {}",
                words.chars().take(120).collect::<String>()
            ));
        }
    }
    found
}

/// Processes can't be looked into here.
#[cfg(not(target_os = "linux"))]
pub fn processes(_: &Path) -> Vec<String> {
    Vec::new()
}
