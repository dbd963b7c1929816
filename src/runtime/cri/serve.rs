//! A registry for one moment: how images that were brought by hand get into a runtime that can only pull.
//!
//! Owns: a read-only OCI distribution server on loopback, up for as long as a [`Registry`] lives. Runtimes speak plain
//! HTTP to loopback. Invariants: nothing is served but the images given, each below a path that nobody guesses; what is
//! served is read from their files as it is sent. Source: the OCI distribution specification (pull).

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::io::ReaderStream;

use crate::runtime::{
    RuntimeError,
    images::pack::{Packed, PackedImage},
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BLOB: &str = "application/octet-stream";
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The first part of every path, by which images are recognised that came this way.
const MARK: &str = "troupe";

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

pub(super) struct Registry {
    address: SocketAddr,
    /// The second part of every path.
    secret: String,
    contents: Arc<Contents>,
    server: JoinHandle<()>,
}

struct Contents {
    /// By full name: the manifest's digest.
    names: HashMap<String, String>,
    manifests: HashMap<String, Bytes>,
    blobs: HashMap<String, PathBuf>,
    /// What every path begins with, `/v2/troupe/SECRET/`.
    prefix: String,
    /// Their files are there for as long as they are served.
    _packed: Packed,
}

impl Registry {
    /// Serves images.
    pub(super) async fn serve(packed: Packed) -> Result<Registry, RuntimeError> {
        let fault = || super::system("serve images to the container runtime");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(fault())?;
        let address = listener.local_addr().map_err(fault())?;
        let secret = uuid::Uuid::new_v4().simple().to_string();
        let contents = Arc::new(Contents::new(packed, &secret).map_err(fault())?);
        let served = Arc::clone(&contents);
        let server = tokio::spawn(async move {
            // Connections end with the server.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let contents = Arc::clone(&served);
                let service = service_fn(move |request| {
                    let contents = Arc::clone(&contents);
                    async move { Ok::<_, Infallible>(contents.answer(&request).await) }
                });
                connections.spawn(async move {
                    let serving = hyper::server::conn::http1::Builder::new();
                    // Whoever breaks off a pull tries again.
                    let _ = serving.serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Registry { address, secret, contents, server })
    }

    /// What a runtime is asked to pull for a full name; the digest of its manifest.
    pub(super) fn reference(&self, name: &str) -> Option<(String, &str)> {
        let digest = self.contents.names.get(name)?;
        Some((format!("{}/{MARK}/{}/{}", self.address, self.secret, path_of(name)), digest))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A name as the path of another: a port's colon cannot be in one.
fn path_of(name: &str) -> String {
    match name.split_once('/') {
        Some((host, rest)) => format!("{}/{rest}", host.replace(':', "__")),
        None => name.to_owned(),
    }
}

/// The full name that an image was served under; `None` when it did not come this way.
pub(super) fn original(reference: &str) -> Option<String> {
    let (address, rest) = reference.split_once('/')?;
    let address: SocketAddr = address.parse().ok()?;
    let (mark, rest) = rest.split_once('/')?;
    let (_, name) = rest.split_once('/')?;
    let (host, path) = name.split_once('/')?;
    (address.ip().is_loopback() && mark == MARK).then(|| format!("{}/{path}", host.replace("__", ":")))
}

impl Contents {
    fn new(packed: Packed, secret: &str) -> std::io::Result<Contents> {
        let (mut names, mut manifests) = (HashMap::new(), HashMap::new());
        let mut blobs: HashMap<String, PathBuf> = packed.layers.iter().cloned().collect();
        for image in &packed.images {
            let manifest = manifest(image, &blobs)?.to_string();
            let digest = format!("sha256:{}", hex(&Sha256::digest(&manifest)));
            names.extend(image.names.iter().map(|name| (name.clone(), digest.clone())));
            manifests.insert(digest, Bytes::from(manifest));
            blobs.insert(image.id.clone(), image.config.clone());
        }
        let prefix = format!("/v2/{MARK}/{secret}/");
        Ok(Contents { names, manifests, blobs, prefix, _packed: packed })
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        if !head && request.method() != Method::GET {
            return status(StatusCode::METHOD_NOT_ALLOWED);
        }
        match self.find(request.uri().path()) {
            Some(Found::Here) => status(StatusCode::OK),
            Some(Found::Manifest(digest, manifest)) => {
                let body = if head {
                    empty()
                } else {
                    Full::new(manifest.clone()).map_err(|e| match e {}).boxed_unsync()
                };
                content(MANIFEST, digest, manifest.len() as u64, body)
            }
            Some(Found::Blob(digest, path)) => blob(digest, path, head).await.unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "a part of an image is not served");
                status(StatusCode::INTERNAL_SERVER_ERROR)
            }),
            None => status(StatusCode::NOT_FOUND),
        }
    }

    fn find<'a>(&'a self, path: &'a str) -> Option<Found<'a>> {
        if matches!(path, "/v2" | "/v2/") {
            return Some(Found::Here);
        }
        let rest = path.strip_prefix(self.prefix.as_str())?;
        if let Some((_, digest)) = rest.rsplit_once("/blobs/") {
            return self.blobs.get(digest).map(|path| Found::Blob(digest, path));
        }
        let (name, reference) = rest.rsplit_once("/manifests/")?;
        let digest = match reference.starts_with("sha256:") {
            true => reference,
            false => {
                let of = |full: &&String| path_of(full) == format!("{name}:{reference}");
                self.names.get(self.names.keys().find(of)?)?
            }
        };
        self.manifests.get(digest).map(|manifest| Found::Manifest(digest, manifest))
    }
}

enum Found<'a> {
    Here,
    Manifest(&'a str, &'a Bytes),
    Blob(&'a str, &'a Path),
}

fn manifest(image: &PackedImage, blobs: &HashMap<String, PathBuf>) -> std::io::Result<Value> {
    let mut layers = Vec::with_capacity(image.layers.len());
    for digest in &image.layers {
        let path = blobs.get(digest).ok_or_else(|| std::io::Error::other("a layer is missing"))?;
        layers.push(json!({"mediaType": LAYER, "digest": digest, "size": std::fs::metadata(path)?.len()}));
    }
    let size = std::fs::metadata(&image.config)?.len();
    let config = json!({"mediaType": CONFIG, "digest": image.id, "size": size});
    Ok(json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn empty() -> Body {
    Empty::new().map_err(|e| match e {}).boxed_unsync()
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

fn content(kind: &str, digest: &str, length: u64, body: Body) -> Response<Body> {
    let response = Response::builder()
        .header(CONTENT_TYPE, kind)
        .header(CONTENT_LENGTH, length)
        .header(DIGEST, digest)
        .body(body);
    // Digests are of our own making, and hexadecimal.
    response.unwrap_or_else(|_| status(StatusCode::INTERNAL_SERVER_ERROR))
}

async fn blob(digest: &str, path: &Path, head: bool) -> std::io::Result<Response<Body>> {
    let file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    let body = match head {
        true => empty(),
        false => StreamBody::new(ReaderStream::new(file).map_ok(Frame::data)).boxed_unsync(),
    };
    Ok(content(BLOB, digest, length, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again_in_what_a_runtime_was_asked_to_pull() {
        for name in ["docker.io/library/app:1", "r.io:5000/a/b:2", "troupe.local/hello:latest"] {
            let reference = format!("127.0.0.1:4321/{MARK}/0123/{}", path_of(name));
            assert_eq!(original(&reference).as_deref(), Some(name));
        }
        for other in ["docker.io/troupe/a/b/c:1", "10.0.0.1:80/troupe/a/b/c:1", "127.0.0.1:80/a/b/c/d:1"] {
            assert_eq!(original(other), None, "{other}");
        }
    }
}
