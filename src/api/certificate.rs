//! The certificate that the server shows, which may change while it serves.
//!
//! Owns: [`ServerCertificate`]. Connections that are there keep what they were shown; those to come get the new one.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::auth::TlsError;

/// What the server shows. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct ServerCertificate(Arc<Shown>);

#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ServerCertificate {
    pub(super) fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<ServerCertificate, TlsError> {
        Ok(ServerCertificate(Arc::new(Shown(ArcSwap::from_pointee(certified(chain, key)?)))))
    }

    /// Shows another from now on.
    ///
    /// # Errors
    /// When certificate and key do not fit; then nothing has changed.
    pub fn show(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        self.0.0.store(Arc::new(certified(chain, key)?));
        Ok(())
    }

    pub(super) fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        self.0.clone()
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsError> {
    Ok(CertifiedKey::from_der(chain, key, &ring::default_provider())?)
}
