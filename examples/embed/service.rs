//! The larger service: a fleet of greeters behind a few HTTP routes, kept alive by the cluster inside.
//!
//! Owns: the routes, and the [`Board`] that follows pods and is what `GET /fleet` shows. Every handler speaks to the
//! cluster's actors by typed messages; nothing here goes through the cluster's own HTTP API.
//!
//! ```text
//! GET /fleet   POST /fleet {name, replicas}   PUT /fleet/NAME {replicas, read}   GET /fleet/NAME/log/POD
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use actix_web::{HttpResponse, ResponseError, http::StatusCode, web};
use k8s_openapi::{
    api::core::v1::{
        ConfigMap, Container, Pod, PodSpec, PodTemplateSpec, ReplicationController, ReplicationControllerSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, Serialize};
use tokio_util::io::ReaderStream;
use troupe::{
    Client, ClientError, WatchEvent,
    messages::{Commit, Durability, Write, wire::LogRequest},
};

/// The image of a greeter; what it does is registered with the runtime.
pub const IMAGE: &str = "example.com/greeter:1";
/// The namespace of everything here.
const NAMESPACE: &str = "default";
/// How long the store may take.
const WITHIN: Duration = Duration::from_secs(10);

/// Pods as last heard: phase, node and restarts by name.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<BTreeMap<String, Seen>>>);

/// One pod on the board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its controller's name.
    pub fleet: String,
    /// Its phase.
    pub phase: String,
    /// Its node.
    pub node: Option<String>,
}

impl Board {
    /// Follows the cluster's pods until it is dropped.
    pub async fn follow(self, client: Client) {
        let mut pods = client.watch::<Pod>(Some(NAMESPACE));
        loop {
            let event = pods.next().await;
            let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                WatchEvent::Listed(pods) => *board = pods.iter().map(seen).collect(),
                WatchEvent::Applied(pod) => board.extend([seen(&pod)]),
                WatchEvent::Deleted(pod) => drop(board.remove(&seen(&pod).0)),
            }
        }
    }

    fn pods(&self) -> BTreeMap<String, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn seen(pod: &Pod) -> (String, Seen) {
    let label = pod.metadata.labels.as_ref().and_then(|l| l.get("fleet")).cloned();
    let phase = pod.status.as_ref().and_then(|s| s.phase.clone());
    let node = pod.spec.as_ref().and_then(|s| s.node_name.clone());
    let seen = Seen { fleet: label.unwrap_or_default(), phase: phase.unwrap_or_default(), node };
    (pod.metadata.name.clone().unwrap_or_default(), seen)
}

/// What the handlers share.
#[derive(Clone)]
pub struct Shared {
    /// The cluster.
    pub client: Client,
    /// What was heard of its pods.
    pub board: Board,
}

/// A fleet to be made.
#[derive(Serialize, Deserialize)]
pub struct Order {
    /// Its name.
    pub name: String,
    /// How many greeters.
    pub replicas: i32,
}

/// A fleet to be resized.
#[derive(Serialize, Deserialize)]
pub struct Resize {
    /// How many greeters.
    pub replicas: i32,
    /// The revision this was decided on: refused when the fleet has changed since.
    pub read: String,
}

/// What a change answers.
#[derive(Serialize, Deserialize)]
pub struct Made {
    /// The fleet's revision now.
    pub revision: String,
}

/// The routes.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/fleet", web::get().to(show))
        .route("/fleet", web::post().to(order))
        .route("/fleet/{name}", web::get().to(one))
        .route("/fleet/{name}", web::put().to(resize))
        .route("/fleet/{name}/log/{pod}", web::get().to(log));
}

/// A client's error as an HTTP answer.
#[derive(Debug)]
pub struct Refusal(ClientError);

impl<E: Into<ClientError>> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        Refusal(error.into())
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        match &self.0 {
            ClientError::NotFound(_) => StatusCode::NOT_FOUND,
            ClientError::AlreadyExists(_) | ClientError::Conflict(_) => StatusCode::CONFLICT,
            ClientError::Invalid { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            ClientError::Refused(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

async fn show(shared: web::Data<Shared>) -> HttpResponse {
    HttpResponse::Ok().json(shared.board.pods())
}

/// Two objects in one message: the store makes both or none.
async fn order(shared: web::Data<Shared>, order: web::Json<Order>) -> Result<HttpResponse, Refusal> {
    let client = &shared.client;
    let note = ConfigMap {
        metadata: named(&format!("{}-order", order.name)),
        data: Some(BTreeMap::from([("ordered".to_owned(), order.replicas.to_string())])),
        ..ConfigMap::default()
    };
    let controller = controller(&order);
    let writes = vec![Write::Create(client.admit(&note)?), Write::Create(client.admit(&controller)?)];
    let commit = Commit { writes, durability: Durability::Hard };
    let made = client.commits().ask(commit, WITHIN).await??;
    let revision = made.objects.last().map(|o| o.revision.to_string()).unwrap_or_default();
    Ok(HttpResponse::Created().json(Made { revision }))
}

async fn one(shared: web::Data<Shared>, name: web::Path<String>) -> Result<HttpResponse, Refusal> {
    let fleet = fleet(&shared.client, &name)?;
    Ok(HttpResponse::Ok().json(Made { revision: fleet.metadata.resource_version.unwrap_or_default() }))
}

/// Compare and swap: of two who decide on one state, one wins, and the other is told.
async fn resize(
    shared: web::Data<Shared>,
    name: web::Path<String>,
    resize: web::Json<Resize>,
) -> Result<HttpResponse, Refusal> {
    let mut fleet = fleet(&shared.client, &name)?;
    fleet.spec.get_or_insert_default().replicas = Some(resize.replicas);
    fleet.metadata.resource_version = Some(resize.read.clone());
    let made = shared.client.replace(&fleet).await?;
    Ok(HttpResponse::Ok().json(Made { revision: made.metadata.resource_version.unwrap_or_default() }))
}

/// A stream from the node that runs the pod, passed on as it comes.
async fn log(shared: web::Data<Shared>, path: web::Path<(String, String)>) -> Result<HttpResponse, Refusal> {
    let (_, pod) = path.into_inner();
    let stream = shared.client.logs(NAMESPACE, &pod, LogRequest::default()).await?;
    Ok(HttpResponse::Ok().content_type("text/plain").streaming(ReaderStream::new(stream.read)))
}

fn fleet(client: &Client, name: &str) -> Result<ReplicationController, Refusal> {
    let key = troupe::model::Key::new(troupe::model::Kind::ReplicationController, NAMESPACE, name);
    Ok(client.get(NAMESPACE, name)?.ok_or(ClientError::NotFound(key))?)
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() }
}

fn controller(order: &Order) -> ReplicationController {
    let labels = BTreeMap::from([("fleet".to_owned(), order.name.clone())]);
    let greeter = Container {
        name: "greeter".to_owned(),
        image: Some(IMAGE.to_owned()),
        args: Some(vec![order.name.clone()]),
        ..Container::default()
    };
    let pod = PodSpec { containers: vec![greeter], ..PodSpec::default() };
    ReplicationController {
        metadata: named(&order.name),
        spec: Some(ReplicationControllerSpec {
            replicas: Some(order.replicas),
            selector: Some(labels.clone()),
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod),
            }),
            ..ReplicationControllerSpec::default()
        }),
        status: None,
    }
}
