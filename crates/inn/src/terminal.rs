//! The user's terminal while a command in a guest has it: raw mode, which is undone on every way out, and its size.
//!
//! Nothing is done about SIGKILL, which nobody can do anything about.

use std::io;
use std::sync::{Mutex, MutexGuard, Once};

use innkeeper::Error;
use innkeeper::api::ErrorKind;
use innkeeper::guest::message::Terminal;
use rustix::termios::{self, OptionalActions, Termios};

use crate::environment;
use crate::failure::Result;

/// How the terminal was before raw mode; none while it is not raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps standard input's terminal raw: what is typed goes to the guest, Ctrl-C too. Dropping it undoes that.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Makes the terminal raw.
    pub(crate) fn enter() -> Result<Self> {
        let failed = |source: rustix::io::Errno| {
            Error::io("making the terminal raw", io::Error::from(source))
        };
        let before = termios::tcgetattr(rustix::stdio::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        restore_on_panic();
        *before_lock() = Some(before);
        let guard = RawMode(());
        termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn before_lock() -> MutexGuard<'static, Option<Termios>> {
    BEFORE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn restore() {
    if let Some(before) = before_lock().take() {
        // There is nobody to tell: the terminal itself is what is broken.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &before);
    }
}

/// A panic aborts in release builds, so no `drop` runs: the hook restores before the message is written.
fn restore_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
    });
}

/// Returns the terminal on standard input, to be given to a command in a guest.
///
/// Errors: `BadInput` if standard input is no terminal.
pub(crate) fn on_standard_input() -> Result<Terminal> {
    if !termios::isatty(rustix::stdio::stdin()) {
        let message = "-t needs a terminal, and standard input is not one";
        return Err(Error::new(ErrorKind::BadInput, message)
            .with_hint("leave -t out; -i alone passes standard input on")
            .into());
    }
    let (rows, columns) = size();
    Ok(Terminal {
        rows,
        columns,
        term: environment::terminal_kind(),
    })
}

/// Returns rows and columns of the terminal on standard input; those of a VT100 where they are unknown.
pub(crate) fn size() -> (u16, u16) {
    match termios::tcgetwinsize(rustix::stdio::stdin()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}
