//! The user at the other end of a program's streams: standard input and outputs, the terminal and its size.
//!
//! Owns: raw mode, which ends with its guard however a command ends, and the conversation over channels. Invariant: what
//! is typed and what is shown never wait for each other.

use std::io::{self, IsTerminal as _, Read as _};

use bytes::Bytes;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use rustix::termios::tcgetwinsize;
use serde_json::{Value, json};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use super::{
    client::{Receiving, Sending},
    error::{CliError, Outcome},
    session::written,
};

/// kubectl's protocol.
pub const PROTOCOL: &str = "v5.channel.k8s.io";
/// Kubernetes' channels.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
/// What is read of standard input at once.
const READ_BYTES: usize = 32 * 1024;
/// Pieces that wait to be sent.
const QUEUE: usize = 4;

/// Whether a terminal that was asked for can be had; says so if not.
pub fn has_terminal(asked: bool) -> bool {
    let there = io::stdin().is_terminal();
    if asked && !there {
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    asked && there
}

/// The terminal passes every key on until this is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> Outcome<Raw> {
        let fault = |errno: nix::errno::Errno| CliError::failed(format!("set up the terminal: {errno}"));
        let before = tcgetattr(io::stdin()).map_err(fault)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).map_err(fault)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about it.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Talks with a program until it has ended.
///
/// # Errors
/// The program's exit code, or what the node says.
pub async fn converse(channels: (Sending, Receiving), stdin: bool, tty: bool) -> Outcome {
    let typed = if stdin { Some(typed()) } else { None };
    let _raw = tty.then(Raw::begin).transpose()?;
    let (sending, mut receiving) = channels;
    let showing = async {
        let mut status = None;
        while let Some((channel, bytes)) = receiving.next().await {
            match channel {
                STDOUT => show(io::stdout().lock(), &bytes)?,
                STDERR => show(io::stderr().lock(), &bytes)?,
                ERROR => status = serde_json::from_slice::<Value>(&bytes).ok(),
                _ => {}
            }
        }
        verdict(status.as_ref())
    };
    tokio::select! {
        ended = showing => ended,
        never = send(sending, typed, tty) => match never {},
    }
}

fn show(mut out: impl io::Write, bytes: &[u8]) -> Outcome {
    written(out.write_all(bytes).and_then(|()| out.flush()))
}

async fn send(
    mut sending: Sending,
    mut typed: Option<mpsc::Receiver<Bytes>>,
    tty: bool,
) -> std::convert::Infallible {
    let mut sizes = tty.then(|| signal(SignalKind::window_change()).ok()).flatten();
    if tty {
        send_size(&mut sending).await;
    }
    loop {
        tokio::select! {
            bytes = next(&mut typed) => match bytes {
                Some(bytes) => drop(sending.send(STDIN, &bytes).await),
                None => {
                    typed = None;
                    sending.send(CLOSE, &[STDIN]).await;
                }
            },
            () = changed(&mut sizes) => send_size(&mut sending).await,
        }
    }
}

async fn next(typed: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

async fn changed(sizes: &mut Option<Signal>) {
    match sizes {
        Some(sizes) => drop(sizes.recv().await),
        None => std::future::pending().await,
    }
}

async fn send_size(sending: &mut Sending) {
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        let size = json!({"Width": size.ws_col, "Height": size.ws_row});
        sending.send(RESIZE, size.to_string().as_bytes()).await;
    }
}

/// Standard input, read by a thread that ends with the process.
fn typed() -> mpsc::Receiver<Bytes> {
    let (sender, typed) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(Bytes::copy_from_slice(&buffer[..count])).is_err() {
                return;
            }
        }
    });
    typed
}

/// What a program's end means to this one.
///
/// # Errors
/// Unless it succeeded.
pub fn verdict(status: Option<&Value>) -> Outcome {
    let Some(status) = status else {
        return Err(CliError::failed("the connection to the program broke off"));
    };
    if status["status"] == "Success" {
        return Ok(());
    }
    let causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code =
        causes.filter(|cause| cause["reason"] == "ExitCode").find_map(|cause| cause["message"].as_str());
    match code.and_then(|code| code.parse().ok()) {
        Some(code) if status["reason"] == "NonZeroExitCode" => Err(CliError::Program(code)),
        _ => Err(CliError::failed(status["message"].as_str().unwrap_or("unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_end_is_ours() {
        let code =
            |status: &Value| verdict(Some(status)).err().map(|error| (error.exit_code(), error.text()));
        assert_eq!(code(&json!({"status": "Success"})), None);
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "m",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}});
        assert_eq!(code(&failed), Some((7, "command terminated with exit code 7".into())));
        assert_eq!(code(&json!({"status": "Failure", "message": "no"})), Some((1, "error: no".into())));
        assert!(verdict(None).is_err());
    }
}
