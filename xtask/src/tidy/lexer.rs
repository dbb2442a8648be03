//! Blanks out what is not code in a Rust file, line by line: comments, and the insides of strings.
//!
//! Enough of Rust's lexical grammar for that (nested comments, raw strings, character literals against lifetimes);
//! it does not tokenise. Lines and columns stay where they were.

/// A file with comments blanked, and with strings blanked too.
pub(crate) struct Lexed {
    /// Code and strings, no comments.
    pub(crate) with_strings: String,
    /// Code only.
    pub(crate) code: String,
}

/// Splits a file into what is code and what is not.
pub(crate) fn lex(text: &str) -> Lexed {
    let characters: Vec<char> = text.chars().collect();
    let mut with_strings = String::with_capacity(text.len());
    let mut code = String::with_capacity(text.len());
    let blank = |character: char| if character == '\n' { '\n' } else { ' ' };
    let mut at = 0;
    while at < characters.len() {
        let rest = &characters[at..];
        let (length, kind) = token(rest, at.checked_sub(1).map(|before| characters[before]));
        let length = length.min(rest.len());
        for &character in &rest[..length] {
            with_strings.push(if kind == Kind::Comment {
                blank(character)
            } else {
                character
            });
            code.push(if kind == Kind::Code {
                character
            } else {
                blank(character)
            });
        }
        at += length;
    }
    Lexed { with_strings, code }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Kind {
    Code,
    Comment,
    Text,
}

/// Length and kind of what stands at the beginning of `rest`; the length is never 0.
fn token(rest: &[char], before: Option<char>) -> (usize, Kind) {
    match rest {
        ['/', '/', ..] => (
            rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            Kind::Comment,
        ),
        ['/', '*', ..] => (block_comment(rest), Kind::Comment),
        ['"', ..] => (1 + quoted(&rest[1..], '"'), Kind::Text),
        ['r', next, ..] if matches!(next, '"' | '#') && !before.is_some_and(is_word_but_prefix) => {
            raw_string(rest)
        }
        ['\'', '\\', ..] => (1 + quoted(&rest[1..], '\''), Kind::Text),
        ['\'', _, '\'', ..] => (3, Kind::Text),
        _ => (1, Kind::Code),
    }
}

/// Whether an `r` after this belongs to a longer word; `b` and `c` are prefixes of raw strings.
fn is_word_but_prefix(character: char) -> bool {
    (character.is_alphanumeric() || character == '_') && !matches!(character, 'b' | 'c')
}

fn block_comment(rest: &[char]) -> usize {
    let (mut at, mut depth) = (2, 1);
    while depth > 0 && at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (at, depth) = (at + 2, depth + 1),
            ['*', '/', ..] => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
    at
}

fn quoted(rest: &[char], end: char) -> usize {
    let mut at = 0;
    while at < rest.len() {
        match rest[at] {
            '\\' => at += 2,
            character if character == end => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[char]) -> (usize, Kind) {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        // A raw identifier.
        return (1, Kind::Code);
    }
    let mut at = 2 + hashes;
    while at < rest.len() {
        if rest[at] == '"' && rest[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
            return (at + 1 + hashes, Kind::Text);
        }
        at += 1;
    }
    (rest.len(), Kind::Text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comments_and_strings_are_blanked() {
        let lexed = lex(
            "a(\"x//y\"); // c\nb /* d /* e */ f */ g('\"', 'h');\nr#\"i\"j\"#; k<'l>(r#m) br\"n\"",
        );
        for kept in ['a', 'b', 'g', 'k', 'l', 'm'] {
            assert!(lexed.code.contains(kept), "{kept}");
        }
        for gone in ["x", "c\n", "d", "e", "f", "'h'", "i", "j", "n"] {
            assert!(!lexed.code.contains(gone), "{gone}");
        }
        assert!(lexed.with_strings.contains("x//y") && !lexed.with_strings.contains("d /*"));
        assert_eq!(lexed.code.lines().count(), 3);
    }

    proptest! {
        #[test]
        fn any_text_keeps_its_lines(text in "[a-z\"'/*#r\\\\\n ]{0,80}") {
            let lexed = lex(&text);
            prop_assert_eq!(lexed.code.matches('\n').count(), text.matches('\n').count());
            prop_assert_eq!(lexed.with_strings.chars().count(), text.chars().count());
        }
    }
}
