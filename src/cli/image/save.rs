//! `image save`: images of a node as one archive.
//!
//! Owns: which node writes them (the first that has them all) and the file. Invariant: a file of the name given is either
//! what it was before or a whole archive ([`crate::cli::sink`]), and what is cut off is removed.

use std::{
    io::{IsTerminal as _, Write},
    path::Path,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::{Progress, path};
use crate::cli::{
    error::{CliError, Outcome},
    session::Session,
    sink::{Sink, fault, is_stdout},
};

/// What the umask leaves.
const ANYBODY: u32 = 0o666;

/// Saves images that one of the nodes has.
///
/// # Errors
/// As every verb; when no node has all of them.
pub(super) async fn save(
    session: &Session,
    nodes: &[String],
    names: &[String],
    output: Option<&Path>,
) -> Outcome {
    if output.is_none_or(is_stdout) && std::io::stdout().is_terminal() {
        return Err(CliError::usage(
            "an archive is not for a terminal; name a file with -o, or pipe it".to_owned(),
        ));
    }
    let mut refusals = Vec::new();
    for node in nodes {
        let path = save_path(session, node, names).await?;
        match session.client.stream(&path).await {
            Ok(archive) => return receive(archive, node, output).await,
            Err(error) => refusals.push(error.while_("saving", &format!("{} on {node}", names.join(" ")))),
        }
    }
    CliError::all(refusals)
}

async fn save_path(session: &Session, node: &str, names: &[String]) -> Outcome<String> {
    let base = path(session, node, "images/save", None).await?;
    let query: Vec<(&str, Option<String>)> = names.iter().map(|name| ("name", Some(name.clone()))).collect();
    Ok(crate::cli::session::with_query(&base, &query))
}

async fn receive(
    archive: impl Stream<Item = Outcome<Bytes>> + Unpin,
    node: &str,
    output: Option<&Path>,
) -> Outcome {
    let progress = Progress::unknown(node);
    let name = output.unwrap_or(Path::new("-"));
    let fault = |source| fault(name, source);
    match Sink::open(name, ANYBODY).map_err(fault)? {
        sink @ Sink::Beside(_) => {
            let mut sink = sink;
            tokio::select! {
                copied = copy(archive, &mut sink, name, progress) => copied?,
                // What is beside the file goes when this returns.
                _ = tokio::signal::ctrl_c() => return Err(CliError::failed("interrupted; nothing was saved")),
            }
            sink.keep().map_err(fault)
        }
        mut sink => copy(archive, &mut sink, name, progress).await,
    }
}

async fn copy(
    mut archive: impl Stream<Item = Outcome<Bytes>> + Unpin,
    into: &mut impl Write,
    name: &Path,
    mut progress: Progress,
) -> Outcome {
    let fault = |source| fault(name, source);
    while let Some(chunk) = archive.next().await {
        let chunk = chunk?;
        into.write_all(&chunk).map_err(fault)?;
        progress.sent(chunk.len());
    }
    into.flush().map_err(fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(all: Vec<Outcome<Bytes>>) -> impl Stream<Item = Outcome<Bytes>> + Unpin {
        futures_util::stream::iter(all)
    }

    #[tokio::test]
    async fn an_archive_that_breaks_off_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.tar");
        std::fs::write(&file, "before").unwrap();
        let broken = chunks(vec![Ok(Bytes::from_static(b"half")), Err(CliError::failed("it broke off"))]);
        receive(broken, "n", Some(&file)).await.unwrap_err();
        assert_eq!(std::fs::read(&file).unwrap(), b"before");
        receive(chunks(vec![Ok(Bytes::from_static(b"whole"))]), "n", Some(&file)).await.unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"whole");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        receive(chunks(Vec::new()), "n", Some(dir.path())).await.unwrap_err();
    }
}
