use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use kahawai_message::{Destination, DestinationKind, Text};
use kahawai_types::Location;
use kahawai_wire::{Reader, WireError};

use super::pages::{PageError, PageFile, ReadAt, Redo};
use super::tree::{List, SequenceSet, SizedLocation, Tree, Value, location};
use crate::command::{CommandError, Subscription, decode_subscription};
use crate::protobuf::varint;

/// The newest version that we know, ActiveMQ's since 5.15.
const VERSION_MAX: i32 = 7;
/// OpenWire version of what stores hold whose metadata does not say.
const OPENWIRE_LEGACY: i32 = 6;

/// Page 0: what the index says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metadata {
    /// Version of the index, 1 to 7.
    pub version: i32,
    /// The index reflects the journal up to this record, itself included. `None` = nothing. Pages may be ahead of it, so
    /// that replay must bear to meet what is there already.
    pub last_update: Option<Location>,
    /// First operation of the oldest transaction without outcome at that time; replay begins there if it is set.
    pub first_in_progress_transaction: Option<Location>,
    /// The newest producer audit record.
    pub producer_audit: Option<Location>,
    /// The newest ack map record.
    pub ack_map: Option<Location>,
    /// OpenWire version of the stored messages, acknowledgements and subscriptions.
    pub openwire_version: i32,
}

impl Metadata {
    /// ```text
    /// | state: i32 | destinations tree: i64 | last update | first in progress | audit | version: i32 | ack map | OpenWire: i32 |
    /// ```
    /// Locations are a boolean and, if true, two ints. From the audit on, older versions may end anywhere.
    fn read(page: Bytes) -> Result<(Self, i64), WireError> {
        let reader = &mut Reader::new(page);
        // 1 closed, 2 open: upstream leaves 2 behind a clean stop, so it says nothing.
        reader.i32()?;
        let destinations = reader.i64()?;
        let last_update = optional_location(reader)?;
        let first_in_progress_transaction = optional_location(reader)?;
        let producer_audit = if_there(optional_location(reader))?.flatten();
        let version = if_there(reader.i32())?.unwrap_or(1);
        let ack_map = if version >= 5 { optional_location(reader)? } else { None };
        let openwire_version = if_there(reader.i32())?.unwrap_or(OPENWIRE_LEGACY);
        let metadata = Self {
            version,
            last_update,
            first_in_progress_transaction,
            producer_audit,
            ack_map,
            openwire_version,
        };
        Ok((metadata, destinations))
    }
}

pub(crate) fn optional_location(reader: &mut Reader) -> Result<Option<Location>, WireError> {
    if reader.bool()? { location(reader).map(Some) } else { Ok(None) }
}

/// `None` where the input ends.
fn if_there<T>(read: Result<T, WireError>) -> Result<Option<T>, WireError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(WireError::Short { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Messages of a higher tier are delivered before those of a lower one; inside a tier the sequence decides.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Tier {
    /// Priority 0 to 3, where priorities count.
    Low,
    /// Priority 4, or priorities do not count.
    Default,
    /// Priority 5 to 9, where priorities count.
    High,
}

impl Tier {
    /// In delivery order.
    pub const ALL: [Self; 3] = [Self::High, Self::Default, Self::Low];

    /// The tier of a priority.
    pub const fn of(priority: i32) -> Self {
        match priority {
            ..4 => Self::Low,
            4 => Self::Default,
            _ => Self::High,
        }
    }
}

/// How far a durable subscription acknowledged, in its topic's order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastAck {
    /// Sequence of the last acknowledged message; -1 before the first.
    pub sequence: i64,
    /// That message's tier.
    pub tier: Tier,
}

impl Value for LastAck {
    fn read(reader: &mut Reader, version: i32) -> Result<Self, WireError> {
        let sequence = reader.i64()?;
        // Upstream's constant for a high tier, where the index does not say.
        let tier = if version >= 3 { Tier::of(reader.i8()?.into()) } else { Tier::High };
        Ok(Self { sequence, tier })
    }
}

/// Root pages of one tree per tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct OrderPages {
    default: i64,
    /// Low and high; from version 2 on.
    prioritized: Option<(i64, i64)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct TopicPages {
    subscriptions: i64,
    last_acks: i64,
    pending: PendingPage,
    /// From version 5 on.
    locations: Option<i64>,
}

/// How the pending sets are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum PendingPage {
    /// Version 1 and 2: not at all; everything from the last ack on.
    None,
    /// Version 3: a tree, sequence to a serialized set of subscription keys.
    Tree(i64),
    /// Version 4: a list, subscription key to SequenceSet.
    List(i64),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct DestinationPages {
    order: OrderPages,
    locations: i64,
    message_ids: i64,
    topic: Option<TopicPages>,
    statistics: Option<i64>,
}

impl DestinationPages {
    fn roots(&self) -> impl Iterator<Item = i64> {
        let prioritized = self.order.prioritized.into_iter().flat_map(|(low, high)| [low, high]);
        let topic = self.topic.into_iter().flat_map(|topic| {
            let pending = match topic.pending {
                PendingPage::None => None,
                PendingPage::Tree(page) | PendingPage::List(page) => Some(page),
            };
            [Some(topic.subscriptions), Some(topic.last_acks), pending, topic.locations].into_iter().flatten()
        });
        [self.order.default, self.locations, self.message_ids]
            .into_iter()
            .chain(prioritized)
            .chain(topic)
            .chain(self.statistics)
    }
}

impl Value for DestinationPages {
    fn read(reader: &mut Reader, version: i32) -> Result<Self, WireError> {
        let (default, locations, message_ids) = (reader.i64()?, reader.i64()?, reader.i64()?);
        let topic = if reader.bool()? {
            Some(TopicPages {
                subscriptions: reader.i64()?,
                last_acks: reader.i64()?,
                pending: match version {
                    ..3 => PendingPage::None,
                    3 => PendingPage::Tree(reader.i64()?),
                    _ => PendingPage::List(reader.i64()?),
                },
                locations: if version >= 5 { Some(reader.i64()?) } else { None },
            })
        } else {
            None
        };
        let prioritized = if version >= 2 { Some((reader.i64()?, reader.i64()?)) } else { None };
        let statistics = if version >= 7 { Some(reader.i64()?) } else { None };
        Ok(Self { order: OrderPages { default, prioritized }, locations, message_ids, topic, statistics })
    }
}

/// One destination of the index. It may be empty; then nothing else knows of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredDestination {
    /// Which.
    pub destination: Destination,
    pages: DestinationPages,
}

impl StoredDestination {
    /// Has it subscriptions, a topic's way of storing?
    pub fn is_topic(&self) -> bool {
        self.pages.topic.is_some()
    }
}

/// A message as the index knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMessage {
    /// Its sequence in the destination.
    pub sequence: i64,
    /// Its producer key. A view into its leaf's memory.
    pub message_key: Text,
    /// The record with its present content: the add, or the last update.
    pub record: SizedLocation,
    /// When it is delivered relative to others.
    pub tier: Tier,
}

struct MessageKeys {
    message_key: Text,
    record: SizedLocation,
}

impl Value for MessageKeys {
    fn read(reader: &mut Reader, version: i32) -> Result<Self, WireError> {
        Ok(Self { message_key: reader.java_utf()?, record: SizedLocation::read(reader, version)? })
    }
}

/// A protobuf message behind its length, not yet looked into.
struct Framed(Bytes);

impl Value for Framed {
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        let at = reader.position();
        let (length, width) = varint(reader.peek()).ok_or(WireError::Varint { at })?;
        reader.skip(width)?;
        let length =
            usize::try_from(length).map_err(|_| WireError::Length { at, length: length.cast_signed() })?;
        reader.bytes(length).map(Self)
    }
}

/// A serialized `HashSet<String>`, not yet looked into.
struct Serialized(Bytes);

impl Value for Serialized {
    fn read(reader: &mut Reader, _: i32) -> Result<Self, WireError> {
        let length = reader.i32_len()?;
        reader.bytes(length).map(Self)
    }
}

/// A durable subscription as the index knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredSubscription {
    /// Its creation, as in the journal.
    pub subscription: Subscription,
    /// Where its creation is in the journal; not before version 5.
    pub record: Option<Location>,
    /// How far it acknowledged.
    pub last_ack: Option<LastAck>,
    /// What it has not acknowledged, *and one member more*: the sequence after the newest message added. Empty until
    /// something is sent. So message `s` is pending if `s` is in the set and stored.
    pub pending: SequenceSet,
}

impl StoredSubscription {
    /// How many messages it has not acknowledged (from version 4 on).
    pub fn pending_count(&self) -> u64 {
        self.pending.count().saturating_sub(1)
    }
}

/// Numbers that upstream keeps; the minimum is often wrong (defect D13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statistics {
    /// Messages.
    pub messages: i64,
    /// Bytes of their records.
    pub bytes: i64,
    /// Bytes of the largest record ever.
    pub bytes_max: i64,
    /// Meant to be bytes of the smallest record.
    pub bytes_min: i64,
    /// How often a size was counted.
    pub sizes: i64,
}

/// A message store's index, read only.
///
/// ```no_run
/// # fn f(data: &dyn kahawai_kahadb::pagefile::ReadAt) -> Result<(), kahawai_kahadb::pagefile::PageError> {
/// let import = kahawai_kahadb::pagefile::Import::open(data, None)?;
/// for destination in import.destinations()? {
///     for message in import.messages(&destination) {
///         println!("{} {:?}", destination.destination, message?);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Import<'a> {
    pages: PageFile<'a>,
    metadata: Metadata,
    destinations: i64,
}

impl<'a> Import<'a> {
    /// Reads header, redo file and metadata of `db.data` and `db.redo`.
    pub fn open(data: &'a dyn ReadAt, redo: Option<&'a dyn ReadAt>) -> Result<Self, PageError> {
        let pages = PageFile::open(data, redo)?;
        let (page, bytes) = pages.chain(0, &mut HashSet::new())?;
        let (metadata, destinations) =
            Metadata::read(bytes).map_err(|source| PageError::Content { page, source })?;
        if !(1..=VERSION_MAX).contains(&metadata.version) {
            return Err(PageError::Version { found: metadata.version });
        }
        Ok(Self { pages, metadata, destinations })
    }

    /// What the index says about itself.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What became of `db.redo`.
    pub fn redo(&self) -> Redo {
        self.pages.redo()
    }

    /// The page file below.
    pub fn page_file(&self) -> &PageFile<'a> {
        &self.pages
    }

    fn tree<K: super::Key, V: Value>(&self, root: i64) -> Tree<'_, K, V> {
        Tree::new(&self.pages, self.metadata.version, root)
    }

    fn list<V: Value>(&self, head: i64) -> List<'_, Text, V> {
        List::new(&self.pages, self.metadata.version, head)
    }

    /// All destinations, in the order of their keys.
    pub fn destinations(&self) -> Result<Vec<StoredDestination>, PageError> {
        let mut found = Vec::new();
        let mut roots = HashSet::new();
        for entry in self.tree::<Text, DestinationPages>(self.destinations) {
            let (key, pages) = entry?;
            // Trees that share a root would make small damage into much work.
            for root in pages.roots() {
                if !roots.insert(root) {
                    return Err(PageError::Reused { page: root.cast_unsigned() });
                }
            }
            let destination =
                destination(&key).ok_or_else(|| PageError::DestinationKey { key: key.to_string() })?;
            found.push(StoredDestination { destination, pages });
        }
        Ok(found)
    }

    /// The messages of a destination in delivery order.
    ///
    /// A sequence may come twice: upstream leaves an entry behind in the old tier when an update changes a message's
    /// tier. [`Self::message_ids`] names each message once. Whoever collects keys should copy them: each is a view that
    /// keeps its leaf in memory.
    pub fn messages(
        &self,
        destination: &StoredDestination,
    ) -> impl Iterator<Item = Result<StoredMessage, PageError>> + use<'_, 'a> {
        let order = destination.pages.order;
        Tier::ALL.into_iter().flat_map(move |tier| self.tier(order, tier))
    }

    fn tier(&self, order: OrderPages, tier: Tier) -> impl Iterator<Item = Result<StoredMessage, PageError>> {
        let root = match tier {
            Tier::High => order.prioritized.map(|(_, high)| high),
            Tier::Default => Some(order.default),
            Tier::Low => order.prioritized.map(|(low, _)| low),
        };
        root.into_iter().flat_map(|root| self.tree::<i64, MessageKeys>(root)).map(move |entry| {
            let (sequence, MessageKeys { message_key, record }) = entry?;
            Ok(StoredMessage { sequence, message_key, record, tier })
        })
    }

    /// The location tree, which should say the same as [`Self::messages`].
    pub fn locations(
        &self,
        destination: &StoredDestination,
    ) -> impl Iterator<Item = Result<(SizedLocation, i64), PageError>> + use<'_, 'a> {
        self.tree(destination.pages.locations)
    }

    /// The message id tree, which should say the same as [`Self::messages`].
    pub fn message_ids(
        &self,
        destination: &StoredDestination,
    ) -> impl Iterator<Item = Result<(Text, i64), PageError>> + use<'_, 'a> {
        self.tree(destination.pages.message_ids)
    }

    /// The sequence that the next message gets: behind all that are stored, were acknowledged, or are pending. (Upstream
    /// takes acknowledged ones into account only if none is stored, and pending ones only if some are.) Walks all messages
    /// of the destination.
    pub fn next_sequence(&self, destination: &StoredDestination) -> Result<i64, PageError> {
        let mut next = 0;
        for message in self.messages(destination) {
            next = next.max(message?.sequence.saturating_add(1));
        }
        for (_, last_ack) in self.last_acks(destination)? {
            next = next.max(last_ack.sequence.saturating_add(1));
        }
        for (_, pending) in self.pending(destination)? {
            // Its last member is the next sequence already.
            next = next.max(pending.last().unwrap_or(0));
        }
        Ok(next)
    }

    /// The subscriptions of a topic, in the order of their keys; none for a queue.
    pub fn subscriptions(
        &self,
        destination: &StoredDestination,
    ) -> Result<Vec<StoredSubscription>, PageError> {
        let Some(topic) = destination.pages.topic else { return Ok(Vec::new()) };
        let mut last_acks: HashMap<Text, LastAck> = self.last_acks(destination)?.into_iter().collect();
        let mut pending: HashMap<Text, SequenceSet> = self.pending(destination)?.into_iter().collect();
        let mut records = HashMap::new();
        if let Some(head) = topic.locations {
            for entry in self.list::<Location>(head) {
                let (key, record) = entry?;
                records.insert(key, record);
            }
        }
        let mut found = Vec::new();
        let mut tree = self.tree::<Text, Framed>(topic.subscriptions);
        while let Some(entry) = tree.next() {
            let (key, Framed(command)) = entry?;
            let page = tree.leaf_page();
            let malformed = |source: CommandError| PageError::Subscription { page, source };
            found.push(StoredSubscription {
                subscription: decode_subscription(&command).map_err(malformed)?,
                record: records.remove(&key),
                last_ack: last_acks.remove(&key),
                pending: pending.remove(&key).unwrap_or_default(),
            });
        }
        Ok(found)
    }

    /// Last acknowledgements by subscription key. Those of removed subscriptions are gone.
    pub fn last_acks(&self, destination: &StoredDestination) -> Result<Vec<(Text, LastAck)>, PageError> {
        match destination.pages.topic {
            Some(topic) => self.tree(topic.last_acks).collect(),
            None => Ok(Vec::new()),
        }
    }

    /// Pending sets by subscription key, each with one member too many (see [`StoredSubscription::pending`]). There may
    /// be some without a subscription, waiting for it to be made again.
    pub fn pending(&self, destination: &StoredDestination) -> Result<Vec<(Text, SequenceSet)>, PageError> {
        let Some(topic) = destination.pages.topic else { return Ok(Vec::new()) };
        match topic.pending {
            PendingPage::List(head) => self.list(head).collect(),
            PendingPage::Tree(root) => self.pending_tree(root),
            PendingPage::None => self.pending_from_last_acks(destination),
        }
    }

    /// Version 3 kept for each sequence who has it pending.
    fn pending_tree(&self, root: i64) -> Result<Vec<(Text, SequenceSet)>, PageError> {
        let mut sets: BTreeMap<Text, SequenceSet> = BTreeMap::new();
        let mut tree = self.tree::<i64, Serialized>(root);
        while let Some(entry) = tree.next() {
            let (sequence, Serialized(keys)) = entry?;
            let page = tree.leaf_page();
            let keys =
                crate::javaser::string_set(keys).map_err(|source| PageError::Content { page, source })?;
            for key in keys {
                sets.entry(key).or_default().push(sequence);
            }
        }
        Ok(sets.into_iter().collect())
    }

    /// Before version 3 a subscription has pending what is stored from its last ack on. Upstream's upgrade includes the
    /// acknowledged message itself, if it is still there; so do we: a message too many is better than one too few.
    fn pending_from_last_acks(
        &self,
        destination: &StoredDestination,
    ) -> Result<Vec<(Text, SequenceSet)>, PageError> {
        let mut sequences = Vec::new();
        for message in self.messages(destination) {
            sequences.push(message?.sequence);
        }
        sequences.sort_unstable();
        let mut sets = Vec::new();
        for (key, last_ack) in self.last_acks(destination)? {
            let mut set = SequenceSet::default();
            let from = sequences.partition_point(|&sequence| sequence < last_ack.sequence);
            for &sequence in sequences.get(from..).unwrap_or_default() {
                set.push(sequence);
            }
            sets.push((key, set));
        }
        Ok(sets)
    }

    /// What upstream counted; not before version 7.
    pub fn statistics(&self, destination: &StoredDestination) -> Result<Option<Statistics>, PageError> {
        let Some(root) = destination.pages.statistics else { return Ok(None) };
        let (page, bytes) = self.pages.chain(root, &mut HashSet::new())?;
        let read = || -> Result<Option<Statistics>, WireError> {
            let mut reader = Reader::new(bytes);
            if !reader.bool()? {
                return Ok(None);
            }
            Ok(Some(Statistics {
                messages: reader.i64()?,
                bytes: reader.i64()?,
                bytes_max: reader.i64()?,
                bytes_min: reader.i64()?,
                sizes: reader.i64()?,
            }))
        };
        read().map_err(|source| PageError::Content { page, source })
    }
}

/// Reads the key of the destinations tree, `<type>:<name>`.
fn destination(key: &Text) -> Option<Destination> {
    let (number, name) = key.split_once(':')?;
    let kind = DestinationKind::from_number(number.parse().ok()?)?;
    Some(Destination::new(kind, name))
}
