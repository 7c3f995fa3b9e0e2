//! Whatever a journal record holds: what decodes is written again in our form, and reading that changes nothing more.
#![no_main]
use bytes::{Bytes, BytesMut};
use kahawai_kahadb::command::{decode, encode};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(command) = decode(Bytes::copy_from_slice(data)) {
        let mut out = BytesMut::new();
        encode(&command, &mut out);
        let written = out.freeze();
        let again = decode(written.clone()).expect("we read what we write");
        let mut out = BytesMut::new();
        encode(&again, &mut out);
        assert_eq!(out, written);
    }
});
