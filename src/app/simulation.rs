//! A master and nodes on a network in memory, for tests/simulation: the same actors, wired by the same code.
//!
//! Owns: what stands in for the ports. Whoever uses it says [`crate::actors::outside::stay_on_this_thread`] first, so that
//! nothing but the clock and the seed decides what happens next. Machines join by the registry's own decision, but are told
//! apart by their keys alone. Leaves out what needs ports or files of a process' own: the API's HTTP, certificates.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{api::core::v1, jiff::SignedDuration};
use tokio::sync::{mpsc, oneshot};

use super::{
    Client, ClientError, Node, NodeConfig, NodeLogin, StartError,
    guard::Root,
    master::{Actors, MasterConfig},
    node::MAX_PODS,
    token_key,
};
use crate::{
    actors::{
        kubelet::{KubeletSettings, Probe},
        nodes::{Admission, RegistrySeed},
        outside,
        store::StoreActor,
        supervisor::Escalation,
    },
    logic::{join, namespaces::Bootstrap, supervision::Backoff, tokens::SigningKey},
    messages::wire::{JoinAnswer, JoinRequest},
    model::{NodeName, token::JoinToken},
    net::{Authority, JoinAsk, Listener, TokenKey, csr::NodeKey, identity::MASTER, memory::Network},
    runtime::ContainerRuntime,
    store::Memory,
};

/// Short, so that whoever failed does not make a story long.
const CRASH_LOOP: Backoff =
    Backoff { initial: Duration::from_millis(500), cap: Duration::from_secs(5), ..Backoff::CRASH_LOOP };

/// Longer than any story: nothing is renewed in one.
const LIFE: SignedDuration = SignedDuration::from_hours(1000);
/// Machines that ask to join at once.
const ASKS: usize = 16;

/// Called when a supervisor gives up.
pub type OnEscalate = Arc<dyn Fn(Escalation) + Send + Sync>;

/// What outlives processes: keys, and the network.
#[derive(Clone)]
pub struct World {
    /// Between the machines.
    pub network: Network,
    authority: Arc<Authority>,
    token_key: Arc<SigningKey>,
    on_escalate: OnEscalate,
}

impl World {
    /// A world without machines.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(network: Network, on_escalate: OnEscalate) -> Result<World, StartError> {
        let token_key = token_key::signing(TokenKey::ephemeral()?)?;
        Ok(World { network, authority: Arc::new(Authority::ephemeral()?), token_key, on_escalate })
    }
}

/// A master without an API.
pub struct SimulatedMaster {
    client: Client,
    asks: mpsc::Sender<JoinAsk>,
    address: SocketAddr,
    listener: Arc<tokio::sync::Mutex<Listener>>,
    root: Root,
}

impl SimulatedMaster {
    /// Starts one on what `store` holds.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(world: &World, store: Memory) -> Result<SimulatedMaster, StartError> {
        let (store, view) = StoreActor::open(store)?;
        let listener = world.network.listen(&MASTER.into());
        let address = listener.local_addr();
        let listener = Arc::new(tokio::sync::Mutex::new(listener));
        let actors = Actors::begin(store, view.clone(), world.on_escalate.clone());
        let defaults = MasterConfig::new(super::Persistence::Memory);
        let (asks, asked) = mpsc::channel(ASKS);
        let admission = Admission::new(world.authority.clone(), asked, LIFE.unsigned_abs());
        let seed = RegistrySeed {
            wiring: actors.wiring.clone(),
            listener: listener.clone(),
            pod_network: defaults.pod_network,
            cluster: defaults.cluster,
            lost_after: defaults.lost_after,
            admission: Some(Arc::new(admission)),
            token_key: world.token_key.clone(),
            no_image_sharing: false,
        };
        let bootstrap = Bootstrap {
            ca_pem: String::new(),
            api_address: Ipv4Addr::LOCALHOST.to_string(),
            api_port: 0,
            service_address: None,
        };
        let client = Client::new(view, actors.wiring.commits.clone(), actors.registry.port());
        Ok(SimulatedMaster { client, asks, address, listener, root: actors.complete(bootstrap, seed) })
    }

    /// Typed access to the cluster's objects.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Admits machines.
    pub fn joins(&self) -> Joins {
        Joins { client: self.client(), asks: self.asks.clone() }
    }

    /// Where nodes link to: the same for every master of a world.
    pub fn links(&self) -> SocketAddr {
        self.address
    }

    /// Stops the actors, the store last. Closes links with a word only if the network still carries one.
    pub async fn stop(self) {
        self.root.stop().await;
        if let Ok(listener) = Arc::try_unwrap(self.listener) {
            listener.into_inner().shutdown().await;
        }
    }
}

/// The way of machines into a cluster, with a token of its own.
pub struct Joins {
    client: Client,
    asks: mpsc::Sender<JoinAsk>,
}

impl Joins {
    /// Has a machine ask for a name.
    ///
    /// # Errors
    /// Why it is not admitted, or not now.
    pub async fn join(&self, world: &World, name: &NodeName, key: &NodeKey) -> Result<(), String> {
        let token = JoinToken { id: "abcdef".into(), secret: "0123456789abcdef".into(), pin: [0; 32] };
        let expires = outside::now().checked_add(LIFE).map_err(|error| error.to_string())?;
        let secret: v1::Secret = serde_json::from_value(join::token_object(&token, expires, None))
            .map_err(|error| error.to_string())?;
        match self.client.create(&secret).await {
            Ok(_) | Err(ClientError::AlreadyExists(_)) => {}
            Err(error) => return Err(error.to_string()),
        }
        let request = JoinRequest {
            token_id: token.id,
            secret: token.secret,
            name: name.to_string(),
            csr: key.request().map_err(|error| error.to_string())?.into(),
        };
        let (answer, answered) = oneshot::channel();
        let address = SocketAddr::new(world.network.address(name), 1);
        let gone = || "the master has gone".to_owned();
        self.asks.send(JoinAsk { address, request, answer }).await.map_err(|_| gone())?;
        match answered.await.map_err(|_| gone())? {
            JoinAnswer::Admitted(_) => Ok(()),
            JoinAnswer::Refused(_, why) => Err(why),
        }
    }
}

/// Starts a node's process on a machine that `runtime` stands for; with the key by which it joined, if it did.
///
/// # Errors
/// See [`StartError`].
pub fn start_node(
    world: &World,
    name: &NodeName,
    key: Option<[u8; 32]>,
    master: SocketAddr,
    runtime: Arc<dyn ContainerRuntime>,
    directory: PathBuf,
    settings: KubeletSettings,
) -> Result<Node, StartError> {
    let config = NodeConfig {
        login: NodeLogin::new(
            name.clone(),
            master.to_string(),
            world.authority.issue_node(name)?,
            world.authority.certificate().clone(),
        ),
        directory,
        runtime,
        labels: Default::default(),
        address: world.network.address(name),
        max_pods: MAX_PODS,
        manifests: None,
        crash_loop: CRASH_LOOP,
        registry_config: None,
        settings,
        sockets: None,
        host_ports: None,
        on_escalate: world.on_escalate.clone(),
    };
    let connector = match key {
        Some(key) => world.network.joined_connector(name, key),
        None => world.network.connector(name),
    };
    let (network, from) = (world.network.clone(), name.clone());
    let probe: Probe = Arc::new(move |address| {
        let (network, from) = (network.clone(), from.clone());
        Box::pin(async move { network.probe(&from, address).await })
    });
    Node::start_by(connector, probe, config, None)
}

/// Says that a node goes and comes back, as its process does on a signal.
pub async fn say_goodbye(node: &Node) {
    node.say_goodbye().await;
}
