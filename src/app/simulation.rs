//! A master and nodes on a network in memory, for tests/simulation: the same actors, wired by the same code.
//!
//! Owns: what stands in for the ports. Whoever uses it says [`crate::actors::outside::stay_on_this_thread`] first, so that
//! nothing but the clock and the seed decides what happens next. Leaves out what needs ports or files of a process' own:
//! the API's HTTP, joining, certificates.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::{
    Client, Node, NodeConfig, NodeLogin, StartError,
    guard::Root,
    master::{Actors, MasterConfig},
    node::MAX_PODS,
    token_key,
};
use crate::{
    actors::{kubelet::KubeletSettings, nodes::RegistrySeed, store::StoreActor, supervisor::Escalation},
    logic::{namespaces::Bootstrap, supervision::Backoff, tokens::SigningKey},
    model::NodeName,
    net::{Authority, Listener, TokenKey, identity::MASTER, memory::Network},
    runtime::ContainerRuntime,
    store::Memory,
};

/// Short, so that whoever failed does not make a story long.
const CRASH_LOOP: Backoff =
    Backoff { initial: Duration::from_millis(500), cap: Duration::from_secs(5), ..Backoff::CRASH_LOOP };

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
        let seed = RegistrySeed {
            wiring: actors.wiring.clone(),
            listener: listener.clone(),
            pod_network: defaults.pod_network,
            cluster: defaults.cluster,
            lost_after: defaults.lost_after,
            admission: None,
            token_key: world.token_key.clone(),
            no_image_sharing: false,
        };
        let bootstrap = Bootstrap {
            ca_pem: String::new(),
            api_address: Ipv4Addr::LOCALHOST.to_string(),
            api_port: 0,
            service_address: None,
            links: None,
        };
        let client = Client::new(view, actors.wiring.commits.clone(), actors.registry.port());
        Ok(SimulatedMaster { client, address, listener, root: actors.complete(bootstrap, seed) })
    }

    /// Typed access to the cluster's objects.
    pub fn client(&self) -> Client {
        self.client.clone()
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

/// Starts a node's process on a machine that `runtime` stands for.
///
/// # Errors
/// See [`StartError`].
pub fn start_node(
    world: &World,
    name: &NodeName,
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
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        max_pods: MAX_PODS,
        manifests: None,
        crash_loop: CRASH_LOOP,
        registry_config: None,
        settings,
        sockets: None,
        on_escalate: world.on_escalate.clone(),
    };
    Node::start_by(world.network.connector(name), config, None)
}

/// Says that a node goes and comes back, as its process does on a signal.
pub async fn say_goodbye(node: &Node) {
    node.say_goodbye().await;
}
