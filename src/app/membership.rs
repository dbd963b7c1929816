//! What a node that joined keeps of its cluster: its key, its certificate, where the master is.
//!
//! Owns: `DIR/node.json` and `DIR/pki/node.key`, `node.crt`, `ca.crt`; the renewal of the certificate. Invariants: the
//! key is on disk before it is asked for a certificate, so a join that was cut off is repeated with the same key; the
//! record comes last, so a directory with one has all the rest; each file is there whole or not at all.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{NodeLogin, StartError, address::towards, kubeconfig::write_private};
use crate::{
    actors::uplink::Member,
    logic::renewal,
    messages::wire::Admitted,
    net::{
        CaCertificate, Connector, Identity, LinkConfig,
        csr::{NodeKey, validity},
        identity::BACKDATE,
        join::check_renewed,
    },
};

/// The file that says that a directory is a joined node's.
pub(super) const RECORD: &str = "node.json";

/// What `DIR/node.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// The node's name.
    pub(super) name: String,
    /// The cluster's.
    pub(super) cluster: String,
    /// The master's address for links, `HOST:PORT`.
    pub(super) master: String,
    /// The labels it was started with last.
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    /// The runtime it was told to use last.
    #[serde(default)]
    pub(super) runtime: Option<String>,
}

/// The files of a node.
pub(super) struct Files {
    data: PathBuf,
}

impl Files {
    pub(super) fn of(data: &Path) -> Files {
        Files { data: data.to_owned() }
    }

    fn pki(&self, name: &str) -> PathBuf {
        self.data.join("pki").join(name)
    }

    /// The record, when the directory is a node's.
    pub(super) fn record(&self) -> Result<Option<Record>, StartError> {
        let path = self.data.join(RECORD);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| StartError::Refused(format!("{} cannot be read: {error}", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StartError::Unreadable { path, source }),
        }
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), StartError> {
        let text = serde_json::to_string_pretty(record).unwrap_or_default() + "\n";
        write_private(&self.data.join(RECORD), &text)
    }

    /// Refuses a master's data directory.
    pub(super) fn not_a_masters(&self) -> Result<(), StartError> {
        match self.pki("ca.key").exists() {
            false => Ok(()),
            true => Err(StartError::Refused(format!(
                "{} is a master's data directory: name another --data-dir for a node on the same machine",
                self.data.display()
            ))),
        }
    }

    /// The node's key; made when there is none.
    pub(super) fn key(&self) -> Result<NodeKey, StartError> {
        self.not_a_masters()?;
        let pki = self.data.join("pki");
        std::fs::create_dir_all(&pki).map_err(|source| StartError::File { path: pki.clone(), source })?;
        Ok(NodeKey::open(&self.pki("node.key"))?)
    }

    pub(super) fn write_certificates(&self, admitted: &Admitted) -> Result<(), StartError> {
        write_private(&self.pki("ca.crt"), &admitted.ca)?;
        write_private(&self.pki("node.crt"), &admitted.certificate)
    }

    pub(super) fn ca(&self) -> Result<CaCertificate, StartError> {
        Ok(CaCertificate::from_pem(&self.read("ca.crt")?)?)
    }

    /// What the node links with.
    pub(super) fn login(&self, record: &Record) -> Result<NodeLogin, StartError> {
        let identity = self.key()?.with(&self.read("node.crt")?)?;
        Ok(NodeLogin::new(record.name.as_str().into(), record.master.clone(), identity, self.ca()?))
    }

    fn read(&self, name: &str) -> Result<String, StartError> {
        let path = self.pki(name);
        std::fs::read_to_string(&path).map_err(|error| {
            StartError::Refused(format!(
                "{} cannot be read ({error}): restore it, or begin anew with `troupe reset --data-dir {}` and a token",
                path.display(),
                self.data.display()
            ))
        })
    }
}

/// How the link of a node that joined fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// There is none: not yet, or not any more.
    Apart,
    /// There is one.
    Linked,
    /// The master does not want it any more, and why.
    TurnedAway(String),
}

/// Where the master is, once that is known, when this machine's address is the one from which it is reached.
pub(super) type Whereabouts = Arc<Mutex<Option<SocketAddr>>>;

/// Keeps a node's certificate fresh and says how its link fares.
pub(super) struct Membership {
    files: Files,
    showing: Showing,
    standing: watch::Sender<Standing>,
    master: Whereabouts,
    /// The certificate that is shown, while there is no room for it on the disk, and what the disk says.
    unkept: Mutex<Option<(String, String)>>,
}

impl Membership {
    pub(super) fn new(files: Files) -> (Membership, watch::Receiver<Standing>) {
        let (standing, told) = watch::channel(Standing::Apart);
        let (showing, master, unkept) = Default::default();
        (Membership { files, showing, standing, master, unkept }, told)
    }

    /// Where it is told where the master is.
    pub(super) fn whereabouts(&self) -> Whereabouts {
        self.master.clone()
    }

    /// The certificate that is shown.
    fn certificate(&self) -> Result<String, StartError> {
        let unkept = locked(&self.unkept).clone();
        unkept.map_or_else(|| self.files.read("node.crt"), |(certificate, _)| Ok(certificate))
    }

    fn life(&self) -> Option<(i64, i64)> {
        life(&self.certificate().ok()?)
    }

    fn keep(&self, certificate: &str) -> Result<(), StartError> {
        let kept = write_private(&self.files.pki("node.crt"), certificate);
        *locked(&self.unkept) = kept.as_ref().err().map(|why| (certificate.to_owned(), why.to_string()));
        kept
    }

    /// Keeps what could not be kept when it came, if that works by now.
    fn keep_again(&self) {
        let unkept = locked(&self.unkept).clone();
        if unkept.is_some_and(|(certificate, _)| self.keep(&certificate).is_ok()) {
            tracing::info!("the node's new certificate is kept now");
        }
    }
}

/// A [`Member`] that keeps its certificate fresh by itself.
pub(super) trait Fresh: Member {
    /// The connector whose certificate is to be renewed.
    fn dials_by(&self, connector: Connector);
}

impl Fresh for Membership {
    fn dials_by(&self, connector: Connector) {
        self.showing.dials_by(connector);
    }
}

/// Begin and end of a certificate's life, in seconds since the epoch.
pub(super) fn life(certificate: &str) -> Option<(i64, i64)> {
    validity(certificate).ok().map(|span| renewal::life(span, BACKDATE))
}

/// What is the same wherever a node's certificate is kept: which connector shows it, and when it came.
#[derive(Default)]
pub(super) struct Showing {
    connector: Mutex<Option<Connector>>,
    /// `None` if it did not come to this process.
    came: Mutex<Option<Instant>>,
}

impl Showing {
    pub(super) fn dials_by(&self, connector: Connector) {
        *locked(&self.connector) = Some(connector);
    }

    /// What to ask for a new certificate with, when it is time: the present one has such a life.
    pub(super) fn asks(
        &self,
        life: (i64, i64),
        request: impl FnOnce() -> Result<Vec<u8>, StartError>,
    ) -> Option<Vec<u8>> {
        // A clock that is far ahead takes the new one for an old one as well.
        let fresh = locked(&self.came).is_some_and(|at| at.elapsed() < renewal::pause(life));
        if fresh || !renewal::due(life, now_s()) {
            return None;
        }
        if renewal::ends_soon(life, now_s()) {
            match (life.1 - now_s()).div_euclid(86_400) {
                ..0 => tracing::warn!("the node's certificate has ended, and no master has renewed it"),
                days_left => {
                    tracing::warn!(
                        days_left,
                        "the node's certificate ends soon, and no master has renewed it yet"
                    );
                }
            }
        }
        match request() {
            Ok(request) => Some(request),
            Err(error) => {
                tracing::error!(%error, "the node's certificate cannot be renewed");
                None
            }
        }
    }

    /// Whether a new certificate, with its key, can take the place of the one before, by the authority; then it is shown from
    /// now on, and kept if that is possible: on a full disk, too, the link outlives the one before.
    pub(super) fn take(
        &self,
        certificate: &str,
        held: impl FnOnce() -> Result<(Identity, String, CaCertificate), StartError>,
        keep: impl FnOnce() -> Result<(), StartError>,
    ) -> bool {
        let shown = held().and_then(|(identity, before, ca)| {
            check_renewed(&before, certificate, &ca)?;
            let kept = keep();
            if let Some(connector) = &*locked(&self.connector) {
                connector.show(&identity, &ca, LinkConfig::default())?;
            }
            Ok(kept)
        });
        match shown {
            Ok(kept) => {
                *locked(&self.came) = Some(Instant::now());
                tracing::info!("the node has a new certificate");
                if let Err(error) = kept {
                    tracing::error!(
                        %error,
                        "the new certificate cannot be kept: this process shows it, the next one would show the one before; \
                         it is kept as soon as that works"
                    );
                }
                true
            }
            Err(error) => {
                tracing::error!(%error, "a new certificate cannot be used; it is asked for again");
                false
            }
        }
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn now_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl Member for Membership {
    fn address(&self) -> Option<IpAddr> {
        let master = *locked(&self.master);
        towards(master?)
    }

    fn linked(&self) {
        self.standing.send_replace(Standing::Linked);
    }

    fn apart(&self) {
        // Who was sent away stays that.
        self.standing.send_if_modified(|standing| {
            let was_linked = *standing == Standing::Linked;
            if was_linked {
                *standing = Standing::Apart;
            }
            was_linked
        });
    }

    fn turned_away(&self, why: &str) {
        self.standing.send_replace(Standing::TurnedAway(why.into()));
    }

    fn look_every(&self) -> Duration {
        renewal::look_every(self.life().unwrap_or_default())
    }

    fn renewal(&self) -> Option<Vec<u8>> {
        self.keep_again();
        self.showing.asks(self.life()?, || Ok(self.files.key()?.request()?))
    }

    fn renewed(&self, certificate: &str) -> bool {
        self.showing.take(
            certificate,
            || Ok((self.files.key()?.with(certificate)?, self.certificate()?, self.files.ca()?)),
            || self.keep(certificate),
        )
    }

    fn unkept(&self) -> Option<String> {
        locked(&self.unkept).as_ref().map(|(_, why)| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Authority;

    #[test]
    fn a_directory_without_a_record_is_no_nodes_and_a_record_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        assert_eq!(files.record().unwrap(), None);
        let record = Record {
            name: "n1".into(),
            cluster: "c".into(),
            master: "10.0.0.1:6443".into(),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            runtime: Some("sim".into()),
        };
        files.write_record(&record).unwrap();
        assert_eq!(files.record().unwrap(), Some(record));
        std::fs::write(dir.path().join(RECORD), "{").unwrap();
        assert!(files.record().unwrap_err().to_string().contains(RECORD));
    }

    #[test]
    fn a_masters_directory_is_no_nodes() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pki")).unwrap();
        Authority::open(&dir.path().join("pki")).unwrap();
        let refused = Files::of(dir.path()).key().err().unwrap().to_string();
        assert!(refused.contains("--data-dir"), "{refused}");
    }

    #[test]
    fn a_new_certificate_is_kept_and_nonsense_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::of(dir.path());
        let authority = Authority::ephemeral().unwrap();
        let key = files.key().unwrap();
        let certify = |key: &NodeKey, life| {
            let csr = key.request().unwrap();
            authority.certify_node(&"n1".into(), &csr, Duration::from_secs(life)).unwrap()
        };
        let ca = authority.certificate().pem().to_owned();
        let admitted = Admitted { certificate: certify(&key, 1), ca, cluster: "c".into() };
        files.write_certificates(&admitted).unwrap();
        let (member, _) = Membership::new(Files::of(dir.path()));
        assert_eq!(member.look_every(), *renewal::LOOK_EVERY.start());
        let next = certify(&key, 1000);
        assert!(member.renewed(&next));
        assert_eq!(files.read("node.crt").unwrap(), next);
        assert!(member.renewal().is_none(), "not due");
        // Nor what the master would not let link.
        let other = Authority::ephemeral().unwrap();
        let life = Duration::from_secs(1000);
        let foreign = other.certify_node(&"n1".into(), &key.request().unwrap(), life).unwrap();
        let misnamed = authority.certify_node(&"n2".into(), &key.request().unwrap(), life).unwrap();
        let rekeyed = certify(&NodeKey::generate().unwrap(), 1000);
        for bad in ["no certificate", &foreign, &misnamed, &rekeyed] {
            assert!(!member.renewed(bad), "{bad}");
        }
        assert_eq!(files.read("node.crt").unwrap(), next);
        // On a full disk, or one that fails, it is shown all the same, and kept later.
        let in_the_way = files.pki("node.new");
        std::fs::create_dir(&in_the_way).unwrap();
        let (old, young) = (certify(&key, 1), certify(&key, 2000));
        assert!(member.renewed(&old) && member.look_every() == *renewal::LOOK_EVERY.start());
        assert!(member.renewed(&young));
        assert!(member.look_every() > *renewal::LOOK_EVERY.start(), "it goes by the one that it shows");
        assert!(member.renewal().is_none() && files.read("node.crt").unwrap() == next);
        std::fs::remove_dir(&in_the_way).unwrap();
        assert!(member.renewal().is_none());
        assert_eq!(files.read("node.crt").unwrap(), young);
    }
}
