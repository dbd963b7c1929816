//! What a pod's actor and the kubelet say to each other.
//!
//! Owns: the messages. Handling one late is harmless: each says how things are now, or asks to look.

use std::sync::Arc;

use actix::Message;
use k8s_openapi::api::core::v1;

use crate::{logic::pod::Notice, model::Uid, runtime::RuntimeEvent};

/// kubelet → pod: the pod's document as it is now.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct PodAssigned(pub Arc<v1::Pod>);

/// kubelet → pod: it is not assigned to this node any more; end it.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct PodUnassigned;

/// kubelet → pod: the runtime saw something of this pod.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct RuntimeSaw(pub RuntimeEvent);

/// kubelet → pod: what the runtime told may have been missed; ask it.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct LookAgain;

/// kubelet → pod: it has to go, for this reason.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct PodEvicted {
    /// Why.
    pub message: String,
    /// The node needs what it uses; else it uses more than it may.
    pub disrupted: bool,
}

/// kubelet → pod: the machine has another address.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct HostMoved;

/// kubelet → pod: images were loaded.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct ImagesChanged;

/// pod → kubelet: how it is.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct PodReported {
    /// Which pod.
    pub uid: Uid,
    /// Its status.
    pub status: v1::PodStatus,
    /// Nothing of it is left on the node.
    pub terminated: bool,
}

/// pod → kubelet: something to record as an event of that pod.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub struct PodNoticed {
    /// Which pod.
    pub uid: Uid,
    /// What.
    pub notice: Notice,
}

/// What the master wants of a pod.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The pod as last assigned.
    pub pod: Arc<v1::Pod>,
    /// Whether it is still assigned to this node.
    pub assigned: bool,
}
