//! One GET, as probes and hooks send it: HTTP/1.1, no certificate checked, redirects followed on the same host only.
//!
//! Owns: writing the request, reading the answer's head. Invariants: memory is bounded by the head's bound; the whole of
//! it, redirects included, ends by its deadline. The rest of an answer's body is not read. Errors are Go's, which
//! users of Kubernetes know.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, timeout_at},
};

use super::{USER_AGENT, address, connect, joined};
use crate::logic::trust::AnyCertificate;

/// No server's head is longer.
const MAX_HEAD: usize = 64 * 1024;
/// As much of a body is told.
const MAX_BODY: usize = 1024;
const MAX_REDIRECTS: usize = 10;

/// What to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    https: bool,
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Where it leads instead.
    location: Option<String>,
    /// The beginning of the body of an answer that leads elsewhere.
    pub body: String,
}

impl Get {
    /// What a handler says, about a pod with this address.
    pub fn of(get: &v1::HTTPGetAction, container: &v1::Container, ip: Option<IpAddr>) -> Result<Get, String> {
        let (host, port) = address(get.host.as_deref(), &get.port, container, ip)?;
        let headers = get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone()));
        Ok(Get {
            https: get.scheme.as_deref() == Some("HTTPS"),
            host,
            port,
            path: path(get.path.as_deref().unwrap_or_default()),
            headers: headers.collect(),
        })
    }

    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", joined(&self.host, self.port), self.path)
    }

    /// Gets it, following redirects that stay on the host.
    pub async fn follow(&self, deadline: Instant) -> Result<Answer, String> {
        let mut get = self.clone();
        for _ in 0..MAX_REDIRECTS {
            let answer = match timeout_at(deadline, get.once(deadline)).await {
                Ok(answer) => answer,
                Err(_) => {
                    Err("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into())
                }
            };
            let answer = answer.map_err(|text: String| format!("Get {:?}: {text}", get.url()))?;
            let follows = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            match answer.location.as_deref().filter(|_| follows).and_then(|to| get.redirected(to)) {
                Some(next) if next.host == get.host => get = next,
                _ => return Ok(answer),
            }
        }
        Err(format!("Get {:?}: stopped after {MAX_REDIRECTS} redirects", get.url()))
    }

    async fn once(&self, deadline: Instant) -> Result<Answer, String> {
        let request = self.request()?;
        let stream = connect(&self.host, self.port, deadline).await?;
        if self.https {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(tls()?));
            let name = ServerName::try_from(self.host.clone()).map_err(|e| e.to_string())?;
            let stream =
                connector.connect(name, stream).await.map_err(|e| format!("remote error: tls: {e}"))?;
            exchange(stream, &request).await
        } else {
            exchange(stream, &request).await
        }
    }

    fn request(&self) -> Result<String, String> {
        let own = |name: &str| {
            self.headers
                .iter()
                .rev()
                .find(|(n, _)| n.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.as_str())
        };
        let host = joined(&self.host, self.port);
        let mut text = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", self.path, own("host").unwrap_or(&host));
        for (name, default) in [("User-Agent", USER_AGENT), ("Accept", "*/*")] {
            if own(name).is_none() {
                text.push_str(&format!("{name}: {default}\r\n"));
            }
        }
        for (name, value) in self.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let bad = self.headers.iter().find(|(_, value)| value.chars().any(|c| c.is_control() && c != '\t'));
        if let Some((name, _)) = bad {
            return Err(format!("net/http: invalid header field value for {name:?}"));
        }
        text.push_str("Connection: close\r\n\r\n");
        Ok(text)
    }

    /// Where a `Location` leads from here; `None` when that is not understood.
    fn redirected(&self, location: &str) -> Option<Get> {
        let (https, rest) = match location.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric()) => return None,
            _ => match location.strip_prefix("//") {
                Some(rest) => (self.https, rest),
                None => {
                    // A path: a whole one, or one beside the present.
                    let here = self.path.split(['?', '#']).next().unwrap_or_default();
                    let dir = here.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let whole = if location.starts_with('/') {
                        location.to_owned()
                    } else {
                        format!("{dir}/{location}")
                    };
                    return Some(Get { path: path(&whole), ..self.clone() });
                }
            },
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (place, tail) = rest.split_at(end);
        let (host, port) = match place.strip_prefix('[').and_then(|v6| v6.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(port) => port.parse().ok()?,
            None if https => 443,
            None => 80,
        };
        Some(Get { https, host: host.to_owned(), port, path: path(tail), headers: self.headers.clone() })
    }
}

/// A path as it is sent: absolute, without fragment, and without what would end the request's line.
fn path(text: &str) -> String {
    let text = text.split('#').next().unwrap_or_default();
    let mut path = String::from(if text.starts_with('/') { "" } else { "/" });
    for byte in text.bytes() {
        match byte {
            0x21..=0x7e => path.push(char::from(byte)),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path
}

fn tls() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(config)
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<Answer, String> {
    stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if bytes.len() >= MAX_HEAD {
            return Err("net/http: server response headers exceeded the limit; aborted".into());
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) if bytes.is_empty() => return Err("EOF".into()),
            Ok(0) => return Err("unexpected EOF".into()),
            Ok(_) => {}
            Err(error) => return Err(format!("read: {error}")),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split_ascii_whitespace().nth(1)?.parse::<u16>().ok())
        .filter(|status| (100..=599).contains(status))
        .ok_or_else(|| {
            let shown: String = first.chars().take(60).collect();
            format!("net/http: HTTP/1.x transport connection broken: malformed HTTP response {shown:?}")
        })?;
    let header = |name: &str| {
        lines.clone().find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let location = header("location");
    let mut body = bytes.split_off(end + 4);
    if (300..400).contains(&status) {
        let wanted = header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0_usize).min(MAX_BODY);
        while body.len() < wanted {
            match stream.read_buf(&mut body).await {
                Ok(count) if count > 0 => {}
                _ => break,
            }
        }
        body.truncate(wanted);
    } else {
        body.clear();
    }
    Ok(Answer { status, location, body: String::from_utf8_lossy(&body).into_owned() })
}
