//! The way to registries through a proxy: `HTTPS_PROXY` and `NO_PROXY`, as curl, Docker and Go read them.
//!
//! Owns: whether a host is reached through a proxy ([`Proxy::for_host`], pure) and the tunnel ([`tunnel`]). Loopback is
//! always reached directly, and so is whatever is spoken to without TLS.

use std::io;

use base64::Engine as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::reference::{is_loopback, without_port};

/// The longest answer of a proxy that is read before the tunnel begins.
const MAX_HEAD: usize = 8 * 1024;

/// A proxy that makes tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proxy {
    /// `proxy.example:3128`.
    pub(super) address: String,
    /// `Proxy-Authorization`.
    authorization: Option<String>,
}

impl Proxy {
    /// The proxy for a host (`name:port`), if `variable` names one. An error names the variable.
    pub(super) fn for_host(
        host: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Proxy>, String> {
        let either = |upper: &str, lower: &str| variable(upper).or_else(|| variable(lower));
        let Some(url) = either("HTTPS_PROXY", "https_proxy").filter(|url| !url.is_empty()) else {
            return Ok(None);
        };
        let without = either("NO_PROXY", "no_proxy").unwrap_or_default();
        if is_loopback(host) || without.split(',').any(|entry| excepts(entry.trim(), host)) {
            return Ok(None);
        }
        Proxy::parse(&url).map(Some)
    }

    fn parse(url: &str) -> Result<Proxy, String> {
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            None => url,
            // What follows may have a password in it.
            Some((scheme, _)) => {
                return Err(format!("HTTPS_PROXY: {scheme}:// is not supported: use http://HOST:PORT"));
            }
        };
        let rest = rest.split(['/', '?']).next().unwrap_or(rest);
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        if address.is_empty() {
            return Err("HTTPS_PROXY names no host: use http://HOST:PORT".to_owned());
        }
        let address =
            if without_port(address) == address { format!("{address}:80") } else { address.to_owned() };
        let encode = |user: &str| base64::engine::general_purpose::STANDARD.encode(decoded(user));
        Ok(Proxy { address, authorization: user.map(|user| format!("Basic {}", encode(user))) })
    }
}

/// `%40` → `@`.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Whether an entry of `NO_PROXY` means a host: itself, with or without its port, or what is below it.
fn excepts(entry: &str, host: &str) -> bool {
    let (entry, host) = (entry.to_ascii_lowercase(), host.to_ascii_lowercase());
    let name = without_port(&host);
    let bare = entry.trim_start_matches("*.").trim_start_matches('.');
    match entry.as_str() {
        "" => false,
        "*" => true,
        _ if bare == host || bare == name => true,
        _ => name.strip_suffix(bare).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// Has the proxy connect a stream to a host (`name:port`).
pub(super) async fn tunnel(proxy: &Proxy, host: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(&proxy.address).await?;
    let authorization =
        proxy.authorization.as_ref().map(|a| format!("Proxy-Authorization: {a}\r\n")).unwrap_or_default();
    let request = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{authorization}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        // Byte by byte: what follows the head is the tunnel's.
        head.push(stream.read_u8().await?);
        if head.len() > MAX_HEAD {
            return Err(io::Error::other("the proxy's answer is too long"));
        }
    }
    let head = String::from_utf8_lossy(&head);
    let first = head.lines().next().unwrap_or_default();
    match first.split(' ').nth(1) {
        Some(status) if status.starts_with('2') => Ok(stream),
        _ => Err(io::Error::other(format!("the proxy {} refuses: {first}", proxy.address))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn for_host(host: &str, proxy: &str, without: &str) -> Result<Option<Proxy>, String> {
        Proxy::for_host(host, |name| match name {
            "https_proxy" => Some(proxy.to_owned()),
            "NO_PROXY" => Some(without.to_owned()),
            _ => None,
        })
    }

    #[test]
    fn a_proxy_is_taken_unless_the_host_is_excepted() {
        for (host, without, direct) in [
            ("r.io:443", "", false),
            ("r.io:443", "r.io", true),
            ("eu.r.io:443", "r.io", true),
            ("eu.r.io:443", "*.r.io", true),
            ("r.io:5000", "other, .r.io:443, r.io:5000", true),
            ("r.io:443", "r.io:5000", false),
            ("bar.io:443", "r.io", false),
            ("r.io:443", "*", true),
            ("127.0.0.1:5000", "", true),
            ("localhost:5000", "", true),
        ] {
            let proxy = for_host(host, "http://proxy:3128", without).unwrap();
            assert_eq!(proxy.is_none(), direct, "{host} {without}");
        }
        assert_eq!(for_host("r.io:443", "", "").unwrap(), None);
    }

    #[test]
    fn proxies_are_read_and_those_that_cannot_be_used_named_without_their_password() {
        let read = |url: &str| for_host("r.io:443", url, "").map(Option::unwrap);
        assert_eq!(read("http://proxy:3128/").unwrap().address, "proxy:3128");
        assert_eq!(read("proxy").unwrap().address, "proxy:80");
        let with_user = read("http://ann:p%40ss@proxy:1").unwrap();
        assert_eq!(with_user.address, "proxy:1");
        assert_eq!(with_user.authorization.as_deref(), Some("Basic YW5uOnBAc3M="));
        for url in ["socks5://ann:secret@proxy:1", "https://ann:secret@proxy", "http://"] {
            let error = read(url).unwrap_err();
            assert!(error.contains("HTTPS_PROXY") && !error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_tunnel_begins_after_the_proxys_word_and_a_refusal_is_told() {
        for (answer, expected) in [
            ("HTTP/1.1 200 Connection established\r\nX: y\r\n\r\nhello", Ok(b"hello".to_vec())),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", Err("refuses: HTTP/1.1 403 Forbidden")),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let proxy = Proxy { address, authorization: Some("Basic x".into()) };
            let serve = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut asked = vec![0; 75];
                stream.read_exact(&mut asked).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
                String::from_utf8(asked).unwrap()
            };
            let (made, asked) = tokio::join!(tunnel(&proxy, "r.io:443"), serve);
            assert_eq!(
                asked,
                "CONNECT r.io:443 HTTP/1.1\r\nHost: r.io:443\r\nProxy-Authorization: Basic x\r\n\r\n"
            );
            match (made, expected) {
                (Ok(mut stream), Ok(expected)) => {
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).await.unwrap();
                    assert_eq!(rest, expected);
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (made, expected) => panic!("{made:?}, not {expected:?}"),
            }
        }
    }
}
