//! A guest of a hundred bytes for Cloud Hypervisor, that a test writes itself: no kernel, no toolchain.
//!
//! ```text
//!  prints MARKER on COM1, then does what the last letter of its command line says:
//!    p powers off       r resets, again and again     s counts for a while, then powers off
//!    h prints a dot again and again                   anything else: stands still
//! ```
//!
//! It is entered by PVH (Xen `elfnote.h`, type 18, `XEN_ELFNOTE_PHYS32_ENTRY`; Xen `start_info.h`, `cmdline_paddr` at 24). Port 0x600 is
//! Cloud Hypervisor's ACPI shutdown device (`devices/src/acpi.rs`): 0x34 powers off, 1 resets.

/// What it prints.
pub const MARKER: &str = "MARKER";

/// 32-bit code for address 1 MiB.
const CODE: [u8; 119] = [
    0xfa, 0xbc, 0x00, 0x20, 0x10, 0x00, 0x8b, 0x7b, 0x18, 0xb3, 0x00, 0x85, 0xff, 0x74, 0x0b, 0x8a,
    0x07, 0x84, 0xc0, 0x74, 0x05, 0x88, 0xc3, 0x47, 0xeb, 0xf5, 0xbe, 0x6e, 0x00, 0x10, 0x00, 0xac,
    0x84, 0xc0, 0x74, 0x07, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf4, 0x66, 0xba, 0x00, 0x06, 0xb0,
    0x34, 0x80, 0xfb, 0x70, 0x74, 0x14, 0xb0, 0x01, 0x80, 0xfb, 0x72, 0x74, 0x0d, 0x80, 0xfb, 0x68,
    0x74, 0x0b, 0x80, 0xfb, 0x73, 0x74, 0x17, 0xf4, 0xeb, 0xfd, 0xee, 0xeb, 0xfa, 0xb9, 0x00, 0x00,
    0x04, 0x00, 0x49, 0x75, 0xfd, 0x66, 0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee, 0xeb, 0xef, 0xb9, 0x00,
    0x00, 0x00, 0x04, 0x49, 0x75, 0xfd, 0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xeb, 0xdc, 0x4d, 0x41,
    0x52, 0x4b, 0x45, 0x52, 0x0d, 0x0a, 0x00,
];

/// Returns the guest as an ELF file of 64 bits; Cloud Hypervisor takes none of 32.
pub fn kernel() -> Vec<u8> {
    const ENTRY: u32 = 0x10_0000;
    const HEADERS: u64 = 64 + 2 * 56;
    const CODE_AT: u64 = 0x1000;
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(ENTRY.to_le_bytes());
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [u64::from(ENTRY), 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let entry = u64::from(ENTRY);
    let (code, notes) = (CODE.len() as u64, note.len() as u64);
    for (kind, flags, offset, address, length, align) in [
        (1u32, 5u32, CODE_AT, entry, code, 0x1000u64),
        (4, 4, HEADERS, 0, notes, 4),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for word in [offset, address, address, length, length, align] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(note);
    // The code begins at a page.
    file.resize(0x1000, 0);
    file.extend(CODE);
    file
}
