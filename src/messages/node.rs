//! What is said about nodes inside the master: byte streams to them, opened for the API.

use std::pin::Pin;

use actix::Message;
use tokio::io::{AsyncRead, AsyncWrite};

use super::wire;
use crate::model::NodeName;

/// api → node registry: open a byte stream to a node.
#[derive(Message)]
#[rtype(result = "Result<ByteStream, OpenError>")]
pub struct OpenStream {
    /// To which node.
    pub node: NodeName,
    /// What the bytes will be.
    pub open: wire::Open,
}

/// A stream of bytes to and from another machine. Dropping it ends both directions.
pub struct ByteStream {
    /// Bytes from the other side.
    pub read: Pin<Box<dyn AsyncRead + Send>>,
    /// Bytes to the other side; shut it down to say that no more come.
    pub write: Pin<Box<dyn AsyncWrite + Send>>,
}

/// Why a byte stream was not opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// No such node, or no link to it.
    #[error("node {0} is not connected")]
    NotConnected(NodeName),
    /// The node said no: an HTTP status code and a sentence.
    #[error("{1}")]
    Refused(u16, String),
    /// The link failed.
    #[error("link to node {0} failed: {1}")]
    Failed(NodeName, String),
}
