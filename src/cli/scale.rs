//! `scale`: how many replicas, through the `scale` subresource.

use clap::Args;
use serde_json::json;

use super::{
    change::{ReportArgs, Reporter},
    client::MERGE_PATCH,
    error::{CliError, Outcome},
    manifest::FilesArg,
    session::{Session, with_query},
    target::{SelectorArgs, Which},
};

/// Options of `scale`.
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// TYPE NAME… or TYPE/NAME…
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    #[command(flatten)]
    files: FilesArg,
    #[command(flatten)]
    select: SelectorArgs,
    /// All of the kind in the namespace
    #[arg(long)]
    all: bool,
    /// How many there shall be
    #[arg(long, value_name = "N")]
    replicas: i32,
    /// Only if there are so many now
    #[arg(long, value_name = "N")]
    current_replicas: Option<i32>,
    /// Only at this resource version
    #[arg(long, value_name = "VERSION")]
    resource_version: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Runs `scale`.
///
/// # Errors
/// As every verb; each object that fails, after all others were tried.
pub async fn run(session: &Session, args: &ScaleArgs) -> Outcome {
    if args.replicas < 0 {
        return Err(CliError::usage(
            "the --replicas=COUNT flag is required, and COUNT must be greater than or equal to 0",
        ));
    }
    let which = Which { select: args.select.clone(), all: args.all, needs_choice: true, ..Which::default() };
    let (found, mut errors) = session.fetch(&args.what, &args.files, &which).await?;
    if found.is_empty() && errors.is_empty() {
        return Err(CliError::failed("no objects passed to scale"));
    }
    let mut reporter = Reporter::new(session, &args.report);
    for about in found {
        let path = format!("{}/scale", about.path());
        let patched = async {
            let mut patch = json!({"spec": {"replicas": args.replicas}});
            if args.current_replicas.is_some() || args.resource_version.is_some() {
                let now = session.client.get(&path).await?;
                let replicas = now["spec"]["replicas"].as_i64().unwrap_or(0);
                if let Some(expected) = args.current_replicas.filter(|n| i64::from(*n) != replicas) {
                    return Err(CliError::failed(format!(
                        "Expected replicas to be {expected}, was {replicas}"
                    )));
                }
                let version = now["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                if let Some(expected) = args.resource_version.as_deref().filter(|v| *v != version) {
                    return Err(CliError::failed(format!(
                        "Expected resource version to be {expected}, was {version}"
                    )));
                }
                patch["metadata"]["resourceVersion"] = version.into();
            }
            if args.report.dry.client() {
                return Ok(about.object.clone());
            }
            let query = [("dryRun", args.report.dry.query())];
            session.client.patch(&with_query(&path, &query), MERGE_PATCH, &patch).await
        };
        match patched.await {
            Ok(object) => reporter.tell(&about, &object, "scaled").await?,
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}
