//! S5 (S5d): start of `troupe up` → node Ready, API serving.
//!
//! On docker with an engine that runs. One that never ran a pod of Troupe's is given the program's own image once, which
//! is a figure beside; all others are of one that has it.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    Options,
    calls::Calls,
    cluster::Cluster,
    ground::{Ground, On},
    row::{Row, Times, ms},
};

/// S5, on a new data directory and on the one of before.
pub fn ready(options: &Options, on: On) -> Vec<Row> {
    const BUDGET: Duration = Duration::from_millis(500);
    let Some(ground) = Ground::open(on) else { return Vec::new() };
    let first = ground.socket().map(|_| serves(&ground.start(options)));
    let (mut fresh, mut again, mut line) = (Times::default(), Times::default(), Times::default());
    let (mut limit, mut asked) = (Times::default(), Times::default());
    for _ in 0..options.rounds(on.pick(20, 10), on.pick(5, 3)) {
        let mut cluster = ground.start(options);
        fresh.push(serves(&cluster));
        line.push(cluster.ready_line);
        cluster.stop();
        cluster.resume();
        again.push(serves(&cluster));
        // It has the subnet.
        drop(cluster);
        limit.push(bare(&options.program));
        asked.extend(ground.socket().map(Calls::time_greeting));
    }
    vec![Row {
        name: on.pick("S5", "S5d"),
        what: on.pick(
            "start of `troupe up` → a client over TLS sees its node Ready".into(),
            "the same with `--runtime docker`, an engine runs".into(),
        ),
        troupe: format!(
            "new directory {} (ready line after {}); the same again {}{}",
            fresh.text(),
            ms(line.median()),
            again.text(),
            first.map_or(String::new(), |first| {
                format!("; the first on an engine, which is given Troupe's image, {}", ms(first))
            })
        ),
        beside: format!(
            "one process, two key pairs, eight fsyncs: {}{}",
            limit.text(),
            on.pick(
                String::new(),
                format!(
                    "; an engine's version, two images, its containers and a new network: {}",
                    asked.text()
                )
            )
        ),
        budget: "≤ 0.5 s".into(),
        met: fresh.median() <= BUDGET && again.median() <= BUDGET,
    }]
}

/// From the start until a new client has been told that the node is ready.
fn serves(cluster: &Cluster) -> Duration {
    let mut client = cluster.login().connect();
    assert!(cluster.node_ready(&mut client), "the ready line came before the node was ready");
    cluster.begun.elapsed()
}

/// What any such start needs: the program's own, keys for an authority and its first certificate, files that last.
fn bare(program: &Path) -> Duration {
    let dir = tempfile::tempdir().expect("a new directory");
    let begun = Instant::now();
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    assert!(version.expect("it starts").success());
    for _ in 0..2 {
        rcgen::KeyPair::generate().expect("a key pair");
    }
    for file in 0..8 {
        let mut file = File::create(dir.path().join(file.to_string())).expect("a new file");
        file.write_all(&[b'x'; 1000]).and_then(|()| file.sync_all()).expect("the disk works");
    }
    begun.elapsed()
}
