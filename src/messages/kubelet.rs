//! What is said inside a node, between its link to the master and its kubelet.

use actix::Message;

use super::{OpenError, wire};

/// link → kubelet: the link to the master is up; it begins with the whole picture from both sides.
#[derive(Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct LinkUp;

/// link → kubelet: the master said something.
#[derive(Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct FromMaster(pub wire::ToNode);

/// kubelet → link: open a byte stream to the master.
#[derive(Message, Debug, Clone)]
#[rtype(result = "Result<wire::ByteStream, OpenError>")]
pub struct AskMaster(pub wire::Open);

/// kubelet → link: tell the master. While the link is down this is dropped: the next connection begins with the whole
/// picture.
#[derive(Message, Debug, Clone)]
#[rtype(result = "()")]
pub struct TellMaster {
    /// A newer message under the same key replaces one that still waits to be sent.
    pub key: Option<String>,
    /// What to tell.
    pub message: wire::ToMaster,
}
