//! The figures of one machine, and of several on it: Troupe's own beside the bare limit or a peer, measured in the same run.
//!
//! `cargo bench --bench cluster -- [s1 … s7, s1d … s7d, n3 … n5 | all] [--quick]`; `scripts/bench` is the same. Each row starts the real
//! program (`$TROUPE`, else the one built with this harness) as `troupe up` on a new data directory and a free port, and
//! speaks to its API as any client does: HTTPS, keep-alive, the administrator's certificate. It prints rows of the table
//! in `docs/benchmarks.md`. Needs root. Whatever it starts ends with it. What is measured how: the file of each row.

mod bare;
mod calls;
mod client;
mod cluster;
mod docker;
#[path = "../../tests/conformance/engine.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the conformance suite, which is test code")]
mod engine;
mod ground;
mod hosts;
mod life;
mod machine;
mod nodes;
mod peers;
mod row;
mod scale;
mod start;
mod steady;

use std::{path::PathBuf, process::ExitCode};

use ground::On;
use row::Row;

/// What a run is told.
pub struct Options {
    /// The program under test.
    pub program: PathBuf,
    /// Fewer repetitions, for a look while working on something.
    pub quick: bool,
}

impl Options {
    /// How often to repeat something.
    pub fn rounds(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }
}

type Measure = fn(&Options, On) -> Vec<Row>;

const ROWS: &[(&str, On, Measure)] = &[
    ("s1", On::Native, life::pod_start),
    ("s1d", On::Docker, life::pod_start),
    ("s2", On::Native, |options, _| scale::up(options)),
    ("s2d", On::Docker, docker::up),
    ("s3", On::Native, life::container_restart),
    ("s3d", On::Docker, life::container_restart),
    ("s4", On::Native, life::replacement),
    ("s4d", On::Docker, life::replacement),
    ("s5", On::Native, start::ready),
    ("s5d", On::Docker, start::ready),
    ("s6", On::Native, steady::idle),
    ("s6d", On::Docker, steady::idle),
    ("s7", On::Native, scale::down),
    ("s7d", On::Docker, scale::down),
    ("n3", On::Native, |options, _| nodes::lost(options)),
    ("n4", On::Native, |options, _| nodes::joined(options)),
    ("n5", On::Native, |options, _| nodes::idle(options)),
];

fn main() -> ExitCode {
    // cargo passes `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let wanted: Vec<&str> = args.iter().map(String::as_str).filter(|a| !a.starts_with('-')).collect();
    let known = |name: &&str| *name == "all" || ROWS.iter().any(|(row, ..)| row == name);
    if let Some(stranger) = wanted.iter().find(|name| !known(name)) {
        eprintln!("no row {stranger:?}; rows: s1 to s7, on docker s1d to s7d, n3 to n5, all");
        return ExitCode::from(2);
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("these figures are of real containers and need root");
        return ExitCode::from(2);
    }
    let options = Options {
        program: std::env::var_os("TROUPE")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_troupe")), PathBuf::from),
        quick: args.iter().any(|a| a == "--quick"),
    };
    eprintln!("measuring {}", options.program.display());
    row::print_header();
    let all = wanted.is_empty() || wanted.contains(&"all");
    let mut met = true;
    for (name, on, measure) in ROWS.iter().filter(|(name, ..)| all || wanted.contains(name)) {
        eprintln!("{name} …");
        for row in measure(&options, *on) {
            met &= row.met;
            row.print();
        }
    }
    if met { ExitCode::SUCCESS } else { ExitCode::from(1) }
}
