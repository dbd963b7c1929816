//! See `troupe::fuzzing::patch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| troupe::fuzzing::patch(input));
