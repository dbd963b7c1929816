//! `wait`: until a condition holds, a field has a value, or an object is there or gone.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use serde_json::Value;

use super::{
    delete::until_gone,
    error::{CliError, Outcome},
    manifest::FilesArg,
    output::jsonpath::{Path, text_of},
    session::{Session, line, with_query},
    target::{Found, SelectorArgs, Which, parse},
};

/// How long between two looks at an object that is not there yet.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// `--timeout=-1s`: a week, as kubectl.
const FOREVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Options of `wait`.
#[derive(Debug, Clone, Args)]
pub struct WaitArgs {
    /// TYPE NAME…, TYPE/NAME…, or TYPE with -l or --all
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    #[command(flatten)]
    files: FilesArg,
    #[command(flatten)]
    select: SelectorArgs,
    /// All of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// condition=NAME[=VALUE], jsonpath={.path}[=VALUE], create, or delete
    #[arg(long = "for", value_name = "WHAT", value_parser = Until::parse)]
    until: Until,
    /// How long for each; 0s to look once, negative for a week
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = timeout, allow_hyphen_values = true)]
    timeout: Duration,
}

/// A duration as Go writes them: `30s`, `1m30s`, `500ms`, `0`.
///
/// # Errors
/// For texts that are none.
pub fn duration(text: &str) -> Result<Duration, String> {
    match text {
        "0" => Ok(Duration::ZERO),
        _ => humantime::parse_duration(text).map_err(|e| format!("{e}; write it like 30s or 1m30s")),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    match text.strip_prefix('-') {
        Some(rest) => duration(rest).map(|_| FOREVER),
        None => duration(text),
    }
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq)]
enum Until {
    Delete,
    Create,
    Condition { name: String, value: String },
    Field { path: Path, value: Option<String> },
}

impl Until {
    fn parse(text: &str) -> Result<Until, String> {
        match text.split_once('=') {
            None if text.eq_ignore_ascii_case("delete") => Ok(Until::Delete),
            None if text.eq_ignore_ascii_case("create") => Ok(Until::Create),
            Some(("condition", rest)) => {
                let (name, value) = rest.split_once('=').unwrap_or((rest, "true"));
                Ok(Until::Condition { name: name.to_lowercase(), value: value.to_lowercase() })
            }
            Some(("jsonpath", rest)) => {
                let rest = rest.trim_matches('\'');
                let (path, value) = match rest.find('}') {
                    Some(end) => (&rest[..=end], rest[end + 1..].strip_prefix('=')),
                    None => rest.split_once('=').map_or((rest, None), |(p, v)| (p, Some(v))),
                };
                if value.is_some_and(str::is_empty) {
                    return Err("jsonpath wait has to have a value after equal sign".into());
                }
                Ok(Until::Field { path: Path::relaxed(path)?, value: value.map(str::to_owned) })
            }
            _ => Err(format!(
                "unrecognized condition: {text:?}; say condition=NAME, jsonpath={{.path}}=VALUE, create or delete"
            )),
        }
    }

    fn holds(&self, object: &Value) -> Result<bool, String> {
        match self {
            Until::Delete => Ok(false),
            Until::Create => Ok(true),
            Until::Condition { name, value } => {
                let all = object["status"]["conditions"].as_array().into_iter().flatten();
                let is = |v: &Value, text: &str| v.as_str().is_some_and(|v| v.to_lowercase() == text);
                let found = all.into_iter().find(|c| is(&c["type"], name));
                let stale = |c: &Value| {
                    let seen = c["observedGeneration"].as_i64();
                    seen.zip(object["metadata"]["generation"].as_i64()).is_some_and(|(seen, now)| seen < now)
                };
                Ok(found.is_some_and(|c| !stale(c) && is(&c["status"], value)))
            }
            Until::Field { path, value } => {
                let found = path.find(object)?;
                match (found.as_slice(), value) {
                    ([], _) => Ok(false),
                    ([one], Some(value)) if one.is_object() || one.is_array() => {
                        Err(format!("jsonpath leads to more than a value, which cannot be {value:?}"))
                    }
                    ([one], Some(value)) => Ok(text_of(one) == *value),
                    (_, Some(_)) => Err("given jsonpath expression matches more than one value".into()),
                    (all, None) => Ok(all.iter().any(|v| !v.is_null())),
                }
            }
        }
    }
}

/// Runs `wait`.
///
/// # Errors
/// As every verb; for each object that did not get there in time.
pub async fn run(session: &Session, args: &WaitArgs) -> Outcome {
    let (found, mut errors) = find(session, args).await?;
    if found.is_empty() && errors.is_empty() && args.until != Until::Delete {
        return Err(CliError::failed("no matching resources found"));
    }
    for about in found {
        let met = match args.until {
            Until::Delete => {
                let uid = about.object["metadata"]["uid"].as_str();
                until_gone(session, &about, uid, args.timeout).await
            }
            _ => until_holds(session, args, &about).await,
        };
        match met {
            Ok(()) => line(format!("{} condition met", about.called()))?,
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}

async fn find(session: &Session, args: &WaitArgs) -> Outcome<(Vec<Found>, Vec<CliError>)> {
    let which = Which {
        select: args.select.clone(),
        all: args.all,
        all_namespaces: args.all_namespaces,
        needs_choice: true,
    };
    if args.until != Until::Create {
        let (found, errors) = session.fetch(&args.what, &args.files, &which).await?;
        // What is gone already need not be waited for.
        let missed = |e: &CliError| args.until != Until::Delete || !e.is_not_found();
        return Ok((found, errors.into_iter().filter(missed).collect()));
    }
    let mut found = Vec::new();
    for target in parse(session.kinds().await?, &args.what)? {
        let Some(name) = target.name else {
            return Err(CliError::usage("--for=create needs the names of what is to be created"));
        };
        let namespace = session.namespace_of(&target.resource);
        found.push(Found { resource: target.resource, namespace, name, object: Value::Null });
    }
    Ok((found, Vec::new()))
}

async fn until_holds(session: &Session, args: &WaitArgs, about: &Found) -> Outcome {
    let waiting = async {
        while !look(session, args, about).await? {}
        Ok(())
    };
    // A timeout of nothing still looks once.
    let limit = args.timeout.max(Duration::from_millis(1));
    match tokio::time::timeout(limit, waiting).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CliError::failed(format!(
            "timed out waiting for the condition on {}/{}",
            about.resource.full_plural(),
            about.name
        ))),
    }
}

/// Looks at the object, then watches it as long as the server lets us.
async fn look(session: &Session, args: &WaitArgs, about: &Found) -> Outcome<bool> {
    let path = with_query(
        &about.resource.collection(about.namespace.as_deref()),
        &[("fieldSelector", Some(format!("metadata.name={}", about.name)))],
    );
    let list = session.client.get(&path).await?;
    let Some(object) = list["items"].as_array().and_then(|items| items.first()) else {
        if args.until == Until::Create {
            tokio::time::sleep(LOOK_EVERY).await;
            return Ok(false);
        }
        return Err(CliError::Status(Box::new(serde_json::json!({"reason": "NotFound",
            "message": format!("{} {:?} not found", about.resource.full_plural(), about.name)}))));
    };
    if args.until.holds(object).map_err(CliError::failed)? {
        return Ok(true);
    }
    let version = list["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    let query = [("resourceVersion", version), ("watch", Some("true".into()))];
    let mut events = Box::pin(session.client.watch(&with_query(&path, &query)).await?);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if event["type"] == "DELETED" => return Ok(false),
            Ok(event) if event["type"] == "BOOKMARK" => {}
            Ok(event) => {
                if args.until.holds(&event["object"]).map_err(CliError::failed)? {
                    return Ok(true);
                }
            }
            Err(e) if e.reason() == Some("Expired") => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(until: &str, expected: bool) {
        let pod = json!({"metadata": {"generation": 2}, "status": {"phase": "Running", "n": 3, "conditions": [
            {"type": "Ready", "status": "True"}, {"type": "Old", "status": "True", "observedGeneration": 1},
            {"type": "Bad", "status": "False"}]}});
        assert_eq!(Until::parse(until).unwrap().holds(&pod), Ok(expected), "{until}");
    }

    #[test]
    fn conditions_and_fields_hold_or_do_not() {
        check("condition=Ready", true);
        check("condition=ready=true", true);
        check("condition=Bad", false);
        check("condition=Bad=False", true);
        check("condition=Old", false);
        check("condition=None", false);
        check("jsonpath={.status.phase}=Running", true);
        check("jsonpath={.status.phase}=Failed", false);
        check("jsonpath={.status.n}=3", true);
        check("jsonpath={.status.phase}", true);
        check("jsonpath=.status.phase=Running", true);
        check("jsonpath={.status.none}", false);
    }

    #[test]
    fn what_cannot_be_waited_for_is_refused() {
        for text in ["frob", "condition", "jsonpath={.a}=", "jsonpath={"] {
            assert!(Until::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_gos() {
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0"), Ok(Duration::ZERO));
        assert_eq!(timeout("-1s"), Ok(FOREVER));
        assert!(duration("soon").is_err());
    }
}
