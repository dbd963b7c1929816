//! `backup`: a file from which a master can be made again.
//!
//! Owns: the file. Invariants: it is its owner's alone from the first byte; it is written beside, checked as a restore would
//! check it, and only then renamed, so a file of that name is whole, or what it was before.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use clap::Args;
use futures_util::StreamExt as _;

use super::{
    error::{CliError, Outcome},
    session::{Session, line},
};
use crate::logic::backup::read;

const PATH: &str = "/troupe/v1/backup";

/// Options of `backup`.
#[derive(Debug, Clone, Args)]
pub struct BackupArgs {
    /// The file to write; it will hold the cluster's keys and secrets
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs `backup`.
///
/// # Errors
/// As every verb; when the file cannot be written, or what came is not whole.
pub async fn run(session: &Session, args: &BackupArgs) -> Outcome {
    let fault = |source| CliError::File { path: args.file.clone(), source };
    if args.file.is_dir() {
        return Err(fault(io::ErrorKind::IsADirectory.into()));
    }
    let mut chunks = session.client.stream(PATH).await?;
    let beside = Beside::new(&args.file).map_err(fault)?;
    let copied = async {
        while let Some(chunk) = chunks.next().await {
            (&beside.file).write_all(&chunk?).map_err(fault)?;
        }
        beside.file.sync_all().map_err(fault)
    };
    tokio::select! {
        copied = copied => copied?,
        // What is beside the file goes when this returns.
        _ = tokio::signal::ctrl_c() => return Err(CliError::failed("interrupted; nothing was written")),
    }
    // As it is on disk, not as it came.
    let bytes = fs::read(&beside.path).map_err(fault)?;
    let said = match read(&bytes) {
        Ok(backup) => format!(
            "{}: {} objects at revision {}, {} bytes; it holds the cluster's keys and secrets: keep it as safe as those",
            args.file.display(),
            backup.objects.len(),
            backup.about.revision,
            bytes.len()
        ),
        Err(why) => return Err(CliError::failed(format!("what the master sent cannot be used: {why}"))),
    };
    beside.keep(&args.file).map_err(fault)?;
    line(said)
}

/// A file beside the one that is to be; removed unless it is kept.
struct Beside {
    path: PathBuf,
    file: fs::File,
}

impl Beside {
    fn new(file: &Path) -> io::Result<Beside> {
        let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let path = file.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Beside { path, file })
    }

    fn keep(self, file: &Path) -> io::Result<()> {
        fs::rename(&self.path, file)?;
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
        fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = fs::remove_file(&self.path);
    }
}
