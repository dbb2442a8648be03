//! The reference of the command line, made from what clap knows: `docs/cli.md` is this text, and a test holds it to it.

use clap::Command;

const HEADER: &str = "\
# Command line

Written by `inn man --markdown > docs/cli.md`; what stands here is what `--help` says.

Data goes to standard output, everything else to standard error. `-o json` and `-o yaml` have stable names: a list is an array, one thing
is an object, and what follows (`-f`) is a line of JSON, or a YAML document, for each piece. With `-o json` there are no notes, and an
error is one line of JSON on standard error: `{\"kind\": \"not-found\", \"messages\": [...], \"hint\": \"...\"}`.

| exit code | kind | meaning |
|---|---|---|
| 0 | | done |
| 1 | `failure` | failed |
| 2 | `bad-input` | wrong usage, or a wrong spec |
| 3 | `not-found` | there is no such VM, image or file |
| 4 | `conflict` | the state does not allow it, or somebody else is doing it |
| 5 | `unsupported` | this driver or this computer can't do it |
| 6 | `unreachable` | what should answer does not |
| 7 | `timed-out` | it took longer than was allowed |
| 8 | `not-permitted` | it is forbidden |
| 9 | `no-space` | no space is left |
| 130 | `interrupted` | you interrupted it, or answered no |

`exec`, `shell` and `run -- CMD` end with the code of the command in the guest; 125 is a failure of ours, 126 a command that can't be
executed, 127 one that was not found, 128+n one that signal n ended.
";

/// Returns `inn` and every command that is shown, each under its full name with hyphens (`inn-image-pull`).
pub(crate) fn visible_commands() -> Vec<Command> {
    fn gather(command: &Command, name: String, found: &mut Vec<Command>) {
        // clap wants names that live as long as the program; there are a few dozen, made once.
        let spoken: &'static str = name.replace('\u{1f}', " ").leak();
        let hyphened: &'static str = name.replace('\u{1f}', "-").leak();
        found.push(
            command
                .clone()
                .name(hyphened)
                .display_name(hyphened)
                .bin_name(spoken),
        );
        for sub in command.get_subcommands() {
            if !sub.is_hide_set() && sub.get_name() != "help" {
                gather(sub, format!("{name}\u{1f}{}", sub.get_name()), found);
            }
        }
    }
    let mut whole = crate::cli::whole();
    whole.build();
    let mut found = Vec::new();
    gather(&whole, "inn".to_owned(), &mut found);
    found
}

/// Writes the reference.
pub(crate) fn markdown() -> String {
    let mut text = HEADER.to_owned();
    for mut command in visible_commands() {
        let title = command.get_bin_name().unwrap_or("inn").to_owned();
        let help = command.render_help().to_string();
        let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
        text.push_str(&format!(
            "\n## {title}\n\n```text\n{}\n```\n",
            help.join("\n")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_in_docs_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        if std::env::var_os("INNKEEPER_UPDATE_DOCS").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert!(
            written == markdown(),
            "docs/cli.md is old: run `inn man --markdown > docs/cli.md`, or this test with INNKEEPER_UPDATE_DOCS=1"
        );
    }

    #[test]
    fn every_visible_command_is_in_it_once() {
        let text = markdown();
        for heading in ["## inn run\n", "## inn image pull\n", "## inn ssh-config\n"] {
            assert_eq!(text.matches(heading).count(), 1, "{heading}");
        }
        assert!(!text.contains("## inn keeper"));
    }
}
