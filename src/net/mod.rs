//! QUIC between machines: identity, endpoint, link, codec, byte streams.
//!
//! ```text
//! Listener ─accept─┐                          ┌─ LinkHandle: send, send_keyed, open, close, stats
//!                  ├─ Link (authenticated) ───┤
//! Dialer ───next───┘                          └─ LinkEvents: Message, Opened, Closed
//! ```
//!
//! Invariant: a [`Link`] exists only between peers that showed each other certificates of one cluster's authority.
//! [`memory::Network`] makes the same links inside one process; [`relay`] leads ports of the
//! machine to pods. What messages mean is left to the actors.

mod batches;
pub mod codec;
pub mod csr;
mod dial;
mod endpoint;
mod ends;
mod error;
pub(crate) mod frame;
mod heartbeat;
pub mod identity;
pub mod join;
mod link;
pub mod memory;
pub mod metrics;
mod outbox;
pub mod relay;
mod stream;
mod tls;
mod token_key;
mod transport;

#[cfg(test)]
mod tests;

pub use dial::{Backoff, Dialer, TurnedAway};
pub use endpoint::{Connector, LinkConfig, Listener, Showing, Sockets};
pub use error::{CloseReason, NetError};
pub use identity::{Authority, CaCertificate, Identity};
pub use join::JoinAsk;
pub use link::{Link, LinkEvent, LinkEvents, LinkHandle};
pub use outbox::Class;
pub use stream::{Gone, Responder};
pub use token_key::TokenKey;
pub use transport::LinkStats;
