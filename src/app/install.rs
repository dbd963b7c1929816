//! `troupe master install` and `troupe node install`: units for systemd.
//!
//! Owns: the unit's text, its file, and the file with a node's join token. Invariants: what is in the unit is for everybody to
//! read, so no token is; a command line means to systemd what it meant to the shell it was typed in, from whatever directory;
//! where the master is at first is in a node's unit with a file for the token beside, so that the node goes by what it has
//! learnt once it has joined.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use super::{
    StartError,
    joined::SENT_AWAY,
    kubeconfig::write_private,
    master::not_a_nodes,
    membership::{Files, RECORD},
    said::say,
};
use crate::model::token::JoinToken;

/// Where administrators' units are.
const UNITS: &str = "/etc/systemd/system";
/// There while systemd runs the machine, as `sd_booted(3)` has it.
const BOOTED: &str = "/run/systemd/system";
/// A node's token, in its data directory, until it has joined.
pub(super) const TOKEN_FILE: &str = "join-token";
/// Options whose values are paths, which are meant from where they were typed.
const PATHS: [&str; 5] = ["--config", "--registry-ca", "--registry-config", "--manifests", "--token-file"];

/// What is to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `troupe master`.
    Master,
    /// `troupe node`.
    Node,
}

impl Role {
    /// Its command.
    pub fn name(self) -> &'static str {
        match self {
            Role::Master => "master",
            Role::Node => "node",
        }
    }

    fn unit(self) -> String {
        format!("troupe-{}.service", self.name())
    }
}

/// What `install` was asked for.
#[derive(Clone, Debug)]
pub struct InstallOptions {
    /// Of what.
    pub role: Role,
    /// The options that it is to be started with, as they were typed.
    pub words: Vec<String>,
    /// Its data directory, from the root.
    pub data_dir: PathBuf,
    /// A token to join with.
    pub token: Option<String>,
    /// Only show the unit.
    pub print: bool,
    /// Where units are; systemd's own place when absent.
    pub unit_dir: Option<PathBuf>,
}

/// Writes the unit. Exit code 1 when it cannot, 2 when what is to be started makes no sense.
pub fn install(options: &InstallOptions) -> ExitCode {
    if let Some(Err(error)) = options.token.as_ref().map(|token| token.parse::<JoinToken>()) {
        eprintln!("troupe: --token: {error}");
        return ExitCode::from(2);
    }
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("troupe: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(options: &InstallOptions) -> Result<(), StartError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| StartError::File { path, source }
    };
    let program = std::env::current_exe().map_err(file(Path::new("/proc/self/exe")))?;
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    // What would be refused at each start.
    match options.role {
        Role::Node => Files::of(&options.data_dir).not_a_masters()?,
        Role::Master => not_a_nodes(&options.data_dir)?,
    }
    // A node that has joined needs no token, and would not look at one in a file.
    let joined = options.role == Role::Node && options.data_dir.join(RECORD).exists();
    let token = options.token.as_ref().filter(|_| !joined);
    if options.token.is_some() && token.is_none() {
        eprintln!("troupe: {}", not_used(&options.data_dir));
    }
    let token_path = options.data_dir.join(TOKEN_FILE);
    let mut words = settled(&options.words, &here);
    if joined && let Some(address) = take_join(&mut words) {
        let data = options.data_dir.display();
        let master = Files::of(&options.data_dir).record()?.map(|record| record.master).unwrap_or_default();
        eprintln!(
            "troupe: {data} has joined a cluster already and looks for its master at {master}, so the unit has no --join; if \
             that is not where the master is: troupe node --data-dir {data} --join {address}, once"
        );
    }
    words.extend(["--data-dir".to_owned(), options.data_dir.display().to_string()]);
    if options.role == Role::Node && !joined && !names(&words, "--token-file") {
        if token.is_none() {
            eprintln!(
                "troupe: without --token the service cannot start before this machine has joined: troupe node --data-dir {} \
                 --join ADDR --token T, once",
                options.data_dir.display()
            );
        }
        if token.is_some() || names(&words, "--join") {
            words.extend(["--token-file".to_owned(), token_path.display().to_string()]);
        }
    }
    let text = unit(options.role, &program.display().to_string(), &words, &options.data_dir);
    if options.print {
        say(text.trim_end());
        return Ok(());
    }
    if let Some(token) = token {
        let data = &options.data_dir;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data).map_err(file(data))?;
        write_private(&token_path, &format!("{token}\n"))?;
    }
    let directory = options.unit_dir.clone().unwrap_or_else(|| UNITS.into());
    let (name, path) = (options.role.unit(), directory.join(options.role.unit()));
    write_unit(&path, &text).map_err(file(&path))?;
    say(&format!("wrote {}", path.display()));
    // A unit that is elsewhere is none of the running systemd's.
    let runs = options.unit_dir.is_none() && Path::new(BOOTED).is_dir();
    if runs {
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", &name])?;
        say(&format!("it starts with the machine; now: systemctl start {name}"));
    } else {
        say(&format!(
            "systemd does not run here; where it does: systemctl daemon-reload && systemctl enable --now {name}"
        ));
    }
    say(&format!(
        "to take it back: systemctl disable --now {name}; rm {}; systemctl daemon-reload  (its data stay in {})",
        path.display(),
        options.data_dir.display()
    ));
    Ok(())
}

/// Why a token that is not on the command line of `troupe node` is left alone.
pub(super) fn not_used(data: &Path) -> String {
    let data = data.display();
    format!(
        "{data} has joined a cluster already, so the token is not used; to join again, if the node was deleted: troupe node \
         --data-dir {data} --join ADDR --token T"
    )
}

fn write_unit(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("service.new");
    fs::write(&beside, text)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o644))?;
    fs::File::open(&beside)?.sync_all()?;
    fs::rename(&beside, path)
}

fn systemctl(words: &[&str]) -> Result<(), StartError> {
    let told = Command::new("systemctl").args(words).output();
    let problem = match told {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(StartError::Refused(format!("the unit was written, but systemctl {}: {problem}", words.join(" "))))
}

/// The words for the unit: without what is told otherwise, and with paths from the root.
fn settled(words: &[String], here: &Path) -> Vec<String> {
    let mut settled = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        match name {
            "--print" | "--dry-run" => {}
            "--data-dir" | "--token" | "--unit-dir" => {
                if value.is_none() {
                    words.next();
                }
            }
            path if PATHS.contains(&path) => {
                let value = value.or_else(|| words.next().cloned()).unwrap_or_default();
                settled.extend([path.to_owned(), here.join(value).display().to_string()]);
            }
            _ => settled.push(word.clone()),
        }
    }
    settled
}

/// Whether an option is among the words.
fn names(words: &[String], option: &str) -> bool {
    words.iter().any(|word| word.split('=').next() == Some(option))
}

/// Takes `--join` out of the words; its value.
fn take_join(words: &mut Vec<String>) -> Option<String> {
    let at = words.iter().position(|word| word.split('=').next() == Some("--join"))?;
    let word = words.remove(at);
    match word.split_once('=') {
        Some((_, value)) => Some(value.to_owned()),
        None => (at < words.len()).then(|| words.remove(at)),
    }
}

fn unit(role: Role, program: &str, words: &[String], data: &Path) -> String {
    let name = role.name();
    let mut command = quoted(program, false);
    for word in std::iter::once(name).chain(words.iter().map(String::as_str)) {
        command.push(' ');
        command.push_str(&quoted(word, true));
    }
    let mounts = quoted(&data.display().to_string(), false);
    let (description, prevent, more) = match role {
        Role::Master => (
            "Troupe: a cluster's master",
            "# A command line that makes no sense does not get better.\n\
             RestartPreventExitStatus=2\n"
                .to_owned(),
            "",
        ),
        Role::Node => (
            "Troupe: a node of a cluster",
            format!(
                "# A command line that makes no sense does not get better, and a node that was deleted does not come back by itself.\n\
                 RestartPreventExitStatus=2 {SENT_AWAY}\n"
            ),
            "# Containers and their shims outlive the daemon, which finds them again.\n\
             KillMode=process\n\
             Delegate=yes\n\
             TasksMax=infinity\n\
             OOMScoreAdjust=-999\n",
        ),
    };
    format!(
        "# Written by `troupe {name} install`, and again whenever that is run. Changes of yours: systemctl edit troupe-{name}\n\
         [Unit]\n\
         Description={description}\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         RequiresMountsFor={mounts}\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=notify\n\
         ExecStart={command}\n\
         # It may wait for a disk, or a node that joins for its master, as long as that takes.\n\
         TimeoutStartSec=infinity\n\
         Restart=always\n\
         RestartSec=2\n\
         {prevent}\
         LimitNOFILE=1048576\n\
         {more}\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    )
}

/// A word as systemd reads it (`systemd.service(5)`, `systemd.syntax(7)`). `$` means something in arguments only.
fn quoted(word: &str, argument: bool) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+<>".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    let mut text = "\"".to_owned();
    for c in word.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '%' => text.push_str("%%"),
            '$' if argument => text.push_str("$$"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_word_means_to_systemd_what_it_meant_to_the_shell() {
        for (word, expected) in [
            ("--api", "--api"),
            (
                "memory.available<100Mi,nodefs.available<10%",
                r#""memory.available<100Mi,nodefs.available<10%%""#,
            ),
            ("", r#""""#),
            ("a b", r#""a b""#),
            ("$HOME", r#""$$HOME""#),
            (r#"a"b\c"#, r#""a\"b\\c""#),
            ("it's", r#""it's""#),
            (";", r#"";""#),
            ("a\nb", r#""a\nb""#),
            ("zone=a", "zone=a"),
        ] {
            assert_eq!(quoted(word, true), expected, "{word}");
        }
        assert_eq!(quoted("/opt/$x/troupe", false), r#""/opt/$x/troupe""#);
    }

    #[test]
    fn a_unit_holds_no_token_and_paths_from_the_root() {
        let typed = words(&[
            "--token",
            "T",
            "--join",
            "10.0.0.1",
            "--registry-ca=ca.pem",
            "--manifests",
            "/m",
            "--label",
            "a=b",
            "--print",
            "--data-dir=d",
            "--token=T",
            "--config",
            "c.yaml",
        ]);
        let expected = words(&[
            "--join",
            "10.0.0.1",
            "--registry-ca",
            "/here/ca.pem",
            "--manifests",
            "/m",
            "--label",
            "a=b",
            "--config",
            "/here/c.yaml",
        ]);
        assert_eq!(settled(&typed, Path::new("/here")), expected);
    }

    #[test]
    fn the_address_to_join_at_is_taken_out_of_the_words() {
        for (typed, left, address) in [
            (&["--join", "a", "--name", "n"][..], &["--name", "n"][..], Some("a")),
            (&["--name", "n", "--join=a:1"], &["--name", "n"], Some("a:1")),
            (&["--name", "n"], &["--name", "n"], None),
            (&["--join"], &[], None),
        ] {
            let mut typed = words(typed);
            assert_eq!(take_join(&mut typed).as_deref(), address, "{left:?}");
            assert_eq!(typed, words(left));
        }
    }

    #[test]
    fn the_units_are_these() {
        let (program, data) = ("/usr/local/bin/troupe", Path::new("/var/lib/troupe"));
        let master = unit(Role::Master, program, &words(&["--data-dir", "/var/lib/troupe"]), data);
        assert_eq!(
            master,
            "\
# Written by `troupe master install`, and again whenever that is run. Changes of yours: systemctl edit troupe-master
[Unit]
Description=Troupe: a cluster's master
Wants=network-online.target
After=network-online.target
RequiresMountsFor=/var/lib/troupe
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/usr/local/bin/troupe master --data-dir /var/lib/troupe
# It may wait for a disk, or a node that joins for its master, as long as that takes.
TimeoutStartSec=infinity
Restart=always
RestartSec=2
# A command line that makes no sense does not get better.
RestartPreventExitStatus=2
LimitNOFILE=1048576

[Install]
WantedBy=multi-user.target
"
        );
        let typed = words(&["--join", "10.0.0.1", "--label", "a b=c"]);
        let node = unit(Role::Node, program, &typed, Path::new("/srv/50% of $it/troupe"));
        for line in [
            "ExecStart=/usr/local/bin/troupe node --join 10.0.0.1 --label \"a b=c\"",
            "RequiresMountsFor=\"/srv/50%% of $it/troupe\"",
            "RestartPreventExitStatus=2 3",
            "KillMode=process",
            "Delegate=yes",
            "Type=notify",
            "Restart=always",
        ] {
            assert!(node.lines().any(|l| l == line), "{line} is not in\n{node}");
        }
    }
}
