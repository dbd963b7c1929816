//! What happens in a story, drawn from its seed: what users ask for, and what breaks.
//!
//! Owns: [`Step`] and how likely each is. Leaves out how a step is done, and whether it is possible just now.

use std::time::Duration;

use rand::{RngExt as _, rngs::StdRng};

/// Machines of a story.
const MACHINES: std::ops::RangeInclusive<usize> = 3..=5;
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
    WriteMark {
        which: usize,
        number: i32,
    },
    /// `kubectl delete node`, whatever state it is in.
    DeleteNode {
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
    /// `kill -9` of the master; what was not forced to disk may be lost.
    CrashMaster {
        kept: usize,
    },
    StartMaster,
    /// The master's disk refuses, until the next such step.
    FailDisk,
    HealDisk,
}

/// A story: its machines, and its steps with the time before each.
pub struct Story {
    pub machines: usize,
    pub steps: Vec<(Duration, Step)>,
    /// This machine does not come back at the end.
    pub lost: Option<usize>,
}

impl Story {
    pub fn draw(random: &mut StdRng) -> Story {
        let machines = random.random_range(MACHINES);
        let count = random.random_range(STEPS);
        // Some stories are of one kind of trouble only, so that others do not hide it.
        let troubles = random.random_range(1..=100);
        let mut steps =
            vec![(Duration::ZERO, Step::CreateController { replicas: random.random_range(1..=4) })];
        steps.extend((0..count).map(|_| (pause(random), step(random, troubles))));
        let lost = random.random_bool(0.25).then(|| random.random_range(0..machines));
        Story { machines, steps, lost }
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
            10 | 11 => Step::ForceDeletePod { which },
            _ => Step::WriteMark { which, number: random.random_range(1..=1000) },
        };
    }
    match random.random_range(0..40) {
        0..3 => Step::KillContainer { which },
        3 => Step::LoseSandbox { which },
        4..6 => Step::FailRuntime { which, what: random.random_range(0..4) },
        6..9 => Step::CrashKubelet { which },
        9..11 => Step::StopKubelet { which },
        11..14 => Step::CrashMachine { which, wiped: random.random_bool(0.5) },
        14..20 => Step::StartMachine { which },
        20..23 => Step::Cut { which },
        23..25 => Step::Sever { which },
        25..28 => Step::Heal { which },
        28 => Step::IsolateMaster,
        29..31 => Step::RejoinMaster,
        31 => {
            Step::Weather { slow_ms: random.random_range(1..400), loss_percent: random.random_range(0..40) }
        }
        32..35 => Step::CrashMaster { kept: which },
        35..37 => Step::StartMaster,
        37 => Step::FailDisk,
        38 => Step::HealDisk,
        _ => Step::DeleteNode { which },
    }
}
