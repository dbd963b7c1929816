//! What happens in a story, drawn from its seed: what users ask for, and what breaks.
//!
//! Owns: [`Step`] and how likely each is, and the plots: steps in an order that chance seldom finds, after which somebody
//! comes back to a cluster that went on without him. Leaves out how a step is done, and whether it is possible just now.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};

/// Machines of a story.
const MACHINES: std::ops::RangeInclusive<usize> = 3..=5;
/// How likely a machine joined from elsewhere.
const JOINED: f64 = 0.75;
/// How likely a story has a plot; it has half as many other steps then.
const PLOTS: f64 = 0.5;
/// Steps of a story.
const STEPS: std::ops::RangeInclusive<usize> = 6..=20;

/// One thing that happens. Numbers choose among what is there.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    CreateController {
        replicas: u16,
    },
    Scale {
        which: usize,
        replicas: u16,
    },
    DeleteController {
        which: usize,
    },
    CreatePod,
    /// Without grace: the object is gone at once, and whoever runs it has to find out.
    ForceDeletePod {
        which: usize,
    },
    DeletePod {
        which: usize,
    },
    /// Another pod takes the name of one that is removed without grace.
    RecreatePod {
        which: usize,
    },
    WriteMark {
        which: usize,
        number: i32,
    },
    /// `kubectl delete node`, whatever state it is in.
    DeleteNode {
        which: usize,
    },
    /// A machine whose node was deleted joins again.
    JoinAgain {
        which: usize,
    },
    KillContainer {
        which: usize,
    },
    LoseSandbox {
        which: usize,
    },
    /// The runtime's next start of something fails.
    FailRuntime {
        which: usize,
        what: usize,
    },
    /// `kill -9` of a node's process; its containers run on.
    CrashKubelet {
        which: usize,
    },
    /// The same, and a new process begins soon: its predecessor's last words may come after its first.
    RestartKubelet {
        which: usize,
        after_ms: u64,
    },
    /// A stop that was asked for, and says so to the master.
    StopKubelet {
        which: usize,
    },
    /// Power fails: process and containers are gone; `wiped`, and what the runtime remembers of them too.
    CrashMachine {
        which: usize,
        wiped: bool,
    },
    /// Whatever of it is down comes up.
    StartMachine {
        which: usize,
    },
    Cut {
        which: usize,
    },
    /// Nothing passes one way.
    CutOneWay {
        which: usize,
        to_master: bool,
    },
    /// Nothing passes between two machines; both have their master.
    CutPeers {
        which: usize,
        other: usize,
    },
    /// A link that is half open: nothing passes, a new one can be made.
    Sever {
        which: usize,
    },
    Heal {
        which: usize,
    },
    /// The master's own network fails.
    IsolateMaster,
    RejoinMaster,
    /// Every path becomes slow and loses so much.
    Weather {
        slow_ms: u64,
        loss_percent: u32,
    },
    Calm,
    /// `kill -9` of the master; what was not forced to disk may be lost.
    CrashMaster {
        kept: usize,
    },
    StartMaster,
    /// The master's disk refuses, until the next such step.
    FailDisk,
    HealDisk,
}

impl Step {
    /// Whether links may end because of it.
    pub fn is_fault(self) -> bool {
        !matches!(
            self,
            Step::CreateController { .. }
                | Step::Scale { .. }
                | Step::DeleteController { .. }
                | Step::CreatePod
                | Step::ForceDeletePod { .. }
                | Step::DeletePod { .. }
                | Step::RecreatePod { .. }
                | Step::WriteMark { .. }
                | Step::KillContainer { .. }
                | Step::LoseSandbox { .. }
                | Step::FailRuntime { .. }
                | Step::StartMachine { .. }
                | Step::StartMaster
                | Step::CutPeers { .. }
                | Step::Weather { .. }
                | Step::Calm
        )
    }
}

/// A story: its machines, and its steps with the time before each.
pub struct Story {
    /// Whether each of them joined; the others belong to the master's process.
    pub machines: Vec<bool>,
    pub steps: Vec<(Duration, Step)>,
    /// This machine does not come back at the end.
    pub lost: Option<usize>,
}

impl Story {
    pub fn draw(random: &mut StdRng) -> Story {
        let machines: Vec<bool> =
            (0..random.random_range(MACHINES)).map(|_| random.random_bool(JOINED)).collect();
        // Some stories are of one kind of trouble only, so that others do not hide it.
        let troubles = random.random_range(1..=100);
        let mut steps =
            vec![(Duration::ZERO, Step::CreateController { replicas: random.random_range(1..=4) })];
        let plot = random.random_bool(PLOTS).then(|| plot(random));
        let count = random.random_range(STEPS) / if plot.is_some() { 2 } else { 1 };
        let at = random.random_range(0..=count);
        for index in 0..=count {
            if let Some(plot) = plot.as_ref().filter(|_| index == at) {
                steps.extend(plot);
            }
            if index < count {
                steps.push((pause(random), step(random, troubles)));
            }
        }
        let lost = random.random_bool(0.25).then(|| random.random_range(0..machines.len()));
        Story { machines, steps, lost }
    }
}

/// Steps that lead somebody back to a cluster that went on without him.
fn plot(random: &mut StdRng) -> Vec<(Duration, Step)> {
    let ms = Duration::from_millis;
    let which = random.random_range(0..1000);
    let soon = |random: &mut StdRng| ms(random.random_range(0..1_500));
    let mut steps = vec![(soon(random), Step::CreatePod), (ms(0), Step::CreatePod), (ms(0), Step::CreatePod)];
    match random.random_range(0..10) {
        // Cut off until its pods are replaced, while this or that happens.
        0..4 => {
            let away = ms(random.random_range(3_000..24_000));
            steps.push((ms(3_000), cut(random, which)));
            steps.push((away, meanwhile(random, which)));
            if random.random_bool(0.5) {
                steps.push((soon(random), meanwhile(random, which)));
            }
            steps.push((soon(random), Step::StartMaster));
            steps.push((soon(random), Step::Heal { which }));
            steps.push((soon(random), Step::JoinAgain { which }));
        }
        // Cut off from its master alone, for so long or longer than it is spared; one of the others may not reach it either.
        4..6 => {
            if random.random_bool(0.4) {
                let other = which + random.random_range(1..5);
                steps.push((ms(500), Step::CutPeers { which, other }));
            }
            steps.push((ms(9_000), cut(random, which)));
            steps.push((ms(random.random_range(2_500..24_000)), Step::Heal { which }));
            steps.push((ms(random.random_range(500..6_000)), Step::DeletePod { which }));
        }
        // Starting anew while messages are slow, so that the old process' arrive late.
        6..8 => {
            let slow_ms = random.random_range(50..400);
            steps.push((ms(1_500), Step::Weather { slow_ms, loss_percent: random.random_range(10..50) }));
            for _ in 0..random.random_range(1..4) {
                steps.push((soon(random), Step::KillContainer { which }));
                let after_ms = random.random_range(0..300);
                steps.push((ms(random.random_range(0..400)), Step::RestartKubelet { which, after_ms }));
            }
            steps.push((ms(3_000), Step::Calm));
        }
        // Another pod under a name, while the first one's node has something to say of it.
        _ => {
            if random.random_bool(0.5) {
                let slow_ms = random.random_range(20..200);
                steps.push((ms(0), Step::Weather { slow_ms, loss_percent: 10 }));
            }
            for _ in 0..random.random_range(2..6) {
                let pod = random.random_range(0..1000);
                let first = random.random_bool(0.5);
                steps.push((
                    soon(random),
                    if first { Step::DeletePod { which: pod } } else { Step::KillContainer { which: pod } },
                ));
                steps.push((ms(random.random_range(0..600)), Step::RecreatePod { which: pod }));
            }
            steps.push((soon(random), Step::Calm));
        }
    }
    steps
}

fn cut(random: &mut StdRng, which: usize) -> Step {
    match random.random_range(0..3) {
        0 => Step::Cut { which },
        to => Step::CutOneWay { which, to_master: to == 1 },
    }
}

/// What may happen to a machine, or behind its back, while it is cut off.
fn meanwhile(random: &mut StdRng, which: usize) -> Step {
    match random.random_range(0..9) {
        0 => Step::CrashMaster { kept: which },
        1 | 2 => Step::RestartKubelet { which, after_ms: random.random_range(0..3_000) },
        3 => Step::CrashMachine { which, wiped: random.random_bool(0.5) },
        4 => Step::DeleteNode { which },
        5 => Step::ForceDeletePod { which: random.random_range(0..1000) },
        6 => Step::RecreatePod { which: random.random_range(0..1000) },
        7 => Step::KillContainer { which },
        _ => Step::CreateController { replicas: 3 },
    }
}

/// Much happens at once, and some of it only after detectors had their time.
fn pause(random: &mut StdRng) -> Duration {
    let ms = match random.random_range(0..10) {
        0..3 => random.random_range(0..5),
        3..7 => random.random_range(5..800),
        7..9 => random.random_range(800..3_500),
        _ => random.random_range(3_500..20_000),
    };
    Duration::from_millis(ms)
}

fn step(random: &mut StdRng, troubles: u32) -> Step {
    let which = random.random_range(0..1000);
    if random.random_range(0..100) >= troubles {
        return match random.random_range(0..14) {
            0 | 1 => Step::CreateController { replicas: random.random_range(0..=4) },
            2..5 => Step::Scale { which, replicas: random.random_range(0..=5) },
            5 => Step::DeleteController { which },
            6 | 7 => Step::CreatePod,
            8 | 9 => Step::DeletePod { which },
            10 => Step::ForceDeletePod { which },
            11 => Step::RecreatePod { which },
            _ => Step::WriteMark { which, number: random.random_range(1..=1000) },
        };
    }
    match random.random_range(0..47) {
        0..3 => Step::KillContainer { which },
        3 => Step::LoseSandbox { which },
        4..6 => Step::FailRuntime { which, what: random.random_range(0..4) },
        6..8 => Step::CrashKubelet { which },
        8..10 => Step::RestartKubelet { which, after_ms: random.random_range(0..1_500) },
        10..12 => Step::StopKubelet { which },
        12..15 => Step::CrashMachine { which, wiped: random.random_bool(0.5) },
        15..21 => Step::StartMachine { which },
        21..23 => Step::Cut { which },
        23..25 => Step::CutOneWay { which, to_master: random.random_bool(0.5) },
        25 => Step::CutPeers { which, other: which + random.random_range(1..5) },
        26..28 => Step::Sever { which },
        28..31 => Step::Heal { which },
        31 => Step::IsolateMaster,
        32..34 => Step::RejoinMaster,
        34 => {
            Step::Weather { slow_ms: random.random_range(1..400), loss_percent: random.random_range(0..40) }
        }
        35 => Step::Calm,
        36..39 => Step::CrashMaster { kept: which },
        39..42 => Step::StartMaster,
        42 => Step::FailDisk,
        43 => Step::HealDisk,
        44 => Step::DeleteNode { which },
        _ => Step::JoinAgain { which },
    }
}
