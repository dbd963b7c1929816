//! What the hello program can be told on its command line.
//!
//! Owns: [`Flags`], parsed without touching the system, so that the simulated runtime can foretell what a container of
//! the built-in image would do. Limits: no short flags, no `--flag=value` for texts that begin with a dash.

use std::time::Duration;

/// The text of `--help`.
pub const USAGE: &str = "\
hello: a small HTTP server that says which pod answered, and misbehaves when told to

  --listen ADDR          listen here (default 0.0.0.0:$PORT, or port 8080)
  --sleep DURATION       wait before anything else, as a slow start
  --print TEXT           print a line; may be repeated
  --error TEXT           print a line on standard error; may be repeated
  --flood LINES          print so many numbered lines as fast as possible (up to 1000000)
  --every DURATION       print all of that again and again
  --describe             print arguments, environment, directory, host name and user as one line of JSON
  --write PATH=TEXT      write a file
  --read PATH            print a file
  --fetch URL            GET an http:// URL and print the answer's body
  --once                 end after that instead of serving
  --exit-after DURATION  end by itself
  --exit-code N          end with this code, however it ends (default 0)
  --crash                end by a signal (after --exit-after, or at once)
  --hang                 accept connections, but never answer
  --burn-cpu DURATION    use one core fully for so long
  --allocate SIZE        hold so much memory (64Mi, 1Gi, 1000000)
  --ignore-sigterm       do not end when asked to
  --pause                only hold a sandbox's namespaces open, and nothing else

Paths: / (JSON with Accept: application/json), /healthz, /unhealthy and /healthy (switch /healthz), /env, /headers,
/exit?code=N, /crash, /hang, /burn?for=DURATION, /allocate?size=SIZE
";

/// What the program was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Where to listen, if not at the default.
    pub listen: Option<String>,
    /// Wait before anything else.
    pub sleep: Option<Duration>,
    /// Lines for standard output.
    pub print: Vec<String>,
    /// Lines for standard error.
    pub error: Vec<String>,
    /// Print so many lines.
    pub flood: Option<u32>,
    /// Print them again each time this has passed.
    pub every: Option<Duration>,
    /// Print what the process was given.
    pub describe: bool,
    /// Files to write: path and content.
    pub write: Vec<(String, String)>,
    /// Files to print.
    pub read: Vec<String>,
    /// URLs to print.
    pub fetch: Vec<String>,
    /// Do not serve.
    pub once: bool,
    /// End by itself.
    pub exit_after: Option<Duration>,
    /// The exit code.
    pub exit_code: Option<i32>,
    /// End by a signal.
    pub crash: bool,
    /// Never answer.
    pub hang: bool,
    /// Use a core for so long.
    pub burn_cpu: Option<Duration>,
    /// Hold so many bytes.
    pub allocate: Option<u64>,
    /// Do not end on SIGTERM.
    pub ignore_sigterm: bool,
    /// Only hold namespaces open.
    pub pause: bool,
    /// Only print the usage.
    pub help: bool,
}

impl Flags {
    /// Parses the arguments after the program's name. The error is a sentence for the user.
    pub fn parse<S: AsRef<str>>(args: &[S]) -> Result<Flags, String> {
        let mut flags = Flags::default();
        let mut args = args.iter().map(AsRef::as_ref);
        while let Some(arg) = args.next() {
            let (name, mut inline) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (arg, None),
            };
            let mut value =
                || inline.take().or_else(|| args.next()).ok_or_else(|| format!("{name} needs a value"));
            match name {
                "--listen" => flags.listen = Some(value()?.to_owned()),
                "--sleep" => flags.sleep = Some(duration(value()?)?),
                "--print" => flags.print.push(value()?.to_owned()),
                "--error" => flags.error.push(value()?.to_owned()),
                "--flood" => flags.flood = Some(lines(value()?)?),
                "--every" => flags.every = Some(duration(value()?)?),
                "--describe" => flags.describe = true,
                "--write" => {
                    let (path, text) = value()?.split_once('=').ok_or("--write needs PATH=TEXT")?;
                    flags.write.push((path.to_owned(), text.to_owned()));
                }
                "--read" => flags.read.push(value()?.to_owned()),
                "--fetch" => flags.fetch.push(value()?.to_owned()),
                "--once" => flags.once = true,
                "--exit-after" => flags.exit_after = Some(duration(value()?)?),
                "--exit-code" => flags.exit_code = Some(exit_code(value()?)?),
                "--crash" => flags.crash = true,
                "--hang" => flags.hang = true,
                "--burn-cpu" => flags.burn_cpu = Some(duration(value()?)?),
                "--allocate" => flags.allocate = Some(size(value()?)?),
                "--pause" => flags.pause = true,
                "--ignore-sigterm" => flags.ignore_sigterm = true,
                "--help" | "-h" => flags.help = true,
                other => return Err(format!("unknown flag {other:?}; --help lists the flags")),
            }
            if inline.is_some() {
                return Err(format!("{name} takes no value"));
            }
        }
        Ok(flags)
    }
}

/// `1500ms`, `2s`, `1m 30s`; a bare number means seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    humantime::parse_duration(text).map_err(|e| format!("{text:?} is not a duration: {e}"))
}

pub(super) fn exit_code(text: &str) -> Result<i32, String> {
    text.parse::<u8>().map(i32::from).map_err(|_| format!("{text:?} is not an exit code (0 to 255)"))
}

fn lines(text: &str) -> Result<u32, String> {
    const MOST: u32 = 1_000_000;
    text.parse()
        .ok()
        .filter(|lines| *lines <= MOST)
        .ok_or_else(|| format!("{text:?} is not 0 to {MOST} lines"))
}

/// A line of a flood.
pub fn flood_line(number: u32) -> String {
    format!("{number} of a flood that nobody is going to read to its end, but for the last lines of it")
}

/// Bytes, with Kubernetes' suffixes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 6] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
    ];
    let (number, unit) = UNITS
        .iter()
        .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
        .unwrap_or((text, 1));
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| format!("{text:?} is not a size (64Mi, 1Gi, 1000000)"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn flags_are_understood_in_both_forms() {
        let flags =
            Flags::parse(&["--exit-after", "1500ms", "--exit-code=3", "--print", "a=b", "--print=-c"])
                .unwrap();
        assert_eq!(flags.exit_after, Some(Duration::from_millis(1500)));
        assert_eq!(flags.exit_code, Some(3));
        assert_eq!(flags.print, ["a=b", "-c"]);
        assert_eq!(Flags::parse(&["--write", "/a=b=c"]).unwrap().write, [("/a".into(), "b=c".into())]);
        assert_eq!(Flags::parse(&["--allocate", "64Mi"]).unwrap().allocate, Some(64 << 20));
        assert_eq!(Flags::parse::<&str>(&[]).unwrap(), Flags::default());
    }

    #[test]
    fn wrong_flags_are_named() {
        let rows: [(&[&str], &str); 7] = [
            (&["--nope"], "--nope"),
            (&["stray"], "stray"),
            (&["--exit-after"], "needs a value"),
            (&["--exit-after", "soon"], "soon"),
            (&["--exit-code", "256"], "256"),
            (&["--allocate", "99999999999Gi"], "99999999999Gi"),
            (&["--crash=yes"], "takes no value"),
        ];
        for (args, text) in rows {
            let error = Flags::parse(args).unwrap_err();
            assert!(error.contains(text), "{args:?}: {error}");
        }
    }

    #[test]
    fn every_flag_is_in_the_usage() {
        for line in USAGE.lines().filter(|line| line.starts_with("  --")) {
            let flag = line.split_whitespace().next().unwrap();
            let parsed = Flags::parse(&[flag, "1"]);
            assert!(!parsed.is_err_and(|e| e.contains("unknown flag \"--")), "{flag}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(args in proptest::collection::vec("(--[a-z-]{1,12}=?)?\\PC{0,8}", 0..6)) {
            let _ = Flags::parse(&args);
        }
    }
}
