//! `patch`: one change to one object, in three notations.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{
    change::{ReportArgs, Reporter},
    client::{JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH},
    error::{CliError, Outcome},
    manifest::FilesArg,
    session::{Session, with_query},
    target::Which,
};

/// Options of `patch`.
#[derive(Debug, Clone, Args)]
pub struct PatchArgs {
    /// TYPE NAME or TYPE/NAME
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    #[command(flatten)]
    files: FilesArg,
    /// The patch, as JSON or YAML
    #[arg(short, long, value_name = "PATCH")]
    patch: Option<String>,
    /// A file with the patch
    #[arg(long, value_name = "FILE", conflicts_with = "patch")]
    patch_file: Option<PathBuf>,
    /// Its notation
    #[arg(long = "type", value_enum, default_value_t = Notation::Strategic)]
    notation: Notation,
    /// A part of the object with a path of its own: status, scale
    #[arg(long, value_name = "NAME")]
    subresource: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Notation {
    /// Lists merge as Kubernetes merges them
    Strategic,
    /// Lists are replaced (RFC 7396)
    Merge,
    /// A list of operations (RFC 6902)
    Json,
}

/// Runs `patch`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &PatchArgs) -> Outcome {
    let text = match (&args.patch, &args.patch_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => {
            std::fs::read_to_string(path).map_err(|source| CliError::File { path: path.clone(), source })?
        }
        (None, None) => {
            return Err(CliError::usage(
                "must specify --patch or --patch-file containing the contents of the patch",
            ));
        }
    };
    let patch: Value = serde_yaml_ng::from_str(&text)
        .map_err(|e| CliError::failed(format!("unable to parse {text:?}: {e}")))?;
    let content_type = match args.notation {
        Notation::Strategic => STRATEGIC_PATCH,
        Notation::Merge => MERGE_PATCH,
        Notation::Json => JSON_PATCH,
    };
    let which = Which { needs_choice: true, ..Which::default() };
    let (found, mut errors) = session.fetch(&args.what, &args.files, &which).await?;
    let mut reporter = Reporter::new(session, &args.report);
    for about in found {
        if args.report.dry.client() {
            reporter.tell(&about, &about.object, "patched").await?;
            continue;
        }
        let mut path = about.path();
        if let Some(subresource) = &args.subresource {
            path = format!("{path}/{subresource}");
        }
        let query = [("dryRun", args.report.dry.query()), ("fieldManager", Some("kubectl-patch".to_owned()))];
        match session.client.patch(&with_query(&path, &query), content_type, &patch).await {
            Ok(object) => {
                let same =
                    object["metadata"]["resourceVersion"] == about.object["metadata"]["resourceVersion"];
                reporter.tell(&about, &object, if same { "patched (no change)" } else { "patched" }).await?;
            }
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}
