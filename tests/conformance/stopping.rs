//! Cases: stopping and removing containers.

use std::time::{Duration, Instant};

use troupe::runtime::{ContainerConfig, ContainerId, ContainerState, Exit};

use super::{
    archives::{reader, signal_awaited, signalled},
    harness::{Bench, Harness, LONG, until},
};

pub async fn a_polite_program_ends_by_itself_within_its_grace<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let args = ["--print", "up", "--exit-code", "7"];
    let id = bench.start("a", bench.hello("c", &args)).await;
    bench.line("c", "up").await;
    let begun = Instant::now();
    bench.runtime().stop_container(&id, LONG).await.unwrap();
    assert!(begun.elapsed() < LONG / 2);
    // Already when the call returns.
    let ContainerState::Exited(exit) = bench.state(&id).await else { panic!("still running") };
    assert_eq!((exit.code, exit.signal), (7, None));
    assert_eq!(bench.told_exit(&id).await, exit);
}

pub async fn a_stubborn_program_is_killed_after_its_grace<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let id = bench.start("a", bench.hello("c", &["--print", "up", "--ignore-sigterm"])).await;
    bench.line("c", "up").await;
    let (begun, grace) = (Instant::now(), Duration::from_millis(100));
    bench.runtime().stop_container(&id, grace).await.unwrap();
    assert!(begun.elapsed() >= grace);
    let ContainerState::Exited(exit) = bench.state(&id).await else { panic!("still running") };
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
}

pub async fn no_grace_kills_at_once<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let id = bench.start("a", bench.hello("c", &["--ignore-sigterm"])).await;
    bench.runtime().stop_container(&id, Duration::ZERO).await.unwrap();
    assert!(matches!(bench.state(&id).await, ContainerState::Exited(exit) if exit.signal == Some(9)));
}

pub async fn stopping_what_has_ended_or_never_was_is_no_error<H: Harness>(bench: &mut Bench<H>) {
    let unknown = ContainerId("never-was".into());
    bench.runtime().stop_container(&unknown, LONG).await.unwrap();
    bench.runtime().remove_container(&unknown).await.unwrap();
    bench.sandbox("a").await;
    let id = bench.start("a", bench.hello("c", &["--once", "--exit-code", "4"])).await;
    let exit = bench.exit(&id).await;
    for _ in 0..2 {
        bench.runtime().stop_container(&id, LONG).await.unwrap();
    }
    assert_eq!(bench.state(&id).await, ContainerState::Exited(exit), "the exit is the program's own");
    for _ in 0..2 {
        bench.runtime().remove_container(&id).await.unwrap();
        assert!(bench.find(&id).await.is_none());
    }
    bench.runtime().stop_container(&id, LONG).await.unwrap();
}

pub async fn a_container_never_started_can_be_stopped_and_removed<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let id = bench.create("a", bench.hello("c", &[])).await.unwrap();
    bench.runtime().stop_container(&id, LONG).await.unwrap();
    bench.runtime().remove_container(&id).await.unwrap();
    assert!(bench.find(&id).await.is_none());
}

pub async fn removing_a_running_container_kills_it<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    bench.runtime().remove_container(&id).await.unwrap();
    assert_eq!(bench.told_exit(&id).await.signal, Some(9));
    assert!(bench.find(&id).await.is_none());
    assert!(bench.find_sandbox("a").await.unwrap().ready);
}

pub async fn an_exit_stays_readable_until_removal<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let id = bench.start("a", bench.hello("c", &["--once", "--exit-code", "9"])).await;
    let exit = bench.exit(&id).await;
    bench.runtime().stop_pod_sandbox(&"a".into()).await.unwrap();
    assert_eq!(bench.state(&id).await, ContainerState::Exited(exit.clone()));
    bench.restart(async {}).await;
    let ContainerState::Exited(read) = bench.state(&id).await else { panic!("it runs") };
    // A later process has it from the engine, which may tell an end a moment after it.
    assert!((read.finished_ms - exit.finished_ms).abs() < 1000, "{read:?} {exit:?}");
    assert_eq!(Exit { finished_ms: exit.finished_ms, ..read }, exit);
    bench.runtime().remove_container(&id).await.unwrap();
    assert!(bench.find(&id).await.is_none());
}

pub async fn two_stops_at_once_both_return<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let (one, two, three) = tokio::join!(
        bench.runtime().stop_container(&id, LONG),
        bench.runtime().stop_container(&id, Duration::from_millis(50)),
        bench.runtime().stop_container(&id, LONG),
    );
    one.and(two).and(three).unwrap();
    assert!(matches!(bench.state(&id).await, ContainerState::Exited(_)));
}

pub async fn a_program_is_asked_to_end_by_the_signal_of_its_container_or_image<H: Harness>(
    bench: &mut Bench<H>,
) {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("skipped: the image's program is for another processor");
        return;
    }
    bench.sandbox("a").await;
    for (name, of_image, own, number) in [
        ("neither", None, None, 15),
        ("image", Some("SIGQUIT"), None, 3),
        ("both", Some("SIGQUIT"), Some("SIGUSR1"), 10),
        ("own", None, Some("SIGRTMIN+3"), 37),
    ] {
        let archive = signalled(&format!("{name}:1"), of_image);
        bench.runtime().load_image(reader(archive), None).await.unwrap();
        let config = ContainerConfig {
            image: format!("{name}:1"),
            stop_signal: own.map(str::to_owned),
            ..bench.hello(name, &[])
        };
        let id = bench.start("a", config).await;
        let pid = bench.find(&id).await.unwrap().pid.unwrap();
        until(|| signal_awaited(pid)).await.unwrap();
        bench.runtime().stop_container(&id, LONG).await.unwrap();
        let ContainerState::Exited(exit) = bench.state(&id).await else { panic!("{name}: still running") };
        assert_eq!((exit.code, exit.signal), (number, None), "{name}");
    }
}
