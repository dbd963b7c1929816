//! `describe`: objects told to a person, with what happened to them.
//!
//! Owns: which objects, the choice of the description by kind, and events. Kinds without a file here are described
//! field by field, so that a new kind works at once. Texts are laid out as kubectl lays them out.

mod cluster;
mod containers;
mod data;
mod generic;
mod node;
mod pod;
mod service;
mod write;

use clap::Args;
use serde_json::Value;

use super::{
    error::{CliError, Outcome},
    manifest::FilesArg,
    session::{Session, name_of, raw, with_query},
    target::{Found, PAGE, SelectorArgs, Target, Which, parse},
};
use write::Text;

/// Options of `describe`.
#[derive(Debug, Clone, Args)]
pub struct DescribeArgs {
    /// TYPE [NAME or its beginning…], TYPE/NAME…
    #[arg(value_name = "WHAT")]
    what: Vec<String>,
    #[command(flatten)]
    files: FilesArg,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// With what happened to them
    #[arg(long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
        action = clap::ArgAction::Set)]
    show_events: bool,
}

/// Runs `describe`.
///
/// # Errors
/// As every verb; each object that fails, after all others were tried.
pub async fn run(session: &Session, args: &DescribeArgs) -> Outcome {
    let (found, mut errors) = find(session, args).await?;
    if found.is_empty() && errors.is_empty() {
        match args.all_namespaces {
            true => eprintln!("No resources found"),
            false => eprintln!("No resources found in {} namespace.", session.namespace),
        }
    }
    let mut first = true;
    for about in &found {
        match describe(session, args, about).await {
            Ok(text) => {
                if !std::mem::take(&mut first) {
                    raw("\n\n")?;
                }
                raw(text)?;
            }
            Err(error) => errors.push(error),
        }
    }
    CliError::all(errors)
}

async fn find(session: &Session, args: &DescribeArgs) -> Outcome<(Vec<Found>, Vec<CliError>)> {
    let select = SelectorArgs { selector: args.selector.clone(), field_selector: None };
    let which = Which { select: select.clone(), all_namespaces: args.all_namespaces, ..Which::default() };
    if args.files.given() {
        return session.fetch(&args.what, &args.files, &which).await;
    }
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for target in parse(session.kinds().await?, &args.what)? {
        let Target { resource, name } = &target;
        let Some(name) = name else {
            let list = session.list(resource, args.all_namespaces, &select).await?;
            found.extend(list.into_iter().map(|o| session.found(resource, o)));
            continue;
        };
        let namespace = session.namespace_of(resource);
        match session.client.get(&resource.object(namespace.as_deref(), name)).await {
            Ok(object) => found.push(session.found(resource, object)),
            Err(error) if error.is_not_found() => {
                // The beginning of a name will do.
                let list = session.list(resource, false, &SelectorArgs::default()).await?;
                let before = found.len();
                let begins = list.into_iter().filter(|o| name_of(o).starts_with(name.as_str()));
                found.extend(begins.map(|o| session.found(resource, o)));
                if found.len() == before {
                    errors.push(error);
                }
            }
            Err(error) => errors.push(error),
        }
    }
    Ok((found, errors))
}

async fn describe(session: &Session, args: &DescribeArgs, about: &Found) -> Outcome<String> {
    let object = &about.object;
    let events = match args.show_events {
        true => Some(events(session, about).await?),
        false => None,
    };
    let mut text = Text::new();
    match (about.resource.group.as_str(), about.resource.kind.as_str()) {
        ("", "Pod") => pod::pod(&mut text, object),
        ("", "ReplicationController") => pod::controller(&mut text, session, object).await?,
        ("", "Node") => node::node(&mut text, session, object).await?,
        ("", "Service") => service::service(&mut text, session, about).await?,
        ("", "Namespace") => cluster::namespace(&mut text, object),
        ("", "ConfigMap") => data::config_map(&mut text, object),
        ("", "Secret") => data::secret(&mut text, object),
        _ => generic::object(&mut text, object),
    }
    let eventless = matches!(about.resource.kind.as_str(), "Namespace" | "Secret");
    if let Some(events) = events.filter(|_| !eventless) {
        write::events(&mut text, &events);
    }
    Ok(text.finish())
}

/// What happened to an object; to a node also what is recorded under its name instead of its uid.
async fn events(session: &Session, about: &Found) -> Outcome<Vec<Value>> {
    let events = session.kinds().await?.of_kind("v1", "Event")?;
    let uid = about.object["metadata"]["uid"].as_str().unwrap_or_default();
    let uids = if about.resource.kind == "Node" { vec![uid, about.name.as_str()] } else { vec![uid] };
    let mut found = Vec::new();
    for uid in uids {
        let fields = format!(
            "involvedObject.name={},involvedObject.namespace={},involvedObject.kind={},involvedObject.uid={uid}",
            about.name,
            about.namespace.as_deref().unwrap_or_default(),
            about.resource.kind
        );
        let query = [("fieldSelector", Some(fields)), ("limit", Some(PAGE.to_string()))];
        let path = with_query(&events.collection(about.namespace.as_deref()), &query);
        if let Value::Array(items) = session.client.get(&path).await?["items"].take() {
            found.extend(items);
        }
    }
    Ok(found)
}
