//! What commands say on standard output.
//!
//! Owns: [`say`]. Invariant: whoever reads it may have gone (`| head`); what was done is done all the same.

use std::io::{self, Write as _};

/// Says one line, or several, if anybody still listens.
pub(super) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
}
