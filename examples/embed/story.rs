//! The service from its first to its last minute: started, used over its own HTTP, and stopped.
//!
//! Owns: [`Service`], the cluster and the HTTP server side by side in one actix system, and [`story`], which uses it as
//! a client would and fails unless everything that it tells really happened.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use actix_web::{App, HttpServer, dev::ServerHandle, http::StatusCode, web};
use anyhow::{Context as _, Result, bail, ensure};
use tokio::task::JoinHandle;
use troupe::{Cluster, ClusterConfig};

use crate::{
    service::{Board, IMAGE, Made, Order, Resize, Seen, Shared, routes},
    tasks::{Task, TaskRuntime},
};

/// Ample for everything here, also on a machine that does much else.
const WITHIN: Duration = Duration::from_secs(60);
/// How often HTTP is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The service while it runs.
pub struct Service {
    cluster: Cluster,
    http: SocketAddr,
    server: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
    following: JoinHandle<()>,
}

impl Service {
    /// Starts the cluster, then the routes that use it. Pods' directories and logs go below `directory`.
    pub async fn start(directory: &Path, listen: &str) -> Result<Service> {
        let runtime = TaskRuntime::builder().image(IMAGE, greeter)?.build();
        let config =
            ClusterConfig::new(directory).in_memory().nodes(["ship"]).runtime_of("ship", Arc::new(runtime));
        let cluster = Cluster::start(config).await?;
        cluster.ready(WITHIN).await?;
        let shared = Shared { client: cluster.client(), board: Board::default() };
        let following = actix::spawn(shared.board.clone().follow(cluster.client()));
        let data = web::Data::new(shared);
        let server = HttpServer::new(move || App::new().app_data(data.clone()).configure(routes))
            .workers(1)
            .disable_signals()
            .bind(listen)
            .with_context(|| format!("cannot listen on {listen}"))?;
        let http = server.addrs().first().copied().context("no address")?;
        let server = server.run();
        let handle = server.handle();
        Ok(Service { cluster, http, server: handle, serving: actix::spawn(server), following })
    }

    /// Where its own routes are.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The cluster inside.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Ends the routes, then the cluster.
    pub async fn stop(self) -> Result<()> {
        self.following.abort();
        self.server.stop(true).await;
        self.serving.await??;
        self.cluster.stop().await;
        Ok(())
    }
}

/// What a greeter does: says hello, and waits to be told to go.
async fn greeter(task: Task) -> i32 {
    task.print(&format!("hello from {}", task.args().join(" ")));
    task.stopped().await;
    task.print("goodbye");
    0
}

/// Uses a running service as a client would.
pub async fn story(http: SocketAddr, tell: impl Fn(&str)) -> Result<()> {
    let url = |path: &str| format!("http://{http}{path}");
    let client = awc::Client::default();

    let order = Order { name: "greeters".into(), replicas: 2 };
    let mut answer = client.post(url("/fleet")).send_json(&order).await.map_err(plain)?;
    ensure!(answer.status() == StatusCode::CREATED, "the order was answered {}", answer.status());
    let made: Made = answer.json().await?;
    tell(&format!("ordered 2 greeters, at revision {}", made.revision));
    let fleet = running(&client, &url("/fleet"), 2).await?;
    tell("2 greeters run");

    let again = client.post(url("/fleet")).send_json(&order).await.map_err(plain)?;
    ensure!(again.status() == StatusCode::CONFLICT, "a second order was answered {}", again.status());
    tell("the same order again is refused");

    // The controller writes its status meanwhile, so what was read may be old: read and decide anew then.
    let resized = tokio::time::timeout(WITHIN, async {
        loop {
            let now: Made = client.get(url("/fleet/greeters")).send().await.map_err(plain)?.json().await?;
            let resize = Resize { replicas: 3, read: now.revision.clone() };
            let answer = client.put(url("/fleet/greeters")).send_json(&resize).await.map_err(plain)?;
            match answer.status() {
                StatusCode::OK => return Ok(now.revision),
                StatusCode::CONFLICT => {}
                other => bail!("the resize was answered {other}"),
            }
        }
    });
    let read = resized.await.context("the fleet never stood still")??;
    let late = Resize { replicas: 9, read };
    let late = client.put(url("/fleet/greeters")).send_json(&late).await.map_err(plain)?;
    ensure!(late.status() == StatusCode::CONFLICT, "a resize on old news was answered {}", late.status());
    let larger = running(&client, &url("/fleet"), 3).await?;
    ensure!(fleet.iter().all(|pod| larger.contains(pod)), "greeters were replaced by a scale up");
    tell("resized to 3 by compare and swap; a decision on old news is refused");

    let pod = larger.first().context("nobody runs")?;
    let log = logged(&client, &url(&format!("/fleet/greeters/log/{pod}"))).await?;
    ensure!(log.contains("hello from greeters"), "the log of {pod} says {log:?}");
    tell(&format!("{pod} says: {}", log.trim()));
    Ok(())
}

/// Waits until the fleet is so large and all of it runs; gives the pods' names.
async fn running(client: &awc::Client, url: &str, replicas: usize) -> Result<Vec<String>> {
    let all = async {
        loop {
            let pods: std::collections::BTreeMap<String, Seen> =
                client.get(url).send().await.map_err(plain)?.json().await?;
            if pods.len() == replicas && pods.values().all(|p| p.phase == "Running" && p.node.is_some()) {
                return Ok(pods.into_keys().collect());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(WITHIN, all).await.with_context(|| format!("{replicas} greeters never ran"))?
}

/// Reads a log until there is something in it: a container runs before it prints.
async fn logged(client: &awc::Client, url: &str) -> Result<String> {
    let some = async {
        loop {
            let mut answer = client.get(url).send().await.map_err(plain)?;
            ensure!(answer.status() == StatusCode::OK, "the log was answered {}", answer.status());
            let text = String::from_utf8_lossy(&answer.body().await?).into_owned();
            if !text.is_empty() {
                return Ok(text);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(WITHIN, some).await.context("the log stays empty")?
}

/// awc's errors do not travel between threads; their text does.
fn plain(error: awc::error::SendRequestError) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}
