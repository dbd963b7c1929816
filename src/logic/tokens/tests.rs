//! What tokens say, to whom they are given, and when they are no longer believed.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{logic::testing::stored, model::Revision};

const NOW: i64 = 1_700_000_000;

fn object(kind: Kind, name: &str, uid: &str, more: Value) -> Arc<Object> {
    let mut value = json!({"metadata": {"name": name, "namespace": "ns", "uid": uid}});
    if !kind.namespaced() {
        value["metadata"]["namespace"] = Value::Null;
    }
    for (name, part) in more.as_object().into_iter().flatten() {
        match (name.as_str(), part) {
            ("metadata", Value::Object(part)) => {
                for (name, part) in part {
                    value["metadata"][name] = part.clone();
                }
            }
            _ => value[name] = part.clone(),
        }
    }
    stored(kind, &value, Revision(1))
}

fn pod(account: &str) -> Value {
    json!({"spec": {"serviceAccountName": account, "nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}})
}

fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for object in [
        object(Kind::ServiceAccount, "robot", "uid-robot", json!({})),
        object(Kind::Pod, "web", "uid-web", pod("robot")),
        object(Kind::Pod, "other", "uid-other", pod("default")),
        object(Kind::Secret, "s", "uid-s", json!({})),
        object(Kind::Node, "n1", "uid-n1", json!({})),
    ] {
        snapshot.insert(object);
    }
    snapshot
}

fn bound(kind: &str, name: &str) -> Option<Bound> {
    Some(Bound { kind: kind.into(), name: name.into(), uid: None })
}

fn made(wish: &Wish) -> Claims {
    claims("ns", "robot", wish, &cluster(), NOW, "id".into()).unwrap().0
}

fn refusal(wish: &Wish) -> Refusal {
    claims("ns", "robot", wish, &cluster(), NOW, "id".into()).unwrap_err()
}

#[test]
fn a_token_says_what_kubernetes_tokens_say() {
    let wish = Wish { bound: bound("Pod", "web"), ..Wish::default() };
    let (claims, ends) = claims("ns", "robot", &wish, &cluster(), NOW, "id".into()).unwrap();
    assert_eq!(ends, NOW + 3600);
    assert_eq!(
        serde_json::to_value(&claims).unwrap(),
        json!({
            "aud": ["https://kubernetes.default.svc.cluster.local"],
            "exp": NOW + 3600, "iat": NOW, "nbf": NOW, "jti": "id",
            "iss": "https://kubernetes.default.svc.cluster.local",
            "kubernetes.io": {
                "namespace": "ns",
                "node": {"name": "n1", "uid": "uid-n1"},
                "pod": {"name": "web", "uid": "uid-web"},
                "serviceaccount": {"name": "robot", "uid": "uid-robot"},
            },
            "sub": "system:serviceaccount:ns:robot",
        })
    );
}

#[test]
fn an_injected_token_outlives_the_hour_after_which_it_warns() {
    let injected = |audiences: Vec<String>, bound| {
        let wish = Wish { audiences, life_s: Some(INJECTED_LIFE_S), bound };
        let (claims, ends) = claims("ns", "robot", &wish, &cluster(), NOW, "id".into()).unwrap();
        assert_eq!(ends, NOW + INJECTED_LIFE_S, "whoever refreshes it does so within the hour");
        (claims.exp - NOW, claims.kubernetes.warnafter)
    };
    let year = 365 * 24 * 3600;
    assert_eq!(injected(vec![], bound("Pod", "web")), (year, Some(NOW + INJECTED_LIFE_S)));
    assert_eq!(injected(vec!["vault".into()], bound("Pod", "web")), (INJECTED_LIFE_S, None));
    assert_eq!(injected(vec![], None), (INJECTED_LIFE_S, None));
}

#[test]
fn only_what_can_be_is_granted() {
    for (life_s, good) in [(599, false), (600, true), (1 << 32, true), ((1 << 32) + 1, false), (-1, false)] {
        let wish = Wish { life_s: Some(life_s), ..Wish::default() };
        assert_eq!(claims("ns", "robot", &wish, &cluster(), NOW, String::new()).is_ok(), good, "{life_s}");
    }
    let bind = |kind, name| refusal(&Wish { bound: bound(kind, name), ..Wish::default() });
    assert_eq!(bind("Pod", "gone"), Refusal::NotFound(Key::new(Kind::Pod, "ns", "gone")));
    assert!(
        matches!(bind("Pod", "other"), Refusal::BadRequest(why) if why.contains("different serviceaccount"))
    );
    assert!(matches!(bind("ConfigMap", "c"), Refusal::BadRequest(why) if why.contains("ConfigMap")));
    let other_life = Some(Bound { kind: "Pod".into(), name: "web".into(), uid: Some("uid-before".into()) });
    assert!(matches!(refusal(&Wish { bound: other_life, ..Wish::default() }), Refusal::Conflict(..)));
    let nobody = claims("ns", "nobody", &Wish::default(), &cluster(), NOW, String::new());
    assert_eq!(nobody.unwrap_err(), Refusal::NotFound(Key::new(Kind::ServiceAccount, "ns", "nobody")));
    let long = Wish { audiences: vec!["a".repeat(2000)], ..Wish::default() };
    assert!(matches!(refusal(&long), Refusal::Invalid("spec.audiences", _)));
}

#[test]
fn a_token_is_believed_within_its_time_by_its_audience() {
    let claims = made(&Wish { audiences: vec!["vault".into(), ISSUER.into()], ..Wish::default() });
    let check = |audience, now| check(&claims, &[audience], &cluster(), now);
    assert_eq!(check(ISSUER, NOW), Ok(()));
    assert_eq!(check("vault", NOW + 3599), Ok(()));
    assert_eq!(check(ISSUER, NOW + 3600), Err(Rejected::Expired));
    assert_eq!(check(ISSUER, NOW - 1), Err(Rejected::Expired));
    assert!(matches!(check("else", NOW), Err(Rejected::Audience { .. })));
    let other = Claims { iss: "https://elsewhere".into(), ..claims.clone() };
    assert_eq!(super::check(&other, &[ISSUER], &cluster(), NOW), Err(Rejected::Issuer));
    // The user's name has to be the account's.
    let renamed = Claims { sub: user_name("kube-system", "robot"), ..claims };
    assert_eq!(super::check(&renamed, &[ISSUER], &cluster(), NOW), Err(Rejected::NoToken));
}

#[test]
fn a_token_ends_with_its_account_and_with_what_it_is_bound_to() {
    for (wish, key, before) in [
        (Wish::default(), Key::new(Kind::ServiceAccount, "ns", "robot"), json!({})),
        (
            Wish { bound: bound("Pod", "web"), ..Wish::default() },
            Key::new(Kind::Pod, "ns", "web"),
            pod("robot"),
        ),
        (
            Wish { bound: bound("Secret", "s"), ..Wish::default() },
            Key::new(Kind::Secret, "ns", "s"),
            json!({}),
        ),
        (Wish { bound: bound("Node", "n1"), ..Wish::default() }, Key::new(Kind::Node, "", "n1"), json!({})),
    ] {
        let claims = made(&wish);
        let mut now = cluster();
        assert_eq!(check(&claims, &[ISSUER], &now, NOW), Ok(()), "{key}");
        now.remove(&key);
        assert_eq!(check(&claims, &[ISSUER], &now, NOW), Err(Rejected::Gone(key.clone())));
        // The name has another life.
        now.insert(object(key.kind, &key.name, "uid-next", before.clone()));
        assert_eq!(check(&claims, &[ISSUER], &now, NOW), Err(Rejected::Gone(key.clone())));
        // It is being deleted: its last requests are still its own.
        let ending = |at: &str| {
            let mut ending = before.clone();
            ending["metadata"] = json!({"deletionTimestamp": at});
            let uid = cluster().find(&key).unwrap().uid().to_string();
            object(key.kind, &key.name, &uid, ending)
        };
        // NOW is 22:13:20.
        now.insert(ending("2023-11-14T22:12:30Z"));
        assert_eq!(check(&claims, &[ISSUER], &now, NOW), Ok(()), "{key}");
        now.insert(ending("2023-11-14T22:12:00Z"));
        assert_eq!(check(&claims, &[ISSUER], &now, NOW), Err(Rejected::Gone(key)));
    }
}

#[test]
fn volumes_tell_which_tokens_a_pod_needs() {
    let mut pod = pod("robot");
    pod["spec"]["volumes"] = json!([
        {"name": "e", "emptyDir": {}},
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "p", "projected": {"defaultMode": 420, "sources": [
            {"configMap": {"name": "c"}},
            {"serviceAccountToken": {"path": "t", "expirationSeconds": 3607}},
            {"serviceAccountToken": {"path": "u", "audience": "vault", "expirationSeconds": 600}},
            {"serviceAccountToken": {"path": "v", "expirationSeconds": 3607}},
        ]}},
        {"name": "q", "projected": {}},
    ]);
    let want = |audience: &str, life_s| Want { audience: audience.into(), life_s };
    let expected = BTreeSet::from([want("", 3607), want("vault", 600)]);
    assert_eq!(wants(pod.to_string().as_bytes()), ("robot".to_owned(), expected));
    assert_eq!(wants(b"[]"), (String::new(), BTreeSet::new()));
    assert_eq!(wants(b"{}"), (String::new(), BTreeSet::new()));
}

#[test]
fn tokens_are_replaced_long_before_they_end() {
    assert_eq!(replace_at(100, 1000), 900);
    assert_eq!(replace_at(NOW, INJECTED_LIFE_S), NOW + 2884);
    assert_eq!(replace_at(0, 1 << 32), 24 * 3600);
}
