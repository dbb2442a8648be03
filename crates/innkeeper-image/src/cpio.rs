//! Writes initramfs archives: cpio in the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! All entries belong to root and have time 0, so the same content is the same archive. Device nodes are entries in the archive,
//! hence no privilege is needed. Directories must be added before what is in them.

use std::io::{self, Write};

/// What an entry is.
pub(crate) enum Node<'a> {
    /// A directory.
    Directory,
    /// A regular file with its content.
    File(&'a [u8]),
    /// A symbolic link with its target.
    Symlink(&'a str),
    /// A character device with major and minor number.
    CharacterDevice(u32, u32),
}

/// An archive that is being written.
pub(crate) struct Archive<W> {
    output: W,
    inode: u32,
    position: u64,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(output: W) -> Archive<W> {
        Archive {
            output,
            inode: 0,
            position: 0,
        }
    }

    /// Adds one entry; `path` has no leading slash, `mode` is the permission bits.
    pub(crate) fn add(&mut self, path: &str, mode: u32, node: &Node<'_>) -> io::Result<()> {
        let (kind, content, links, device): (u32, &[u8], u32, (u32, u32)) = match node {
            Node::Directory => (0o040_000, b"", 2, (0, 0)),
            Node::File(bytes) => (0o100_000, bytes, 1, (0, 0)),
            Node::Symlink(target) => (0o120_000, target.as_bytes(), 1, (0, 0)),
            Node::CharacterDevice(major, minor) => (0o020_000, b"", 1, (*major, *minor)),
        };
        self.inode += 1;
        self.entry(path, self.inode, kind | mode, links, content, device)
    }

    /// Writes the trailer and gives the output back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, 0, 1, b"", (0, 0))?;
        // The kernel wants nothing, but whole blocks of 512 keep concatenation with further archives aligned.
        let padding = (512 - self.position % 512) % 512;
        self.put(&[0; 512][..padding as usize])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(
        &mut self,
        path: &str,
        inode: u32,
        mode: u32,
        links: u32,
        content: &[u8],
        device: (u32, u32),
    ) -> io::Result<()> {
        let length = u32::try_from(content.len()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "over 4 GiB in a cpio entry")
        })?;
        let name_length = path.len() as u32 + 1;
        let header = format!(
            "070701{inode:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{length:08x}{:08x}{:08x}{:08x}{:08x}{name_length:08x}{:08x}",
            0, 0, 0, 0, 0, device.0, device.1, 0
        );
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.align()?;
        self.put(content)?;
        self.align()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        let padding = (4 - self.position % 4) % 4;
        self.put(&[0; 4][..padding as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_alignment() {
        let mut archive = Archive::new(Vec::new());
        archive.add("init", 0o755, &Node::File(b"hello")).unwrap();
        archive
            .add("dev/console", 0o600, &Node::CharacterDevice(5, 1))
            .unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000081ed");
        assert_eq!(&bytes[110..115], b"init\0");
        // 110 + 5 is 115, aligned to 116; five bytes of content, aligned to 124.
        assert_eq!(&bytes[116..121], b"hello");
        assert_eq!(&bytes[124..130], b"070701");
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }
}
