//! Writes a spec as canonical YAML: image, cpus and memory, and whatever else differs from the defaults.

use super::node::{Plain, resolve};
use super::problems::{SpecProblem, SpecProblems};
use super::tree::{Tree, tree};
use super::{VmSpec, read};

const HEADER: &str = "# What is asked of this VM; `inn schema` describes every field.\n";

/// Writes a spec so that reading it gives the same spec.
///
/// That holds for every spec that `check` accepts. Paths that are not UTF-8 and durations below a millisecond can't be written;
/// `check` refuses them.
pub fn write(spec: &VmSpec) -> String {
    let default = tree(&VmSpec::default());
    let mut text = HEADER.to_owned();
    for (name, value) in tree(spec) {
        let always = matches!(name.as_str(), "image" | "cpus" | "memory");
        let is_default = default
            .iter()
            .any(|(other, usual)| *other == name && *usual == value);
        if always || !is_default {
            entry(&mut text, 0, &name, &value);
        }
    }
    text
}

/// Checks a spec that was made by a program with the same rules as one that was read.
///
/// # Errors
/// Every problem, with line and column in the text that `write` makes.
pub fn check(spec: &VmSpec) -> Result<(), SpecProblems> {
    let again = read(&write(spec), "spec")?;
    if again == *spec {
        return Ok(());
    }
    let message =
        "has a path that is not UTF-8, or a value finer than its unit: it can't be written as YAML";
    let problem = SpecProblem {
        line: 1,
        column: 1,
        path: super::differences(spec, &again).join(", "),
        message: message.to_owned(),
        hint: None,
    };
    Err(SpecProblems::new("spec", vec![problem]))
}

fn entry(text: &mut String, depth: usize, name: &str, value: &Tree) {
    indent(text, depth);
    text.push_str(&scalar(name));
    text.push(':');
    match value {
        Tree::List(items) if items.is_empty() => text.push_str(" []\n"),
        Tree::Map(entries) if entries.is_empty() => text.push_str(" {}\n"),
        Tree::List(items) => {
            text.push('\n');
            for item in items {
                list_item(text, depth + 1, item);
            }
        }
        Tree::Map(entries) => {
            text.push('\n');
            for (name, value) in entries {
                entry(text, depth + 1, name, value);
            }
        }
        Tree::Text(content) if fits_block(content) => block(text, depth + 1, content),
        other => {
            text.push(' ');
            text.push_str(&inline(other));
            text.push('\n');
        }
    }
}

fn list_item(text: &mut String, depth: usize, item: &Tree) {
    indent(text, depth);
    text.push_str("- ");
    match item {
        Tree::Map(entries) if !entries.is_empty() => {
            let mut lines = String::new();
            for (name, value) in entries {
                entry(&mut lines, depth + 1, name, value);
            }
            // The first entry stands on the line of the hyphen.
            text.push_str(lines.trim_start_matches(' '));
        }
        other => {
            text.push_str(&inline(other));
            text.push('\n');
        }
    }
}

fn indent(text: &mut String, depth: usize) {
    text.extend(std::iter::repeat_n("  ", depth));
}

fn inline(value: &Tree) -> String {
    match value {
        Tree::Text(text) => scalar(text),
        Tree::Number(number) => number.to_string(),
        Tree::Flag(flag) => flag.to_string(),
        Tree::List(items) => {
            let items: Vec<String> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        Tree::Map(entries) => {
            let entries = entries.iter();
            let entries: Vec<String> = entries
                .map(|(name, value)| format!("{}: {}", scalar(name), inline(value)))
                .collect();
            format!("{{{}}}", entries.join(", "))
        }
    }
}

/// Tells whether a text reads well as a literal block (`|`), and survives it.
fn fits_block(text: &str) -> bool {
    let Some(body) = text.strip_suffix('\n') else {
        return false;
    };
    let printable =
        |c: char| c == '\n' || matches!(c, ' '..='~') || (!needs_escape(c) && c > '\u{a0}');
    body.contains('\n')
        && !body.starts_with([' ', '\n'])
        && !body.ends_with('\n')
        && text.chars().all(printable)
}

fn block(text: &mut String, depth: usize, content: &str) {
    text.push_str(" |\n");
    for line in content.lines() {
        if !line.is_empty() {
            indent(text, depth);
        }
        text.push_str(line);
        text.push('\n');
    }
}

/// Writes a text as a plain word where that is safe in every YAML, else in double quotes.
fn scalar(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_./:@+=-".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        || (text.starts_with(|c: char| c.is_ascii_digit())
            && text.contains(|c: char| c.is_ascii_alphabetic()));
    // YAML 1.1, which some editors speak, takes these for booleans.
    let old_boolean = ["y", "n", "yes", "no", "on", "off"];
    if begins
        && text.chars().all(safe)
        && !text.ends_with(':')
        && resolve(text) == Plain::Text
        && !old_boolean.contains(&text.to_ascii_lowercase().as_str())
    {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if needs_escape(c) => quoted.push_str(&format!("\\U{:08X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Tells what YAML does not allow as it is (1.2.2, section 5.1), or takes for a line break, or an editor would not show.
fn needs_escape(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
