//! Cases: programs run in a container beside its own.

use std::time::{Duration, Instant};

use troupe::runtime::{ContainerId, EXEC_OUTPUT_BYTES, ExecOutput, RuntimeError, StreamOptions};

use super::harness::{Bench, Harness, LONG};

/// The built-in program with these arguments.
async fn exec<H: Harness>(
    bench: &Bench<H>,
    id: &ContainerId,
    args: &[&str],
    timeout: Duration,
) -> Result<ExecOutput, RuntimeError> {
    let command = ["/hello", "hello"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    bench.runtime().exec_sync(id, command, timeout).await
}

pub async fn a_programs_output_and_exit_code_are_told<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let args = ["--print", "one", "--print", "two", "--error", "oops", "--exit-code", "3", "--once"];
    let output = exec(bench, &id, &args, LONG).await.unwrap();
    let expected =
        ExecOutput { code: 3, timed_out: false, stdout: b"one\ntwo\n".into(), stderr: b"oops\n".into() };
    assert_eq!(output, expected);
    let output = exec(bench, &id, &["--once"], LONG).await.unwrap();
    assert_eq!(output, ExecOutput::default());
    assert!(bench.log("a").iter().all(|line| !line.contains("oops")), "{:?}", bench.log("a"));
}

pub async fn a_program_ended_by_a_signal_has_its_code<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let output = exec(bench, &id, &["--crash", "--once"], LONG).await.unwrap();
    assert_eq!((output.code, output.timed_out), (128 + 6, false));
}

pub async fn a_program_that_does_not_exist_is_a_start_error<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let error = bench.runtime().exec_sync(&id, vec!["/no/such/program".into()], LONG).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Start(text) if text.contains("/no/such/program") && text.contains("no such file")),
        "{error}"
    );
    assert_eq!(exec(bench, &id, &["--once"], LONG).await.unwrap().code, 0, "the next one runs");
}

pub async fn a_program_over_its_time_is_killed_and_its_container_lives<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let begun = Instant::now();
    let output = exec(bench, &id, ENDLESS, Duration::from_secs(1)).await.unwrap();
    assert!(output.timed_out && output.code == 137, "{output:?}");
    assert!(begun.elapsed() < LONG);
    assert_eq!(exec(bench, &id, &["--once"], LONG).await.unwrap().code, 0);
}

/// A program that says something and then goes on for ever.
const ENDLESS: &[&str] = &["--print", "so far", "--ignore-sigterm", "--listen", "127.0.0.1:0"];

pub async fn what_a_program_over_its_time_said_is_told<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let output = exec(bench, &id, ENDLESS, Duration::from_secs(1)).await.unwrap();
    assert!(output.timed_out && output.stdout.starts_with(b"so far\n"), "{output:?}");
}

pub async fn many_programs_run_at_once<H: Harness>(bench: &mut Bench<H>) {
    const MANY: usize = 20;
    let id = bench.running("a").await;
    let bench: &Bench<H> = bench;
    let runs = (0..MANY).map(|number| {
        let id = &id;
        async move {
            let (text, code) = (format!("number {number}"), number.to_string());
            let args = ["--sleep", "200ms", "--print", &text, "--exit-code", &code, "--once"];
            exec(bench, id, &args, LONG).await.unwrap()
        }
    });
    for (number, output) in futures_util::future::join_all(runs).await.into_iter().enumerate() {
        assert_eq!(output.code, i32::try_from(number).unwrap());
        assert_eq!(output.stdout, format!("number {number}\n").into_bytes());
    }
}

pub async fn output_beyond_the_bound_is_dropped<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    // An argument holds at most 128 KiB.
    let long = "x".repeat(EXEC_OUTPUT_BYTES + 1000);
    let bench: &Bench<H> = bench;
    let args = ["--print", &long, "--error", &long, "--once"];
    // More at once than the way back holds.
    let all = (0..8).map(|_| exec(bench, &id, &args, LONG));
    for output in futures_util::future::join_all(all).await {
        let output = output.unwrap();
        assert_eq!((output.code, output.stdout.len()), (0, EXEC_OUTPUT_BYTES));
        assert_eq!(output.stderr.len(), EXEC_OUTPUT_BYTES);
    }
}

pub async fn in_a_container_that_does_not_run_nothing_is_run<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let ended = bench.start("a", bench.hello("ended", &["--once"])).await;
    bench.exit(&ended).await;
    let created = bench.create("a", bench.hello("created", &[])).await.unwrap();
    for id in [ended, created] {
        let error = exec(bench, &id, &["--once"], LONG).await.unwrap_err();
        assert!(error.to_string().contains("not running"), "{error}");
    }
    let unknown = ContainerId("never-was".into());
    let error = exec(bench, &unknown, &["--once"], LONG).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound(_)), "{error}");
}

pub async fn the_end_of_its_container_ends_a_program<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    let (begun, bench) = (Instant::now(), &*bench);
    let run = exec(bench, &id, &["--listen", "127.0.0.1:0"], LONG * 10);
    let stop = async {
        // The program may be there by now or not: either way it is not when the container has ended.
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.runtime().stop_container(&id, Duration::ZERO).await.unwrap();
    };
    let (output, ()) = tokio::join!(run, stop);
    if let Ok(output) = output {
        assert!(output.code == 137 && !output.timed_out, "{output:?}");
    }
    assert!(begun.elapsed() < LONG);
}

pub async fn a_program_runs_as_its_container_does<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let mut config = bench.hello("c", &[]);
    config.env = vec![("A".into(), "2 3".into())];
    config.working_dir = Some("/tmp".into());
    config.security.user = Some(1234);
    config.security.group = Some(99);
    let id = bench.start("a", config).await;
    let output = exec(bench, &id, &["--describe", "--once"], LONG).await.unwrap();
    let given: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(given["args"], serde_json::json!(["/hello", "hello", "--describe", "--once"]));
    assert_eq!((given["env"]["A"].as_str(), given["cwd"].as_str()), (Some("2 3"), Some("/tmp")));
    assert_eq!(given["hostname"].as_str(), Some("host-a"));
    assert_eq!((given["uid"].as_i64(), given["gid"].as_i64()), (Some(1234), Some(99)));
}

pub async fn after_a_restart_programs_run_in_the_containers_found<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    bench.restart(async {}).await;
    let output = exec(bench, &id, &["--print", "here", "--once"], LONG).await.unwrap();
    assert_eq!((output.code, output.stdout.as_slice()), (0, &b"here\n"[..]));
}

pub async fn a_program_with_streams_says_what_it_has_to_say_and_how_it_ended<H: Harness>(
    bench: &mut Bench<H>,
) {
    use tokio::io::AsyncReadExt as _;
    let id = bench.running("a").await;
    let words = ["/hello", "hello", "--print", "out", "--error", "err", "--exit-code", "4", "--once"];
    let command = words.map(str::to_owned).to_vec();
    let mut streams = bench.runtime().exec(&id, command, StreamOptions::default()).await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    streams.stdout.read_to_string(&mut out).await.unwrap();
    streams.stderr.read_to_string(&mut err).await.unwrap();
    assert_eq!((out.as_str(), err.as_str(), streams.end.await.unwrap()), ("out\n", "err\n", 4));
    // Told at once or at its end.
    let missing =
        match bench.runtime().exec(&id, vec!["/no/such/program".into()], StreamOptions::default()).await {
            Ok(streams) => streams.end.await.map(|_| ()),
            Err(error) => Err(error),
        };
    assert!(
        matches!(&missing, Err(RuntimeError::Start(text)) if text.contains("/no/such/program")),
        "{missing:?}"
    );
}

pub async fn a_program_with_streams_is_seen_whole_or_its_end_says_that_it_is_not<H: Harness>(
    bench: &mut Bench<H>,
) {
    use tokio::io::AsyncReadExt as _;
    let id = bench.running("a").await;
    for (stream, length) in
        [("--print", EXEC_OUTPUT_BYTES + 1000), ("--error", EXEC_OUTPUT_BYTES + 1), ("--print", 9)]
    {
        let long = "x".repeat(length);
        let words = ["/hello", "hello", stream, &long, "--once"];
        let command = words.map(str::to_owned).to_vec();
        let streams = bench.runtime().exec(&id, command, StreamOptions::default()).await.unwrap();
        let (mut stdout, mut stderr) = (streams.stdout, streams.stderr);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (read, also) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        read.and(also).unwrap();
        match streams.end.await {
            Ok(code) => assert_eq!((code, out.len() + err.len()), (0, length + 1)),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("cut at 64 KiB") && text.contains("exit code 0"), "{text}");
                assert_eq!((out.len() + err.len(), length > 9), (EXEC_OUTPUT_BYTES, true));
            }
        }
    }
}
