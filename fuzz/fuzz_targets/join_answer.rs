//! See `troupe::fuzzing::join_answer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| troupe::fuzzing::join_answer(input));
