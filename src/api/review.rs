//! What a client may ask about itself: `SelfSubjectReview`, `SelfSubjectAccessReview`, `SelfSubjectRulesReview`; and an
//! administrator about a token: `TokenReview`.
//!
//! Owns: the four, of `authentication.k8s.io/v1` and `authorization.k8s.io/v1`. They are answered and never stored, and
//! everyone who is known may ask about himself. The answers are those of [`super::auth`]'s rule: everything, or nothing.

use actix_web::{HttpRequest, HttpResponse, http::Method};
use bytes::Bytes;
use k8s_openapi::api::{
    authentication::v1::{SelfSubjectReview, SelfSubjectReviewStatus, UserInfo},
    authorization::v1::{
        NonResourceRule, ResourceRule, SelfSubjectAccessReview, SelfSubjectRulesReview,
        SubjectAccessReviewStatus, SubjectRulesReviewStatus,
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    auth::{ADMINISTRATORS, Speaker},
    body,
    config::User,
    door::Shared,
    error::ApiError,
    payload::Payload,
    read::json_response,
    tokens,
};
use crate::model::admit::Cause;

/// A kind that is only ever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Review {
    /// Who am I?
    Subject,
    /// May I do that?
    Access,
    /// What may I do?
    Rules,
    /// Who holds this token?
    Token,
}

impl Review {
    /// All of them.
    pub const ALL: [Review; 4] = [Review::Subject, Review::Access, Review::Rules, Review::Token];

    /// Whether everyone who is known may ask it: about oneself.
    pub fn is_everyones(self) -> bool {
        self != Review::Token
    }

    /// Its group; the version is `v1`.
    pub fn group(self) -> &'static str {
        match self {
            Review::Subject | Review::Token => "authentication.k8s.io",
            Review::Access | Review::Rules => "authorization.k8s.io",
        }
    }

    /// Its kind.
    pub fn kind(self) -> &'static str {
        match self {
            Review::Subject => "SelfSubjectReview",
            Review::Access => "SelfSubjectAccessReview",
            Review::Rules => "SelfSubjectRulesReview",
            Review::Token => "TokenReview",
        }
    }

    /// Its name in URLs.
    pub fn plural(self) -> String {
        format!("{}s", self.kind().to_lowercase())
    }

    /// The review that a path names.
    pub fn of(segments: &[String]) -> Option<Review> {
        let [apis, group, version, plural] = segments else { return None };
        Review::ALL
            .into_iter()
            .find(|r| apis == "apis" && r.group() == group && version == "v1" && r.plural() == *plural)
    }
}

/// Serves a request for a review.
///
/// # Errors
/// 405 for anything but POST, 413 and 415 for bodies that are not read, and those of [`answer`].
pub async fn serve(
    review: Review,
    speaker: &Speaker,
    request: &HttpRequest,
    payload: Payload,
    shared: &Shared,
) -> Result<HttpResponse, ApiError> {
    if request.method() != Method::POST {
        return Err(ApiError::MethodNotAllowed);
    }
    let body = body::read(request, payload, shared.limits.body_bytes).await?;
    let body = body::to_json(body::media_type(request), body, Some(review.kind()))?;
    match review {
        Review::Token => reply(&tokens::review(parse(review, &body)?, shared)),
        _ => answer(review, speaker, &body),
    }
}

/// Answers a review.
///
/// # Errors
/// 400 for what is no such document, 422 for an access review that asks nothing.
fn answer(review: Review, speaker: &Speaker, body: &Bytes) -> Result<HttpResponse, ApiError> {
    match review {
        Review::Subject => reply(&subject(parse(review, body)?, speaker)),
        Review::Access => reply(&access(parse(review, body)?, speaker)?),
        Review::Rules => reply(&rules(parse(review, body)?, speaker)),
        // It is not about the speaker.
        Review::Token => Err(ApiError::UnknownPath),
    }
}

fn parse<R: DeserializeOwned>(review: Review, body: &[u8]) -> Result<R, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let kind = review.kind();
        ApiError::BadRequest(format!("{kind} in version \"v1\" cannot be handled as a {kind}: {error}"))
    })
}

fn reply(review: &impl Serialize) -> Result<HttpResponse, ApiError> {
    let json = serde_json::to_vec(review).map_err(|e| ApiError::Internal(e.to_string()))?;
    Ok(json_response(201, json))
}

fn subject(mut review: SelfSubjectReview, speaker: &Speaker) -> SelfSubjectReview {
    review.status = Some(SelfSubjectReviewStatus { user_info: Some(user_info(&speaker.user)) });
    review
}

/// A user in Kubernetes' words.
pub fn user_info(user: &User) -> UserInfo {
    let mut groups = user.groups.clone();
    groups.push("system:authenticated".into());
    UserInfo {
        username: Some(user.name.clone()),
        groups: Some(groups),
        uid: user.uid.clone(),
        extra: Some(user.extra.clone()).filter(|extra| !extra.is_empty()),
    }
}

fn access(
    mut review: SelfSubjectAccessReview,
    speaker: &Speaker,
) -> Result<SelfSubjectAccessReview, ApiError> {
    let spec = &review.spec;
    if spec.resource_attributes.is_some() == spec.non_resource_attributes.is_some() {
        return Err(ApiError::Invalid {
            kind: Review::Access.kind().into(),
            name: String::new(),
            causes: vec![Cause {
                field: "spec.resourceAttributes".into(),
                reason: "FieldValueInvalid",
                message: "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes \
                          must be specified"
                    .into(),
            }],
        });
    }
    let reason = (!speaker.may_everything).then(|| format!("only members of {ADMINISTRATORS} may"));
    review.status = Some(SubjectAccessReviewStatus {
        allowed: speaker.may_everything,
        reason,
        ..SubjectAccessReviewStatus::default()
    });
    Ok(review)
}

fn rules(mut review: SelfSubjectRulesReview, speaker: &Speaker) -> SelfSubjectRulesReview {
    let all = || vec!["*".to_owned()];
    let mut status = SubjectRulesReviewStatus::default();
    if speaker.may_everything {
        status.resource_rules = vec![ResourceRule {
            verbs: all(),
            api_groups: Some(all()),
            resources: Some(all()),
            resource_names: None,
        }];
        status.non_resource_rules = vec![NonResourceRule { verbs: all(), non_resource_urls: Some(all()) }];
    }
    // What everyone who is known may do.
    for kind in Review::ALL.into_iter().filter(|kind| kind.is_everyones()) {
        status.resource_rules.push(ResourceRule {
            verbs: vec!["create".into()],
            api_groups: Some(vec![kind.group().into()]),
            resources: Some(vec![kind.plural()]),
            resource_names: None,
        });
    }
    status.non_resource_rules.push(NonResourceRule {
        verbs: vec!["get".into()],
        non_resource_urls: Some(EVERYONES_PATHS.map(str::to_owned).into()),
    });
    review.status = Some(status);
    review
}

/// What everyone who is known may read.
const EVERYONES_PATHS: [&str; 11] = [
    "/.well-known/openid-configuration",
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi/*",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn speaker(may_everything: bool) -> Speaker {
        let user = User { name: "ann".into(), groups: vec!["people".into()], ..User::default() };
        Speaker { user, may_everything }
    }

    #[test]
    fn a_path_names_a_review() {
        let of = |path: &str| Review::of(&path.split('/').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("apis/authentication.k8s.io/v1/selfsubjectreviews"), Some(Review::Subject));
        assert_eq!(of("apis/authorization.k8s.io/v1/selfsubjectaccessreviews"), Some(Review::Access));
        assert_eq!(of("apis/authorization.k8s.io/v1/selfsubjectrulesreviews"), Some(Review::Rules));
        assert_eq!(of("apis/authorization.k8s.io/v2/selfsubjectrulesreviews"), None);
        assert_eq!(of("apis/authentication.k8s.io/v1/selfsubjectrulesreviews"), None);
    }

    #[test]
    fn access_is_everything_or_nothing() {
        let ask = |body: &str, may| {
            let review = parse(Review::Access, body.as_bytes()).unwrap();
            access(review, &speaker(may)).map(|r| r.status.unwrap().allowed)
        };
        let pods = r#"{"spec":{"resourceAttributes":{"verb":"create","resource":"pods"}}}"#;
        assert!(ask(pods, true).unwrap());
        assert!(!ask(pods, false).unwrap());
        assert_eq!(ask(r#"{"spec":{}}"#, true).unwrap_err().code(), 422);
        let nonsense = parse::<SelfSubjectAccessReview>(Review::Access, b"{\"spec\":7}");
        assert_eq!(nonsense.unwrap_err().code(), 400);
    }

    #[test]
    fn everyone_hears_who_they_are_and_what_they_may() {
        let who = subject(SelfSubjectReview::default(), &speaker(false)).status.unwrap().user_info.unwrap();
        assert_eq!(who.username.as_deref(), Some("ann"));
        assert_eq!(who.groups.unwrap(), ["people", "system:authenticated"]);
        let count = |may| rules(SelfSubjectRulesReview::default(), &speaker(may)).status.unwrap();
        assert_eq!(count(true).resource_rules.len(), count(false).resource_rules.len() + 1);
        assert_eq!(count(true).non_resource_rules.len(), count(false).non_resource_rules.len() + 1);
    }
}
