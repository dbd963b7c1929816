//! What a backup file looks like.
//!
//! Owns: [`Writer`], [`read`], and the revision at which a restored store begins. A file is text around documents, so that a
//! person can look into it: a line with the format, a line that says of what it is, then for each file and each object a line of
//! JSON that names it and says of how many bytes it is, those bytes and a newline, and a last line with the number of both and a
//! SHA-256 of everything before that line.
//! Invariant: a file that was cut off, altered or written in another format is refused as a whole, with the reason.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::model::{Key, Kind, Object, Revision, token::hex};

/// The format, and its version.
const MAGIC: &str = "troupe-backup/1";
const FAMILY: &str = "troupe-backup/";
/// A line that describes what follows is a few names long; one of more bytes is none.
const LINE_BYTES: usize = 4096;

/// The files of a master's data directory that a backup has, beside the objects: what it cannot do without.
pub const FILES: [&str; 3] = ["pki/ca.crt", "pki/ca.key", "pki/sa.key"];
/// Those that it has where the master does.
pub const MORE_FILES: [&str; 1] = ["pod-network"];

/// What a backup is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// The cluster's name.
    pub cluster: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// The revision that it shows.
    pub revision: Revision,
    /// The version of troupe that made it.
    pub version: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    File { file: String, bytes: usize },
    Object { kind: String, namespace: String, name: String, bytes: usize },
    End { end: End },
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    objects: usize,
    files: usize,
    sha256: String,
}

/// Makes a backup, piece by piece. The pieces, in order, are the file.
pub struct Writer {
    digest: Sha256,
    end: End,
}

impl Writer {
    /// A backup's beginning.
    pub fn begin(about: &About) -> (Writer, Vec<u8>) {
        let mut writer = Writer { digest: Sha256::new(), end: End::default() };
        let about = serde_json::to_string(about).unwrap_or_default();
        let piece = writer.told(format!("{MAGIC}\n{about}\n").into_bytes());
        (writer, piece)
    }

    /// A file of the data directory.
    pub fn file(&mut self, name: &str, content: &[u8]) -> Vec<u8> {
        self.end.files += 1;
        self.entry(&Line::File { file: name.to_owned(), bytes: content.len() }, content)
    }

    /// An object.
    pub fn object(&mut self, object: &Object) -> Vec<u8> {
        self.end.objects += 1;
        let line = Line::Object {
            kind: object.key.kind.tag().to_owned(),
            namespace: object.key.namespace.to_string(),
            name: object.key.name.to_string(),
            bytes: object.json.len(),
        };
        self.entry(&line, &object.json)
    }

    /// The last piece, without which the rest is worth nothing.
    pub fn end(mut self) -> Vec<u8> {
        self.end.sha256 = hex(&self.digest.finalize());
        let mut piece = serde_json::to_vec(&Line::End { end: self.end }).unwrap_or_default();
        piece.push(b'\n');
        piece
    }

    fn entry(&mut self, line: &Line, content: &[u8]) -> Vec<u8> {
        let mut piece = serde_json::to_vec(line).unwrap_or_default();
        piece.push(b'\n');
        piece.extend_from_slice(content);
        piece.push(b'\n');
        self.told(piece)
    }

    fn told(&mut self, piece: Vec<u8>) -> Vec<u8> {
        self.digest.update(&piece);
        piece
    }
}

/// A backup that is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Backup<'a> {
    /// What it is of.
    pub about: About,
    /// Files of the data directory.
    pub files: Vec<(String, &'a [u8])>,
    /// Objects as JSON.
    pub objects: Vec<(Key, &'a [u8])>,
}

/// Why a file is no backup that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBackup {
    /// Something else.
    #[error("it is no backup of troupe")]
    Other,
    /// Of another version.
    #[error("its format is {0:?}, and this troupe reads {MAGIC:?}: use the version that wrote it")]
    Format(String),
    /// The end is missing.
    #[error("it is cut off: the backup did not run to its end, or was not copied whole")]
    CutOff,
    /// Its revisions cannot be gone on from at this time.
    #[error("{0}")]
    Time(String),
    /// Something in it is not as it was written.
    #[error("it was altered or damaged ({0})")]
    Damaged(String),
}

/// Reads a backup.
///
/// # Errors
/// When it is none, or not whole.
pub fn read(bytes: &[u8]) -> Result<Backup<'_>, NoBackup> {
    if !bytes.starts_with(FAMILY.as_bytes()) {
        return Err(NoBackup::Other);
    }
    let mut rest = Rest(bytes);
    let magic = rest.line()?;
    if magic != MAGIC.as_bytes() {
        return Err(NoBackup::Format(String::from_utf8_lossy(magic).chars().take(40).collect()));
    }
    let about = parsed(rest.line()?)?;
    let mut backup = Backup { about, files: Vec::new(), objects: Vec::new() };
    loop {
        let before = bytes.len() - rest.0.len();
        match parsed(rest.line()?)? {
            Line::File { file, bytes } => {
                if !FILES.contains(&file.as_str()) && !MORE_FILES.contains(&file.as_str()) {
                    return Err(damaged(format_args!("it has a file {file:?}")));
                }
                backup.files.push((file, rest.content(bytes)?));
            }
            Line::Object { kind, namespace, name, bytes } => {
                let kind = Kind::from_tag(&kind).ok_or_else(|| damaged(format_args!("kind {kind:?}")))?;
                let content = rest.content(bytes)?;
                backup.objects.push((Key::new(kind, namespace, name), content));
            }
            Line::End { end } => {
                let digest = Sha256::digest(bytes.get(..before).unwrap_or_default());
                let found =
                    End { objects: backup.objects.len(), files: backup.files.len(), sha256: hex(&digest) };
                if end != found {
                    return Err(damaged("its checksum is another"));
                }
                if !rest.0.is_empty() {
                    return Err(damaged("something follows its end"));
                }
                if let Some(missing) =
                    FILES.iter().find(|file| !backup.files.iter().any(|(name, _)| name == *file))
                {
                    return Err(damaged(format_args!("{missing} is missing")));
                }
                return Ok(backup);
            }
        }
    }
}

fn damaged(what: impl std::fmt::Display) -> NoBackup {
    NoBackup::Damaged(what.to_string())
}

fn parsed<'a, T: Deserialize<'a>>(line: &'a [u8]) -> Result<T, NoBackup> {
    serde_json::from_slice(line).map_err(damaged)
}

struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn line(&mut self) -> Result<&'a [u8], NoBackup> {
        let head = self.0.get(..self.0.len().min(LINE_BYTES)).unwrap_or_default();
        let Some(at) = head.iter().position(|byte| *byte == b'\n') else {
            return Err(if self.0.len() < LINE_BYTES {
                NoBackup::CutOff
            } else {
                damaged("a line is too long")
            });
        };
        let line = self.content(at)?;
        Ok(line)
    }

    /// So many bytes and a newline.
    fn content(&mut self, length: usize) -> Result<&'a [u8], NoBackup> {
        let after = length.checked_add(1).ok_or_else(|| damaged("a length"))?;
        let (Some(content), Some(rest)) = (self.0.get(..length), self.0.get(after..)) else {
            return Err(NoBackup::CutOff);
        };
        if self.0.get(length) != Some(&b'\n') {
            return Err(damaged("a length is wrong"));
        }
        self.0 = rest;
        Ok(content)
    }
}

/// No store gives more revisions in a second: ten times what the disk takes.
const REVISIONS_PER_SECOND_BITS: u32 = 20;
/// More than a cluster changes between two backups: four thousand million.
const REVISIONS_AT_LEAST: u64 = 1 << 32;
/// Clients may read a revision as a float, which has no more whole numbers. No store comes to it before the year 2242.
const REVISIONS_END: u64 = 1 << 53;

/// The first revision of a store restored from `backup`. It is above every one that the cluster ever gave, before the backup,
/// after it, and in other lives that were restored from it, as long as none of those began by a clock that was ahead of the
/// present one: each went on at less than a million a second from the second at which it began. Where one did, only the
/// distance to the backup is sure.
///
/// # Errors
/// When the clock is before the backup, so that it cannot be right, or a number is beyond what any cluster comes to.
pub fn first_revision(backup: &Backup<'_>, now_s: u64) -> Result<Revision, NoBackup> {
    let Backup { about: About { created_at, revision, .. }, objects, .. } = backup;
    let made: Timestamp = created_at.parse().map_err(|_| damaged("the time at which it was made"))?;
    if i64::try_from(now_s).unwrap_or(i64::MAX) < made.as_second() {
        return Err(NoBackup::Time(format!(
            "it was made at {created_at}, and this machine's clock is before that: set the clock, by which a restored \
             store's revisions begin"
        )));
    }
    if revision.0 >= REVISIONS_END {
        return Err(damaged("its revision"));
    }
    let by_clock = now_s.saturating_mul(1 << REVISIONS_PER_SECOND_BITS);
    let first = revision.0.saturating_add(REVISIONS_AT_LEAST).max(by_clock);
    if first.saturating_add(objects.len() as u64) >= REVISIONS_END {
        return Err(NoBackup::Time("revisions would be beyond 2^53: set this machine's clock".into()));
    }
    Ok(Revision(first))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::seal_json;

    fn about() -> About {
        About {
            cluster: "c".into(),
            created_at: "2024-01-01T00:00:00Z".into(),
            revision: Revision(7),
            version: "0.1.0".into(),
        }
    }

    fn file() -> Vec<u8> {
        let (mut writer, mut bytes) = Writer::begin(&about());
        for name in FILES {
            bytes.extend(writer.file(name, format!("content\nof {name}").as_bytes()));
        }
        let document = br#"{"metadata":{"name":"a","namespace":"ns","uid":"u"},"data":{"a":"b\nc"}}"#;
        let object = seal_json(Kind::ConfigMap, document).unwrap().at(Revision(3));
        bytes.extend(writer.object(&object));
        bytes.extend(writer.end());
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = file();
        let backup = read(&bytes).unwrap();
        assert_eq!(backup.about, about());
        assert_eq!(backup.files[1], ("pki/ca.key".to_owned(), &b"content\nof pki/ca.key"[..]));
        assert_eq!(backup.objects.len(), 1);
        assert_eq!(backup.objects[0].0, Key::new(Kind::ConfigMap, "ns", "a"));
        assert!(backup.objects[0].1.starts_with(b"{"));
    }

    #[test]
    fn every_cut_and_every_altered_byte_is_refused() {
        let bytes = file();
        for length in 0..bytes.len() {
            let cut = read(&bytes[..length]).unwrap_err();
            let expected = if length < FAMILY.len() { NoBackup::Other } else { NoBackup::CutOff };
            assert_eq!(cut, expected, "{length}");
        }
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(read(&altered).is_err(), "{at}");
        }
        let mut longer = bytes.clone();
        longer.extend(b"{}\n");
        assert!(matches!(read(&longer), Err(NoBackup::Damaged(_))));
    }

    #[test]
    fn other_files_and_other_versions_say_so() {
        assert_eq!(read(b"apiVersion: v1\n"), Err(NoBackup::Other));
        assert_eq!(read(b""), Err(NoBackup::Other));
        let other = String::from_utf8(file()).unwrap().replacen("backup/1", "backup/2", 1);
        assert_eq!(read(other.as_bytes()), Err(NoBackup::Format("troupe-backup/2".into())));
    }

    #[test]
    fn a_file_that_names_other_paths_or_lacks_a_key_is_refused() {
        let with = |names: &[&str]| {
            let (mut writer, mut bytes) = Writer::begin(&about());
            for name in names {
                bytes.extend(writer.file(name, b"x"));
            }
            bytes.extend(writer.end());
            read(&bytes).map(|_| ())
        };
        assert!(matches!(with(&["../../etc/passwd"]), Err(NoBackup::Damaged(why)) if why.contains("passwd")));
        assert!(matches!(with(&FILES[..2]), Err(NoBackup::Damaged(why)) if why.contains("sa.key")));
        assert_eq!(with(&[FILES[0], FILES[1], FILES[2], MORE_FILES[0]]), Ok(()));
    }

    #[test]
    fn a_restored_store_begins_above_every_revision_of_every_life_before() {
        let first = first_revision(&of(1_000_000), T).unwrap();
        assert!(first > Revision(1_000_000 + REVISIONS_AT_LEAST));
        // Again from the same backup, after an hour at half a million changes a second.
        let second = first_revision(&of(1_000_000), T + 3600).unwrap();
        assert!(second.0 > first.0 + 3600 * 500_000);
        // From a backup of the second life, with a clock that was set back behind that life's begin.
        let third = first_revision(&of(second.0 + 5), T).unwrap();
        assert_eq!(third.0, second.0 + 5 + REVISIONS_AT_LEAST);
        assert!(second.0 < REVISIONS_END);
    }

    /// The second at which [`of`] was made.
    const T: u64 = 1_704_067_200;

    fn of(revision: u64) -> Backup<'static> {
        let about = About { revision: Revision(revision), ..about() };
        Backup { about, files: Vec::new(), objects: Vec::new() }
    }

    #[test]
    fn a_clock_before_the_backup_and_numbers_beyond_reason_are_refused() {
        let refused = |backup: &Backup<'_>, now_s| first_revision(backup, now_s).unwrap_err().to_string();
        let said = refused(&of(7), T - 1);
        assert!(said.contains("2024-01-01T00:00:00Z") && said.contains("set the clock"), "{said}");
        for revision in [REVISIONS_END, u64::MAX - 1, u64::MAX] {
            assert!(refused(&of(revision), T).contains("its revision"), "{revision}");
        }
        assert!(refused(&of(REVISIONS_END - 1), T).contains("2^53"));
        assert!(refused(&of(7), u64::MAX).contains("2^53"));
        let mut other = of(7);
        other.about.created_at = "yesterday".into();
        assert!(refused(&other, T).contains("the time"));
    }

    proptest! {
        #[test]
        fn nonsense_is_refused_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let with_head = [format!("{MAGIC}\n").as_bytes(), &bytes].concat();
            prop_assert!(read(&with_head).is_err());
        }
    }
}
