//! The program of the built-in image `troupe.local/hello`: says which pod answered, and misbehaves when told to.
//!
//! Owns: what runs when this executable is started as `hello`. Invariants: it is pid 1, so it handles SIGTERM itself
//! and ends at once; it needs nothing but its own file, few threads and little memory. It knows nothing of Troupe: an
//! ordinary program in a container, whose code lives here because the image is this executable.

mod flags;
mod serve;

use std::{
    fmt::Display,
    fs,
    io::{self, Write},
    net::TcpListener,
    os::unix::ffi::OsStrExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal},
    wait::{WaitPidFlag, waitpid},
};
use serde_json::json;

pub use self::flags::{Flags, USAGE, flood_line};

/// The port without `--listen` and `$PORT`.
const DEFAULT_PORT: u16 = 8080;
/// Exit code for a command line that is not understood, as in shells.
const EXIT_USAGE: i32 = 2;
/// The stack of a thread here: nothing is recursive, and many threads should cost little.
const STACK: usize = 128 * 1024;

/// Whether this process was started as the hello program: as `troupe hello` or through a file named `hello`.
pub fn is_meant(args: &[String]) -> bool {
    args.get(1).is_some_and(|arg| arg == "hello")
        || args.first().is_some_and(|arg| Path::new(arg).file_name().is_some_and(|name| name == "hello"))
}

/// Runs the program with the process's whole argument list; returns its exit code.
pub fn main(args: &[String]) -> i32 {
    let own = match args.get(1) {
        Some(arg) if arg == "hello" => &args[2..],
        _ => args.get(1..).unwrap_or_default(),
    };
    let flags = match Flags::parse(own) {
        Ok(flags) => flags,
        Err(error) => {
            complain(error);
            return EXIT_USAGE;
        }
    };
    if flags.help {
        say(USAGE.trim_end());
        return 0;
    }
    let code = flags.exit_code.unwrap_or(0);
    match run(&flags, args) {
        Ok(()) => code,
        Err(error) => {
            complain(error);
            if code == 0 { 1 } else { code }
        }
    }
}

fn run(flags: &Flags, args: &[String]) -> Result<(), String> {
    if flags.pause {
        return pause();
    }
    handle_signals(flags)?;
    if let Some(sleep) = flags.sleep {
        thread::sleep(sleep);
    }
    if let Some(bytes) = flags.allocate {
        allocate(bytes)?;
    }
    if let Some(time) = flags.burn_cpu {
        spawn("burn", move || burn(time))?;
    }
    act(flags, args)?;
    end_later(flags)?;
    repeat(flags)?;
    if flags.once {
        if flags.crash && flags.exit_after.is_none() {
            crash();
        }
        // With a time to end given, that ends it.
        while flags.exit_after.is_some() {
            thread::park();
        }
        return Ok(());
    }
    let address = match &flags.listen {
        Some(address) => address.clone(),
        None => format!("0.0.0.0:{}", std::env::var("PORT").ok().unwrap_or_else(|| DEFAULT_PORT.to_string())),
    };
    let listener = TcpListener::bind(&address).map_err(|e| format!("listen on {address}: {e}"))?;
    let bound = listener.local_addr().map_or(address, |bound| bound.to_string());
    say(format_args!("listening on {bound}"));
    serve::serve(&listener, flags.hang)
}

/// As pid 1 nothing ends this process on SIGTERM but itself. All threads start with the signals blocked, one takes them.
fn handle_signals(flags: &Flags) -> Result<(), String> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|e| format!("block signals: {e}"))?;
    let (ignore, code) = (flags.ignore_sigterm, flags.exit_code.unwrap_or(0));
    spawn("signals", move || {
        while let Ok(signal) = signals.wait() {
            if ignore {
                say(format_args!("{signal} ignored"));
            } else {
                say(format_args!("{signal}: ending"));
                std::process::exit(code);
            }
        }
    })
}

/// Holds a sandbox's namespaces open and, as their first process, takes leave of orphans, until told to end.
fn pause() -> Result<(), String> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|e| format!("block signals: {e}"))?;
    // For those who look at processes, and who share them. It works without as well.
    let _ = nix::sys::prctl::set_name(c"pause");
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                let any = nix::unistd::Pid::from_raw(-1);
                while waitpid(any, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {}
            }
            Ok(_) => return Ok(()),
            Err(error) => return Err(format!("wait for a signal: {error}")),
        }
    }
}

/// Everything that is done once, before serving.
fn act(flags: &Flags, args: &[String]) -> Result<(), String> {
    for (path, text) in &flags.write {
        write(path, text).map_err(|e| format!("write {path}: {e}"))?;
    }
    for path in &flags.read {
        say(fs::read_to_string(path).map_err(|e| format!("read {path}: {e}"))?.trim_end());
    }
    if flags.describe {
        say(describe(args));
    }
    for url in &flags.fetch {
        say(serve::fetch(url)?.trim_end());
    }
    print(flags);
    Ok(())
}

fn print(flags: &Flags) {
    flags.print.iter().for_each(say);
    flags.error.iter().for_each(complain);
    let mut out = io::BufWriter::new(io::stdout().lock());
    for number in 0..flags.flood.unwrap_or(0) {
        // Whoever closed it has heard enough.
        let _ = writeln!(out, "{}", flood_line(number));
    }
}

fn repeat(flags: &Flags) -> Result<(), String> {
    let Some(every) = flags.every else { return Ok(()) };
    let flags = flags.clone();
    spawn("print", move || {
        loop {
            thread::sleep(every);
            print(&flags);
        }
    })
}

fn end_later(flags: &Flags) -> Result<(), String> {
    let (crashes, code) = (flags.crash, flags.exit_code.unwrap_or(0));
    match flags.exit_after {
        Some(after) => spawn("end", move || {
            thread::sleep(after);
            if crashes {
                crash();
            }
            std::process::exit(code);
        }),
        None if crashes && !flags.once => crash(),
        None => Ok(()),
    }
}

fn describe(args: &[String]) -> serde_json::Value {
    let env: serde_json::Map<_, _> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), json!(value.to_string_lossy())))
        .collect();
    let directory = std::env::current_dir().unwrap_or_default();
    json!({
        "args": args,
        "env": env,
        "cwd": String::from_utf8_lossy(directory.as_os_str().as_bytes()),
        "hostname": host_name(),
        "uid": nix::unistd::getuid().as_raw(),
        "gid": nix::unistd::getgid().as_raw(),
    })
}

fn host_name() -> String {
    hostname::get().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn burn(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// Holds memory until the process ends: leaked on purpose, and written to, so that it counts.
fn allocate(bytes: u64) -> Result<(), String> {
    let refused = |_| format!("allocate {bytes} bytes: refused");
    let bytes_here = usize::try_from(bytes).map_err(|_| format!("allocate {bytes} bytes: too much"))?;
    let mut memory: Vec<u8> = Vec::new();
    memory.try_reserve_exact(bytes_here).map_err(refused)?;
    memory.resize(bytes_here, 1);
    std::hint::black_box(memory.leak());
    Ok(())
}

/// Ends by a signal: SIGABRT, or as pid 1, which is spared that, SIGSEGV.
fn crash() -> ! {
    complain("crashing, as told");
    std::process::abort()
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(work)
        .map(drop)
        .map_err(|e| format!("start a thread: {e}"))
}

/// Prints a line; a standard output that is closed is no reason to end.
fn say(line: impl Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Onto the disk, so that whoever counts what is written sees it. What is no file on a disk may not know how.
fn write(path: &str, text: &str) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(text.as_bytes())?;
    let _ = file.sync_all();
    Ok(())
}

fn complain(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
