//! See `troupe::fuzzing::quantity`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| troupe::fuzzing::quantity(input));
