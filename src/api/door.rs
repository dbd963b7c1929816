//! The door: every request passes here.
//!
//! Owns: the order of steps (credentials, limits, what is meant, the verb), the counting of what is in flight, and the
//! guard that turns a handler's panic into a 500 instead of a dead worker.
//! Invariant: a request that is refused for lack of room has cost no more than its head, and bytes that were dropped.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use actix_web::{HttpRequest, HttpResponse, http::Method, web};
use futures_util::FutureExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    auth::{self, Tokens},
    backup, body,
    config::{ApiState, Limits, ServiceCidr},
    delete, discovery,
    error::ApiError,
    exec, health, images, leases, links, log, metrics, openapi,
    patch::{Format, Patch},
    payload::{Drains, Payload, Whose},
    port_forward,
    query::Query,
    read, render,
    review::{self, Review},
    slices, status, subresource,
    target::Target,
    tokens, usage, watch,
    write::{self, Call},
};
use crate::{
    messages::{NodeState, ShowNodes},
    model::{Kind, admit::Part},
};

/// How long `/metrics` waits for what the nodes' links are like; without that it has the rest.
const NODES_WITHIN: Duration = Duration::from_secs(1);

/// What all handlers share.
pub struct Shared {
    /// Whom we talk to.
    pub state: ApiState,
    /// Bounds.
    pub limits: Limits,
    /// Where services get addresses.
    pub service_cidr: ServiceCidr,
    /// Held while a service's address is chosen and committed.
    pub services: tokio::sync::Mutex<()>,
    /// Cancelled when the server stops: streams end.
    pub stop: CancellationToken,
    /// What is measured when `/metrics` is read.
    process: metrics::Process,
    tokens: Tokens,
    requests: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
    drains: Drains,
    discovery: discovery::Documents,
    openapi: openapi::Documents,
}

/// Room for one stream; given back when dropped.
pub struct StreamPermit(#[expect(dead_code, reason = "held for its drop")] Held);

struct Held(Arc<AtomicUsize>);

impl Held {
    fn take(count: &Arc<AtomicUsize>, limit: usize) -> Option<Held> {
        let held = Held(count.clone());
        (count.fetch_add(1, Ordering::Relaxed) < limit).then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// The state of a server that is about to start.
    pub fn new(
        state: ApiState,
        limits: Limits,
        service_cidr: ServiceCidr,
        tokens: Tokens,
        stop: CancellationToken,
    ) -> Shared {
        metrics::describe();
        Shared {
            state,
            limits,
            service_cidr,
            services: tokio::sync::Mutex::new(()),
            stop,
            process: metrics::Process::starts_now(),
            tokens,
            requests: Arc::default(),
            streams: Arc::default(),
            drains: Drains::default(),
            discovery: discovery::Documents::build(),
            openapi: openapi::Documents::build(),
        }
    }

    /// Bearer tokens that are known from the start.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Room for a stream.
    ///
    /// # Errors
    /// 429 when there is none.
    pub fn stream_permit(&self) -> Result<StreamPermit, ApiError> {
        Held::take(&self.streams, self.limits.streams).map(StreamPermit).ok_or(ApiError::TooManyRequests)
    }

    /// Serves a request that is no stream, within the limits of number and time.
    ///
    /// # Errors
    /// 429, 504, and the request's own.
    async fn bounded(
        &self,
        serving: impl Future<Output = Result<HttpResponse, ApiError>>,
    ) -> Result<HttpResponse, ApiError> {
        let _held = Held::take(&self.requests, self.limits.requests).ok_or(ApiError::TooManyRequests)?;
        tokio::time::timeout(self.limits.request_timeout, serving)
            .await
            .map_err(|_| ApiError::Timeout("the request did not complete in time".into()))?
    }

    /// How the nodes are, if that can be told.
    pub(super) async fn nodes(&self) -> Option<Vec<NodeState>> {
        self.state.inspect.as_ref()?.nodes.ask(ShowNodes, NODES_WITHIN).await.ok()
    }

    /// Every path that is no object's.
    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.discovery.paths().chain(health::paths()).collect();
        paths.extend(tokens::paths());
        paths.extend(["/metrics", "/openapi/v2", "/openapi/v3"].map(str::to_owned));
        for path in [status::PATH, links::PATH] {
            paths.extend(self.state.inspect.is_some().then(|| format!("/{}", path.join("/"))));
        }
        paths.extend(self.state.backup.is_some().then(|| format!("/{}", backup::PATH.join("/"))));
        paths.sort_unstable();
        paths
    }
}

/// Serves one request.
pub async fn handle(request: HttpRequest, payload: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let mut body = Payload::new(payload);
    let (look_every, drains) = (shared.limits.ping_every, shared.drains.clone());
    let served = AssertUnwindSafe(serve(&request, body.clone(), shared.into_inner())).catch_unwind().await;
    let response = match served {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.response(),
        Err(_) => {
            tracing::error!(method = %request.method(), path = request.path(), "a handler panicked");
            metrics::panicked();
            ApiError::Internal("the request hit a defect of the server".into()).response()
        }
    };
    let (code, took) = (response.status().as_u16(), started.elapsed());
    // Whoever is not known, or one too many, is not waited for.
    let whose = if matches!(code, 401 | 429) { Whose::Anybody } else { Whose::Known };
    body.drain(&request, whose, &drains).await;
    metrics::answered(verb(request.method()), resource(request.path()), code, took);
    tracing::debug!(method = %request.method(), path = request.path(), code, took_us = took.as_micros() as u64, "answered");
    body.attend(&request, response, look_every)
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    }
}

/// What a request was about, from a closed set.
fn resource(path: &str) -> &'static str {
    match Target::parse(path) {
        Target::Resource(resource) => resource.kind.plural(),
        Target::Other(_) => "none",
    }
}

async fn serve(
    request: &HttpRequest,
    payload: Payload,
    shared: Arc<Shared>,
) -> Result<HttpResponse, ApiError> {
    let speaker = auth::authenticate(request, &shared)?;
    speaker.refuse_impersonation(request)?;
    let target = Target::parse(request.uri().path());
    if let Target::Other(segments) = &target
        && let Some(review) = Review::of(segments)
    {
        if !review.is_everyones() {
            speaker.authorise(request, &target)?;
        }
        return shared.bounded(review::serve(review, &speaker, request, payload, &shared)).await;
    }
    if !is_everyones(request, &target) {
        speaker.authorise(request, &target)?;
    }
    let resource = match target {
        Target::Resource(resource) => resource,
        Target::Other(segments) => return other(request, &segments, &shared).await,
    };
    let query = Query::parse(request.query_string())?;
    let form = render::negotiate(request, query.include_object.as_deref())?;
    let call = Call { shared, resource, query, form };
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    // Streams are bounded on their own, and take as long as they take.
    match call.resource.subresource.as_deref() {
        None if reads && call.query.watch => {
            return watch::watch(&call.shared, &call.resource, &call.query, call.form);
        }
        Some("log") if call.resource.kind == Kind::Pod => {
            let permit = call.shared.stream_permit()?;
            return if reads { log::log(&call, permit).await } else { Err(ApiError::MethodNotAllowed) };
        }
        Some(stream @ ("exec" | "attach" | "portforward")) if call.resource.kind == Kind::Pod => {
            // GET over a WebSocket, POST over SPDY; neither cares.
            if !matches!(*request.method(), Method::GET | Method::POST) {
                return Err(ApiError::MethodNotAllowed);
            }
            let permit = call.shared.stream_permit()?;
            return match stream {
                "exec" => exec::exec(&call, request, payload, permit).await,
                "attach" => exec::attach(&call, request, payload, permit).await,
                _ => port_forward::port_forward(&call, request, payload, permit).await,
            };
        }
        Some("proxy") if call.resource.kind == Kind::Node => {
            let permit = call.shared.stream_permit()?;
            return images::proxy(&call, request.method(), payload, permit).await;
        }
        _ => {}
    }
    call.shared.bounded(short(request, payload, &call)).await
}

/// What everyone who is known may read, as in Kubernetes: what the API is like, its health, the key of tokens.
fn is_everyones(request: &HttpRequest, target: &Target) -> bool {
    let Target::Other(segments) = target else { return false };
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let objects = slices::Slices::of(&segments).is_some()
        || leases::Leases::of(&segments).is_some()
        || usage::Metrics::of(&segments).is_some();
    let open = match segments.as_slice() {
        ["api" | "apis" | "openapi" | "version", ..] => !objects,
        other => health::is_ours(other) || tokens::is_ours(other),
    };
    open && only_reads(request).is_ok()
}

/// Requests that are no streams.
async fn short(request: &HttpRequest, payload: Payload, call: &Call) -> Result<HttpResponse, ApiError> {
    let method = request.method();
    let body = match *method {
        Method::GET | Method::HEAD => bytes::Bytes::new(),
        _ => body::read(request, payload, call.shared.limits.body_bytes).await?,
    };
    if call.resource.subresource.is_some() {
        return subresources(request, body, call).await;
    }
    let kind = Some(call.resource.kind.name());
    let json = |body| body::to_json(body::media_type(request), body, kind);
    match (method, &call.resource.name) {
        (&Method::GET | &Method::HEAD, None) => {
            read::list(&call.shared, &call.resource, &call.query, call.form)
        }
        (&Method::GET | &Method::HEAD, Some(_)) => {
            read::get(&call.shared, &call.resource, &call.query, call.form)
        }
        (&Method::POST, None) => write::create(call, json(body)?).await,
        (&Method::PUT, Some(_)) => write::update(call, Part::Main, json(body)?).await,
        (&Method::PATCH, Some(_)) => write::patch(call, Part::Main, &patch(request, &body)?).await,
        // As Kubernetes: namespaces go one by one, and no collection over all namespaces.
        (&Method::DELETE, None) if call.resource.is_one_collection() => {
            delete::collection(call, options(request, body)?).await
        }
        (&Method::DELETE, Some(_)) => delete::delete(call, options(request, body)?).await,
        _ => Err(ApiError::MethodNotAllowed),
    }
}

fn patch(request: &HttpRequest, body: &[u8]) -> Result<Patch, ApiError> {
    Patch::parse(Format::of(body::media_type(request))?, body)
}

/// `DeleteOptions`; many clients send none.
fn options(request: &HttpRequest, body: bytes::Bytes) -> Result<bytes::Bytes, ApiError> {
    if body.is_empty() {
        Ok(body)
    } else {
        body::to_json(body::media_type(request), body, Some("DeleteOptions"))
    }
}

async fn subresources(
    request: &HttpRequest,
    body: bytes::Bytes,
    call: &Call,
) -> Result<HttpResponse, ApiError> {
    let subresource = call.resource.subresource.as_deref().unwrap_or("");
    let wanted = match subresource {
        "scale" => "Scale",
        "binding" => "Binding",
        "eviction" => "Eviction",
        "token" => "TokenRequest",
        _ => call.resource.kind.name(),
    };
    let json = |body| body::to_json(body::media_type(request), body, Some(wanted));
    if !call.resource.rest.is_empty() {
        return Err(ApiError::UnknownPath);
    }
    match (call.resource.kind, subresource) {
        (
            Kind::Namespace | Kind::Node | Kind::Pod | Kind::ReplicationController | Kind::Service,
            "status",
        ) => match *request.method() {
            Method::GET | Method::HEAD => read::get(&call.shared, &call.resource, &call.query, call.form),
            Method::PUT => write::update(call, Part::Status, json(body)?).await,
            Method::PATCH => write::patch(call, Part::Status, &patch(request, &body)?).await,
            _ => Err(ApiError::MethodNotAllowed),
        },
        (Kind::Pod, "ephemeralcontainers") => match *request.method() {
            Method::GET | Method::HEAD => read::get(&call.shared, &call.resource, &call.query, call.form),
            Method::PUT => write::update(call, Part::EphemeralContainers, json(body)?).await,
            Method::PATCH => write::patch(call, Part::EphemeralContainers, &patch(request, &body)?).await,
            _ => Err(ApiError::MethodNotAllowed),
        },
        (Kind::Pod, "resize") => match *request.method() {
            Method::GET | Method::HEAD => read::get(&call.shared, &call.resource, &call.query, call.form),
            Method::PUT => write::update(call, Part::Resize, json(body)?).await,
            Method::PATCH => write::patch(call, Part::Resize, &patch(request, &body)?).await,
            _ => Err(ApiError::MethodNotAllowed),
        },
        (Kind::ReplicationController, "scale") => match *request.method() {
            Method::GET | Method::HEAD => subresource::get_scale(call),
            Method::PUT => subresource::set_scale(call, subresource::put_scale(&json(body)?)?).await,
            Method::PATCH => {
                subresource::set_scale(call, subresource::patch_scale(&patch(request, &body)?)).await
            }
            _ => Err(ApiError::MethodNotAllowed),
        },
        (Kind::Pod, "binding") if request.method() == Method::POST => {
            subresource::bind(call, &json(body)?).await
        }
        (Kind::Pod, "eviction") if request.method() == Method::POST => {
            subresource::evict(call, &json(body)?).await
        }
        (Kind::ServiceAccount, "token") if request.method() == Method::POST => {
            tokens::request(call, &json(body)?)
        }
        (Kind::Namespace, "finalize") if request.method() == Method::PUT => {
            subresource::finalize(call, &json(body)?).await
        }
        (Kind::Pod, "binding" | "eviction")
        | (Kind::Namespace, "finalize")
        | (Kind::ServiceAccount, "token") => Err(ApiError::MethodNotAllowed),
        _ => Err(ApiError::UnknownPath),
    }
}

/// Paths that name no stored objects.
async fn other(
    request: &HttpRequest,
    segments: &[String],
    shared: &Arc<Shared>,
) -> Result<HttpResponse, ApiError> {
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if let Some(slices) = slices::Slices::of(&segments) {
        return only_reads(request).and_then(|()| slices.answer(request, &shared.state.view.snapshot()));
    }
    if let Some(leases) = leases::Leases::of(&segments) {
        only_reads(request)?;
        return shared.bounded(leases.answer(request, shared)).await;
    }
    if let Some(metrics) = usage::Metrics::of(&segments) {
        only_reads(request)?;
        return shared.bounded(metrics.answer(request, shared)).await;
    }
    if health::is_ours(&segments) {
        only_reads(request)?;
        return health::answer(&segments, request.query_string(), shared).await;
    }
    if segments == status::PATH {
        only_reads(request)?;
        return status::status(shared).await.ok_or(ApiError::UnknownPath);
    }
    if segments == links::PATH {
        only_reads(request)?;
        return links::links(shared).ok_or(ApiError::UnknownPath);
    }
    if segments == backup::PATH {
        only_reads(request)?;
        return backup::backup(shared, shared.stream_permit()?).await;
    }
    if tokens::is_ours(&segments) {
        return only_reads(request).map(|()| tokens::discovery(request, &segments, shared));
    }
    let answer = match segments.as_slice() {
        [] => Some(read::json_response(200, json!({ "paths": shared.paths() }).to_string())),
        ["metrics"] => Some(scrape(shared).await),
        _ => {
            shared.discovery.answer(request, &segments).or_else(|| shared.openapi.answer(request, &segments))
        }
    };
    answer.ok_or(ApiError::UnknownPath).and_then(|answer| only_reads(request).map(|()| answer))
}

/// What was recorded, and what is there now.
async fn scrape(shared: &Shared) -> HttpResponse {
    let nodes = shared.nodes().await;
    let mut text = shared.state.metrics.as_ref().map(|render| render()).unwrap_or_default();
    let now = metrics::Now {
        snapshot: &shared.state.view.snapshot(),
        requests: shared.requests.load(Ordering::Relaxed),
        streams: shared.streams.load(Ordering::Relaxed),
        nodes: nodes.as_deref(),
    };
    metrics::scrape(&now, &shared.process, &mut text);
    HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text)
}

fn only_reads(request: &HttpRequest) -> Result<(), ApiError> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(ApiError::MethodNotAllowed),
    }
}
