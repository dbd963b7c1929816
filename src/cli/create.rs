//! `create`: from files, and the three kinds that are often made by hand.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::{
    change::{ReportArgs, Reporter, ValidateArg},
    error::{CliError, Outcome},
    manifest::{Document, FilesArg},
    session::{Session, with_query},
};

/// Options of `create`.
#[derive(Debug, Clone, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    files: FilesArg,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    validate: ValidateArg,
    #[command(subcommand)]
    kind: Option<CreateKind>,
}

#[derive(Debug, Clone, Subcommand)]
enum CreateKind {
    /// Create a namespace
    #[command(visible_alias = "ns")]
    Namespace(Named),
    /// Create a config map out of values and files
    #[command(visible_alias = "cm")]
    Configmap(Data),
    /// Create a secret out of values and files: secret generic NAME
    Secret {
        #[command(subcommand)]
        type_: SecretType,
    },
}

#[derive(Debug, Clone, Subcommand)]
enum SecretType {
    /// Of any values
    Generic {
        #[command(flatten)]
        data: Data,
        /// The secret's type
        #[arg(long = "type", value_name = "TYPE", default_value = "Opaque")]
        type_: String,
    },
}

#[derive(Debug, Clone, Args)]
struct Named {
    /// Its name
    name: String,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    validate: ValidateArg,
}

#[derive(Debug, Clone, Args)]
struct Data {
    #[command(flatten)]
    named: Named,
    /// KEY=VALUE (repeatable)
    #[arg(long, value_name = "KEY=VALUE")]
    from_literal: Vec<String>,
    /// [KEY=]FILE, or a directory whose files are taken (repeatable)
    #[arg(long, value_name = "[KEY=]FILE")]
    from_file: Vec<String>,
    /// A file of KEY=VALUE lines (repeatable)
    #[arg(long, value_name = "FILE")]
    from_env_file: Vec<PathBuf>,
}

/// Runs `create`.
///
/// # Errors
/// As every verb; each object that fails, after all others were tried.
pub async fn run(session: &Session, args: &CreateArgs) -> Outcome {
    match &args.kind {
        Some(CreateKind::Namespace(named)) => {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": named.name}});
            send(session, &named.report, &named.validate, vec![made(object)]).await
        }
        Some(CreateKind::Configmap(data)) => {
            let object = config_map(&data.named.name, data.read()?);
            send(session, &data.named.report, &data.named.validate, vec![made(object)]).await
        }
        Some(CreateKind::Secret { type_: SecretType::Generic { data, type_ } }) => {
            let object = secret(&data.named.name, type_, data.read()?);
            send(session, &data.named.report, &data.named.validate, vec![made(object)]).await
        }
        None if args.files.given() => {
            send(session, &args.report, &args.validate, args.files.read().await?).await
        }
        None => Err(CliError::usage("must specify -f, or what to create: namespace, configmap, secret")),
    }
}

/// A document that is not from a file.
pub fn made(object: Value) -> Document {
    Document { source: String::new(), object }
}

/// Creates documents one by one.
///
/// # Errors
/// Each object that fails, after all others were tried.
pub async fn send(
    session: &Session,
    report: &ReportArgs,
    validate: &ValidateArg,
    documents: Vec<Document>,
) -> Outcome {
    create(session, report, validate, documents, "kubectl-create", "created").await
}

/// As [`send`], with a manager and a participle of one's own.
///
/// # Errors
/// As [`send`].
pub async fn create(
    session: &Session,
    report: &ReportArgs,
    validate: &ValidateArg,
    documents: Vec<Document>,
    manager: &str,
    done: &str,
) -> Outcome {
    let mut reporter = Reporter::new(session, report);
    let mut errors = Vec::new();
    for document in documents {
        let mut about = session.place(&document).await?;
        if let Some(namespace) = &about.namespace {
            about.object["metadata"]["namespace"] = namespace.clone().into();
        }
        let query = [
            ("dryRun", report.dry.query()),
            ("fieldManager", Some(manager.to_owned())),
            ("fieldValidation", validate.query()),
        ];
        let path = with_query(&about.resource.collection(about.namespace.as_deref()), &query);
        let made = match report.dry.client() {
            true => Ok(about.object.clone()),
            false => session.client.post(&path, &new(&about.object)).await,
        };
        match made {
            Ok(object) => {
                super::session::name_of(&object).clone_into(&mut about.name);
                reporter.tell(&about, &object, done).await?;
            }
            Err(error) if document.source.is_empty() => errors.push(error_of_made(error)),
            Err(error) => errors.push(error.while_("creating", &document.source)),
        }
    }
    CliError::all(errors)
}

/// What is sent to be made of a document: one that was read from a cluster has a revision, which nothing new has.
pub fn new(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    object
}

/// kubectl's `error: failed to create …` for objects that are not from files.
fn error_of_made(error: CliError) -> CliError {
    match error {
        CliError::Status(mut status) if status["reason"] != "Invalid" => {
            let kind =
                status["details"]["kind"].as_str().unwrap_or("object").trim_end_matches('s').to_owned();
            if kind == "configmap" || kind == "secret" {
                let text = status["message"].as_str().unwrap_or_default();
                let reason = format!("failed to create {kind}: {text}");
                return CliError::failed(reason);
            }
            status["details"]["retryAfterSeconds"] = Value::Null;
            CliError::Status(status)
        }
        other => other,
    }
}

impl Data {
    /// Keys and bytes.
    fn read(&self) -> Outcome<Vec<(String, Vec<u8>)>> {
        let mut data: Vec<(String, Vec<u8>)> = Vec::new();
        for literal in &self.from_literal {
            let (key, value) = literal.split_once('=').filter(|(k, _)| !k.is_empty()).ok_or_else(|| {
                CliError::usage(format!("invalid literal source {literal}, expected key=value"))
            })?;
            let unquoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
            data.push((key.to_owned(), unquoted.unwrap_or(value).as_bytes().to_vec()));
        }
        for source in &self.from_file {
            let (key, path) = match source.split_once('=') {
                Some((key, path)) => (Some(key), Path::new(path)),
                None => (None, Path::new(source.as_str())),
            };
            data.extend(files(key, path)?);
        }
        for path in &self.from_env_file {
            let text = String::from_utf8_lossy(&read(path)?).into_owned();
            for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
                let (key, value) = line.split_once('=').map_or_else(
                    || (line.to_owned(), std::env::var(line).unwrap_or_default()),
                    |(k, v)| (k.to_owned(), v.to_owned()),
                );
                data.push((key, value.into_bytes()));
            }
        }
        for (at, (key, _)) in data.iter().enumerate() {
            if data[..at].iter().any(|(k, _)| k == key) {
                return Err(CliError::failed(format!(
                    "cannot add key {key}, another key by that name already exists"
                )));
            }
        }
        Ok(data)
    }
}

fn files(key: Option<&str>, path: &Path) -> Outcome<Vec<(String, Vec<u8>)>> {
    if !path.is_dir() {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        return Ok(vec![(key.map_or(name, str::to_owned), read(path)?)]);
    }
    let fault = |source| CliError::File { path: path.to_owned(), source };
    let entries: Result<Vec<_>, _> = std::fs::read_dir(path).map_err(fault)?.collect();
    let mut paths: Vec<PathBuf> = entries.map_err(fault)?.into_iter().map(|e| e.path()).collect();
    paths.retain(|p| p.is_file());
    paths.sort();
    paths.iter().map(|p| files(None, p)).collect::<Outcome<Vec<_>>>().map(|all| all.concat())
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    std::fs::read(path).map_err(|source| CliError::File { path: path.to_owned(), source })
}

fn base64(bytes: Vec<u8>) -> Value {
    serde_json::to_value(k8s_openapi::ByteString(bytes)).unwrap_or_default()
}

fn config_map(name: &str, data: Vec<(String, Vec<u8>)>) -> Value {
    let (mut texts, mut binaries) = (Map::new(), Map::new());
    for (key, bytes) in data {
        match String::from_utf8(bytes) {
            Ok(text) => texts.insert(key, text.into()),
            Err(error) => binaries.insert(key, base64(error.into_bytes())),
        };
    }
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    if !texts.is_empty() {
        object["data"] = texts.into();
    }
    if !binaries.is_empty() {
        object["binaryData"] = binaries.into();
    }
    object
}

fn secret(name: &str, type_: &str, data: Vec<(String, Vec<u8>)>) -> Value {
    let data: Map<String, Value> = data.into_iter().map(|(k, v)| (k, base64(v))).collect();
    let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": type_});
    if !data.is_empty() {
        object["data"] = data.into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_no_text_are_binary() {
        let map = config_map("c", vec![("a".into(), b"x".to_vec()), ("b".into(), vec![0xff])]);
        assert_eq!(map["data"], json!({"a": "x"}));
        assert_eq!(map["binaryData"], json!({"b": "/w=="}));
        assert_eq!(secret("s", "Opaque", vec![("a".into(), b"b".to_vec())])["data"]["a"], "Yg==");
    }

    #[test]
    fn a_key_is_given_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        std::fs::write(&file, "text").unwrap();
        let data = |literal: &[&str], files: &[String]| Data {
            named: Named {
                name: "x".into(),
                report: ReportArgs::default(),
                validate: ValidateArg { validate: "Strict" },
            },
            from_literal: literal.iter().map(|l| (*l).to_owned()).collect(),
            from_file: files.to_vec(),
            from_env_file: Vec::new(),
        };
        let path = file.display().to_string();
        let read = data(&["b=c=d", "q='x y'"], &[path.clone(), format!("k={path}")]).read().unwrap();
        let keys: Vec<&str> = read.iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(keys, ["b", "q", "a", "k"]);
        assert_eq!(read[1].1, b"x y");
        assert!(data(&["a=1"], &[path]).read().is_err());
        assert!(data(&["a"], &[]).read().is_err());
    }
}
