//! Whether this node reaches another machine, when the master asks.
//!
//! Owns: the probe. It needs no open port over there and nobody who listens: the kernel of a machine that lives refuses a
//! connection to a port that nobody has, which is an answer. A firewall that is silent makes it unreached, as if it were
//! dead: then nothing is gained, and nothing lost. Invariant: only what can be another machine's address is probed,
//! whatever the master asks.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use nix::ifaddrs::getifaddrs;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{logic::sightings::is_elsewhere, net::Responder};

/// The discard port (RFC 863): closed nearly everywhere, and harmless where it is not.
const PORT: u16 = 9;
/// Many times a round trip; the master waits a tenth of a second longer, and what is lost is not sent again in either time.
const WITHIN: Duration = Duration::from_millis(250);

/// How a node finds out whether the machine at an address lives, which must be another one. It may wait for ever.
pub type Probe = Arc<dyn Fn(IpAddr) -> BoxFuture<'static, bool> + Send + Sync>;

/// Asks the kernel over there.
pub fn by_tcp() -> Probe {
    Arc::new(|address| Box::pin(async move { !is_own(address) && reaches(address).await }))
}

/// Tries, and answers.
pub(super) async fn answer(address: String, probe: Probe, responder: Responder) {
    let reached = match target(&address) {
        Some(address) => tokio::time::timeout(WITHIN, probe(address)).await.unwrap_or(false),
        None => false,
    };
    // The master takes no answer for a no.
    if !reached {
        let _ = responder.refuse(504, "not reached").await;
    } else if let Ok(mut stream) = responder.accept().await {
        // Dropped as it is it would take the answer back.
        let _ = stream.write.shutdown().await;
    }
}

/// The machine to probe; `None` when the address is no other machine's.
fn target(address: &str) -> Option<IpAddr> {
    let address = address.parse::<IpAddr>().ok()?.to_canonical();
    Some(address).filter(is_elsewhere)
}

/// Whether an address is this machine's, or one to which everybody on its networks listens. When that cannot be found
/// out it is taken for one.
fn is_own(address: IpAddr) -> bool {
    let Ok(all) = getifaddrs() else { return true };
    let mut told = all.flat_map(|interface| [interface.address, interface.broadcast]).flatten();
    told.any(|told| {
        let v4 = told.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = told.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        v4.or(v6) == Some(address)
    })
}

async fn reaches(address: IpAddr) -> bool {
    match TcpStream::connect(SocketAddr::new(address, PORT)).await {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_that_refuses_lives_and_one_that_says_nothing_may_not() {
        assert!(reaches(IpAddr::from([127, 0, 0, 1])).await);
        // The kernel connects to no broadcast address, so this packet leaves no machine.
        assert!(!reaches(IpAddr::from([255, 255, 255, 255])).await);
    }

    #[tokio::test]
    async fn only_another_machine_is_probed() {
        assert_eq!(target("::ffff:192.0.2.1"), Some(IpAddr::from([192, 0, 2, 1])));
        for not in ["127.0.0.1", "::ffff:127.0.0.1", "fe80::1", "255.255.255.255", "0.0.0.0", "host", ""] {
            assert_eq!(target(not), None, "{not}");
        }
        let own = getifaddrs().unwrap().filter_map(|one| one.address);
        let own = own.filter_map(|address| address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip())));
        for own in own {
            assert!(is_own(own), "{own}");
            assert!(!by_tcp()(own).await, "{own}");
        }
    }
}
