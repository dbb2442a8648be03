//! The hypervisors that Innkeeper knows, one module each. None of them imports the engine or the store.

pub mod qemu;
