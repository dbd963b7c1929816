//! Who may become a node, and who still is one.
//!
//! Owns: join tokens as objects (secrets of type `bootstrap.kubernetes.io/token` in `kube-system`, of which the store has
//! the secret's digest only), the answer to a machine that asks to join, the limit on wrong guesses, and the mark that
//! ties a node's object to its key. Pure: facts and time are handed in. Invariant: a name belongs to one key at a time,
//! from the moment it was given, for as long as there is a node of that name; without its object a node is nobody.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{api::core::v1, jiff::Timestamp};
use serde_json::{Value, json};

use crate::model::{
    Object,
    token::{JoinToken, hex, secret_digest},
};

/// Where tokens are.
pub const NAMESPACE: &str = "kube-system";
/// Their type, as kubeadm's.
pub const TOKEN_TYPE: &str = "bootstrap.kubernetes.io/token";
/// The annotation of a node that joined: SHA-256 of its public key.
pub const NODE_KEY: &str = "troupe.internal/node-key";
/// Another: the address from which it is linked, or was last.
const LINKED_FROM: &str = "troupe.internal/linked-from";

const DIGEST: &str = "token-secret-sha256";
const EXPIRATION: &str = "expiration";
/// Their names begin so.
pub const NAME_PREFIX: &str = "bootstrap-token-";

/// The name of a token's secret.
pub fn token_name(id: &str) -> String {
    format!("{NAME_PREFIX}{id}")
}

/// The object that makes a master accept a token until `expires`.
pub fn token_object(token: &JoinToken, expires: Timestamp, description: Option<&str>) -> Value {
    let mut data = json!({
        "token-id": token.id,
        DIGEST: secret_digest(&token.id, &token.secret),
        EXPIRATION: expires.to_string(),
        "usage-bootstrap-authentication": "true",
    });
    if let Some(description) = description {
        data["description"] = description.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": TOKEN_TYPE,
        "metadata": {"name": token_name(&token.id), "namespace": NAMESPACE},
        "stringData": data,
    })
}

/// A token as it is listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id.
    pub id: String,
    /// When it ends; never when absent.
    pub expires: Option<Timestamp>,
    /// What it is for.
    pub description: String,
}

/// What a secret says of a token; `None` when it is none.
pub fn token_info(secret: &v1::Secret) -> Option<TokenInfo> {
    let id = secret.metadata.name.as_deref()?.strip_prefix(NAME_PREFIX)?;
    if secret.type_.as_deref() != Some(TOKEN_TYPE) {
        return None;
    }
    // One that cannot be read is over: a token must not live for ever by a slip.
    let expires = text(secret, EXPIRATION).map(|at| at.parse().unwrap_or(Timestamp::UNIX_EPOCH));
    Some(TokenInfo {
        id: id.into(),
        expires,
        description: text(secret, "description").unwrap_or_default().into(),
    })
}

/// An expired token is kept for so long: whoever comes with it is told that it has expired, not that it never was.
const KEPT_SECONDS: i64 = 600;

/// Whether a token has been over for so long that it may go.
pub fn is_over_for_good(secret: &v1::Secret, now: Timestamp) -> bool {
    let expires = token_info(secret).and_then(|info| info.expires);
    expires.is_some_and(|at| now.as_second() - at.as_second() >= KEPT_SECONDS)
}

fn text<'a>(secret: &'a v1::Secret, key: &str) -> Option<&'a str> {
    let value = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(&value.0).ok()
}

/// What a machine asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Which token.
    pub token_id: &'a str,
    /// Its secret.
    pub secret: &'a str,
    /// The name it wants.
    pub name: &'a str,
    /// SHA-256 of its public key.
    pub key: [u8; 32],
}

/// Why it does not get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such token.
    TokenUnknown,
    /// Its time is over.
    TokenExpired,
    /// The name belongs to another key.
    NameTaken,
    /// The node is linked.
    NodeAlive,
}

/// Whether a machine may join: `token` is the secret of the token it names, `node` the node of the name it wants,
/// `linked` whether that is connected now.
///
/// # Errors
/// Why not, and a sentence that says what to do.
pub fn decide(
    asked: Asked<'_>,
    token: Option<&v1::Secret>,
    node: Option<&Arc<Object>>,
    linked: bool,
    now: Timestamp,
) -> Result<(), (Refusal, String)> {
    let known = token.and_then(|secret| {
        let info = token_info(secret).filter(|info| info.id == asked.token_id)?;
        let digest = secret_digest(asked.token_id, asked.secret);
        let good = text(secret, DIGEST) == Some(&digest) && secret.metadata.deletion_timestamp.is_none();
        good.then_some(info)
    });
    let Some(info) = known else {
        let text = "the cluster knows no such token: it was removed, or it is mistyped; `troupe token create` makes one";
        return Err((Refusal::TokenUnknown, text.into()));
    };
    if let Some(expires) = info.expires.filter(|expires| *expires <= now) {
        let text = format!("the token expired at {expires}; `troupe token create` makes a new one");
        return Err((Refusal::TokenExpired, text));
    }
    let Some(node) = node else { return Ok(()) };
    let name = asked.name;
    let whose = whose(node, asked.key);
    if whose != Whose::Asker {
        let text = match whose {
            Whose::Nobody => format!(
                "there is an object of a node {name} already, which was made by hand (kubectl create, apply) and not by a machine that \
                 joined: remove it (kubectl delete node {name}) and join again, which makes it; its labels and taints can be set after \
                 that. Or give this machine another --name"
            ),
            _ if linked => format!(
                "there is a node {name} already, with another key: another machine, which is linked at this moment; give this one \
                 another --name, or end that one and remove it first (kubectl delete node {name})"
            ),
            _ => format!(
                "there is a node {name} already, with another key: another machine, or this one with an earlier data directory; give \
                 this one another --name, or remove that one first if it does not come back (kubectl delete node {name})"
            ),
        };
        return Err((Refusal::NameTaken, text));
    }
    if linked {
        let text = format!("the node {name} is linked at this moment, and needs no token");
        return Err((Refusal::NodeAlive, text));
    }
    Ok(())
}

/// Who is meant by a node's object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// Who has this key.
    Asker,
    /// Another machine, or a node of the master's own process.
    Other,
    /// No machine: somebody wrote the object.
    Nobody,
}

fn whose(node: &Object, key: [u8; 32]) -> Whose {
    let Ok(node) = node.parse::<v1::Node>() else { return Whose::Other };
    match node.metadata.annotations.unwrap_or_default().get(NODE_KEY) {
        Some(of) if *of == hex(&key) => Whose::Asker,
        Some(_) => Whose::Other,
        // What runs has told its version.
        None => match node.status.and_then(|status| status.node_info).map(|info| info.kubelet_version) {
            Some(version) if !version.is_empty() => Whose::Other,
            _ => Whose::Nobody,
        },
    }
}

/// Whether a node's object is that of the node with this key.
pub fn belongs_to(node: &Object, key: [u8; 32]) -> bool {
    whose(node, key) == Whose::Asker
}

/// The annotations of a new node with this key.
pub fn key_annotation(key: [u8; 32]) -> BTreeMap<String, String> {
    [(NODE_KEY.to_owned(), hex(&key))].into()
}

/// Notes from where a node that joined is linked.
pub fn note_linked_from(node: &mut v1::Node, from: IpAddr) {
    node.metadata.annotations.get_or_insert_default().insert(LINKED_FROM.to_owned(), from.to_string());
}

/// From where a node that joined was linked last.
pub fn linked_from(node: &Object) -> Option<IpAddr> {
    let node: v1::Node = node.parse().ok()?;
    node.metadata.annotations?.get(LINKED_FROM)?.parse().ok()
}

/// A master's answer to who is no node any more; `node` is what there is under the name instead. It is cut to 256 bytes on its way.
pub fn not_a_node(name: &str, node: Option<&Object>, key: [u8; 32]) -> String {
    match node.map(|node| whose(node, key)) {
        None | Some(Whose::Asker) => {
            format!("the cluster has no node {name} with this key: it was deleted")
        }
        Some(Whose::Other) => format!(
            "the node {name} is another machine by now, with another key: kubectl delete node {name} first if that one is gone, or \
             have this one join under another --name with an empty --data-dir"
        ),
        Some(Whose::Nobody) => format!(
            "the node {name} was deleted, and its object made by hand, without a key: kubectl delete node {name} first"
        ),
    }
}

/// Refused joins from one address before it has to wait: a person mistypes less often, and a guess has 2^82 to go.
const FAILURES: u32 = 10;
/// For so long.
const WINDOW_MS: i64 = 60_000;
/// Addresses remembered. While all are recent, only those that have not failed yet are heard.
const ADDRESSES: usize = 1024;

/// Counts refused joins by address.
#[derive(Debug, Default)]
pub struct Attempts {
    failed: HashMap<IpAddr, (u32, i64)>,
}

impl Attempts {
    /// Whether a join from this address is to be looked at.
    pub fn permits(&self, from: IpAddr, now_ms: i64) -> bool {
        self.failed.get(&from).is_none_or(|(count, since)| *count < FAILURES || now_ms - since >= WINDOW_MS)
    }

    /// A join from this address was refused.
    pub fn failed(&mut self, from: IpAddr, now_ms: i64) {
        if self.failed.len() >= ADDRESSES {
            self.failed.retain(|_, (_, since)| now_ms - *since < WINDOW_MS);
        }
        if self.failed.len() >= ADDRESSES && !self.failed.contains_key(&from) {
            return;
        }
        let (count, since) = self.failed.entry(from).or_insert((0, now_ms));
        if now_ms - *since >= WINDOW_MS {
            (*count, *since) = (0, now_ms);
        }
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, Revision, seal_json};

    const SECRET: &str = "0123456789abcdef";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// As the store has it.
    fn stored(expires: Timestamp) -> v1::Secret {
        let token = JoinToken { id: "abcdef".into(), secret: SECRET.into(), pin: [0; 32] };
        let object = token_object(&token, expires, Some("rack 7"));
        let mut secret: v1::Secret = serde_json::from_value(object).unwrap();
        let data = secret.string_data.take().unwrap();
        let bytes = |text: String| k8s_openapi::ByteString(text.into_bytes());
        secret.data = Some(data.into_iter().map(|(key, value)| (key, bytes(value))).collect());
        secret
    }

    fn node(key: Option<[u8; 32]>) -> Arc<Object> {
        let annotations = key.map(key_annotation);
        let node = json!({"metadata": {"name": "n1", "uid": "u", "annotations": annotations,
            "creationTimestamp": "2030-01-01T00:00:00Z"}});
        Arc::new(seal_json(Kind::Node, node.to_string().as_bytes()).unwrap().at(Revision(1)))
    }

    #[test]
    fn a_token_goes_when_it_has_been_over_for_a_while_and_nothing_else_does() {
        for (expires, now, over) in [(100, 99, false), (100, 100, false), (100, 699, false), (100, 700, true)]
        {
            assert_eq!(is_over_for_good(&stored(at(expires)), at(now)), over, "{expires} {now}");
        }
        let mut forever = stored(at(100));
        forever.data.as_mut().unwrap().remove(EXPIRATION);
        assert!(!is_over_for_good(&forever, at(1_000_000)));
        let mut another = stored(at(100));
        another.type_ = Some("Opaque".into());
        assert!(!is_over_for_good(&another, at(1_000_000)), "it only has a token's name");
    }

    #[test]
    fn who_may_join_and_who_is_told_what() {
        let asked = Asked { token_id: "abcdef", secret: SECRET, name: "n1", key: [7; 32] };
        let good = stored(at(100));
        let mut other_type = stored(at(100));
        other_type.type_ = Some("Opaque".into());
        let mut going = stored(at(100));
        going.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(1)));
        let mut unreadable = stored(at(100));
        let data = unreadable.data.as_mut().unwrap();
        data.insert(EXPIRATION.into(), k8s_openapi::ByteString(b"tomorrow".to_vec()));
        let (mine, others, old) = (node(Some([7; 32])), node(Some([8; 32])), node(None));
        type Row<'a> =
            (&'a str, Asked<'a>, Option<&'a v1::Secret>, Option<&'a Arc<Object>>, bool, Option<Refusal>);
        let rows: [Row<'_>; 11] = [
            ("a new one", asked, Some(&good), None, false, None),
            ("again, as its answer was lost", asked, Some(&good), Some(&mine), false, None),
            ("a replay while it lives", asked, Some(&good), Some(&mine), true, Some(Refusal::NodeAlive)),
            ("another key", asked, Some(&good), Some(&others), false, Some(Refusal::NameTaken)),
            ("another key, alive", asked, Some(&good), Some(&others), true, Some(Refusal::NameTaken)),
            ("one made by hand", asked, Some(&good), Some(&old), false, Some(Refusal::NameTaken)),
            ("no token", asked, None, None, false, Some(Refusal::TokenUnknown)),
            (
                "a wrong secret",
                Asked { secret: "0123456789abcdeg", ..asked },
                Some(&good),
                None,
                false,
                Some(Refusal::TokenUnknown),
            ),
            ("another type", asked, Some(&other_type), None, false, Some(Refusal::TokenUnknown)),
            ("one being deleted", asked, Some(&going), None, false, Some(Refusal::TokenUnknown)),
            ("an unreadable end", asked, Some(&unreadable), None, false, Some(Refusal::TokenExpired)),
        ];
        for (what, asked, token, node, linked, refusal) in rows {
            let told = decide(asked, token, node, linked, at(50)).err().map(|(refusal, _)| refusal);
            assert_eq!(told, refusal, "{what}");
        }
        // What to do is said, and fits.
        let of_master =
            json!({"metadata": {"name": "n1", "uid": "u"}, "status": {"nodeInfo": {"kubeletVersion": "v1"}}});
        let of_master =
            Arc::new(seal_json(Kind::Node, of_master.to_string().as_bytes()).unwrap().at(Revision(1)));
        for (node, linked, says, sent_away) in [
            (&others, true, "another machine, which is linked at this moment", "is another machine by now"),
            (&others, false, "or this one with an earlier data directory", "is another machine by now"),
            (&old, false, "was made by hand", "made by hand"),
            (&of_master, false, "with another key", "is another machine by now"),
        ] {
            let (_, text) = decide(asked, Some(&good), Some(node), linked, at(50)).unwrap_err();
            let to_do = text.contains("--name") && text.contains("kubectl delete node n1");
            assert!(to_do && text.contains("already") && text.contains(says), "{text}");
            let text = not_a_node("n1", Some(node), asked.key);
            assert!(text.contains(sent_away) && text.contains("kubectl delete node n1"), "{text}");
            assert!(text.len() < 256, "{text}");
        }
        assert!(not_a_node("n1", None, asked.key).ends_with("it was deleted"));
        let late = decide(asked, Some(&good), None, false, at(100)).unwrap_err();
        assert_eq!(late.0, Refusal::TokenExpired);
        assert!(late.1.contains("1970-01-01T00:01:40Z"), "{}", late.1);
    }

    #[test]
    fn the_store_never_has_a_tokens_secret() {
        let token = JoinToken { id: "abcdef".into(), secret: SECRET.into(), pin: [0; 32] };
        let object = token_object(&token, at(100), None);
        assert!(!object.to_string().contains(SECRET));
        let info = token_info(&stored(at(100))).unwrap();
        assert_eq!(
            (info.id.as_str(), info.expires, info.description.as_str()),
            ("abcdef", Some(at(100)), "rack 7")
        );
    }

    #[test]
    fn who_fails_often_has_to_wait_and_nobody_else() {
        let mut attempts = Attempts::default();
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        for n in 0..FAILURES {
            assert!(attempts.permits(address(1), 0), "{n}");
            attempts.failed(address(1), 0);
        }
        assert!(!attempts.permits(address(1), WINDOW_MS - 1));
        assert!(attempts.permits(address(2), 0));
        assert!(attempts.permits(address(1), WINDOW_MS));
        attempts.failed(address(1), WINDOW_MS);
        assert!(attempts.permits(address(1), WINDOW_MS));
        for n in 2..100_000 {
            attempts.failed(address(n), WINDOW_MS);
        }
        assert!(attempts.failed.len() <= ADDRESSES);
    }
}
