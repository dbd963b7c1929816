//! Probes against servers that answer, refuse, hang and talk nonsense, on loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::runtime::{
    ContainerRuntime as _,
    sim::{SimConfig, SimMachine, SimRuntime},
};

const SECOND: Duration = Duration::from_secs(1);

/// Answers each connection with the next of these texts, and keeps it open; with none it stays silent.
async fn server(answers: Vec<String>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(async move {
        let (mut asked, mut open) = (Vec::new(), Vec::new());
        let silent = answers.iter().any(String::is_empty);
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let count = stream.read(&mut request).await.unwrap();
            asked.push(String::from_utf8_lossy(&request[..count]).into_owned());
            stream.write_all(answer.replace("PORT", &port.to_string()).as_bytes()).await.unwrap();
            open.push(stream);
        }
        if silent {
            std::future::pending::<()>().await;
        }
        asked
    });
    (port, serving)
}

fn container(value: Value) -> v1::Container {
    serde_json::from_value(value).unwrap()
}

fn get(port: u16, handler: Value) -> Get {
    let mut handler = handler;
    handler["port"] = port.into();
    let handler = serde_json::from_value(handler).unwrap();
    Get::of(&handler, &container(json!({"name": "c"})), "127.0.0.1".parse().ok()).unwrap()
}

#[tokio::test]
async fn a_page_is_well_when_its_status_is() {
    let head = |status: &str| format!("HTTP/1.1 {status}\r\nContent-Length: 4\r\n\r\nbody");
    let failed = |code: u16| Outcome::Failure(format!("HTTP probe failed with statuscode: {code}"));
    let warned = || Outcome::Warning("Probe terminated redirects, Response body: body".into());
    for (answer, expected) in [
        (head("200 OK"), Outcome::Success),
        (head("204 No Content"), Outcome::Success),
        (head("304 Not Modified"), warned()),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\nContent-Length: 4\r\n\r\nbody"
                .into(),
            warned(),
        ),
        (head("404 Not Found"), failed(404)),
        (head("500 Oh"), failed(500)),
        ("HTTP/1.0 200 OK\r\n\r\n".into(), Outcome::Success),
    ] {
        let (port, _) = server(vec![answer.clone()]).await;
        assert_eq!(page(&get(port, json!({"path": "/"})), SECOND).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_refuses_or_talks_nonsense_has_failed() {
    let text = |outcome| match outcome {
        Outcome::Failure(text) => text,
        other => panic!("{other:?}"),
    };
    let (port, _) = server(vec![String::new()]).await;
    let url = format!("Get \"http://127.0.0.1:{port}/healthz\": ");
    let time = Duration::from_millis(200);
    let hung = text(page(&get(port, json!({"path": "healthz"})), time).await);
    assert_eq!(hung, url + "context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    let (port, _) = server(vec!["220 mail ready\r\n\r\n".into()]).await;
    let nonsense = text(page(&get(port, json!({"path": "/"})), SECOND).await);
    assert!(nonsense.contains("malformed HTTP response \"220 mail ready\""), "{nonsense}");
    let flood = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(100_000));
    let (port, _) = server(vec![flood]).await;
    assert!(text(page(&get(port, json!({"path": "/"})), SECOND).await).contains("exceeded the limit"));
    // Nobody listens on a port that was just given back.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let refused = text(page(&get(free, json!({"path": "/"})), SECOND).await);
    assert!(
        refused.ends_with(&format!("dial tcp 127.0.0.1:{free}: connect: connection refused")),
        "{refused}"
    );
    let refused = text(connection("127.0.0.1", free, SECOND).await);
    assert_eq!(refused, format!("dial tcp 127.0.0.1:{free}: connect: connection refused"));
    let (port, _) = server(vec![String::new()]).await;
    assert_eq!(connection("127.0.0.1", port, SECOND).await, Outcome::Success);
}

#[tokio::test]
async fn redirects_are_followed_on_the_same_host_and_not_for_ever() {
    let to = |location: &str| format!("HTTP/1.1 301 Moved\r\nLocation: {location}\r\n\r\n");
    let answers =
        vec![to("/b/c?q=1"), to("d"), to("http://127.0.0.1:PORT/e#f"), "HTTP/1.1 200 OK\r\n\r\n".into()];
    let (port, asked) = server(answers).await;
    assert_eq!(page(&get(port, json!({"path": "/a"})), SECOND).await, Outcome::Success);
    let paths: Vec<String> =
        asked.await.unwrap().iter().map(|r| r.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(paths, ["/a", "/b/c?q=1", "/b/d", "/e"]);
    let (port, _) = server(vec![to("/"); 20]).await;
    let Outcome::Failure(text) = page(&get(port, json!({"path": "/"})), SECOND).await else { panic!() };
    assert!(text.ends_with("stopped after 10 redirects"), "{text}");
}

#[tokio::test]
async fn the_request_says_who_asks_and_what_the_handler_adds() {
    let (port, asked) = server(vec!["HTTP/1.1 200 OK\r\n\r\n".into(); 2]).await;
    page(&get(port, json!({"path": "/a b?c=d"})), SECOND).await;
    let headers = json!([{"name": "Host", "value": "me.example"}, {"name": "user-agent", "value": "x"},
        {"name": "X-A", "value": "1"}, {"name": "X-A", "value": "2"}]);
    page(&get(port, json!({"path": "/", "httpHeaders": headers})), SECOND).await;
    let asked = asked.await.unwrap();
    let expected = format!(
        "GET /a%20b?c=d HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: kube-probe/1.33\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n"
    );
    assert_eq!(asked[0], expected);
    assert_eq!(
        asked[1],
        "GET / HTTP/1.1\r\nHost: me.example\r\nAccept: */*\r\nuser-agent: x\r\nX-A: 1\r\nX-A: 2\r\n\
         Connection: close\r\n\r\n"
    );
    let smuggled = json!([{"name": "X", "value": "1\r\nY: 2"}]);
    let Outcome::Failure(text) =
        page(&get(port, json!({"path": "/", "httpHeaders": smuggled})), SECOND).await
    else {
        panic!()
    };
    assert!(text.contains("invalid header field value"), "{text}");
}

#[tokio::test]
async fn https_is_spoken_with_whoever_answers() {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["nobody.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let secure = json!({"path": "/", "scheme": "HTTPS"});
    assert_eq!(page(&get(port, secure.clone()), SECOND * 5).await, Outcome::Success);
    let (port, _) = server(vec!["HTTP/1.1 200 OK\r\n\r\n".into()]).await;
    assert!(matches!(page(&get(port, secure), SECOND).await, Outcome::Failure(_)), "no TLS there");
}

#[test]
fn ports_have_names_and_hosts_default_to_the_pods_address() {
    let container = container(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}));
    let ip = "10.0.0.7".parse().ok();
    let at = |host: Option<&str>, port: IntOrString, ip| address(host, &port, &container, ip);
    let named = |name: &str| IntOrString::String(name.into());
    assert_eq!(at(None, named("web"), ip).unwrap(), ("10.0.0.7".into(), 8080));
    assert_eq!(at(Some("example"), IntOrString::Int(1), ip).unwrap(), ("example".into(), 1));
    assert_eq!(at(Some(""), named("81"), ip).unwrap().1, 81);
    assert_eq!(at(None, named("http"), ip).unwrap_err(), "strconv.Atoi: parsing \"http\": invalid syntax");
    assert!(at(None, IntOrString::Int(0), ip).is_err() && at(None, named("web"), None).is_err());
}

/// A gRPC server of one call: answers with these bytes, headers and trailers; with none it stays silent.
async fn grpc_server(answer: Option<(&'static [u8], &'static str)>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let Some((body, code)) = answer else {
                // Silence, until the client leaves.
                std::mem::forget(respond);
                continue;
            };
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let response = ::http::Response::builder().header("content-type", "application/grpc");
            let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
            stream.send_data(bytes::Bytes::from_static(body), false).unwrap();
            let mut trailers = ::http::HeaderMap::new();
            trailers.insert("grpc-status", code.parse().unwrap());
            trailers.insert("grpc-message", "why".parse().unwrap());
            stream.send_trailers(trailers).unwrap();
        }
    });
    port
}

#[tokio::test]
async fn a_grpc_server_says_how_it_is() {
    let failed = |text: &str| Outcome::Failure(text.to_owned());
    for (body, code, expected) in [
        (&[0, 0, 0, 0, 2, 8, 1][..], "0", Outcome::Success),
        (&[0, 0, 0, 0, 2, 8, 2], "0", failed("service unhealthy (responded with \"NOT_SERVING\")")),
        (&[0, 0, 0, 0, 0], "0", failed("service unhealthy (responded with \"UNKNOWN\")")),
        (
            &[],
            "12",
            failed(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): why",
            ),
        ),
        (&[], "5", failed("error: health rpc probe failed: rpc error: code = NotFound desc = why")),
        (
            &[0, 0, 0, 0, 9, 8, 1],
            "0",
            failed(
                "error: health rpc probe failed: rpc error: code = Unavailable desc = the answer is cut off",
            ),
        ),
    ] {
        let port = grpc_server(Some((body, code))).await;
        assert_eq!(grpc::check("127.0.0.1", port, "", SECOND * 5).await, expected, "{body:?} {code}");
    }
    let port = grpc_server(None).await;
    let hung = grpc::check("127.0.0.1", port, "a.service", SECOND).await;
    assert_eq!(hung, failed("timeout: health rpc did not complete within 1s"));
    let (port, _) = server(vec!["HTTP/1.1 200 OK\r\n\r\n".into()]).await;
    assert!(matches!(grpc::check("127.0.0.1", port, "", SECOND).await, Outcome::Failure(_)));
}

#[tokio::test]
async fn a_program_is_well_when_it_ends_with_zero() {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let machine = SimMachine::new(SimConfig::default()).unwrap();
    let runtime = SimRuntime::open(machine);
    runtime.set_pod_cidr("10.9.0.0/24").await.unwrap();
    let uid = format!("u{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let sandbox = crate::runtime::SandboxConfig { uid: uid.clone(), ..Default::default() };
    runtime.run_pod_sandbox(sandbox).await.unwrap();
    let config = crate::runtime::ContainerConfig {
        image: crate::runtime::images::BUILTIN_IMAGE.into(),
        ..Default::default()
    };
    let id = runtime.create_container(&uid.as_str().into(), config).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    let node = NodeContext {
        name: "n".into(),
        runtime: Arc::new(runtime),
        dir: "/nowhere".into(),
        host_ip: Default::default(),
        crash_loop: crate::logic::supervision::Backoff::CRASH_LOOP,
        configs: Default::default(),
        registry_config: None,
        peers: Default::default(),
        host: Default::default(),
        settings: Default::default(),
        packing: Default::default(),
        storage: Default::default(),
        starts: Default::default(),
        ledger: Default::default(),
    };
    let run = async |args: &[&str]| {
        let command = ["/hello", "hello"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
        program(&node, id.clone(), command, SECOND).await
    };
    assert_eq!(run(&["--once"]).await, Outcome::Success);
    let said = run(&["--print", "out", "--error", "err", "--exit-code", "1", "--once"]).await;
    assert_eq!(said, Outcome::Failure("out\nerr\n".into()));
    let hung = run(&[]).await;
    assert_eq!(hung, Outcome::Failure("command timed out: \"/hello hello\" timed out after 1s".into()));
    let missing = program(&node, id.clone(), vec!["/none".into()], SECOND).await;
    assert!(matches!(missing, Outcome::Error(text) if text.contains("no such file")));
}
