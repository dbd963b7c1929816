//! `logs`: of a pod, of all pods a selector matches, or of one pod behind something that selects pods.

use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt as _, future::try_join_all};
use serde_json::Value;

use super::{
    error::{CliError, Outcome},
    pod::{self, DEFAULT_CONTAINER},
    session::{Session, name_of, raw, with_query},
    target::SelectorArgs,
};

/// Lines shown of each pod when several are asked for, as kubectl.
const TAIL_OF_SEVERAL: i64 = 10;

/// Options of `logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// POD, POD CONTAINER, TYPE/NAME, or nothing with -l
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    /// Pods with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Which container
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// All containers of a pod
    #[arg(long, conflicts_with = "container")]
    all_containers: bool,
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
    /// Of the container's previous life
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines; -1 for all
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tail: Option<i64>,
    /// Only what is not older than this
    #[arg(long, value_name = "DURATION", value_parser = super::wait::duration)]
    since: Option<Duration>,
    /// Only what is not older than this time
    #[arg(long, value_name = "RFC3339", conflicts_with = "since")]
    since_time: Option<String>,
    /// With each line's time
    #[arg(long)]
    timestamps: bool,
    /// With each line's pod and container
    #[arg(long)]
    prefix: bool,
    /// No more than so many bytes
    #[arg(long, value_name = "N")]
    limit_bytes: Option<u64>,
    /// How many logs may be followed at once
    #[arg(long, value_name = "N", default_value_t = 5)]
    max_log_requests: usize,
    /// Go on with the next log when one fails
    #[arg(long)]
    ignore_errors: bool,
}

/// One container's log.
struct Source {
    pod: String,
    container: String,
}

/// Runs `logs`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &LogsArgs) -> Outcome {
    let (pods, container) = pods(session, args).await?;
    if pods.is_empty() {
        eprintln!("No resources found in {} namespace.", session.namespace);
        return Ok(());
    }
    // kubectl's words for what it does not take; -1 is all.
    if args.tail.is_some_and(|lines| lines < -1) {
        return Err(CliError::failed("--tail must be greater than or equal to -1"));
    }
    let mut sources = Vec::new();
    for pod in &pods {
        sources.extend(containers(args, pod, container.as_deref())?);
    }
    if args.follow && sources.len() > args.max_log_requests {
        return Err(CliError::failed(format!(
            "you are attempting to follow {} log streams, but maximum allowed concurrency is {}, use \
             --max-log-requests to increase the limit",
            sources.len(),
            args.max_log_requests
        )));
    }
    let prefix = |source: &Source| match args.prefix {
        true => format!("[pod/{}/{}] ", source.pod, source.container),
        false => String::new(),
    };
    let print = |source: Source| async move {
        match copy(session, args, &source, &prefix(&source)).await {
            Err(error) if args.ignore_errors && !matches!(error, CliError::OutputClosed) => {
                eprintln!("{}", error.text());
                Ok(())
            }
            outcome => outcome,
        }
    };
    if args.follow {
        return try_join_all(sources.into_iter().map(print)).await.map(|_| ());
    }
    for source in sources {
        print(source).await?;
    }
    Ok(())
}

/// The pods meant, and the container if a word names it.
async fn pods(session: &Session, args: &LogsArgs) -> Outcome<(Vec<Value>, Option<String>)> {
    let kinds = session.kinds().await?;
    let pods = kinds.resolve("pods")?;
    if let Some(selector) = &args.selector {
        if !args.what.is_empty() {
            return Err(CliError::usage("only a selector (-l) or a POD name is allowed"));
        }
        let select = SelectorArgs { selector: Some(selector.clone()), field_selector: None };
        return Ok((session.list(pods, false, &select).await?, None));
    }
    let (first, container) = match args.what.as_slice() {
        [first] => (first, None),
        [first, container] if args.container.is_none() => (first, Some(container.clone())),
        [] => return Err(CliError::usage("expected 'logs POD', 'logs TYPE/NAME' or 'logs -l LABELS'")),
        _ => return Err(CliError::usage("only one POD, and one container, may be named")),
    };
    let object = pod::named(session, first).await.map_err(|error| match &error {
        // As kubectl words it here, and only here.
        CliError::Status(status) if error.is_not_found() && status["details"]["kind"] == "pods" => {
            let name = status["details"]["name"].as_str().unwrap_or(first);
            CliError::failed(format!(
                "error from server (NotFound): pods {name:?} not found in namespace {:?}",
                session.namespace
            ))
        }
        _ => error,
    })?;
    let mut behind = pod::behind(session, object, "get the logs from").await?;
    if behind.len() > 1 {
        eprintln!("Found {} pods, using pod/{}", behind.len(), name_of(&behind[0]));
        behind.truncate(1);
    }
    Ok((behind, container))
}

fn containers(args: &LogsArgs, pod: &Value, named: Option<&str>) -> Outcome<Vec<Source>> {
    let names = |field: &str| -> Vec<String> {
        let list = pod["spec"][field].as_array().into_iter().flatten();
        list.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (init, main) = (names("initContainers"), names("containers"));
    let source = |container: &str| Source { pod: name_of(pod).to_owned(), container: container.to_owned() };
    if args.all_containers {
        return Ok(init.iter().chain(&main).map(|c| source(c)).collect());
    }
    if let Some(name) = named.or(args.container.as_deref()) {
        if !init.iter().chain(&main).any(|c| c == name) {
            return Err(CliError::failed(format!(
                "container {name} is not valid for pod {}; it has {}",
                name_of(pod),
                main.iter().chain(&init).cloned().collect::<Vec<_>>().join(", ")
            )));
        }
        return Ok(vec![source(name)]);
    }
    let default =
        pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str().filter(|d| main.iter().any(|c| c == d));
    let chosen = default.or_else(|| main.first().map(String::as_str)).unwrap_or_default();
    if default.is_none() && main.len() + init.len() > 1 {
        let init: Vec<String> = init.iter().map(|c| format!("{c} (init)")).collect();
        let all: Vec<String> = main.iter().cloned().chain(init).collect();
        eprintln!("Defaulted container {chosen:?} out of: {}", all.join(", "));
    }
    Ok(vec![source(chosen)])
}

async fn copy(session: &Session, args: &LogsArgs, source: &Source, prefix: &str) -> Outcome {
    let several = args.selector.is_some();
    let tail = args.tail.or((several && !args.all_containers).then_some(TAIL_OF_SEVERAL)).filter(|n| *n >= 0);
    let yes = |on: bool| on.then(|| "true".to_owned());
    // Less than a second is no time at all to the server.
    let since = args.since.map(|s| s.as_secs().max(1).to_string());
    let path = session.kinds().await?.resolve("pods")?.object(Some(&session.namespace), &source.pod);
    let path = with_query(
        &format!("{path}/log"),
        &[
            ("container", Some(source.container.clone())),
            ("follow", yes(args.follow)),
            ("previous", yes(args.previous)),
            ("sinceSeconds", since),
            ("sinceTime", args.since_time.clone()),
            ("tailLines", tail.map(|n| n.to_string())),
            ("timestamps", yes(args.timestamps)),
            ("limitBytes", args.limit_bytes.map(|n| n.to_string())),
        ],
    );
    let mut chunks = session.client.stream(&path).await?;
    let mut lines = Lines::default();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        // Whole lines, where those of several logs could mix.
        match prefix.is_empty() && !(args.follow && several) {
            true => raw(&chunk)?,
            false => raw(lines.whole(&chunk, prefix))?,
        }
    }
    raw(lines.rest(prefix))
}

/// Cuts chunks into whole lines.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn whole(&mut self, chunk: &[u8], prefix: &str) -> Vec<u8> {
        self.rest.extend_from_slice(chunk);
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { return Vec::new() };
        let rest = self.rest.split_off(end + 1);
        let lines = std::mem::replace(&mut self.rest, rest);
        prefixed(&lines, prefix)
    }

    fn rest(&mut self, prefix: &str) -> Vec<u8> {
        prefixed(&std::mem::take(&mut self.rest), prefix)
    }
}

fn prefixed(lines: &[u8], prefix: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(lines.len());
    for line in lines.split_inclusive(|b| *b == b'\n') {
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_carry_their_source() {
        let mut lines = Lines::default();
        assert_eq!(lines.whole(b"a\nb", "> "), b"> a\n");
        assert_eq!(lines.whole(b"c", "> "), b"");
        assert_eq!(lines.whole(b"\nd", "> "), b"> bc\n");
        assert_eq!(lines.rest("> "), b"> d");
        assert_eq!(lines.rest("> "), b"");
    }
}
