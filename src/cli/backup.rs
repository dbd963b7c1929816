//! `backup`: a file from which a master can be made again.
//!
//! Owns: what is written, and when: it is checked as a restore would check it before it gets its name, or before the first byte
//! goes to what can only be written to. Invariant: a file is its owner's alone from the first byte ([`super::sink`]).

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::Args;
use futures_util::{Stream, StreamExt as _};

use super::{
    error::{CliError, Outcome},
    session::{Session, line},
    sink::{Beside, Sink, fault, is_stdout},
};
use crate::logic::backup::read;

const PATH: &str = "/troupe/v1/backup";
/// Its owner reads and writes it, nobody else.
const PRIVATE: u32 = 0o600;

/// Options of `backup`.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// The file to write (`-`: standard output); it will hold the cluster's keys and secrets
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs `backup`.
///
/// # Errors
/// As every verb; when the file cannot be written, or what came is not whole.
pub async fn run(session: &Session, args: &BackupArgs) -> Outcome {
    let file = args.file.as_path();
    let fault = |source| fault(file, source);
    if file.is_dir() {
        return Err(fault(io::ErrorKind::IsADirectory.into()));
    }
    let chunks = session.client.stream(PATH).await?;
    let there = fs::metadata(file);
    if is_stdout(file) || there.is_ok_and(|there| !there.is_file()) {
        return pour(chunks, file).await;
    }
    let Sink::Beside(mut beside) = Sink::open(file, PRIVATE).map_err(fault)? else {
        return Err(CliError::failed(format!("{} is no longer a file; try again", file.display())));
    };
    tokio::select! {
        copied = copy(chunks, &mut beside) => copied?,
        // What is beside the file goes when this returns.
        _ = tokio::signal::ctrl_c() => return Err(CliError::failed("interrupted; nothing was written")),
    }
    // As it is on disk, not as it came.
    let said = describe(file, &fs::read(beside.path()).map_err(fault)?)?;
    Sink::Beside(beside).keep().map_err(fault)?;
    line(said)
}

/// To what cannot be taken back: gathered and checked first. What is said does not get in between.
async fn pour(mut chunks: impl Stream<Item = Outcome<Bytes>> + Unpin, file: &Path) -> Outcome {
    let fault = |source| fault(file, source);
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    let said = describe(file, &bytes)?;
    let mut sink = Sink::open(file, PRIVATE).map_err(fault)?;
    sink.write_all(&bytes).and_then(|()| sink.keep()).map_err(fault)?;
    eprintln!("{said}");
    Ok(())
}

async fn copy(mut chunks: impl Stream<Item = Outcome<Bytes>> + Unpin, beside: &mut Beside) -> Outcome {
    while let Some(chunk) = chunks.next().await {
        let written = beside.write(&chunk?);
        written.map_err(|source| CliError::File { path: beside.path().to_owned(), source })?;
    }
    Ok(())
}

/// What a backup holds, if it is one.
fn describe(file: &Path, bytes: &[u8]) -> Outcome<String> {
    match read(bytes) {
        Ok(backup) => Ok(format!(
            "{}: {} objects at revision {}, {} bytes; it holds the cluster's keys and secrets: keep it as safe as those",
            if is_stdout(file) { "standard output".into() } else { file.display().to_string() },
            backup.objects.len(),
            backup.about.revision,
            bytes.len()
        )),
        Err(why) => Err(CliError::failed(format!("what the master sent cannot be used: {why}"))),
    }
}
