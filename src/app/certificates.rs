//! The certificates that a master gives itself: for links, for the API, the administrator's, and those of nodes beside it.
//!
//! Owns: their names, and their renewal. Invariants: they are all of one age, and replaced together when a third of their life
//! is left, or the clock was set to a time that they are not for; nothing is restarted for it: connections stay, and what connects later is shown the new one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{NodeLogin, StartError, kubeconfig, membership::now_s};
use crate::{
    actors::certificates::Renewal,
    api::{ServeError, ServerCertificate},
    logic::{renewal, seldom::Seldom},
    messages::CertificateState,
    model::NodeName,
    net::{Authority, Connector, Identity, LinkConfig, Showing, csr::validity, identity::BACKDATE},
};

/// A certificate's end is told of in the log once a day.
const WARN_EVERY_MS: i64 = 86_400_000;

/// The names and addresses at which the API is reached.
#[derive(Clone)]
pub(super) struct ApiNames {
    pub(super) names: Vec<String>,
    pub(super) ips: Vec<IpAddr>,
}

/// See the file.
pub(super) struct Certificates {
    authority: Arc<Authority>,
    api_names: ApiNames,
    links: Showing,
    api: ServerCertificate,
    cluster: String,
    address: SocketAddr,
    /// The administrator's kubeconfig, when it is kept.
    file: Option<PathBuf>,
    admin: Mutex<Identity>,
    /// The file is not of this start: there was no room for it.
    unwritten: AtomicBool,
    nodes: Mutex<Nodes>,
    /// Of which certificates was said that they end soon.
    warned: Mutex<Seldom<&'static str>>,
}

/// Nodes of this process, by numbers that are not used again.
#[derive(Default)]
struct Nodes {
    next: u64,
    all: BTreeMap<u64, (NodeName, Connector)>,
}

/// A node's place among those whose certificates are renewed; it ends with this.
pub(super) struct Kept {
    number: u64,
    by: Weak<Certificates>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(certificates) = self.by.upgrade() {
            certificates.nodes().all.remove(&self.number);
        }
    }
}

impl Certificates {
    /// What a master shows at its start; all of it was issued a moment ago.
    pub(super) fn new(
        authority: &Arc<Authority>,
        api_names: ApiNames,
        admin: Identity,
        (links, api): (Showing, ServerCertificate),
        (cluster, address): (&str, SocketAddr),
        file: Option<PathBuf>,
    ) -> Certificates {
        Certificates {
            authority: authority.clone(),
            api_names,
            links,
            api,
            cluster: cluster.to_owned(),
            address,
            file,
            admin: Mutex::new(admin),
            unwritten: AtomicBool::new(false),
            nodes: Mutex::default(),
            warned: Mutex::new(Seldom::new(WARN_EVERY_MS)),
        }
    }

    /// A node of this process, whose certificate is to be renewed as well; at once, if its login is an old one.
    pub(super) fn keep_fresh(
        self: &Arc<Self>,
        login: &NodeLogin,
        connector: Connector,
    ) -> Result<Kept, StartError> {
        let span = validity(login.identity.certificate_pem()).unwrap_or_default();
        // One that is older than those renewed last would end before the next turn.
        let last = self.admin_begins();
        if span.0 < last || renewal::due_here(span, BACKDATE, now_s()) {
            let identity = self.authority.issue_node(&login.name)?;
            connector.show(&identity, self.authority.certificate(), LinkConfig::default())?;
        }
        let mut nodes = self.nodes();
        let number = nodes.next;
        nodes.next += 1;
        nodes.all.insert(number, (login.name.clone(), connector));
        Ok(Kept { number, by: Arc::downgrade(self) })
    }

    /// Since when the administrator's certificate is valid, which was made in the last turn.
    fn admin_begins(&self) -> i64 {
        let admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        validity(admin.certificate_pem()).unwrap_or_default().0
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The administrator's kubeconfig.
    pub(super) fn kubeconfig(&self) -> String {
        let admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        kubeconfig::text(&self.cluster, self.address, self.authority.certificate(), &admin)
    }

    /// Keeps the kubeconfig where people look for it. On a full disk that waits for room, and the one that is there goes on.
    pub(super) fn write_kubeconfig(&self) -> Result<(), StartError> {
        let Some(file) = &self.file else { return Ok(()) };
        let text = self.kubeconfig();
        match kubeconfig::write_private(file, &text) {
            Err(StartError::File { source, .. }) if kubeconfig::no_room(&source) => {
                let does = kubeconfig::leads_there(file, &text);
                tracing::warn!(
                    path = %file.display(), error = %source, usable = does,
                    "the administrator's kubeconfig cannot be written anew; it is, some time after there is room, or with the next start"
                );
                self.unwritten.store(true, Relaxed);
                Ok(())
            }
            outcome => outcome.inspect(|()| self.unwritten.store(false, Relaxed)),
        }
    }

    /// The ends of the authority's certificate, which nobody renews, and of those that are renewed here.
    pub(super) fn states(&self) -> Vec<CertificateState> {
        let state = |name, span: (i64, i64)| {
            let ends_soon = renewal::ends_soon(renewal::life(span, BACKDATE), now_s());
            CertificateState { name, end_s: span.1, ends_soon }
        };
        let authority = validity(self.authority.certificate().pem()).unwrap_or_default();
        vec![state("authority", authority), state("master", self.span())]
    }

    /// Says in the log that somebody has to see to one, once a day.
    fn warn(&self) {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        for certificate in self.states().iter().filter(|certificate| certificate.ends_soon) {
            let days_left = (certificate.end_s - now_s()).div_euclid(86_400);
            if warned.says(&certificate.name, now_s().saturating_mul(1000)).is_some() {
                tracing::warn!(
                    certificate = certificate.name,
                    days_left,
                    "a certificate that the cluster hangs on ends soon: see docs/operations.md, \"Certificates\""
                );
            }
        }
    }

    /// The span of all of them: the administrator's was issued last, and is replaced last.
    fn span(&self) -> (i64, i64) {
        let admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        validity(admin.certificate_pem()).unwrap_or_default()
    }

    fn renew(&self) -> Result<(), StartError> {
        let ca = self.authority.certificate();
        self.links.show(&self.authority.issue_master()?, ca)?;
        let api = self.authority.issue_api_server(&self.api_names.names, &self.api_names.ips)?;
        self.api.show(api.chain().to_vec(), api.key()).map_err(ServeError::from)?;
        for (name, connector) in self.nodes().all.values() {
            connector.show(&self.authority.issue_node(name)?, ca, LinkConfig::default())?;
        }
        let admin = self.authority.issue_admin()?;
        let text = kubeconfig::text(&self.cluster, self.address, ca, &admin);
        if let Some(file) = &self.file {
            kubeconfig::write_private(file, &text)?;
        }
        // Only now is nothing left to be done.
        *self.admin.lock().unwrap_or_else(PoisonError::into_inner) = admin;
        Ok(())
    }
}

impl Renewal for Certificates {
    fn look_every(&self) -> Duration {
        renewal::look_every(renewal::life(self.span(), BACKDATE))
    }

    fn look(&self) {
        self.warn();
        if self.unwritten.load(Relaxed)
            && let Err(error) = self.write_kubeconfig()
        {
            tracing::warn!(%error, "the administrator's kubeconfig is still the one from before");
        }
        if !renewal::due_here(self.span(), BACKDATE, now_s()) {
            return;
        }
        match self.renew() {
            Ok(()) => tracing::info!("the master has new certificates"),
            Err(error) => {
                tracing::error!(%error, "the master's certificates cannot be renewed; trying again")
            }
        }
    }
}
