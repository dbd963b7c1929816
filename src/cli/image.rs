//! `image`: what the nodes have to run.
//!
//! Owns: uploads, with progress on a terminal only: to two of those nodes that give images to each other, so that one may
//! die, and to each that does not. Invariant: when one has ended well, no ready node goes on with another image under the
//! name. An archive from standard input can be read only once: it goes to one of them, or to the node that is named.

mod pull;
mod save;

use std::{
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::{
    error::{CliError, Outcome},
    output::tabs::Tabs,
    session::{Session, line, name_of, raw, with_query},
    target::SelectorArgs,
};
use crate::logic::nodes::IMAGE_SHARING;

/// Bytes read of a file at once.
const CHUNK: usize = 64 << 10;
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// What to do with images.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    action: Action,
    /// Only on this node [default: every ready node; what is loaded is sent to two, and others take it from there]
    #[arg(long, global = true, value_name = "NAME")]
    node: Option<String>,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Load an archive: docker save, or an OCI layout as a tar, maybe compressed
    Load {
        /// The archive, or - for standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Call the image so, whatever the archive calls it
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Make an image of a root file system
    Import {
        /// A tar of the root file system, or - for standard input
        #[arg(value_name = "ROOTFS.tar")]
        file: PathBuf,
        /// The image's name
        name: String,
    },
    /// Get images from their registries, also when they are there already
    Pull {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Write images as one archive, for image load or docker load
    Save {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// The archive [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show the images
    #[command(visible_alias = "list")]
    Ls {
        /// Another form: each image of each node
        #[arg(long, short, value_enum)]
        output: Option<Form>,
    },
    /// Remove images
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Json,
    Yaml,
}

/// Runs `image`.
///
/// # Errors
/// As every verb; each node that fails, after all others were tried.
pub async fn run(session: &Session, args: &ImageArgs) -> Outcome {
    let (nodes, sharing) = match &args.action {
        Action::Ls { .. } => (every(session, args.node.as_deref()).await?, 0),
        _ => nodes(session, args.node.as_deref()).await?,
    };
    let whole = Targets { nodes: &nodes, sharing };
    match &args.action {
        Action::Load { file, name } => upload(session, &whole, "load", file, name.as_deref()).await,
        Action::Import { file, name } => upload(session, &whole, "import", file, Some(name)).await,
        Action::Pull { names } => pull::pull(session, &nodes, names).await,
        Action::Save { names, output } => save::save(session, &nodes, names, output.as_deref()).await,
        Action::Ls { output } => list(session, &nodes, *output).await,
        Action::Rm { names } => remove(session, &nodes, names).await,
    }
}

/// Where images go.
struct Targets<'a> {
    nodes: &'a [String],
    /// So many of them, the first ones, give images to each other.
    sharing: usize,
}

/// Of those nodes that give an archive to each other so many get it from here: one may die before others have it.
const COPIES: usize = 2;
/// So many of them are tried at most: what none of these takes is the archive's fault.
const TRIED: usize = COPIES + 2;

impl Targets<'_> {
    /// Those that give images to each other.
    fn sharing(&self) -> &[String] {
        self.nodes.get(..self.sharing).unwrap_or(self.nodes)
    }

    /// Those that an archive has to be sent to in any case.
    fn others(&self) -> &[String] {
        self.nodes.get(self.sharing..).unwrap_or_default()
    }
}

/// Sends something to `copies` of some nodes, to the next one where one fails: who has it, and what failed.
async fn spread<'a, T>(
    nodes: &'a [String],
    copies: usize,
    mut send: impl AsyncFnMut(&'a str) -> Outcome<T>,
) -> (Vec<(&'a str, T)>, Vec<CliError>) {
    let (mut sent, mut failed) = (Vec::new(), Vec::new());
    for node in nodes.iter().take(TRIED) {
        if sent.len() >= copies {
            break;
        }
        match send(node).await {
            Ok(answer) => sent.push((node.as_str(), answer)),
            Err(error) => {
                // A file that cannot be read here is no node's fault.
                let here = matches!(error, CliError::File { .. });
                failed.push(error);
                if here {
                    break;
                }
            }
        }
    }
    (sent, failed)
}

/// Whether a node takes images from others: by its runtime, and if nobody has switched it off.
fn shares(node: &Value) -> bool {
    let runtime = node["status"]["nodeInfo"]["containerRuntimeVersion"].as_str();
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let off =
        conditions.any(|condition| condition["type"] == IMAGE_SHARING && condition["status"] == "False");
    runtime.is_some_and(|runtime| runtime.starts_with("native://")) && !off
}

/// The node named, or every one that is ready: those first that give images to each other, and how many these are.
async fn nodes(session: &Session, named: Option<&str>) -> Outcome<(Vec<String>, usize)> {
    if let Some(name) = named {
        return Ok((vec![name.to_owned()], 0));
    }
    let nodes = session.kinds().await?.resolve("nodes")?;
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let all = session.list(nodes, true, &SelectorArgs::default()).await?;
    let (mut names, others): (Vec<&Value>, Vec<&Value>) =
        all.iter().filter(|n| ready(n)).partition(|n| shares(n));
    let sharing = names.len();
    names.extend(others);
    match names.is_empty() {
        true => Err(CliError::failed("no node is ready; see: get nodes")),
        false => Ok((names.into_iter().map(|n| name_of(n).to_owned()).collect(), sharing)),
    }
}

/// The node named, or all: what one that does not answer has is not known, which is not to be taken for nothing.
async fn every(session: &Session, named: Option<&str>) -> Outcome<Vec<String>> {
    if let Some(name) = named {
        return Ok(vec![name.to_owned()]);
    }
    let nodes = session.kinds().await?.resolve("nodes")?;
    let all = session.list(nodes, true, &SelectorArgs::default()).await?;
    if all.is_empty() {
        return Err(CliError::failed("there is no node; see: get nodes"));
    }
    Ok(all.iter().map(|node| name_of(node).to_owned()).collect())
}

async fn path(session: &Session, node: &str, rest: &str, name: Option<&str>) -> Outcome<String> {
    let node = session.kinds().await?.resolve("nodes")?.object(None, node);
    Ok(with_query(&format!("{node}/proxy/{rest}"), &[("name", name.map(str::to_owned))]))
}

async fn upload(
    session: &Session,
    targets: &Targets<'_>,
    action: &str,
    file: &Path,
    name: Option<&str>,
) -> Outcome {
    let stdin = file == Path::new("-");
    // What was read of standard input is gone for the next one.
    let sharing = if stdin { targets.sharing().get(..1).unwrap_or_default() } else { targets.sharing() };
    let first = sharing.len().min(1) + targets.others().len();
    if stdin && first > 1 {
        return Err(CliError::usage(format!(
            "standard input can be read only once, and there are {first} nodes; name one with --node, or give a file"
        )));
    }
    let copies = COPIES.min(sharing.len());
    let (sent, mut errors) =
        spread(sharing, copies, async |node| send(session, node, action, file, name).await).await;
    if sent.len() == copies {
        // Others have it instead.
        errors.drain(..).for_each(|error| eprintln!("Warning: {error}"));
    } else if errors.iter().any(|error| matches!(error, CliError::File { .. })) {
        return CliError::all(errors);
    }
    for node in targets.others() {
        if let Err(error) = send(session, node, action, file, name).await {
            errors.push(error);
        }
    }
    // What others have under these names is not what pods are to get from now on.
    if let Some((of, loaded)) = sent.first().filter(|(_, loaded)| !loaded.is_empty()) {
        let ids = ids(&images(session, of).await?, loaded);
        let has = |node: &&String| sent.iter().any(|(of, _)| of == node);
        for node in targets.sharing().iter().filter(|node| !has(node)) {
            let there = match images(session, node).await {
                Ok(there) => self::ids(&there, loaded),
                Err(error) => {
                    errors.push(error.while_("looking at the images of", node));
                    continue;
                }
            };
            if there.iter().all(|(name, id)| ids.get(name) == Some(id)) {
                continue;
            }
            if stdin {
                let held = there.keys().cloned().collect::<Vec<_>>().join(", ");
                errors.push(CliError::failed(format!(
                    "{node} has another image called {held}, and standard input can be read only once: load it there, too \
                     (--node {node}), or remove the other one"
                )));
            } else if let Err(error) = send(session, node, action, file, name).await {
                errors.push(error);
            }
        }
    }
    CliError::all(errors)
}

/// Sends an archive to one node; the names of what was in it.
async fn send(
    session: &Session,
    node: &str,
    action: &str,
    file: &Path,
    name: Option<&str>,
) -> Outcome<Vec<String>> {
    let stdin = file == Path::new("-");
    let path = path(session, node, &format!("images/{action}"), name).await?;
    if file.is_dir() {
        let source = std::io::Error::new(
            std::io::ErrorKind::IsADirectory,
            "it is a directory, not an archive; of a root file system: tar -C DIR -c . | troupe image import - NAME",
        );
        return Err(CliError::File { path: file.to_owned(), source });
    }
    let progress = Progress::new(node, file, stdin)?;
    let opened = if stdin { standard_input() } else { std::fs::File::open(file) };
    let opened = opened.map_err(|source| CliError::File { path: file.to_owned(), source })?;
    let body = body(tokio::fs::File::from_std(opened), progress);
    let sent = session.client.upload(&path, body).await;
    let names = sent.map_err(|error| error.while_("loading", &format!("{} on {node}", file.display())))?;
    let names: Vec<String> =
        names.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    for name in &names {
        line(format!("{name} loaded on {node}"))?;
    }
    Ok(names)
}

/// What a node has.
async fn images(session: &Session, node: &str) -> Outcome<Value> {
    session.client.get(&path(session, node, "images", None).await?).await
}

/// The ids of those of the names that are among a node's images.
fn ids(images: &Value, names: &[String]) -> std::collections::BTreeMap<String, String> {
    let mut all = std::collections::BTreeMap::new();
    for image in images.as_array().into_iter().flatten() {
        let of = image["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for name in of.filter(|name| names.iter().any(|wanted| wanted == name)) {
            all.insert(name.to_owned(), image["id"].as_str().unwrap_or_default().to_owned());
        }
    }
    all
}

/// Standard input as a file, whose bytes are read by nobody else.
fn standard_input() -> std::io::Result<std::fs::File> {
    use std::os::fd::AsFd as _;
    Ok(std::io::stdin().as_fd().try_clone_to_owned()?.into())
}

fn body(
    from: impl AsyncRead + Unpin + 'static,
    mut progress: Progress,
) -> impl Stream<Item = std::io::Result<Bytes>> + 'static {
    ReaderStream::with_capacity(from, CHUNK).inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            progress.sent(chunk.len());
        }
    })
}

/// One line on a terminal that says how far an upload is; dropped, it leaves no trace.
struct Progress {
    node: String,
    sent: u64,
    total: Option<u64>,
    shown: Option<Instant>,
    visible: bool,
}

impl Progress {
    fn new(node: &str, file: &Path, stdin: bool) -> Outcome<Progress> {
        let fault = |source| CliError::File { path: file.to_owned(), source };
        let total = if stdin { None } else { Some(std::fs::metadata(file).map_err(fault)?.len()) };
        Ok(Progress {
            node: node.to_owned(),
            sent: 0,
            total,
            shown: None,
            visible: std::io::stderr().is_terminal(),
        })
    }

    /// Of something whose length nobody knows.
    fn unknown(node: &str) -> Progress {
        let visible = std::io::stderr().is_terminal();
        Progress { node: node.to_owned(), sent: 0, total: None, shown: None, visible }
    }

    fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        self.show();
    }

    fn show(&mut self) {
        if !self.visible || self.shown.is_some_and(|at| at.elapsed() < SHOW_EVERY) {
            return;
        }
        self.shown = Some(Instant::now());
        // A terminal that cannot be written to shows nothing.
        let _ = write!(std::io::stderr(), "\r\x1b[K{}", self.text());
    }

    fn text(&self) -> String {
        let mib = |bytes: u64| bytes >> 20;
        match self.total.filter(|t| *t > 0) {
            Some(total) => format!(
                "{}: {} of {} MiB ({}%)",
                self.node,
                mib(self.sent),
                mib(total),
                self.sent.min(total) * 100 / total
            ),
            None => format!("{}: {} MiB", self.node, mib(self.sent)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

async fn list(session: &Session, nodes: &[String], form: Option<Form>) -> Outcome {
    let mut errors = Vec::new();
    let mut all = Vec::new();
    let mut rows: std::collections::BTreeMap<String, Vec<&str>> = std::collections::BTreeMap::new();
    for node in nodes {
        match images(session, node).await {
            Ok(images) => {
                for name in names(&images) {
                    rows.entry(name).or_default().push(node);
                }
                all.extend(of_node(node, images));
            }
            Err(error) => {
                let error = error.while_("asking for the images of", node);
                all.push(unknown(node, &error));
                errors.push(error);
            }
        }
    }
    let all = Value::from(all);
    match form {
        Some(Form::Json) => raw(serde_json::to_string_pretty(&all).unwrap_or_default() + "\n")?,
        Some(Form::Yaml) => raw(serde_yaml_ng::to_string(&all).unwrap_or_default())?,
        None if rows.is_empty() => {}
        None => show(rows)?,
    }
    CliError::all(errors)
}

fn show(rows: std::collections::BTreeMap<String, Vec<&str>>) -> Outcome {
    let mut text = String::from("IMAGE\tNODES\n");
    for (image, nodes) in rows {
        text.push_str(&format!("{image}\t{}\n", nodes.join(",")));
    }
    raw(Tabs::table().align(&text))
}

/// In the place of the images of a node that does not tell them.
fn unknown(node: &str, error: &CliError) -> Value {
    json!({ "node": node, "names": [], "error": error.to_string() })
}

/// What a node says of its images, and which node it is.
fn of_node(node: &str, images: Value) -> Vec<Value> {
    let Value::Array(images) = images else { return Vec::new() };
    let named = |image: Value| {
        let mut image = if image.is_object() { image } else { json!({ "names": [image] }) };
        image["node"] = node.into();
        image
    };
    images.into_iter().map(named).collect()
}

/// A node's images: names, or objects that have some.
fn names(images: &Value) -> Vec<String> {
    let of = |image: &Value| -> Vec<String> {
        match image {
            Value::String(name) => vec![name.clone()],
            object => {
                let names = object["names"].as_array().into_iter().flatten();
                names.filter_map(Value::as_str).map(str::to_owned).collect()
            }
        }
    };
    images.as_array().into_iter().flatten().flat_map(of).collect()
}

async fn remove(session: &Session, nodes: &[String], names: &[String]) -> Outcome {
    let mut errors = Vec::new();
    for name in names {
        let mut missing = Vec::new();
        let mut removed = false;
        for node in nodes {
            let path = path(session, node, "images", Some(name)).await?;
            match session.client.delete(&path, None).await {
                Ok(_) => {
                    removed = true;
                    line(format!("{name} removed on {node}"))?;
                }
                Err(error) => missing.push(error.while_("removing", &format!("{name} on {node}"))),
            }
        }
        // An image that only some nodes have is removed where it is.
        if !removed {
            errors.extend(missing);
        }
    }
    CliError::all(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_archive_goes_to_two_nodes_that_share_and_to_the_next_where_one_fails() {
        let nodes: Vec<String> = ["a", "b", "c", "d", "e", "f"].map(str::to_owned).into();
        for (full, copies, expected, failures) in [
            ("", 2, "ab", 0),
            ("a", 2, "bc", 1),
            ("b", 2, "ac", 1),
            ("abc", 2, "d", 3),
            ("abcd", 2, "", 4),
            ("", 1, "a", 0),
        ] {
            let send = async |node: &str| match full.contains(node) {
                true => Err(CliError::failed("no space left on device")),
                false => Ok(()),
            };
            let (sent, failed) = spread(&nodes, copies, send).await;
            let sent: String = sent.into_iter().map(|(node, ())| node).collect();
            assert_eq!((sent.as_str(), failed.len()), (expected, failures), "{full}");
        }
        let gone = async |_: &str| {
            Err::<(), _>(CliError::File { path: "x".into(), source: std::io::ErrorKind::NotFound.into() })
        };
        assert_eq!(spread(&nodes, 2, gone).await.1.len(), 1, "said once");
        let targets = Targets { nodes: &nodes, sharing: 2 };
        assert_eq!((targets.sharing().concat(), targets.others().concat()), ("ab".into(), "cdef".into()));
    }

    #[test]
    fn nodes_of_the_native_runtime_share_unless_that_is_switched_off() {
        let node = |runtime: &str| json!({"status": {"nodeInfo": {"containerRuntimeVersion": runtime}}});
        let mut off = node("native://0.1.0");
        off["status"]["conditions"] = json!([{"type": IMAGE_SHARING, "status": "False"}]);
        assert!(!shares(&off));
        assert!(shares(&node("native://0.1.0")) && !shares(&node("docker://28")) && !shares(&json!({})));
    }

    #[test]
    fn what_others_have_under_a_name_is_known_by_its_id() {
        let there =
            json!([{"names": ["a:1", "b:1"], "id": "sha256:1"}, {"names": ["c:1"], "id": "sha256:2"}]);
        let ids = ids(&there, &["b:1".to_owned(), "c:1".to_owned(), "d:1".to_owned()]);
        let expected = [("b:1".to_owned(), "sha256:1".to_owned()), ("c:1".to_owned(), "sha256:2".to_owned())];
        assert_eq!(ids, expected.into());
    }

    #[test]
    fn images_are_named_however_a_node_tells_them() {
        assert_eq!(names(&json!(["a:1", {"names": ["b:1", "b:2"], "sizeBytes": 1}])), ["a:1", "b:1", "b:2"]);
    }

    #[test]
    fn progress_says_how_far_it_is() {
        let progress =
            |total| Progress { node: "n".into(), sent: 5 << 20, total, shown: None, visible: false };
        assert_eq!(progress(Some(10 << 20)).text(), "n: 5 of 10 MiB (50%)");
        assert_eq!(progress(None).text(), "n: 5 MiB");
    }
}
