//! Tokens of service accounts, as clients see them: `serviceaccounts/NAME/token`, `TokenReview`, and what those need who
//! verify tokens by themselves (OpenID Connect Discovery).
//!
//! Owns: the translation between Kubernetes' documents and [`crate::logic::tokens`], which decides. A token is made and
//! forgotten: nothing is stored.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use k8s_openapi::{
    api::authentication::v1::{TokenRequest, TokenRequestStatus, TokenReview, TokenReviewStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use serde_json::json;

use super::{
    clock, config::User, door::Shared, error::ApiError, read::json_response, review::user_info, write::Call,
};
use crate::{
    logic::tokens::{self, ALGORITHM, Bound, Claims, ISSUER, Refusal, Rejected, Wish},
    model::admit::Cause,
};

/// For whom a token has to be that is shown to the API.
pub const API_AUDIENCE: &str = ISSUER;
/// Where the public key is.
const KEY_SET: [&str; 3] = ["openid", "v1", "jwks"];
/// Where it is said where that is.
const CONFIGURATION: [&str; 2] = [".well-known", "openid-configuration"];

/// POST of a token request.
///
/// # Errors
/// 400, 404, 409, 422.
pub fn request(call: &Call, body: &Bytes) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let mut request = parse(body).map_err(|error| {
        let why = "TokenRequest in version \"v1\" cannot be handled as a TokenRequest";
        ApiError::BadRequest(format!("{why}: {error}"))
    })?;
    if request.metadata.name.as_deref().is_some_and(|name| !name.is_empty() && *name != *key.name) {
        let name = request.metadata.name.unwrap_or_default();
        return Err(ApiError::BadRequest(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            key.name
        )));
    }
    let spec = &request.spec;
    let wish = Wish {
        audiences: spec.audiences.clone(),
        life_s: spec.expiration_seconds,
        bound: spec.bound_object_ref.clone().map(|to| Bound {
            kind: to.kind.unwrap_or_default(),
            name: to.name.unwrap_or_default(),
            uid: to.uid,
        }),
    };
    let (now, snapshot) = (clock::now(), call.shared.state.view.snapshot());
    let id = uuid::Uuid::new_v4().to_string();
    let (claims, ends_s) =
        tokens::claims(&key.namespace, &key.name, &wish, &snapshot, now.as_second(), id).map_err(refused)?;
    let token = call.shared.state.token_key.sign(&claims);
    let token = token.map_err(|error| ApiError::Internal(error.to_string()))?;
    request.metadata.name = Some(key.name.to_string());
    request.metadata.namespace = Some(key.namespace.to_string());
    request.metadata.creation_timestamp = Some(Time(clock::whole_seconds(now)));
    request.spec.audiences = claims.aud;
    request.spec.expiration_seconds = Some(wish.life_s.unwrap_or(tokens::USUAL_LIFE_S));
    let ends = Timestamp::from_second(ends_s).unwrap_or(Timestamp::MAX);
    request.status = Some(TokenRequestStatus { token, expiration_timestamp: Time(ends) });
    let json = serde_json::to_vec(&request).map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(json_response(201, json))
}

/// A request as it came, without its status: that is ours to say, and Go's `null` in it is no time.
fn parse(body: &[u8]) -> Result<TokenRequest, serde_json::Error> {
    let mut request: serde_json::Value = serde_json::from_slice(body)?;
    if let Some(fields) = request.as_object_mut() {
        fields.remove("status");
    }
    serde_json::from_value(request)
}

fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Invalid(field, message) => ApiError::Invalid {
            kind: "TokenRequest.authentication.k8s.io".into(),
            name: String::new(),
            causes: vec![Cause { field: field.into(), reason: "FieldValueInvalid", message }],
        },
        Refusal::BadRequest(why) => ApiError::BadRequest(why),
        Refusal::NotFound(key) => ApiError::not_found(&key),
        Refusal::Conflict(key, why) => ApiError::conflict(&key, why),
    }
}

/// Whose a token is, and which of these audiences it is for.
///
/// # Errors
/// Why it is not believed.
pub fn holder(
    token: &str,
    audiences: &[&str],
    shared: &Shared,
    now: Timestamp,
) -> Result<(User, Vec<String>), Rejected> {
    let claims = shared.state.token_key.verify(token)?;
    tokens::check(&claims, audiences, &shared.state.view.snapshot(), now.as_second())?;
    let good = claims.aud.iter().filter(|one| audiences.contains(&one.as_str())).cloned().collect();
    Ok((user(claims), good))
}

fn user(claims: Claims) -> User {
    let said = claims.kubernetes;
    let mut extra = BTreeMap::new();
    let mut say = |what: &str, value: String| {
        extra.insert(format!("authentication.kubernetes.io/{what}"), vec![value]);
    };
    say("credential-id", format!("JTI={}", claims.jti));
    for (what, named) in [("node", said.node), ("pod", said.pod)] {
        if let Some(named) = named {
            say(&format!("{what}-name"), named.name);
            say(&format!("{what}-uid"), named.uid);
        }
    }
    User {
        name: claims.sub,
        groups: tokens::groups(&said.namespace),
        uid: Some(said.serviceaccount.uid),
        extra,
    }
}

/// Answers who holds a token.
pub fn review(mut review: TokenReview, shared: &Shared) -> TokenReview {
    let token = review.spec.token.take().unwrap_or_default();
    let named = review.spec.audiences.clone().filter(|all| !all.is_empty());
    let wanted = named.unwrap_or_else(|| vec![API_AUDIENCE.to_owned()]);
    let audiences: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let found = match shared.tokens().find(&token) {
        Some(user) => Ok((user.clone(), vec![API_AUDIENCE.to_owned()])),
        None => holder(&token, &audiences, shared, clock::now()),
    };
    review.status = Some(match found {
        Ok((user, audiences)) => TokenReviewStatus {
            authenticated: Some(true),
            user: Some(user_info(&user)),
            audiences: Some(audiences),
            error: None,
        },
        Err(why) => TokenReviewStatus { error: Some(why.to_string()), ..TokenReviewStatus::default() },
    });
    review
}

/// Paths that are answered here.
pub fn paths() -> [String; 2] {
    [format!("/{}", CONFIGURATION.join("/")), format!("/{}", KEY_SET.join("/"))]
}

/// Whether a path is one of them.
pub fn is_ours(segments: &[&str]) -> bool {
    segments == KEY_SET || segments == CONFIGURATION
}

/// The public key, or where it is.
pub fn discovery(request: &HttpRequest, segments: &[&str], shared: &Shared) -> HttpResponse {
    let (kind, document) = if segments == KEY_SET {
        ("application/jwk-set+json", shared.state.token_key.key_set())
    } else {
        let host = request.connection_info().host().to_owned();
        let document = json!({
            "issuer": ISSUER,
            "jwks_uri": format!("https://{host}/{}", KEY_SET.join("/")),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        });
        ("application/json", document)
    };
    HttpResponse::Ok()
        .content_type(kind)
        .insert_header(("Cache-Control", "public, max-age=3600"))
        .body(document.to_string())
}
