//! What a simulated container will do, foretold from its image, arguments and environment.
//!
//! Owns: [`Behaviour`] and how one is found: what the configuration says of the image; for the built-in image its own
//! flags; then the environment (`SIM_EXIT_AFTER_MS`, `SIM_EXIT_CODE`, `SIM_FAIL_START`, `SIM_IGNORE_SIGTERM`, `SIM_LOG`,
//! `SIM_EXEC_CODE`), which wins. Leaves out what would need real processes: files, networks, memory.

use std::time::Duration;

use serde_json::json;

use crate::{
    hello::{Flags, flood_line},
    runtime::{ContainerConfig, images::BUILTIN_IMAGE},
};

/// Exit code for a command line that the built-in program does not understand.
const EXIT_USAGE: i32 = 2;

/// What a container of the built-in image runs when nothing else is said.
const BUILTIN_ENTRYPOINT: [&str; 2] = ["/hello", "hello"];

/// What a container does once it is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// Ends by itself after this; `None` = never.
    pub exit_after: Option<Duration>,
    /// The code it ends with, also when it is asked to end.
    pub exit_code: i32,
    /// The signal that ends it by itself, as a crash.
    pub signal: Option<i32>,
    /// It cannot be started, for this reason.
    pub fail_start: Option<String>,
    /// SIGTERM does not end it.
    pub ignore_sigterm: bool,
    /// The code that programs run in it end with, unless they are the built-in one.
    pub exec_code: i32,
    /// Lines it prints on standard output when it starts.
    pub stdout: Vec<String>,
    /// Lines it prints on standard error when it starts.
    pub stderr: Vec<String>,
    /// It uses one core for so long.
    pub burn_cpu: Duration,
    /// Bytes of memory that it holds.
    pub allocate: u64,
}

impl Behaviour {
    /// How a container of a configuration will behave; `of_image` is what is known of its image.
    pub(super) fn foretell(
        of_image: Option<&Behaviour>,
        image: &str,
        config: &ContainerConfig,
        hostname: &str,
    ) -> Behaviour {
        let mut behaviour = of_image.cloned().unwrap_or_default();
        if image == BUILTIN_IMAGE {
            behaviour.follow_hello(config, hostname);
        }
        let env =
            |name: &str| config.env.iter().rev().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        if let Some(ms) = env("SIM_EXIT_AFTER_MS").and_then(|ms| ms.parse().ok()) {
            behaviour.exit_after = Some(Duration::from_millis(ms));
        }
        if let Some(code) = env("SIM_EXIT_CODE").and_then(|code| code.parse().ok()) {
            behaviour.exit_code = code;
        }
        if let Some(why) = env("SIM_FAIL_START") {
            behaviour.fail_start = Some(why.to_owned());
        }
        if env("SIM_IGNORE_SIGTERM").is_some() {
            behaviour.ignore_sigterm = true;
        }
        if let Some(code) = env("SIM_EXEC_CODE").and_then(|code| code.parse().ok()) {
            behaviour.exec_code = code;
        }
        behaviour.stdout.extend(env("SIM_LOG").map(str::to_owned));
        behaviour
    }

    /// What a program run in a container of an image will do, where that can be foretold.
    pub(super) fn of_program(image: &str, command: &[String], hostname: &str) -> Option<Behaviour> {
        if image != BUILTIN_IMAGE {
            return None;
        }
        let mut behaviour = Behaviour::default();
        let config = ContainerConfig { command: command.to_vec(), ..ContainerConfig::default() };
        behaviour.follow_hello(&config, hostname);
        Some(behaviour)
    }

    /// Does as the hello program would.
    fn follow_hello(&mut self, config: &ContainerConfig, hostname: &str) {
        let argv: Vec<&str> = match config.command.as_slice() {
            [] => BUILTIN_ENTRYPOINT.into_iter().chain(config.args.iter().map(String::as_str)).collect(),
            command => command.iter().chain(&config.args).map(String::as_str).collect(),
        };
        let (program, own) = match argv.as_slice() {
            [program, "hello", own @ ..] | [program, own @ ..] => (*program, own),
            [] => return,
        };
        if program != BUILTIN_ENTRYPOINT[0] {
            self.fail_start = Some(format!("exec {program:?}: no such file or directory"));
            return;
        }
        let flags = match Flags::parse(own) {
            Ok(flags) => flags,
            Err(error) => {
                self.stderr.push(error);
                (self.exit_after, self.exit_code) = (Some(Duration::ZERO), EXIT_USAGE);
                return;
            }
        };
        if flags.describe {
            self.stdout.push(describe(&argv, config, hostname));
        }
        self.stdout.extend(flags.print);
        self.stdout.extend((0..flags.flood.unwrap_or(0)).map(flood_line));
        self.stderr.extend(flags.error);
        self.exit_code = flags.exit_code.unwrap_or(0);
        self.ignore_sigterm = flags.ignore_sigterm;
        self.exit_after = flags.exit_after;
        self.burn_cpu = flags.burn_cpu.unwrap_or_default();
        self.allocate = flags.allocate.unwrap_or(0);
        if flags.once || flags.crash {
            self.exit_after.get_or_insert(Duration::ZERO);
        }
        if flags.crash {
            self.signal = Some(nix::libc::SIGABRT);
        }
    }
}

fn describe(argv: &[&str], config: &ContainerConfig, hostname: &str) -> String {
    let env: serde_json::Map<_, _> =
        config.env.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let cwd = config.working_dir.as_deref().unwrap_or("/");
    let uid = config.security.user.unwrap_or(0);
    let gid = config.security.group.unwrap_or(0);
    json!({"args": argv, "env": env, "cwd": cwd, "hostname": hostname, "uid": uid, "gid": gid}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str], env: &[(&str, &str)]) -> ContainerConfig {
        ContainerConfig {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn the_environment_wins_over_flags_and_flags_over_the_image() {
        let of_image = Behaviour { exit_code: 1, ..Behaviour::default() };
        let foretell = |args: &[&str], env: &[(&str, &str)]| {
            Behaviour::foretell(Some(&of_image), BUILTIN_IMAGE, &config(args, env), "h").exit_code
        };
        assert_eq!(foretell(&["--exit-code", "2"], &[("SIM_EXIT_CODE", "3")]), 3);
        assert_eq!(foretell(&["--exit-code", "2"], &[]), 2);
        let other = Behaviour::foretell(Some(&of_image), "other", &config(&["--exit-code", "2"], &[]), "h");
        assert_eq!(other.exit_code, 1, "only the built-in image's flags are known");
    }

    #[test]
    fn wrong_flags_end_as_the_real_program_does() {
        let behaviour = Behaviour::foretell(None, BUILTIN_IMAGE, &config(&["--nope"], &[]), "h");
        assert_eq!((behaviour.exit_after, behaviour.exit_code), (Some(Duration::ZERO), 2));
        let missing = ContainerConfig { command: vec!["/bin/sh".into()], ..config(&[], &[]) };
        assert!(
            Behaviour::foretell(None, BUILTIN_IMAGE, &missing, "h").fail_start.unwrap().contains("/bin/sh")
        );
    }
}
