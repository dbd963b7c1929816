//! Kubernetes' protobuf bodies as JSON.
//!
//! Owns: the envelope (`k8s\0`, then `runtime.Unknown`) and a small schema-driven decoder for the kinds that `kubectl
//! create` sends in no other form. Field numbers are those of Kubernetes' `generated.proto` files.
//! Invariant: nothing is lost silently: a kind or field that is not in the schema is refused, and the client may send
//! JSON. Depth is bounded by the schema; lengths are checked against what is there before they are used.

use serde_json::{Map, Value};

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
}

/// What precedes every body.
const PREFIX: &[u8] = b"k8s\0";

#[derive(Clone, Copy)]
enum Type {
    Text,
    Bytes,
    Bool,
    Int,
    IntOrString,
    Message(&'static Schema),
    /// `map<string, …>` of text or bytes.
    Map(&'static Type),
    /// Times and statuses that the server sets itself.
    Ignored,
}

struct Schema {
    name: &'static str,
    fields: &'static [Field],
}

struct Field {
    number: u64,
    name: &'static str,
    of: Type,
    repeated: bool,
}

const fn one(number: u64, name: &'static str, of: Type) -> Field {
    Field { number, name, of, repeated: false }
}

const fn many(number: u64, name: &'static str, of: Type) -> Field {
    Field { number, name, of, repeated: true }
}

const TEXTS: Type = Type::Map(&Type::Text);
const BYTES: Type = Type::Map(&Type::Bytes);

static OWNER: Schema = Schema {
    name: "OwnerReference",
    fields: &[
        one(1, "kind", Type::Text),
        one(3, "name", Type::Text),
        one(4, "uid", Type::Text),
        one(5, "apiVersion", Type::Text),
        one(6, "controller", Type::Bool),
        one(7, "blockOwnerDeletion", Type::Bool),
    ],
};

static META: Schema = Schema {
    name: "ObjectMeta",
    fields: &[
        one(1, "name", Type::Text),
        one(2, "generateName", Type::Text),
        one(3, "namespace", Type::Text),
        one(4, "selfLink", Type::Ignored),
        one(5, "uid", Type::Text),
        one(6, "resourceVersion", Type::Text),
        one(7, "generation", Type::Int),
        one(8, "creationTimestamp", Type::Ignored),
        one(9, "deletionTimestamp", Type::Ignored),
        one(10, "deletionGracePeriodSeconds", Type::Ignored),
        one(11, "labels", TEXTS),
        one(12, "annotations", TEXTS),
        many(13, "ownerReferences", Type::Message(&OWNER)),
        many(14, "finalizers", Type::Text),
        one(17, "managedFields", Type::Ignored),
    ],
};

static LOCAL_REFERENCE: Schema =
    Schema { name: "LocalObjectReference", fields: &[one(1, "name", Type::Text)] };

static REFERENCE: Schema = Schema {
    name: "ObjectReference",
    fields: &[
        one(1, "kind", Type::Text),
        one(2, "namespace", Type::Text),
        one(3, "name", Type::Text),
        one(4, "uid", Type::Text),
        one(5, "apiVersion", Type::Text),
        one(6, "resourceVersion", Type::Text),
        one(7, "fieldPath", Type::Text),
    ],
};

static NAMESPACE: Schema = Schema {
    name: "Namespace",
    fields: &[
        one(1, "metadata", Type::Message(&META)),
        one(
            2,
            "spec",
            Type::Message(&Schema { name: "NamespaceSpec", fields: &[many(1, "finalizers", Type::Text)] }),
        ),
        one(3, "status", Type::Ignored),
    ],
};

static CONFIG_MAP: Schema = Schema {
    name: "ConfigMap",
    fields: &[
        one(1, "metadata", Type::Message(&META)),
        one(2, "data", TEXTS),
        one(3, "binaryData", BYTES),
        one(4, "immutable", Type::Bool),
    ],
};

static SECRET: Schema = Schema {
    name: "Secret",
    fields: &[
        one(1, "metadata", Type::Message(&META)),
        one(2, "data", BYTES),
        one(3, "type", Type::Text),
        one(4, "stringData", TEXTS),
        one(5, "immutable", Type::Bool),
    ],
};

static SERVICE_ACCOUNT: Schema = Schema {
    name: "ServiceAccount",
    fields: &[
        one(1, "metadata", Type::Message(&META)),
        many(2, "secrets", Type::Message(&REFERENCE)),
        many(3, "imagePullSecrets", Type::Message(&LOCAL_REFERENCE)),
        one(4, "automountServiceAccountToken", Type::Bool),
    ],
};

static SERVICE_PORT: Schema = Schema {
    name: "ServicePort",
    fields: &[
        one(1, "name", Type::Text),
        one(2, "protocol", Type::Text),
        one(3, "port", Type::Int),
        one(4, "targetPort", Type::IntOrString),
        one(5, "nodePort", Type::Int),
        one(6, "appProtocol", Type::Text),
    ],
};

static SERVICE: Schema = Schema {
    name: "Service",
    fields: &[
        one(1, "metadata", Type::Message(&META)),
        one(
            2,
            "spec",
            Type::Message(&Schema {
                name: "ServiceSpec",
                fields: &[
                    many(1, "ports", Type::Message(&SERVICE_PORT)),
                    one(2, "selector", TEXTS),
                    one(3, "clusterIP", Type::Text),
                    one(4, "type", Type::Text),
                    many(5, "externalIPs", Type::Text),
                    one(7, "sessionAffinity", Type::Text),
                    one(8, "loadBalancerIP", Type::Text),
                    many(9, "loadBalancerSourceRanges", Type::Text),
                    one(10, "externalName", Type::Text),
                    one(11, "externalTrafficPolicy", Type::Text),
                    one(12, "healthCheckNodePort", Type::Int),
                    one(13, "publishNotReadyAddresses", Type::Bool),
                    one(17, "ipFamilyPolicy", Type::Text),
                    many(18, "clusterIPs", Type::Text),
                    many(19, "ipFamilies", Type::Text),
                    one(20, "allocateLoadBalancerNodePorts", Type::Bool),
                    one(21, "loadBalancerClass", Type::Text),
                    one(22, "internalTrafficPolicy", Type::Text),
                    one(23, "trafficDistribution", Type::Text),
                ],
            }),
        ),
        one(3, "status", Type::Ignored),
    ],
};

static ACCESS_REVIEW: Schema = Schema {
    name: "SelfSubjectAccessReview",
    fields: &[
        one(1, "metadata", Type::Message(&META)),
        one(
            2,
            "spec",
            Type::Message(&Schema {
                name: "SelfSubjectAccessReviewSpec",
                fields: &[
                    one(
                        1,
                        "resourceAttributes",
                        Type::Message(&Schema {
                            name: "ResourceAttributes",
                            fields: &[
                                one(1, "namespace", Type::Text),
                                one(2, "verb", Type::Text),
                                one(3, "group", Type::Text),
                                one(4, "version", Type::Text),
                                one(5, "resource", Type::Text),
                                one(6, "subresource", Type::Text),
                                one(7, "name", Type::Text),
                            ],
                        }),
                    ),
                    one(
                        2,
                        "nonResourceAttributes",
                        Type::Message(&Schema {
                            name: "NonResourceAttributes",
                            fields: &[one(1, "path", Type::Text), one(2, "verb", Type::Text)],
                        }),
                    ),
                ],
            }),
        ),
        one(3, "status", Type::Ignored),
    ],
};

static RULES_REVIEW: Schema = Schema {
    name: "SelfSubjectRulesReview",
    fields: &[
        one(1, "metadata", Type::Message(&META)),
        one(
            2,
            "spec",
            Type::Message(&Schema {
                name: "SelfSubjectRulesReviewSpec",
                fields: &[one(1, "namespace", Type::Text)],
            }),
        ),
        one(3, "status", Type::Ignored),
    ],
};

static SUBJECT_REVIEW: Schema = Schema {
    name: "SelfSubjectReview",
    fields: &[one(1, "metadata", Type::Message(&META)), one(2, "status", Type::Ignored)],
};

static TOKEN_REQUEST: Schema = Schema {
    name: "TokenRequest",
    fields: &[
        one(1, "metadata", Type::Message(&META)),
        one(
            2,
            "spec",
            Type::Message(&Schema {
                name: "TokenRequestSpec",
                fields: &[
                    many(1, "audiences", Type::Text),
                    one(3, "boundObjectRef", Type::Message(&BOUND_REFERENCE)),
                    one(4, "expirationSeconds", Type::Int),
                ],
            }),
        ),
        one(3, "status", Type::Ignored),
    ],
};

static BOUND_REFERENCE: Schema = Schema {
    name: "BoundObjectReference",
    fields: &[
        one(1, "kind", Type::Text),
        one(2, "apiVersion", Type::Text),
        one(3, "name", Type::Text),
        one(4, "uid", Type::Text),
    ],
};

fn schema(api_version: &str, kind: &str) -> Option<&'static Schema> {
    Some(match (api_version, kind) {
        ("v1", "Namespace") => &NAMESPACE,
        ("v1", "ConfigMap") => &CONFIG_MAP,
        ("v1", "Secret") => &SECRET,
        ("v1", "ServiceAccount") => &SERVICE_ACCOUNT,
        ("v1", "Service") => &SERVICE,
        ("authorization.k8s.io/v1", "SelfSubjectAccessReview") => &ACCESS_REVIEW,
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview") => &RULES_REVIEW,
        ("authentication.k8s.io/v1", "SelfSubjectReview") => &SUBJECT_REVIEW,
        ("authentication.k8s.io/v1", "TokenRequest") => &TOKEN_REQUEST,
        _ => return None,
    })
}

/// Decodes a body.
///
/// # Errors
/// See [`DecodeError`].
pub fn to_json(body: &[u8]) -> Result<Value, DecodeError> {
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
    let Some(schema) = schema(&api_version, &kind) else {
        return Err(DecodeError::UnknownKind(api_version, kind));
    };
    let mut object = message(schema, raw)?;
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

fn message(schema: &'static Schema, bytes: &[u8]) -> Result<Map<String, Value>, DecodeError> {
    let mut object = Map::new();
    for field in Fields(bytes) {
        let (number, wire) = field?;
        let field = schema
            .fields
            .iter()
            .find(|f| f.number == number)
            .ok_or(DecodeError::UnknownField(number, schema.name))?;
        if let Type::Map(of) = field.of {
            let entry = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            let (mut name, mut value) = (String::new(), Value::String(String::new()));
            for part in Fields(wire.bytes(number)?) {
                match part? {
                    (1, wire) => name = wire.text(1)?,
                    (2, wire) => value = scalar(*of, 2, wire)?,
                    _ => {}
                }
            }
            if let Some(map) = entry.as_object_mut() {
                map.insert(name, value);
            }
            continue;
        }
        let value = scalar(field.of, number, wire)?;
        if field.repeated {
            let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            if let Some(list) = list.as_array_mut() {
                list.push(value);
            }
        } else if !absent(&value) {
            object.insert(field.name.into(), value);
        }
    }
    Ok(object)
}

/// Go writes every field that is no pointer, set or not: what is empty was not set.
fn absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    }
}

fn scalar(of: Type, number: u64, wire: Wire<'_>) -> Result<Value, DecodeError> {
    Ok(match of {
        Type::Text => wire.text(number)?.into(),
        Type::Bytes => serde_json::to_value(k8s_openapi::ByteString(wire.bytes(number)?.to_vec()))
            .map_err(|_| DecodeError::Encoding(number))?,
        Type::Bool => (wire.number(number)? != 0).into(),
        Type::Int => wire.number(number)?.cast_signed().into(),
        Type::Message(schema) => Value::Object(message(schema, wire.bytes(number)?)?),
        Type::IntOrString => {
            let (mut text, mut kind, mut int) = (String::new(), 0, 0);
            for field in Fields(wire.bytes(number)?) {
                match field? {
                    (1, wire) => kind = wire.number(1)?,
                    (2, wire) => int = wire.number(2)?.cast_signed(),
                    (3, wire) => text = wire.text(3)?,
                    _ => {}
                }
            }
            if kind == 0 { int.into() } else { text.into() }
        }
        Type::Map(_) | Type::Ignored => Value::Null,
    })
}

/// One field's content.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Wire<'a> {
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

    /// A length-delimited field.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
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
            to_json(&body("ConfigMap", &raw)).unwrap(),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "b"}},
                "data": {"k": "v"}})
        );
        let secret = field(2, &[field(1, b"k"), field(2, b"hi")].concat());
        assert_eq!(to_json(&body("Secret", &secret)).unwrap()["data"]["k"], "aGk=");
    }

    #[test]
    fn what_is_not_in_the_schema_is_refused_rather_than_lost() {
        assert!(matches!(to_json(&body("Pod", b"")), Err(DecodeError::UnknownKind(..))));
        assert_eq!(
            to_json(&body("ConfigMap", &field(9, b""))),
            Err(DecodeError::UnknownField(9, "ConfigMap"))
        );
        assert_eq!(to_json(b"{}"), Err(DecodeError::NoPrefix));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..100)) {
            for kind in ["Namespace", "ConfigMap", "Secret", "ServiceAccount", "Service"] {
                let of = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
                let _ = to_json(&[PREFIX.to_vec(), field(1, &of), field(2, &raw)].concat());
            }
            let _ = to_json(&[PREFIX.to_vec(), raw].concat());
        }
    }
}
