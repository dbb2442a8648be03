//! XML as a small tree, without what makes XML dangerous: no document type, no entities but the five of XML itself.
//!
//! Names are local ones: what prefix a document chose for a namespace does not matter here.

use quick_xml::events::{BytesStart, Event};

use super::damaged;
use crate::error::Result;

const DEPTH_LIMIT: usize = 64;
const NODES_LIMIT: usize = 100_000;

/// An element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Element {
    /// Its local name.
    pub name: String,
    attributes: Vec<(String, String)>,
    /// The elements in it.
    pub children: Vec<Element>,
    /// The text in it, trimmed.
    pub text: String,
}

impl Element {
    /// Reads a document whose root has this name.
    pub(super) fn read(text: &str, root: &str) -> Result<Element> {
        let mut reader = quick_xml::Reader::from_str(text);
        let mut open: Vec<Element> = vec![Element::default()];
        let mut nodes = 0;
        loop {
            let event = reader
                .read_event()
                .map_err(|error| damaged(format!("it is no XML: {error}")))?;
            match event {
                Event::Start(start) => {
                    count(&mut nodes)?;
                    if open.len() > DEPTH_LIMIT {
                        return Err(damaged("its elements are nested too deeply"));
                    }
                    open.push(begin(&start)?);
                }
                Event::Empty(start) => {
                    count(&mut nodes)?;
                    let element = begin(&start)?;
                    if let Some(above) = open.last_mut() {
                        above.children.push(element);
                    }
                }
                Event::End(_) => {
                    if let (Some(mut done), Some(above)) = (open.pop(), open.last_mut()) {
                        done.text = done.text.trim().to_owned();
                        above.children.push(done);
                    }
                }
                Event::Text(text) => add(&mut open, &text.xml10_content()),
                Event::CData(text) => add(&mut open, &text.xml10_content()),
                Event::GeneralRef(reference) => {
                    let resolved = match reference.resolve_char_ref() {
                        Ok(Some(character)) => character.to_string(),
                        _ => {
                            quick_xml::escape::resolve_predefined_entity(&reference.xml10_content())
                                .ok_or_else(|| {
                                    damaged("it uses an entity that XML does not have itself")
                                })?
                                .to_owned()
                        }
                    };
                    add(&mut open, &resolved);
                }
                Event::DocType(_) => {
                    return Err(damaged(
                        "it has a document type, which may name other files",
                    ));
                }
                Event::Eof => break,
                Event::Decl(_) | Event::PI(_) | Event::Comment(_) => {}
            }
        }
        if open.len() != 1 {
            return Err(damaged("it ends in the middle"));
        }
        open.remove(0)
            .children
            .into_iter()
            .find(|element| element.name == root)
            .ok_or_else(|| damaged(format!("it has no {root} element")))
    }

    /// Returns an attribute by its local name.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns the first child of a name.
    pub(super) fn child(&self, name: &str) -> Option<&Element> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Returns the text of the first child of a name, unless it is empty.
    pub(super) fn child_text(&self, name: &str) -> Option<&str> {
        self.child(name)
            .map(|child| child.text.as_str())
            .filter(|text| !text.is_empty())
    }

    /// Returns the first element along a path of names.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Element> {
        path.iter()
            .try_fold(self, |element, name| element.child(name))
    }

    /// Returns the children of a name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// Returns every element of a name at any depth, in the order of the document.
    pub(super) fn descendants<'a>(&'a self, name: &str, found: &mut Vec<&'a Element>) {
        for child in &self.children {
            if child.name == name {
                found.push(child);
            }
            child.descendants(name, found);
        }
    }
}

fn count(nodes: &mut usize) -> Result<()> {
    *nodes += 1;
    if *nodes > NODES_LIMIT {
        return Err(damaged("it has too many elements"));
    }
    Ok(())
}

fn begin(start: &BytesStart<'_>) -> Result<Element> {
    let mut element = Element {
        name: start.local_name().as_ref().to_owned(),
        ..Element::default()
    };
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| damaged(format!("it is no XML: {error}")))?;
        let value = attribute
            .normalized_value(quick_xml::XmlVersion::Explicit1_0)
            .map_err(|error| damaged(format!("it is no XML: {error}")))?;
        let key = attribute.key.local_name().as_ref().to_owned();
        element.attributes.push((key, value.into_owned()));
    }
    Ok(element)
}

fn add(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_with_local_names() {
        let root = Element::read(
            "<?xml version='1.0'?><a:x xmlns:a='u' a:k='1&lt;'><b> t&amp;u&#65; </b><b/></a:x>",
            "x",
        )
        .unwrap();
        assert_eq!(root.attribute("k"), Some("1<"));
        assert_eq!(root.child_text("b"), Some("t&uA"));
        assert_eq!(root.all("b").count(), 2);
    }

    #[test]
    fn dangerous_documents_are_refused() {
        let deep = "<x>".repeat(1000);
        for (text, why) in [
            (
                "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><x>&e;</x>",
                "document type",
            ),
            ("<x>&e;</x>", "entity"),
            (deep.as_str(), "deeply"),
            ("<x><b></x>", "no XML"),
            ("<x>", "middle"),
            ("<y/>", "no x element"),
            ("", "no x element"),
        ] {
            let error = Element::read(text, "x").unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
