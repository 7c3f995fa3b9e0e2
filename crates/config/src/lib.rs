//! What a node is told: typed settings, from defaults, from ActiveMQ's XML files, from the command line.
//!
//! [`Settings::default`] is a broker alone on its usual port; [`load`] reads `activemq.xml` or `ha.xml` instead;
//! [`Settings::apply`] puts the command line over either. Nothing here does I/O: the caller hands files in.
//!
//! Spring XML is read as data; no bean is made, no expression evaluated. Every element and attribute gets a [`Verdict`]:
//! supported, accepted without effect, accepted although it is not built, or refused. An element that is not read gets one verdict
//! with all that is in it; one that only holds others is judged by them. What is refused is an error that names all such places; [`report`] shows the rest. Refused is what
//! nobody knows (a misspelt name must not be lost), what would open the broker to people who were kept out, and what would
//! make us look for messages in the wrong place.
//!
//! Reading order: `settings` (the model), `verdict`, `error`; `address`, `value`, `properties` and `location` (how texts are
//! understood); `page` (a parsed file); `import` (from elements to settings); `flags`; `report`.

mod address;
mod error;
mod flags;
mod import;
mod location;
mod page;
mod properties;
mod report;
mod settings;
mod value;
mod verdict;

pub use address::{Address, AddressError, parse_kdbr, parse_zk};
pub use error::{ConfigError, Refusals};
pub use flags::{FlagError, Flags};
pub use import::load;
pub use properties::Properties;
pub use report::report;
pub use settings::{
    ClusterSettings, Connector, DATA_DIRECTORY, JOURNAL_FILE_BYTES_MAX, JOURNAL_FILE_BYTES_MIN,
    MINIMUM_REPLICAS_MAX, NodeSettings, PeerTlsSettings, Protocol, SESSION_TIMEOUT_MS_MAX,
    SESSION_TIMEOUT_MS_MIN, STOMP_PORT, Secret, Settings, TRANSFER_SESSIONS_MAX, TlsSettings,
    ZooKeeperSettings,
};
pub use verdict::{Origin, Verdict, VerdictKind};

/// Largest configuration file.
pub const FILE_BYTES_MAX: usize = 4 << 20;
