//! See `troupe::fuzzing::wire_frame`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| troupe::fuzzing::wire_frame(input));
