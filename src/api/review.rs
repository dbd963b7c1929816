//! What a client may ask about itself: `SelfSubjectReview`, `SelfSubjectAccessReview`, `SelfSubjectRulesReview`.
//!
//! Owns: the three, of `authentication.k8s.io/v1` and `authorization.k8s.io/v1`. They are answered and never stored, and
//! everyone who is known may ask. The answers are those of [`super::auth`]'s rule: everything, or nothing.

use actix_web::{HttpRequest, HttpResponse, http::Method, web};
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
    door::Shared,
    error::ApiError,
    read::json_response,
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
}

impl Review {
    /// All of them.
    pub const ALL: [Review; 3] = [Review::Subject, Review::Access, Review::Rules];

    /// Its group; the version is `v1`.
    pub fn group(self) -> &'static str {
        match self {
            Review::Subject => "authentication.k8s.io",
            Review::Access | Review::Rules => "authorization.k8s.io",
        }
    }

    /// Its kind.
    pub fn kind(self) -> &'static str {
        match self {
            Review::Subject => "SelfSubjectReview",
            Review::Access => "SelfSubjectAccessReview",
            Review::Rules => "SelfSubjectRulesReview",
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
    payload: web::Payload,
    shared: &Shared,
) -> Result<HttpResponse, ApiError> {
    if request.method() != Method::POST {
        return Err(ApiError::MethodNotAllowed);
    }
    let body = body::read(request, payload, shared.limits.body_bytes).await?;
    answer(review, speaker, &body::to_json(body::media_type(request), body)?)
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
    let mut groups = speaker.user.groups.clone();
    groups.push("system:authenticated".into());
    let user =
        UserInfo { username: Some(speaker.user.name.clone()), groups: Some(groups), ..UserInfo::default() };
    review.status = Some(SelfSubjectReviewStatus { user_info: Some(user) });
    review
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
    for kind in Review::ALL {
        status.resource_rules.push(ResourceRule {
            verbs: vec!["create".into()],
            api_groups: Some(vec![kind.group().into()]),
            resources: Some(vec![kind.plural()]),
            resource_names: None,
        });
    }
    review.status = Some(status);
    review
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::User;

    fn speaker(may_everything: bool) -> Speaker {
        let user = User { name: "ann".into(), groups: vec!["people".into()] };
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
        assert!(count(false).non_resource_rules.is_empty());
    }
}
