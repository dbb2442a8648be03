//! A TAP interface: the kernel's own end of a wire. It needs root or CAP_NET_ADMIN.
//!
//! Source: Linux, `Documentation/networking/tuntap.rst` and `include/uapi/linux/if_tun.h`.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl, opcode};

use super::attachment::{Attachment, Framing};
use super::datagram::{receive_each, transmit_each};

/// Longest name of an interface, in bytes (`IFNAMSIZ` less its end).
const LONGEST_NAME: usize = 15;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;

/// An open TAP interface. It is gone when this is dropped, unless somebody made it persistent.
#[derive(Debug)]
pub struct TapPort {
    file: File,
}

impl TapPort {
    /// Opens the interface of this name, and makes it if it is not there. It must still be brought up.
    ///
    /// # Errors
    /// When the name is none for an interface, or the kernel refuses.
    pub fn open(name: &str) -> io::Result<Self> {
        if name.is_empty() || name.len() > LONGEST_NAME || name.contains(['/', '\0', '%']) {
            let message = format!(
                "{name:?} is no name of an interface: give 1 to {LONGEST_NAME} bytes without '/' and '%'"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open("/dev/net/tun")?;
        let mut request = InterfaceRequest {
            name: [0; LONGEST_NAME + 1],
            flags: IFF_TAP | IFF_NO_PI,
            rest: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: `SetInterface` is TUNSETIFF with the structure that the kernel reads and writes for it.
        #[allow(unsafe_code)]
        unsafe {
            ioctl(&file, SetInterface(request))?;
        }
        Ok(TapPort { file })
    }
}

/// `struct ifreq` as TUNSETIFF reads it: 40 bytes on 64-bit Linux.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; LONGEST_NAME + 1],
    flags: u16,
    rest: [u8; 22],
}

struct SetInterface(InterfaceRequest);

// SAFETY: the opcode is TUNSETIFF (`_IOW('T', 202, int)`), which reads and writes a `struct ifreq` at the pointer; ours is as long.
#[allow(unsafe_code)]
unsafe impl Ioctl for SetInterface {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::write::<i32>(b'T', 202)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

impl Attachment for TapPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn framing(&self) -> Framing {
        Framing::Whole
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let file = &mut self.file;
        receive_each(buffer, |room| file.read(room))
    }

    fn transmit(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let file = &mut self.file;
        transmit_each(parts, |frame| match file.write(frame) {
            Ok(_) => Ok(()),
            // An interface that is down takes nothing, one of a smaller MTU not this frame: lost, as on a wire.
            Err(error) if is_loss(&error) => Ok(()),
            Err(error) => Err(error),
        })
    }
}

fn is_loss(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let losses = [Errno::IO, Errno::INVAL, Errno::MSGSIZE];
    losses
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
