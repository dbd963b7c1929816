//! The tokens that one node holds for its pods.
//!
//! Owns: which tokens its pods' volumes ask for and what this connection has carried of them. Nothing is asked for by the
//! node: it gets the tokens of its own pods, before it hears of the pods, and newer ones in time. Invariants: a token is
//! bound to the pod's uid; it is signed in memory and kept nowhere here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    actors::outside,
    logic::tokens::{Bound, SigningKey, Want, Wish, claims, replace_at, wants},
    messages::wire,
    model::{Key, Kind, Object, Snapshot, Uid},
};

/// How often it is looked for tokens that are to be replaced: the shortest-lived one has two minutes left then.
pub(super) const PERIOD: Duration = Duration::from_secs(30);
/// Tokens in one message: of a kilobyte each, well below the largest frame.
pub(super) const AT_ONCE: usize = 1000;

/// The actor's memory of a node's tokens.
#[derive(Default)]
pub(super) struct Given {
    /// What each pod asks for, as of its mark.
    pods: BTreeMap<Uid, Pod>,
    /// What this connection has carried.
    sent: BTreeMap<(Uid, Want), Sent>,
}

struct Pod {
    mark: u64,
    key: Key,
    account: String,
    wants: BTreeSet<Want>,
}

struct Sent {
    /// Which life of the account it is of.
    account: Uid,
    replace_at_s: i64,
}

impl Given {
    /// A new connection knows nothing.
    pub(super) fn begin_anew(&mut self) {
        self.sent.clear();
    }

    /// The node's pods, each with its mark: two documents of one mark ask for the same.
    pub(super) fn note_pods(
        &mut self,
        pods: &BTreeMap<Uid, Arc<Object>>,
        mark: impl Fn(&Object) -> Option<u64>,
    ) {
        for (uid, pod) in pods {
            let Some(mark) = mark(pod) else { continue };
            if self.pods.get(uid).is_none_or(|known| known.mark != mark) {
                let (account, wants) = wants(&pod.json);
                self.pods.insert(uid.clone(), Pod { mark, key: pod.key.clone(), account, wants });
            }
        }
        if self.pods.len() > pods.len() {
            self.pods.retain(|uid, _| pods.contains_key(uid));
            self.sent.retain(|(uid, _), _| pods.contains_key(uid));
        }
    }

    /// The tokens to be sent now; they are taken as sent.
    pub(super) fn next(&mut self, snapshot: &Snapshot, key: &SigningKey) -> Vec<wire::PodToken> {
        let now_s = outside::now().as_second();
        let mut tokens = Vec::new();
        for (uid, pod) in &self.pods {
            if pod.wants.is_empty() {
                continue;
            }
            let account = Key::new(Kind::ServiceAccount, pod.key.namespace.clone(), pod.account.as_str());
            // The node says by itself that there is none.
            let Some(account) = snapshot.find(&account).map(|account| account.uid().clone()) else {
                continue;
            };
            for want in &pod.wants {
                let id = (uid.clone(), want.clone());
                let good = |sent: &Sent| sent.account == account && now_s < sent.replace_at_s;
                if self.sent.get(&id).is_some_and(good) {
                    continue;
                }
                match token(pod, uid, want, snapshot, now_s, key) {
                    Ok(token) => tokens.push(token),
                    Err(why) => {
                        tracing::debug!(pod = %pod.key, %why, "no token for a volume");
                        continue;
                    }
                }
                let replace_at_s = replace_at(now_s, want.life_s);
                self.sent.insert(id, Sent { account: account.clone(), replace_at_s });
            }
        }
        tokens
    }
}

fn token(
    pod: &Pod,
    uid: &Uid,
    want: &Want,
    snapshot: &Snapshot,
    now_s: i64,
    key: &SigningKey,
) -> Result<wire::PodToken, String> {
    let wish = Wish {
        audiences: Some(want.audience.clone()).filter(|audience| !audience.is_empty()).into_iter().collect(),
        life_s: Some(want.life_s),
        bound: Some(Bound { kind: "Pod".into(), name: pod.key.name.to_string(), uid: Some(uid.to_string()) }),
    };
    let id = outside::uid().to_string();
    let made = claims(&pod.key.namespace, &pod.account, &wish, snapshot, now_s, id);
    let (claims, _) = made.map_err(|why| why.to_string())?;
    let token = key.sign(&claims).map_err(|why| why.to_string())?;
    Ok(wire::PodToken { uid: uid.clone(), audience: want.audience.clone(), life_s: want.life_s, token })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{actors::testing::token_key, logic::testing::stored, model::Revision};

    fn account(uid: &str) -> Arc<Object> {
        let json = json!({"metadata": {"name": "robot", "namespace": "ns", "uid": uid}});
        stored(Kind::ServiceAccount, &json, Revision(1))
    }

    fn pod(name: &str) -> Arc<Object> {
        let json = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
            "spec": {"serviceAccountName": "robot", "containers": [{"name": "c", "image": "i"}], "volumes": [
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
            ]},
        });
        stored(Kind::Pod, &json, Revision(1))
    }

    #[test]
    fn a_node_gets_each_token_of_its_pods_once_a_connection_and_anew_with_the_account() {
        let key = token_key();
        let (mut given, mut snapshot) = (Given::default(), Snapshot::default());
        let pods = [pod("a"), pod("b")].map(|pod| (pod.uid().clone(), pod));
        let pods = BTreeMap::from(pods);
        pods.values().for_each(|pod| snapshot.insert(pod.clone()));
        given.note_pods(&pods, |_| Some(1));
        let of = |given: &mut Given, snapshot: &Snapshot| {
            let mut of: Vec<String> = given.next(snapshot, &key).iter().map(|t| t.uid.to_string()).collect();
            of.sort();
            of
        };
        assert_eq!(of(&mut given, &snapshot), [""; 0], "there is no account yet");
        snapshot.insert(account("one"));
        assert_eq!(of(&mut given, &snapshot), ["uid-a", "uid-b"]);
        assert_eq!(of(&mut given, &snapshot), [""; 0]);
        snapshot.insert(account("two"));
        assert_eq!(of(&mut given, &snapshot), ["uid-a", "uid-b"]);
        let left: BTreeMap<_, _> = pods.into_iter().skip(1).collect();
        given.note_pods(&left, |_| Some(1));
        given.begin_anew();
        assert_eq!(of(&mut given, &snapshot), ["uid-b"]);
    }
}
