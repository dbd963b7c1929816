//! From bytes to typed objects, telling what was not understood.
//!
//! Owns: the typed parse, the search for unknown and duplicate fields, and the sentences for what is no such object.
//! The document is read once into its type; duplicates need a second, shallow reading (Ignore skips it), and only a
//! document that failed is walked again for the name of the field. Nesting is bounded by `serde_json` (128 levels).

use std::{borrow::Cow, collections::HashSet, fmt, fmt::Write as _};

use serde::de::{self, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{
    Stored,
    admit::{FieldValidation, Rejection},
};

/// So many unknown or duplicate fields are told; Kubernetes stops here too.
const MAX_FIELDS: usize = 100;
/// Up to so many keys an object's keys are compared one by one: cheaper than hashing.
const FEW_KEYS: usize = 24;

/// Parses a document; the second value is the `unknown field "…"` and `duplicate field "…"` texts under Warn.
pub(crate) fn decode<K: Stored>(json: &[u8], fields: FieldValidation) -> Result<(K, Vec<String>), Rejection> {
    let (object, mut found) = parse::<K>(json, fields).map_err(|error| explain::<K>(json, &error))?;
    if fields != FieldValidation::Ignore {
        found.extend(duplicates(json).into_iter().map(|path| format!("duplicate field {path:?}")));
        found.truncate(MAX_FIELDS);
    }
    if fields == FieldValidation::Strict && !found.is_empty() {
        let what = format!("strict decoding error: {}", found.join(", "));
        return Err(Rejection::BadRequest(cannot_handle::<K>(&what)));
    }
    Ok((object, found))
}

fn parse<K: Stored>(json: &[u8], fields: FieldValidation) -> Result<(K, Vec<String>), serde_json::Error> {
    if fields == FieldValidation::Ignore {
        return Ok((serde_json::from_slice(json)?, Vec::new()));
    }
    let mut unknown = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(json);
    let object = serde_ignored::deserialize(&mut reader, |path| {
        if unknown.len() < MAX_FIELDS {
            unknown.push(format!("unknown field {:?}", dotted(&path)));
        }
    })?;
    reader.end()?;
    Ok((object, unknown))
}

fn cannot_handle<K: Stored>(why: &str) -> String {
    let kind = K::KIND;
    format!("{kind} in version {:?} cannot be handled as a {kind}: {why}", version(kind.api_version()))
}

fn version(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or(api_version)
}

/// `spec.containers[0].foo`.
fn dotted(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path as P;
    fn put(out: &mut String, path: &P<'_>) {
        match path {
            P::Root => {}
            P::Seq { parent, index } => {
                put(out, parent);
                let _ = write!(out, "[{index}]");
            }
            P::Map { parent, key } => {
                put(out, parent);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => {
                put(out, parent)
            }
        }
    }
    let mut out = String::new();
    put(&mut out, path);
    out
}

// ---- duplicate fields ----

/// The paths of fields that appear twice in one object, in the document's order.
fn duplicates(json: &[u8]) -> Vec<String> {
    let mut state = Scan { path: String::new(), found: Vec::new() };
    let mut reader = serde_json::Deserializer::from_slice(json);
    // The document has been parsed before, so this reading does not fail.
    let _ = Here(&mut state).deserialize(&mut reader);
    state.found
}

struct Scan {
    path: String,
    found: Vec<String>,
}

struct Here<'a>(&'a mut Scan);

impl<'de> DeserializeSeed<'de> for Here<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// A key, borrowed from the document where it has no escapes.
struct BorrowedKey;

impl<'de> DeserializeSeed<'de> for BorrowedKey {
    type Value = Cow<'de, str>;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for BorrowedKey {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E: de::Error>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

/// The keys of one object so far.
#[derive(Default)]
struct Keys<'de> {
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>>,
}

impl<'de> Keys<'de> {
    /// Whether the key is new.
    fn insert(&mut self, key: Cow<'de, str>) -> bool {
        if self.many.is_empty() {
            if self.few.contains(&key) {
                return false;
            }
            if self.few.len() < FEW_KEYS {
                self.few.push(key);
                return true;
            }
            self.many.extend(self.few.drain(..));
        }
        self.many.insert(key)
    }
}

impl<'de> Visitor<'de> for Here<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = Keys::default();
        let length = self.0.path.len();
        while let Some(key) = map.next_key_seed(BorrowedKey)? {
            if length > 0 {
                self.0.path.push('.');
            }
            self.0.path.push_str(&key);
            if !keys.insert(key) && self.0.found.len() < MAX_FIELDS && !self.0.found.contains(&self.0.path) {
                self.0.found.push(self.0.path.clone());
            }
            map.next_value_seed(Here(self.0))?;
            self.0.path.truncate(length);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let length = self.0.path.len();
        for index in 0.. {
            let _ = write!(self.0.path, "[{index}]");
            let more = seq.next_element_seed(Here(self.0))?.is_some();
            self.0.path.truncate(length);
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

// ---- what is wrong with a document that does not parse ----

/// The sentence for a document that is not JSON, of another kind, or has a wrong type somewhere.
fn explain<K: Stored>(json: &[u8], error: &serde_json::Error) -> Rejection {
    #[derive(serde::Deserialize)]
    struct TypeMeta {
        #[serde(rename = "apiVersion", default)]
        api_version: Option<String>,
        #[serde(default)]
        kind: Option<String>,
    }
    let kind = K::KIND;
    if !error.is_data() && serde_json::from_slice::<IgnoredAny>(json).is_err() {
        return Rejection::BadRequest(format!(
            "the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse \
             error: {error}"
        ));
    }
    if let Ok(given) = serde_json::from_slice::<TypeMeta>(json) {
        let wanted = kind.api_version();
        let given_version = given.api_version.unwrap_or_default();
        let given_kind = given.kind.unwrap_or_default();
        if !given_version.is_empty() && given_version != wanted {
            return Rejection::BadRequest(format!(
                "the API version in the data ({given_version}) does not match the expected API version ({wanted})"
            ));
        }
        if !given_kind.is_empty() && given_kind != kind.name() {
            return Rejection::BadRequest(format!(
                "{given_kind} in version {:?} cannot be handled as a {kind}: the kind in the data ({given_kind}) \
                 does not match the expected kind ({kind})",
                version(wanted)
            ));
        }
    }
    let at = walk(json, offset(json, error));
    let text = error.to_string();
    // serde_json ends each text with the place, which the path replaces.
    let what = text.split(" at line ").next().unwrap_or(&text);
    let why = match what.strip_prefix("invalid type: ").and_then(|w| w.split_once(", expected ")) {
        Some((found, expected)) if at.is_empty() => {
            format!(
                "json: cannot unmarshal {} into Go value of type v1.{}",
                json_type(found),
                go_type(expected)
            )
        }
        Some((found, expected)) => format!(
            "json: cannot unmarshal {} into Go struct field {kind}.{at} of type {}",
            json_type(found),
            go_type(expected)
        ),
        None if at.is_empty() => format!("json: {what}"),
        None => format!("json: {kind}.{at}: {what}"),
    };
    Rejection::BadRequest(cannot_handle::<K>(&why))
}

/// What Go's decoder calls what was found.
fn json_type(found: &str) -> &str {
    match found.split([' ', ',']).next().unwrap_or(found) {
        "integer" | "floating" | "number" => "number",
        "boolean" => "bool",
        "map" => "object",
        "sequence" => "array",
        other => other,
    }
}

/// What Go's decoder calls what was expected.
fn go_type(expected: &str) -> &str {
    match expected {
        "i32" => "int32",
        "i64" => "int64",
        "a string" => "string",
        "a boolean" => "bool",
        "a sequence" => "array",
        "a map" => "map[string]string",
        "Quantity" => "resource.Quantity",
        "Time" | "MicroTime" => "time.Time",
        other => other,
    }
}

/// The byte where the parser stopped.
fn offset(json: &[u8], error: &serde_json::Error) -> usize {
    let lines = json.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1));
    lines.map(<[u8]>::len).sum::<usize>().saturating_add(error.column()).min(json.len())
}

/// One open object or array on the way to a place in a document.
enum Level {
    Object { key: String, awaits_key: bool },
    Array { index: usize },
}

/// Walks well-formed JSON up to byte `end` and tells the path there.
fn walk(json: &[u8], end: usize) -> String {
    let mut levels: Vec<Level> = Vec::new();
    let mut at = 0;
    while at < end {
        let start = at;
        at += 1;
        match json[start] {
            b'{' => levels.push(Level::Object { key: String::new(), awaits_key: true }),
            b'[' => levels.push(Level::Array { index: 0 }),
            b'}' | b']' => {
                levels.pop();
            }
            b',' => match levels.last_mut() {
                Some(Level::Object { awaits_key, .. }) => *awaits_key = true,
                Some(Level::Array { index }) => *index += 1,
                None => {}
            },
            b'"' => {
                while at < json.len() && json[at] != b'"' {
                    at += if json[at] == b'\\' { 2 } else { 1 };
                }
                at = (at + 1).min(json.len());
                if let Some(Level::Object { key, awaits_key: awaits_key @ true }) = levels.last_mut() {
                    *awaits_key = false;
                    *key = serde_json::from_slice(&json[start..at]).unwrap_or_default();
                }
            }
            _ => {}
        }
    }
    let mut path = String::new();
    for level in &levels {
        match level {
            Level::Object { key, .. } if key.is_empty() => {}
            Level::Object { key, .. } if path.is_empty() => path.push_str(key),
            Level::Object { key, .. } => {
                path.push('.');
                path.push_str(key);
            }
            Level::Array { index } => {
                let _ = write!(path, "[{index}]");
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1;
    use proptest::prelude::*;

    use super::*;

    fn strict<K: Stored>(json: &str) -> String {
        match decode::<K>(json.as_bytes(), FieldValidation::Strict) {
            Err(Rejection::BadRequest(text)) => text,
            Ok(_) => "passed".into(),
            Err(other) => format!("{other:?}"),
        }
    }

    #[test]
    fn strict_names_unknown_and_duplicate_fields_together() {
        assert_eq!(
            strict::<v1::ReplicationController>(
                r#"{"spec":{"replica":1,"replicas":1,"replicas":2,"template":{"spec":{"containers":[{"nme":1}]}}}}"#
            ),
            "ReplicationController in version \"v1\" cannot be handled as a ReplicationController: strict decoding \
             error: unknown field \"spec.replica\", unknown field \"spec.template.spec.containers[0].nme\", \
             duplicate field \"spec.replicas\""
        );
    }

    #[test]
    fn warn_tells_the_same_and_ignore_tells_nothing() {
        let json = br#"{"spec":{"foo":1,"nodeName":"a","nodeName":"b"}}"#;
        let (pod, found) = decode::<v1::Pod>(json, FieldValidation::Warn).unwrap();
        assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("b"));
        assert_eq!(found, ["unknown field \"spec.foo\"", "duplicate field \"spec.nodeName\""]);
        assert_eq!(decode::<v1::Pod>(json, FieldValidation::Ignore).unwrap().1, Vec::<String>::new());
    }

    #[test]
    fn wrong_types_name_the_field() {
        for (json, end) in [
            (
                r#"{"spec":{"replicas":"two"}}"#,
                "cannot unmarshal string into Go struct field ReplicationController.spec.replicas of type int32",
            ),
            (
                r#"{"spec":{"template":{"spec":{"containers":[{"name":"a"},{"name":[]}]}}}}"#,
                "cannot unmarshal array into Go struct field \
                 ReplicationController.spec.template.spec.containers[1].name of type string",
            ),
            (
                "{\"metadata\":\n{\"labels\":{\"a\":1}}}",
                "cannot unmarshal number into Go struct field ReplicationController.metadata.labels.a of type string",
            ),
        ] {
            let text = strict::<v1::ReplicationController>(json);
            assert!(text.ends_with(end), "{text}");
        }
    }

    #[test]
    fn other_kinds_and_broken_json_are_told_apart() {
        let broken = strict::<v1::Pod>("{\"spec\":");
        assert!(
            broken.starts_with("the object provided is unrecognized (must be of type Pod): couldn't"),
            "{broken}"
        );
        assert_eq!(
            strict::<v1::Pod>(r#"{"apiVersion":"apps/v1","kind":"Pod"}"#),
            "the API version in the data (apps/v1) does not match the expected API version (v1)"
        );
        assert!(
            strict::<v1::Pod>(r#"{"apiVersion":"v1","kind":"Service"}"#)
                .starts_with("Service in version \"v1\" cannot be handled as a Pod")
        );
        assert_eq!(strict::<v1::Pod>(r#"{"metadata":{"name":"a"}}"#), "passed");
        assert!(strict::<v1::Pod>("{} x").contains("json parse error"));
        assert!(strict::<v1::Pod>("").contains("json parse error"));
        assert_eq!(
            strict::<v1::Pod>("[]"),
            "Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal array into Go value of type \
             v1.Pod"
        );
        let deep = format!("{{\"spec\":{}1{}}}", "[".repeat(500), "]".repeat(500));
        assert!(strict::<v1::Pod>(&deep).starts_with("Pod in version"));
    }

    #[test]
    fn quantities_may_be_numbers() {
        let json =
            br#"{"spec":{"containers":[{"name":"a","resources":{"limits":{"cpu":1.5,"memory":1e3}}}]}}"#;
        let (pod, _) = decode::<v1::Pod>(json, FieldValidation::Strict).unwrap();
        let limits = pod.spec.unwrap().containers[0].resources.clone().unwrap().limits.unwrap();
        assert_eq!((limits["cpu"].0.as_str(), limits["memory"].0.as_str()), ("1.5", "1000"));
    }

    #[test]
    fn many_keys_are_still_compared() {
        let fields: Vec<String> = (0..100).map(|i| format!("\"k{i}\":\"\"")).collect();
        let json = format!("{{\"data\":{{{},\"k7\":\"\"}}}}", fields.join(","));
        assert_eq!(duplicates(json.as_bytes()), ["data.k7"]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), json in r#"[\[\]{}:,"\\a1n .-]{0,40}"#) {
            for bytes in [text.as_bytes(), json.as_bytes()] {
                let _ = decode::<v1::Pod>(bytes, FieldValidation::Strict);
                let _ = duplicates(bytes);
                walk(bytes, bytes.len());
            }
        }
    }
}
