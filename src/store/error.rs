//! What can go wrong between the store and its disk.
//!
//! Owns: [`StoreError`] and the advice that goes with each kind of I/O error. A text names the path and what a person
//! can do; the cause is the error's source.

use std::{error::Error, io, path::PathBuf};

use crate::model::{Key, SealError};

/// Why the store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the data directory.
    #[error(
        "data directory {path} is in use by another troupe ({owner}): stop that one, or choose another directory \
         with --data-dir"
    )]
    Locked {
        /// The data directory.
        path: PathBuf,
        /// Who holds it: `pid 123`.
        owner: String,
    },
    /// The directory was written in another format.
    #[error(
        "data directory {path} has format {found}, this troupe reads format {supported}: use the version that wrote \
         it, or choose another directory with --data-dir"
    )]
    Format {
        /// The data directory.
        path: PathBuf,
        /// What its `format` file says.
        found: String,
        /// What we know.
        supported: u32,
    },
    /// The path exists and is no directory.
    #[error("{path} is not a directory: choose another with --data-dir")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {doing} {path}{}", remedy(.source))]
    Io {
        /// What was tried: `create`, `write`…
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database found itself damaged.
    #[error("the database in {path} cannot be read ({reason}): restore the directory from a copy")]
    Damaged {
        /// The database's directory.
        path: PathBuf,
        /// What the database said.
        reason: String,
    },
    /// A key that this version does not understand.
    #[error(
        "the database in {path} holds {key:?}, which this troupe does not know: was it written by a newer one?"
    )]
    UnknownKey {
        /// The database's directory.
        path: PathBuf,
        /// The key as text.
        key: String,
    },
    /// A document that this version does not understand.
    #[error("the stored document {key} cannot be read")]
    Document {
        /// Its key.
        key: Key,
        /// Why.
        source: SealError,
    },
    /// The thread that writes has ended.
    #[error("the thread that writes to the store has ended")]
    WriterGone,
}

impl StoreError {
    /// The error and its causes on one line, for those who can only take a text.
    pub fn full_text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// What a person can do about it, in parentheses, or nothing.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => " (free some space there)",
        io::ErrorKind::PermissionDenied => " (run as its owner, or choose another directory with --data-dir)",
        io::ErrorKind::ReadOnlyFilesystem => {
            " (make it writable, or choose another directory with --data-dir)"
        }
        io::ErrorKind::NotADirectory => {
            " (a part of the path is a file: choose another directory with --data-dir)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_names_the_path_the_remedy_and_the_cause_once() {
        for (errno, says) in [
            (libc::ENOSPC, "free some space"),
            (libc::EROFS, "make it writable"),
            (libc::EACCES, "run as its owner"),
            (libc::ENOTDIR, "a part of the path is a file"),
        ] {
            let source = io::Error::from_raw_os_error(errno);
            let cause = source.to_string();
            let text = StoreError::Io { doing: "write", path: "/data/x".into(), source }.full_text();
            assert!(text.contains("cannot write /data/x") && text.contains(says), "{text}");
            assert_eq!(text.matches(&cause).count(), 1, "{text}");
        }
    }
}
