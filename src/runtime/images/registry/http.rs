//! HTTP for registries: one request a connection, over TLS or, where that is allowed, plain.
//!
//! Owns: [`Http`] (connections, TLS roots, timeouts, redirects) and [`Fault`]. Invariants: every wait has an end; plain
//! HTTP is spoken to loopback and to hosts named by the configuration only, redirects and token services included; a
//! redirect to another host never carries credentials. Bodies come as they are read, or whole up to a bound.

use std::{
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response, StatusCode, Uri, body::Incoming, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{
    RegistryConfig,
    proxy::{Proxy, tunnel},
    reference::{is_loopback, without_port},
};

/// Registries send clients on to their storage, which may do so once more.
const MAX_REDIRECTS: usize = 5;
const AGENT: &str = concat!("troupe/", env!("CARGO_PKG_VERSION"));

/// Why something was not got.
#[derive(Debug)]
pub(super) enum Fault {
    /// The network's fault: trying again may help.
    Broken(String),
    /// The other side does not speak TLS.
    NoTls(String),
    /// Final.
    Refused(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Fault::Broken(text) | Fault::NoTls(text) | Fault::Refused(text)) = self;
        f.write_str(text)
    }
}

/// What goes along with a request.
#[derive(Clone, Default)]
pub(super) struct Extra<'a> {
    /// `Accept`.
    pub(super) accept: Option<&'a str>,
    /// `Authorization`; not sent on to other hosts.
    pub(super) authorization: Option<String>,
    /// From this byte on.
    pub(super) from: Option<u64>,
}

/// A client.
pub(super) struct Http {
    pub(super) config: RegistryConfig,
    tls: OnceLock<TlsConnector>,
}

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl Http {
    pub(super) fn new(config: RegistryConfig) -> Http {
        Http { config, tls: OnceLock::new() }
    }

    /// Whether a host (with port) may be spoken to without TLS.
    pub(super) fn may_be_plain(&self, host: &str) -> bool {
        let named = |insecure: &String| insecure == host || insecure == without_port(host);
        is_loopback(host) || self.config.insecure.iter().any(named)
    }

    /// `http` or `https`, whichever a registry speaks; TLS wherever it can.
    pub(super) async fn scheme(&self, host: &str) -> Result<&'static str, Fault> {
        if !self.may_be_plain(host) {
            return Ok("https");
        }
        let uri = parse(&format!("https://{host}/"))?;
        match self.connect(&uri).await {
            Ok(_) => Ok("https"),
            Err(Fault::NoTls(_)) => Ok("http"),
            Err(other) => Err(other),
        }
    }

    /// GET, following redirects. Any status is an answer.
    pub(super) async fn get(&self, url: &str, extra: &Extra<'_>) -> Result<Response<Incoming>, Fault> {
        let mut uri = parse(url)?;
        let mut extra = extra.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.get_one(&uri, &extra).await?;
            let status = response.status();
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            let location = location.ok_or_else(|| Fault::Refused(format!("{uri}: a redirect to nowhere")))?;
            let next = resolve(&uri, location)?;
            if next.authority() != uri.authority() || next.scheme() != uri.scheme() {
                extra.authorization = None;
            }
            uri = next;
        }
        Err(Fault::Refused(format!("{url}: more than {MAX_REDIRECTS} redirects")))
    }

    async fn get_one(&self, uri: &Uri, extra: &Extra<'_>) -> Result<Response<Incoming>, Fault> {
        let host = uri.authority().map(|a| a.as_str()).unwrap_or_default();
        let path = uri.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::get(path).header(header::HOST, host).header(header::USER_AGENT, AGENT);
        if let Some(accept) = extra.accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(authorization) = &extra.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some(from) = extra.from {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|e| Fault::Refused(format!("{uri}: not a request that can be sent: {e}")))?;
        let io = self.connect(uri).await?;
        let answered = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(|e| broken(uri, &e))?;
            // Ends with the body, or when that is dropped.
            tokio::spawn(connection);
            sender.send_request(request).await.map_err(|e| broken(uri, &e))
        };
        within(self.config.idle, uri, answered).await
    }

    async fn connect(&self, uri: &Uri) -> Result<Box<dyn Io>, Fault> {
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if uri.authority().is_some_and(|a| self.may_be_plain(a.as_str())) => false,
            _ => {
                return Err(Fault::Refused(format!(
                    "{uri}: plain HTTP is not allowed; --insecure-registry HOST allows it"
                )));
            }
        };
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let connected = async {
            let stream = self.reach(uri, &host, port, tls).await?;
            // Requests are small and answers awaited: nothing is gained by holding them back.
            let _ = stream.set_nodelay(true);
            if !tls {
                return Ok(Box::new(stream) as Box<dyn Io>);
            }
            let name = ServerName::try_from(host.clone())
                .map_err(|e| Fault::Refused(format!("{uri}: no host name: {e}")))?;
            let stream = self.tls().connect(name, stream).await.map_err(|e| handshake_fault(uri, &e))?;
            Ok(Box::new(stream) as Box<dyn Io>)
        };
        within(self.config.connect, uri, connected).await
    }

    /// A stream to a host, through a proxy if the environment names one.
    async fn reach(&self, uri: &Uri, host: &str, port: u16, tls: bool) -> Result<TcpStream, Fault> {
        let authority = format!("{}:{port}", uri.host().unwrap_or_default());
        let proxy = Proxy::for_host(&authority, |name| std::env::var(name).ok()).map_err(Fault::Refused)?;
        let stream = match proxy.filter(|_| tls) {
            Some(proxy) => tunnel(&proxy, &authority).await,
            None => TcpStream::connect((host, port)).await,
        };
        stream.map_err(|e| broken(uri, &e))
    }

    fn tls(&self) -> &TlsConnector {
        self.tls.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            let system = rustls_native_certs::load_native_certs();
            for error in &system.errors {
                tracing::debug!(%error, "a root certificate of the system cannot be read");
            }
            roots.add_parsable_certificates(system.certs);
            roots.add_parsable_certificates(self.config.roots.iter().cloned());
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("ring speaks the default versions of TLS");
            let mut config = builder.with_root_certificates(roots).with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            TlsConnector::from(Arc::new(config))
        })
    }

    /// The next piece of a body.
    pub(super) async fn chunk(&self, body: &mut Incoming) -> Result<Option<Bytes>, Fault> {
        loop {
            let frame = tokio::time::timeout(self.config.idle, body.frame())
                .await
                .map_err(|_| Fault::Broken(format!("nothing came for {:?}", self.config.idle)))?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(Fault::Broken(format!("the connection broke: {error}"))),
                // Trailers are nothing to us.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// A whole body of at most `limit` bytes.
    pub(super) async fn whole(&self, mut body: Incoming, limit: u64) -> Result<Vec<u8>, Fault> {
        let mut all = Vec::new();
        while let Some(chunk) = self.chunk(&mut body).await? {
            if (all.len() + chunk.len()) as u64 > limit {
                return Err(Fault::Refused(format!("the answer is larger than {limit} bytes")));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }
}

fn parse(url: &str) -> Result<Uri, Fault> {
    url.parse().map_err(|e| Fault::Refused(format!("{url}: no address: {e}")))
}

/// Where a redirect leads: an address, or a path on the same host.
fn resolve(from: &Uri, location: &str) -> Result<Uri, Fault> {
    if location.starts_with('/') && !location.starts_with("//") {
        let scheme = from.scheme_str().unwrap_or("https");
        let authority = from.authority().map(|a| a.as_str()).unwrap_or_default();
        return parse(&format!("{scheme}://{authority}{location}"));
    }
    let uri = parse(location)?;
    if uri.scheme().is_none() || uri.host().is_none() {
        return Err(Fault::Refused(format!("{from}: a redirect to {location:?}, which is no address")));
    }
    Ok(uri)
}

async fn within<T>(
    time: Duration,
    uri: &Uri,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<T, Fault> {
    let late = |_| Fault::Broken(format!("{}: no answer within {time:?}", origin(uri)));
    tokio::time::timeout(time, work).await.map_err(late)?
}

/// What went wrong with a host, down to the cause; queries are left out, since storages put signatures there.
fn broken(uri: &Uri, error: &dyn std::error::Error) -> Fault {
    Fault::Broken(format!("{}: {}", origin(uri), with_causes(error)))
}

fn handshake_fault(uri: &Uri, error: &std::io::Error) -> Fault {
    let text = format!("{}: TLS: {error}", origin(uri));
    let inner = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => Fault::NoTls(text),
        // What does not know TLS may hang up on it.
        None if error.kind() == std::io::ErrorKind::UnexpectedEof => Fault::NoTls(text),
        Some(rustls::Error::InvalidCertificate(_)) => Fault::Refused(format!(
            "{text}; a registry with a certificate of its own needs its authority: --registry-ca FILE"
        )),
        _ => Fault::Broken(text),
    }
}

fn origin(uri: &Uri) -> String {
    let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
    format!("{}://{authority}{}", uri.scheme_str().unwrap_or_default(), uri.path())
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_hosts_that_were_named() {
        let config = RegistryConfig {
            insecure: vec!["lab:5000".into(), "old.example".into()],
            ..RegistryConfig::default()
        };
        let http = Http::new(config);
        for host in ["localhost:1", "127.0.0.1:5000", "lab:5000", "old.example", "old.example:80"] {
            assert!(http.may_be_plain(host), "{host}");
        }
        for host in ["lab", "lab:5001", "example", "new.old.example"] {
            assert!(!http.may_be_plain(host), "{host}");
        }
    }

    #[test]
    fn redirects_lead_to_addresses_or_paths() {
        let from: Uri = "https://r.io:5000/v2/a?x=1".parse().unwrap();
        let to = |location: &str| resolve(&from, location).map(|u| u.to_string()).ok();
        assert_eq!(to("/b?y=2").as_deref(), Some("https://r.io:5000/b?y=2"));
        assert_eq!(to("https://cdn/x").as_deref(), Some("https://cdn/x"));
        for location in ["//evil/x", "b", "", "mailto:x"] {
            assert_eq!(to(location), None, "{location}");
        }
    }
}
