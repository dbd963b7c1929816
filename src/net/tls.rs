//! TLS for links: mutual, under the cluster's authority, TLS 1.3 only, ALPN `troupe/1`.
//!
//! Invariant: every connection shows and checks certificates anew; nothing is resumed and nothing is sent early, so a
//! certificate that has ended does not live on in a ticket.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{RootCertStore, crypto::CryptoProvider, server::WebPkiClientVerifier};

use super::{CaCertificate, Identity, NetError};

/// The protocol between machines, and its version.
pub(crate) const ALPN: &[u8] = b"troupe/1";

pub(crate) fn server(identity: &Identity, ca: &CaCertificate) -> Result<QuicServerConfig, NetError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .build()
        .map_err(|e| unusable(&e))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key())
        .map_err(|e| unusable(&e))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(|e| unusable(&e))
}

pub(crate) fn client(identity: &Identity, ca: &CaCertificate) -> Result<QuicClientConfig, NetError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(&e))?
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key())
        .map_err(|e| unusable(&e))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|e| unusable(&e))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &CaCertificate) -> Result<RootCertStore, NetError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).map_err(|e| unusable(&e))?;
    Ok(roots)
}

fn unusable(problem: &dyn std::fmt::Display) -> NetError {
    NetError::Certificate { what: "the link's certificate", problem: problem.to_string() }
}
