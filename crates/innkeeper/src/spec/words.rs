//! The fixed words of a spec: one table per choice, from which they are read, written and described in the schema.

use super::{
    AccelChoice, Arch, DiskBus, DiskCache, DiskFormat, Firmware, Isolation, MemoryKind,
    NetworkKind, Protocol, WatchdogAction,
};

/// A choice of fixed words; the first word of a value is the one that is written.
pub(super) trait Words: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];

    fn word(self) -> &'static str {
        Self::WORDS
            .iter()
            .find(|(_, value)| *value == self)
            .map_or("", |(word, _)| word)
    }

    fn from_word(text: &str) -> Option<Self> {
        let (_, value) = Self::WORDS.iter().find(|(word, _)| *word == text)?;
        Some(*value)
    }
}

impl Words for Arch {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("x86_64", Arch::X86_64),
        ("arm64", Arch::Arm64),
        ("riscv64", Arch::Riscv64),
        ("amd64", Arch::X86_64),
        ("aarch64", Arch::Arm64),
    ];
}

impl Words for AccelChoice {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", AccelChoice::Auto),
        ("kvm", AccelChoice::Kvm),
        ("hvf", AccelChoice::Hvf),
        ("tcg", AccelChoice::Tcg),
    ];
}

impl Words for Firmware {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("direct", Firmware::Direct),
        ("uefi", Firmware::Uefi),
        ("bios", Firmware::Bios),
    ];
}

impl Words for DiskFormat {
    const WORDS: &'static [(&'static str, Self)] =
        &[("raw", DiskFormat::Raw), ("qcow2", DiskFormat::Qcow2)];
}

impl Words for NetworkKind {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("user", NetworkKind::User),
        ("network", NetworkKind::Network),
    ];
}

impl Words for Protocol {
    const WORDS: &'static [(&'static str, Self)] =
        &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
}

impl Words for MemoryKind {
    const WORDS: &'static [(&'static str, Self)] =
        &[("normal", MemoryKind::Normal), ("huge", MemoryKind::Huge)];
}

impl Words for WatchdogAction {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("reset", WatchdogAction::Reset),
        ("poweroff", WatchdogAction::Poweroff),
        ("pause", WatchdogAction::Pause),
        ("tell", WatchdogAction::Tell),
    ];
}

impl Words for Isolation {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("isolated", Isolation::Isolated),
        ("agent", Isolation::Agent),
        ("unrestricted", Isolation::Unrestricted),
    ];
}

impl Words for DiskBus {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("virtio", DiskBus::Virtio),
        ("nvme", DiskBus::Nvme),
        ("usb", DiskBus::Usb),
    ];
}

impl Words for DiskCache {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("writeback", DiskCache::Writeback),
        ("writethrough", DiskCache::Writethrough),
        ("none", DiskCache::None),
        ("unsafe", DiskCache::Unsafe),
    ];
}

impl std::fmt::Display for AccelChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}
