//! Two clusters in one process: neither hears of the other.

use k8s_openapi::api::core::v1::Pod;
use troupe::WatchEvent;

use crate::support::{controller, running, simulated, system};

#[test]
fn two_clusters_live_side_by_side_and_one_outlives_the_other() {
    system(async {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) =
            futures_util::future::join(simulated(here.path()), simulated(there.path())).await;
        assert_ne!(first.master().api(), second.master().api());
        assert_ne!(first.master().ca().pem(), second.master().ca().pem());
        first.client().create(&controller("same", 2)).await.unwrap();
        second.client().create(&controller("same", 3)).await.unwrap();
        let (ours, theirs) = (running(&first.client(), 2).await, running(&second.client(), 3).await);
        assert!(ours.iter().all(|uid| !theirs.contains(uid)));

        let mut watcher = second.client().watch::<Pod>(None);
        let WatchEvent::Listed(pods) = watcher.next().await else { panic!("it begins with a list") };
        assert_eq!(pods.len(), 3);
        first.stop().await;
        second.client().scale("default", "same", 4).await.unwrap();
        running(&second.client(), 4).await;
        let WatchEvent::Applied(fourth) = watcher.next().await else { panic!("a fourth pod") };
        assert!(!theirs.contains(&fourth.metadata.uid.unwrap()));
        second.stop().await;
    });
}
