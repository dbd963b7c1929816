//! Checks the house rules that a machine can check, by reading the tree: layers, headers, sizes, words, links, licences.
//!
//! Each rule is a function from a file to complaints, so that each also has a test which shows that it can fail.

#[path = "tidy/licences.rs"]
mod licences;
#[path = "tidy/source.rs"]
mod source;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use source::Source;

/// Which rooms a room may name. Arrows point down; siblings are absent from each other's lists.
const ARROWS: &[(&str, &[&str])] = &[
    ("bin", &["app", "cli", "config", "hello", "runtime"]),
    ("app", &["actors", "api", "config", "logic", "messages", "model", "net", "runtime", "store"]),
    ("cli", &["config", "logic", "model"]),
    ("api", &["config", "logic", "messages", "model"]),
    ("actors", &["logic", "messages", "model", "net", "runtime", "store"]),
    ("net", &["messages::wire", "model"]),
    ("store", &["model"]),
    ("runtime", &["hello", "model"]),
    ("messages", &["logic", "model"]),
    ("logic", &["model"]),
    ("config", &["model"]),
    ("model", &[]),
    ("hello", &[]),
    ("fuzzing", &["api", "messages::wire", "model", "net"]),
];

/// What decisions and nouns must not know: actors, runtimes, clocks, chance, I/O.
const IMPURE: &[&str] = &[
    "actix",
    "actix_rt",
    "actix_web",
    "tokio",
    "quinn",
    "rand",
    "Instant",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::io",
    "std::process",
    "std::thread",
];

/// Words with one home, or none.
const CONFINED: &[(&str, &[&str], &str)] = &[
    ("unsafe", &["src/runtime/native/", "src/bin/"], "only what talks to the kernel is unsafe"),
    ("bincode", &["src/net/codec.rs"], "bincode is used with limits, through net/codec.rs alone"),
    ("actix::Supervisor", &[], "actors/supervisor is what restarts actors"),
    ("tokio::main", &[], "the binary decides about threads before any runtime starts"),
    ("unwrap", &[], "say with `expect` why it cannot fail, or return the error"),
    ("todo", &[], "finish it"),
    ("unimplemented", &[], "finish it"),
    ("dbg", &[], "use tracing"),
];

/// How actors would use another thread without `outside::blocking`, which a simulation turns off.
const OTHER_THREADS: &[&str] = &["spawn_blocking", "block_in_place", "thread::spawn"];

const MAX_LINES: usize = 600;
const MAX_HEADER_LINES: usize = 10;

#[test]
fn every_arrow_between_rooms_points_down() {
    each_source(layers);
}

#[test]
fn decisions_and_nouns_are_pure() {
    each_source(purity);
}

#[test]
fn actors_use_other_threads_in_one_way_alone() {
    each_source(threads);
}

#[test]
fn every_file_opens_with_a_short_header() {
    each_source(header);
}

#[test]
fn no_file_is_long() {
    each_source(size);
}

#[test]
fn words_stay_where_they_belong() {
    each_source(words);
}

#[test]
fn the_tree_speaks_of_the_product_alone() {
    each_text(machine);
}

#[test]
fn links_in_documents_lead_somewhere() {
    each_text(links);
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let policy = licences::Policy::read(&read(&root().join("deny.toml")));
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Those of other platforms are not downloaded here; cargo-deny looks at all.
    let target = format!(
        "{}-unknown-linux-{}",
        env::consts::ARCH,
        if cfg!(target_env = "musl") { "musl" } else { "gnu" }
    );
    let output = Command::new(cargo)
        .args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", &target])
        .current_dir(root())
        .output()
        .expect("cargo runs this test, so it is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let complaints = licences::complaints(&policy, &metadata);
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// A file names only rooms below its own.
fn layers(path: &str, source: &Source) -> Vec<String> {
    let Some(room) = room(path).filter(|_| !is_test_code(path)) else { return Vec::new() };
    let allowed = ARROWS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed);
    let Some(allowed) = allowed else {
        return vec![format!(
            "{path}: unknown room {room}: give it a place in the design and in tests/tidy.rs"
        )];
    };
    let forbidden = |segments: &[String]| {
        let target = segments.first().filter(|first| ARROWS.iter().any(|(name, _)| name == first))?;
        let full = segments.iter().take(2).map(String::as_str).collect::<Vec<_>>().join("::");
        let fine = target == room || allowed.contains(&target.as_str()) || allowed.contains(&full.as_str());
        (!fine).then_some(full)
    };
    source
        .crate_paths()
        .iter()
        .filter_map(|(line, segments)| Some((line, forbidden(segments)?)))
        .map(|(line, target)| format!("{path}:{line}: {room} must not know {target}"))
        .collect()
}

fn purity(path: &str, source: &Source) -> Vec<String> {
    if !matches!(room(path), Some("logic" | "model")) {
        return Vec::new();
    }
    let found = IMPURE.iter().flat_map(|word| source.lines_with(word).map(move |line| (line, word)));
    found
        .map(|(line, word)| format!("{path}:{line}: {word} does not belong here; take it as an argument"))
        .collect()
}

fn threads(path: &str, source: &Source) -> Vec<String> {
    if room(path) != Some("actors") || path == "src/actors/outside.rs" || is_test_code(path) {
        return Vec::new();
    }
    let found = OTHER_THREADS.iter().flat_map(|word| source.lines_with(word).map(move |line| (line, word)));
    found.map(|(line, word)| format!("{path}:{line}: {word}: use `outside::blocking`")).collect()
}

fn header(path: &str, source: &Source) -> Vec<String> {
    let mut drawing = false;
    let lines = source.text.lines().take_while(|line| line.starts_with("//!"));
    let written = lines.filter(|line| {
        let fence = line.starts_with("//! ```");
        drawing ^= fence;
        !fence && !drawing
    });
    match written.count() {
        0 => vec![format!("{path}: begin with `//!`: what the file owns, keeps and leaves out")],
        1..=MAX_HEADER_LINES => Vec::new(),
        lines => vec![format!("{path}: the header has {lines} lines, {MAX_HEADER_LINES} are enough")],
    }
}

fn size(path: &str, source: &Source) -> Vec<String> {
    let lines = source.code.lines().count();
    if lines <= MAX_LINES || is_test_code(path) {
        return Vec::new();
    }
    vec![format!("{path}: {lines} lines without tests, at most {MAX_LINES}: it wants to be two files")]
}

fn words(path: &str, source: &Source) -> Vec<String> {
    let homeless = CONFINED.iter().filter(|(_, homes, _)| !homes.iter().any(|home| path.starts_with(home)));
    let found =
        homeless.flat_map(|(word, _, why)| source.lines_with(word).map(move |line| (line, word, why)));
    found
        .filter(|(_, word, _)| !is_test_code(path) || **word == "unsafe")
        .map(|(line, word, why)| format!("{path}:{line}: `{word}`: {why}"))
        .collect()
}

/// No paths of the machine it was written on, no notes to oneself.
fn machine(path: &str, text: &str) -> Vec<String> {
    // In halves, so that this file does not complain of itself.
    let unwelcome = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
        concat!("XX", "X"),
    ];
    let lines = text.lines().zip(1..);
    lines
        .flat_map(|(line, number)| {
            unwelcome.iter().filter(move |word| line.contains(*word)).map(move |word| (number, word))
        })
        .map(|(number, word)| format!("{path}:{number}: {word}"))
        .collect()
}

/// In Markdown: relative links lead to files, fragments to headings, and files named in backticks exist.
fn links(path: &str, text: &str) -> Vec<String> {
    if !path.ends_with(".md") {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    let mut fenced = false;
    for (line, number) in text.lines().zip(1..) {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        let broken = link_targets(line).into_iter().filter(|target| !leads_somewhere(path, text, target));
        complaints.extend(broken.map(|target| format!("{path}:{number}: no such place: {target}")));
        let named = line.split('`').skip(1).step_by(2).filter(|name| is_file_of_ours(name));
        let missing = named.filter(|name| !root().join(name).exists());
        complaints.extend(missing.map(|name| format!("{path}:{number}: no such file: {name}")));
    }
    complaints
}

fn link_targets(line: &str) -> Vec<&str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect()
}

fn leads_somewhere(path: &str, text: &str, target: &str) -> bool {
    if target.contains("://") || target.starts_with("mailto:") {
        return true;
    }
    let (file, fragment) = target.split_once('#').unwrap_or((target, ""));
    let destination = root().join(path).parent().map(|folder| folder.join(file)).unwrap_or_default();
    if !file.is_empty() && !destination.exists() {
        return false;
    }
    let text =
        if file.is_empty() { text.to_owned() } else { fs::read_to_string(destination).unwrap_or_default() };
    fragment.is_empty()
        || text.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == fragment)
}

/// A heading's fragment, as code hosts make it.
fn slug(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn is_file_of_ours(name: &str) -> bool {
    let folders = ["src/", "tests/", "docs/", "scripts/", "examples/", "benches/", "fuzz/", ".ci/"];
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    plain && folders.iter().any(|folder| name.starts_with(folder))
}

/// Files that are compiled for tests only, by their names.
fn is_test_code(path: &str) -> bool {
    path.contains("/tests/")
        || path.ends_with("/tests.rs")
        || path.ends_with("/testing.rs")
        || path.ends_with("_tests.rs")
}

/// The room of a source file: `src/net/codec.rs` is in `net`, `src/app.rs` and what is under `src/app/` in `app`.
fn room(path: &str) -> Option<&str> {
    let first = path.strip_prefix("src/")?.split('/').next()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    (room != "lib").then_some(room)
}

fn each_source(rule: impl Fn(&str, &Source) -> Vec<String>) {
    each_text(|path, text| {
        let ours = path.starts_with("src/") && path.ends_with(".rs");
        if ours { rule(path, &Source::new(text)) } else { Vec::new() }
    });
}

fn each_text(rule: impl Fn(&str, &str) -> Vec<String>) {
    let mut files = BTreeSet::new();
    list(&root(), &mut files);
    assert!(
        files.iter().any(|file| file.ends_with("src/lib.rs")),
        "reading the wrong tree: {}",
        root().display()
    );
    let mut complaints = Vec::new();
    for file in files {
        // What is not text is not for reading.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let path =
            file.strip_prefix(root()).expect("it was found below the root").to_string_lossy().into_owned();
        complaints.extend(rule(&path, &text));
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Every file that could be in the repository.
fn list(folder: &Path, files: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the checkout can be read").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let kind = entry.file_type().expect("the kind of a file just listed");
        match name.to_string_lossy().as_ref() {
            "target" | ".git" | "Cargo.lock" => {}
            _ if kind.is_dir() => list(&path, files),
            _ if kind.is_file() => drop(files.insert(path)),
            _ => {}
        }
    }
}

fn root() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: impl Fn(&str, &Source) -> Vec<String>, rows: &[(&str, &str, usize)]) {
        for (path, text, complaints) in rows {
            let said = rule(path, &Source::new(text));
            assert_eq!(said.len(), *complaints, "{path}: {text}\n{said:?}");
        }
    }

    #[test]
    fn upward_and_sideways_arrows_are_found_however_they_are_written() {
        check(
            layers,
            &[
                ("src/api/mod.rs", "use crate::messages::Slot;", 0),
                ("src/api/mod.rs", "use crate::actors::pod::Pod;", 1),
                ("src/api/mod.rs", "use crate::{model, messages::{wire, Port}};", 0),
                ("src/logic/a.rs", "use crate::{\n    model::Key,\n    messages::{wire, Port},\n};", 2),
                ("src/net/link.rs", "use crate::messages::wire::Frame;", 0),
                ("src/net/link.rs", "use crate::messages::{wire, wire::Frame, Slot};", 1),
                ("src/store/mod.rs", "fn f() { crate::net::start(); }", 1),
                (
                    "src/store/mod.rs",
                    "//! [`crate::net`]\n/* crate::net */ const A: &str = \"crate::net\";",
                    0,
                ),
                ("src/store/mod.rs", "#[cfg(test)]\nmod tests {\n use crate::net;\n}", 0),
                ("src/bin/troupe.rs", "use troupe::cli; fn main() { troupe::api::x() }", 1),
                ("src/kitchen/mod.rs", "", 1),
            ],
        );
    }

    #[test]
    fn clocks_and_chance_in_decisions_are_found() {
        check(
            purity,
            &[
                ("src/logic/a.rs", "use std::time::Duration;", 0),
                ("src/logic/a.rs", "use std::time::{Duration, Instant};", 1),
                ("src/model/a.rs", "let x = rand::random();", 1),
                ("src/model/a.rs", "let operand = 1; // rand", 0),
                ("src/actors/a.rs", "use actix::Actor;", 0),
            ],
        );
    }

    #[test]
    fn threads_of_actors_are_found() {
        check(
            threads,
            &[
                ("src/actors/a.rs", "tokio::task::spawn_blocking(work);", 1),
                ("src/actors/a.rs", "std::thread::spawn(work); outside::blocking(work)", 1),
                ("src/actors/a.rs", "let n = std::thread::available_parallelism();", 0),
                ("src/actors/outside.rs", "tokio::task::spawn_blocking(work);", 0),
                ("src/runtime/a.rs", "tokio::task::spawn_blocking(work);", 0),
            ],
        );
    }

    #[test]
    fn headers_are_asked_for_and_kept_short() {
        let long = "//! line\n".repeat(MAX_HEADER_LINES + 1);
        let drawn = format!("//! one\n//! ```text\n{}//! ```\n", "//! line\n".repeat(20));
        check(
            header,
            &[("a", "// no\nfn f() {}", 1), ("a", "//! yes", 0), ("a", &long, 1), ("a", &drawn, 0)],
        );
    }

    #[test]
    fn long_files_are_found_without_their_tests() {
        let long = "fn f() {}\n".repeat(MAX_LINES + 1);
        let tested = format!("fn f() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
        check(size, &[("src/a.rs", &long, 1), ("src/a.rs", &tested, 0)]);
    }

    #[test]
    fn confined_words_are_found_in_code_only() {
        check(
            words,
            &[
                ("src/net/link.rs", "unsafe { f() }", 1),
                ("src/runtime/native/shim.rs", "unsafe { f() }", 0),
                ("src/net/link.rs", "#![deny(unsafe_code)] // unsafe", 0),
                ("src/net/link.rs", "x.unwrap(); y.unwrap_or(1); 'a'.unwrap()", 1),
                ("src/net/link.rs", "let s = r#\"x.unwrap()\"#; let c = '\"'; todo!()", 1),
                ("src/api/a.rs", "/* a /* b */ unsafe */ bincode::serialize(&x)", 1),
                ("src/a.rs", "#[cfg(test)]\nmod tests { fn f() { x.unwrap() } }", 0),
            ],
        );
    }

    #[test]
    fn paths_of_a_machine_and_broken_links_are_found() {
        assert_eq!(machine("a", concat!("see /wo", "rk/x\nand /ro", "ot/y")).len(), 2);
        for (text, complaints) in [
            ("[a](Cargo.toml) [b](https://x.y/z)", 0),
            ("[a](nowhere.md)", 1),
            ("# A Title!\n[a](#a-title) [b](#b)", 1),
            ("`src/lib.rs` and `src/nowhere.rs`", 1),
            ("```\n[a](nowhere.md)\n```", 0),
        ] {
            assert_eq!(links("README.md", text).len(), complaints, "{text}");
        }
    }
}
