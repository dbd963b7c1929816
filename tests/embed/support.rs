//! What these tests share: a system with a deadline, a small controller, and ways to wait.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{
        Container, EnvVar, Pod, PodSpec, PodTemplateSpec, ReplicationController, ReplicationControllerSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use troupe::{
    Client, Cluster, ClusterConfig,
    model::{Kind, KindFacet, Phase, Snapshot},
};

/// Ample also on a machine that does much else; only a test that fails sees its end.
pub const WITHIN: Duration = Duration::from_secs(60);

/// Runs a test in an actor system of its own.
pub fn system(test: impl Future<Output = ()>) {
    actix::System::new().block_on(async {
        let whole = WITHIN * 8;
        tokio::time::timeout(whole, test).await.expect("the test hangs");
    });
}

/// A cluster of one simulated node, ready. What is dropped with a failed test stops by itself.
pub async fn simulated(directory: &std::path::Path) -> Cluster {
    let cluster = Cluster::start(ClusterConfig::simulated(directory).nodes(["sim"])).await.unwrap();
    cluster.ready(WITHIN).await.unwrap();
    cluster
}

pub fn meta(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some("default".into()), ..ObjectMeta::default() }
}

pub fn pod_spec(env: &[(&str, &str)]) -> PodSpec {
    let env = env.iter().map(|(name, value)| EnvVar {
        name: (*name).into(),
        value: Some((*value).into()),
        ..EnvVar::default()
    });
    let container = Container {
        name: "main".into(),
        image: Some("example.com/any:1".into()),
        env: Some(env.collect()),
        ..Container::default()
    };
    PodSpec { containers: vec![container], ..PodSpec::default() }
}

pub fn controller(name: &str, replicas: i32) -> ReplicationController {
    let labels = BTreeMap::from([("app".to_owned(), name.to_owned())]);
    ReplicationController {
        metadata: meta(name),
        spec: Some(ReplicationControllerSpec {
            replicas: Some(replicas),
            selector: Some(labels.clone()),
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod_spec(&[])),
            }),
            ..ReplicationControllerSpec::default()
        }),
        status: None,
    }
}

/// The uids of all pods, when there are exactly so many and all run.
pub fn all_run(snapshot: &Snapshot, count: usize) -> Option<Vec<String>> {
    let pods: Vec<_> = snapshot.list(Kind::Pod, None).collect();
    let runs = |o: &&std::sync::Arc<troupe::model::Object>| {
        o.facet.meta.deleting.is_none()
            && matches!(&o.facet.of, KindFacet::Pod(p) if p.phase == Phase::Running && p.ready)
    };
    let mut uids: Vec<String> = pods.iter().filter(|o| runs(o)).map(|o| o.uid().to_string()).collect();
    uids.sort();
    (pods.len() == count && uids.len() == count).then_some(uids)
}

/// Waits until there are exactly so many pods and all run; gives their uids.
pub async fn running(client: &Client, count: usize) -> Vec<String> {
    match client.until(WITHIN, |s| all_run(s, count)).await {
        Ok(uids) => uids,
        Err(error) => {
            let pods: Vec<Pod> = client.list(None, "").unwrap();
            let told = pods.iter().map(|p| (&p.metadata.name, &p.metadata.deletion_timestamp, &p.status));
            panic!("{count} running pods: {error}; there are {:#?}", told.collect::<Vec<_>>());
        }
    }
}
