//! What a node links with, and how that stays fresh in a program that embeds it.
//!
//! Owns: [`NodeLogin`], and [`Keeping`], which renews the certificate of a node that joined. Invariants: a login that a master
//! of this process gave is renewed with the master's own; one that was got by joining is renewed over the link, as
//! `troupe node` does it, and its owner is handed each new certificate to keep. The binary's node keeps files instead
//! ([`super::membership`]).

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use super::{
    certificates::Certificates,
    membership::{Fresh, Showing, life, locked},
};
use crate::{
    actors::uplink::Member,
    logic::renewal,
    model::NodeName,
    net::{
        CaCertificate, Connector, Identity, NetError,
        csr::{NodeKey, joined_key},
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
        Ok(Some(Keeping {
            key: NodeKey::from_pem(self.identity.key_pem())?,
            ca: self.ca.clone(),
            certificate: Mutex::new(self.identity.certificate_pem().to_owned()),
            showing: Showing::default(),
            keep: self.keep.clone(),
        }))
    }
}

/// Keeps the certificate of an embedder's node fresh.
pub(super) struct Keeping {
    key: NodeKey,
    ca: CaCertificate,
    certificate: Mutex<String>,
    showing: Showing,
    keep: Keep,
}

impl Keeping {
    fn life(&self) -> Option<(i64, i64)> {
        life(&locked(&self.certificate))
    }
}

impl Fresh for Keeping {
    fn dials_by(&self, connector: Connector) {
        self.showing.dials_by(connector);
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
        self.showing.asks(self.life()?, || Ok(self.key.request()?))
    }

    fn renewed(&self, certificate: &str) -> bool {
        let before = locked(&self.certificate).clone();
        self.showing.take(
            certificate,
            || Ok((self.key.with(certificate)?, before, self.ca.clone())),
            || {
                *locked(&self.certificate) = certificate.to_owned();
                (self.keep)(certificate);
                Ok(())
            },
        )
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
        let other = Authority::ephemeral().unwrap();
        let csr = key.request().unwrap();
        let foreign = other.certify_node(&"n1".into(), &csr, Duration::from_secs(1000)).unwrap();
        for bad in ["no certificate", &foreign] {
            assert!(!keeping.renewed(bad) && kept.lock().unwrap().is_empty(), "{bad}");
        }
        let next = certify(&key, 1000);
        assert!(keeping.renewed(&next));
        assert_eq!(*kept.lock().unwrap(), [next]);
        assert!(keeping.renewal().is_none(), "not due");
    }
}
