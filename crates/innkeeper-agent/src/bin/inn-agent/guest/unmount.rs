//! Unmounts a shared folder, or says what keeps it from being unmounted: who has files open there, works there, runs from there.
//!
//! What uses it is found by the names that the kernel gives in `/proc`, so that no file of a share is touched: a share whose server is
//! dead would hang whoever does. Everything that is read is bounded.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use innkeeper_agent::message::{
    MOUNT_USER_TEXT, MOUNT_USERS, MountUse, MountUser, MountUsers, Reply, UnmountRequest,
};
use rustix::mount::UnmountFlags;

/// How much of one file of `/proc` is looked at.
const LONGEST_FILE: u64 = 4 << 20;
/// How many processes, and descriptors of each, are looked at.
const MOST_PROCESSES: usize = 32_768;
const MOST_DESCRIPTORS: usize = 65_536;
/// Mounts may be stacked on one point; so many are taken off.
const MOST_LAYERS: usize = 8;

/// A mount of a virtiofs file system.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: Vec<u8>,
    fstype: Vec<u8>,
    source: Vec<u8>,
}

/// Unmounts what a host mounted; what is not mounted is as good as unmounted.
pub fn unmount(request: &UnmountRequest) -> std::io::Result<Reply> {
    let point = request.path.as_bytes();
    let mut found = Found::default();
    for _ in 0..MOST_LAYERS {
        let mounts = mounts(Path::new("/proc/self/mountinfo"))?;
        let of_it = |mount: &&Mount| is_of(mount, request);
        for other in mounts.iter().filter(of_it).filter(|m| m.point != point) {
            found.add_mount(&other.point);
        }
        if found.users.in_use || !mounts.iter().any(|m| is_of(m, request) && m.point == point) {
            break;
        }
        match rustix::mount::unmount(request.path.as_str(), UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::BUSY) => {
                found.users.in_use = true;
                for inner in mounts.iter().filter(|m| is_below(&m.point, point)) {
                    if inner.point != point {
                        found.add_mount(&inner.point);
                    }
                }
                found.look_at_processes(point);
            }
            Err(error) => return Err(error.into()),
        }
    }
    if !found.users.in_use {
        found.look_at_namespaces(request);
    }
    Ok(Reply::Unmounted(found.users))
}

/// Returns whether a file system is mounted at a point.
pub fn is_mounted(source: &str, path: &str, fstype: &str) -> bool {
    mounts(Path::new("/proc/self/mountinfo")).is_ok_and(|mounts| {
        mounts.iter().any(|mount| {
            mount.point == path.as_bytes()
                && mount.source == source.as_bytes()
                && mount.fstype == fstype.as_bytes()
        })
    })
}

fn is_of(mount: &Mount, request: &UnmountRequest) -> bool {
    mount.fstype == b"virtiofs" && mount.source == request.source.as_bytes()
}

#[derive(Default)]
struct Found {
    users: MountUsers,
}

impl Found {
    fn add(&mut self, pid: Option<u32>, command: &str, what: MountUse, path: &[u8]) {
        self.users.in_use = true;
        let user = MountUser {
            pid,
            command: bounded(command.as_bytes()),
            what,
            path: bounded(path),
        };
        if self.users.users.contains(&user) {
            return;
        }
        if self.users.users.len() < MOUNT_USERS {
            self.users.users.push(user);
        } else {
            self.users.more = true;
        }
    }

    fn add_mount(&mut self, point: &[u8]) {
        self.add(None, "", MountUse::Mount, point);
    }

    fn look_at_processes(&mut self, point: &[u8]) {
        for (pid, directory) in processes() {
            let command = command(&directory);
            let mut note = |what, link: PathBuf| {
                if let Ok(target) = std::fs::read_link(link)
                    && is_below(target.as_os_str().as_bytes(), point)
                {
                    self.add(Some(pid), &command, what, target.as_os_str().as_bytes());
                }
            };
            note(MountUse::WorkingDirectory, directory.join("cwd"));
            note(MountUse::Root, directory.join("root"));
            note(MountUse::MappedFile, directory.join("exe"));
            // A process that ends meanwhile has nothing open any more.
            let descriptors = std::fs::read_dir(directory.join("fd"));
            for entry in descriptors
                .into_iter()
                .flatten()
                .flatten()
                .take(MOST_DESCRIPTORS)
            {
                note(MountUse::OpenFile, entry.path());
            }
            for file in mapped(&directory.join("maps"), point) {
                self.add(Some(pid), &command, MountUse::MappedFile, &file);
            }
        }
    }

    /// It is gone from here; who looks at a file system of their own may have it still.
    fn look_at_namespaces(&mut self, request: &UnmountRequest) {
        let own = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
        let mut seen = vec![own];
        for (pid, directory) in processes() {
            let Ok(namespace) = std::fs::read_link(directory.join("ns/mnt")) else {
                continue;
            };
            if seen.contains(&namespace) {
                continue;
            }
            seen.push(namespace);
            for mount in mounts(&directory.join("mountinfo")).unwrap_or_default() {
                if is_of(&mount, request) {
                    self.add(
                        Some(pid),
                        &command(&directory),
                        MountUse::Mount,
                        &mount.point,
                    );
                }
            }
        }
    }
}

fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .take(MOST_PROCESSES)
}

fn command(directory: &Path) -> String {
    let name = std::fs::read_to_string(directory.join("comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

/// Returns the files below a point that stand in `/proc/PID/maps`: the path is the sixth field and may hold blanks.
fn mapped(maps: &Path, point: &[u8]) -> Vec<Vec<u8>> {
    let text = read_bounded(maps).unwrap_or_default();
    let mut files: Vec<Vec<u8>> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some(start) = line.iter().position(|byte| *byte == b'/') else {
            continue;
        };
        let path = unescaped(&line[start..]);
        if is_below(&path, point) && !files.contains(&path) && files.len() <= MOUNT_USERS {
            files.push(path);
        }
    }
    files
}

/// Returns whether a path is a point or below it.
fn is_below(path: &[u8], point: &[u8]) -> bool {
    match path.strip_prefix(point) {
        Some(rest) => rest.is_empty() || rest.starts_with(b"/"),
        None => false,
    }
}

fn bounded(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().take(MOUNT_USER_TEXT).collect()
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?
        .take(LONGEST_FILE)
        .read_to_end(&mut text)?;
    Ok(text)
}

/// Reads a `mountinfo` (proc(5)): the fifth field is the mount point; behind a lone dash stand type and source.
fn mounts(path: &Path) -> std::io::Result<Vec<Mount>> {
    Ok(read_mounts(&read_bounded(path)?))
}

fn read_mounts(text: &[u8]) -> Vec<Mount> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
            let dash = fields.iter().position(|field| *field == b"-")?;
            Some(Mount {
                point: unescaped(fields.get(4)?),
                fstype: unescaped(fields.get(dash + 1)?),
                source: unescaped(fields.get(dash + 2)?),
            })
        })
        .collect()
}

/// Undoes the kernel's `\ooo` for blanks, tabs, line feeds and backslashes.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|digits| {
            *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        });
        if let Some(digits) = octal {
            let value = digits
                .iter()
                .fold(0u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            plain.push(u8::try_from(value & 0xff).unwrap_or(b'?'));
            rest = &after[3..];
        } else {
            plain.push(*first);
            rest = after;
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let text = b"36 35 98:0 / /mnt\\040a rw,noatime shared:1 master:2 - virtiofs share0 rw\n\
            garbage\n22 1 0:20 / /sys rw - sysfs sysfs rw\n1 2 3 4 5 -\n";
        let mounts = read_mounts(text);
        let expected = Mount {
            point: b"/mnt a".to_vec(),
            fstype: b"virtiofs".to_vec(),
            source: b"share0".to_vec(),
        };
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0], expected);
        assert_eq!(unescaped(b"\\04\\777x\\"), b"\\04\xffx\\");
    }

    #[test]
    fn what_is_below_a_point_is_told_by_whole_names() {
        for (path, below) in [
            ("/work", true),
            ("/work/a", true),
            ("/workshop", false),
            ("/", false),
        ] {
            assert_eq!(is_below(path.as_bytes(), b"/work"), below, "{path}");
        }
    }

    #[test]
    fn open_files_and_working_directories_are_found() {
        let directory = std::env::temp_dir();
        let file = directory.join(format!("inn-agent-open-{}", std::process::id()));
        let held = File::create(&file).unwrap();
        let mut found = Found::default();
        found.look_at_processes(file.as_os_str().as_bytes());
        let own = found
            .users
            .users
            .iter()
            .find(|user| user.pid == Some(std::process::id()));
        assert_eq!(own.map(|user| user.what), Some(MountUse::OpenFile));
        drop(held);
        std::fs::remove_file(&file).unwrap();
    }
}
