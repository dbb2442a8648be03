//! The truth on disk: where each file is, who holds it, and how it is changed.
//!
//! Every write is whole: a new file beside the old one, synced, renamed over it. A VM is made under a hidden name and renamed when it is
//! whole, and renamed to a hidden name before it is taken apart, so that after a crash at any moment a VM either is or is not.
//! `docs/vm-directory.md` lists the files.

mod bundle;
mod event_log;
mod files;
mod identity;
mod lock;
mod root;
mod saved;
mod snapshots;

pub use bundle::{Bundle, RecordedPower, Run};
pub use event_log::EventLog;
pub use files::{read_json, write_json};
pub use identity::{ClonedFrom, Identity, IdentityDisk, PinnedBoot, PinnedImage};
pub use lock::{FileLock, is_locked};
pub use root::{HalfMade, Root, random_id};
pub use saved::{Saved, SavedDisk};
