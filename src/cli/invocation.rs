//! From the words of the command line to a parsed command.
//!
//! Owns: which program we are (`troupe`, or `kubectl` by a link of that name), flags that people write before the verb,
//! and the honest answer for verbs that are not built.

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::Parser as _;

use super::{
    args::{Cli, Command, DemoArgs, Kubectl, ResetArgs, RestoreArgs},
    node::{MasterArgs, NodeArgs},
    up::UpArgs,
    verbs::{ClientCommand, NOT_BUILT, Verb},
};

/// Options with a value that may stand before the verb, as people write them to kubectl.
const EARLY: &[&str] = &["-n", "--namespace", "--kubeconfig", "--context"];

/// What the program is to do.
#[derive(Debug)]
pub enum Invocation {
    /// Tell the story.
    Demo(DemoArgs),
    /// Run a cluster.
    Up(Box<UpArgs>),
    /// Run a master alone.
    Master(Box<MasterArgs>),
    /// Run a node.
    Node(Box<NodeArgs>),
    /// End one for good.
    Reset(ResetArgs),
    /// Make one out of a backup.
    Restore(RestoreArgs),
    /// Ask one.
    Client(ClientCommand),
}

fn client(verb: Verb, kubectl: bool) -> Invocation {
    Invocation::Client(ClientCommand::Verb(Box::new(verb), kubectl))
}

/// Parses the command line of this process; an exit code when there is nothing to run.
///
/// # Errors
/// The exit code: 0 after `--help`, 1 for verbs that are not built, 2 for wrong usage.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Invocation, ExitCode> {
    let mut words: Vec<OsString> = words.into_iter().collect();
    let program =
        words.first().and_then(|p| Path::new(p).file_name()).map(|n| n.to_string_lossy().into_owned());
    let kubectl = program.is_some_and(|p| p == "kubectl");
    verb_first(&mut words);
    if let Some(verb) = words.get(1).and_then(|w| w.to_str()).filter(|w| NOT_BUILT.contains(w)) {
        eprintln!(
            "error: {verb} is not built yet; kubectl itself works against this cluster as far as its API goes"
        );
        return Err(ExitCode::from(1));
    }
    let parsed = match kubectl {
        true => Kubectl::try_parse_from(words).map(|k| client(k.verb, true)),
        false => Cli::try_parse_from(words).map(|c| match c.command {
            Command::Demo(args) => Invocation::Demo(args),
            Command::Up(args) => Invocation::Up(args),
            Command::Master(args) => Invocation::Master(args),
            Command::Node(args) => Invocation::Node(args),
            Command::Reset(args) => Invocation::Reset(args),
            Command::Restore(args) => Invocation::Restore(args),
            Command::Client(verb) => client(verb, false),
            Command::Own(own) => Invocation::Client(ClientCommand::Own(Box::new(own))),
        }),
    };
    parsed.map_err(|error| {
        // Nobody may read it; the exit code says the same.
        let _ = error.print();
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
    })
}

/// Moves the options before the verb behind it.
fn verb_first(words: &mut [OsString]) {
    let mut at = 1;
    while let Some(word) = words.get(at).and_then(|w| w.to_str()) {
        if EARLY.contains(&word) {
            at += 2;
        } else if EARLY.iter().any(|e| word.starts_with(&format!("{e}=")))
            || (word.starts_with("-n") && !word.starts_with("--") && word.len() > 2)
        {
            at += 1;
        } else {
            break;
        }
    }
    if at > 1 && at < words.len() {
        words[1..=at].rotate_right(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn ordered(text: &str) -> String {
        let mut words: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        verb_first(&mut words);
        words.iter().map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn options_before_the_verb_are_its_own() {
        assert_eq!(ordered("k -n a get pods"), "k get -n a pods");
        assert_eq!(ordered("k -na --context=b get pods -- -n"), "k get -na --context=b pods -- -n");
        assert_eq!(ordered("k get pods -n a"), "k get pods -n a");
        assert_eq!(ordered("k -n"), "k -n");
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
        Kubectl::command().debug_assert();
    }

    #[test]
    fn kubectl_knows_only_the_clients_verbs() {
        let parse = |text: &str| parse(text.split(' ').map(OsString::from));
        assert!(matches!(parse("/usr/bin/kubectl get pods"), Ok(Invocation::Client(_))));
        assert!(parse("kubectl up").is_err());
        assert!(parse("kubectl image ls").is_err());
        assert!(matches!(parse("troupe image ls"), Ok(Invocation::Client(_))));
        assert!(parse("troupe drain n1").is_err());
    }
}
