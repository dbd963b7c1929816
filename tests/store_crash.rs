//! The store against SIGKILL: a process that commits is killed at random moments, over and over, on one directory.
//!
//! The test starts itself again as the writer, which commits batches of several writes from several tasks at once and
//! reports each acknowledgement on a pipe. After each death the directory is opened: every acknowledged commit is
//! there, every commit is there whole or not at all, soft ones too, and no revision was ever given twice.
//! `TROUPE_TEST_SEED` repeats a run's choices (not its timing).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix::{Actor, Addr};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::{SigSet, Signal},
};
use troupe::{
    actors::store::StoreActor,
    messages::{Commit, CommitError, Durability, Expected, Write},
    model::{Key, Kind, Object, Revision, Sealed, Snapshot, seal},
    store::{DataDir, Durable, Recovered, recover},
};

const KILLS: usize = 110;
/// Tasks that commit at once, each on objects of its own: the last one commits softly.
const TASKS: usize = 4;
const SOFT: usize = TASKS - 1;
/// Each commit makes one object and removes the one made so many commits before.
const KEPT: u64 = 5;
/// Larger than the database's write buffer, so that a batch reaches the file in pieces.
const PADDING: usize = 3000;
const DIR: &str = "TROUPE_STORE_CRASH_DIR";
const SEED: &str = "TROUPE_TEST_SEED";

#[test]
fn a_killed_store_loses_nothing_it_acknowledged_and_shows_no_half_commit() {
    let mut random = Random::seeded();
    let temp = tempfile::tempdir().unwrap();
    let mut seen = Seen::default();
    let mut commits = 0;
    for life in 0..KILLS {
        let reports = run_and_kill(temp.path(), &mut random);
        commits += reports.len();
        seen.hear(life, &reports);
        seen.check(life, &reopen(temp.path()));
    }
    println!("{KILLS} kills, {commits} acknowledgements");
    assert!(commits > KILLS, "the writers hardly wrote: {commits} acknowledgements");
}

#[test]
fn a_disk_that_takes_no_more_refuses_commits_keeps_reads_and_recovers_by_itself() {
    let temp = tempfile::tempdir().unwrap();
    // The limit that stands in for a full disk holds for a whole process, so it is a process of its own.
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer_on_a_full_disk", "--nocapture"])
        .env(DIR, temp.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let snapshot = reopen(temp.path()).snapshot;
    let names: Vec<&str> = snapshot.all().map(|o| &*o.key.name).collect();
    assert_eq!(names, ["after", "before", "small"]);
}

/// What the writer says on its standard output, a line each.
enum Report {
    /// `start R`: recovered, at this revision.
    Start(u64),
    /// `ack T N R`: task T's commit N is acknowledged, its last revision is R.
    Ack { task: usize, commit: u64, revision: u64 },
}

impl Report {
    fn parse(line: &str) -> Option<Report> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        match kind {
            "start" => Some(Report::Start(number()?)),
            "ack" => Some(Report::Ack { task: number()? as usize, commit: number()?, revision: number()? }),
            _ => None,
        }
    }
}

/// A writer process; it does not outlive the test.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run_and_kill(dir: &Path, random: &mut Random) -> Vec<Report> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut reports = lines.map_while(Result::ok).filter_map(|line| Report::parse(&line));
    let mut writer = Writer(child);
    let mut heard = Vec::new();
    // One life in eight ends at any moment of its start, the others after some acknowledgements.
    if random.below(8) > 0 {
        heard.extend(reports.by_ref().take(1 + random.below(60) as usize));
    } else {
        thread::sleep(Duration::from_micros(random.below(40_000)));
    }
    thread::sleep(Duration::from_micros(random.below(3_000)));
    writer.0.kill().unwrap();
    // What it wrote into the pipe before it died counts.
    heard.extend(reports);
    heard
}

fn reopen(dir: &Path) -> Recovered {
    let dir = DataDir::open(dir).unwrap();
    recover(&mut Durable::open(&dir).unwrap()).unwrap()
}

/// What the test was told in all lives.
#[derive(Default)]
struct Seen {
    acknowledged: BTreeMap<usize, u64>,
    highest: u64,
}

impl Seen {
    fn hear(&mut self, life: usize, reports: &[Report]) {
        let before = self.highest;
        for report in reports {
            let revision = match *report {
                Report::Start(revision) => revision,
                Report::Ack { task, commit, revision } => {
                    self.acknowledged.insert(task, commit);
                    revision
                }
            };
            assert!(revision > before, "life {life}: revision {revision} was given before ({before})");
            self.highest = self.highest.max(revision);
        }
    }

    fn check(&mut self, life: usize, recovered: &Recovered) {
        let snapshot = &recovered.snapshot;
        assert!(snapshot.revision.0 > self.highest, "life {life}: {} would come again", snapshot.revision);
        self.highest = snapshot.revision.0;
        let mut objects = 0;
        for task in 0..TASKS {
            let acknowledged = self.acknowledged.get(&task).copied().unwrap_or(0);
            let commit = last_commit(snapshot, task);
            let newest = if task == SOFT { u64::MAX } else { acknowledged + 1 };
            let oldest = if task == SOFT { 0 } else { acknowledged };
            assert!(
                (oldest..=newest).contains(&commit),
                "life {life}: task {task} is at {commit}, acknowledged is {acknowledged}"
            );
            self.acknowledged.insert(task, commit);
            if commit == 0 {
                continue;
            }
            let whole = [left(task), right(task)].map(|name| number(find(snapshot, &name).unwrap()));
            assert_eq!(whole, [commit; 2], "life {life}: half a commit of task {task}");
            for made in commit.saturating_sub(KEPT - 1).max(1)..=commit {
                let object = find(snapshot, &made_by(task, made));
                assert!(object.is_some(), "life {life}: half of commit {commit} of task {task}: no {made}");
                objects += 1;
            }
            objects += 2;
        }
        assert_eq!(snapshot.len(), objects, "life {life}: something removed came back");
        let highest = snapshot.all().map(|o| o.revision).max().unwrap_or_default();
        assert!(highest < snapshot.revision);
    }
}

fn left(task: usize) -> String {
    format!("task-{task}-left")
}

fn right(task: usize) -> String {
    format!("task-{task}-right")
}

fn made_by(task: usize, commit: u64) -> String {
    format!("task-{task}-made-{commit}")
}

fn key(name: &str) -> Key {
    Key::new(Kind::ConfigMap, "default", name)
}

fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Option<&'a Arc<Object>> {
    snapshot.find(&key(name))
}

fn number(object: &Arc<Object>) -> u64 {
    object.parse::<ConfigMap>().unwrap().data.unwrap()["number"].parse().unwrap()
}

fn last_commit(snapshot: &Snapshot, task: usize) -> u64 {
    find(snapshot, &left(task)).map_or(0, number)
}

fn sealed(name: &str, number: u64) -> Sealed {
    seal(&ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some(format!("uid-{name}")),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([
            ("number".to_owned(), number.to_string()),
            ("padding".to_owned(), "x".repeat(PADDING)),
        ])),
        ..ConfigMap::default()
    })
    .unwrap()
}

/// The writer's whole life, when started by the test above; nothing otherwise.
#[test]
fn writer() {
    let Ok(dir) = std::env::var(DIR) else { return };
    actix::System::new().block_on(async {
        let dir = DataDir::open(dir.as_ref()).unwrap();
        let (actor, view) = StoreActor::open(Durable::open(&dir).unwrap()).unwrap();
        let snapshot = view.snapshot();
        // A line of its own: the test harness has begun one.
        say(&format!("\nstart {}\n", snapshot.revision));
        let store = actor.start();
        let tasks = (0..TASKS)
            .map(|task| actix::spawn(commit_for_ever(store.clone(), task, last_commit(&snapshot, task))));
        futures_util::future::join_all(tasks).await;
    });
}

/// The life of the process that the test of a full disk starts; nothing otherwise.
#[test]
fn writer_on_a_full_disk() {
    let Ok(dir) = std::env::var(DIR) else { return };
    // Beyond the limit a write shall fail, not end the process; the store's thread inherits this.
    SigSet::from(Signal::SIGXFSZ).thread_block().unwrap();
    let dir = DataDir::open(dir.as_ref()).unwrap();
    // A journal that was opened again has no preallocated space, so it must grow.
    drop(Durable::open(&dir).unwrap());
    actix::System::new().block_on(async {
        let (actor, view) = StoreActor::open(Durable::open(&dir).unwrap()).unwrap();
        let store = actor.start();
        let commit = async |names: &[String]| {
            let writes = names.iter().map(|name| Write::Create(sealed(name, 1))).collect();
            store.send(Commit { writes, durability: Durability::Hard }).await.unwrap()
        };
        let many: Vec<String> = (0..200).map(|n| format!("large-{n}")).collect();
        let count = || view.snapshot().len();
        commit(&["before".to_owned()]).await.unwrap();

        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, 100_000, hard).unwrap();
        for _ in 0..3 {
            let refused = commit(&many).await.unwrap_err();
            let CommitError::Unavailable(text) = refused else { panic!("{refused:?}") };
            assert!(text.contains("cannot write"), "{text}");
            assert_eq!(count(), 1);
        }
        commit(&["small".to_owned()]).await.unwrap();
        commit(&many).await.unwrap_err();
        setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
        commit(&["after".to_owned()]).await.unwrap();
        assert_eq!(count(), 3);
    });
}

async fn commit_for_ever(store: Addr<StoreActor>, task: usize, mut last: u64) {
    let durability = if task == SOFT { Durability::Soft } else { Durability::Hard };
    loop {
        let commit = last + 1;
        let mut writes = vec![Write::Create(sealed(&made_by(task, commit), commit))];
        for name in [left(task), right(task)] {
            writes.push(match last {
                0 => Write::Create(sealed(&name, commit)),
                _ => Write::Replace(sealed(&name, commit), Expected::default()),
            });
        }
        if commit > KEPT {
            writes.push(Write::Remove(key(&made_by(task, commit - KEPT)), Expected::default()));
        }
        let committed = store.send(Commit { writes, durability }).await.unwrap().unwrap();
        let Revision(revision) = committed.objects.last().unwrap().revision;
        say(&format!("ack {task} {commit} {revision}\n"));
        last = commit;
        if task == SOFT {
            // Without a pause this task, which never waits for the disk, would do nothing but fill the pipe.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// One write to the pipe. When nobody reads any more the test is over, and so are we.
fn say(line: &str) {
    if std::io::stdout().write_all(line.as_bytes()).is_err() {
        std::process::exit(1);
    }
}

/// A small generator of its own (SplitMix64), so that a seed means the same for ever.
struct Random(u64);

impl Random {
    fn seeded() -> Random {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var(SEED).ok().and_then(|s| s.parse().ok()).unwrap_or_else(now);
        println!("{SEED}={seed}");
        Random(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}
