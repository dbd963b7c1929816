//! YAML as kubectl writes it: keys sorted, lists not indented, and its rules for quoting and folding.
//!
//! Source of the rules: libyaml's emitter as Go's yaml.v2 drives it. A string is plain when it would be read back as
//! the same string; with newlines in it it is a literal block; else quoted.

use serde_json::Value;

/// Lines longer than this are folded at a space.
const BEST_WIDTH: usize = 80;

/// A document.
pub fn document(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(map, 0, false, &mut out),
        Value::Array(list) if !list.is_empty() => sequence(list, 0, &mut out),
        scalar => {
            inline(scalar, 0, 0, &mut out);
            out.push('\n');
        }
    }
    out
}

fn spaces(n: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', n));
}

/// `continued`: the first key stands behind a dash already.
fn mapping(map: &serde_json::Map<String, Value>, indent: usize, continued: bool, out: &mut String) {
    let mut keys: Vec<&String> = map.keys().collect();
    keys.sort();
    for (n, key) in keys.into_iter().enumerate() {
        if n > 0 || !continued {
            spaces(indent, out);
        }
        let start = out.len();
        text(key, indent, 0, true, out);
        out.push(':');
        let column = indent + out[start..].chars().count();
        match &map[key] {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                mapping(inner, indent + 2, false, out);
            }
            Value::Array(list) if !list.is_empty() => {
                out.push('\n');
                sequence(list, indent, out);
            }
            scalar => {
                out.push(' ');
                inline(scalar, indent, column + 1, out);
                end_line(out);
            }
        }
    }
}

fn sequence(list: &[Value], indent: usize, out: &mut String) {
    for item in list {
        spaces(indent, out);
        out.push_str("- ");
        match item {
            Value::Object(inner) if !inner.is_empty() => mapping(inner, indent + 2, true, out),
            Value::Array(inner) if !inner.is_empty() => {
                let mut nested = String::new();
                sequence(inner, indent + 2, &mut nested);
                out.push_str(nested.trim_start());
            }
            scalar => {
                inline(scalar, indent, indent + 2, out);
                end_line(out);
            }
        }
    }
}

/// A literal block has its newline already.
fn end_line(out: &mut String) {
    if !out.ends_with('\n') {
        out.push('\n');
    }
}

fn inline(value: &Value, indent: usize, column: usize, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => out.push_str(&n.to_string()),
        Value::String(s) => text(s, indent, column, false, out),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
    }
}

fn text(s: &str, indent: usize, column: usize, key: bool, out: &mut String) {
    let printable = s.chars().all(|c| c == '\n' || c == '\t' || !c.is_control() && c != '\u{feff}');
    if resolves(s) {
        quoted(s, out);
    } else if s.contains('\n') && !key && printable && literal_allowed(s) {
        literal(s, indent, out);
    } else if s.contains('\n') || !printable {
        quoted(s, out);
    } else if plain_allowed(s) {
        folded(s, indent, column, key, "", out);
    } else {
        folded(&s.replace('\'', "''"), indent, column, key, "'", out);
    }
}

/// Whether a reader would take the plain text for something other than a string.
fn resolves(s: &str) -> bool {
    const WORDS: &[&str] = &[
        "", "~", "null", "Null", "NULL", "true", "True", "TRUE", "false", "False", "FALSE", "y", "Y", "yes",
        "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off", "OFF", ".nan", ".NaN",
        ".NAN", ".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF", "-.inf", "-.Inf", "-.INF", "<<",
    ];
    if WORDS.contains(&s) {
        return true;
    }
    let starts = s.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    starts && (number(s) || timestamp(s) || sexagesimal(s))
}

fn number(s: &str) -> bool {
    let plain = s.replace('_', "");
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(&plain);
    let radix = |prefix: &str, radix: u32| {
        unsigned.strip_prefix(prefix).is_some_and(|d| !d.is_empty() && u64::from_str_radix(d, radix).is_ok())
    };
    if radix("0x", 16) || radix("0b", 2) || radix("0o", 8) {
        return true;
    }
    let mut float = unsigned.chars().peekable();
    let digits = |it: &mut std::iter::Peekable<std::str::Chars<'_>>| {
        let mut n = 0;
        while it.next_if(char::is_ascii_digit).is_some() {
            n += 1;
        }
        n
    };
    let whole = digits(&mut float);
    let fraction = if float.next_if_eq(&'.').is_some() { digits(&mut float) } else { 0 };
    if whole + fraction == 0 {
        return false;
    }
    if float.next_if(|c| matches!(c, 'e' | 'E')).is_some() {
        let _ = float.next_if(|c| matches!(c, '+' | '-'));
        if digits(&mut float) == 0 {
            return false;
        }
    }
    float.next().is_none()
}

/// `2006-1-2`, or with a time behind it.
fn timestamp(s: &str) -> bool {
    let bytes = s.as_bytes();
    if bytes.len() < 8 || bytes.get(4) != Some(&b'-') || !bytes[..4].iter().all(u8::is_ascii_digit) {
        return false;
    }
    let (date, time) = match s.find(['T', 't', ' ']) {
        Some(at) => (&s[..at], Some(s[at + 1..].trim())),
        None => (s, None),
    };
    let parts: Vec<&str> = date.split('-').collect();
    let date_fits = parts.len() == 3
        && parts[1..].iter().all(|p| (1..=2).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit()));
    let time_fits = time.is_none_or(|t| {
        t.contains(':')
            && t.bytes().all(|b| b.is_ascii_digit() || matches!(b, b':' | b'.' | b'Z' | b'+' | b'-'))
    });
    date_fits && time_fits
}

/// `1:20`: base 60 in YAML 1.1, which readers of the old kind would take for a number.
fn sexagesimal(s: &str) -> bool {
    let unsigned = s.strip_prefix(['+', '-']).unwrap_or(s);
    let mut parts = unsigned.split(':');
    let first = parts.next().unwrap_or_default();
    let digits = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    let rest: Vec<&str> = parts.collect();
    let tail = |p: &&str| {
        let whole = p.split('.').next().unwrap_or_default();
        (1..=2).contains(&whole.len()) && whole.bytes().all(|b| b.is_ascii_digit())
    };
    digits(first) && !rest.is_empty() && rest.iter().all(tail)
}

fn plain_allowed(s: &str) -> bool {
    if s.starts_with(' ') || s.ends_with(' ') || s.contains('\t') {
        return false;
    }
    if s.starts_with("---") || s.starts_with("...") {
        return false;
    }
    let chars: Vec<char> = s.chars().collect();
    for (at, c) in chars.iter().enumerate() {
        let before_space = chars.get(at + 1).is_none_or(|n| matches!(n, ' ' | '\t'));
        let after_space = at > 0 && matches!(chars[at - 1], ' ' | '\t');
        let special = match c {
            '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@'
            | '`'
                if at == 0 =>
            {
                true
            }
            '?' | '-' if at == 0 => before_space,
            ':' if at == 0 => before_space,
            ':' => before_space,
            '#' => after_space,
            _ => false,
        };
        if special {
            return false;
        }
    }
    true
}

/// Plain or single quoted; a single space beyond the width becomes a line's end.
fn folded(s: &str, indent: usize, start: usize, key: bool, quote: &str, out: &mut String) {
    out.push_str(quote);
    let mut column = start + quote.len();
    let chars: Vec<char> = s.chars().collect();
    let mut spaces_before = false;
    for (at, c) in chars.iter().enumerate() {
        if *c != ' ' {
            out.push(*c);
            column += 1;
            spaces_before = false;
            continue;
        }
        let inside = at > 0 && at + 1 < chars.len();
        let single = chars.get(at + 1).is_some_and(|n| *n != ' ');
        if !key && !spaces_before && column > BEST_WIDTH && single && (inside || quote.is_empty()) {
            out.push('\n');
            spaces(indent + 2, out);
            column = indent + 2;
        } else {
            out.push(' ');
            column += 1;
        }
        spaces_before = true;
    }
    out.push_str(quote);
}

/// Leading space and a space before a line's end have no place in a literal block.
fn literal_allowed(s: &str) -> bool {
    !s.starts_with([' ', '\n', '\t']) && !s.contains(" \n") && !s.ends_with(' ')
}

fn literal(s: &str, indent: usize, out: &mut String) {
    out.push('|');
    if !s.ends_with('\n') {
        out.push('-');
    } else if s.ends_with("\n\n") {
        out.push('+');
    }
    out.push('\n');
    for line in s.strip_suffix('\n').unwrap_or(s).split('\n') {
        if !line.is_empty() {
            spaces(indent + 2, out);
            out.push_str(line);
        }
        out.push('\n');
    }
}

fn quoted(s: &str, out: &mut String) {
    use std::fmt::Write as _;
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            '\0' => out.push_str("\\0"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\u{1b}' => out.push_str("\\e"),
            '\u{feff}' => out.push_str("\\uFEFF"),
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(value: Value, expected: &str) {
        assert_eq!(document(&value), expected);
        let back: Value = serde_yaml_ng::from_str(expected).unwrap();
        assert_eq!(back, value, "{expected}");
    }

    #[test]
    fn structures_are_written_as_kubectl_writes_them() {
        check(
            json!({"b": [1, {"x": true, "a": null}], "a": {"e": {}, "l": []}}),
            "a:\n  e: {}\n  l: []\nb:\n- 1\n- a: null\n  x: true\n",
        );
        check(json!({"c": [["a", "b"]]}), "c:\n- - a\n  - b\n");
    }

    #[test]
    fn a_string_that_would_be_read_as_something_else_is_quoted() {
        for s in ["true", "1", "1.5", "null", "", "2026-11-25T22:41:40Z", "y", "0x1f", "1e3", "10:30"] {
            assert_eq!(document(&json!({ "a": s })), format!("a: \"{s}\"\n"));
        }
        for s in ["ClusterIP", "10.96.0.1", "nginx:local", "trap exit TERM; i=0", "a-b", "-a", "v1.33"] {
            check(json!({ "a": s }), &format!("a: {s}\n"));
        }
        for s in ["a: b", "[c]", "*", "#x", "a #b", "{}", "%a", "@a", "- a"] {
            check(json!({ "a": s }), &format!("a: '{s}'\n"));
        }
        check(json!({ "a": "it's: x" }), "a: 'it''s: x'\n");
    }

    #[test]
    fn lines_make_a_block() {
        check(json!({"a": "x\ny\n"}), "a: |\n  x\n  y\n");
        check(json!({"a": {"b": "x\n\n  y"}}), "a:\n  b: |-\n    x\n\n      y\n");
    }

    #[test]
    fn long_lines_are_folded_at_a_space() {
        let text = "word ".repeat(30).trim_end().to_owned();
        let written = document(&json!({ "a": text }));
        assert_eq!(written.lines().count(), 2);
        let back: Value = serde_yaml_ng::from_str(&written).unwrap();
        assert_eq!(back["a"], text);
    }
}
