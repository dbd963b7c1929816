//! Health, metrics, discovery and what else is no object.

use serde_json::json;

use crate::{harness::Cluster, raw::Who};

#[test]
fn a_server_without_its_store_is_alive_but_not_ready() {
    let cluster = Cluster::start();
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping", "/readyz/store"] {
        let answer = cluster.ask("GET", path, "");
        assert_eq!((answer.code, answer.text().as_str()), (200, "ok"), "{path}");
    }
    let verbose = cluster.ask("GET", "/readyz?verbose", "").text();
    assert_eq!(verbose, "[+]ping ok\n[+]store ok\n[+]shutdown ok\nreadyz check passed\n");
    let without = Cluster::start_without_store();
    assert_eq!(without.ask("GET", "/livez", "").code, 200);
    for path in ["/readyz", "/healthz", "/readyz/store"] {
        let answer = without.ask("GET", path, "");
        assert_eq!(answer.code, 500, "{path}");
        assert!(answer.text().contains("[-]store failed: the store is not running"), "{}", answer.text());
    }
    let excluded = without.ask("GET", "/readyz?verbose&exclude=store", "");
    assert_eq!(excluded.code, 200);
    assert!(excluded.text().contains("[+]store excluded: ok\n"), "{}", excluded.text());
    let create = without.ask("POST", "/api/v1/namespaces", r#"{"metadata":{"name":"a"}}"#);
    assert!(create.refuses(503, "ServiceUnavailable").contains("the store is not running"));
    assert_eq!(create.header("retry-after"), Some("1"));
    without.is_alive();
}

#[test]
fn a_server_whose_disk_takes_nothing_is_alive_but_not_ready() {
    let cluster = Cluster::start_with_full_disk();
    assert_eq!(cluster.ask("GET", "/livez", "").code, 200);
    for path in ["/readyz", "/healthz", "/readyz/store"] {
        let answer = cluster.ask("GET", path, "");
        assert_eq!(answer.code, 500, "{path}");
        let said = "[-]store failed: the disk does not take what is written: see the log\n";
        assert!(answer.text().contains(said), "{}", answer.text());
    }
}

#[test]
fn metrics_tell_what_was_asked_and_what_there_is() {
    let cluster = Cluster::start();
    let answer = cluster.ask("GET", "/metrics", "");
    assert!(answer.header("content-type").is_some_and(|t| t.starts_with("text/plain; version=0.0.4")));
    let text = answer.text();
    for line in ["up 1", "troupe_objects{resource=\"nodes\"} 2", "troupe_api_streams 0"] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    cluster.ask("POST", "/metrics", "").refuses(405, "MethodNotAllowed");
}

#[test]
fn the_root_lists_every_path() {
    let cluster = Cluster::start();
    let paths = cluster.ask("GET", "/", "").json();
    let paths: Vec<&str> = paths["paths"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    assert!(paths.is_sorted());
    for path in paths {
        let headers =
            [("Accept", "application/json, application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
        let answer = cluster.connect(Who::Admin).ask("GET", path, &headers, "");
        assert_eq!(answer.code, 200, "{path}");
    }
}

#[test]
fn openapi_is_packed_and_never_asked_for_twice() {
    let cluster = Cluster::start();
    let index = cluster.ask("GET", "/openapi/v3", "").json();
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let plain = cluster.ask("GET", &url, "");
    assert!(plain.json()["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"].is_object());
    let mut client = cluster.connect(Who::Admin);
    let packed = client.ask("GET", &url, &[("Accept-Encoding", "gzip")], "");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert!(packed.body.len() * 4 < plain.body.len(), "{} of {}", packed.body.len(), plain.body.len());
    assert!(packed.header("cache-control").is_some_and(|c| c.contains("immutable")));
    let tag = packed.header("etag").unwrap().to_owned();
    let again = client.ask("GET", &url, &[("If-None-Match", &tag)], "");
    assert_eq!((again.code, again.body.len()), (304, 0));
}

#[test]
fn an_object_is_the_same_bytes_wherever_it_is_read() {
    let cluster = Cluster::start();
    let maps = "/api/v1/namespaces/default/configmaps";
    let document = json!({ "metadata": { "name": "m" }, "data": { "z": "1", "a": "2" } }).to_string();
    let created = cluster.ask("POST", maps, &document).text();
    let read = cluster.ask("GET", &format!("{maps}/m"), "").text();
    assert_eq!(created, read);
    assert!(cluster.ask("GET", maps, "").text().contains(&read));
    assert!(cluster.ask("GET", &format!("{maps}?watch=1&timeoutSeconds=1"), "").text().contains(&read));
}
