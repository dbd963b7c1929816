//! TLS for links: mutual, under the cluster's authority, TLS 1.3 only, ALPN `troupe/1`; and for those who join, who have no
//! certificate yet (`troupe-join/1`).
//!
//! Invariants: a certificate that a client shows is always checked; that it shows one is the listener's to demand, which
//! knows the protocol by then. Every connection shows and checks certificates anew; nothing is resumed and nothing is sent early, so a
//! certificate that has ended does not live on in a ticket.

use std::sync::Arc;

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    client::danger::ServerCertVerifier,
    crypto::CryptoProvider,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    time_provider::{DefaultTimeProvider, TimeProvider},
};

use super::{CaCertificate, Identity, NetError, join};

/// The protocol between machines, and its version.
pub(crate) const ALPN: &[u8] = b"troupe/1";

/// The certificate that a server shows to those who connect from now on.
#[derive(Debug)]
pub(crate) struct Shown(ArcSwap<CertifiedKey>);

impl Shown {
    pub(crate) fn new(identity: &Identity, ca: &CaCertificate) -> Result<Shown, NetError> {
        certified(identity, ca).map(|certified| Shown(ArcSwap::from_pointee(certified)))
    }

    /// Shows another. Connections that are there stay as they are.
    pub(crate) fn show(&self, identity: &Identity, ca: &CaCertificate) -> Result<(), NetError> {
        self.0.store(Arc::new(certified(identity, ca)?));
        Ok(())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(identity: &Identity, ca: &CaCertificate) -> Result<CertifiedKey, NetError> {
    // Those who join know the authority by the digest of its key only.
    let chain = identity.chain().iter().chain([ca.der()]).cloned().collect();
    CertifiedKey::from_der(chain, identity.key(), &provider()).map_err(|e| unusable(&e))
}

pub(crate) fn server(shown: Arc<Shown>, ca: &CaCertificate) -> Result<QuicServerConfig, NetError> {
    server_at(shown, ca, Arc::new(DefaultTimeProvider))
}

/// As the machine does whose clock this is.
pub(super) fn server_at(
    shown: Arc<Shown>,
    ca: &CaCertificate,
    clock: Arc<dyn TimeProvider>,
) -> Result<QuicServerConfig, NetError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| unusable(&e))?;
    let mut config = rustls::ServerConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(&e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![ALPN.to_vec(), join::ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(|e| unusable(&e))
}

pub(crate) fn client(identity: &Identity, ca: &CaCertificate) -> Result<QuicClientConfig, NetError> {
    client_at(identity, ca, Arc::new(DefaultTimeProvider))
}

/// As the machine does whose clock this is.
pub(super) fn client_at(
    identity: &Identity,
    ca: &CaCertificate,
    clock: Arc<dyn TimeProvider>,
) -> Result<QuicClientConfig, NetError> {
    let mut config = rustls::ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(&e))?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key())
        .map_err(|e| unusable(&e))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|e| unusable(&e))
}

/// For a joiner, who knows the master by `verifier` and has no certificate.
pub(crate) fn joining(
    verifier: Arc<dyn ServerCertVerifier>,
    clock: Arc<dyn TimeProvider>,
) -> Result<QuicClientConfig, NetError> {
    let mut config = rustls::ClientConfig::builder_with_details(provider(), clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(&e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![join::ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|e| unusable(&e))
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

pub(super) fn roots(ca: &CaCertificate) -> Result<RootCertStore, NetError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).map_err(|e| unusable(&e))?;
    Ok(roots)
}

fn unusable(problem: &dyn std::fmt::Display) -> NetError {
    NetError::Certificate { what: "the link's certificate", problem: problem.to_string() }
}
