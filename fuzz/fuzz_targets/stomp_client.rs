//! Whatever a server sends to our own client.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kahawai_stomp::fuzz::fuzz_client(data));
