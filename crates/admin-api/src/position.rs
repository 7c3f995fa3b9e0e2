//! Positions as texts, `file:offset`. As numbers they would lose digits in readers that have doubles only.

use kahawai_types::{Location, Lsn};
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(crate) fn serialize<S: Serializer>(position: &Lsn, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(position)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Lsn, D::Error> {
    let text = String::deserialize(from)?;
    text.parse::<Location>().map(Location::lsn).map_err(D::Error::custom)
}

/// Positions that may not be known: `null`.
pub(crate) mod optional {
    use super::{Deserialize, Deserializer, Error, Location, Lsn, Serializer};

    pub(crate) fn serialize<S: Serializer>(position: &Option<Lsn>, to: S) -> Result<S::Ok, S::Error> {
        match position {
            Some(position) => super::serialize(position, to),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Lsn>, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else {
            return Ok(None);
        };
        text.parse::<Location>().map(|location| Some(location.lsn())).map_err(D::Error::custom)
    }
}
