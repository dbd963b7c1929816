//! `GET pods/NAME/log`: a container's log, from the node that runs it.
//!
//! Owns: the request's options, the choice of the container and Kubernetes' refusals; the bytes come from the node and
//! are passed on as the client takes them.

use std::time::Duration;

use actix_web::HttpResponse;
use bytes::Bytes;
use futures_util::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::io::AsyncRead;
use tokio_util::{io::ReaderStream, sync::CancellationToken};

use super::{
    clock,
    door::{Shared, StreamPermit},
    error::ApiError,
    write::{Call, document},
};
use crate::{
    logic::taints::is_out_of_reach,
    messages::{ByteStream, OpenError, OpenStream, wire},
    model::{Key, Kind, KindFacet, NodeName, Object},
};

/// How long a node may take to open a stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes read from a node at once.
const READ_BYTES: usize = 16 << 10;
/// What a node of a version that does not know a question answers.
pub(super) const UNKNOWN_QUESTION: u16 = 501;
/// The annotation that names the container `kubectl logs` means.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Opens a byte stream to a node.
///
/// # Errors
/// What the node answers, 502-like texts as 503 when it is not connected.
pub async fn open(call: &Call, node: &NodeName, open: wire::Open) -> Result<ByteStream, ApiError> {
    open_on(&call.shared, node, open).await
}

/// The same, later than the call.
///
/// # Errors
/// As [`open`].
pub async fn open_on(shared: &Shared, node: &NodeName, open: wire::Open) -> Result<ByteStream, ApiError> {
    let request = OpenStream { node: node.clone(), open };
    shared.state.streams.ask(request, OPEN_TIMEOUT).await?.map_err(|error| {
        let snapshot = shared.state.view.snapshot();
        not_opened(error, snapshot.find(&Key::new(Kind::Node, "", node.0.clone())).map(|node| &**node))
    })
}

/// What a client is told. Whoever is told to wait asks again for ten seconds: that is of use only while the node is
/// believed to be there and linked again in a moment.
fn not_opened(error: OpenError, node: Option<&Object>) -> ApiError {
    match error {
        OpenError::Refused(code, text) => ApiError::Node(code, text),
        OpenError::NotConnected(_) if node.is_none_or(is_out_of_reach) => {
            ApiError::Node(503, error.to_string())
        }
        OpenError::NotConnected(_) | OpenError::Failed(..) => ApiError::Unavailable(error.to_string()),
    }
}

/// GET of a log.
///
/// # Errors
/// 404 for the pod, 400 for containers that cannot be chosen or have no log, and the node's.
pub async fn log(call: &Call, permit: StreamPermit) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let snapshot = call.shared.state.view.snapshot();
    let object = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
    let KindFacet::Pod(pod) = &object.facet.of else { return Err(ApiError::UnknownPath) };
    let (request, last_s) = request(call, object)?;
    let Some(node) = &pod.node else {
        // As Kubernetes: a pod that no node has yet has an empty log.
        return Ok(HttpResponse::Ok().content_type("text/plain").body(""));
    };
    let stream = open_log(request, last_s, clock::now(), |what| open(call, node, what)).await?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain")
        .insert_header(("Cache-Control", "no-cache, private"))
        .streaming(pass_on(call, stream, permit)))
}

/// Asks for a log, or its last so many seconds: by the node's clock, which stamped the lines; by ours if the node is of a
/// version that does not know how.
async fn open_log<T, F: Future<Output = Result<T, ApiError>>>(
    mut request: wire::LogRequest,
    last_s: Option<i64>,
    now: Timestamp,
    open: impl Fn(wire::Open) -> F,
) -> Result<T, ApiError> {
    if let Some(seconds) = last_s {
        match open(wire::Open::LogsOfLast(request.clone(), seconds.unsigned_abs())).await {
            Err(ApiError::Node(UNKNOWN_QUESTION, _)) => {}
            answer => return answer,
        }
        request.since_ms = Some(now.as_millisecond().saturating_sub(seconds.saturating_mul(1000)));
    }
    open(wire::Open::Logs(request)).await
}

/// A node's bytes, until it ends, the client goes, or the server stops.
pub fn pass_on(
    call: &Call,
    stream: ByteStream,
    permit: StreamPermit,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + use<> {
    let ByteStream { read, write } = stream;
    until_stopped(read, (permit, write), call.shared.stop.clone())
}

/// Bytes to their end. When the server stops before that, they break off: what ends in order is taken for the whole, a
/// followed log for that of a container that has ended.
fn until_stopped<R: AsyncRead + Send + Unpin, H>(
    read: R,
    held: H,
    stop: CancellationToken,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> {
    let bytes = ReaderStream::with_capacity(read, READ_BYTES);
    futures_util::stream::unfold(Some((bytes, held, stop)), |state| async move {
        let (mut bytes, held, stop) = state?;
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                Some((Err(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the server stops")), None))
            }
            next = bytes.next() => next.map(|item| (item, Some((bytes, held, stop)))),
        }
    })
}

/// Which part of the log is wanted, and of how many last seconds.
fn request(call: &Call, object: &Object) -> Result<(wire::LogRequest, Option<i64>), ApiError> {
    let query = &call.query;
    let since = query.number::<i64>("sinceSeconds")?;
    let since_time = query.other("sinceTime").filter(|t| !t.is_empty());
    let tail_lines = query.number::<i64>("tailLines")?;
    let limit_bytes = query.number::<i64>("limitBytes")?;
    let invalid = |field: &str, text: &str| ApiError::Invalid {
        kind: "PodLogOptions".into(),
        name: object.key.name.to_string(),
        causes: vec![crate::model::admit::Cause {
            field: field.into(),
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {text}"),
        }],
    };
    if since.is_some() && since_time.is_some() {
        return Err(ApiError::BadRequest(
            "at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
        ));
    }
    if let Some(n) = since.filter(|n| *n < 1) {
        return Err(invalid("sinceSeconds", &format!("{n}: must be greater than 0")));
    }
    if let Some(n) = limit_bytes.filter(|n| *n < 1) {
        return Err(invalid("limitBytes", &format!("{n}: must be greater than 0")));
    }
    let tail_lines = tail_lines
        .map(|n| {
            u64::try_from(n)
                .map_err(|_| invalid("tailLines", &format!("{n}: must be greater than or equal to 0")))
        })
        .transpose()?;
    let since_time = since_time
        .map(|t| {
            t.parse::<Timestamp>()
                .map_err(|_| invalid("sinceTime", &format!("\"{t}\": must be an RFC 3339 time")))
        })
        .transpose()?;
    let request = wire::LogRequest {
        namespace: object.key.namespace.to_string(),
        pod: object.key.name.to_string(),
        uid: object.uid().to_string(),
        container: container(&document(object)?, query.other("container").unwrap_or(""))?,
        follow: query.switch("follow"),
        previous: query.switch("previous"),
        timestamps: query.switch("timestamps"),
        tail_lines,
        since_ms: since_time.map(Timestamp::as_millisecond),
        limit_bytes: limit_bytes.and_then(|n| u64::try_from(n).ok()),
    };
    Ok((request, since))
}

/// The container that is meant, in a pod's document.
///
/// # Errors
/// 400 when there are several and none is named, or the named one is not there.
pub fn container(pod: &Value, asked: &str) -> Result<String, ApiError> {
    let names = |field: &str| -> Vec<&str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or("");
    if !asked.is_empty() {
        let ephemeral = names("ephemeralContainers");
        let known = main.iter().chain(&init).chain(&ephemeral).any(|n| *n == asked);
        return known.then(|| asked.to_owned()).ok_or_else(|| {
            ApiError::BadRequest(format!("container {asked} is not valid for pod {pod_name}"))
        });
    }
    if let Some(default) = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str()
        && main.contains(&default)
    {
        return Ok(default.to_owned());
    }
    match main.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(ApiError::BadRequest(format!("pod {pod_name} has no containers"))),
        many => {
            let mut text = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(ApiError::BadRequest(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use serde_json::json;

    use super::*;
    use crate::model::{Revision, seal_json};

    #[tokio::test]
    async fn bytes_that_end_because_the_server_stops_break_off_and_others_end_in_order() {
        use tokio::io::AsyncWriteExt as _;
        for stops in [true, false] {
            let (mut node, read) = tokio::io::duplex(64);
            let stop = CancellationToken::new();
            let mut bytes = Box::pin(until_stopped(read, (), stop.clone()));
            node.write_all(b"one").await.unwrap();
            assert_eq!(bytes.next().await.unwrap().unwrap(), "one");
            if stops {
                stop.cancel();
                assert!(bytes.next().await.unwrap().is_err());
            } else {
                drop(node);
            }
            assert!(bytes.next().await.is_none());
        }
    }

    #[test]
    fn an_older_node_is_asked_for_the_last_seconds_by_our_clock() {
        let now = Timestamp::from_second(1000).unwrap();
        let ask = |last_s, answers: &[Result<(), ApiError>]| {
            let asked = std::cell::RefCell::new(Vec::new());
            let open = |what| {
                let mut asked = asked.borrow_mut();
                asked.push(what);
                let answer = match &answers[asked.len() - 1] {
                    Ok(()) => Ok(()),
                    Err(error) => Err(ApiError::Node(error.code(), String::new())),
                };
                std::future::ready(answer)
            };
            let request = wire::LogRequest { pod: "p".into(), ..wire::LogRequest::default() };
            let answer = open_log(request, last_s, now, open).now_or_never().unwrap();
            (answer.map_err(|error| error.code()), asked.into_inner())
        };
        let request =
            |since_ms| wire::LogRequest { pod: "p".into(), since_ms, ..wire::LogRequest::default() };
        let (all, of_last) = (wire::Open::Logs(request(None)), wire::Open::LogsOfLast(request(None), 60));
        let by_our_clock = wire::Open::Logs(request(Some(940_000)));
        let refused = |code| Err(ApiError::Node(code, String::new()));
        assert_eq!(ask(None, &[Ok(())]), (Ok(()), vec![all]));
        assert_eq!(ask(Some(60), &[Ok(())]), (Ok(()), vec![of_last.clone()]));
        assert_eq!(ask(Some(60), &[refused(404)]), (Err(404), vec![of_last.clone()]));
        let older = ask(Some(60), &[refused(501), Ok(())]);
        assert_eq!(older, (Ok(()), vec![of_last, by_our_clock]));
        let (_, asked) = ask(Some(i64::MAX), &[refused(501), refused(501)]);
        assert!(asked.len() == 2, "longer than there is time");
    }

    #[test]
    fn a_client_is_told_to_wait_for_a_node_that_is_believed_to_be_there_alone() {
        let node = |taints: Value| {
            let document = json!({"metadata": {"name": "n", "uid": "1"}, "spec": {"taints": taints}});
            seal_json(Kind::Node, document.to_string().as_bytes()).unwrap().at(Revision(1))
        };
        let taint = |key: &str, effect: &str| json!([{"key": key, "effect": effect}]);
        let unreachable = "node.kubernetes.io/unreachable";
        for (node, waits) in [
            (None, false),
            (Some(node(taint(unreachable, "NoSchedule"))), false),
            (Some(node(taint(unreachable, "NoExecute"))), false),
            (Some(node(taint("node.kubernetes.io/not-ready", "NoExecute"))), true),
            (Some(node(json!([]))), true),
        ] {
            let error = not_opened(OpenError::NotConnected("n".into()), node.as_ref());
            assert!(error.code() == 503 && error.to_string().contains("node n is not connected"), "{error}");
            assert_eq!(error.response().headers().contains_key("retry-after"), waits, "{error}");
        }
        let failed = not_opened(OpenError::Failed("n".into(), "the link is closed".into()), None);
        assert!(failed.response().headers().contains_key("retry-after"), "it was linked just now");
    }

    #[test]
    fn a_container_is_chosen_or_the_choice_is_offered() {
        let pod = |names: &[&str]| {
            let containers: Vec<Value> = names.iter().map(|n| json!({ "name": n })).collect();
            json!({ "metadata": { "name": "web" }, "spec": { "containers": containers } })
        };
        assert_eq!(container(&pod(&["a"]), "").unwrap(), "a");
        assert_eq!(container(&pod(&["a", "b"]), "b").unwrap(), "b");
        assert_eq!(
            container(&pod(&["a", "b"]), "").unwrap_err().to_string(),
            "a container name must be specified for pod web, choose one of: [a b]"
        );
        assert_eq!(
            container(&pod(&["a"]), "x").unwrap_err().to_string(),
            "container x is not valid for pod web"
        );
        let mut annotated = pod(&["a", "b"]);
        annotated["metadata"]["annotations"] = json!({ DEFAULT_CONTAINER: "b" });
        assert_eq!(container(&annotated, "").unwrap(), "b");
        assert_eq!(container(&json!({}), "").unwrap_err().code(), 400);
    }
}
