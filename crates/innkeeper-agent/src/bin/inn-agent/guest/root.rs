//! A root file system on a disk, for guests whose init is the agent: found by its id, mounted, grown to its disk, and entered.
//!
//! ```text
//!  disk with that ext4 id ─► mount ─► /dev /proc /sys moved into it ─► it becomes / ─► grown, if the disk is larger
//! ```
//! The initramfs stays below, unreachable by paths; its files are removed, since they take memory. When the disk can't be
//! entered the guest goes on in the initramfs, so that somebody can look at it, and the problem is told as one of readiness.

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;
use std::ffi::CStr;
use std::io::{Error, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// How long a disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);
const NEW_ROOT: &str = "/newroot";
/// EXT4_IOC_RESIZE_FS of the kernel's fs/ext4/ext4.h: _IOW('f', 16, __u64), blocks.
const RESIZE: libc::c_ulong = 0x4008_6610;

/// Enters the root file system that a word `UUID=…` names.
pub fn switch(word: &str) -> Result<(), String> {
    let wanted = word
        .strip_prefix("UUID=")
        .and_then(parse_uuid)
        .ok_or("it must be UUID= and an id")?;
    let disk = wait_for(&wanted).map_err(|error| format!("cannot find its disk: {error}"))?;
    let told = |what: &str| {
        let what = what.to_owned();
        move |error: Error| format!("cannot {what}: {error}")
    };
    std::fs::create_dir_all(NEW_ROOT).map_err(told("make the mount point"))?;
    rustix::mount::mount(
        &*disk.device,
        NEW_ROOT,
        "ext4",
        MountFlags::empty(),
        None::<&CStr>,
    )
    .map_err(|error| told("mount it")(error.into()))?;
    for place in ["/dev", "/proc", "/sys"] {
        let there = format!("{NEW_ROOT}{place}");
        std::fs::create_dir_all(&there).map_err(told("make a mount point in it"))?;
        rustix::mount::mount_move(place, &there)
            .map_err(|error| told("move a mount into it")(error.into()))?;
    }
    let old = rustix::fs::open(
        "/",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    rustix::process::chdir(NEW_ROOT).map_err(|error| told("enter it")(error.into()))?;
    rustix::mount::mount_move(".", "/").map_err(|error| told("make it the root")(error.into()))?;
    rustix::process::chroot(".").map_err(|error| told("make it the root")(error.into()))?;
    rustix::process::chdir("/").map_err(|error| told("enter it")(error.into()))?;
    if let Ok(old) = old {
        clear(&old, 0);
    }
    grow(&disk).map_err(told("grow it to its disk"))
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let mut uuid = [0; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(uuid)
}

/// The disk of the root file system.
struct Disk {
    device: String,
    /// Size of the disk, in blocks of the file system.
    blocks: u64,
    /// Size of the file system, in the same.
    used: u64,
}

fn wait_for(uuid: &[u8; 16]) -> std::io::Result<Disk> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut names = Vec::new();
        for entry in std::fs::read_dir("/sys/class/block")? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        // A copy of the disk may be attached as a further one: the first is the root.
        names.sort_by_key(|name| (name.len(), name.clone()));
        for name in names {
            if let Ok(Some(disk)) = look(&name, uuid) {
                return Ok(disk);
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::NotFound, "no disk has it"));
        }
        // poll: a disk's driver has found it; without udev nobody tells.
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn look(name: &str, uuid: &[u8; 16]) -> std::io::Result<Option<Disk>> {
    let device = format!("/dev/{name}");
    // The superblock begins at 1024; blocks at 0x4, their size at 0x18, magic at 0x38, id at 0x68 (kernel:
    // Documentation/filesystems/ext4/super.rst).
    let mut superblock = [0; 0x78];
    std::fs::File::open(&device)?.read_exact_at(&mut superblock, 1024)?;
    if superblock[0x38..0x3A] != [0x53, 0xEF] || superblock[0x68..0x78] != *uuid {
        return Ok(None);
    }
    let word = |at: usize| {
        u32::from_le_bytes([
            superblock[at],
            superblock[at + 1],
            superblock[at + 2],
            superblock[at + 3],
        ])
    };
    let sectors = std::fs::read_to_string(format!("/sys/class/block/{name}/size"))?;
    let sectors: u64 = sectors
        .trim()
        .parse()
        .map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
    Ok(Some(Disk {
        device,
        // Blocks of 1 KiB times a power of two.
        blocks: sectors >> (1 + word(0x18).min(6)),
        used: u64::from(word(0x4)),
    }))
}

/// Removes the initramfs' files, staying on its file system; what can't be removed only keeps memory.
fn clear(directory: &OwnedFd, depth: u32) {
    let Ok(own) = rustix::fs::fstat(directory) else {
        return;
    };
    let Ok(entries) = rustix::fs::Dir::read_from(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(inner) => {
                let same = rustix::fs::fstat(&inner).is_ok_and(|inner| inner.st_dev == own.st_dev);
                if same && depth < 32 {
                    clear(&inner, depth + 1);
                    let _ = rustix::fs::unlinkat(directory, name, rustix::fs::AtFlags::REMOVEDIR);
                }
            }
            Err(_) => {
                let _ = rustix::fs::unlinkat(directory, name, rustix::fs::AtFlags::empty());
            }
        }
    }
}

/// Lets the file system take the whole disk.
#[allow(unsafe_code)]
fn grow(disk: &Disk) -> std::io::Result<()> {
    // Whole groups of 32768 blocks: the rest of one is not worth a resize at every start.
    let wanted: u64 = disk.blocks / 32_768 * 32_768;
    if wanted <= disk.used {
        return Ok(());
    }
    let root = rustix::fs::open(
        "/",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: the call reads eight bytes from a value that lives on this stack.
    if unsafe { libc::ioctl(root.as_raw_fd(), RESIZE as _, &raw const wanted) } != 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_read() {
        let uuid = super::parse_uuid("00112233-4455-8677-8899-aabbccddeeff").unwrap();
        assert_eq!((uuid[0], uuid[15]), (0, 0xFF));
        assert!(
            super::parse_uuid("00112233").is_none() && super::parse_uuid(&"g".repeat(32)).is_none()
        );
    }
}
