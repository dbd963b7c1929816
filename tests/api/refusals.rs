//! Bad input over real TLS: each gets one clear `Status`, and the server lives on.

use std::{fmt::Write as _, io::Write as _, time::Duration};

use serde_json::{Value, json};
use troupe::api::Limits;

use crate::{
    harness::Cluster,
    raw::{Answer, Who, bearer, eventually},
};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const MERGE: &str = "application/merge-patch+json";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn send(cluster: &Cluster, method: &str, path: &str, media: &str, body: &str) -> Answer {
    cluster.connect(Who::Admin).ask(method, path, &[("Content-Type", media)], body)
}

fn map(name: &str) -> String {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } }).to_string()
}

fn pod(container: Value) -> String {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" },
        "spec": { "containers": [container] } })
    .to_string()
}

/// Method, path, media type, body; then code, reason, and a part of the message.
type Row<'a> = (&'a str, &'a str, &'a str, &'a str, u16, &'a str, &'a str);

fn check(rows: &[Row<'_>]) {
    let cluster = Cluster::start();
    assert_eq!(cluster.ask("POST", MAPS, &map("there")).code, 201);
    for (method, path, media, body, code, reason, part) in rows {
        eprintln!("{method} {path} {media} {}", &body[..body.len().min(100)]);
        let message = send(&cluster, method, path, media, body).refuses(*code, reason);
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
    cluster.is_alive();
}

#[test]
fn documents_that_cannot_be_read_are_bad_requests() {
    let deep = "[".repeat(100_000);
    let mut laughs = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for n in 1..12 {
        let before = format!("*a{},", n - 1).repeat(9);
        let _ = writeln!(laughs, "a{n}: &a{n} [{before}]");
    }
    let (bad, code) = ("BadRequest", 400);
    check(&[
        ("POST", MAPS, JSON, "", code, bad, "ConfigMap"),
        ("POST", MAPS, JSON, "{", code, bad, "ConfigMap"),
        ("POST", MAPS, JSON, "nonsense", code, bad, "ConfigMap"),
        ("POST", MAPS, JSON, "[]", code, bad, "ConfigMap"),
        ("POST", MAPS, JSON, &deep, code, bad, "ConfigMap"),
        ("POST", MAPS, JSON, "{\"metadata\":{\"name\":\"\\ud800\"}}", code, bad, "ConfigMap"),
        ("POST", MAPS, YAML, "a: [", code, bad, "yaml"),
        ("POST", MAPS, YAML, "a: 1\n---\nb: 2\n", code, bad, "yaml"),
        ("POST", MAPS, YAML, &laughs, code, bad, "yaml"),
        ("POST", MAPS, "application/vnd.kubernetes.protobuf", "{}", code, bad, "protobuf"),
        ("POST", MAPS, "application/vnd.kubernetes.protobuf", "k8s\0\u{7f}", code, bad, "protobuf"),
        ("PUT", &format!("{MAPS}/there"), JSON, "{", code, bad, "ConfigMap"),
        ("PATCH", &format!("{MAPS}/there"), MERGE, "{", code, bad, "decoding patch"),
        ("PATCH", &format!("{MAPS}/there"), MERGE, "[]", code, bad, "JSON object"),
        ("PATCH", &format!("{MAPS}/there"), "application/json-patch+json", "{}", code, bad, "decoding patch"),
        ("DELETE", &format!("{MAPS}/there"), JSON, "{", code, bad, "DeleteOptions"),
        (
            "DELETE",
            &format!("{MAPS}/there"),
            JSON,
            "{\"gracePeriodSeconds\":\"x\"}",
            code,
            bad,
            "DeleteOptions",
        ),
        (
            "DELETE",
            &format!("{MAPS}/there"),
            JSON,
            "{\"propagationPolicy\":\"Sideways\"}",
            code,
            bad,
            "\"Sideways\"",
        ),
        ("POST", &format!("{PODS}/p/binding"), JSON, "7", code, bad, "target"),
    ]);
}

#[test]
fn documents_of_another_kind_or_shape_are_refused_by_name() {
    let with = |field: &str, value: Value| {
        let mut document: Value = serde_json::from_str(&map("m")).unwrap();
        document[field] = value;
        document.to_string()
    };
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let (bad, invalid) = ("BadRequest", "Invalid");
    let memory = |text: &str| {
        pod(json!({ "name": "c", "image": "x", "resources": { "requests": { "memory": text } } }))
    };
    check(&[
        ("POST", MAPS, JSON, &with("kind", json!("Frob")), 400, bad, "Frob"),
        ("POST", MAPS, JSON, &with("kind", json!("Pod")), 400, bad, "Pod"),
        ("POST", MAPS, JSON, &with("apiVersion", json!("v9")), 400, bad, "v9"),
        ("POST", MAPS, JSON, &with("data", json!(7)), 400, bad, "data"),
        ("POST", MAPS, JSON, &with("data", json!({ "a": 7 })), 400, bad, "data"),
        ("POST", &strict, JSON, &with("frob", json!(7)), 400, bad, "unknown field \"frob\""),
        (
            "POST",
            &strict,
            JSON,
            &map("m").replacen('{', "{\"kind\":\"ConfigMap\",", 1),
            400,
            bad,
            "duplicate field \"kind\"",
        ),
        ("POST", MAPS, JSON, &with("metadata", json!({ "name": "A_b" })), 422, invalid, "metadata.name"),
        ("POST", MAPS, JSON, &with("metadata", json!({})), 422, invalid, "metadata.name"),
        (
            "POST",
            MAPS,
            JSON,
            &with("metadata", json!({ "name": "m", "labels": { "a b": "c" } })),
            422,
            invalid,
            "metadata.labels",
        ),
        (
            "POST",
            MAPS,
            JSON,
            &with("metadata", json!({ "name": "m", "namespace": "elsewhere" })),
            400,
            bad,
            "namespace",
        ),
        ("POST", PODS, JSON, &memory("many"), 422, invalid, "quantities must match the regular expression"),
        ("POST", PODS, JSON, &memory("-1"), 422, invalid, "spec.containers[0].resources.requests[memory]"),
        ("POST", PODS, JSON, &pod(json!({ "name": "c" })), 422, invalid, "spec.containers[0].image"),
        ("POST", PODS, JSON, &pod(json!({ "name": "c", "image": 7 })), 400, bad, "spec.containers[0].image"),
        (
            "POST",
            "/api/v1/namespaces/nowhere/configmaps",
            JSON,
            &map("m"),
            404,
            "NotFound",
            "namespaces \"nowhere\" not found",
        ),
        ("PUT", &format!("{MAPS}/there"), JSON, &map("elsewhere"), 400, bad, "elsewhere"),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            JSON,
            "{}",
            422,
            invalid,
            "exactly one of nonResourceAttributes or resourceAttributes",
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            JSON,
            "{\"spec\":7}",
            400,
            bad,
            "cannot be handled as a SelfSubjectAccessReview",
        ),
    ]);
}

#[test]
fn changes_against_another_state_are_conflicts() {
    let cluster = Cluster::start();
    let known = json!({ "metadata": { "name": "known", "resourceVersion": "7" } }).to_string();
    let refused = cluster.ask("POST", MAPS, &known).refuses(400, "BadRequest");
    assert_eq!(refused, "resourceVersion should not be set on objects to be created");
    let there = format!("{MAPS}/there");
    let created = cluster.ask("POST", MAPS, &map("there"));
    assert_eq!(created.code, 201);
    cluster.ask("POST", MAPS, &map("there")).refuses(409, "AlreadyExists");
    let mut document = created.json();
    document["data"] = json!({ "a": "1" });
    assert_eq!(cluster.ask("PUT", &there, &document.to_string()).code, 200);
    document["data"] = json!({ "a": "2" });
    let message = cluster.ask("PUT", &there, &document.to_string()).refuses(409, "Conflict");
    assert!(message.contains("please apply your changes to the latest version"), "{message}");
    document["metadata"]["resourceVersion"] = "x".into();
    cluster.ask("PUT", &there, &document.to_string()).refuses(400, "BadRequest");
    document["metadata"]["resourceVersion"] = Value::Null;
    document["metadata"]["uid"] = "another".into();
    cluster.ask("PUT", &there, &document.to_string()).refuses(409, "Conflict");
    let options = json!({ "preconditions": { "uid": "another" } }).to_string();
    cluster.ask("DELETE", &there, &options).refuses(409, "Conflict");
    cluster.is_alive();
}

#[test]
fn patches_that_ask_for_no_state_are_all_made_however_many_come_at_once() {
    const CLIENTS: usize = 20;
    const EACH: usize = 4;
    let cluster = Cluster::start();
    assert_eq!(cluster.ask("POST", MAPS, &map("there")).code, 201);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let cluster = &cluster;
            scope.spawn(move || {
                for round in 0..EACH {
                    let patch = json!({ "data": { (format!("{client}-{round}")): "done" } }).to_string();
                    let answer = send(cluster, "PATCH", &format!("{MAPS}/there"), MERGE, &patch);
                    assert_eq!(answer.code, 200, "{}", answer.text());
                }
            });
        }
    });
    let data = &cluster.ask("GET", &format!("{MAPS}/there"), "").json()["data"];
    assert_eq!(data.as_object().unwrap().len(), CLIENTS * EACH);
}

#[test]
fn paths_methods_and_media_types_that_are_not_served_are_said_so() {
    let there = format!("{MAPS}/there");
    let (unknown, method, media) = ("NotFound", "MethodNotAllowed", "UnsupportedMediaType");
    check(&[
        ("GET", "/frob", JSON, "", 404, unknown, "could not find"),
        ("GET", "/api/v1/frobs", JSON, "", 404, unknown, "could not find"),
        ("GET", "/apis/apps/v1/deployments", JSON, "", 404, unknown, "could not find"),
        ("GET", &format!("{there}/frob"), JSON, "", 404, unknown, "could not find"),
        ("GET", &format!("{PODS}/p/log/x"), JSON, "", 404, unknown, ""),
        ("GET", &format!("{MAPS}/gone"), JSON, "", 404, unknown, "configmaps \"gone\" not found"),
        ("GET", "/readyz/frob", JSON, "", 404, unknown, "could not find"),
        ("GET", "/api/v1/nodes/n1/proxy/frob", JSON, "", 404, unknown, "could not find"),
        ("PUT", MAPS, JSON, &map("m"), 405, method, "does not allow"),
        ("POST", &there, JSON, &map("there"), 405, method, "does not allow"),
        ("POST", "/api/v1/configmaps", JSON, &map("m"), 405, method, "does not allow"),
        ("DELETE", "/api/v1/configmaps", JSON, "", 405, method, "does not allow"),
        ("DELETE", "/api/v1/namespaces", JSON, "", 405, method, "does not allow"),
        ("POST", "/livez", JSON, "", 405, method, "does not allow"),
        ("PUT", "/version", JSON, "", 405, method, "does not allow"),
        ("FROB", MAPS, JSON, "", 405, method, "does not allow"),
        ("GET", &format!("{PODS}/p/binding"), JSON, "", 405, method, "does not allow"),
        ("POST", MAPS, "text/html", &map("m"), 415, media, "application/json"),
        ("PATCH", &there, JSON, "{}", 415, media, "application/merge-patch+json"),
        ("PATCH", &there, "application/apply-patch+yaml", "{}", 415, media, "server-side apply"),
    ]);
    let cluster = Cluster::start();
    let cbor = cluster.connect(Who::Admin).ask("GET", MAPS, &[("Accept", "application/cbor")], "");
    assert!(cbor.refuses(406, "NotAcceptable").contains("application/json"));
    cluster.is_alive();
}

#[test]
fn options_that_cannot_be_are_named() {
    let get = |query: &str| format!("{MAPS}?{query}");
    for (query, code, reason, part) in [
        ("limit=x", 400, "BadRequest", "limit"),
        ("limit=-1", 400, "BadRequest", "limit"),
        ("labelSelector=((", 400, "BadRequest", "labelSelector: found '('"),
        ("fieldSelector=frob%3Dx", 400, "BadRequest", "frob"),
        ("resourceVersion=x", 400, "BadRequest", "resourceVersion"),
        ("resourceVersion=99999999", 504, "Timeout", "Too large resource version"),
        ("resourceVersion=1&resourceVersionMatch=Exact", 410, "Expired", "too old"),
        ("continue=x", 400, "BadRequest", "continue"),
        ("watch=1&resourceVersion=x", 400, "BadRequest", "resourceVersion"),
        ("watch=1&timeoutSeconds=x", 400, "BadRequest", "timeoutSeconds"),
        ("dryRun=Some", 400, "BadRequest", "dryRun"),
    ] {
        let cluster = Cluster::start();
        let message = cluster.ask("GET", &get(query), "").refuses(code, reason);
        assert!(message.contains(part), "{query}: {message}");
        cluster.is_alive();
    }
}

#[test]
fn what_is_too_old_is_gone() {
    let cluster = Cluster::start();
    // The store of these tests begins at a high revision, as after a restart: what lies before is forgotten.
    let mut client = cluster.connect(Who::Admin);
    let watched = client.ask("GET", &format!("{MAPS}?watch=true&resourceVersion=5"), &[], "");
    assert_eq!(watched.code, 200);
    let event = watched.json();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)), "{event}");
    assert_eq!(event["object"]["reason"], "Expired");
    for name in ["a", "b"] {
        assert_eq!(cluster.ask("POST", MAPS, &map(name)).code, 201);
    }
    let page = cluster.ask("GET", &format!("{MAPS}?limit=1"), "").json();
    let token = page["metadata"]["continue"].as_str().expect("there is more").to_owned();
    assert_eq!(cluster.ask("GET", &format!("{MAPS}?limit=1&continue={token}"), "").code, 200);
    // The same token, from long ago.
    let text: Vec<u8> =
        (0..token.len()).step_by(2).map(|at| u8::from_str_radix(&token[at..at + 2], 16).unwrap()).collect();
    let mut old: Value = serde_json::from_slice(&text).unwrap();
    old["rv"] = 5.into();
    let old: String = old.to_string().bytes().map(|b| format!("{b:02x}")).collect();
    cluster.ask("GET", &format!("{MAPS}?limit=1&continue={old}"), "").refuses(410, "Expired");
    cluster.is_alive();
}

#[test]
fn only_the_known_are_served_and_only_administrators_everything() {
    let cluster = Cluster::start();
    let nobody = cluster.connect(Who::Nobody).ask("GET", "/version", &[], "");
    nobody.refuses(401, "Unauthorized");
    assert!(nobody.header("www-authenticate").is_some());
    for wrong in ["Bearer nonsense", "Basic YTpi", "Bearer", ""] {
        let answer = cluster.connect(Who::Nobody).ask("GET", MAPS, &[("Authorization", wrong)], "");
        answer.refuses(401, "Unauthorized");
    }
    // A wrong token is not made good by a certificate.
    let mixed = cluster.connect(Who::Admin).ask("GET", MAPS, &[("Authorization", "Bearer nonsense")], "");
    mixed.refuses(401, "Unauthorized");
    let robot = cluster.connect(Who::Nobody).ask("GET", MAPS, &[("Authorization", &bearer())], "");
    assert_eq!(robot.code, 200);
    let stranger = cluster.connect(Who::Stranger).ask("GET", MAPS, &[], "").refuses(403, "Forbidden");
    let said = "configmaps is forbidden: User \"stranger\" cannot list resource \"configmaps\" in API group \"\" in the \
                namespace \"default\"";
    assert!(stranger.contains(said), "{stranger}");
    let metrics = cluster.connect(Who::Stranger).ask("GET", "/metrics", &[], "").refuses(403, "Forbidden");
    assert!(metrics.contains("forbidden: User \"stranger\" cannot get path \"/metrics\""), "{metrics}");
    for path in ["/api", "/apis", "/api/v1", "/version", "/healthz", "/openid/v1/jwks"] {
        assert_eq!(cluster.connect(Who::Stranger).ask("GET", path, &[], "").code, 200, "{path}");
    }
    for path in [
        "/apis/metrics.k8s.io/v1beta1/nodes",
        "/apis/coordination.k8s.io/v1/leases",
        "/apis/discovery.k8s.io/v1/endpointslices",
        "/troupe/v1/links",
        "/troupe/v1/status",
        "/troupe/v1/backup",
    ] {
        cluster.connect(Who::Stranger).ask("GET", path, &[], "").refuses(403, "Forbidden");
    }
    let review = r#"{"spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}"#;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (who, allowed) in [(Who::Admin, true), (Who::Stranger, false)] {
        let answer = cluster.connect(who).ask("POST", path, &[("Content-Type", JSON)], review);
        assert_eq!((answer.code, &answer.json()["status"]["allowed"]), (201, &json!(allowed)));
    }
    cluster.connect(Who::Nobody).ask("POST", path, &[], review).refuses(401, "Unauthorized");
    cluster.is_alive();
}

#[test]
fn changes_without_a_revision_all_get_through_however_many_come_at_once() {
    const CLIENTS: usize = 30;
    // While one commit is at the disk, all others are made on the same state.
    let cluster = Cluster::start_with_slow_disk(std::time::Duration::from_millis(5));
    assert_eq!(cluster.ask("POST", MAPS, &map("shared")).code, 201);
    let ready = std::sync::Barrier::new(CLIENTS);
    // All of them before any waits for the others.
    let clients: Vec<_> = (0..CLIENTS).map(|_| cluster.connect(Who::Admin)).collect();
    std::thread::scope(|scope| {
        let patches: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(n, mut client)| {
                let ready = &ready;
                scope.spawn(move || {
                    let patch = json!({ "data": { format!("k{n}"): "v" } }).to_string();
                    ready.wait();
                    client.ask("PATCH", &format!("{MAPS}/shared"), &[("Content-Type", MERGE)], &patch).code
                })
            })
            .collect();
        for patch in patches {
            assert_eq!(patch.join().unwrap(), 200);
        }
    });
    let shared = cluster.ask("GET", &format!("{MAPS}/shared"), "").json();
    assert_eq!((0..CLIENTS).filter(|n| shared["data"][format!("k{n}")] == "v").count(), CLIENTS);
}

#[test]
fn a_pod_of_an_account_that_is_not_there_is_forbidden() {
    let cluster = Cluster::start();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |metadata: Value, account: &str| {
        let spec = json!({ "serviceAccountName": account, "containers": [{ "name": "c", "image": "x" }] });
        json!({ "metadata": metadata, "spec": spec }).to_string()
    };
    for (metadata, name) in [(json!({"name": "p"}), "p"), (json!({"generateName": "p-"}), "p-")] {
        let refused = cluster.ask("POST", pods, &pod(metadata, "missing")).refuses(403, "Forbidden");
        let said = format!(
            "pods \"{name}\" is forbidden: error looking up service account default/missing: serviceaccount \"missing\" \
             not found"
        );
        assert_eq!(refused, said);
    }
    assert_eq!(cluster.ask("POST", pods, &pod(json!({"name": "of-default"}), "default")).code, 201);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(cluster.ask("POST", accounts, r#"{"metadata":{"name":"missing"}}"#).code, 201);
    assert_eq!(cluster.ask("POST", pods, &pod(json!({"name": "p"}), "missing")).code, 201);
}

#[test]
fn nobody_is_served_as_somebody_else() {
    let cluster = Cluster::start();
    for (header, value, resource) in [
        ("Impersonate-User", "bob", "users"),
        ("Impersonate-Group", "system:masters", "groups"),
        ("Impersonate-Uid", "1", "uids"),
        ("impersonate-extra-scopes", "all", "userextras"),
    ] {
        let answer = cluster.connect(Who::Admin).ask("GET", MAPS, &[(header, value)], "");
        let message = answer.refuses(403, "Forbidden");
        let said = format!("{resource} \"{value}\" is forbidden: User \"admin\" cannot impersonate");
        assert!(message.starts_with(&said), "{message}");
        let nobody = cluster.connect(Who::Nobody).ask("GET", MAPS, &[(header, value)], "");
        nobody.refuses(401, "Unauthorized");
    }
    let both = [("Impersonate-Extra-Scopes", "all"), ("Impersonate-Group", "g"), ("Impersonate-User", "bob")];
    let message = cluster.connect(Who::Admin).ask("GET", MAPS, &both, "").refuses(403, "Forbidden");
    assert!(message.starts_with("users \"bob\""), "{message}");
    // It only begins as they do.
    assert_eq!(
        cluster.connect(Who::Admin).ask("GET", MAPS, &[("Impersonate-User-Agent", "x")], "").code,
        200
    );
    let review = r#"{"spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}"#;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let headers = [("Content-Type", JSON), ("Impersonate-User", "bob")];
    cluster.connect(Who::Admin).ask("POST", path, &headers, review).refuses(403, "Forbidden");
}

#[test]
fn bodies_beyond_the_limit_are_refused_however_they_come() {
    let limits = Limits { body_bytes: 10_000, ..Limits::default() };
    let cluster = Cluster::start_with(limits);
    let large = json!({ "metadata": { "name": "m" }, "data": { "a": "x".repeat(20_000) } }).to_string();
    let message = cluster.ask("POST", MAPS, &large).refuses(413, "RequestEntityTooLarge");
    assert!(message.contains("10000"), "{message}");
    // Announced only: refused before the body has come.
    let mut client = cluster.connect(Who::Admin);
    client
        .send(format!("POST {MAPS} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n").as_bytes())
        .unwrap();
    client.answer().refuses(413, "RequestEntityTooLarge");
    // Not announced: refused once it is too much.
    let mut client = cluster.connect(Who::Admin);
    client
        .send(format!("POST {MAPS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").as_bytes())
        .unwrap();
    for _ in 0..20 {
        // The server may have had enough already.
        let _ = client.send(format!("3e8\r\n{}\r\n", "x".repeat(1000)).as_bytes());
    }
    client.answer().refuses(413, "RequestEntityTooLarge");
    // Bit by bit: patches do not add up to more than could have come at once.
    assert_eq!(cluster.ask("POST", MAPS, &map("grows")).code, 201);
    let refused = (0..10).find_map(|n| {
        let patch = json!({ "data": { format!("k{n}"): "x".repeat(6_000) } }).to_string();
        let answer = send(&cluster, "PATCH", &format!("{MAPS}/grows"), MERGE, &patch);
        (answer.code != 200).then_some(answer)
    });
    refused.expect("an end").refuses(413, "RequestEntityTooLarge");
    let copies: Vec<Value> =
        (0..64).map(|n| json!({ "op": "copy", "from": "/data", "path": format!("/data/c{n}") })).collect();
    let copies = json!(copies).to_string();
    let bomb = send(&cluster, "PATCH", &format!("{MAPS}/grows"), "application/json-patch+json", &copies);
    bomb.refuses(422, "Invalid");
    cluster.is_alive();
}

#[test]
fn more_requests_than_there_is_room_for_are_told_to_come_back() {
    let cluster = Cluster::start_with(Limits { requests: 1, ..Limits::default() });
    let body = map("slow");
    let mut slow = cluster.connect(Who::Admin);
    let head = format!("POST {MAPS} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    slow.send(head.as_bytes()).unwrap();
    slow.send(&body.as_bytes()[..10]).unwrap();
    let refused = eventually("a refusal", || {
        let answer = cluster.ask("GET", MAPS, "");
        (answer.code == 429).then_some(answer)
    });
    refused.refuses(429, "TooManyRequests");
    assert_eq!(refused.header("retry-after"), Some("1"));
    // Probes and metrics are answered all the same.
    cluster.is_alive();
    assert!(cluster.ask("GET", "/metrics", "").text().contains("troupe_api_requests_in_flight 1"));
    slow.send(&body.as_bytes()[10..]).unwrap();
    assert_eq!(slow.answer().code, 201);
    eventually("room", || (cluster.ask("GET", MAPS, "").code == 200).then_some(()));
}

#[test]
fn more_streams_than_there_is_room_for_are_told_to_come_back() {
    let cluster = Cluster::start_with(Limits { streams: 1, ..Limits::default() });
    let mut first = cluster.connect(Who::Admin);
    first.send(format!("GET {MAPS}?watch=true HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    assert!(first.head().starts_with("HTTP/1.1 200"));
    let refused = cluster.ask("GET", &format!("{MAPS}?watch=true"), "");
    refused.refuses(429, "TooManyRequests");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(cluster.ask("GET", MAPS, "").code, 200, "what is no stream is served");
    assert_eq!(cluster.ask("POST", MAPS, &map("seen")).code, 201);
    let event: Value = serde_json::from_slice(&first.chunk().expect("an event")).unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("seen")));
    drop(first);
    eventually("room", || {
        let watch = cluster.ask("GET", &format!("{MAPS}?watch=true&timeoutSeconds=1"), "");
        (watch.code == 200).then_some(())
    });
}

#[test]
fn the_slow_are_cut_off_and_keep_nobody_waiting() {
    let limits = Limits {
        head_timeout: Duration::from_millis(500),
        request_timeout: Duration::from_millis(500),
        ..Limits::default()
    };
    let cluster = Cluster::start_with(limits);
    // No handshake; half a head; a head without its body.
    let silent: Vec<_> = (0..20).map(|_| cluster.tcp()).collect();
    let mut half_heads: Vec<_> = (0..20)
        .map(|_| {
            let mut client = cluster.connect(Who::Admin);
            client.send(format!("GET {MAPS} HTTP/1.1\r\nHost: x\r\nX-Slow: ").as_bytes()).unwrap();
            client
        })
        .collect();
    let mut no_bodies: Vec<_> = (0..20)
        .map(|_| {
            let mut client = cluster.connect(Who::Admin);
            let head = format!("POST {MAPS} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{");
            client.send(head.as_bytes()).unwrap();
            client
        })
        .collect();
    cluster.is_alive();
    for mut tcp in silent {
        use std::io::Read as _;
        let mut rest = Vec::new();
        // Closed or reset: either way it is over.
        let _ = tcp.read_to_end(&mut rest);
    }
    for client in &mut half_heads {
        let said = String::from_utf8(client.closed()).unwrap();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    }
    for client in &mut no_bodies {
        client.answer().refuses(504, "Timeout");
    }
    cluster.is_alive();
}

#[test]
fn what_is_no_http_is_cut_off() {
    let cluster = Cluster::start();
    let mut plain = cluster.tcp();
    plain.write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody").unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut plain, &mut said).unwrap();
    assert!(said.starts_with("HTTP/1.0 400 Bad Request\r\n"), "{said}");
    assert!(said.ends_with("\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"), "{said}");
    let _ = cluster.tcp().write_all(&[0xff; 4096]);
    let many_headers: String = (0..2_000).map(|n| format!("X-{n}: 1\r\n")).collect();
    for nonsense in [
        "nonsense\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20)),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{many_headers}\r\n"),
        format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(1 << 20)),
        "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n".to_owned(),
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_owned(),
    ] {
        let mut client = cluster.connect(Who::Admin);
        // It may close while we still write.
        let _ = client.send(nonsense.as_bytes());
        let said = String::from_utf8_lossy(&client.closed()).into_owned();
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
        cluster.is_alive();
    }
}

#[test]
fn a_nodes_refusal_of_an_image_reaches_the_client_as_a_status() {
    let cluster = Cluster::start();
    let load = "/api/v1/nodes/n1/proxy/images/load";
    let loaded = send(&cluster, "POST", load, "application/octet-stream", "an image");
    assert_eq!((loaded.code, loaded.json()), (200, json!(["loaded 8 bytes"])));
    let refused = send(&cluster, "POST", load, "application/octet-stream", "a bad image");
    assert_eq!(refused.refuses(400, "BadRequest"), "no image: it is bad");
    send(&cluster, "POST", "/api/v1/nodes/gone/proxy/images/load", "x/y", "")
        .refuses(503, "ServiceUnavailable");
    send(&cluster, "POST", "/api/v1/nodes/never/proxy/images/load", "x/y", "").refuses(404, "NotFound");
    send(&cluster, "POST", "/api/v1/nodes/n1/proxy/images/import", "x/y", "").refuses(400, "BadRequest");
    assert_eq!(cluster.ask("GET", "/api/v1/nodes/n1/proxy/images", "").json(), json!(["a:1"]));
    cluster.is_alive();
}
