//! `top`: what nodes and pods use of processors and memory.
//!
//! Owns: kubectl's columns, its order and its sums. The numbers are the metrics API's.

use std::cmp::Ordering;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::{
    error::{CliError, Outcome},
    output::{self, tabs::Tabs},
    session::{Session, name_of, raw, with_query},
    target::SelectorArgs,
};
use crate::model::quantity::{parse_milli, parse_nano};

const GROUP: &str = "/apis/metrics.k8s.io/v1beta1";
const NANO_PER_MILLI: i128 = 1_000_000;
const MILLI_PER_MEBIBYTE: i128 = 1000 << 20;
/// A number that nobody knows.
const UNKNOWN: &str = "<unknown>";

/// Options of `top`.
#[derive(Debug, Clone, Args)]
pub struct TopArgs {
    #[command(subcommand)]
    what: What,
}

/// Of what.
#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Of nodes
    #[command(visible_aliases = ["nodes", "no"])]
    Node(NodeArgs),
    /// Of pods
    #[command(visible_aliases = ["pods", "po"])]
    Pod(PodArgs),
}

#[derive(Debug, Clone, Args)]
struct NodeArgs {
    /// One of them
    name: Option<String>,
    /// Only nodes with these labels
    #[arg(short = 'l', long, value_name = "LABELS", conflicts_with = "name")]
    selector: Option<String>,
    /// Percent of the whole machine, not of what pods may have
    #[arg(long)]
    show_capacity: bool,
    #[command(flatten)]
    show: Show,
}

#[derive(Debug, Clone, Args)]
struct PodArgs {
    /// One of them
    #[arg(conflicts_with_all = ["selector", "field_selector"])]
    name: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Each container by itself
    #[arg(long)]
    containers: bool,
    /// The sum as well
    #[arg(long)]
    sum: bool,
    #[command(flatten)]
    select: SelectorArgs,
    #[command(flatten)]
    show: Show,
}

#[derive(Debug, Clone, Args)]
struct Show {
    /// Who uses most first
    #[arg(long, value_enum)]
    sort_by: Option<SortBy>,
    /// Without the line of headers
    #[arg(long)]
    no_headers: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SortBy {
    Cpu,
    Memory,
}

/// Billionths of a core, which are shown as thousandths but summed up as they are; thousandths of a byte.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Used {
    cpu: i128,
    memory: i128,
}

impl Used {
    fn read(usage: &Value) -> Used {
        let text = |name: &str| usage[name].as_str().unwrap_or_default();
        Used { cpu: parse_nano(text("cpu")).unwrap_or(0), memory: parse_milli(text("memory")).unwrap_or(0) }
    }

    fn cpu_milli(self) -> i128 {
        self.cpu / NANO_PER_MILLI + i128::from(self.cpu % NANO_PER_MILLI > 0)
    }

    fn plus(self, other: Used) -> Used {
        Used { cpu: self.cpu + other.cpu, memory: self.memory + other.memory }
    }

    /// The most first; `None` leaves it to the names.
    fn order(self, other: Used, by: Option<SortBy>) -> Option<Ordering> {
        match by? {
            SortBy::Cpu => Some(other.cpu_milli().cmp(&self.cpu_milli())),
            SortBy::Memory => Some(other.memory.cmp(&self.memory)),
        }
    }

    fn cells(self, of: Option<Used>) -> String {
        let percent = |part: i128, whole: i128| if whole > 0 { part * 100 / whole } else { 0 };
        match of {
            None => format!("{}m\t{}Mi\t", self.cpu_milli(), self.memory / MILLI_PER_MEBIBYTE),
            Some(of) => format!(
                "{}m\t{}%\t{}Mi\t{}%\t",
                self.cpu_milli(),
                percent(self.cpu_milli(), of.cpu_milli()),
                self.memory / MILLI_PER_MEBIBYTE,
                percent(self.memory, of.memory)
            ),
        }
    }
}

/// Runs `top`.
///
/// # Errors
/// As every verb; when nothing is known yet.
pub async fn run(session: &Session, args: &TopArgs) -> Outcome {
    match &args.what {
        What::Node(args) => nodes(session, args).await,
        What::Pod(args) => pods(session, args).await,
    }
}

/// What a path has: the items of a list, or the one object.
async fn get(
    session: &Session,
    path: &str,
    name: Option<&str>,
    select: &SelectorArgs,
) -> Outcome<Vec<Value>> {
    let path = match name {
        Some(name) => format!("{path}/{name}"),
        None => with_query(
            path,
            &[("labelSelector", select.selector.clone()), ("fieldSelector", select.field_selector.clone())],
        ),
    };
    let answer = session.client.get(&path).await?;
    Ok(if name.is_some() { vec![answer] } else { output::items(&answer).into_iter().cloned().collect() })
}

fn not_yet() -> CliError {
    CliError::failed("metrics not available yet")
}

async fn nodes(session: &Session, args: &NodeArgs) -> Outcome {
    let select = SelectorArgs { selector: args.selector.clone(), field_selector: None };
    let name = args.name.as_deref();
    let metrics = get(session, &format!("{GROUP}/nodes"), name, &select).await?;
    if metrics.is_empty() {
        return Err(not_yet());
    }
    let nodes = get(session, "/api/v1/nodes", name, &select).await?;
    let field = if args.show_capacity { "capacity" } else { "allocatable" };
    raw(Tabs::table().align(&node_table(metrics, &nodes, field, &args.show)))
}

fn node_table(mut metrics: Vec<Value>, nodes: &[Value], field: &str, show: &Show) -> String {
    metrics.sort_by(|a, b| {
        let by_use = Used::read(&a["usage"]).order(Used::read(&b["usage"]), show.sort_by);
        by_use.unwrap_or_else(|| name_of(a).cmp(name_of(b)))
    });
    let mut text = String::new();
    if !show.no_headers {
        text.push_str("NAME\tCPU(cores)\tCPU(%)\tMEMORY(bytes)\tMEMORY(%)\t\n");
    }
    for metric in &metrics {
        let node = nodes.iter().find(|node| name_of(node) == name_of(metric));
        let of = node.map(|node| Used::read(&node["status"][field]));
        text.push_str(&format!("{}\t{}\n", name_of(metric), Used::read(&metric["usage"]).cells(of)));
    }
    for node in nodes.iter().filter(|node| !metrics.iter().any(|m| name_of(m) == name_of(node))) {
        text.push_str(&format!("{}\t{UNKNOWN}\t{UNKNOWN}\t{UNKNOWN}\t{UNKNOWN}\t\n", name_of(node)));
    }
    text
}

async fn pods(session: &Session, args: &PodArgs) -> Outcome {
    if args.name.is_some() && args.all_namespaces {
        return Err(CliError::usage("a resource cannot be retrieved by name across all namespaces"));
    }
    let place = match args.all_namespaces {
        true => String::new(),
        false => format!("/namespaces/{}", session.namespace),
    };
    let name = args.name.as_deref();
    let metrics = get(session, &format!("{GROUP}{place}/pods"), name, &args.select).await?;
    if metrics.is_empty() {
        // Either nothing is known yet, or there is nothing to know of.
        let pods = get(session, &format!("/api/v1{place}/pods"), None, &args.select).await?;
        if !pods.is_empty() {
            return Err(not_yet());
        }
        match args.all_namespaces {
            true => eprintln!("No resources found"),
            false => eprintln!("No resources found in {} namespace.", session.namespace),
        }
        return Ok(());
    }
    raw(Tabs::table().align(&pod_table(metrics, args)))
}

/// A pod's containers by name, with what each uses.
fn containers(pod: &Value) -> Vec<(&str, Used)> {
    let all = pod["containers"].as_array().into_iter().flatten();
    all.map(|c| (c["name"].as_str().unwrap_or_default(), Used::read(&c["usage"]))).collect()
}

fn pod_table(mut metrics: Vec<Value>, args: &PodArgs) -> String {
    let sum =
        |pod: &Value| containers(pod).into_iter().fold(Used::default(), |all, (_, used)| all.plus(used));
    let namespace = |pod: &Value| pod["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    metrics.sort_by(|a, b| {
        let by_use = sum(a).order(sum(b), args.show.sort_by);
        by_use.unwrap_or_else(|| (namespace(a), name_of(a)).cmp(&(namespace(b), name_of(b))))
    });
    let mut text = String::new();
    let mut columns: Vec<&str> = vec!["NAME", "CPU(cores)", "MEMORY(bytes)"];
    if args.containers {
        columns.insert(0, "POD");
    }
    if args.all_namespaces {
        columns.insert(0, "NAMESPACE");
    }
    if !args.show.no_headers {
        text.push_str(&format!("{}\t\n", columns.join("\t")));
    }
    for pod in &metrics {
        let place = if args.all_namespaces { format!("{}\t", namespace(pod)) } else { String::new() };
        if !args.containers {
            text.push_str(&format!("{place}{}\t{}\n", name_of(pod), sum(pod).cells(None)));
            continue;
        }
        let mut all = containers(pod);
        all.sort_by(|a, b| a.1.order(b.1, args.show.sort_by).unwrap_or_else(|| a.0.cmp(b.0)));
        for (name, used) in all {
            text.push_str(&format!("{place}{}\t{name}\t{}\n", name_of(pod), used.cells(None)));
        }
    }
    if args.sum {
        let total = metrics.iter().map(sum).fold(Used::default(), Used::plus);
        // Without headers kubectl counts no more than its usual columns.
        let empty = "\t".repeat(if args.show.no_headers { 1 } else { columns.len() - 2 });
        text.push_str(&format!("{empty}________\t________\t\n{empty}{}\n", total.cells(None)));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(namespace: &str, name: &str, containers: &[(&str, &str, &str)]) -> Value {
        let containers: Vec<Value> = containers
            .iter()
            .map(|(name, cpu, memory)| json!({"name": name, "usage": {"cpu": cpu, "memory": memory}}))
            .collect();
        json!({"metadata": {"namespace": namespace, "name": name}, "containers": containers})
    }

    fn show(sort_by: Option<SortBy>) -> Show {
        Show { sort_by, no_headers: false }
    }

    #[test]
    fn pods_are_summed_up_sorted_and_shown_by_container() {
        let all = || {
            vec![
                pod("b", "x", &[("c", "1500000n", "3Mi"), ("a", "100n", "1024Ki")]),
                pod("a", "y", &[("c", "2", "1Gi")]),
            ]
        };
        let args = |containers, all_namespaces, sum, sort_by| PodArgs {
            name: None,
            all_namespaces,
            containers,
            sum,
            select: SelectorArgs::default(),
            show: show(sort_by),
        };
        assert_eq!(
            pod_table(all(), &args(false, true, false, None)),
            "NAMESPACE\tNAME\tCPU(cores)\tMEMORY(bytes)\t\na\ty\t2000m\t1024Mi\t\nb\tx\t2m\t4Mi\t\n"
        );
        assert_eq!(
            pod_table(all(), &args(true, false, true, Some(SortBy::Memory))),
            "POD\tNAME\tCPU(cores)\tMEMORY(bytes)\t\ny\tc\t2000m\t1024Mi\t\nx\tc\t2m\t3Mi\t\nx\ta\t1m\t1Mi\t\n\
             \t\t________\t________\t\n\t\t2002m\t1028Mi\t\n"
        );
    }

    #[test]
    fn nodes_are_shown_in_percent_and_those_that_say_nothing_as_unknown() {
        let metric = json!({"metadata": {"name": "a"}, "usage": {"cpu": "250m", "memory": "1Gi"}});
        let node = |name: &str| json!({"metadata": {"name": name}, "status": {"allocatable": {"cpu": "2", "memory": "4Gi"}}});
        assert_eq!(
            node_table(vec![metric], &[node("a"), node("b")], "allocatable", &show(None)),
            "NAME\tCPU(cores)\tCPU(%)\tMEMORY(bytes)\tMEMORY(%)\t\na\t250m\t12%\t1024Mi\t25%\t\n\
             b\t<unknown>\t<unknown>\t<unknown>\t<unknown>\t\n"
        );
    }
}
