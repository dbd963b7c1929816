//! `cluster`: how the cluster's own machinery is.
//!
//! Owns: the rendering of `/troupe/v1/status` for people. Invariants: what did not answer in time is said first; healthy
//! actors that are many of one kind are counted in one line, one that failed is always shown.

use std::fmt::Write as _;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::{
    error::{CliError, Outcome},
    output::tabs::Tabs,
    session::{Session, raw},
};
use crate::model::table::human_duration;

const PATH: &str = "/troupe/v1/status";
/// Siblings of which more are counted together.
const SIBLINGS: usize = 4;

/// Options of `cluster`.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Show nodes, their links, the actors and the store; exit code 1 with any PROBLEM
    ///
    /// The exit code is 0 when all is well, and 1 when there is a line PROBLEM (`problems` in the other forms): a node that is
    /// not ready, unless it is cordoned or said goodbye; a disk that fails; what does not answer. It is 1, too, with an error,
    /// when the master cannot be asked.
    Status {
        /// Every actor by itself
        #[arg(long)]
        actors: bool,
        /// Another form
        #[arg(long, short, value_enum)]
        output: Option<Form>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    Json,
    Yaml,
}

/// Runs `cluster`.
///
/// # Errors
/// As every verb.
pub async fn run(session: &Session, args: &ClusterArgs) -> Outcome {
    let Action::Status { actors, output } = &args.action;
    let status = session.client.get(PATH).await?;
    match output {
        Some(Form::Json) => raw(serde_json::to_string_pretty(&status).unwrap_or_default() + "\n"),
        Some(Form::Yaml) => raw(serde_yaml_ng::to_string(&status).unwrap_or_default()),
        None => raw(text(&status, *actors)),
    }?;
    verdict(&status)
}

/// That something is wrong has an exit code of its own for scripts, in every form, as with `systemctl is-system-running`,
/// `cilium status` and `etcdctl endpoint health`; what that is has been shown.
fn verdict(status: &Value) -> Outcome {
    match status["problems"].as_array().is_none_or(Vec::is_empty) {
        true => Ok(()),
        false => Err(CliError::Silent),
    }
}

fn text(status: &Value, every_actor: bool) -> String {
    let mut out = String::new();
    for problem in status["problems"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "PROBLEM: {}", problem.as_str().unwrap_or_default());
    }
    let certificates = list(&status["certificates"]);
    certificates.iter().filter(|of| of["endsSoon"] == true).for_each(|of| warn(&mut out, of));
    let _ = writeln!(
        out,
        "Cluster {}, troupe {}",
        status["cluster"].as_str().unwrap_or("?"),
        status["version"].as_str().unwrap_or("?")
    );
    let _ = writeln!(out, "Store: {}", store(&status["store"]));
    let nodes = list(&status["nodes"]);
    let ready = nodes.iter().filter(|node| node["ready"] == "True").count();
    let waiting = match status["podsWithoutNode"].as_u64() {
        None | Some(0) => String::new(),
        Some(1) => "; 1 pod waits for a node".to_owned(),
        Some(pods) => format!("; {pods} pods wait for a node"),
    };
    let _ = writeln!(out, "Nodes: {ready} of {} ready{waiting}", nodes.len());
    let master: Vec<&Value> = list(&status["actors"]);
    let of_nodes = nodes.iter().flat_map(|node| list(&node["actors"]));
    let actors: Vec<&Value> = master.iter().copied().chain(of_nodes).collect();
    let running = actors.iter().filter(|actor| actor["state"] == "running").count();
    let restarts: u64 =
        actors.iter().filter_map(|actor| actor["restarts"].as_u64()).fold(0, u64::saturating_add);
    let _ = writeln!(out, "Actors: {running} of {} running, started again {restarts} times", actors.len());
    if !certificates.is_empty() {
        let until = certificates.iter().map(|of| format!("{} until {}", word(&of["name"]), date(of)));
        let _ = writeln!(out, "Certificates: {}", until.collect::<Vec<_>>().join(", "));
    }
    if !nodes.is_empty() {
        let mut table = "\nNODE\tREADY\tPODS\tLINK\tRTT\tLOST\tSTREAMS\tQUEUE\tADDRESS\n".to_owned();
        nodes.iter().for_each(|node| node_row(&mut table, node));
        aligned(&mut out, &table);
    }
    if !actors.is_empty() {
        let mut table = "\nACTOR\tSTATE\tRESTARTS\tLAST ERROR\n".to_owned();
        actor_rows(&mut table, "", &master, every_actor);
        for node in &nodes {
            node_actors(&mut table, node, nodes.len(), every_actor);
        }
        aligned(&mut out, &table);
    }
    out
}

/// Says that somebody has to see to a certificate.
fn warn(out: &mut String, certificate: &Value) {
    let left_s = certificate["secondsLeft"].as_i64().unwrap_or(0);
    let when = match left_s {
        ..=0 => "has ended".to_owned(),
        left_s => format!("ends in {}", human_duration(left_s)),
    };
    let name = word(&certificate["name"]);
    let _ = writeln!(
        out,
        "WARNING: the certificate of the {name} {when}: see \"Certificates\" in docs/operations.md"
    );
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// The day of a certificate's end.
fn date(certificate: &Value) -> &str {
    let end = word(&certificate["notAfter"]);
    end.split_once('T').map_or(end, |(day, _)| day)
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

fn aligned(out: &mut String, table: &str) {
    for line in Tabs::table().align(table).lines() {
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

fn store(store: &Value) -> String {
    let number = |name: &str| store[name].as_u64();
    let mut text = format!(
        "revision {}, {} objects, {}",
        number("revision").unwrap_or(0),
        number("objects").unwrap_or(0),
        size(number("bytes").unwrap_or(0))
    );
    if let (Some(queued), Some(behind)) = (number("queuedChanges"), number("unwrittenObjects")) {
        let _ = write!(text, "; {queued} changes wait, {behind} objects not yet on disk");
    }
    if store["failing"] == true {
        text.push_str("; THE DISK FAILS: see the master's log");
    }
    text
}

fn node_row(table: &mut String, node: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut ready = text(&node["ready"]);
    for trouble in list(&node["troubles"]) {
        let _ = write!(ready, ",{}", word(trouble));
    }
    if node["schedulable"] == false {
        ready.push_str(",cordoned");
    }
    let _ = write!(table, "{}\t{ready}\t{}\t", text(&node["name"]), node["pods"]);
    let link = &node["link"];
    let seconds = |value: &Value| value.as_f64().map(|seconds| human_duration(seconds as i64));
    let _ = match (seconds(&link["seconds"]), seconds(&node["silentSeconds"])) {
        (Some(age), _) => writeln!(
            table,
            "up {age}\t{:.1}ms\t{}\t{}\t{}\t{}",
            link["roundTripSeconds"].as_f64().unwrap_or(0.0) * 1e3,
            lost(link),
            link["streams"],
            queue(link),
            text(&link["address"])
        ),
        (None, silent) => {
            let what = if node["saidGoodbye"] == true { "away" } else { "silent" };
            let mut silent = silent.map_or_else(|| what.to_owned(), |age| format!("{what} {age}"));
            if node["podsStay"] == true {
                silent.push_str(", pods stay");
            }
            writeln!(table, "{silent}\t-\t-\t-\t-\t-")
        }
    };
}

/// Packets lost, in percent of those sent.
fn lost(link: &Value) -> String {
    let number = |name: &str| link[name].as_f64().unwrap_or(0.0);
    let (lost, sent) = (number("lostPackets"), number("sentPackets"));
    if sent > 0.0 { format!("{:.1}%", lost / sent * 100.0) } else { "-".to_owned() }
}

fn queue(link: &Value) -> String {
    match link["queuedMessages"].as_u64().unwrap_or(0) {
        0 => "0".to_owned(),
        messages => format!("{messages} ({})", size(link["queuedBytes"].as_u64().unwrap_or(0))),
    }
}

/// The actors of one of so many nodes, each after the node's name. Where nodes are many, the healthy ones of each are one line.
fn node_actors(table: &mut String, node: &Value, nodes: usize, every_actor: bool) {
    let prefix = format!("node {}: ", node["name"].as_str().unwrap_or_default());
    if let Some(why) = node["actorsUnknown"].as_str() {
        let _ = writeln!(table, "{prefix}*\tunknown\t-\t{why}");
    }
    let actors = list(&node["actors"]);
    if every_actor || nodes <= SIBLINGS {
        return actor_rows(table, &prefix, &actors, every_actor);
    }
    let (well, unwell): (Vec<_>, Vec<_>) = actors.into_iter().partition(|actor| is_well(actor));
    if !well.is_empty() {
        let _ = writeln!(table, "{prefix}* ({})\trunning\t0\t", well.len());
    }
    actor_rows(table, &prefix, &unwell, every_actor);
}

fn is_well(actor: &Value) -> bool {
    actor["state"] == "running" && actor["restarts"] == 0
}

fn actor_rows(table: &mut String, prefix: &str, actors: &[&Value], every_actor: bool) {
    let name = |actor: &Value| actor["name"].as_str().unwrap_or_default().to_owned();
    let parent = |actor: &Value| name(actor).rsplit_once('/').map(|(parent, _)| parent.to_owned());
    let mut counted: Vec<String> = Vec::new();
    for actor in actors {
        if let (false, true, Some(parent)) = (every_actor, is_well(actor), parent(actor)) {
            let siblings = actors.iter().filter(|other| is_well(other) && parent_is(other, &parent));
            let count = siblings.count();
            if count > SIBLINGS {
                if !counted.contains(&parent) {
                    let _ = writeln!(table, "{prefix}{parent}/* ({count})\trunning\t0\t");
                    counted.push(parent);
                }
                continue;
            }
        }
        let _ = writeln!(
            table,
            "{prefix}{}\t{}\t{}\t{}",
            name(actor),
            actor["state"].as_str().unwrap_or_default(),
            actor["restarts"],
            actor["lastError"].as_str().unwrap_or_default().replace(['\t', '\n'], " ")
        );
    }
}

fn parent_is(actor: &Value, parent: &str) -> bool {
    let name = actor["name"].as_str().unwrap_or_default();
    name.rsplit_once('/').is_some_and(|(its, _)| its == parent)
}

fn size(bytes: u64) -> String {
    const STEP: u64 = 1024;
    match bytes {
        0..STEP => format!("{bytes} B"),
        STEP..0x10_0000 => format!("{} KiB", bytes / STEP),
        _ => format!("{} MiB", bytes / STEP / STEP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_status_is_shown_at_a_glance() {
        let pods = (0..6).map(|n| json!({"name": format!("pods/{n}"), "state": "running", "restarts": 0}));
        let mut actors = vec![json!({"name": "store", "state": "running", "restarts": 0})];
        actors.extend(pods);
        actors.push(
            json!({"name": "pods/x", "state": "waiting", "restarts": 2, "lastError": "panicked: a\tb"}),
        );
        let status = json!({
            "cluster": "c", "version": "1", "problems": ["the node registry did not answer in time"],
            "store": {"revision": 7, "objects": 2, "bytes": 4096, "queuedChanges": 0, "unwrittenObjects": 1,
                "failing": false},
            "nodes": [
                {"name": "n1", "ready": "True", "troubles": ["DiskPressure", "PIDPressure"], "schedulable": true,
                    "pods": 2, "podsStay": false, "link": {"seconds": 130.0,
                    "address": "10.0.0.2:7", "roundTripSeconds": 0.0004, "lostPackets": 1, "sentPackets": 200,
                    "streams": 1, "queuedMessages": 2, "queuedBytes": 2048}},
                {"name": "n2", "ready": "Unknown", "schedulable": false, "pods": 1, "link": null,
                    "podsStay": true, "silentSeconds": 12.3},
                {"name": "n3", "ready": "Unknown", "schedulable": true, "pods": 0, "link": null, "saidGoodbye": true,
                    "silentSeconds": 3.0},
            ],
            "podsWithoutNode": 3,
            "actors": actors,
            "certificates": [
                {"name": "authority", "notAfter": "2036-11-23T10:00:00Z", "secondsLeft": 86_400 * 50, "endsSoon": true},
                {"name": "master", "notAfter": "2027-11-26T10:00:00Z", "secondsLeft": 86_400 * 300, "endsSoon": false},
            ],
        });
        let expected = "\
PROBLEM: the node registry did not answer in time
WARNING: the certificate of the authority ends in 50d: see \"Certificates\" in docs/operations.md
Cluster c, troupe 1
Store: revision 7, 2 objects, 4 KiB; 0 changes wait, 1 objects not yet on disk
Nodes: 1 of 3 ready; 3 pods wait for a node
Actors: 7 of 8 running, started again 2 times
Certificates: authority until 2036-11-23, master until 2027-11-26

NODE   READY                           PODS   LINK                    RTT     LOST   STREAMS   QUEUE       ADDRESS
n1     True,DiskPressure,PIDPressure   2      up 2m10s                0.4ms   0.5%   1         2 (2 KiB)   10.0.0.2:7
n2     Unknown,cordoned                1      silent 12s, pods stay   -       -      -         -           -
n3     Unknown                         0      away 3s                 -       -      -         -           -

ACTOR        STATE     RESTARTS   LAST ERROR
store        running   0
pods/* (6)   running   0
pods/x       waiting   2          panicked: a b
";
        assert_eq!(text(&status, false), expected);
        assert_eq!(text(&status, true).matches("pods/").count(), 7);
    }

    #[test]
    fn problems_have_an_exit_code_and_nothing_else_does() {
        for (status, well) in [
            (json!({"problems": []}), true),
            (json!({}), true),
            (json!({"problems": [], "certificates": [{"endsSoon": true}]}), true),
            (json!({"problems": ["the node registry did not answer in time"]}), false),
        ] {
            assert_eq!(verdict(&status).is_ok(), well, "{status}");
            assert!(well || verdict(&status).unwrap_err().exit_code() == 1);
        }
    }

    #[test]
    fn actors_of_nodes_stand_with_their_node_and_many_nodes_take_a_line_each() {
        let node = |name: &str, restarts: u64| {
            json!({"name": name, "ready": "True", "schedulable": true, "pods": 0, "link": null, "actors": [
                {"name": "node/kubelet", "state": "running", "restarts": restarts, "lastError": null},
                {"name": "node/uplink", "state": "running", "restarts": 0, "lastError": null}]})
        };
        let mut old = node("old", 0);
        old["actors"] = Value::Null;
        old["actorsUnknown"] = "its version does not tell them".into();
        let rows = |nodes: Value, every| {
            let status = json!({"cluster": "c", "version": "1", "problems": [], "store": {}, "nodes": nodes,
                "actors": [{"name": "store", "state": "running", "restarts": 0}]});
            let text = text(&status, every);
            let table = text.split_once("ACTOR ").unwrap().1.lines().skip(1);
            let rows: Vec<String> =
                table.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
            (text.lines().find(|line| line.starts_with("Actors")).unwrap().to_owned(), rows)
        };
        let (count, few) = rows(json!([node("a", 1), old]), false);
        assert_eq!(count, "Actors: 3 of 3 running, started again 1 times");
        let expected = [
            "store running 0",
            "node a: node/kubelet running 1",
            "node a: node/uplink running 0",
            "node old: * unknown - its version does not tell them",
        ];
        assert_eq!(few, expected);
        let many: Vec<Value> = (0..5).map(|n| node(&n.to_string(), u64::from(n == 3))).collect();
        let (_, brief) = rows(many.clone().into(), false);
        let expected = [
            "store running 0",
            "node 0: * (2) running 0",
            "node 1: * (2) running 0",
            "node 2: * (2) running 0",
            "node 3: * (1) running 0",
            "node 3: node/kubelet running 1",
            "node 4: * (2) running 0",
        ];
        assert_eq!(brief, expected);
        assert_eq!(rows(many.into(), true).1.len(), 11);
    }
}
