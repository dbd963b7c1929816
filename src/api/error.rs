//! Everything that can go wrong at the door, and how Kubernetes says it.
//!
//! Owns: [`ApiError`] and its one mapping to `Status` objects (code, reason, details, message texts as Kubernetes has
//! them, because clients match on them). Nothing else in the room writes an error body.

use actix_web::{HttpResponse, http::StatusCode};
use serde_json::{Value, json};

use crate::{
    messages::{CommitError, SendFailed, TooOld},
    model::{
        Key, Kind,
        admit::{Cause, Rejection},
    },
};

/// Seconds a client should wait after 429 or 503: one commit group and then some.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Why a request was not served.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ApiError {
    /// 401: no credentials, or none that are known.
    #[error("Unauthorized")]
    Unauthorized,
    /// 403 for a person.
    #[error("{resource}{}{} is forbidden: {why}", if name.is_empty() { "" } else { " " }, quoted(name))]
    Forbidden {
        /// Plural of the kind, or what was asked for.
        resource: String,
        /// The object; empty for collections.
        name: String,
        /// Why.
        why: String,
        /// `Status.details.causes[0].reason`, when there is one.
        cause: Option<(&'static str, String)>,
    },
    /// 403 for a path that names no object.
    #[error("forbidden: {0}")]
    ForbiddenPath(String),
    /// 404 for an object.
    #[error("{resource} \"{name}\" not found")]
    NotFound {
        /// Plural of the kind.
        resource: String,
        /// The object.
        name: String,
    },
    /// 404 for a path.
    #[error("the server could not find the requested resource")]
    UnknownPath,
    /// 405.
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    /// 406.
    #[error("only the following media types are accepted: application/json")]
    NotAcceptable,
    /// 409 for a name that is taken.
    #[error("{resource} \"{name}\" already exists")]
    AlreadyExists {
        /// Plural of the kind.
        resource: String,
        /// The object.
        name: String,
    },
    /// 409 for a state that has changed, or does not allow it.
    #[error("Operation cannot be fulfilled on {resource} \"{name}\": {why}")]
    Conflict {
        /// Plural of the kind.
        resource: String,
        /// The object.
        name: String,
        /// Why.
        why: String,
    },
    /// 410.
    #[error("{0}")]
    Expired(String),
    /// 413.
    #[error("Request entity too large: limit is {0}")]
    TooLarge(usize),
    /// 415.
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// 422.
    #[error("{kind} \"{name}\" is invalid: {}", causes_text(causes))]
    Invalid {
        /// The kind's name.
        kind: String,
        /// The object.
        name: String,
        /// Field by field.
        causes: Vec<Cause>,
    },
    /// 422 without fields: a JSON patch that does not hold.
    #[error("the server rejected our request due to an error in our request")]
    Unprocessable(String),
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// 429.
    #[error("the server has received too many requests and has asked us to try again later")]
    TooManyRequests,
    /// 500: a defect of ours.
    #[error("Internal error occurred: {0}")]
    Internal(String),
    /// 503.
    #[error("the server is currently unable to handle the request: {0}")]
    Unavailable(String),
    /// 504.
    #[error("Timeout: {0}")]
    Timeout(String),
    /// 504: the client asked for a revision that is not here yet.
    #[error("Timeout: Too large resource version: {asked}, current: {current}")]
    FutureRevision {
        /// What was asked for.
        asked: u64,
        /// What there is.
        current: u64,
    },
    /// What a node said: an HTTP status code and a sentence.
    #[error("{1}")]
    Node(u16, String),
}

/// The text of a conflict of revisions.
pub const MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

fn quoted(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("\"{name}\"") }
}

fn causes_text(causes: &[Cause]) -> String {
    let one = |c: &Cause| format!("{}: {}", c.field, c.message);
    match causes {
        [only] => one(only),
        many => format!("[{}]", many.iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

impl ApiError {
    /// 404 for an object.
    pub fn not_found(key: &Key) -> ApiError {
        ApiError::NotFound { resource: key.kind.plural().into(), name: key.name.to_string() }
    }

    /// 409 with a reason.
    pub fn conflict(key: &Key, why: impl Into<String>) -> ApiError {
        ApiError::Conflict { resource: key.kind.plural().into(), name: key.name.to_string(), why: why.into() }
    }

    /// What the door's refusal of a document means to the client.
    pub fn rejection(kind: Kind, name: &str, rejection: Rejection) -> ApiError {
        match rejection {
            Rejection::BadRequest(text) => ApiError::BadRequest(text),
            Rejection::Invalid(causes) => {
                ApiError::Invalid { kind: kind.name().into(), name: name.into(), causes }
            }
        }
    }

    /// What the store's refusal of a commit means to the client.
    pub fn commit(error: CommitError) -> ApiError {
        match error {
            CommitError::AlreadyExists(key) => {
                ApiError::AlreadyExists { resource: key.kind.plural().into(), name: key.name.to_string() }
            }
            CommitError::NotFound(key) => ApiError::not_found(&key),
            CommitError::Conflict { key, .. } => ApiError::conflict(&key, MODIFIED),
            CommitError::Unavailable(why) => ApiError::Unavailable(format!("the store cannot write: {why}")),
        }
    }

    /// The HTTP status code.
    pub fn code(&self) -> u16 {
        match self {
            ApiError::BadRequest(_) => 400,
            ApiError::Unauthorized => 401,
            ApiError::Forbidden { .. } | ApiError::ForbiddenPath(_) => 403,
            ApiError::NotFound { .. } | ApiError::UnknownPath => 404,
            ApiError::MethodNotAllowed => 405,
            ApiError::NotAcceptable => 406,
            ApiError::AlreadyExists { .. } | ApiError::Conflict { .. } => 409,
            ApiError::Expired(_) => 410,
            ApiError::TooLarge(_) => 413,
            ApiError::UnsupportedMediaType(_) => 415,
            ApiError::Invalid { .. } | ApiError::Unprocessable(_) => 422,
            ApiError::TooManyRequests => 429,
            ApiError::Internal(_) => 500,
            ApiError::Unavailable(_) => 503,
            ApiError::Timeout(_) | ApiError::FutureRevision { .. } => 504,
            ApiError::Node(code, _) => *code,
        }
    }

    /// `Status.reason`.
    pub fn reason(&self) -> &'static str {
        match self.code() {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            405 => "MethodNotAllowed",
            406 => "NotAcceptable",
            409 if matches!(self, ApiError::AlreadyExists { .. }) => "AlreadyExists",
            409 => "Conflict",
            410 => "Expired",
            413 => "RequestEntityTooLarge",
            415 => "UnsupportedMediaType",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        }
    }

    fn details(&self) -> Value {
        match self {
            ApiError::NotFound { resource, name }
            | ApiError::AlreadyExists { resource, name }
            | ApiError::Conflict { resource, name, .. } => json!({ "name": name, "kind": resource }),
            ApiError::Forbidden { resource, name, cause, .. } => {
                let mut details = json!({ "name": name, "kind": resource });
                if let Some((reason, message)) = cause {
                    details["causes"] = json!([{ "reason": reason, "message": message,
                        "field": "metadata.namespace" }]);
                }
                details
            }
            ApiError::Invalid { kind, name, causes } => json!({
                "name": name, "kind": kind,
                "causes": causes.iter().map(|c| json!({
                    "reason": c.reason, "message": c.message, "field": c.field,
                })).collect::<Vec<_>>(),
            }),
            ApiError::Unprocessable(why) => json!({
                "causes": [{ "reason": "UnexpectedServerResponse", "message": why }],
            }),
            ApiError::TooManyRequests | ApiError::Unavailable(_) => {
                json!({ "retryAfterSeconds": RETRY_AFTER_SECONDS })
            }
            ApiError::FutureRevision { .. } => json!({
                "retryAfterSeconds": RETRY_AFTER_SECONDS,
                "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
            }),
            _ => json!({}),
        }
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "reason": self.reason(),
            "details": self.details(),
            "code": self.code(),
        })
    }

    /// The HTTP answer.
    pub fn response(&self) -> HttpResponse {
        let code = StatusCode::from_u16(self.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(code);
        response.content_type("application/json");
        response.insert_header(("Cache-Control", "no-cache, private"));
        match self {
            ApiError::TooManyRequests | ApiError::Unavailable(_) | ApiError::FutureRevision { .. } => {
                response.insert_header(("Retry-After", RETRY_AFTER_SECONDS.to_string()));
            }
            ApiError::Unauthorized => {
                response.insert_header(("WWW-Authenticate", "Bearer realm=\"troupe\""));
            }
            _ => {}
        }
        response.body(self.status().to_string())
    }
}

impl From<SendFailed> for ApiError {
    fn from(error: SendFailed) -> ApiError {
        match error {
            SendFailed::Timeout(_) => ApiError::Timeout(error.to_string()),
            SendFailed::Down(_) | SendFailed::Died(_) => ApiError::Unavailable(error.to_string()),
        }
    }
}

impl From<TooOld> for ApiError {
    fn from(error: TooOld) -> ApiError {
        ApiError::Expired(error.to_string())
    }
}

/// `Status` of a success, as deletions and bindings answer it.
pub fn success(kind: Kind, name: &str, uid: &str, code: u16) -> Value {
    let mut status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
    if code == 201 {
        status["code"] = code.into();
    } else {
        status["details"] = json!({ "name": name, "kind": kind.plural(), "uid": uid });
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: ApiError, code: u16, reason: &str, message: &str) {
        let status = error.status();
        assert_eq!(status["code"], code, "{error:?}");
        assert_eq!(status["reason"], reason, "{error:?}");
        assert_eq!(status["message"], message, "{error:?}");
        assert_eq!(error.response().status().as_u16(), code);
    }

    #[test]
    fn errors_speak_kubernetes_words() {
        let pod = Key::new(Kind::Pod, "default", "web");
        check(ApiError::not_found(&pod), 404, "NotFound", "pods \"web\" not found");
        check(
            ApiError::commit(CommitError::AlreadyExists(pod.clone())),
            409,
            "AlreadyExists",
            "pods \"web\" already exists",
        );
        check(
            ApiError::conflict(&pod, MODIFIED),
            409,
            "Conflict",
            "Operation cannot be fulfilled on pods \"web\": the object has been modified; please apply your \
             changes to the latest version and try again",
        );
        check(ApiError::UnknownPath, 404, "NotFound", "the server could not find the requested resource");
        check(ApiError::Unauthorized, 401, "Unauthorized", "Unauthorized");
        let cause = |field: &str| Cause {
            field: field.into(),
            reason: "FieldValueRequired",
            message: "Required value".into(),
        };
        let invalid = |causes| ApiError::rejection(Kind::Pod, "web", Rejection::Invalid(causes));
        check(
            invalid(vec![cause("spec.containers")]),
            422,
            "Invalid",
            "Pod \"web\" is invalid: spec.containers: Required value",
        );
        check(
            invalid(vec![cause("a"), cause("b")]),
            422,
            "Invalid",
            "Pod \"web\" is invalid: [a: Required value, b: Required value]",
        );
        check(
            ApiError::Unavailable("disk full".into()),
            503,
            "ServiceUnavailable",
            "the server is currently unable to handle the request: disk full",
        );
        check(ApiError::Node(400, "no such container".into()), 400, "BadRequest", "no such container");
    }

    #[test]
    fn a_client_told_to_wait_is_told_how_long() {
        for error in [ApiError::TooManyRequests, ApiError::Unavailable("x".into())] {
            assert!(error.response().headers().contains_key("retry-after"), "{error:?}");
            assert_eq!(error.status()["details"]["retryAfterSeconds"], RETRY_AFTER_SECONDS);
        }
    }
}
