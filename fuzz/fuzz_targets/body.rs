//! See `troupe::fuzzing::body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| troupe::fuzzing::body(input));
