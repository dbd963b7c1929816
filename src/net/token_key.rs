//! The key that signs service accounts' tokens.
//!
//! Owns: its file `sa.key` and what needs chance: making it and signing with it. It is not the authority's: whoever has it
//! cannot pass as a node. What a token says is not known here. Invariant: as for `ca.key`, 0600 from its first byte.

use std::path::Path;

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};

use super::{
    NetError,
    identity::{generate, parse_key, read, unusable, write_atomically},
};

/// An ECDSA key over P-256.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl TokenKey {
    /// The key in `directory` (which must exist): loaded from `sa.key`, or made and kept there.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no such key.
    pub fn open(directory: &Path) -> Result<TokenKey, NetError> {
        let path = directory.join("sa.key");
        let key = match read(&path)? {
            Some(pem) => parse_key("sa.key", &pem)?,
            None => {
                let key = generate()?;
                write_atomically(&path, key.serialize_pem().as_bytes(), 0o600)?;
                key
            }
        };
        TokenKey::of(&key.serialize_der())
    }

    /// A key that is kept nowhere: for tests and throw-away clusters.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn ephemeral() -> Result<TokenKey, NetError> {
        TokenKey::of(&generate()?.serialize_der())
    }

    fn of(document: &[u8]) -> Result<TokenKey, NetError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document, &random);
        Ok(TokenKey { pair: pair.map_err(unusable("sa.key"))?, random })
    }

    /// The public half: 4, then the point's coordinates of 32 bytes each.
    ///
    /// # Errors
    /// When the key is on another curve.
    pub fn point(&self) -> Result<[u8; 65], NetError> {
        self.pair.public_key().as_ref().try_into().map_err(unusable("sa.key"))
    }

    /// The two numbers of a signature, 32 bytes each.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let signature = self.pair.sign(&self.random, bytes).map_err(|why| why.to_string())?;
        Ok(signature.as_ref().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_kept_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let point = TokenKey::open(dir.path()).unwrap().point().unwrap();
        assert_eq!(TokenKey::open(dir.path()).unwrap().point().unwrap(), point);
        let file = dir.path().join("sa.key");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "no key").unwrap();
        let error = TokenKey::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("sa.key"), "{error}");
    }
}
