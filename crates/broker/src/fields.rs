//! What a selector sees of a message: ActiveMQ's `PropertyExpression`.

use kahawai_message::properties::PropertyValue;
use kahawai_message::{Message, Text};
use kahawai_selector::{Fields, Value};

/// The fields of a message by the names that selectors use: JMS headers (`JMSPriority`, `JMSType`, …), JMSX properties,
/// and application properties.
///
/// `JMSDestination` is the original one of a message that was moved. `JMSRedelivered` and `JMSXDeliveryCount` count what
/// the stored form says, not deliveries since. What is no property type of JMS (bytes, lists, maps) is `NULL`.
#[derive(Clone, Copy, Debug)]
pub struct MessageFields<'a>(pub &'a Message);

impl Fields for MessageFields<'_> {
    fn field(&self, name: &str) -> Value<'_> {
        let message = self.0;
        if !name.starts_with("JMS") {
            return property(message, name);
        }
        match name {
            "JMSDestination" => {
                Value::from(message.original_destination.as_ref().unwrap_or(&message.destination).to_string())
            }
            "JMSReplyTo" => message.reply_to.as_ref().map_or(Value::Null, |to| Value::from(to.to_string())),
            "JMSType" => text(message.jms_type.as_ref()),
            "JMSDeliveryMode" => {
                Value::from(if message.persistent { "PERSISTENT" } else { "NON_PERSISTENT" })
            }
            "JMSPriority" => Value::Int(message.priority.into()),
            "JMSMessageID" => match &message.id.text_view {
                Some(view) => Value::from(&**view),
                None => Value::from(message.id.to_string()),
            },
            "JMSTimestamp" => Value::Long(message.timestamp_ms),
            "JMSCorrelationID" => text(message.correlation_id.as_ref()),
            "JMSExpiration" => Value::Long(message.expiration_ms),
            "JMSRedelivered" => Value::Bool(message.redelivery_counter > 0),
            "JMSXDeliveryCount" => Value::Int(message.redelivery_counter.saturating_add(1)),
            "JMSXGroupID" => text(message.group_id.as_ref()),
            "JMSXGroupSeq" => Value::Int(message.group_sequence),
            "JMSXGroupFirstForConsumer" => Value::Bool(message.group_first_for_consumer),
            "JMSXUserID" if message.user_id.is_some() => text(message.user_id.as_ref()),
            "JMSXProducerTXID" => message
                .original_transaction_id
                .as_ref()
                .or(message.transaction_id.as_ref())
                .map_or(Value::Null, |id| Value::from(id.to_string())),
            "JMSActiveMQBrokerInTime" => Value::Long(message.broker_in_time_ms),
            "JMSActiveMQBrokerOutTime" => Value::Long(message.broker_out_time_ms),
            _ => property(message, name),
        }
    }
}

fn text(text: Option<&Text>) -> Value<'_> {
    text.map_or(Value::Null, |text| Value::from(&**text))
}

fn property(message: &Message, name: &str) -> Value<'static> {
    match message.property(name) {
        Some(PropertyValue::Bool(value)) => Value::Bool(value),
        Some(PropertyValue::Byte(value)) => Value::Byte(value),
        Some(PropertyValue::Short(value)) => Value::Short(value),
        Some(PropertyValue::Int(value)) => Value::Int(value),
        Some(PropertyValue::Long(value)) => Value::Long(value),
        Some(PropertyValue::Float(value)) => Value::Float(value),
        Some(PropertyValue::Double(value)) => Value::Double(value),
        Some(PropertyValue::String(value)) => Value::from(value.to_string()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use kahawai_message::{Destination, MessageId, ProducerId, properties};
    use kahawai_selector::Selector;

    use super::*;

    #[test]
    fn a_selector_sees_headers_and_properties() {
        let properties = properties::with(None, "colour", &PropertyValue::String("red".into())).unwrap();
        let properties = properties::with(Some(&properties), "weight", &PropertyValue::Int(7)).unwrap();
        let producer = ProducerId { connection: "ID:a-1".into(), session: 1, value: 1 };
        let message = Message {
            id: MessageId { producer, sequence: 5, ..MessageId::default() },
            destination: Destination::queue("Q"),
            priority: 9,
            persistent: true,
            jms_type: Some("order".into()),
            group_id: Some("g".into()),
            properties: Some(properties),
            ..Message::default()
        };
        for (selector, expected) in [
            ("colour = 'red' AND weight > 6", true),
            ("JMSPriority = 9 AND JMSType = 'order' AND JMSDeliveryMode = 'PERSISTENT'", true),
            ("JMSDestination = 'queue://Q' AND JMSMessageID = 'ID:a-1:1:1:5' AND JMSXGroupID = 'g'", true),
            ("JMSReplyTo IS NULL AND JMSCorrelationID IS NULL AND JMSXUserID IS NULL", true),
            ("JMSRedelivered = FALSE AND JMSXDeliveryCount = 1", true),
            ("missing = 1", false),
        ] {
            assert_eq!(
                Selector::parse(selector).unwrap().matches(&MessageFields(&message)),
                expected,
                "{selector}"
            );
        }
    }
}
