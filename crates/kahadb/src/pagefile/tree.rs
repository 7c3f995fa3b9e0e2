use std::collections::HashSet;

use kahawai_message::Text;
use kahawai_types::Location;
use kahawai_wire::{Reader, WireError};

use super::pages::{PageError, PageFile};

/// No tree is deeper: with two children a node that would be more pages than a file can have.
pub const TREE_DEPTH_MAX: usize = 64;

/// Something that a node holds as a value. What `version` of the index it is changes some of them.
pub(crate) trait Value: Sized {
    fn read(reader: &mut Reader, version: i32) -> Result<Self, WireError>;
}

/// Something that a node holds as a key.
pub(crate) trait Key: Value {
    /// In the order of the tree.
    fn precedes(&self, later: &Self) -> bool;
}

impl Value for i64 {
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        reader.i64()
    }
}

impl Key for i64 {
    fn precedes(&self, later: &Self) -> bool {
        self < later
    }
}

impl Value for i32 {
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        reader.i32()
    }
}

impl Key for i32 {
    fn precedes(&self, later: &Self) -> bool {
        self < later
    }
}

impl Value for Text {
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        reader.java_utf()
    }
}

impl Key for Text {
    /// Java compares UTF-16 units, which differs from ours where a character needs two.
    fn precedes(&self, later: &Self) -> bool {
        self.encode_utf16().lt(later.encode_utf16())
    }
}

impl Value for Location {
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        location(reader)
    }
}

/// A place in the journal: `int file, int offset`.
pub(crate) fn location(reader: &mut Reader) -> Result<Location, WireError> {
    let at = reader.position();
    let mut part = || -> Result<u32, WireError> {
        let value = reader.i32()?;
        u32::try_from(value).map_err(|_| WireError::Unexpected { what: "location", value: value.into(), at })
    };
    Ok(Location::new(part()?, part()?))
}

/// A place in the journal, and the size of the record there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizedLocation {
    /// Where the record's header begins.
    pub location: Location,
    /// Size with header; `None` = the index is older than version 6, or was.
    pub size: Option<u32>,
}

impl Value for SizedLocation {
    fn read(reader: &mut Reader, version: i32) -> Result<Self, WireError> {
        let location = location(reader)?;
        let size =
            if version >= 6 { u32::try_from(reader.i32()?).ok().filter(|&size| size > 0) } else { None };
        Ok(Self { location, size })
    }
}

impl Key for SizedLocation {
    fn precedes(&self, later: &Self) -> bool {
        self.location < later.location
    }
}

/// A set of sequences as ascending ranges.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SequenceSet {
    ranges: Vec<(i64, i64)>,
}

impl SequenceSet {
    /// The ranges, first and last member of each, ascending and apart.
    pub fn ranges(&self) -> &[(i64, i64)] {
        &self.ranges
    }

    /// How many members it has.
    pub fn count(&self) -> u64 {
        self.ranges
            .iter()
            .fold(0, |sum, (first, last)| sum.saturating_add(last.abs_diff(*first).saturating_add(1)))
    }

    /// Is `sequence` in it?
    pub fn contains(&self, sequence: i64) -> bool {
        let index = self.ranges.partition_point(|&(_, last)| last < sequence);
        self.ranges.get(index).is_some_and(|&(first, _)| first <= sequence)
    }

    /// The highest member.
    pub fn last(&self) -> Option<i64> {
        self.ranges.last().map(|&(_, last)| last)
    }

    /// Appends a sequence above all members.
    pub(crate) fn push(&mut self, sequence: i64) {
        match self.ranges.last_mut() {
            Some((_, last)) if sequence <= *last => {}
            Some((_, last)) if *last + 1 == sequence => *last = sequence,
            _ => self.ranges.push((sequence, sequence)),
        }
    }
}

impl Value for SequenceSet {
    /// `int count`, then per range a boolean; true: two longs, false: one.
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        let at = reader.position();
        let count = reader.i32()?;
        let count = usize::try_from(count).map_err(|_| WireError::Length { at, length: count.into() })?;
        // A range is nine bytes or more.
        let mut ranges: Vec<(i64, i64)> = Vec::with_capacity(count.min(reader.remaining() / 9));
        for _ in 0..count {
            let at = reader.position();
            let two = reader.bool()?;
            let first = reader.i64()?;
            let last = if two { reader.i64()? } else { first };
            if last < first || ranges.last().is_some_and(|&(_, before)| before >= first) {
                return Err(WireError::Unexpected { what: "sequence", value: first, at });
            }
            ranges.push((first, last));
        }
        Ok(Self { ranges })
    }
}

/// Walks a B-tree from its lowest key on, one leaf in memory at a time. Ends after the first error.
///
/// ```text
/// node:  | count: i16 | count keys | branch: bool | branch: count + 1 child pages: i64
///                                                 | leaf: count values, next leaf: i64 |
/// ```
pub(crate) struct Tree<'a, K, V> {
    pages: &'a PageFile<'a>,
    version: i32,
    used: HashSet<u64>,
    /// What is left of the children of each branch on the way down.
    branches: Vec<std::vec::IntoIter<i64>>,
    leaf: std::vec::IntoIter<(K, V)>,
    leaf_page: u64,
    last_key: Option<K>,
}

impl<K, V> std::fmt::Debug for Tree<'_, K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("leaf_page", &self.leaf_page).finish_non_exhaustive()
    }
}

impl<'a, K: Key, V: Value> Tree<'a, K, V> {
    pub(crate) fn new(pages: &'a PageFile<'a>, version: i32, root: i64) -> Self {
        Self {
            pages,
            version,
            used: HashSet::new(),
            branches: vec![vec![root].into_iter()],
            leaf: Vec::new().into_iter(),
            leaf_page: 0,
            last_key: None,
        }
    }

    /// The first page of the leaf that the last entry came from.
    pub(crate) fn leaf_page(&self) -> u64 {
        self.leaf_page
    }

    /// Goes on to the next leaf. `false` at the end.
    fn advance(&mut self) -> Result<bool, PageError> {
        loop {
            let Some(children) = self.branches.last_mut() else { return Ok(false) };
            let Some(child) = children.next() else {
                self.branches.pop();
                continue;
            };
            let (page, node) = self.pages.chain(child, &mut self.used)?;
            let mut reader = Reader::new(node);
            match self.node(&mut reader).map_err(|source| PageError::Content { page, source })? {
                Node::Branch(children) => {
                    if self.branches.len() >= TREE_DEPTH_MAX {
                        return Err(PageError::TooDeep { page, limit: TREE_DEPTH_MAX });
                    }
                    self.branches.push(children.into_iter());
                }
                Node::Leaf(entries) => {
                    self.leaf = entries.into_iter();
                    self.leaf_page = page;
                    return Ok(true);
                }
            }
        }
    }

    fn node(&self, reader: &mut Reader) -> Result<Node<K, V>, WireError> {
        let count = count(reader)?;
        let mut keys = Vec::with_capacity(count.min(reader.remaining()));
        for _ in 0..count {
            keys.push(K::read(reader, self.version)?);
        }
        if reader.bool()? {
            let mut children = Vec::with_capacity((count + 1).min(reader.remaining() / 8));
            for _ in 0..=count {
                children.push(reader.i64()?);
            }
            return Ok(Node::Branch(children));
        }
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            entries.push((key, V::read(reader, self.version)?));
        }
        // Leaves are linked as well; we come by the branches.
        reader.i64()?;
        Ok(Node::Leaf(entries))
    }

    fn entry(&mut self) -> Result<Option<(K, V)>, PageError>
    where
        K: Clone,
    {
        loop {
            let Some((key, value)) = self.leaf.next() else {
                if self.advance()? {
                    continue;
                }
                return Ok(None);
            };
            if self.last_key.as_ref().is_some_and(|last| !last.precedes(&key)) {
                return Err(PageError::Order { page: self.leaf_page });
            }
            self.last_key = Some(key.clone());
            return Ok(Some((key, value)));
        }
    }
}

enum Node<K, V> {
    Branch(Vec<i64>),
    Leaf(Vec<(K, V)>),
}

impl<K: Key + Clone, V: Value> Iterator for Tree<'_, K, V> {
    type Item = Result<(K, V), PageError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.entry();
        if entry.is_err() {
            self.branches.clear();
            self.leaf = Vec::new().into_iter();
        }
        entry.transpose()
    }
}

/// A number of entries: a short that is not negative.
fn count(reader: &mut Reader) -> Result<usize, WireError> {
    let at = reader.position();
    let count = reader.i16()?;
    usize::try_from(count).map_err(|_| WireError::Length { at, length: count.into() })
}

/// Walks a linked list of nodes. Ends after the first error.
///
/// ```text
/// node:  | next page, -1 = last: i64 | count: i16 | count x (key, value) |
/// ```
pub(crate) struct List<'a, K, V> {
    pages: &'a PageFile<'a>,
    version: i32,
    used: HashSet<u64>,
    next: i64,
    entries: std::vec::IntoIter<(K, V)>,
}

impl<'a, K: Value, V: Value> List<'a, K, V> {
    pub(crate) fn new(pages: &'a PageFile<'a>, version: i32, head: i64) -> Self {
        Self { pages, version, used: HashSet::new(), next: head, entries: Vec::new().into_iter() }
    }

    fn advance(&mut self) -> Result<bool, PageError> {
        if self.next == -1 {
            return Ok(false);
        }
        let (page, node) = self.pages.chain(self.next, &mut self.used)?;
        let mut reader = Reader::new(node);
        let mut node = || -> Result<(i64, Vec<(K, V)>), WireError> {
            let next = reader.i64()?;
            let count = count(&mut reader)?;
            let mut entries = Vec::with_capacity(count.min(reader.remaining()));
            for _ in 0..count {
                entries.push((K::read(&mut reader, self.version)?, V::read(&mut reader, self.version)?));
            }
            Ok((next, entries))
        };
        let (next, entries) = node().map_err(|source| PageError::Content { page, source })?;
        self.next = next;
        self.entries = entries.into_iter();
        Ok(true)
    }
}

impl<K: Value, V: Value> Iterator for List<'_, K, V> {
    type Item = Result<(K, V), PageError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Some(Ok(entry));
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.next = -1;
                    return Some(Err(error));
                }
            }
        }
    }
}
