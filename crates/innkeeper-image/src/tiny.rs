//! The recipe of `tiny`: the distribution's cloud kernel, its virtio modules, static busybox, and our agent as `/init`.
//!
//! The archive is two cpio archives one after the other, which the kernel unpacks in order: the base (kernel modules,
//! busybox, a few files of `/etc`), cached per kernel and busybox version, and the agent. A new agent thus costs one copy. The
//! agent finds what to load in `/etc/innkeeper/modules`: one path a line in load order, and a blank line between what
//! readiness needs and the rest. Nothing of a user's is in it; a data disk comes as ext4, mounted at `/data` by the agent.
//!
//! The initramfs is not compressed, so that joining is copying. LZ4 (2.4 MB instead of 7.7 MB) was ahead in four noisy pairs of boots under
//! emulation; it is worth a measurement on a quiet machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::{self, Apt, Package};
use crate::atomic::WorkDirectory;
use crate::cpio::{Archive, Node};
use crate::digest::HashingWriter;
use crate::modules::{self, Module, Selection};
use crate::progress::{Context, Step};
use crate::reference::Arch;
use crate::{Error, Result, atomic, deb, digest, kernel};

/// Changes whenever this recipe makes something else from the same packages.
pub(crate) const RECIPE: u32 = 4;

/// What the tiny guest's kernel is told; consoles are the driver's to add.
pub(crate) const COMMAND_LINE: &str = "quiet panic=-1";

/// Kernel packages to try, smallest first; riscv64 has no cloud kernel.
const KERNEL_PACKAGES: &[&str] = &["linux-image-cloud-", "linux-image-"];

/// Applets that get a symbolic link. `busybox --list` can't be asked for a foreign architecture; these are in Debian's
/// `busybox-static` since version 1.30 (Debian 10).
const APPLETS: &[&str] = &[
    "[",
    "ash",
    "awk",
    "basename",
    "blkid",
    "bunzip2",
    "bzcat",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "chroot",
    "clear",
    "cmp",
    "cp",
    "cpio",
    "cttyhack",
    "cut",
    "date",
    "dd",
    "df",
    "diff",
    "dirname",
    "dmesg",
    "du",
    "echo",
    "egrep",
    "env",
    "expand",
    "expr",
    "false",
    "fdisk",
    "fgrep",
    "find",
    "fold",
    "free",
    "grep",
    "gunzip",
    "gzip",
    "halt",
    "head",
    "hexdump",
    "hostname",
    "hwclock",
    "id",
    "ifconfig",
    "insmod",
    "ip",
    "kill",
    "killall",
    "less",
    "ln",
    "logger",
    "losetup",
    "ls",
    "lsmod",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mktemp",
    "modprobe",
    "more",
    "mount",
    "mv",
    "nc",
    "netstat",
    "nslookup",
    "nproc",
    "od",
    "pidof",
    "ping",
    "ping6",
    "pivot_root",
    "poweroff",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "realpath",
    "reboot",
    "renice",
    "reset",
    "rm",
    "rmdir",
    "rmmod",
    "route",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sha512sum",
    "sleep",
    "sort",
    "stat",
    "strings",
    "stty",
    "switch_root",
    "sync",
    "sysctl",
    "tail",
    "tar",
    "tee",
    "telnet",
    "test",
    "time",
    "timeout",
    "top",
    "touch",
    "tr",
    "traceroute",
    "true",
    "truncate",
    "tty",
    "udhcpc",
    "umount",
    "uname",
    "uniq",
    "unxz",
    "unzip",
    "uptime",
    "usleep",
    "vi",
    "watch",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "xz",
    "xzcat",
    "yes",
    "zcat",
];

const UDHCPC_SCRIPT: &str = r#"#!/bin/sh
# Called by busybox udhcpc with what the DHCP server said in its environment.
case "$1" in
deconfig)
	ip address flush dev "$interface"
	ip link set "$interface" up
	;;
bound | renew)
	ip address add "$ip/${mask:-24}" dev "$interface"
	[ -n "$router" ] && ip route replace default via "${router%% *}" dev "$interface"
	: >/etc/resolv.conf
	for server in $dns; do
		echo "nameserver $server" >>/etc/resolv.conf
	done
	;;
esac
"#;

/// Files of the guest that come from nowhere else: path, mode, content.
const FILES: &[(&str, u32, &str)] = &[
    (
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    (
        "etc/group",
        0o644,
        "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    ),
    (
        "etc/shadow",
        0o600,
        "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
    ),
    (
        "etc/hosts",
        0o644,
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    ),
    ("etc/hostname", 0o644, "tiny\n"),
    ("etc/shells", 0o644, "/bin/sh\n/bin/ash\n"),
    ("etc/resolv.conf", 0o644, ""),
    (
        "etc/os-release",
        0o644,
        "NAME=\"Innkeeper tiny\"\nID=innkeeper-tiny\nVERSION_ID=1\nPRETTY_NAME=\"Innkeeper tiny\"\n",
    ),
    (
        "etc/profile",
        0o644,
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nexport PS1='\\u@\\h:\\w\\$ '\n",
    ),
    ("usr/share/udhcpc/default.script", 0o755, UDHCPC_SCRIPT),
];

/// The part that does not depend on the agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Base {
    recipe: u32,
    pub(crate) kernel_package: String,
    pub(crate) kernel_version: String,
    pub(crate) busybox_version: String,
    /// Names within the base's directory, with their SHA-256.
    pub(crate) kernel: String,
    pub(crate) vmlinux: Option<String>,
}

/// The base's directory and description.
pub(crate) struct CachedBase {
    pub(crate) directory: PathBuf,
    pub(crate) base: Base,
}

fn base_root(cache: &Path) -> PathBuf {
    cache.join("tiny")
}

/// Finds the base that was made last for `arch`, without asking any archive.
pub(crate) fn cached_base(cache: &Path, arch: Arch) -> Option<CachedBase> {
    let pointer = fs::read_to_string(base_root(cache).join(format!("current-{arch}"))).ok()?;
    load_base(&base_root(cache).join(pointer.trim()))
}

fn load_base(directory: &Path) -> Option<CachedBase> {
    let base: Base = serde_json::from_slice(&fs::read(directory.join("base.json")).ok()?).ok()?;
    (base.recipe == RECIPE && directory.join("base.cpio").is_file()).then(|| CachedBase {
        directory: directory.to_owned(),
        base,
    })
}

/// Makes the base from the newest packages, or finds it if they are the ones it was made from.
pub(crate) fn make_base(cache: &Path, arch: Arch, context: &Context) -> Result<CachedBase> {
    let unsupported = |reason: String| Error::Unsupported {
        what: format!("building tiny for {arch}"),
        reason,
        fix: "build it on a Debian host, or use an image of the catalogue".into(),
    };
    let (_, codename) = apt::host_release()
        .ok_or_else(|| unsupported("this host has no os-release with a codename".into()))?;
    let sources = apt::of_release(apt::system_sources(Path::new("/etc/apt"))?, &codename);
    if sources.is_empty() {
        return Err(unsupported(
            "its apt configuration names no archive of its release".into(),
        ));
    }
    let apt = Apt::open(cache, arch, &sources, context)?;
    apt.update(context)?;
    let kernel = kernel_package(&apt, arch, context)?
        .ok_or_else(|| unsupported("its archive has no kernel package".into()))?;
    let busybox = apt
        .candidate("busybox-static", context)?
        .ok_or_else(|| unsupported("its archive has no busybox-static".into()))?;
    let key = digest::sha256_hex(
        format!(
            "{RECIPE} {arch} {} {} {}",
            kernel.name, kernel.version, busybox.version
        )
        .as_bytes(),
    );
    let name = format!("{arch}-{}", &key[..16]);
    let root = base_root(cache);
    atomic::create_directory(&root)?;
    let directory = root.join(&name);
    if load_base(&directory).is_none() {
        let kernel_file = apt.download(&kernel, context)?;
        let busybox_file = apt.download(&busybox, context)?;
        let work = WorkDirectory::create(&root.join("partial"), "base")?;
        write_base(
            work.path(),
            arch,
            &kernel,
            &kernel_file,
            &busybox,
            &busybox_file,
            context,
        )?;
        if directory.exists() {
            // Of another recipe version, or damaged: load_base() refused it.
            fs::remove_dir_all(&directory).map_err(Error::io("remove", &directory))?;
        }
        fs::rename(work.path(), &directory).map_err(Error::io("rename to", &directory))?;
    }
    atomic::write(
        &root.join(format!("current-{arch}")),
        name.as_bytes(),
        0o644,
    )?;
    load_base(&directory).ok_or_else(|| {
        Error::malformed(
            directory.display().to_string(),
            "the base was made and can't be read",
        )
    })
}

/// Follows the meta package to the kernel itself by the control data's `Depends`.
fn kernel_package(apt: &Apt, arch: Arch, context: &Context) -> Result<Option<Package>> {
    for prefix in KERNEL_PACKAGES {
        let Some(meta) = apt.candidate(&format!("{prefix}{}", arch.debian_name()), context)? else {
            continue;
        };
        let real = deb::dependencies(&meta.depends)
            .into_iter()
            .find(|(name, _)| name.starts_with("linux-image-"));
        if let Some((name, _)) = real
            && let Some(package) = apt.candidate(&name, context)?
        {
            return Ok(Some(package));
        }
    }
    Ok(None)
}

fn write_base(
    directory: &Path,
    arch: Arch,
    kernel_package: &Package,
    kernel_file: &Path,
    busybox_package: &Package,
    busybox_file: &Path,
    context: &Context,
) -> Result<()> {
    context.step(Step::Unpack, format!("unpacking {}", kernel_package.name));
    let wanted: BTreeSet<&str> = modules::READY_MODULES
        .iter()
        .chain(modules::LATER_MODULES)
        .copied()
        .collect();
    // Dependencies are known only from the modules themselves, so everything is read; unwanted bytes are dropped after selection.
    let mut found: BTreeMap<String, Module> = BTreeMap::new();
    let mut image: Option<Vec<u8>> = None;
    let mut builtin = BTreeSet::new();
    deb::read_files(
        kernel_file,
        context,
        |path| {
            path.starts_with("boot/vmlinu")
                || path.ends_with("/modules.builtin")
                || is_small_tree(path, &wanted)
        },
        |path, bytes| {
            if path.starts_with("boot/") {
                image = Some(bytes);
            } else if path.ends_with("/modules.builtin") {
                builtin = modules::builtin_names(&String::from_utf8_lossy(&bytes));
            } else if let Some(name) = modules::name_of(path) {
                let (path, content) = if path.ends_with(".ko") {
                    (path.to_owned(), bytes)
                } else {
                    let plain = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
                    (plain.to_owned(), kernel::decompress(&bytes)?)
                };
                let path = path.strip_prefix("usr/").unwrap_or(&path).to_owned();
                found.insert(name, Module { path, content });
            }
            Ok(())
        },
    )?;
    let image = image
        .ok_or_else(|| Error::malformed(kernel_file.display().to_string(), "holds no kernel"))?;
    let selection = modules::select(&found, &builtin)?;
    let mut busybox = None;
    deb::read_files(
        busybox_file,
        context,
        |path| matches!(path, "bin/busybox" | "usr/bin/busybox"),
        |_, bytes| {
            busybox = Some(bytes);
            Ok(())
        },
    )?;
    let busybox = busybox
        .ok_or_else(|| Error::malformed(busybox_file.display().to_string(), "holds no busybox"))?;

    context.step(Step::Write, "writing the initramfs");
    let (kernel, vmlinux) = match arch {
        Arch::X86_64 => (image.clone(), Some(kernel::extract_vmlinux(&image)?)),
        Arch::Arm64 | Arch::Riscv64 => (kernel::raw_image(&image)?, None),
    };
    let put = |name: &str, bytes: &[u8]| -> Result<String> {
        let path = directory.join(name);
        fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        Ok(digest::sha256_hex(bytes))
    };
    let base = Base {
        recipe: RECIPE,
        kernel_package: kernel_package.name.clone(),
        kernel_version: kernel_package.version.clone(),
        busybox_version: busybox_package.version.clone(),
        kernel: put("kernel", &kernel)?,
        vmlinux: vmlinux.map(|bytes| put("vmlinux", &bytes)).transpose()?,
    };
    let archive = base_archive(&busybox, &found, &selection)
        .map_err(Error::io("write the archive in", directory))?;
    put("base.cpio", &archive)?;
    // Written last: load_base() takes the directory for complete by it.
    put(
        "base.json",
        &serde_json::to_vec_pretty(&base)
            .map_err(|source| Error::malformed("base", source.to_string()))?,
    )?;
    Ok(())
}

/// Directories of the module tree that can hold a wanted module or one it depends on; graphics, sound and the like are not read.
fn is_small_tree(path: &str, wanted: &BTreeSet<&str>) -> bool {
    let Some(name) = modules::name_of(path) else {
        return false;
    };
    const TREES: &[&str] = &[
        "/drivers/virtio/",
        "/drivers/char/",
        "/drivers/net/",
        "/drivers/block/",
        "/drivers/nvme/",
        "/drivers/scsi/",
        "/drivers/firmware/",
        "/drivers/acpi/",
        "/drivers/input/",
        "/fs/",
        "/net/core/",
        "/net/vmw_vsock/",
        "/net/packet/",
        "/lib/",
        "/crypto/",
        "/arch/",
        "/block/",
        "/drivers/pci/",
        "/drivers/base/",
        "/drivers/cdrom/",
        "/mm/",
    ];
    // Only loose files of drivers/net are helpers (failover, net_failover); its directories are vendors' cards.
    let vendors_card = path
        .split_once("/drivers/net/")
        .is_some_and(|(_, rest)| rest.contains('/'));
    wanted.contains(name.as_str())
        || (TREES.iter().any(|tree| path.contains(tree)) && !vendors_card)
}

fn base_archive(
    busybox: &[u8],
    found: &BTreeMap<String, Module>,
    selection: &Selection,
) -> std::io::Result<Vec<u8>> {
    let mut archive = Archive::new(Vec::new());
    let mut directories = BTreeSet::new();
    let mut directory =
        |archive: &mut Archive<Vec<u8>>, path: &str, mode: u32| -> std::io::Result<()> {
            let mut parent = String::new();
            for part in path.split('/') {
                if !parent.is_empty() {
                    parent.push('/');
                }
                parent.push_str(part);
                if directories.insert(parent.clone()) {
                    archive.add(
                        &parent,
                        if parent == path { mode } else { 0o755 },
                        &Node::Directory,
                    )?;
                }
            }
            Ok(())
        };
    for path in [
        "bin",
        "sbin",
        "dev",
        "proc",
        "sys",
        "run",
        "etc/innkeeper",
        "usr/bin",
        "usr/sbin",
        "usr/local/bin",
        "mnt",
        "data",
        "lib",
        "var/log",
    ] {
        directory(&mut archive, path, 0o755)?;
    }
    directory(&mut archive, "root", 0o700)?;
    directory(&mut archive, "tmp", 0o1777)?;
    // Before devtmpfs is mounted the kernel opens this one for init's output.
    archive.add("dev/console", 0o600, &Node::CharacterDevice(5, 1))?;
    archive.add("dev/null", 0o666, &Node::CharacterDevice(1, 3))?;
    archive.add("dev/kmsg", 0o644, &Node::CharacterDevice(1, 11))?;
    archive.add("bin/busybox", 0o755, &Node::File(busybox))?;
    for applet in APPLETS {
        archive.add(&format!("bin/{applet}"), 0o777, &Node::Symlink("busybox"))?;
    }
    for (path, mode, content) in FILES {
        if let Some((parent, _)) = path.rsplit_once('/') {
            directory(&mut archive, parent, 0o755)?;
        }
        archive.add(path, *mode, &Node::File(content.as_bytes()))?;
    }
    archive.add("etc/mtab", 0o777, &Node::Symlink("/proc/self/mounts"))?;
    let mut list = String::new();
    for (at, group) in [&selection.ready, &selection.network, &selection.later]
        .into_iter()
        .enumerate()
    {
        if at > 0 {
            list.push('\n');
        }
        for module in group.iter().filter_map(|name| found.get(name)) {
            if let Some((parent, _)) = module.path.rsplit_once('/') {
                directory(&mut archive, parent, 0o755)?;
            }
            archive.add(&module.path, 0o644, &Node::File(&module.content))?;
            list.push_str(&format!("/{}\n", module.path));
        }
    }
    archive.add("etc/innkeeper/modules", 0o644, &Node::File(list.as_bytes()))?;
    archive.finish()
}

/// Writes base and agent as one initramfs; gives its SHA-256.
pub(crate) fn write_initramfs(base: &CachedBase, agent: &Path, output: &Path) -> Result<String> {
    let agent_bytes = fs::read(agent).map_err(Error::io("read the agent", agent))?;
    let mut writer = HashingWriter::new(BufWriter::new(
        File::create(output).map_err(Error::io("create", output))?,
    ));
    let base_path = base.directory.join("base.cpio");
    let mut base_file = File::open(&base_path).map_err(Error::io("open", &base_path))?;
    std::io::copy(&mut base_file, &mut writer).map_err(Error::io("write", output))?;
    let mut archive = Archive::new(writer);
    archive
        .add("init", 0o755, &Node::File(&agent_bytes))
        .map_err(Error::io("write", output))?;
    archive
        .add("usr/sbin/inn-agent", 0o777, &Node::Symlink("/init"))
        .map_err(Error::io("write", output))?;
    let mut writer = archive.finish().map_err(Error::io("write", output))?;
    writer.flush().map_err(Error::io("write", output))?;
    Ok(writer.finish().1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_precede_what_is_in_them_and_groups_are_marked() {
        let module = |path: &str| Module {
            path: path.into(),
            content: b"x".to_vec(),
        };
        let found = BTreeMap::from([
            (
                "virtio".to_owned(),
                module("lib/modules/6/kernel/drivers/virtio/virtio.ko"),
            ),
            (
                "virtio_net".to_owned(),
                module("lib/modules/6/kernel/drivers/net/virtio_net.ko"),
            ),
        ]);
        let selection = Selection {
            ready: vec!["virtio".into()],
            network: vec!["virtio_net".into()],
            later: vec![],
        };
        let bytes = base_archive(b"busybox", &found, &selection).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let list = "/lib/modules/6/kernel/drivers/virtio/virtio.ko\n\n/lib/modules/6/kernel/drivers/net/virtio_net.ko\n";
        assert!(text.contains(list));
        let directory = text
            .find("lib/modules/6/kernel/drivers/virtio\0")
            .expect("the directory is there");
        let file = text
            .find("lib/modules/6/kernel/drivers/virtio/virtio.ko\0")
            .expect("the file is there");
        assert!(directory < file);
        assert_eq!(text.matches("usr/share\0").count(), 1);
    }

    #[test]
    fn applets_are_sorted_into_no_duplicates() {
        let unique: BTreeSet<_> = APPLETS.iter().collect();
        assert_eq!(unique.len(), APPLETS.len());
        assert!(
            ["sh", "mount", "udhcpc", "poweroff", "tar"]
                .iter()
                .all(|applet| unique.contains(applet))
        );
    }
}
