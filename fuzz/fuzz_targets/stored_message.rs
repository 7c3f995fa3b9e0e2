//! Whatever the journal holds where a message, an acknowledgement or a subscription should be.
#![no_main]
use bytes::{Bytes, BytesMut};
use kahawai_message::{body, properties, stored};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let bytes = Bytes::copy_from_slice(data);
    let _ = stored::read_head(data);
    if let Ok(message) = stored::decode_message(bytes.clone()) {
        let mut out = BytesMut::new();
        stored::encode_message(&message, 7, &mut out);
        assert!(out.len() <= stored::encoded_len_estimate(&message));
        let _ = body::text(&message);
        let _ = body::map(&message);
        let _ = body::stream(&message);
        if let Some(marshalled) = &message.properties {
            properties::iter(marshalled).take(1000).for_each(drop);
        }
    }
    let _ = stored::ack_broker_sequence(data);
    let _ = stored::decode_ack(bytes.clone());
    let _ = stored::decode_subscription_info(bytes);
});
