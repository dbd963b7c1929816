//! Rust source as the rules see it: code without comments, text and tests, and the paths named in it.

/// One file.
pub struct Source {
    /// As written.
    pub text: String,
    /// Without comments, the insides of literals, and the test module at the end. Lines are where they were.
    pub code: String,
}

impl Source {
    pub fn new(text: &str) -> Source {
        let code = blank(text);
        let code = match test_module(&code) {
            Some(start) => code[..start].to_owned(),
            None => code,
        };
        Source { text: text.to_owned(), code }
    }

    /// The lines in which `word` stands as a whole word.
    pub fn lines_with<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let lines = self.code.lines().zip(1..);
        lines.filter(|(line, _)| whole_word(line, word).next().is_some()).map(|(_, number)| number)
    }

    /// Every path from the crate's root, `use crate::{a::b, c}` spelt out, with its line.
    pub fn crate_paths(&self) -> Vec<(usize, Vec<String>)> {
        let mut found = Vec::new();
        for root in ["crate", "troupe"] {
            for at in whole_word(&self.code, root) {
                let Some(rest) = self.code[at + root.len()..].strip_prefix("::") else { continue };
                let line = self.code[..at].matches('\n').count() + 1;
                let mut paths = Vec::new();
                Paths { rest }.read(&mut Vec::new(), &mut paths);
                found.extend(paths.into_iter().map(|path| (line, path)));
            }
        }
        found
    }
}

/// Where the module of unit tests begins, which by custom is the file's end.
fn test_module(code: &str) -> Option<usize> {
    const GATE: &str = "#[cfg(test)]";
    code.match_indices(GATE).map(|(at, _)| at).find(|&at| {
        let item = code[at + GATE.len()..].split_inclusive(['{', ';']).next().unwrap_or_default();
        item.ends_with('{') && item.split_whitespace().any(|word| word == "mod")
    })
}

fn whole_word<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !text[..at].ends_with(part) && !text[at + word.len()..].starts_with(part))
}

/// Reads a path or a tree of paths.
struct Paths<'a> {
    rest: &'a str,
}

impl Paths<'_> {
    fn read(&mut self, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
        self.rest = self.rest.trim_start();
        if let Some(rest) = self.rest.strip_prefix('{') {
            self.rest = rest;
            while !self.rest.is_empty() {
                self.read(prefix, paths);
                self.rest = self.rest.trim_start();
                let (comma, end) = (self.rest.starts_with(','), self.rest.starts_with('}'));
                self.rest = self.rest.get(1..).unwrap_or_default();
                if end || !comma {
                    return;
                }
            }
            return;
        }
        let end =
            self.rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '*').unwrap_or(self.rest.len());
        if end == 0 {
            return;
        }
        let (segment, rest) = self.rest.split_at(end);
        prefix.push(segment.to_owned());
        match rest.strip_prefix("::") {
            Some(rest) => {
                self.rest = rest;
                self.read(prefix, paths);
            }
            None => {
                self.rest = self.rest_after_alias(rest);
                paths.push(prefix.clone());
            }
        }
        prefix.pop();
    }

    fn rest_after_alias<'b>(&self, rest: &'b str) -> &'b str {
        let Some(alias) = rest.trim_start().strip_prefix("as ") else { return rest };
        alias.trim_start().trim_start_matches(|c: char| c.is_alphanumeric() || c == '_')
    }
}

/// Replaces comments and the insides of literals by spaces.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = literal_or_comment(rest, code.chars().next_back());
        if length == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        code.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    code
}

/// The length of the comment or literal with which `text` begins, else 0.
fn literal_or_comment(text: &str, before: Option<char>) -> usize {
    let to_end = |end: Option<usize>| end.unwrap_or(text.len());
    if text.starts_with("//") {
        return to_end(text.find('\n'));
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    let part_of_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !part_of_word && let Some(raw) = text.strip_prefix("br").or(text.strip_prefix('r')) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let start = text.len() - raw.len() + hashes + 1;
            return to_end(text[start..].find(&close).map(|at| start + at + close.len()));
        }
    }
    if let Some(inside) = text.strip_prefix('\'') {
        // 'a' and '\n' are characters, 'a without a closing quote is a lifetime.
        let mut chars = inside.chars();
        return match (chars.next(), chars.next()) {
            (Some('\\'), _) => quoted(text, '\''),
            (Some(c), Some('\'')) => c.len_utf8() + 2,
            _ => 0,
        };
    }
    0
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let step = rest.chars().next().map_or(1, char::len_utf8);
        (depth, at) = match () {
            () if rest.starts_with("/*") => (depth + 1, at + 2),
            () if rest.starts_with("*/") => (depth - 1, at + 2),
            () => (depth, at + step),
        };
        if depth == 0 {
            return at;
        }
    }
    text.len()
}
