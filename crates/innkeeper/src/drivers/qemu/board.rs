//! The machines that Innkeeper builds on: what each one is called, how its devices are attached, and what it can't do.
//!
//! ```text
//!  x86-64   pc-q35-X.Y   PCI    i8042 off, HPET on, ACPI
//!  x86-64   microvm      MMIO   direct boot only, no versioned type
//!  arm64    virt-X.Y     PCI    device tree or ACPI
//!  riscv64  virt         PCI    no versioned type, no power button
//! ```
//!
//! It decides nothing about a single VM: that is the plan's.

use crate::spec::Arch;

/// A machine that Innkeeper builds on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Board {
    /// x86-64 with PCI Express.
    Q35,
    /// x86-64 without PCI.
    Microvm,
    /// arm64.
    VirtArm64,
    /// riscv64.
    VirtRiscv64,
}

impl Board {
    /// Finds the board that a machine type is a version of; none for one that Innkeeper does not build on.
    pub(super) fn of(machine: &str, arch: Arch) -> Option<Self> {
        let versioned = |family: &str| {
            machine == family
                || machine
                    .strip_prefix(family)
                    .and_then(|rest| rest.strip_prefix('-'))
                    .is_some_and(|version| {
                        !version.is_empty()
                            && version.split('.').all(|part| {
                                !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
                            })
                    })
        };
        match arch {
            Arch::X86_64 if machine == "q35" || versioned("pc-q35") => Some(Board::Q35),
            Arch::X86_64 if machine == "microvm" => Some(Board::Microvm),
            Arch::Arm64 if versioned("virt") => Some(Board::VirtArm64),
            Arch::Riscv64 if versioned("virt") => Some(Board::VirtRiscv64),
            _ => None,
        }
    }

    /// Returns the name that stands for the newest version.
    pub(super) fn family(arch: Arch) -> &'static str {
        match arch {
            Arch::X86_64 => "q35",
            Arch::Arm64 | Arch::Riscv64 => "virt",
        }
    }

    /// Returns what follows a virtio device's name: `pci` or `device`.
    pub(super) fn bus(self) -> &'static str {
        match self {
            Board::Microvm => "device",
            Board::Q35 | Board::VirtArm64 | Board::VirtRiscv64 => "pci",
        }
    }

    /// Returns how many virtio devices fit; none if that is no concern.
    ///
    /// Source: QEMU `hw/i386/microvm.c`, two IOAPICs have lines for 24 transports; of PCI's 32 slots the machine takes some itself.
    pub(super) fn device_limit(self) -> usize {
        match self {
            Board::Microvm => 24,
            Board::Q35 | Board::VirtArm64 | Board::VirtRiscv64 => 28,
        }
    }

    /// Returns whether the power button reaches the guest.
    pub(super) fn has_power_button(self) -> bool {
        match self {
            Board::Q35 | Board::Microvm | Board::VirtArm64 => true,
            Board::VirtRiscv64 => false,
        }
    }

    /// Returns the properties of `-machine` that do not depend on the VM.
    pub(super) fn properties(self, accelerator: &str) -> Vec<(&'static str, &'static str)> {
        match self {
            // Without a keyboard controller the kernel does not wait for one that has no keyboard: 0.2 s of a boot under TCG.
            Board::Q35 => vec![("i8042", "off"), ("vmport", "off"), ("usb", "off")],
            Board::Microvm => vec![("acpi", "on"), ("isa-serial", "on")],
            // The host's interrupt controller under KVM; else version 3, since 2 ends at 8 CPUs.
            Board::VirtArm64 if accelerator == "kvm" => vec![("gic-version", "host")],
            Board::VirtArm64 => vec![("gic-version", "3")],
            Board::VirtRiscv64 => vec![],
        }
    }

    /// Returns the words that go in front of a kernel's command line: the console, and what makes the boot shorter without making it
    /// blind. Each was measured on a cloud kernel under emulation.
    ///
    /// Errors and warnings still reach the serial console (`loglevel=5`); a panic prints and halts, so that it is seen, rather than
    /// rebooting in silence.
    pub(super) fn kernel_words(self) -> &'static [&'static str] {
        match self {
            Board::Q35 | Board::Microvm => &[
                "console=ttyS0",
                "loglevel=5",
                // The timer test counts ticks against time: it takes long, and under emulation on a busy host fails by chance.
                "no_timer_check",
                // The self-tests of ciphers take an eighth of the whole boot.
                "cryptomgr.notests",
                // There is one serial port; the kernel would look for four.
                "8250.nr_uarts=1",
                // Resets by a triple fault; the default asks the keyboard controller first, which is not there.
                "reboot=t",
            ],
            Board::VirtArm64 => &["console=ttyAMA0", "loglevel=5", "cryptomgr.notests"],
            Board::VirtRiscv64 => &["console=ttyS0", "loglevel=5", "cryptomgr.notests"],
        }
    }

    /// Returns the CPU model for a VM that names none.
    pub(super) fn cpu_model(self, accelerator: &str) -> &'static str {
        match (self, accelerator) {
            (_, "kvm" | "hvf") => "host",
            (Board::Q35 | Board::Microvm, _) => "max",
            // Pointer authentication is emulated step by step: a boot takes four times as long with it.
            (Board::VirtArm64, _) => "max,pauth=off",
            (Board::VirtRiscv64, _) => "rv64",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_machines_and_no_other() {
        for (machine, arch, board) in [
            ("q35", Arch::X86_64, Some(Board::Q35)),
            ("pc-q35-7.2", Arch::X86_64, Some(Board::Q35)),
            ("pc-q35-7.2,accel=kvm", Arch::X86_64, None),
            ("pc-q35-", Arch::X86_64, None),
            ("pc", Arch::X86_64, None),
            ("microvm", Arch::X86_64, Some(Board::Microvm)),
            ("virt-10.0", Arch::Arm64, Some(Board::VirtArm64)),
            ("virt", Arch::Riscv64, Some(Board::VirtRiscv64)),
            ("virt", Arch::X86_64, None),
        ] {
            assert_eq!(Board::of(machine, arch), board, "{machine}");
        }
    }
}
