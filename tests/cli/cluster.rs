//! `troupe cluster`: what it shows of a real cluster.

use crate::harness::Cluster;

#[test]
fn the_clusters_own_state_is_shown_at_a_glance() {
    let cluster = Cluster::start();
    let ran = cluster.troupe(&["cluster", "status"]);
    let text = ran.ok();
    assert!(text.starts_with("Cluster troupe, troupe "), "{text}");
    assert!(text.contains("Nodes: 1 of 1 ready\n"), "{text}");
    assert!(text.contains("\nCertificates: authority until 20") && !text.contains("WARNING"), "{text}");
    let row = |begin: &str| {
        let line = text.lines().find(|line| line.starts_with(begin));
        line.unwrap_or_else(|| panic!("no {begin} in\n{text}")).split_whitespace().collect::<Vec<_>>()
    };
    assert_eq!(row("NODE"), ["NODE", "READY", "PODS", "LINK", "RTT", "LOST", "STREAMS", "QUEUE", "ADDRESS"]);
    let node = row("n1");
    assert_eq!(node[..4], ["n1", "True", "0", "up"]);
    assert!(
        node[5].ends_with("ms") && node[6].ends_with('%') && node[9].starts_with("127.0.0.1:"),
        "{node:?}"
    );
    assert_eq!(row("store")[..3], ["store", "running", "0"]);
    // Those of the node beside it as well.
    assert!(text.contains("node n1: node/kubelet"), "{text}");

    let ran = cluster.troupe(&["cluster", "status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(ran.ok()).unwrap();
    assert_eq!(status["problems"], serde_json::json!([]));
    assert!(
        status["store"]["revision"].as_u64().unwrap() >= status["store"]["watchableSince"].as_u64().unwrap()
    );
    assert_eq!(status["store"]["failing"], false);
    assert!(status["nodes"][0]["link"]["sentPackets"].as_u64().unwrap() > 0, "{status}");
    assert!(cluster.troupe(&["cluster"]).code == 2);
}

#[test]
fn a_backup_is_whole_private_and_refused_once_it_is_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let cluster = Cluster::start();
    cluster.run(crate::harness::TROUPE, &["create", "configmap", "kept", "--from-literal=a=b"], "").ok();
    let file = cluster.write("backup", "an older one");
    let said = cluster.troupe(&["backup", &file]);
    assert!(said.ok().contains("keys and secrets"), "{said:?}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let bytes = std::fs::read(&file).unwrap();
    let left = std::fs::read_dir(cluster.file("")).unwrap().flatten();
    let left: Vec<_> =
        left.map(|e| e.file_name()).filter(|n| n.to_string_lossy().ends_with(".part")).collect();
    assert!(left.is_empty(), "{left:?}");

    let data = cluster.file("restored");
    let restore = |file: &str| cluster.troupe(&["restore", file, "--data-dir", data.to_str().unwrap()]);
    let cut = cluster.file("cut");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let refused = restore(cut.to_str().unwrap());
    assert!(refused.fails(1).contains("cut off"), "{refused:?}");
    let refused = restore(&cluster.write("other", "something else\n"));
    assert!(refused.fails(1).contains("no backup of troupe"), "{refused:?}");
    assert!(!data.exists());
    assert!(restore(&file).ok().contains("restored the cluster troupe"));
    assert!(data.join("objects").is_dir() && data.join("pki/ca.key").is_file());
    // One that is running, or was ever used, is never touched.
    let live = cluster.file("data");
    let refused = cluster.troupe(&["restore", &file, "--data-dir", live.to_str().unwrap()]);
    assert!(refused.fails(1).contains("is not empty"), "{refused:?}");
    assert!(cluster.troupe(&["get", "configmap", "kept"]).code == 0);
    // What is no file stays what it is.
    let link = cluster.file("link");
    std::os::unix::fs::symlink("behind", &link).unwrap();
    assert!(cluster.troupe(&["backup", link.to_str().unwrap()]).code == 0);
    assert!(link.is_symlink() && cluster.file("behind").is_file());
    let fifo = cluster.file("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || std::fs::read(fifo).unwrap()
    });
    let said = cluster.troupe(&["backup", fifo.to_str().unwrap()]);
    assert!(said.code == 0 && said.out.is_empty() && said.err.contains("keys and secrets"), "{said:?}");
    assert_eq!(reader.join().unwrap()[..16], bytes[..16]);
    // Standard output is the harness's pipe.
    for stdout in ["-", "/dev/stdout", "/dev/fd/1"] {
        let said = cluster.troupe(&["backup", stdout]);
        assert!(
            said.code == 0 && said.out.len() > 1000 && said.err.contains("standard output: "),
            "{said:?}"
        );
    }
    assert!(!cluster.file("-").exists());
    // Where there is no room for the file, it says so and leaves nothing.
    let nowhere = cluster.troupe(&["backup", "/nowhere/backup"]);
    assert!(nowhere.fails(1).contains("/nowhere/backup"), "{nowhere:?}");
}
