//! `image`: what the nodes have to run.
//!
//! Owns: uploads to one node or to every ready one, with progress on a terminal only. An archive from standard input can
//! be read only once, so it goes to one node, which has to be named where there are several.

mod pull;
mod save;

use std::{
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::{Args, Subcommand};
use futures_util::{Stream, StreamExt as _};
use serde_json::Value;
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

use super::{
    error::{CliError, Outcome},
    output::tabs::Tabs,
    session::{Session, line, name_of, raw, with_query},
    target::SelectorArgs,
};

/// Bytes read of a file at once.
const CHUNK: usize = 64 << 10;
/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// What to do with images.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    action: Action,
    /// Only on this node [default: every ready node]
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
    Ls,
    /// Remove images
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// Runs `image`.
///
/// # Errors
/// As every verb; each node that fails, after all others were tried.
pub async fn run(session: &Session, args: &ImageArgs) -> Outcome {
    let nodes = nodes(session, args.node.as_deref()).await?;
    match &args.action {
        Action::Load { file, name } => upload(session, &nodes, "load", file, name.as_deref()).await,
        Action::Import { file, name } => upload(session, &nodes, "import", file, Some(name)).await,
        Action::Pull { names } => pull::pull(session, &nodes, names).await,
        Action::Save { names, output } => save::save(session, &nodes, names, output.as_deref()).await,
        Action::Ls => list(session, &nodes).await,
        Action::Rm { names } => remove(session, &nodes, names).await,
    }
}

/// The node named, or every one that is ready.
async fn nodes(session: &Session, named: Option<&str>) -> Outcome<Vec<String>> {
    if let Some(name) = named {
        return Ok(vec![name.to_owned()]);
    }
    let nodes = session.kinds().await?.resolve("nodes")?;
    let ready = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let all = session.list(nodes, true, &SelectorArgs::default()).await?;
    let ready: Vec<String> = all.iter().filter(|n| ready(n)).map(|n| name_of(n).to_owned()).collect();
    match ready.is_empty() {
        true => Err(CliError::failed("no node is ready; see: get nodes")),
        false => Ok(ready),
    }
}

async fn path(session: &Session, node: &str, rest: &str, name: Option<&str>) -> Outcome<String> {
    let node = session.kinds().await?.resolve("nodes")?.object(None, node);
    Ok(with_query(&format!("{node}/proxy/{rest}"), &[("name", name.map(str::to_owned))]))
}

async fn upload(
    session: &Session,
    nodes: &[String],
    action: &str,
    file: &Path,
    name: Option<&str>,
) -> Outcome {
    let stdin = file == Path::new("-");
    if stdin && nodes.len() > 1 {
        return Err(CliError::usage(format!(
            "standard input can be read only once, and there are {} nodes; name one with --node, or give a file",
            nodes.len()
        )));
    }
    let mut errors = Vec::new();
    for node in nodes {
        let path = path(session, node, &format!("images/{action}"), name).await?;
        let progress = Progress::new(node, file, stdin)?;
        let opened = if stdin { standard_input() } else { std::fs::File::open(file) };
        let opened = opened.map_err(|source| CliError::File { path: file.to_owned(), source })?;
        let body = body(tokio::fs::File::from_std(opened), progress);
        let sent = session.client.upload(&path, body).await;
        match sent {
            Ok(names) => {
                for name in names.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    line(format!("{name} loaded on {node}"))?;
                }
            }
            Err(error) => errors.push(error.while_("loading", &format!("{} on {node}", file.display()))),
        }
    }
    CliError::all(errors)
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

async fn list(session: &Session, nodes: &[String]) -> Outcome {
    let mut errors = Vec::new();
    let mut rows: std::collections::BTreeMap<String, Vec<&str>> = std::collections::BTreeMap::new();
    for node in nodes {
        match session.client.get(&path(session, node, "images", None).await?).await {
            Ok(images) => {
                for name in names(&images) {
                    rows.entry(name).or_default().push(node);
                }
            }
            Err(error) => errors.push(error),
        }
    }
    if !rows.is_empty() {
        let mut text = String::from("IMAGE\tNODES\n");
        for (image, nodes) in rows {
            text.push_str(&format!("{image}\t{}\n", nodes.join(",")));
        }
        raw(Tabs::table().align(&text))?;
    }
    CliError::all(errors)
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
    use serde_json::json;

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
