//! `exec` and `attach`: at a program in a container.

use clap::Args;

use super::{
    discovery::escape,
    error::{CliError, Outcome},
    pod,
    seat::{self, PROTOCOL},
    session::{Session, name_of},
};

/// Options of `exec`.
#[derive(Debug, Clone, Args)]
pub struct ExecArgs {
    /// POD or TYPE/NAME
    #[arg(value_name = "WHERE")]
    what: String,
    #[command(flatten)]
    seat: SeatArgs,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "WORD")]
    words: Vec<String>,
}

/// Options of `attach`.
#[derive(Debug, Clone, Args)]
pub struct AttachArgs {
    /// POD or TYPE/NAME
    #[arg(value_name = "WHERE")]
    what: String,
    #[command(flatten)]
    seat: SeatArgs,
}

#[derive(Debug, Clone, Args)]
struct SeatArgs {
    /// Which container
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// On a terminal
    #[arg(short, long)]
    tty: bool,
    /// Say nothing but what the program says
    #[arg(short, long)]
    quiet: bool,
}

/// Runs `exec`.
///
/// # Errors
/// As every verb, and the program's exit code.
pub async fn exec(session: &Session, args: &ExecArgs) -> Outcome {
    let pod = pod::find(session, &args.what, "exec into").await?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(CliError::failed(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let container = pod::container(&pod, args.seat.container.as_deref(), args.seat.quiet)?;
    let tty = seat::has_terminal(args.seat.tty);
    let mut path = format!("{}/exec?", pod::path(session, &pod).await?);
    for word in &args.words {
        path.push_str(&format!("command={}&", escape(word)));
    }
    path.push_str(&streams(container["name"].as_str().unwrap_or_default(), args.seat.stdin, tty));
    seat::converse(session.client.channels(&path, PROTOCOL).await?, args.seat.stdin, tty).await
}

/// Runs `attach`.
///
/// # Errors
/// As every verb.
pub async fn attach(session: &Session, args: &AttachArgs) -> Outcome {
    let pod = pod::find(session, &args.what, "attach to").await?;
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(CliError::failed(format!(
            "cannot attach a container in a completed pod; current phase is {phase}"
        )));
    }
    let container = pod::container(&pod, args.seat.container.as_deref(), args.seat.quiet)?;
    let mut tty = seat::has_terminal(args.seat.tty);
    let name = container["name"].as_str().unwrap_or_default();
    if tty && container["tty"] != true {
        eprintln!("error: Unable to use a TTY - container {name} did not allocate one");
        tty = false;
    } else if !args.seat.tty && container["tty"] == true && args.seat.stdin {
        tty = seat::has_terminal(true);
    }
    if args.seat.stdin && tty && !args.seat.quiet {
        eprintln!("If you don't see a command prompt, try pressing enter.");
    }
    let path = pod::path(session, &pod).await?;
    let path = format!("{path}/attach?{}", streams(name, args.seat.stdin, tty));
    let ended = seat::converse(session.client.channels(&path, PROTOCOL).await?, args.seat.stdin, tty).await;
    if args.seat.stdin && tty && ended.is_ok() && !args.seat.quiet {
        eprintln!(
            "Session ended, resume using '{} -c {name} -i -t' command when the pod is running",
            format_args!("troupe attach {}", name_of(&pod))
        );
    }
    ended
}

/// The query that names the streams.
fn streams(container: &str, stdin: bool, tty: bool) -> String {
    let mut query = format!("container={}&stdout=true", escape(container));
    for (wanted, text) in [(stdin, "&stdin=true"), (!tty, "&stderr=true"), (tty, "&tty=true")] {
        if wanted {
            query.push_str(text);
        }
    }
    query
}
