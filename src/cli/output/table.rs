//! The server's `Table`s as kubectl prints them.
//!
//! Owns: which columns are shown, the ones added on our side (namespace, labels, event), and headers once a table.

use serde_json::Value;

use super::tabs::Tabs;
use crate::cli::{
    error::Outcome,
    session::{name_of, raw},
};

/// What to show of a table.
#[derive(Debug, Clone, Default)]
pub struct Show {
    /// All columns.
    pub wide: bool,
    /// No line of headers.
    pub no_headers: bool,
    /// A column of namespaces in front.
    pub namespace: bool,
    /// `pod/` before each name.
    pub kind: Option<String>,
    /// A column for each of these labels.
    pub label_columns: Vec<String>,
    /// A column of all labels.
    pub labels: bool,
}

/// Prints tables under one line of headers.
pub struct TablePrinter {
    show: Show,
    tabs: Tabs,
    columns: Vec<Value>,
    headers_due: bool,
}

impl TablePrinter {
    /// A printer that has printed nothing yet.
    pub fn new(show: Show) -> TablePrinter {
        TablePrinter { headers_due: !show.no_headers, show, tabs: Tabs::table(), columns: Vec::new() }
    }

    /// Prints a table's rows; `event` goes before each, as with `--output-watch-events`.
    /// A table without columns has those of the last. Whether anything was printed.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub fn print(&mut self, table: &Value, event: Option<&str>) -> Outcome<bool> {
        if let Some(columns) = table["columnDefinitions"].as_array().filter(|c| !c.is_empty()) {
            self.columns = columns.clone();
        }
        let rows = table["rows"].as_array().map_or(&[][..], Vec::as_slice);
        if rows.is_empty() {
            return Ok(false);
        }
        let text = self.text(rows, event);
        raw(self.tabs.align(&text))?;
        Ok(true)
    }

    fn text(&mut self, rows: &[Value], event: Option<&str>) -> String {
        let mut text = String::new();
        let shown: Vec<usize> = (0..self.columns.len())
            .filter(|c| self.show.wide || self.columns[*c]["priority"].as_i64().unwrap_or(0) == 0)
            .collect();
        if std::mem::take(&mut self.headers_due) {
            let mut headers: Vec<String> = Vec::new();
            headers.extend(event.map(|_| "EVENT".to_owned()));
            headers.extend(self.show.namespace.then(|| "NAMESPACE".to_owned()));
            headers.extend(
                shown.iter().map(|c| self.columns[*c]["name"].as_str().unwrap_or_default().to_uppercase()),
            );
            let label = |l: &String| l.rsplit('/').next().unwrap_or_default().to_uppercase();
            headers.extend(self.show.label_columns.iter().map(label));
            headers.extend(self.show.labels.then(|| "LABELS".to_owned()));
            push(&mut text, &headers);
        }
        for row in rows {
            let cells: Vec<String> = self.row(row, &shown, event);
            push(&mut text, &cells);
        }
        text
    }

    fn row(&self, row: &Value, shown: &[usize], event: Option<&str>) -> Vec<String> {
        let metadata = &row["object"]["metadata"];
        let mut cells: Vec<String> = event.map(str::to_owned).into_iter().collect();
        cells.extend(
            self.show.namespace.then(|| metadata["namespace"].as_str().unwrap_or_default().to_owned()),
        );
        for column in shown {
            let mut text = cell(&row["cells"][*column]);
            if let Some(kind) = self.show.kind.as_ref().filter(|_| self.columns[*column]["format"] == "name")
            {
                text = format!("{kind}/{text}");
            }
            cells.push(text);
        }
        for label in &self.show.label_columns {
            cells.push(metadata["labels"][label].as_str().unwrap_or_default().to_owned());
        }
        cells.extend(self.show.labels.then(|| labels(&metadata["labels"])));
        cells
    }
}

fn push(text: &mut String, cells: &[String]) {
    text.push_str(&cells.join("\t"));
    text.push('\n');
}

/// Text up to its first line's end; control characters made visible, so that a name cannot drive a terminal.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => return String::new(),
        Value::String(text) => text.as_str(),
        other => return other.to_string(),
    };
    let first = text.split(['\n', '\r', '\u{c}']).next().unwrap_or_default();
    let mut out = first.replace('\u{1b}', "^[").replace('\t', " ");
    if first.len() < text.len() {
        out.push_str("...");
    }
    out
}

/// `a=b,c=d`.
pub fn labels(labels: &Value) -> String {
    let Some(map) = labels.as_object().filter(|m| !m.is_empty()) else { return "<none>".into() };
    let mut pairs: Vec<String> =
        map.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    pairs.sort();
    pairs.join(",")
}

/// Whatever the server gave as a table: a list or an object without columns shows its names.
pub fn as_table(answer: Value) -> Value {
    if answer["kind"] == "Table" {
        return answer;
    }
    let rows: Vec<Value> = super::items(&answer)
        .into_iter()
        .map(|o| serde_json::json!({"cells": [name_of(o)], "object": {"metadata": o["metadata"]}}))
        .collect();
    serde_json::json!({"kind": "Table", "metadata": answer["metadata"], "rows": rows,
        "columnDefinitions": [{"name": "Name", "type": "string", "format": "name", "priority": 0}]})
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_chosen_and_added() {
        let table = json!({"columnDefinitions": [
            {"name": "Name", "format": "name", "priority": 0}, {"name": "Age", "priority": 0},
            {"name": "Node", "priority": 1}]});
        let rows = [json!({"cells": ["web", "1s", "n1"],
            "object": {"metadata": {"namespace": "default", "labels": {"app": "w", "x/tier": "t"}}}})];
        let print = |show: Show, event: Option<&str>| {
            let mut printer = TablePrinter::new(show);
            printer.columns = table["columnDefinitions"].as_array().unwrap().clone();
            printer.text(&rows, event)
        };
        assert_eq!(print(Show::default(), None), "NAME\tAGE\nweb\t1s\n");
        let all = Show {
            wide: true,
            namespace: true,
            kind: Some("pod".into()),
            label_columns: vec!["x/tier".into(), "no".into()],
            labels: true,
            ..Show::default()
        };
        assert_eq!(
            print(all, Some("ADDED")),
            "EVENT\tNAMESPACE\tNAME\tAGE\tNODE\tTIER\tNO\tLABELS\n\
             ADDED\tdefault\tpod/web\t1s\tn1\tt\t\tapp=w,x/tier=t\n"
        );
        assert_eq!(print(Show { no_headers: true, ..Show::default() }, None), "web\t1s\n");
    }

    #[test]
    fn a_cell_is_one_line_and_harmless() {
        assert_eq!(cell(&json!("a\nb")), "a...");
        assert_eq!(cell(&json!("\u{1b}[31m")), "^[[31m");
        assert_eq!(cell(&json!(3)), "3");
        assert_eq!(cell(&Value::Null), "");
    }
}
