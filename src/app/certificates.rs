//! The certificates that a master gives itself: for links, for the API, the administrator's, and those of nodes beside it.
//!
//! Owns: their names, and their renewal. Invariants: they are all of one age, and replaced together when a third of their life
//! is left, or the clock was set to a time that they are not for; nothing is restarted for it: connections stay, and what connects later is shown the new one.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{StartError, kubeconfig, membership::now_s};
use crate::{
    actors::certificates::Renewal,
    api::{ServeError, ServerCertificate},
    logic::renewal,
    model::NodeName,
    net::{Authority, Connector, Identity, LinkConfig, Showing, csr::validity, identity::BACKDATE},
};

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
    nodes: Mutex<Vec<(NodeName, Connector)>>,
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
            nodes: Mutex::default(),
        }
    }

    /// A node of this process, whose certificate is to be renewed as well.
    pub(super) fn keep_fresh(&self, name: &NodeName, connector: Connector) {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push((name.clone(), connector));
    }

    /// The administrator's kubeconfig.
    pub(super) fn kubeconfig(&self) -> String {
        let admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        kubeconfig::text(&self.cluster, self.address, self.authority.certificate(), &admin)
    }

    /// Keeps the kubeconfig where people look for it.
    pub(super) fn write_kubeconfig(&self) -> Result<(), StartError> {
        self.file.as_ref().map_or(Ok(()), |file| kubeconfig::write_private(file, &self.kubeconfig()))
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
        for (name, connector) in &*self.nodes.lock().unwrap_or_else(PoisonError::into_inner) {
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
