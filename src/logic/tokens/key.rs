//! The cluster's key for tokens: JSON Web Signatures, ES256.
//!
//! Owns: making a token of claims and claims of a token (RFC 7515, RFC 7518 3.4). Pure: what signs, which takes chance, is
//! an argument. Invariant: no claim is read of a token whose signature is not this key's. Limits: one key, no rotation.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Claims, Rejected};

/// The signature algorithm's name.
pub const ALGORITHM: &str = "ES256";
/// What precedes a point of P-256 in a `SubjectPublicKeyInfo`.
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Signs bytes: the two numbers of an ECDSA signature over P-256 and SHA-256, 32 bytes each.
pub type Sign = Arc<dyn Fn(&[u8]) -> Result<Vec<u8>, String> + Send + Sync>;

/// A token could not be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot sign a token: {0}")]
pub struct Unsigned(String);

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

/// Signs tokens, and knows its own.
pub struct SigningKey {
    sign: Sign,
    /// The public half: 4, then the point's coordinates of 32 bytes each.
    point: [u8; 65],
    /// Of the public half: SHA-256 of its `SubjectPublicKeyInfo`, as Kubernetes names keys.
    id: String,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Of the public half, and what signs with the private one.
    pub fn new(point: [u8; 65], sign: Sign) -> SigningKey {
        let spki = [&SPKI_PREFIX[..], &point].concat();
        SigningKey { id: URL_SAFE_NO_PAD.encode(Sha256::digest(spki)), point, sign }
    }

    /// A token that says this.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn sign(&self, claims: &Claims) -> Result<String, Unsigned> {
        let header = Header { alg: ALGORITHM.into(), kid: self.id.clone() };
        let part = |json: Result<Vec<u8>, serde_json::Error>| {
            json.map(|json| URL_SAFE_NO_PAD.encode(json)).map_err(|why| Unsigned(why.to_string()))
        };
        let signed = format!("{}.{}", part(serde_json::to_vec(&header))?, part(serde_json::to_vec(claims))?);
        let signature = (self.sign)(signed.as_bytes()).map_err(Unsigned)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// What a token says, if this key signed it.
    ///
    /// # Errors
    /// When it is no token, or another's.
    pub fn verify(&self, token: &str) -> Result<Claims, Rejected> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Rejected::NoToken)?;
        let (header, claims) = signed.split_once('.').ok_or(Rejected::NoToken)?;
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejected::NoToken);
        let header: Header = serde_json::from_slice(&bytes(header)?).map_err(|_| Rejected::NoToken)?;
        if header.alg != ALGORITHM || header.kid != self.id {
            return Err(Rejected::Forged);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point[..])
            .verify(signed.as_bytes(), &bytes(signature)?)
            .map_err(|_| Rejected::Forged)?;
        serde_json::from_slice(&bytes(claims)?).map_err(|_| Rejected::NoToken)
    }

    /// The public half as a JSON Web Key Set, for those who verify tokens by themselves.
    pub fn key_set(&self) -> Value {
        let (x, y) = self.point[1..].split_at(32);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": ALGORITHM,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }] })
    }
}
