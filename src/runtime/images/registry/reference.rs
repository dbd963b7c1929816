//! An image's full name taken apart: which registry, which repository there, which of its images.

/// A full name, as [`normalize`](super::super::normalize) gives it, in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// `registry.example:5000`.
    pub(super) host: String,
    /// `team/app`.
    pub(super) repository: String,
    /// The tag or, before it, the digest.
    pub(super) wanted: String,
    /// Whether `wanted` is a digest.
    pub(super) by_digest: bool,
}

impl Reference {
    /// `None` for what is no full name.
    pub(super) fn parse(full: &str) -> Option<Reference> {
        let (rest, digest) = match full.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (full, None),
        };
        let (host, path) = rest.split_once('/')?;
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (path, None),
        };
        Some(Reference {
            host: host.to_owned(),
            repository: repository.to_owned(),
            // A digest says it all; a tag beside it is decoration, for Docker and containerd, too.
            wanted: digest.or(tag)?.to_owned(),
            by_digest: digest.is_some(),
        })
    }

    /// The host that serves the registry: Docker Hub's is not the one in its images' names.
    pub(super) fn server(&self) -> &str {
        if self.host == "docker.io" { "registry-1.docker.io" } else { &self.host }
    }
}

/// Whether a host (with or without port) is this machine itself, by name or address.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = without_port(host);
    name == "localhost"
        || name.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `host:5000` → `host`, `[::1]:5000` → `[::1]`.
pub(super) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, _)) if !host.ends_with(']') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_are_taken_apart() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (full, host, repository, wanted) in [
            ("docker.io/library/busybox:1.36".to_owned(), "docker.io", "library/busybox", "1.36"),
            ("localhost:5000/a/b/c:v1".to_owned(), "localhost:5000", "a/b/c", "v1"),
            ("[::1]:5000/a:latest".to_owned(), "[::1]:5000", "a", "latest"),
            (format!("r.io/a@{digest}"), "r.io", "a", digest.as_str()),
            (format!("r.io:1/a:v1@{digest}"), "r.io:1", "a", digest.as_str()),
        ] {
            let reference = Reference::parse(&full).unwrap();
            let parts = (&*reference.host, &*reference.repository, &*reference.wanted);
            assert_eq!(parts, (host, repository, wanted), "{full}");
            assert_eq!(reference.by_digest, full.contains('@'));
        }
        assert_eq!(Reference::parse("docker.io/a/b:1").unwrap().server(), "registry-1.docker.io");
        assert!(Reference::parse("nonsense").is_none());
    }

    #[test]
    fn this_machine_is_known_by_its_names() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:1", "127.8.9.1", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["example.org", "localhost.example.org", "10.0.0.1:5000", "[2001:db8::1]:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
