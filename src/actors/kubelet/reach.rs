//! Whether this node reaches another machine, when the master asks.
//!
//! Owns: the probe. It needs no open port over there and nobody who listens: the kernel of a machine that lives refuses a
//! connection to a port that nobody has, which is an answer. A firewall that is silent makes it unreached, as if it were
//! dead: then nothing is gained, and nothing lost.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{logic::sightings::is_elsewhere, net::Responder};

/// The discard port (RFC 863): closed nearly everywhere, and harmless where it is not.
const PORT: u16 = 9;
/// Many times a round trip; the master waits a little longer.
const WITHIN: Duration = Duration::from_millis(700);

/// Tries, and answers.
pub(super) async fn answer(address: String, responder: Responder) {
    let reached = match address.parse() {
        Ok(address) if is_elsewhere(&address) => reaches(address).await,
        _ => false,
    };
    // The master takes no answer for a no.
    if !reached {
        let _ = responder.refuse(504, "not reached").await;
    } else if let Ok(mut stream) = responder.accept().await {
        // Dropped as it is it would take the answer back.
        let _ = stream.write.shutdown().await;
    }
}

async fn reaches(address: IpAddr) -> bool {
    match tokio::time::timeout(WITHIN, TcpStream::connect(SocketAddr::new(address, PORT))).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => error.kind() == io::ErrorKind::ConnectionRefused,
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_that_refuses_lives_and_one_that_says_nothing_may_not() {
        assert!(reaches(IpAddr::from([127, 0, 0, 1])).await);
        // TEST-NET-1 (RFC 5737) is nobody's.
        assert!(!reaches(IpAddr::from([192, 0, 2, 1])).await);
    }
}
