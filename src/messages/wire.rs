//! What crosses machines, as `serde` + `bincode` frames.
//!
//! Owns: every type that one machine sends another over a link. Enums are append-only and their encoding is pinned by
//! golden bytes under test: a variant is never moved, removed or reused. Documents and statuses travel as JSON bytes,
//! so a newer field of Kubernetes never changes a frame's layout.
//! Invariant: messages are pictures, not deltas: a lost one heals with the next, a repeated one does nothing.

use std::{collections::BTreeMap, pin::Pin};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

pub use super::exec::{AttachRequest, Channel, ExecRequest, PortForwardRequest};
use crate::model::{NodeName, Revision, Uid};

/// master → node, on the control stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToNode {
    /// Everything this node is to run.
    Assignments(Assignments),
    /// The node's place in the cluster.
    Welcome(Welcome),
    /// What the node's pods refer to.
    Configs(Configs),
    /// The node's new certificate, PEM: for the connections from now on.
    Certificate(String),
    /// Tokens for volumes of the node's pods: those not yet sent on this connection, and newer ones in time.
    Tokens(Vec<PodToken>),
    /// Somebody brought an image that this node's pods name to another node: who waits for it may try again.
    ImagesCame,
}

/// node → master: control and state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToMaster {
    /// First on every connection: who the node is and what it runs.
    Hello(Hello),
    /// The node's own status; newest wins.
    Node(NodeReport),
    /// Statuses of pods; newest wins per pod.
    Pods(Vec<PodReport>),
    /// Events to record.
    Events(Vec<EventReport>),
    /// A planned end: pods run on, nothing is to be rescheduled.
    Goodbye,
    /// All static pods of the node, for the API to show; newest wins.
    Mirrors(Vec<Mirror>),
    /// Asks for a new certificate over the node's key: a certificate request (PKCS #10, DER).
    Renew(Bytes),
    /// All images that other nodes may have from this one; newest wins.
    Images(Vec<HeldImage>),
    /// All images that somebody had brought to this node and removed again; newest wins.
    ImagesRemoved(Vec<RemovedImage>),
}

/// The full set of a node's pods. `documents` holds those not yet sent on this connection, or changed since.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignments {
    /// The store's revision that this picture shows.
    pub revision: Revision,
    /// Every pod of the node.
    pub pods: Vec<AssignedPod>,
    /// New and changed documents.
    pub documents: Vec<PodDocument>,
}

/// One pod of the set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedPod {
    /// Which life of the pod.
    pub uid: Uid,
    /// The revision of its document.
    pub revision: Revision,
}

/// A pod's document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodDocument {
    /// Which life of the pod.
    pub uid: Uid,
    /// The document's revision.
    pub revision: Revision,
    /// The pod as JSON.
    pub json: Bytes,
}

/// Every config map, secret and service account that a node's pods refer to; what is not named is of no interest any
/// more. `documents` holds those not yet sent on this connection, or changed since; when they are many, more pictures
/// bring the rest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Configs {
    /// The store's revision that this picture shows.
    pub revision: Revision,
    /// Every object.
    pub objects: Vec<ConfigObject>,
    /// New and changed contents.
    pub documents: Vec<ConfigDocument>,
}

/// Which kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigKind {
    /// A config map.
    ConfigMap,
    /// A secret.
    Secret,
    /// A service account.
    ServiceAccount,
}

/// One object of the set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigObject {
    /// Its kind.
    pub kind: ConfigKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The revision of its document; `None`: there is no such object.
    pub revision: Option<Revision>,
}

/// An object's content.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigDocument {
    /// Its place among the picture's objects.
    pub object: u32,
    /// The document's revision.
    pub revision: Revision,
    /// `data`, `binaryData`, `type` and `imagePullSecrets` of the object as JSON.
    pub json: Bytes,
}

/// Contents may be secrets: they are never printed.
impl std::fmt::Debug for ConfigDocument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigDocument")
            .field("object", &self.object)
            .field("revision", &self.revision)
            .field("bytes", &self.json.len())
            .finish_non_exhaustive()
    }
}

/// A service account's token for a volume of a pod. A newer one for the same pod, audience and life replaces it; with the
/// pod it is dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodToken {
    /// Which life of the pod.
    pub uid: Uid,
    /// For whom, as the volume says; empty: for the API server.
    pub audience: String,
    /// For how many seconds, as the volume says.
    pub life_s: i64,
    /// The token.
    pub token: String,
}

/// Tokens are secrets: they are never printed.
impl std::fmt::Debug for PodToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodToken")
            .field("uid", &self.uid)
            .field("audience", &self.audience)
            .field("life_s", &self.life_s)
            .finish_non_exhaustive()
    }
}

/// What a node must know before it runs pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The subnet for the node's pods, `10.244.3.0/24`.
    pub pod_cidr: String,
    /// The cluster's name.
    pub cluster: String,
}

/// A node's introduction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// Labels the node was started with.
    pub labels: BTreeMap<String, String>,
    /// Its first status.
    pub report: NodeReport,
}

/// A node's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Kubernetes' `NodeStatus` as JSON: addresses, capacity, allocatable, conditions, nodeInfo, images.
    pub status: Bytes,
}

/// A pod's status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodReport {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Which life of it: a report on an earlier one is ignored.
    pub uid: Uid,
    /// Ascends with every report on this pod while its kubelet lives; late ones are ignored.
    pub sequence: u64,
    /// Kubernetes' `PodStatus` as JSON.
    pub status: Bytes,
    /// Every container has ended and the sandbox is gone: a pod being deleted may vanish now.
    pub terminated: bool,
}

/// A static pod, which its node runs from a file of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mirror {
    /// The pod that is to show it, as JSON.
    pub json: Bytes,
    /// Kubernetes' `PodStatus` as JSON; empty when nothing is known yet.
    pub status: Bytes,
}

/// Something a kubelet saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventReport {
    /// What it is about: a pod's namespace and name, or a node's name with an empty namespace.
    pub namespace: String,
    /// See `namespace`.
    pub name: String,
    /// The pod's uid; empty for a node.
    pub uid: Uid,
    /// `spec.containers{web}` for a container's event.
    pub field_path: Option<String>,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One word, the kubelet's: `Pulled`, `Created`, `Started`, `Killing`, `BackOff`…
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
}

/// First frame on a byte stream: what the bytes will be. The other side answers with [`Opened`], then bytes flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Open {
    /// master → node: a container's log, as `GET pods/NAME/log` would have it.
    Logs(LogRequest),
    /// master → node: bytes of an image archive follow; the answer is a JSON list of the names loaded.
    ImageLoad(ImageLoad),
    /// master → node: a JSON list of the node's images comes back.
    ImageList,
    /// master → node: remove an image by name.
    ImageRemove(String),
    /// master → node: pull an image by name; [`PullLine`]s come back until the end.
    ImagePull(String),
    /// master → node: run a program in a container; frames of [`Channel`]s flow both ways.
    Exec(ExecRequest),
    /// master → node: images by name come back as one tar; a stream that is reset is none.
    ImageSave(Vec<String>),
    /// master → node: what the node and its pods use comes back, a [`crate::logic::usage::NodeUsage`] as JSON.
    Stats,
    /// master → node: streams to a container's own program; frames of [`Channel`]s flow both ways.
    Attach(AttachRequest),
    /// master → node: a connection to a port of a pod.
    PortForward(PortForwardRequest),
    /// master → node: the kubelet's `stats/summary` comes back, a [`crate::logic::summary::Summary`] as JSON.
    Summary,
    /// master → node: whether the node reaches the machine at this address; no bytes flow, the answer says it.
    Reach(String),
    /// node → master: who has an image comes back, an [`ImageHolders`] as JSON; refused with 404 when nobody has.
    ImageHolders(ImageWanted),
    /// node → master → node: one part of an image comes back; a stream that is reset is none.
    ImagePart(ImagePart),
    /// master → node: the actors of the node's process come back, a list of [`super::ActorState`] as JSON.
    Actors,
    /// master → node: as [`Open::Logs`], but only lines of the last so many seconds, by the node's clock: it stamped them.
    LogsOfLast(LogRequest, u64),
    /// master → node: the kubelet's `metrics/resource` comes back, as [`crate::logic::exposition`] has it.
    ResourceMetrics,
    /// master → node: the kubelet's `metrics/cadvisor` comes back, likewise.
    CadvisorMetrics,
}

/// Answer to [`Open`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opened {
    /// Bytes follow.
    Ok,
    /// Refused: an HTTP status code and a sentence.
    Refused(u16, String),
}

/// What a node answers at the end of an image request's byte stream, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ImageAnswer {
    /// The names that were loaded or removed.
    Done(Vec<String>),
    /// The image was refused, and why.
    Refused(String),
}

/// What a node tells of a pull that it was asked for, as JSON, one a line; the last is not [`PullLine::Progress`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum PullLine {
    /// How far it is.
    Progress {
        /// Layers of the image; 0 before that is known.
        layers: u32,
        /// Those that are here.
        layers_done: u32,
        /// Bytes fetched.
        bytes: u64,
        /// Bytes to be fetched.
        total_bytes: u64,
    },
    /// The full name of what is here now.
    Done(String),
    /// Why the image was not got.
    Refused(String),
}

/// A stream of bytes to and from another machine. Dropping it ends both directions.
pub struct ByteStream {
    /// Bytes from the other side.
    pub read: Pin<Box<dyn AsyncRead + Send>>,
    /// Bytes to the other side; shut it down to say that no more come.
    pub write: Pin<Box<dyn AsyncWrite + Send>>,
}

/// Which part of which log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The container's name.
    pub container: String,
    /// Go on as the log grows.
    pub follow: bool,
    /// The log of the container's previous life.
    pub previous: bool,
    /// Prefix each line with its RFC 3339 time.
    pub timestamps: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines not older than this, milliseconds since the epoch.
    pub since_ms: Option<i64>,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
}

/// How to load an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageLoad {
    /// A docker-archive or an OCI layout as a tar, maybe compressed; names are inside. `Some` renames it.
    Archive(Option<String>),
    /// A root file system as a tar, to be called by this name.
    RootFs(String),
}

/// How an image came to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldAs {
    /// Somebody brought it there.
    ByHand,
    /// It was taken from a node that somebody had brought it to.
    Copied,
    /// It was pulled without credentials.
    Pulled,
}

/// An image that a node has, under one of its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldImage {
    /// The full name.
    pub name: String,
    /// `sha256:…` of its configuration.
    pub id: String,
    /// How it came there.
    pub held: HeldAs,
    /// When somebody brought it, there or elsewhere; milliseconds since the epoch, 0 for what was pulled.
    pub since_ms: i64,
}

/// An image that somebody had brought to a node under a name and removed again: copies of what was brought before that
/// are none any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedImage {
    /// The full name.
    pub name: String,
    /// `sha256:…` of its configuration.
    pub id: String,
    /// When it was removed; milliseconds since the epoch.
    pub at_ms: i64,
}

/// Which image a node wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageWanted {
    /// The full name.
    pub name: String,
    /// What was pulled elsewhere does not do: its registry is to be asked.
    pub by_hand: bool,
}

/// Who has an image, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageHolders {
    /// What they have.
    pub image: HeldImage,
    /// Who they are, best first. When there is none, `away` says who would be.
    pub nodes: Vec<NodeName>,
    /// Nodes that had it and are out of reach at present, when somebody brought it by hand and nobody else is known to
    /// have it. An older master does not say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub away: Vec<NodeName>,
}

/// A part of an image that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePart {
    /// Which node.
    pub node: NodeName,
    /// The image's id.
    pub image: String,
    /// The part's digest: the image's id for its configuration, else that of a layer's uncompressed tar.
    pub digest: String,
}

/// joiner → master, on a connection of its own, after the joiner has checked the master's authority against the token's
/// pin: asks to become a node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Which token.
    pub token_id: String,
    /// Its secret.
    pub secret: String,
    /// The node's name to be.
    pub name: String,
    /// A certificate request (PKCS #10, DER) signed with the node's key.
    pub csr: Bytes,
}

/// The secret is never printed.
impl std::fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinRequest")
            .field("token_id", &self.token_id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// master → joiner: the answer to a [`JoinRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// It is a node now.
    Admitted(Admitted),
    /// It is not: why, and a sentence that says what to do.
    Refused(JoinRefusal, String),
}

/// What a new node is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admitted {
    /// Its certificate, PEM.
    pub certificate: String,
    /// The authority's, PEM.
    pub ca: String,
    /// The cluster's name.
    pub cluster: String,
}

/// Why a joiner was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinRefusal {
    /// There is no such token, or its secret is another.
    TokenUnknown,
    /// The token's time is over.
    TokenExpired,
    /// A node of that name with another key is there.
    NameTaken,
    /// The node of that name and key is there and linked at this moment.
    NodeAlive,
    /// The request makes no sense.
    Invalid,
    /// Not now: try again later.
    Busy,
}

/// A peer's name as its certificate has it, handed up with every link.
pub type Peer = NodeName;
