//! Whatever a client sends.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kahawai_stomp::fuzz::fuzz_server(data));
