//! What watchers are told, event by event.

use serde_json::{Value, json};

use crate::{
    harness::Cluster,
    raw::{Answer, Who},
};

const PODS: &str = "/api/v1/namespaces/default/pods";

fn pod(labels: &Value) -> String {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "again", "labels": labels },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } })
    .to_string()
}

fn uid(answer: &Answer) -> String {
    answer.json()["metadata"]["uid"].as_str().expect("a uid").to_owned()
}

/// Types and uids of a watch's events.
fn told(watch: &[u8]) -> Vec<(String, String)> {
    let events = serde_json::Deserializer::from_slice(watch).into_iter::<Value>().map(Result::unwrap);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events.map(|event| (text(&event["type"]), text(&event["object"]["metadata"]["uid"]))).collect()
}

#[test]
fn a_name_that_is_given_again_between_two_deliveries_is_told_as_an_end_and_a_beginning() {
    let cluster = Cluster::start();
    let labels = json!({ "app": "a" });
    let selectors =
        ["", "fieldSelector=metadata.name%3Dagain&", "labelSelector=app%3Da&", "allowWatchBookmarks=true&"];
    // Watches that were there before, and hear nothing until all is over.
    let before: Vec<_> = selectors
        .iter()
        .map(|selector| {
            let mut client = cluster.connect(Who::Admin);
            let path = format!("{PODS}?{selector}watch=1&timeoutSeconds=2");
            client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
            let head = client.head();
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
            client
        })
        .collect();
    let first = cluster.ask("POST", PODS, &pod(&labels));
    assert_eq!(first.code, 201, "{}", first.text());
    let since = cluster.ask("GET", PODS, "").json()["metadata"]["resourceVersion"].clone();
    let since = since.as_str().unwrap();
    assert_eq!(cluster.ask("DELETE", &format!("{PODS}/again"), "").code, 200);
    let second = cluster.ask("POST", PODS, &pod(&labels));
    let expected = [("DELETED".to_owned(), uid(&first)), ("ADDED".to_owned(), uid(&second))];
    assert_ne!(expected[0].1, expected[1].1);
    for selector in selectors {
        let path = format!("{PODS}?{selector}watch=1&timeoutSeconds=1&resourceVersion={since}");
        assert_eq!(told(&cluster.ask("GET", &path, "").body), expected, "{selector}");
    }
    let all = [&[("ADDED".to_owned(), uid(&first))][..], &expected].concat();
    for (mut client, selector) in before.into_iter().zip(selectors) {
        let mut body = Vec::new();
        while let Some(chunk) = client.chunk() {
            body.extend(chunk);
        }
        assert_eq!(told(&body), all, "{selector}");
    }
    // One that leaves the selection with the exchange has ended for who selects.
    assert_eq!(cluster.ask("DELETE", &format!("{PODS}/again"), "").code, 200);
    let third = cluster.ask("POST", PODS, &pod(&json!({ "app": "b" })));
    assert_eq!(third.code, 201);
    let path = format!("{PODS}?labelSelector=app%3Da&watch=1&timeoutSeconds=1&resourceVersion={since}");
    let ended = [&expected[..], &[("DELETED".to_owned(), uid(&second))]].concat();
    assert_eq!(told(&cluster.ask("GET", &path, "").body), ended);
}
