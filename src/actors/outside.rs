//! What logic takes as arguments and only actors may fetch: time, chance, and other threads to work on.
//!
//! A simulation says [`stay_on_this_thread`]: then no actor of this thread uses another one, and what happens follows
//! from its seed alone.

use std::{
    cell::Cell,
    future::{Future, ready},
    time::{Duration, SystemTime},
};

use futures_util::future::Either;
use k8s_openapi::jiff::Timestamp;
use tokio::task::JoinError;

use crate::model::Uid;

/// The letters of generated names: no vowels and nothing that looks like another, as in Kubernetes.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Random letters at the end of a generated name.
const SUFFIX: usize = 5;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// From now on this thread's actors use no other thread, neither for themselves nor for work that blocks.
pub fn stay_on_this_thread() {
    ALONE.set(true);
}

/// Whether this thread's actors use no other thread.
pub(super) fn is_alone() -> bool {
    ALONE.get()
}

/// Begins work that may block on a thread where it may; the future tells how it went.
pub(super) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, JoinError>> {
    match is_alone() {
        true => Either::Left(ready(Ok(work()))),
        false => Either::Right(tokio::task::spawn_blocking(work)),
    }
}

/// Now, in whole seconds: the precision of Kubernetes' timestamps. It is cut, thus up to a second behind: who gives
/// somebody so many seconds from a time stored adds one.
pub fn now() -> Timestamp {
    Timestamp::from_second(exact_now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Now, as exactly as the clock tells: for what is not written down.
pub fn exact_now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = i128::try_from(since.as_nanos()).unwrap_or_default();
    Timestamp::from_nanosecond(nanos).unwrap_or(Timestamp::UNIX_EPOCH)
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
    Duration::try_from(at.duration_since(exact_now())).unwrap_or_default()
}
