//! Streams between users and programs in containers, through the engine's connections.
//!
//! Owns: programs that users run, attachments, forwarded ports. Invariants: the end of what a user types is the end of
//! the program's input; an attachment is read whether or not its user keeps up, since the engine would hold up the
//! container: one on a terminal then loses what does not fit, another ends with an error.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use bollard::{
    container::{AttachContainerResults, LogOutput},
    errors::Error,
    exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults},
    query_parameters::{AttachContainerOptions, ResizeContainerTTYOptions},
};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    sync::{oneshot, watch},
};

use super::{
    driver::Driver,
    engine::{fault, start_error},
    exec::{NOT_STARTED, not_started},
};
use crate::{
    model::Uid,
    runtime::{
        Connection, ContainerId, ExecOutput, ExecStreams, LONGEST_EXEC, RuntimeError, StreamOptions,
        TerminalSize, netns,
    },
};

/// Bytes on their way between engine and user.
const PIPE_BYTES: usize = 64 * 1024;
/// What the user of an attachment may be behind.
const BEHIND_BYTES: usize = 1024 * 1024;
/// The engine ends attachments at these keys, and holds the first until it sees the second: ones that nobody types.
const DETACH_KEYS: &str = "ctrl-@,ctrl-^,ctrl-_";
/// The engine knows a program's pid some time after its first output; and one that is just being started is not yet what
/// it will be, and may miss a signal.
const PID_ATTEMPTS: u32 = 50;
const PID_PAUSE: Duration = Duration::from_millis(100);
/// Before a client has said one.
const NO_SIZE: TerminalSize = TerminalSize { width: 0, height: 0 };

type Output = Pin<Box<dyn Stream<Item = Result<LogOutput, Error>> + Send>>;

impl Driver {
    pub(super) async fn exec(
        self: &Arc<Driver>,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        self.running(id).await?;
        if command.is_empty() {
            return Err(RuntimeError::Start("exec: no command".to_owned()));
        }
        let operation = format!("run a program in container {id}");
        let wanted = CreateExecOptions {
            cmd: Some(command.clone()),
            attach_stdin: Some(options.stdin),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(options.tty),
            env: options.tty.then(|| vec!["TERM=xterm".to_owned()]),
            ..CreateExecOptions::default()
        };
        let exec = self.docker.create_exec(&id.0, wanted).await.map_err(fault(operation.clone()))?.id;
        let start = StartExecOptions { detach: false, tty: options.tty, output_capacity: None };
        let started =
            self.docker.start_exec(&exec, Some(start)).await.map_err(|error| start_error(&error))?;
        let StartExecResults::Attached { output, input } = started else {
            return Err(RuntimeError::System { operation, cause: "the engine gave no streams".to_owned() });
        };
        let (out, stdout) = tokio::io::duplex(PIPE_BYTES);
        let (err, stderr) = tokio::io::duplex(PIPE_BYTES);
        let (done, end) = oneshot::channel();
        let (driver, ran) = (Arc::clone(self), exec.clone());
        tokio::spawn(async move {
            let ended = match pass(output, out, err).await {
                Ok(Passed { withheld, gone }) => {
                    if gone && options.tty {
                        driver.hang_up(&ran).await;
                    }
                    driver.ended(&command, &ran, withheld).await
                }
                Err(error) => Err(fault(operation)(error)),
            };
            // Nobody may be waiting any more.
            let _ = done.send(ended);
        });
        let driver = Arc::clone(self);
        let resize = options.tty.then(|| {
            resizing(move |TerminalSize { width, height }| {
                let (driver, exec) = (Arc::clone(&driver), exec.clone());
                async move { driver.docker.resize_exec(&exec, ResizeExecOptions { height, width }).await }
            })
        });
        let typed = options.stdin.then(|| typing(input, std::future::pending()));
        Ok(streams(typed, stdout, stderr, resize, end))
    }

    /// The user of a terminal has gone: its program hears so, which the engine does not tell it.
    async fn hang_up(&self, exec: &str) {
        for _ in 0..PID_ATTEMPTS {
            let Ok(found) = self.docker.inspect_exec(exec).await else { return };
            if found.running != Some(true) {
                return;
            }
            let pid = found.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1);
            if let Some(pid) = pid.map(nix::unistd::Pid::from_raw) {
                // An ordinary user may not, and then it lives on as with the engine's own client.
                if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP) {
                    tracing::debug!(%error, "a program lives on without its terminal's user");
                    return;
                }
            }
            tokio::time::sleep(PID_PAUSE).await;
        }
    }

    /// How a program ended that has closed its output; `withheld`: the engine's words in its place.
    async fn ended(&self, command: &[String], exec: &str, withheld: Vec<u8>) -> Result<i32, RuntimeError> {
        let far = tokio::time::Instant::now() + LONGEST_EXEC;
        let code = self.exec_code(exec, far).await?.unwrap_or_default();
        let output = ExecOutput { code, stdout: withheld, ..ExecOutput::default() };
        not_started(command, &output).map_or(Ok(code), Err)
    }

    pub(super) async fn attach(
        self: &Arc<Driver>,
        id: &ContainerId,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        let terminal = self.running(id).await?;
        let wanted = AttachContainerOptions {
            stream: true,
            stdin: options.stdin,
            stdout: true,
            stderr: true,
            detach_keys: Some(DETACH_KEYS.to_owned()),
            ..AttachContainerOptions::default()
        };
        let attached = self.docker.attach_container(&id.0, Some(wanted)).await;
        let AttachContainerResults { output, input } =
            attached.map_err(fault(format!("attach to container {id}")))?;
        let (out, stdout) = tokio::io::duplex(BEHIND_BYTES);
        let (err, stderr) = tokio::io::duplex(BEHIND_BYTES);
        let (done, end) = oneshot::channel();
        // With its end the connection is closed both ways, or the engine would wait for who reads no more.
        let (copying, copied) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let _ = done.send(copy(output, out, err, terminal).await);
            drop(copying);
        });
        let (driver, id) = (Arc::clone(self), id.clone());
        let resize = terminal.then(|| {
            resizing(move |TerminalSize { width, height }| {
                let (driver, id) = (Arc::clone(&driver), id.clone());
                let size = ResizeContainerTTYOptions { h: height.into(), w: width.into() };
                async move { driver.docker.resize_container_tty(&id.0, size).await }
            })
        });
        let typed = options.stdin.then(|| typing(input, async move { drop(copied.await) }));
        Ok(streams(typed, stdout, stderr, resize, end))
    }

    pub(super) async fn network_namespace(&self, pod: &Uid) -> Result<Reach, RuntimeError> {
        let absent = || RuntimeError::NotFound(format!("sandbox of pod {pod}"));
        let found = self.sandboxes(Some(pod)).await?.into_iter().find(|found| found.running);
        let found = found.ok_or_else(absent)?;
        if found.sandbox.host_network {
            return Ok(Reach::Inside(None));
        }
        let inspected = self.inspect(&found.id).await?.ok_or_else(absent)?;
        let pid = inspected.state.and_then(|state| state.pid).filter(|pid| *pid > 0).ok_or_else(absent)?;
        let address = found.status().ip;
        Ok(match address {
            // Another user's namespace cannot be entered.
            Some(address) if !nix::unistd::geteuid().is_root() => Reach::Address(address),
            _ => Reach::Inside(Some(format!("/proc/{pid}/ns/net").into())),
        })
    }

    /// Whether the container has a terminal; an error if it does not run.
    async fn running(&self, id: &ContainerId) -> Result<bool, RuntimeError> {
        let found = self.expected(id).await?;
        if found.state.as_ref().is_none_or(|state| state.running != Some(true)) {
            return Err(RuntimeError::Start(format!("container {id} is not running")));
        }
        Ok(found.config.and_then(|config| config.tty) == Some(true))
    }
}

/// The way to a pod's ports.
pub(super) enum Reach {
    /// From inside its network namespace, or the node's.
    Inside(Option<PathBuf>),
    /// By its address: what listens on its loopback alone is not reached.
    Address(std::net::IpAddr),
}

impl Reach {
    pub(super) async fn connect(self, port: u16) -> Result<Connection, RuntimeError> {
        match self {
            Reach::Inside(namespace) => netns::connect(namespace, port).await,
            Reach::Address(address) => match tokio::net::TcpStream::connect((address, port)).await {
                Ok(stream) => Ok(Box::pin(stream)),
                Err(error) => Err(RuntimeError::System {
                    operation: format!("connect to {address}:{port}"),
                    cause: error.to_string(),
                }),
            },
        }
    }
}

fn streams(
    stdin: Option<DuplexStream>,
    stdout: DuplexStream,
    stderr: DuplexStream,
    resize: Option<watch::Sender<TerminalSize>>,
    end: oneshot::Receiver<Result<i32, RuntimeError>>,
) -> ExecStreams {
    let gone =
        || RuntimeError::System { operation: "run a program".into(), cause: "the runtime ended".into() };
    ExecStreams {
        stdin: stdin.map(|stdin| Box::pin(stdin) as _),
        stdout: Box::pin(stdout),
        stderr: Box::pin(stderr),
        resize,
        end: Box::pin(async move { end.await.unwrap_or_else(|_| Err(gone())) }),
    }
}

/// Hands on what is typed, at most until `cut`; its end is told.
fn typing(
    mut input: Pin<Box<dyn AsyncWrite + Send>>,
    cut: impl Future<Output = ()> + Send + 'static,
) -> DuplexStream {
    let (ours, mut theirs) = tokio::io::duplex(PIPE_BYTES);
    tokio::spawn(async move {
        tokio::select! {
            // A program that reads no more has no use for the rest.
            _ = tokio::io::copy(&mut theirs, &mut input) => drop(input.shutdown().await),
            () = cut => {}
        }
    });
    ours
}

/// Hands on a terminal's sizes, the newest if they come fast.
fn resizing<F>(mut set: impl FnMut(TerminalSize) -> F + Send + 'static) -> watch::Sender<TerminalSize>
where
    F: Future<Output = Result<(), Error>> + Send,
{
    let (resize, mut sizes) = watch::channel(NO_SIZE);
    tokio::spawn(async move {
        while sizes.changed().await.is_ok() {
            let size = *sizes.borrow_and_update();
            if let Err(error) = set(size).await {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
    });
    resize
}

/// How far a program's output was passed on.
struct Passed {
    /// What seems to be the engine's words in the output's place.
    withheld: Vec<u8>,
    /// The user went first.
    gone: bool,
}

/// Passes a program's output on as fast as it is taken, until its end or its user's.
async fn pass(mut output: Output, mut out: DuplexStream, mut err: DuplexStream) -> Result<Passed, Error> {
    let (mut first, mut withheld) = (true, Vec::new());
    loop {
        // Nothing is ever read there but the end.
        let mut nothing = [0];
        let piece = tokio::select! {
            piece = output.next() => piece,
            _ = out.read(&mut nothing) => return Ok(Passed { withheld, gone: true }),
        };
        let Some(piece) = piece else { break };
        let (to, bytes) = match piece? {
            LogOutput::StdErr { message } => (&mut err, message),
            other => (&mut out, other.into_bytes()),
        };
        if std::mem::replace(&mut first, false) && bytes.starts_with(NOT_STARTED.as_bytes()) {
            withheld.extend_from_slice(&bytes);
        } else if to.write_all(&bytes).await.is_err() {
            // So does the connection.
            return Ok(Passed { withheld, gone: true });
        }
    }
    Ok(Passed { withheld, gone: false })
}

/// Copies what there is room for.
async fn copy(
    mut output: Output,
    mut out: DuplexStream,
    mut err: DuplexStream,
    terminal: bool,
) -> Result<i32, RuntimeError> {
    let operation = || "copy a container's output".to_owned();
    loop {
        // Nothing is ever read there but the end.
        let mut nothing = [0];
        let piece = tokio::select! {
            piece = output.next() => piece,
            _ = out.read(&mut nothing) => None,
        };
        let Some(piece) = piece else { return Ok(0) };
        let (to, bytes) = match piece.map_err(fault(operation()))? {
            LogOutput::StdErr { message } => (&mut err, message),
            other => (&mut out, other.into_bytes()),
        };
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match to.write(rest).now_or_never() {
                Some(Ok(count)) => rest = &rest[count..],
                // The user has gone.
                Some(Err(_)) => return Ok(0),
                None if terminal => break,
                None => {
                    return Err(RuntimeError::System {
                        operation: operation(),
                        cause: "it came faster than it was read; the log has all of it".into(),
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_leaves_a_silent_container_is_noticed() {
        let (out, stdout) = tokio::io::duplex(16);
        let (err, stderr) = tokio::io::duplex(16);
        let copying = tokio::spawn(copy(Box::pin(futures_util::stream::pending()), out, err, false));
        drop((stdout, stderr));
        let copied = tokio::time::timeout(Duration::from_secs(10), copying).await;
        assert_eq!(copied.expect("it is noticed").unwrap().unwrap(), 0);
    }
}
