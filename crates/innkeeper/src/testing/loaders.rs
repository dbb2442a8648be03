//! What firmware boots, made by the tests themselves: a boot sector for BIOS and a program on a disk for UEFI, both for x86-64 and unsigned.
//!
//! ```text
//!  boot sector   prints "boot N" on COM1, writes N + 1 in its place on the disk, prints " kept", stands still
//!  UEFI program  prints PROGRAM_RUNS on COM1, stands still
//! ```
//!
//! Both wait for the transmitter (UART 16550, line status register, bit 5), so nothing that firmware prints besides is torn.

use std::io::{Cursor, Write};

/// What the program on a disk for UEFI prints.
pub const PROGRAM_RUNS: &str = "the program of the disk runs";

/// Bytes of a sector.
const SECTOR: usize = 512;

/// 16-bit code for address 0x7c00, entered with the drive's number in DL (BIOS Boot Specification 1.01, section 6.5.1); it writes itself
/// back by interrupt 13h, function 3.
const BOOT_CODE: [u8; 94] = [
    0xfc, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0xbe, 0x4f, 0x7c,
    0x88, 0xd3, 0xe8, 0x22, 0x00, 0x88, 0xda, 0xfe, 0x06, 0x54, 0x7c, 0xb8, 0x01, 0x03, 0xb9, 0x01,
    0x00, 0x30, 0xf6, 0xbb, 0x00, 0x7c, 0xcd, 0x13, 0x72, 0x0a, 0xbe, 0x56, 0x7c, 0x88, 0xd3, 0xe8,
    0x05, 0x00, 0x88, 0xda, 0xf4, 0xeb, 0xfd, 0xac, 0x84, 0xc0, 0x74, 0x12, 0x88, 0xc4, 0xba, 0xfd,
    0x03, 0xec, 0xa8, 0x20, 0x74, 0xf8, 0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xe9, 0xc3, 0x62,
    0x6f, 0x6f, 0x74, 0x20, 0x30, 0x00, 0x20, 0x6b, 0x65, 0x70, 0x74, 0x0d, 0x0a, 0x00,
];

/// 64-bit code that lies anywhere.
const PROGRAM_CODE: [u8; 67] = [
    0xfc, 0x48, 0x8d, 0x35, 0x1c, 0x00, 0x00, 0x00, 0xac, 0x84, 0xc0, 0x74, 0x14, 0x88, 0xc4, 0x66,
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xf7, 0x88, 0xe0, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xeb,
    0xe7, 0xf4, 0xeb, 0xfd, 0x74, 0x68, 0x65, 0x20, 0x70, 0x72, 0x6f, 0x67, 0x72, 0x61, 0x6d, 0x20,
    0x6f, 0x66, 0x20, 0x74, 0x68, 0x65, 0x20, 0x64, 0x69, 0x73, 0x6b, 0x20, 0x72, 0x75, 0x6e, 0x73,
    0x0d, 0x0a, 0x00,
];

/// What a disk with the boot sector prints when it was booted `times` times before, once it has counted this boot; up to nine times.
pub fn boot_told(times: u8) -> String {
    format!("boot {times} kept")
}

/// Returns a raw disk of 1 MiB that begins with the boot sector.
pub fn bios_disk() -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..BOOT_CODE.len()].copy_from_slice(&BOOT_CODE);
    disk[SECTOR - 2..SECTOR].copy_from_slice(&[0x55, 0xaa]);
    disk
}

/// Returns a raw disk with one FAT volume that holds the program where firmware looks for one on any medium.
///
/// Source: UEFI 2.10, section 3.5.1.1 (the path) and 13.3.3 (a volume without partitions).
pub fn uefi_disk() -> std::io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0; 8 << 20]);
    fatfs::format_volume(&mut disk, fatfs::FormatVolumeOptions::new())?;
    {
        let options = fatfs::FsOptions::new().update_accessed_date(false);
        let volume = fatfs::FileSystem::new(&mut disk, options)?;
        let directory = volume.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
        let mut file = directory.create_file("BOOTX64.EFI")?;
        file.write_all(&uefi_program())?;
        file.flush()?;
    }
    Ok(disk.into_inner())
}

/// Returns the program as a PE32+ image with one section (Microsoft, "PE Format").
fn uefi_program() -> Vec<u8> {
    const PAGE: u32 = 0x1000;
    const HEADERS: u32 = SECTOR as u32;
    const FILE_ALIGNMENT: u32 = SECTOR as u32;
    const DIRECTORIES: u32 = 16;
    let mut file = b"MZ".to_vec();
    file.resize(0x3c, 0);
    // Where the PE signature lies.
    file.extend(0x40u32.to_le_bytes());
    file.extend(b"PE\0\0");
    // COFF header: x86-64, one section, no time, no symbols, size of what follows, executable for large addresses.
    for half in [
        0x8664u16,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        112 + 8 * DIRECTORIES as u16,
        0x22,
    ] {
        file.extend(half.to_le_bytes());
    }
    // PE32+, linker's version; size of code and data, entry, begin of the code.
    file.extend(0x20bu16.to_le_bytes());
    file.extend([0, 0]);
    for word in [FILE_ALIGNMENT, 0, 0, PAGE, PAGE] {
        file.extend(word.to_le_bytes());
    }
    // Address, which firmware may change: nothing in the code depends on it.
    file.extend(0x40_0000u64.to_le_bytes());
    for word in [PAGE, FILE_ALIGNMENT, 0, 0, 0, 0, 2 * PAGE, HEADERS, 0] {
        file.extend(word.to_le_bytes());
    }
    // Subsystem: EFI application; compatible with pages that can't be both written and run.
    for half in [10u16, 0x100] {
        file.extend(half.to_le_bytes());
    }
    // Stack and heap, which UEFI gives as it pleases.
    file.extend([0; 32]);
    for word in [0, DIRECTORIES] {
        file.extend(word.to_le_bytes());
    }
    file.resize(file.len() + 8 * DIRECTORIES as usize, 0);
    // The section: what is read of it, where, and that it is code.
    file.extend(b".text\0\0\0");
    for word in [
        PROGRAM_CODE.len() as u32,
        PAGE,
        FILE_ALIGNMENT,
        HEADERS,
        0,
        0,
        0,
        0x6000_0020,
    ] {
        file.extend(word.to_le_bytes());
    }
    file.resize(SECTOR, 0);
    file.extend(PROGRAM_CODE);
    file.resize(2 * SECTOR, 0);
    file
}
