//! `get`: tables, objects, and both as they change.

use std::cmp::Ordering;

use clap::Args;
use futures_util::{Stream, StreamExt as _};
use serde_json::Value;

use super::{
    client::{JSON, TABLE},
    discovery::Resource,
    error::{CliError, Outcome},
    manifest::FilesArg,
    output::{
        self, Format, Printer,
        jsonpath::Path,
        table::{Show, TablePrinter, as_table},
    },
    session::{Session, raw, with_query},
    target::{PAGE, SelectorArgs, Target, parse},
};

/// Options of `get`.
#[derive(Debug, Clone, Args)]
pub struct GetArgs {
    /// TYPE[,TYPE…] [NAME…], or TYPE/NAME…
    #[arg(value_name = "WHAT")]
    pub what: Vec<String>,
    #[command(flatten)]
    files: FilesArg,
    #[command(flatten)]
    select: SelectorArgs,
    /// wide, json, yaml, name, jsonpath=TEMPLATE, custom-columns=NAME:.path,…
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on as things change
    #[arg(short, long)]
    watch: bool,
    /// Only what changes from now on
    #[arg(long)]
    watch_only: bool,
    /// Say of each line whether it was added, modified or deleted
    #[arg(long)]
    output_watch_events: bool,
    /// Without the line of headers
    #[arg(long)]
    no_headers: bool,
    /// With a column of all labels
    #[arg(long)]
    show_labels: bool,
    /// With the kind before each name
    #[arg(long)]
    show_kind: bool,
    /// With columns of these labels
    #[arg(short = 'L', long, value_delimiter = ',', value_name = "LABEL")]
    label_columns: Vec<String>,
    /// By this field, like .metadata.name
    #[arg(long, value_name = "PATH", value_parser = |text: &str| Path::relaxed(text))]
    sort_by: Option<Path>,
    /// Nothing found is no error
    #[arg(long)]
    ignore_not_found: bool,
    /// How many objects are asked for at once; 0 for all
    #[arg(long, value_name = "N", default_value_t = PAGE)]
    chunk_size: usize,
    /// A path of the server, printed as it answers
    #[arg(long, value_name = "PATH", conflicts_with_all = ["what", "files"])]
    raw: Option<String>,
}

/// Runs `get`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &GetArgs) -> Outcome {
    if let Some(path) = &args.raw {
        return raw(session.client.text(path).await?);
    }
    let targets = targets(session, args).await?;
    if args.all_namespaces && targets.iter().any(|t| t.name.is_some()) {
        return Err(CliError::failed("a resource cannot be retrieved by name across all namespaces"));
    }
    if args.watch || args.watch_only {
        return watch(session, args, &targets).await;
    }
    match &args.output {
        None | Some(Format::Wide) => tables(session, args, &targets).await,
        Some(format) => objects(session, args, &targets, format).await,
    }
}

/// With the namespace a file names, where it comes from a file.
async fn targets(session: &Session, args: &GetArgs) -> Outcome<Vec<Target>> {
    if !args.files.given() {
        return parse(session.kinds().await?, &args.what);
    }
    let mut targets = Vec::new();
    for document in args.files.read().await? {
        let place = session.place(&document).await?;
        targets.push(Target { resource: place.resource, name: Some(place.name) });
    }
    Ok(targets)
}

fn namespace(session: &Session, args: &GetArgs, resource: &Resource) -> Option<String> {
    if args.all_namespaces { None } else { session.namespace_of(resource) }
}

fn show(args: &GetArgs, resource: &Resource, several: bool) -> Show {
    Show {
        wide: args.output == Some(Format::Wide),
        no_headers: args.no_headers,
        namespace: args.all_namespaces && resource.namespaced,
        kind: (several || args.show_kind).then(|| resource.noun()),
        label_columns: args.label_columns.clone(),
        labels: args.show_labels,
    }
}

async fn tables(session: &Session, args: &GetArgs, targets: &[Target]) -> Outcome {
    let (mut errors, mut tables) = (Vec::new(), Vec::new());
    // Consecutive targets of one kind share a table.
    for group in targets.chunk_by(|a, b| a.resource == b.resource) {
        let mut table: Option<Value> = None;
        for target in group {
            match fetch_table(session, args, target).await {
                Ok(answer) => match &mut table {
                    None => table = Some(answer),
                    Some(table) => append(table, answer),
                },
                Err(error) if args.ignore_not_found && error.is_not_found() => {}
                Err(error) => errors.push(error),
            }
        }
        tables.extend(table.map(|t| (&group[0].resource, t)));
    }
    let several = tables.iter().any(|(resource, _)| resource != &tables[0].0);
    let mut written = false;
    for (resource, mut table) in tables {
        if let Some(path) = &args.sort_by {
            sort(&mut table, path)?;
        }
        if table["rows"].as_array().is_none_or(Vec::is_empty) {
            continue;
        }
        if written && !args.no_headers {
            raw("\n")?;
        }
        written |= TablePrinter::new(show(args, resource, several)).print(&table, None)?;
    }
    if !written && errors.is_empty() && !args.ignore_not_found {
        nothing(session, args, targets);
    }
    CliError::all(errors)
}

fn nothing(session: &Session, args: &GetArgs, targets: &[Target]) {
    if !args.all_namespaces && targets.iter().all(|t| t.resource.namespaced) {
        eprintln!("No resources found in {} namespace.", session.namespace);
    } else {
        eprintln!("No resources found");
    }
}

/// All pages as one table.
async fn fetch_table(session: &Session, args: &GetArgs, target: &Target) -> Outcome<Value> {
    let include = args.sort_by.as_ref().map(|_| "Object".to_owned());
    let namespace = namespace(session, args, &target.resource);
    if let Some(name) = &target.name {
        let path = target.resource.object(namespace.as_deref(), name);
        let path = with_query(&path, &[("includeObject", include)]);
        return Ok(as_table(session.client.get_as(&path, TABLE).await?));
    }
    let collection = target.resource.collection(namespace.as_deref());
    let mut table: Option<Value> = None;
    let mut next = None;
    loop {
        let query = [
            ("fieldSelector", args.select.field_selector.clone()),
            ("includeObject", include.clone()),
            ("labelSelector", args.select.selector.clone()),
            ("limit", (args.chunk_size > 0).then(|| args.chunk_size.to_string())),
            ("continue", next),
        ];
        let page = as_table(session.client.get_as(&with_query(&collection, &query), TABLE).await?);
        next = page["metadata"]["continue"].as_str().filter(|c| !c.is_empty()).map(str::to_owned);
        match &mut table {
            None => table = Some(page),
            Some(table) => append(table, page),
        }
        if next.is_none() {
            return Ok(table.unwrap_or_default());
        }
    }
}

fn append(table: &mut Value, mut page: Value) {
    if let (Some(rows), Value::Array(more)) = (table["rows"].as_array_mut(), page["rows"].take()) {
        rows.extend(more);
    }
}

fn sort(table: &mut Value, path: &Path) -> Outcome {
    let Some(rows) = table["rows"].as_array_mut() else { return Ok(()) };
    sort_by(rows, path, |row| &row["object"])
}

fn sort_by(list: &mut [Value], path: &Path, object: impl Fn(&Value) -> &Value) -> Outcome {
    let mut found = false;
    let mut fault = None;
    let key = |item: &Value| path.find(object(item)).map(|v| v.first().map(|v| (*v).clone()));
    let mut keyed: Vec<(Option<Value>, Value)> = Vec::with_capacity(list.len());
    for item in list.iter() {
        match key(item) {
            Ok(key) => {
                found |= key.is_some();
                keyed.push((key, item.clone()));
            }
            Err(e) => fault = Some(e),
        }
    }
    match fault {
        Some(cause) => return Err(CliError::failed(cause)),
        None if !found && !list.is_empty() => {
            return Err(CliError::failed("couldn't find any field with the path given to --sort-by"));
        }
        None => {}
    }
    keyed.sort_by(|(a, _), (b, _)| order(a.as_ref(), b.as_ref()));
    for (slot, (_, item)) in list.iter_mut().zip(keyed) {
        *slot = item;
    }
    Ok(())
}

/// Numbers by value, texts by character, what is missing first.
fn order(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Some(a), Some(b)) => output::jsonpath::text_of(a).cmp(&output::jsonpath::text_of(b)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

async fn objects(session: &Session, args: &GetArgs, targets: &[Target], format: &Format) -> Outcome {
    let (mut found, mut errors) = (Vec::new(), Vec::new());
    for target in targets {
        let namespace = namespace(session, args, &target.resource);
        match &target.name {
            Some(name) => match session.client.get(&target.resource.object(namespace.as_deref(), name)).await
            {
                Ok(object) => found.push(object),
                Err(error) if args.ignore_not_found && error.is_not_found() => {}
                Err(error) => errors.push(error),
            },
            None => {
                found.extend(session.list(&target.resource, args.all_namespaces, &args.select).await?);
            }
        }
    }
    if let Some(path) = &args.sort_by {
        sort_by(&mut found, path, |object| object)?;
    }
    let single = targets.len() == 1 && targets[0].name.is_some();
    let mut printer = Printer::new(args.no_headers);
    let kinds = session.kinds().await?;
    match (single, found.pop()) {
        (true, Some(object)) => printer.print(format, kinds, &object)?,
        (true, None) => {}
        (false, last) => {
            found.extend(last);
            if !found.is_empty() || errors.is_empty() {
                printer.print(format, kinds, &output::list(found))?;
            }
        }
    }
    CliError::all(errors)
}

async fn watch(session: &Session, args: &GetArgs, targets: &[Target]) -> Outcome {
    let [target] = targets else {
        return Err(CliError::failed(
            "you may only specify a single resource type and at most one name to watch",
        ));
    };
    let namespace = namespace(session, args, &target.resource);
    let fields = match &target.name {
        Some(name) => Some(format!("metadata.name={name}")),
        None => args.select.field_selector.clone(),
    };
    let collection = target.resource.collection(namespace.as_deref());
    let select = [("fieldSelector", fields), ("labelSelector", args.select.selector.clone())];
    let tabular = matches!(args.output, None | Some(Format::Wide));
    let accept = if tabular { TABLE } else { JSON };
    let mut shown = match &args.output {
        None | Some(Format::Wide) => Shown::Table(TablePrinter::new(show(args, &target.resource, false))),
        Some(format) => {
            let printer = Printer::new(args.no_headers);
            Shown::Objects(printer, format.clone())
        }
    };
    if let Some(name) = &target.name {
        // Something that does not exist cannot be watched.
        session.client.get(&target.resource.object(namespace.as_deref(), name)).await?;
    }
    let first = session.client.get_as(&with_query(&collection, &select), accept).await?;
    let version = first["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
    let event = args.output_watch_events.then_some("ADDED");
    if !args.watch_only {
        match &shown {
            Shown::Table(_) => shown.print(session, &first, event).await?,
            Shown::Objects(..) => {
                for mut item in output::items(&first).into_iter().cloned() {
                    item["apiVersion"] = target.resource.api_version().into();
                    item["kind"] = target.resource.kind.clone().into();
                    shown.print(session, &item, event).await?;
                }
            }
        }
    }
    let path = with_query(&collection, &select);
    let query = [("resourceVersion", Some(version)), ("watch", Some("true".into()))];
    let events = session.client.watch_as(&with_query(&path, &query), accept).await?;
    follow(session, args, &mut shown, events).await
}

async fn follow(
    session: &Session,
    args: &GetArgs,
    shown: &mut Shown,
    events: impl Stream<Item = Outcome<Value>>,
) -> Outcome {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let event = event?;
        let kind = event["type"].as_str().unwrap_or_default();
        if kind != "BOOKMARK" {
            shown.print(session, &event["object"], args.output_watch_events.then_some(kind)).await?;
        }
    }
    Ok(())
}

/// How a watch shows what it sees.
enum Shown {
    Table(TablePrinter),
    Objects(Printer, Format),
}

impl Shown {
    async fn print(&mut self, session: &Session, object: &Value, event: Option<&str>) -> Outcome {
        match self {
            Shown::Table(printer) => {
                let table = if object["kind"] == "Table" { object.clone() } else { as_table(object.clone()) };
                printer.print(&table, event).map(|_| ())
            }
            Shown::Objects(printer, format) => {
                let object = match event {
                    Some(kind) => serde_json::json!({"type": kind, "object": object}),
                    None => object.clone(),
                };
                printer.print(format, session.kinds().await?, &object)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_sorted_by_what_their_objects_hold() {
        let mut list = [json!({"n": 10}), json!({}), json!({"n": 9})];
        sort_by(&mut list, &Path::relaxed(".n").unwrap(), |v| v).unwrap();
        assert_eq!(list, [json!({}), json!({"n": 9}), json!({"n": 10})]);
        assert!(sort_by(&mut list, &Path::relaxed(".x").unwrap(), |v| v).is_err());
    }
}
