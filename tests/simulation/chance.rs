//! Chance and time of a simulation: what the process asks the system for follows from the seed instead.
//!
//! Owns: `getrandom` and `clock_gettime` of this program, which every hash map, uid and timestamp comes from. A thread that
//! has said [`begin`] gets the seed's numbers and its runtime's paused clock; every other thread the system's. It works
//! because the program is linked statically: these definitions win over the C library's.
#![allow(unsafe_code, reason = "it takes the place of functions of the C library")]

use std::{
    cell::Cell,
    ffi::{CStr, c_char, c_int, c_long, c_void},
    ptr,
};

use tokio::time::Instant;

/// When a simulation begins: 2026-01-01, in seconds since the epoch.
const BEGIN: c_long = 1_767_225_600;
const NANOS: u128 = 1_000_000_000;

thread_local! {
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
    static ORIGIN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// From now on this thread's chances follow from the seed. On a thread of its own, before anything is done there.
pub fn begin(seed: u64) {
    RANDOM.set(Some(seed));
}

/// From now on this thread's clocks are its runtime's.
pub fn begin_clock() {
    ORIGIN.set(Some(Instant::now()));
}

/// splitmix64.
fn next(state: u64) -> (u64, u64) {
    let state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (state, z ^ (z >> 31))
}

#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: u32) -> isize {
    let Some(mut state) = RANDOM.get() else {
        // SAFETY: the arguments are those of the system call, given by a caller of the function of that name.
        return unsafe { nix::libc::syscall(nix::libc::SYS_getrandom, buffer, length, flags) } as isize;
    };
    // SAFETY: callers of `getrandom` give a buffer of that length.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    for bytes in buffer.chunks_mut(size_of::<u64>()) {
        let drawn;
        (state, drawn) = next(state);
        bytes.copy_from_slice(&drawn.to_le_bytes()[..bytes.len()]);
    }
    RANDOM.set(Some(state));
    length as isize
}

#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: c_int, time: *mut nix::libc::timespec) -> c_int {
    let ours = matches!(clock, nix::libc::CLOCK_REALTIME | nix::libc::CLOCK_MONOTONIC);
    // Taken meanwhile, so that a runtime that asks the system in turn gets its answer.
    let Some(origin) = ours.then(|| ORIGIN.take()).flatten() else {
        // SAFETY: as above.
        return unsafe { nix::libc::syscall(nix::libc::SYS_clock_gettime, clock, time) } as c_int;
    };
    let since = origin.elapsed().as_nanos();
    ORIGIN.set(Some(origin));
    let time_of =
        nix::libc::timespec { tv_sec: BEGIN + (since / NANOS) as c_long, tv_nsec: (since % NANOS) as c_long };
    // SAFETY: callers of `clock_gettime` give a place for the time.
    unsafe { time.write(time_of) };
    0
}

/// How the crate `getrandom` looks for the function; a static program has nothing else to be found.
#[cfg(target_feature = "crt-static")]
#[unsafe(no_mangle)]
extern "C" fn dlsym(_: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: callers of `dlsym` give a string.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        b"getrandom" => getrandom as *mut c_void,
        _ => ptr::null_mut(),
    }
}
