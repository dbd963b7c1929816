//! Reads what this machine is: cores, memory, disk, kernel, ids, and tells the master what is new of that.

use std::{fs, os::unix::fs::MetadataExt as _, path::Path, sync::OnceLock, time::Duration};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use k8s_openapi::api::core::v1;
use tokio::time::timeout;

use super::{
    Kubelet,
    context::{NodeContext, now_ms},
    peers,
    pod::HostMoved,
};
use crate::{
    logic::{
        eviction::{Layout, Left},
        nodes::{MachineFacts, node_status},
        pod::downward::Allocatable,
    },
    messages::wire,
    runtime::Image,
};

/// How long the images are waited for: a runtime that hangs must not keep the node from saying so.
const LISTED_WITHIN: Duration = Duration::from_secs(5);

/// Looks that are under way: one that has begun before another that has ended knows nothing new.
#[derive(Default)]
pub struct Looks {
    begun: u64,
    ended: u64,
}

impl Looks {
    /// The number of a look that begins.
    pub fn begins(&mut self) -> u64 {
        self.begun += 1;
        self.begun
    }

    /// It has ended; whether it is the newest that has.
    pub fn ends(&mut self, look: u64) -> bool {
        let is_newest = look > self.ended;
        self.ended = self.ended.max(look);
        is_newest
    }
}

impl Kubelet {
    /// Tells the master and the pods when the machine's address has changed.
    pub(super) fn look_where(&mut self, ctx: &mut Context<Self>) {
        // While it has no way to the master it has no other address.
        let Some(address) = self.seed.whereabouts.as_ref().and_then(|member| member.address()) else {
            return;
        };
        if self.seed.node.host_ip.now() != Some(address) {
            self.seed.node.host_ip.set(address);
            for pod in self.pods.values().filter_map(|entry| entry.slot.address()) {
                pod.do_send(HostMoved);
            }
        }
        // A kubelet that has begun anew knows the one that the node began with.
        let address = address.to_string();
        if address != self.seed.facts.address {
            tracing::info!(before = self.seed.facts.address, address, "the machine's address has changed");
            self.seed.facts.address = address;
            self.report_node(false, ctx);
        }
    }

    /// Looks at the machine and tells the master if its status changed, or `always`.
    pub(super) fn report_node(&mut self, always: bool, ctx: &mut Context<Self>) {
        let (node, facts) = (self.seed.node.clone(), self.seed.facts.clone());
        let (look, is_there) = (self.looks.begins(), self.fault().is_none());
        let work = async move {
            // Of a runtime that is away nothing is asked: the node is to say so at once.
            let (images, shared) = match is_there {
                true => tokio::join!(images(&node), peers::shared(&node)),
                false => (None, None),
            };
            (self::facts(&node, facts), images, shared)
        };
        ctx.spawn(work.into_actor(self).map(move |(mut facts, images, shared), kubelet, _| {
            kubelet.life.beat();
            let is_newest = kubelet.looks.ends(look);
            if !is_newest && !always {
                return;
            }
            if let Some(images) = images.filter(|_| is_newest) {
                kubelet.images = images;
            }
            facts.images.clone_from(&kubelet.images);
            // As it is now: to look may have taken long.
            facts.runtime_fault = kubelet.fault();
            kubelet.note_pressure(&mut facts);
            let status = node_status(&facts, kubelet.status.as_ref(), now_ms());
            let changed =
                kubelet.status.as_ref().is_none_or(|before| !same_but_for_heartbeats(before, &status));
            kubelet.note_status(&status);
            let Ok(json) = serde_json::to_vec(&status) else { return };
            let report = wire::NodeReport { status: json.into() };
            if always {
                let labels = kubelet.seed.labels.clone();
                kubelet.tell(None, wire::ToMaster::Hello(wire::Hello { labels, report }));
                kubelet.report_all();
            } else if changed {
                kubelet.tell(Some("node".into()), wire::ToMaster::Node(report));
            }
            kubelet.tell_images(shared, always);
        }));
    }
}

/// The digests and names, and the sizes, of the runtime's images; `None` when it does not say.
pub async fn images(node: &NodeContext) -> Option<Vec<(Vec<String>, u64)>> {
    let listed = timeout(LISTED_WITHIN, node.runtime.list_images()).await;
    Some(listed.ok()?.ok()?.into_iter().map(|image| (told_names(&image), image.size_bytes)).collect())
}

/// Names of one image in a node's status: Kubernetes' number.
const TOLD_NAMES: usize = 5;

/// As Kubernetes tells them: the digests, then the tags.
fn told_names(image: &Image) -> Vec<String> {
    let more = image.names.iter().filter(|name| !image.digests.contains(name));
    image.digests.iter().chain(more).take(TOLD_NAMES).cloned().collect()
}

/// Fills what the machine and the runtime know at once into `base` (address, limits, version come from the configuration).
pub fn facts(node: &NodeContext, base: MachineFacts) -> MachineFacts {
    MachineFacts {
        cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: memory_bytes(&read("/proc/meminfo")),
        disk_bytes: disk(&node.dir).0,
        huge_pages: huge_pages(Path::new(HUGE_PAGES)),
        kernel: read("/proc/sys/kernel/osrelease"),
        os_image: os_image(&read("/etc/os-release")),
        machine_id: read("/etc/machine-id"),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.into(),
        runtime: format!("{}://{}", node.runtime.name(), node.runtime.version()),
        lacks: node.runtime.lacks().map(str::to_owned),
        recursive_read_only: node.runtime.recursive_read_only(),
        user_namespaces: node.runtime.user_namespaces(),
        ..base
    }
}

/// Whether two statuses say the same.
pub fn same_but_for_heartbeats(a: &v1::NodeStatus, b: &v1::NodeStatus) -> bool {
    let plain = |s: &v1::NodeStatus| {
        let mut s = s.clone();
        s.conditions.iter_mut().flatten().for_each(|c| c.last_heartbeat_time = None);
        s
    };
    plain(a) == plain(b)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// What is left of this machine right now.
pub fn left(node: &NodeContext) -> Left {
    let meminfo = read("/proc/meminfo");
    let storage = node.storage.load();
    let own = FileSystem::of(&node.dir).unwrap_or_default();
    // What cannot be looked at counts with the rest.
    let images = storage.as_ref().and_then(|storage| FileSystem::of(&storage.images)).unwrap_or(own);
    let layers = storage.as_ref().and_then(|storage| FileSystem::of(&storage.layers)).unwrap_or(own);
    let most = |path: &str| read(path).parse::<u64>().unwrap_or(0);
    let pids = most("/proc/sys/kernel/pid_max").min(most("/proc/sys/kernel/threads-max"));
    Left {
        memory: (self::meminfo(&meminfo, "MemAvailable:"), memory_bytes(&meminfo)),
        disk: own.bytes,
        inodes: own.inodes,
        image_disk: images.bytes,
        image_inodes: images.inodes,
        layout: Layout { node: own.device, images: images.device, layers: layers.device },
        pids: (pids.saturating_sub(threads(&read("/proc/loadavg"))), pids),
    }
}

/// Where the kernel has a directory for each size of huge pages that it can give.
pub const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Huge pages by their size: bytes of a page, bytes of all of them. None are there unless an administrator set them aside.
pub fn huge_pages(dir: &Path) -> Vec<(i64, i64)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut sizes: Vec<(i64, i64)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let kib: i64 = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count: i64 =
                fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
            let bytes = kib.checked_mul(1024)?;
            Some((bytes, bytes.saturating_mul(count)))
        })
        .collect();
    sizes.sort_unstable();
    sizes
}

/// What pods may use of this machine together: all of it.
pub fn allocatable(dir: &Path) -> Allocatable {
    let whole = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    /// Asked for each start of a container; to find them out again takes a dozen files.
    static CORES_AND_MEMORY: OnceLock<(usize, u64)> = OnceLock::new();
    let (cores, memory) = *CORES_AND_MEMORY.get_or_init(|| {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let memory = memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
        let huge: i64 = huge_pages(Path::new(HUGE_PAGES)).iter().map(|(_, bytes)| bytes).sum();
        (cores, memory.saturating_sub(huge.unsigned_abs()))
    });
    Allocatable {
        cpu_milli: i64::try_from(cores).unwrap_or(1).saturating_mul(1000),
        memory_bytes: whole(memory),
        ephemeral_bytes: whole(disk(dir).0),
    }
}

/// Bytes of the disk that a directory is on, and those that are free.
pub fn disk(dir: &Path) -> (u64, u64) {
    FileSystem::of(dir).map_or((0, 0), |of| (of.bytes.1, of.bytes.0))
}

/// A file system as it is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Tells it from others.
    pub device: u64,
    /// Bytes that are free, and all.
    pub bytes: (u64, u64),
    /// Files that can still be made, and all that there can be: none on file systems that do not count them.
    pub inodes: (u64, u64),
}

impl FileSystem {
    /// The one that a directory is on, if it is there.
    pub fn of(dir: &Path) -> Option<FileSystem> {
        let stat = nix::sys::statvfs::statvfs(dir).ok()?;
        let block = stat.fragment_size();
        Some(FileSystem {
            device: fs::metadata(dir).ok()?.dev(),
            bytes: (stat.blocks_available().saturating_mul(block), stat.blocks().saturating_mul(block)),
            inodes: (stat.files_available(), stat.files()),
        })
    }
}

fn memory_bytes(text: &str) -> u64 {
    meminfo(text, "MemTotal:")
}

/// Processes and threads that there are, from `/proc/loadavg`: `0.1 0.2 0.3 2/345 6789`.
fn threads(loadavg: &str) -> u64 {
    let all = loadavg.split(' ').nth(3).and_then(|word| word.split_once('/')?.1.parse().ok());
    all.unwrap_or(0)
}

/// Bytes of a line of `/proc/meminfo`.
pub fn meminfo(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|l| l.strip_prefix(name))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

fn os_image(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map(|v| v.trim_matches('"').to_owned())
        .unwrap_or_else(|| "Linux".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_was_overtaken_is_no_news() {
        let mut looks = Looks::default();
        let (slow, quick, next) = (looks.begins(), looks.begins(), looks.begins());
        assert!(looks.ends(quick) && !looks.ends(slow) && looks.ends(next));
    }

    #[test]
    fn images_are_told_by_their_digests_then_by_their_tags_and_not_by_all_of_many() {
        let mut image = Image {
            id: "sha256:1".into(),
            names: vec!["r.io/a:1".into(), "r.io/a@sha256:2".into()],
            size_bytes: 0,
            user: String::new(),
            digests: vec!["r.io/a@sha256:2".into()],
        };
        assert_eq!(told_names(&image), ["r.io/a@sha256:2", "r.io/a:1"]);
        image.names = (0..9).map(|tag| format!("r.io/a:{tag}")).collect();
        assert_eq!(told_names(&image).len(), TOLD_NAMES);
    }

    #[test]
    fn the_machine_is_read_from_its_files() {
        assert_eq!(memory_bytes("MemTotal:       24000 kB\nMemFree: 1 kB"), 24_576_000);
        assert_eq!(memory_bytes("nonsense"), 0);
        assert_eq!((threads("0.1 0.2 0.3 2/345 6789"), threads("")), (345, 0));
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n"), "Debian GNU/Linux 12");
        assert_eq!(os_image(""), "Linux");
    }

    #[test]
    fn huge_pages_are_read_from_their_directories() {
        let dir = tempfile::tempdir().unwrap();
        for (size, count) in [("hugepages-1048576kB", "0\n"), ("hugepages-2048kB", "3\n"), ("other", "1\n")] {
            fs::create_dir(dir.path().join(size)).unwrap();
            fs::write(dir.path().join(size).join("nr_hugepages"), count).unwrap();
        }
        assert_eq!(huge_pages(dir.path()), [(2 << 20, 6 << 20), (1 << 30, 0)]);
        assert_eq!(huge_pages(&dir.path().join("none")), []);
    }
}
