//! A registry: Debian's `docker-registry` on a loopback port, and pushes into it.
//!
//! Owns: the process (ended with its guard), its certificate, and the few requests of the distribution specification
//! that a push takes. With TLS and passwords it is a second process over the first one's storage, so that pushes need
//! neither.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::{DEADLINE, program};

/// The only user: `ann`, whose password is `right` (`htpasswd -Bbn ann right`).
const USERS: &str = "ann:$2y$05$4DUJ7IpzXRGhmQXxz69S5eJZA6oB291uOtizq3zsfHO5kNYk8m/pu\n";

/// Whether there is a registry to test with. Says why not; under `CI` that is a failure.
pub fn registry_ready() -> bool {
    if program("docker-registry").is_some() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no docker-registry");
    eprintln!("skipped: no docker-registry (apt install docker-registry)");
    false
}

/// A registry process.
struct Process {
    child: Child,
    address: String,
}

impl Process {
    fn start(dir: &Path, name: &str, http: &str, more: &str) -> Process {
        let config = dir.join(format!("{name}.yml"));
        let storage = dir.join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:0', secret: test{http}}}\n{more}",
            storage.display()
        );
        fs::write(&config, text).expect("its configuration is written");
        let mut command = Command::new(program("docker-registry").expect("docker-registry"));
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("docker-registry starts");
        let stderr = child.stderr.take().expect("it is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut process = Process { child, address: String::new() };
        let mut said = Vec::new();
        while process.address.is_empty() {
            let line = lines.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("no registry: {said:#?}"));
            if let Some((_, rest)) = line.split_once("listening on ") {
                process.address = rest.split(['"', ',']).next().unwrap_or_default().to_owned();
            }
            said.push(line);
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry without TLS and passwords and, over the same images, one with both.
pub struct Registry {
    open: Process,
    closed: Process,
    dir: TempDir,
}

impl Registry {
    /// Starts both.
    #[track_caller]
    pub fn start() -> Registry {
        let dir = tempfile::Builder::new().prefix("troupe-registry-").tempdir().expect("a directory");
        let (cert, key, users) =
            (dir.path().join("cert.pem"), dir.path().join("key.pem"), dir.path().join("users"));
        let mut authority = CertificateParams::new(Vec::new()).expect("no names");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key"))
            .expect("an authority");
        let own = KeyPair::generate().expect("a key");
        let signed = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("a name");
        let signed = signed.signed_by(&own, &authority).expect("a certificate");
        fs::write(dir.path().join("ca.pem"), authority.pem()).expect("it is written");
        fs::write(&cert, signed.pem()).expect("it is written");
        fs::write(&key, own.serialize_pem()).expect("it is written");
        fs::write(&users, USERS).expect("it is written");
        let open = Process::start(dir.path(), "open", "", "");
        let tls = format!(", tls: {{certificate: {}, key: {}}}", cert.display(), key.display());
        let auth = format!("auth: {{htpasswd: {{realm: r, path: {}}}}}\n", users.display());
        let closed = Process::start(dir.path(), "closed", &tls, &auth);
        Registry { open, closed, dir }
    }

    /// An image's name in the open registry.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.open.address)
    }

    /// The same image's name in the closed one.
    pub fn closed_name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.closed.address)
    }

    /// The authority of the closed one's certificate.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Docker's configuration file with a password for the closed one.
    pub fn credentials(&self, password: &str) -> PathBuf {
        let path = self.dir.path().join("config.json");
        let entry = json!({"username": "ann", "password": password});
        let config = json!({"auths": {&self.closed.address: entry}});
        fs::write(&path, config.to_string()).expect("it is written");
        path
    }

    /// Pushes bytes; returns their descriptor.
    #[track_caller]
    pub fn blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let begun = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[]);
        let location = begun.lines().find_map(|l| l.strip_prefix("Location: ")).expect("an upload").trim();
        let path = location.split_once(&self.open.address).map_or(location, |(_, path)| path);
        let put = self.send("PUT", &format!("{path}&digest={digest}"), "application/octet-stream", bytes);
        assert!(put.starts_with("HTTP/1.1 201"), "{put}");
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Pushes a manifest or an index; returns its descriptor.
    #[track_caller]
    pub fn manifest(&self, repository: &str, tag: &str, document: &Value) -> Value {
        let media_type = document["mediaType"].as_str().expect("its kind");
        let bytes = document.to_string().into_bytes();
        let put = self.send("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, &bytes);
        assert!(put.starts_with("HTTP/1.1 201"), "{put}");
        json!({"mediaType": media_type, "digest": digest(&bytes), "size": bytes.len()})
    }

    fn send(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.open.address).expect("the registry listens");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {media_type}\r\n\
             Content-Length: {}\r\n\r\n",
            self.open.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("it is sent");
        stream.write_all(body).expect("it is sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// A digest, `sha256:…`.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}
