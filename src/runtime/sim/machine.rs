//! The simulated machine: sandboxes, containers, images and time, as plain state.
//!
//! Owns: everything that outlives the process which drives a runtime, and every transition of it. Invariants: a
//! container ends at most once, and its event is sent then; an address belongs to one sandbox at most. What is due by
//! the clock happens in [`State::settle`], which each look at the machine calls first, so no container needs a task.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::{sync::broadcast, time::Instant};

use super::{Behaviour, Operation};
use crate::{
    model::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerState, ContainerStatus, Exit, Image, RuntimeError,
        RuntimeEvent, SandboxConfig, SandboxStats, SandboxStatus, Usage,
    },
};

/// What a signal adds to an exit code.
pub(super) const BY_SIGNAL: i32 = 128;
/// Pods' addresses begin after the network's own and the node's.
const FIRST_ADDRESS: u32 = 2;

/// A program that does little keeps a core busy for one thousandth of the time.
const IDLE_SHARE: u32 = 1000;
/// And holds so much memory.
const IDLE_BYTES: u64 = 1 << 20;

pub(super) struct State {
    /// Wall clock at `born`.
    pub(super) epoch_ms: i64,
    pub(super) born: Instant,
    pub(super) sandboxes: BTreeMap<Uid, Sandbox>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    pub(super) images: BTreeMap<String, Image>,
    /// Those of their names that were pulled.
    pub(super) pulled: BTreeSet<String>,
    pub(super) addresses: Addresses,
    pub(super) failures: HashMap<Operation, VecDeque<RuntimeError>>,
    pub(super) events: broadcast::Sender<RuntimeEvent>,
    /// When which container ends by itself.
    due: BinaryHeap<Reverse<(Instant, ContainerId)>>,
    made: u64,
}

pub(super) struct Sandbox {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) hostname: String,
    pub(super) ready: bool,
    pub(super) ip: Option<Ipv4Addr>,
    pub(super) address_hidden: bool,
    pub(super) cpu_request_milli: i64,
    created_ms: i64,
    pub(super) containers: Vec<ContainerId>,
}

pub(super) struct Container {
    pub(super) pod: Uid,
    name: String,
    attempt: u32,
    pub(super) image: String,
    image_id: String,
    pub(super) state: ContainerState,
    started_ms: i64,
    pid: Option<i32>,
    pub(super) log_path: std::path::PathBuf,
    pub(super) log_limits: crate::runtime::logs::LogLimits,
    pub(super) behaviour: Behaviour,
}

impl State {
    pub(super) fn new(epoch_ms: i64, event_capacity: usize) -> State {
        State {
            epoch_ms,
            born: Instant::now(),
            sandboxes: BTreeMap::new(),
            containers: BTreeMap::new(),
            images: BTreeMap::new(),
            pulled: BTreeSet::new(),
            addresses: Addresses::default(),
            failures: HashMap::new(),
            events: broadcast::channel(event_capacity).0,
            due: BinaryHeap::new(),
            made: 0,
        }
    }

    pub(super) fn now_ms(&self) -> i64 {
        let elapsed = Instant::now().saturating_duration_since(self.born);
        self.epoch_ms.saturating_add(i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX))
    }

    /// Lets everything happen that is due, in order. Returns when the next thing is.
    pub(super) fn settle(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(Reverse((at, id))) = self.due.peek() {
            if *at > now {
                return Some(*at);
            }
            let (at, id) = (*at, id.clone());
            self.due.pop();
            let Some(behaviour) = self.containers.get(&id).map(|container| container.behaviour.clone())
            else {
                continue;
            };
            let late = i64::try_from((now - at).as_millis()).unwrap_or(0);
            let code = behaviour.signal.map_or(behaviour.exit_code, |signal| BY_SIGNAL + signal);
            self.end(&id, code, behaviour.signal, false, self.now_ms() - late);
        }
        None
    }

    /// A failure that was ordered for this operation.
    pub(super) fn ordered_failure(&mut self, operation: Operation) -> Result<(), RuntimeError> {
        match self.failures.get_mut(&operation).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    pub(super) fn run_sandbox(&mut self, config: &SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        let uid = Uid::from(config.uid.as_str());
        if let Some(status) = self.sandbox_status(&uid).filter(|status| status.ready) {
            return Ok(status);
        }
        let ip = if config.host_network { None } else { Some(self.addresses.take()?) };
        let created_ms = self.now_ms();
        let sandbox = self.sandboxes.entry(uid.clone()).or_insert_with(|| Sandbox {
            namespace: config.namespace.clone(),
            name: config.name.clone(),
            hostname: config.hostname.clone(),
            ready: true,
            ip,
            address_hidden: false,
            cpu_request_milli: config.cpu_request_milli,
            created_ms,
            containers: Vec::new(),
        });
        (sandbox.ready, sandbox.ip) = (true, ip);
        self.sandbox_status(&uid).ok_or_else(|| RuntimeError::NotFound(format!("sandbox {uid}")))
    }

    pub(super) fn sandbox_status(&self, uid: &Uid) -> Option<SandboxStatus> {
        let sandbox = self.sandboxes.get(uid)?;
        Some(SandboxStatus {
            uid: uid.clone(),
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            ready: sandbox.ready,
            ip: sandbox.ip.filter(|_| !sandbox.address_hidden).map(IpAddr::V4),
            created_ms: sandbox.created_ms,
        })
    }

    /// Ends what runs in a sandbox and gives its address back.
    pub(super) fn stop_sandbox(&mut self, uid: &Uid) {
        let Some(sandbox) = self.sandboxes.get_mut(uid) else { return };
        sandbox.ready = false;
        if let Some(ip) = sandbox.ip.take() {
            self.addresses.give_back(ip);
        }
        for id in sandbox.containers.clone() {
            self.signal(&id, nix::libc::SIGKILL);
        }
    }

    pub(super) fn remove_sandbox(&mut self, uid: &Uid) {
        self.stop_sandbox(uid);
        for id in self.sandboxes.remove(uid).map(|sandbox| sandbox.containers).unwrap_or_default() {
            self.containers.remove(&id);
        }
    }

    pub(super) fn lose_sandbox(&mut self, uid: &Uid) {
        if let Some(sandbox) = self.sandboxes.get_mut(uid).filter(|sandbox| sandbox.ready) {
            sandbox.ready = false;
            self.tell(RuntimeEvent::SandboxLost { pod: uid.clone() });
            self.stop_sandbox(uid);
        }
    }

    pub(super) fn create(
        &mut self,
        pod: &Uid,
        config: &ContainerConfig,
        image_id: String,
        behaviour: Behaviour,
    ) -> Result<ContainerId, RuntimeError> {
        let sandbox = self.sandboxes.get_mut(pod);
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {pod}")))?;
        if !sandbox.ready {
            return Err(RuntimeError::SandboxNotReady(pod.clone()));
        }
        self.made += 1;
        let id = ContainerId(format!("sim-{pod}-{}-{}-{}", config.name, config.attempt, self.made));
        sandbox.containers.push(id.clone());
        let container = Container {
            pod: pod.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.image.clone(),
            image_id,
            state: ContainerState::Created,
            started_ms: 0,
            pid: None,
            log_path: config.log_path.clone(),
            log_limits: config.log_limits,
            behaviour,
        };
        self.containers.insert(id.clone(), container);
        Ok(id)
    }

    pub(super) fn start(&mut self, id: &ContainerId) -> Result<(), RuntimeError> {
        let (now, now_ms) = (Instant::now(), self.now_ms());
        let pod = self.container_mut(id)?.pod.clone();
        if !self.sandboxes.get(&pod).is_some_and(|sandbox| sandbox.ready) {
            return Err(RuntimeError::SandboxNotReady(pod));
        }
        let pid = i32::try_from(self.made).unwrap_or(i32::MAX);
        let container = self.container_mut(id)?;
        if container.state != ContainerState::Created {
            return Err(RuntimeError::Start(format!("container {id} was started before")));
        }
        if let Some(why) = &container.behaviour.fail_start {
            return Err(RuntimeError::Start(why.clone()));
        }
        container.state = ContainerState::Running;
        container.started_ms = now_ms;
        container.pid = Some(pid);
        if let Some(after) = container.behaviour.exit_after {
            self.due.push(Reverse((now + after, id.clone())));
        }
        Ok(())
    }

    pub(super) fn container_mut(&mut self, id: &ContainerId) -> Result<&mut Container, RuntimeError> {
        self.containers.get_mut(id).ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    /// Sends a signal: SIGTERM ends who does not ignore it, SIGKILL everyone.
    pub(super) fn signal(&mut self, id: &ContainerId, signal: i32) {
        let Some(container) = self.containers.get(id) else { return };
        let now_ms = self.now_ms();
        if signal == nix::libc::SIGKILL {
            self.end(id, BY_SIGNAL + signal, Some(signal), false, now_ms);
        } else if !container.behaviour.ignore_sigterm {
            let code = container.behaviour.exit_code;
            self.end(id, code, None, false, now_ms);
        }
    }

    /// Whether a container that was asked to stop has; after the deadline it is killed.
    pub(super) fn stopped_by(&mut self, id: &ContainerId, deadline: Instant) -> bool {
        let runs =
            self.containers.get(id).is_some_and(|container| container.state == ContainerState::Running);
        if runs && Instant::now() < deadline {
            return false;
        }
        self.signal(id, nix::libc::SIGKILL);
        true
    }

    /// Ends a container's program, if it has not ended. One that never ran just cannot run any more.
    pub(super) fn end(
        &mut self,
        id: &ContainerId,
        code: i32,
        signal: Option<i32>,
        oom_killed: bool,
        finished_ms: i64,
    ) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let ran = match container.state {
            ContainerState::Exited(_) => return,
            ContainerState::Created => false,
            ContainerState::Running => true,
        };
        let exit = Exit { code, signal, oom_killed, finished_ms, unseen: false };
        container.state = ContainerState::Exited(exit.clone());
        container.pid = None;
        if ran {
            let event = RuntimeEvent::Exited { pod: container.pod.clone(), id: id.clone(), exit };
            self.tell(event);
        }
    }

    fn tell(&self, event: RuntimeEvent) {
        // Nobody listening is no fault: who comes later lists.
        let _ = self.events.send(event);
    }

    pub(super) fn forget_container(&mut self, id: &ContainerId) {
        self.signal(id, nix::libc::SIGKILL);
        if let Some(container) = self.containers.remove(id)
            && let Some(sandbox) = self.sandboxes.get_mut(&container.pod)
        {
            sandbox.containers.retain(|other| other != id);
        }
    }

    pub(super) fn container_statuses(&self) -> Vec<ContainerStatus> {
        self.containers
            .iter()
            .map(|(id, container)| ContainerStatus {
                id: id.clone(),
                pod: container.pod.clone(),
                name: container.name.clone(),
                attempt: container.attempt,
                image: container.image.clone(),
                image_id: container.image_id.clone(),
                state: container.state.clone(),
                started_ms: container.started_ms,
                pid: container.pid,
            })
            .collect()
    }

    /// What a program that does little would use, besides what containers were told to use.
    pub(super) fn stats(&self) -> Vec<SandboxStats> {
        let now_ms = self.now_ms();
        let of_container = |container: &Container| {
            let ran = Duration::from_millis(u64::try_from(now_ms - container.started_ms).unwrap_or(0));
            let busy = ran.min(container.behaviour.burn_cpu) + ran / IDLE_SHARE;
            let memory = IDLE_BYTES + container.behaviour.allocate;
            Usage {
                cpu_ns: Some(u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX)),
                working_set_bytes: Some(memory),
                memory_bytes: Some(memory),
                rss_bytes: Some(memory),
                io_bytes: Some((0, 0)),
                io_operations: Some((0, 0)),
                writable_bytes: Some(0),
                writable_inodes: Some(0),
                pids: Some(1),
            }
        };
        let ready = self.sandboxes.iter().filter(|(_, sandbox)| sandbox.ready);
        ready
            .map(|(uid, sandbox)| {
                let running = sandbox.containers.iter().filter_map(|id| Some((id, self.containers.get(id)?)));
                let containers: Vec<_> = running
                    .filter(|(_, container)| container.state == ContainerState::Running)
                    .map(|(id, container)| (id.clone(), of_container(container)))
                    .collect();
                let sum = |of: fn(&Usage) -> Option<u64>| containers.iter().map(|(_, usage)| of(usage)).sum();
                let total = Usage {
                    cpu_ns: sum(|usage| usage.cpu_ns),
                    working_set_bytes: sum(|usage| usage.working_set_bytes),
                    memory_bytes: sum(|usage| usage.memory_bytes),
                    rss_bytes: sum(|usage| usage.rss_bytes),
                    io_bytes: Some((0, 0)),
                    io_operations: Some((0, 0)),
                    writable_bytes: Some(0),
                    writable_inodes: Some(0),
                    pids: sum(|usage| usage.pids),
                };
                SandboxStats { uid: uid.clone(), total, network: Some((0, 0)), containers }
            })
            .collect()
    }

    /// Whether the clock has anything to do.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.peek().map(|Reverse((at, _))| *at)
    }
}

/// The pods' addresses of one machine.
#[derive(Default)]
pub(super) struct Addresses {
    /// First address of the subnet and how many it has.
    subnet: Option<(u32, u32)>,
    next: u32,
    taken: BTreeSet<Ipv4Addr>,
}

impl Addresses {
    pub(super) fn set(&mut self, cidr: &str) -> Result<(), RuntimeError> {
        let wrong =
            || RuntimeError::Config(format!("pod CIDR {cidr:?} is not an IPv4 network such as 10.64.1.0/24"));
        let (address, bits) = cidr.split_once('/').ok_or_else(wrong)?;
        let address: Ipv4Addr = address.parse().map_err(|_| wrong())?;
        // Smaller networks have no room for a pod; larger than /8 nobody routes.
        let bits: u32 = bits.parse().ok().filter(|bits| (8..=30).contains(bits)).ok_or_else(wrong)?;
        let size = 1_u32 << (32 - bits);
        let first = u32::from(address) & !(size - 1);
        if self.subnet != Some((first, size)) {
            (self.subnet, self.next) = (Some((first, size)), FIRST_ADDRESS);
        }
        Ok(())
    }

    /// The next free address, round robin, so that one given back is not reused at once.
    fn take(&mut self) -> Result<Ipv4Addr, RuntimeError> {
        let Some((first, size)) = self.subnet else {
            return Err(RuntimeError::Config("this node has no pod CIDR yet".into()));
        };
        // The last address is the broadcast address.
        let usable = size - FIRST_ADDRESS - 1;
        for step in 0..usable {
            let offset = FIRST_ADDRESS + (self.next - FIRST_ADDRESS + step) % usable;
            let address = Ipv4Addr::from(first + offset);
            if self.taken.insert(address) {
                self.next = FIRST_ADDRESS + (offset - FIRST_ADDRESS + 1) % usable;
                return Ok(address);
            }
        }
        Err(RuntimeError::System {
            operation: "give the pod an address".into(),
            cause: format!("all {usable} addresses of this node are taken"),
        })
    }

    fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address);
    }
}

/// The image of a full name: everything about it follows from the name.
pub(super) fn image_of(name: &str) -> Image {
    Image {
        id: digest(Sha256::digest(name)),
        names: vec![name.to_owned()],
        size_bytes: 0,
        user: String::new(),
        digests: Vec::new(),
    }
}

pub(super) fn digest(hash: impl AsRef<[u8]>) -> String {
    hash.as_ref().iter().fold(String::from("sha256:"), |text, byte| format!("{text}{byte:02x}"))
}

/// A delay from a range, the same for the same seed and subject, whatever happens beside it (splitmix64).
pub(super) fn seeded(seed: u64, subject: &str, range: &std::ops::RangeInclusive<Duration>) -> Duration {
    let width = range.end().saturating_sub(*range.start());
    let nanos = u64::try_from(width.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 {
        return *range.start();
    }
    *range.start() + Duration::from_nanos(draw(seed, subject) % nanos)
}

/// A number that depends on seed and subject alone.
pub(super) fn draw(seed: u64, subject: &str) -> u64 {
    subject.bytes().chain([0]).fold(seed, |state, byte| {
        let mut z = (state ^ u64::from(byte)).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}
