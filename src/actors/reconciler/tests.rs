//! The reconcilers on a small store, each under a supervisor.

use serde_json::{Value, json};

use super::*;
use crate::{
    actors::{
        supervisor::{Supervisor, SupervisorHandle, SupervisorSpec},
        testing::{Bench, system},
    },
    model::Kind,
};

async fn start(spec: ChildSpec) -> SupervisorHandle {
    let root = Supervisor::start(SupervisorSpec::new("test"));
    root.start_child(spec).await.unwrap();
    root
}

#[test]
fn the_garbage_collector_removes_thousands_of_dependents_and_their_dependents() {
    system(async {
        let bench = Bench::new();
        let map = |name: &str, owner: Option<(&str, &str)>| {
            let mut value = json!({"metadata": {"name": name, "namespace": "default"}});
            if let Some((name, uid)) = owner {
                value["metadata"]["ownerReferences"] =
                    json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid}]);
            }
            value
        };
        let owner = bench.create(Kind::ConfigMap, map("owner", None)).await;
        let kept = bench.create(Kind::ConfigMap, map("kept", None)).await;
        let mut middle = owner.clone();
        for n in 0..1_000 {
            let of = Some(("owner", owner.uid().as_str()));
            middle = bench.create(Kind::ConfigMap, map(&format!("m{n}"), of)).await;
        }
        let of = Some((&*middle.key.name, middle.uid().as_str()));
        bench.create(Kind::ConfigMap, map("leaf", of)).await;
        let root = start(garbage(&bench.wiring())).await;
        bench.quiet().await;
        assert_eq!(bench.list(Kind::ConfigMap).len(), 1_003);
        bench.remove(&owner.key).await;
        bench.quiet().await;
        let left: Vec<Key> = bench.list(Kind::ConfigMap).iter().map(|o| o.key.clone()).collect();
        assert_eq!(left, std::slice::from_ref(&kept.key));
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_new_cluster_is_furnished_and_a_terminating_namespace_vanishes() {
    system(async {
        let bench = Bench::new();
        let bootstrap = Bootstrap {
            ca_pem: "PEM".into(),
            api_address: "192.0.2.1".into(),
            api_port: 6443,
            service_address: None,
        };
        let root = start(namespaces(&bench.wiring(), bootstrap)).await;
        bench.quiet().await;
        assert_eq!(bench.list(Kind::ServiceAccount).len(), 4);
        let x = json!({"metadata": {"name": "x"}, "spec": {"finalizers": ["kubernetes"]}});
        let x = bench.create(Kind::Namespace, x).await;
        bench.until_all(|s| s.list(Kind::ServiceAccount, Some("x")).count() == 1).await;
        for n in 0..600 {
            let map = json!({"metadata": {"name": format!("m{n}"), "namespace": "x"}});
            bench.create(Kind::ConfigMap, map).await;
        }
        bench.change(&x.key, |n| n["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into()).await;
        bench.until_all(|s| s.find(&x.key).is_none()).await;
        bench.quiet().await;
        assert!(bench.view.snapshot().all().all(|o| &*o.key.namespace != "x"));
        root.shutdown().await.unwrap();
    });
}

#[test]
fn endpoints_name_a_service_s_ready_pods_and_go_with_it() {
    system(async {
        let bench = Bench::new();
        let root = start(endpoints(&bench.wiring())).await;
        let service = json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        let service = bench.create(Kind::Service, service).await;
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        bench.create(Kind::Pod, pod).await;
        let key = Key { kind: Kind::Endpoints, ..service.key.clone() };
        let named = |o: &crate::model::Object| {
            o.parse::<Value>().is_ok_and(|e| e["subsets"][0]["addresses"][0]["ip"] == "10.0.0.1")
        };
        bench.until(&key, named).await;
        root.inject_panic("endpoints").await.unwrap();
        bench.remove(&service.key).await;
        bench.until_all(|s| s.find(&key).is_none()).await;
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_pod_that_leaves_a_tainted_node_is_told_of_and_stays_as_long_as_it_says() {
    // The clock on the wall counts, as in times that are stored.
    actix::System::new().block_on(async {
        let bench = Bench::new();
        let root = start(evictions(&bench.wiring())).await;
        let node = |name: &str| json!({"metadata": {"name": name}});
        let a = bench.create(Kind::Node, node("a")).await;
        bench.create(Kind::Node, node("b")).await;
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"containers": [{"name": "c"}], "nodeName": "a", "tolerations": [
                {"key": "mine", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
            ]},
            "status": {"phase": "Running"},
        });
        let pod = bench.create(Kind::Pod, pod).await;
        let added = outside::now().to_string();
        let taint = json!([{"key": "mine", "effect": "NoExecute", "timeAdded": added}]);
        let begun = std::time::Instant::now();
        bench.change(&a.key, |node| node["spec"]["taints"] = taint).await;
        bench.until(&pod.key, |pod| pod.facet.meta.deleting.is_some()).await;
        let after = begun.elapsed();
        assert!(after >= Duration::from_secs(1), "{after:?}");
        while bench.reasons().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(bench.reasons(), ["TaintManagerEviction"]);
        root.shutdown().await.unwrap();
    });
}
