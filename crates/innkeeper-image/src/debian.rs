//! Builds Debian from packages: a root disk, a kernel and an initrd, without root where the host allows it.
//!
//! ```text
//!   mmdebstrap ──► root.tar ──► kernel, initrd, versions (read in Rust)
//!                     └──► tar -x, then ours over it ──► mke2fs -d ──► root.img (label "root")
//!                          └────── both as "root" of a user namespace, unless we are root ──────┘
//! ```
//! The mirrors are those of the host's apt configuration. The root disk has no partition table: the hypervisor loads the
//! kernel, and cloud-init grows the file system to the disk at boot. This module does not make an image that boots by firmware; for that
//! the vendor's image is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::apt::{self, Source};
use crate::deb::{self, parse_deb822};
use crate::progress::{Context, Silent, Step};
use crate::reference::Arch;
use crate::tool::{self, Tool};
use crate::{Error, Result, digest, ext4, kernel};

/// What these images need on the kernel's command line.
pub(crate) const COMMAND_LINE: &str = "root=LABEL=root ro";

/// A release that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Release {
    version: &'static str,
    pub(crate) codename: &'static str,
}

const RELEASES: &[Release] = &[
    Release {
        version: "12",
        codename: "bookworm",
    },
    Release {
        version: "13",
        codename: "trixie",
    },
];

impl Release {
    /// By number or codename; the empty version is the first of the list.
    pub(crate) fn find(version: &str) -> Option<Release> {
        RELEASES.iter().copied().find(|release| {
            version.is_empty() || release.version == version || release.codename == version
        })
    }
}

/// What a guest is expected to have: an init, cloud-init with all its default modules need, ssh, and a few tools.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "systemd-timesyncd",
    "dbus",
    "libpam-systemd",
    "udev",
    "cloud-init",
    "cloud-guest-utils",
    "netplan.io",
    "openssh-server",
    "sudo",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "ca-certificates",
    "curl",
    "less",
    "procps",
    "kmod",
    "zstd",
    "fdisk",
    "vim-tiny",
    "bash-completion",
    "locales",
];

/// Our files over those of the packages: path, content.
const FILES: &[(&str, &str)] = &[
    (
        "etc/fstab",
        "LABEL=root / ext4 rw,discard,errors=remount-ro 0 1\n",
    ),
    ("etc/hostname", "debian\n"),
    // Empty: systemd makes one at the first boot.
    ("etc/machine-id", ""),
    ("etc/default/locale", "LANG=C.UTF-8\n"),
    (
        "etc/cloud/cloud.cfg.d/90-innkeeper.cfg",
        "# The root disk has no partition, and the seed is the only source of data.\ndatasource_list: [NoCloud, None]\ngrowpart:\n  mode: \"off\"\n",
    ),
    // What the build told apt (proxies of this host, for example) is not the guest's.
    ("etc/apt/apt.conf.d/99mmdebstrap", ""),
    ("etc/dpkg/dpkg.cfg.d/99mmdebstrap", ""),
];

/// A finished file and its digest.
#[derive(Debug)]
pub(crate) struct BuiltFile {
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
}

/// All parts of a built image.
#[derive(Debug)]
pub(crate) struct Built {
    pub(crate) root: BuiltFile,
    pub(crate) root_bytes: u64,
    pub(crate) kernel: BuiltFile,
    pub(crate) vmlinux: Option<BuiltFile>,
    pub(crate) initrd: BuiltFile,
    pub(crate) packages: BTreeMap<String, String>,
}

/// Whether this host is a Debian, whose archives and tools can build one.
pub fn host_is_debian() -> bool {
    apt::host_release().is_some_and(|(id, _)| id == "debian")
}

fn unsupported(reason: impl Into<String>, fix: impl Into<String>) -> Error {
    Error::Unsupported {
        what: "building Debian from packages".into(),
        reason: reason.into(),
        fix: fix.into(),
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives a tool that runs as root of a user namespace with our subordinate ids, or plainly when we are root.
fn as_owner(program: &Path, operation: &str) -> Result<Tool> {
    if is_root() {
        return Ok(Tool::new(program, operation));
    }
    let unshare = tool::require("unshare", "util-linux", "util-linux")?;
    Ok(Tool::new(&unshare, operation)
        .args(["--user", "--map-auto", "--map-root-user", "--"])
        .arg(program))
}

/// Removes a tree whose files may belong to subordinate ids.
pub(crate) fn remove_tree(path: &Path, context: &Context) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(failure) if failure.kind() == std::io::ErrorKind::PermissionDenied && !is_root() => {
            let rm = tool::require("rm", "coreutils", "coreutils")?;
            as_owner(&rm, "remove a build directory")?
                .args(["-r", "-f", "--"])
                .arg(path)
                .output(context)
                .map(drop)
        }
        Err(failure) if failure.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(failure))
        }
        _ => Ok(()),
    }
}

/// Removes the unpacked tree also when the build fails or is cancelled.
struct RemoveTree<'a>(&'a Path);

impl Drop for RemoveTree<'_> {
    fn drop(&mut self) {
        // A context of its own: the build's may be cancelled. What fails here is left to gc.
        let _ = remove_tree(self.0, &Context::new(Arc::new(Silent)));
    }
}

/// Checks what would otherwise fail minutes later with a message that does not help.
fn check_host(arch: Arch, context: &Context) -> Result<()> {
    tool::require("mmdebstrap", "mmdebstrap", "mmdebstrap")?;
    tool::require("mke2fs", "e2fsprogs", "e2fsprogs")?;
    if Arch::host() != Some(arch) {
        let handler = match arch {
            Arch::X86_64 => "qemu-x86_64",
            Arch::Arm64 => "qemu-aarch64",
            Arch::Riscv64 => "qemu-riscv64",
        };
        if !Path::new("/proc/sys/fs/binfmt_misc").join(handler).exists() {
            return Err(unsupported(
                format!("packages for {arch} can't be installed on this architecture"),
                "sudo apt-get install qemu-user-static binfmt-support, or pull the vendor's image",
            ));
        }
    }
    if is_root() {
        return Ok(());
    }
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    let null = fs::metadata("/dev/null").map_err(Error::io("look at", "/dev/null"))?;
    if !null.file_type().is_char_device() || null.permissions().mode() & 0o666 != 0o666 {
        return Err(unsupported(
            "/dev/null is not usable by every user",
            "sudo chmod 0666 /dev/null",
        ));
    }
    tool::require("newuidmap", "uidmap", "shadow")?;
    let rm = tool::require("true", "coreutils", "coreutils")?;
    // The best question is the thing itself.
    as_owner(&rm, "try a user namespace")?.output(context).map(drop).map_err(|failure| {
        let user = rustix::process::getuid().as_raw();
        unsupported(
            format!("this user can't have a user namespace with subordinate ids ({failure})"),
            format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \"$(id -un {user})\""),
        )
    })
}

/// The host's archives, for another release of the same distribution.
fn sources_for(release: Release, sources: &[Source], host_codename: &str) -> Vec<Source> {
    let rename = |suite: &String| -> Option<String> {
        let rest = if suite == "stable" {
            ""
        } else {
            suite
                .strip_prefix(host_codename)
                .or_else(|| suite.strip_prefix("stable"))?
        };
        // Backports are for a release's users to choose.
        matches!(rest, "" | "-updates" | "-security").then(|| format!("{}{rest}", release.codename))
    };
    sources
        .iter()
        .map(|source| Source {
            suites: source.suites.iter().filter_map(rename).collect(),
            components: vec!["main".to_owned()],
            ..source.clone()
        })
        .filter(|source| !source.suites.is_empty())
        .collect()
}

/// Builds in `work`, an empty directory of ours.
pub(crate) fn build(release: Release, arch: Arch, work: &Path, context: &Context) -> Result<Built> {
    check_host(arch, context)?;
    let (_, host_codename) = apt::host_release().ok_or_else(|| {
        unsupported(
            "this host has no os-release with a codename",
            "use the vendor's image",
        )
    })?;
    let sources = apt::of_release(apt::system_sources(Path::new("/etc/apt"))?, &host_codename);
    let sources = sources_for(release, &sources, &host_codename);
    if sources.is_empty() {
        return Err(unsupported(
            "the apt configuration names no Debian archive",
            "use the vendor's image",
        ));
    }
    let sources_file = work.join("build.sources");
    fs::write(&sources_file, apt::write_sources(&sources))
        .map_err(Error::io("write", &sources_file))?;

    let archive = work.join("root.tar");
    let kernel_package = match arch {
        Arch::Riscv64 => "linux-image-riscv64".to_owned(),
        _ => format!("linux-image-cloud-{}", arch.debian_name()),
    };
    install(
        release,
        arch,
        &kernel_package,
        &sources_file,
        &archive,
        context,
    )?;
    let parts = read_archive(&archive, &kernel_package)?;

    context.step(Step::Write, "making the root file system");
    let tree = work.join("tree");
    fs::create_dir(&tree).map_err(Error::io("create", &tree))?;
    let removal = RemoveTree(&tree);
    let overlay = work.join("overlay.tar");
    write_overlay(&overlay).map_err(Error::io("write", &overlay))?;
    for (file, exclude) in [(&archive, true), (&overlay, false)] {
        let tar = tool::require("tar", "tar", "gnu-tar")?;
        let mut unpack = as_owner(&tar, "unpack the packages' files")?.args([
            "--extract",
            "--numeric-owner",
            "--preserve-permissions",
            "--xattrs",
            "--xattrs-include=*",
        ]);
        if exclude {
            // Device nodes can't be made in a user namespace, and the guest's kernel makes its own.
            unpack = unpack.arg("--exclude=./dev/*");
        }
        unpack
            .arg("--directory")
            .arg(&tree)
            .arg("--file")
            .arg(file)
            .output(context)?;
    }
    fs::remove_file(&archive).map_err(Error::io("remove", &archive))?;
    let root_bytes = root_size(parts.content_bytes);
    let root = work.join("root.img");
    ext4::make_ext4_from(&tree, &root, root_bytes, "root", as_owner, context)?;
    drop(removal);

    let put = |name: &str, bytes: &[u8]| -> Result<BuiltFile> {
        let path = work.join(name);
        fs::write(&path, bytes).map_err(Error::io("write", &path))?;
        Ok(BuiltFile {
            sha256: digest::sha256_hex(bytes),
            path,
        })
    };
    let (kernel_bytes, vmlinux) = match arch {
        Arch::X86_64 => {
            let vmlinux = kernel::extract_vmlinux(&parts.kernel)?;
            (parts.kernel, Some(put("vmlinux", &vmlinux)?))
        }
        Arch::Arm64 | Arch::Riscv64 => (kernel::raw_image(&parts.kernel)?, None),
    };
    let (kernel, initrd) = (put("kernel", &kernel_bytes)?, put("initrd", &parts.initrd)?);
    let (sha256, _) = digest::sha256_file(&root, |done| {
        if done.is_multiple_of(64 << 20) {
            context.bytes(Step::Verify, done, Some(root_bytes), "computing the digest");
        }
        context.check()
    })?;
    Ok(Built {
        root: BuiltFile { path: root, sha256 },
        root_bytes,
        kernel,
        vmlinux,
        initrd,
        packages: parts.packages,
    })
}

/// Content plus a third, in whole GiB, at least 2: the guest grows it, so that a small start costs nothing.
fn root_size(content_bytes: u64) -> u64 {
    (content_bytes + content_bytes / 3 + (256 << 20))
        .div_ceil(1 << 30)
        .max(2)
        << 30
}

fn install(
    release: Release,
    arch: Arch,
    kernel_package: &str,
    sources: &Path,
    archive: &Path,
    context: &Context,
) -> Result<()> {
    context.step(
        Step::Install,
        format!(
            "installing Debian {} ({}) from packages",
            release.version, release.codename
        ),
    );
    let mmdebstrap = tool::require("mmdebstrap", "mmdebstrap", "mmdebstrap")?;
    let mut tool = Tool::new(&mmdebstrap, format!("install Debian {}", release.version))
        .arg(format!(
            "--mode={}",
            if is_root() { "root" } else { "unshare" }
        ))
        .args(["--variant=minbase", "--format=tar", "--skip=output/dev"])
        // A build that is cut off is thrown away, so that nothing need be flushed package by package.
        .arg("--dpkgopt=force-unsafe-io")
        .arg(format!("--architectures={}", arch.debian_name()))
        .arg(format!("--include={},{kernel_package}", PACKAGES.join(",")));
    if let Some(directory) = temporary_directory() {
        tool = tool.env("TMPDIR", directory);
    }
    for line in apt::system_settings(context)? {
        tool = tool.arg(format!("--aptopt={}", line.trim_end_matches(';')));
    }
    tool.arg(release.codename)
        .arg(archive)
        .arg(sources)
        .run(context, |line| {
            if let Some(message) = line.strip_prefix("I: ") {
                context.step(Step::Install, message);
            }
        })
}

struct Parts {
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    packages: BTreeMap<String, String>,
    content_bytes: u64,
}

fn read_archive(archive: &Path, kernel_package: &str) -> Result<Parts> {
    const LIMIT: u64 = 512 << 20;
    let file = File::open(archive).map_err(Error::io("open", archive))?;
    let (mut kernel, mut initrd, mut status) = (None, None, None);
    let mut content_bytes = 0;
    let damaged = |source: std::io::Error| {
        Error::malformed(archive.display().to_string(), source.to_string())
    };
    for entry in tar::Archive::new(file).entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        // Whole blocks and an inode each, as the file system will need them.
        content_bytes += entry.size().next_multiple_of(4096) + 512;
        let Some(path) = deb::plain_path(&entry.path().map_err(damaged)?) else {
            continue;
        };
        let slot = match path.as_str() {
            "var/lib/dpkg/status" => &mut status,
            path if path.starts_with("boot/vmlinu") => &mut kernel,
            path if path.starts_with("boot/initrd.img-") => &mut initrd,
            _ => continue,
        };
        if entry.header().entry_type().is_file() && entry.size() <= LIMIT {
            let mut bytes = Vec::new();
            entry
                .by_ref()
                .take(LIMIT)
                .read_to_end(&mut bytes)
                .map_err(damaged)?;
            *slot = Some(bytes);
        }
    }
    let lacking = |what: &str| Error::malformed("the installed system", format!("lacks {what}"));
    let status = status.ok_or_else(|| lacking("its list of packages"))?;
    let packages = parse_deb822(&String::from_utf8_lossy(&status))
        .into_iter()
        .filter_map(|mut stanza| Some((stanza.remove("package")?, stanza.remove("version")?)))
        .filter(|(name, _)| {
            PACKAGES.contains(&name.as_str())
                || name == kernel_package
                || name.starts_with("linux-image-")
        })
        .collect();
    Ok(Parts {
        kernel: kernel.ok_or_else(|| lacking("a kernel"))?,
        initrd: initrd.ok_or_else(|| lacking("an initrd"))?,
        packages,
        content_bytes,
    })
}

fn write_overlay(path: &Path) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(File::create(path)?);
    let header = |kind: tar::EntryType, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header
    };
    for (path, content) in FILES {
        archive.append_data(
            &mut header(tar::EntryType::Regular, content.len() as u64),
            path,
            content.as_bytes(),
        )?;
    }
    // The archive has no /dev, and without the directory nothing can be mounted there.
    let mut directory = header(tar::EntryType::Directory, 0);
    directory.set_mode(0o755);
    archive.append_data(&mut directory, "dev", std::io::empty())?;
    // The build copied the host's resolv.conf.
    archive.append_link(
        &mut header(tar::EntryType::Symlink, 0),
        "etc/resolv.conf",
        "../run/systemd/resolve/stub-resolv.conf",
    )?;
    archive.into_inner()?.sync_all()
}

/// Finds a directory for temporary files that every user can reach: mmdebstrap's own users, who are others than ours, work in it.
fn temporary_directory() -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let reachable = |directory: &PathBuf| {
        directory.ancestors().all(|above| {
            fs::metadata(above).is_ok_and(|found| found.permissions().mode() & 0o001 != 0)
        })
    };
    [std::env::temp_dir(), "/var/tmp".into(), "/tmp".into()]
        .into_iter()
        .find(reachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_by_number_and_codename() {
        assert_eq!(Release::find("12"), Release::find("bookworm"));
        assert_eq!(Release::find(""), Release::find("12"));
        assert_eq!(Release::find("11"), None);
    }

    #[test]
    fn archives_are_renamed_to_the_release_and_backports_left_out() {
        let source = Source {
            uris: vec!["http://mirror.example/debian".into()],
            suites: vec![
                "bookworm".into(),
                "bookworm-updates".into(),
                "bookworm-backports".into(),
            ],
            components: vec!["main".into(), "contrib".into()],
            signed_by: None,
            trusted: false,
        };
        let renamed = sources_for(Release::find("13").unwrap(), &[source], "bookworm");
        assert_eq!(renamed[0].suites, ["trixie", "trixie-updates"]);
        assert_eq!(renamed[0].components, ["main"]);
    }

    #[test]
    fn our_files_go_over_the_packages() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("overlay.tar");
        write_overlay(&path).unwrap();
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        let entries: BTreeMap<String, (bool, u32)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let path = entry.path().unwrap().to_string_lossy().into_owned();
                (path, (header.entry_type().is_dir(), header.mode().unwrap()))
            })
            .collect();
        assert_eq!(entries["dev"], (true, 0o755));
        assert_eq!(entries["etc/fstab"], (false, 0o644));
        assert!(entries.contains_key("etc/resolv.conf"));
    }

    #[test]
    fn the_root_disk_has_room() {
        assert_eq!(root_size(500 << 20), 2 << 30);
        assert_eq!(root_size(3 << 30), 5 << 30);
    }
}
