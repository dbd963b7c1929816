//! Tokens of service accounts: asked for by kubectl, found by programs in their files, shown to the API.

use std::{fs, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::harness::{Cluster, bare_pod, check, controller, hello, is_ready, ready, shared, text, until};

/// What a token says, unverified.
fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).expect("a token has three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// A review's answer.
fn review(cluster: &Cluster, kind: &str, spec: &Value, more: &[&str]) -> Result<Value, String> {
    let document = json!({"apiVersion": "authentication.k8s.io/v1", "kind": kind, "spec": spec});
    let path = format!("/apis/authentication.k8s.io/v1/{}s", kind.to_lowercase());
    let arguments = [&["create", "--raw", &path, "-f", "-"], more].concat();
    let out = cluster.kubectl_in(&arguments, &document.to_string()).result()?;
    Ok(serde_json::from_str::<Value>(&out).unwrap()["status"].clone())
}

/// Who the API takes the holder of a token for; what it says to who may not speak.
fn whoami(cluster: &Cluster, token: &str) -> Result<Value, String> {
    let status = review(cluster, "SelfSubjectReview", &json!({}), &[&format!("--token={token}")])?;
    Ok(status["userInfo"].clone())
}

/// A path as the pod's container sees it.
fn inside(cluster: &Cluster, pod: &Value, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", cluster.pid(pod)))
}

/// A pod whose container has a token at `/v/token`.
fn with_token(name: &str, account: &str) -> Value {
    let mut container = hello("c", &[]);
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let mut pod = bare_pod(name, "Always", &[container]);
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 600}});
    pod["spec"]["volumes"] = json!([{"name": "v", "projected": {"sources": [token]}}]);
    pod["spec"]["serviceAccountName"] = account.into();
    pod
}

#[test]
fn kubectl_creates_tokens_and_the_api_knows_their_holders() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "tokens";
    cluster.namespace(ns);
    cluster.kubectl(&["create", "serviceaccount", "-n", ns, "robot"]).ok();
    let create = |more: &[&str]| {
        let arguments = [&["create", "token", "robot", "-n", ns][..], more].concat();
        cluster.kubectl(&arguments).result().map(|out| out.trim().to_owned())
    };
    let token = create(&["--duration", "20m"]).unwrap();
    let said = claims(&token);
    assert_eq!(said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap(), 1200);
    let who = whoami(&cluster, &token).unwrap();
    assert_eq!(who["username"], "system:serviceaccount:tokens:robot");
    assert_eq!(
        who["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:tokens", "system:authenticated"])
    );
    let account = cluster.get(&["serviceaccount", "-n", ns, "robot"]);
    assert_eq!(who["uid"], account["metadata"]["uid"]);

    // It may read what the API is like, and nothing else.
    let with = format!("--token={token}");
    cluster.kubectl(&["get", "--raw", "/version", &with]).ok();
    cluster.kubectl(&["api-resources", &with]).ok();
    let refused = cluster.kubectl(&["get", "pods", "-n", ns, &with]).fails();
    let words = "User \"system:serviceaccount:tokens:robot\" cannot list resource \"pods\" in API group \"\" in the \
                 namespace \"tokens\"";
    assert!(refused.contains(words), "{refused}");

    // Others' tokens, and what is none.
    let elsewhere = create(&["--audience", "vault"]).unwrap();
    for bad in [&elsewhere, "nonsense", &format!("{token}x"), &token.replace('.', "..")] {
        let refused = whoami(&cluster, bad).unwrap_err();
        assert!(refused.contains("Unauthorized") || refused.contains("must be logged in"), "{refused}");
    }
    let seen_by = |audience: &str| {
        review(&cluster, "TokenReview", &json!({"token": elsewhere, "audiences": [audience]}), &[]).unwrap()
    };
    let seen = seen_by("vault");
    assert_eq!((&seen["authenticated"], &seen["audiences"]), (&json!(true), &json!(["vault"])));
    assert_eq!(seen["user"]["username"], "system:serviceaccount:tokens:robot");
    assert_ne!(seen_by("else")["authenticated"], true);
    review(&cluster, "TokenReview", &json!({"token": token}), &[&with]).unwrap_err();

    // What cannot be.
    for (more, words) in [
        (&["--duration", "5m"][..], "may not specify a duration less than 10 minutes"),
        (&["--bound-object-kind", "Pod", "--bound-object-name", "none"], "pods \"none\" not found"),
    ] {
        let refused = create(more).unwrap_err();
        assert!(refused.contains(words), "{refused}");
    }
    let nobody = cluster.kubectl(&["create", "token", "nobody", "-n", ns]).fails();
    assert!(nobody.contains("serviceaccounts \"nobody\" not found"), "{nobody}");

    // It ends with its account, also when there is a new one of that name.
    cluster.kubectl(&["delete", "serviceaccount", "-n", ns, "robot"]).ok();
    whoami(&cluster, &token).unwrap_err();
    cluster.kubectl(&["create", "serviceaccount", "-n", ns, "robot"]).ok();
    whoami(&cluster, &token).unwrap_err();
    whoami(&cluster, &create(&[]).unwrap()).unwrap();

    // Those who verify by themselves find the key.
    let configuration = cluster.kubectl(&["get", "--raw", "/.well-known/openid-configuration"]).ok();
    let configuration: Value = serde_json::from_str(&configuration).unwrap();
    assert!(text(&configuration["jwks_uri"]).ends_with("/openid/v1/jwks"), "{configuration}");
    assert_eq!(configuration["issuer"], said["iss"]);
    let keys: Value =
        serde_json::from_str(&cluster.kubectl(&["get", "--raw", "/openid/v1/jwks"]).ok()).unwrap();
    assert_eq!((&keys["keys"][0]["kty"], &keys["keys"][0]["alg"]), (&json!("EC"), &json!("ES256")));
}

#[test]
fn a_pods_program_has_a_token_of_its_own_that_ends_with_the_pod() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "pod-tokens";
    cluster.namespace(ns);
    // Without its account there is no pod.
    let refused =
        cluster.kubectl_in(&["create", "-n", ns, "-f", "-"], &with_token("p", "robot").to_string()).fails();
    assert!(refused.contains("error looking up service account pod-tokens/robot"), "{refused}");
    cluster.kubectl(&["create", "serviceaccount", "-n", ns, "robot"]).ok();
    cluster.apply(ns, &with_token("p", "robot"));
    let pod = cluster.until_pod(ns, "p", "ready", is_ready);
    let file = inside(&cluster, &pod, "/v/token");
    let token = fs::read_to_string(&file).unwrap();
    let bound = &claims(&token)["kubernetes.io"];
    assert_eq!(bound["pod"]["uid"], pod["metadata"]["uid"]);
    assert_eq!(bound["node"]["name"], "n1");
    let who = whoami(&cluster, &token).unwrap();
    assert_eq!(who["username"], "system:serviceaccount:pod-tokens:robot");
    assert_eq!(who["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    // Another one for it is made by hand, and for no other account's pod.
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", "p"];
    let create = |account: &str| {
        let arguments = [&["create", "token", account, "-n", ns][..], &bound].concat();
        cluster.kubectl(&arguments).result()
    };
    whoami(&cluster, create("robot").unwrap().trim()).unwrap();
    let refused = create("default").unwrap_err();
    assert!(refused.contains("different serviceaccount"), "{refused}");
    // With a new account of its name the running pod gets a new token.
    cluster.kubectl(&["delete", "serviceaccount", "-n", ns, "robot"]).ok();
    cluster.kubectl(&["create", "serviceaccount", "-n", ns, "robot"]).ok();
    let token = until("a token of the new account", || {
        let now = fs::read_to_string(&file).map_err(|error| error.to_string())?;
        check(whoami(&cluster, &now).is_ok(), || "the token is of the old account".into()).map(|()| now)
    });
    cluster.kubectl(&["delete", "pod", "-n", ns, "p", "--grace-period=1"]).ok();
    whoami(&cluster, &token).unwrap_err();
}

#[test]
fn pods_that_ask_for_it_find_token_authority_and_namespace_at_the_usual_place() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "automount";
    cluster.namespace(ns);
    // The pod says so, or its account does; a controller's pods are made the same way.
    let mut pod = bare_pod("p", "Always", &[hello("c", &[])]);
    pod["spec"]["automountServiceAccountToken"] = true.into();
    cluster.apply(ns, &pod);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"},
        "automountServiceAccountToken": true});
    cluster.apply(ns, &account);
    let mut many = controller("many", 1, &[]);
    many["spec"]["template"]["spec"]["serviceAccountName"] = "robot".into();
    cluster.apply(ns, &many);
    cluster.apply(ns, &bare_pod("without", "Always", &[hello("c", &[])]));
    let pods = cluster.until_ready(ns, 3);
    let place = |pod: &Value, file: &str| {
        inside(&cluster, pod, &format!("/var/run/secrets/kubernetes.io/serviceaccount/{file}"))
    };
    for pod in &pods {
        let name = text(&pod["metadata"]["name"]);
        if name == "without" {
            assert!(!place(pod, "token").exists());
            continue;
        }
        assert_eq!(fs::read_to_string(place(pod, "namespace")).unwrap(), ns);
        assert!(fs::read_to_string(place(pod, "ca.crt")).unwrap().contains("BEGIN CERTIFICATE"));
        let token = fs::read_to_string(place(pod, "token")).unwrap();
        let account = if name == "p" { "default" } else { "robot" };
        let who = whoami(&cluster, &token).unwrap();
        assert_eq!(who["username"], format!("system:serviceaccount:{ns}:{account}"));
        let said = claims(&token);
        assert_eq!(said["kubernetes.io"]["warnafter"].as_i64(), said["iat"].as_i64().map(|at| at + 3607));
        let volume = text(&pod["spec"]["volumes"][0]["name"]);
        assert!(volume.starts_with("kube-api-access-"), "{volume}");
    }
}
