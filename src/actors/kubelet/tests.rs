//! Tests of a kubelet and its pods over the simulated runtime.

use std::{net::IpAddr, sync::Mutex};

use serde_json::{Value, json};

use super::*;
use crate::{
    actors::{supervisor::Supervisor, testing::system},
    logic::supervision::Backoff,
    runtime::{
        ContainerRuntime as _, ContainerState, RuntimeError,
        sim::{Operation, SimConfig, SimMachine, SimRuntime},
    },
};

/// Stands for the link: keeps what the master would hear.
struct Master(Arc<Mutex<Vec<wire::ToMaster>>>);

impl Actor for Master {
    type Context = Context<Self>;
}

impl Handler<TellMaster> for Master {
    type Result = ();

    fn handle(&mut self, told: TellMaster, _: &mut Context<Self>) {
        self.0.lock().unwrap().push(told.message);
    }
}

/// A kubelet on a simulated machine.
struct Bench {
    machine: Arc<SimMachine>,
    dir: tempfile::TempDir,
    root: SupervisorHandle,
    pods: SupervisorHandle,
    slot: Slot<Kubelet>,
    told: Arc<Mutex<Vec<wire::ToMaster>>>,
    place: Arc<Place>,
    revision: u64,
}

/// Where the machine is, if a test says so.
#[derive(Default)]
struct Place(Mutex<Option<IpAddr>>);

impl Member for Place {
    fn linked(&self) {}
    fn turned_away(&self, _: &str) {}
    fn address(&self) -> Option<IpAddr> {
        *self.0.lock().unwrap()
    }
    fn look_every(&self) -> Duration {
        Duration::from_secs(60)
    }
    fn renewal(&self) -> Option<Vec<u8>> {
        None
    }
    fn renewed(&self, _: &str) -> bool {
        false
    }
}

impl Bench {
    fn start(config: SimConfig) -> Bench {
        let machine = SimMachine::new(config).unwrap();
        Bench::on(machine, tempfile::tempdir().unwrap())
    }

    /// A kubelet on a machine where an earlier one may have been.
    fn on(machine: Arc<SimMachine>, dir: tempfile::TempDir) -> Bench {
        let (told, place) = (Arc::default(), Arc::<Place>::default());
        let master = Master(Arc::clone(&told)).start();
        let root = Supervisor::start(SupervisorSpec::new("node"));
        let (slot, pods) = (Slot::new("kubelet"), SupervisorHandle::new("pods"));
        let node = NodeContext {
            name: "n".into(),
            runtime: Arc::new(SimRuntime::open(machine.clone())),
            dir: dir.path().to_owned(),
            host_ip: Default::default(),
            // What waits for the wall clock waits for it really.
            crash_loop: Backoff { initial: Duration::from_millis(100), ..Backoff::CRASH_LOOP },
            starts: context::Starts::default(),
            ledger: ledger::Ledger::default(),
            configs: Configs::default(),
            registry_config: None,
            peers: Default::default(),
            host: Default::default(),
            settings: Default::default(),
            packing: Default::default(),
            storage: Default::default(),
        };
        let seed = KubeletSeed {
            node: Arc::new(node),
            labels: Default::default(),
            facts: MachineFacts::default(),
            uplink: Port::fixed("uplink", master.recipient()),
            slot: slot.clone(),
            pods: pods.clone(),
            manifests: None,
            probe: by_tcp(),
            whereabouts: Some(place.clone()),
        };
        root.start_child(ChildSpec::new("kubelet", &slot, move |life| Ok(Kubelet::new(life, seed.clone()))))
            .detach();
        let spec = SupervisorSpec::new("pods").limit(Intensity::UNLIMITED).stop_together();
        let begin = slot.port::<PodsBegin>();
        root.start_child(ChildSpec::supervisor(spec, &pods, move |_| {
            let _ = begin.tell(PodsBegin);
        }))
        .detach();
        Bench { machine, dir, root, pods, slot, told, place, revision: 0 }
    }

    /// Ends the kubelet; what it ran goes on.
    async fn stop(self) -> (Arc<SimMachine>, tempfile::TempDir) {
        self.root.shutdown().await.unwrap();
        (self.machine, self.dir)
    }

    /// The master wants exactly these pods.
    async fn assign(&mut self, pods: &[Value]) {
        self.revision += 1;
        let revision = Revision(self.revision);
        let uid = |pod: &Value| Uid::from(pod["metadata"]["uid"].as_str().unwrap());
        let picture = wire::Assignments {
            revision,
            pods: pods.iter().map(|pod| wire::AssignedPod { uid: uid(pod), revision }).collect(),
            documents: pods
                .iter()
                .map(|pod| wire::PodDocument { uid: uid(pod), revision, json: pod.to_string().into() })
                .collect(),
        };
        self.until("the kubelet is there", |b| b.slot.address().is_some()).await;
        let kubelet = self.slot.address().unwrap();
        let welcome = wire::Welcome { pod_cidr: "10.9.0.0/24".into(), cluster: "test".into() };
        kubelet.do_send(FromMaster(wire::ToNode::Welcome(welcome)));
        kubelet.do_send(FromMaster(wire::ToNode::Assignments(picture)));
    }

    /// Waits until it holds; the paused clock moves meanwhile.
    async fn until(&self, what: &str, holds: impl Fn(&Bench) -> bool) {
        for _ in 0..20_000 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("waited in vain until {what}: {:?}", self.report("u"));
    }

    /// The newest status told of a pod, and whether nothing of it is left.
    fn report(&self, uid: &str) -> Option<(v1::PodStatus, bool)> {
        let told = self.told.lock().unwrap();
        let reports = told.iter().filter_map(|message| match message {
            wire::ToMaster::Pods(reports) => Some(reports),
            _ => None,
        });
        let newest = reports.flatten().rfind(|report| report.uid.as_str() == uid)?;
        Some((serde_json::from_slice(&newest.status).unwrap(), newest.terminated))
    }

    fn containers(&self) -> Vec<v1::ContainerStatus> {
        self.report("u").and_then(|(status, _)| status.container_statuses).unwrap_or_default()
    }

    /// Whether every container runs and was restarted so often.
    fn runs(&self, restarts: i32) -> bool {
        let all = self.containers();
        !all.is_empty() && all.iter().all(|c| c.ready && c.restart_count == restarts)
    }

    async fn running(&self) -> Vec<ContainerStatus> {
        let all = SimRuntime::open(self.machine.clone()).list_containers().await.unwrap();
        all.into_iter().filter(|c| c.state == ContainerState::Running).collect()
    }
}

fn pod(containers: &[&str], image: &str) -> Value {
    let containers: Vec<Value> = containers.iter().map(|c| json!({"name": c, "image": image})).collect();
    json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u"},
        "spec": {"containers": containers, "terminationGracePeriodSeconds": 1}
    })
}

fn deleting(mut pod: Value) -> Value {
    pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
    pod["metadata"]["deletionGracePeriodSeconds"] = 1.into();
    pod
}

/// A picture of the config map `settings`.
fn settings(revision: u64, value: Option<&str>) -> FromMaster {
    let revision = Revision(revision);
    let object = wire::ConfigObject {
        kind: wire::ConfigKind::ConfigMap,
        namespace: "default".into(),
        name: "settings".into(),
        revision: value.map(|_| revision),
    };
    let document = value.map(|value| wire::ConfigDocument {
        object: 0,
        revision,
        json: json!({"data": {"k": value}}).to_string().into(),
    });
    FromMaster(wire::ToNode::Configs(wire::Configs {
        revision,
        objects: vec![object],
        documents: document.into_iter().collect(),
    }))
}

#[test]
fn a_container_that_waits_for_a_config_map_starts_the_moment_it_comes() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        let mut waiting = pod(&["c"], "one");
        let source = json!({"configMapKeyRef": {"name": "settings", "key": "k"}});
        waiting["spec"]["containers"][0]["env"] = json!([{"name": "K", "valueFrom": source}]);
        bench.until("the kubelet is there", |b| b.slot.address().is_some()).await;
        let kubelet = bench.slot.address().unwrap();
        kubelet.do_send(settings(1, None));
        bench.assign(&[waiting]).await;
        let reason = |b: &Bench| {
            let state = b.containers().first().and_then(|c| c.state.clone()?.waiting);
            state.map(|w| (w.reason.unwrap_or_default(), w.message.unwrap_or_default()))
        };
        let expected =
            ("CreateContainerConfigError".to_owned(), "configmap \"settings\" not found".to_owned());
        bench.until("it waits", |b| reason(b).as_ref() == Some(&expected)).await;
        // Without news it would be tried again in ten seconds only.
        let before = tokio::time::Instant::now();
        kubelet.do_send(settings(2, Some("v")));
        bench.until("it runs", |b| b.runs(0)).await;
        assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    });
}

#[test]
fn a_pod_whose_volume_lacks_its_config_map_is_being_created_until_it_comes() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        let mut waiting = pod(&["c"], "one");
        waiting["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "settings"}}]);
        waiting["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        bench.until("the kubelet is there", |b| b.slot.address().is_some()).await;
        let kubelet = bench.slot.address().unwrap();
        kubelet.do_send(settings(1, None));
        bench.assign(&[waiting]).await;
        let told = |b: &Bench| {
            let told = b.told.lock().unwrap();
            let events = told.iter().filter_map(|message| match message {
                wire::ToMaster::Events(events) => Some(events),
                _ => None,
            });
            let message = "MountVolume.SetUp failed for volume \"v\" : configmap \"settings\" not found";
            events.flatten().filter(|e| e.reason == "FailedMount" && e.message == message).count()
        };
        bench.until("it waits", |b| told(b) >= 1).await;
        let state = bench.containers()[0].state.clone().unwrap().waiting.unwrap();
        assert_eq!(state.reason.as_deref(), Some("ContainerCreating"));
        kubelet.do_send(settings(2, Some("v")));
        bench.until("it runs", |b| b.runs(0)).await;
    });
}

#[test]
fn what_pods_say_of_their_machine_follows_its_address_and_so_do_those_on_its_network() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        let mut on_host = pod(&["c"], "one");
        on_host["metadata"]["uid"] = "h".into();
        on_host["spec"]["hostNetwork"] = true.into();
        let address = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        *bench.place.0.lock().unwrap() = address(1);
        bench.assign(&[pod(&["c"], "one"), on_host]).await;
        let told = |b: &Bench, uid: &str| {
            b.report(uid)
                .map(|(status, _)| (status.host_ip.unwrap_or_default(), status.pod_ip.unwrap_or_default()))
        };
        let is_on_host = |b: &Bench, ip: &str| told(b, "h") == Some((ip.to_owned(), ip.to_owned()));
        bench.until("both run", |b| b.runs(0) && is_on_host(b, "10.0.0.1")).await;
        bench
            .until("it has an address of its own", |b| told(b, "u").is_some_and(|told| told.0 == "10.0.0.1"))
            .await;
        let own = told(&bench, "u").unwrap().1;
        *bench.place.0.lock().unwrap() = address(2);
        bench
            .until("both tell the new one", |b| {
                is_on_host(b, "10.0.0.2") && told(b, "u") == Some(("10.0.0.2".to_owned(), own.clone()))
            })
            .await;
        // One that begins anew does not tell the earlier.
        bench.told.lock().unwrap().clear();
        bench.pods.inject_panic("h").await.unwrap();
        bench.until("it reports again", |b| told(b, "h").is_some()).await;
        assert!(is_on_host(&bench, "10.0.0.2"), "{:?}", told(&bench, "h"));
    });
}

fn refusal() -> RuntimeError {
    RuntimeError::System { operation: "do it".into(), cause: "not now".into() }
}

#[test]
fn a_pod_actor_that_panicked_begins_with_what_the_master_wants_now() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        bench.assign(&[pod(&["c"], "one")]).await;
        bench.until("it runs", |b| b.runs(0)).await;
        bench.assign(&[pod(&["c"], "two")]).await;
        bench.until("it runs the new image", |b| b.runs(1)).await;
        let before = bench.running().await;
        let count = bench.told.lock().unwrap().len();
        bench.pods.inject_panic("u").await.unwrap();
        // The fresh actor tells how the pod is once it has looked.
        bench.until("it reports again", |b| b.told.lock().unwrap().len() > count).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let after = bench.running().await;
        assert_eq!((after.len(), &after[0].id), (1, &before[0].id), "the container was not touched");
        assert!(bench.runs(1), "{:?}", bench.containers());
    });
}

#[test]
fn how_a_pod_is_is_told_again_when_the_master_has_something_else_of_it() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        bench.assign(&[pod(&["c"], "one")]).await;
        bench.until("it runs", |b| b.runs(0)).await;
        let before = bench.report("u");
        for phase in ["Bogus", "Pending"] {
            bench.told.lock().unwrap().clear();
            let mut other = pod(&["c"], "one");
            other["status"] = json!({"phase": phase, "podIP": "1.2.3.4"});
            bench.assign(&[other]).await;
            bench.until("it is told again", |b| b.report("u").is_some()).await;
            assert_eq!(bench.report("u"), before);
        }
        // Nothing is told of what it said itself, of what others say beside that, and of what the master makes of it.
        let mut own = serde_json::to_value(before.unwrap().0).unwrap();
        own["nominatedNodeName"] = json!("n");
        own["conditions"].as_array_mut().unwrap().push(json!({"type": "a.b/c", "status": "True"}));
        let mut silent = own.clone();
        for condition in silent["conditions"].as_array_mut().unwrap() {
            if condition["type"] == "Ready" {
                condition["status"] = json!("False");
                condition["lastTransitionTime"] = json!("2020-01-01T00:00:00Z");
            }
        }
        bench.told.lock().unwrap().clear();
        for status in [own, silent] {
            let mut same = pod(&["c"], "one");
            same["status"] = status;
            bench.assign(&[same]).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(bench.report("u"), None);
        }
        // Of many changes at once each second one.
        let begin = tokio::time::Instant::now();
        bench.told.lock().unwrap().clear();
        for round in 0..30 {
            let mut other = pod(&["c"], "one");
            other["status"] = json!({"phase": "Pending", "message": format!("{round}")});
            bench.assign(&[other]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let seconds = begin.elapsed().as_secs();
        let of_pods = |told: &&wire::ToMaster| matches!(told, wire::ToMaster::Pods(_));
        let told = bench.told.lock().unwrap().iter().filter(of_pods).count() as u64;
        assert!((2..=seconds + 1).contains(&told), "{told} in {seconds} s");
    });
}

#[test]
fn exits_that_the_runtime_could_not_tell_are_found() {
    system(async {
        // Room for one event: of three exits at once, two are never heard of.
        let mut bench = Bench::start(SimConfig { event_capacity: 1, ..SimConfig::default() });
        bench.assign(&[pod(&["a", "b", "c"], "one")]).await;
        bench.until("all run", |b| b.runs(0)).await;
        for container in bench.running().await {
            bench.machine.kill(&container.id);
        }
        bench.until("all run again", |b| b.containers().len() == 3 && b.runs(1)).await;
    });
}

#[test]
fn a_sandbox_that_dies_before_it_is_told_to_run_is_made_again() {
    system(async {
        let answer = Duration::from_secs(1);
        let mut bench = Bench::start(SimConfig { sandbox_answer_delay: answer, ..SimConfig::default() });
        bench.assign(&[pod(&["c"], "one")]).await;
        let runtime = SimRuntime::open(bench.machine.clone());
        while runtime.list_pod_sandboxes().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        bench.machine.lose_sandbox(&"u".into());
        bench.until("it runs in another one", |b| b.runs(0)).await;
        assert!(runtime.list_pod_sandboxes().await.unwrap()[0].ready);
    });
}

#[test]
fn a_pod_whose_sandbox_died_goes_on_and_its_containers_were_ended_once() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        bench.assign(&[pod(&["a", "b"], "one")]).await;
        bench.until("all run", |b| b.runs(0)).await;
        bench.machine.lose_sandbox(&"u".into());
        bench.until("all run again", |b| b.containers().len() == 2 && b.runs(1)).await;
        let last = bench.containers().into_iter().map(|c| c.last_state.unwrap().terminated.unwrap());
        let last: Vec<_> = last.map(|ended| (ended.exit_code, ended.message)).collect();
        assert_eq!(last, [(137, None), (137, None)], "as the runtime tells it");
    });
}

#[test]
fn a_pod_that_cannot_be_ended_at_first_is_ended_later() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        bench.assign(&[pod(&["c"], "one")]).await;
        bench.until("it runs", |b| b.runs(0)).await;
        bench.machine.fail_next(Operation::StopContainer, refusal());
        bench.machine.fail_next(Operation::RemovePodSandbox, refusal());
        bench.assign(&[deleting(pod(&["c"], "one"))]).await;
        bench.until("it has ended", |b| b.report("u").is_some_and(|(_, terminated)| terminated)).await;
        assert_eq!(bench.running().await.len(), 0);
    });
}

#[test]
fn what_nobody_wants_any_more_is_ended_even_when_that_fails_at_first() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        bench.assign(&[pod(&["c"], "one")]).await;
        bench.until("it runs", |b| b.runs(0)).await;
        let (machine, dir) = bench.stop().await;
        machine.fail_next(Operation::RemovePodSandbox, refusal());
        let mut bench = Bench::on(machine, dir);
        assert_eq!(bench.running().await.len(), 1, "a kubelet's end is not its pods'");
        bench.assign(&[]).await;
        let runtime = SimRuntime::open(bench.machine.clone());
        for _ in 0..2_000 {
            if runtime.list_pod_sandboxes().await.unwrap().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the orphan is still there");
    });
}

#[test]
fn a_kubelet_that_takes_over_tells_the_same_and_restarts_nothing() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        bench.assign(&[pod(&["a", "b"], "one")]).await;
        bench.until("it runs", |b| b.runs(0)).await;
        let (before, running) = (bench.report("u").unwrap(), bench.running().await);
        let mut known = pod(&["a", "b"], "one");
        known["status"] = serde_json::to_value(&before.0).unwrap();
        let (machine, dir) = bench.stop().await;
        let mut bench = Bench::on(machine, dir);
        bench.assign(&[known]).await;
        bench.until("it tells", |b| b.report("u").is_some()).await;
        assert_eq!(bench.report("u").unwrap(), before);
        let ids = |all: &[ContainerStatus]| all.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&bench.running().await), ids(&running));
    });
}

#[test]
fn an_address_that_the_runtime_does_not_tell_for_a_moment_is_asked_for_until_it_does() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        let mut with_port = pod(&["c"], "one");
        with_port["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80}]);
        bench.assign(&[with_port.clone()]).await;
        bench.until("it runs", |b| b.runs(0)).await;
        let before = bench.report("u").unwrap().0.pod_ip;
        assert!(before.is_some());
        let (machine, dir) = bench.stop().await;
        machine.hide_address(&Uid::from("u"), true);
        let mut bench = Bench::on(machine, dir);
        bench.assign(&[with_port]).await;
        let told = |b: &Bench| {
            events(b)
                .iter()
                .any(|(reason, said)| reason == "HostPortFailed" && said.contains("names no address"))
        };
        bench.until("that it has none is told", told).await;
        assert_eq!(bench.report("u").and_then(|(status, _)| status.pod_ip), None);
        bench.machine.hide_address(&Uid::from("u"), false);
        bench.until("it has its address", |b| b.report("u").is_some_and(|(of, _)| of.pod_ip == before)).await;
        assert!(bench.runs(0));
    });
}

/// The words of the events told so far: reason and message.
fn events(bench: &Bench) -> Vec<(String, String)> {
    let told = bench.told.lock().unwrap();
    let all = told.iter().filter_map(|message| match message {
        wire::ToMaster::Events(events) => Some(events),
        _ => None,
    });
    all.flatten().map(|event| (event.reason.clone(), event.message.clone())).collect()
}

/// As the master says before it assigns pods: there is no such service account, so no secrets of its either.
async fn without_account(bench: &Bench) {
    bench.until("the kubelet is there", |b| b.slot.address().is_some()).await;
    let (kind, revision) = (wire::ConfigKind::ServiceAccount, Revision(1));
    let account =
        wire::ConfigObject { kind, namespace: "default".into(), name: "default".into(), revision: None };
    let picture = wire::Configs { revision, objects: vec![account], documents: Vec::new() };
    bench.slot.address().unwrap().do_send(FromMaster(wire::ToNode::Configs(picture)));
}

fn with_registry(images: &[(&str, u64)]) -> SimConfig {
    let registry = images.iter().map(|(name, secs)| ((*name).to_owned(), Duration::from_secs(*secs)));
    SimConfig { any_image: false, registry: registry.collect(), ..SimConfig::default() }
}

#[test]
fn an_image_is_pulled_and_told_of_in_order() {
    system(async {
        let mut bench = Bench::start(with_registry(&[("r.io/app:1", 2)]));
        without_account(&bench).await;
        bench.assign(&[pod(&["c"], "r.io/app:1")]).await;
        bench.until("it runs", |b| b.runs(0)).await;
        let events = events(&bench);
        let reasons: Vec<&str> = events.iter().map(|(reason, _)| reason.as_str()).collect();
        assert_eq!(reasons, ["Pulling", "Pulled", "Created", "Started"]);
        assert_eq!(events[0].1, "Pulling image \"r.io/app:1\"");
        assert!(events[1].1.starts_with("Successfully pulled image \"r.io/app:1\" in "), "{}", events[1].1);
    });
}

#[test]
fn a_pull_that_fails_backs_off_and_the_next_one_brings_the_pod_up() {
    system(async {
        let mut bench = Bench::start(with_registry(&[("r.io/app:1", 0)]));
        without_account(&bench).await;
        bench.machine.fail_next(Operation::PullImage, RuntimeError::Pull("no route".into()));
        bench.assign(&[pod(&["c"], "r.io/app:1")]).await;
        let waits = |reason: &'static str| {
            move |b: &Bench| {
                let waiting = |c: &v1::ContainerStatus| c.state.clone()?.waiting?.reason;
                b.containers().first().and_then(waiting).as_deref() == Some(reason)
            }
        };
        bench.until("the pull has failed", waits("ErrImagePull")).await;
        bench.until("it backs off", waits("ImagePullBackOff")).await;
        bench.until("it runs", |b| b.runs(0)).await;
        let events = events(&bench);
        let reasons: Vec<&str> = events.iter().map(|(reason, _)| reason.as_str()).collect();
        let expected =
            ["Pulling", "Failed", "Failed", "BackOff", "Failed", "Pulling", "Pulled", "Created", "Started"];
        assert_eq!(reasons, expected);
        assert_eq!(events[1].1, "Failed to pull image \"r.io/app:1\": no route");
    });
}

#[test]
fn pods_that_wait_for_a_pull_hold_no_turn_to_start_and_end_when_they_are_told_to() {
    system(async {
        // More than there are turns, and none of these pulls ever ends.
        const HANGING: usize = 200;
        let mut config = with_registry(&[("r.io/never:1", 1_000_000)]);
        config.images.insert("here:1".into(), Default::default());
        let mut bench = Bench::start(config);
        without_account(&bench).await;
        let named = |uid: &str, image: &str| {
            let mut pod = pod(&["c"], image);
            pod["metadata"]["uid"] = uid.into();
            pod["metadata"]["name"] = uid.into();
            pod
        };
        let mut pods: Vec<Value> =
            (0..HANGING).map(|n| named(&format!("hanging-{n}"), "r.io/never:1")).collect();
        bench.assign(&pods).await;
        bench
            .until("all pull", |b| events(b).iter().filter(|(r, _)| r == "Pulling").count() == HANGING)
            .await;
        pods.push(named("u", "here:1"));
        bench.assign(&pods).await;
        bench.until("another pod runs", |b| b.runs(0)).await;
        pods[0] = deleting(pods[0].clone());
        bench.assign(&pods).await;
        let ended = |b: &Bench| b.report("hanging-0").is_some_and(|(_, terminated)| terminated);
        bench.until("the one that is deleted is gone", ended).await;
    });
}

#[test]
fn a_pods_share_follows_what_all_of_its_containers_are_given_also_those_that_wait() {
    system(async {
        let mut bench = Bench::start(SimConfig::default());
        let sized = |a: &str, b: &str| {
            let mut pod = pod(&["a", "b"], "one");
            for (index, cpu) in [a, b].into_iter().enumerate() {
                pod["spec"]["containers"][index]["resources"] = json!({"requests": {"cpu": cpu}});
            }
            // It never starts.
            let source = json!({"configMapKeyRef": {"name": "settings", "key": "k"}});
            pod["spec"]["containers"][1]["env"] = json!([{"name": "K", "valueFrom": source}]);
            pod
        };
        bench.until("the kubelet is there", |b| b.slot.address().is_some()).await;
        bench.slot.address().unwrap().do_send(settings(1, None));
        bench.assign(&[sized("100m", "200m")]).await;
        bench.until("one of two runs", |b| b.containers().iter().any(|c| c.ready)).await;
        let share = |b: &Bench| b.machine.cpu_request_milli(&Uid::from("u"));
        assert_eq!(share(&bench), Some(300));
        bench.machine.fail_next(Operation::UpdatePodSandbox, refusal());
        bench.assign(&[sized("100m", "500m")]).await;
        bench.until("the one that waits counts", |b| share(b) == Some(600)).await;
        bench.assign(&[sized("50m", "500m")]).await;
        bench.until("the one that runs counts", |b| share(b) == Some(550)).await;
    });
}

/// What the node says of itself: each change of its readiness, with the text.
fn readiness(bench: &Bench) -> Vec<(String, String)> {
    let told = bench.told.lock().unwrap();
    let statuses = told.iter().filter_map(|message| match message {
        wire::ToMaster::Node(report) => serde_json::from_slice::<v1::NodeStatus>(&report.status).ok(),
        _ => None,
    });
    let ready = statuses.filter_map(|status| status.conditions?.into_iter().find(|c| c.type_ == "Ready"));
    let mut all: Vec<_> = ready.map(|c| (c.status, c.message.unwrap_or_default())).collect();
    all.dedup();
    all
}

/// A kubelet whose runtime does not answer the first so many questions whether it is there.
fn away_at_first(questions: usize) -> Bench {
    let machine = SimMachine::new(SimConfig::default()).unwrap();
    for _ in 0..questions {
        machine.fail_next(Operation::Status, refusal());
    }
    Bench::on(machine, tempfile::tempdir().unwrap())
}

#[test]
fn a_node_whose_runtime_is_away_says_so_and_when_it_is_back() {
    system(async {
        let bench = away_at_first(6);
        let fault = refusal().to_string();
        bench.until("it is ready again", |b| readiness(b).len() == 2).await;
        let told = readiness(&bench);
        let told: Vec<_> = told.iter().map(|(ready, text)| (ready.as_str(), text.as_str())).collect();
        assert_eq!(told, [("False", fault.as_str()), ("True", "kubelet is posting ready status")]);
        bench.stop().await;
    });
}

#[test]
fn a_runtime_that_hiccups_leaves_its_node_ready() {
    system(async {
        let bench = away_at_first(2);
        bench.until("it has said something", |b| !readiness(b).is_empty()).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(readiness(&bench).len(), 1);
        assert_eq!(readiness(&bench)[0].0, "True");
        bench.stop().await;
    });
}
