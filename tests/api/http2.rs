//! HTTP/2, frame by frame: when the answer comes before the body's end.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::Bytes;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use troupe::api::Limits;

use crate::harness::{Cluster, left_alone};

/// An answer that does not wait for the body is there by then.
const EARLY: Duration = Duration::from_millis(300);
/// The server's settings may ask for more of the window; no answer takes so long.
const PATIENCE: Duration = Duration::from_secs(30);
const PIECE: usize = 10_000;
/// More than is read before an answer.
const MUCH: usize = 24 << 20;

async fn connect(cluster: &Cluster, known: bool) -> h2::client::SendRequest<Bytes> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(cluster.file("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots);
    let mut config = if known {
        let chain = vec![CertificateDer::from_pem_file(cluster.file("admin.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(cluster.file("admin.key")).unwrap();
        config.with_client_auth_cert(chain, key).unwrap()
    } else {
        config.with_no_client_auth()
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(cluster.address).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let tls = tls.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let (requests, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    requests.ready().await.unwrap()
}

/// Sends a body in two pieces, the second when an answer would be there; checks that it is taken, and gives the answer.
async fn refused(cluster: &Cluster, known: bool, path: &str) -> (u16, Value) {
    let mut requests = connect(cluster, known).await;
    let uri = format!("https://localhost{path}");
    let request = http::Request::post(uri).header("content-type", "application/json").body(()).unwrap();
    let (mut answer, mut body) = requests.send_request(request, false).unwrap();
    body.send_data(Bytes::from(vec![b' '; PIECE]), false).unwrap();
    // Whom the server does not know, it does not wait for that long.
    let pause = if known { EARLY } else { Duration::ZERO };
    let early = tokio::time::timeout(pause, &mut answer).await;
    body.send_data(Bytes::from(vec![b' '; PIECE]), true).expect("the stream is not reset");
    let answer = match early {
        Ok(answer) => answer,
        Err(_) => tokio::time::timeout(PATIENCE, answer).await.expect("an answer"),
    };
    let answer = answer.expect("an answer");
    let code = answer.status().as_u16();
    let mut incoming = answer.into_body();
    let mut text = Vec::new();
    while let Some(chunk) = incoming.data().await {
        text.extend_from_slice(&chunk.expect("the whole answer"));
    }
    // Whether a reset came with it or behind it.
    let reset = tokio::time::timeout(EARLY, poll_fn(|cx| body.poll_reset(cx))).await;
    assert!(!matches!(reset, Ok(Ok(_))), "{path}: {reset:?}");
    (code, serde_json::from_slice(&text).unwrap())
}

#[test]
fn a_silent_stream_ends_with_the_client_that_resets_it() {
    let limits = Limits { ping_every: Duration::from_millis(50), ..Limits::default() };
    let cluster = Cluster::start_with(limits);
    let pod = r#"{"metadata":{"name":"deaf-log"},"spec":{"nodeName":"n1","containers":[{"name":"c","image":"x"}]}}"#;
    assert_eq!(cluster.ask("POST", "/api/v1/namespaces/default/pods", pod).code, 201);
    let streams = || {
        let metrics = cluster.ask("GET", "/metrics", "").text();
        metrics.lines().find_map(|line| line.strip_prefix("troupe_api_streams ")).map(str::to_owned)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for path in ["pods/deaf-log/log?follow=true", "configmaps?watch=true&resourceVersion=0"] {
            let mut requests = connect(&cluster, true).await;
            let uri = format!("https://localhost/api/v1/namespaces/default/{path}");
            let request = http::Request::get(uri).body(()).unwrap();
            let (answer, _) = requests.send_request(request, true).unwrap();
            let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer").expect("an answer");
            assert_eq!((answer.status().as_u16(), streams().as_deref()), (200, Some("1")), "{path}");
            // Dropped, it is reset; the connection stays.
            drop(answer);
            let deadline = std::time::Instant::now() + PATIENCE;
            while streams().as_deref() != Some("0") {
                assert!(std::time::Instant::now() < deadline, "{path}: the stream outlives its client");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            requests.ready().await.expect("the connection is there");
        }
    });
    crate::raw::eventually("the node's stream ends", || left_alone("deaf-log").then_some(()));
}

#[test]
fn an_answer_before_the_bodys_end_is_no_stream_error() {
    let cluster = Cluster::start_with(Limits { body_bytes: PIECE / 2, ..Limits::default() });
    let maps = "/api/v1/namespaces/default/configmaps";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (known, path, code) in [
            (false, maps.to_owned(), 401),
            (true, format!("{maps}?dryRun=Frob"), 400),
            (true, maps.to_owned(), 413),
            (true, "/apis/apps/v1/namespaces/default/deployments".to_owned(), 404),
        ] {
            let (answered, status) = refused(&cluster, known, &path).await;
            assert_eq!((answered, &status["code"]), (code, &Value::from(code)), "{path}: {status}");
        }
        // Of much more it comes in between, and tells the client to stop.
        let mut requests = connect(&cluster, true).await;
        let request = http::Request::post(format!("https://localhost{maps}")).body(()).unwrap();
        let (answer, mut body) = requests.send_request(request, false).unwrap();
        body.send_data(Bytes::from(vec![b' '; MUCH]), false).unwrap();
        let answer = tokio::time::timeout(PATIENCE, answer).await.expect("an answer").expect("an answer");
        assert_eq!(answer.status(), 413);
        let reset = tokio::time::timeout(EARLY, poll_fn(|cx| body.poll_reset(cx))).await;
        assert!(!matches!(reset, Ok(Ok(_))), "{reset:?}");
    });
}
