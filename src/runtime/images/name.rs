//! Image names: one full form for every way to write a name.
//!
//! Owns: [`normalize`]. Invariant: its result is a fixed point (normalising again changes nothing), so full names can
//! be compared as text. The grammar is that of the OCI distribution specification as Docker and Kubernetes read it:
//! `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`; without a host `docker.io`, there without a directory `library`, without tag
//! and digest `latest`.

use super::{BUILTIN_IMAGE, pack::PAUSE_IMAGE};
use crate::runtime::RuntimeError;

/// Longest repository (host and path): the distribution specification's limit.
const MAX_REPOSITORY: usize = 255;
/// Longest tag: the distribution specification's limit.
const MAX_TAG: usize = 128;

/// The host that names without one belong to.
const DEFAULT_HOST: &str = "docker.io";
/// Its official images' directory.
const OFFICIAL: &str = "library";

/// Gives the full form of an image name: `busybox` → `docker.io/library/busybox:latest`.
pub fn normalize(name: &str) -> Result<String, RuntimeError> {
    parse(name).map_err(|why| RuntimeError::InvalidImageName(name.to_owned(), why))
}

/// The full form of a name that somebody gives to an image. Those of our own program are not to be had: pods that name them
/// mean it.
pub(super) fn given(name: &str) -> Result<String, RuntimeError> {
    let full = normalize(name)?;
    if full == BUILTIN_IMAGE || full == PAUSE_IMAGE {
        return Err(RuntimeError::InvalidImageName(
            name.to_owned(),
            "it is built in: no other image can have that name; choose another".to_owned(),
        ));
    }
    Ok(full)
}

fn parse(name: &str) -> Result<String, String> {
    const FORMAT: &str = "couldn't parse image name: invalid reference format";
    if name.is_empty() {
        return Err(FORMAT.into());
    }
    let (rest, digest) = match name.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (name, None),
    };
    if let Some(digest) = digest {
        check_digest(digest)?;
    }
    // A colon after the last slash begins a tag; before it, a port.
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (repository, tag) = match rest[slash..].rfind(':') {
        Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(format!("{FORMAT}: {tag:?} is not a tag"));
    }
    let (host, path) = match repository.split_once('/') {
        Some((first, path)) if is_host_like(first) => (first, path.to_owned()),
        _ => (DEFAULT_HOST, repository.to_owned()),
    };
    if !is_host(host) {
        return Err(format!("{FORMAT}: {host:?} is not a host"));
    }
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("{FORMAT}: repository name must be lowercase"));
    }
    if !path.split('/').all(is_path_component) {
        return Err(FORMAT.into());
    }
    let path = if host == DEFAULT_HOST && !path.contains('/') { format!("{OFFICIAL}/{path}") } else { path };
    if host.len() + 1 + path.len() > MAX_REPOSITORY {
        return Err(format!("repository name must not be more than {MAX_REPOSITORY} characters"));
    }
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => format!("{host}/{path}:{tag}@{digest}"),
        (None, Some(digest)) => format!("{host}/{path}@{digest}"),
        (tag, None) => format!("{host}/{path}:{}", tag.unwrap_or("latest")),
    })
}

/// The first part of a name is a host when it has a dot, a port or an uppercase letter, or is `localhost`.
fn is_host_like(part: &str) -> bool {
    part == "localhost" || part.contains(['.', ':']) || part.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || port.starts_with('+')) {
        return false;
    }
    if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        return v6.parse::<std::net::Ipv6Addr>().is_ok();
    }
    host.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// Lowercase letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().copied().is_some_and(alnum) || !bytes.last().copied().is_some_and(alnum) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|sep| matches!(sep, "" | "." | "_" | "__") || sep.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn check_digest(digest: &str) -> Result<(), String> {
    match digest.split_once(':') {
        Some(("sha256", hex)) if is_hex(hex, 64) => Ok(()),
        Some(("sha512", hex)) if is_hex(hex, 128) => Ok(()),
        _ => Err(format!("couldn't parse image name: invalid digest {digest:?}")),
    }
}

/// `len` lowercase hexadecimal digits.
pub(super) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A full name as engines take it: with a digest there is no tag.
pub fn engine_name(full: &str) -> String {
    let Some((named, digest)) = full.split_once('@') else { return full.to_owned() };
    format!("{}@{digest}", repository(named))
}

/// A full name without tag and digest.
pub fn repository(full: &str) -> &str {
    let named = full.split_once('@').map_or(full, |(named, _)| named);
    let slash = named.rfind('/').map_or(0, |at| at + 1);
    named[slash..].find(':').map_or(named, |colon| &named[..slash + colon])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_get_their_full_form() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let rows = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("library/busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("bitnami/nginx:1", "docker.io/bitnami/nginx:1"),
            ("troupe.local/hello", "troupe.local/hello:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest"),
        ];
        for (name, full) in rows {
            assert_eq!(normalize(name).unwrap(), full, "{name}");
        }
        assert_eq!(
            normalize(&format!("busybox@{digest}")).unwrap(),
            format!("docker.io/library/busybox@{digest}")
        );
        assert_eq!(normalize(&format!("r.io/a:v1@{digest}")).unwrap(), format!("r.io/a:v1@{digest}"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_kubernetes_words() {
        let long = "a".repeat(300);
        let rows = [
            "",
            ":",
            "/",
            "@",
            "a:",
            "a@",
            "Busybox",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a:b:c",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a:-x",
            "a@sha256:12",
            "a@md5:aa",
            "ä",
            "r.io:99999/a",
            "r..io/a",
            "../../etc/passwd",
            "[::g]:1/a",
            "r.io/",
            "a\0b",
            &long,
        ];
        for name in rows {
            let error = normalize(name).unwrap_err();
            assert!(matches!(error, RuntimeError::InvalidImageName(..)), "{name}");
        }
        let text = normalize("Bad Name").unwrap_err().to_string();
        assert!(text.starts_with("invalid image name \"Bad Name\": couldn't parse image name"), "{text}");
    }

    proptest! {
        #[test]
        fn normalising_never_panics_and_is_a_fixed_point(name in "\\PC{0,40}") {
            if let Ok(full) = normalize(&name) {
                prop_assert_eq!(normalize(&full).unwrap(), full);
            }
        }

        #[test]
        fn nearly_right_names_reach_a_fixed_point(name in "([a-zA-Z.:\\[\\]0-9-]{0,8}/)?[a-z._/-]{1,9}(:[a-z0-9.@]{0,5})?") {
            if let Ok(full) = normalize(&name) {
                prop_assert_eq!(normalize(&full).unwrap(), full);
            }
        }
    }

    #[test]
    fn the_engine_gets_names_without_tag_beside_a_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (full, name) in [
            ("docker.io/library/a:1".to_owned(), "docker.io/library/a:1".to_owned()),
            (format!("r.io:5000/a:1@{digest}"), format!("r.io:5000/a@{digest}")),
            (format!("r.io:5000/a@{digest}"), format!("r.io:5000/a@{digest}")),
        ] {
            assert_eq!(engine_name(&full), name);
        }
    }
}
