//! Peers of another version, and of another kind of master: who understands whom, and what the others are told.

use std::net::SocketAddr;

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use troupe::{
    messages::wire::{JoinRefusal, Open, Opened, ToNode},
    net::{
        Authority,
        codec::{OPEN_CAP, decode, encode},
        csr::{NodeKey, joined_key},
        join::{JoinError, join},
    },
};

use crate::{
    bed::{Bed, Host, NODE, node_of, ready},
    harness::{check, controller, until},
    raw,
    status::status,
};

fn links(host: &Host) -> SocketAddr {
    format!("{}:6443", host.address).parse().unwrap()
}

/// A machine that joined by hand: its key and certificate are in its data directory.
fn joined_by_hand(host: &Host, master: &Host) {
    let token = master.token(&[]).parse().unwrap();
    let pki = host.data.join("pki");
    std::fs::create_dir_all(&pki).unwrap();
    let key = NodeKey::open(&pki.join("node.key")).unwrap();
    let csr = key.request().unwrap();
    let admitted = host.inside(|| raw::block_on(join(links(master), &token, &host.name, csr, None))).unwrap();
    std::fs::write(pki.join("node.crt"), admitted.certificate).unwrap();
}

/// `Hello` and `Node` as the first version wrote them: the variant's number, then its fields.
fn old_words(variant: u8) -> Vec<u8> {
    let room = json!({"cpu": "4", "memory": "8Gi", "pods": "99"});
    let status = json!({"conditions": [{"type": "Ready", "status": "True"}], "allocatable": room});
    let status = status.to_string().into_bytes();
    let length = u8::try_from(status.len()).unwrap();
    assert!(length < 251, "one byte");
    let mut bytes = vec![variant];
    if variant == 0 {
        // No labels.
        bytes.push(0);
    }
    bytes.push(length);
    bytes.extend(status);
    bytes
}

/// What no version says yet.
const UNKNOWN: [u8; 5] = [250, 1, 2, 3, 4];

#[test]
fn nodes_of_older_and_newer_versions_are_understood_as_far_as_both_speak() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, node) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    joined_by_hand(&node, &master);
    let identity = raw::identity(&node.data);

    // One that knows of more protocols than we do speaks ours.
    node.inside(|| {
        std::thread::scope(|scope| {
            raw::block_on(async {
                let (endpoint, connection) =
                    raw::connect(links(&master), &[b"troupe/2", raw::LINK], Some(&identity)).await;
                let connection = connection.unwrap();
                let mut streams = raw::introduce(&connection).await;
                // It says first what nobody here understands, on either stream.
                streams.control.0.write_all(&raw::framed(&UNKNOWN)).await.unwrap();
                streams.control.0.write_all(&raw::framed(&old_words(0))).await.unwrap();
                streams.state.0.write_all(&raw::framed(&UNKNOWN)).await.unwrap();
                let welcome = decode::<ToNode>(&raw::next(&mut streams.control.1).await).unwrap();
                assert!(matches!(welcome, ToNode::Welcome(_)), "{welcome:?}");
                // Whatever takes long runs elsewhere: the peer has to be heard meanwhile.
                raw::done(scope.spawn(|| master.until_node("one", "True"))).await;
                streams.state.0.write_all(&raw::framed(&old_words(1))).await.unwrap();
                raw::done(scope.spawn(|| master.apply(&controller("web", 1, &[])))).await;
                let mut told = false;
                while !told {
                    let message = decode::<ToNode>(&raw::next(&mut streams.control.1).await).unwrap();
                    told = matches!(message, ToNode::Assignments(picture) if picture.documents.len() == 1);
                }
                // A question that it does not know it refuses, as every version does; nothing comes to harm by that.
                let asked = scope.spawn(|| status(&master));
                let (mut send, mut receive) = connection.accept_bi().await.unwrap();
                receive.read_exact(&mut [0]).await.unwrap();
                assert_eq!(decode::<Open>(&raw::next(&mut receive).await).unwrap(), Open::Actors);
                let refused = Opened::Refused(501, "the peer is older".into());
                send.write_all(&raw::framed(&encode(&refused, OPEN_CAP).unwrap())).await.unwrap();
                send.finish().unwrap();
                let shown = raw::done(asked).await;
                assert_eq!(shown["problems"], json!([]), "{shown}");
                assert_eq!(shown["nodes"][0]["actorsUnknown"], "its version does not tell them", "{shown}");
                assert_eq!(connection.close_reason(), None);
                connection.close(quinn::VarInt::from_u32(1), b"done");
                endpoint.wait_idle().await;
            });
        });
    });
    assert_eq!(node_of(&master.pods()[0]), "one");
    assert!(!master.said().contains("turned a peer away"));

    // One that speaks none of ours is told so, and whoever reads the master's log is.
    let (closed, asked) = node.inside(|| {
        raw::block_on(async {
            let link = raw::connect(links(&master), &[b"troupe/0"], Some(&identity)).await.1;
            let join = raw::connect(links(&master), &[b"troupe-join/0"], None).await.1;
            (link.map(drop).unwrap_err(), join.map(drop).unwrap_err())
        })
    });
    for error in [closed, asked] {
        // TLS' alert `no_application_protocol`.
        let quinn::ConnectionError::ConnectionClosed(close) = &error else { panic!("{error}") };
        assert_eq!(u64::from(close.error_code), 0x100 + 120, "{error}");
    }
    until("the master says so", || {
        let said = master.said();
        let line = said.lines().find(|line| line.contains("turned a peer away")).map(str::to_owned);
        let line = line.ok_or("it says nothing")?;
        check(line.contains("another version") && line.contains("troupe/1"), || line.clone())
    });
}

#[test]
fn a_node_whose_master_speaks_another_version_says_so_and_links_when_it_no_longer_does() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut node) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    node.join(&master);
    master.until_node("one", "True");
    node.kill();
    master.kill();
    let authority = Authority::open(&master.data.join("pki")).unwrap();
    let identity = authority.issue_master().unwrap();
    let _lines = node.launch(&NODE);
    master.inside(|| {
        raw::block_on(async {
            let endpoint = raw::serve(links(&master), &[b"troupe/0"], &identity);
            // The handshakes of those who speak otherwise fail by themselves.
            let accepting = async {
                while let Some(incoming) = endpoint.accept().await {
                    assert!(incoming.await.is_err());
                }
            };
            let said = async {
                while !node.said().contains("another version") {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            };
            tokio::select! {
                () = accepting => {}
                () = said => {}
                () = tokio::time::sleep(crate::harness::DEADLINE) => panic!("it says nothing of it"),
            }
            endpoint.close(quinn::VarInt::from_u32(0), b"");
            endpoint.wait_idle().await;
        });
    });
    master.master(&[]);
    master.until_node("one", "True");
}

#[test]
fn a_join_that_is_said_again_gains_nothing() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut node, thief) = (bed.host("m"), bed.host("one"), bed.host("thief"));
    master.master(&[]);
    let token = master.token(&[]);
    let words = ["--runtime", "sim", "--join", &master.address, "--token", &token, "--name", "one"];
    node.node(&words);
    master.until_node("one", "True");
    // What the node has sent, word for word: the token, the name, and the request over its key.
    let key = NodeKey::open(&node.data.join("pki/node.key")).unwrap();
    let secret = token.parse().unwrap();
    let again = |name: &str, key: &NodeKey| {
        let csr = key.request().unwrap();
        thief.inside(|| raw::block_on(join(links(&master), &secret, name, csr, None)))
    };
    let refused = |outcome: Result<_, JoinError>| match outcome {
        Err(JoinError::Refused(refusal, _)) => refusal,
        other => panic!("{:?}", other.map(|_: troupe::messages::wire::Admitted| ())),
    };
    assert_eq!(refused(again("one", &key)), JoinRefusal::NodeAlive);
    // With a key of its own it does not get that name, nor does what it asks for change the node.
    let own = NodeKey::generate().unwrap();
    assert_eq!(refused(again("one", &own)), JoinRefusal::NameTaken);
    // While the node is away: a certificate for a key that it does not have.
    node.kill();
    master.until_node("one", "Unknown");
    let admitted = again("one", &key).unwrap();
    let certificate = CertificateDer::from_pem_slice(admitted.certificate.as_bytes()).unwrap();
    assert_eq!(joined_key(&certificate), Some(key.pin()), "it is of no use with another key");
    node.node(&[]);
    master.until_node("one", "True");
    // And once the token is gone, not even that.
    node.kill();
    master.run(&["token", "rm", &token[..6]]).ok();
    master.until_node("one", "Unknown");
    assert_eq!(refused(again("one", &key)), JoinRefusal::TokenUnknown);
    node.node(&[]);
    master.until_node("one", "True");
}

#[test]
fn machines_join_a_machine_that_is_a_node_itself() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut first, mut second) = (bed.host("first"), bed.host("second"));
    let words = ["up", "--listen", "0.0.0.0:6443", "--eviction-hard", "", "--crash-loop-backoff", "300ms"];
    first.start(&words);
    second.join(&first);
    first.until_node("second", "True");
    let nodes = first.get(&["nodes"]).unwrap()["items"].as_array().cloned().unwrap();
    assert_eq!(nodes.len(), 2, "its own, and the one that joined");
    first.apply(&controller("web", 4, &[]));
    let pods = first.until_pods(4);
    let on_second = pods.iter().filter(|pod| node_of(pod) == "second").count();
    assert_eq!(on_second, 2, "they are spread");
    let containers = (first.containers(), second.containers());
    assert!(containers.0.len() >= 2 && containers.1.len() >= 2, "{containers:?}");
    let remote = pods.iter().find(|pod| node_of(pod) == "second").unwrap();
    let name = crate::harness::text(&remote["metadata"]["name"]);
    let words_ = ["exec", name, "--", "/hello", "hello", "--once", "--print", "there"];
    assert!(first.kubectl(&words_).ok().contains("there"));
    // Killed and started again, with everything running on.
    first.kill();
    first.start(&words);
    first.until_node("second", "True");
    let after = first.until_pods(4);
    assert_eq!(crate::bed::restarts(&after), crate::bed::restarts(&pods));
    assert_eq!((first.containers(), second.containers()), containers);
    // The machine's own node cannot be joined under.
    let (token, own) = (first.token(&[]), crate::harness::text(&nodes[0]["metadata"]["name"]).to_owned());
    let own =
        if own == "second" { crate::harness::text(&nodes[1]["metadata"]["name"]).to_owned() } else { own };
    let thief = bed.host("thief");
    let ran =
        thief.run(&["node", "--runtime", "sim", "--join", &first.address, "--token", &token, "--name", &own]);
    assert_eq!(ran.code(), Some(1), "{}", ran.err());
    assert!(ran.err().contains("already"), "{}", ran.err());
}
