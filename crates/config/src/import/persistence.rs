//! `persistenceAdapter`: where the journal is.

use crate::page::{Element, Vocabulary};
use crate::settings::{JOURNAL_FILE_BYTES_MAX, JOURNAL_FILE_BYTES_MIN, NodeSettings};
use crate::value;

use super::rules::{BUNDLED, Rule, Table};
use super::sink::Sink;

/// Other stores hold messages that we would not find.
pub const OTHER_STORE: &str =
    "only KahaDB is read; write <persistenceAdapter><kahaDB directory=\"…\"/></persistenceAdapter>";

const ADAPTERS: Table = &[
    (
        &[
            "amqPersistenceAdapter",
            "amqPersistenceAdapterFactory",
            "bean",
            "jdbcPersistenceAdapter",
            "journalPersistenceAdapter",
            "journalPersistenceAdapterFactory",
            "journaledJDBC",
            "kahaPersistenceAdapter",
            "levelDB",
            "memoryPersistenceAdapter",
            "ref",
        ],
        Rule::Refused(OTHER_STORE),
    ),
    (
        &["mKahaDB"],
        Rule::Refused(
            "several stores in one directory are not served; `kahawai store inspect` shows what is in them",
        ),
    ),
    (&["replicatedLevelDB"], Rule::Refused("LevelDB is not read; write a <kahadbReplicationBroker>")),
];

const FLUSHED: Rule = Rule::NoEffect("a confirmation always waits for the flush to the disk");
const PACED: Rule = Rule::NoEffect("checkpoints and the collection of files pace themselves");
const LOCKED: Rule = Rule::NoEffect("the directory is always locked, and tried once");

const ATTRIBUTES: Table = &[
    (
        &[
            "archiveCorruptedIndex",
            "concurrentStoreAndDispatchQueues",
            "concurrentStoreAndDispatchTopics",
            "concurrentStoreAndDispatchTransactions",
            "dataFileFactory",
            "enableIndexDiskSyncs",
            "enableIndexPageCaching",
            "enableIndexRecoveryFile",
            "enableIndexWriteAsync",
            "failoverProducersAuditDepth",
            "indexCacheSize",
            "indexLFUEvictionFactor",
            "indexWriteBatchSize",
            "journalMaxWriteBatchSize",
            "maxAsyncJobs",
            "maxFailoverProducersToTrack",
            "preallocationScope",
            "preallocationStrategy",
            "useIndexLFRUEviction",
            "enableSubscriptionStatistics",
            "transactionIdTransformer",
            "brokerName",
        ],
        BUNDLED,
    ),
    (&["enableJournalDiskSyncs", "journalDiskSyncStrategy", "journalDiskSyncInterval"], FLUSHED),
    (
        &[
            "checkpointInterval",
            "cleanupInterval",
            "cleanupOnStop",
            "compactAcksAfterNoGC",
            "compactAcksIgnoresStoreGrowth",
            "enableAckCompaction",
        ],
        PACED,
    ),
    (&["databaseLockedWaitDelay", "lockKeepAlivePeriod", "useLock", "stopOnError", "locker"], LOCKED),
    (
        &["checksumJournalFiles", "checkForCorruptJournalFiles"],
        Rule::NoEffect("checksums are always written and checked"),
    ),
    (
        &["ignoreMissingJournalfiles"],
        Rule::Only(
            "false",
            "a missing journal file keeps the broker from starting; see `kahawai store verify`",
        ),
    ),
    (&["forceRecoverIndex"], Rule::Only("false", "use `kahawai store rebuild-index`")),
    (
        &["archiveDataLogs", "directoryArchive"],
        Rule::NotBuilt("files that nobody needs are deleted, not archived"),
    ),
    (
        &["purgeRecoveredXATransactionStrategy", "purgeRecoveredXATransactions"],
        Rule::NotBuilt("prepared transactions stay in doubt"),
    ),
    (
        &["indexDirectory"],
        Rule::Refused(
            "the index has to be beside the journal: move db.data and db.redo there, and take this out",
        ),
    ),
];

/// Reads `persistenceAdapter`.
pub fn read(element: Element<'_>, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.wrapper(element);
    let mut seen = false;
    for child in element.children() {
        if !child.is(Vocabulary::Core, "kahaDB") {
            sink.element_by_table(child, ADAPTERS, "persistenceAdapter");
        } else if seen {
            sink.refused(child, "a second one; a broker has one store");
        } else {
            kahadb(child, node, sink);
        }
        seen = true;
    }
    if !seen {
        sink.refused(element, OTHER_STORE);
    }
}

fn kahadb(element: Element<'_>, node: &mut NodeSettings, sink: &mut Sink<'_>) {
    sink.no_text(element);
    for attribute in element.attributes() {
        match attribute.name() {
            _ if attribute.namespace().is_some() => sink.attribute_by_table(element, attribute, &[]),
            "directory" => {
                if let Some(directory) = sink.setting(element, attribute, value::text) {
                    node.directory = directory;
                }
            }
            "journalMaxFileLength" => {
                let range = JOURNAL_FILE_BYTES_MIN..=JOURNAL_FILE_BYTES_MAX;
                let bytes = sink.setting(element, attribute, |text| value::bytes_within(text, range));
                node.journal_file_bytes = bytes.and_then(|bytes| u32::try_from(bytes).ok());
            }
            _ => sink.attribute_by_table(element, attribute, ATTRIBUTES),
        }
    }
    if element.raw("directory").is_none() {
        sink.refused(element, "directory is missing; write where the journal is, directory=\"…\"");
    }
    for child in element.children() {
        sink.element_by_table(child, ATTRIBUTES, "kahaDB");
    }
}
