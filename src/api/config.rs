//! What the door is told when it opens: addresses, certificates, tokens, limits, and whom it talks to.
//!
//! Owns: [`ApiConfig`], [`ApiState`], [`Limits`]. Every bound of the room is a field here with its default and the
//! reason for it; nothing elsewhere in the room invents a number of its own for what a client may cost.

use std::{
    collections::{BTreeMap, HashMap},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{backup::Files, status::Inspect};
use crate::{
    logic::tokens::SigningKey,
    messages::{Commit, OpenStream, Port, View},
};

/// How the API is served.
#[derive(Debug)]
pub struct ApiConfig {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Listens there already.
    pub listener: Option<TcpListener>,
    /// Certificates.
    pub tls: Tls,
    /// Bearer tokens and who holds each.
    pub tokens: HashMap<String, User>,
    /// Bounds.
    pub limits: Limits,
    /// Out of which network services get their addresses.
    pub service_cidr: ServiceCidr,
    /// Worker threads.
    pub workers: usize,
}

/// One worker serves some 10,000 small requests a second; a second one keeps reads going while the first copies a
/// large list.
pub const WORKERS: usize = 2;

impl ApiConfig {
    /// A configuration with defaults for everything but address and certificates.
    pub fn new(listen: SocketAddr, tls: Tls) -> ApiConfig {
        ApiConfig {
            listen,
            listener: None,
            tls,
            tokens: HashMap::new(),
            limits: Limits::default(),
            service_cidr: ServiceCidr::default(),
            workers: WORKERS,
        }
    }
}

/// The server's certificate and whom it trusts.
#[derive(Debug)]
pub struct Tls {
    /// The server's certificate, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Client certificates must come from one of these.
    pub client_ca: Vec<CertificateDer<'static>>,
}

/// Who is speaking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// `kubernetes-admin`.
    pub name: String,
    /// `system:masters`.
    pub groups: Vec<String>,
    /// A service account's.
    pub uid: Option<String>,
    /// What else its credentials say, in Kubernetes' words.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceCidr {
    /// The network's address.
    pub base: std::net::Ipv4Addr,
    /// Bits of the network.
    pub prefix: u8,
}

impl Default for ServiceCidr {
    /// Kubeadm's default, which people know.
    fn default() -> Self {
        ServiceCidr { base: std::net::Ipv4Addr::new(10, 96, 0, 0), prefix: 16 }
    }
}

/// What a client may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of a request's body. 3 MiB, as Kubernetes.
    pub body_bytes: usize,
    /// Bytes of an image archive; `None` leaves it to the node's disk.
    pub image_bytes: Option<u64>,
    /// Requests in flight beyond which the next gets 429. 400, as Kubernetes' read-only limit.
    pub requests: usize,
    /// Watches, logs and other streams at once. A watch costs some 2 KiB, a stream a task: 10,000 are 20 MiB.
    pub streams: usize,
    /// How long a request that is not a stream may take.
    pub request_timeout: Duration,
    /// How long a client may take to send a request's head.
    pub head_timeout: Duration,
    /// How long a connection may be idle between requests: longer than clients pause, shorter than a forgotten one costs.
    pub idle_timeout: Duration,
    /// How often clients of exec, attach and port-forward are asked whether they are there: as Kubernetes does. As often those of
    /// a silent stream over HTTP/2 are looked for.
    pub ping_every: Duration,
    /// How long such a client may take to hear the last words of a program that has ended. Someone may be reading the
    /// others in a pager.
    pub finish_within: Duration,
    /// How long a stop waits for requests in flight.
    pub stop_timeout: Duration,
    /// Connections per worker: each costs a TLS session of some 40 KiB.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            body_bytes: 3 << 20,
            image_bytes: None,
            requests: 400,
            streams: 10_000,
            request_timeout: Duration::from_secs(60),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            ping_every: Duration::from_secs(5),
            finish_within: Duration::from_secs(600),
            stop_timeout: Duration::from_secs(2),
            connections: 10_000,
        }
    }
}

/// Whom the API talks to.
#[derive(Clone)]
pub struct ApiState {
    /// The store's read side.
    pub view: View,
    /// The store's write side.
    pub commit: Port<Commit>,
    /// Byte streams to nodes.
    pub streams: Port<OpenStream>,
    /// Signs service accounts' tokens.
    pub token_key: Arc<SigningKey>,
    /// Renders `/metrics`, when metrics are recorded.
    pub metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    /// Whom `/troupe/v1/status` and `/troupe/v1/links` ask; without, there are no such paths.
    pub inspect: Option<Inspect>,
    /// What `/troupe/v1/backup` adds to the objects; without, there is no such path.
    pub backup: Option<Files>,
}
