//! `delete`, and the wait until what was deleted is gone.

use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{
    dry_run::DryRunArg,
    error::{CliError, Outcome},
    manifest::FilesArg,
    output::Format,
    session::{Session, line, with_query},
    target::{Found, SelectorArgs, Which, parse},
};

/// `--timeout=0`: a week, as kubectl.
const FOREVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// Options of `delete`.
#[derive(Debug, Clone, Args)]
pub struct DeleteArgs {
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
    /// Seconds a pod gets to end; -1 for its own
    #[arg(long, value_name = "SECONDS", default_value_t = -1, allow_negative_numbers = true)]
    grace_period: i64,
    /// Do not wait for the node; with --grace-period=0
    #[arg(long)]
    force: bool,
    /// Soon: a grace period of one second
    #[arg(long, conflicts_with = "grace_period")]
    now: bool,
    /// Wait until it is gone
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
        action = clap::ArgAction::Set)]
    wait: bool,
    /// How long to wait; 0s for ever
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = super::wait::duration)]
    timeout: Duration,
    /// What becomes of what it owns
    #[arg(long, value_enum, default_value_t = Cascade::Background, default_missing_value = "background",
        num_args = 0..=1, require_equals = true, value_name = "HOW")]
    cascade: Cascade,
    /// Nothing to delete is no error
    #[arg(long)]
    ignore_not_found: bool,
    /// Print only names: name
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(flatten)]
    dry: DryRunArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cascade {
    /// Deleted afterwards
    Background,
    /// Deleted before
    Foreground,
    /// Left alone
    Orphan,
}

/// Runs `delete`.
///
/// # Errors
/// As every verb; each object that fails, after all others were tried.
pub async fn run(session: &Session, args: &DeleteArgs) -> Outcome {
    let grace = check(args)?;
    let (found, mut errors) = targets(session, args).await?;
    if args.force && !args.dry.client() {
        eprintln!(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. \
             The resource may continue to run on the cluster indefinitely."
        );
    }
    let mut gone = Vec::new();
    for about in &found {
        match delete(session, args, about, grace).await {
            Ok(uid) => {
                tell(args, about, grace)?;
                gone.push((about, uid));
            }
            Err(error)
                if (args.ignore_not_found || args.all || args.select.selector.is_some())
                    && error.is_not_found() => {}
            Err(error) => errors.push(match &about.source {
                Some(file) => error.while_("deleting", file),
                None => error,
            }),
        }
    }
    if gone.is_empty() && errors.is_empty() && !args.ignore_not_found && found.is_empty() {
        line("No resources found")?;
    }
    if args.wait && args.dry.dry_run == super::dry_run::DryRun::None {
        let timeout = if args.timeout.is_zero() { FOREVER } else { args.timeout };
        for (about, uid) in gone {
            until_gone(session, about, uid.as_deref(), timeout).await?;
        }
    }
    CliError::all(errors)
}

/// The grace period asked for, where one is.
fn check(args: &DeleteArgs) -> Outcome<Option<i64>> {
    if args.all && args.select.selector.is_some() {
        return Err(CliError::usage("cannot set --all and --selector at the same time"));
    }
    if let Some(format) = args.output.as_ref().filter(|f| **f != Format::Name) {
        return Err(CliError::usage(format!(
            "unexpected -o output mode: {format:?}. We only support '-o name'"
        )));
    }
    match args.grace_period {
        _ if args.now => Ok(Some(1)),
        n if args.force && n > 0 => {
            Err(CliError::failed("--force and --grace-period greater than 0 cannot be specified together"))
        }
        _ if args.force => Ok(Some(0)),
        // Without --force a pod ends properly, if quickly.
        0 => Ok(Some(1)),
        n if n > 0 => Ok(Some(n)),
        _ => Ok(None),
    }
}

async fn targets(session: &Session, args: &DeleteArgs) -> Outcome<(Vec<Found>, Vec<CliError>)> {
    if args.files.given() {
        let mut found = Vec::new();
        for document in args.files.read().await? {
            found.push(session.place(&document).await?);
        }
        return Ok((found, Vec::new()));
    }
    let named = parse(session.kinds().await?, &args.what)?;
    if named.iter().all(|t| t.name.is_some()) {
        if args.all {
            return Err(CliError::usage("name cannot be provided when --all is"));
        }
        if args.select.selector.is_some() {
            return Err(CliError::usage("name cannot be provided when a selector is specified"));
        }
        let found = named.into_iter().map(|t| Found {
            namespace: session.namespace_of(&t.resource),
            name: t.name.unwrap_or_default(),
            resource: t.resource,
            object: Value::Null,
            source: None,
        });
        return Ok((found.collect(), Vec::new()));
    }
    let which = Which {
        select: args.select.clone(),
        all: args.all,
        all_namespaces: args.all_namespaces,
        needs_choice: true,
    };
    session.fetch(&args.what, &args.files, &which).await
}

/// Asks for the deletion; the uid of what is being deleted.
async fn delete(
    session: &Session,
    args: &DeleteArgs,
    about: &Found,
    grace: Option<i64>,
) -> Outcome<Option<String>> {
    if args.dry.client() {
        return Ok(None);
    }
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1",
        "propagationPolicy": format!("{:?}", args.cascade)});
    if let Some(grace) = grace {
        options["gracePeriodSeconds"] = grace.into();
    }
    if let Some(all) = args.dry.query() {
        options["dryRun"] = json!([all]);
    }
    let answer = session.client.delete(&about.path(), Some(&options)).await?;
    // The object itself, or a Status whose details name it.
    let uid = answer["metadata"]["uid"].as_str().or_else(|| answer["details"]["uid"].as_str());
    Ok(uid.map(str::to_owned))
}

fn tell(args: &DeleteArgs, about: &Found, grace: Option<i64>) -> Outcome {
    if args.output.is_some() {
        return line(about.called());
    }
    let forced = if grace == Some(0) { "force deleted" } else { "deleted" };
    line(format!("{} \"{}\" {forced}{}", about.resource.noun(), about.name, args.dry.suffix()))
}

/// Waits until an object, this very one if its uid is known, is no more.
///
/// # Errors
/// When it takes longer than the timeout.
pub async fn until_gone(session: &Session, about: &Found, uid: Option<&str>, timeout: Duration) -> Outcome {
    let waiting = async {
        loop {
            match gone(session, about, uid).await {
                Ok(true) => return Ok(()),
                // The watch ended, or was too old: look again.
                Ok(false) => {}
                Err(e) if e.reason() == Some("Expired") => {}
                Err(e) => return Err(e),
            }
        }
    };
    tokio::time::timeout(timeout, waiting).await.unwrap_or_else(|_| {
        Err(CliError::failed(format!(
            "timed out waiting for the condition on {}/{}",
            about.resource.full_plural(),
            about.name
        )))
    })
}

/// Looks once, then watches as long as the server lets us.
async fn gone(session: &Session, about: &Found, uid: Option<&str>) -> Outcome<bool> {
    let collection = about.resource.collection(about.namespace.as_deref());
    let select = [("fieldSelector", Some(format!("metadata.name={}", about.name)))];
    let path = with_query(&collection, &select);
    let list = session.client.get(&path).await?;
    let is_it = |object: &Value| uid.is_none_or(|uid| object["metadata"]["uid"] == uid);
    if !list["items"].as_array().into_iter().flatten().any(is_it) {
        return Ok(true);
    }
    let version = list["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    let query = [("resourceVersion", version), ("watch", Some("true".into()))];
    let mut events = Box::pin(session.client.watch(&with_query(&path, &query)).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        if event["type"] == "DELETED" && is_it(&event["object"]) {
            return Ok(true);
        }
    }
    Ok(false)
}
