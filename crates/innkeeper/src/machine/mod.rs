//! What a VM may be asked when, and what word says where it is. Pure: three small tables, no IO, no time.
//!
//! ```text
//!            start                 launched           pause         paused
//!  stopped ───────► starting ─────────────► running ──────► pausing ──────► paused
//!     ▲  ▲             │                     │  ▲ ▲ ▲           resume        │ │
//!     │  │ gone        │ gone unasked   stop │  │ │ └──── resuming ◄──────────┘ │
//!     │  └─────────────┼──── stopping ◄──────┘  │ │          ▲ start            │ suspend (from running, too)
//!     │                ▼        └───────────────┘ │          │                  ▼
//!     └── (start) ── failed(reason)               │      suspended ◄── saved ── suspending
//!                                                 └── could not be saved ───────────┘
//! ```
//!
//! *Power* is what the hypervisor's events say ([`Power::next`]). *Operation* is what is being done to the bundle. *Readiness* is what the
//! agent, or what stands for it, says. [`word()`] makes the one word of them that users see, [`admit()`] says what may be asked now.

mod admit;
mod power;
mod word;

pub use admit::{Decision, Request, admit};
pub use power::{Power, PowerEvent};
pub use word::{Operation, Readiness, word};
