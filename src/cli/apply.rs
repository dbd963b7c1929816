//! `apply`: makes the cluster have what files say, and remembers what they said.
//!
//! Owns: the annotation with the document applied last, and the choice of the patch: strategic for kinds whose lists we
//! know, JSON merge for all others, as kubectl does for kinds it was not built with.

use clap::Args;
use serde_json::{Value, json};

use super::{
    change::{ReportArgs, Reporter, ValidateArg},
    client::{MERGE_PATCH, STRATEGIC_PATCH},
    create::new,
    error::{CliError, Outcome},
    manifest::{Document, FilesArg},
    merge3,
    output::json,
    session::{Session, with_query},
    target::Found,
};
use crate::model::{Kind, registry::merge_key};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const MANAGER: &str = "kubectl-client-side-apply";
/// How often a patch is computed anew when the object changes meanwhile.
const TRIES: usize = 5;

/// Options of `apply`.
#[derive(Debug, Clone, Args)]
pub struct ApplyArgs {
    #[command(flatten)]
    files: FilesArg,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    validate: ValidateArg,
}

/// Runs `apply`.
///
/// # Errors
/// As every verb; each object that fails, after all others were tried.
pub async fn run(session: &Session, args: &ApplyArgs) -> Outcome {
    if !args.files.given() {
        return Err(CliError::usage("must specify -f: a file, a directory, or - for standard input"));
    }
    let documents = args.files.read().await?;
    let mut reporter = Reporter::new(session, &args.report);
    let mut errors = Vec::new();
    for document in documents {
        match one(session, args, &document).await {
            Ok((about, object, done)) => reporter.tell(&about, &object, done).await?,
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}

async fn one(
    session: &Session,
    args: &ApplyArgs,
    document: &Document,
) -> Outcome<(Found, Value, &'static str)> {
    let about = session.place(document).await?;
    if about.name.is_empty() {
        return Err(CliError::failed(format!(
            "error from {}: resource name may not be empty; apply needs metadata.name",
            document.source
        )));
    }
    let wanted = annotated(&about);
    let query = [
        ("dryRun", args.report.dry.query()),
        ("fieldManager", Some(MANAGER.to_owned())),
        ("fieldValidation", args.validate.query()),
    ];
    for _ in 0..TRIES {
        let live = match session.client.get(&about.path()).await {
            Ok(live) => live,
            Err(e) if e.is_not_found() => {
                if args.report.dry.client() {
                    return Ok((about, wanted, "created"));
                }
                let path = with_query(&about.resource.collection(about.namespace.as_deref()), &query);
                let made = session.client.post(&path, &new(&wanted)).await;
                let made = made.map_err(|e| e.while_("creating", &document.source))?;
                return Ok((about, made, "created"));
            }
            Err(e) => {
                return Err(e.while_("retrieving current configuration of", &document.source));
            }
        };
        let (patch, content_type) = patch(&about, &wanted, &live);
        if patch.as_object().is_none_or(serde_json::Map::is_empty) {
            return Ok((about, live, "unchanged"));
        }
        if args.report.dry.client() {
            return Ok((about, wanted, "configured"));
        }
        match session.client.patch(&with_query(&about.path(), &query), content_type, &patch).await {
            Ok(object) => return Ok((about, object, "configured")),
            Err(e) if e.is_conflict() => {}
            Err(e) => return Err(e.while_("applying patch", &document.source)),
        }
    }
    Err(CliError::failed(format!("{} keeps changing; try again", about.called())))
}

/// The document with its namespace, and with itself as the annotation.
fn annotated(about: &Found) -> Value {
    let mut wanted = about.object.clone();
    if !wanted["metadata"].is_object() {
        wanted["metadata"] = json!({});
    }
    if let Some(namespace) = &about.namespace {
        wanted["metadata"]["namespace"] = namespace.clone().into();
    }
    if !wanted["metadata"]["annotations"].is_object() {
        wanted["metadata"]["annotations"] = json!({});
    }
    if let Some(annotations) = wanted["metadata"]["annotations"].as_object_mut() {
        annotations.remove(LAST_APPLIED);
    }
    let text = json::compact(&wanted) + "\n";
    wanted["metadata"]["annotations"][LAST_APPLIED] = text.into();
    wanted
}

fn patch(about: &Found, wanted: &Value, live: &Value) -> (Value, &'static str) {
    let last = live["metadata"]["annotations"][LAST_APPLIED].as_str();
    if last.is_none() {
        eprintln!(
            "Warning: resource {}/{} is missing the {LAST_APPLIED} annotation which is required by kubectl apply. \
             kubectl apply should only be used on resources created declaratively by either kubectl create \
             --save-config or kubectl apply. The missing annotation will be patched automatically.",
            about.resource.full_plural(),
            about.name
        );
    }
    let mut last: Value = last.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    if !last.is_object() {
        last = json!({});
    }
    // The annotation is ours, and in every document but the last.
    let known = Kind::ALL
        .into_iter()
        .find(|k| k.name() == about.resource.kind && k.api_version() == about.resource.api_version());
    match known {
        Some(kind) => (merge3::patch(&last, wanted, live, &|path| merge_key(kind, path)), STRATEGIC_PATCH),
        None => (merge3::patch(&last, wanted, live, &|_| None), MERGE_PATCH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::discovery::Resource;

    #[test]
    fn a_document_carries_itself_as_kubectl_writes_it() {
        let about = Found {
            resource: Resource { namespaced: true, ..Resource::default() },
            namespace: Some("default".into()),
            name: "c".into(),
            object: json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c"}, "data": {"a": "<b>"}}),
            source: None,
        };
        let wanted = annotated(&about);
        assert_eq!(
            wanted["metadata"]["annotations"][LAST_APPLIED],
            "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"\\u003cb\\u003e\"},\"kind\":\"ConfigMap\",\"metadata\":\
             {\"annotations\":{},\"name\":\"c\",\"namespace\":\"default\"}}\n"
        );
    }
}
