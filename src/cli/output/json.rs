//! JSON as kubectl writes it: four spaces, keys sorted, and Go's escapes of `<`, `>` and `&`.

use serde::Serialize as _;
use serde_json::Value;

/// Many lines, with a newline at its end.
pub fn pretty(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer).expect("a value has string keys, and memory does not fail");
    let mut text = escaped(&String::from_utf8_lossy(&out));
    text.push('\n');
    text
}

/// One line.
pub fn compact(value: &Value) -> String {
    escaped(&value.to_string())
}

/// These characters occur only within strings, so that replacing them in the text is safe.
fn escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_written_as_go_writes_it() {
        assert_eq!(compact(&json!({"b": "<a&b>", "a": 1})), r#"{"a":1,"b":"\u003ca\u0026b\u003e"}"#);
        assert_eq!(
            pretty(&json!({"a": [1], "e": {}})),
            "{\n    \"a\": [\n        1\n    ],\n    \"e\": {}\n}\n"
        );
    }
}
