//! Dependencies' licences against `deny.toml`, without cargo-deny and without a network.

use serde_json::Value;

/// The part of `deny.toml` that speaks of licences.
#[derive(Default, Debug)]
pub struct Policy {
    allow: Vec<String>,
    /// Allowed for one crate only.
    exceptions: Vec<(String, String)>,
    /// What a crate that declares none was found to have.
    clarified: Vec<(String, String)>,
}

impl Policy {
    /// Reads `allow = […]` of `[licenses]`, its `exceptions` and `[[licenses.clarify]]`. Keeps to the layout of our own
    /// file: one string or one inline table a line.
    pub fn read(text: &str) -> Policy {
        let mut policy = Policy::default();
        let (mut section, mut key, mut crate_name) = ("", "", String::new());
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if line.starts_with('[') {
                section = line;
                continue;
            }
            if let Some((name, _)) = line.split_once(" = ").filter(|(name, _)| !name.starts_with('{')) {
                key = name;
            }
            let strings: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
            match (section, key, &strings[..]) {
                ("[licenses]", "allow", licences) => {
                    policy.allow.extend(licences.iter().map(|l| (*l).to_owned()))
                }
                ("[licenses]", "exceptions", [name, licences @ ..]) => {
                    policy.exceptions.extend(licences.iter().map(|l| ((*name).to_owned(), (*l).to_owned())));
                }
                ("[[licenses.clarify]]", "crate", [name]) => crate_name = (*name).to_owned(),
                ("[[licenses.clarify]]", "expression", [licence]) => {
                    policy.clarified.push((crate_name.clone(), (*licence).to_owned()));
                }
                _ => {}
            }
        }
        policy
    }

    fn allows(&self, name: &str, licence: &str) -> bool {
        let excepted = self.exceptions.iter().any(|(n, l)| n == name && l == licence);
        excepted || self.allow.iter().any(|allowed| allowed == licence)
    }
}

/// What is wrong with the packages that `cargo metadata` lists.
pub fn complaints(policy: &Policy, metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"].as_array().expect("cargo metadata lists packages");
    assert!(packages.len() > 1, "no dependencies listed");
    packages.iter().filter_map(|package| complaint(policy, package)).collect()
}

fn complaint(policy: &Policy, package: &Value) -> Option<String> {
    let name = package["name"].as_str().unwrap_or("?");
    let clarified = || policy.clarified.iter().find(|(n, _)| n == name).map(|(_, licence)| licence.as_str());
    let Some(expression) = package["license"].as_str().or_else(clarified) else {
        return Some(format!("{name} declares no licence: clarify it in deny.toml"));
    };
    match satisfied(expression, &|licence| policy.allows(name, licence)) {
        Some(true) => None,
        Some(false) => Some(format!("{name} is under {expression}, which deny.toml does not allow")),
        None => Some(format!("{name}: {expression:?} is no SPDX expression")),
    }
}

/// Whether an SPDX expression can be satisfied with allowed licences; `None` when it is none. `A/B` is an old way to write `A OR B`.
fn satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> Option<bool> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let tokens: Vec<&str> = spaced.split_whitespace().collect();
    let (verdict, rest) = any_of(&tokens, allowed)?;
    rest.is_empty().then_some(verdict)
}

type Read<'a, 'b> = Option<(bool, &'a [&'b str])>;

fn any_of<'a, 'b>(tokens: &'a [&'b str], allowed: &dyn Fn(&str) -> bool) -> Read<'a, 'b> {
    let (mut verdict, mut rest) = all_of(tokens, allowed)?;
    while let ["OR", more @ ..] = rest {
        let (other, after) = all_of(more, allowed)?;
        (verdict, rest) = (verdict | other, after);
    }
    Some((verdict, rest))
}

fn all_of<'a, 'b>(tokens: &'a [&'b str], allowed: &dyn Fn(&str) -> bool) -> Read<'a, 'b> {
    let (mut verdict, mut rest) = one(tokens, allowed)?;
    while let ["AND", more @ ..] = rest {
        let (other, after) = one(more, allowed)?;
        (verdict, rest) = (verdict & other, after);
    }
    Some((verdict, rest))
}

fn one<'a, 'b>(tokens: &'a [&'b str], allowed: &dyn Fn(&str) -> bool) -> Read<'a, 'b> {
    match tokens {
        ["(", inside @ ..] => match any_of(inside, allowed)? {
            (verdict, [")", rest @ ..]) => Some((verdict, rest)),
            _ => None,
        },
        [licence, "WITH", exception, rest @ ..] => {
            Some((allowed(&format!("{licence} WITH {exception}")), rest))
        }
        [licence, rest @ ..] if !matches!(*licence, ")" | "AND" | "OR" | "WITH") => {
            // "or later" is satisfied by the version itself.
            Some((allowed(licence.trim_end_matches('+')), rest))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DENY: &str = r#"
        [licenses]
        allow = [
            # A reason.
            "MIT",
            "Apache-2.0",
        ]
        exceptions = [
            { crate = "weak", allow = ["MPL-2.0"] },
        ]
        [[licenses.clarify]]
        crate = "silent"
        expression = "MIT"
        [bans]
        allow = ["GPL-3.0"]
    "#;

    #[test]
    fn licences_are_judged_as_their_expressions_say() {
        let policy = Policy::read(DENY);
        for (name, licence, fine) in [
            ("a", json!("MIT"), true),
            ("a", json!("GPL-3.0"), false),
            ("a", json!("GPL-3.0 OR MIT"), true),
            ("a", json!("GPL-3.0/MIT"), true),
            ("a", json!("(MIT OR GPL-3.0) AND Apache-2.0"), true),
            ("a", json!("MIT AND GPL-3.0"), false),
            ("a", json!("Apache-2.0 WITH LLVM-exception"), false),
            ("a", json!("MIT OR"), false),
            ("a", json!(null), false),
            ("a", json!("MPL-2.0+"), false),
            ("weak", json!("MPL-2.0+"), true),
            ("silent", json!(null), true),
        ] {
            let metadata = json!({ "packages": [{ "name": "other", "license": "MIT" }, { "name": name, "license": licence }] });
            assert_eq!(complaints(&policy, &metadata).is_empty(), fine, "{name} {licence}");
        }
    }
}
