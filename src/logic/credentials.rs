//! Which credentials are for an image: Docker's configuration files and Kubernetes' pull secrets.
//!
//! Owns: [`Keyring`], and how a registry's entry matches an image (as Kubernetes' kubelet matches: by host, port and
//! path, `*` within a host's parts, the longest entry first; Docker Hub's under its historic names). Pure. Leaves out
//! credential helpers: an entry without a password is none.

use std::collections::BTreeMap;

use base64::Engine as _;
use k8s_openapi::api::core::v1;
use serde::Deserialize;

/// Docker Hub's names in such files; its images' host is the first.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Credentials by registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    /// Where (`host[:port][/path]`) and who.
    entries: Vec<(String, Credentials)>,
    /// Registries whose passwords are kept elsewhere, and credential helpers.
    elsewhere: Vec<String>,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(rename = "credsStore")]
    creds_store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Keyring {
    /// Of Docker's `config.json`, which is also a `kubernetes.io/dockerconfigjson` secret's content.
    ///
    /// # Errors
    /// What is wrong with it; never what is in it.
    pub fn of_config(json: &[u8]) -> Result<Keyring, String> {
        let file: ConfigFile = serde_json::from_slice(json).map_err(|e| shape(&e))?;
        let mut keyring = Keyring::of_entries(file.auths)?;
        keyring.elsewhere.extend(file.creds_store.into_iter().chain(file.cred_helpers.into_keys()));
        Ok(keyring)
    }

    /// Of the older `.dockercfg`: the entries alone.
    ///
    /// # Errors
    /// As [`Keyring::of_config`].
    pub fn of_dockercfg(json: &[u8]) -> Result<Keyring, String> {
        Keyring::of_entries(serde_json::from_slice(json).map_err(|e| shape(&e))?)
    }

    /// Of a pull secret.
    ///
    /// # Errors
    /// When the secret is of no kind that has credentials, or as [`Keyring::of_config`].
    pub fn of_secret(secret: &v1::Secret) -> Result<Keyring, String> {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let data = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
        let read = match secret.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => {
                data(".dockerconfigjson").map(|json| Keyring::of_config(&json.0))
            }
            Some("kubernetes.io/dockercfg") => data(".dockercfg").map(|json| Keyring::of_dockercfg(&json.0)),
            other => {
                return Err(format!(
                    "secret {name}: type {:?} is no pull secret's",
                    other.unwrap_or("Opaque")
                ));
            }
        };
        read.unwrap_or_else(|| Err("no data".into())).map_err(|why| format!("secret {name}: {why}"))
    }

    fn of_entries(entries: BTreeMap<String, Entry>) -> Result<Keyring, String> {
        let mut keyring = Keyring::default();
        for (registry, entry) in entries {
            match credentials(&entry).map_err(|why| format!("{registry}: {why}"))? {
                Some(credentials) => keyring.entries.push((place(&registry), credentials)),
                None => keyring.elsewhere.push(registry),
            }
        }
        // Longest first: what is said of a path counts before what is said of its host.
        keyring.entries.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        Ok(keyring)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What it refers to and does not hold: credential helpers, and registries whose passwords those keep.
    pub fn elsewhere(&self) -> &[String] {
        &self.elsewhere
    }

    /// The credentials to try for an image (its full name, `docker.io/library/busybox:latest`), best first.
    pub fn find(&self, full_name: &str) -> Vec<&Credentials> {
        let mut found: Vec<&Credentials> = Vec::new();
        for (place, credentials) in &self.entries {
            if matches(place, full_name) && !found.contains(&credentials) {
                found.push(credentials);
            }
        }
        found
    }
}

fn shape(error: &serde_json::Error) -> String {
    // serde's own text may quote values.
    format!("not the JSON that it should be (line {}, column {})", error.line(), error.column())
}

/// An entry's user; `None` for an entry without one, as credential helpers leave.
fn credentials(entry: &Entry) -> Result<Option<Credentials>, String> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if given(&entry.identitytoken).is_some() {
        // Good for a token only, not for a password.
        return Ok(None);
    }
    let Some(auth) = given(&entry.auth) else {
        let pair = given(&entry.username).zip(given(&entry.password));
        return Ok(pair.map(|(username, password)| Credentials { username, password }));
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth.trim());
    let text = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let (username, password) =
        text.as_deref().and_then(|text| text.split_once(':')).ok_or("auth is not base64 of USER:PASSWORD")?;
    // Some tools pad with zero bytes.
    let password = password.trim_end_matches('\0');
    Ok(Some(Credentials { username: username.to_owned(), password: password.to_owned() }))
}

/// `https://index.docker.io/v1/` → `index.docker.io`.
fn place(registry: &str) -> String {
    let rest =
        registry.strip_prefix("https://").or_else(|| registry.strip_prefix("http://")).unwrap_or(registry);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = match path.split_once('/') {
        Some(("v1" | "v2", path)) => path,
        None if matches!(path, "v1" | "v2") => "",
        _ => path,
    };
    let path = path.trim_end_matches('/');
    let host = host.to_ascii_lowercase();
    if path.is_empty() { host } else { format!("{host}/{path}") }
}

fn matches(place: &str, full_name: &str) -> bool {
    let (place_host, place_path) = place.split_once('/').unwrap_or((place, ""));
    let Some((host, rest)) = full_name.split_once('/') else { return false };
    let repository = rest.split(['@', ':']).next().unwrap_or(rest);
    let same_host = if host == HUB[0] { HUB.contains(&place_host) } else { host_matches(place_host, host) };
    let below = repository
        .strip_prefix(place_path)
        .is_some_and(|tail| place_path.is_empty() || tail.is_empty() || tail.starts_with('/'));
    same_host && below
}

/// `*` stands for any text within one part of a host's name, `*.example.org`.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (pattern, pattern_port) = port(pattern);
    let (name, host_port) = port(host);
    let (pattern, name): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), name.split('.').collect());
    pattern_port == host_port
        && pattern.len() == name.len()
        && pattern.iter().zip(name).all(|(pattern, part)| glob(pattern, &part.to_ascii_lowercase()))
}

fn port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(head) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| glob(tail, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn keyring(registries: &[&str]) -> Keyring {
        let entry = |registry: &&str| {
            let auth = base64::engine::general_purpose::STANDARD.encode(format!("{registry}:pw"));
            ((*registry).to_owned(), json!({ "auth": auth }))
        };
        let auths: serde_json::Map<String, Value> = registries.iter().map(entry).collect();
        Keyring::of_config(json!({ "auths": auths }).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn an_entry_is_for_the_images_below_it() {
        for (registry, image, fits) in [
            ("https://index.docker.io/v1/", "docker.io/library/busybox:latest", true),
            ("index.docker.io", "docker.io/library/busybox:latest", true),
            ("docker.io", "docker.io/team/app:1", true),
            ("https://registry-1.docker.io/v2/", "docker.io/team/app:1", true),
            ("docker.io/team", "docker.io/team/app:1", true),
            ("docker.io/team", "docker.io/library/app:1", false),
            ("https://index.docker.io/v1/", "quay.io/a/b:1", false),
            ("r.io", "r.io/a/b:1", true),
            ("https://r.io", "r.io/a:1", true),
            ("http://r.io/v2/", "r.io/a:1", true),
            ("R.io", "r.io/a:1", true),
            ("r.io:5000", "r.io:5000/a:1", true),
            ("r.io", "r.io:5000/a:1", false),
            ("r.io:5000", "r.io/a:1", false),
            ("[::1]:5000", "[::1]:5000/a:1", true),
            ("r.io/team", "r.io/team:1", true),
            ("r.io/team", "r.io/team/app@sha256:00", true),
            ("r.io/team/", "r.io/team/app:1", true),
            ("r.io/team", "r.io/teams/app:1", false),
            ("r.io/team/app", "r.io/team/other:1", false),
            ("*.r.io", "eu.r.io/a:1", true),
            ("*.r.io", "r.io/a:1", false),
            ("*.r.io", "a.b.r.io/a:1", false),
            ("prefix-*.r.io:5000/x", "prefix-eu.r.io:5000/x/a:1", true),
            ("*.dkr.*.amazonaws.com", "1.dkr.eu.amazonaws.com/a:1", true),
        ] {
            assert_eq!(keyring(&[registry]).find(image).len(), usize::from(fits), "{registry} for {image}");
        }
    }

    #[test]
    fn the_closest_entry_comes_first() {
        let all = keyring(&["r.io", "r.io/team/app", "r.io/team", "other.io"]);
        let users: Vec<&str> = all.find("r.io/team/app:1").iter().map(|c| c.username.as_str()).collect();
        assert_eq!(users, ["r.io/team/app", "r.io/team", "r.io"]);
        assert!(all.find("nobody.io/a:1").is_empty());
    }

    #[test]
    fn users_are_read_however_they_are_written() {
        let read = |entry: Value| {
            let json = json!({"auths": {"r.io": entry}}).to_string();
            Keyring::of_config(json.as_bytes()).map(|keyring| {
                keyring.find("r.io/a:1").first().map(|c| format!("{}/{}", c.username, c.password))
            })
        };
        assert_eq!(read(json!({"auth": "YW5uOnB3OngK"})).unwrap().as_deref(), Some("ann/pw:x\n"));
        assert_eq!(read(json!({"username": "ann", "password": "pw"})).unwrap().as_deref(), Some("ann/pw"));
        assert_eq!(read(json!({})).unwrap(), None, "a credential helper's entry");
        assert_eq!(read(json!({"auth": "YW5uOg==", "identitytoken": "t"})).unwrap(), None);
        let config = br#"{"auths": {"r.io": {}}, "credsStore": "pass", "credHelpers": {"e.io": "ecr"}}"#;
        assert_eq!(Keyring::of_config(config).unwrap().elsewhere(), ["r.io", "pass", "e.io"]);
        for wrong in [json!({"auth": "!!"}), json!({"auth": "YW5u"})] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains("r.io: auth is not base64"), "{error}");
        }
        let error = Keyring::of_config(br#"{"auths": {"r.io": {"auth": 12345}}}"#).unwrap_err();
        assert!(error.contains("line 1") && !error.contains("12345"), "{error}");
        assert!(Keyring::of_config(b"{}").unwrap().is_empty());
    }

    #[test]
    fn pull_secrets_of_both_kinds_are_read_and_others_named() {
        let secret = |kind: &str, key: &str, json: &str| v1::Secret {
            metadata: serde_json::from_value(json!({"name": "s"})).unwrap(),
            type_: Some(kind.into()),
            data: Some([(key.to_owned(), ByteString(json.as_bytes().to_vec()))].into()),
            ..v1::Secret::default()
        };
        let entries = r#"{"r.io": {"username": "ann", "password": "pw"}}"#;
        let config = format!(r#"{{"auths": {entries}}}"#);
        for good in [
            secret("kubernetes.io/dockerconfigjson", ".dockerconfigjson", &config),
            secret("kubernetes.io/dockercfg", ".dockercfg", entries),
        ] {
            assert_eq!(Keyring::of_secret(&good).unwrap().find("r.io/a:1").len(), 1);
        }
        for (bad, why) in [
            (secret("Opaque", "a", ""), "secret s: type \"Opaque\""),
            (secret("kubernetes.io/dockercfg", "a", entries), "secret s: no data"),
            (secret("kubernetes.io/dockercfg", ".dockercfg", "{"), "secret s: not the JSON"),
        ] {
            let error = Keyring::of_secret(&bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn matching_never_panics(registry in "\\PC{0,20}", image in "\\PC{0,20}") {
            let _ = keyring(&[&registry]).find(&image);
        }
    }
}
