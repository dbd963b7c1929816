//! Which pods a node ends because they or the node have used up memory or disk.
//!
//! Owns: Kubernetes' thresholds (`evictionHard`), the conditions that follow from them, limits on local storage, the order
//! in which pods go and what they are told. Pure: what is used and the time are arguments. Invariants: critical and static
//! pods stay, whatever they use (a static pod would not come back); nobody goes for what is not known.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use k8s_openapi::{api::core::v1, apimachinery::pkg::api::resource::Quantity};

use crate::model::quantity::parse_units;

/// A condition that held is told for so long after it was last seen, so that it does not flap: Kubernetes' default for
/// `evictionPressureTransitionPeriod`.
pub const TRANSITION: Duration = Duration::from_secs(300);
/// From this priority on a pod is critical to the node (`system-cluster-critical`) and never goes.
const CRITICAL: i32 = 2_000_000_000;
/// An evicted pod that is not gone after this is no longer waited for: its second of grace, and what Kubernetes' kubelet
/// waits for the cleaning up (`podCleanupTimeout`).
const GONE_WITHIN: Duration = Duration::from_secs(31);
const EPHEMERAL: &str = "ephemeral-storage";

/// How little may be left of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Least {
    /// So much.
    Amount(u64),
    /// So many percent of all there is.
    Percent(u64),
}

impl Least {
    /// The amount.
    pub fn of(self, all: u64) -> u64 {
        match self {
            Least::Amount(amount) => amount,
            Least::Percent(percent) => all / 100 * percent,
        }
    }
}

/// What a node can be low on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`.
    Memory,
    /// `nodefs.available`: the disk with pods and logs.
    Disk,
    /// `nodefs.inodesFree`: files that can still be made there.
    Inodes,
    /// `imagefs.available`: the disk with images, and with what containers write beside them.
    ImageDisk,
    /// `imagefs.inodesFree`.
    ImageInodes,
    /// `pid.available`.
    Pids,
}

impl Signal {
    const ALL: [Signal; 6] =
        [Signal::Memory, Signal::Disk, Signal::Inodes, Signal::ImageDisk, Signal::ImageInodes, Signal::Pids];

    fn name(self) -> &'static str {
        match self {
            Signal::Memory => "memory.available",
            Signal::Disk => "nodefs.available",
            Signal::Inodes => "nodefs.inodesFree",
            Signal::ImageDisk => "imagefs.available",
            Signal::ImageInodes => "imagefs.inodesFree",
            Signal::Pids => "pid.available",
        }
    }

    /// What is to be reclaimed.
    pub fn resource(self) -> &'static str {
        match self {
            Signal::Memory => "memory",
            Signal::Disk | Signal::ImageDisk => EPHEMERAL,
            Signal::Inodes | Signal::ImageInodes => "inodes",
            Signal::Pids => "pids",
        }
    }

    fn amount(self, amount: u64) -> String {
        match self {
            Signal::Memory | Signal::Disk | Signal::ImageDisk => format!("{}Ki", amount / 1024),
            Signal::Inodes | Signal::ImageInodes | Signal::Pids => amount.to_string(),
        }
    }
}

/// When pods are ended: less than this is left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds {
    least: BTreeMap<Signal, Least>,
    /// Nobody named them. Then those of images hold where images have a file system of their own.
    unasked: bool,
}

impl Default for Thresholds {
    /// Kubernetes'.
    fn default() -> Thresholds {
        let percents =
            [(Signal::Disk, 10), (Signal::Inodes, 5), (Signal::ImageDisk, 15), (Signal::ImageInodes, 5)];
        let percents = percents.map(|(signal, percent)| (signal, Least::Percent(percent)));
        let least = [(Signal::Memory, Least::Amount(100 << 20))].into_iter().chain(percents);
        Thresholds { least: least.collect(), unasked: true }
    }
}

impl Thresholds {
    /// Reads `memory.available<100Mi,nodefs.available<10%`; what is not named has no threshold.
    ///
    /// # Errors
    /// A sentence that names what is wrong.
    pub fn parse(text: &str) -> Result<Thresholds, String> {
        let mut all = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, least) =
                part.split_once('<').ok_or_else(|| format!("{part:?}: must be SIGNAL<AMOUNT"))?;
            let signal = Signal::ALL.into_iter().find(|signal| signal.name() == name).ok_or_else(|| {
                let names = Signal::ALL.map(Signal::name).join(", ");
                format!("{name:?}: must be one of {names}")
            })?;
            let bad =
                || format!("{part:?}: {least:?} must be an amount such as 100Mi or a share such as 10%");
            let least = match least.strip_suffix('%') {
                Some(percent) => {
                    Least::Percent(percent.parse().ok().filter(|percent| *percent <= 100).ok_or_else(bad)?)
                }
                None => {
                    let amount = parse_units(least).ok().and_then(|amount| u64::try_from(amount).ok());
                    Least::Amount(amount.ok_or_else(bad)?)
                }
            };
            all.insert(signal, least);
        }
        Ok(Thresholds { least: all, unasked: false })
    }

    /// Whether less is left than is to be. What is not known, or not counted (a file system without a table of inodes says
    /// that there are none at all), is not low.
    pub fn is_low(&self, signal: Signal, left: &Left) -> bool {
        let (available, all) = left.of(signal);
        let of_images = matches!(signal, Signal::ImageDisk | Signal::ImageInodes);
        let applies = !(of_images && self.unasked) || left.layout.images_apart();
        applies && all > 0 && self.least.get(&signal).is_some_and(|least| available < least.of(all))
    }
}

/// Which file systems (any numbers that tell them apart) hold what of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Volumes and logs of pods.
    pub node: u64,
    /// Images.
    pub images: u64,
    /// What containers write into files of their images.
    pub layers: u64,
}

impl Layout {
    /// Whether images have a file system of their own.
    pub fn images_apart(self) -> bool {
        self.images != self.node
    }

    /// Whether images going gives room for this.
    pub fn is_of_images(self, signal: Signal) -> bool {
        self.of(signal) == Some(self.images)
    }

    /// The file system that a signal looks at.
    fn of(self, signal: Signal) -> Option<u64> {
        match signal {
            Signal::Memory | Signal::Pids => None,
            Signal::Disk | Signal::Inodes => Some(self.node),
            Signal::ImageDisk | Signal::ImageInodes => Some(self.images),
        }
    }
}

/// What is left of each, and how much there is; nothing at all means that it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Bytes of memory.
    pub memory: (u64, u64),
    /// Bytes of disk.
    pub disk: (u64, u64),
    /// Files that can be made on it.
    pub inodes: (u64, u64),
    /// Bytes of the disk with the images.
    pub image_disk: (u64, u64),
    /// Files that can be made on that.
    pub image_inodes: (u64, u64),
    /// Which disk that is.
    pub layout: Layout,
    /// Processes and threads that could be started.
    pub pids: (u64, u64),
}

impl Left {
    fn of(&self, signal: Signal) -> (u64, u64) {
        match signal {
            Signal::Memory => self.memory,
            Signal::Disk => self.disk,
            Signal::Inodes => self.inodes,
            Signal::ImageDisk => self.image_disk,
            Signal::ImageInodes => self.image_inodes,
            Signal::Pids => self.pids,
        }
    }
}

/// What a node's conditions say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// `MemoryPressure`.
    pub memory: bool,
    /// `DiskPressure`.
    pub disk: bool,
    /// `PIDPressure`.
    pub pids: bool,
}

/// When the node was last low on what.
#[derive(Clone, Debug, Default)]
pub struct Watch(BTreeMap<Signal, i64>);

impl Watch {
    /// Notes what is left now; tells what the node is low on, worst first: memory, since that goes fastest.
    pub fn look(&mut self, thresholds: &Thresholds, left: &Left, now_ms: i64) -> Vec<Signal> {
        let mut low = Vec::new();
        for signal in thresholds.least.keys() {
            if thresholds.is_low(*signal, left) {
                self.0.insert(*signal, now_ms);
                low.push(*signal);
            }
        }
        low
    }

    /// The latest look as it is acted on: nothing is low while a pod that was evicted is still on its way out and within
    /// its time, since what it has will be free then. `leaving`: when each of those was evicted. What is after now was
    /// before the clock was set back, who knows how long ago.
    pub fn turn(low: Vec<Signal>, leaving: impl IntoIterator<Item = i64>, now_ms: i64) -> Vec<Signal> {
        let within_ms = i64::try_from(GONE_WITHIN.as_millis()).unwrap_or(i64::MAX);
        let waits = leaving.into_iter().any(|since_ms| (0..within_ms).contains(&(now_ms - since_ms)));
        if waits { Vec::new() } else { low }
    }

    /// What the conditions say; each holds for so long after it was last seen, unless the clock was set back since.
    pub fn pressure(&self, hold: Duration, now_ms: i64) -> Pressure {
        let hold_ms = i64::try_from(hold.as_millis()).unwrap_or(i64::MAX);
        let holds = |signal| self.0.get(&signal).is_some_and(|seen| (0..hold_ms).contains(&(now_ms - seen)));
        let mut disks = [Signal::Disk, Signal::Inodes, Signal::ImageDisk, Signal::ImageInodes].into_iter();
        let disk = disks.any(holds);
        Pressure { memory: holds(Signal::Memory), disk, pids: holds(Signal::Pids) }
    }
}

/// What a pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Bytes of each container's logs, and of its writable layer where that is known: no less is used.
    pub containers: BTreeMap<String, u64>,
    /// Bytes of each `emptyDir` on disk.
    pub volumes: BTreeMap<String, u64>,
    /// How many of these bytes are writable layers'; `None`: of no container is that known.
    pub layers: Option<u64>,
    /// Files and directories of logs and volumes.
    pub inodes: u64,
    /// Those of writable layers; `None`: not known of all of them (docker does not count them).
    pub layer_inodes: Option<u64>,
    /// Bytes of memory of each container of which it is known.
    pub container_memory: BTreeMap<String, u64>,
    /// Bytes of memory; `None`: not known.
    pub memory: Option<u64>,
    /// Processes and threads; `None`: not known.
    pub pids: Option<u64>,
}

impl Used {
    fn disk(&self) -> u64 {
        self.containers.values().chain(self.volumes.values()).sum()
    }

    /// What of it is on the file system that the signal looks at. Where that has images alone nobody's end frees anything.
    fn of(&self, signal: Signal, layout: Layout) -> Option<u64> {
        let (with_pods, with_layers) =
            (layout.of(signal) == Some(layout.node), layout.of(signal) == Some(layout.layers));
        let layers = self.layers.unwrap_or(0);
        match signal {
            Signal::Memory => self.memory,
            Signal::Pids => self.pids,
            Signal::Disk | Signal::ImageDisk => match (with_pods, with_layers) {
                (true, true) => Some(self.disk()),
                (true, false) => Some(self.disk().saturating_sub(layers)),
                (false, true) => self.layers,
                (false, false) => None,
            },
            Signal::Inodes | Signal::ImageInodes => match (with_pods, with_layers) {
                (true, true) => self.layer_inodes.map(|of_layers| self.inodes + of_layers),
                (true, false) => Some(self.inodes),
                (false, true) => self.layer_inodes,
                (false, false) => None,
            },
        }
    }
}

/// The containers that live as long as the pod does.
fn containers(pod: &v1::Pod) -> impl Iterator<Item = &v1::Container> {
    let spec = pod.spec.as_ref();
    let lasting = |c: &&v1::Container| c.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten().filter(lasting);
    spec.map(|s| &s.containers).into_iter().flatten().chain(sidecars)
}

fn limit<'a>(container: &'a v1::Container, resource: &str) -> Option<&'a Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(resource)
}

fn units(quantity: &Quantity) -> u64 {
    parse_units(&quantity.0).ok().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)
}

/// `emptyDir` volumes on disk, with their limits.
pub fn empty_dirs(pod: &v1::Pod) -> impl Iterator<Item = (&str, Option<&Quantity>)> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).into_iter().flatten();
    volumes.filter_map(|volume| {
        let on_disk =
            volume.empty_dir.as_ref().filter(|e| e.medium.as_deref().unwrap_or_default().is_empty())?;
        // As in Kubernetes, none and zero are no limit.
        Some((volume.name.as_str(), on_disk.size_limit.as_ref().filter(|limit| units(limit) > 0)))
    })
}

/// Whether what a pod uses of the disk has to be known.
pub fn is_limited(pod: &v1::Pod) -> bool {
    containers(pod).any(|c| limit(c, EPHEMERAL).is_some())
        || empty_dirs(pod).any(|(_, limit)| limit.is_some())
}

/// Why a pod has to go, if it uses more of the disk than it may: Kubernetes' checks in its order.
pub fn over_limit(candidate: &Candidate<'_>) -> Option<String> {
    if !candidate.may_go() {
        return None;
    }
    let (pod, used) = (candidate.pod, candidate.used);
    for (name, limit) in empty_dirs(pod) {
        if let Some(limit) = limit
            && used.volumes.get(name).is_some_and(|bytes| *bytes > units(limit))
        {
            let limit = &limit.0;
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. "));
        }
    }
    let limited: Vec<(&str, &Quantity)> =
        containers(pod).filter_map(|c| Some((c.name.as_str(), limit(c, EPHEMERAL)?))).collect();
    let total: u64 = limited.iter().map(|(_, limit)| units(limit)).sum();
    if !limited.is_empty() && used.disk() > total {
        let said = match limited.as_slice() {
            [(_, only)] => only.0.clone(),
            _ => total.to_string(),
        };
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {said}. "
        ));
    }
    let over =
        |name: &str, limit: &Quantity| used.containers.get(name).is_some_and(|bytes| *bytes > units(limit));
    let (name, limit) = limited.iter().find(|(name, limit)| over(name, limit))?;
    Some(format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", limit.0))
}

/// A pod that might go.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Its document.
    pub pod: &'a v1::Pod,
    /// It is one of the node's own.
    pub is_static: bool,
    /// What it uses.
    pub used: &'a Used,
}

impl Candidate<'_> {
    fn priority(&self) -> i32 {
        self.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0)
    }

    /// Whether it is ever evicted: Kubernetes' `IsCriticalPod`.
    fn may_go(&self) -> bool {
        !self.is_static && self.priority() < CRITICAL
    }
}

/// The one pod that goes when the node is low on something, as an index, and what it is told: for the first signal that
/// anybody can go for, one that uses more than it asked for, of the lowest priority, that uses the most beyond that.
///
/// Who is not known to use any of it does not go. (Kubernetes' kubelet has those go first, of which it has no figures at
/// all. Its figures are its own, so that they are missing only of what just came or hangs; ours are a runtime's that may
/// fail to answer for a moment, and a pod that ends for that frees nothing that anybody knows of.)
pub fn choose(
    low: &[Signal],
    left: &Left,
    thresholds: &Thresholds,
    all: &[Candidate<'_>],
) -> Option<(usize, String)> {
    let rank = |signal: Signal, c: &Candidate<'_>| {
        let (used, asked) = (c.used.of(signal, left.layout)?, requested(c.pod, signal));
        Some((Reverse(used > asked), c.priority(), Reverse(used.saturating_sub(asked))))
    };
    let first = |signal: Signal| {
        let may_go = all.iter().enumerate().filter(|(_, candidate)| candidate.may_go());
        let ranked = may_go.filter_map(|(index, candidate)| Some((rank(signal, candidate)?, index)));
        Some((signal, ranked.min()?.1))
    };
    let (signal, index) = low.iter().find_map(|signal| first(*signal))?;
    Some((index, low_message(signal, left, thresholds, all.get(index)?)))
}

fn requested(pod: &v1::Pod, signal: Signal) -> u64 {
    let request =
        |c: &v1::Container| units(c.resources.as_ref()?.requests.as_ref()?.get(signal.resource())?).into();
    containers(pod).filter_map(|c| -> Option<u64> { request(c) }).sum()
}

fn low_message(signal: Signal, left: &Left, thresholds: &Thresholds, of: &Candidate<'_>) -> String {
    let (available, all) = left.of(signal);
    let resource = signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    if let Some(least) = thresholds.least.get(&signal) {
        let least = signal.amount(least.of(all));
        text.push_str(&format!("Threshold quantity: {least}, available: {}. ", signal.amount(available)));
    }
    let each = match signal {
        Signal::Memory => Some(&of.used.container_memory),
        Signal::Disk | Signal::ImageDisk => Some(&of.used.containers),
        Signal::Inodes | Signal::ImageInodes | Signal::Pids => None,
    };
    if let Some(each) = each {
        for container in containers(of.pod) {
            let used = each.get(&container.name).copied().unwrap_or(0);
            let asked = container.resources.as_ref().and_then(|r| r.requests.as_ref()?.get(resource));
            if used > asked.map_or(0, units) {
                let (name, asked) = (&container.name, asked.map_or("0", |quantity| quantity.0.as_str()));
                text.push_str(&format!(
                    "Container {name} was using {}, request is {asked}, has larger consumption of {resource}. ",
                    signal.amount(used)
                ));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests;
