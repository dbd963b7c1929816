//! Pulls from a registry that does as it is told: lies, breaks off, asks for tokens.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    super::{
        ImageStore, Limits, Origin,
        manifest::architecture,
        stream::digest_of,
        tests::{E, config, gzip, layers_in, nothing_staged, tar},
    },
    *,
};

/// What the server is asked.
#[derive(Clone, Debug, Default)]
struct Asked {
    path: String,
    headers: HashMap<String, String>,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What it answers.
#[derive(Clone, Default)]
struct Told {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Hangs up after so many bytes of the body.
    cut: Option<usize>,
    /// Goes on saying nothing after them.
    hang: bool,
    /// Goes on with one byte after the other after them, with pauses of some milliseconds.
    drip: bool,
}

impl Told {
    fn ok(body: impl Into<Vec<u8>>) -> Told {
        Told { status: 200, body: body.into(), ..Told::default() }
    }

    fn status(status: u16) -> Told {
        Told { status, ..Told::default() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Told {
        self.headers.push((name, value.into()));
        self
    }
}

type Rule = dyn Fn(&Asked) -> Option<Told> + Send + Sync;

/// A registry on a port of its own. What no rule answers it looks up among its blobs and tags.
struct Server {
    address: SocketAddr,
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    tags: Mutex<HashMap<String, String>>,
    rule: Mutex<Option<Box<Rule>>>,
    asked: Mutex<Vec<Asked>>,
    stop: AtomicBool,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, inner) = (listener.local_addr().unwrap(), Arc::<Inner>::default());
        let serving = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), inner) = (stream, Arc::clone(&serving)) else { return };
                std::thread::spawn(move || inner.serve(&stream));
            }
        });
        Server { address, inner }
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    fn rule(&self, rule: impl Fn(&Asked) -> Option<Told> + Send + Sync + 'static) {
        *self.inner.rule.lock().unwrap() = Some(Box::new(rule));
    }

    fn blob(&self, bytes: Vec<u8>) -> Value {
        let digest = digest_of(&bytes);
        let size = bytes.len();
        self.inner.blobs.lock().unwrap().insert(digest.clone(), bytes);
        json!({"digest": digest, "size": size})
    }

    /// Stores an image; `pack` compresses a layer. Returns its manifest's descriptor.
    fn image(&self, tag: &str, layers: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>) -> Value {
        let config = self.blob(config(layers));
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(pack(layer))).collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        self.document(tag, &manifest)
    }

    fn document(&self, tag: &str, document: &Value) -> Value {
        let descriptor = self.blob(document.to_string().into_bytes());
        self.inner.tags.lock().unwrap().insert(tag.to_owned(), text(&descriptor["digest"]));
        descriptor
    }

    /// The paths asked for so far, without `/v2/app`.
    fn asked(&self) -> Vec<String> {
        let asked = self.inner.asked.lock().unwrap();
        asked.iter().map(|a| a.path.trim_start_matches("/v2/app/").to_owned()).collect()
    }

    fn asked_blobs(&self) -> usize {
        self.asked().iter().filter(|path| path.starts_with("blobs/")).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Relaxed);
        // Lets the listener look.
        let _ = TcpStream::connect(self.address);
    }
}

impl Inner {
    fn serve(&self, mut stream: &TcpStream) {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut asked = Asked { path, ..Asked::default() };
        if !first.starts_with("GET ") {
            // A TLS greeting: this one does not speak it.
            let _ = stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nwhat?");
            return;
        }
        for line in lines.take_while(|line| !line.is_empty()) {
            let Some((name, value)) = line.split_once(": ") else { continue };
            asked.headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        self.asked.lock().unwrap().push(asked.clone());
        let told = self.rule.lock().unwrap().as_ref().and_then(|rule| rule(&asked));
        let told = told.unwrap_or_else(|| self.look_up(&asked));
        let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", told.status, told.body.len());
        for (name, value) in told.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let _ = stream.write_all(format!("{head}\r\n").as_bytes());
        let end = told.cut.unwrap_or(told.body.len());
        let _ = stream.write_all(&told.body[..end]);
        if told.drip {
            for byte in &told.body[end..] {
                std::thread::sleep(Duration::from_millis(5));
                if self.stop.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                    break;
                }
            }
        }
        while told.hang && !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn look_up(&self, asked: &Asked) -> Told {
        let wanted = asked.path.rsplit('/').next().unwrap_or_default();
        let digest = self.tags.lock().unwrap().get(wanted).cloned().unwrap_or_else(|| wanted.to_owned());
        let Some(blob) = self.blobs.lock().unwrap().get(&digest).cloned() else {
            let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
            return Told { status: 404, body: body.to_string().into_bytes(), ..Told::default() };
        };
        let from =
            asked.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match from {
            Some(from) if from < blob.len() => {
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                let part = Told { status: 206, body: blob[from..].to_vec(), ..Told::default() };
                part.with("Content-Range", range)
            }
            Some(_) => Told::status(416),
            None => Told::ok(blob),
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    compress_to_vec(bytes, CompressionLevel::Fastest)
}

fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// A store with what pulls into it, and where.
struct Bench {
    dir: TempDir,
    store: ImageStore,
    pulls: Pulls,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Limits::default(), RegistryConfig::default())
    }

    fn with(limits: Limits, config: RegistryConfig) -> Bench {
        let dir = TempDir::new().unwrap();
        let store = ImageStore::with_limits(dir.path(), limits).unwrap();
        Bench { pulls: Pulls::new(store.clone(), config), store, dir }
    }

    async fn pull(&self, name: &str) -> Result<Image, String> {
        self.pulls.pull(name, None).await.map_err(|e| e.to_string())
    }

    async fn pull_as(&self, name: &str, password: &str) -> Result<Image, String> {
        let auth = RegistryAuth { username: "ann".into(), password: password.into() };
        self.pulls.pull(name, Some(auth)).await.map_err(|e| e.to_string())
    }

    /// It failed for this reason and left nothing.
    async fn refused(&self, name: &str, reason: &str) {
        let error = self.pull(name).await.unwrap_err();
        assert!(error.contains(reason), "{error}");
        assert_eq!((layers_in(&self.dir), self.store.list().unwrap().len()), (0, 0), "{error}");
        nothing_staged(&self.dir);
    }
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest_whatever_its_compression() {
    let server = Server::start();
    let layers = [
        tar(&[E::File("bin/app", "one"), E::File("gone", "x"), E::Dir("d"), E::File("d/old", "x")]),
        tar(&[
            E::File(".wh.gone", ""),
            E::File("d/.wh..wh..opq", ""),
            E::File("new", "2"),
            E::Hard("d/hard", "new"),
            E::Attr("attr", "user.color", "blue"),
        ]),
    ];
    for (tag, pack) in [("gzip", gzip as fn(&[u8]) -> Vec<u8>), ("zstd", zstd), ("plain", plain)] {
        let bench = Bench::new();
        let manifest = server.image(tag, &layers, pack);
        let image = bench.pull(&server.name(&format!("app:{tag}"))).await.unwrap();
        assert_eq!(image.id, digest_of(&config(&layers)));
        assert_eq!(image.names, [server.name(&format!("app:{tag}"))]);
        let resolved = bench.store.resolve(&image.names[0]).unwrap().unwrap();
        let [top, bottom] = resolved.layers.as_slice() else { panic!("{resolved:?}") };
        assert_eq!(fs::read_to_string(bottom.join("bin/app")).unwrap(), "one");
        assert_eq!(fs::metadata(top.join("new")).unwrap().nlink(), 2, "a hard link");
        assert_eq!(xattr::get(top.join("attr"), "user.color").unwrap().as_deref(), Some(&b"blue"[..]));
        assert_eq!(fs::symlink_metadata(top.join("gone")).unwrap().rdev(), 0, "a whiteout");
        let by_digest = server.name(&format!("app@{}", text(&manifest["digest"])));
        assert_eq!(bench.pull(&by_digest).await.unwrap().id, image.id);
        assert_eq!(bench.store.origin(&by_digest).unwrap(), Origin::Registry);
        nothing_staged(&bench.dir);
    }
}

#[tokio::test]
async fn of_an_index_this_machines_platform_is_taken_and_an_unfit_one_is_explained() {
    let server = Server::start();
    let layer = [tar(&[E::File("f", "here")])];
    let mut mine = server.image("mine", &layer, gzip);
    mine["platform"] = json!({"os": "linux", "architecture": architecture()});
    let mut other = server.image("other", &[tar(&[E::File("f", "there")])], gzip);
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let mut attestation = other.clone();
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let inner = server.document("inner", &json!({"manifests": [other, mine]}));
    server.document("many", &json!({"schemaVersion": 2, "manifests": [attestation, inner]}));
    let bench = Bench::new();
    let image = bench.pull(&server.name("app:many")).await.unwrap();
    assert_eq!(image.id, digest_of(&config(&layer)));

    server.document("none", &json!({"schemaVersion": 2, "manifests": [attestation, other]}));
    let expected = format!("no matching manifest for linux/{}; there is linux/s390x", architecture());
    Bench::new().refused(&server.name("app:none"), &expected).await;
}

#[tokio::test]
async fn lies_are_refused_and_leave_nothing() {
    let server = Server::start();
    let layer = tar(&[E::File("f", "content")]);
    let manifest = server.image("v1", std::slice::from_ref(&layer), gzip);
    let digest = |bytes: &[u8]| digest_of(bytes);
    let (blob, configuration) = (gzip(&layer), config(std::slice::from_ref(&layer)));
    let lie = |of: String, body: Vec<u8>| {
        server.rule(move |asked| asked.path.ends_with(&of).then(|| Told::ok(body.clone())));
    };
    let name = server.name("app:v1");

    let mut changed = blob.clone();
    changed[15] ^= 1;
    lie(digest(&blob), changed);
    Bench::new().refused(&name, "sent something else").await;

    let mut longer = blob.clone();
    longer.extend([0; 100]);
    lie(digest(&blob), longer);
    Bench::new().refused(&name, "longer than").await;

    lie(digest(&configuration), b"{}".to_vec());
    Bench::new().refused(&name, "sent something else").await;

    let by_digest = text(&manifest["digest"]);
    lie(by_digest.clone(), json!({"layers": []}).to_string().into_bytes());
    Bench::new().refused(&server.name(&format!("app@{by_digest}")), "sent something else").await;

    // What it says the digest is has to be so even for a tag.
    let body = configuration.clone();
    server.rule(move |asked| {
        let told = Told::ok(body.clone()).with("Docker-Content-Digest", format!("sha256:{}", "0".repeat(64)));
        asked.path.ends_with("/v1").then_some(told)
    });
    Bench::new().refused(&name, "sent something else").await;

    // A layer that is not the one the configuration means.
    server.rule(|_| None);
    let other = server.blob(gzip(&tar(&[E::File("f", "other")])));
    let config = server.blob(configuration);
    server.document("swapped", &json!({"config": config, "layers": [other]}));
    Bench::new().refused(&server.name("app:swapped"), "the content's digest is").await;
    server.document("fewer", &json!({"config": config, "layers": []}));
    Bench::new().refused(&server.name("app:fewer"), "0 layers, but the configuration lists 1").await;
}

#[tokio::test]
async fn what_is_no_image_is_explained() {
    let server = Server::start();
    let config = server.blob(config(&[]));
    let mut chart = config.clone();
    chart["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    server.document("chart", &json!({"config": chart, "layers": []}));
    server.document("old", &json!({"schemaVersion": 1, "fsLayers": []}));
    let foreign = json!({"digest": config["digest"], "size": 1,
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"});
    server.document("foreign", &json!({"config": config, "layers": [foreign]}));
    server.document("md5", &json!({"config": {"digest": "md5:1", "size": 1}, "layers": []}));
    server.rule(|asked| match asked.path.rsplit('/').next() {
        Some("huge") => Some(Told::ok(vec![b' '; 5 << 20])),
        Some("html") => Some(Told::ok("<html>hello</html>")),
        _ => None,
    });
    for (tag, reason) in [
        ("chart", "no container image, but application/vnd.cncf.helm"),
        ("old", "schema 1"),
        ("foreign", "cannot be had"),
        ("md5", "not a sha256 digest"),
        ("huge", "larger than"),
        ("html", "manifest: expected value"),
        ("absent", "app:absent: manifest unknown"),
    ] {
        Bench::new().refused(&server.name(&format!("app:{tag}")), reason).await;
    }
}

#[tokio::test]
async fn a_broken_connection_goes_on_where_it_broke() {
    let server = Server::start();
    let noise: String = (0..40_000_u32).map(|n| char::from(b'a' + (n * n % 23) as u8)).collect();
    let layer = tar(&[E::File("f", &noise)]);
    server.image("v1", std::slice::from_ref(&layer), plain);
    let digest = digest_of(&layer);
    let whole = layer.clone();
    // Each connection brings 15,000 bytes.
    server.rule(move |asked| {
        let from: usize = match asked.header("range") {
            Some(range) => range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?,
            None => 0,
        };
        let rest = &whole[from..];
        let told =
            Told { status: 206, body: rest.to_vec(), cut: Some(rest.len().min(15_000)), ..Told::default() };
        let range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
        asked.path.ends_with(&digest).then(|| told.with("Content-Range", range))
    });
    let bench = Bench::new();
    bench.pull(&server.name("app:v1")).await.unwrap();
    let ranges: Vec<Option<String>> = {
        let asked = server.inner.asked.lock().unwrap();
        let blobs = asked.iter().filter(|a| a.path.ends_with(&digest_of(&layer)));
        blobs.map(|a| a.header("range").map(str::to_owned)).collect()
    };
    let expected = [None, Some("bytes=15000-".to_owned()), Some("bytes=30000-".to_owned())];
    assert_eq!(ranges, expected);
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_sends_it_again_and_one_that_always_breaks_ends() {
    let server = Server::start();
    let layer = tar(&[E::File("f", "content")]);
    server.image("v1", std::slice::from_ref(&layer), plain);
    let (digest, whole, first) = (digest_of(&layer), layer.clone(), AtomicBool::new(true));
    server.rule(move |asked| {
        let cut = first.swap(!asked.path.ends_with(&digest), Ordering::Relaxed).then_some(700);
        asked.path.ends_with(&digest).then(|| Told { cut, ..Told::ok(whole.clone()) })
    });
    let bench = Bench::new();
    bench.pull(&server.name("app:v1")).await.unwrap();

    let digest = digest_of(&layer);
    server.rule(move |asked| {
        asked.path.ends_with(&digest).then(|| Told { cut: Some(0), ..Told::ok(vec![0; layer.len()]) })
    });
    Bench::new().refused(&server.name("app:v1"), "broke").await;
}

#[tokio::test]
async fn a_registry_that_says_nothing_ends_by_timeout_and_holds_up_no_other() {
    let (silent, able) = (Server::start(), Server::start());
    silent.rule(|_| Some(Told { hang: true, cut: Some(0), ..Told::ok(vec![0; 10]) }));
    able.image("v1", &[tar(&[E::File("f", "1")])], gzip);
    let idle = Duration::from_millis(300);
    let bench = Bench::with(Limits::default(), RegistryConfig { idle, ..RegistryConfig::default() });
    let (dead, alive) = (silent.name("app:v1"), able.name("app:v1"));
    let (hanging, other) = (bench.pull(&dead), bench.pull(&alive));
    tokio::pin!(hanging);
    tokio::select! {
        biased;
        other = other => drop(other.unwrap()),
        ended = &mut hanging => panic!("the hanging one ended first: {ended:?}"),
    }
    let error = hanging.await.unwrap_err();
    assert!(error.contains("nothing came for 300ms"), "{error}");
}

#[tokio::test]
async fn a_registry_that_drips_is_no_silent_one_but_ends_too() {
    let server = Server::start();
    let layer = tar(&[E::File("f", "content")]);
    server.image("v1", std::slice::from_ref(&layer), plain);
    let drip = |of: Vec<u8>| Told { drip: true, cut: Some(0), ..Told::ok(of) };
    let config = RegistryConfig { answers: Duration::from_millis(300), ..RegistryConfig::default() };
    server.rule(move |_| Some(drip(vec![b' '; 4000])));
    let late = "its manifest and configuration are not here after 300ms";
    Bench::with(Limits::default(), config.clone()).refused(&server.name("app:v1"), late).await;
    // Token services, too.
    let realm = format!("Bearer realm=\"http://{}/token\"", server.address);
    server.rule(move |asked| match asked.path.starts_with("/token") {
        true => Some(drip(vec![b' '; 4000])),
        false => Some(Told::status(401).with("WWW-Authenticate", realm.clone())),
    });
    Bench::with(Limits::default(), config).refused(&server.name("app:v1"), late).await;

    let (digest, whole) = (digest_of(&layer), layer.clone());
    server.rule(move |asked| asked.path.ends_with(&digest).then(|| drip(whole.clone())));
    let config = RegistryConfig { layer: Duration::from_millis(300), ..RegistryConfig::default() };
    Bench::with(Limits::default(), config)
        .refused(&server.name("app:v1"), "bytes are here after 300ms")
        .await;
}

#[tokio::test]
async fn a_layer_that_comes_fast_enough_has_its_time() {
    let server = Server::start();
    let layer = tar(&[E::File("f", &"x".repeat(40_000))]);
    server.image("v1", std::slice::from_ref(&layer), plain);
    let (digest, whole) = (digest_of(&layer), layer.clone());
    // The last bytes come after more than the 100 ms that it would have had without those before.
    server.rule(move |asked| {
        let told = Told { drip: true, cut: Some(whole.len() - 60), ..Told::ok(whole.clone()) };
        asked.path.ends_with(&digest).then_some(told)
    });
    let config = RegistryConfig { layer: Duration::from_millis(100), ..RegistryConfig::default() };
    Bench::with(Limits::default(), config).pull(&server.name("app:v1")).await.unwrap();
}

#[tokio::test]
async fn slow_pulls_of_one_registry_hold_up_no_other_and_end_with_those_who_wait() {
    let (slow, able) = (Server::start(), Server::start());
    slow.rule(|_| Some(Told { hang: true, cut: Some(0), ..Told::ok(vec![0; 10]) }));
    able.image("v1", &[tar(&[E::File("f", "1")])], gzip);
    let bench = Bench::new();
    let names: Vec<String> = (0..=PULLS_AT_ONCE).map(|n| slow.name(&format!("app{n}:v1"))).collect();
    let hanging = futures_util::future::join_all(names.iter().map(|name| bench.pull(name)));
    let second = bench.pull(&names[0]);
    let alive = able.name("app:v1");
    let other = tokio::time::timeout(Duration::from_secs(20), async {
        while slow.asked().len() < PULLS_AT_ONCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.pull(&alive).await
    });
    let mut second = Box::pin(second);
    tokio::select! {
        biased;
        _ = hanging => panic!("those that hang ended"),
        _ = &mut second => panic!("it hangs as well"),
        other = other => drop(other.unwrap().unwrap()),
    }
    let left = async |n: usize| {
        let there = async {
            while bench.pulls.shared.running().len() != n {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), there).await.unwrap();
    };
    // One still waits for the first of them.
    left(1).await;
    drop(second);
    left(0).await;
    // It begins anew for whoever comes then.
    slow.image("v1", &[tar(&[E::File("f", "1")])], gzip);
    slow.rule(|_| None);
    bench.pull(&names[0]).await.unwrap();
}

#[tokio::test]
async fn layers_that_are_here_are_not_fetched_again() {
    let server = Server::start();
    let (base, top) = (tar(&[E::File("base", "1")]), tar(&[E::File("top", "2")]));
    server.image("one", std::slice::from_ref(&base), gzip);
    server.image("two", &[base.clone(), top, base], gzip);
    let bench = Bench::new();
    bench.pull(&server.name("app:one")).await.unwrap();
    assert_eq!(server.asked_blobs(), 2);
    bench.pull(&server.name("app:two")).await.unwrap();
    assert_eq!(server.asked_blobs(), 4, "its configuration and one layer: {:?}", server.asked());
    bench.pull(&server.name("app:two")).await.unwrap();
    assert_eq!(server.asked_blobs(), 5, "its configuration");
}

#[tokio::test]
async fn many_who_want_one_image_make_one_pull() {
    let server = Server::start();
    server.image("v1", &[tar(&[E::File("f", "1")])], gzip);
    let bench = Bench::new();
    let name = server.name("app:v1");
    let all = futures_util::future::join_all((0..20).map(|_| bench.pull(&name))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(server.asked().iter().filter(|path| path.ends_with("/v1")).count(), 1);
    assert!(bench.pulls.progress(&name).is_none());
}

#[tokio::test]
async fn progress_is_told_while_a_layer_comes() {
    let server = Server::start();
    let layer = tar(&[E::File("f", "content")]);
    server.image("v1", std::slice::from_ref(&layer), plain);
    let (digest, whole) = (digest_of(&layer), layer.clone());
    server.rule(move |asked| {
        let half = Told { cut: Some(512), hang: true, ..Told::ok(whole.clone()) };
        asked.path.ends_with(&digest).then_some(half)
    });
    let bench = Bench::new();
    let name = server.name("app:v1");
    let pulling = bench.pull(&name);
    let half = PullProgress { layers: 1, layers_done: 0, bytes: 512, total_bytes: layer.len() as u64 };
    let seen = async {
        while bench.pulls.progress(&name) != Some(half) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(20), seen);
    tokio::select! {
        seen = seen => seen.unwrap(),
        ended = pulling => panic!("{ended:?}"),
    }
    // What is dropped half way leaves nothing.
    drop(bench.pulls);
    let gone = async {
        while fs::read_dir(bench.dir.path().join("staging")).unwrap().count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    assert_eq!(layers_in(&bench.dir), 0);
}

#[tokio::test]
async fn bombs_end_at_the_limits() {
    let server = Server::start();
    let zeros = tar(&[E::File("f", &"\0".repeat(400_000))]);
    server.image("v1", std::slice::from_ref(&zeros), gzip);
    server.image("v2", &[zeros], zstd);
    let config = server.blob(config(&[tar(&[])]));
    let claimed = json!({"digest": format!("sha256:{}", "1".repeat(64)), "size": u64::MAX});
    server.document("claim", &json!({"config": config, "layers": [claimed]}));
    let small = Limits { archive_bytes: 100_000, unpacked_bytes: 10_000, entries: 20 };
    for tag in ["v1", "v2", "claim"] {
        let bench = Bench::with(small, RegistryConfig::default());
        bench.refused(&server.name(&format!("app:{tag}")), "limit").await;
    }
}

/// As Docker Hub: anybody gets a token, but only ann's is good for the image.
fn with_tokens(server: &Server) {
    let realm = server.name("token");
    server.rule(move |asked| {
        if asked.path.starts_with("/token") {
            let basic = basic_of("ann", "right");
            let (status, token) = match asked.header("authorization") {
                None => (200, "anybody"),
                Some(given) if given == basic => (200, "ann"),
                Some(_) => (401, ""),
            };
            let scope = "scope=repository:app:pull";
            assert!(asked.path.contains("service=reg") && asked.path.contains(scope), "{}", asked.path);
            return Some(Told { status, ..Told::ok(json!({ "token": token }).to_string()) });
        }
        if asked.header("authorization") == Some("Bearer ann") {
            return None;
        }
        let challenge = format!(r#"Bearer realm="http://{realm}",service="reg",scope="repository:app:pull""#);
        Some(Told::status(401).with("WWW-Authenticate", challenge))
    });
}

fn basic_of(user: &str, password: &str) -> String {
    auth::basic(&RegistryAuth { username: user.into(), password: password.into() })
}

#[tokio::test]
async fn tokens_are_got_with_credentials_and_used_for_all_of_a_pull() {
    let server = Server::start();
    server.image("v1", &[tar(&[E::File("f", "1")]), tar(&[E::File("g", "1")])], gzip);
    with_tokens(&server);
    let (bench, name) = (Bench::new(), server.name("app:v1"));
    let denied = bench.pull(&name).await.unwrap_err();
    assert!(denied.contains("may require authorization"), "{denied}");
    let denied = bench.pull_as(&name, "wrong").await.unwrap_err();
    assert!(denied.contains("does not accept the credentials of user \"ann\""), "{denied}");
    assert!(!denied.contains("wrong"), "a password is told: {denied}");
    bench.pull_as(&name, "right").await.unwrap();
    let tokens = server.asked().iter().filter(|path| path.starts_with("/token")).count();
    assert_eq!(tokens, 3, "one a pull");
}

#[tokio::test]
async fn passwords_are_sent_to_those_who_ask_and_to_no_other_host() {
    let (server, storage) = (Server::start(), Server::start());
    let layer = tar(&[E::File("f", "1")]);
    server.image("v1", std::slice::from_ref(&layer), gzip);
    storage.image("v1", std::slice::from_ref(&layer), gzip);
    let (digest, elsewhere) = (digest_of(&gzip(&layer)), format!("http://{}", storage.address));
    server.rule(move |asked| {
        if asked.header("authorization") != Some(basic_of("ann", "right").as_str()) {
            return Some(Told::status(401).with("WWW-Authenticate", r#"Basic realm="r""#));
        }
        let to = format!("{elsewhere}{}", asked.path);
        asked.path.ends_with(&digest).then(|| Told::status(307).with("Location", to))
    });
    let (bench, name) = (Bench::new(), server.name("app:v1"));
    assert!(bench.pull(&name).await.unwrap_err().contains("may require authorization"));
    assert!(server.inner.asked.lock().unwrap().iter().all(|a| a.header("authorization").is_none()));
    bench.pull_as(&name, "right").await.unwrap();
    let asked = storage.inner.asked.lock().unwrap();
    assert!(asked.len() == 1 && asked[0].header("authorization").is_none(), "{asked:?}");
}

#[tokio::test]
async fn redirects_end_and_lead_to_plain_http_nowhere_but_where_it_is_allowed() {
    let server = Server::start();
    server.rule(|asked| match asked.path.rsplit('/').next() {
        Some("round") => Some(Told::status(302).with("Location", asked.path.clone())),
        Some("plain") => Some(Told::status(302).with("Location", "http://registry.example/v2/")),
        _ => None,
    });
    Bench::new().refused(&server.name("app:round"), "more than 5 redirects").await;
    Bench::new().refused(&server.name("app:plain"), "plain HTTP is not allowed").await;
}

#[tokio::test]
async fn what_was_loaded_by_hand_is_told_from_what_was_pulled() {
    let server = Server::start();
    let layer = tar(&[E::File("f", "1")]);
    server.image("v1", std::slice::from_ref(&layer), gzip);
    let (bench, name) = (Bench::new(), server.name("app:v1"));
    assert_eq!(bench.store.origin(&name).unwrap(), Origin::Registry, "it is not here");
    bench.pull(&name).await.unwrap();
    assert_eq!(bench.store.origin(&name).unwrap(), Origin::Registry);
    bench.store.import(Box::pin(std::io::Cursor::new(layer)), &name).await.unwrap();
    assert_eq!(bench.store.origin(&name).unwrap(), Origin::ByHand);
    let image = bench.pull(&name).await.unwrap();
    assert_eq!(bench.store.origin(&name).unwrap(), Origin::Registry);
    assert_eq!(bench.store.origin(&image.id).unwrap(), Origin::ByHand, "nobody can be asked for it");
    bench.store.remove(&name).await.unwrap();
    assert!(bench.store.resolve(&name).unwrap().is_none());
}

#[tokio::test]
async fn what_was_pulled_and_is_not_in_use_may_go() {
    let server = Server::start();
    let layer = tar(&[E::File("f", "1")]);
    server.image("v1", std::slice::from_ref(&layer), gzip);
    let (bench, name) = (Bench::new(), server.name("app:v1"));
    let idle = || bench.store.idle().unwrap();
    let image = bench.pull(&name).await.unwrap();
    let [pulled] = &idle()[..] else { panic!("{:?}", idle()) };
    assert!(pulled.names == [name.clone()] && pulled.used_ms > 0, "{pulled:?}");
    bench.store.pin(&name, "c1").unwrap();
    assert_eq!(idle(), [], "in use");
    let note = bench.dir.path().join("used").join(image.id.trim_start_matches("sha256:"));
    fs::File::open(&note).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    bench.store.unpin("c1").unwrap();
    assert!(idle()[0].used_ms > 0, "used until now");
    // A second name, brought by hand, keeps it.
    let config = config(std::slice::from_ref(&layer));
    let manifest = json!([{"Config": "c", "RepoTags": ["mine:1"], "Layers": ["l"]}]).to_string();
    let archive = super::super::tests::files(&[
        ("c", &config[..]),
        ("l", &layer[..]),
        ("manifest.json", manifest.as_bytes()),
    ]);
    bench.store.load(Box::pin(std::io::Cursor::new(archive)), None).await.unwrap();
    assert_eq!(idle(), []);
    bench.store.remove("mine:1").await.unwrap();
    bench.store.remove(&name).await.unwrap();
    assert!(idle().is_empty() && !note.exists());
}

#[test]
fn a_file_without_certificates_is_no_authority() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("ca.pem");
    let mut config = RegistryConfig::default();
    assert!(config.trust(&file).is_err(), "absent");
    fs::write(&file, "hello").unwrap();
    assert!(config.trust(&file).unwrap_err().to_string().contains("no certificate"));
    let ca = rcgen::generate_simple_self_signed(vec!["r.example".into()]).unwrap();
    fs::write(&file, ca.cert.pem()).unwrap();
    config.trust(&file).unwrap();
    assert_eq!(config.roots.len(), 1);
}
