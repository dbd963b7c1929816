//! What a node and its pods use as the kubelet's `metrics/resource` and `metrics/cadvisor` tell it to Prometheus.
//!
//! Owns: names, labels and the text format (0.0.4). Pure: what was read is handed in. Invariants: what is not known has no
//! line; a metric's lines stand together; no line has a time, unlike a kubelet's: it was read when it was asked for, and Prometheus
//! would drop all of a node whose clock is wrong. Limits: of cAdvisor's many metrics those of processors,
//! memory, file systems' io and network; devices are summed up (`device=""`, which panels that name devices leave out), `id`
//! is a path of the pod's uid and the container's id, not a cgroup's.

use std::fmt::{Display, Write as _};

use super::summary::{Amounts, OfContainer, OfNode, OfPod, POD_DEVICE};

/// Its media type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const NANO: f64 = 1e9;

/// Labels, in the order in which they are told.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// A text that grows.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// One metric with all of its lines; without any it is not told of.
    fn metric<'a, N: Display>(
        &mut self,
        (name, kind, help): (&str, &str, &str),
        lines: impl IntoIterator<Item = (Labels<'a>, Option<N>)>,
    ) {
        let mut known = lines.into_iter().filter_map(|(labels, value)| Some((labels, value?))).peekable();
        if known.peek().is_none() {
            return;
        }
        // To write into a string never fails.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in known {
            let labels: Vec<String> =
                labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.text, "{name}{labels} {value}");
        }
    }

    /// The line that says whether anything went wrong: who gets this page got all of it.
    fn no_error(&mut self, name: &str, stability: &str) {
        let help = "1 if there was an error while getting container metrics, 0 otherwise";
        let _ = writeln!(self.text, "# HELP {name} {stability}{help}\n# TYPE {name} gauge\n{name} 0");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Nanoseconds and milliseconds are told in seconds.
#[allow(clippy::cast_precision_loss)] // As Prometheus, which keeps no other numbers.
fn seconds(of: Option<u64>, in_one: f64) -> Option<f64> {
    of.map(|amount| amount as f64 / in_one)
}

fn since(ms: i64) -> Option<f64> {
    seconds(u64::try_from(ms).ok().filter(|ms| *ms > 0), 1e3)
}

/// `metrics/resource`: processors and memory, as Kubernetes promises to keep them.
pub fn resource(node: &OfNode, pods: &[OfPod]) -> String {
    let mut page = Page::default();
    let containers: Vec<(Labels<'_>, &OfContainer)> = pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
        .map(|(pod, container)| {
            let labels =
                vec![("container", &*container.name), ("namespace", &*pod.namespace), ("pod", &*pod.name)];
            (labels, container)
        })
        .collect();
    let whole: Vec<(Labels<'_>, &OfPod)> =
        pods.iter().map(|pod| (vec![("namespace", &*pod.namespace), ("pod", &*pod.name)], pod)).collect();
    let of_containers = |of: fn(&OfContainer) -> Option<f64>| {
        containers.iter().map(move |(labels, container)| (labels.clone(), of(container)))
    };
    page.metric(
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        ),
        of_containers(|container| seconds(container.amounts.cpu_ns, NANO)),
    );
    page.metric(
        (
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
        ),
        containers.iter().map(|(labels, of)| (labels.clone(), of.amounts.working_set_bytes)),
    );
    page.metric(
        (
            "container_start_time_seconds",
            "gauge",
            "[STABLE] Start time of the container since unix epoch in seconds",
        ),
        of_containers(|container| since(container.started_ms)),
    );
    page.metric(
        (
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        ),
        [(vec![], seconds(node.amounts.cpu_ns, NANO))],
    );
    page.metric(
        ("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes"),
        [(vec![], node.amounts.working_set_bytes)],
    );
    page.metric(
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        ),
        whole.iter().map(|(labels, pod)| (labels.clone(), seconds(pod.amounts.cpu_ns, NANO))),
    );
    page.metric(
        ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes"),
        whole.iter().map(|(labels, pod)| (labels.clone(), pod.amounts.working_set_bytes)),
    );
    page.no_error("resource_scrape_error", "[STABLE] ");
    page.text
}

/// Who uses something: the machine, a pod or a container, with cAdvisor's labels.
struct Subject<'a> {
    id: String,
    container: &'a str,
    image: &'a str,
    /// The container's id.
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
    amounts: &'a Amounts,
    started_ms: i64,
    writable_bytes: Option<u64>,
    pids: Option<u64>,
    /// Device, received and sent.
    network: Option<(&'a str, u64, u64)>,
}

impl Subject<'_> {
    fn labels(&self, more: Option<(&'static str, &'static str)>) -> Labels<'_> {
        let all = [
            ("container", self.container),
            ("id", &*self.id),
            ("image", self.image),
            ("name", self.name),
            ("namespace", self.namespace),
            ("pod", self.pod),
        ];
        more.into_iter().chain(all).collect()
    }
}

fn subjects<'a>(node: &'a OfNode, pods: &'a [OfPod]) -> Vec<Subject<'a>> {
    let machine = Subject {
        id: "/".to_owned(),
        container: "",
        image: "",
        name: "",
        namespace: "",
        pod: "",
        amounts: &node.amounts,
        started_ms: node.started_ms,
        writable_bytes: None,
        pids: Some(node.pids.1),
        network: node.network.as_ref().map(|(name, received, sent)| (name.as_str(), *received, *sent)),
    };
    let mut all = vec![machine];
    for pod in pods {
        all.push(Subject {
            id: format!("/pod{}", pod.uid),
            container: "",
            image: "",
            name: "",
            namespace: &pod.namespace,
            pod: &pod.name,
            amounts: &pod.amounts,
            started_ms: pod.started_ms,
            writable_bytes: None,
            pids: pod.pids,
            network: pod.network.map(|(received, sent)| (POD_DEVICE, received, sent)),
        });
        all.extend(pod.containers.iter().map(|container| Subject {
            id: format!("/pod{}/{}", pod.uid, container.id),
            container: &container.name,
            image: &container.image,
            name: &container.id,
            namespace: &pod.namespace,
            pod: &pod.name,
            amounts: &container.amounts,
            started_ms: container.started_ms,
            writable_bytes: container.writable_bytes,
            pids: container.pids,
            network: None,
        }));
    }
    all
}

/// `metrics/cadvisor`: what containers, pods and the machine use, under cAdvisor's names.
pub fn cadvisor(node: &OfNode, pods: &[OfPod]) -> String {
    let mut page = Page::default();
    let subjects = subjects(node, pods);
    let all = |more: Option<(&'static str, &'static str)>, of: fn(&Subject<'_>) -> Option<u64>| {
        subjects.iter().map(move |subject| (subject.labels(more), of(subject)))
    };
    let (total, any_device) = (Some(("cpu", "total")), Some(("device", "")));
    page.metric(
        ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds."),
        subjects.iter().map(|subject| (subject.labels(total), seconds(subject.amounts.cpu_ns, NANO))),
    );
    for (name, help, of) in IO {
        page.metric((name, "counter", help), all(any_device, of));
    }
    page.metric(
        (
            "container_fs_usage_bytes",
            "gauge",
            "Number of bytes that are consumed by the container on this filesystem.",
        ),
        all(any_device, |of| of.writable_bytes),
    );
    for (name, help, of) in MEMORY {
        page.metric((name, "gauge", help), all(None, of));
    }
    for (name, help, is_received) in [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", true),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", false),
    ] {
        let lines = subjects.iter().filter_map(|subject| {
            let (device, received, sent) = subject.network?;
            let mut labels = subject.labels(None);
            // Among the others by the alphabet, as cAdvisor has it.
            labels.insert(3, ("interface", device));
            Some((labels, Some(if is_received { received } else { sent })))
        });
        page.metric((name, "counter", help), lines);
    }
    page.metric(
        ("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds."),
        subjects.iter().map(|subject| (subject.labels(None), since(subject.started_ms))),
    );
    page.metric(
        ("container_threads", "gauge", "Number of threads running inside the container"),
        all(None, |of| of.pids),
    );
    let machine = |amount: Option<u64>| [(vec![], amount)];
    page.metric(
        ("machine_cpu_cores", "gauge", "Number of logical CPU cores."),
        machine(Some(node.cpus).filter(|cpus| *cpus > 0)),
    );
    page.metric(
        ("machine_memory_bytes", "gauge", "Amount of memory installed on the machine."),
        machine(node.amounts.limit_bytes),
    );
    page.no_error("container_scrape_error", "");
    page.text
}

/// A metric of all subjects: its name, help, and where its value is.
type OfAll = (&'static str, &'static str, fn(&Subject<'_>) -> Option<u64>);

const IO: [OfAll; 4] = [
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read", |of| {
        of.amounts.io_bytes.map(|(read, _)| read)
    }),
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written", |of| {
        of.amounts.io_bytes.map(|(_, written)| written)
    }),
    ("container_fs_reads_total", "Cumulative count of reads completed", |of| {
        of.amounts.io_operations.map(|(reads, _)| reads)
    }),
    ("container_fs_writes_total", "Cumulative count of writes completed", |of| {
        of.amounts.io_operations.map(|(_, writes)| writes)
    }),
];

const MEMORY: [OfAll; 4] = [
    (
        "container_memory_usage_bytes",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |of| of.amounts.memory_bytes,
    ),
    ("container_memory_working_set_bytes", "Current working set in bytes.", |of| {
        of.amounts.working_set_bytes
    }),
    ("container_memory_rss", "Size of RSS in bytes.", |of| of.amounts.rss_bytes),
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", |of| {
        of.amounts.limit_bytes.filter(|_| !of.pod.is_empty())
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Vec<OfPod> {
        let container = OfContainer {
            name: "c".into(),
            id: "abc".into(),
            image: "a\"b".into(),
            started_ms: 1_500,
            amounts: Amounts {
                cpu_ns: Some(2_500_000_000),
                working_set_bytes: Some(30),
                io_bytes: Some((11, 12)),
                io_operations: Some((1, 2)),
                ..Amounts::default()
            },
            writable_bytes: Some(7),
            ..OfContainer::default()
        };
        let amounts = Amounts { cpu_ns: Some(3_000_000_000), ..Amounts::default() };
        let pod = OfPod {
            namespace: "n".into(),
            name: "p".into(),
            uid: "u".into(),
            amounts,
            network: Some((70, 80)),
            containers: vec![container, OfContainer { name: "silent".into(), ..OfContainer::default() }],
            ..OfPod::default()
        };
        vec![pod]
    }

    #[test]
    fn resources_are_told_under_the_names_that_kubernetes_keeps() {
        let text = resource(&OfNode::default(), &pods());
        let expected = [
            "# HELP container_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the container in core-seconds",
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"n\",pod=\"p\"} 2.5",
            "# HELP container_memory_working_set_bytes [STABLE] Current working set of the container in bytes",
            "# TYPE container_memory_working_set_bytes gauge",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"n\",pod=\"p\"} 30",
            "# HELP container_start_time_seconds [STABLE] Start time of the container since unix epoch in seconds",
            "# TYPE container_start_time_seconds gauge",
            "container_start_time_seconds{container=\"c\",namespace=\"n\",pod=\"p\"} 1.5",
            "# HELP pod_cpu_usage_seconds_total [STABLE] Cumulative cpu time consumed by the pod in core-seconds",
            "# TYPE pod_cpu_usage_seconds_total counter",
            "pod_cpu_usage_seconds_total{namespace=\"n\",pod=\"p\"} 3",
            "# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
            "# TYPE resource_scrape_error gauge",
            "resource_scrape_error 0",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected, "what is not known has no line");
    }

    #[test]
    fn a_container_has_cadvisors_labels_and_the_network_is_its_pods() {
        let node = OfNode { network: Some(("eth1".into(), 1, 2)), cpus: 4, ..OfNode::default() };
        let text = cadvisor(&node, &pods());
        let own = "container=\"c\",id=\"/podu/abc\",image=\"a\\\"b\",name=\"abc\",namespace=\"n\",pod=\"p\"";
        let of_pod = "container=\"\",id=\"/podu\",image=\"\",";
        for line in [
            format!("container_cpu_usage_seconds_total{{cpu=\"total\",{own}}} 2.5"),
            format!("container_fs_reads_bytes_total{{device=\"\",{own}}} 11"),
            format!("container_fs_writes_bytes_total{{device=\"\",{own}}} 12"),
            format!("container_fs_reads_total{{device=\"\",{own}}} 1"),
            format!("container_fs_writes_total{{device=\"\",{own}}} 2"),
            format!("container_fs_usage_bytes{{device=\"\",{own}}} 7"),
            format!("container_memory_working_set_bytes{{{own}}} 30"),
            format!(
                "container_network_receive_bytes_total{{{of_pod}interface=\"eth0\",name=\"\",namespace=\"n\",pod=\"p\"}} 70"
            ),
            format!(
                "container_network_transmit_bytes_total{{{of_pod}interface=\"eth0\",name=\"\",namespace=\"n\",pod=\"p\"}} 80"
            ),
            "machine_cpu_cores 4".to_owned(),
            "container_scrape_error 0".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("silent") && !text.contains("container_memory_rss"), "{text}");
        assert_eq!(text.matches("# TYPE container_network_receive_bytes_total counter").count(), 1);
    }
}
