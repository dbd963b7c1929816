//! A whole cluster, simulated: real actors, real frames, a runtime and a network in memory, on one thread and a clock that
//! moves only when everybody waits. Each story is drawn from its seed and runs in a process of its own, so that it can
//! be told again exactly:
//!
//! ```text
//! TROUPE_SIM_SEEDS=20000 cargo test --test simulation     more stories (TROUPE_SIM_FROM: beginning at this seed)
//! TROUPE_SIM_SEED=17 cargo test --test simulation         this one, aloud
//! ```
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "as above")]

mod beliefs;
mod chance;
mod cluster;
mod invariants;
mod rest;
mod story;
mod trace;

use std::{
    env,
    process::{Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rand::{SeedableRng as _, rngs::StdRng};
use tokio::time::{Instant, sleep};

use self::{
    cluster::Simulation,
    story::Story,
    trace::{Counts, Event, Trace, read_counts, write_counts},
};

/// Stories that are told unless the environment says otherwise.
const SEEDS: u64 = 1000;
/// In so many stories everything that can happen is to have happened.
const MANY: u64 = 500;
/// Machines are looked at so often, besides every change.
const LOOK: Duration = Duration::from_millis(500);
/// Everything is at rest so long after the last fault: 15 s of doubt whether it was our own fault, a lost node's 2 s, a
/// container's longest back-off of 5 s, and time to do it all.
const REST_WITHIN: Duration = Duration::from_secs(60);
/// Who said that it comes back, and does not, is waited for so much longer.
const GOODBYE: Duration = Duration::from_secs(60);
/// And stays so.
const AT_REST: Duration = Duration::from_secs(6);

/// A story takes less than a second; more than this, in real time, and it does not end.
const HANGS_AFTER: Duration = Duration::from_secs(120);

/// Names the story that a process is to tell.
const STORY: &str = "TROUPE_SIM_STORY";
/// Whether it is to tell it aloud.
const ALOUD: &str = "TROUPE_SIM_ALOUD";
/// How an account of a story begins.
const ACCOUNT: &str = "story ";

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: must be a number")))
}

#[test]
fn whatever_fails_the_invariants_hold_and_the_cluster_comes_to_rest() {
    if let Some(seed) = number("TROUPE_SIM_SEED") {
        let output = run(seed, true);
        assert!(output.status.success(), "seed {seed} went wrong: see above");
        return;
    }
    let (from, count) = (number("TROUPE_SIM_FROM").unwrap_or(1), number("TROUPE_SIM_SEEDS").unwrap_or(SEEDS));
    let next = AtomicU64::new(from);
    let workers = thread::available_parallelism().map_or(2, usize::from);
    let sums = Mutex::new(Counts::new());
    let tell = || {
        let mut failed = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            // One that fails is enough to know; a few show whether it is one defect.
            if seed >= from + count || failed.len() >= 3 {
                return failed;
            }
            let output = run(seed, false);
            if output.status.success() {
                let mut sums = sums.lock().unwrap();
                for (event, count) in read_counts(&account(&output)) {
                    *sums.entry(event).or_default() += count;
                }
            } else {
                println!(
                    "seed {seed} went wrong; TROUPE_SIM_SEED={seed} cargo test --test simulation tells it again\n{}\n{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
                failed.push(seed);
            }
        }
    };
    let failed: Vec<u64> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(tell)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(failed.is_empty(), "seeds that went wrong: {failed:?}");
    let sums = sums.into_inner().unwrap();
    println!("{count} stories from seed {from} on went well: {}", write_counts(&sums));
    let never: Vec<Event> = Event::ALL.into_iter().filter(|event| !sums.contains_key(event)).collect();
    assert!(count < MANY || never.is_empty(), "in {count} stories these never happened: {never:?}");
}

#[test]
fn a_story_is_told_twice_in_the_same_words() {
    for seed in [3, 14, 15] {
        let [once, again] = [(); 2].map(|()| account(&run(seed, false)));
        assert_eq!(once, again, "seed {seed}");
    }
}

/// The line in which a process sums up its story.
fn account(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.find(ACCOUNT).map(|at| line[at..].to_owned()));
    line.unwrap_or_else(|| panic!("no account of it:\n{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// Has a process tell a story.
fn run(seed: u64, aloud: bool) -> Output {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "a_story", "--nocapture", "--test-threads=1"]).env(STORY, seed.to_string());
    if aloud {
        command.env(ALOUD, "1").stdout(Stdio::inherit()).stderr(Stdio::inherit());
    }
    command.output().unwrap()
}

/// Not a test by itself: what the others start.
#[test]
fn a_story() {
    let Some(seed) = number(STORY) else { return };
    // A fresh thread has drawn no chances yet.
    thread::spawn(move || {
        thread::sleep(HANGS_AFTER);
        eprintln!("seed {seed} hangs: its clock does not move, or it has far too much to do");
        std::process::abort();
    });
    let told = thread::Builder::new().stack_size(16 << 20).spawn(move || {
        chance::begin(seed);
        tell(seed);
    });
    told.unwrap().join().unwrap();
}

fn tell(seed: u64) {
    let directory = tempfile::Builder::new().prefix("troupe-simulation-").tempdir().unwrap();
    troupe::actors::outside::stay_on_this_thread();
    cluster::hear_panics();
    if env::var_os("TROUPE_LOG").is_some() {
        troupe::app::init_tracing();
    }
    let system = actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    });
    system.block_on(async {
        chance::begin_clock();
        let trace = Trace::new(env::var_os(ALOUD).is_some());
        let rest = live(seed, directory.path(), trace.clone()).await;
        let (lines, hash) = (trace.len(), trace.hash());
        let counts = write_counts(&trace.counts());
        println!(
            "{ACCOUNT}{seed}: {lines} lines {hash:016x}, at rest after {:.1} s; {counts}",
            rest.as_secs_f64()
        );
        if let Some(fault) = trace.fault() {
            panic!("seed {seed}: {fault}\nthe end of the story:\n{}", trace.tail(60));
        }
    });
}

/// Lives through a story; how long it took to come to rest.
async fn live(seed: u64, directory: &std::path::Path, trace: Trace) -> Duration {
    let mut random = StdRng::seed_from_u64(seed);
    let story = Story::draw(&mut random);
    let mut simulation = Simulation::new(seed, &story.machines, directory, trace.clone());
    simulation.begin().await;
    let observer = simulation.observer.clone();
    let looking = actix::spawn(async move {
        loop {
            sleep(LOOK).await;
            observer.look_at_machines();
            observer.look_at_beliefs();
        }
    });
    for (pause, step) in story.steps {
        sleep(pause).await;
        trace.note(format_args!("-- {step:?}"));
        simulation.perform(step).await;
        simulation.check();
        if trace.fault().is_some() {
            return Duration::ZERO;
        }
    }
    sleep(Duration::from_millis(500)).await;
    trace.note(format_args!("-- the faults end; lost: {:?}", story.lost));
    simulation.mend(story.lost).await;
    simulation.check();
    if trace.fault().is_some() {
        return Duration::ZERO;
    }
    let mended = Instant::now();
    let left = story.lost.is_some_and(|index| simulation.machines[index].left);
    let within = REST_WITHIN + if left { GOODBYE } else { Duration::ZERO };
    while let Some(unrest) = rest::unrest(&simulation) {
        if mended.elapsed() > within {
            trace.wrong(format_args!("no rest: {unrest}"));
            return mended.elapsed();
        }
        simulation.join_those_deleted(story.lost).await;
        sleep(LOOK).await;
    }
    let rest = mended.elapsed();
    trace.note("-- at rest");
    sleep(AT_REST).await;
    if let Some(unrest) = rest::unrest(&simulation) {
        trace.wrong(format_args!("it did not stay at rest: {unrest}"));
    }
    simulation.check();
    simulation.count_silences();
    looking.abort();
    simulation.end().await;
    rest
}
