//! Takes a Linux kernel apart: from the x86 bzImage to the uncompressed ELF, and from a compressed arm64 image to the raw one.
//!
//! An uncompressed kernel starts faster under emulation, and the ELF with its PVH note is what `-kernel` of QEMU and
//! Cloud Hypervisor enter without real mode. The boot header is described in the kernel's
//! Documentation/arch/x86/boot.rst (offsets 0x1f1, 0x202, 0x206, 0x248, 0x24c). Decompression is pure Rust and bounded.

use std::io::{self, Read, Write};

use crate::{Error, Result};

/// Largest kernel after decompression.
const KERNEL_LIMIT: usize = 512 << 20;
const ELF_MAGIC: &[u8] = b"\x7fELF";

/// Takes the uncompressed ELF out of an x86 bzImage; bytes that are an ELF already come back as they are.
///
/// Fails with [`Error::Malformed`] when there is no boot header, the payload is outside of the file, its compression is not known, or
/// it does not hold an ELF.
pub fn extract_vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    if image.starts_with(ELF_MAGIC) {
        return Ok(image.to_vec());
    }
    let malformed = |problem: &str| Error::malformed("bzImage", problem);
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(malformed("has no boot header"));
    }
    let version = image
        .get(0x206..0x208)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_le_bytes)
        .ok_or_else(|| malformed("is cut off"))?;
    if version < 0x0208 {
        return Err(malformed(
            "has a boot protocol before 2.08, which does not tell where the payload is",
        ));
    }
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let word = |at: usize| {
        image
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok())
            .map(|bytes| u32::from_le_bytes(bytes) as usize)
            .ok_or_else(|| malformed("is cut off"))
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let length = word(0x24c)?;
    let payload = start
        .checked_add(length)
        .and_then(|end| image.get(start..end))
        .ok_or_else(|| malformed("has its payload outside of the file"))?;
    let kernel = decompress(payload)?;
    if !kernel.starts_with(ELF_MAGIC) {
        return Err(malformed("has a payload that is no ELF"));
    }
    Ok(kernel)
}

/// Gives the raw arm64 or riscv64 `Image`, decompressing it where it came compressed.
pub fn raw_image(image: &[u8]) -> Result<Vec<u8>> {
    let raw = if image.starts_with(&[0x1f, 0x8b]) {
        decompress(image)?
    } else {
        image.to_vec()
    };
    // Documentation/arch/arm64/booting.rst: magic "ARM\x64" at 56; riscv: "RSC\x05" at the same place.
    match raw.get(56..60) {
        Some(b"ARM\x64" | b"RSC\x05") => Ok(raw),
        _ => Err(Error::malformed(
            "kernel image",
            "has neither the arm64 nor the riscv64 magic",
        )),
    }
}

/// Decompresses what begins with the magic of LZ4 (legacy), gzip, XZ or Zstandard; at most 512 MiB come out.
pub fn decompress(payload: &[u8]) -> Result<Vec<u8>> {
    let malformed = |problem: String| Error::malformed("compressed data", problem);
    match payload {
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => lz4_legacy(rest),
        [0x1f, 0x8b, ..] => bounded(flate2::read::GzDecoder::new(payload)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(payload)
                .map_err(|source| malformed(source.to_string()))?;
            bounded(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let mut output = Bounded(Vec::new());
            // The kernel's build appends the size (4 bytes) after the stream; the decoder stops with an error there, after all is out.
            let mut input = payload;
            match lzma_rs::xz_decompress(&mut input, &mut output) {
                Ok(()) => Ok(output.0),
                Err(_) if payload.len() > 4 => {
                    let mut output = Bounded(Vec::new());
                    lzma_rs::xz_decompress(&mut &payload[..payload.len() - 4], &mut output)
                        .map_err(|source| malformed(source.to_string()))?;
                    Ok(output.0)
                }
                Err(source) => Err(malformed(source.to_string())),
            }
        }
        _ => Err(malformed("is not LZ4, gzip, XZ or Zstandard".to_owned())),
    }
}

/// Blocks of the legacy frame, each up to 8 MiB; the kernel's build appends the size of all (4 bytes), which ends the loop.
fn lz4_legacy(mut input: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut output = Vec::new();
    let mut block = vec![0; BLOCK];
    while let Some((head, rest)) = input.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*head) as usize;
        if length == 0 || length > rest.len() {
            break;
        }
        let (compressed, rest) = rest.split_at(length);
        let count = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|source| Error::malformed("LZ4 block", source.to_string()))?;
        if output.len() + count > KERNEL_LIMIT {
            return Err(Error::malformed(
                "LZ4 data",
                "is over 512 MiB when decompressed",
            ));
        }
        output.extend_from_slice(&block[..count]);
        input = rest;
    }
    if output.is_empty() {
        return Err(Error::malformed("LZ4 data", "holds no block"));
    }
    Ok(output)
}

fn bounded(reader: impl Read) -> Result<Vec<u8>> {
    let mut output = Vec::new();
    let failed = |source: io::Error| Error::malformed("compressed data", source.to_string());
    reader
        .take(KERNEL_LIMIT as u64 + 1)
        .read_to_end(&mut output)
        .map_err(failed)?;
    if output.len() > KERNEL_LIMIT {
        return Err(Error::malformed(
            "compressed data",
            "is over 512 MiB when decompressed",
        ));
    }
    Ok(output)
}

/// A buffer that refuses to grow over the limit.
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > KERNEL_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "over 512 MiB when decompressed",
            ));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A bzImage with nothing but what the boot header says.
    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn elf() -> Vec<u8> {
        ELF_MAGIC
            .iter()
            .copied()
            .chain((0..10_000_u32).flat_map(u32::to_le_bytes))
            .collect()
    }

    #[test]
    fn lz4_and_gzip_payloads() {
        let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
        let block = lz4_flex::block::compress(&elf());
        lz4.extend_from_slice(&(block.len() as u32).to_le_bytes());
        lz4.extend_from_slice(&block);
        lz4.extend_from_slice(&(elf().len() as u32).to_le_bytes());
        assert_eq!(extract_vmlinux(&bz_image(&lz4)).unwrap(), elf());

        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf()).unwrap();
        let mut gzip = gzip.finish().unwrap();
        gzip.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(extract_vmlinux(&bz_image(&gzip)).unwrap(), elf());
    }

    #[test]
    fn xz_with_the_size_appended() {
        let mut xz = Vec::new();
        lzma_rs::xz_compress(&mut elf().as_slice(), &mut xz).unwrap();
        xz.extend_from_slice(&[1, 2, 3, 4]);
        assert_eq!(extract_vmlinux(&bz_image(&xz)).unwrap(), elf());
    }

    #[test]
    fn hostile_headers_are_refused() {
        assert!(extract_vmlinux(b"").is_err());
        let mut far = bz_image(b"");
        far[0x248..0x24c].copy_from_slice(&u32::MAX.to_le_bytes());
        far[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(
            extract_vmlinux(&far)
                .unwrap_err()
                .to_string()
                .contains("outside")
        );
        assert!(extract_vmlinux(&bz_image(b"what is this")).is_err());
        assert!(raw_image(b"short").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_payloads_never_panic(magic in 0..5_usize, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let magic: &[u8] = [&b""[..], &[2, 0x21, 0x4c, 0x18], &[0x1f, 0x8b, 8, 0], &[0x28, 0xb5, 0x2f, 0xfd], b"\xfd7zXZ\0"][magic];
            let _ = extract_vmlinux(&bz_image(&[magic, &bytes].concat()));
            let _ = extract_vmlinux(&bytes);
        }
    }
}
