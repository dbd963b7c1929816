//! `kill -9` of `troupe up` at random moments of scaling.

use std::time::Duration;

use crate::harness::{Cluster, DEADLINE, Options, check, controller, ready, text, until};

/// Restarts of the master within one run of this test.
const ROUNDS: u64 = 10;
/// What chance chooses from.
const REPLICAS: u64 = 7;

/// A small generator with a seed that can be printed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

#[test]
fn scaling_ends_with_the_exact_pods_however_often_troupe_is_killed_meanwhile() {
    if !ready() {
        return;
    }
    let seed = std::env::var("TROUPE_E2E_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed: TROUPE_E2E_SEED={seed}");
    let mut chance = Chance(seed);
    let mut cluster = Cluster::start(Options::default());
    cluster.apply("default", &controller("web", 2, &[]));
    let mut replicas = 2;
    for round in 0..ROUNDS {
        replicas = chance.below(REPLICAS);
        let wanted = format!("--replicas={replicas}");
        cluster.kubectl(&["scale", "rc", "web", &wanted]).ok();
        if chance.below(3) == 0 {
            let pods = cluster.pods("default").unwrap();
            if let Some(pod) = pods.get(usize::try_from(chance.below(8)).unwrap()) {
                cluster.kubectl(&["delete", "pod", "--wait=false", text(&pod["metadata"]["name"])]).ok();
            }
        }
        // This is the random moment itself, not a wait for something.
        std::thread::sleep(Duration::from_millis(chance.below(400)));
        println!("round {round}: killed on the way to {replicas}");
        cluster.kill();
        if chance.below(2) == 0 {
            // Also while it recovers and takes over.
            cluster.flash(Duration::from_millis(chance.below(600)));
        }
        cluster.up();
    }
    let count = usize::try_from(replicas).unwrap();
    until("everything has settled", || {
        let rc = cluster.try_get(&["rc", "web"])?;
        let status = &rc["status"];
        check(
            status["replicas"] == replicas && status["readyReplicas"].as_u64().unwrap_or(0) == replicas,
            || status.to_string(),
        )?;
        let pods = cluster.pods("default")?;
        check(pods.len() == count, || format!("{} pods", pods.len()))?;
        // One container for each pod that there is, and none for any other: no orphans, no duplicates.
        let mut expected: Vec<String> = pods
            .iter()
            .map(|pod| {
                let id = text(&pod["status"]["containerStatuses"][0]["containerID"]);
                format!("{}/{}", text(&pod["metadata"]["uid"]), id.trim_start_matches("native://"))
            })
            .collect();
        let mut running: Vec<String> = cluster.processes().into_iter().map(|(_, group)| group).collect();
        expected.sort();
        running.sort();
        check(expected == running, || format!("expected {expected:?}, running {running:?}"))?;
        check(cluster.shims() == count, || format!("{} shims", cluster.shims()))
    });
    // Events have a limit of their own: what was restarted so often still answers at once.
    let begun = std::time::Instant::now();
    cluster.kubectl(&["get", "events"]).ok();
    assert!(begun.elapsed() < DEADLINE / 2);
}
