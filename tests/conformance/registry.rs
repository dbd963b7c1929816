//! A registry on loopback that has one image of one layer, behind an index of platforms.
//!
//! Owns: its thread, which ends with its guard, and the few answers that a pull takes.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::{Value, json};

use super::archives::{digest, gzip};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Whoever asks and then says nothing does not hold up the others for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// By digest: what it is and its bytes.
type Contents = HashMap<String, (&'static str, Vec<u8>)>;

pub struct Registry {
    address: SocketAddr,
    /// Of the index, which every tag of every repository stands for.
    pub digest: String,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Registry {
    /// Serves an image with this layer, for this machine's platform.
    pub fn start(layer: &[u8]) -> Registry {
        let mut contents = Contents::new();
        let mut put = |media_type: &'static str, bytes: Vec<u8>| {
            let (digest, size) = (digest(&bytes), bytes.len());
            contents.insert(digest.clone(), (media_type, bytes));
            json!({"mediaType": media_type, "digest": digest, "size": size})
        };
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let platform = json!({"os": "linux", "architecture": architecture});
        let mut config = platform.clone();
        config["config"] = json!({"Entrypoint": ["/app"]});
        config["rootfs"] = json!({"type": "layers", "diff_ids": [digest(layer)]});
        let (config, layer) = (put(CONFIG, text(&config)), put(LAYER, gzip(layer)));
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        let mut manifest = put(MANIFEST, text(&manifest));
        manifest["platform"] = platform;
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
        let index = put(INDEX, text(&index));
        let tagged = index["digest"].as_str().unwrap().to_owned();

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ending = Arc::new(AtomicBool::new(false));
        let (ends, of_tags) = (Arc::clone(&ending), tagged.clone());
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                // Whoever went away meanwhile asks again, or does not.
                let _ = answer(stream, &contents, &of_tags);
            }
        });
        Registry { address, digest: tagged, ending, thread: Some(thread) }
    }

    /// The name of something in it.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        // It looks up from waiting.
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// One request a connection.
fn answer(mut stream: TcpStream, contents: &Contents, of_tags: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(&stream).lines();
    let asked = lines.next().transpose()?.unwrap_or_default();
    // The rest of the head; nobody sends a body.
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = asked.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let last = path.rsplit('/').next().unwrap_or_default();
    let wanted = if path.contains("/manifests/") && !last.starts_with("sha256:") { of_tags } else { last };
    let head = |status: &str, more: &str, bytes: usize| {
        format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}Content-Length: {bytes}\r\n\r\n")
    };
    match contents.get(wanted) {
        Some((media_type, bytes)) => {
            let more = format!("Content-Type: {media_type}\r\nDocker-Content-Digest: {wanted}\r\n");
            stream.write_all(head("200 OK", &more, bytes.len()).as_bytes())?;
            if method == "GET" { stream.write_all(bytes) } else { Ok(()) }
        }
        // Whether it is a registry at all.
        None if path == "/v2/" => stream.write_all(head("200 OK", "", 0).as_bytes()),
        None => stream.write_all(head("404 Not Found", "", 0).as_bytes()),
    }
}
