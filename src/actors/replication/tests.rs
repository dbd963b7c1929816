//! Replication as a whole: manager, controllers and a small store, under a real supervisor.

use serde_json::{Value, json};

use super::*;
use crate::{
    actors::{
        supervisor::Supervisor,
        testing::{Bench, system},
    },
    model::{Key, Kind, KindFacet, Snapshot},
};

fn controller(replicas: i32) -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "default", "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"app": "web"},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    })
}

fn key() -> Key {
    Key::new(Kind::ReplicationController, "default", "web")
}

fn pods(snapshot: &Snapshot) -> usize {
    snapshot.list(Kind::Pod, None).filter(|p| p.facet.meta.controller().is_some()).count()
}

async fn start(bench: &Bench) -> SupervisorHandle {
    let root = Supervisor::start(SupervisorSpec::new("test"));
    root.start_child(child(&bench.wiring())).await.unwrap();
    root
}

#[test]
fn a_controller_makes_its_pods_once_and_replaces_what_is_lost() {
    system(async {
        let bench = Bench::new();
        let root = start(&bench).await;
        bench.create(Kind::ReplicationController, controller(700)).await;
        bench.until_all(|s| pods(s) >= 700).await;
        bench.quiet().await;
        assert_eq!(pods(&bench.view.snapshot()), 700);
        let status = bench.find(&key()).unwrap().parse::<Value>().unwrap()["status"].clone();
        assert_eq!(status, json!({"replicas": 700, "fullyLabeledReplicas": 700, "observedGeneration": 1}));

        let lost = bench.list(Kind::Pod)[0].key.clone();
        bench.remove(&lost).await;
        bench.quiet().await;
        assert_eq!(pods(&bench.view.snapshot()), 700);
        assert!(bench.find(&lost).is_none());

        bench.change(&key(), |rc| rc["spec"]["replicas"] = 2.into()).await;
        bench.quiet().await;
        assert_eq!(pods(&bench.view.snapshot()), 2);
        let reasons = bench.reasons();
        assert_eq!(reasons.iter().filter(|r| *r == "SuccessfulCreate").count(), 701);
        assert_eq!(reasons.iter().filter(|r| *r == "SuccessfulDelete").count(), 698);
        root.shutdown().await.unwrap();
    });
}

#[test]
fn pods_on_nodes_are_deleted_with_grace_and_orphans_adopted() {
    system(async {
        let bench = Bench::new();
        let root = start(&bench).await;
        let pod = json!({
            "metadata": {"name": "before", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": "n"},
        });
        let orphan = bench.create(Kind::Pod, pod).await;
        let rc = bench.create(Kind::ReplicationController, controller(1)).await;
        let adopted = bench.until(&orphan.key, |p| p.facet.meta.controller().is_some()).await;
        assert_eq!(adopted.facet.meta.controller().unwrap().uid, *rc.uid());
        bench.quiet().await;
        assert_eq!(bench.list(Kind::Pod).len(), 1);
        bench.change(&key(), |rc| rc["spec"]["replicas"] = 0.into()).await;
        let ending = bench.until(&orphan.key, |p| p.facet.meta.deleting.is_some()).await;
        assert_eq!(ending.facet.meta.deleting.unwrap().grace_seconds, 30);
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_panic_of_manager_or_controller_changes_nothing_in_the_end() {
    system(async {
        let bench = Bench::new();
        let root = Supervisor::start(SupervisorSpec::new("test"));
        let handle = SupervisorHandle::new("replication");
        root.start_child(child_at(&bench.wiring(), &handle)).await.unwrap();
        bench.create(Kind::ReplicationController, controller(3)).await;
        bench.until_all(|s| pods(s) == 3).await;
        handle.inject_panic("replication manager").await.unwrap();
        let rc = bench.change(&key(), |rc| rc["spec"]["replicas"] = 5.into()).await;
        bench.until_all(|s| pods(s) == 5).await;
        bench.quiet().await;
        assert_eq!(pods(&bench.view.snapshot()), 5);
        bench.remove(&key()).await;
        bench.quiet().await;
        let KindFacet::ReplicationController(_) = &rc.facet.of else { panic!() };
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_controller_whose_account_is_missing_still_lets_go_and_adopts() {
    system(async {
        let bench = Bench::new();
        let root = start(&bench).await;
        bench.create(Kind::ReplicationController, controller(1)).await;
        bench.until_all(|s| pods(s) == 1).await;
        bench.quiet().await;
        let strange = |rc: &mut Value| {
            rc["metadata"]["generation"] = 2.into();
            rc["spec"]["replicas"] = 3.into();
            rc["spec"]["template"]["spec"]["serviceAccountName"] = "missing".into();
        };
        bench.change(&key(), strange).await;
        let own = bench.list(Kind::Pod)[0].key.clone();
        bench.change(&own, |pod| pod["metadata"]["labels"] = json!({"app": "other"})).await;
        bench.until(&own, |p| p.facet.meta.controller().is_none()).await;
        let orphan = json!({
            "metadata": {"name": "before", "namespace": "default", "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        });
        let orphan = bench.create(Kind::Pod, orphan).await;
        bench.until(&orphan.key, |p| p.facet.meta.controller().is_some()).await;
        bench
            .until(&key(), |rc| {
                let rc = rc.parse::<Value>().unwrap();
                rc["status"]["conditions"][0]["message"]
                    .as_str()
                    .is_some_and(|m| m.contains("\"missing\" not found"))
            })
            .await;
        assert!(bench.reasons().iter().any(|r| r == "FailedCreate"));
        root.shutdown().await.unwrap();
    });
}
