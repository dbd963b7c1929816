//! Cases: the life of a pod's sandbox.

use troupe::{
    model::Uid,
    runtime::{ContainerState, RuntimeError, RuntimeEvent, SandboxConfig},
};

use super::harness::{Bench, Harness, LONG, sandbox};

pub async fn a_sandbox_is_ready_and_listed_with_an_address_of_its_own<H: Harness>(bench: &mut Bench<H>) {
    let (a, b) = (bench.sandbox("a").await, bench.sandbox("b").await);
    assert!(a.ready && b.ready && a.created_ms > 0);
    assert!(a.ip.is_some() && a.ip != b.ip, "{:?} {:?}", a.ip, b.ip);
    let listed = bench.find_sandbox("a").await.unwrap();
    assert_eq!((listed.namespace.as_str(), listed.name.as_str()), ("default", "pod-a"));
    assert_eq!((listed.ip, listed.created_ms, listed.ready), (a.ip, a.created_ms, true));
    assert_eq!(bench.runtime().list_pod_sandboxes().await.unwrap().len(), 2);
}

pub async fn running_a_ready_sandbox_again_gives_the_same_one<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let (first, again) = (bench.find_sandbox("a").await.unwrap(), bench.sandbox("a").await);
    assert_eq!((again.ip, again.created_ms), (first.ip, first.created_ms));
    assert_eq!(bench.state(&id).await, ContainerState::Running);
    // Also when asked twice at once.
    let (one, two) = tokio::join!(bench.sandbox("b"), bench.sandbox("b"));
    assert_eq!((one.ip, one.created_ms), (two.ip, two.created_ms));
}

pub async fn a_sandbox_on_the_hosts_network_has_no_address<H: Harness>(bench: &mut Bench<H>) {
    // Needs no subnet either.
    let config = SandboxConfig { host_network: true, ..sandbox("a") };
    let status = bench.runtime().run_pod_sandbox(config).await.unwrap();
    assert_eq!((status.ready, status.ip), (true, None));
}

pub async fn addresses_run_out_with_a_clear_error_and_come_back<H: Harness>(bench: &mut Bench<H>) {
    let subnet = super::harness::subnet().replace("/24", "/30");
    bench.runtime().set_pod_cidr(&subnet).await.unwrap();
    let first = bench.runtime().run_pod_sandbox(sandbox("a")).await.unwrap();
    let error = bench.runtime().run_pod_sandbox(sandbox("b")).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::System { operation, .. } if operation.contains("address")),
        "{error}"
    );
    assert!(bench.find_sandbox("b").await.is_none(), "a failed sandbox is not listed");
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
    let second = bench.runtime().run_pod_sandbox(sandbox("b")).await.unwrap();
    assert_eq!(second.ip, first.ip);
}

pub async fn no_address_is_given_before_the_node_has_a_subnet<H: Harness>(bench: &mut Bench<H>) {
    let error = bench.runtime().run_pod_sandbox(sandbox("a")).await.unwrap_err().to_string();
    assert!(error.contains("subnet") || error.contains("CIDR"), "{error}");
    assert!(bench.find_sandbox("a").await.is_none());
    bench.sandbox("a").await;
}

pub async fn what_is_no_subnet_is_refused<H: Harness>(bench: &mut Bench<H>) {
    for bad in ["", "10.0.0.0", "300.0.0.0/24", "10.0.0.0/31", "10.0.0.0/x", "fd00::/64"] {
        let error = bench.runtime().set_pod_cidr(bad).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Config(text) if text.contains(bad)), "{bad}: {error}");
    }
}

pub async fn a_stopped_sandbox_is_not_ready_and_takes_no_containers<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    bench.runtime().stop_pod_sandbox(&"a".into()).await.unwrap();
    assert!(!bench.find_sandbox("a").await.unwrap().ready);
    assert!(bench.create("a", bench.hello("c", &[])).await.is_err());
    assert!(bench.runtime().list_containers().await.unwrap().is_empty());
}

pub async fn a_stopped_sandbox_can_be_run_again<H: Harness>(bench: &mut Bench<H>) {
    let old = bench.running("a").await;
    bench.runtime().stop_pod_sandbox(&"a".into()).await.unwrap();
    let again = bench.sandbox("a").await;
    assert!(again.ready && again.ip.is_some());
    let new = bench.start("a", bench.hello("again", &[])).await;
    assert_ne!(old, new);
    assert_eq!(bench.state(&new).await, ContainerState::Running);
}

pub async fn stopping_a_sandbox_ends_its_containers_and_keeps_their_exits<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let other = bench.running("b").await;
    bench.runtime().stop_pod_sandbox(&"a".into()).await.unwrap();
    let ContainerState::Exited(exit) = bench.state(&id).await else { panic!("still running") };
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert_eq!(bench.told_exit(&id).await, exit);
    assert_eq!(bench.state(&other).await, ContainerState::Running, "another pod's");
}

pub async fn removing_a_sandbox_forgets_its_containers<H: Harness>(bench: &mut Bench<H>) {
    bench.running("a").await;
    bench.create("a", bench.hello("created", &[])).await.unwrap();
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
    assert!(bench.find_sandbox("a").await.is_none());
    assert!(bench.runtime().list_containers().await.unwrap().is_empty());
}

pub async fn ending_sandboxes_is_idempotent_also_for_unknown_ones<H: Harness>(bench: &mut Bench<H>) {
    bench.running("a").await;
    for uid in ["never-was", "a", "a"] {
        bench.runtime().stop_pod_sandbox(&uid.into()).await.unwrap();
    }
    for uid in ["never-was", "a", "a"] {
        bench.runtime().remove_pod_sandbox(&uid.into()).await.unwrap();
        bench.runtime().stop_pod_sandbox(&uid.into()).await.unwrap();
    }
}

pub async fn a_lost_sandbox_is_told_and_its_containers_can_be_ended<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let made = bench.create("a", bench.hello("made", &[])).await.unwrap();
    bench.harness.lose_sandbox(&bench.find(&id).await.unwrap());
    bench.event(|event| *event == RuntimeEvent::SandboxLost { pod: Uid::from("a") }).await;
    assert!(!bench.find_sandbox("a").await.unwrap().ready);
    assert!(bench.create("a", bench.hello("late", &[])).await.is_err());
    let refused = bench.runtime().start_container(&made).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::SandboxNotReady(_)), "{refused:?}");
    bench.runtime().stop_container(&id, LONG).await.unwrap();
    assert!(matches!(bench.state(&id).await, ContainerState::Exited(exit) if exit.code == 137));
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
    assert!(bench.sandbox("a").await.ready, "its uid can be used again");
}
