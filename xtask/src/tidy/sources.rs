//! Laws of Rust files, as one table of patterns over places.
//!
//! Code is looked at without comments and, where strings do not matter, without strings. What stands from
//! `#[cfg(test)] mod` on, or under a `tests` directory, is test code. A wait in test code must say what it polls for,
//! by a comment `poll: CONDITION` on its line or within three lines above, since a sleep for luck is a flake to come.

use std::sync::LazyLock;

use regex::Regex;

use super::lexer::lex;
use super::{SourceFile, Violation};

/// Names that say nothing about what is inside.
const BANNED_NAMES: &[&str] = &[
    "utils", "util", "common", "helpers", "helper", "misc", "stuff",
];
/// Longer files hold a second idea.
const MOST_LINES: usize = 900;

/// In which text of a file a pattern is sought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seek {
    /// Code without strings, tests included.
    Code,
    /// Code without strings, without tests.
    ProductCode,
    /// Code with strings, tests included.
    Strings,
}

struct Law {
    applies: fn(&str) -> bool,
    seek: Seek,
    pattern: &'static str,
    rule: &'static str,
}

const LIBRARY: &str = "crates/innkeeper/src/";
/// Where a driver may be named inside the library: the drivers, who composes them, what a user can write, and tests.
const NAMES_DRIVERS: &[&str] = &[
    "drivers/",
    "drivers.rs",
    "host.rs",
    "host/",
    "spec/",
    "spec.rs",
    "testing/",
    "testing.rs",
    "lib.rs",
];
/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &[
    "crates/innkeeper-vz/",
    "crates/innkeeper-agent/",
    "crates/innkeeper-net/src/io",
];

/// Where the wall clock may be read: what is told to people or stamped on files, and a nonce. Deadlines and durations never.
const WALL_CLOCK: &[&str] = &[
    "crates/innkeeper/src/clock.rs",
    "crates/innkeeper/src/store/event_log.rs",
    "crates/innkeeper/src/guest/connection.rs",
    "crates/innkeeper/src/keeper/agent.rs",
    "crates/innkeeper/src/testing/conformance/pausing.rs",
    "crates/innkeeper-image/src/layer.rs",
    "crates/innkeeper-image/src/store.rs",
];

const LAWS: &[Law] = &[
    Law {
        // It steps when somebody sets it; a limit that it measured would end at once, or never.
        applies: |path| path.starts_with("crates/") && !WALL_CLOCK.contains(&path),
        seek: Seek::ProductCode,
        pattern: r"\b(SystemTime|Utc|Local)::now\b",
        rule: "reads the wall clock; measure by Instant, or add the file to WALL_CLOCK if people are told the time",
    },
    Law {
        applies: |path| {
            path.strip_prefix(LIBRARY)
                .is_some_and(|rest| !starts_with_any(rest, NAMES_DRIVERS))
        },
        seek: Seek::ProductCode,
        pattern: r"(?i)\bqemu|_qemu\b|cloud_?hypervisor|\bvz\b|\bdrivers::",
        rule: "names a driver; only drivers/ and host.rs know which there are",
    },
    Law {
        applies: |path| path.starts_with("crates/innkeeper/src/drivers"),
        seek: Seek::ProductCode,
        pattern: r"\b(crate|super)::(engine|store)\b|\buse crate::\{[^;]*\b(engine|store)\b",
        rule: "a driver must import neither engine nor store",
    },
    Law {
        // A keeper's standard output is the pipe on which it tells its starter that it is up.
        applies: |path| {
            path.starts_with(LIBRARY) && path != "crates/innkeeper/src/keeper/process.rs"
        },
        seek: Seek::ProductCode,
        pattern: r"\be?print(ln)?!|(\bio::|[^.\w])std(out|err)\(\)",
        rule: "the library never prints",
    },
    Law {
        applies: |path| {
            path.strip_prefix(LIBRARY)
                .is_some_and(|rest| !starts_with_any(rest, &["host.rs", "host/", "testing"]))
        },
        seek: Seek::ProductCode,
        pattern: r"\benv::(var|vars|var_os|home_dir|temp_dir|current_dir)\b",
        rule: "the library reads no environment outside Host::builder",
    },
    Law {
        applies: |path| {
            path.starts_with("crates/innkeeper-net/src/")
                && !path.starts_with("crates/innkeeper-net/src/io")
        },
        seek: Seek::ProductCode,
        pattern: r"\b(Instant|SystemTime)::now\b|\b(Tcp|Udp|Unix)(Stream|Listener|Socket|Datagram)\b|\btokio::",
        rule: "the network's core does no IO and gets the time passed in; sockets live in io/",
    },
    Law {
        applies: |path| !starts_with_any(path, UNSAFE),
        seek: Seek::Code,
        pattern: r"\bunsafe\b|allow\(unsafe_code\)",
        rule: "unsafe is for innkeeper-vz, innkeeper-agent and innkeeper-net::io; elsewhere rustix",
    },
    Law {
        applies: |path| !path.starts_with("xtask/"),
        seek: Seek::Code,
        pattern: r"\banyhow::",
        rule: "anyhow is for xtask only",
    },
    Law {
        applies: |_| true,
        seek: Seek::Code,
        pattern: r"\b(todo|unimplemented|dbg)!",
        rule: "no stubs and no debugging leftovers",
    },
    Law {
        applies: |_| true,
        seek: Seek::Code,
        pattern: r"#\[\s*ignore\b|,\s*ignore\s*(=|\)\])",
        rule: "no ignored tests: fix or remove it",
    },
    Law {
        applies: |path| path != "xtask/src/tidy/sources.rs",
        seek: Seek::Strings,
        pattern: r#"\b(ba|da|z)?sh -c\b|Command::new\(\s*"(/usr)?(/bin/)?(ba|da|z)?sh""#,
        rule: "no shell strings: an argv array, or write it in Rust",
    },
];

fn starts_with_any(path: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| path.starts_with(prefix))
}

static PATTERNS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    LAWS.iter()
        .map(|law| Regex::new(law.pattern).expect("a pattern"))
        .collect()
});
static TESTS_BEGIN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"#\[cfg\((all\()?test\b[^\]]*\]\s*(#\[[^\]]*\]\s*)*(pub(\([a-z]+\))? )?mod \w+ \{")
        .expect("a pattern")
});
static SLEEP: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\bsleep(_until)?\(").expect("a pattern"));

/// Checks one Rust file.
pub(crate) fn check(file: &SourceFile) -> Vec<Violation> {
    let lexed = lex(&file.text);
    let broken = |line: usize, rule: &str| Violation {
        place: format!("{}:{line}", file.path),
        rule: rule.to_owned(),
    };
    let mut violations = Vec::new();
    if !file.text.starts_with("//!") {
        violations.push(broken(
            1,
            "must open with `//!`: what it does, what it deliberately does not",
        ));
    }
    let lines = file.text.lines().count();
    if lines > MOST_LINES {
        violations.push(broken(lines, "is too long: look for the second idea in it"));
    }
    if file
        .path
        .split('/')
        .any(|part| BANNED_NAMES.contains(&part.trim_end_matches(".rs")))
    {
        violations.push(broken(
            1,
            "has a name that says nothing: call it after what it does",
        ));
    }
    let whole_is_test = file
        .path
        .split('/')
        .any(|part| part == "tests" || part == "tests.rs");
    let tests_begin = if whole_is_test {
        0
    } else {
        TESTS_BEGIN
            .find(&lexed.code)
            .map_or(lexed.code.len(), |found| found.start())
    };
    for (law, pattern) in LAWS
        .iter()
        .zip(PATTERNS.iter())
        .filter(|(law, _)| (law.applies)(&file.path))
    {
        let text = match law.seek {
            Seek::Code => &lexed.code[..],
            Seek::ProductCode => &lexed.code[..tests_begin],
            Seek::Strings => &lexed.with_strings[..],
        };
        for found in pattern.find_iter(text) {
            violations.push(broken(line_of(text, found.start()), law.rule));
        }
    }
    let original: Vec<&str> = file.text.lines().collect();
    for found in SLEEP.find_iter(&lexed.code[tests_begin..]) {
        let line = line_of(&lexed.code, tests_begin + found.start());
        let near = &original[line.saturating_sub(4)..line.min(original.len())];
        if !near.iter().any(|line| line.contains("poll: ")) {
            violations.push(broken(
                line,
                "sleeps in a test; wait for a condition, and name it by `// poll: CONDITION`",
            ));
        }
    }
    violations
}

fn line_of(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, code: &str) -> Vec<String> {
        let file = SourceFile {
            path: path.to_owned(),
            text: format!("//! Doc.\n{code}\n"),
        };
        check(&file)
            .into_iter()
            .map(|violation| violation.rule)
            .collect()
    }

    #[test]
    fn each_law_can_fail() {
        for (path, code) in [
            (
                "crates/innkeeper/src/engine/mod.rs",
                "use crate::drivers::x;",
            ),
            ("crates/innkeeper/src/engine.rs", "let x = Kind::Qemu;"),
            ("crates/innkeeper/src/store.rs", "fn cloud_hypervisor() {}"),
            (
                "crates/innkeeper/src/engine/wait.rs",
                "let end = SystemTime::now() + limit;",
            ),
            (
                "crates/innkeeper/src/drivers/qemu/mod.rs",
                "use crate::store::Store;",
            ),
            (
                "crates/innkeeper/src/drivers/qemu/mod.rs",
                "use crate::{driver, engine::Engine};",
            ),
            ("crates/innkeeper/src/engine.rs", "println!();"),
            ("crates/innkeeper/src/host.rs", "eprintln!();"),
            ("crates/innkeeper/src/engine.rs", "io::stdout().lock()"),
            ("crates/innkeeper/src/engine.rs", "std::env::var(\"X\")"),
            ("crates/innkeeper-net/src/switch.rs", "Instant::now()"),
            ("crates/innkeeper-net/src/switch.rs", "let s: UnixStream;"),
            ("crates/inn/src/main.rs", "unsafe { x() }"),
            ("crates/innkeeper-net/src/switch.rs", "unsafe { x() }"),
            ("crates/inn/src/main.rs", "anyhow::Error"),
            ("crates/inn/src/main.rs", "fn f() { todo!() }"),
            ("crates/inn/src/main.rs", "fn f() { unimplemented!() }"),
            ("crates/inn/tests/a.rs", "#[ignore]"),
            ("crates/inn/tests/a.rs", "#[ignore = \"slow\"]"),
            ("crates/inn/tests/a.rs", "#[cfg_attr(x, ignore)]"),
            ("crates/inn/src/main.rs", "Command::new(\"sh\")"),
            ("crates/inn/src/main.rs", "let s = \"sh -c x\";"),
            ("crates/inn/tests/a.rs", "std::thread::sleep(X);"),
            (
                "crates/inn/src/a.rs",
                "#[cfg(test)]\nmod tests {\n sleep(X); }",
            ),
            ("crates/inn/src/utils.rs", ""),
            ("crates/inn/src/common/mod.rs", ""),
        ] {
            assert_eq!(
                rules(path, code).len(),
                1,
                "{path}: {code}: {:?}",
                rules(path, code)
            );
        }
        let long = "\n".repeat(MOST_LINES);
        assert_eq!(rules("crates/inn/src/a.rs", &long).len(), 1);
        let bare = SourceFile {
            path: "crates/inn/src/a.rs".to_owned(),
            text: "fn f() {}".to_owned(),
        };
        assert_eq!(check(&bare).len(), 1);
    }

    #[test]
    fn good_code_passes() {
        for (path, code) in [
            (
                "crates/innkeeper/src/drivers/qemu/mod.rs",
                "fn qemu() {} use crate::driver::Driver;",
            ),
            (
                "crates/innkeeper/src/engine.rs",
                "// qemu and todo!() in a comment\nlet s = \"unsafe println!\";",
            ),
            (
                "crates/innkeeper/src/engine.rs",
                "#[cfg(test)]\nmod tests { fn f() { println!(\"{}\", Kind::Qemu) } }",
            ),
            ("crates/innkeeper/src/host.rs", "std::env::var_os(\"X\")"),
            ("crates/innkeeper/src/engine.rs", "pipe.stderr()"),
            (
                "crates/innkeeper-net/src/io/mod.rs",
                "unsafe { x() } Instant::now()",
            ),
            ("crates/innkeeper-agent/src/main.rs", "unsafe { x() }"),
            ("crates/inn/src/main.rs", "fn f() { sleep(X) }"),
            (
                "crates/inn/tests/a.rs",
                "// poll: the socket is there\nsleep(X);",
            ),
            ("crates/inn/tests/a.rs", "#![deny(unsafe_code)]"),
        ] {
            assert_eq!(rules(path, code), Vec::<String>::new(), "{path}: {code}");
        }
    }
}
