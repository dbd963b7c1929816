//! HTTP/1.1 over TLS, byte by byte: what a client library would not let a test say.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;

use crate::harness::{Cluster, TOKEN};

/// No answer takes so long: a server that is silent for longer has failed the test.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whose credentials a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// A client certificate of `system:masters`.
    Admin,
    /// A client certificate of nobody in particular.
    Stranger,
    /// None at all.
    Nobody,
}

/// A connection.
pub struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    read: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status code.
    pub code: u16,
    head: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.head, self.text()))
    }

    /// Checks that this is a `Status` with that code and reason; gives its message.
    #[track_caller]
    pub fn refuses(&self, code: u16, reason: &str) -> String {
        let status = self.json();
        assert_eq!(self.code, code, "{status}");
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["status"], "Failure", "{status}");
        assert_eq!(status["code"], code, "{status}");
        assert_eq!(status["reason"], reason, "{status}");
        status["message"].as_str().expect("a message").to_owned()
    }
}

impl Cluster {
    /// Connects with these credentials.
    pub fn connect(&self, who: Who) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.file("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let certified = |name: &str| {
            let certificate = CertificateDer::from_pem_file(self.file(&format!("{name}.pem"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(self.file(&format!("{name}.key"))).unwrap();
            (vec![certificate], key)
        };
        let config = match who {
            Who::Nobody => config.with_no_client_auth(),
            Who::Admin | Who::Stranger => {
                let (chain, key) = certified(if who == Who::Admin { "admin" } else { "stranger" });
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
        Client { stream: StreamOwned::new(connection, self.tcp()), read: Vec::new() }
    }

    /// Connects without TLS.
    pub fn tcp(&self) -> TcpStream {
        let tcp = TcpStream::connect(self.address).unwrap();
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        tcp.set_nodelay(true).unwrap();
        tcp
    }

    /// One request of an administrator, on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.connect(Who::Admin).ask(method, path, &[("Content-Type", "application/json")], body)
    }

    /// Checks that the server still serves.
    #[track_caller]
    pub fn is_alive(&self) {
        let answer = self.connect(Who::Admin).ask("GET", "/livez", &[], "");
        assert_eq!((answer.code, answer.text().as_str()), (200, "ok"));
    }
}

/// A header with the token that the server knows.
pub fn bearer() -> String {
    format!("Bearer {TOKEN}")
}

/// Waits until something is there.
#[track_caller]
pub fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Client {
    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// A whole request and its answer.
    #[track_caller]
    pub fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        self.send(head.as_bytes()).unwrap();
        // A server that refuses by the head alone may have closed before it took the body.
        let _ = self.send(body.as_bytes());
        self.answer()
    }

    /// Reads an answer.
    #[track_caller]
    pub fn answer(&mut self) -> Answer {
        let head = self.until(b"\r\n\r\n").expect("an answer's head");
        let head = String::from_utf8(head).unwrap();
        let code = head.split(' ').nth(1).and_then(|c| c.parse().ok()).expect("a status code");
        let mut answer = Answer { code, head, body: Vec::new() };
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk() {
                answer.body.extend(chunk);
            }
        } else {
            let length: usize = answer.header("content-length").map_or(0, |l| l.parse().unwrap());
            while self.read.len() < length {
                assert!(self.more().unwrap() > 0, "the body ends early");
            }
            answer.body = self.read.drain(..length).collect();
        }
        answer
    }

    /// Reads an answer's head and leaves its chunks.
    pub fn head(&mut self) -> String {
        String::from_utf8(self.until(b"\r\n\r\n").expect("an answer's head")).unwrap()
    }

    /// The next chunk of a stream; `None` at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.until(b"\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(std::str::from_utf8(&size).unwrap().trim(), 16).unwrap();
        while self.read.len() < size + 2 {
            assert!(self.more().unwrap() > 0, "the chunk ends early");
        }
        let chunk: Vec<u8> = self.read.drain(..size).collect();
        self.read.drain(..2);
        (size > 0).then_some(chunk)
    }

    /// Waits for the server to close the connection; gives what it said before.
    pub fn closed(&mut self) -> Vec<u8> {
        // Closed without a word of TLS is closed, too.
        while self.more().is_ok_and(|n| n > 0) {}
        std::mem::take(&mut self.read)
    }

    /// Sends these bytes again and again until nobody takes them any more.
    #[track_caller]
    pub fn fill(&mut self, bytes: &[u8]) {
        /// More than all buffers on the way hold.
        const ALL: usize = 256 << 20;
        self.stream.sock.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        for _ in 0..ALL / bytes.len() {
            if self.send(bytes).is_err() {
                return;
            }
        }
        panic!("everything was taken");
    }

    /// Reads up to a mark; `None` if it does not come.
    pub fn until(&mut self, mark: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.read.windows(mark.len()).position(|w| w == mark) {
                return Some(self.read.drain(..at + mark.len()).collect());
            }
            if self.more().ok()? == 0 {
                return None;
            }
        }
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 << 10];
        let n = self.stream.read(&mut buffer)?;
        self.read.extend_from_slice(&buffer[..n]);
        Ok(n)
    }
}
