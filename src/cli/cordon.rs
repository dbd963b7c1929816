//! `cordon` and `uncordon`: whether a node takes new pods.

use clap::Args;
use serde_json::json;

use super::{
    client::STRATEGIC_PATCH,
    dry_run::DryRunArg,
    error::{CliError, Outcome},
    manifest::FilesArg,
    session::{Session, line, with_query},
    target::{SelectorArgs, Which},
};

/// Options of `cordon` and `uncordon`.
#[derive(Debug, Clone, Args)]
pub struct CordonArgs {
    /// The nodes
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Nodes with these labels
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "nodes")]
    selector: Option<String>,
    #[command(flatten)]
    dry: DryRunArg,
}

/// Runs `cordon`, or `uncordon`.
///
/// # Errors
/// As every verb; each node that fails, after all others were tried.
pub async fn run(session: &Session, args: &CordonArgs, cordon: bool) -> Outcome {
    if args.nodes.is_empty() && args.selector.is_none() {
        return Err(CliError::usage("name a node, or choose some with -l"));
    }
    let mut words = vec!["nodes".to_owned()];
    words.extend(args.nodes.iter().map(|n| n.strip_prefix("node/").unwrap_or(n).to_owned()));
    let select = SelectorArgs { selector: args.selector.clone(), field_selector: None };
    let which = Which { select, needs_choice: true, ..Which::default() };
    let (found, mut errors) = session.fetch(&words, &FilesArg::default(), &which).await?;
    let done = if cordon { "cordoned" } else { "uncordoned" };
    for about in found {
        if about.object["spec"]["unschedulable"].as_bool().unwrap_or(false) == cordon {
            line(format!("{} already {done}{}", about.called(), args.dry.suffix()))?;
            continue;
        }
        if !args.dry.client() {
            let value = if cordon { json!(true) } else { json!(null) };
            let patch = json!({"spec": {"unschedulable": value}});
            let path = with_query(&about.path(), &[("dryRun", args.dry.query())]);
            if let Err(error) = session.client.patch(&path, STRATEGIC_PATCH, &patch).await {
                errors.push(error);
                continue;
            }
        }
        line(format!("{} {done}{}", about.called(), args.dry.suffix()))?;
    }
    CliError::all(errors)
}
