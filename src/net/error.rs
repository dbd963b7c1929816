//! What can go wrong between machines.
//!
//! Owns: [`NetError`], the room's one error, and [`CloseReason`], why a link ended.

use std::{io, net::SocketAddr, path::PathBuf};

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A file of the authority or of an identity could not be read or written.
    #[error("cannot {operation} {}", path.display())]
    File {
        /// `read`, `write`, `create`.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The authority's files contradict each other, or one is missing.
    #[error("{}: {problem}", path.display())]
    Authority {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A certificate or key that cannot be used.
    #[error("{what} cannot be used: {problem}")]
    Certificate {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A name that cannot stand in a certificate.
    #[error("{0:?} cannot be a node's name: it must be a lowercase DNS name of at most 200 characters")]
    Name(String),
    /// The UDP port could not be bound.
    #[error("cannot listen on UDP {address}; choose another address with --listen")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No link came about.
    #[error("cannot connect to {address}: {problem}")]
    Connect {
        /// Where to.
        address: String,
        /// Why not.
        problem: String,
    },
    /// The peer does not accept this side's certificate: there is no use in showing it again.
    #[error("turned away by {address}: {problem}")]
    Unwelcome {
        /// Where to.
        address: String,
        /// Why.
        problem: String,
    },
    /// A message larger than its class allows. Nothing was sent.
    #[error("message of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// The message's size, or how far its encoding came.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A message that could not be encoded: a defect of its type.
    #[error("message cannot be encoded: {0}")]
    Encode(String),
    /// Bytes that are no message of the expected type.
    #[error("frame cannot be decoded: {0}")]
    Decode(String),
    /// The outbox is full: the peer reads too slowly. Try again later, or let the message go.
    #[error("the link's outbox is full")]
    Full,
    /// The link has ended or is about to.
    #[error("the link is closed: {0}")]
    Closed(CloseReason),
    /// The other side refused to open a byte stream: an HTTP status code and a sentence.
    #[error("{1}")]
    Refused(u16, String),
    /// No answer in time.
    #[error("no answer to {0} in time")]
    TimedOut(&'static str),
    /// A byte stream failed before it was open.
    #[error("byte stream could not be opened")]
    Stream(#[source] io::Error),
}

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// This side closed it.
    #[error("closed here: {0}")]
    Local(String),
    /// The peer closed it.
    #[error("closed by the peer: {0}")]
    Peer(String),
    /// The peer closed it, and does not want this side again with the certificate it showed.
    #[error("turned away by the peer: {0}")]
    Unwelcome(String),
    /// The peer fell silent: it is dead, stuck, or cut off.
    #[error("the peer fell silent")]
    Silent,
    /// The connection failed, or the peer broke the protocol.
    #[error("failed: {0}")]
    Failed(String),
}
