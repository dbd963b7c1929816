//! Bare calls to a docker engine: what a pod of Troupe's is there, asked for without Troupe.
//!
//! [`Pods`] reads the settings of a pod that runs back from the engine, and has the same two containers created and started
//! again, on the same network, without the labels. No image is looked at, no log is followed, nobody is told.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{
        ContainerCreateBody, ContainerInspectResponse, HostConfig, Ipam, IpamConfig, NetworkCreateRequest,
    },
    query_parameters::{
        CreateContainerOptions, InspectContainerOptions, ListContainersOptions, ListNetworksOptions,
        RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
    },
};
use futures_util::{StreamExt as _, future::join, stream};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::runtime::Runtime;

use crate::{
    cluster::{Cluster, PODS, PodWatch},
    ground::{Beside, Peer},
    machine::{Marks, until},
};

const UID: &str = "local.troupe.pod.uid";
const NAME: &str = "local.troupe.pod.name";
const TYPE: &str = "local.troupe.type";

/// A way to an engine.
pub struct Calls {
    docker: Docker,
    runtime: Runtime,
}

impl Calls {
    /// On this socket.
    pub fn new(socket: &Path) -> Calls {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let socket = socket.to_string_lossy().into_owned();
        let docker = runtime.block_on(async {
            let docker = Docker::connect_with_unix(&socket, 120, API_DEFAULT_VERSION).expect("an engine");
            docker.negotiate_version().await.expect("an engine")
        });
        Calls { docker, runtime }
    }

    /// Every container that it has, whole.
    fn all(&self) -> Vec<ContainerInspectResponse> {
        self.runtime.block_on(async {
            let mut all = Vec::new();
            // None when the engine is gone, too: nothing is to be done then.
            for id in self.ids().await.unwrap_or_default() {
                // One that ends meanwhile is none.
                all.extend(self.docker.inspect_container(&id, None::<InspectContainerOptions>).await);
            }
            all
        })
    }

    async fn ids(&self) -> Option<Vec<String>> {
        let options = ListContainersOptions { all: true, ..ListContainersOptions::default() };
        let all = self.docker.list_containers(Some(options)).await.ok()?;
        Some(all.into_iter().filter_map(|found| found.id).collect())
    }

    /// How many containers it has.
    pub fn count(&self) -> usize {
        self.runtime.block_on(self.ids()).expect("a list").len()
    }

    /// Waits until the engine has no container.
    pub fn until_none(&self) {
        until("an engine without containers", || {
            std::thread::sleep(Duration::from_millis(50));
            self.count() == 0
        });
    }

    /// The process of a pod's container.
    pub fn container_of(&self, uid: &str) -> i32 {
        let found = self.all().into_iter().find(|found| {
            label(found, UID).is_some_and(|of| of == uid)
                && label(found, TYPE).is_some_and(|kind| kind == "container")
                && found.state.as_ref().is_some_and(|state| state.running == Some(true))
        });
        let pid = found.and_then(|found| found.state?.pid).expect("the pod has a container");
        i32::try_from(pid).expect("a pid")
    }

    /// The processes of all containers.
    pub fn container_processes(&self) -> Vec<i32> {
        let pids = self.all().into_iter().filter_map(|found| found.state?.pid);
        pids.filter_map(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0).collect()
    }

    /// Removes every container and every network that rows made: a bridge would outlive the engine.
    pub fn remove_all(&self) {
        self.runtime.block_on(async {
            // None when the engine is gone, too: nothing is to be done then.
            for id in self.ids().await.unwrap_or_default() {
                let options = RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() };
                let _ = self.docker.remove_container(&id, Some(options)).await;
            }
            let all = self.docker.list_networks(None::<ListNetworksOptions>).await.unwrap_or_default();
            for name in all.into_iter().filter_map(|found| found.name) {
                // Those that every engine has it refuses to remove.
                let _ = self.docker.remove_network(&name).await;
            }
        });
    }

    /// What any start on an engine has to ask it: who it is, what it has of images and containers, a network for pods.
    pub fn time_greeting(socket: &Path) -> Duration {
        let begun = Instant::now();
        let calls = Calls::new(socket);
        let time = calls.runtime.block_on(async {
            calls.docker.version().await.expect("a version");
            for image in ["troupe.local/hello", "troupe.local/pause"] {
                // What counts is the question.
                let _ = calls.docker.inspect_image(image).await;
            }
            calls.ids().await;
            let subnet = IpamConfig { subnet: Some("10.213.0.0/24".to_owned()), ..IpamConfig::default() };
            let request = NetworkCreateRequest {
                name: "bare".to_owned(),
                driver: Some("bridge".to_owned()),
                ipam: Some(Ipam { config: Some(vec![subnet]), ..Ipam::default() }),
                ..NetworkCreateRequest::default()
            };
            calls.docker.create_network(request).await.expect("a network");
            begun.elapsed()
        });
        calls.remove_all();
        time
    }

    async fn create_and_start(&self, name: String, body: ContainerCreateBody) -> String {
        let options = CreateContainerOptions { name: Some(name), ..CreateContainerOptions::default() };
        let made = self.docker.create_container(Some(options), body).await.expect("it takes the same again");
        self.docker.start_container(&made.id, None::<StartContainerOptions>).await.expect("it starts");
        made.id
    }

    async fn remove(&self, id: &str) {
        let options = RemoveContainerOptions { v: true, force: true, ..RemoveContainerOptions::default() };
        self.docker.remove_container(id, Some(options)).await.expect("it can be removed");
    }
}

fn label<'a>(found: &'a ContainerInspectResponse, label: &str) -> Option<&'a String> {
    found.config.as_ref()?.labels.as_ref()?.get(label)
}

/// Has an engine run what Troupe's pods are there.
pub struct Pods {
    calls: Calls,
    socket: String,
    marks: Arc<Marks>,
    sandbox: ContainerCreateBody,
    container: ContainerCreateBody,
    /// The name of the pod that they were read from: what its container writes.
    pod: String,
    next: AtomicUsize,
    /// Stands for the file of the last words.
    _file: tempfile::NamedTempFile,
}

/// One of them: its container and its sandbox.
struct Made {
    name: String,
    container: String,
    sandbox: String,
}

impl Pods {
    /// Starts a pod of the cluster's, on an engine that has none yet, reads its settings and removes it.
    pub fn like_the_clusters(calls: Calls, cluster: &Cluster) -> Pods {
        const LIKE: &str = "like";
        let (mut client, watch) = (cluster.login().connect(), PodWatch::new(&cluster.login()));
        client.create(PODS, &cluster.pod(LIKE));
        watch.running(|_| true);
        let file = tempfile::NamedTempFile::new().expect("a new file");
        let mut all = calls.all();
        assert_eq!(all.len(), 2, "a sandbox and a container");
        if label(&all[0], TYPE).is_none_or(|kind| kind != "sandbox") {
            all.swap(0, 1);
        }
        let pod = label(&all[0], NAME).expect("a pod has a name").clone();
        let mut bodies = all.into_iter().map(|found| {
            let settings = serde_json::to_value(found.config).expect("settings are JSON");
            let mut body: ContainerCreateBody = serde_json::from_value(settings).expect("the same fields");
            body.labels = None;
            let mut host = found.host_config.unwrap_or_default();
            for mount in host.mounts.iter_mut().flatten() {
                let source = mount.source.as_deref().map(Path::new);
                if source.is_none_or(|source| source != cluster.marks.dir()) {
                    mount.source = Some(file.path().to_string_lossy().into_owned());
                }
            }
            body.host_config = Some(host);
            body
        });
        let (sandbox, container) = (bodies.next().expect("two"), bodies.next().expect("two"));
        client.delete(&format!("{PODS}/{LIKE}"));
        watch.deleted(LIKE);
        calls.until_none();
        cluster.marks.forget();
        let socket = format!("unix://{}", cluster.engine().expect("pods are an engine's").display());
        let (marks, next) = (Arc::clone(&cluster.marks), AtomicUsize::new(0));
        Pods { calls, socket, marks, sandbox, container, pod, next, _file: file }
    }

    /// So many, so many at once: until the engine says that the last one runs. Their removal is not in it.
    pub fn time_many(&self, count: usize, at_once: usize) -> Duration {
        let begun = Instant::now();
        let made = self.start_many(count, at_once);
        let time = begun.elapsed();
        for _ in 0..count {
            self.marks.next();
        }
        self.remove_many(made, at_once);
        time
    }

    fn start_many(&self, count: usize, at_once: usize) -> Vec<Made> {
        self.marks.forget();
        let made = stream::iter(0..count).map(|_| self.start()).buffer_unordered(at_once);
        self.calls.runtime.block_on(made.collect())
    }

    /// Gives how long it took.
    fn remove_many(&self, made: Vec<Made>, at_once: usize) -> Duration {
        let begun = Instant::now();
        let ids = made.into_iter().flat_map(|made| [made.container, made.sandbox]);
        let removed =
            stream::iter(ids).map(|id| async move { self.calls.remove(&id).await }).buffer_unordered(at_once);
        self.calls.runtime.block_on(removed.collect::<()>());
        begun.elapsed()
    }

    fn new_name(&self) -> String {
        format!("bare-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Sandbox, then container.
    async fn start(&self) -> Made {
        let name = self.new_name();
        let sandbox = self.calls.create_and_start(format!("{name}-sandbox"), self.sandbox.clone()).await;
        let container = self.start_container(&sandbox, &name).await;
        Made { name, container, sandbox }
    }

    async fn start_container(&self, sandbox: &str, name: &str) -> String {
        let mut container = self.container.clone();
        // The first of them is not of Troupe's name either.
        let own = |texts: Option<Vec<String>>| {
            texts.map(|all| all.into_iter().map(|text| text.replace(&self.pod, name)).collect::<Vec<_>>())
        };
        (container.cmd, container.env) = (own(container.cmd), own(container.env));
        let join = Some(format!("container:{sandbox}"));
        if let Some(host) = &mut container.host_config {
            *host = HostConfig { network_mode: join.clone(), ipc_mode: join, ..host.clone() };
        }
        // The engine refuses a host name beside another's network.
        container.hostname = None;
        self.calls.create_and_start(name.to_owned(), container).await
    }

    /// Waits until the engine tells that a container has ended.
    async fn ended(&self, id: &str) {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        // How it ended comes as an error.
        let _ = Box::pin(self.calls.docker.wait_container(id, Some(options))).next().await;
    }

    /// As a person does it: `docker run -d` on the pods' network, removed again.
    fn time_docker_run(&self) -> Duration {
        let name = self.new_name();
        let network = self.sandbox.host_config.as_ref().and_then(|host| host.network_mode.clone());
        let image = self.container.image.clone().expect("an image");
        let mut command = Command::new("docker");
        command.args(["--host", &self.socket, "run", "--detach", "--name", &name]);
        command.args(["--network", &network.expect("a network")]);
        command.args(["--volume", &format!("{}:/marks", self.marks.dir().display())]);
        command.args([&image, "--write", &format!("/marks/{name}=here")]);
        let begun = Instant::now();
        let output = command.stdin(Stdio::null()).output().expect("it was there before");
        assert!(output.status.success(), "docker run: {}", String::from_utf8_lossy(&output.stderr));
        let time = self.marks.of(&name) - begun;
        self.calls.runtime.block_on(self.calls.remove(&name));
        time
    }
}

impl Beside for Pods {
    fn pod(&self) -> Duration {
        let begun = Instant::now();
        let made = self.calls.runtime.block_on(self.start());
        let time = self.marks.of(&made.name) - begun;
        self.remove_many(vec![made], 1);
        time
    }

    fn restart(&self) -> [Duration; 2] {
        let Calls { docker, runtime } = &self.calls;
        let mut made = runtime.block_on(self.start());
        self.marks.of(&made.name);
        let inspected = docker.inspect_container(&made.container, None::<InspectContainerOptions>);
        let found = runtime.block_on(inspected).expect("it is there");
        let pid = found.state.and_then(|state| i32::try_from(state.pid?).ok()).expect("it runs");
        let name = self.new_name();
        let begun = Instant::now();
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it runs");
        runtime.block_on(self.ended(&made.container));
        let told = Instant::now();
        let next = runtime.block_on(self.start_container(&made.sandbox, &name));
        let first = self.marks.of(&name);
        runtime.block_on(self.calls.remove(&made.container));
        made.container = next;
        self.remove_many(vec![made], 1);
        [first - begun, first - told]
    }

    fn replacement(&self) -> Duration {
        let runtime = &self.calls.runtime;
        let old = runtime.block_on(self.start());
        self.marks.of(&old.name);
        let begun = Instant::now();
        let end = async {
            self.calls.remove(&old.container).await;
            self.calls.remove(&old.sandbox).await;
        };
        let (made, ()) = runtime.block_on(join(self.start(), end));
        let time = self.marks.of(&made.name) - begun;
        self.remove_many(vec![made], 1);
        time
    }

    fn end(&self, count: usize, at_once: usize) -> Duration {
        let made = self.start_many(count, at_once);
        for _ in 0..count {
            self.marks.next();
        }
        self.remove_many(made, at_once)
    }

    fn peers(&self) -> Vec<Peer<'_>> {
        let there = Command::new("docker").arg("--version").stdout(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            eprintln!("without docker run: no docker");
            return Vec::new();
        }
        vec![("docker run -d", Box::new(|| self.time_docker_run()))]
    }
}
