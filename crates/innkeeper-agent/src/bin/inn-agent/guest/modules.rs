//! Kernel modules, for guests whose init is the agent.
//!
//! `/etc/innkeeper/modules` lists one path a line, dependencies first, in groups with a blank line between: what the host's channel
//! needs is loaded before anything else, then what the network needs; the rest comes beside serving. Words `module.parameter=value` of the kernel's command
//! line are passed to their module, several of the same name too: that is how virtio_mmio learns its devices.

use crate::guest::log::{lock, say};
use rustix::fs::{Mode, OFlags};
use std::ffi::CString;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

const LIST: &str = "/etc/innkeeper/modules";
/// MODULE_INIT_COMPRESSED_FILE of the kernel's uapi/linux/module.h.
const COMPRESSED: i32 = 4;

/// Whether every module of the list was tried.
static ALL_TRIED: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

/// Says to other processes that every module of the list was tried.
pub const TRIED_MARK: &str = "/run/inn-agent-modules-tried";

/// Says that every module of the list was tried.
pub fn all_tried() {
    if let Err(error) = std::fs::write(TRIED_MARK, "") {
        say(&format!("cannot write {TRIED_MARK}: {error}"));
    }
    *lock(&ALL_TRIED.0) = true;
    ALL_TRIED.1.notify_all();
}

/// Waits until every module of the list was tried, at most `limit`: a file system may be among the last.
pub fn wait_for_all(limit: Duration) {
    let tried = lock(&ALL_TRIED.0);
    drop(
        ALL_TRIED
            .1
            .wait_timeout_while(tried, limit, |tried| !*tried),
    );
}

/// The modules to load, in groups.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// What the channel to the host needs.
    pub channel: Vec<String>,
    /// What the network needs.
    pub network: Vec<String>,
    /// The rest.
    pub later: Vec<String>,
}

/// Reads the list.
pub fn listed() -> Modules {
    match std::fs::read_to_string(LIST) {
        Ok(text) => split(&text),
        // A kernel with everything built in needs no list.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Modules::default(),
        Err(error) => {
            say(&format!("cannot read {LIST}: {error}"));
            Modules::default()
        }
    }
}

fn split(text: &str) -> Modules {
    let mut groups = text.split("\n\n").map(|group| {
        let lines = group.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .map(str::to_owned)
            .collect::<Vec<String>>()
    });
    Modules {
        channel: groups.next().unwrap_or_default(),
        network: groups.next().unwrap_or_default(),
        later: groups.flatten().collect(),
    }
}

/// Module name of a path: the file's stem, with dashes as underscores (the kernel takes both for the same).
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn parameters(module: &str, command_line: &str) -> String {
    let words = command_line.split_whitespace().filter_map(|word| {
        let (owner, rest) = word.split_once('.')?;
        (owner.replace('-', "_") == module && rest.contains('=')).then_some(rest)
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Loads modules in order; gives what went wrong.
pub fn load(paths: &[String], command_line: &str) -> Vec<String> {
    let mut problems = Vec::new();
    for path in paths {
        let full = if path.starts_with('/') {
            path.clone()
        } else {
            format!("/lib/modules/{path}")
        };
        if let Err(error) = load_one(&full, &parameters(&name(path), command_line))
            && error != rustix::io::Errno::EXIST
        {
            let hint = match error {
                // The kernel's word for an unknown symbol; the file itself was opened before.
                rustix::io::Errno::NOENT => {
                    " (it is missing, or a module that it needs is not listed before it)"
                }
                _ => "",
            };
            problems.push(format!("cannot load the module {full}: {error}{hint}"));
        }
    }
    problems
}

fn load_one(path: &str, parameters: &str) -> rustix::io::Result<()> {
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let parameters = CString::new(parameters).unwrap_or_default();
    let flags = if path.ends_with(".ko") { 0 } else { COMPRESSED };
    rustix::system::finit_module(&fd, &parameters, flags)
}

#[cfg(test)]
mod tests {
    use super::{parameters, split};

    #[test]
    fn the_channel_comes_first_and_parameters_go_to_their_module() {
        let modules = split(
            "# list\na/virtio.ko\na/virtio-console.ko\n\nb/virtio_net.ko.xz\n\nc/ext4.ko\n\nd/nvme.ko\n",
        );
        assert_eq!(modules.channel, ["a/virtio.ko", "a/virtio-console.ko"]);
        assert_eq!(modules.network, ["b/virtio_net.ko.xz"]);
        assert_eq!(modules.later, ["c/ext4.ko", "d/nvme.ko"]);
        let line = "quiet virtio_mmio.device=512@0xfeb00e00:12 virtio-mmio.device=512@0xfeb00c00:11 other.x=1";
        assert_eq!(
            parameters("virtio_mmio", line),
            "device=512@0xfeb00e00:12 device=512@0xfeb00c00:11"
        );
    }
}
