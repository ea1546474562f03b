#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| annulus_fuzz::stream(data));
