//! Clients of exec, attach and port-forward that go away, as seen from outside.

use std::time::Duration;

use serde_json::json;
use troupe::api::Limits;

use crate::{
    harness::{Cluster, left_alone},
    raw::{Client, Who, eventually},
};

const PODS: &str = "/api/v1/namespaces/default/pods";
/// The first two streams of a port-forward, as clients open them.
const STREAMS: &str = include_str!("../../src/api/spdy/testdata/streams.hex");
/// Of these the one for data.
const DATA: u32 = 3;
const RESET: u16 = 3;
const PING: u16 = 6;

/// A pod whose programs and ports say nothing and read nothing.
fn deaf(cluster: &Cluster, name: &str) {
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] } });
    assert_eq!(cluster.ask("POST", PODS, &pod.to_string()).code, 201);
}

fn upgraded(cluster: &Cluster, path: &str, to: &str, headers: &str) -> Client {
    let mut client = cluster.connect(Who::Admin);
    let head = format!(
        "GET {PODS}/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {to}\r\n{headers}\r\n\r\n"
    );
    client.send(head.as_bytes()).unwrap();
    let answer = client.head();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    client
}

fn websocket(cluster: &Cluster, path: &str, protocol: &str) -> Client {
    let headers = format!(
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}"
    );
    upgraded(cluster, path, "websocket", &headers)
}

fn spdy(cluster: &Cluster, path: &str) -> Client {
    upgraded(cluster, path, "SPDY/3.1", "X-Stream-Protocol-Version: portforward.k8s.io")
}

/// A client's binary message.
fn message(bytes: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | 127];
    frame.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
    // Masked by nothing.
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(bytes);
    frame
}

fn streams() -> Vec<u8> {
    let hex: String = STREAMS.split_whitespace().collect();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

fn data(bytes: &[u8]) -> Vec<u8> {
    [&DATA.to_be_bytes()[..], &(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn control(kind: u16, words: &[u32]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&(words.len() as u32 * 4).to_be_bytes());
    words.iter().for_each(|word| frame.extend_from_slice(&word.to_be_bytes()));
    frame
}

#[test]
fn a_client_that_goes_is_noticed_though_nobody_reads_what_it_sent() {
    const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
    let limits = Limits { streams: 1, ping_every: Duration::from_millis(50), ..Limits::default() };
    let cluster = Cluster::start_with(limits);
    deaf(&cluster, "deaf-pod");
    let much = vec![0; 16 << 10];
    let of_channel = message(&much);
    let exec = "deaf-pod/exec?command=x&stdin=true&stdout=true";
    type Begin<'a> = &'a dyn Fn() -> Client;
    let cases: [(&str, Begin<'_>, Vec<u8>, Vec<u8>); 6] = [
        ("exec", &|| websocket(&cluster, exec, "v5.channel.k8s.io"), Vec::new(), of_channel.clone()),
        (
            "attach",
            &|| websocket(&cluster, "deaf-pod/attach?stdin=true&stdout=true", "v4.channel.k8s.io"),
            Vec::new(),
            of_channel.clone(),
        ),
        (
            "a port's channels",
            &|| websocket(&cluster, "deaf-pod/portforward?ports=80", "v4.channel.k8s.io"),
            Vec::new(),
            of_channel,
        ),
        ("ports by SPDY", &|| spdy(&cluster, "deaf-pod/portforward"), streams(), data(&much)),
        (
            "ports by SPDY in a WebSocket",
            &|| websocket(&cluster, "deaf-pod/portforward", TUNNEL),
            message(&streams()),
            message(&data(&much)),
        ),
        (
            "one long frame of SPDY",
            &|| spdy(&cluster, "deaf-pod/portforward"),
            [streams(), DATA.to_be_bytes().to_vec(), vec![0, 0xff, 0xff, 0xff]].concat(),
            much.clone(),
        ),
    ];
    for (what, begin, first, rest) in cases {
        let mut client = begin();
        client.send(&first).unwrap();
        client.fill(&rest);
        assert_eq!(cluster.ask("GET", &format!("{PODS}?watch=1&timeoutSeconds=1"), "").code, 429, "{what}");
        drop(client);
        eventually(&format!("room after {what}"), || {
            let watch = cluster.ask("GET", &format!("{PODS}?watch=1&timeoutSeconds=1"), "");
            (watch.code == 200).then_some(())
        });
    }
}

#[test]
fn a_forwarded_connection_that_its_client_resets_ends_in_the_pod_though_both_are_silent() {
    let cluster = Cluster::start();
    deaf(&cluster, "deaf-reset");
    let mut client = spdy(&cluster, "deaf-reset/portforward");
    client.send(&streams()).unwrap();
    client.send(&data(b"words")).unwrap();
    client.send(&control(RESET, &[DATA, 5])).unwrap();
    eventually("the pod's side ends", || left_alone("deaf-reset").then_some(()));
    // The session goes on.
    client.send(&control(PING, &[7])).unwrap();
    client.until(&control(PING, &[7])).expect("an answer");
}

#[test]
fn clients_of_spdy_are_asked_whether_they_are_there_and_their_answers_are_not_answered() {
    let limits = Limits { ping_every: Duration::from_millis(50), ..Limits::default() };
    let cluster = Cluster::start_with(limits);
    deaf(&cluster, "deaf-asked");
    let mut client = spdy(&cluster, "deaf-asked/portforward");
    client.until(&control(PING, &[2])).expect("a question");
    client.send(&control(PING, &[4])).unwrap();
    client.send(&control(PING, &[9])).unwrap();
    let before = client.until(&control(PING, &[9])).expect("an answer");
    let echo = control(PING, &[4]);
    assert!(!before.windows(echo.len()).any(|frame| frame == echo), "{before:?}");
}
