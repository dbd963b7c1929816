//! Signals by name, as images and pods write them.

use nix::{libc, sys::signal::Signal};

/// The number of `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `SIGRTMAX-1`; `None`: there is no such signal.
pub(super) fn parse(name: &str) -> Option<i32> {
    let real_time = libc::SIGRTMIN()..=libc::SIGRTMAX();
    if let Ok(number) = name.parse::<i32>() {
        return (Signal::try_from(number).is_ok() || real_time.contains(&number)).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    for (word, from, sign, direction) in
        [("RTMIN", *real_time.start(), '+', 1), ("RTMAX", *real_time.end(), '-', -1)]
    {
        let Some(offset) = bare.strip_prefix(word) else { continue };
        let offset = match offset.strip_prefix(sign) {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<i32>().ok()?,
            None if offset.is_empty() => 0,
            _ => return None,
        };
        let number = from.checked_add(offset.checked_mul(direction)?)?;
        return real_time.contains(&number).then_some(number);
    }
    let bare = match bare {
        // Other names for one number.
        "CLD" => "CHLD",
        "IOT" => "ABRT",
        "POLL" => "IO",
        other => other,
    };
    format!("SIG{bare}").parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGPOLL", Some(libc::SIGIO)),
            ("SIGCLD", Some(libc::SIGCHLD)),
            ("SIGIOT", Some(libc::SIGABRT)),
            ("SIGSTKFLT", Some(libc::SIGSTKFLT)),
            ("SIGRTMIN+3", Some(libc::SIGRTMIN() + 3)),
            ("RTMIN", Some(libc::SIGRTMIN())),
            ("SIGRTMAX-14", Some(libc::SIGRTMAX() - 14)),
            ("SIGRTMAX", Some(libc::SIGRTMAX())),
            ("SIGRTMIN+99", None),
            ("SIGRTMIN+x", None),
            ("SIGRTMIN+", None),
            ("SIGRTMIN+-1", None),
            ("SIGRTMAX+1", None),
            ("0", None),
            ("", None),
            ("SIGNAL", None),
        ] {
            assert_eq!(parse(name), number, "{name:?}");
        }
    }
}
