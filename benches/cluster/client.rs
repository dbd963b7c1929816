//! A client of the API: HTTP/1.1 over TLS with the kubeconfig's certificate, one connection kept alive, no runtime.
//!
//! Blocking on purpose: the time stamp of an answer is taken when its bytes are here, not when a task is polled.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::ByteString;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;

/// No answer of the API takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that was not used for so long is not used again.
const IDLE: Duration = Duration::from_secs(2);

/// Who to be and where to go.
#[derive(Clone)]
pub struct Login {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Login {
    /// As the kubeconfig says.
    pub fn read(kubeconfig: &Path) -> Login {
        let text = fs::read_to_string(kubeconfig).expect("a kubeconfig");
        let config: Value = serde_yaml_ng::from_str(&text).expect("a kubeconfig is YAML");
        let bytes = |value: &Value| -> Vec<u8> {
            serde_json::from_value::<ByteString>(value.clone()).expect("base64").0
        };
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(&bytes(&cluster["certificate-authority-data"]));
        roots.add(ca.expect("a certificate")).expect("an authority");
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes(&user["client-certificate-data"]))
            .collect::<Result<_, _>>()
            .expect("certificates");
        let key = PrivateKeyDer::from_pem_slice(&bytes(&user["client-key-data"])).expect("a key");
        let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring does TLS")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("the key is the certificate's");
        let server = cluster["server"].as_str().and_then(|s| s.strip_prefix("https://"));
        let address = server.and_then(|s| s.parse().ok()).expect("an address");
        Login { address, tls: Arc::new(tls) }
    }

    /// Connects; the handshake is done with the first request.
    pub fn connect(&self) -> Client {
        let socket = TcpStream::connect(self.address).expect("the API listens");
        socket.set_nodelay(true).expect("a TCP socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let name = ServerName::IpAddress(self.address.ip().into());
        let session = ClientConnection::new(self.tls.clone(), name).expect("a TLS client");
        let stream = BufReader::new(StreamOwned::new(session, socket));
        Client { login: self.clone(), stream, used: Instant::now() }
    }

    /// Follows a collection from now on; events come with the time at which they arrived. Ends with the receiver.
    pub fn watch(&self, path: &str) -> mpsc::Receiver<(Instant, Value)> {
        let mut client = self.connect();
        let list = client.get(path);
        let version = list["metadata"]["resourceVersion"].as_str().expect("a list has a version").to_owned();
        client.send("GET", &format!("{path}?watch=1&resourceVersion={version}"), None, "");
        let head = client.head();
        assert_eq!(head.status, 200, "watch {path}");
        assert!(head.chunked, "a watch has no length");
        let (events, received) = mpsc::channel();
        thread::spawn(move || {
            let mut pending = Vec::new();
            while let Some(chunk) = client.chunk() {
                let now = Instant::now();
                pending.extend_from_slice(&chunk);
                while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    let event = serde_json::from_slice(&line).expect("a watch event is JSON");
                    if events.send((now, event)).is_err() {
                        return;
                    }
                }
            }
        });
        received
    }
}

/// One connection, made anew when it was idle for long: the server may be about to close it.
pub struct Client {
    login: Login,
    used: Instant,
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

struct Head {
    status: u16,
    length: usize,
    chunked: bool,
}

impl Client {
    /// GET; panics on an error, as all of these.
    pub fn get(&mut self, path: &str) -> Value {
        self.call("GET", path, None, "")
    }

    /// POST of an object.
    pub fn create(&mut self, path: &str, object: &Value) -> Value {
        self.call("POST", path, Some(object), "application/json")
    }

    /// Sets the number of replicas, as `kubectl scale`.
    pub fn scale(&mut self, path: &str, replicas: usize) {
        let patch = serde_json::json!({"spec": {"replicas": replicas}});
        self.call("PATCH", &format!("{path}/scale"), Some(&patch), "application/merge-patch+json");
    }

    /// DELETE.
    pub fn delete(&mut self, path: &str) {
        self.call("DELETE", path, None, "");
    }

    /// Sees to it that the next call finds an open connection.
    pub fn warm(&mut self) {
        self.get("/version");
    }

    /// DELETE of what may be gone already.
    pub fn try_delete(&mut self, path: &str) {
        let (status, text) = self.exchange("DELETE", path, None, "");
        assert!(status == 404 || (200..300).contains(&status), "DELETE {path}: {status} {text}");
    }

    fn call(&mut self, method: &str, path: &str, body: Option<&Value>, kind: &str) -> Value {
        let (status, text) = self.exchange(method, path, body, kind);
        assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    fn exchange(&mut self, method: &str, path: &str, body: Option<&Value>, kind: &str) -> (u16, String) {
        if self.used.elapsed() > IDLE {
            *self = self.login.connect();
        }
        self.used = Instant::now();
        self.send(method, path, body, kind);
        let head = self.head();
        let body = if head.chunked {
            let mut all = Vec::new();
            while let Some(chunk) = self.chunk() {
                all.extend_from_slice(&chunk);
            }
            all
        } else {
            self.read(head.length)
        };
        (head.status, String::from_utf8_lossy(&body).into_owned())
    }

    fn send(&mut self, method: &str, path: &str, body: Option<&Value>, kind: &str) {
        let body = body.map(|b| b.to_string()).unwrap_or_default();
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: troupe\r\nAccept: application/json\r\n");
        if !body.is_empty() {
            request += &format!("Content-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += &body;
        let stream = self.stream.get_mut();
        stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).expect("the API reads");
    }

    fn head(&mut self) -> Head {
        let first = self.line();
        let status = first.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status line");
        let mut head = Head { status, length: 0, chunked: false };
        loop {
            let line = self.line().to_ascii_lowercase();
            match line.split_once(':') {
                Some(("content-length", value)) => head.length = value.trim().parse().expect("a length"),
                Some(("transfer-encoding", value)) => head.chunked = value.contains("chunked"),
                Some(_) => {}
                None => return head,
            }
        }
    }

    fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.try_line()?;
        let size = usize::from_str_radix(&size, 16).expect("a chunk's size");
        let bytes = self.read(size);
        self.read(2);
        (size > 0).then_some(bytes)
    }

    fn read(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).expect("the API answers");
        bytes
    }

    fn line(&mut self) -> String {
        self.try_line().expect("the API answers")
    }

    /// `None` when the connection has ended, or nothing came for too long.
    fn try_line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(count) if count > 0 => Some(line.trim_end().to_owned()),
            _ => None,
        }
    }
}
