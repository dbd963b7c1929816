//! What is asked of actors about themselves, for `troupe cluster status`.
//!
//! Owns: the questions and their answers. All of it is a moment's picture and decides nothing.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use actix::Message;
use serde::{Deserialize, Serialize};

use crate::model::NodeName;

/// api → node registry: how the nodes and their links are.
#[derive(Message, Debug)]
#[rtype(result = "Vec<NodeState>")]
pub struct ShowNodes;

/// One node, as its actor on the master knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeState {
    /// Which one.
    pub node: NodeName,
    /// Its link, while there is one.
    pub link: Option<LinkState>,
    /// For how long nothing was heard of a node that has no link; `None` also when it was never heard by this master.
    pub silent: Option<Duration>,
    /// It has said goodbye, and its link has ended; what that comes to may not be written yet.
    pub goodbye: bool,
    /// Where other machines with its key come from, which are not linked.
    pub rivals: Vec<IpAddr>,
    /// Where the one comes from that was linked before there were others.
    pub first: Option<IpAddr>,
}

/// A link at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// How long it has been there.
    pub age: Duration,
    /// Where the node is.
    pub peer: Option<SocketAddr>,
    /// The present estimate of the round trip.
    pub rtt: Duration,
    /// Packets taken for lost, since it began.
    pub lost_packets: u64,
    /// Packets sent, since it began.
    pub sent_packets: u64,
    /// Byte streams in use, whichever side opened them: logs, exec, images…
    pub streams: usize,
    /// Messages that wait to be sent.
    pub queued_messages: usize,
    /// Their bytes.
    pub queued_bytes: usize,
}

/// api → store: how far the disk is.
#[derive(Message, Debug)]
#[rtype(result = "StoreState")]
pub struct ShowStore;

/// The store's one writer at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreState {
    /// Changes that were not looked at yet: the disk is slower than those who write.
    pub queued_changes: usize,
    /// Soft changes that the disk does not have yet.
    pub behind: usize,
    /// Whether the disk is full or broken: the last batch failed, or one a moment ago, and as much was not written since.
    pub failing: bool,
}

/// One actor, as its supervisor sees it. As JSON it crosses machines, so a version adds fields, and needs none that are new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActorState {
    /// Its path in the tree, `nodes/node registry`.
    pub name: String,
    /// `running`, `waiting`…
    pub state: Cow<'static, str>,
    /// How often it was started again after it ended, ever.
    pub restarts: u64,
    /// How its last incarnation that did not end in good order ended.
    pub last_error: Option<String>,
}

/// The actors of the master's process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnActors {
    /// The master's.
    pub master: Vec<ActorState>,
    /// Those of the nodes beside it.
    pub nodes: Vec<(NodeName, Vec<ActorState>)>,
}

/// A certificate that the cluster hangs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateState {
    /// Whose.
    pub name: &'static str,
    /// Its end, in seconds since the epoch.
    pub end_s: i64,
    /// A person has to see to it.
    pub ends_soon: bool,
}
