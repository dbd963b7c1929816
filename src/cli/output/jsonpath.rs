//! Kubernetes' JSONPath templates: text with `{…}` in it.
//!
//! `{.a.b}` `{.a['b.c']}` `{.l[0]}` `{.l[-1]}` `{.l[1:3]}` `{.l[*]}` `{..name}` `{.l[?(@.x=="y")].z}`
//! `{.l[0,2]}` `{range .l[*]}…{end}` `{"text\n"}`. A field that is not there is nothing, an index that is not there
//! is an error, as with kubectl.

use std::{iter::Peekable, str::Chars};

use serde_json::Value;

use super::json;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Node>);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Path(Path),
    Range(Path, Vec<Node>),
}

/// Steps from the root or from the present item.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    from_root: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Recursive,
    /// Start, end, step, as in `[1:3:2]`.
    Slice(Option<i64>, Option<i64>, i64),
    Index(i64),
    Union(Vec<Step>),
    Filter(Operand, Option<(String, Operand)>),
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Path(Path),
    Literal(Value),
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// With what was expected.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut chars = text.chars().peekable();
        let (nodes, ended) = nodes(&mut chars)?;
        match ended {
            true => Err("{end} without {range}".into()),
            false => Ok(Template(nodes)),
        }
    }

    /// What it says of a document.
    ///
    /// # Errors
    /// For an index that is not there.
    pub fn render(&self, document: &Value) -> Result<String, String> {
        let mut out = String::new();
        render(&self.0, document, document, &mut out)?;
        Ok(out)
    }
}

impl Path {
    /// Parses a lone path, with or without braces and leading dot.
    ///
    /// # Errors
    /// With what was expected.
    pub fn relaxed(text: &str) -> Result<Path, String> {
        let inner = text.trim();
        let inner = inner.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(inner);
        let dotted =
            if inner.starts_with(['.', '[', '$', '@']) { inner.to_owned() } else { format!(".{inner}") };
        let mut chars = dotted.chars().peekable();
        let path = path(&mut chars)?;
        match chars.next() {
            Some(c) => Err(format!("unexpected {c:?} in {text:?}")),
            None => Ok(path),
        }
    }

    /// What it leads to.
    ///
    /// # Errors
    /// For an index that is not there.
    pub fn find<'a>(&self, document: &'a Value) -> Result<Vec<&'a Value>, String> {
        self.walk(document, document)
    }

    fn walk<'a>(&self, root: &'a Value, here: &'a Value) -> Result<Vec<&'a Value>, String> {
        let mut found = vec![if self.from_root { root } else { here }];
        for step in &self.steps {
            let mut next = Vec::new();
            for value in found {
                advance(step, root, value, &mut next)?;
            }
            found = next;
        }
        Ok(found)
    }
}

/// A value as text: strings bare, structures as JSON.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "<nil>".into(),
        Value::Object(_) | Value::Array(_) => json::compact(value),
        other => other.to_string(),
    }
}

fn render(nodes: &[Node], root: &Value, here: &Value, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Path(path) => {
                let texts: Vec<String> = path.walk(root, here)?.into_iter().map(text_of).collect();
                out.push_str(&texts.join(" "));
            }
            Node::Range(path, body) => {
                for item in path.walk(root, here)? {
                    render(body, root, item, out)?;
                }
            }
        }
    }
    Ok(())
}

fn advance<'a>(
    step: &Step,
    root: &'a Value,
    value: &'a Value,
    out: &mut Vec<&'a Value>,
) -> Result<(), String> {
    match step {
        Step::Field(name) => out.extend(value.get(name)),
        Step::Wildcard => match value {
            Value::Array(list) => out.extend(list),
            Value::Object(map) => out.extend(map.values()),
            _ => {}
        },
        Step::Recursive => descend(value, out),
        Step::Index(at) => {
            let Some(list) = value.as_array() else { return Ok(()) };
            let index = if *at < 0 { at + list.len() as i64 } else { *at };
            let item = usize::try_from(index).ok().and_then(|i| list.get(i));
            out.push(
                item.ok_or_else(|| format!("array index out of bounds: index {at}, length {}", list.len()))?,
            );
        }
        Step::Slice(from, to, by) => {
            let Some(list) = value.as_array() else { return Ok(()) };
            let length = list.len() as i64;
            let place = |at: i64| (if at < 0 { at + length } else { at }).clamp(0, length) as usize;
            let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(length)));
            let by = usize::try_from(*by).unwrap_or(1).max(1);
            out.extend(list.get(from..to).unwrap_or_default().iter().step_by(by));
        }
        Step::Union(steps) => {
            for step in steps {
                advance(step, root, value, out)?;
            }
        }
        Step::Filter(left, test) => {
            let items: Vec<&Value> = match value {
                Value::Array(list) => list.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            };
            for item in items {
                if holds(left, test.as_ref(), root, item)? {
                    out.push(item);
                }
            }
        }
    }
    Ok(())
}

fn descend<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    out.push(value);
    match value {
        Value::Array(list) => list.iter().for_each(|v| descend(v, out)),
        Value::Object(map) => map.values().for_each(|v| descend(v, out)),
        _ => {}
    }
}

fn holds(
    left: &Operand,
    test: Option<&(String, Operand)>,
    root: &Value,
    item: &Value,
) -> Result<bool, String> {
    let value = |operand: &Operand| -> Result<Option<Value>, String> {
        match operand {
            Operand::Literal(literal) => Ok(Some(literal.clone())),
            Operand::Path(path) => Ok(path.walk(root, item)?.first().map(|v| (*v).clone())),
        }
    };
    let left = value(left)?;
    let Some((operator, right)) = test else { return Ok(left.is_some()) };
    let (Some(left), Some(right)) = (left, value(right)?) else { return Ok(false) };
    let order = match (&left, &right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    };
    Ok(match operator.as_str() {
        "==" => left == right || order.is_some_and(std::cmp::Ordering::is_eq),
        "!=" => left != right,
        "<" => order.is_some_and(std::cmp::Ordering::is_lt),
        "<=" => order.is_some_and(std::cmp::Ordering::is_le),
        ">" => order.is_some_and(std::cmp::Ordering::is_gt),
        _ => order.is_some_and(std::cmp::Ordering::is_ge),
    })
}

type Input<'a> = Peekable<Chars<'a>>;

/// Nodes up to the end, or up to `{end}`: then `true`.
fn nodes(chars: &mut Input<'_>) -> Result<(Vec<Node>, bool), String> {
    let mut out = Vec::new();
    let mut literal = String::new();
    while let Some(c) = chars.next() {
        if c != '{' {
            literal.push(c);
            continue;
        }
        if !literal.is_empty() {
            out.push(Node::Text(std::mem::take(&mut literal)));
        }
        skip_spaces(chars);
        match chars.peek() {
            Some('"' | '\'') => {
                let quote = chars.next().unwrap_or('"');
                out.push(Node::Text(string(chars, quote)?));
            }
            Some('.' | '[' | '$' | '@') => out.push(Node::Path(path(chars)?)),
            _ => {
                let word: String =
                    std::iter::from_fn(|| chars.next_if(|c| c.is_ascii_alphabetic())).collect();
                skip_spaces(chars);
                match word.as_str() {
                    "range" => {
                        let over = path(chars)?;
                        skip_spaces(chars);
                        expect(chars, '}')?;
                        let (body, ended) = nodes(chars)?;
                        if !ended {
                            return Err("{range} without {end}".into());
                        }
                        out.push(Node::Range(over, body));
                        continue;
                    }
                    "end" => {
                        expect(chars, '}')?;
                        return Ok((out, true));
                    }
                    other => return Err(format!("unrecognized identifier {other}")),
                }
            }
        }
        skip_spaces(chars);
        expect(chars, '}')?;
    }
    if !literal.is_empty() {
        out.push(Node::Text(literal));
    }
    Ok((out, false))
}

fn skip_spaces(chars: &mut Input<'_>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}

fn expect(chars: &mut Input<'_>, wanted: char) -> Result<(), String> {
    match chars.next() {
        Some(c) if c == wanted => Ok(()),
        Some(c) => Err(format!("expected {wanted:?}, found {c:?}")),
        None => Err(format!("unclosed action, expected {wanted:?}")),
    }
}

/// A quoted text whose quote has been read.
fn string(chars: &mut Input<'_>, quote: char) -> Result<String, String> {
    let mut out = String::new();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some('r') => out.push('\r'),
                Some(other) => out.push(other),
                None => break,
            },
            c if c == quote => return Ok(out),
            c => out.push(c),
        }
    }
    Err("unterminated quoted string".into())
}

fn path(chars: &mut Input<'_>) -> Result<Path, String> {
    let mut from_root = false;
    if chars.next_if_eq(&'$').is_some() {
        from_root = true;
    } else {
        let _ = chars.next_if_eq(&'@');
    }
    let mut steps = Vec::new();
    while let Some(c) = chars.peek() {
        match c {
            '.' => {
                chars.next();
                if chars.next_if_eq(&'.').is_some() {
                    steps.push(Step::Recursive);
                }
                match field(chars) {
                    name if name == "*" => steps.push(Step::Wildcard),
                    name if name.is_empty() => {}
                    name => steps.push(Step::Field(name)),
                }
            }
            '[' => {
                chars.next();
                steps.push(bracket(chars)?);
            }
            _ => break,
        }
    }
    Ok(Path { from_root, steps })
}

fn field(chars: &mut Input<'_>) -> String {
    let mut name = String::new();
    while let Some(c) = chars.peek().copied() {
        if c == '\\' {
            chars.next();
            name.extend(chars.next());
            continue;
        }
        if c.is_whitespace()
            || matches!(c, '.' | '[' | ']' | '{' | '}' | '(' | ')' | '=' | '!' | '<' | '>' | ',')
        {
            break;
        }
        name.push(c);
        chars.next();
    }
    name
}

fn bracket(chars: &mut Input<'_>) -> Result<Step, String> {
    skip_spaces(chars);
    if chars.next_if_eq(&'?').is_some() {
        return filter(chars);
    }
    let mut steps = Vec::new();
    loop {
        skip_spaces(chars);
        let step = match chars.peek().copied() {
            Some(quote @ ('\'' | '"')) => {
                chars.next();
                Step::Field(string(chars, quote)?)
            }
            Some('*') => {
                chars.next();
                Step::Wildcard
            }
            _ => range(chars)?,
        };
        steps.push(step);
        skip_spaces(chars);
        match chars.next() {
            Some(',') => {}
            Some(']') if steps.len() == 1 => return Ok(steps.remove(0)),
            Some(']') => return Ok(Step::Union(steps)),
            Some(c) => return Err(format!("unexpected {c:?} in [ ]")),
            None => return Err("unterminated array".into()),
        }
    }
}

fn range(chars: &mut Input<'_>) -> Result<Step, String> {
    let text: String = std::iter::from_fn(|| chars.next_if(|c| !matches!(c, ',' | ']'))).collect();
    let parts: Result<Vec<Option<i64>>, String> = text
        .split(':')
        .map(|part| match part.trim() {
            "" => Ok(None),
            number => number.parse().map(Some).map_err(|_| format!("invalid array index {text}")),
        })
        .collect();
    match parts?.as_slice() {
        [Some(at)] => Ok(Step::Index(*at)),
        [None] => Ok(Step::Wildcard),
        [from, to] => Ok(Step::Slice(*from, *to, 1)),
        [from, to, by] => Ok(Step::Slice(*from, *to, by.unwrap_or(1))),
        _ => Err(format!("invalid array index {text}")),
    }
}

fn filter(chars: &mut Input<'_>) -> Result<Step, String> {
    expect(chars, '(')?;
    let left = operand(chars)?;
    skip_spaces(chars);
    let operator: String =
        std::iter::from_fn(|| chars.next_if(|c| matches!(c, '=' | '!' | '<' | '>'))).collect();
    let test = match operator.as_str() {
        "" => None,
        "==" | "!=" | "<" | "<=" | ">" | ">=" => Some((operator.clone(), operand(chars)?)),
        other => return Err(format!("unrecognized filter operator {other}")),
    };
    skip_spaces(chars);
    expect(chars, ')')?;
    expect(chars, ']')?;
    Ok(Step::Filter(left, test))
}

fn operand(chars: &mut Input<'_>) -> Result<Operand, String> {
    skip_spaces(chars);
    match chars.peek().copied() {
        Some(quote @ ('\'' | '"')) => {
            chars.next();
            Ok(Operand::Literal(string(chars, quote)?.into()))
        }
        Some('@' | '$' | '.') => Ok(Operand::Path(path(chars)?)),
        _ => {
            let word: String =
                std::iter::from_fn(|| chars.next_if(|c| !matches!(c, ')' | '=' | '!' | '<' | '>' | ' ')))
                    .collect();
            serde_json::from_str(&word)
                .map(Operand::Literal)
                .map_err(|_| format!("cannot compare with {word:?}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Value {
        json!({"kind": "List", "n": 2, "items": [
            {"metadata": {"name": "a", "labels": {"app.x/y": "1"}}, "status": {"phase": "Running", "restarts": 3}},
            {"metadata": {"name": "b"}, "status": {"phase": "Failed", "restarts": 0}},
            {"metadata": {"name": "c"}, "status": {"phase": "Running", "restarts": 7}}]})
    }

    #[track_caller]
    fn check(template: &str, expected: &str) {
        assert_eq!(Template::parse(template).unwrap().render(&document()).unwrap(), expected, "{template}");
    }

    #[test]
    fn templates_say_what_kubectl_says() {
        check("{.kind}", "List");
        check("{$.kind}/{.n}", "List/2");
        check("{.items[0].metadata.name}", "a");
        check("{.items[-1].metadata.name}", "c");
        check("{.items[*].metadata.name}", "a b c");
        check("{.items[0:2].metadata.name}", "a b");
        check("{.items[0,2].metadata.name}", "a c");
        check("{.items[0]['metadata'].name}", "a");
        check("{.items[0].metadata.labels}", "{\"app.x/y\":\"1\"}");
        check("{.items[0].metadata.labels.app\\.x/y}", "1");
        check("{.items[0].metadata.labels['app.x/y']}", "1");
        check("{..name}", "a b c");
        check("{.items[?(@.status.phase==\"Running\")].metadata.name}", "a c");
        check("{.items[?(@.status.restarts>2)].metadata.name}", "a c");
        check("{.items[?(@.metadata.labels)].metadata.name}", "a");
        check("{.items[?(@.status.phase!='Running')].metadata.name}", "b");
        check(
            "{range .items[*]}{.metadata.name}{\"\\t\"}{.status.phase}{\"\\n\"}{end}",
            "a\tRunning\nb\tFailed\nc\tRunning\n",
        );
        check("{.missing.field}", "");
        check("plain", "plain");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for text in ["{.a", "{range .items[*]}", "{end}", "{.a[}", "{foo}", "{.a[?(@.b=\"x\")]}", "{\"x}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
        let beyond = Template::parse("{.items[9]}").unwrap().render(&document());
        assert_eq!(beyond.unwrap_err(), "array index out of bounds: index 9, length 3");
    }

    #[test]
    fn a_lone_path_needs_no_braces() {
        for text in ["status.phase", ".status.phase", "{.status.phase}"] {
            let path = Path::relaxed(text).unwrap();
            assert_eq!(path.find(&document()["items"][0]).unwrap(), [&json!("Running")]);
        }
        assert!(Path::relaxed(".a}").is_err());
    }
}
