//! `label` and `annotate`: two maps of an object's metadata, changed the same way.

use clap::Args;
use serde_json::{Map, Value, json};

use super::{
    change::{ReportArgs, Reporter},
    client::MERGE_PATCH,
    error::{CliError, Outcome},
    manifest::FilesArg,
    session::{Session, with_query},
    target::{Found, SelectorArgs, Which},
};

/// Options of `label` and `annotate`.
#[derive(Debug, Clone, Args)]
pub struct LabelArgs {
    /// TYPE NAME… or TYPE/NAME…, then KEY=VALUE to set and KEY- to remove
    #[arg(value_name = "WHAT CHANGE")]
    words: Vec<String>,
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
    /// Also where there is another value
    #[arg(long)]
    overwrite: bool,
    /// Only at this resource version
    #[arg(long, value_name = "VERSION")]
    resource_version: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Which map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `metadata.labels`.
    Labels,
    /// `metadata.annotations`.
    Annotations,
}

impl Field {
    fn field(self) -> &'static str {
        match self {
            Field::Labels => "labels",
            Field::Annotations => "annotations",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Field::Labels => "label",
            Field::Annotations => "annotation",
        }
    }

    fn manager(self) -> &'static str {
        match self {
            Field::Labels => "kubectl-label",
            Field::Annotations => "kubectl-annotate",
        }
    }
}

/// What to set and what to remove.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    set: Vec<(String, String)>,
    removed: Vec<String>,
}

/// Splits words into what is meant and what is to change.
fn split(words: &[String]) -> (Vec<String>, Changes) {
    let mut what = Vec::new();
    let mut changes = Changes::default();
    for word in words {
        if let Some((key, value)) = word.split_once('=') {
            changes.set.push((key.to_owned(), value.to_owned()));
        } else if let Some(key) = word.strip_suffix('-').filter(|k| !k.is_empty()) {
            changes.removed.push(key.to_owned());
        } else {
            what.push(word.clone());
        }
    }
    (what, changes)
}

/// Runs `label` or `annotate`.
///
/// # Errors
/// As every verb; each object that fails, after all others were tried.
pub async fn run(session: &Session, args: &LabelArgs, map: Field) -> Outcome {
    let (what, changes) = split(&args.words);
    if changes == Changes::default() {
        return Err(CliError::usage(format!("at least one {} update is required", map.noun())));
    }
    if let Some((key, _)) = changes.set.iter().find(|(key, _)| changes.removed.contains(key)) {
        return Err(CliError::failed(format!(
            "can not both modify and remove a {} in the same command: {key:?}",
            map.noun()
        )));
    }
    let which = Which {
        select: args.select.clone(),
        all: args.all,
        all_namespaces: args.all_namespaces,
        needs_choice: true,
    };
    let (found, mut errors) = session.fetch(&what, &args.files, &which).await?;
    let mut reporter = Reporter::new(session, &args.report);
    for about in found {
        match one(session, args, map, &changes, &about).await {
            Ok((object, done)) => reporter.tell(&about, &object, done).await?,
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}

async fn one(
    session: &Session,
    args: &LabelArgs,
    map: Field,
    changes: &Changes,
    about: &Found,
) -> Outcome<(Value, &'static str)> {
    let present = about.object["metadata"][map.field()].as_object().cloned().unwrap_or_default();
    if !args.overwrite {
        refuse_overwriting(map, changes, &present)?;
    }
    let mut patch = Map::new();
    let (mut set, mut removed) = (false, false);
    for (key, value) in &changes.set {
        set |= present.get(key).and_then(Value::as_str) != Some(value);
        patch.insert(key.clone(), value.clone().into());
    }
    for key in &changes.removed {
        if present.contains_key(key) {
            removed = true;
        } else if map == Field::Labels {
            super::session::line(format!("label {key:?} not found."))?;
        }
        patch.insert(key.clone(), Value::Null);
    }
    let done = match (map, set, removed) {
        (Field::Annotations, ..) => "annotated",
        (Field::Labels, true, _) => "labeled",
        (Field::Labels, false, true) => "unlabeled",
        (Field::Labels, false, false) => "not labeled",
    };
    if args.report.dry.client() || !(set || removed) {
        return Ok((about.object.clone(), done));
    }
    let mut patch = json!({"metadata": {map.field(): patch}});
    if let Some(version) = &args.resource_version {
        patch["metadata"]["resourceVersion"] = version.clone().into();
    }
    let query = [("dryRun", args.report.dry.query()), ("fieldManager", Some(map.manager().to_owned()))];
    let object = session.client.patch(&with_query(&about.path(), &query), MERGE_PATCH, &patch).await?;
    Ok((object, done))
}

fn refuse_overwriting(map: Field, changes: &Changes, present: &Map<String, Value>) -> Outcome {
    let mut taken = Vec::new();
    for (key, value) in &changes.set {
        if let Some(old) = present.get(key).and_then(Value::as_str).filter(|old| old != value) {
            taken.push((key, old));
        }
    }
    match (map, taken.as_slice()) {
        (_, []) => Ok(()),
        (Field::Labels, [(key, old), ..]) => {
            Err(CliError::failed(format!("'{key}' already has a value ({old}), and --overwrite is false")))
        }
        (Field::Annotations, all) => {
            let all: Vec<String> =
                all.iter().map(|(key, old)| format!("'{key}' already has a value ({old})")).collect();
            Err(CliError::failed(format!(
                "--overwrite is false but found the following declared annotation(s): {}",
                all.join("; ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_objects_or_changes() {
        let words: Vec<String> = ["pod", "web-1", "a=b=c", "gone-", "x="].map(str::to_owned).to_vec();
        let (what, changes) = split(&words);
        assert_eq!(what, ["pod", "web-1"]);
        assert_eq!(changes.set, [("a".into(), "b=c".into()), ("x".into(), String::new())]);
        assert_eq!(changes.removed, ["gone"]);
    }
}
