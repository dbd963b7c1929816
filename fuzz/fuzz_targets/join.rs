//! See `troupe::fuzzing::join`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| troupe::fuzzing::join(input));
