//! A file tree that layers are laid over, one after the other.
//!
//! Paths are rooted by construction: a path is walked name by name from the root, a symbolic link on the way is followed within the
//! tree, and `..` in its target stops at the root. `..` in a layer's own names is refused before anything else is looked at.
//! Each name remembers the layer that put it there, since a whiteout removes only what lower layers brought.

use std::collections::{BTreeMap, HashSet, VecDeque};

use crate::{Error, Result};

/// Most nodes of a tree: memory is bounded by it.
const MOST_NODES: usize = 3_000_000;
/// Longest path in bytes (Linux: PATH_MAX).
const LONGEST_PATH: usize = 4096;
/// Longest name in bytes (ext4).
const LONGEST_NAME: usize = 255;
/// Most symbolic links on one path (Linux: MAXSYMLINKS).
const MOST_LINKS_FOLLOWED: usize = 40;
/// Deepest directory; symbolic links can make deeper ones than a path can name.
const DEEPEST: u16 = 1024;
/// Most names of one file (ext4: EXT4_LINK_MAX).
const MOST_HARD_LINKS: u32 = 65_000;

/// Where a node stands in the tree's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NodeId(u32);

impl NodeId {
    /// The root directory.
    pub(crate) const ROOT: NodeId = NodeId(0);
}

/// Blocks that lie one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) blocks: u64,
}

/// What every node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970.
    pub(crate) modified: i64,
    /// Extended attributes by their full names.
    pub(crate) extended: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Kind and numbers of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// A block device, else a character device.
    pub(crate) block: bool,
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) node: NodeId,
    layer: u32,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Directory(BTreeMap<Box<[u8]>, Name>),
    File { run: Run, bytes: u64 },
    Symlink(Box<[u8]>),
    Device(Device),
    Fifo,
}

/// A file, directory or other thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) attributes: Attributes,
    pub(crate) content: Content,
    /// Names of it; 0 for what is no longer in the tree.
    pub(crate) links: u32,
    depth: u16,
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    layer: u32,
    /// Directories from which this layer has already removed all that is of lower ones: doing it again would only cost time.
    pruned: HashSet<NodeId>,
    /// Blocks of files that later layers removed.
    pub(crate) freed: Vec<Run>,
}

fn refused(path: &[u8], problem: impl Into<String>) -> Error {
    let shown: String = String::from_utf8_lossy(path).chars().take(200).collect();
    Error::malformed(format!("the layer's entry {shown:?}"), problem)
}

/// Splits a path of a layer into names; refuses `..`, and names and paths that are too long.
fn names(path: &[u8]) -> Result<Vec<&[u8]>> {
    if path.len() > LONGEST_PATH {
        return Err(refused(
            path,
            format!("is longer than {LONGEST_PATH} bytes"),
        ));
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(refused(path, "names the directory above by ..")),
            _ if name.contains(&0) => return Err(refused(path, "holds a zero byte")),
            _ if name.len() > LONGEST_NAME => {
                return Err(refused(
                    path,
                    format!("has a name longer than {LONGEST_NAME} bytes"),
                ));
            }
            _ => names.push(name),
        }
    }
    Ok(names)
}

/// Whether directories that lack on the way are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Stop,
}

impl Tree {
    /// Makes a tree of a root directory only.
    pub(crate) fn new() -> Tree {
        let root = Node {
            attributes: Attributes {
                mode: 0o755,
                ..Attributes::default()
            },
            content: Content::Directory(BTreeMap::new()),
            links: 1,
            depth: 0,
        };
        Tree {
            nodes: vec![root],
            layer: 0,
            pruned: HashSet::new(),
            freed: Vec::new(),
        }
    }

    /// Begins the next layer.
    pub(crate) fn next_layer(&mut self) {
        self.layer += 1;
        self.pruned.clear();
    }

    /// Gives a node.
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    fn children(&self, id: NodeId) -> Option<&BTreeMap<Box<[u8]>, Name>> {
        match &self.node(id).content {
            Content::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, id: NodeId) -> Option<&mut BTreeMap<Box<[u8]>, Name>> {
        match &mut self.node_mut(id).content {
            Content::Directory(children) => Some(children),
            _ => None,
        }
    }

    /// Puts something at a path, replacing what is there; a directory over a directory only changes its attributes.
    pub(crate) fn put(
        &mut self,
        path: &[u8],
        attributes: Attributes,
        content: Content,
    ) -> Result<()> {
        let all = names(path)?;
        let is_directory = matches!(content, Content::Directory(_));
        let Some((last, above)) = all.split_last() else {
            if !is_directory {
                return Err(refused(path, "would replace the root directory"));
            }
            self.node_mut(NodeId::ROOT).attributes = attributes;
            return Ok(());
        };
        let parent = self
            .walk(path, above, Missing::Make)?
            .ok_or_else(|| refused(path, "has no directory"))?;
        let layer = self.layer;
        if is_directory
            && let Some(there) = self
                .children(parent)
                .and_then(|children| children.get(*last))
                .copied()
            && self.children(there.node).is_some()
        {
            self.node_mut(there.node).attributes = attributes;
            if let Some(name) = self
                .children_mut(parent)
                .and_then(|children| children.get_mut(*last))
            {
                name.layer = layer;
            }
            return Ok(());
        }
        let node = self.add(path, parent, attributes, content)?;
        self.enter(parent, last, node);
        Ok(())
    }

    /// Makes a path a further name of the file at `target`.
    pub(crate) fn link(&mut self, path: &[u8], target: &[u8]) -> Result<()> {
        let lacks = || {
            refused(
                path,
                format!(
                    "is a hard link to {:?}, which is not there",
                    String::from_utf8_lossy(target)
                ),
            )
        };
        let target_names = names(target)?;
        let (target_last, target_above) = target_names.split_last().ok_or_else(lacks)?;
        let all = names(path)?;
        let (last, above) = all
            .split_last()
            .ok_or_else(|| refused(path, "would replace the root directory"))?;
        let parent = self.walk(path, above, Missing::Make)?.ok_or_else(lacks)?;
        let node = self
            .walk(path, target_above, Missing::Stop)?
            .and_then(|directory| self.children(directory))
            .and_then(|children| children.get(*target_last))
            .map(|name| name.node)
            .ok_or_else(lacks)?;
        if self.children(node).is_some() {
            return Err(refused(path, "is a hard link to a directory"));
        }
        if self.node(node).links >= MOST_HARD_LINKS {
            return Err(refused(
                path,
                format!("is one name too many: a file has at most {MOST_HARD_LINKS}"),
            ));
        }
        if self
            .children(parent)
            .and_then(|children| children.get(*last))
            .is_some_and(|name| name.node == node)
        {
            return Ok(());
        }
        // Before the old one is removed, which may have been the file's last name.
        self.node_mut(node).links += 1;
        self.enter(parent, last, node);
        Ok(())
    }

    /// Removes what lower layers have at a path; what this layer put there stays.
    pub(crate) fn white_out(&mut self, directory: &[u8], name: &[u8]) -> Result<()> {
        if matches!(name, b"" | b"." | b"..") || name.contains(&b'/') {
            return Err(refused(directory, "has a whiteout without a name"));
        }
        let all = names(directory)?;
        if let Some(parent) = self.walk(directory, &all, Missing::Stop)? {
            self.prune(parent, Some(name));
        }
        Ok(())
    }

    /// Removes everything that lower layers have in a directory.
    pub(crate) fn make_opaque(&mut self, directory: &[u8]) -> Result<()> {
        let all = names(directory)?;
        if let Some(node) = self.walk(directory, &all, Missing::Stop)? {
            self.prune(node, None);
        }
        Ok(())
    }

    /// Looks a path up, following symbolic links also at its end.
    #[cfg(test)]
    pub(crate) fn look_up(&mut self, path: &[u8]) -> Result<Option<NodeId>> {
        let all = names(path)?;
        let Some((last, above)) = all.split_last() else {
            return Ok(Some(NodeId::ROOT));
        };
        let Some(parent) = self.walk(path, above, Missing::Stop)? else {
            return Ok(None);
        };
        let Some(found) = self
            .children(parent)
            .and_then(|children| children.get(*last))
            .copied()
        else {
            return Ok(None);
        };
        match self.node(found.node).content {
            Content::Symlink(_) => self.walk(path, &all, Missing::Stop),
            _ => Ok(Some(found.node)),
        }
    }

    /// Makes a directory where nothing is; what is there already stays as it is.
    pub(crate) fn ensure_directory(&mut self, path: &[u8], mode: u16) -> Result<()> {
        let all = names(path)?;
        let Some((last, above)) = all.split_last() else {
            return Ok(());
        };
        let parent = self
            .walk(path, above, Missing::Make)?
            .ok_or_else(|| refused(path, "has no directory"))?;
        if self
            .children(parent)
            .is_some_and(|children| !children.contains_key(*last))
        {
            let attributes = Attributes {
                mode,
                ..Attributes::default()
            };
            let node = self.add(
                path,
                parent,
                attributes,
                Content::Directory(BTreeMap::new()),
            )?;
            self.enter(parent, last, node);
        }
        Ok(())
    }

    /// Walks to a directory.
    fn walk(&mut self, path: &[u8], all: &[&[u8]], missing: Missing) -> Result<Option<NodeId>> {
        let mut pending: VecDeque<Box<[u8]>> = all.iter().map(|name| Box::from(*name)).collect();
        let mut way = vec![NodeId::ROOT];
        let mut followed = 0;
        while let Some(name) = pending.pop_front() {
            if &*name == b".." {
                // Only from a link's target: at the root it stays there, as the kernel has it.
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let here = way.last().copied().unwrap_or(NodeId::ROOT);
            let found = self
                .children(here)
                .and_then(|children| children.get(&name))
                .copied();
            let next = match found {
                Some(name) => name.node,
                None if missing == Missing::Stop => return Ok(None),
                None => {
                    let attributes = Attributes {
                        mode: 0o755,
                        ..Attributes::default()
                    };
                    let made =
                        self.add(path, here, attributes, Content::Directory(BTreeMap::new()))?;
                    self.enter(here, &name, made);
                    made
                }
            };
            match &self.node(next).content {
                Content::Directory(_) => way.push(next),
                Content::Symlink(target) => {
                    followed += 1;
                    if followed > MOST_LINKS_FOLLOWED {
                        return Err(refused(path, "goes through too many symbolic links"));
                    }
                    let target = target.clone();
                    if target.first() == Some(&b'/') {
                        way.truncate(1);
                    }
                    for part in target.split(|byte| *byte == b'/').rev() {
                        if part.len() > LONGEST_NAME {
                            return Err(refused(
                                path,
                                "goes through a symbolic link whose target's name is too long",
                            ));
                        }
                        if !part.is_empty() && part != b"." {
                            pending.push_front(Box::from(part));
                        }
                    }
                }
                _ if missing == Missing::Stop => return Ok(None),
                _ => return Err(refused(path, "goes through something that is no directory")),
            }
        }
        Ok(way.pop())
    }

    fn add(
        &mut self,
        path: &[u8],
        parent: NodeId,
        attributes: Attributes,
        content: Content,
    ) -> Result<NodeId> {
        if self.nodes.len() >= MOST_NODES {
            return Err(refused(
                path,
                format!("is one too many: an image has at most {MOST_NODES} files"),
            ));
        }
        let depth = self.node(parent).depth + 1;
        if depth > DEEPEST {
            return Err(refused(
                path,
                format!("is deeper than {DEEPEST} directories"),
            ));
        }
        let id =
            NodeId(u32::try_from(self.nodes.len()).map_err(|_| refused(path, "is one too many"))?);
        self.nodes.push(Node {
            attributes,
            content,
            links: 1,
            depth,
        });
        Ok(id)
    }

    /// Enters a name, dropping what had it.
    fn enter(&mut self, parent: NodeId, name: &[u8], node: NodeId) {
        let layer = self.layer;
        let old = self
            .children_mut(parent)
            .and_then(|children| children.insert(Box::from(name), Name { node, layer }));
        if let Some(old) = old {
            self.drop_name(old.node);
        }
    }

    /// Takes one name from a node, and everything from one that has none left.
    fn drop_name(&mut self, node: NodeId) {
        let mut pending = vec![node];
        while let Some(id) = pending.pop() {
            let node = self.node_mut(id);
            node.links = node.links.saturating_sub(1);
            if node.links > 0 {
                continue;
            }
            match std::mem::replace(&mut node.content, Content::Fifo) {
                Content::Directory(children) => {
                    pending.extend(children.into_values().map(|name| name.node))
                }
                Content::File { run, .. } if run.blocks > 0 => self.freed.push(run),
                _ => {}
            }
        }
    }

    /// Removes what lower layers have below a directory: all of it, or one name of it. Depth is bounded by [`DEEPEST`].
    fn prune(&mut self, directory: NodeId, only: Option<&[u8]>) {
        let Some(children) = self.children(directory) else {
            return;
        };
        if only.is_none() && self.pruned.contains(&directory) {
            return;
        }
        let looked_at: Vec<(Box<[u8]>, Name)> = match only {
            Some(name) => children
                .get(name)
                .map(|found| (Box::from(name), *found))
                .into_iter()
                .collect(),
            None => children
                .iter()
                .map(|(name, found)| (name.clone(), *found))
                .collect(),
        };
        if only.is_none() {
            self.pruned.insert(directory);
        }
        let layer = self.layer;
        for (name, found) in looked_at {
            self.prune(found.node, None);
            // A directory of below in which this layer has something is this layer's by that.
            let needed = self
                .children(found.node)
                .is_some_and(|children| !children.is_empty());
            if found.layer < layer
                && !needed
                && let Some(children) = self.children_mut(directory)
                && children.remove(&name).is_some()
            {
                self.drop_name(found.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Content {
        Content::File {
            run: Run::default(),
            bytes: 0,
        }
    }

    fn directory() -> Content {
        Content::Directory(BTreeMap::new())
    }

    fn put(tree: &mut Tree, path: &str, content: Content) {
        tree.put(path.as_bytes(), Attributes::default(), content)
            .unwrap();
    }

    fn link_to(target: &str) -> Content {
        Content::Symlink(target.as_bytes().into())
    }

    fn has(tree: &mut Tree, path: &str) -> bool {
        tree.look_up(path.as_bytes()).unwrap().is_some()
    }

    #[test]
    fn a_parent_that_is_a_link_is_followed_within_the_root() {
        let mut tree = Tree::new();
        put(&mut tree, "usr/lib", directory());
        put(&mut tree, "lib", link_to("usr/lib"));
        put(&mut tree, "up", link_to("../../../etc"));
        tree.next_layer();
        put(&mut tree, "lib/a.so", file());
        put(&mut tree, "up/passwd", file());
        assert!(has(&mut tree, "usr/lib/a.so") && has(&mut tree, "etc/passwd"));
        put(&mut tree, "loop", link_to("loop"));
        assert!(tree.put(b"loop/x", Attributes::default(), file()).is_err());
        assert!(tree.put(b"a/../b", Attributes::default(), file()).is_err());
        assert!(
            tree.put(b"usr/lib/a.so/x", Attributes::default(), file())
                .is_err()
        );
    }

    #[test]
    fn a_link_is_replaced_and_not_followed_at_the_end() {
        let mut tree = Tree::new();
        put(&mut tree, "etc/passwd", file());
        put(&mut tree, "a", link_to("etc"));
        tree.next_layer();
        put(&mut tree, "a", directory());
        put(&mut tree, "a/passwd2", file());
        assert!(
            !has(&mut tree, "etc/passwd2")
                && has(&mut tree, "a/passwd2")
                && has(&mut tree, "etc/passwd")
        );
    }

    #[test]
    fn whiteouts_take_what_is_below_and_leave_what_is_of_this_layer() {
        let mut tree = Tree::new();
        put(&mut tree, "d/old/deep", file());
        put(&mut tree, "d/keep", file());
        put(&mut tree, "gone", file());
        tree.next_layer();
        put(&mut tree, "d/old/new", file());
        tree.white_out(b"d", b"old").unwrap();
        tree.white_out(b"", b"gone").unwrap();
        tree.white_out(b"nowhere", b"x").unwrap();
        assert!(
            has(&mut tree, "d/old/new")
                && !has(&mut tree, "d/old/deep")
                && has(&mut tree, "d/keep")
        );
        assert!(!has(&mut tree, "gone"));
        tree.next_layer();
        put(&mut tree, "d/own", file());
        tree.make_opaque(b"d").unwrap();
        assert!(has(&mut tree, "d/own") && !has(&mut tree, "d/keep") && !has(&mut tree, "d/old"));
        assert!(tree.white_out(b"../x", b"y").is_err() && tree.white_out(b"d", b"..").is_err());
        assert!(tree.white_out(b"d", b"").is_err());
    }

    #[test]
    fn hard_links_count_and_the_last_name_frees_the_blocks() {
        let mut tree = Tree::new();
        let run = Run {
            start: 100,
            blocks: 2,
        };
        put(&mut tree, "a", Content::File { run, bytes: 5000 });
        tree.link(b"b", b"a").unwrap();
        tree.link(b"b", b"a").unwrap();
        let node = tree.look_up(b"b").unwrap().unwrap();
        assert_eq!(tree.node(node).links, 2);
        tree.next_layer();
        tree.white_out(b"", b"a").unwrap();
        assert!(tree.freed.is_empty());
        put(&mut tree, "b", file());
        assert_eq!(tree.freed, [run]);
        assert!(tree.link(b"c", b"absent").is_err() && tree.link(b"c", b"../b").is_err());
        put(&mut tree, "dir", directory());
        assert!(tree.link(b"c", b"dir").is_err());
    }
}
