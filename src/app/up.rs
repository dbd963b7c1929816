//! `troupe up`: a cluster in the foreground, until a signal.
//!
//! Owns: the process around a [`Cluster`]: logging, the ready line and file, signals, the exit code.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    CERTIFICATES, Cluster, ClusterConfig, RegistryOptions, RuntimeChoice, StartError,
    address::LINKS_PORT,
    cluster::this_machine,
    network::{pod_network, route_within},
    node::MAX_PODS,
    notify,
    rootless::Rootless,
    telemetry::{init_metrics, init_tracing},
};
use crate::{
    actors::{kubelet::KubeletSettings, supervisor::Escalation},
    logic::nodes::free_subnet,
    model::NodeName,
    runtime::native::userns,
    store::DataDir,
};

/// A node that is not ready by then will not be soon: the process says so and goes on.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What `troupe up` was asked for.
#[derive(Clone, Debug)]
pub struct UpOptions {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Where nodes link to; `None` takes a free loopback port.
    pub links: Option<SocketAddr>,
    /// How many nodes.
    pub nodes: usize,
    /// The first node's name; this machine's when absent. Further ones get `-2`, `-3`…
    pub node_name: Option<String>,
    /// Which runtime.
    pub runtime: RuntimeChoice,
    /// Where the CRI runtime listens.
    pub cri_socket: Option<String>,
    /// The pods' network; `None` takes the one it had, or one that is free on this machine.
    pub pod_network: Option<String>,
    /// Most pods on each node.
    pub max_pods: u32,
    /// More names and addresses for the API's certificate.
    pub api_names: Vec<String>,
    /// The first delay of CrashLoopBackOff; Kubernetes' 10 s unless given.
    pub crash_loop_initial: Option<Duration>,
    /// Where images come from.
    pub registries: RegistryOptions,
    /// A directory of manifests, whose pods the first node runs in any case.
    pub manifests: Option<PathBuf>,
    /// The nodes' limits.
    pub kubelet: KubeletSettings,
    /// How long certificates of nodes that join are valid.
    pub node_certificates: Duration,
    /// How long the master's own certificates are valid.
    pub certificates: Duration,
    /// No images go from node to node, of those that join neither.
    pub no_image_sharing: bool,
}

impl UpOptions {
    /// One node on this directory, with what is usual: the API on `127.0.0.1:6443`, the pods' network one that is free.
    pub fn new(data_dir: PathBuf) -> UpOptions {
        UpOptions {
            data_dir,
            api: SocketAddr::from(([127, 0, 0, 1], 6443)),
            links: None,
            nodes: 1,
            node_name: None,
            runtime: RuntimeChoice::Auto,
            cri_socket: None,
            pod_network: None,
            max_pods: MAX_PODS,
            api_names: Vec::new(),
            crash_loop_initial: None,
            registries: RegistryOptions::default(),
            manifests: None,
            kubelet: KubeletSettings::default(),
            node_certificates: CERTIFICATES,
            certificates: CERTIFICATES,
            no_image_sharing: false,
        }
    }

    /// A master alone, to which other machines link on every address of this one.
    pub fn master(data_dir: PathBuf) -> UpOptions {
        let links = SocketAddr::from(([0, 0, 0, 0], LINKS_PORT));
        UpOptions { nodes: 0, links: Some(links), ..UpOptions::new(data_dir) }
    }
}

/// Runs until a signal or until the cluster cannot go on; says why on standard error.
/// `rootless` is what [`super::rootless::enter`] made, when an ordinary user starts it.
pub fn up(options: UpOptions, rootless: Option<Rootless>) -> ExitCode {
    init_tracing();
    if let Some(lacks) = rootless.as_ref().and_then(|_| userns::lacks()) {
        eprintln!("troupe: running as an ordinary user: {lacks}");
    }
    let system = actix::System::new();
    let outcome = system.block_on(run(options, rootless));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("troupe: {}", with_causes(&error));
            ExitCode::from(1)
        }
    }
}

pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// The signals by which a process is asked to end in order. Listened to before anything is started: who sees a node ready
/// may ask at once.
pub(super) struct Asked {
    terminate: Signal,
    interrupt: Signal,
}

impl Asked {
    pub(super) fn listen() -> Result<Asked, StartError> {
        let listen =
            |kind| signal(kind).map_err(|source| StartError::File { path: "signals".into(), source });
        Ok(Asked { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn run(options: UpOptions, rootless: Option<Rootless>) -> Result<ExitCode, StartError> {
    let ready_file = options.data_dir.join("ready");
    // Left by a process that was killed.
    let _ = std::fs::remove_file(&ready_file);
    let (escalated, mut escalation) = tokio::sync::mpsc::unbounded_channel::<Escalation>();
    let mut config = config(&options, escalated)?;
    if let Some(Rootless { api, links, outside }) = rootless {
        config.master.sockets = Some((api, links));
        config.outside = Some(outside);
    }
    let mut asked = Asked::listen()?;
    let cluster = Cluster::start(config).await?;
    if let Err(error) = cluster.ready(READY_WITHIN).await {
        tracing::warn!(%error, "not every node is ready; see: kubectl describe nodes");
    }
    if let (Some(_), Err(why)) = (options.links, cluster.master().links_reached()) {
        eprintln!("troupe: {why}");
    }
    notify::ready(&announce(&cluster, &options.data_dir, &ready_file)?);
    let code = tokio::select! {
        () = asked.wait() => ExitCode::SUCCESS,
        Some(escalation) = escalation.recv() => {
            eprintln!("troupe: {} gave up: {}", escalation.supervisor, escalation.reason);
            ExitCode::from(1)
        }
    };
    notify::stopping();
    let pods = cluster.master().view().snapshot().list(crate::model::Kind::Pod, None).count();
    let nodes: Vec<NodeName> = cluster.nodes().iter().map(|node| node.name().clone()).collect();
    cluster.stop().await;
    if pods == 0 && !nodes.is_empty() && options.runtime != RuntimeChoice::Sim {
        super::reset::tidy(&options.data_dir, &nodes).await;
    }
    if pods > 0 && !nodes.is_empty() && options.runtime != RuntimeChoice::Sim {
        eprintln!(
            "troupe: {pods} pods run on; `troupe up` on the same data directory takes them over, `troupe reset` ends them"
        );
    }
    Ok(code)
}

fn config(
    options: &UpOptions,
    escalated: tokio::sync::mpsc::UnboundedSender<Escalation>,
) -> Result<ClusterConfig, StartError> {
    let mut config = ClusterConfig::new(options.data_dir.clone());
    config.master.api = options.api;
    config.master.metrics = init_metrics();
    if let Some(links) = options.links {
        config.master.links = links;
    }
    if let Some(network) = &options.pod_network {
        free_subnet(network, std::iter::empty())
            .map_err(|why| StartError::Refused(format!("--pod-network: {why}")))?;
    }
    // One that is not ours to use is refused before anything is written into it.
    drop(DataDir::open(&options.data_dir)?);
    if let Some(network) = &options.pod_network
        && let Some(route) = route_within(&options.data_dir, network)
    {
        return Err(StartError::Refused(format!(
            "--pod-network: {network} has the route {route} of this machine within it: choose a network that nothing here uses"
        )));
    }
    config.master.pod_network = pod_network(&options.data_dir, options.pod_network.as_deref())
        .map_err(|source| StartError::File { path: options.data_dir.clone(), source })?;
    config.master.api_names.clone_from(&options.api_names);
    config.master.node_certificates = options.node_certificates;
    config.master.certificates = options.certificates;
    config.master.no_image_sharing = options.no_image_sharing;
    config.master.on_escalate = Arc::new(move |escalation| {
        // The process is about to end anyway when nobody listens.
        let _ = escalated.send(escalation);
    });
    let first = options.node_name.clone().map_or_else(this_machine, NodeName::from);
    config.nodes = (0..options.nodes)
        .map(|n| if n == 0 { first.clone() } else { NodeName::from(format!("{first}-{}", n + 1)) })
        .collect();
    config.runtime = options.runtime;
    config.cri_socket.clone_from(&options.cri_socket);
    config.max_pods = options.max_pods;
    config.registries = options.registries.clone();
    config.manifests.clone_from(&options.manifests);
    config.kubelet.clone_from(&options.kubelet);
    if let Some(initial) = options.crash_loop_initial {
        config.crash_loop.initial = initial;
        config.crash_loop.cap = config.crash_loop.cap.max(initial);
    }
    Ok(config)
}

/// Says that the cluster is ready; what it says, for others.
fn announce(cluster: &Cluster, data_dir: &Path, ready_file: &Path) -> Result<String, StartError> {
    match std::fs::write(ready_file, format!("{}\n", cluster.master().api())) {
        Err(error) if super::kubeconfig::no_room(&error) => {
            tracing::warn!(path = %ready_file.display(), %error, "cannot be written");
        }
        written => {
            written.map_err(|source| StartError::File { path: ready_file.into(), source })?;
        }
    }
    let mut out = std::io::stdout();
    let kubeconfig = data_dir.join("admin.kubeconfig");
    let (kubeconfig, master) = (kubeconfig.display(), cluster.master());
    let (what, next) = match cluster.nodes().len() {
        0 => (
            format!("links {} (UDP)", master.links_reached().unwrap_or(master.links())),
            format!("add a machine: troupe token create --kubeconfig {kubeconfig}"),
        ),
        nodes => (format!("{nodes} node(s)"), format!("try: kubectl --kubeconfig {kubeconfig} get nodes")),
    };
    let api = super::kubeconfig::reachable(master.api());
    let said = format!("ready: API https://{api}, {what}");
    // Nobody may read standard output; the file says the same.
    let _ = writeln!(out, "{said}; {next}");
    let _ = out.flush();
    Ok(said)
}
