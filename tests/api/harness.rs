//! A server with an in-memory store, its certificates, and a kubeconfig: started on a thread of its own, stopped when
//! dropped.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Arc, Mutex, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use actix::{
    Actor, ActorFutureExt as _, Context, Handler, MessageResult, ResponseActFuture, ResponseFuture,
    WrapFuture as _,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair,
};
use tokio::sync::oneshot;
use troupe::{
    api::{ApiConfig, ApiState, Inspect, Limits, Links, Tls, User, serve},
    logic::tokens::SigningKey,
    messages::{
        ByteStream, Change, ChangeKind, Commit, CommitError, Committed, Expected, OpenError, OpenStream,
        OwnActors, Port, Publisher, ShowNodes, ShowStore, Slot, StoreState, View, Write, wire,
    },
    model::{Kind, Object, Revision, Snapshot, seal_json},
    net::TokenKey,
};

/// A bearer token that the server knows.
pub const TOKEN: &str = "a-token-of-the-tests";

/// A key for tokens, of this server alone.
fn token_key() -> Arc<SigningKey> {
    let key = TokenKey::ephemeral().unwrap();
    Arc::new(SigningKey::new(key.point().unwrap(), Arc::new(move |bytes| key.sign(bytes))))
}

/// Where the store begins: as after a restart, what was before is forgotten.
const FIRST_REVISION: Revision = Revision(1_000);

/// The store as far as the API needs it: compare-and-swap over a snapshot, published at once.
struct Memory {
    snapshot: Snapshot,
    publisher: Publisher,
    /// How long each commit waits for the disk, beside all others.
    delay: Duration,
}

impl Actor for Memory {
    type Context = Context<Self>;
}

impl Handler<Commit> for Memory {
    type Result = ResponseActFuture<Self, Result<Committed, CommitError>>;

    fn handle(&mut self, commit: Commit, _: &mut Self::Context) -> Self::Result {
        let delay = self.delay;
        let waited = async move {
            if !delay.is_zero() {
                actix_rt::time::sleep(delay).await;
            }
        };
        Box::pin(waited.into_actor(self).map(|(), store, _| store.commit(commit)))
    }
}

/// What the store's disk is like.
#[derive(Clone, Copy, Default)]
struct Disk {
    delay: Duration,
    full: bool,
}

/// A node registry that is not there.
struct NoNodes;

impl Actor for NoNodes {
    type Context = Context<Self>;
}

impl Handler<ShowNodes> for NoNodes {
    type Result = MessageResult<ShowNodes>;

    fn handle(&mut self, _: ShowNodes, _: &mut Self::Context) -> Self::Result {
        MessageResult(Vec::new())
    }
}

/// Says that the store's disk takes nothing.
struct Failing;

impl Actor for Failing {
    type Context = Context<Self>;
}

impl Handler<ShowStore> for Failing {
    type Result = MessageResult<ShowStore>;

    fn handle(&mut self, _: ShowStore, _: &mut Self::Context) -> Self::Result {
        MessageResult(StoreState { queued_changes: 0, behind: 1, failing: true })
    }
}

impl Memory {
    fn commit(&mut self, commit: Commit) -> Result<Committed, CommitError> {
        let mut next = self.snapshot.clone();
        let (mut objects, mut changes) = (Vec::new(), Vec::new());
        for write in commit.writes {
            next.revision = Revision(next.revision.0 + 1);
            let change = apply(&mut next, write)?;
            objects.push(change.object.clone());
            changes.push(change);
        }
        self.snapshot = next.clone();
        self.publisher.publish(next, changes);
        Ok(Committed { objects })
    }
}

fn apply(next: &mut Snapshot, write: Write) -> Result<Change, CommitError> {
    let revision = next.revision;
    let check = |current: &Arc<Object>, expected: &Expected| {
        let uid = expected.uid.as_ref().is_none_or(|u| u == current.uid());
        let same = expected.revision.is_none_or(|r| r == current.revision);
        (uid && same)
            .then_some(())
            .ok_or_else(|| CommitError::Conflict { key: current.key.clone(), current: current.clone() })
    };
    Ok(match write {
        Write::Create(sealed) => {
            if next.find(&sealed.key).is_some() {
                return Err(CommitError::AlreadyExists(sealed.key));
            }
            let object = Arc::new(sealed.at(revision));
            next.insert(object.clone());
            Change { kind: ChangeKind::Added, object, previous: None }
        }
        Write::Replace(sealed, expected) => {
            let previous =
                next.find(&sealed.key).cloned().ok_or(CommitError::NotFound(sealed.key.clone()))?;
            check(&previous, &expected)?;
            let object = Arc::new(sealed.at(revision));
            next.insert(object.clone());
            Change { kind: ChangeKind::Modified, object, previous: Some(previous) }
        }
        Write::Remove(key, expected) => {
            let previous = next.find(&key).cloned().ok_or(CommitError::NotFound(key.clone()))?;
            check(&previous, &expected)?;
            next.remove(&key);
            let last = seal_json(key.kind, &previous.json).expect("a stored document seals").at(revision);
            Change { kind: ChangeKind::Deleted, object: Arc::new(last), previous: Some(previous) }
        }
    })
}

/// A node that answers streams: logs say what was asked for, uploads are measured.
struct Node;

impl Actor for Node {
    type Context = Context<Self>;
}

impl Handler<OpenStream> for Node {
    type Result = ResponseFuture<Result<ByteStream, OpenError>>;

    fn handle(&mut self, request: OpenStream, _: &mut Self::Context) -> Self::Result {
        Box::pin(async move {
            if request.node.as_str() == "gone" {
                return Err(OpenError::NotConnected(request.node));
            }
            let (ours, theirs) = tokio::io::duplex(4096);
            let (read, write) = tokio::io::split(ours);
            actix_rt::spawn(answer(request.open, theirs));
            Ok(ByteStream { read: Box::pin(read), write: Box::pin(write) })
        })
    }
}

/// Pods that read nothing and say nothing, and whose streams were dropped.
static LEFT_ALONE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Whether a pod whose name begins with `deaf` has lost a stream.
pub fn left_alone(pod: &str) -> bool {
    LEFT_ALONE.lock().unwrap().iter().any(|left| left == pod)
}

async fn answer(open: wire::Open, mut stream: tokio::io::DuplexStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    if let wire::Open::Exec(wire::ExecRequest { pod, .. })
    | wire::Open::Attach(wire::AttachRequest { pod, .. })
    | wire::Open::PortForward(wire::PortForwardRequest { pod, .. })
    | wire::Open::Logs(wire::LogRequest { pod, .. }) = &open
        && pod.starts_with("deaf")
    {
        while stream.write(&[]).await.is_ok() {
            actix_rt::time::sleep(Duration::from_millis(10)).await;
        }
        return LEFT_ALONE.lock().unwrap().push(pod.clone());
    }
    let text = match open {
        wire::Open::Logs(request) => {
            format!("log of {} in {} tail {:?}\n", request.container, request.pod, request.tail_lines)
        }
        wire::Open::ImageLoad(_) => {
            let mut image = Vec::new();
            // A client that breaks off has sent an image that ends there.
            let _ = stream.read_to_end(&mut image).await;
            let answer = if String::from_utf8_lossy(&image).contains("bad") {
                wire::ImageAnswer::Refused("no image: it is bad".into())
            } else {
                wire::ImageAnswer::Done(vec![format!("loaded {} bytes", image.len())])
            };
            serde_json::to_string(&answer).expect("an answer is JSON")
        }
        wire::Open::ImageList => r#"["a:1"]"#.into(),
        other => serde_json::json!(format!("{other:?}")).to_string(),
    };
    // The reader may have gone: then nobody misses the answer.
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// A running server.
pub struct Cluster {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its files: `kubeconfig`, `ca.pem`, `admin.pem`, `admin.key`, `stranger.pem`, `stranger.key`.
    pub dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Cluster {
    /// Starts a server with Kubernetes' limits.
    pub fn start() -> Cluster {
        Cluster::start_with(Limits::default())
    }

    /// Starts a server with other limits.
    pub fn start_with(limits: Limits) -> Cluster {
        Cluster::start_as(limits, true, Disk::default())
    }

    /// Starts a server whose store takes so long over each commit.
    pub fn start_with_slow_disk(delay: Duration) -> Cluster {
        Cluster::start_as(Limits::default(), true, Disk { delay, full: false })
    }

    /// Starts a server whose store is not there.
    pub fn start_without_store() -> Cluster {
        Cluster::start_as(Limits::default(), false, Disk::default())
    }

    /// Starts a server whose store answers, but cannot write.
    pub fn start_with_full_disk() -> Cluster {
        Cluster::start_as(Limits::default(), true, Disk { full: true, ..Disk::default() })
    }

    fn start_as(limits: Limits, with_store: bool, disk: Disk) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let tls = certificates(dir.path());
        let (started, address) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            actix_rt::System::new().block_on(async move {
                let mut snapshot = Snapshot::default();
                snapshot.revision = FIRST_REVISION;
                let (view, publisher) = View::new(snapshot.clone());
                let mut memory = Memory { snapshot, publisher, delay: disk.delay };
                seed(&mut memory);
                let store = Slot::new("store");
                store.publish(with_store.then(|| memory.start()));
                let state = ApiState {
                    view,
                    commit: store.port(),
                    streams: Port::fixed("nodes", Node.start().recipient()),
                    token_key: token_key(),
                    metrics: Some(Arc::new(|| "up 1\n".to_owned())),
                    inspect: disk.full.then(|| Inspect {
                        cluster: "t".into(),
                        nodes: Slot::<NoNodes>::new("nodes").port(),
                        store: Port::fixed("store", Failing.start().recipient()),
                        actors: Arc::new(|| Box::pin(async { OwnActors::default() })),
                        certificates: Arc::new(Vec::new),
                        links: Arc::new(|| Links {
                            listen: SocketAddr::from(([0, 0, 0, 0], 1)),
                            reached: Err(String::new()),
                            authority: String::new(),
                        }),
                    }),
                    backup: None,
                };
                let mut config = ApiConfig::new("127.0.0.1:0".parse().unwrap(), tls);
                config.limits = limits;
                config.workers = 1;
                config.tokens =
                    HashMap::from([(TOKEN.to_owned(), User { name: "robot".into(), ..User::default() })]);
                let server = serve(config, state).unwrap();
                started.send(server.address()).unwrap();
                let _ = stopped.await;
                server.stop().await;
            });
        });
        let address = address.recv().expect("the server starts");
        let cluster = Cluster { address, dir, stop: Some(stop), thread: Some(thread) };
        std::fs::write(cluster.file("kubeconfig"), cluster.kubeconfig()).unwrap();
        cluster
    }

    /// A file of the cluster's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn kubeconfig(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: t\n\
             clusters:\n- name: t\n  cluster: {{server: 'https://{}', certificate-authority: {dir}/ca.pem}}\n\
             contexts:\n- name: t\n  context: {{cluster: t, user: admin}}\n\
             users:\n- name: admin\n  user: {{client-certificate: {dir}/admin.pem, client-key: {dir}/admin.key}}\n",
            self.address
        )
    }

    /// Runs kubectl against the server.
    pub fn kubectl(&self, kubectl: &Path, arguments: &[&str]) -> Ran {
        self.kubectl_with(kubectl, arguments, &[])
    }

    /// Runs kubectl with further environment variables.
    pub fn kubectl_with(&self, kubectl: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
        let output = Command::new(kubectl)
            .args(arguments)
            .env("KUBECONFIG", self.file("kubeconfig"))
            .env("HOME", self.dir.path())
            .envs(environment.iter().copied())
            .current_dir(self.dir.path())
            .output()
            .expect("kubectl starts");
        Ran { what: format!("{} {}", kubectl.display(), arguments.join(" ")), output }
    }
}

/// What a command did.
pub struct Ran {
    what: String,
    output: Output,
}

impl Ran {
    /// Its standard output, when it succeeded.
    #[track_caller]
    pub fn ok(&self) -> String {
        let (out, err) = self.texts();
        assert!(self.output.status.success(), "{} failed\n{out}\n{err}", self.what);
        out
    }

    /// Its standard error, when it failed.
    #[track_caller]
    pub fn fails(&self) -> String {
        let (out, err) = self.texts();
        assert!(!self.output.status.success(), "{} succeeded\n{out}\n{err}", self.what);
        err
    }

    /// Both outputs together, whatever it did: for commands whose exit code differs between versions.
    pub fn fails_or_empty(&self) -> String {
        let (out, err) = self.texts();
        out + &err
    }

    /// Its standard output and standard error.
    pub fn texts(&self) -> (String, String) {
        (
            String::from_utf8_lossy(&self.output.stdout).into_owned(),
            String::from_utf8_lossy(&self.output.stderr).into_owned(),
        )
    }
}

/// What every cluster has from the start.
fn seed(memory: &mut Memory) {
    let mut writes = Vec::new();
    for name in ["default", "kube-system"] {
        let document = serde_json::json!({ "metadata": { "name": name, "uid": format!("ns-{name}"),
            "creationTimestamp": "2030-01-01T00:00:00Z" }, "spec": { "finalizers": ["kubernetes"] },
            "status": { "phase": "Active" } });
        writes.push((Kind::Namespace, document));
    }
    for name in ["n1", "gone"] {
        let document = serde_json::json!({ "metadata": { "name": name, "uid": format!("node-{name}"),
            "creationTimestamp": "2030-01-01T00:00:00Z" } });
        writes.push((Kind::Node, document));
    }
    for (kind, document) in writes {
        let sealed = seal_json(kind, document.to_string().as_bytes()).unwrap();
        let commit =
            Commit { writes: vec![Write::Create(sealed)], durability: troupe::messages::Durability::Soft };
        memory.commit(commit).unwrap();
    }
}

/// Makes a CA, a server's certificate, an administrator's and a stranger's.
fn certificates(dir: &Path) -> Tls {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name = name("test-ca", &[]);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::from_params(&ca, &ca_key);
    let issue = |common: &str, groups: &[&str], purpose, names: Vec<String>| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = name(common, groups);
        params.extended_key_usages = vec![purpose];
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    std::fs::write(dir.join("ca.pem"), ca_certificate.pem()).unwrap();
    for (file, groups) in [("admin", ["system:masters"]), ("stranger", ["people"])] {
        let (certificate, key) = issue(file, &groups, ExtendedKeyUsagePurpose::ClientAuth, Vec::new());
        std::fs::write(dir.join(format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
    let (server, key) = issue(
        "troupe",
        &[],
        ExtendedKeyUsagePurpose::ServerAuth,
        vec!["127.0.0.1".into(), "localhost".into()],
    );
    Tls {
        chain: vec![server.der().clone()],
        key: rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        client_ca: vec![ca_certificate.der().clone()],
    }
}

fn name(common: &str, groups: &[&str]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    for group in groups {
        name.push(DnType::OrganizationName, *group);
    }
    name
}
