//! `events`: what happened, oldest first, of a namespace or of one object.

use clap::Args;
use futures_util::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    error::{CliError, Outcome},
    output::{self, Format, Printer, tabs::Tabs},
    session::{Session, now, raw, with_query},
    target::{SelectorArgs, parse},
};
use crate::model::table::human_duration;

/// Options of `events`.
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only what concerns this object
    #[arg(long = "for", value_name = "TYPE/NAME")]
    about: Option<String>,
    /// Only of these types: Normal, Warning
    #[arg(long, value_delimiter = ',', value_name = "TYPE")]
    types: Vec<String>,
    /// Go on as things happen
    #[arg(short, long)]
    watch: bool,
    /// Without the line of headers
    #[arg(long)]
    no_headers: bool,
    /// json, yaml, name, jsonpath=TEMPLATE
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

/// Runs `events`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &EventsArgs) -> Outcome {
    if let Some(wrong) =
        args.types.iter().find(|t| !["normal", "warning"].contains(&t.to_lowercase().as_str()))
    {
        return Err(CliError::usage(format!("valid --types are Normal or Warning, not {wrong:?}")));
    }
    let events = session.kinds().await?.of_kind("v1", "Event")?.clone();
    let select = SelectorArgs { selector: None, field_selector: fields(session, args).await? };
    let mut list = session.list(&events, args.all_namespaces, &select).await?;
    list.retain(|e| wanted(args, e));
    list.sort_by_key(last_seen);
    if args.watch {
        return watch(session, args, &select, &list).await;
    }
    if list.is_empty() {
        match args.all_namespaces {
            true => eprintln!("No events found."),
            false => eprintln!("No events found in {} namespace.", session.namespace),
        }
        return Ok(());
    }
    match &args.output {
        Some(format) => Printer::default().print(format, session.kinds().await?, &output::list(list)),
        None => raw(Tabs::table().align(&text(args, &list, true))),
    }
}

/// The field selector of `--for`.
async fn fields(session: &Session, args: &EventsArgs) -> Outcome<Option<String>> {
    let Some(about) = &args.about else { return Ok(None) };
    if !about.contains('/') {
        return Err(CliError::usage("--for must be in resource/name form"));
    }
    let targets = parse(session.kinds().await?, std::slice::from_ref(about))?;
    let target = &targets[0];
    Ok(Some(format!(
        "involvedObject.kind={},involvedObject.name={}",
        target.resource.kind,
        target.name.as_deref().unwrap_or_default()
    )))
}

fn wanted(args: &EventsArgs, event: &Value) -> bool {
    let type_ = event["type"].as_str().unwrap_or_default();
    args.types.is_empty() || args.types.iter().any(|t| t.eq_ignore_ascii_case(type_))
}

async fn watch(session: &Session, args: &EventsArgs, select: &SelectorArgs, list: &[Value]) -> Outcome {
    let mut tabs = Tabs::table();
    let mut printer = Printer::default();
    let mut first = true;
    let namespace = (!args.all_namespaces).then_some(session.namespace.as_str());
    let kinds = session.kinds().await?;
    let path = with_query(
        &kinds.of_kind("v1", "Event")?.collection(namespace),
        &[("fieldSelector", select.field_selector.clone())],
    );
    let mut print = |events: &[Value]| -> Outcome {
        match &args.output {
            Some(format) => events.iter().try_for_each(|e| printer.print(format, kinds, e)),
            None if events.is_empty() => Ok(()),
            None => raw(tabs.align(&text(args, events, std::mem::take(&mut first)))),
        }
    };
    print(list)?;
    // From the newest of those listed; the server's list says its revision, a page of it does as well.
    let version = session.client.get(&with_query(&path, &[("limit", Some("1".into()))])).await?;
    let version = version["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    let query = [("resourceVersion", version), ("watch", Some("true".into()))];
    let mut events = Box::pin(session.client.watch(&with_query(&path, &query)).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        let news = event["type"] == "ADDED" || event["type"] == "MODIFIED";
        if news && wanted(args, &event["object"]) {
            print(std::slice::from_ref(&event["object"]))?;
        }
    }
    Ok(())
}

fn text(args: &EventsArgs, events: &[Value], headers: bool) -> String {
    let mut text = String::new();
    let namespace = if args.all_namespaces { "NAMESPACE\t" } else { "" };
    if headers && !args.no_headers {
        text.push_str(&format!("{namespace}LAST SEEN\tTYPE\tREASON\tOBJECT\tMESSAGE\n"));
    }
    let now = now();
    for event in events {
        let field = |name: &str| event[name].as_str().unwrap_or_default();
        if args.all_namespaces {
            text.push_str(event["metadata"]["namespace"].as_str().unwrap_or_default());
            text.push('\t');
        }
        let object = &event["involvedObject"];
        text.push_str(&format!(
            "{}\t{}\t{}\t{}/{}\t{}\n",
            seen(event, now),
            field("type"),
            field("reason"),
            object["kind"].as_str().unwrap_or_default(),
            object["name"].as_str().unwrap_or_default(),
            field("message").trim_end().replace(['\n', '\t'], " "),
        ));
    }
    text
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// When it was last seen.
pub fn last_seen(event: &Value) -> Option<Timestamp> {
    time(&event["series"]["lastObservedTime"])
        .or_else(|| time(&event["lastTimestamp"]))
        .or_else(|| time(&event["eventTime"]))
        .or_else(|| time(&event["metadata"]["creationTimestamp"]))
}

/// `5s`, or `5s (x3 over 2m)` when it was seen more than once.
pub fn seen(event: &Value, now: Timestamp) -> String {
    let ago = |t: Option<Timestamp>| {
        t.map_or_else(|| "<unknown>".to_owned(), |t| human_duration(now.as_second() - t.as_second()))
    };
    let first = time(&event["firstTimestamp"]).or_else(|| time(&event["eventTime"]));
    let last = ago(last_seen(event));
    let count = event["series"]["count"].as_i64().or_else(|| event["count"].as_i64()).unwrap_or(1);
    match count > 1 {
        true => format!("{last} (x{count} over {})", ago(first)),
        false => last,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_seen_often_says_over_how_long() {
        let now: Timestamp = "2030-01-01T00:10:00Z".parse().unwrap();
        let once = json!({"lastTimestamp": "2030-01-01T00:09:55Z", "count": 1});
        assert_eq!(seen(&once, now), "5s");
        let often = json!({"firstTimestamp": "2030-01-01T00:08:30Z", "lastTimestamp": "2030-01-01T00:09:55Z",
            "count": 3});
        assert_eq!(seen(&often, now), "5s (x3 over 90s)");
        assert_eq!(seen(&json!({}), now), "<unknown>");
    }
}
