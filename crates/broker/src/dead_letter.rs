//! What becomes of a message on its way to the dead letters: ActiveMQ's `RegionBroker.sendToDeadLetterQueue`.

use kahawai_message::properties::{self, PropertyValue};
use kahawai_message::{Destination, Message, Millis};

/// Property with the expiration that the message had before it became a dead letter; 0 = none.
pub const ORIGINAL_EXPIRATION: &str = "originalExpiration";
/// Property with the reason, as Java's `Throwable.toString` gives it.
pub const DELIVERY_FAILURE_CAUSE: &str = "dlqDeliveryFailureCause";

/// ActiveMQ's words for a message that expired.
pub(crate) fn expired_cause(expiration_ms: Millis) -> String {
    format!("java.lang.Throwable: Message Expired. Expiration:{expiration_ms}")
}

/// The message as a dead letter: it does not expire, is persistent, counts from zero again, and remembers where it was.
///
/// Properties that cannot be read stay as they are: the letter matters more than what is noted on it.
pub(crate) fn dead_letter(mut message: Message, to: &Destination, cause: Option<&str>) -> Message {
    if message.property(ORIGINAL_EXPIRATION).is_none() {
        let expiration = message.expiration_ms;
        note(&mut message, ORIGINAL_EXPIRATION, &PropertyValue::Long(expiration));
    }
    if let Some(cause) = cause {
        note(&mut message, DELIVERY_FAILURE_CAUSE, &PropertyValue::String(cause.into()));
    }
    message.expiration_ms = 0;
    message.persistent = true;
    message.redelivery_counter = 0;
    message.original_destination = Some(std::mem::replace(&mut message.destination, to.clone()));
    message.original_transaction_id = message.transaction_id.take();
    message
}

fn note(message: &mut Message, name: &str, value: &PropertyValue) {
    if let Ok(properties) = properties::with(message.properties.as_ref(), name, value) {
        message.properties = Some(properties);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_letter_remembers_where_it_was_and_when_it_expired() {
        let message = Message {
            destination: Destination::queue("ORDERS"),
            expiration_ms: 77,
            redelivery_counter: 6,
            persistent: true,
            ..Message::default()
        };
        let dlq = Destination::queue("ActiveMQ.DLQ");
        let dead = dead_letter(message, &dlq, Some(&expired_cause(77)));
        assert_eq!((dead.expiration_ms, dead.redelivery_counter), (0, 0));
        assert_eq!(
            (&dead.destination, &dead.original_destination),
            (&dlq, &Some(Destination::queue("ORDERS")))
        );
        assert_eq!(dead.property(ORIGINAL_EXPIRATION), Some(PropertyValue::Long(77)));
        let cause = "java.lang.Throwable: Message Expired. Expiration:77";
        assert_eq!(dead.property(DELIVERY_FAILURE_CAUSE), Some(PropertyValue::String(cause.into())));
        // A second journey keeps the first expiration.
        let again = dead_letter(dead, &Destination::queue("OTHER"), None);
        assert_eq!(again.property(ORIGINAL_EXPIRATION), Some(PropertyValue::Long(77)));
    }
}
