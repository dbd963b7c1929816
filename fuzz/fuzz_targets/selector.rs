//! See `troupe::fuzzing::selector`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| troupe::fuzzing::selector(input));
