//! A master and its nodes in one process: `troupe up`, and what embedders start.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Client, ClientError, Master, MasterConfig, Node, NodeConfig, Persistence, RegistryOptions, RuntimeChoice,
    StartError,
    node::MAX_PODS,
    rootless::Outside,
    runtime::{choose, open_runtime},
};
use crate::{
    actors::{kubelet::KubeletSettings, supervisor::Escalation},
    logic::supervision::Backoff,
    model::{Key, Kind, KindFacet, NodeName, Snapshot},
    runtime::ContainerRuntime,
};

/// What a cluster in one process is to be like: fields to set, methods for the usual cases, [`Cluster::start`] to begin.
pub struct ClusterConfig {
    /// The master.
    pub master: MasterConfig,
    /// The nodes' names; none makes a master alone.
    pub nodes: Vec<NodeName>,
    /// Which runtime the nodes use, unless [`ClusterConfig::runtimes`] has one for it.
    pub runtime: RuntimeChoice,
    /// Where the runtime of [`RuntimeChoice::Cri`] listens: a path, or `unix://` and one. Absent: where the nodes'
    /// containers are already, else containerd's usual place.
    pub cri_socket: Option<String>,
    /// Runtimes of the embedder's own, by node.
    pub runtimes: Vec<(NodeName, Arc<dyn ContainerRuntime>)>,
    /// Where nodes keep pods, logs and images. The master's directory, if it has one.
    pub directory: PathBuf,
    /// CrashLoopBackOff.
    pub crash_loop: Backoff,
    /// Most pods on each node.
    pub max_pods: u32,
    /// Where images come from.
    pub registries: RegistryOptions,
    /// A directory of manifests, whose pods the first node runs in any case.
    pub manifests: Option<PathBuf>,
    /// The nodes' limits.
    pub kubelet: KubeletSettings,
    /// What stayed out of this process' network namespace, when it entered one.
    pub outside: Option<Outside>,
}

impl ClusterConfig {
    /// One node, named after this machine, everything below `directory`, and whichever runtime this process may use
    /// ([`RuntimeChoice::Auto`]).
    pub fn new(directory: impl Into<PathBuf>) -> ClusterConfig {
        let directory = directory.into();
        ClusterConfig {
            master: MasterConfig::new(Persistence::Directory(directory.clone())),
            nodes: vec![this_machine()],
            runtime: RuntimeChoice::Auto,
            cri_socket: None,
            runtimes: Vec::new(),
            directory,
            crash_loop: Backoff::CRASH_LOOP,
            max_pods: MAX_PODS,
            registries: RegistryOptions::default(),
            manifests: None,
            kubelet: KubeletSettings::default(),
            outside: None,
        }
    }

    /// Simulated containers, objects in memory: for tests of what is built on top. `directory` gets pods' directories.
    pub fn simulated(directory: impl Into<PathBuf>) -> ClusterConfig {
        ClusterConfig { runtime: RuntimeChoice::Sim, ..ClusterConfig::new(directory).in_memory() }
    }

    /// Objects are kept in memory only and end with the cluster.
    #[must_use]
    pub fn in_memory(mut self) -> ClusterConfig {
        self.master.persistence = Persistence::Memory;
        self
    }

    /// These nodes instead of the one named after this machine.
    #[must_use]
    pub fn nodes<N: Into<NodeName>>(mut self, names: impl IntoIterator<Item = N>) -> ClusterConfig {
        self.nodes = names.into_iter().map(Into::into).collect();
        self
    }

    /// A runtime of the embedder's own for one of the nodes.
    #[must_use]
    pub fn runtime_of(
        mut self,
        node: impl Into<NodeName>,
        runtime: Arc<dyn ContainerRuntime>,
    ) -> ClusterConfig {
        self.runtimes.push((node.into(), runtime));
        self
    }

    /// Where the API listens; a free port of the loopback interface unless given.
    #[must_use]
    pub fn api(mut self, listen: SocketAddr) -> ClusterConfig {
        self.master.api = listen;
        self
    }

    /// Refuses what can be seen to be wrong before anything is started.
    fn check(&self) -> Result<(), StartError> {
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.nodes.iter().find(|name| !seen.insert(*name)) {
            return Err(StartError::Refused(format!("two nodes are called {twice}: give each its own name")));
        }
        if let Some((name, _)) = self.runtimes.iter().find(|(name, _)| !seen.contains(name)) {
            return Err(StartError::Refused(format!(
                "a runtime is given for the node {name}, but no node is called so: add it to the nodes"
            )));
        }
        // Before anything is written: a start that cannot succeed leaves nothing.
        if self.runtimes.len() < self.nodes.len() {
            choose(self.runtime, &self.directory, &self.nodes, self.cri_socket.as_deref())?;
        }
        Ok(())
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

/// A running cluster. Several can run in one process. Dropping it without [`Cluster::stop`] begins its stop too, and
/// waits for nothing.
pub struct Cluster {
    nodes: Vec<Node>,
    master: Master,
    failure: watch::Receiver<Option<Escalation>>,
}

impl Cluster {
    /// Starts everything inside the present actix system. When this returns the API serves and the nodes are linking.
    /// It sets up neither logging nor signals, and never ends the process.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub async fn start(config: ClusterConfig) -> Result<Cluster, StartError> {
        config.check()?;
        let mut registries = config.registries.read()?;
        if let Some(outside) = &config.outside {
            registries.threads = outside.threads();
        }
        let registry_config = config.registries.credentials.clone();
        let ClusterConfig {
            mut master,
            nodes: names,
            runtime,
            cri_socket,
            runtimes,
            directory,
            crash_loop,
            max_pods,
            registries: _,
            mut manifests,
            kubelet,
            outside,
        } = config;
        let (failed, failure) = watch::channel(None);
        let told = master.on_escalate.clone();
        let on_escalate: Arc<dyn Fn(Escalation) + Send + Sync> = Arc::new(move |escalation: Escalation| {
            failed.send_if_modified(|first| {
                let new = first.is_none();
                first.get_or_insert_with(|| escalation.clone());
                new
            });
            told(escalation);
        });
        master.on_escalate = on_escalate.clone();
        if let Some(outside) = &outside {
            master.reached = outside.reached();
        }
        let runtime = if runtimes.len() < names.len() {
            choose(runtime, &directory, &names, cri_socket.as_deref())?
        } else {
            runtime
        };
        let mut cluster = Cluster { nodes: Vec::new(), master: Master::start(master).await?, failure };
        for (index, name) in names.into_iter().enumerate() {
            let own = runtimes.iter().find(|(node, _)| *node == name).map(|(_, r)| r.clone());
            let begun = async {
                let runtime = match own {
                    Some(runtime) => runtime,
                    None => {
                        open_runtime(
                            runtime,
                            &directory,
                            &name,
                            index,
                            registries.clone(),
                            cri_socket.as_deref(),
                        )
                        .await?
                    }
                };
                let node = NodeConfig {
                    login: cluster.master.admit_node(&name)?,
                    directory: directory.join("nodes").join(name.as_str()),
                    runtime,
                    labels: Default::default(),
                    address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                    max_pods,
                    manifests: manifests.take(),
                    crash_loop,
                    registry_config: registry_config.clone(),
                    settings: kubelet.clone(),
                    sockets: outside.as_ref().map(Outside::sockets),
                    host_ports: outside.as_ref().map(Outside::host_ports),
                    on_escalate: on_escalate.clone(),
                };
                Node::start(node).await
            };
            match begun.await {
                Ok(node) => {
                    cluster.master.trees().add(node.name(), node.supervisor());
                    cluster.nodes.push(node);
                }
                Err(error) => {
                    cluster.stop().await;
                    return Err(error);
                }
            }
        }
        Ok(cluster)
    }

    /// The master.
    pub fn master(&self) -> &Master {
        &self.master
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Typed access to the cluster's objects, without HTTP.
    pub fn client(&self) -> Client {
        self.master.client()
    }

    /// Waits until every node is ready, and the cluster's first namespaces are there.
    ///
    /// # Errors
    /// [`ClientError::Timeout`] when that takes longer than `within`.
    pub async fn ready(&self, within: Duration) -> Result<(), ClientError> {
        let names: Vec<NodeName> = self.nodes.iter().map(|n| n.name().clone()).collect();
        let namespace = Key::new(Kind::Namespace, "", "default");
        let is_ready = |snapshot: &Snapshot, name: &NodeName| {
            let node = snapshot.find(&Key::new(Kind::Node, "", name.0.clone()));
            node.is_some_and(|o| matches!(&o.facet.of, KindFacet::Node(node) if node.ready))
        };
        let all = |snapshot: &Snapshot| {
            let ready = snapshot.find(&namespace).is_some() && names.iter().all(|n| is_ready(snapshot, n));
            ready.then_some(())
        };
        self.client().until(within, all).await
    }

    /// Waits for the day when a supervisor gives up: the cluster is of no use any more, and should be stopped. Never
    /// ends otherwise.
    pub async fn failed(&self) -> Escalation {
        let mut failure = self.failure.clone();
        let failed = failure.wait_for(Option::is_some).await.ok().and_then(|first| first.clone());
        match failed {
            Some(escalation) => escalation,
            // Its supervisors are gone without giving up: they were stopped.
            None => std::future::pending().await,
        }
    }

    /// Stops nodes, then the master: when this returns, ports, files and the data directory are free. Containers of a
    /// native runtime run on; a cluster on the same directory takes them over.
    pub async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
        self.master.stop().await;
    }
}
