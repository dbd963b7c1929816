//! Cases: streams to programs, terminals, attachments, and connections to ports.
//!
//! They need a shell in an image; without busybox on this machine they are skipped, except under `CI`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use troupe::{
    model::Uid,
    runtime::{ContainerConfig, ContainerId, ExecStreams, StreamOptions, TerminalSize},
};

use super::harness::{Bench, Harness, STEP, sandbox};

const IMAGE: &str = "shell";
const TYPED: StreamOptions = StreamOptions { stdin: true, tty: false };
const TERMINAL: StreamOptions = StreamOptions { stdin: true, tty: true };

fn busybox() -> Option<PathBuf> {
    let found = ["/usr/bin/busybox", "/bin/busybox"].iter().map(Path::new).find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no busybox");
        eprintln!("skipped: no busybox (apt install busybox-static)");
    }
    found.map(Path::to_owned)
}

/// The image of a shell; `false`: it cannot be made here.
async fn shell_image<H: Harness>(bench: &Bench<H>) -> bool {
    let Some(busybox) = busybox() else { return false };
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_path_with_name(busybox, "bin/busybox").unwrap();
    for name in ["sh", "cat", "sleep", "tty", "stty", "head", "yes", "true"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_link(&mut header, format!("bin/{name}"), "busybox").unwrap();
    }
    let rootfs = std::io::Cursor::new(archive.into_inner().unwrap());
    bench.runtime().import_image(Box::pin(rootfs), IMAGE).await.unwrap();
    true
}

/// A container that runs a script.
async fn scripted<H: Harness>(
    bench: &Bench<H>,
    script: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> ContainerId {
    bench.sandbox_with(sandbox("a")).await;
    let mut config = bench.hello("c", &[]);
    config.image = IMAGE.into();
    config.command = ["sh", "-c", script].map(str::to_owned).to_vec();
    change(&mut config);
    bench.start("a", config).await
}

/// A container with a shell in it to run programs beside.
async fn shell<H: Harness>(bench: &Bench<H>) -> Option<ContainerId> {
    match shell_image(bench).await {
        true => Some(scripted(bench, "sleep 1000", |_| ()).await),
        false => None,
    }
}

async fn exec<H: Harness>(
    bench: &Bench<H>,
    id: &ContainerId,
    words: &[&str],
    options: StreamOptions,
) -> ExecStreams {
    let command = words.iter().map(|word| (*word).to_owned()).collect();
    bench.runtime().exec(id, command, options).await.unwrap()
}

/// What one sees and types.
struct Seat {
    streams: ExecStreams,
    seen: String,
}

impl Seat {
    fn at(streams: ExecStreams) -> Seat {
        Seat { streams, seen: String::new() }
    }

    async fn types(&mut self, text: &str) {
        let stdin = self.streams.stdin.as_mut().expect("something can be typed");
        stdin.write_all(text.as_bytes()).await.unwrap();
        stdin.flush().await.unwrap();
    }

    /// Reads until the words are there.
    async fn sees(&mut self, words: &str) {
        assert!(self.sees_within(STEP, words).await, "{words:?} is not in {:?}", self.seen);
    }

    /// Whether they come in time.
    async fn sees_within(&mut self, time: Duration, words: &str) -> bool {
        let mut buffer = [0; 4096];
        while !self.seen.contains(words) {
            let read = tokio::time::timeout(time, self.streams.stdout.read(&mut buffer)).await;
            let Ok(read) = read else { return false };
            let count = read.unwrap();
            assert!(count > 0, "{words:?} is not in {:?}, and no more comes", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        true
    }

    /// Reads to the end, and says how it ended.
    async fn ends(mut self) -> (String, i32) {
        let mut rest = Vec::new();
        tokio::time::timeout(STEP, self.streams.stdout.read_to_end(&mut rest)).await.unwrap().unwrap();
        self.seen.push_str(&String::from_utf8_lossy(&rest));
        let code = tokio::time::timeout(STEP, self.streams.end).await.unwrap().unwrap();
        (self.seen, code)
    }
}

pub async fn a_program_reads_what_is_typed_until_its_end<H: Harness>(bench: &mut Bench<H>) {
    let Some(id) = shell(bench).await else { return };
    let mut streams = exec(bench, &id, &["cat"], TYPED).await;
    let mut stdin = streams.stdin.take().unwrap();
    // More than any pipe on the way holds.
    let text = "0123456789abcdef".repeat(64 * 1024);
    let typing = async {
        stdin.write_all(text.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
    };
    let (read, ()) = tokio::join!(Seat::at(streams).ends(), typing);
    assert_eq!((read.0.len(), read.1), (text.len(), 0));
    assert!(read.0 == text, "it came back otherwise");
}

/// A script's words that wait for a terminal to have a size, which is set by and by.
fn until_size(width: u16, height: u16) -> String {
    format!("until [ \"$(stty size)\" = '{height} {width}' ]; do sleep 0.02; done; echo sized-{width}")
}

pub async fn a_terminal_has_a_name_and_the_size_of_the_users<H: Harness>(bench: &mut Bench<H>) {
    let Some(id) = shell(bench).await else { return };
    let sizes = [until_size(100, 40), until_size(77, 11)].join("; ");
    let script = format!("tty; {sizes}; echo ${{TERM:-no}}-term; exit 5");
    let mut seat = Seat::at(exec(bench, &id, &["sh", "-c", &script], TERMINAL).await);
    seat.sees("/dev/pts/").await;
    for (width, height) in [(100, 40), (77, 11)] {
        seat.streams.resize.as_ref().unwrap().send_replace(TerminalSize { width, height });
        seat.sees(&format!("sized-{width}")).await;
    }
    let (seen, code) = seat.ends().await;
    assert!(seen.contains("xterm-term"), "{seen:?}");
    assert_eq!(code, 5);
}

pub async fn an_interrupt_on_a_terminal_reaches_the_foreground_program<H: Harness>(bench: &mut Bench<H>) {
    let Some(id) = shell(bench).await else { return };
    let script = "trap : INT; echo begun; cat; echo stopped-$?; exit 3";
    let mut seat = Seat::at(exec(bench, &id, &["sh", "-c", script], TERMINAL).await);
    seat.sees("begun").await;
    seat.types("echoed\n").await;
    // Once by the terminal, once by the program.
    seat.sees("echoed\r\nechoed").await;
    // The shell may be about to wait for its child and hear nothing of it: a user presses again then.
    let begun = std::time::Instant::now();
    loop {
        seat.types("\u{3}").await;
        if seat.sees_within(Duration::from_secs(3), "stopped-130").await {
            break;
        }
        assert!(begun.elapsed() < STEP, "no end in {:?}", seat.seen);
    }
    assert_eq!(seat.ends().await.1, 3);
}

pub async fn what_a_user_leaves_on_a_terminal_is_hung_up<H: Harness>(bench: &mut Bench<H>) {
    let Some(id) = shell(bench).await else { return };
    let mut seat = Seat::at(exec(bench, &id, &["sh", "-c", "echo there; cat"], TERMINAL).await);
    seat.sees("there").await;
    let Seat { streams, .. } = seat;
    let ExecStreams { stdin, stdout, stderr, resize, end } = streams;
    drop((stdin, stdout, stderr, resize));
    let code = tokio::time::timeout(STEP, end).await.expect("the program goes").unwrap_or(0);
    assert!([0, 1, 128 + 1].contains(&code), "{code}");
}

pub async fn a_terminal_for_a_program_that_does_not_exist_is_an_error<H: Harness>(bench: &mut Bench<H>) {
    let Some(id) = shell(bench).await else { return };
    let command = vec!["/no/such/program".to_owned()];
    let missing = match bench.runtime().exec(&id, command, TERMINAL).await {
        Ok(streams) => streams.end.await.map(|_| ()),
        Err(error) => Err(error),
    };
    let error = missing.unwrap_err().to_string();
    assert!(error.contains("/no/such/program") && error.contains("no such file"), "{error}");
}

const ECHO: &str = "while read line; do echo got $line; done; echo over";

pub async fn who_attaches_talks_with_the_program_itself<H: Harness>(bench: &mut Bench<H>) {
    if !shell_image(bench).await {
        return;
    }
    let id = scripted(bench, ECHO, |config| config.stdin = true).await;
    let attach = || bench.runtime().attach(&id, TYPED);
    let mut first = Seat::at(attach().await.unwrap());
    first.types("one\n").await;
    first.sees("got one\n").await;
    // Another hears what comes from now on; its end is not the input's.
    let mut second = Seat::at(attach().await.unwrap());
    second.types("two\n").await;
    second.sees("got two\n").await;
    assert!(!second.seen.contains("one"), "{:?}", second.seen);
    drop(second);
    first.types("three\n").await;
    first.sees("got two\ngot three\n").await;
    bench.line("c", "got three").await;
    bench.runtime().stop_container(&id, Duration::ZERO).await.unwrap();
    assert_eq!(first.ends().await.1, 0);
    let error = bench.runtime().attach(&id, TYPED).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("not running"), "{error}");
}

pub async fn input_for_once_ends_with_who_had_it<H: Harness>(bench: &mut Bench<H>) {
    if !shell_image(bench).await {
        return;
    }
    let id = scripted(bench, ECHO, |config| (config.stdin, config.stdin_once) = (true, true)).await;
    let mut seat = Seat::at(bench.runtime().attach(&id, TYPED).await.unwrap());
    seat.types("one\n").await;
    drop(seat.streams.stdin.take());
    let (seen, _) = seat.ends().await;
    assert_eq!(seen, "got one\nover\n");
    assert_eq!(bench.exit(&id).await.code, 0);
}

pub async fn input_that_ends_at_once_has_come_and_ended<H: Harness>(bench: &mut Bench<H>) {
    if !shell_image(bench).await {
        return;
    }
    for words in ["", "one\n"] {
        bench.sandbox_with(sandbox("a")).await;
        let mut config = bench.hello("c", &[]);
        config.image = IMAGE.into();
        config.command = ["sh", "-c", ECHO].map(str::to_owned).to_vec();
        (config.stdin, config.stdin_once) = (true, true);
        let id = bench.start("a", config).await;
        let mut streams = bench.runtime().attach(&id, TYPED).await.unwrap();
        let mut stdin = streams.stdin.take().unwrap();
        stdin.write_all(words.as_bytes()).await.unwrap();
        drop(stdin);
        let seen = Seat::at(streams).ends().await.0;
        assert_eq!(seen, if words.is_empty() { "over\n" } else { "got one\nover\n" });
        assert_eq!(bench.exit(&id).await.code, 0);
    }
}

pub async fn a_container_has_a_terminal_when_it_asks_for_one<H: Harness>(bench: &mut Bench<H>) {
    if !shell_image(bench).await {
        return;
    }
    let script = format!("tty; {}; read line; echo got $line; exit 3", until_size(90, 30));
    let id = scripted(bench, &script, |config| (config.stdin, config.tty) = (true, true)).await;
    bench.line("c", "/dev/pts/").await;
    bench.restart(async {}).await;
    let mut seat = Seat::at(bench.runtime().attach(&id, TERMINAL).await.unwrap());
    seat.streams.resize.as_ref().unwrap().send_replace(TerminalSize { width: 90, height: 30 });
    seat.sees("sized-90").await;
    seat.types("words\n").await;
    seat.sees("got words").await;
    seat.ends().await;
    assert_eq!(bench.exit(&id).await.code, 3);
    bench.line("c", "stdout F got words").await;
}

pub async fn who_does_not_listen_holds_up_nobody<H: Harness>(bench: &mut Bench<H>) {
    if !shell_image(bench).await {
        return;
    }
    // More than is kept for who is behind, in lines that no engine needs long for.
    let script = format!("read go; yes {} | head -c 2500000; echo; echo flooded; read end", "x".repeat(250));
    let id = scripted(bench, &script, |config| config.stdin = true).await;
    let deaf = bench.runtime().attach(&id, StreamOptions::default()).await.unwrap();
    let mut seat = Seat::at(bench.runtime().attach(&id, TYPED).await.unwrap());
    seat.types("go\n").await;
    // Nobody reads what is copied for the two, and the program and its log come to their end.
    bench.line("c", "flooded").await;
    let ExecStreams { mut stdout, end, .. } = deaf;
    let mut kept = Vec::new();
    tokio::time::timeout(STEP, stdout.read_to_end(&mut kept)).await.unwrap().unwrap();
    assert!(kept.len() < 2_500_000, "{}", kept.len());
    let error = tokio::time::timeout(STEP, end).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("faster than it was read"), "{error}");
    drop(seat);
    // A new one hears again.
    let mut seat = Seat::at(bench.runtime().attach(&id, TYPED).await.unwrap());
    seat.types("end\n").await;
    assert_eq!(seat.ends().await.1, 0);
}

pub async fn a_port_of_a_pod_is_reached_from_inside<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    // On the pod's own loopback: from outside nobody gets there.
    bench.start("a", bench.hello("c", &["--listen", "127.0.0.1:8123"])).await;
    bench.line("c", "listening on").await;
    let pod = Uid::from("a");
    for _ in 0..2 {
        let mut connection = bench.runtime().port_forward(&pod, 8123).await.unwrap();
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(STEP, connection.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.") && answer.contains("host-a"), "{answer}");
    }
    let silent = bench.runtime().port_forward(&pod, 8124).await.map(|_| ()).unwrap_err();
    assert!(silent.to_string().contains("nothing listens there"), "{silent}");
    let unknown = bench.runtime().port_forward(&Uid::from("never-was"), 8123).await.map(|_| ()).unwrap_err();
    assert!(unknown.to_string().contains("not found"), "{unknown}");
}
