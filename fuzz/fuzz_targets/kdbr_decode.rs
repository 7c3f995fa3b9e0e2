//! Whatever a node sends, before and after authentication.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| kahawai_kdbr::fuzz::fuzz_decode(data));
