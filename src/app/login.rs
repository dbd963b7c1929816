//! What a node links with, and how that stays fresh in a program that embeds it.
//!
//! Owns: [`NodeLogin`], and [`Keeping`], which renews the certificate of a node that joined. Invariants: a login that a master
//! of this process gave is renewed with the master's own; one that was got by joining is renewed over the link, as
//! `troupe node` does it, and its owner is handed each new certificate to keep. The binary's node keeps files instead
//! ([`super::membership`]).

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};

use super::{
    certificates::Certificates,
    membership::{Fresh, asks},
};
use crate::{
    actors::uplink::Member,
    logic::renewal,
    model::NodeName,
    net::{
        CaCertificate, Connector, Identity, LinkConfig, NetError,
        csr::{NodeKey, joined_key, validity},
        identity::BACKDATE,
    },
};

/// Takes a new certificate, PEM.
type Keep = Arc<dyn Fn(&str) + Send + Sync>;

/// What a node needs to link to its master.
pub struct NodeLogin {
    /// The node's name, as in its certificate.
    pub name: NodeName,
    /// The master's links port, `HOST:PORT`: a name is looked up anew each time.
    pub master: String,
    /// The node's certificate and key.
    pub identity: Identity,
    /// The cluster's authority.
    pub ca: CaCertificate,
    /// Those of a master of this process.
    beside: Option<Weak<Certificates>>,
    keep: Keep,
}

impl NodeLogin {
    /// A login out of what [`join`](crate::net::join::join) gave. The certificate is renewed over the link, long before its
    /// end; see [`NodeLogin::on_renewed`].
    pub fn new(
        name: NodeName,
        master: impl Into<String>,
        identity: Identity,
        ca: CaCertificate,
    ) -> NodeLogin {
        NodeLogin { name, master: master.into(), identity, ca, beside: None, keep: Arc::new(|_| {}) }
    }

    /// Has `keep` called with each new certificate (PEM, over the same key), for the next start. It is called on the
    /// actors' thread, so it should not take long. Not called for what [`Master::admit_node`](super::Master::admit_node)
    /// gave: that is given anew at each start.
    #[must_use]
    pub fn on_renewed(self, keep: impl Fn(&str) + Send + Sync + 'static) -> NodeLogin {
        NodeLogin { keep: Arc::new(keep), ..self }
    }

    /// One that is renewed with these.
    pub(super) fn beside(self, certificates: &Arc<Certificates>) -> NodeLogin {
        NodeLogin { beside: Some(Arc::downgrade(certificates)), ..self }
    }

    /// Who renews it, when that is a master of this process that still runs.
    pub(super) fn renewed_by(&self) -> Option<Arc<Certificates>> {
        self.beside.as_ref().and_then(Weak::upgrade)
    }

    /// What renews it over the link, when its certificate is that of a node that joined.
    pub(super) fn keeping(&self) -> Result<Option<Keeping>, NetError> {
        let joined = self.identity.chain().first().and_then(joined_key).is_some();
        if !joined {
            return Ok(None);
        }
        let held =
            Held { certificate: self.identity.certificate_pem().to_owned(), connector: None, renewed: None };
        let key = NodeKey::from_pem(self.identity.key_pem())?;
        Ok(Some(Keeping { key, ca: self.ca.clone(), held: Mutex::new(held), keep: self.keep.clone() }))
    }
}

/// Keeps the certificate of an embedder's node fresh.
pub(super) struct Keeping {
    key: NodeKey,
    ca: CaCertificate,
    held: Mutex<Held>,
    keep: Keep,
}

struct Held {
    certificate: String,
    connector: Option<Connector>,
    /// When the certificate came, if it came over the link.
    renewed: Option<Instant>,
}

impl Keeping {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn life(&self) -> Option<(i64, i64)> {
        validity(&self.held().certificate).ok().map(|span| renewal::life(span, BACKDATE))
    }

    fn take(&self, certificate: &str) -> Result<(), NetError> {
        let identity = self.key.with(certificate)?;
        let mut held = self.held();
        if let Some(connector) = &held.connector {
            connector.show(&identity, &self.ca, LinkConfig::default())?;
        }
        held.certificate = certificate.to_owned();
        held.renewed = Some(Instant::now());
        Ok(())
    }
}

impl Fresh for Keeping {
    fn dials_by(&self, connector: Connector) {
        self.held().connector = Some(connector);
    }
}

impl Member for Keeping {
    fn linked(&self) {}

    fn turned_away(&self, why: &str) {
        tracing::error!(why, "the master sends this node away");
    }

    fn look_every(&self) -> Duration {
        renewal::look_every(self.life().unwrap_or_default())
    }

    fn renewal(&self) -> Option<Vec<u8>> {
        let renewed = self.held().renewed;
        asks(self.life()?, renewed, || Ok(self.key.request()?))
    }

    fn renewed(&self, certificate: &str) -> bool {
        match self.take(certificate) {
            Ok(()) => {
                tracing::info!("the node has a new certificate");
                (self.keep)(certificate);
                true
            }
            Err(error) => {
                tracing::error!(%error, "a new certificate cannot be used");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Authority;

    #[test]
    fn a_login_that_was_got_by_joining_is_kept_fresh_and_its_owner_is_told() {
        let (authority, key) = (Authority::ephemeral().unwrap(), NodeKey::generate().unwrap());
        let certify = |key: &NodeKey, life_s| {
            let csr = key.request().unwrap();
            authority.certify_node(&"n1".into(), &csr, Duration::from_secs(life_s)).unwrap()
        };
        let ca = authority.certificate().clone();
        let login = |identity| NodeLogin::new("n1".into(), "10.0.0.1:6443", identity, ca.clone());
        let beside = login(authority.issue_node(&"n1".into()).unwrap());
        assert!(beside.keeping().unwrap().is_none(), "it did not join");
        let kept: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = kept.clone();
        let old = login(key.with(&certify(&key, 0)).unwrap());
        let old = old.on_renewed(move |certificate| told.lock().unwrap().push(certificate.to_owned()));
        let keeping = old.keeping().unwrap().unwrap();
        assert!(keeping.renewal().is_some(), "it is over");
        assert!(!keeping.renewed("no certificate") && kept.lock().unwrap().is_empty());
        let next = certify(&key, 1000);
        assert!(keeping.renewed(&next));
        assert_eq!(*kept.lock().unwrap(), [next]);
        assert!(keeping.renewal().is_none(), "not due");
    }
}
