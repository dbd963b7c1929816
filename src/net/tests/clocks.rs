//! Machines whose clocks are apart by hours: what TLS makes of it, up to where it ends. Whole processes: tests/hosts.

use std::{sync::Arc, time::SystemTime};

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

use super::*;
use crate::{
    messages::wire::{Admitted, JoinAnswer},
    model::token::JoinToken,
    net::{csr::NodeKey, join},
};

/// A clock that is wrong by so many hours.
#[derive(Debug)]
struct Wrong(i64);

impl TimeProvider for Wrong {
    fn current_time(&self) -> Option<UnixTime> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            now.as_secs().checked_add_signed(self.0 * 3600)?,
        )))
    }
}

fn clock(hours: i64) -> Arc<dyn TimeProvider> {
    Arc::new(Wrong(hours))
}

/// A node's handshake with its master, both with certificates made just now.
async fn shake(node_hours: i64, master_hours: i64) -> Result<(), String> {
    let authority = Authority::ephemeral().unwrap();
    let (master, node) = (authority.issue_master().unwrap(), authority.issue_node(&"n1".into()).unwrap());
    let ca = authority.certificate();
    let crypto =
        tls::server_at(Arc::new(tls::Shown::new(&master, ca).unwrap()), ca, clock(master_hours)).unwrap();
    let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let server = quinn::Endpoint::server(server, local()).unwrap();
    let address = server.local_addr().unwrap();
    let client = quinn::Endpoint::client(local()).unwrap();
    let crypto = tls::client_at(&node, ca, clock(node_hours)).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = client.connect_with(config, address, MASTER).unwrap();
    let accepting = async { server.accept().await.unwrap().await };
    let (accepted, connected) = tokio::join!(accepting, connecting);
    let accepted = accepted.map_err(|error| transport::problem_of(&error))?;
    connected.map_err(|error| transport::problem_of(&error))?;
    assert!(accepted.peer_identity().is_some(), "it showed its certificate");
    Ok(())
}

#[tokio::test]
async fn clocks_apart_by_hours_keep_no_node_from_its_master() {
    for (node, master) in [(0, 0), (-20, 0), (0, -20), (20, 0), (0, 20), (-10, 12), (24 * 100, 0)] {
        timeout(PATIENCE, shake(node, master)).await.unwrap().unwrap_or_else(|problem| {
            panic!("the node's clock is wrong by {node} h, its master's by {master} h: {problem}")
        });
    }
    // By days behind, or by years ahead, a certificate does not hold: whoever reads of it is told where to look.
    for (node, master) in [(-30, 0), (0, -30), (24 * 400, 0)] {
        let problem = timeout(PATIENCE, shake(node, master)).await.unwrap().unwrap_err();
        assert!(problem.contains("clock"), "{problem}");
    }
}

#[tokio::test]
async fn a_machine_whose_clock_is_wrong_by_hours_joins() {
    // A certificate that has ended by the machine's own clock long before it comes is of no use to it, and is refused.
    for (hours, life_s, joins) in [(-20, 60, true), (20, 2 * 86_400, true), (20, 60, true), (45, 60, false)] {
        let mut cluster = Cluster::new();
        let pin = cluster.authority.certificate().public_key_pin().unwrap();
        let token = JoinToken::generate(pin, || 7);
        let mut asks = cluster.listener.joins().unwrap();
        let answering = async {
            let ask = asks.recv().await.unwrap();
            let life = Duration::from_secs(life_s);
            let certificate = cluster.authority.certify_node(&"n1".into(), &ask.request.csr, life).unwrap();
            let ca = cluster.authority.certificate().pem().to_owned();
            let admitted = Admitted { certificate, ca, cluster: "c".into() };
            drop(ask.answer.send(JoinAnswer::Admitted(admitted)));
        };
        let (address, csr) = (cluster.listener.local_addr(), NodeKey::generate().unwrap().request().unwrap());
        let asking = join::join_at(address, &token, "n1", csr, None, clock(hours));
        let (admitted, ()) = timeout(PATIENCE, async { tokio::join!(asking, answering) }).await.unwrap();
        match admitted {
            Ok(admitted) => assert!(joins && admitted.cluster == "c", "{hours} h"),
            Err(error) => assert!(!joins && error.to_string().contains("clock"), "{hours} h: {error}"),
        }
    }
}
