//! One parsed file, and its elements with the lines they begin in.

use roxmltree::{Attribute, Document, Node, ParsingOptions};

use crate::FILE_BYTES_MAX;
use crate::error::ConfigError;
use crate::verdict::Origin;

/// Spring's own elements.
const BEANS: &str = "http://www.springframework.org/schema/beans";
/// A broker's elements; the second is what files had before ActiveMQ 5.
const CORE: [&str; 2] = ["http://activemq.apache.org/schema/core", "http://activemq.org/config/1.0"];
/// The elements of replication.
const KAHADB: &str = "http://activemq.apache.org/schema/kahadb";

/// Whose element it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Vocabulary {
    /// Spring.
    Beans,
    /// The broker.
    Core,
    /// Replication.
    Kahadb,
    /// Anything else: Camel, Jetty.
    Foreign,
}

/// One parsed file.
pub struct Page<'t> {
    file: &'t str,
    document: Document<'t>,
    /// Where each line ends. The parser counts them anew for each question, which takes long in a long file.
    line_ends: Vec<usize>,
}

impl<'t> Page<'t> {
    /// Parses `text`, which was read from `file`. Elements may lie in each other as deep as they like: nothing here recurses.
    pub fn parse(file: &'t str, text: &'t str) -> Result<Self, ConfigError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge { file: file.to_owned(), bytes: text.len() });
        }
        // No DTD: it could define entities that grow without end.
        let options = ParsingOptions { allow_dtd: false, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options).map_err(|error| ConfigError::Syntax {
            file: file.to_owned(),
            line: error.pos().row,
            message: match error {
                roxmltree::Error::DtdDetected => "a DTD is not read; take <!DOCTYPE …> out".into(),
                error => format!("not well-formed XML: {error}"),
            },
        })?;
        let line_ends =
            text.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at).collect();
        Ok(Self { file, document, line_ends })
    }

    /// The outermost element.
    pub fn root(&self) -> Element<'_> {
        Element { page: self, node: self.document.root_element() }
    }

    /// As it was given.
    pub fn file(&self) -> &str {
        self.file
    }

    fn origin(&self, at: usize) -> Origin {
        let line = self.line_ends.partition_point(|&end| end < at) + 1;
        Origin { file: self.file.to_owned(), line: u32::try_from(line).unwrap_or(u32::MAX) }
    }
}

/// An element of a page.
#[derive(Clone, Copy)]
pub struct Element<'p> {
    page: &'p Page<'p>,
    node: Node<'p, 'p>,
}

impl<'p> Element<'p> {
    pub fn page(self) -> &'p Page<'p> {
        self.page
    }

    /// Its name without prefix.
    pub fn name(self) -> &'p str {
        self.node.tag_name().name()
    }

    pub fn vocabulary(self) -> Vocabulary {
        match self.node.tag_name().namespace() {
            Some(BEANS) => Vocabulary::Beans,
            Some(KAHADB) => Vocabulary::Kahadb,
            Some(namespace) if CORE.contains(&namespace) => Vocabulary::Core,
            _ => Vocabulary::Foreign,
        }
    }

    pub fn is(self, vocabulary: Vocabulary, name: &str) -> bool {
        self.name() == name && self.vocabulary() == vocabulary
    }

    pub fn origin(self) -> Origin {
        self.page.origin(self.node.range().start)
    }

    pub fn origin_of(self, attribute: Attribute<'_, '_>) -> Origin {
        self.page.origin(attribute.range().start)
    }

    pub fn attributes(self) -> impl ExactSizeIterator<Item = Attribute<'p, 'p>> {
        self.node.attributes()
    }

    /// The attribute's raw value.
    pub fn raw(self, name: &str) -> Option<&'p str> {
        self.node.attribute(name)
    }

    pub fn children(self) -> impl Iterator<Item = Element<'p>> {
        self.node.children().filter(Node::is_element).map(move |node| Element { page: self.page, node })
    }

    /// The text directly in it, without the blanks around it; empty if there is none.
    pub fn text(self) -> &'p str {
        let texts = self.node.children().filter(Node::is_text).filter_map(|node| node.text());
        texts.map(str::trim).find(|text| !text.is_empty()).unwrap_or("")
    }

    /// All elements in it, however deep.
    pub fn descendants(self) -> impl Iterator<Item = Element<'p>> {
        let all = self.node.descendants().skip(1).filter(Node::is_element);
        all.map(move |node| Element { page: self.page, node })
    }
}
