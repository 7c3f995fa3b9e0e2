//! The stored form: OpenWire version 11, loose, no cache, with a 4-byte size prefix.

/// OpenWire objects inside a message that we keep but do not read, each with its presence byte(s), as stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OpaqueFields {
    /// Field 20, `dataStructure`.
    pub data_structure: bytes::Bytes,
    /// Field 21, `targetConsumerId`.
    pub target_consumer_id: bytes::Bytes,
    /// Field 24, `brokerPath`.
    pub broker_path: bytes::Bytes,
    /// Field 29, `cluster`.
    pub cluster: bytes::Bytes,
}
