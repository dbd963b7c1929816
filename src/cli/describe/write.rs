//! The writing of descriptions: fields, maps over several lines, events.

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use crate::cli::{
    events::{last_seen, seen},
    output::tabs::Tabs,
    session::now,
};
use crate::model::table::human_duration;

/// An annotation longer than this has a line of its own, and is cut.
const ANNOTATION: usize = 140;
/// Not shown: it repeats the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A description being written. Cells end with tabs and are aligned at the end, block by block.
#[derive(Default)]
pub struct Text {
    done: String,
    block: String,
}

impl Text {
    /// An empty one.
    pub fn new() -> Text {
        Text::default()
    }

    /// A line at a level of indentation; without a newline in the text.
    pub fn line(&mut self, level: usize, text: impl AsRef<str>) {
        let _ = writeln!(self.block, "{}{}", "  ".repeat(level), text.as_ref());
    }

    /// `Name:  value`.
    pub fn field(&mut self, level: usize, name: &str, value: impl AsRef<str>) {
        self.line(level, format!("{name}:\t{}", value.as_ref()));
    }

    /// As [`Text::field`], unless there is nothing to say.
    pub fn field_if(&mut self, level: usize, name: &str, value: &Value) {
        let text = plain(value);
        if !text.is_empty() {
            self.field(level, name, text);
        }
    }

    /// Ends a block: what follows is aligned anew.
    pub fn flush(&mut self) {
        self.done.push_str(&Tabs::description().align(&self.block));
        self.block.clear();
    }

    /// The text.
    pub fn finish(mut self) -> String {
        self.flush();
        self.done
    }

    /// A map of labels, one a line.
    pub fn labels(&mut self, title: &str, labels: &Value) {
        self.lines(title, pairs(labels).into_iter().map(|(k, v)| format!("{k}={v}")).collect());
    }

    /// Lines behind a title, or `<none>`.
    pub fn lines(&mut self, title: &str, lines: Vec<String>) {
        if lines.is_empty() {
            return self.field(0, title, "<none>");
        }
        for (at, line) in lines.iter().enumerate() {
            match at {
                0 => self.field(0, title, line),
                _ => self.line(0, format!("\t{line}")),
            }
        }
    }

    /// A map of annotations; long ones below their name.
    pub fn annotations(&mut self, title: &str, annotations: &Value) {
        let mut lines = Vec::new();
        for (key, value) in pairs(annotations).into_iter().filter(|(k, _)| k != LAST_APPLIED) {
            let value = value.strip_suffix('\n').unwrap_or(&value);
            if value.len() + key.len() + 2 <= ANNOTATION && !value.contains('\n') {
                lines.push(format!("{key}: {value}"));
                continue;
            }
            lines.push(format!("{key}:"));
            lines.extend(value.split('\n').map(|l| format!("  {}", shorten(l))));
        }
        self.lines(title, lines);
    }

    /// Name, namespace, labels and annotations: how most descriptions begin.
    pub fn head(&mut self, object: &Value) {
        let metadata = &object["metadata"];
        self.field(0, "Name", plain(&metadata["name"]));
        self.field(0, "Namespace", plain(&metadata["namespace"]));
        self.labels("Labels", &metadata["labels"]);
        self.annotations("Annotations", &metadata["annotations"]);
    }
}

fn shorten(line: &str) -> String {
    let most = ANNOTATION - 2;
    match line.char_indices().nth(most) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line.to_owned(),
    }
}

/// A map's entries by key.
pub fn pairs(map: &Value) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> =
        map.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), plain(v))).collect();
    all.sort();
    all
}

/// A list, or nothing.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A value without quotes; nothing for null.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `<none>` for nothing.
pub fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

/// `True` or `False`.
pub fn boolean(value: &Value) -> &'static str {
    if value.as_bool().unwrap_or(false) { "True" } else { "False" }
}

/// `Tue, 24 Nov 2026 02:22:22 +0000`.
pub fn time(value: &Value) -> String {
    match value.as_str().and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(time) => time.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string(),
        None => "Mon, 01 Jan 0001 00:00:00 +0000".into(),
    }
}

/// How long ago, `5m`.
pub fn ago(value: &Value) -> String {
    match value.as_str().and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(then) => human_duration(now().as_second() - then.as_second()),
        None => "<unknown>".into(),
    }
}

/// The events, the oldest first.
pub fn events(text: &mut Text, events: &[Value]) {
    if events.is_empty() {
        return text.field(0, "Events", "<none>");
    }
    let mut events: Vec<&Value> = events.iter().collect();
    events.sort_by_key(|e| last_seen(e));
    text.flush();
    text.line(0, "Events:");
    text.line(1, "Type\tReason\tAge\tFrom\tMessage");
    text.line(1, "----\t------\t----\t----\t-------");
    for event in events {
        let source = match &event["source"]["component"] {
            Value::String(component) if !component.is_empty() => component.clone(),
            _ => plain(&event["reportingComponent"]),
        };
        text.line(
            1,
            format!(
                "{}\t{}\t{}\t{source}\t{}",
                plain(&event["type"]),
                plain(&event["reason"]),
                seen(event, now()),
                plain(&event["message"]).trim()
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn maps_are_told_over_several_lines() {
        let mut text = Text::new();
        text.head(&json!({"metadata": {"name": "web", "labels": {"b": "2", "a": "1"},
            "annotations": {"k": "v", LAST_APPLIED: "{}", "l": "x\ny\n"}}}));
        assert_eq!(
            text.finish(),
            "Name:         web\nNamespace:    \nLabels:       a=1\n              b=2\nAnnotations:  k: v\n\
             \u{20}             l:\n                x\n                y\n"
        );
    }

    #[test]
    fn times_are_told_as_kubectl_tells_them() {
        assert_eq!(time(&json!("2026-11-24T02:22:22Z")), "Tue, 24 Nov 2026 02:22:22 +0000");
    }
}
