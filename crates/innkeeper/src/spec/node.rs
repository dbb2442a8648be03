//! YAML as a tree that knows where each value stands in the text.
//!
//! It is stricter than YAML: one document, no anchors, aliases or tags, no duplicate keys, bounded size and depth. So nothing in it
//! can grow beyond its text. What values mean is the reader's business.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};

use super::problems::SpecProblem;

/// Largest text that is read, in bytes.
pub(super) const MAX_TEXT: usize = 1 << 20;
const MAX_DEPTH: usize = 16;
const MAX_TAB_PROBLEMS: usize = 20;

/// A place in a text: line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A value as written.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A word, and whether it stood in quotes (or a block), which makes it text whatever it looks like.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Key {
    pub(super) place: Place,
    pub(super) name: String,
}

/// What a plain word is by YAML 1.2's core schema (section 10.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    Null,
    Bool(bool),
    Integer,
    Float,
    Text,
}

/// A text as a tree.
#[derive(Debug)]
pub(super) struct Loaded {
    /// The value that the text is.
    pub(super) root: Node,
    /// Keys that stand twice in a map; the first use is the one that readers find.
    pub(super) duplicates: Vec<SpecProblem>,
}

/// Tells what a plain word is.
pub(super) fn resolve(word: &str) -> Plain {
    match word {
        "" | "~" | "null" | "Null" | "NULL" => return Plain::Null,
        "true" | "True" | "TRUE" => return Plain::Bool(true),
        "false" | "False" | "FALSE" => return Plain::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Plain::Float,
        _ => {}
    }
    let unsigned = word.strip_prefix(['-', '+']).unwrap_or(word);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits(unsigned) {
        return Plain::Integer;
    }
    if let Some(octal) = word.strip_prefix("0o") {
        let all = octal.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        return if !octal.is_empty() && all {
            Plain::Integer
        } else {
            Plain::Text
        };
    }
    if let Some(hexadecimal) = word.strip_prefix("0x") {
        let all = hexadecimal.bytes().all(|byte| byte.is_ascii_hexdigit());
        return if !hexadecimal.is_empty() && all {
            Plain::Integer
        } else {
            Plain::Text
        };
    }
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Plain::Float;
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa_fits =
        all_digits(whole) && all_digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    let exponent_fits =
        exponent.is_none_or(|text| digits(text.strip_prefix(['-', '+']).unwrap_or(text)));
    if mantissa_fits && exponent_fits {
        Plain::Float
    } else {
        Plain::Text
    }
}

fn place(mark: &Marker) -> Place {
    Place {
        line: mark.line(),
        column: mark.col() + 1,
    }
}

fn problem(place: Place, message: impl Into<String>, hint: Option<&str>) -> SpecProblem {
    SpecProblem {
        line: place.line,
        column: place.column,
        path: String::new(),
        message: message.into(),
        hint: hint.map(str::to_owned),
    }
}

/// Reads a text into a tree; an empty text (or only comments) is an empty map.
///
/// # Errors
/// What the text has that YAML, or this stricter form of it, does not allow. A broken text gives its first problem only, except
/// tabs, which are all named.
pub(super) fn load(text: &str) -> Result<Loaded, Vec<SpecProblem>> {
    let start = Place { line: 1, column: 1 };
    if text.len() > MAX_TEXT {
        let message = format!(
            "is {} bytes long, more than the 1 MiB that a spec may have",
            text.len()
        );
        return Err(vec![problem(start, message, None)]);
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        // The parser repeats an error for ever, so the first one must end the loop.
        let (event, span) = event.map_err(|error| syntax_problems(text, &error))?;
        builder
            .take(event, place(&span.start))
            .map_err(|problem| vec![problem])?;
    }
    let empty = Node {
        place: start,
        value: Value::Map(Vec::new()),
    };
    let root = builder.root.filter(|root| !root.is_null());
    Ok(Loaded {
        root: root.unwrap_or(empty),
        duplicates: builder.duplicates,
    })
}

impl Node {
    /// Tells whether it is a word that means nothing, such as `~`, or no word at all.
    pub(super) fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, quoted } => !quoted && resolve(text) == Plain::Null,
            _ => false,
        }
    }
}

fn syntax_problems(text: &str, error: &ScanError) -> Vec<SpecProblem> {
    let tabs: Vec<SpecProblem> = text
        .lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let indentation = line.len() - line.trim_start_matches([' ', '\t']).len();
            let column = line[..indentation].find('\t')? + 1;
            Some(Place {
                line: index + 1,
                column,
            })
        })
        .take(MAX_TAB_PROBLEMS)
        .map(|place| {
            let message = "the line is indented with a tab, which YAML does not allow";
            problem(place, message, Some("indent with spaces"))
        })
        .collect();
    if !tabs.is_empty() && error.info().contains("tab") {
        return tabs;
    }
    let place = place(error.marker());
    if error.info().contains("unknown anchor") {
        return vec![anchor_problem(place)];
    }
    vec![problem(
        place,
        format!("this is not YAML: {}", error.info()),
        None,
    )]
}

fn anchor_problem(place: Place) -> SpecProblem {
    let message = "anchors (&name) and aliases (*name) are not read";
    problem(
        place,
        message,
        Some("write the value out, or put it in quotes if it is text"),
    )
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    duplicates: Vec<SpecProblem>,
}

/// A list or map that has begun and not ended.
enum Open {
    List(Place, Vec<Node>),
    Map {
        place: Place,
        entries: Vec<(Key, Node)>,
        key: Option<Key>,
        /// Line of each key's first use.
        seen: HashMap<String, usize>,
    },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), SpecProblem> {
        match event {
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let hint = Some("keep one document per file");
                    return Err(problem(place, "a second document begins here", hint));
                }
                Ok(())
            }
            Event::Alias(_) => Err(anchor_problem(place)),
            Event::Scalar(text, style, anchor, tag) => {
                refuse_properties(anchor, tag.is_some(), place)?;
                let value = Value::Scalar {
                    text: text.into_owned(),
                    quoted: style != ScalarStyle::Plain,
                };
                self.add(Node { place, value })
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_properties(anchor, tag.is_some(), place)?;
                self.begin(Open::List(place, Vec::new()), place)
            }
            Event::MappingStart(anchor, tag) => {
                refuse_properties(anchor, tag.is_some(), place)?;
                let map = Open::Map {
                    place,
                    entries: Vec::new(),
                    key: None,
                    seen: HashMap::new(),
                };
                self.begin(map, place)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
        }
    }

    fn begin(&mut self, open: Open, place: Place) -> Result<(), SpecProblem> {
        if let Some(Open::Map { key: None, .. }) = self.open.last() {
            return Err(problem(
                place,
                "a key must be a word, not a list or a map",
                None,
            ));
        }
        if self.open.len() == MAX_DEPTH {
            let message = format!("is nested more than {MAX_DEPTH} levels deep");
            return Err(problem(place, message, None));
        }
        self.open.push(open);
        Ok(())
    }

    fn end(&mut self) -> Result<(), SpecProblem> {
        let node = match self.open.pop() {
            Some(Open::List(place, items)) => Node {
                place,
                value: Value::List(items),
            },
            Some(Open::Map { place, entries, .. }) => Node {
                place,
                value: Value::Map(entries),
            },
            None => return Ok(()),
        };
        self.add(node)
    }

    fn add(&mut self, node: Node) -> Result<(), SpecProblem> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Map {
                entries, key, seen, ..
            }) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let Value::Scalar { text: name, .. } = node.value else {
                        return Err(problem(node.place, "a key must be a word", None));
                    };
                    if let Some(first) = seen.get(&name) {
                        if self.duplicates.len() < MAX_TAB_PROBLEMS {
                            let message = format!(
                                "the key {} stands here twice, first on line {first}",
                                super::fields::quote(&name)
                            );
                            let hint = Some("keep one of the two");
                            self.duplicates.push(problem(node.place, message, hint));
                        }
                    } else {
                        seen.insert(name.clone(), node.place.line);
                    }
                    *key = Some(Key {
                        place: node.place,
                        name,
                    });
                }
            },
        }
        Ok(())
    }
}

fn refuse_properties(anchor: usize, tagged: bool, place: Place) -> Result<(), SpecProblem> {
    if anchor != 0 {
        return Err(anchor_problem(place));
    }
    if tagged {
        let hint = Some("leave the tag out, or put the value in quotes if it is text");
        return Err(problem(place, "tags (!name) are not read", hint));
    }
    Ok(())
}
