//! `image save`: images of a node as one archive.
//!
//! Owns: which node writes them (the first that has them all) and the file. Invariant: a file of the name given is either
//! what it was before or a whole archive: it is written beside and renamed, and what is cut off is removed.

use std::{
    io::{IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use super::{Progress, path};
use crate::cli::{
    error::{CliError, Outcome},
    session::Session,
};

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
    if output.is_none() && std::io::stdout().is_terminal() {
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
    let Some(file) = output else {
        let stdout = Path::new("standard output");
        return copy(archive, &mut std::io::stdout().lock(), stdout, progress).await;
    };
    let beside = Beside::new(file)?;
    let mut into = &beside.file;
    tokio::select! {
        copied = copy(archive, &mut into, file, progress) => copied?,
        // What is beside the file goes when this returns.
        _ = tokio::signal::ctrl_c() => return Err(CliError::failed("interrupted; nothing was saved")),
    }
    beside.keep(file)
}

async fn copy(
    mut archive: impl Stream<Item = Outcome<Bytes>> + Unpin,
    into: &mut impl Write,
    name: &Path,
    mut progress: Progress,
) -> Outcome {
    let fault = |source| CliError::File { path: name.to_owned(), source };
    while let Some(chunk) = archive.next().await {
        let chunk = chunk?;
        into.write_all(&chunk).map_err(fault)?;
        progress.sent(chunk.len());
    }
    into.flush().map_err(fault)
}

/// A file beside the one that is to be; removed unless it is kept.
struct Beside {
    path: PathBuf,
    file: std::fs::File,
}

impl Beside {
    fn new(file: &Path) -> Outcome<Beside> {
        let fault = |path: &Path, source| CliError::File { path: path.to_owned(), source };
        let name = file.file_name().ok_or_else(|| {
            fault(file, std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not the name of a file"))
        })?;
        if file.is_dir() {
            return Err(fault(file, std::io::ErrorKind::IsADirectory.into()));
        }
        let path = file.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        let made = std::fs::File::options().write(true).create_new(true).open(&path);
        let made = made.map_err(|source| fault(&path, source))?;
        Ok(Beside { path, file: made })
    }

    fn keep(self, file: &Path) -> Outcome {
        let kept = self.file.sync_all().and_then(|()| std::fs::rename(&self.path, file));
        kept.map_err(|source| CliError::File { path: file.to_owned(), source })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = std::fs::remove_file(&self.path);
    }
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
