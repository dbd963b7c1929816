//! What logic takes as arguments and only actors may fetch: time and chance.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

use crate::model::Uid;

/// The letters of generated names: no vowels and nothing that looks like another, as in Kubernetes.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Random letters at the end of a generated name.
const SUFFIX: usize = 5;

/// Now, in whole seconds: the precision of Kubernetes' timestamps. It is cut, thus up to a second behind: who gives
/// somebody so many seconds from a time stored adds one.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs())
        .ok()
        .and_then(|s| Timestamp::from_second(s).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A new uid.
pub fn uid() -> Uid {
    Uid::from(uuid::Uuid::new_v4().to_string())
}

/// The random end of a generated name.
pub fn suffix() -> String {
    let mut random: u64 = rand::random();
    (0..SUFFIX)
        .map(|_| {
            let letter = LETTERS[usize::try_from(random % LETTERS.len() as u64).unwrap_or(0)];
            random /= LETTERS.len() as u64;
            char::from(letter)
        })
        .collect()
}

/// How long it is until a time; nothing when it is past.
pub fn until(at: Timestamp) -> Duration {
    let at = Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    at.saturating_sub(now)
}
