//! A safe wrapper over Apple's Virtualization.framework (VZ): thin, and without a mind of its own.
//!
//! ```text
//!   any thread                          the VM's serial dispatch queue
//!   VirtualMachine (Send) ── closure ──► Configuration ─► VZVirtualMachine
//!        ▲    ▲                           delegate, observer of `state` ── kept alive here; VZ holds them weakly
//!        │    └── future ◄── completion handler ◄──┘
//!        └─────── events ◄── delegate, observer
//! ```
//!
//! VZ's objects may be touched only on the queue that their machine was made with, so all of them live there: what makes a
//! `Configuration` is a closure that runs on the queue, and a `VirtualMachine` holds nothing but a way to send closures to it. That
//! is the invariant of every `unsafe` here that is not said apart, and the types uphold it: no wrapper of an object is `Send`.
//!
//! What came after macOS 11 is asked for at run time and is an error where it is missing (`VzError::unavailable`): the bindings know
//! nothing of versions. Exceptions of Objective-C are not caught: VZ raises one only for what a caller must not do, such as a
//! file handle that is no datagram socket, and then the process ends.
//!
//! Off macOS the crate is empty. It decides nothing (that is `innkeeper::drivers::vz`), and knows no file formats and no guests.

#![cfg(target_os = "macos")]
// The invariants are told at each module and at each block that needs another one.
#![allow(unsafe_code)]

mod boot;
mod configuration;
mod devices;
mod error;
mod events;
pub mod host;
mod machine;
pub mod main_loop;
mod network;
mod queue;
mod socket;
mod storage;
mod vmnet;

pub use boot::{BootLoader, MachineIdentifier, Platform};
pub use configuration::Configuration;
pub use devices::{
    Console, ConsolePort, DirectoryShare, Display, Graphics, Keyboard, Pointer, RosettaCaching,
    SerialAttachment, SharedDirectory, SoundStream,
};
pub use error::{VzError, VzErrorKind};
pub use events::{Event, State};
pub use machine::VirtualMachine;
pub use network::NetworkAttachment;
pub use storage::{
    Caching, ImageSynchronization, StorageAttachment, StorageDevice, Synchronization,
};
pub use vmnet::{VmnetMode, VmnetNetwork};
