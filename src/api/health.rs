//! `/healthz`, `/livez` and `/readyz`.
//!
//! Owns: which checks each of them makes, and the texts in which Kubernetes tells them (`?verbose`, `?exclude=`, one
//! check by its path). Alive is what answers; ready is what can also change the cluster's state: it is not once the
//! server is stopping, nor while the store does not answer or its disk takes nothing.

use std::time::Duration;

use actix_web::{HttpResponse, http::StatusCode};

use super::{door::Shared, error::ApiError, query::Query};
use crate::messages::{Commit, Durability, ShowStore};

/// How long the store may take to say that it is there. A slow disk keeps its answers back for as long as one fsync.
const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// Something that may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Ping,
    Store,
    Stopping,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::Ping => "ping",
            Check::Store => "store",
            Check::Stopping => "shutdown",
        }
    }

    /// Why it is wrong.
    async fn fault(self, shared: &Shared) -> Option<String> {
        match self {
            Check::Ping => None,
            Check::Stopping => shared.stop.is_cancelled().then(|| "the server is stopping".to_owned()),
            Check::Store => {
                // A commit of nothing goes the way of every commit, and leaves nothing behind.
                let nothing = Commit { writes: Vec::new(), durability: Durability::Soft };
                match shared.state.commit.ask(nothing, STORE_TIMEOUT).await {
                    Ok(Ok(_)) => refuses_writes(shared).await,
                    Ok(Err(refusal)) => Some(refusal.to_string()),
                    Err(failed) => Some(failed.to_string()),
                }
            }
        }
    }
}

/// Whether the store answers, but its disk has not taken what it was last given. It tries again by itself, and often.
async fn refuses_writes(shared: &Shared) -> Option<String> {
    let store = shared.state.inspect.as_ref().map(|inspect| &inspect.store)?;
    match store.ask(ShowStore, STORE_TIMEOUT).await {
        Ok(state) => state.failing.then(|| "the disk does not take what is written: see the log".to_owned()),
        Err(failed) => Some(failed.to_string()),
    }
}

/// The checks of an endpoint, if it is one.
fn checks(endpoint: &str) -> Option<&'static [Check]> {
    match endpoint {
        "livez" => Some(&[Check::Ping]),
        "healthz" => Some(&[Check::Ping, Check::Store]),
        "readyz" => Some(&[Check::Ping, Check::Store, Check::Stopping]),
        _ => None,
    }
}

/// Every path that is answered here.
pub fn paths() -> impl Iterator<Item = String> {
    ["healthz", "livez", "readyz"].into_iter().flat_map(|endpoint| {
        let one = checks(endpoint).into_iter().flatten().map(move |c| format!("/{endpoint}/{}", c.name()));
        [format!("/{endpoint}")].into_iter().chain(one)
    })
}

/// Whether a path is answered here.
pub fn is_ours(segments: &[&str]) -> bool {
    segments.first().is_some_and(|first| checks(first).is_some())
}

/// The answer to a path that is ours.
///
/// # Errors
/// 404 for a check that there is not, 400 for a malformed query.
pub async fn answer(segments: &[&str], query: &str, shared: &Shared) -> Result<HttpResponse, ApiError> {
    let (endpoint, rest) = segments.split_first().ok_or(ApiError::UnknownPath)?;
    let all = checks(endpoint).ok_or(ApiError::UnknownPath)?;
    let query = Query::parse(query)?;
    let excluded = |check: &Check| query.others.iter().any(|(n, v)| n == "exclude" && v == check.name());
    let chosen: Vec<Check> = match rest {
        [] => all.iter().copied().filter(|c| !excluded(c)).collect(),
        [name] => vec![*all.iter().find(|c| c.name() == *name).ok_or(ApiError::UnknownPath)?],
        _ => return Err(ApiError::UnknownPath),
    };
    let mut outcomes = Vec::with_capacity(chosen.len());
    for check in chosen {
        outcomes.push((check.name(), check.fault(shared).await));
    }
    let skipped: Vec<&str> = if rest.is_empty() {
        all.iter().filter(|c| excluded(c)).map(|c| c.name()).collect()
    } else {
        Vec::new()
    };
    let what = if rest.is_empty() { (*endpoint).to_owned() } else { rest.concat() };
    let (ok, text) = tell(&what, &outcomes, &skipped, query.switch("verbose"));
    let code = if ok { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    Ok(HttpResponse::build(code)
        .content_type("text/plain; charset=utf-8")
        .insert_header(("Cache-Control", "no-cache, private"))
        .insert_header(("X-Content-Type-Options", "nosniff"))
        .body(text))
}

/// Whether all is well, and the text that says so.
fn tell(what: &str, outcomes: &[(&str, Option<String>)], skipped: &[&str], verbose: bool) -> (bool, String) {
    let ok = outcomes.iter().all(|(_, fault)| fault.is_none());
    if ok && !verbose {
        return (true, "ok".to_owned());
    }
    let mut text = String::new();
    for (name, fault) in outcomes {
        match fault {
            None => text.push_str(&format!("[+]{name} ok\n")),
            Some(why) => text.push_str(&format!("[-]{name} failed: {why}\n")),
        }
    }
    for name in skipped {
        text.push_str(&format!("[+]{name} excluded: ok\n"));
    }
    text.push_str(&format!("{what} check {}\n", if ok { "passed" } else { "failed" }));
    (ok, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_told_as_kubernetes_tells_them() {
        let well = [("ping", None), ("store", None)];
        assert_eq!(tell("readyz", &well, &[], false), (true, "ok".into()));
        let verbose = "[+]ping ok\n[+]store ok\n[+]shutdown excluded: ok\nreadyz check passed\n";
        assert_eq!(tell("readyz", &well, &["shutdown"], true), (true, verbose.into()));
        let ill = [("ping", None), ("store", Some("the store is not running at the moment".into()))];
        let text =
            "[+]ping ok\n[-]store failed: the store is not running at the moment\nreadyz check failed\n";
        assert_eq!(tell("readyz", &ill, &[], false), (false, text.into()));
    }
}
