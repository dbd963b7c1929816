//! Programs that differ from the one under test in one thing: by a clock that is wrong, or by the version they tell.
//!
//! Owns: copies of `troupe`, changed in a few bytes. For another clock these are libc's `clock_gettime`, which asks the kernel
//! and then adds some seconds to the time of day: the kernel has one clock for all namespaces, and a static program takes no
//! library before its own. What such a copy starts is the copy again (shims, the built-in image), so a whole machine agrees.
//! Limits: instants stay as they are; what the kernel stamps itself, times of files, is right; clocks on x86-64 only.

use std::fs;

/// Its names in libc; the function's place is the same.
const NAMES: [&[u8]; 2] = [b"clock_gettime", b"__clock_gettime"];
/// How a version is told of.
const VERSION: &str = concat!("+troupe-", env!("CARGO_PKG_VERSION"));

/// Whether a machine can have another clock here.
pub fn clocks_ready() -> bool {
    if cfg!(target_arch = "x86_64") {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "CI is set, but there is no code to read a clock wrongly by: use x86-64"
    );
    eprintln!("skipped: there is no code for this processor by which to read a clock wrongly");
    false
}

fn original() -> Vec<u8> {
    fs::read(env!("CARGO_BIN_EXE_troupe")).unwrap()
}

/// One whose clock is that many hours ahead.
pub fn of_clock(hours: i32) -> Vec<u8> {
    let mut program = original();
    let (at, size) = place(&program).expect("it has symbols, and libc's clock among them");
    let code = reading(hours * 3600);
    assert!(code.len() <= size, "no room: {size} bytes");
    program[at..at + code.len()].copy_from_slice(&code);
    program
}

/// One of another version, which ends in this digit: what it tells of itself, and the program.
pub fn of_version(digit: u8) -> (String, Vec<u8>) {
    let mut program = original();
    let mut version = VERSION.as_bytes().to_vec();
    *version.last_mut().unwrap() = b'0' + digit;
    let mut told = 0;
    while let Some(at) = find(&program[told..], VERSION.as_bytes()) {
        program[told + at..][..version.len()].copy_from_slice(&version);
        told += at + version.len();
    }
    assert!(told > 0, "it tells its version");
    (String::from_utf8(version).unwrap(), program)
}

fn find(bytes: &[u8], word: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|byte| *byte == word[0]) {
        if bytes[from + at..].starts_with(word) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// `clock_gettime` as machine code (System V: the clock in `edi`, where to write it in `rsi`).
fn reading(ahead_s: i32) -> Vec<u8> {
    let [a, b, c, d] = ahead_s.to_le_bytes();
    [
        &[0xb8, 228, 0, 0, 0][..],       // mov eax, SYS_clock_gettime
        &[0x0f, 0x05],                   // syscall
        &[0x85, 0xc0, 0x75, 16],         // test eax, eax; jnz end
        &[0x85, 0xff, 0x74, 5],          // test edi, edi; jz add      CLOCK_REALTIME
        &[0x83, 0xff, 5, 0x75, 7],       // cmp edi, 5; jne end        CLOCK_REALTIME_COARSE
        &[0x48, 0x81, 0x06, a, b, c, d], // add: add qword [rsi], ahead_s
        &[0xc3],                         // end: ret
    ]
    .concat()
}

/// Where the function is in the file, and its size (ELF, 64 bits, little-endian).
fn place(file: &[u8]) -> Option<(usize, usize)> {
    const SYMBOLS: usize = 2;
    const LOADED: usize = 1;
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let mut all = [0; 8];
        all.get_mut(..bytes)?.copy_from_slice(file.get(at..at + bytes)?);
        usize::try_from(u64::from_le_bytes(all)).ok()
    };
    // A table of the file's: where it is, and how large and how many its entries are.
    let entries = |at: usize, size: usize, count: usize| -> Option<Vec<usize>> {
        let (at, size, count) = (number(at, 8)?, number(size, 2)?, number(count, 2)?);
        Some((0..count).map(|n| at + n * size).collect())
    };
    let (segments, sections) = (entries(0x20, 0x36, 0x38)?, entries(0x28, 0x3a, 0x3c)?);
    let symbols = *sections.iter().find(|section| number(*section + 4, 4) == Some(SYMBOLS))?;
    let names = number(*sections.get(number(symbols + 0x28, 4)?)? + 0x18, 8)?;
    let (first, bytes) = (number(symbols + 0x18, 8)?, number(symbols + 0x20, 8)?);
    let is_it = |symbol: &usize| {
        let name = number(*symbol, 4).and_then(|offset| file.get(names + offset..));
        let name = name.and_then(|rest| rest.split(|byte| *byte == 0).next());
        name.is_some_and(|name| NAMES.contains(&name))
    };
    let symbol = (first..first + bytes).step_by(24).find(is_it)?;
    let (address, size) = (number(symbol + 8, 8)?, number(symbol + 16, 8)?);
    segments.iter().find_map(|segment| {
        let (from, length) = (number(segment + 16, 8)?, number(segment + 32, 8)?);
        let holds = number(*segment, 4)? == LOADED && (from..from + length).contains(&address);
        holds.then_some((address - from + number(segment + 8, 8)?, size))
    })
}
