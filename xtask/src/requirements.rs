//! What demo and tests need from the host, in one table, and whether it is there.
//!
//! Presence is asked from the file system (a program in `PATH`, a file at its known places), never read out of a
//! package manager's prose, so a QEMU that somebody built by hand counts as well.

use std::path::Path;

use crate::process::find_program;

/// For what a requirement is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `cargo xtask demo`, and the tests too.
    Demo,
    /// `cargo xtask test` only.
    Test,
}

/// How presence shows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Presence {
    /// A program in `PATH`.
    Program(&'static str),
    /// One of these files.
    AnyFile(&'static [&'static str]),
}

/// One thing that must be on the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Requirement {
    /// What it does for us, to be told to the user.
    pub(crate) why: &'static str,
    /// The Debian package that brings it.
    pub(crate) package: &'static str,
    /// Who needs it.
    pub(crate) purpose: Purpose,
    /// How it is seen.
    pub(crate) presence: Presence,
    /// Whether work can go on without it when it can't be installed.
    pub(crate) optional: bool,
}

impl Requirement {
    const fn new(
        why: &'static str,
        package: &'static str,
        purpose: Purpose,
        presence: Presence,
    ) -> Self {
        Self {
            why,
            package,
            purpose,
            presence,
            optional: false,
        }
    }

    const fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// Whether the host has it.
    pub(crate) fn is_present(&self) -> bool {
        match self.presence {
            Presence::Program(name) => find_program(name).is_some(),
            Presence::AnyFile(paths) => paths.iter().any(|path| Path::new(path).is_file()),
        }
    }
}

use Presence::{AnyFile, Program};
use Purpose::{Demo, Test};

/// Everything, in the order in which it is told.
pub(crate) const REQUIREMENTS: &[Requirement] = &[
    Requirement::new("linker for Rust", "gcc", Demo, Program("cc")),
    Requirement::new(
        "C library to link against",
        "libc6-dev",
        Demo,
        AnyFile(&[
            "/usr/lib/x86_64-linux-gnu/crt1.o",
            "/usr/lib/aarch64-linux-gnu/crt1.o",
            "/usr/lib64/crt1.o",
            "/usr/lib/crt1.o",
        ]),
    ),
    Requirement::new(
        "runs x86-64 VMs",
        "qemu-system-x86",
        Demo,
        Program("qemu-system-x86_64"),
    ),
    Requirement::new(
        "makes and checks qcow2 disks",
        "qemu-utils",
        Demo,
        Program("qemu-img"),
    ),
    Requirement::new(
        "builds Debian images from packages",
        "mmdebstrap",
        Demo,
        Program("mmdebstrap"),
    ),
    Requirement::new(
        "builds images without root",
        "uidmap",
        Demo,
        Program("newuidmap"),
    ),
    Requirement::new(
        "user land of the tiny image",
        "busybox-static",
        Demo,
        AnyFile(&["/bin/busybox", "/usr/bin/busybox"]),
    ),
    Requirement::new(
        "makes ext4 file systems",
        "e2fsprogs",
        Demo,
        Program("mke2fs"),
    ),
    Requirement::new("ssh into VMs", "openssh-client", Demo, Program("ssh")),
    Requirement::new(
        "runs arm64 VMs by emulation",
        "qemu-system-arm",
        Test,
        Program("qemu-system-aarch64"),
    ),
    Requirement::new(
        "a registry to pull images from",
        "docker-registry",
        Test,
        Program("docker-registry"),
    ),
    Requirement::new("plays the TPM of VMs", "swtpm", Test, Program("swtpm")).optional(),
    Requirement::new(
        "builds virtiofsd, which serves shared folders",
        "libcap-ng-dev",
        Test,
        AnyFile(&["/usr/include/cap-ng.h"]),
    )
    .optional(),
    Requirement::new(
        "builds virtiofsd too",
        "libseccomp-dev",
        Test,
        AnyFile(&["/usr/include/seccomp.h"]),
    )
    .optional(),
    Requirement::new(
        "UEFI for x86-64 VMs",
        "ovmf",
        Test,
        AnyFile(&[
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
            "/usr/share/qemu/edk2-x86_64-code.fd",
        ]),
    ),
    Requirement::new(
        "UEFI for arm64 VMs",
        "qemu-efi-aarch64",
        Test,
        AnyFile(&[
            "/usr/share/AAVMF/AAVMF_CODE.fd",
            "/usr/share/qemu/edk2-aarch64-code.fd",
        ]),
    ),
    Requirement::new(
        "mount namespace for the tests' user",
        "util-linux",
        Test,
        Program("setpriv"),
    ),
    Requirement::new(
        "links the arm64 guest agent",
        "gcc-aarch64-linux-gnu",
        Test,
        Program("aarch64-linux-gnu-gcc"),
    )
    .optional(),
    Requirement::new(
        "C library of the arm64 guest agent",
        "libc6-dev-arm64-cross",
        Test,
        AnyFile(&["/usr/aarch64-linux-gnu/lib/libc.a"]),
    )
    .optional(),
];

/// What the purpose needs and the host lacks.
pub(crate) fn missing(purpose: Purpose) -> Vec<Requirement> {
    REQUIREMENTS
        .iter()
        .filter(|requirement| purpose == Test || requirement.purpose == Demo)
        .filter(|requirement| !requirement.is_present())
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presence_is_seen_and_absence_too() {
        let here = |presence| Requirement::new("", "", Demo, presence).is_present();
        assert!(here(Program("ls")));
        assert!(!here(Program("no-such-program-of-innkeeper")));
        assert!(here(AnyFile(&["/no/such/file", "/proc/self/status"])));
        assert!(!here(AnyFile(&["/no/such/file"])));
    }

    #[test]
    fn each_package_stands_once() {
        let mut packages: Vec<_> = REQUIREMENTS
            .iter()
            .map(|requirement| requirement.package)
            .collect();
        packages.sort_unstable();
        packages.dedup();
        assert_eq!(packages.len(), REQUIREMENTS.len());
    }
}
