//! The door: every request passes here.
//!
//! Owns: the order of steps (credentials, limits, what is meant, the verb), the counting of what is in flight, and the
//! guard that turns a handler's panic into a 500 instead of a dead worker.
//! Invariant: a request that is refused for lack of room has cost no more than its head.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use actix_web::{HttpRequest, HttpResponse, http::Method, web};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{
    auth::{self, Tokens},
    body,
    config::{ApiState, Limits, ServiceCidr},
    delete, discovery,
    error::ApiError,
    images, log, metrics, openapi,
    patch::{Format, Patch},
    query::Query,
    read, render, subresource,
    target::Target,
    watch,
    write::{self, Call},
};
use crate::model::{Kind, admit::Part};

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
    tokens: Tokens,
    requests: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
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
            tokens,
            requests: Arc::default(),
            streams: Arc::default(),
            discovery: discovery::Documents::build(),
            openapi: openapi::Documents::build(),
        }
    }

    /// Room for a stream.
    ///
    /// # Errors
    /// 429 when there is none.
    pub fn stream_permit(&self) -> Result<StreamPermit, ApiError> {
        Held::take(&self.streams, self.limits.streams).map(StreamPermit).ok_or(ApiError::TooManyRequests)
    }
}

/// Serves one request.
pub async fn handle(request: HttpRequest, payload: web::Payload, shared: web::Data<Shared>) -> HttpResponse {
    let started = Instant::now();
    let served = AssertUnwindSafe(serve(&request, payload, shared.into_inner())).catch_unwind().await;
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
    metrics::answered(verb(request.method()), code, took);
    tracing::debug!(method = %request.method(), path = request.path(), code, took_us = took.as_micros() as u64, "answered");
    response
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

async fn serve(
    request: &HttpRequest,
    payload: web::Payload,
    shared: Arc<Shared>,
) -> Result<HttpResponse, ApiError> {
    auth::authorise(request, &shared.tokens)?;
    let resource = match Target::parse(request.uri().path()) {
        Target::Resource(resource) => resource,
        Target::Other(segments) => return other(request, &segments, &shared),
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
        Some("proxy") if call.resource.kind == Kind::Node => {
            let _permit = call.shared.stream_permit()?;
            return images::proxy(&call, request.method(), payload).await;
        }
        _ => {}
    }
    let limits = call.shared.limits;
    let _held = Held::take(&call.shared.requests, limits.requests).ok_or(ApiError::TooManyRequests)?;
    tokio::time::timeout(limits.request_timeout, short(request, payload, &call))
        .await
        .map_err(|_| ApiError::Timeout("the request did not complete in time".into()))?
}

/// Requests that are no streams.
async fn short(request: &HttpRequest, payload: web::Payload, call: &Call) -> Result<HttpResponse, ApiError> {
    let method = request.method();
    let body = match *method {
        Method::GET | Method::HEAD => bytes::Bytes::new(),
        _ => body::read(request, payload, call.shared.limits.body_bytes).await?,
    };
    if call.resource.subresource.is_some() {
        return subresources(request, body, call).await;
    }
    let json = |body| body::to_json(body::media_type(request), body);
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
        (&Method::DELETE, None) => delete::collection(call, options(request, body)?).await,
        (&Method::DELETE, Some(_)) => delete::delete(call, options(request, body)?).await,
        _ => Err(ApiError::MethodNotAllowed),
    }
}

fn patch(request: &HttpRequest, body: &[u8]) -> Result<Patch, ApiError> {
    Patch::parse(Format::of(body::media_type(request))?, body)
}

/// `DeleteOptions`; many clients send none.
fn options(request: &HttpRequest, body: bytes::Bytes) -> Result<bytes::Bytes, ApiError> {
    if body.is_empty() { Ok(body) } else { body::to_json(body::media_type(request), body) }
}

async fn subresources(
    request: &HttpRequest,
    body: bytes::Bytes,
    call: &Call,
) -> Result<HttpResponse, ApiError> {
    let json = |body| body::to_json(body::media_type(request), body);
    let subresource = call.resource.subresource.as_deref().unwrap_or("");
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
        (Kind::Namespace, "finalize") if request.method() == Method::PUT => {
            subresource::finalize(call, &json(body)?).await
        }
        (Kind::Pod, "binding" | "eviction") | (Kind::Namespace, "finalize") => {
            Err(ApiError::MethodNotAllowed)
        }
        _ => Err(ApiError::UnknownPath),
    }
}

/// Paths that name no objects.
fn other(request: &HttpRequest, segments: &[String], shared: &Shared) -> Result<HttpResponse, ApiError> {
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if let Some(answer) =
        shared.discovery.answer(request, &segments).or_else(|| shared.openapi.answer(request, &segments))
    {
        return only_reads(request).map(|()| answer);
    }
    let text = |body: String| HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(body);
    match segments.as_slice() {
        ["healthz" | "livez" | "readyz", ..] => only_reads(request).map(|()| text("ok".into())),
        ["metrics"] => {
            only_reads(request)?;
            shared.state.metrics.as_ref().map(|render| text(render())).ok_or(ApiError::UnknownPath)
        }
        _ => Err(ApiError::UnknownPath),
    }
}

fn only_reads(request: &HttpRequest) -> Result<(), ApiError> {
    match *request.method() {
        Method::GET | Method::HEAD => Ok(()),
        _ => Err(ApiError::MethodNotAllowed),
    }
}
