//! One pull's talk with a registry: documents and layers by the distribution specification, with credentials.
//!
//! Owns: [`Session`]. Invariants: what was asked for by digest has that digest or is refused; a layer is never longer
//! than its manifest says; a broken connection goes on where it broke, but neither for ever nor arbitrarily slowly.

use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::{Response, StatusCode, body::Incoming, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{fs::File, io::AsyncWriteExt as _, time::Instant};

use super::{
    auth::{Challenge, basic, challenge, token, token_url},
    http::{Extra, Fault, Http},
    progress::Progress,
    reference::Reference,
};
use crate::runtime::{
    RegistryAuth,
    images::{
        archive::parse,
        manifest::{Descriptor, MAX_DEPTH, MAX_DOCUMENT, OciManifest, choose},
        stream::{digest_of, format_digest},
    },
};

/// What a manifest may be: OCI's and Docker's manifests and indexes.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
/// A token, or an error's text.
const MAX_ANSWER: u64 = 1024 * 1024;
/// So many tries at a manifest: whoever wants the image tries again anyway.
const DOCUMENT_TRIES: u32 = 3;
/// So many tries at a layer in a row without a single byte are the end: what was got so far is lost with it.
const TRIES: u32 = 5;
/// So many connections a layer, however far each comes.
const MAX_CONNECTIONS: u32 = 50;
/// The pause after the first failure; doubled with each.
const PAUSE: Duration = Duration::from_millis(200);
/// A layer may take a second more for so many bytes that came: slower than any link that is of use.
const SLOWEST_BYTES: u64 = 16 * 1024;

/// A registry and a repository in it.
pub(super) struct Session<'a> {
    http: &'a Http,
    reference: &'a Reference,
    auth: Option<&'a RegistryAuth>,
    /// `https://host`.
    base: String,
    /// What was accepted last.
    authorization: Mutex<Option<String>>,
}

impl<'a> Session<'a> {
    pub(super) async fn open(
        http: &'a Http,
        reference: &'a Reference,
        auth: Option<&'a RegistryAuth>,
    ) -> Result<Session<'a>, Fault> {
        let server = reference.server();
        let base = format!("{}://{server}", http.scheme(server).await?);
        Ok(Session { http, reference, auth, base, authorization: Mutex::new(None) })
    }

    /// The manifest for this machine's platform, and the digest of what the name stands for: that manifest or an index.
    pub(super) async fn manifest(&self) -> Result<(OciManifest, String), Fault> {
        let mut wanted = self.reference.wanted.clone();
        let mut digest = self.reference.by_digest.then(|| wanted.clone());
        let mut named = None;
        for _ in 0..=MAX_DEPTH {
            let path = format!("manifests/{wanted}");
            let document = self.retried(&path, MANIFESTS, digest.as_deref()).await?;
            let manifest: OciManifest = parse("manifest", &document).map_err(refused)?;
            let named = named.get_or_insert_with(|| digest_of(&document));
            let Some(choices) = manifest.manifests else { return Ok((manifest, named.clone())) };
            choose(&choices).map_err(refused)?.digest.clone_into(&mut wanted);
            digest = Some(wanted.clone());
        }
        Err(Fault::Refused("indexes are nested too deep".into()))
    }

    /// A document that a manifest refers to.
    pub(super) async fn document(&self, wanted: &Descriptor) -> Result<Vec<u8>, Fault> {
        self.retried(&format!("blobs/{}", wanted.digest), "*/*", Some(&wanted.digest)).await
    }

    async fn retried(&self, path: &str, accept: &str, digest: Option<&str>) -> Result<Vec<u8>, Fault> {
        let mut failures = 0;
        loop {
            match self.whole(path, accept, digest).await {
                Err(Fault::Broken(_)) if failures + 1 < DOCUMENT_TRIES => failures = pause(failures).await,
                outcome => return outcome,
            }
        }
    }

    async fn whole(&self, path: &str, accept: &str, digest: Option<&str>) -> Result<Vec<u8>, Fault> {
        let response = self.get(path, accept, None).await?;
        let told = response.headers().get("docker-content-digest").and_then(|d| d.to_str().ok());
        // What a tag stands for is the registry's word; but what it says the digest is has to be so.
        let expected = digest.or(told).map(str::to_owned);
        let document = self.http.whole(response.into_body(), MAX_DOCUMENT).await?;
        match expected.filter(|digest| digest.starts_with("sha256:")) {
            Some(expected) => check(&expected, &digest_of(&document)).map(|()| document),
            None if digest.is_none() => Ok(document),
            None => {
                Err(Fault::Refused(format!("{}: only sha256 digests are supported", digest.unwrap_or(""))))
            }
        }
    }

    /// Downloads a layer into a new file.
    pub(super) async fn layer(
        &self,
        layer: &Descriptor,
        file: &Path,
        progress: &Progress,
    ) -> Result<(), Fault> {
        let begun = Instant::now();
        let furthest = AtomicU64::new(0);
        let download = self.layer_in_pieces(layer, file, progress, &furthest);
        tokio::pin!(download);
        loop {
            let came = furthest.load(Relaxed);
            let time = self.http.config.layer + Duration::from_secs(came / SLOWEST_BYTES);
            match tokio::time::timeout_at(begun + time, &mut download).await {
                Ok(outcome) => return outcome,
                // What came meanwhile gives it more time.
                Err(_) if furthest.load(Relaxed) / SLOWEST_BYTES > came / SLOWEST_BYTES => {}
                Err(_) => {
                    return Err(Fault::Refused(format!(
                        "layer {}: too slow: {came} of {} bytes are here after {time:?}",
                        layer.digest, layer.size
                    )));
                }
            }
        }
    }

    async fn layer_in_pieces(
        &self,
        layer: &Descriptor,
        path: &Path,
        progress: &Progress,
        furthest: &AtomicU64,
    ) -> Result<(), Fault> {
        let mut download = Download::new(path, layer.size, progress).await?;
        let (mut failures, mut connections) = (0, 0);
        loop {
            let before = download.got;
            let outcome = self.piece(layer, &mut download, furthest).await;
            connections += 1;
            if download.got > before {
                failures = 0;
            }
            match outcome {
                Ok(()) => break,
                Err(Fault::Broken(why)) if failures + 1 < TRIES && connections < MAX_CONNECTIONS => {
                    tracing::debug!(layer = %layer.digest, got = download.got, why, "a download goes on");
                    failures = pause(failures).await;
                }
                Err(fault) => return Err(fault),
            }
        }
        check(&layer.digest, &download.finish().await?)
    }

    /// Gets what is missing of a layer, as far as one connection brings it.
    async fn piece(
        &self,
        layer: &Descriptor,
        download: &mut Download<'_>,
        furthest: &AtomicU64,
    ) -> Result<(), Fault> {
        if download.got == layer.size && download.got > 0 {
            return Ok(());
        }
        let from = (download.got > 0).then_some(download.got);
        let response = self.get(&format!("blobs/{}", layer.digest), "*/*", from).await?;
        if let Some(from) = from
            && !begins_at(&response, from)
        {
            // It sends everything again.
            download.begin_anew().await?;
        }
        let mut body = response.into_body();
        while let Some(chunk) = self.http.chunk(&mut body).await? {
            download.take(&chunk).await?;
            furthest.fetch_max(download.got, Relaxed);
        }
        if download.got < layer.size {
            return Err(Fault::Broken(format!(
                "layer {}: it ended after {} of {} bytes",
                layer.digest, download.got, layer.size
            )));
        }
        Ok(())
    }

    /// A successful response.
    async fn get(&self, path: &str, accept: &str, from: Option<u64>) -> Result<Response<Incoming>, Fault> {
        let url = format!("{}/v2/{}/{path}", self.base, self.reference.repository);
        let known = self.authorization();
        let extra = |authorization| Extra { accept: Some(accept), authorization, from };
        let mut response = self.http.get(&url, &extra(known)).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(authorization) = self.authorise(&response).await?
        {
            response = self.http.get(&url, &extra(Some(authorization.clone()))).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
            }
        }
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(response),
            // What we have is no part of what it has.
            StatusCode::RANGE_NOT_SATISFIABLE if from.is_some() => {
                Box::pin(self.get(path, accept, None)).await
            }
            status => Err(self.failed(status, response).await),
        }
    }

    fn authorization(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What answers the response's challenge, if anything can.
    async fn authorise(&self, response: &Response<Incoming>) -> Result<Option<String>, Fault> {
        let headers = response.headers().get_all(header::WWW_AUTHENTICATE);
        let challenge = challenge(headers.iter().filter_map(|h| h.to_str().ok()));
        match challenge {
            None => Ok(None),
            Some(Challenge::Basic) => Ok(self.auth.map(basic)),
            Some(Challenge::Bearer { realm, service, scope }) => {
                let own = format!("repository:{}:pull", self.reference.repository);
                let url = token_url(&realm, service.as_deref(), scope.as_deref().unwrap_or(&own));
                let extra = Extra { authorization: self.auth.map(basic), ..Extra::default() };
                let response = self.http.get(&url, &extra).await?;
                match response.status() {
                    StatusCode::OK => {}
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied(None)),
                    status if again(status) => {
                        return Err(Fault::Broken(format!("{realm}: no token: {status}")));
                    }
                    status => return Err(Fault::Refused(format!("{realm}: no token: {status}"))),
                }
                let answer = self.http.whole(response.into_body(), MAX_ANSWER).await?;
                let token = token(&answer)
                    .ok_or_else(|| Fault::Refused(format!("{realm}: its answer has no token")))?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    fn denied(&self, why: Option<&str>) -> Fault {
        let Reference { host, repository, .. } = self.reference;
        let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
        Fault::Refused(match self.auth {
            Some(auth) => format!(
                "pull access denied for {host}/{repository}: the registry does not accept the credentials of user \
                 {:?} for it{why}",
                auth.username
            ),
            None => format!(
                "pull access denied for {host}/{repository}: repository does not exist or may require \
                 authorization{why}"
            ),
        })
    }

    async fn failed(&self, status: StatusCode, response: Response<Incoming>) -> Fault {
        let Reference { host, repository, wanted, by_digest } = self.reference;
        let retry = again(status);
        let told = self.http.whole(response.into_body(), MAX_ANSWER).await.ok();
        let told = told.and_then(|body| said(&body));
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denied(told.as_deref()),
            StatusCode::NOT_FOUND => {
                let sign = if *by_digest { '@' } else { ':' };
                let told = told.unwrap_or_else(|| "not found".into());
                Fault::Refused(format!("{host}/{repository}{sign}{wanted}: {told}"))
            }
            _ => {
                let told = told.map(|told| format!(": {told}")).unwrap_or_default();
                let text = format!("{host}: unexpected status {status}{told}");
                if retry { Fault::Broken(text) } else { Fault::Refused(text) }
            }
        }
    }
}

/// Whether a status is likely to be another one soon.
fn again(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// Waits before the next try; returns the failures so far.
async fn pause(failures: u32) -> u32 {
    tokio::time::sleep(PAUSE * 2_u32.pow(failures)).await;
    failures + 1
}

fn refused(error: impl std::fmt::Display) -> Fault {
    Fault::Refused(error.to_string())
}

fn check(expected: &str, real: &str) -> Result<(), Fault> {
    if expected == real {
        return Ok(());
    }
    Err(Fault::Refused(format!("{expected}: the registry sent something else, its digest is {real}")))
}

/// A registry's own words on what went wrong.
fn said(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let first = answer.errors.into_iter().next()?;
    let text = if first.message.is_empty() { first.code } else { first.message };
    // It ends in events and statuses.
    Some(text.chars().filter(|c| !c.is_control()).take(200).collect())
}

/// Whether a partial response is the part that was asked for.
fn begins_at(response: &Response<Incoming>, from: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|r| r.to_str().ok());
    response.status() == StatusCode::PARTIAL_CONTENT
        && range.is_some_and(|r| r.starts_with(&format!("bytes {from}-")))
}

/// A file that grows.
struct Download<'a> {
    path: &'a Path,
    file: File,
    hash: Sha256,
    got: u64,
    size: u64,
    progress: &'a Progress,
}

impl<'a> Download<'a> {
    async fn new(path: &'a Path, size: u64, progress: &'a Progress) -> Result<Download<'a>, Fault> {
        let file = File::create(path).await.map_err(|e| cannot_write(path, &e))?;
        Ok(Download { path, file, hash: Sha256::new(), got: 0, size, progress })
    }

    async fn begin_anew(&mut self) -> Result<(), Fault> {
        self.progress.lost(self.got);
        *self = Download::new(self.path, self.size, self.progress).await?;
        Ok(())
    }

    async fn take(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        let got = self.got + chunk.len() as u64;
        if got > self.size {
            return Err(Fault::Refused(format!(
                "a layer is longer than the {} bytes it should have",
                self.size
            )));
        }
        self.hash.update(chunk);
        self.file.write_all(chunk).await.map_err(|e| cannot_write(self.path, &e))?;
        self.progress.got(chunk.len() as u64);
        self.got = got;
        Ok(())
    }

    /// Its digest.
    async fn finish(mut self) -> Result<String, Fault> {
        self.file.flush().await.map_err(|e| cannot_write(self.path, &e))?;
        Ok(format_digest(&self.hash.finalize()))
    }
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Fault {
    Fault::Refused(format!("write {}: {error}", path.display()))
}
