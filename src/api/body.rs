//! How bodies come in: bounded, and as JSON whatever they were written in.
//!
//! Owns: the size limit while reading and the conversion of YAML and Kubernetes' protobuf to JSON. Invariant: a body
//! never becomes much larger than it came, whatever YAML's aliases stand for.

use actix_web::HttpRequest;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{
    error::ApiError,
    payload::Payload,
    protobuf::{self, DecodeError},
};

/// Most bodies fit here, so that reading does not grow the buffer.
const USUAL_BODY_BYTES: usize = 4 << 10;

/// What a YAML body may expand to, as JSON: an alias of four bytes may stand for megabytes, and aliases nest.
const EXPANDED_YAML_BYTES: usize = 8 << 20;

/// The media type of a body, without parameters.
pub fn media_type(request: &HttpRequest) -> &str {
    let header = request.headers().get("content-type").and_then(|h| h.to_str().ok()).unwrap_or("");
    header.split(';').next().unwrap_or("").trim()
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 beyond the limit (at once when the client announces more), 400 when the connection breaks.
pub async fn read(request: &HttpRequest, mut payload: Payload, limit: usize) -> Result<Bytes, ApiError> {
    let announced = request
        .headers()
        .get("content-length")
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.parse::<usize>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(ApiError::TooLarge(limit));
    }
    let mut body = BytesMut::with_capacity(announced.unwrap_or(USUAL_BODY_BYTES));
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|e| ApiError::BadRequest(format!("the body could not be read: {e}")))?;
        if body.len() + chunk.len() > limit {
            return Err(ApiError::TooLarge(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// A body as JSON. Protobuf is only read of the kind that is wanted; of others, the kind is looked at later.
///
/// # Errors
/// 415 for what cannot be read, 400 for what is malformed.
pub fn to_json(media: &str, body: Bytes, wanted: Option<&str>) -> Result<Bytes, ApiError> {
    match media {
        "" | "application/json" | "*/*" => Ok(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(&body),
        "application/vnd.kubernetes.protobuf" => match protobuf::to_json(&body, wanted) {
            Ok(value) => Ok(value.to_string().into()),
            Err(e @ (DecodeError::UnknownKind(..) | DecodeError::UnknownField(..))) => {
                Err(ApiError::UnsupportedMediaType(e.to_string()))
            }
            Err(e @ DecodeError::OtherKind(..)) => Err(ApiError::BadRequest(e.to_string())),
            Err(e) => Err(ApiError::BadRequest(format!("the protobuf body is malformed: {e}"))),
        },
        other => Err(ApiError::UnsupportedMediaType(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf (got \"{other}\")"
        ))),
    }
}

fn yaml(body: &[u8]) -> Result<Bytes, ApiError> {
    let mut left = EXPANDED_YAML_BYTES;
    let value = Bounded(&mut left)
        .deserialize(serde_yaml_ng::Deserializer::from_slice(body))
        .map_err(|e| ApiError::BadRequest(format!("yaml: {e}")))?;
    Ok(value.to_string().into())
}

/// Reads a value while it takes what the value will be long, as JSON, from what is left.
struct Bounded<'a>(&'a mut usize);

impl Bounded<'_> {
    fn take<E: de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        // The comma, and a second byte for what has no text.
        *self.0 = self.0.checked_sub(bytes + 2).ok_or_else(|| {
            E::custom(format!("the body expands to more than {EXPANDED_YAML_BYTES} bytes; use fewer aliases"))
        })?;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value that JSON knows")
    }

    fn visit_unit<E: de::Error>(mut self) -> Result<Value, E> {
        self.take(4).map(|()| Value::Null)
    }

    fn visit_bool<E: de::Error>(mut self, value: bool) -> Result<Value, E> {
        self.take(4).map(|()| value.into())
    }

    fn visit_i64<E: de::Error>(mut self, value: i64) -> Result<Value, E> {
        self.take(1).map(|()| value.into())
    }

    fn visit_u64<E: de::Error>(mut self, value: u64) -> Result<Value, E> {
        self.take(1).map(|()| value.into())
    }

    fn visit_f64<E: de::Error>(mut self, value: f64) -> Result<Value, E> {
        self.take(1).map(|()| value.into())
    }

    fn visit_str<E: de::Error>(mut self, value: &str) -> Result<Value, E> {
        self.take(value.len()).map(|()| value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Bounded(self.0))? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut fields = serde_json::Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.take(key.len())?;
            let value = map.next_value_seed(Bounded(self.0))?;
            fields.insert(key, value);
        }
        Ok(fields.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_becomes_json_and_other_formats_are_refused() {
        let json = to_json("application/yaml", Bytes::from_static(b"kind: Pod\nspec: {a: 1}"), None).unwrap();
        assert_eq!(&json[..], br#"{"kind":"Pod","spec":{"a":1}}"#);
        assert_eq!(to_json("text/html", Bytes::new(), None).unwrap_err().code(), 415);
        assert_eq!(to_json("application/yaml", Bytes::from_static(b"a: ["), None).unwrap_err().code(), 400);
    }

    #[test]
    fn yaml_says_in_json_what_it_said() {
        let yaml = "a: [1, -2, 1.5, true, ~, 'x', .nan]\nb: &b {c: d}\ne: *b\n1: two\nnull: n\ntrue: t\n";
        let json: Value = serde_json::from_slice(
            &to_json("application/yaml", Bytes::from_static(yaml.as_bytes()), None).unwrap(),
        )
        .unwrap();
        assert_eq!(json, serde_yaml_ng::from_str::<Value>(yaml).unwrap());
        assert_eq!((&json["a"][2], &json["e"]["c"], &json["1"]), (&1.5.into(), &"d".into(), &"two".into()));
    }

    #[test]
    fn aliases_do_not_make_a_body_a_bomb() {
        let scalar = format!("- &a {}\n{}", "x".repeat(1 << 20), "- *a\n".repeat(1000));
        let mut nested = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, before) in ('b'..='i').zip('a'..) {
            let list = vec![format!("*{before}"); 10].join(", ");
            nested += &format!("{name}: &{name} [{list}]\n");
        }
        for bomb in [scalar, nested] {
            assert_eq!(to_json("application/yaml", bomb.into(), None).unwrap_err().code(), 400);
        }
    }
}
