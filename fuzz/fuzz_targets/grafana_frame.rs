#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| annulus_fuzz::grafana_frame(data));
