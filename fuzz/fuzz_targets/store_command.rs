//! Whatever a journal record holds: what decodes is written again as something that decodes to the same.
#![no_main]
use bytes::{Bytes, BytesMut};
use kahawai_kahadb::command::{decode, encode};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(command) = decode(Bytes::copy_from_slice(data)) {
        let mut out = BytesMut::new();
        encode(&command, &mut out);
        assert_eq!(decode(out.freeze()), Ok(command));
    }
});
