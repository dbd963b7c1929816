//! Cases: logs stay within their limits, and are read across their files.

use std::{path::PathBuf, time::Duration};

use tokio::{io::AsyncReadExt as _, sync::watch};
use troupe::{
    hello::flood_line,
    runtime::{
        ContainerConfig,
        logs::{self, LogLimits, LogOptions},
    },
};

use super::harness::{Bench, Harness, until};

const LINES: u32 = 50_000;

fn small(mut config: ContainerConfig, max_bytes: u64, max_files: u32) -> ContainerConfig {
    config.log_limits = LogLimits { max_bytes, max_files };
    config
}

fn sizes(files: &[PathBuf]) -> Vec<u64> {
    files.iter().map(|file| std::fs::metadata(file).map_or(0, |meta| meta.len())).collect()
}

async fn read<H: Harness>(bench: &Bench<H>, name: &str, options: LogOptions) -> String {
    let path = bench.log_files(name).pop().unwrap();
    let (mut ours, theirs) = tokio::io::duplex(1 << 16);
    let reading =
        tokio::spawn(async move { logs::read(&path, options, theirs, watch::channel(false).1).await });
    let mut text = String::new();
    ours.read_to_string(&mut text).await.unwrap();
    reading.await.unwrap().unwrap();
    text
}

pub async fn a_flood_is_rotated_within_its_limits_and_holds_up_nobody<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let lines = LINES.to_string();
    let flood = small(bench.hello("flood", &["--flood", &lines, "--every", "1ms"]), 100_000, 3);
    let flood = bench.start("a", flood).await;
    // Another one of its pod is heard meanwhile.
    bench.start("a", bench.hello("other", &["--print", "here"])).await;
    bench.line("other", "here").await;
    until(|| bench.log_files("flood").len() == 3).await.unwrap();
    bench.runtime().stop_container(&flood, Duration::from_secs(30)).await.unwrap();
    bench.exit(&flood).await;
    let files = bench.log_files("flood");
    assert_eq!(files.len(), 3);
    assert!(sizes(&files).iter().all(|bytes| *bytes <= 100_000), "{:?}", sizes(&files));
    // What is kept is one piece, wherever it ends.
    let text = read(bench, "flood", LogOptions::default()).await;
    let numbers: Vec<u32> = text.lines().filter_map(|line| line.split_once(' ')?.0.parse().ok()).collect();
    assert!(numbers.len() > 500);
    for two in numbers.windows(2) {
        assert!(two[1] == two[0] + 1 || (two[0] == LINES - 1 && two[1] == 0), "{two:?}");
    }
}

pub async fn a_flood_is_followed_without_a_gap<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let (running, receiver) = watch::channel(true);
    let path = bench.log_files("flood").pop().unwrap();
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let following = tokio::spawn(async move { logs::read(&path, options, theirs, receiver).await });
    let hearing = tokio::spawn(async move {
        let (mut ours, mut text) = (ours, String::new());
        ours.read_to_string(&mut text).await.unwrap();
        text
    });
    // Enough files that none goes before it was read, however slow the reader is.
    let flood = small(bench.hello("flood", &["--flood", "20000", "--once"]), 50_000, 100);
    let flood = bench.start("a", flood).await;
    assert_eq!(bench.exit(&flood).await.code, 0);
    drop(running);
    following.await.unwrap().unwrap();
    let all: Vec<String> = (0..20_000).map(flood_line).collect();
    let heard = hearing.await.unwrap();
    assert!(heard.lines().eq(all.iter()), "{} lines of {}", heard.lines().count(), all.len());
    assert!(bench.log_files("flood").len() > 10);
    let tail = read(bench, "flood", LogOptions { tail_lines: Some(5_000), ..LogOptions::default() }).await;
    assert!(tail.lines().eq(all[15_000..].iter()));
}

pub async fn a_log_goes_on_within_its_limits_after_a_restart<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let flood = small(bench.hello("flood", &["--flood", "3000", "--once"]), 100_000, 100);
    let flood = bench.start("a", flood).await;
    bench.restart(async {}).await;
    assert_eq!(bench.exit(&flood).await.code, 0);
    let files = bench.log_files("flood");
    assert!(sizes(&files).iter().all(|bytes| *bytes <= 100_000), "{:?}", sizes(&files));
    let text = read(bench, "flood", LogOptions::default()).await;
    assert!(text.lines().eq((0..3000).map(flood_line)), "{} lines", text.lines().count());
}

pub async fn a_last_line_without_an_end_is_whole_however_long<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    // Beyond a page, a buffer, and what one record holds.
    for length in [5, 5_000, 9_000, logs::MAX_PART, 40_000] {
        let (name, line) = (format!("c{length}"), "x".repeat(length));
        let write = format!("/proc/self/fd/1={line}");
        // It lives long enough to be followed.
        let args = ["--once", "--exit-after", "500ms", "--exit-code", "1", "--write", &write];
        let mut config = bench.hello(&name, &args);
        // Whose pipe it is.
        config.security.user = Some(0);
        let id = bench.start("a", config).await;
        assert_eq!(bench.exit(&id).await.code, 1);
        bench.runtime().log_written(&id).await;
        let text = read(bench, &name, LogOptions::default()).await;
        assert!(text == line, "{length}: {} bytes, {:?}", text.len(), text.get(..80));
        let tail = read(bench, &name, LogOptions { tail_lines: Some(1), ..LogOptions::default() }).await;
        assert_eq!(tail.len(), length);
    }
}
