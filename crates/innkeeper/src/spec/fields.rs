//! A reader of maps that notes every problem and goes on.
//!
//! The set of known fields is what the caller asked for, so it can't differ from what is read; `finish` refuses the rest.

use std::cell::RefCell;
#[cfg(test)]
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::node::{Key, Node, Place, Plain, Value, resolve};
use super::problems::SpecProblem;

const MAX_PROBLEMS: usize = 100;
const MAX_QUOTED: usize = 60;

/// Puts a text from outside in quotes, escaped and cut, so that it can stand in a message.
pub(super) fn quote(text: &str) -> String {
    let mut characters = text.chars();
    let shown: String = characters.by_ref().take(MAX_QUOTED).collect();
    let more = if characters.next().is_some() {
        "..."
    } else {
        ""
    };
    format!("{shown:?}{more}")
}

/// Where problems are noted.
#[derive(Default)]
pub(super) struct Sink {
    problems: RefCell<Vec<SpecProblem>>,
    #[cfg(test)]
    pub(super) seen: RefCell<BTreeMap<String, BTreeSet<&'static str>>>,
}

impl Sink {
    fn note(&self, place: Place, path: &str, message: impl Into<String>, hint: Option<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MAX_PROBLEMS {
            problems.push(SpecProblem {
                line: place.line,
                column: place.column,
                path: path.to_owned(),
                message: message.into(),
                hint,
            });
        }
    }

    pub(super) fn into_problems(self) -> Vec<SpecProblem> {
        self.problems.into_inner()
    }
}

/// A value that is being read, with its place and its path.
#[derive(Clone)]
pub(super) struct At<'a> {
    pub(super) node: &'a Node,
    pub(super) path: String,
    pub(super) sink: &'a Sink,
}

impl<'a> At<'a> {
    /// Notes a problem of this value, and gives nothing.
    pub(super) fn refuse<T>(&self, message: impl Into<String>) -> Option<T> {
        self.sink.note(self.node.place, &self.path, message, None);
        None
    }

    /// Notes a problem of this value with what fixes it, and gives nothing.
    pub(super) fn refuse_with<T>(
        &self,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Option<T> {
        let hint = Some(hint.into());
        self.sink.note(self.node.place, &self.path, message, hint);
        None
    }

    fn refuse_type<T>(&self, wanted: &str) -> Option<T> {
        let found = match &self.node.value {
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
            Value::Scalar { text, quoted: true } => format!("the text {}", quote(text)),
            Value::Scalar { text, .. } => quote(text),
        };
        self.refuse(format!("must be {wanted}, not {found}"))
    }

    /// Reads text of any content.
    pub(super) fn any_text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, quoted } => {
                if *quoted || resolve(text) == Plain::Text {
                    return Some(text);
                }
                let hint = format!("put it in quotes: {:?}", text);
                self.refuse_with(format!("must be text, and {} is not", quote(text)), hint)
            }
            _ => self.refuse_type("text"),
        }
    }

    /// Reads text of one line: not empty, no control characters, at most so many characters.
    pub(super) fn line(&self, most: usize) -> Option<&'a str> {
        let text = self.any_text()?;
        if text.is_empty() {
            return self.refuse("must not be empty");
        }
        if text.chars().any(char::is_control) {
            return self.refuse("must be one line without control characters");
        }
        if text.chars().count() > most {
            return self.refuse(format!("is too long: at most {most} characters"));
        }
        Some(text)
    }

    /// Reads text that a type can parse; the type's error is the message.
    pub(super) fn parse<T>(&self) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        match self.line(4096)?.parse() {
            Ok(value) => Some(value),
            Err(error) => self.refuse(T::Err::to_string(&error)),
        }
    }

    /// Reads a whole number within bounds.
    pub(super) fn integer(&self, bounds: RangeInclusive<u32>) -> Option<u32> {
        let (least, most) = (bounds.start(), bounds.end());
        let wanted = format!("a number from {least} to {most}");
        let Value::Scalar {
            text,
            quoted: false,
        } = &self.node.value
        else {
            return self.refuse_type(&wanted);
        };
        if resolve(text) != Plain::Integer {
            return self.refuse_type(&wanted);
        }
        match parse_integer(text).filter(|number| bounds.contains(number)) {
            Some(number) => Some(number),
            None => self.refuse_type(&wanted),
        }
    }

    /// Reads `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        if let Value::Scalar {
            text,
            quoted: false,
        } = &self.node.value
            && let Plain::Bool(value) = resolve(text)
        {
            return Some(value);
        }
        self.refuse_type("true or false")
    }

    /// Reads a list of at most so many items.
    pub(super) fn list<T>(
        &self,
        most: usize,
        item: impl Fn(At<'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::List(nodes) = &self.node.value else {
            return self.refuse_type("a list");
        };
        if nodes.len() > most {
            return self.refuse(format!("has {} items: at most {most}", nodes.len()));
        }
        let read = nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| item(self.child(&index.to_string(), node)));
        Some(read.collect())
    }

    /// Reads a map whose keys are free, each given with its value.
    pub(super) fn entries(&self) -> Option<impl Iterator<Item = (&'a Key, At<'a>)>> {
        let Value::Map(entries) = &self.node.value else {
            return self.refuse_type("a map of names and values");
        };
        let read = entries
            .iter()
            .map(|(key, node)| (key, self.child(&key.name, node)));
        Some(read.collect::<Vec<_>>().into_iter())
    }

    /// Begins to read a map of known fields.
    pub(super) fn fields(self) -> Option<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else {
            return self.refuse_type("a map of fields");
        };
        Some(Fields {
            entries,
            known: Vec::new(),
            at: self,
        })
    }

    fn child(&self, name: &str, node: &'a Node) -> At<'a> {
        let name = one_line(name);
        let path = if self.path.is_empty() {
            name
        } else {
            format!("{}.{name}", self.path)
        };
        At {
            node,
            path,
            sink: self.sink,
        }
    }
}

fn parse_integer(text: &str) -> Option<u32> {
    if let Some(octal) = text.strip_prefix("0o") {
        u32::from_str_radix(octal, 8).ok()
    } else if let Some(hexadecimal) = text.strip_prefix("0x") {
        u32::from_str_radix(hexadecimal, 16).ok()
    } else {
        text.parse().ok()
    }
}

/// A map that is being read field by field.
pub(super) struct Fields<'a> {
    pub(super) at: At<'a>,
    entries: &'a [(Key, Node)],
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Gives the value of a field as it stands there, if it does.
    pub(super) fn find(&mut self, name: &'static str) -> Option<At<'a>> {
        self.known.push(name);
        let (_, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        let at = self.at.child(name, node);
        if at.node.is_null() {
            return at.refuse_with("has no value", "give it one, or remove the line");
        }
        Some(at)
    }

    /// Reads a field, if it is there.
    pub(super) fn get<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(At<'a>) -> Option<T>,
    ) -> Option<T> {
        parse(self.find(name)?)
    }

    /// Reads a field that must be there.
    pub(super) fn require<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(At<'a>) -> Option<T>,
    ) -> Option<T> {
        if self.entries.iter().all(|(key, _)| key.name != name) {
            self.known.push(name);
            return self.at.refuse(format!("needs the field `{name}`"));
        }
        self.get(name, parse)
    }

    /// Refuses the fields that nobody asked for, each with the nearest known name.
    pub(super) fn finish(self) {
        for (key, node) in self.entries {
            if self.known.contains(&key.name.as_str()) {
                continue;
            }
            let nearest = self
                .known
                .iter()
                .map(|known| {
                    (
                        strsim::damerau_levenshtein(&key.name.to_lowercase(), known),
                        known,
                    )
                })
                .filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
                .min_by_key(|(distance, _)| *distance);
            let hint = match nearest {
                Some((_, known)) => format!("did you mean `{known}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            };
            let path = self.at.child(&key.name, node).path;
            let message = format!("there is no field {}", quote(&key.name));
            self.at.sink.note(key.place, &path, message, Some(hint));
        }
        #[cfg(test)]
        self.at
            .sink
            .seen
            .borrow_mut()
            .entry(self.at.path)
            .or_default()
            .extend(self.known);
    }
}

/// A name from outside as part of a path in a message: one line, cut.
fn one_line(name: &str) -> String {
    name.chars()
        .filter(|c| !c.is_control())
        .take(MAX_QUOTED)
        .collect()
}
