//! A whole cluster on one thread: machines, a master and its disk, and the network between; how a step is done to them.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use tokio::{task::JoinHandle, time::sleep};
use troupe::{
    Client, ClientError, Node,
    actors::supervisor::Escalation,
    app::{
        KubeletSettings,
        simulation::{Joins, SimulatedMaster, World, say_goodbye, start_node},
    },
    logic::eviction::Thresholds,
    messages::{Commit, Durability, Expected, Write},
    model::{Key, Kind, NodeName, Stored, Uid},
    net::{
        csr::NodeKey,
        identity::MASTER,
        memory::{Network, Quality},
    },
    runtime::{
        RuntimeError,
        sim::{Operation, SimConfig, SimMachine, SimRuntime},
    },
    store::Memory,
};

use super::{
    beliefs::Beliefs,
    invariants::{Observer, Promise, running},
    story::Step,
    trace::{Event, Trace},
};

/// The first panic of any thread of this process, an actor's too that its supervisor caught.
static PANICKED: Mutex<Option<String>> = Mutex::new(None);

/// From now on panics are heard, whoever catches them.
pub fn hear_panics() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let mut first = PANICKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        first.get_or_insert_with(|| panic.to_string());
        drop(first);
        usual(panic);
    }));
}

/// A client's patience.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// A machine, up or down.
pub struct Machine {
    pub name: NodeName,
    pub sim: Arc<SimMachine>,
    pub process: Option<Node>,
    /// Its process said that it goes and comes back.
    pub left: bool,
    /// By which it joined, if it does not belong to the master's process.
    key: Option<Rc<NodeKey>>,
    config: SimConfig,
    directory: PathBuf,
}

/// The master's process.
struct Up {
    master: SimulatedMaster,
    follower: JoinHandle<()>,
}

pub struct Simulation {
    pub trace: Trace,
    pub observer: Observer,
    pub machines: Vec<Machine>,
    world: World,
    disk: Memory,
    up: Option<Up>,
    escalated: Arc<Mutex<Option<String>>>,
    /// A client's names, and whether it waits for an answer on one.
    clients: Rc<RefCell<BTreeMap<Key, bool>>>,
    made: Cell<usize>,
}

impl Simulation {
    /// Nothing is up yet.
    pub fn new(seed: u64, machines: &[bool], directory: &std::path::Path, trace: Trace) -> Simulation {
        let escalated: Arc<Mutex<Option<String>>> = Arc::default();
        let told = escalated.clone();
        let failed = move |escalation: Escalation| {
            *told.lock().unwrap() = Some(format!("{} gave up: {}", escalation.supervisor, escalation.reason));
        };
        let network = Network::new(seed);
        let beliefs = Beliefs::new(trace.clone(), network.clone());
        let world = World::new(network, Arc::new(failed)).unwrap();
        let observer = Observer::new(trace.clone(), beliefs);
        let machines = machines.iter().enumerate().map(|(index, joined)| {
            let name = NodeName::from(format!("n{index}"));
            let ms = Duration::from_millis;
            let config = SimConfig {
                seed: seed.wrapping_add(index as u64),
                sandbox_delay: ms(1)..=ms(400),
                start_delay: ms(1)..=ms(300),
                ..SimConfig::default()
            };
            let sim = SimMachine::new(config.clone()).unwrap();
            observer.machine(&name, &sim);
            observer.beliefs.machine(&name, *joined);
            let directory = directory.join(name.as_str());
            let key = joined.then(|| Rc::new(NodeKey::generate().unwrap()));
            Machine { name, sim, process: None, left: false, key, config, directory }
        });
        Simulation {
            machines: machines.collect(),
            trace,
            observer: observer.clone(),
            world,
            disk: Memory::new(),
            up: None,
            escalated,
            clients: Rc::default(),
            made: Cell::new(0),
        }
    }

    /// Looks whether everything is as it must always be.
    pub fn check(&self) {
        self.observer.beliefs.look_at_links();
        self.observer.look_at_machines();
        self.observer.look_at_beliefs();
        if let Some(reason) = self.escalated.lock().unwrap().take() {
            self.trace.wrong(reason);
        }
        let panicked = PANICKED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(panic) = panicked {
            self.trace.wrong(panic);
        }
    }

    /// Counts what the network knows.
    pub fn count_silences(&self) {
        let silences = self.world.network.silences();
        self.trace.count(Event::LinkCut, silences.cut);
        self.trace.count(Event::LinkIsolated, silences.isolated);
        self.trace.count(Event::LinkSevered, silences.severed);
        self.trace.count(Event::LinkCrashed, silences.crashed);
    }

    pub fn client(&self) -> Option<Client> {
        self.up.as_ref().map(|up| up.master.client())
    }

    pub async fn begin(&mut self) {
        self.start_master();
        let system = Key::new(Kind::Namespace, "", "kube-system");
        let has_begun = |snapshot: &troupe::model::Snapshot| snapshot.find(&system).map(drop);
        self.client().unwrap().until(Duration::from_secs(30), has_begun).await.expect("a master begins");
        self.join_those_deleted(None).await;
        for index in 0..self.machines.len() {
            self.start_machine(index);
        }
        let names: Vec<NodeName> = self.machines.iter().map(|m| m.name.clone()).collect();
        let namespace = Key::new(Kind::Namespace, "", "default");
        let all = |snapshot: &troupe::model::Snapshot| {
            let ready = names.iter().all(|name| super::rest::is_well(snapshot, name));
            (ready && snapshot.find(&namespace).is_some()).then_some(())
        };
        let client = self.client().unwrap();
        client.until(Duration::from_secs(30), all).await.expect("the cluster comes up");
    }

    /// The end of all faults, but that one machine stays away.
    pub async fn mend(&mut self, lost: Option<usize>) {
        self.observer.beliefs.look_at_links();
        self.observer.beliefs.fault();
        self.calm();
        self.heal_disk();
        let master = NodeName::from(MASTER);
        self.world.network.rejoin(&master);
        self.start_master();
        if self.up.is_none() {
            self.trace.wrong("no master begins, although its disk works");
        }
        for index in 0..self.machines.len() {
            self.heal(index);
            match lost == Some(index) {
                true => self.crash_machine(index, true).await,
                false => self.start_machine(index),
            }
        }
    }

    /// Machines that have no node join, but for one that stays away.
    pub async fn join_those_deleted(&mut self, lost: Option<usize>) {
        let Some(up) = &self.up else { return };
        let snapshot = up.master.client().view().snapshot();
        for (index, machine) in self.machines.iter().enumerate() {
            let node = Key::new(Kind::Node, "", machine.name.0.clone());
            let (Some(key), None) = (&machine.key, snapshot.find(&node)) else { continue };
            if lost != Some(index) {
                self.observer.joins(&machine.name);
                join(&self.trace, up.master.joins(), &self.world, &machine.name, key).await;
            }
        }
    }

    pub async fn end(mut self) {
        for machine in &mut self.machines {
            if let Some(process) = machine.process.take() {
                process.stop().await;
            }
        }
        if let Some(up) = self.up.take() {
            up.follower.abort();
            up.master.stop().await;
        }
    }

    pub async fn perform(&mut self, step: Step) {
        self.observer.beliefs.look_at_links();
        if step.is_fault() {
            self.observer.beliefs.fault();
        }
        let master = NodeName::from(MASTER);
        let count = self.machines.len();
        let pick = move |which: usize| which % count;
        match step {
            Step::CreateController { replicas } => {
                let name = self.new_name("rc");
                let rc = controller(&name, replicas);
                self.create(rc, i32::from(replicas));
            }
            Step::Scale { which, replicas } => {
                let Some(key) = self.known(Kind::ReplicationController, which) else { return };
                let name = key.name.to_string();
                self.ask(key, Promise::Says(replicas.into()), async move |client: Client| {
                    client.scale("default", &name, replicas).await.map(drop)
                });
            }
            Step::DeleteController { which } => {
                let Some(key) = self.known(Kind::ReplicationController, which) else { return };
                self.delete::<v1::ReplicationController>(key);
            }
            Step::CreatePod => {
                let name = self.new_name("pod");
                let pod = v1::Pod { metadata: meta(&name), spec: Some(pod_spec(&name)), status: None };
                // No promise: its node may be lost, and nobody makes another.
                let Some(client) = self.client() else { return };
                actix::spawn(async move { drop(client.create(&pod).await) });
            }
            Step::DeletePod { which } => {
                let Some(client) = self.client() else { return };
                let snapshot = client.view().snapshot();
                let pods: Vec<_> = snapshot.list(Kind::Pod, None).collect();
                let Some(pod) = pods.get(which % pods.len().max(1)) else { return };
                let name = pod.key.name.to_string();
                self.trace.note(format_args!("delete {name}"));
                self.observer.beliefs.asked(pod.uid());
                actix::spawn(async move { drop(client.delete::<v1::Pod>("default", &name).await) });
            }
            Step::ForceDeletePod { which } => {
                let Some(client) = self.client() else { return };
                let snapshot = client.view().snapshot();
                let pods: Vec<_> = snapshot.list(Kind::Pod, None).collect();
                let Some(pod) = pods.get(which % pods.len().max(1)) else { return };
                self.trace.note(format_args!("remove {}", pod.key.name));
                self.observer.forced(pod.uid());
                let expected = Expected { uid: Some(pod.uid().clone()), revision: None };
                let writes = vec![Write::Remove(pod.key.clone(), expected)];
                let commit = Commit { writes, durability: Durability::Hard };
                actix::spawn(async move { drop(client.commits().ask(commit, ANSWER_WITHIN).await) });
            }
            Step::RecreatePod { which } => {
                let Some(client) = self.client() else { return };
                let snapshot = client.view().snapshot();
                let pods: Vec<_> =
                    snapshot.list(Kind::Pod, None).filter(|pod| pod.facet.meta.owners.is_empty()).collect();
                let Some(pod) = pods.get(which % pods.len().max(1)) else { return };
                let name = pod.key.name.to_string();
                self.trace.note(format_args!("another {name}"));
                self.trace.count(Event::PodRecreated, 1);
                self.observer.forced(pod.uid());
                let expected = Expected { uid: Some(pod.uid().clone()), revision: None };
                let writes = vec![Write::Remove(pod.key.clone(), expected)];
                let remove = Commit { writes, durability: Durability::Hard };
                let again = v1::Pod { metadata: meta(&name), spec: Some(pod_spec(&name)), status: None };
                actix::spawn(async move {
                    drop(client.commits().ask(remove, ANSWER_WITHIN).await);
                    drop(client.create(&again).await);
                });
            }
            Step::WriteMark { which, number } => match self.known(Kind::ConfigMap, which) {
                Some(key) if which % 3 != 0 => {
                    let name = key.name.to_string();
                    self.ask(key, Promise::Says(number), async move |client: Client| {
                        let change = |map: &mut v1::ConfigMap| map.metadata.labels = labels(number);
                        client.update("default", &name, change).await.map(drop)
                    });
                }
                Some(key) if which % 2 == 0 => self.delete::<v1::ConfigMap>(key),
                _ => {
                    let mut map =
                        v1::ConfigMap { metadata: meta(&self.new_name("mark")), ..v1::ConfigMap::default() };
                    map.metadata.labels = labels(number);
                    self.create(map, number);
                }
            },
            Step::DeleteNode { which } => {
                let machine = &self.machines[pick(which)];
                let Some(client) = self.client() else { return };
                let name = machine.name.clone();
                self.observer.node_deleted(&name);
                actix::spawn(async move { drop(client.delete::<v1::Node>("", name.as_str()).await) });
            }
            Step::JoinAgain { which } => {
                let machine = &self.machines[pick(which)];
                let (Some(up), Some(key)) = (&self.up, machine.key.clone()) else { return };
                let node = Key::new(Kind::Node, "", machine.name.0.clone());
                if up.master.client().view().snapshot().find(&node).is_none() {
                    self.observer.joins(&machine.name);
                    let (trace, joins, world) = (self.trace.clone(), up.master.joins(), self.world.clone());
                    let name = machine.name.clone();
                    actix::spawn(async move { join(&trace, joins, &world, &name, &key).await });
                }
            }
            Step::KillContainer { which } => {
                let machine = &self.machines[pick(which)];
                let containers = machine.sim.containers();
                if let Some(container) = containers.get(which % containers.len().max(1)) {
                    self.observer.excuse(&container.pod);
                    machine.sim.kill(&container.id);
                }
            }
            Step::LoseSandbox { which } => {
                let machine = &self.machines[pick(which)];
                let sandboxes = machine.sim.sandboxes();
                if let Some((pod, _)) = sandboxes.get(which % sandboxes.len().max(1)) {
                    self.observer.excuse(pod);
                    machine.sim.lose_sandbox(pod);
                }
            }
            Step::FailRuntime { which, what } => {
                let operation = [
                    Operation::RunPodSandbox,
                    Operation::CreateContainer,
                    Operation::StartContainer,
                    Operation::StopContainer,
                ][what];
                let error = RuntimeError::System { operation: "work".into(), cause: "told to fail".into() };
                self.machines[pick(which)].sim.fail_next(operation, error);
            }
            Step::CrashKubelet { which } => self.crash_kubelet(pick(which)).await,
            Step::RestartKubelet { which, after_ms } => {
                if self.machines[pick(which)].process.is_some() {
                    self.crash_kubelet(pick(which)).await;
                    sleep(Duration::from_millis(after_ms)).await;
                    self.start_machine(pick(which));
                }
            }
            Step::StopKubelet { which } => {
                let machine = &mut self.machines[pick(which)];
                if let Some(process) = machine.process.take() {
                    self.observer.beliefs.leaves(&machine.name);
                    self.trace.count(Event::KubeletStopped, 1);
                    machine.left = true;
                    say_goodbye(&process).await;
                    process.stop().await;
                }
            }
            Step::CrashMachine { which, wiped } => self.crash_machine(pick(which), wiped).await,
            Step::StartMachine { which } => self.start_machine(pick(which)),
            Step::Cut { which } => self.world.network.cut(&master, &self.machines[pick(which)].name),
            Step::Sever { which } => self.world.network.sever(&master, &self.machines[pick(which)].name),
            Step::CutOneWay { which, to_master } => {
                let node = &self.machines[pick(which)].name;
                let (from, to) = if to_master { (node, &master) } else { (&master, node) };
                self.world.network.cut_one_way(from, to);
            }
            Step::CutPeers { which, other } => {
                let (one, other) = (&self.machines[pick(which)].name, &self.machines[pick(other)].name);
                if one != other {
                    self.world.network.cut(one, other);
                }
            }
            Step::Heal { which } => self.heal(pick(which)),
            Step::IsolateMaster => self.world.network.isolate(&master),
            Step::RejoinMaster => self.world.network.rejoin(&master),
            Step::Weather { slow_ms, loss_percent } => {
                self.observer.beliefs.weather(false);
                self.world.network.set_quality(Quality {
                    delay: Duration::from_micros(100)..=Duration::from_millis(slow_ms),
                    loss: f64::from(loss_percent) / 100.0,
                });
            }
            Step::Calm => self.calm(),
            Step::CrashMaster { kept } => self.crash_master(kept).await,
            Step::StartMaster => self.start_master(),
            Step::FailDisk => {
                self.observer.beliefs.disk(false);
                self.disk.fail(Some(std::io::ErrorKind::StorageFull));
            }
            Step::HealDisk => self.heal_disk(),
        }
    }

    fn calm(&self) {
        self.world.network.set_quality(Quality::default());
        self.observer.beliefs.weather(true);
    }

    fn heal_disk(&self) {
        self.disk.fail(None);
        self.observer.beliefs.disk(true);
    }

    /// Everybody reaches a machine again.
    fn heal(&self, index: usize) {
        let name = &self.machines[index].name;
        self.world.network.heal(&MASTER.into(), name);
        self.machines.iter().for_each(|other| self.world.network.heal(name, &other.name));
    }

    fn start_master(&mut self) {
        if self.up.is_some() {
            return;
        }
        let master = match SimulatedMaster::start(&self.world, self.disk.clone()) {
            Ok(master) => master,
            // It cannot begin on a disk that refuses.
            Err(error) => {
                self.trace.count(Event::MasterRefused, 1);
                return self.trace.note(format_args!("no master: {error}"));
            }
        };
        let view = master.client().view().clone();
        let snapshot = view.snapshot();
        self.trace.note(format_args!("a master begins at revision {}", snapshot.revision));
        self.observer.beliefs.master(true);
        self.observer.master_began(&snapshot);
        let follower = actix::spawn(self.observer.clone().follow(view, snapshot.revision));
        self.up = Some(Up { master, follower });
    }

    async fn crash_master(&mut self, kept: usize) {
        let Some(up) = self.up.take() else { return };
        self.world.network.crash(&MASTER.into());
        self.observer.beliefs.master(false);
        // What it published until now it has published, whoever has read it.
        tokio::task::yield_now().await;
        up.follower.abort();
        self.observer.look(&up.master.client().view().snapshot());
        let buffered = self.disk.buffered();
        let kept = kept % (buffered + 1);
        self.trace.count(Event::MasterCrashed, 1);
        self.trace.count(Event::BatchLost, (buffered - kept) as u64);
        let survivors = self.disk.crashed(kept);
        self.disk = survivors;
        up.master.stop().await;
    }

    fn start_machine(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if machine.process.is_some() {
            return;
        }
        self.world.network.power_on(&machine.name);
        let runtime = Arc::new(SimRuntime::open(machine.sim.clone()));
        let settings =
            KubeletSettings { eviction_hard: Thresholds::parse("").unwrap(), ..KubeletSettings::default() };
        let links = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let (key, directory) = (machine.key.as_ref().map(|key| key.pin()), machine.directory.clone());
        let node = start_node(&self.world, &machine.name, key, links, runtime, directory, settings);
        machine.process = Some(node.unwrap());
        machine.left = false;
    }

    async fn crash_kubelet(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let Some(process) = machine.process.take() else { return };
        self.trace.count(Event::KubeletCrashed, 1);
        self.world.network.crash(&machine.name);
        process.stop().await;
    }

    async fn crash_machine(&mut self, index: usize, wiped: bool) {
        self.world.network.power_off(&self.machines[index].name);
        self.crash_kubelet(index).await;
        let machine = &mut self.machines[index];
        let event = if wiped { Event::MachineWiped } else { Event::MachineLost };
        self.trace.count(event, u64::from(running(&machine.sim).next().is_some()));
        if wiped {
            machine.sim = SimMachine::new(machine.config.clone()).unwrap();
            self.observer.machine(&machine.name, &machine.sim);
            return;
        }
        let pods: Vec<Uid> = machine.sim.sandboxes().into_iter().map(|(pod, _)| pod).collect();
        pods.iter().for_each(|pod| {
            self.observer.excuse(pod);
            machine.sim.lose_sandbox(pod);
        });
        assert_eq!(running(&machine.sim).count(), 0);
    }

    fn new_name(&self, kind: &str) -> String {
        self.made.set(self.made.get() + 1);
        format!("{kind}-{}", self.made.get())
    }

    /// A client's object of a kind that nobody waits for just now.
    fn known(&self, kind: Kind, which: usize) -> Option<Key> {
        let clients = self.clients.borrow();
        let idle: Vec<&Key> =
            clients.iter().filter(|(key, busy)| key.kind == kind && !**busy).map(|(key, _)| key).collect();
        idle.get(which % idle.len().max(1)).map(|key| (*key).clone())
    }

    fn create<K: Stored>(&self, object: K, number: i32) {
        let key = Key::new(K::KIND, "default", object.meta().name.clone().unwrap_or_default());
        self.ask(key, Promise::Says(number), async move |client: Client| {
            client.create(&object).await.map(drop)
        });
    }

    fn delete<K: Stored>(&self, key: Key) {
        let name = key.name.to_string();
        self.ask(key, Promise::Absent, async move |client: Client| {
            match client.delete::<K>("default", &name).await {
                Err(ClientError::NotFound(_)) => Ok(()),
                outcome => outcome,
            }
        });
    }

    /// Asks the master for something, and goes on; what it answers is remembered.
    fn ask<F>(&self, key: Key, what: Promise, work: F)
    where
        F: AsyncFnOnce(Client) -> Result<(), ClientError> + 'static,
    {
        let Some(client) = self.client() else { return };
        self.clients.borrow_mut().insert(key.clone(), true);
        self.observer.asked(&key, what);
        let (clients, observer, trace) = (self.clients.clone(), self.observer.clone(), self.trace.clone());
        trace.note(format_args!("ask for {key} {what:?}"));
        actix::spawn(async move {
            match work(client).await {
                Ok(()) => observer.acknowledged(&key, what),
                Err(error) => {
                    trace.count(Event::RequestFailed, 1);
                    trace.note(format_args!("{key}: {error}"));
                }
            }
            clients.borrow_mut().insert(key, false);
        });
    }
}

/// A machine joins, if the master has nothing against it.
async fn join(trace: &Trace, joins: Joins, world: &World, name: &NodeName, key: &NodeKey) {
    match joins.join(world, name, key).await {
        Ok(()) => trace.note(format_args!("{name} joins")),
        Err(why) => trace.note(format_args!("{name} does not join: {why}")),
    }
}

fn labels(number: i32) -> Option<BTreeMap<String, String>> {
    Some(BTreeMap::from([("number".to_owned(), number.to_string())]))
}

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

/// Some containers do not heed SIGTERM, and some pods have two.
fn pod_spec(name: &str) -> v1::PodSpec {
    let odd = name.bytes().last().is_some_and(|last| last % 2 == 1);
    let variable =
        |name: &str| v1::EnvVar { name: name.into(), value: Some("1".into()), ..Default::default() };
    let container = |name: &str| v1::Container {
        name: name.into(),
        image: Some("example.com/any:1".into()),
        env: odd.then(|| vec![variable("SIM_IGNORE_SIGTERM")]),
        ..v1::Container::default()
    };
    v1::PodSpec {
        containers: if odd { vec![container("main")] } else { vec![container("main"), container("beside")] },
        termination_grace_period_seconds: Some(2),
        ..v1::PodSpec::default()
    }
}

fn controller(name: &str, replicas: u16) -> v1::ReplicationController {
    let labels = BTreeMap::from([("app".to_owned(), name.to_owned())]);
    v1::ReplicationController {
        metadata: meta(name),
        spec: Some(v1::ReplicationControllerSpec {
            replicas: Some(replicas.into()),
            selector: Some(labels.clone()),
            template: Some(v1::PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod_spec(name)),
            }),
            ..v1::ReplicationControllerSpec::default()
        }),
        status: None,
    }
}
