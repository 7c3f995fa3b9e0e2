use bytes::{BufMut, Bytes, BytesMut};
use kahawai_wire::WireError;

use super::{check_end, put_sized, sized_reader};
use crate::loose::{
    destination, put_destination, put_optional_destination, put_optional_string, put_string, required,
    required_string, string,
};
use crate::{Destination, StoredError, Text};

/// OpenWire's type number of a SubscriptionInfo.
const SUBSCRIPTION_INFO: u8 = 55;

/// A durable subscription as the store keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SubscriptionInfo {
    /// JMS client id.
    pub client_id: Text,
    /// The concrete topic.
    pub destination: Destination,
    /// Which messages.
    pub selector: Option<Text>,
    /// Its name within the client id.
    pub subscription_name: Text,
    /// What the client named, perhaps a wildcard.
    pub subscribed_destination: Option<Destination>,
    /// Not what came by the same connection.
    pub no_local: bool,
}

/// Appends `info` in its stored form.
pub fn encode_subscription_info(info: &SubscriptionInfo, out: &mut BytesMut) {
    put_sized(out, |out| {
        out.put_u8(SUBSCRIPTION_INFO);
        put_string(&info.client_id, out);
        put_destination(&info.destination, out);
        put_optional_string(info.selector.as_ref(), out);
        put_string(&info.subscription_name, out);
        put_optional_destination(info.subscribed_destination.as_ref(), out);
        out.put_u8(info.no_local.into());
    });
}

/// Reads a stored subscription.
pub fn decode_subscription_info(bytes: Bytes) -> Result<SubscriptionInfo, StoredError> {
    let reader = &mut sized_reader(bytes)?;
    let at = reader.position();
    let type_number = reader.u8()?;
    if type_number != SUBSCRIPTION_INFO {
        return Err(WireError::Unexpected { what: "subscription type", value: type_number.into(), at }.into());
    }
    // Struct expressions are evaluated as they are written: in the order of the fields.
    let info = SubscriptionInfo {
        client_id: required_string(reader, "clientId")?,
        destination: required(reader, "destination", destination)?,
        selector: string(reader)?,
        subscription_name: required_string(reader, "subscriptionName")?,
        subscribed_destination: destination(reader)?,
        no_local: reader.bool()?,
    };
    check_end(reader)?;
    Ok(info)
}
