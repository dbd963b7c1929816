//! The key for service accounts' tokens, from its file to those who sign and verify.

use std::sync::Arc;

use crate::{
    logic::tokens::SigningKey,
    net::{NetError, TokenKey},
};

/// What signs and verifies with a key.
///
/// # Errors
/// When the key is not of the kind that tokens are signed with.
pub(super) fn signing(key: TokenKey) -> Result<Arc<SigningKey>, NetError> {
    Ok(Arc::new(SigningKey::new(key.point()?, Arc::new(move |bytes| key.sign(bytes)))))
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        logic::tokens::{Claims, Rejected, Wish, claims},
        model::{Key, Kind, Revision, Snapshot, seal_json},
    };

    fn key() -> Arc<SigningKey> {
        signing(TokenKey::ephemeral().unwrap()).unwrap()
    }

    fn said() -> Claims {
        let mut snapshot = Snapshot::default();
        let account = json!({"metadata": {"name": "robot", "namespace": "ns", "uid": "u"}});
        let key = Key::new(Kind::ServiceAccount, "ns", "robot");
        let sealed = seal_json(key.kind, account.to_string().as_bytes()).unwrap();
        snapshot.insert(Arc::new(sealed.at(Revision(1))));
        claims("ns", "robot", &Wish::default(), &snapshot, 1_700_000_000, "id".into()).unwrap().0
    }

    #[test]
    fn only_the_clusters_own_key_makes_tokens() {
        let (ours, theirs, claims) = (key(), key(), said());
        let token = ours.sign(&claims).unwrap();
        assert_eq!(ours.verify(&token), Ok(claims.clone()));
        assert_eq!(theirs.verify(&token), Err(Rejected::Forged));
        let parts: Vec<&str> = token.split('.').collect();
        let encode = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        // Other claims, no signature, the algorithm "none", and what is no token at all.
        let mut admin = serde_json::to_value(&claims).unwrap();
        admin["sub"] = "system:admin".into();
        let forged = format!("{}.{}.{}", parts[0], encode(admin), parts[2]);
        assert_eq!(ours.verify(&forged), Err(Rejected::Forged));
        assert_eq!(ours.verify(&format!("{}.{}.", parts[0], parts[1])), Err(Rejected::Forged));
        let none = encode(json!({"alg": "none", "kid": ""}));
        assert_eq!(ours.verify(&format!("{none}.{}.", parts[1])), Err(Rejected::Forged));
        for nonsense in ["", "a", "a.b", "a.b.c", "..", "é.é.é"] {
            assert_eq!(ours.verify(nonsense), Err(Rejected::NoToken), "{nonsense}");
        }
    }

    #[test]
    fn whoever_has_the_public_key_can_verify_what_was_signed() {
        use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
        let ours = key();
        let token = ours.sign(&said()).unwrap();
        let set = ours.key_set();
        let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(set["keys"][0][name].as_str().unwrap()).unwrap();
        let point = [vec![4], coordinate("x"), coordinate("y")].concat();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
            .unwrap();
    }
}
