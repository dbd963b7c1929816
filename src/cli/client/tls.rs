//! TLS of the client: rustls with the kubeconfig's authority and our certificate.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, client::WebPkiServerVerifier};

use super::{
    super::kubeconfig::Login,
    literal::{ForAddress, Literal},
};
use crate::logic::trust::AnyCertificate;

/// A configuration for the login; a sentence when its certificates cannot be used.
pub fn config(login: &mut Login, literal: Option<&Literal>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    // `insecure-skip-tls-verify`: only because the kubeconfig says so.
    let builder = if login.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        let mut roots = RootCertStore::empty();
        for root in login.roots.drain(..) {
            roots.add(root).map_err(|e| format!("certificate-authority: {e}"))?;
        }
        match literal {
            None => builder.with_root_certificates(roots),
            Some(literal) => {
                let by = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
                let by = by.map_err(|e| format!("certificate-authority: {e}"))?;
                let name = literal.address.ip().into();
                builder.dangerous().with_custom_certificate_verifier(Arc::new(ForAddress { by, name }))
            }
        }
    };
    let mut config = match login.identity.take() {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|e| format!("client-certificate: {e}"))?
        }
        None => builder.with_no_client_auth(),
    };
    // There is no name to tell.
    config.enable_sni = literal.is_none();
    // HTTP/1.1: a watch and a log each have a connection of their own, so that none waits for another.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
