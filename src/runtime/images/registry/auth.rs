//! Who may pull: a registry's challenge and what answers it.
//!
//! Owns: reading `WWW-Authenticate` (RFC 9110, as the distribution specification's token protocol uses it) and the
//! token service's address and answer. Pure; the requests are [`super::session`]'s.

use base64::Engine as _;
use serde::Deserialize;

use crate::runtime::RegistryAuth;

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from a service.
    Bearer {
        /// The service's address.
        realm: String,
        /// The registry's name there.
        service: Option<String>,
        /// What the token is to be good for.
        scope: Option<String>,
    },
}

/// The challenge to answer among those of a response: tokens before passwords.
pub(super) fn challenge<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Challenge> {
    let all: Vec<Challenge> = headers.into_iter().flat_map(parse).collect();
    let mut best = None;
    for challenge in all {
        match challenge {
            Challenge::Bearer { .. } => return Some(challenge),
            Challenge::Basic => best = Some(challenge),
        }
    }
    best
}

/// The `Authorization` of a user.
pub(super) fn basic(auth: &RegistryAuth) -> String {
    let pair = format!("{}:{}", auth.username, auth.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// Where to get a token.
pub(super) fn token_url(realm: &str, service: Option<&str>, scope: &str) -> String {
    let mut url = realm.to_owned();
    let mut separator = if realm.contains('?') { '&' } else { '?' };
    for (name, value) in [("service", service), ("scope", Some(scope))] {
        if let Some(value) = value {
            url.push(separator);
            url.push_str(name);
            url.push('=');
            encode(value, &mut url);
            separator = '&';
        }
    }
    url
}

/// The token in a token service's answer.
pub(super) fn token(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    answer.token.or(answer.access_token).filter(|token| !token.is_empty())
}

/// Percent-encodes what has a meaning in a query.
fn encode(text: &str, into: &mut String) {
    use std::fmt::Write as _;
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,*".contains(&byte) {
            into.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(into, "%{byte:02X}");
        }
    }
}

/// The challenges in one header: `Bearer realm="…",service="…", Basic realm="…"`.
fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut current: Option<(String, Vec<(String, String)>)> = None;
    let mut rest = header.trim_start_matches([' ', ',', '\t']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        rest = match after.strip_prefix('=') {
            Some(value) => {
                let (value, after) = take_value(value);
                if let Some((_, params)) = &mut current {
                    params.push((word.to_ascii_lowercase(), value));
                }
                after
            }
            None => {
                found.extend(current.replace((word.to_ascii_lowercase(), Vec::new())).and_then(known));
                after
            }
        };
        rest = rest.trim_start_matches([' ', ',', '\t']);
    }
    found.extend(current.and_then(known));
    found
}

/// A parameter's value, quoted or not, and what follows it.
fn take_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn known((scheme, params): (String, Vec<(String, String)>)) -> Option<Challenge> {
    let param = |name: &str| params.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    match scheme.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: param("realm")?,
            service: param("service"),
            scope: param("scope"),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Some(Challenge::Bearer { realm: realm.into(), service: owned(service), scope: owned(scope) })
        };
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull""#;
        for (headers, expected) in [
            (
                vec![hub],
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/a:pull"),
                ),
            ),
            (vec![r#"Basic realm="Registry Realm""#], Some(Challenge::Basic)),
            (vec!["basic"], Some(Challenge::Basic)),
            (
                vec![r#"Basic realm="a", Bearer realm=https://t , scope="x y""#],
                bearer("https://t", None, Some("x y")),
            ),
            (vec![r#"Basic realm="a""#, r#"BEARER Realm="https://t""#], bearer("https://t", None, None)),
            (vec![r#"Bearer realm="a\"b""#], bearer("a\"b", None, None)),
            (vec![r#"Negotiate, Digest realm="x""#], None),
            (vec!["Bearer service=\"no realm\""], None),
            (vec![""], None),
        ] {
            assert_eq!(challenge(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_token_is_asked_for_and_found() {
        assert_eq!(
            token_url("https://t/token", Some("my registry"), "repository:a/b:pull"),
            "https://t/token?service=my%20registry&scope=repository:a/b:pull"
        );
        assert_eq!(token_url("https://t/?x=1", None, "a&b"), "https://t/?x=1&scope=a%26b");
        assert_eq!(token(br#"{"token": "abc"}"#).as_deref(), Some("abc"));
        assert_eq!(token(br#"{"access_token": "abc", "expires_in": 3}"#).as_deref(), Some("abc"));
        assert_eq!(token(br#"{"token": ""}"#), None);
        assert_eq!(token(b"<html>"), None);
        let auth = RegistryAuth { username: "Aladdin".into(), password: "open sesame".into() };
        assert_eq!(basic(&auth), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    proptest! {
        #[test]
        fn reading_a_challenge_never_panics_and_ends(header in "\\PC{0,60}") {
            let _ = challenge([header.as_str()]);
        }
    }
}
