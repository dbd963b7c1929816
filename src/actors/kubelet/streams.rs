//! Byte streams that the master opens: logs, images, programs run in containers or attached to, ports.
//!
//! Owns: which file a log request means (Kubernetes' rules for running, waiting and previous containers) and the
//! passage of image archives into the runtime. Each stream is a task of its own and never delays the kubelet.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix::{
    ActorFutureExt as _, Addr, AsyncContext as _, Context, Handler, Message, ResponseActFuture,
    WrapFuture as _,
};
use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1;
use tokio::{io::AsyncWriteExt as _, sync::watch};

use super::{
    Kubelet,
    context::{NodeContext, now_ms},
    images,
    pod::ImagesChanged,
    summary::Page,
};
use crate::{
    messages::wire::{self, ByteStream, ImageAnswer, ImageLoad, LogRequest, Open, PullLine},
    net::{NetError, Responder},
    runtime::{
        ContainerId, ContainerRuntime, PullProgress, RuntimeError,
        images::{BUILTIN_IMAGE, normalize},
        logs,
    },
};

/// link → kubelet: the master wants a flow of bytes.
#[derive(Message)]
#[rtype(result = "()")]
pub struct StreamAsked {
    /// What the bytes are to be.
    pub open: Open,
    /// Where to answer.
    pub responder: Responder,
}

/// kubelet's tasks → kubelet: the runtime's images are others now. Answered when that is on its way to the master, so that
/// whoever brought one finds it known.
#[derive(Message)]
#[rtype(result = "()")]
struct ImagesMoved;

/// How long it is waited for that the log of what has ended is copied as a whole: some 64 MiB are left at most.
pub(super) const COPIED_WITHIN: Duration = Duration::from_secs(30);

/// A log to be read.
#[derive(Debug, PartialEq, Eq)]
struct LogFile {
    path: PathBuf,
    /// Whether the file may still grow.
    running: bool,
    /// The life of its container that writes it, or wrote it.
    id: Option<ContainerId>,
}

impl Handler<StreamAsked> for Kubelet {
    type Result = ();

    fn handle(&mut self, message: StreamAsked, ctx: &mut Context<Self>) {
        let StreamAsked { open, responder } = message;
        match open {
            Open::Logs(request) => self.tell_log(request, None, responder),
            Open::LogsOfLast(request, seconds) => self.tell_log(request, Some(seconds), responder),
            Open::ImageLoad(load) => {
                tokio::spawn(load_image(self.seed.node.clone(), load, responder, ctx.address()));
            }
            Open::ImageList => {
                tokio::spawn(list_images(self.seed.node.clone(), responder));
            }
            Open::Exec(request) => {
                let wire::ExecRequest { namespace, pod, uid, container, .. } = &request;
                match self.running_in(namespace, pod, uid, container) {
                    Ok(id) => {
                        tokio::spawn(super::exec::serve(self.seed.node.clone(), id, request, responder));
                    }
                    Err((code, text)) => refuse(responder, code, text),
                }
            }
            Open::ImageSave(names) => {
                tokio::spawn(save_images(self.seed.node.clone(), names, responder));
            }
            Open::Attach(request) => {
                let wire::AttachRequest { namespace, pod, uid, container, .. } = &request;
                match self.running_in(namespace, pod, uid, container) {
                    Ok(id) => {
                        tokio::spawn(super::exec::attach(self.seed.node.clone(), id, request, responder));
                    }
                    Err((code, text)) => refuse(responder, code, text),
                }
            }
            Open::PortForward(request) => {
                let uid = self.own_uid(&request.namespace, &request.pod, &request.uid);
                if self.pods.contains_key(&uid) {
                    tokio::spawn(super::exec::port_forward(self.seed.node.clone(), uid, request, responder));
                } else {
                    refuse(responder, 404, format!("pod {} is not on this node", request.pod));
                }
            }
            Open::ImagePart(part) => {
                tokio::spawn(super::peers::give(self.seed.node.clone(), part, responder));
            }
            // Answered by the uplink.
            Open::Actors => refuse(responder, 405, "a kubelet knows its own actors only".into()),
            Open::ImageHolders(_) => refuse(responder, 405, "only a master knows who has an image".into()),
            Open::ImageRemove(name) => {
                tokio::spawn(remove_image(self.seed.node.clone(), name, responder, ctx.address()));
            }
            Open::Stats => self.tell_usage(responder, ctx),
            Open::Summary => self.tell_summary(Page::Summary, responder, ctx),
            Open::ResourceMetrics => self.tell_summary(Page::Resource, responder, ctx),
            Open::CadvisorMetrics => self.tell_summary(Page::Cadvisor, responder, ctx),
            Open::Reach(address) => {
                tokio::spawn(super::reach::answer(address, self.seed.probe.clone(), responder));
            }
            Open::ImagePull(name) => {
                tokio::spawn(pull_image(self.seed.node.clone(), name, responder, ctx.address()));
            }
        }
    }
}

impl Handler<ImagesMoved> for Kubelet {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: ImagesMoved, ctx: &mut Context<Self>) -> Self::Result {
        self.images_changed();
        self.report_node(false, ctx);
        let runtime = self.seed.node.runtime.clone();
        let look = async move { runtime.shared_images().await };
        Box::pin(look.into_actor(self).map(|shared, kubelet, _| kubelet.tell_images(shared.ok(), false)))
    }
}

impl Kubelet {
    /// Lets pods look again that wait for an image.
    pub(super) fn images_changed(&self) {
        for address in self.pods.values().filter_map(|e| e.slot.address()) {
            address.do_send(ImagesChanged);
        }
    }

    fn tell_log(&self, request: LogRequest, last_s: Option<u64>, responder: Responder) {
        match self.log_file(&request) {
            Ok((file, running)) => {
                let since = since(&request, last_s, now_ms());
                let runtime = self.seed.node.runtime.clone();
                tokio::spawn(send_log(request, since, file, (running, runtime), responder));
            }
            Err((code, text)) => refuse(responder, code, text),
        }
    }

    fn log_file(&self, request: &LogRequest) -> Result<(LogFile, watch::Receiver<bool>), (u16, String)> {
        let own = self.manifests.own_uid(&request.namespace, &request.pod);
        let uid = own.unwrap_or_else(|| request.uid.as_str().into());
        let entry =
            self.pods.get(&uid).ok_or_else(|| (404, format!("pod {} is not on this node", request.pod)))?;
        let places = self.seed.node.places(&request.namespace, &request.pod, uid.as_str());
        let Life { attempt, running, id } = which_life(&entry.containers, entry.refused, request)?;
        let id = id.and_then(|id| Some(ContainerId(id.split_once("://")?.1.to_owned())));
        let file = LogFile { path: places.log(&request.container, attempt), running, id };
        // What another life does is no matter to one that has ended.
        let alive = entry
            .running
            .get(&request.container)
            .filter(|_| running)
            .map_or_else(|| watch::channel(false).1, watch::Sender::subscribe);
        Ok((file, alive))
    }
}

/// One of a container's lives.
#[derive(Debug, PartialEq, Eq)]
struct Life<'a> {
    attempt: u32,
    /// Whether it is the one that runs.
    running: bool,
    /// As statuses tell it: `RUNTIME://ID`.
    id: Option<&'a str>,
}

/// Which of a container's lives a request means. Of a pod that the node `refused` nothing was made.
fn which_life<'a>(
    statuses: &'a [v1::ContainerStatus],
    refused: bool,
    request: &LogRequest,
) -> Result<Life<'a>, (u16, String)> {
    let (name, pod) = (&request.container, &request.pod);
    let waiting =
        |reason: &str| (400, format!("container \"{name}\" in pod \"{pod}\" is waiting to start: {reason}"));
    let status = statuses.iter().find(|s| s.name == *name).ok_or_else(|| match refused {
        true => (400, format!("container \"{name}\" in pod \"{pod}\" is not available")),
        false => waiting("ContainerCreating"),
    })?;
    let attempt = u32::try_from(status.restart_count).unwrap_or(0);
    let state = status.state.clone().unwrap_or_default();
    // While it waits for its next life, it is told to be the last one, whose number restarts are counted up to. In its
    // postStart hook it waits, too, but as another life.
    let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref()).and_then(|last| {
        let is_last = state.waiting.is_some() && status.container_id == last.container_id;
        let attempt = if is_last { attempt } else { attempt.checked_sub(1)? };
        Some(Life { attempt, running: false, id: last.container_id.as_deref() })
    });
    if request.previous {
        let absent = || format!("previous terminated container \"{name}\" in pod \"{pod}\" not found");
        return last.ok_or_else(|| (400, absent()));
    }
    match (state.waiting, last) {
        (Some(_), Some(last)) => Ok(last),
        (Some(w), None) => Err(waiting(match w.reason.as_deref().unwrap_or("ContainerCreating") {
            "ErrImagePull" => "image can't be pulled",
            "ImagePullBackOff" => "trying and failing to pull image",
            other => other,
        })),
        // It was to begin when its pod ended.
        (None, _) if state.terminated.is_some() && status.container_id.is_none() => {
            Err((400, format!("container \"{name}\" in pod \"{pod}\" is terminated")))
        }
        (None, _) => {
            Ok(Life { attempt, running: state.running.is_some(), id: status.container_id.as_deref() })
        }
    }
}

pub(super) fn refuse(responder: Responder, code: u16, text: String) {
    tokio::spawn(async move {
        if let Err(error) = responder.refuse(code, &text).await {
            tracing::debug!(%error, "a refusal did not reach the master");
        }
    });
}

async fn send_log(
    request: LogRequest,
    since: Option<SystemTime>,
    file: LogFile,
    (alive, runtime): (watch::Receiver<bool>, Arc<dyn ContainerRuntime>),
    responder: Responder,
) {
    let Ok(stream) = responder.accept().await else { return };
    let ByteStream { mut read, mut write } = stream;
    let written = async {
        if let Some(id) = &file.id {
            runtime.log_written(id).await;
        }
    };
    let mut written = std::pin::pin!(written.fuse());
    // One that has ended may have left more than is copied yet. Who does not follow it is given the whole, if it can be.
    let grows = file.running || written.as_mut().now_or_never().is_none();
    if grows && !file.running && !request.follow {
        let _ = tokio::time::timeout(COPIED_WITHIN, written.as_mut()).await;
    }
    let (grows_on, growing) = watch::channel(grows);
    let options = logs::LogOptions {
        follow: request.follow && grows,
        tail_lines: request.tail_lines,
        since,
        limit_bytes: request.limit_bytes,
        timestamps: request.timestamps,
        stream: None,
    };
    tokio::select! {
        outcome = logs::read(&file.path, options, &mut write, growing) => {
            if let Err(error) = outcome {
                tracing::debug!(%error, path = %file.path.display(), "log not read to its end");
            }
        }
        () = stops_growing(alive, written, grows, grows_on) => {}
        // The reader has gone: nobody needs the rest.
        () = gone(&mut read) => {}
    }
    let _ = write.shutdown().await;
}

/// Tells the reader of a log when it grows no more: its container has ended, and what that wrote is there. Never returns:
/// the reader does.
async fn stops_growing(
    mut alive: watch::Receiver<bool>,
    written: impl Future<Output = ()>,
    grows: bool,
    grows_on: watch::Sender<bool>,
) {
    if grows {
        while *alive.borrow_and_update() && alive.changed().await.is_ok() {}
        written.await;
        grows_on.send_replace(false);
    }
    std::future::pending().await
}

/// From when on lines are wanted, by this machine's clock.
fn since(request: &LogRequest, last_s: Option<u64>, now_ms: i64) -> Option<SystemTime> {
    let last = last_s.map(|s| i64::try_from(s.saturating_mul(1000)).unwrap_or(i64::MAX));
    let from_ms = last.map(|ms| now_ms.saturating_sub(ms)).max(request.since_ms)?;
    Some(UNIX_EPOCH + Duration::from_millis(u64::try_from(from_ms).unwrap_or(0)))
}

/// Waits for the other side to reset the stream; an orderly end of its direction is not a goodbye.
async fn gone(read: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut byte = [0_u8; 1];
    if tokio::io::AsyncReadExt::read(read, &mut byte).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

async fn load_image(node: Arc<NodeContext>, load: ImageLoad, responder: Responder, kubelet: Addr<Kubelet>) {
    let Ok(stream) = responder.accept().await else { return };
    let ByteStream { read, write } = stream;
    let loaded = match load {
        ImageLoad::Archive(rename) => node.runtime.load_image(read, rename).await,
        ImageLoad::RootFs(name) => node.runtime.import_image(read, &name).await.map(|n| vec![n]),
    };
    answer(write, loaded, &kubelet).await;
}

/// How often whoever asked for a pull is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

async fn pull_image(node: Arc<NodeContext>, name: String, responder: Responder, kubelet: Addr<Kubelet>) {
    let Ok(mut stream) = responder.accept().await else { return };
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let pulling = images::pull(&node, &name, Vec::new());
    tokio::pin!(pulling);
    let last = loop {
        tokio::select! {
            outcome = &mut pulling => break match outcome {
                Ok(_) => {
                    kubelet.do_send(ImagesMoved);
                    PullLine::Done(normalize(&name).unwrap_or_else(|_| name.clone()))
                }
                Err(error) => PullLine::Refused(error.to_string()),
            },
            _ = ticks.tick() => {
                let Some(now) = node.runtime.pull_progress(&name) else { continue };
                let PullProgress { layers, layers_done, bytes, total_bytes } = now;
                let line = PullLine::Progress { layers, layers_done, bytes, total_bytes };
                if let Err(error) = say(&mut stream.write, &line).await {
                    // The pull goes on if somebody else waits for it, too.
                    return tracing::debug!(%error, "nobody listens to a pull any more");
                }
            }
        }
    };
    let said = say(&mut stream.write, &last).await;
    if let Err(error) = said.and(stream.write.shutdown().await) {
        tracing::debug!(%error, "a pull's outcome did not reach the master");
    }
}

/// Sends an archive. One that fails on the way is broken off by a reset: its writer is dropped before its end was said.
async fn save_images(node: Arc<NodeContext>, names: Vec<String>, responder: Responder) {
    let mut archive = match node.runtime.save_images(names).await {
        Ok(archive) => archive,
        Err(error) => {
            let code = match error {
                RuntimeError::ImageNotFound(_) => 404,
                RuntimeError::InvalidImageName(..) | RuntimeError::Config(_) => 400,
                RuntimeError::Unsupported(..) => 501,
                _ => 500,
            };
            return refuse(responder, code, error.to_string());
        }
    };
    let Ok(ByteStream { mut read, mut write }) = responder.accept().await else { return };
    let sent = tokio::select! {
        sent = tokio::io::copy(&mut archive, &mut write) => sent.map(drop),
        () = gone(&mut read) => return,
    };
    if let Err(error) = match sent {
        Ok(()) => write.shutdown().await,
        failed => failed,
    } {
        tracing::warn!(%error, "images were not saved to their end");
    }
}

async fn say(write: &mut (impl tokio::io::AsyncWrite + Unpin), line: &PullLine) -> std::io::Result<()> {
    let mut json = serde_json::to_vec(line)?;
    json.push(b'\n');
    write.write_all(&json).await?;
    write.flush().await
}

async fn remove_image(node: Arc<NodeContext>, name: String, responder: Responder, kubelet: Addr<Kubelet>) {
    let known = match node.runtime.image(&name).await {
        Ok(Some(_)) => true,
        Ok(None) => false,
        Err(error) => return refuse(responder, 400, error.to_string()),
    };
    if !known {
        return refuse(responder, 404, format!("image \"{name}\" not found on node {}", node.name));
    }
    if normalize(&name).is_ok_and(|full| full == BUILTIN_IMAGE) {
        let text = format!("image \"{name}\" is built in: it is this program itself, and cannot be removed");
        return refuse(responder, 400, text);
    }
    let Ok(stream) = responder.accept().await else { return };
    let removed = node.runtime.remove_image(&name).await.map(|()| vec![name]);
    answer(stream.write, removed, &kubelet).await;
}

async fn answer(
    mut write: impl tokio::io::AsyncWrite + Unpin,
    outcome: Result<Vec<String>, RuntimeError>,
    kubelet: &Addr<Kubelet>,
) {
    let answer = match outcome {
        Ok(names) => {
            // A kubelet that is between two incarnations begins with looking.
            let _ = kubelet.send(ImagesMoved).await;
            ImageAnswer::Done(names)
        }
        Err(error) => ImageAnswer::Refused(error.to_string()),
    };
    let json = serde_json::to_vec(&answer).unwrap_or_default();
    let sent = async {
        write.write_all(&json).await?;
        write.shutdown().await
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "an image's outcome did not reach the master");
    }
}

async fn list_images(node: Arc<NodeContext>, responder: Responder) {
    let images = match node.runtime.list_images().await {
        Ok(images) => images,
        Err(error) => return refuse(responder, 500, error.to_string()),
    };
    let Ok(json) = serde_json::to_vec(&images) else { return };
    let sent: Result<(), NetError> = async {
        let mut stream = responder.accept().await?;
        stream.write.write_all(&json).await.map_err(NetError::Stream)?;
        stream.write.shutdown().await.map_err(NetError::Stream)
    }
    .await;
    if let Err(error) = sent {
        tracing::debug!(%error, "the list of images did not reach the master");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(restarts: i32, state: &str, had_last: bool) -> v1::ContainerStatus {
        let id = match state {
            "waiting" => Some("r://last"),
            "never began" => None,
            _ => Some("r://now"),
        };
        let last = serde_json::json!({"terminated": {"exitCode": 1, "containerID": "r://last"}});
        let last = if had_last { last } else { serde_json::json!({}) };
        let state = match state {
            "waiting" => serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            "in its hook" => serde_json::json!({"waiting": {"reason": "ContainerCreating"}}),
            "running" => serde_json::json!({"running": {}}),
            _ => serde_json::json!({"terminated": {"exitCode": 0}}),
        };
        serde_json::from_value(serde_json::json!({
            "name": "web", "image": "i", "imageID": "", "ready": false, "restartCount": restarts,
            "containerID": id, "state": state, "lastState": last
        }))
        .unwrap()
    }

    #[test]
    fn the_last_seconds_of_a_log_are_those_of_this_machines_clock() {
        let at = |last_s, since_ms| {
            let asked = since(&LogRequest { since_ms, ..LogRequest::default() }, last_s, 100_000);
            asked.map(|time| time.duration_since(UNIX_EPOCH).unwrap().as_millis())
        };
        assert_eq!(at(None, None), None);
        assert_eq!(at(Some(60), None), Some(40_000));
        assert_eq!(at(None, Some(70_000)), Some(70_000));
        assert_eq!(at(Some(u64::MAX), None), Some(0), "longer than there is time");
        assert_eq!(at(Some(60), Some(70_000)), Some(70_000), "both");
    }

    #[test]
    fn a_log_request_finds_the_life_that_kubernetes_would_show() {
        for (restarts, state, had_last, previous, expected) in [
            (0, "running", false, false, Ok((0, true))),
            (2, "running", true, false, Ok((2, true))),
            (2, "running", true, true, Ok((1, false))),
            (0, "running", false, true, Err(400)),
            (2, "waiting", true, false, Ok((2, false))),
            (0, "waiting", true, false, Ok((0, false))),
            (2, "waiting", true, true, Ok((2, false))),
            (0, "waiting", false, false, Err(400)),
            (2, "in its hook", true, true, Ok((1, false))),
            (2, "in its hook", true, false, Ok((1, false))),
            (0, "in its hook", false, false, Err(400)),
            (1, "terminated", true, false, Ok((1, false))),
            (0, "never began", false, false, Err(400)),
        ] {
            let request =
                LogRequest { container: "web".into(), pod: "p".into(), previous, ..LogRequest::default() };
            let statuses = [status(restarts, state, had_last)];
            let life = which_life(&statuses, false, &request).map_err(|(code, _)| code);
            // The id is always that of the life whose file it is.
            let is_last = previous || ["waiting", "in its hook"].contains(&state);
            let id = Some(if is_last { "r://last" } else { "r://now" });
            let expected = expected.map(|(attempt, running)| Life { attempt, running, id });
            assert_eq!(life, expected, "{restarts} {state} {previous}");
        }
    }

    #[test]
    fn why_there_is_no_log_is_said_in_kubernetes_words() {
        let request = LogRequest { container: "web".into(), pod: "p".into(), ..LogRequest::default() };
        let waits = |reason: &str| {
            let mut status = status(0, "waiting", false);
            status.state.as_mut().unwrap().waiting.as_mut().unwrap().reason = Some(reason.into());
            vec![status]
        };
        for (statuses, refused, words) in [
            (Vec::new(), true, "not available"),
            (Vec::new(), false, "waiting to start: ContainerCreating"),
            (waits("PodInitializing"), false, "waiting to start: PodInitializing"),
            (waits("ErrImagePull"), false, "waiting to start: image can't be pulled"),
            (waits("ImagePullBackOff"), false, "waiting to start: trying and failing to pull image"),
        ] {
            let (code, text) = which_life(&statuses, refused, &request).unwrap_err();
            assert_eq!((code, text), (400, format!("container \"web\" in pod \"p\" is {words}")));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_grows_until_its_container_has_ended_and_what_that_wrote_is_copied() {
        let (runs, alive) = watch::channel(true);
        let (grows_on, mut growing) = watch::channel(true);
        let second = Duration::from_secs(1);
        let begun = tokio::time::Instant::now();
        let written = async { tokio::time::sleep(second * 3).await };
        let told = async {
            tokio::time::sleep(second).await;
            assert!(*growing.borrow());
            runs.send_replace(false);
            while *growing.borrow_and_update() {
                growing.changed().await.unwrap();
            }
            begun.elapsed()
        };
        tokio::select! {
            () = stops_growing(alive, written, true, grows_on) => {}
            after = told => assert_eq!(after, second * 4),
        }
    }
}
