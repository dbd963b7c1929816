//! What a container says of its own end: its termination message, else the end of its log.
//!
//! Owns: Kubernetes' limits on both and `terminationMessagePolicy`. What cannot be read is no message, never an error.

use std::{fs::File, io::Read as _, path::Path};

use k8s_openapi::api::core::v1;

use crate::{
    logic::pod::{config::Places, init::container_named},
    runtime::logs,
};

/// A termination message is cut here, as Kubernetes cuts it.
const MESSAGE_BYTES: u64 = 4096;
/// Of a log so much is shown at most…
const LOG_TEXT_BYTES: usize = 2048;
/// …and so many lines.
const LOG_LINES: usize = 80;
/// Where 80 lines with their times and streams are looked for.
const LOG_FILE_BYTES: u64 = 32 * 1024;

/// The last words of one life of a container that ended with `code`.
pub fn last_words(
    pod: &v1::Pod,
    places: &Places,
    container: &str,
    attempt: u32,
    code: i32,
) -> Option<String> {
    match speaks_by_log(pod, places, container, attempt, code) {
        true => read_log(&places.log(container, attempt)),
        false => read_message(&places.termination_message(container, attempt)),
    }
}

/// Whether [`last_words`] are those of the log, which has to be complete then.
pub fn speaks_by_log(pod: &v1::Pod, places: &Places, container: &str, attempt: u32, code: i32) -> bool {
    let policy = container_named(pod, container).and_then(|c| c.termination_message_policy.clone());
    code != 0
        && policy.as_deref() == Some("FallbackToLogsOnError")
        && read_message(&places.termination_message(container, attempt)).is_none()
}

fn read_message(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MESSAGE_BYTES).read_to_end(&mut bytes).ok()?;
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn read_log(path: &Path) -> Option<String> {
    let (bytes, cut) = logs::last_bytes(path, LOG_FILE_BYTES).ok()?;
    let text = log_text(&String::from_utf8_lossy(&bytes), cut);
    (!text.is_empty()).then_some(text)
}

/// The end of what a log in CRI's format (`TIME STREAM F|P TEXT`) says; `cut`: its first line is not whole.
fn log_text(log: &str, cut: bool) -> String {
    let lines: Vec<&str> = log.lines().skip(usize::from(cut)).collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
        let mut words = line.splitn(4, ' ').skip(2);
        let (Some(tag), Some(said)) = (words.next(), words.next()) else { continue };
        text.push_str(said);
        if tag == "F" {
            text.push('\n');
        }
    }
    let mut from = text.len().saturating_sub(LOG_TEXT_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text.split_off(from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_its_last_lines_without_times() {
        for (log, cut, text) in [
            ("", false, ""),
            ("t stdout F one\nt stderr F two words\n", false, "one\ntwo words\n"),
            ("half a line\nt stdout F whole\n", true, "whole\n"),
            ("t stdout P one \nt stdout F line\n", false, "one line\n"),
            ("t stdout F \nnonsense\n", false, "\n"),
        ] {
            assert_eq!(log_text(log, cut), text, "{log:?}");
        }
        let long = "t stdout F öööööööööö\n".repeat(200);
        let text = log_text(&long, false);
        assert!(text.len() <= LOG_TEXT_BYTES && text.lines().count() <= LOG_LINES);
    }

    #[test]
    fn a_log_speaks_only_where_the_policy_says_so_and_the_message_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { pod_dir: dir.path().join("pod"), log_dir: dir.path().join("logs") };
        let (message, log) = (places.termination_message("c", 1), places.log("c", 1));
        for file in [&message, &log] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        std::fs::write(&log, "t stdout F from the log\n").unwrap();
        std::fs::write(&message, "").unwrap();
        let pod = |policy: &str| -> v1::Pod {
            let container = serde_json::json!({"name": "c", "terminationMessagePolicy": policy});
            serde_json::from_value(serde_json::json!({"spec": {"containers": [container]}})).unwrap()
        };
        let (file, logs) = (pod("File"), pod("FallbackToLogsOnError"));
        assert_eq!(last_words(&file, &places, "c", 1, 1), None);
        assert_eq!(last_words(&logs, &places, "c", 1, 0), None);
        assert_eq!(last_words(&logs, &places, "c", 1, 1).as_deref(), Some("from the log\n"));
        // Only then the log has to be complete.
        assert!(speaks_by_log(&logs, &places, "c", 1, 1));
        assert!(!speaks_by_log(&logs, &places, "c", 1, 0) && !speaks_by_log(&file, &places, "c", 1, 1));
        std::fs::write(&message, "from the file").unwrap();
        assert_eq!(last_words(&logs, &places, "c", 1, 1).as_deref(), Some("from the file"));
    }
}
