//! S2d: a controller from none to many on the docker runtime, beside the bare calls to the same engine.
//!
//! The engine is a `dockerd` that this row starts (as the tests do), in a directory of its own. The bare limit asks it for
//! what a pod of Troupe's is there: its settings are read back from a pod that runs, and the same two containers are
//! created and started again, on the same network, without the labels. No image is looked at, no log is followed, no
//! end is waited for, nobody is told. How many at once is best for the engine is tried, and the best is the limit.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    models::{ContainerCreateBody, HostConfig},
    query_parameters::{
        CreateContainerOptions, InspectContainerOptions, ListContainersOptions, RemoveContainerOptions,
        StartContainerOptions,
    },
};
use futures_util::{StreamExt as _, stream};
use tokio::runtime::Runtime;

use crate::{
    Options,
    cluster::{Cluster, PodWatch},
    engine::{Engine, Lease, at_hand},
    machine::{Marks, until},
    row::{Row, Times, ms},
    scale::{prepare, scale_down, scale_up},
};

/// How many pods the bare calls make at once: the engine's best is somewhere here on a few cores.
const AT_ONCE: [usize; 2] = [4, 8];
/// What Troupe may take of the bare calls' time.
const BUDGET: f64 = 1.1;

/// S2d: a controller 0 → 10, 50, 100 pods on docker, all told to be Running.
pub fn up(options: &Options) -> Vec<Row> {
    if !at_hand() {
        return Vec::new();
    }
    let engine = Lease::fresh();
    let cluster = Cluster::on_docker(options, &engine.socket);
    let (mut client, watch) = prepare(&cluster);
    // The first pod has the engine make everything that it makes once, and tells what the bare calls are to ask for.
    scale_up(&cluster, &mut client, &watch, 1);
    let bare = Bare::like_the_pod(&engine, cluster.marks.dir());
    scale_down(&cluster, &mut client);
    bare.until_none();
    [10, 50, 100]
        .map(|count| {
            let (mut running, mut first) = (Times::default(), Times::default());
            let mut limits = AT_ONCE.map(|at_once| (at_once, Times::default()));
            for _ in 0..options.rounds(3, 1) {
                // A watch of its own: one that hears nothing while the bare calls are made would be given up.
                let watch = PodWatch::new(&cluster.login());
                let (all_running, all_started) = scale_up(&cluster, &mut client, &watch, count);
                eprintln!("s2d {count}: {}, first instructions {}", ms(all_running), ms(all_started));
                running.push(all_running);
                first.push(all_started);
                scale_down(&cluster, &mut client);
                bare.until_none();
                for (at_once, times) in &mut limits {
                    let time = bare.time_many(count, *at_once, &cluster.marks);
                    eprintln!("s2d {count}: bare, {at_once} at once {}", ms(time));
                    times.push(time);
                }
            }
            let best = limits.iter().map(|(_, times)| times.mean()).min().unwrap_or_default();
            let ratio = running.mean().as_secs_f64() / best.as_secs_f64();
            let limits = limits.map(|(at_once, times)| format!("{at_once} at once {}", ms(times.mean())));
            Row {
                name: "S2d",
                what: format!("controller 0 → {count} pods Running on docker"),
                troupe: format!(
                    "{} (n={}), {ratio:.2} × bare; first instruction of the last {}",
                    ms(running.mean()),
                    running.len(),
                    ms(first.mean())
                ),
                beside: format!("bare calls to the same engine, {}", limits.join(", ")),
                budget: format!("≤ {BUDGET} × bare"),
                met: ratio <= BUDGET,
            }
        })
        .into()
}

/// Has an engine run what Troupe's pods are there.
struct Bare {
    docker: Docker,
    runtime: Runtime,
    sandbox: ContainerCreateBody,
    container: ContainerCreateBody,
    /// The name of the pod that they were read from: what its container writes.
    pod: String,
    /// Stands for the file of the last words.
    _file: tempfile::NamedTempFile,
}

impl Bare {
    /// Reads the settings of the one pod that the engine has.
    fn like_the_pod(engine: &Engine, marks: &Path) -> Bare {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let file = tempfile::NamedTempFile::new().expect("a new file");
        let socket = engine.socket.to_string_lossy().into_owned();
        let (docker, mut all) = runtime.block_on(async {
            let docker = Docker::connect_with_unix(&socket, 120, API_DEFAULT_VERSION).expect("an engine");
            let docker = docker.negotiate_version().await.expect("an engine");
            let options = ListContainersOptions { all: true, ..ListContainersOptions::default() };
            let mut all = Vec::new();
            for found in docker.list_containers(Some(options)).await.expect("a list") {
                let id = found.id.expect("an id");
                let inspected = docker.inspect_container(&id, None::<InspectContainerOptions>).await;
                all.push(inspected.expect("it is there"));
            }
            (docker, all)
        });
        assert_eq!(all.len(), 2, "a sandbox and a container");
        let labels = |at: usize| all[at].config.as_ref().and_then(|config| config.labels.clone());
        let is_sandbox = |at: usize| {
            labels(at)
                .is_some_and(|labels| labels.get("local.troupe.type").is_some_and(|kind| kind == "sandbox"))
        };
        if !is_sandbox(0) {
            all.swap(0, 1);
        }
        let pod =
            all[0].config.as_ref().and_then(|config| config.labels.as_ref()?.get("local.troupe.pod.name"));
        let pod = pod.expect("a pod has a name").clone();
        let mut bodies = all.into_iter().map(|found| {
            let settings = serde_json::to_value(found.config).expect("settings are JSON");
            let mut body: ContainerCreateBody = serde_json::from_value(settings).expect("the same fields");
            body.labels = None;
            let mut host = found.host_config.unwrap_or_default();
            for mount in host.mounts.iter_mut().flatten() {
                if mount.source.as_deref().is_none_or(|source| Path::new(source) != marks) {
                    mount.source = Some(file.path().to_string_lossy().into_owned());
                }
            }
            body.host_config = Some(host);
            body
        });
        let (sandbox, container) = (bodies.next().expect("two"), bodies.next().expect("two"));
        Bare { docker, runtime, sandbox, container, pod, _file: file }
    }

    /// So many pods, so many at once: until the engine says that the last one runs. Their removal is not in it.
    fn time_many(&self, count: usize, at_once: usize, marks: &Marks) -> Duration {
        marks.forget();
        let begun = Instant::now();
        let made = stream::iter(0..count).map(|number| self.start(number)).buffer_unordered(at_once);
        let ids: Vec<[String; 2]> = self.runtime.block_on(made.collect());
        let time = begun.elapsed();
        for _ in 0..count {
            marks.next();
        }
        let removed =
            stream::iter(ids.into_iter().flatten()).map(|id| self.remove(id)).buffer_unordered(at_once);
        self.runtime.block_on(removed.collect::<()>());
        self.until_none();
        time
    }

    /// Sandbox, then container.
    async fn start(&self, number: usize) -> [String; 2] {
        let sandbox = self.create_and_start(format!("bare-{number}-sandbox"), self.sandbox.clone()).await;
        let mut container = self.container.clone();
        // The first of them is not of Troupe's name either.
        let name = format!("bare-{number}");
        let own = |texts: Option<Vec<String>>| {
            texts.map(|all| all.into_iter().map(|text| text.replace(&self.pod, &name)).collect::<Vec<_>>())
        };
        (container.cmd, container.env) = (own(container.cmd), own(container.env));
        let join = Some(format!("container:{sandbox}"));
        if let Some(host) = &mut container.host_config {
            *host = HostConfig { network_mode: join.clone(), ipc_mode: join, ..host.clone() };
        }
        // The engine refuses a host name beside another's network.
        container.hostname = None;
        let container = self.create_and_start(name, container).await;
        [container, sandbox]
    }

    async fn create_and_start(&self, name: String, body: ContainerCreateBody) -> String {
        let options = CreateContainerOptions { name: Some(name), ..CreateContainerOptions::default() };
        let made = self.docker.create_container(Some(options), body).await.expect("it takes the same again");
        self.docker.start_container(&made.id, None::<StartContainerOptions>).await.expect("it starts");
        made.id
    }

    async fn remove(&self, id: String) {
        let options = RemoveContainerOptions { v: true, force: true, ..RemoveContainerOptions::default() };
        self.docker.remove_container(&id, Some(options)).await.expect("it can be removed");
    }

    /// Waits until the engine has no container.
    fn until_none(&self) {
        until("an engine without containers", || {
            std::thread::sleep(Duration::from_millis(50));
            let options = ListContainersOptions { all: true, ..ListContainersOptions::default() };
            self.runtime.block_on(self.docker.list_containers(Some(options))).is_ok_and(|all| all.is_empty())
        });
    }
}
