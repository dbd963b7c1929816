//! The shapes of Kubernetes' protobuf messages.
//!
//! Owns: `schema.txt` beside it, read once. Invariant, checked by tests: each line is understood, each message that a field
//! names is there, and none contains itself, so that the schema bounds the depth of what is decoded.

use std::{collections::HashMap, sync::OnceLock};

const TEXT: &str = include_str!("schema.txt");

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Text,
    Bytes,
    Bool,
    Int,
    IntOrString,
    Quantity,
    Time,
    MicroTime,
    Message(&'static str),
    /// Times and statuses that the server sets itself.
    Ignored,
}

/// A field of a message.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name in JSON; none when the message's fields are those of the one around it.
    pub name: Option<&'static str>,
    /// What it holds.
    pub of: Type,
    /// How often.
    pub many: Many,
    /// Whether zero is a value.
    pub zero_counts: bool,
}

/// How often a field may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Many {
    One,
    List,
    /// `map<string, …>`.
    Map,
}

/// A message.
#[derive(Debug)]
pub struct Schema {
    /// Its name.
    pub name: &'static str,
    /// Its fields by their numbers.
    pub fields: HashMap<u64, Field>,
}

/// The schema of a message.
pub fn message(name: &str) -> Option<&'static Schema> {
    static ALL: OnceLock<HashMap<&'static str, Schema>> = OnceLock::new();
    ALL.get_or_init(all).get(name)
}

/// The message of a kind.
pub fn of_kind(api_version: &str, kind: &str) -> Option<&'static Schema> {
    let ours = match (api_version, kind) {
        // It is sent in the version of what is to be deleted.
        (_, "DeleteOptions") => true,
        (
            "v1",
            "Binding"
            | "ConfigMap"
            | "Endpoints"
            | "Event"
            | "Namespace"
            | "Node"
            | "Pod"
            | "ReplicationController"
            | "Secret"
            | "Service"
            | "ServiceAccount",
        )
        | ("authorization.k8s.io/v1", "SelfSubjectAccessReview" | "SelfSubjectRulesReview")
        | ("authentication.k8s.io/v1", "SelfSubjectReview" | "TokenRequest" | "TokenReview")
        | ("autoscaling/v1", "Scale")
        | ("policy/v1", "Eviction") => true,
        _ => false,
    };
    ours.then(|| message(kind)).flatten()
}

fn all() -> HashMap<&'static str, Schema> {
    let mut all: HashMap<&str, Schema> = HashMap::new();
    let mut present = "";
    for line in TEXT.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            None => {
                present = line;
                all.insert(present, Schema { name: present, fields: HashMap::new() });
            }
            Some(row) => {
                if let (Some((number, field)), Some(message)) = (field(row), all.get_mut(present)) {
                    message.fields.insert(number, field);
                }
            }
        }
    }
    all
}

/// `NUMBER NAME TYPE`.
fn field(row: &'static str) -> Option<(u64, Field)> {
    let mut words = row.splitn(3, ' ');
    let (number, name, of) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let (many, of) = match (of.strip_prefix("[]"), of.strip_prefix("map ")) {
        (Some(of), _) => (Many::List, of),
        (_, Some(of)) => (Many::Map, of),
        _ => (Many::One, of),
    };
    let (zero_counts, of) = of.strip_prefix('*').map_or((false, of), |of| (true, of));
    let of = match of {
        "text" => Type::Text,
        "bytes" => Type::Bytes,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "intOrString" => Type::IntOrString,
        "quantity" => Type::Quantity,
        "time" => Type::Time,
        "microTime" => Type::MicroTime,
        "ignored" => Type::Ignored,
        message if message.starts_with(|first: char| first.is_ascii_uppercase()) => Type::Message(message),
        _ => return None,
    };
    Some((number, Field { name: Some(name).filter(|name| *name != "."), of, many, zero_counts }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::review::Review;

    #[test]
    fn every_line_is_understood_and_every_message_is_there_and_ends() {
        fn depth(name: &str, above: usize) -> usize {
            assert!(above < 20, "{name} contains itself");
            let fields = &message(name).unwrap_or_else(|| panic!("no {name}")).fields;
            let below = fields.values().filter_map(|field| match field.of {
                Type::Message(name) => Some(depth(name, above + 1)),
                _ => None,
            });
            below.max().unwrap_or(above)
        }
        let rows = TEXT.lines().filter(|line| line.starts_with("  "));
        assert_eq!(rows.clone().count(), all().values().map(|schema| schema.fields.len()).sum::<usize>());
        for row in rows {
            assert!(row.strip_prefix("  ").and_then(field).is_some(), "{row}");
        }
        for name in all().keys() {
            depth(name, 0);
        }
    }

    #[test]
    fn every_kind_can_come_as_protobuf() {
        for kind in crate::model::Kind::ALL {
            assert!(of_kind(kind.api_version(), kind.name()).is_some(), "{kind:?}");
        }
        for review in Review::ALL {
            let version = format!("{}/v1", review.group());
            assert!(of_kind(&version, review.kind()).is_some(), "{review:?}");
        }
        assert!(of_kind("apps/v1", "Deployment").is_none() && of_kind("apps/v1", "Pod").is_none());
    }
}
