//! Kinds that we know nothing of: every field by its name.

use serde_json::{Map, Value};

use super::write::{Text, list, plain};

/// Told at the beginning, or of no use.
const SKIPPED: &[&str] = &["name", "namespace", "labels", "annotations", "managedFields"];

/// Any object.
pub fn object(text: &mut Text, object: &Value) {
    text.head(object);
    if let Some(fields) = object.as_object() {
        all(text, 0, fields, false);
    }
}

fn all(text: &mut Text, level: usize, fields: &Map<String, Value>, metadata: bool) {
    let mut names: Vec<&String> = fields.keys().collect();
    names.sort();
    for name in names.into_iter().filter(|n| !metadata || !SKIPPED.contains(&n.as_str())) {
        let label = label(name);
        match &fields[name] {
            Value::Object(inner) => {
                text.line(level, format!("{label}:"));
                all(text, level + 1, inner, level == 0 && name == "metadata");
            }
            Value::Array(_) => {
                text.line(level, format!("{label}:"));
                for item in list(&fields[name]) {
                    match item {
                        Value::Object(inner) => all(text, level + 1, inner, false),
                        other => text.line(level + 1, plain(other)),
                    }
                }
            }
            Value::Null => text.field(level, &label, "<nil>"),
            other => text.field(level, &label, plain(other)),
        }
    }
}

/// `resourceVersion` → `Resource Version`, `apiVersion` → `API Version`.
fn label(name: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for c in name.chars() {
        match words.last_mut() {
            Some(word) if !c.is_uppercase() || word.chars().last().is_some_and(char::is_uppercase) => {
                word.push(c)
            }
            _ => words.push(c.to_string()),
        }
    }
    let told = words.into_iter().map(|word| {
        let upper = word.to_uppercase();
        match upper.as_str() {
            "API" | "URL" | "UID" | "OSB" | "GUID" | "IP" | "ID" => upper,
            _ => {
                let mut chars = word.chars();
                let first = chars.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
                first + chars.as_str()
            }
        }
    });
    told.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_told_in_words() {
        for (name, expected) in [
            ("apiVersion", "API Version"),
            ("uid", "UID"),
            ("resourceVersion", "Resource Version"),
            ("ready", "Ready"),
        ] {
            assert_eq!(label(name), expected);
        }
    }
}
