//! Started and stopped again and again: no thread and no file stays behind.

use std::{fs, process::Command, time::Duration};

use crate::support::{WITHIN, controller, running, simulated, system};

const ROUNDS: usize = 5;

/// Threads and open files of this process.
fn held() -> (Vec<String>, Vec<String>) {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut threads: Vec<String> =
        tasks.filter_map(|t| Some(fs::read_to_string(t.path().join("comm")).ok()?.trim().into())).collect();
    let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
    // The directory that is being read is open too, but gone before its link can be followed.
    let mut files: Vec<String> =
        open.filter_map(|f| Some(fs::read_link(f.path()).ok()?.to_string_lossy().into())).collect();
    // The generator of random numbers opens this once and for all.
    files.retain(|file| file != "/dev/urandom");
    threads.sort();
    files.sort();
    (threads, files)
}

/// Waits until no more is held than before: idle threads for blocking work end by themselves after 10 s.
async fn settled(what: &str, before: &(Vec<String>, Vec<String>)) {
    let same = async {
        loop {
            let (threads, files) = held();
            if threads.len() <= before.0.len() && files.len() <= before.1.len() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    if tokio::time::timeout(WITHIN, same).await.is_err() {
        panic!("{what}: before {before:#?}, now {:#?}", held());
    }
}

/// Other tests of this process have threads and files too, so the counting is done in another.
#[test]
fn five_clusters_one_after_the_other_leave_no_thread_and_no_file() {
    let me = std::env::current_exe().unwrap();
    let output = Command::new(me)
        .args(["--exact", "again::counted", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "run by the test above, alone in its process"]
fn counted() {
    // The first system of a process opens what all later ones share.
    system(async {});
    let outside = held();
    system(async {
        let inside = held();
        for round in 0..ROUNDS {
            let directory = tempfile::tempdir().unwrap();
            let cluster = simulated(directory.path()).await;
            cluster.client().create(&controller("two", 2)).await.unwrap();
            running(&cluster.client(), 2).await;
            cluster.stop().await;
            if round == 0 {
                settled("after the first", &inside).await;
            }
        }
        settled("after the last", &inside).await;
    });
    let (threads, files) = held();
    assert_eq!((threads.len(), files.len()), (outside.0.len(), outside.1.len()), "{threads:?} {files:?}");
}
