//! The room's metrics, declared in one place, and what is measured only when `/metrics` is read.
//!
//! Owns: [`METRICS`], which `docs/api.md` repeats (a test compares them). What happens is recorded as it happens by
//! whatever recorder the process has; what there *is* (objects, nodes, links, open streams, memory) is written at each
//! reading. Labels come from closed sets: of links there are sums.

use std::{
    fmt::Write as _,
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, histogram};

use crate::{
    logic::taints::is_out_of_reach,
    messages::{LinkState, NodeState},
    model::{Kind, KindFacet, Object, Snapshot},
};

/// A metric as it is declared.
#[derive(Debug)]
pub struct Metric {
    /// Its name, unit last.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// A sentence.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

const REQUESTS: Metric = metric(
    "troupe_api_requests_total",
    "counter",
    &["verb", "resource", "code"],
    "Requests answered; resource is none for paths without objects",
);
const SECONDS: Metric = metric(
    "troupe_api_request_duration_seconds",
    "histogram",
    &["verb"],
    "Time from a request's head to its answer's head",
);
const PANICS: Metric =
    metric("troupe_api_panics_total", "counter", &[], "Handlers that panicked; each is a defect");
const IN_FLIGHT: Metric =
    metric("troupe_api_requests_in_flight", "gauge", &[], "Requests being served that are no streams");
const STREAMS: Metric = metric("troupe_api_streams", "gauge", &[], "Watches, logs and uploads that are open");
const OBJECTS: Metric = metric("troupe_objects", "gauge", &["resource"], "Objects in the store");
const DOCUMENTS: Metric =
    metric("troupe_objects_bytes", "gauge", &["resource"], "Bytes of these objects' documents");
const REVISION: Metric = metric("troupe_store_revision", "gauge", &[], "The newest published revision");
const NODES: Metric = metric(
    "troupe_nodes",
    "gauge",
    &["ready"],
    "Nodes by their Ready condition; unknown of those that are silent or said goodbye",
);
const WAITING: Metric = metric(
    "troupe_pods_without_node",
    "gauge",
    &["gated"],
    "Pods that wait for a node; gated ones wait for somebody to take their scheduling gates away",
);
const LINKS: Metric = metric("troupe_links", "gauge", &[], "Links of nodes that are up");
const ROUND_TRIPS: Metric = metric(
    "troupe_links_round_trip_seconds",
    "gauge",
    &["of"],
    "Estimated round trips of the links that are up: their sum and the longest",
);
const LINK_PACKETS: Metric = metric(
    "troupe_links_packets",
    "gauge",
    &["packets"],
    "Packets sent on the links that are up, each since it began, and those of them taken for lost",
);
const CPU: Metric =
    metric("process_cpu_seconds_total", "counter", &[], "Time this process ran on a processor");
const MEMORY: Metric =
    metric("process_resident_memory_bytes", "gauge", &[], "Memory of this process that is resident");
const FILES: Metric = metric("process_open_fds", "gauge", &[], "File descriptors that are open");
const THREADS: Metric = metric("process_threads", "gauge", &[], "Threads of this process");
const STARTED: Metric =
    metric("process_start_time_seconds", "gauge", &[], "When the API started, since 1970-01-01");

/// Every metric of the room.
pub const METRICS: [&Metric; 18] = [
    &REQUESTS,
    &SECONDS,
    &PANICS,
    &IN_FLIGHT,
    &STREAMS,
    &OBJECTS,
    &DOCUMENTS,
    &REVISION,
    &NODES,
    &WAITING,
    &LINKS,
    &ROUND_TRIPS,
    &LINK_PACKETS,
    &CPU,
    &MEMORY,
    &FILES,
    &THREADS,
    &STARTED,
];

/// Describes them to the recorder, once it is installed.
pub fn describe() {
    for metric in METRICS {
        match metric.kind {
            "counter" => describe_counter!(metric.name, metric.help),
            "histogram" => describe_histogram!(metric.name, Unit::Seconds, metric.help),
            _ => describe_gauge!(metric.name, metric.help),
        }
    }
}

/// Records an answered request. Verbs and resources come from closed sets: others are counted as one.
pub fn answered(verb: &'static str, resource: &'static str, code: u16, took: Duration) {
    counter!(REQUESTS.name, "verb" => verb, "resource" => resource, "code" => code.to_string()).increment(1);
    histogram!(SECONDS.name, "verb" => verb).record(took.as_secs_f64());
}

/// Records a panic.
pub fn panicked() {
    counter!(PANICS.name).increment(1);
}

/// What there is at the moment of a reading.
pub struct Now<'a> {
    /// Every object.
    pub snapshot: &'a Snapshot,
    /// Requests in flight.
    pub requests: usize,
    /// Open streams.
    pub streams: usize,
    /// The nodes' links, when the registry told.
    pub nodes: Option<&'a [NodeState]>,
}

/// This process, for its own figures.
pub struct Process {
    started: f64,
}

impl Process {
    /// A process that starts now.
    pub fn starts_now() -> Process {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Process { started: since.as_secs_f64() }
    }
}

/// Writes what there is, in Prometheus' text format.
pub fn scrape(now: &Now<'_>, process: &Process, out: &mut String) {
    one(out, &IN_FLIGHT, now.requests);
    one(out, &STREAMS, now.streams);
    one(out, &REVISION, now.snapshot.revision);
    let sizes: Vec<(Kind, usize, usize)> = Kind::ALL
        .into_iter()
        .map(|kind| {
            let sizes = now.snapshot.list(kind, None).map(|o| o.json.len());
            let (count, bytes) = sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size));
            (kind, count, bytes)
        })
        .collect();
    many(out, &OBJECTS, sizes.iter().map(|(kind, count, _)| (kind.plural(), *count)));
    many(out, &DOCUMENTS, sizes.iter().map(|(kind, _, bytes)| (kind.plural(), *bytes)));
    let nodes =
        |ready: &str| now.snapshot.list(Kind::Node, None).filter(|node| readiness(node) == ready).count();
    many(out, &NODES, ["true", "false", "unknown"].into_iter().map(|ready| (ready, nodes(ready))));
    let waiting = |gated| now.snapshot.list(Kind::Pod, None).filter(|pod| waits(pod) == Some(gated)).count();
    many(out, &WAITING, [("false", waiting(false)), ("true", waiting(true))].into_iter());
    if let Some(nodes) = now.nodes {
        links(out, nodes);
    }
    one(out, &STARTED, format_args!("{:.3}", process.started));
    if let Some(seconds) = cpu_seconds() {
        one(out, &CPU, seconds);
    }
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        let value = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        if let Some(kibibytes) = value("VmRSS:") {
            one(out, &MEMORY, kibibytes * 1024);
        }
        if let Some(threads) = value("Threads:") {
            one(out, &THREADS, threads);
        }
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        one(out, &FILES, files.count());
    }
}

/// The value of a node's `Ready` condition, for the label.
fn readiness(node: &Object) -> &'static str {
    match &node.facet.of {
        _ if is_out_of_reach(node) => "unknown",
        KindFacet::Node(facet) if facet.ready => "true",
        _ => "false",
    }
}

/// Whether a pod waits for a node, and is gated.
pub(super) fn waits(pod: &Object) -> Option<bool> {
    match &pod.facet.of {
        KindFacet::Pod(facet) => (facet.node.is_none() && !facet.phase.is_final()).then_some(facet.gated),
        _ => None,
    }
}

fn links(out: &mut String, nodes: &[NodeState]) {
    let links: Vec<&LinkState> = nodes.iter().filter_map(|node| node.link.as_ref()).collect();
    one(out, &LINKS, links.len());
    let round_trips = || links.iter().map(|link| link.rtt);
    let longest = round_trips().max().unwrap_or_default();
    let seconds = [("sum", round_trips().sum::<Duration>()), ("longest", longest)];
    many(out, &ROUND_TRIPS, seconds.into_iter().map(|(of, time)| (of, time.as_secs_f64())));
    let sum = |of: fn(&LinkState) -> u64| links.iter().map(|link| of(link)).sum::<u64>();
    let packets = [("sent", sum(|link| link.sent_packets)), ("lost", sum(|link| link.lost_packets))];
    many(out, &LINK_PACKETS, packets.into_iter());
}

/// User and system time, which Linux tells in hundredths of a second whatever the kernel's own tick.
fn cpu_seconds() -> Option<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The process's name may hold spaces; what follows its closing parenthesis does not.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u32>().ok();
    Some((f64::from(ticks(11)?) + f64::from(ticks(12)?)) / TICKS_PER_SECOND)
}

fn head(out: &mut String, metric: &Metric) {
    let Metric { name, kind, help, .. } = metric;
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn one(out: &mut String, metric: &Metric, value: impl std::fmt::Display) {
    head(out, metric);
    let _ = writeln!(out, "{} {value}", metric.name);
}

fn many<V: std::fmt::Display>(
    out: &mut String,
    metric: &Metric,
    values: impl Iterator<Item = (&'static str, V)>,
) {
    head(out, metric);
    for (label, value) in values {
        let _ = writeln!(out, "{}{{{}=\"{label}\"}} {value}", metric.name, metric.labels.join(","));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::model::{Revision, seal_json};

    fn object(kind: Kind, value: &Value) -> Arc<Object> {
        Arc::new(seal_json(kind, value.to_string().as_bytes()).unwrap().at(Revision(1)))
    }

    #[test]
    fn nodes_are_told_by_their_readiness_and_pods_by_what_they_wait_for() {
        let node = |ready: &str, taint: &str| {
            object(
                Kind::Node,
                &json!({"metadata": {"name": "n", "uid": "u"},
                    "spec": {"taints": [{"key": taint, "effect": "NoSchedule"}]},
                    "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
            )
        };
        assert_eq!(readiness(&node("True", "mine")), "true");
        assert_eq!(readiness(&node("False", "node.kubernetes.io/not-ready")), "false");
        assert_eq!(readiness(&node("Unknown", "node.kubernetes.io/unreachable")), "unknown");
        let pod = |spec: Value, phase: &str| {
            let mut pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"},
                "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": phase}});
            pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            waits(&object(Kind::Pod, &pod))
        };
        assert_eq!(pod(json!({}), "Pending"), Some(false));
        assert_eq!(pod(json!({"schedulingGates": [{"name": "g"}]}), "Pending"), Some(true));
        assert_eq!(pod(json!({"nodeName": "n"}), "Pending"), None);
        assert_eq!(pod(json!({}), "Failed"), None);
    }

    #[test]
    fn of_links_there_are_sums() {
        let link = |rtt_ms, lost_packets| LinkState {
            age: Duration::from_secs(9),
            peer: None,
            rtt: Duration::from_millis(rtt_ms),
            lost_packets,
            sent_packets: 100,
            streams: 0,
            queued_messages: 0,
            queued_bytes: 0,
        };
        let node = |link| NodeState {
            node: "n".into(),
            link,
            silent: None,
            goodbye: false,
            rivals: Vec::new(),
            first: None,
        };
        let mut text = String::new();
        links(&mut text, &[node(Some(link(250, 3))), node(None), node(Some(link(500, 1)))]);
        for line in [
            "troupe_links 2",
            "troupe_links_round_trip_seconds{of=\"sum\"} 0.75",
            "troupe_links_round_trip_seconds{of=\"longest\"} 0.5",
            "troupe_links_packets{packets=\"sent\"} 200",
            "troupe_links_packets{packets=\"lost\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
    }

    #[test]
    fn the_documentation_lists_every_metric_as_it_is_declared() {
        let written = include_str!("../../docs/api.md");
        for metric in METRICS {
            let labels = metric.labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
            let row = format!("| `{}` | {} | {labels} | {} |", metric.name, metric.kind, metric.help);
            assert!(written.contains(&row), "docs/api.md lacks this row:\n{row}");
        }
    }

    #[test]
    fn a_reading_tells_what_there_is() {
        let mut text = String::new();
        let now = Now { snapshot: &Snapshot::default(), requests: 1, streams: 2, nodes: None };
        scrape(&now, &Process::starts_now(), &mut text);
        for line in
            ["troupe_api_requests_in_flight 1", "troupe_api_streams 2", "troupe_objects{resource=\"pods\"} 0"]
        {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let value = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(&format!("{name} "))).unwrap();
            line.parse::<f64>().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 1e6 && value("process_open_fds") > 2.0);
        assert!(value("process_cpu_seconds_total") >= 0.0 && value("process_threads") >= 1.0);
    }
}
