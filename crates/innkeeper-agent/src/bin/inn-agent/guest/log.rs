//! What the agent says: to standard error (the console, for an init), and to a bounded memory that the host can read.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

const KEPT: usize = 64 * 1024;
static MEMORY: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());

/// Says one line.
pub fn say(message: &str) {
    let line = format!("inn-agent: {message}\n");
    // A console that can't be written is no reason to stop serving.
    let _ = std::io::stderr().write_all(line.as_bytes());
    let mut memory = lock(&MEMORY);
    memory.extend(line.as_bytes());
    let excess = memory.len().saturating_sub(KEPT);
    memory.drain(..excess);
}

/// Gives what was said last.
pub fn kept() -> Vec<u8> {
    lock(&MEMORY).iter().copied().collect()
}

/// Locks, also after a thread panicked: the agent goes on, each structure here is whole between statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
