//! Changes single fields of `vm.yaml` and keeps all else as it was: comments, order, layout.
//!
//! The lossless syntax tree is the yaml-edit crate's. What comes out is read again: it must be a valid spec that differs from the
//! one before in the edited fields only, else nothing changes. The type of a field comes from the schema, so that `labels.env=4` is
//! text and `cpus=4` a number.

use std::str::FromStr;

use innkeeper_api::ErrorKind;
use serde_json::Value as Json;
use yaml_edit::path::YamlPath;
use yaml_edit::{Document, YamlFile};

use super::fields::quote;
use super::node::{self, Node, Value};
use super::problems::SpecProblems;
use super::{differences, read, schema};

const ORIGIN: &str = "vm.yaml";

/// A change of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// Path of the field: `cpus`, `boot.cmdline`, `disks.root.size` (by the disk's name), `networks.0.mac` (by number), `labels.env`.
    pub path: String,
    /// The new value as text, lists and maps as YAML (`[git, curl]`); none removes the field, so that its default holds.
    pub value: Option<String>,
}

/// Says why a change can't be made.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// There is no such field.
    #[error("there is no field {path:?} in a spec")]
    UnknownField {
        /// The path that was given.
        path: String,
        /// The nearest path that there is.
        nearest: Option<String>,
    },
    /// A disk, network, forward or share is not there.
    #[error("{path:?} names nothing: there is no item {item:?}")]
    NoSuchItem {
        /// The path that was given.
        path: String,
        /// The part of it that is not there.
        item: String,
    },
    /// The value is not of the field's type.
    #[error("{path}: must be {wanted}, not {found}")]
    WrongType {
        /// The path that was given.
        path: String,
        /// What the field takes.
        wanted: &'static str,
        /// What was given, quoted.
        found: String,
    },
    /// The text has a form in which this field can't be changed without touching others.
    #[error("{path}: can't be changed here without changing more: {reason}")]
    NotEditable {
        /// The path that was given.
        path: String,
        /// Why.
        reason: String,
    },
    /// The text is no valid spec, or would be none after the change.
    #[error("the spec would not be valid with this change")]
    Invalid(#[source] SpecProblems),
}

impl From<EditError> for crate::Error {
    fn from(error: EditError) -> Self {
        let hint = match &error {
            EditError::UnknownField {
                nearest: Some(nearest),
                ..
            } => Some(format!("did you mean `{nearest}`?")),
            EditError::UnknownField { .. } => Some("`inn schema` names every field".to_owned()),
            EditError::NotEditable { .. } => {
                Some("change the file itself with `inn edit`".to_owned())
            }
            _ => None,
        };
        let message = error.to_string();
        let wrapped = crate::Error::new(ErrorKind::BadInput, message);
        let wrapped = match error {
            EditError::Invalid(problems) => wrapped.with_source(problems),
            _ => wrapped,
        };
        match hint {
            Some(hint) => wrapped.with_hint(hint),
            None => wrapped,
        }
    }
}

/// Makes changes, in order, in the text of a spec and gives the new text.
///
/// A missing parent is made, a missing disk too (`disks.data.size`), and the item after the last of another list. Removing what is
/// not there changes nothing.
///
/// # Errors
/// The first change that can't be made, or what makes the outcome invalid; the text given stays what it was.
pub fn edit(text: &str, edits: &[Edit]) -> Result<String, EditError> {
    let before = read(text, ORIGIN).ok();
    let mut edited = text.to_owned();
    for edit in edits {
        edited = apply(&edited, edit)?;
    }
    let after = read(&edited, ORIGIN).map_err(EditError::Invalid)?;
    if let Some(before) = before {
        let meant = |path: &String| edits.iter().any(|edit| touches(&edit.path, path));
        let others: Vec<String> = differences(&after, &before)
            .into_iter()
            .filter(|path| !meant(path))
            .collect();
        if let (false, Some(edit)) = (others.is_empty(), edits.first()) {
            return Err(EditError::NotEditable {
                path: edit.path.clone(),
                reason: format!("{} would change too", others.join(", ")),
            });
        }
    }
    Ok(edited)
}

fn touches(edited: &str, different: &str) -> bool {
    let begins = |long: &str, short: &str| {
        long.strip_prefix(short)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    begins(edited, different) || begins(different, edited)
}

/// What a field takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Flag,
    List,
    Map,
    /// A word, or a map with the same content.
    TextOrMap,
}

/// A part of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(String),
}

fn unknown(path: &str, nearest: Option<String>) -> EditError {
    EditError::UnknownField {
        path: path.chars().take(100).collect(),
        nearest,
    }
}

/// Finds what a path leads to, by the schema.
fn resolve(path: &str) -> Result<(Vec<Step>, Kind), EditError> {
    let parts: Vec<&str> = match path.strip_prefix("labels.") {
        Some(label) => vec!["labels", label],
        None => path.split('.').collect(),
    };
    let root = schema();
    let mut place = &root;
    let mut steps = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        if let Some(forms) = place["anyOf"].as_array() {
            let map = forms.iter().find(|form| form["type"] == "object");
            place = map.ok_or_else(|| unknown(path, None))?;
        }
        if let Some(fields) = place["properties"].as_object() {
            place = fields.get(*part).ok_or_else(|| {
                let nearest = nearest(part, fields.keys());
                let before = &parts[..index];
                unknown(
                    path,
                    nearest.map(|name| [before, &[name]].concat().join(".")),
                )
            })?;
            steps.push(Step::Field((*part).to_owned()));
        } else if place["additionalProperties"].is_object() && !part.is_empty() {
            place = &place["additionalProperties"];
            steps.push(Step::Field((*part).to_owned()));
        } else if place["items"].is_object() && !part.is_empty() {
            place = &place["items"];
            steps.push(Step::Item((*part).to_owned()));
        } else {
            return Err(unknown(path, None));
        }
    }
    Ok((steps, kind(place)))
}

fn kind(place: &Json) -> Kind {
    if place["anyOf"].is_array() {
        return Kind::TextOrMap;
    }
    match place["type"].as_str() {
        Some("integer") => Kind::Number,
        Some("boolean") => Kind::Flag,
        Some("array") => Kind::List,
        Some("object") => Kind::Map,
        // Sizes, which may be numbers too, are text with a unit.
        _ => Kind::Text,
    }
}

fn nearest<'a>(part: &str, names: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    names
        .map(|name| (strsim::damerau_levenshtein(part, name), name.as_str()))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn apply(text: &str, edit: &Edit) -> Result<String, EditError> {
    let (steps, kind) = resolve(&edit.path)?;
    let invalid = |problems| EditError::Invalid(SpecProblems::new(ORIGIN, problems));
    let loaded = node::load(text).map_err(invalid)?;
    if !loaded.duplicates.is_empty() {
        return Err(invalid(loaded.duplicates));
    }
    let root = loaded.root;
    if !matches!(root.value, Value::Map(_)) {
        return read(text, ORIGIN)
            .map(|_| text.to_owned())
            .map_err(EditError::Invalid);
    }
    let not_editable = |reason: String| EditError::NotEditable {
        path: edit.path.clone(),
        reason,
    };
    let file = YamlFile::from_str(text).map_err(|error| not_editable(error.to_string()))?;
    let document = file.ensure_document();
    let Some(target) = locate(&root, &steps, edit)? else {
        return Ok(text.to_owned());
    };
    match &edit.value {
        None => remove(&document, &target).map_err(not_editable)?,
        Some(value) => {
            if let Some((path, name)) = &target.new_name {
                set_text(&document, path, name).map_err(not_editable)?;
            }
            set(&document, &target.path, kind, value, edit)?;
        }
    }
    Ok(restore_line_ends(text, file.to_string()))
}

/// Where in the document an edit goes, in the path syntax of yaml-edit.
struct Target {
    path: String,
    /// For a new disk: where its name goes, and the name.
    new_name: Option<(String, String)>,
    /// For an item of a list: where the list is, and which item.
    item: Option<(String, usize)>,
}

/// Finds where the steps lead in this text; nothing if the field is to be removed and is not there.
fn locate(root: &Node, steps: &[Step], edit: &Edit) -> Result<Option<Target>, EditError> {
    let mut target = Target {
        path: String::new(),
        new_name: None,
        item: None,
    };
    let mut here = Some(root);
    for step in steps {
        target.item = None;
        match step {
            Step::Field(name) => {
                here = here.and_then(|node| field(node, name));
                if !target.path.is_empty() {
                    target.path.push('.');
                }
                target.path.push_str(&escape(name));
            }
            Step::Item(name) => {
                let items: &[Node] = match here.map(|node| &node.value) {
                    Some(Value::List(items)) => items,
                    _ => &[],
                };
                let by_name = target.path == "disks";
                let found = if by_name {
                    items.iter().position(|item| has_name(item, name))
                } else {
                    name.parse().ok().filter(|index| *index < items.len())
                };
                let next = by_name || name.parse() == Ok(items.len());
                let index = match found {
                    Some(index) => index,
                    None if edit.value.is_none() => return Ok(None),
                    None if next => items.len(),
                    None => {
                        return Err(EditError::NoSuchItem {
                            path: edit.path.clone(),
                            item: name.clone(),
                        });
                    }
                };
                here = items.get(index);
                target.item = Some((target.path.clone(), index));
                target.path.push_str(&format!("[{index}]"));
                if by_name && here.is_none() {
                    target.new_name = Some((format!("{}.name", target.path), name.clone()));
                }
            }
        }
    }
    if edit.value.is_none() && here.is_none() {
        return Ok(None);
    }
    Ok(Some(target))
}

fn field<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Map(entries) => {
            let (_, value) = entries.iter().find(|(key, _)| key.name == name)?;
            Some(value)
        }
        _ => None,
    }
}

fn has_name(node: &Node, wanted: &str) -> bool {
    let name = field(node, "name").map(|name| &name.value);
    matches!(name, Some(Value::Scalar { text, .. }) if text == wanted)
}

/// Escapes a key so that it is one segment, and a key, in the path syntax of yaml-edit.
fn escape(name: &str) -> String {
    let mut escaped = String::new();
    for (index, character) in name.chars().enumerate() {
        if matches!(character, '.' | '[' | ']' | '\\') || (index == 0 && character.is_ascii_digit())
        {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

fn remove(document: &Document, target: &Target) -> Result<(), String> {
    match &target.item {
        Some((list, index)) => {
            let node = document
                .try_get_path(list)
                .map_err(|error| error.to_string())?;
            let items = node.as_sequence().ok_or("it is not in a list")?;
            items
                .remove(*index)
                .map(|_| ())
                .ok_or_else(|| "it is not in the list".to_owned())
        }
        None => {
            let removed = document.try_remove_path(&target.path);
            removed.map(|_| ()).map_err(|error| error.to_string())
        }
    }
}

fn set_text(document: &Document, path: &str, value: &str) -> Result<(), String> {
    document
        .try_set_path(path, value)
        .map_err(|error| error.to_string())
}

fn set(
    document: &Document,
    path: &str,
    kind: Kind,
    value: &str,
    edit: &Edit,
) -> Result<(), EditError> {
    let wrong = |wanted| EditError::WrongType {
        path: edit.path.clone(),
        wanted,
        found: quote(value),
    };
    let done = match kind {
        Kind::Number => {
            let number: i64 = value.trim().parse().map_err(|_| wrong("a number"))?;
            document.try_set_path(path, number)
        }
        Kind::Flag => {
            let flag: bool = value.trim().parse().map_err(|_| wrong("true or false"))?;
            document.try_set_path(path, flag)
        }
        Kind::TextOrMap if value.trim_start().starts_with('{') => {
            document.try_set_path(path, structure(value, wrong)?)
        }
        Kind::Text | Kind::TextOrMap => document.try_set_path(path, value),
        Kind::List | Kind::Map => document.try_set_path(path, structure(value, wrong)?),
    };
    done.map_err(|error| EditError::NotEditable {
        path: edit.path.clone(),
        reason: error.to_string(),
    })
}

/// Reads a value that is a list or a map, with the strict rules of the spec first.
fn structure(
    value: &str,
    wrong: impl Fn(&'static str) -> EditError,
) -> Result<Document, EditError> {
    let wanted = "a list or map in YAML, such as [a, b] or {name: value}";
    match node::load(value) {
        Ok(loaded)
            if !matches!(loaded.root.value, Value::Scalar { .. })
                && loaded.duplicates.is_empty()
                && value.contains(['[', '{', ':', '-']) => {}
        _ => return Err(wrong(wanted)),
    }
    Document::from_str(value).map_err(|_| wrong(wanted))
}

/// Gives the new lines the line ends of the old ones.
fn restore_line_ends(before: &str, after: String) -> String {
    let all_windows =
        before.contains('\n') && before.matches('\n').count() == before.matches("\r\n").count();
    if all_windows {
        after.replace("\r\n", "\n").replace('\n', "\r\n")
    } else {
        after
    }
}
