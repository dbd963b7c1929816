//! A master: store, API, controllers, and the port that nodes link to.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, Weak},
    time::Duration,
};

use super::{
    Client, Persistence, StartError, address,
    certificates::{ApiNames, Certificates},
    guard::Root,
    kubeconfig,
    membership::RECORD as NODE_RECORD,
    restore, token_key,
    trees::Trees,
};
use crate::{
    actors::{
        certificates,
        commit::Wiring,
        events::{self, EventRecorder},
        nodes::{self, Admission, NodeRegistry, RegistrySeed},
        reconciler, replication, scheduler,
        store::StoreActor,
        supervisor::{ChildSpec, Escalation, SupervisorHandle, SupervisorSpec},
    },
    api::{ApiConfig, ApiState, Inspect, Links, Server, Tls, serve},
    logic::{namespaces::Bootstrap, tokens::SigningKey},
    messages::{Commit, OpenStream, Port, Slot, View},
    model::{NodeName, token::hex},
    net::{Authority, CaCertificate, LinkConfig, Listener, TokenKey},
    store::{DataDir, Durable, Memory},
};

/// The `kubernetes` service's address: the first of the service network, as everywhere.
const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Kubernetes' usual year.
pub const CERTIFICATES: Duration = Duration::from_secs(365 * 86_400);

/// What a master is to be like.
pub struct MasterConfig {
    /// Where objects are kept.
    pub persistence: Persistence,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where nodes link to (UDP).
    pub links: SocketAddr,
    /// The cluster's name, in kubeconfigs.
    pub cluster: String,
    /// The pods' network, of which each node gets a `/24`.
    pub pod_network: String,
    /// More names and addresses for the API's certificate.
    pub api_names: Vec<String>,
    /// A node silent for so long is not ready.
    pub lost_after: Duration,
    /// How long the certificate of a node that joins is valid; it is renewed long before.
    pub node_certificates: Duration,
    /// How long the master's own certificates are valid; they are renewed long before.
    pub certificates: Duration,
    /// No images go from node to node.
    pub no_image_sharing: bool,
    /// Renders `/metrics`, when metrics are recorded.
    pub metrics: Option<super::Render>,
    /// Bound already: the API's and the links'.
    pub sockets: Option<(TcpListener, UdpSocket)>,
    /// Where other machines reach a port of this one, as it is when asked.
    pub reached: Reached,
    /// Called when the root supervisor gives up. The master is of no use after that.
    pub on_escalate: Arc<dyn Fn(Escalation) + Send + Sync>,
}

/// Where other machines reach a port of this one, or why they do not.
pub type Reached = Arc<dyn Fn(SocketAddr) -> Result<SocketAddr, String> + Send + Sync>;

/// A tenth of a second short of the two within which a node's end is to be told: that is for writing it down.
const LOST_AFTER: Duration = Duration::from_millis(1_900);

impl MasterConfig {
    /// A master on free loopback ports.
    pub fn new(persistence: Persistence) -> MasterConfig {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        MasterConfig {
            persistence,
            api: loopback,
            links: loopback,
            cluster: "troupe".into(),
            pod_network: "10.244.0.0/16".into(),
            api_names: Vec::new(),
            lost_after: LOST_AFTER,
            node_certificates: CERTIFICATES,
            certificates: CERTIFICATES,
            no_image_sharing: false,
            metrics: None,
            sockets: None,
            reached: Arc::new(address::reachable_at),
            on_escalate: Arc::new(|_| {}),
        }
    }
}

/// A running master. Dropping it without [`Master::stop`] begins its stop too, and waits for nothing.
pub struct Master {
    view: View,
    commits: Port<Commit>,
    streams: Port<OpenStream>,
    authority: Arc<Authority>,
    certificates: Arc<Certificates>,
    links: SocketAddr,
    reached: Reached,
    listener: Arc<tokio::sync::Mutex<Listener>>,
    root: Root,
    server: Server,
    directory: Option<PathBuf>,
    trees: Trees,
    /// Held for as long as the master lives: nobody else may use the directory.
    _lock: Option<Arc<DataDir>>,
}

impl Master {
    /// Starts a master inside the present actix system. When this returns, the API serves.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub async fn start(mut config: MasterConfig) -> Result<Master, StartError> {
        let (bound_api, bound_links) = config.sockets.take().unzip();
        let Opened { store, view, authority, token_key, lock } = open_store(&config)?;
        let admin = authority.issue_admin()?;
        let identity = authority.issue_master()?;
        let (ca, settings) = (authority.certificate(), LinkConfig::default());
        let mut listener = match bound_links {
            Some(socket) => Listener::on(socket, &identity, ca, settings)?,
            None => Listener::bind(config.links, &identity, ca, settings)?,
        };
        let (links, shown_to_links) = (listener.local_addr(), listener.shown());
        let admission =
            listener.joins().map(|asks| Admission::new(authority.clone(), asks, config.node_certificates));
        let listener = Arc::new(tokio::sync::Mutex::new(listener));

        let actors = Actors::begin(store, view.clone(), config.on_escalate.clone());
        let trees = Trees::of(actors.root.handle());
        let (shown, certified) = (trees.clone(), Arc::new(OnceLock::<Weak<Certificates>>::new()));
        let looked_at = certified.clone();
        let seed = RegistrySeed {
            wiring: actors.wiring.clone(),
            listener: listener.clone(),
            pod_network: config.pod_network.clone(),
            cluster: config.cluster.clone(),
            lost_after: config.lost_after,
            admission: admission.map(Arc::new),
            token_key: token_key.clone(),
            no_image_sharing: config.no_image_sharing,
        };
        let (commits, streams) = (actors.wiring.commits.clone(), actors.registry.port());
        let (reached, pin) = (config.reached.clone(), hex(&authority.certificate().public_key_pin()?));
        let state = ApiState {
            view: view.clone(),
            commit: commits.clone(),
            streams: streams.clone(),
            token_key,
            metrics: config.metrics.clone(),
            inspect: Some(Inspect {
                cluster: config.cluster.clone(),
                nodes: actors.registry.port(),
                store: actors.store.port(),
                actors: Arc::new(move || Box::pin(shown.clone().show())),
                certificates: Arc::new(move || {
                    let certificates = looked_at.get().and_then(Weak::upgrade);
                    certificates.map(|certificates| certificates.states()).unwrap_or_default()
                }),
                links: Arc::new(move || Links {
                    listen: links,
                    reached: reached(links),
                    authority: pin.clone(),
                }),
            }),
            backup: match &config.persistence {
                Persistence::Directory(path) => Some(restore::files(path.clone())),
                Persistence::Memory => None,
            },
        };
        let api_names = api_names(&config);
        let served = api_config(&config, &authority, &api_names)
            .and_then(|api| Ok(serve(ApiConfig { listener: bound_api, ..api }, state)?));
        let server = match served {
            Ok(server) => server,
            Err(error) => {
                actors.root.stop().await;
                return Err(error);
            }
        };
        let bootstrap = Bootstrap {
            ca_pem: authority.certificate().pem().to_owned(),
            api_address: server.address().ip().to_string(),
            api_port: server.address().port(),
            service_address: Some(SERVICE_ADDRESS.to_string()),
        };
        let root = actors.complete(bootstrap, seed);
        let directory = match &config.persistence {
            Persistence::Directory(path) => Some(path.clone()),
            Persistence::Memory => None,
        };
        let certificates = Arc::new(Certificates::new(
            &authority,
            api_names,
            admin,
            (shown_to_links, server.certificate()),
            (&config.cluster, server.address()),
            directory.as_ref().map(|directory| directory.join("admin.kubeconfig")),
        ));
        // Set once.
        let _ = certified.set(Arc::downgrade(&certificates));
        root.handle().start_child(certificates::child(certificates.clone())).detach();
        let master = Master {
            view,
            commits,
            streams,
            authority,
            certificates,
            links,
            reached: config.reached,
            listener,
            root,
            server,
            directory,
            trees,
            _lock: lock,
        };
        match master.certificates.write_kubeconfig() {
            Ok(()) => Ok(master),
            Err(error) => {
                master.stop().await;
                Err(error)
            }
        }
    }

    /// Where the API listens.
    pub fn api(&self) -> SocketAddr {
        self.server.address()
    }

    /// Where nodes link to.
    pub fn links(&self) -> SocketAddr {
        self.links
    }

    /// Where other machines link to at this moment.
    ///
    /// # Errors
    /// When they cannot: why, and what to do.
    pub fn links_reached(&self) -> Result<SocketAddr, String> {
        (self.reached)(self.links)
    }

    /// The store's read side: snapshots and watches.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The store's write side.
    pub fn commits(&self) -> &Port<Commit> {
        &self.commits
    }

    /// Byte streams to nodes.
    pub fn streams(&self) -> &Port<OpenStream> {
        &self.streams
    }

    /// The root of the supervision tree.
    pub fn supervisor(&self) -> &SupervisorHandle {
        self.root.handle()
    }

    /// The supervision trees that are shown as this cluster's.
    pub(super) fn trees(&self) -> &Trees {
        &self.trees
    }

    /// Typed access to the cluster's objects, without HTTP.
    pub fn client(&self) -> Client {
        Client::new(self.view.clone(), self.commits.clone(), self.streams.clone())
    }

    /// The cluster's authority certificate.
    pub fn ca(&self) -> &CaCertificate {
        self.authority.certificate()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> String {
        self.certificates.kubeconfig()
    }

    /// What a node of that name in this process needs to link to this master. Its certificate is renewed with the master's
    /// own while both run.
    ///
    /// # Errors
    /// When the name is no node name.
    pub fn admit_node(&self, name: &NodeName) -> Result<super::NodeLogin, StartError> {
        let master = kubeconfig::reachable(self.links).to_string();
        let (identity, ca) = (self.authority.issue_node(name)?, self.authority.certificate().clone());
        Ok(super::NodeLogin::new(name.clone(), master, identity, ca).beside(&self.certificates))
    }

    /// Stops serving, then the actors, the store last.
    pub async fn stop(self) {
        if let Some(directory) = &self.directory {
            // It may never have been there.
            let _ = std::fs::remove_file(directory.join("ready"));
        }
        self.server.stop().await;
        self.root.stop().await;
        match Arc::try_unwrap(self.listener) {
            Ok(listener) => listener.into_inner().shutdown().await,
            Err(_) => tracing::warn!("the links' port is still in use"),
        }
    }
}

/// A master's actors, without its ports.
pub(super) struct Actors {
    pub(super) root: Root,
    pub(super) wiring: Wiring,
    pub(super) registry: Slot<NodeRegistry>,
    pub(super) store: Slot<StoreActor>,
    recorder: Slot<EventRecorder>,
}

impl Actors {
    /// The root and the store, which the ports need.
    pub(super) fn begin(
        store: StoreActor,
        view: View,
        on_escalate: Arc<dyn Fn(Escalation) + Send + Sync>,
    ) -> Actors {
        let root =
            Root::start(SupervisorSpec::new("master").on_escalate(move |escalation| on_escalate(escalation)));
        let store = start_store(root.handle(), store);
        let recorder = Slot::new("events");
        let wiring = Wiring { view, commits: store.port(), events: recorder.port() };
        Actors { root, wiring, registry: Slot::new("node registry"), store, recorder }
    }

    /// The others, which need to know the ports. Gives the root of all.
    pub(super) fn complete(self, bootstrap: Bootstrap, seed: RegistrySeed) -> Root {
        let Actors { root, wiring, registry, recorder, .. } = self;
        for child in [
            events::child(&recorder, &wiring),
            reconciler::namespaces(&wiring, bootstrap),
            reconciler::garbage(&wiring),
            reconciler::evictions(&wiring),
            reconciler::endpoints(&wiring),
            replication::child(&wiring),
            scheduler::child(&wiring),
            nodes::child(seed, &registry),
        ] {
            root.handle().start_child(child).detach();
        }
        root
    }
}

/// What a master has from its directory.
struct Opened {
    store: StoreActor,
    view: View,
    authority: Arc<Authority>,
    token_key: Arc<SigningKey>,
    lock: Option<Arc<DataDir>>,
}

fn open_store(config: &MasterConfig) -> Result<Opened, StartError> {
    match &config.persistence {
        Persistence::Memory => {
            let (store, view) = StoreActor::open(Memory::new())?;
            let token_key = token_key::signing(TokenKey::ephemeral()?)?;
            Ok(Opened {
                store,
                view,
                authority: Arc::new(Authority::ephemeral()?.with_life(config.certificates)),
                token_key,
                lock: None,
            })
        }
        Persistence::Directory(path) => {
            let dir = Arc::new(DataDir::open(path)?);
            let pki = path.join("pki");
            std::fs::create_dir_all(&pki).map_err(|source| StartError::File { path: pki.clone(), source })?;
            not_a_nodes(path)?;
            let authority = Arc::new(Authority::open(&pki)?.with_life(config.certificates));
            let token_key = token_key::signing(TokenKey::open(&pki)?)?;
            let (store, view) = StoreActor::open(Durable::open(&dir)?)?;
            Ok(Opened { store, view, authority, token_key, lock: Some(dir) })
        }
    }
}

/// Refuses the data directory of a node that joined.
pub(super) fn not_a_nodes(data: &Path) -> Result<(), StartError> {
    match data.join(NODE_RECORD).exists() {
        false => Ok(()),
        true => Err(StartError::Refused(format!(
            "{} is the data directory of a node that joined a cluster: name another --data-dir for a master",
            data.display()
        ))),
    }
}

/// The store is the one actor that cannot be made again: what it has not yet written would be lost unseen. Its death
/// escalates at once, and with it ends the process; the next one recovers from disk.
fn start_store(root: &SupervisorHandle, store: StoreActor) -> Slot<StoreActor> {
    let slot: Slot<StoreActor> = Slot::new("store");
    let store = Mutex::new(Some(store));
    let child = ChildSpec::new("store", &slot, move |_life| {
        let mut store = store.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        store.take().ok_or_else(|| "the store cannot be restarted within a process".into())
    });
    root.start_child(child.intensity(0, Duration::from_secs(1)).own_arbiter()).detach();
    slot
}

fn api_names(config: &MasterConfig) -> ApiNames {
    let mut names: Vec<String> =
        ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(String::from).into();
    let mut ips: Vec<IpAddr> = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::V4(SERVICE_ADDRESS)];
    if !config.api.ip().is_unspecified() {
        ips.push(config.api.ip());
    }
    if let Ok(host) = hostname::get() {
        names.push(host.to_string_lossy().to_lowercase());
    }
    for name in &config.api_names {
        match name.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => names.push(name.clone()),
        }
    }
    ips.sort_unstable();
    ips.dedup();
    ApiNames { names, ips }
}

fn api_config(
    config: &MasterConfig,
    authority: &Authority,
    ApiNames { names, ips }: &ApiNames,
) -> Result<ApiConfig, StartError> {
    let identity = authority.issue_api_server(names, ips)?;
    let tls = Tls {
        chain: identity.chain().to_vec(),
        key: identity.key(),
        client_ca: vec![authority.certificate().der().clone()],
    };
    Ok(ApiConfig::new(config.api, tls))
}
