//! Images, layers, disks and seeds for virtual machines.
//!
//! ```text
//!   Reference ──► Store ──► Image ──► layers (immutable files, leased by their users)
//!   debian:12      │ builds (tiny, debian), downloads (catalogue), imports
//!                  ▼
//!           disk::create_top ──► a VM's own thin disk        Seed ──► the volume cloud-init reads
//! ```
//! This crate knows no VM: owners of leases are names, disks are files. It never prints, and reads no environment but `PATH`
//! (to find the programs it runs). Everything that comes from a package, a vendor or a user is taken as hostile: sizes are bounded, names
//! never become paths, formats are never guessed from content.

mod apt;
mod atomic;
pub mod bundle;
mod catalogue;
mod collect;
pub mod contents;
mod cpio;
mod deb;
mod debian;
mod digest;
pub mod disk;
mod download;
mod error;
mod ext4;
pub mod foreign;
mod frames;
mod frozen;
mod image;
mod import;
mod kernel;
mod layer;
mod modules;
mod oci;
pub mod package;
mod progress;
mod qcow2;
mod reference;
mod root_disk;
mod seed;
mod sparse;
pub mod ssh;
mod store;
mod tiny;
mod tool;
pub mod upkeep;
mod user_data;
mod vmdk;
mod yaml;

pub use atomic::WorkDirectory;
pub use catalogue::{Catalogue, Entry};
pub use collect::{Collected, Run};
pub use disk::DiskFormat;
pub use error::{Error, ErrorKind, Result};
pub use ext4::make_ext4;
pub use foreign::{ForeignDisk, ForeignFormat};
pub use frozen::FrozenId;
pub use image::{DirectBoot, INDEX_VERSION, Image, ImageKind, OciSource, RootDisk};
pub use layer::LayerId;
pub use oci::{OciName, Workload};
pub use package::Package;
pub use progress::{Event, Progress, Silent, Step};
pub use reference::{Arch, Reference, nearest};
pub use seed::{AGENT_PATH, AGENT_UNIT, Seed, SeedAgent, SeedFile, SeedInterface, SeedMount};
pub use store::{BuildInputs, Store};

/// Parsers of hostile input, for fuzzing and measuring: none of them may panic on any bytes.
pub mod parse {
    pub use crate::apt::{Source, parse_one_line, parse_sources};
    pub use crate::catalogue::find_checksum;
    pub use crate::deb::{Stanza, dependencies, parse_deb822, read_archive};
    pub use crate::foreign::check_bytes as check_foreign_disk;
    pub use crate::kernel::{decompress, extract_vmlinux, raw_image};
    pub use crate::modules::depends_of;
    pub use crate::oci::{make_disk, try_documents, try_layer};
    pub use crate::package::list_bytes as list_archive;
    pub use crate::qcow2::{Header, check_foreign_header};
    pub use crate::vmdk::{is_plain_name, read as read_vmdk};
}

/// Whether this host builds Debian images from packages.
pub use debian::host_is_debian as can_build_debian;
