//! Tokens of service accounts: what they say, and whether they are (still) believed.
//!
//! Owns: the claims, as Kubernetes has them, for whom and how long they are made, and the check of them against the
//! cluster as it is. Pure: the time and the token's id are arguments. Invariants: a token dies with its account and with
//! the pod (secret, node) that it is bound to, since each is looked up by uid; one that is made for another audience is
//! nobody's here.

mod key;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use self::key::{ALGORITHM, Sign, SigningKey, Unsigned};
use crate::model::{Key, Kind, Object, Snapshot};

/// Who says so, and for whom when nobody else is named: the API server, by the name pods know it by.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The life of a token for which no other is asked, in seconds.
pub const USUAL_LIFE_S: i64 = 3600;
/// Kubernetes' shortest and longest lives.
const SHORTEST_S: i64 = 600;
const LONGEST_S: i64 = 1 << 32;
/// A pod's token that the API server puts in by itself has this life, by which it is known …
pub const INJECTED_LIFE_S: i64 = 3607;
/// … and is good for a year: programs that read it once do not fail within the hour. Its pod's end ends it anyway.
const INJECTED_REAL_LIFE_S: i64 = 365 * 24 * 3600;
/// What is being deleted is believed for so long after its time.
const LEEWAY_S: i64 = 60;
/// The longest audience, and how many: a token has to fit into a request's head.
const AUDIENCE_BYTES: usize = 1024;
const AUDIENCES: usize = 16;

/// What is said of something that a token depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Which life of it.
    pub uid: String,
}

/// Kubernetes' own part of the claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KubernetesClaims {
    /// The account's namespace.
    pub namespace: String,
    /// The node of the pod, or the node that the token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Named>,
    /// The pod that the token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Named>,
    /// The secret that the token is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Named>,
    /// Whose token it is.
    pub serviceaccount: Named,
    /// When a client should have a newer one; seconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// What a token says. Times are in seconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For whom it is.
    pub aud: Vec<String>,
    /// When it ends.
    pub exp: i64,
    /// When it was made.
    pub iat: i64,
    /// Who made it.
    pub iss: String,
    /// Its own id.
    pub jti: String,
    /// Kubernetes' part.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: KubernetesClaims,
    /// When it begins.
    pub nbf: i64,
    /// The user's name.
    pub sub: String,
}

/// What a token is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// `Pod`, `Secret` or `Node`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid, if that was told.
    pub uid: Option<String>,
}

/// A token that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// For whom; for the API server when none is named.
    pub audiences: Vec<String>,
    /// For how long.
    pub life_s: Option<i64>,
    /// With what it ends.
    pub bound: Option<Bound>,
}

/// Why there is no such token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field cannot be: its path and a sentence that begins with the value.
    #[error("{0}: {1}")]
    Invalid(&'static str, String),
    /// It cannot be bound to this.
    #[error("{0}")]
    BadRequest(String),
    /// The account, or what it is bound to, is not there.
    #[error("{0} not found")]
    NotFound(Key),
    /// It is there, in another life.
    #[error("{0}: {1}")]
    Conflict(Key, String),
}

/// Why a token is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It is not in the form of one.
    #[error("invalid bearer token")]
    NoToken,
    /// Another key signed it, or none.
    #[error("invalid bearer token: it is not signed by this cluster")]
    Forged,
    /// Another issuer's.
    #[error("invalid bearer token: its issuer is another")]
    Issuer,
    /// Its time is over, or has not come.
    #[error("service account token has expired, or is not valid yet")]
    Expired,
    /// For others.
    #[error("token audiences {found:?} is invalid for the target audiences {wanted:?}")]
    Audience {
        /// For whom it is.
        found: Vec<String>,
        /// For whom it would have to be.
        wanted: Vec<String>,
    },
    /// What it depends on has gone, or lives another life.
    #[error("service account token has been invalidated: {0} is gone")]
    Gone(Key),
}

/// The user name of an account.
pub fn user_name(namespace: &str, account: &str) -> String {
    format!("system:serviceaccount:{namespace}:{account}")
}

/// The groups of all accounts of a namespace, but the one of everybody who is known.
pub fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}

/// The claims of a token that is asked for, and the time at which whoever asked is told that it ends.
///
/// # Errors
/// What is wrong with the wish.
pub fn claims(
    namespace: &str,
    account: &str,
    wish: &Wish,
    snapshot: &Snapshot,
    now_s: i64,
    id: String,
) -> Result<(Claims, i64), Refusal> {
    let life_s = check_life(wish.life_s.unwrap_or(USUAL_LIFE_S))?;
    check_audiences(&wish.audiences)?;
    let key = Key::new(Kind::ServiceAccount, namespace, account);
    let found = snapshot.find(&key).ok_or(Refusal::NotFound(key))?;
    let mut said = KubernetesClaims {
        namespace: namespace.to_owned(),
        node: None,
        pod: None,
        secret: None,
        serviceaccount: named(found),
        warnafter: None,
    };
    if let Some(bound) = &wish.bound {
        bind(&mut said, bound, account, snapshot)?;
    }
    let aud = match wish.audiences.is_empty() {
        true => vec![ISSUER.to_owned()],
        false => wish.audiences.clone(),
    };
    let ends = now_s.saturating_add(life_s);
    let mut exp = ends;
    if life_s == INJECTED_LIFE_S && said.pod.is_some() && aud == [ISSUER] {
        said.warnafter = Some(ends);
        exp = now_s.saturating_add(INJECTED_REAL_LIFE_S);
    }
    let claims = Claims {
        aud,
        exp,
        iat: now_s,
        iss: ISSUER.to_owned(),
        jti: id,
        kubernetes: said,
        nbf: now_s,
        sub: user_name(namespace, account),
    };
    Ok((claims, ends))
}

fn check_life(life_s: i64) -> Result<i64, Refusal> {
    let refuse =
        |why| Err(Refusal::Invalid("spec.expirationSeconds", format!("Invalid value: {life_s}: {why}")));
    match life_s {
        ..SHORTEST_S => refuse("may not specify a duration less than 10 minutes"),
        _ if life_s > LONGEST_S => refuse("may not specify a duration larger than 2^32 seconds"),
        _ => Ok(life_s),
    }
}

fn check_audiences(audiences: &[String]) -> Result<(), Refusal> {
    let bad =
        audiences.len() > AUDIENCES || audiences.iter().any(|a| a.is_empty() || a.len() > AUDIENCE_BYTES);
    if bad {
        let why = format!(
            "Invalid value: {audiences:?}: at most {AUDIENCES} audiences of 1 to {AUDIENCE_BYTES} bytes are allowed"
        );
        return Err(Refusal::Invalid("spec.audiences", why));
    }
    Ok(())
}

fn named(object: &Object) -> Named {
    Named { name: object.key.name.to_string(), uid: object.uid().to_string() }
}

/// A token that a volume of a pod asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Want {
    /// For whom; empty: for the API server.
    pub audience: String,
    /// For how long.
    pub life_s: i64,
}

/// Whose tokens a pod's volumes ask for, and which; of what is no pod, none.
pub fn wants(document: &[u8]) -> (String, BTreeSet<Want>) {
    // Most pods ask for none, and every pod of the cluster comes by here.
    if !std::str::from_utf8(document).is_ok_and(|text| text.contains("\"serviceAccountToken\"")) {
        return (String::new(), BTreeSet::new());
    }
    let spec = serde_json::from_slice::<Pod>(document).map(|pod| pod.spec).unwrap_or_default();
    let sources = spec.volumes.into_iter().filter_map(|volume| volume.projected).flat_map(|all| all.sources);
    let wants = sources.filter_map(|source| source.token).map(|token| Want {
        audience: token.audience.unwrap_or_default(),
        life_s: token.life_s.unwrap_or(USUAL_LIFE_S),
    });
    (spec.account.unwrap_or_default(), wants.collect())
}

/// When a token that was made at a time for so long is to be replaced by a newer one: as the kubelet does it, once four
/// fifths of its life are over, and after a day at the latest.
pub fn replace_at(made_s: i64, life_s: i64) -> i64 {
    const DAY_S: i64 = 24 * 3600;
    made_s.saturating_add((life_s / 5 * 4).min(DAY_S))
}

/// The few fields of a pod's spec that a token has to do with.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PodSpec {
    #[serde(rename = "serviceAccountName")]
    account: Option<String>,
    #[serde(rename = "nodeName")]
    node: Option<String>,
    volumes: Vec<Volume>,
}

#[derive(Deserialize)]
struct Volume {
    projected: Option<Projected>,
}

#[derive(Deserialize)]
struct Projected {
    #[serde(default)]
    sources: Vec<Projection>,
}

#[derive(Deserialize)]
struct Projection {
    #[serde(rename = "serviceAccountToken")]
    token: Option<TokenProjection>,
}

#[derive(Deserialize)]
struct TokenProjection {
    audience: Option<String>,
    #[serde(rename = "expirationSeconds")]
    life_s: Option<i64>,
}

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    spec: PodSpec,
}

fn bind(
    said: &mut KubernetesClaims,
    bound: &Bound,
    account: &str,
    snapshot: &Snapshot,
) -> Result<(), Refusal> {
    let find = |kind, namespace: &str| {
        let key = Key::new(kind, namespace, bound.name.as_str());
        let found = snapshot.find(&key).ok_or_else(|| Refusal::NotFound(key.clone()))?;
        match &bound.uid {
            Some(uid) if !uid.is_empty() && *uid != found.uid().as_str() => Err(Refusal::Conflict(
                key,
                format!(
                    "the UID in the bound object reference ({uid}) does not match the UID in record. The object \
                     might have been deleted and then recreated"
                ),
            )),
            _ => Ok(found),
        }
    };
    match bound.kind.as_str() {
        "Pod" => {
            let found = find(Kind::Pod, &said.namespace)?;
            let pod: Pod = found.parse().map_err(|why| Refusal::BadRequest(why.to_string()))?;
            if pod.spec.account.as_deref() != Some(account) {
                return Err(Refusal::BadRequest(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            said.pod = Some(named(found));
            let node = pod.spec.node.map(|node| Key::new(Kind::Node, "", node));
            said.node = node.and_then(|key| snapshot.find(&key)).map(|node| named(node));
        }
        "Secret" => said.secret = Some(named(find(Kind::Secret, &said.namespace)?)),
        "Node" => said.node = Some(named(find(Kind::Node, "")?)),
        other => return Err(Refusal::BadRequest(format!("cannot bind token to object of type {other:?}"))),
    }
    Ok(())
}

/// Whether claims whose signature was checked are to be believed now, by one of these audiences.
///
/// # Errors
/// Why not.
pub fn check(claims: &Claims, audiences: &[&str], snapshot: &Snapshot, now_s: i64) -> Result<(), Rejected> {
    if claims.iss != ISSUER {
        return Err(Rejected::Issuer);
    }
    if now_s >= claims.exp || now_s < claims.nbf {
        return Err(Rejected::Expired);
    }
    if !claims.aud.iter().any(|one| audiences.contains(&one.as_str())) {
        return Err(Rejected::Audience {
            found: claims.aud.clone(),
            wanted: audiences.iter().map(|&one| one.to_owned()).collect(),
        });
    }
    let said = &claims.kubernetes;
    let alive = |kind, namespace: &str, of: &Named| {
        let key = Key::new(kind, namespace, of.name.as_str());
        let lives = snapshot.find(&key).is_some_and(|found| {
            let over =
                found.facet.meta.deleting.is_some_and(|d| d.at.as_second().saturating_add(LEEWAY_S) < now_s);
            found.uid().as_str() == of.uid && !over
        });
        if lives { Ok(()) } else { Err(Rejected::Gone(key)) }
    };
    if claims.sub != user_name(&said.namespace, &said.serviceaccount.name) {
        return Err(Rejected::NoToken);
    }
    alive(Kind::ServiceAccount, &said.namespace, &said.serviceaccount)?;
    match (&said.pod, &said.secret, &said.node) {
        // The pod's node is only told.
        (Some(pod), ..) => alive(Kind::Pod, &said.namespace, pod),
        (None, Some(secret), _) => alive(Kind::Secret, &said.namespace, secret),
        (None, None, Some(node)) => alive(Kind::Node, "", node),
        (None, None, None) => Ok(()),
    }
}
