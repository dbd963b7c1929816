//! Join tokens: what a machine must know to become a node.
//!
//! Owns: [`JoinToken`], its text `ID.SECRET.PIN`, and the digest under which a master keeps its secret. The first two
//! parts are a bootstrap token as kubeadm's (six and sixteen characters of `a-z0-9`, the id is public); the pin is the
//! SHA-256 of the cluster authority's public key in hexadecimal, so that who joins knows the master before it says a word.
//! Invariant: a secret is never printed by `Debug`, and nothing here keeps one.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

const ID: usize = 6;
const SECRET: usize = 16;
const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which token; not secret.
    pub id: String,
    /// What proves it: 82 bits.
    pub secret: String,
    /// SHA-256 of the SubjectPublicKeyInfo of the cluster's authority.
    pub pin: [u8; 32],
}

impl JoinToken {
    /// A new token; `random` yields a number that nobody can guess each time.
    pub fn generate(pin: [u8; 32], mut random: impl FnMut() -> u32) -> JoinToken {
        let mut word = |length: usize| -> String {
            let letter = |n: u32| LETTERS.get(n as usize % LETTERS.len()).copied().unwrap_or(b'a');
            (0..length).map(|_| char::from(letter(random()))).collect()
        };
        JoinToken { id: word(ID), secret: word(SECRET), pin }
    }
}

/// The digest of a token's secret, in hexadecimal: what a master keeps of it.
pub fn secret_digest(id: &str, secret: &str) -> String {
    hex(&Sha256::digest(format!("troupe join token {id}.{secret}")))
}

/// Whether `id` can be a token's.
pub fn is_id(id: &str) -> bool {
    is_word(id, ID)
}

/// Bytes as lowercase hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_word(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| LETTERS.contains(&byte))
}

/// The digest that 64 hexadecimal digits say.
pub fn pin_of(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut pin = [0; 32];
    for (at, byte) in pin.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(pin)
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a join token: it has the form ID.SECRET.PIN; `troupe token create` on the master's machine prints one"
)]
pub struct NoToken;

impl FromStr for JoinToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<JoinToken, NoToken> {
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoToken);
        };
        let pin = pin_of(pin).ok_or(NoToken)?;
        if !is_word(id, ID) || !is_word(secret, SECRET) {
            return Err(NoToken);
        }
        Ok(JoinToken { id: id.into(), secret: secret.into(), pin })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, hex(&self.pin))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_from_its_text_and_is_not_printed_whole() {
        let mut next = 0;
        let token = JoinToken::generate([0xab; 32], || {
            next += 7;
            next
        });
        let text = token.to_string();
        assert_eq!(text.len(), 6 + 1 + 16 + 1 + 64);
        assert_eq!(text.parse::<JoinToken>(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse::<JoinToken>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let good = format!("abcdef.0123456789abcdef.{}", "0".repeat(64));
        assert!(good.parse::<JoinToken>().is_ok());
        for bad in [
            String::new(),
            "abcdef.0123456789abcdef".into(),
            format!("{good}.x"),
            good.replace("abcdef.", "Abcdef."),
            good.replace("abcdef.", "abcde."),
            good.replace("000", "00g"),
            good.replace("0000", "00é0"),
            format!("abcdef.0123456789abcdef.{}", "+0".repeat(32)),
        ] {
            assert_eq!(bad.parse::<JoinToken>(), Err(NoToken), "{bad}");
        }
    }

    #[test]
    fn the_digest_depends_on_id_and_secret() {
        let one = secret_digest("abcdef", "0123456789abcdef");
        assert_eq!(one.len(), 64);
        assert_ne!(one, secret_digest("abcdeg", "0123456789abcdef"));
        assert_ne!(one, secret_digest("abcdef", "0123456789abcdeg"));
    }
}
