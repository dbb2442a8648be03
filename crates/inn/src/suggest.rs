//! What to say to someone who uses another tool's word, beyond the aliases that simply work.

/// Words of peers, and what is said to them here.
const PEERS_WORDS: &[(&str, &str)] = &[
    (
        "attach",
        "inn shell NAME, or inn logs NAME -f for its console",
    ),
    ("boot", "inn start NAME"),
    ("connect", "inn shell NAME"),
    (
        "destroy",
        "inn rm NAME to remove it, inn kill NAME to pull its plug",
    ),
    ("down", "inn stop NAME"),
    ("enter", "inn shell NAME"),
    ("halt", "inn stop NAME"),
    ("images", "inn image ls"),
    ("init", "inn create IMAGE"),
    ("list-images", "inn image ls"),
    ("new", "inn create IMAGE"),
    ("poweroff", "inn stop NAME"),
    ("pull", "inn image pull IMAGE"),
    ("reboot", "inn restart NAME"),
    ("reset", "inn restart NAME --force"),
    ("rmi", "inn image rm IMAGE"),
    ("scp", "inn cp FROM TO"),
    ("show", "inn info NAME"),
    ("shutdown", "inn stop NAME"),
    ("status", "inn ls, or inn info NAME"),
    (
        "terminate",
        "inn rm NAME to remove it, inn kill NAME to pull its plug",
    ),
    ("top", "inn stats -f"),
    ("transfer", "inn cp FROM TO"),
    ("undefine", "inn rm NAME"),
    ("up", "inn start NAME, or inn run IMAGE for a new one"),
    ("update", "inn set NAME cpus=4"),
    ("version", "inn --version"),
];

/// Returns what does here what `word` does elsewhere.
pub(crate) fn for_word(word: &str) -> Option<&'static str> {
    PEERS_WORDS
        .iter()
        .find(|(peers, _)| *peers == word)
        .map(|(_, ours)| *ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn no_suggestion_hides_a_command_and_all_name_real_ones() {
        let command = crate::cli::Cli::command();
        let known: Vec<&str> = command
            .get_subcommands()
            .flat_map(|sub| std::iter::once(sub.get_name()).chain(sub.get_all_aliases()))
            .collect();
        for (word, hint) in PEERS_WORDS {
            assert!(!known.contains(word), "{word} is a command already");
            for part in hint.split("inn ").skip(1) {
                let name = part.split([' ', ',']).next().unwrap();
                assert!(name.starts_with("--") || known.contains(&name), "{hint}");
            }
        }
    }
}
