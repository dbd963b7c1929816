//! A node: a kubelet with its runtime, linked to a master.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use super::{NodeLogin, StartError, certificates::Kept, guard::Root, membership::Fresh, network};
use crate::{
    actors::{
        kubelet::{
            self, Configs, HostIp, KubeletSeed, KubeletSettings, Ledger, NodeContext, Peers, Probe, Starts,
        },
        supervisor::{Escalation, SupervisorHandle, SupervisorSpec},
        uplink::{Leave, Member},
    },
    logic::{nodes::MachineFacts, supervision::Backoff},
    messages::{Port, Slot},
    model::NodeName,
    net::{self, Connector, Dialer, LinkConfig, identity::MASTER},
    runtime::{
        ContainerRuntime, disk,
        images::{ImageStore, RegistryConfig},
        native::{self, NativeConfig, NativeRuntime},
    },
};

/// The kubelet's version, as in `kubectl get nodes`; written as the API writes its own.
const KUBELET_VERSION: &str = concat!("v1.33.1+troupe-", env!("CARGO_PKG_VERSION"));

/// What a node is to be like.
pub struct NodeConfig {
    /// Who it is and whose.
    pub login: NodeLogin,
    /// Holds the node's pods and logs.
    pub directory: PathBuf,
    /// What drives its containers.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Labels for the node object.
    pub labels: BTreeMap<String, String>,
    /// The address other machines reach it at.
    pub address: IpAddr,
    /// Most pods on the node.
    pub max_pods: u32,
    /// A directory of manifests: pods that the node runs in any case.
    pub manifests: Option<PathBuf>,
    /// CrashLoopBackOff.
    pub crash_loop: Backoff,
    /// The node's own credentials for registries: a file in the form of Docker's `config.json`.
    pub registry_config: Option<PathBuf>,
    /// Its limits.
    pub settings: KubeletSettings,
    /// How it comes by sockets for its link, when not by binding one where it is.
    pub sockets: Option<net::Sockets>,
    /// How ports of the machine are opened for its pods, when not by binding them where it is.
    pub host_ports: Option<net::relay::Opener>,
    /// Called when the node's supervisor gives up.
    pub on_escalate: Arc<dyn Fn(Escalation) + Send + Sync>,
}

/// A goodbye is a message and a close.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// Kubernetes' default.
pub const MAX_PODS: u32 = 110;

/// A running node. Dropping it without [`Node::stop`] begins its stop too, and waits for nothing.
pub struct Node {
    name: NodeName,
    leave: Port<Leave>,
    root: Root,
    /// Its certificate is renewed by the master beside it.
    _kept: Option<Kept>,
}

impl Node {
    /// Starts a node inside the present actix system; it links to its master as soon as it can. Its certificate is
    /// renewed while it runs, by a master of this process that gave it ([`Master::admit_node`](super::Master::admit_node))
    /// or else over the link.
    ///
    /// # Errors
    /// When its directory or identity cannot be used.
    pub async fn start(config: NodeConfig) -> Result<Node, StartError> {
        let keeping = config.login.keeping()?.map(|keeping| Arc::new(keeping) as Arc<dyn Fresh>);
        Node::start_as(config, keeping).await
    }

    /// The same for a node whose certificate somebody keeps fresh.
    pub(super) async fn start_as(
        config: NodeConfig,
        member: Option<Arc<dyn Fresh>>,
    ) -> Result<Node, StartError> {
        let NodeConfig { login, .. } = &config;
        let mut connector = Connector::new(&login.identity, &login.ca, LinkConfig::default())?;
        if let Some(sockets) = &config.sockets {
            connector = connector.with_sockets(sockets.clone());
        }
        if let Some(member) = &member {
            member.dials_by(connector.clone());
        }
        let kept = match config.login.renewed_by() {
            Some(certificates) => Some(certificates.keep_fresh(login, connector.clone())?),
            None => None,
        };
        let member = member.map(|member| member as Arc<dyn Member>);
        let node = Node::start_by(connector, kubelet::by_tcp(), config, member)?;
        Ok(Node { _kept: kept, ..node })
    }

    /// The same for one that dials, and looks for other machines, in its own way.
    pub(super) fn start_by(
        connector: Connector,
        probe: Probe,
        config: NodeConfig,
        member: Option<Arc<dyn Member>>,
    ) -> Result<Node, StartError> {
        for dir in ["pods", "logs"] {
            let path = config.directory.join(dir);
            disk::make_apart(&path).map_err(|source| StartError::File { path, source })?;
        }
        let NodeConfig { login, runtime, labels, address, max_pods, manifests, .. } = config;
        let (uplink, no_image_sharing) = (Slot::new("uplink"), config.settings.no_image_sharing);
        let context = Arc::new(NodeContext {
            name: login.name.to_string(),
            runtime,
            dir: config.directory,
            host_ip: HostIp::of(address),
            crash_loop: config.crash_loop,
            starts: Starts::default(),
            ledger: Ledger::default(),
            configs: Configs::default(),
            registry_config: config.registry_config,
            peers: match no_image_sharing {
                true => Peers::default(),
                false => Peers::by(uplink.port()),
            },
            host: net::relay::Host::by(config.host_ports),
            settings: config.settings,
            packing: Default::default(),
            storage: Default::default(),
        });
        let facts = MachineFacts {
            hostname: login.name.to_string(),
            address: address.to_string(),
            max_pods,
            version: KUBELET_VERSION.into(),
            no_image_sharing,
            ..MachineFacts::default()
        };
        let on_escalate = config.on_escalate;
        let root = Root::start(
            SupervisorSpec::new("node root").on_escalate(move |escalation| on_escalate(escalation)),
        );
        let master = login.master;
        let whereabouts = member.clone();
        let child = kubelet::child(
            move |slot, pods, uplink| KubeletSeed {
                node: context.clone(),
                labels: labels.clone(),
                facts: facts.clone(),
                uplink,
                slot: slot.clone(),
                pods: pods.clone(),
                manifests: manifests.clone(),
                probe: probe.clone(),
                whereabouts: whereabouts.clone(),
            },
            move || Dialer::new(connector.clone(), master.clone(), MASTER, net::Backoff::default()),
            member,
            (&uplink, root.handle()),
        );
        root.handle().start_child(child).detach();
        Ok(Node { name: login.name, leave: uplink.port(), root, _kept: None })
    }

    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// The root of the node's supervision tree.
    pub fn supervisor(&self) -> &SupervisorHandle {
        self.root.handle()
    }

    /// Tells the master that the node goes and comes back, so that its pods are not replaced. To be stopped then.
    pub(super) async fn say_goodbye(&self) {
        // Without a link, or with one that is stuck, it is not told, and the node is taken for lost.
        if let Err(error) = self.leave.ask(Leave, GOODBYE_WITHIN).await {
            tracing::debug!(%error, "no goodbye");
        }
    }

    /// Stops the node's actors. Its containers run on.
    pub async fn stop(self) {
        self.root.stop().await;
    }
}

/// Whether this process may run containers natively.
///
/// # Errors
/// Line by line what is missing and what to do.
pub(super) fn may_run_containers() -> Result<(), StartError> {
    let Err(missing) = native::check() else { return Ok(()) };
    let lines: Vec<String> = missing.iter().map(|m| format!("  - {m}")).collect();
    Err(StartError::Refused(format!(
        "this machine cannot run containers natively:\n{}\n(or have docker run them: --runtime docker; or simulate them: \
         --runtime sim)",
        lines.join("\n")
    )))
}

/// Opens the native runtime for node number `index` of a data directory.
///
/// # Errors
/// When this process may not run containers: line by line what is missing and what to do.
pub async fn native_runtime(
    data: &std::path::Path,
    name: &NodeName,
    index: usize,
    registries: RegistryConfig,
) -> Result<Arc<dyn ContainerRuntime>, StartError> {
    may_run_containers()?;
    // Shims run elsewhere, and names of bridges follow from the path: it has to be one for however it was typed.
    let data =
        &std::fs::canonicalize(data).map_err(|source| StartError::File { path: data.to_owned(), source })?;
    let images = ImageStore::open(&data.join("images"))?;
    let program = std::env::current_exe()
        .map_err(|source| StartError::File { path: "/proc/self/exe".into(), source })?;
    images.ensure_builtin(&program).await?;
    let mut config = NativeConfig::new(data.join("nodes").join(name.as_str()).join("runtime"), images);
    config.registries = registries;
    let (bridge, cgroup) = network::names(data, index);
    config.bridge = bridge;
    config.cgroup_parent = cgroup;
    Ok(Arc::new(NativeRuntime::open(config)?))
}
