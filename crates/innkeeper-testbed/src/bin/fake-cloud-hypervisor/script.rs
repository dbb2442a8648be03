//! What the double is told to do wrong, and where it writes what its user does wrong.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Every word that a script may hold. An unknown one is a violation: a test whose oddity is misspelt would pass for the wrong reason.
const WORDS: &[&str] = &[
    "version",
    "agent",
    "create",
    "boot",
    "button",
    "landlock",
    "resize",
    "eject",
    "restore",
    "events",
    "virtiofsd",
    "calls",
    "snapshot",
];

/// The script and the file of violations beside the program.
#[derive(Debug, Clone)]
pub struct Script {
    directory: PathBuf,
}

impl Script {
    pub fn beside(program: &OsStr) -> Self {
        let directory = Path::new(program)
            .parent()
            .map(Path::to_owned)
            .unwrap_or_default();
        Script { directory }
    }

    /// Returns a path beside the program.
    pub fn at(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns what the script says of a thing, such as `fail` for `create=fail`.
    pub fn says(&self, thing: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.directory.join("script")).unwrap_or_default();
        let mut found = None;
        for word in text.split_ascii_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            if !WORDS.contains(&name) {
                self.violated(&format!("the script holds the unknown word {word}"));
            }
            if name == thing {
                found = Some(value.to_owned());
            }
        }
        found
    }

    pub fn is(&self, thing: &str, value: &str) -> bool {
        self.says(thing).as_deref() == Some(value)
    }

    /// Writes down what the user did wrong.
    pub fn violated(&self, what: &str) {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.directory.join("violations"));
        let written = file.and_then(|mut file| writeln!(file, "{}", what.replace('\n', " ")));
        if written.is_err() {
            // Who can't write it down must not go on as if nothing had happened.
            std::process::exit(70);
        }
    }
}
