//! Kubernetes' protobuf bodies as JSON.
//!
//! Owns: the envelope (`k8s\0`, then `runtime.Unknown`) and a decoder driven by a schema ([`schema`]), for what clients that
//! know a kind send in no other form: client-go's typed clients do not fall back to JSON, whatever they are answered.
//! Invariant: nothing is lost silently: a kind or field that is not in the schema is refused, unless that is empty, and what becomes
//! JSON is what Go would have written as JSON. Bounded: depth by the schema, lengths by what is there, all of it by [`Room`].

mod schema;

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp,
};
use serde_json::{Map, Value};

use schema::{Field, Many, Schema, Type};

/// Why a body was not decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not `k8s\0`.
    #[error("the body does not begin with Kubernetes' protobuf prefix")]
    NoPrefix,
    /// A length or number runs past the end.
    #[error("the body ends within a field")]
    Truncated,
    /// A field of another wire type than the schema says, or text that is not UTF-8.
    #[error("field {0} has an unexpected encoding")]
    Encoding(u64),
    /// A kind that is not in the schema.
    #[error("{0} {1} cannot be read as protobuf by this server: send application/json")]
    UnknownKind(String, String),
    /// A field that is not in the schema.
    #[error("field {0} of {1} cannot be read as protobuf by this server: send application/json")]
    UnknownField(u64, &'static str),
    /// Another kind than is asked for.
    #[error("a {0} cannot be handled as a {1}")]
    OtherKind(String, String),
    /// See [`Room`].
    #[error("it stands for more than {DECODED_BYTES} bytes: send application/json")]
    TooLarge,
}

/// What a body may become in memory: one may be 3 MiB, which is mostly text in what anybody writes, but two bytes of it may stand
/// for an empty map. 10,000 addresses of a service come to two thirds of it.
const DECODED_BYTES: usize = 32 << 20;
/// A value in its list or map.
const VALUE_BYTES: usize = 64;
/// The first node of a map: eleven keys and values.
const MAP_BYTES: usize = 640;

/// What is left of [`DECODED_BYTES`].
struct Room(usize);

impl Room {
    fn take(&mut self, bytes: usize) -> Result<(), DecodeError> {
        self.0 = self.0.checked_sub(bytes).ok_or(DecodeError::TooLarge)?;
        Ok(())
    }

    /// Takes what a field needs.
    fn take_field(&mut self, name: &str, of: &Map<String, Value>) -> Result<(), DecodeError> {
        self.take(VALUE_BYTES + name.len() + if of.is_empty() { MAP_BYTES } else { 0 })
    }
}

/// What precedes every body.
const PREFIX: &[u8] = b"k8s\0";

/// Decodes a body, if it is of the kind that is wanted.
///
/// # Errors
/// See [`DecodeError`].
pub fn to_json(body: &[u8], wanted: Option<&str>) -> Result<Value, DecodeError> {
    let body = body.strip_prefix(PREFIX).ok_or(DecodeError::NoPrefix)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields(body) {
        let (number, wire) = field?;
        match number {
            1 => {
                for field in Fields(wire.bytes(number)?) {
                    match field? {
                        (1, wire) => api_version = wire.text(1)?,
                        (2, wire) => kind = wire.text(2)?,
                        _ => {}
                    }
                }
            }
            2 => raw = wire.bytes(number)?,
            _ => {}
        }
    }
    let Some(schema) = schema::of_kind(&api_version, &kind) else {
        return Err(DecodeError::UnknownKind(api_version, kind));
    };
    if let Some(wanted) = wanted.filter(|wanted| *wanted != kind) {
        return Err(DecodeError::OtherKind(kind, wanted.to_owned()));
    }
    let mut object = Map::new();
    message(schema, raw, &mut object, &mut Room(DECODED_BYTES))?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn message(
    schema: &'static Schema,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    room: &mut Room,
) -> Result<(), DecodeError> {
    for part in Fields(bytes) {
        let (number, wire) = part?;
        let Some(field) = schema.fields.get(&number) else {
            // Go writes what was not set, of versions before and after this one, too.
            if wire.is_empty() {
                continue;
            }
            return Err(DecodeError::UnknownField(number, schema.name));
        };
        let Some(name) = field.name else {
            if let Type::Message(of) = field.of {
                message(of_name(of)?, wire.bytes(number)?, object, room)?;
            }
            continue;
        };
        match field.many {
            Many::One => {
                let value = value(field.of, number, wire, room)?;
                if !is_absent(field, &value) {
                    room.take_field(name, object)?;
                    object.insert(name.into(), value);
                }
            }
            Many::List => {
                room.take_field(name, object)?;
                let list = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
                if let Some(list) = list.as_array_mut() {
                    list.push(value(field.of, number, wire, room)?);
                }
            }
            Many::Map => {
                let (key, value) = entry(field.of, wire.bytes(number)?, room)?;
                room.take_field(name, object)?;
                let map = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    room.take_field(&key, map)?;
                    map.insert(key, value);
                }
            }
        }
    }
    Ok(())
}

/// The schema of a message that another one names.
fn of_name(name: &'static str) -> Result<&'static Schema, DecodeError> {
    schema::message(name).ok_or(DecodeError::UnknownField(0, name))
}

/// A key and its value. What is empty need not be written.
fn entry(of: Type, bytes: &[u8], room: &mut Room) -> Result<(String, Value), DecodeError> {
    let (mut key, mut content) = (String::new(), Wire::Bytes(&[]));
    for part in Fields(bytes) {
        match part? {
            (1, wire) => key = wire.text(1)?,
            (2, wire) => content = wire,
            _ => {}
        }
    }
    Ok((key, value(of, 2, content, room)?))
}

/// Go writes every field that is no pointer, set or not: what is zero was not set.
fn is_absent(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        _ if field.zero_counts => false,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(is) => !is,
        _ => false,
    }
}

fn value(of: Type, number: u64, wire: Wire<'_>, room: &mut Room) -> Result<Value, DecodeError> {
    let wrong = |_| DecodeError::Encoding(number);
    if let (Type::Text | Type::Bytes | Type::Quantity, Wire::Bytes(bytes)) = (of, wire) {
        // Base64, at most.
        room.take(bytes.len() + bytes.len() / 3)?;
    }
    Ok(match of {
        Type::Text => wire.text(number)?.into(),
        Type::Bytes => {
            serde_json::to_value(k8s_openapi::ByteString(wire.bytes(number)?.to_vec())).map_err(wrong)?
        }
        Type::Bool => (wire.number(number)? != 0).into(),
        Type::Int => wire.number(number)?.cast_signed().into(),
        Type::Message(name) => {
            let mut object = Map::new();
            message(of_name(name)?, wire.bytes(number)?, &mut object, room)?;
            object.into()
        }
        Type::Quantity => {
            let mut text = String::new();
            for part in Fields(wire.bytes(number)?) {
                if let (1, wire) = part? {
                    text = wire.text(1)?;
                }
            }
            text.into()
        }
        Type::IntOrString => {
            let (mut text, mut kind, mut int) = (String::new(), 0, 0);
            for part in Fields(wire.bytes(number)?) {
                match part? {
                    (1, wire) => kind = wire.number(1)?,
                    (2, wire) => int = wire.number(2)?.cast_signed(),
                    (3, wire) => text = wire.text(3)?,
                    _ => {}
                }
            }
            if kind == 0 { int.into() } else { text.into() }
        }
        Type::Time => match moment(number, wire)? {
            Some(at) => serde_json::to_value(Time(at)).map_err(wrong)?,
            None => Value::Null,
        },
        Type::MicroTime => match moment(number, wire)? {
            Some(at) => serde_json::to_value(MicroTime(at)).map_err(wrong)?,
            None => Value::Null,
        },
        Type::Ignored => Value::Null,
    })
}

/// A time; empty when there is none.
fn moment(number: u64, wire: Wire<'_>) -> Result<Option<Timestamp>, DecodeError> {
    let bytes = wire.bytes(number)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for part in Fields(bytes) {
        match part? {
            (1, wire) => seconds = wire.number(1)?.cast_signed(),
            (2, wire) => nanos = i32::try_from(wire.number(2)?).map_err(|_| DecodeError::Encoding(number))?,
            _ => {}
        }
    }
    Timestamp::new(seconds, nanos).map(Some).map_err(|_| DecodeError::Encoding(number))
}

/// One field's content.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
    /// Whether it is what Go writes for what was not set.
    fn is_empty(self) -> bool {
        matches!(self, Wire::Number(0) | Wire::Bytes([]))
    }

    fn number(self, field: u64) -> Result<u64, DecodeError> {
        match self {
            Wire::Number(number) => Ok(number),
            Wire::Bytes(_) => Err(DecodeError::Encoding(field)),
        }
    }

    fn bytes(self, field: u64) -> Result<&'a [u8], DecodeError> {
        match self {
            Wire::Bytes(bytes) => Ok(bytes),
            Wire::Number(_) => Err(DecodeError::Encoding(field)),
        }
    }

    fn text(self, field: u64) -> Result<String, DecodeError> {
        std::str::from_utf8(self.bytes(field)?).map(str::to_owned).map_err(|_| DecodeError::Encoding(field))
    }
}

/// The fields of a message, one after the other; ends after the first error.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Truncated)
    }

    fn field(&mut self) -> Result<(u64, Wire<'a>), DecodeError> {
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Bytes(self.take(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| DecodeError::Truncated)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Bytes(self.take(4)?),
            _ => return Err(DecodeError::Encoding(tag >> 3)),
        };
        Ok((tag >> 3, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Wire<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn decode(body: &[u8]) -> Result<Value, DecodeError> {
        to_json(body, None)
    }

    fn varint(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value > 0x7f {
            bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
            value >>= 7;
        }
        bytes.push(u8::try_from(value).unwrap());
        bytes
    }

    /// A length-delimited field.
    fn field(number: usize, content: &[u8]) -> Vec<u8> {
        [varint(number << 3 | 2), varint(content.len()), content.to_vec()].concat()
    }

    fn body(kind: &str, raw: &[u8]) -> Vec<u8> {
        let of = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
        [PREFIX.to_vec(), field(1, &of), field(2, raw)].concat()
    }

    #[test]
    fn what_kubectl_creates_becomes_json() {
        let meta = [
            field(1, b"c"),
            field(2, b""),
            field(8, b""),
            field(11, &[field(1, b"a"), field(2, b"b")].concat()),
        ];
        let raw = [field(1, &meta.concat()), field(2, &[field(1, b"k"), field(2, b"v")].concat())].concat();
        assert_eq!(
            decode(&body("ConfigMap", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "b"}},
                "data": {"k": "v"}})
        );
        let secret = field(2, &[field(1, b"k"), field(2, b"hi")].concat());
        assert_eq!(decode(&body("Secret", &secret)).unwrap()["data"]["k"], "aGk=");
    }

    #[test]
    fn a_pod_becomes_what_go_writes_as_json() {
        let number = |number: usize, value| [varint(number << 3), varint(value)].concat();
        // Go writes what was not set: resources, ports, flags, texts.
        let request = [field(1, b"cpu"), field(2, &field(1, b"100m"))].concat();
        let probe = [
            field(
                1,
                &field(
                    2,
                    &[field(1, b"/"), field(2, &[number(1, 0), number(2, 80), field(3, b"")].concat())]
                        .concat(),
                ),
            ),
            number(2, 0),
            number(4, 9),
        ];
        let container = [
            field(1, b"c"),
            field(2, b"x:1"),
            field(5, b""),
            field(8, &field(2, &request)),
            field(15, &[number(4, 0), number(6, 0)].concat()),
            field(11, &probe.concat()),
            number(16, 0),
            number(17, 1),
        ];
        let toleration = [field(1, b""), field(2, b"Exists"), number(5, 0)];
        let volume = [field(1, b"v"), field(2, &field(2, &field(1, b"")))];
        let spec = [
            field(1, &volume.concat()),
            field(2, &container.concat()),
            number(4, 0),
            field(10, b"n1"),
            number(11, 0),
            number(12, 1),
            field(22, &toleration.concat()),
        ];
        let meta = [field(1, b"p"), field(8, &[8, 0x80, 0xa0, 0xc8, 0x84, 7]), field(9, b"")];
        let raw = [field(1, &meta.concat()), field(2, &spec.concat()), field(3, &field(1, b""))].concat();
        assert_eq!(
            decode(&body("Pod", &raw)).unwrap(),
            json!({
                "apiVersion": "v1", "kind": "Pod", "status": {},
                "metadata": {"name": "p", "creationTimestamp": "2029-11-06T00:49:04Z"},
                "spec": {
                    "volumes": [{"name": "v", "emptyDir": {}}],
                    "containers": [{
                        "name": "c", "image": "x:1",
                        "resources": {"requests": {"cpu": "100m"}},
                        "securityContext": {"runAsUser": 0, "readOnlyRootFilesystem": false},
                        "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 9},
                        "stdinOnce": true,
                    }],
                    "terminationGracePeriodSeconds": 0, "nodeName": "n1", "hostPID": true,
                    "tolerations": [{"operator": "Exists", "tolerationSeconds": 0}],
                },
            })
        );
    }

    #[test]
    fn what_is_not_in_the_schema_is_refused_rather_than_lost() {
        assert!(matches!(decode(&body("Deployment", b"")), Err(DecodeError::UnknownKind(..))));
        assert_eq!(
            decode(&body("Pod", &field(2, &field(15, &field(9, b"x"))))),
            Err(DecodeError::UnknownField(9, "LocalObjectReference"))
        );
        for set in [field(9, b"x"), vec![9 << 3, 1]] {
            assert_eq!(decode(&body("ConfigMap", &set)), Err(DecodeError::UnknownField(9, "ConfigMap")));
        }
        assert_eq!(decode(b"{}"), Err(DecodeError::NoPrefix));
    }

    #[test]
    fn what_is_not_in_the_schema_and_empty_is_passed_over() {
        // Until client-go 0.24 every object had an empty field 15, clusterName.
        let meta = [field(1, b"c"), field(15, b"")].concat();
        let raw = [field(1, &meta), vec![9 << 3, 0]].concat();
        let json = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
        assert_eq!(decode(&body("ConfigMap", &raw)).unwrap(), json);
    }

    #[test]
    fn what_is_wanted_is_another_kind() {
        let map = body("ConfigMap", b"");
        assert!(to_json(&map, Some("ConfigMap")).is_ok());
        let other = to_json(&map, Some("SelfSubjectReview")).unwrap_err();
        assert_eq!(other, DecodeError::OtherKind("ConfigMap".into(), "SelfSubjectReview".into()));
    }

    #[test]
    fn small_bodies_do_not_become_very_much_memory() {
        let times = |times: usize, one: Vec<u8>| one.repeat(times);
        // Containers with nothing but (empty) resources; empty owners; labels.
        let containers = |count| body("Pod", &field(2, &times(count, field(2, &field(8, b"")))));
        let owners = |count| body("Pod", &field(1, &times(count, field(13, b""))));
        assert!(decode(&containers(1_000)).is_ok() && decode(&owners(1_000)).is_ok());
        assert_eq!(decode(&containers(100_000)), Err(DecodeError::TooLarge));
        assert_eq!(decode(&owners(1_000_000)), Err(DecodeError::TooLarge));
        // What is mostly text may be as long as bodies may be.
        let text = field(3, &[field(1, b"k"), field(2, &vec![b'x'; 3 << 20])].concat());
        assert!(decode(&body("ConfigMap", &text)).is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..100)) {
            for kind in ["Namespace", "ConfigMap", "Secret", "ServiceAccount", "Service", "Pod", "Node", "Event"] {
                let of = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
                let _ = decode(&[PREFIX.to_vec(), field(1, &of), field(2, &raw)].concat());
            }
            let _ = decode(&[PREFIX.to_vec(), raw].concat());
        }
    }
}
