//! A full disk: the client is told, nothing is damaged, and it goes on when there is room.

use std::{fs::File, io::Write as _, path::Path};

use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::harness::{Cluster, Options, check, controller, is_ready, kill9, ready, text, until};

/// A cluster, not up yet, whose data directory is a small file system of its own; what it leaves goes with its guard.
fn on_small_disk(options: &str) -> Cluster {
    let dir = tempfile::Builder::new().prefix("troupe-e2e-").tempdir().expect("a directory");
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).expect("a directory");
    let cluster = Cluster::prepared(Options::default(), dir, data);
    let fault = mount(Some("none"), &cluster.data, Some("tmpfs"), MsFlags::empty(), Some(options));
    fault.expect("a tmpfs");
    cluster
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file");
    for size in [1 << 20, 1 << 12, 1] {
        let block = vec![0; size];
        while file.write_all(&block).is_ok() {}
    }
}

#[test]
fn a_full_disk_is_told_to_the_client_and_forgotten_when_there_is_room() {
    if !ready() {
        return;
    }
    // Room for the built-in image (this very program) and some.
    let program = std::fs::metadata(env!("CARGO_BIN_EXE_troupe")).unwrap().len();
    let mut cluster = on_small_disk(&format!("size={}", 2 * program + (160 << 20)));
    cluster.up();
    cluster.apply("default", &controller("web", 2, &[]));
    let before = cluster.until_ready("default", 2);

    let ballast = cluster.data.join("ballast");
    fill(&ballast);
    // A write of half a megabyte does not fit into what is reserved already.
    let much = "x".repeat(500_000);
    let document = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"much": much}});
    let refused = until("a write is refused", || {
        let name = format!("big-{}", rand_name());
        let ran = cluster.kubectl_in(&["create", "-f", "-"], &document(&name).to_string());
        if ran.code() == Some(0) { Err("it was taken".into()) } else { Ok(ran.err()) }
    });
    assert!(refused.contains("No space left on device"), "{refused}");
    let readiness = cluster.kubectl(&["get", "--raw", "/readyz?verbose"]);
    assert!(
        readiness.code() != Some(0) && readiness.err().contains("[-]store failed"),
        "{}",
        readiness.err()
    );
    // What is there is still served, and a container that dies is started again, disk or not.
    assert_eq!(cluster.pods("default").unwrap().len(), 2);
    let victim = &before[0];
    kill9(cluster.pid(victim));

    std::fs::remove_file(&ballast).unwrap();
    until("writes are taken again", || {
        cluster.kubectl_in(&["create", "-f", "-"], &document("after").to_string()).result()
    });
    until("it is ready again", || cluster.kubectl(&["get", "--raw", "/readyz"]).result());
    cluster.until_pod("default", text(&victim["metadata"]["name"]), "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_i64() >= Some(1) && is_ready(pod)
    });
    // Nothing was damaged: what was acknowledged is there after a kill.
    let names = |cluster: &Cluster| -> Vec<String> {
        let list = cluster.get(&["configmaps", "-n", "default"]);
        list["items"].as_array().unwrap().iter().map(|o| text(&o["metadata"]["name"]).to_owned()).collect()
    };
    let kept = names(&cluster);
    cluster.kill();
    cluster.up();
    assert_eq!(names(&cluster), kept);
    let after = cluster.until_ready("default", 2);
    assert_eq!(after[0]["metadata"]["uid"], before[0]["metadata"]["uid"]);
    until("the controller is content", || {
        let rc = cluster.try_get(&["rc", "web"])?;
        check(rc["status"]["readyReplicas"] == 2, || rc["status"].to_string())
    });
}

/// A name that was not used before in this process.
fn rand_name() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Whether a node says that it is low on disk.
fn has_disk_pressure(cluster: &Cluster) -> Result<bool, String> {
    let node = cluster.try_get(&["node", "n1"])?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Ok(conditions.iter().any(|c| c["type"] == "DiskPressure" && c["status"] == "True"))
}

#[test]
fn images_on_a_disk_of_their_own_have_thresholds_and_numbers_of_their_own() {
    if !ready() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("troupe-e2e-").tempdir().expect("a directory");
    let data = dir.path().join("data");
    let images = data.join("images");
    std::fs::create_dir_all(&images).expect("a directory");
    let arguments =
        vec!["--eviction-hard", "imagefs.available<15%", "--eviction-pressure-transition-period", "1s"];
    let mut cluster = Cluster::prepared(Options { arguments, ..Options::default() }, dir, data);
    let sized = |bytes: u64, flags: MsFlags| {
        let options = format!("size={bytes}");
        mount(Some("none"), &images, Some("tmpfs"), flags, Some(options.as_str())).expect("a tmpfs");
    };
    let program = std::fs::metadata(env!("CARGO_BIN_EXE_troupe")).unwrap().len();
    let (whole, page) = (4 * program + (64 << 20), 4096);
    let whole = whole / page * page;
    sized(whole, MsFlags::empty());
    cluster.up();
    cluster.apply("default", &controller("web", 1, &[]));
    let pod = cluster.until_ready("default", 1).remove(0);

    let summary = || -> Result<serde_json::Value, String> {
        let told = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/n1/proxy/stats/summary"]).result()?;
        serde_json::from_str(&told).map_err(|error| error.to_string())
    };
    let told = until("the images' disk is told of", || {
        let told = summary()?;
        let capacity = &told["node"]["runtime"]["imageFs"]["capacityBytes"];
        check(capacity.as_u64() == Some(whole), || told["node"].to_string())?;
        Ok(told)
    });
    let (own, layers) = (&told["node"]["fs"], &told["node"]["runtime"]["containerFs"]);
    assert_eq!(own["capacityBytes"], layers["capacityBytes"], "what containers write is with the pods");
    assert_ne!(own["capacityBytes"].as_u64(), Some(whole));
    assert!(!has_disk_pressure(&cluster).unwrap());

    // The disk is as small as it can be: a tenth of it is free.
    let used = nix::sys::statvfs::statvfs(&images).unwrap();
    let used = (used.blocks() - used.blocks_free()) * used.fragment_size();
    sized(used / 9 * 10, MsFlags::MS_REMOUNT);
    until("it is low", || check(has_disk_pressure(&cluster)?, || "no pressure".into()));
    cluster.until_event("default", "n1", "EvictionThresholdMet");
    // Nobody's end would give room there.
    let name = text(&pod["metadata"]["name"]);
    assert!(is_ready(&cluster.pod("default", name).unwrap()));
    sized(whole, MsFlags::MS_REMOUNT);
    until("it is not low any more", || check(!has_disk_pressure(&cluster)?, || "pressure".into()));
    let after = cluster.pod("default", name).unwrap();
    assert!(is_ready(&after) && after["metadata"]["uid"] == pod["metadata"]["uid"]);
}

#[test]
fn a_read_only_data_directory_is_refused_with_one_line() {
    if !ready() {
        return;
    }
    let cluster = on_small_disk("size=1m,ro");
    let error = crate::refusals::refused(&mut cluster.command(), 1);
    assert!(error.contains(&cluster.data.display().to_string()), "{error}");
    assert!(error.contains("Read-only file system") && error.contains("--data-dir"), "{error}");
}
