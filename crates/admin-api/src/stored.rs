use kahawai_types::Lsn;
use serde::{Deserialize, Serialize};

use crate::command::RecordText;
use crate::position::optional;

/// What a node has stored of its cluster's record: `GET /cluster/record`. Of these of all nodes an operator puts a record
/// together that the election service has lost.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredRecord {
    /// The node's name.
    pub node_id: String,
    /// Its data directory, 32 hex digits.
    pub store_id: String,
    /// The cluster that its data belongs to, 32 hex digits; `None` before it has joined one.
    pub cluster_id: Option<String>,
    /// The newest record that it has seen; `None` if it has seen none.
    pub record: Option<RecordText>,
    /// It serves no lower epoch any more.
    pub promised_epoch: u64,
    /// Epoch of its newest batch; `None` = not known now, the store is not open.
    pub last_epoch: Option<u64>,
    /// End of its journal; `None` as above.
    #[serde(with = "optional")]
    pub end: Option<Lsn>,
    /// Why it takes no part in elections: the service's record is missing, or older than one that was seen.
    pub lost: Option<String>,
    /// It leads now.
    pub leads: bool,
}

#[cfg(test)]
mod tests {
    use kahawai_types::Location;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_known_is_null() {
        let mut stored =
            StoredRecord { node_id: "a".to_owned(), promised_epoch: 3, ..StoredRecord::default() };
        let json = serde_json::to_value(&stored).unwrap();
        assert_eq!((&json["end"], &json["record"]), (&json!(null), &json!(null)));
        assert_eq!(serde_json::from_value::<StoredRecord>(json).unwrap(), stored);
        stored.end = Some(Location::new(12, 3456).lsn());
        stored.record = Some(RecordText("{\n}".to_owned()));
        let json = serde_json::to_value(&stored).unwrap();
        assert_eq!((&json["end"], &json["record"]), (&json!("12:3456"), &json!("{\n}")));
        assert_eq!(serde_json::from_value::<StoredRecord>(json).unwrap(), stored);
    }

    #[test]
    fn a_later_release_may_say_more_and_an_earlier_one_less() {
        let stored: StoredRecord =
            serde_json::from_value(json!({ "node_id": "a", "colour": "red" })).unwrap();
        assert_eq!(stored, StoredRecord { node_id: "a".to_owned(), ..StoredRecord::default() });
        assert!(serde_json::from_value::<StoredRecord>(json!({ "end": "12" })).is_err());
    }
}
