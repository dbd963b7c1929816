//! Static pods: what a directory of manifests says this node is to run, whether or not there is a master.
//!
//! Owns: reading the directory, again and again, and telling the master of what was read (its mirrors). A static pod is
//! a pod like any other here, with a uid made of its file's content: another content is another pod. Invariants:
//! nothing is told or ended before the directory was read once; a file that cannot be used changes nothing that runs
//! but its own pod, and is told in the log once.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use k8s_openapi::{api::core::v1, jiff::Timestamp};

use super::{Kubelet, now_ms};
use crate::{
    actors::outside,
    logic::mirrors::{is_mirror, mirror_of, static_pod},
    messages::wire,
    model::{NodeName, Revision, Uid},
};

/// A person waits for it, and a directory of a few files costs nothing.
const PERIOD: Duration = Duration::from_secs(2);
/// No manifest is larger.
const FILE_BYTES: u64 = 1024 * 1024;

/// What a directory said.
type Read = BTreeMap<PathBuf, Result<v1::Pod, String>>;

/// What a kubelet has of its directory.
#[derive(Default)]
pub(super) struct Manifests {
    dir: Option<PathBuf>,
    /// It was read at least once, or there is none.
    pub(super) known: bool,
    pods: HashMap<Uid, Arc<v1::Pod>>,
    /// What was said in the log of which file.
    faults: BTreeMap<PathBuf, String>,
    /// The mirrors' uids by namespace and name, as the master assigned them.
    mirrors: HashMap<(String, String), Uid>,
}

impl Manifests {
    pub(super) fn new(dir: Option<PathBuf>) -> Manifests {
        Manifests { known: dir.is_none(), dir, ..Manifests::default() }
    }

    /// Whether a pod is one of the directory's.
    pub(super) fn has(&self, uid: &Uid) -> bool {
        self.pods.contains_key(uid)
    }

    /// Remembers an assigned pod that is only a mirror; the answer says whether it is.
    pub(super) fn note_mirror(&mut self, pod: &v1::Pod) -> bool {
        if is_mirror(pod) {
            self.mirrors.insert(place(pod), Uid::from(pod.metadata.uid.clone().unwrap_or_default()));
        }
        is_mirror(pod)
    }

    /// The uid by which the master knows a pod.
    pub(super) fn told_uid(&self, uid: Uid) -> Uid {
        self.pods.get(&uid).and_then(|pod| self.mirrors.get(&place(pod))).cloned().unwrap_or(uid)
    }

    /// The uid by which this node knows a pod of the master's.
    pub(super) fn own_uid(&self, namespace: &str, name: &str) -> Option<Uid> {
        let of = |pod: &v1::Pod| place(pod) == (namespace.to_owned(), name.to_owned());
        self.pods.iter().find(|(_, pod)| of(pod)).map(|(uid, _)| uid.clone())
    }
}

fn place(pod: &v1::Pod) -> (String, String) {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    (text(&pod.metadata.namespace), text(&pod.metadata.name))
}

impl Kubelet {
    /// Reads the directory now and from now on.
    pub(super) fn follow_manifests(&mut self, ctx: &mut Context<Self>) {
        if self.manifests.dir.is_some() {
            self.read_manifests(ctx);
            ctx.run_interval(PERIOD, Kubelet::read_manifests);
        }
    }

    fn read_manifests(&mut self, ctx: &mut Context<Self>) {
        let Some(dir) = self.manifests.dir.clone() else { return };
        let node = NodeName::from(self.seed.node.name.as_str());
        let work = outside::blocking(move || read(&dir, &node).map_err(|error| (dir, error)));
        ctx.spawn(work.into_actor(self).map(|outcome, kubelet, ctx| match outcome {
            Ok(Ok(read)) => kubelet.take_manifests(read, ctx),
            Ok(Err((dir, error))) => {
                kubelet.manifests.complain(dir, format!("the directory cannot be read: {error}"));
            }
            Err(error) => tracing::error!(%error, "manifests could not be read"),
        }));
    }

    fn take_manifests(&mut self, read: Read, ctx: &mut Context<Self>) {
        self.manifests.faults.retain(|file, _| read.contains_key(file));
        let mut pods = HashMap::new();
        for (file, outcome) in read {
            match outcome {
                Ok(pod) => {
                    self.manifests.faults.remove(&file);
                    let uid = Uid::from(pod.metadata.uid.clone().unwrap_or_default());
                    pods.insert(uid, Arc::new(pod));
                }
                Err(fault) => self.manifests.complain(file, fault),
            }
        }
        let same = self.manifests.known && pods.keys().all(|uid| self.manifests.has(uid));
        if same && pods.len() == self.manifests.pods.len() {
            return;
        }
        let before = std::mem::replace(&mut self.manifests.pods, pods);
        self.manifests.known = true;
        for uid in before.keys().filter(|uid| !self.manifests.has(uid)).cloned().collect::<Vec<_>>() {
            self.unassign(&uid);
        }
        self.begin(ctx);
        self.tell_mirrors();
    }

    /// Begins what the directory says and the runtime allows: it must have been listed first.
    pub(super) fn run_manifests(&mut self) {
        let pods: Vec<_> = self.manifests.pods.iter().map(|(uid, pod)| (uid.clone(), pod.clone())).collect();
        for (uid, pod) in pods {
            self.take(&uid, Revision::default(), pod);
        }
    }

    /// Tells the master of all static pods: newest wins.
    pub(super) fn tell_mirrors(&mut self) {
        if !self.manifests.known {
            return;
        }
        let told = self.manifests.pods.iter().filter_map(|(uid, pod)| {
            let report = self.pods.get(uid).and_then(|entry| entry.report.as_ref());
            let json = serde_json::to_vec(&mirror_of(pod)).ok()?;
            let status = report.map(|r| r.status.clone()).unwrap_or_default();
            Some(wire::Mirror { json: json.into(), status })
        });
        let told = told.collect();
        self.tell(Some("mirrors".into()), wire::ToMaster::Mirrors(told));
    }
}

impl Manifests {
    fn complain(&mut self, file: PathBuf, fault: String) {
        if self.faults.get(&file) != Some(&fault) {
            tracing::error!(file = %file.display(), %fault, "a manifest cannot be used");
            self.faults.insert(file, fault);
        }
    }
}

/// Every file of the directory whose name does not begin with a dot.
fn read(dir: &Path, node: &NodeName) -> std::io::Result<Read> {
    let mut read = Read::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
        if hidden || !entry.path().is_file() {
            continue;
        }
        let pod = read_file(&entry.path()).and_then(|manifest| {
            let now = Timestamp::from_millisecond(now_ms()).unwrap_or(Timestamp::UNIX_EPOCH);
            static_pod(manifest, node, now)
        });
        read.insert(entry.path(), pod);
    }
    Ok(read)
}

fn read_file(path: &Path) -> Result<serde_json::Value, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BYTES).read_to_string(&mut text).map_err(|error| error.to_string())?;
    // JSON is YAML, too.
    serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())
}
