//! What the command line itself takes from the process's environment. What the library takes is read by `Host::builder`.
//!
//! No other file of this crate reads a variable.

use std::ffi::OsString;

/// Returns whether the user asked for no colours (<https://no-color.org>) or the terminal has none.
pub(crate) fn colours_are_unwanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    set("NO_COLOR") || std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Returns the kind of terminal, to be told to a guest; `xterm` where it is unknown.
pub(crate) fn terminal_kind() -> String {
    std::env::var("TERM")
        .ok()
        .filter(|term| !term.is_empty())
        .unwrap_or_else(|| "xterm".to_owned())
}

/// Returns the user's editor with its arguments as one text, and the variable it came from.
pub(crate) fn editor() -> (OsString, &'static str) {
    for name in ["VISUAL", "EDITOR"] {
        if let Some(value) = std::env::var_os(name).filter(|value| !value.is_empty()) {
            return (value, name);
        }
    }
    ("vi".into(), "the default")
}
