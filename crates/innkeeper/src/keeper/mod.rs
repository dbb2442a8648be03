//! The keeper: the process beside one running VM.
//!
//! It starts the hypervisor, owns its control connection and the agent's, is the only writer of that VM's run state, and answers on a
//! unix socket. It holds the VM's lock for its whole life, so that there is never a second one, and nobody else changes the VM meanwhile.
//!
//! ```text
//!   engine ──spawn──► keeper: lock ─► run/ there? ──no──► idle ──start──► launch ─┐
//!      ▲                                   │yes                                   ▼
//!      │  one line when it listens         ├─ hypervisor lives ─► adopt ───► watch events ─► gone ─► record, tidy, exit
//!      └───────────────────────────────────└─ it is gone ─► record how, tidy ─► idle
//! ```
//!
//! If the keeper is killed the hypervisor runs on; the next command that needs it starts a keeper that adopts it. SIGTERM ends a
//! keeper without touching its VM, and stops one that would end with its keeper. An idle keeper, which nobody asks to start anything, ends by itself.

mod actor;
mod agent;
mod client;
mod live;
mod log_files;
mod process;
mod readiness;
mod server;
mod shares;
mod stats;
mod unreachable;
mod vsock;

pub(crate) use actor::{Door, SpecRequest};
pub(crate) use client::KeeperClient;
pub(crate) use live::{Live, SshKey, describe};
pub(crate) use log_files::tail;
pub(crate) use process::tell;
pub use process::{READY, run};
pub(crate) use server::{Refusal, parse};
