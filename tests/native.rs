//! What is particular to the native runtime, with real containers: isolation, limits, survival, and that nothing is left.
//!
//! Needs root and a static busybox (`apt install busybox-static`). Each test has a bridge, a subnet, a cgroup and a
//! directory of its own, removed when it ends however it ends.

mod native {
    pub mod bench;
}

use native::bench::{Bench, argv, config};

#[tokio::test]
async fn a_container_runs_exits_and_is_found_again() {
    let mut bench = Bench::new();
    let pod = bench.sandbox("p1").await;
    let container = bench.start(&pod, config("c", &["sh", "-c", "echo hello; exit 3"])).await;
    let exit = bench.exit(&container).await;
    assert_eq!((exit.code, exit.signal), (3, None));
    assert_eq!(bench.output("c"), ["stdout F hello"]);
    bench.reopen();
    let found = bench.status(&container).await;
    assert_eq!(found.state, troupe::runtime::ContainerState::Exited(exit));
    let _ = argv(&[]);
}
