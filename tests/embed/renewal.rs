//! Certificates within one process: renewed while everything runs.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use troupe::{Cluster, ClusterConfig};

use crate::support::{WITHIN, system};

/// Long enough to start a cluster in, short enough to see the end of.
const LIFE: Duration = Duration::from_secs(8);

#[test]
fn a_node_beside_its_master_can_link_again_after_the_end_of_its_first_certificate() {
    system(async {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ClusterConfig::simulated(dir.path()).nodes(["sim"]);
        config.master.certificates = LIFE;
        let cluster = Cluster::start(config).await.unwrap();
        let first = cluster.master().kubeconfig();
        cluster.ready(WITHIN).await.unwrap();
        tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
        assert_ne!(cluster.master().kubeconfig(), first, "the administrator's was renewed");
        // Its link is closed with its object, and it registers itself again over another.
        let client = cluster.client();
        let uid = client.get::<Node>("", "sim").unwrap().unwrap().metadata.uid;
        client.delete::<Node>("", "sim").await.unwrap();
        let again = |snapshot: &troupe::model::Snapshot| {
            let key = troupe::model::Key::new(troupe::model::Kind::Node, "", "sim");
            let node = snapshot.find(&key)?;
            (Some(node.uid().to_string()) != uid).then_some(())
        };
        client.until(WITHIN, again).await.unwrap();
        cluster.ready(WITHIN).await.unwrap();
        cluster.stop().await;
    });
}
