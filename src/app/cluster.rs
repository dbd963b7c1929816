//! A master and its nodes in one process: `troupe up`, and what embedders start.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::{
    Master, MasterConfig, Node, NodeConfig, Persistence, RuntimeChoice, StartError,
    node::{MAX_PODS, native_runtime},
};
use crate::{
    actors::supervisor::Escalation,
    logic::supervision::Backoff,
    messages::{SendFailed, View},
    model::{Key, Kind, KindFacet, NodeName},
    runtime::{
        ContainerRuntime,
        sim::{SimConfig, SimMachine, SimRuntime},
    },
};

/// What a cluster in one process is to be like.
pub struct ClusterConfig {
    /// The master.
    pub master: MasterConfig,
    /// The nodes' names; none makes a master alone.
    pub nodes: Vec<NodeName>,
    /// Which runtime the nodes use, unless [`ClusterConfig::runtimes`] has one for it.
    pub runtime: RuntimeChoice,
    /// Runtimes of the embedder's own, by node.
    pub runtimes: Vec<(NodeName, Arc<dyn ContainerRuntime>)>,
    /// Where nodes keep pods, logs and images. The master's directory, if it has one.
    pub directory: PathBuf,
    /// CrashLoopBackOff.
    pub crash_loop: Backoff,
    /// Most pods on each node.
    pub max_pods: u32,
}

impl ClusterConfig {
    /// One node, named after this machine, with the native runtime, everything below `directory`.
    pub fn new(directory: PathBuf) -> ClusterConfig {
        ClusterConfig {
            master: MasterConfig::new(Persistence::Directory(directory.clone())),
            nodes: vec![this_machine()],
            runtime: RuntimeChoice::Auto,
            runtimes: Vec::new(),
            directory,
            crash_loop: Backoff::CRASH_LOOP,
            max_pods: MAX_PODS,
        }
    }

    /// Simulated containers, objects in memory: for tests of what is built on top. `directory` gets pods' directories.
    pub fn simulated(directory: PathBuf) -> ClusterConfig {
        ClusterConfig {
            master: MasterConfig::new(Persistence::Memory),
            runtime: RuntimeChoice::Sim,
            ..ClusterConfig::new(directory)
        }
    }
}

/// This machine's name as a node name: lower case, as Kubernetes wants it.
pub fn this_machine() -> NodeName {
    let host = hostname::get().map(|h| h.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String = host
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' })
        .collect();
    let name = name.trim_matches(['-', '.']);
    NodeName::from(if name.is_empty() { "node" } else { name })
}

/// A running cluster.
pub struct Cluster {
    master: Master,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Starts everything inside the present actix system. When this returns the API serves and the nodes are linking.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: ClusterConfig) -> Result<Cluster, StartError> {
        let ClusterConfig { master, nodes: names, runtime, runtimes, directory, crash_loop, max_pods } =
            config;
        let on_escalate: Arc<dyn Fn(Escalation) + Send + Sync> = master.on_escalate.clone();
        let master = Master::start(master).await?;
        let mut nodes = Vec::new();
        for (index, name) in names.into_iter().enumerate() {
            let own = runtimes.iter().find(|(node, _)| *node == name).map(|(_, r)| r.clone());
            let runtime = match own {
                Some(runtime) => runtime,
                None => open_runtime(runtime, &directory, &name, index).await?,
            };
            let node = NodeConfig {
                login: master.admit_node(&name)?,
                directory: directory.join("nodes").join(name.as_str()),
                runtime,
                labels: Default::default(),
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                max_pods,
                crash_loop,
                on_escalate: on_escalate.clone(),
            };
            nodes.push(Node::start(node).await?);
        }
        Ok(Cluster { master, nodes })
    }

    /// The master.
    pub fn master(&self) -> &Master {
        &self.master
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// When that takes longer than `within`.
    pub async fn ready(&self, within: Duration) -> Result<(), SendFailed> {
        let names: Vec<NodeName> = self.nodes.iter().map(|n| n.name().clone()).collect();
        let all = wait_ready(self.master.view(), &names);
        tokio::time::timeout(within, all).await.map_err(|_| SendFailed::Timeout("nodes"))
    }

    /// Stops nodes, then the master. Containers of a native runtime run on; a cluster on the same directory takes them
    /// over.
    pub async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
        self.master.stop().await;
    }
}

async fn wait_ready(view: &View, names: &[NodeName]) {
    loop {
        let snapshot = view.snapshot();
        let ready = |name: &NodeName| {
            snapshot
                .find(&Key::new(Kind::Node, "", name.0.clone()))
                .is_some_and(|o| matches!(&o.facet.of, KindFacet::Node(node) if node.ready))
        };
        if names.iter().all(ready) {
            return;
        }
        // Too far behind is news as well: look at the snapshot again.
        let _ = view.watch(snapshot.revision).next().await;
    }
}

async fn open_runtime(
    choice: RuntimeChoice,
    directory: &std::path::Path,
    name: &NodeName,
    index: usize,
) -> Result<Arc<dyn ContainerRuntime>, StartError> {
    match choice {
        RuntimeChoice::Auto | RuntimeChoice::Native => native_runtime(directory, name, index).await,
        RuntimeChoice::Sim => {
            let seed = u64::try_from(index).unwrap_or(0);
            let machine = SimMachine::new(SimConfig { seed, ..SimConfig::default() })?;
            Ok(Arc::new(SimRuntime::open(machine)))
        }
    }
}
