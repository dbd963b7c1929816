//! Cases: the process that drives the runtime ends without a word, and another takes its place.

use std::time::Duration;

use troupe::runtime::ContainerState;

use super::harness::{Bench, Harness, LONG};

pub async fn running_containers_are_found_with_the_same_process<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let (pod, before) = (bench.find_sandbox("a").await.unwrap(), bench.find(&id).await.unwrap());
    bench.restart(async {}).await;
    let (pod_after, after) = (bench.find_sandbox("a").await.unwrap(), bench.find(&id).await.unwrap());
    assert_eq!((pod_after.ready, pod_after.ip, pod_after.created_ms), (true, pod.ip, pod.created_ms));
    assert_eq!(after.state, ContainerState::Running);
    assert!(before.pid.is_some());
    assert_eq!((after.pid, after.started_ms, after.attempt), (before.pid, before.started_ms, before.attempt));
    assert_eq!((after.name, after.image, after.image_id), (before.name, before.image, before.image_id));
    // Running it again, as a kubelet may, changes nothing.
    assert_eq!(bench.sandbox("a").await.ip, pod.ip);
    assert_eq!(bench.find(&id).await.unwrap().pid, before.pid);
}

pub async fn what_ended_while_nobody_drove_is_found_with_its_code<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let id = bench.start("a", bench.hello("c", &["--exit-after", "500ms", "--exit-code", "9"])).await;
    let long = bench.start("a", bench.hello("long", &["--listen", "127.0.0.1:0"])).await;
    bench.restart(tokio::time::sleep(Duration::from_millis(700))).await;
    let exit = bench.exit(&id).await;
    assert_eq!((exit.code, exit.signal), (9, None));
    assert_eq!(bench.state(&long).await, ContainerState::Running);
}

pub async fn a_container_created_before_can_be_started_after<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let id = bench.create("a", bench.hello("c", &["--print", "here", "--once"])).await.unwrap();
    bench.restart(async {}).await;
    assert_eq!(bench.state(&id).await, ContainerState::Created);
    bench.runtime().start_container(&id).await.unwrap();
    assert_eq!(bench.exit(&id).await.code, 0);
    assert_eq!(bench.log("c"), ["stdout F here"]);
}

pub async fn addresses_in_use_are_not_given_out_again<H: Harness>(bench: &mut Bench<H>) {
    let mut addresses = vec![bench.sandbox("a").await.ip, bench.sandbox("b").await.ip];
    bench.restart(async {}).await;
    for uid in ["c", "d"] {
        let address = bench.sandbox(uid).await.ip;
        assert!(address.is_some() && !addresses.contains(&address), "{address:?} of {addresses:?}");
        addresses.push(address);
    }
}

pub async fn an_adopted_container_is_heard_and_can_be_stopped<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let stopped = bench.start("a", bench.hello("polite", &["--print", "up"])).await;
    let killed = bench.running("b").await;
    bench.line("polite", "up").await;
    bench.restart(async {}).await;
    bench.runtime().stop_container(&stopped, LONG).await.unwrap();
    assert_eq!(bench.told_exit(&stopped).await.code, 0);
    bench.harness.kill(&bench.find(&killed).await.unwrap());
    assert_eq!(bench.told_exit(&killed).await.signal, Some(9));
}

pub async fn images_are_still_here<H: Harness>(bench: &mut Bench<H>) {
    let archive = super::archives::docker(&["app:1"], &[super::archives::layer("f", "1")]);
    bench.runtime().load_image(super::archives::reader(archive), None).await.unwrap();
    let before = bench.runtime().image("app:1").await.unwrap().unwrap();
    bench.restart(async {}).await;
    assert_eq!(bench.runtime().image("app:1").await.unwrap(), Some(before));
}

pub async fn sandboxes_removed_before_are_not_found_after<H: Harness>(bench: &mut Bench<H>) {
    let kept = bench.running("kept").await;
    bench.running("gone").await;
    bench.runtime().remove_pod_sandbox(&"gone".into()).await.unwrap();
    bench.restart(async {}).await;
    assert!(bench.find_sandbox("gone").await.is_none() && bench.find_sandbox("kept").await.is_some());
    let all = bench.runtime().list_containers().await.unwrap();
    assert_eq!(all.into_iter().map(|container| container.id).collect::<Vec<_>>(), [kept]);
}
