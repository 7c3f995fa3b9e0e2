//! Whatever comes instead of a handshake.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kahawai_kdbr::fuzz::fuzz_handshake(data));
