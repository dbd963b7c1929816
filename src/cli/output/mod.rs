//! How results are shown: `-o` and its formats, byte for byte as kubectl shows them.
//!
//! Owns: [`Format`], what `-o` may be, and the printing of whole objects. Tables have a file of their own.

pub mod json;
pub mod jsonpath;
pub mod table;
pub mod tabs;
pub mod yaml;

use std::str::FromStr;

use serde_json::{Value, json};

use super::{
    discovery::{Discovery, Resource},
    error::{CliError, Outcome},
    session::{line, name_of, raw},
};
use jsonpath::{Path, Template};
use tabs::Tabs;

/// What `-o` says.
#[derive(Debug, Clone, PartialEq)]
pub enum Format {
    /// The table with all its columns.
    Wide,
    /// The object as JSON.
    Json,
    /// The object as YAML.
    Yaml,
    /// `pod/web`.
    Name,
    /// A template.
    JsonPath(Template),
    /// Headers and paths.
    Columns(Vec<(String, Path)>),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        let (name, argument) = text.split_once('=').unwrap_or((text, ""));
        match name {
            "wide" => Ok(Format::Wide),
            "json" => Ok(Format::Json),
            "yaml" => Ok(Format::Yaml),
            "name" => Ok(Format::Name),
            "jsonpath" if argument.is_empty() => {
                Err("jsonpath= needs a template, like {.metadata.name}".into())
            }
            "jsonpath" => Template::parse(argument).map(Format::JsonPath),
            "custom-columns" => columns(argument).map(Format::Columns),
            _ => Err(format!(
                "there is no format {name:?}: wide, json, yaml, name, jsonpath=…, custom-columns=NAME:.path,…"
            )),
        }
    }
}

fn columns(spec: &str) -> Result<Vec<(String, Path)>, String> {
    let parse = |column: &str| {
        let (header, path) = column.split_once(':').ok_or_else(|| {
            format!("unexpected custom-columns spec: {column}, expected <header>:<json-path-expr>")
        })?;
        Ok((header.to_owned(), Path::relaxed(path)?))
    };
    match spec.is_empty() {
        true => Err("custom-columns format specified but no custom columns given".into()),
        false => spec.split(',').map(parse).collect(),
    }
}

/// Prints objects, one after the other: YAML documents apart, and column headers only once.
#[derive(Default)]
pub struct Printer {
    documents: usize,
    columns: Option<Tabs>,
    no_headers: bool,
}

impl Printer {
    /// A printer, with a line of column headers or without.
    pub fn new(no_headers: bool) -> Printer {
        Printer { no_headers, ..Printer::default() }
    }

    /// Prints an object or a list. `noun` is the kind's, for `-o name`.
    ///
    /// # Errors
    /// For templates that do not fit, and when nobody reads any more.
    pub fn print(&mut self, format: &Format, kinds: &Discovery, object: &Value) -> Outcome {
        match format {
            Format::Json => raw(json::pretty(&clean(object))),
            Format::Yaml => {
                if self.documents > 0 {
                    raw("---\n")?;
                }
                self.documents += 1;
                raw(yaml::document(&clean(object)))
            }
            Format::Name | Format::Wide => {
                for item in items(object) {
                    line(format!("{}/{}", noun(kinds, item), name_of(item)))?;
                }
                Ok(())
            }
            Format::JsonPath(template) => match template.render(&clean(object)) {
                Ok(text) => raw(text),
                Err(cause) => Err(CliError::failed(format!("error executing jsonpath: {cause}"))),
            },
            Format::Columns(columns) => self.columns(columns, object),
        }
    }

    fn columns(&mut self, columns: &[(String, Path)], object: &Value) -> Outcome {
        let mut text = String::new();
        if self.columns.is_none() && !self.no_headers {
            let headers: Vec<&str> = columns.iter().map(|(header, _)| header.as_str()).collect();
            text.push_str(&headers.join("\t"));
            text.push('\n');
        }
        for item in items(object) {
            let cells: Result<Vec<String>, String> =
                columns.iter().map(|(_, path)| cell(path, item)).collect();
            text.push_str(&cells.map_err(CliError::failed)?.join("\t"));
            text.push('\n');
        }
        raw(self.columns.get_or_insert_with(Tabs::table).align(&text))
    }
}

fn cell(path: &Path, item: &Value) -> Result<String, String> {
    let found: Vec<String> = path.find(item)?.into_iter().filter(|v| !v.is_null()).map(go_text).collect();
    Ok(if found.is_empty() { "<none>".into() } else { found.join(",") })
}

/// A value as Go's `fmt` prints it.
fn go_text(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut fields: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_text(v))).collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        other => jsonpath::text_of(other),
    }
}

/// A list's items, or the object alone.
pub fn items(object: &Value) -> Vec<&Value> {
    match object["items"].as_array() {
        Some(list) if object["kind"].as_str().is_some_and(|k| k.ends_with("List")) => list.iter().collect(),
        _ => vec![object],
    }
}

fn noun(kinds: &Discovery, object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default();
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    kinds.of_kind(api_version, kind).map_or_else(|_| kind.to_lowercase(), Resource::noun)
}

/// Without `managedFields`, as kubectl shows objects.
pub fn clean(object: &Value) -> Value {
    let mut object = object.clone();
    let strip = |value: &mut Value| {
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    strip(&mut object);
    if let Some(list) = object.get_mut("items").and_then(Value::as_array_mut) {
        list.iter_mut().for_each(strip);
    }
    object
}

/// Several objects as one list.
pub fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "items": items, "kind": "List", "metadata": { "resourceVersion": "" } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_name() {
        assert_eq!("wide".parse(), Ok(Format::Wide));
        assert!(matches!("jsonpath={.a}".parse(), Ok(Format::JsonPath(_))));
        assert!(matches!("custom-columns=A:.a,B:.b.c".parse(), Ok(Format::Columns(c)) if c.len() == 2));
        for wrong in ["frob", "jsonpath", "jsonpath={", "custom-columns=A", "custom-columns"] {
            assert!(wrong.parse::<Format>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cells_hold_what_go_would_print() {
        let value = json!({"a": {"z": 1, "b": [true, "x"]}, "n": null});
        let cell = |path: &str| cell(&Path::relaxed(path).unwrap(), &value).unwrap();
        assert_eq!(cell(".a"), "map[b:[true x] z:1]");
        assert_eq!(cell(".n"), "<none>");
        assert_eq!(cell(".missing"), "<none>");
    }
}
