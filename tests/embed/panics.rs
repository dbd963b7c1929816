//! A panic in each kind of actor: the tree starts it again, and the cluster is what it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use troupe::{
    Cluster, ClusterConfig, Persistence,
    actors::supervisor::{ChildInfo, ChildState, SupervisorHandle},
    model::{Key, Kind},
};

use crate::{
    real::{Machine, may_run_containers},
    support::{WITHIN, controller, meta, pod_spec, running, simulated, system},
};

/// One actor of each class in a tree, by its path.
async fn one_of_each(root: &SupervisorHandle) -> Vec<ChildInfo> {
    let mut seen = BTreeSet::new();
    root.tree().await.into_iter().filter(|child| seen.insert(child.class)).collect()
}

/// An actor of this class as it is now; of pods one that stays, since others may be on their way out.
async fn one_of(root: &SupervisorHandle, class: &str, uids: &[String]) -> ChildInfo {
    let stays =
        |child: &ChildInfo| class != "pod" || uids.iter().any(|uid| child.name.ends_with(uid.as_str()));
    let found = root.tree().await.into_iter().find(|child| child.class == class && stays(child));
    found.unwrap_or_else(|| panic!("no {class}"))
}

/// Waits until the actor of that path runs in a later incarnation.
async fn restarted(root: &SupervisorHandle, before: &ChildInfo) {
    let again = async {
        loop {
            let tree = root.tree().await;
            let now = tree.iter().find(|child| child.name == before.name);
            if now.is_some_and(|n| n.state == ChildState::Running && n.incarnation > before.incarnation) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(WITHIN, again).await.is_err() {
        panic!("{} was not started again: {:#?}", before.name, root.tree().await);
    }
}

/// A panic of an actor ends nothing and restarts nothing but itself, and the controller goes on.
async fn survives(cluster: &Cluster, root: &SupervisorHandle, victim: &ChildInfo, uids: &mut Vec<String>) {
    let client = cluster.client();
    root.inject_panic(&victim.name).await.unwrap();
    restarted(root, victim).await;
    cluster.ready(WITHIN).await.unwrap();
    assert_eq!(running(&client, 5).await, *uids, "other pods after a panic of {}", victim.name);

    client.scale("default", "five", 6).await.unwrap();
    let six = running(&client, 6).await;
    assert!(uids.iter().all(|uid| six.contains(uid)), "pods were replaced after a panic of {}", victim.name);
    client.scale("default", "five", 5).await.unwrap();
    // Of pods that became ready within one second any may go.
    *uids = running(&client, 5).await;
    assert!(
        uids.iter().all(|uid| six.contains(uid)),
        "a scale down made pods after a panic of {}",
        victim.name
    );
    for pod in client.list::<Pod>(None, "app=five").unwrap() {
        let statuses = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
        let restarts: i32 = statuses.iter().map(|s| s.restart_count).sum();
        assert_eq!(restarts, 0, "a panic of {} restarted a container", victim.name);
    }
}

#[test]
fn a_panic_of_any_actor_of_the_master_changes_nothing() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let cluster = simulated(directory.path()).await;
        cluster.client().create(&controller("five", 5)).await.unwrap();
        let mut uids = running(&cluster.client(), 5).await;
        let root = cluster.master().supervisor();
        let victims = one_of_each(root).await;
        let classes: BTreeSet<&str> = victims.iter().map(|v| v.class).collect();
        for class in [
            "store",
            "events",
            "namespaces",
            "garbage collector",
            "endpoints",
            "replication",
            "replication controllers",
            "replication controller",
            "replication manager",
            "scheduler",
            "nodes",
            "node handles",
            "node",
            "node registry",
        ] {
            assert!(classes.contains(class), "no {class} among {classes:?}");
        }
        // The store's death ends the cluster, as another test shows.
        for victim in victims.iter().filter(|v| v.class != "store") {
            let now = root.tree().await.into_iter().find(|now| now.name == victim.name).unwrap();
            survives(&cluster, root, &now, &mut uids).await;
        }
        cluster.stop().await;
    });
}

#[test]
fn a_panic_of_any_actor_of_a_node_changes_nothing() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let cluster = simulated(directory.path()).await;
        cluster.client().create(&controller("five", 5)).await.unwrap();
        let mut uids = running(&cluster.client(), 5).await;
        let root = cluster.nodes()[0].supervisor();
        let victims = one_of_each(root).await;
        let classes: BTreeSet<&str> = victims.iter().map(|v| v.class).collect();
        assert_eq!(classes, BTreeSet::from(["kubelet", "node", "pod", "pods", "uplink"]));
        for victim in victims {
            let now = one_of(root, victim.class, &uids).await;
            survives(&cluster, root, &now, &mut uids).await;
        }
        cluster.stop().await;
    });
}

#[test]
fn a_panic_of_any_actor_ends_no_real_container() {
    if !may_run_containers() {
        return;
    }
    system(async {
        let machine = Machine::open().await;
        let cluster = machine.cluster().await;
        let mut five = controller("five", 5);
        let template = five.spec.as_mut().and_then(|s| s.template.as_mut()?.spec.as_mut()).unwrap();
        template.containers[0].image = Some("troupe.local/hello".into());
        cluster.client().create(&five).await.unwrap();
        let mut uids = running(&cluster.client(), 5).await;
        for root in [cluster.master().supervisor(), cluster.nodes()[0].supervisor()] {
            for class in one_of_each(root).await.into_iter().map(|v| v.class).filter(|c| *c != "store") {
                let victim = one_of(root, class, &uids).await;
                let before = containers(&cluster);
                survives(&cluster, root, &victim, &mut uids).await;
                let after = containers(&cluster);
                for (uid, container) in before.iter().filter(|(uid, _)| uids.contains(uid)) {
                    assert_eq!(after.get(uid), Some(container), "another container after a panic of {class}");
                }
            }
        }
        cluster.client().scale("default", "five", 0).await.unwrap();
        running(&cluster.client(), 0).await;
        cluster.stop().await;
    });
}

/// Which container each pod runs.
fn containers(cluster: &Cluster) -> BTreeMap<String, String> {
    let pods = cluster.client().list::<Pod>(None, "app=five").unwrap();
    let id = |pod: &Pod| pod.status.as_ref()?.container_statuses.as_ref()?.first()?.container_id.clone();
    pods.iter().filter_map(|pod| Some((pod.metadata.uid.clone()?, id(pod)?))).collect()
}

#[test]
fn a_pod_actor_that_dies_while_its_pod_ends_still_ends_it() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let cluster = simulated(directory.path()).await;
        let client = cluster.client();
        let mut spec = pod_spec(&[("SIM_IGNORE_SIGTERM", "1")]);
        spec.termination_grace_period_seconds = Some(2);
        let pod = Pod { metadata: meta("stubborn"), spec: Some(spec), status: None };
        client.create(&pod).await.unwrap();
        let uids = running(&client, 1).await;
        let root = cluster.nodes()[0].supervisor();
        let victim = root.tree().await.into_iter().find(|c| c.name.ends_with(uids[0].as_str())).unwrap();
        client.delete::<Pod>("default", "stubborn").await.unwrap();
        root.inject_panic(&victim.name).await.unwrap();
        let key = Key::new(Kind::Pod, "default", "stubborn");
        client.until(WITHIN, |s| s.find(&key).is_none().then_some(())).await.unwrap();
        cluster.stop().await;
    });
}

#[test]
fn a_controller_that_dies_in_the_middle_of_its_work_creates_no_pod_twice() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let cluster = simulated(directory.path()).await;
        let client = cluster.client();
        let root = cluster.master().supervisor();
        let made = client.create(&controller("many", 40)).await.unwrap();
        let uid = made.metadata.uid.unwrap();
        let path = format!("replication/replication controllers/{uid}");
        let from = client.view().snapshot().revision;
        // Early and again, so that some hit while a commit is under way.
        for _ in 0..5 {
            // It may be between two incarnations.
            let _ = root.inject_panic(&path).await;
            tokio::task::yield_now().await;
        }
        running(&client, 40).await;
        let created = client.view().watch(from).ready().unwrap();
        let gone = created
            .iter()
            .filter(|c| c.object.key.kind == Kind::Pod && c.kind == troupe::messages::ChangeKind::Deleted);
        assert_eq!(gone.count(), 0);
        cluster.stop().await;
    });
}

#[test]
fn the_death_of_the_store_is_escalated_and_loses_nothing_that_was_acknowledged() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let mut config = ClusterConfig::simulated(directory.path()).nodes(["sim"]);
        config.master.persistence = Persistence::Directory(directory.path().into());
        let (told, mut escalations) = tokio::sync::mpsc::unbounded_channel();
        config.master.on_escalate = std::sync::Arc::new(move |e| drop(told.send(e)));
        let cluster = Cluster::start(config).await.unwrap();
        cluster.ready(WITHIN).await.unwrap();
        cluster.client().create(&controller("kept", 1)).await.unwrap();

        cluster.master().supervisor().inject_panic("store").await.unwrap();
        let failed = tokio::time::timeout(WITHIN, cluster.failed()).await.unwrap();
        assert_eq!(failed.supervisor, "master");
        assert!(failed.reason.contains("store") && failed.reason.contains("injected"), "{}", failed.reason);
        let told = tokio::time::timeout(WITHIN, escalations.recv()).await.unwrap().unwrap();
        assert_eq!(told.reason, failed.reason);
        assert!(cluster.client().create(&controller("late", 1)).await.is_err());
        tokio::time::timeout(WITHIN, cluster.stop()).await.expect("a failed cluster can be stopped");

        let mut config = ClusterConfig::simulated(directory.path()).nodes(["sim"]);
        config.master.persistence = Persistence::Directory(directory.path().into());
        let cluster = Cluster::start(config).await.unwrap();
        cluster.ready(WITHIN).await.unwrap();
        running(&cluster.client(), 1).await;
        cluster.stop().await;
    });
}
