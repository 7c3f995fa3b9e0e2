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
