use kahawai_message::MessageId;
use kahawai_message::front::{ConsumerNumber, DeliveryTag, TransactionNumber};

use crate::consumer::Consumers;

/// A transaction that is open, or whose commit is not confirmed yet.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) name: Box<str>,
    pub(crate) number: TransactionNumber,
    /// What was acknowledged in it: in flight again if it fails.
    pub(crate) acked: Vec<(ConsumerNumber, DeliveryTag, MessageId)>,
}

impl Transaction {
    /// The consumers have their deliveries in flight again.
    pub(crate) fn undo(self, consumers: &mut Consumers) {
        let mut acked = self.acked;
        acked.sort_by_key(|(consumer, tag, _)| (*consumer, *tag));
        for group in acked.chunk_by(|(left, ..), (right, ..)| left == right) {
            if let Some(consumer) = group.first().and_then(|(number, ..)| consumers.get_mut(*number)) {
                consumer.in_flight.put_back(group.iter().map(|(_, tag, id)| (*tag, id.clone())));
            }
        }
    }
}
