//! Streams between users and programs in containers, by the CRI runtime's own server of streams.
//!
//! Owns: programs that users run, attachments. Invariant: when its user has gone, a program goes, too, where the runtime tells which it
//! is (containerd does): its terminal hangs up, or it is killed once it has had time to see the end of its input. Limits:
//! a server that wants TLS is not spoken to.

use std::{sync::Arc, time::Duration};

use prost::Message as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, duplex, split},
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use super::{
    StreamOptions,
    client::{Fault, SHORT, fault},
    containers::start_error,
    driver::Driver,
    labels,
    programs::Names,
    proto, spdy,
};
use crate::runtime::{ContainerId, ContainerState, ExecStreams, RuntimeError, TerminalSize};

/// Bytes on their way between runtime and user.
const PIPE_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 16 * 1024;
/// How long the server may take to begin.
const BEGIN_WITHIN: Duration = Duration::from_secs(30);
/// How often a program without its user is told to go. One that is just being started may miss a signal.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);
/// What it has for the end of its input before it is killed.
const AFTER_INPUT: Duration = Duration::from_secs(2);
const SIGHUP: u32 = 1;
const SIGKILL: u32 = 9;
/// Before a client has said one.
const NO_SIZE: TerminalSize = TerminalSize { width: 0, height: 0 };

impl Driver {
    pub(super) async fn exec(
        self: &Arc<Driver>,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        self.expect_running(id).await?;
        let StreamOptions { stdin, tty } = options;
        let request = proto::ExecRequest {
            container_id: id.0.clone(),
            cmd: command,
            tty,
            stdin,
            stdout: true,
            stderr: !tty,
        };
        let expected = self.programs.begin(id).expect(self.names(id)).await;
        let asked: Result<proto::StreamUrl, Fault> = self.client.runtime("Exec", &request, SHORT).await;
        let url = asked.map_err(|fault| start_error(&fault.text()))?.url;
        let (streams, passed) = join(&url, options).await?;
        let over = CancellationToken::new();
        let (driver, of) = (Arc::clone(self), id.clone());
        let list = move || {
            let (driver, of) = (Arc::clone(&driver), of.clone());
            async move { driver.names(&of).await }
        };
        let seen = tokio::spawn(expected.see(list, over.clone()));
        let (driver, id) = (Arc::clone(self), id.clone());
        tokio::spawn(async move {
            // Dropped with a runtime that ends, it says nothing.
            let Ok(passed) = passed.await else { return };
            if passed != Passed::Gone {
                over.cancel();
            }
            if let Ok((Some(program), _running)) = seen.await
                && passed != Passed::Ended
            {
                driver.dismiss(&id, &program, options).await;
            }
        });
        Ok(streams)
    }

    /// A container's own program. How it ended is told by its container, not here.
    pub(super) async fn attach(
        &self,
        id: &ContainerId,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        self.expect_running(id).await?;
        let tty = self.has_terminal(id).await?;
        let StreamOptions { stdin, .. } = options;
        let request =
            proto::AttachRequest { container_id: id.0.clone(), stdin, tty, stdout: true, stderr: !tty };
        let asked: Result<proto::StreamUrl, Fault> = self.client.runtime("Attach", &request, SHORT).await;
        let url = asked.map_err(fault(format!("attach to container {id}")))?.url;
        Ok(join(&url, StreamOptions { stdin, tty }).await?.0)
    }

    async fn has_terminal(&self, id: &ContainerId) -> Result<bool, RuntimeError> {
        let request = proto::ContainerStatusRequest { container_id: id.0.clone(), verbose: false };
        let asked: Result<proto::ContainerStatusResponse, Fault> =
            self.client.runtime("ContainerStatus", &request, SHORT).await;
        let status = asked.map_err(fault(format!("look at container {id}")))?.status.unwrap_or_default();
        Ok(labels::container(&status.labels, &status.annotations).is_some_and(|(_, _, record)| record.tty))
    }

    /// The programs that run in a container beside its own, if the runtime tells.
    async fn names(&self, id: &ContainerId) -> Option<Names> {
        let request = proto::ContainerId { container_id: id.0.clone() };
        let listed: Result<proto::ListPidsResponse, Fault> =
            self.client.containerd("tasks.v1.Tasks/ListPids", &request).await;
        let named = |process: proto::ProcessInfo| {
            let details = process.info?.value;
            proto::ProcessDetails::decode(details.as_slice()).ok().map(|of| of.exec_id)
        };
        Some(listed.ok()?.processes.into_iter().filter_map(named).collect())
    }

    /// Sees to it that a program goes whose user has, if it has not ended.
    async fn dismiss(&self, id: &ContainerId, program: &str, options: StreamOptions) {
        let signal = if options.tty { SIGHUP } else { SIGKILL };
        if options.stdin && !options.tty {
            tokio::time::sleep(AFTER_INPUT).await;
        }
        for _ in 0..ATTEMPTS {
            let request = proto::KillRequest {
                container_id: id.0.clone(),
                exec_id: program.to_owned(),
                signal,
                all: false,
            };
            let killed: Result<proto::Empty, Fault> =
                self.client.containerd("tasks.v1.Tasks/Kill", &request).await;
            if killed.is_err() {
                // It has ended.
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::debug!(%id, program, "a program lives on without its user");
    }

    /// An error if the container does not run.
    pub(super) async fn expect_running(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        match self.expected(id).await?.state {
            ContainerState::Running => Ok(()),
            _ => Err(RuntimeError::Start(format!("container {id} is not running"))),
        }
    }
}

fn gone() -> RuntimeError {
    RuntimeError::System { operation: "run a program".into(), cause: "its streams were broken off".into() }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passed {
    /// With the program.
    Ended,
    /// Before it, or without a word of it.
    Broken,
    /// With its user.
    Gone,
}

/// The streams at a URL, and how their connection will have ended.
async fn join(
    url: &str,
    options: StreamOptions,
) -> Result<(ExecStreams, oneshot::Receiver<Passed>), RuntimeError> {
    let connected = tokio::time::timeout(BEGIN_WITHIN, connect(url, options)).await;
    let connected = connected.unwrap_or_else(|_| Err("it does not answer".to_owned()));
    let stream = connected.map_err(|cause| RuntimeError::System {
        operation: format!("speak to the runtime's streams at {url}"),
        cause,
    })?;
    let StreamOptions { stdin, tty } = options;
    let (out, stdout) = duplex(PIPE_BYTES);
    let (err, stderr) = duplex(PIPE_BYTES);
    let (ours, typed) = duplex(PIPE_BYTES);
    let (resize, sizes) = watch::channel(NO_SIZE);
    let (done, end) = oneshot::channel();
    let (tell, passed) = oneshot::channel();
    tokio::spawn(async move {
        let outcome = pass(stream, out, err, stdin.then_some(typed), tty.then_some(sizes), tty).await;
        // Nobody may be waiting any more, for either.
        let _ = tell.send(match &outcome {
            Some(Ok(_)) => Passed::Ended,
            Some(Err(_)) => Passed::Broken,
            None => Passed::Gone,
        });
        let _ = done.send(outcome.unwrap_or_else(|| Err(gone())));
    });
    let streams = ExecStreams {
        stdin: stdin.then(|| Box::pin(ours) as _),
        stdout: Box::pin(stdout),
        stderr: Box::pin(stderr),
        resize: tty.then_some(resize),
        end: Box::pin(async move { end.await.unwrap_or_else(|_| Err(gone())) }),
    };
    Ok((streams, passed))
}

/// Connects to where the runtime says that streams are.
async fn connect(url: &str, options: StreamOptions) -> Result<TcpStream, String> {
    let uri: http::Uri = url.parse().map_err(|error| format!("{error}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(
            "only http is spoken there: in containerd's config.toml, let enable_tls_streaming be false"
                .into(),
        );
    }
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut stream = TcpStream::connect(&authority).await.map_err(|error| error.to_string())?;
    // What is typed does not wait for more.
    let _ = stream.set_nodelay(true);
    spdy::begin(&mut stream, &authority, path, options).await.map_err(|error| error.to_string())?;
    Ok(stream)
}

/// Passes everything on until the program has ended, and says how; `None`: its user went first.
async fn pass(
    stream: TcpStream,
    out: DuplexStream,
    mut err: DuplexStream,
    typed: Option<DuplexStream>,
    sizes: Option<watch::Receiver<TerminalSize>>,
    tty: bool,
) -> Option<Result<i32, RuntimeError>> {
    let (read, write) = stream.into_split();
    let (mut left, mut out) = split(out);
    let (pings, pinged) = mpsc::unbounded_channel();
    let mut read = BufReader::new(read);
    // Nothing is ever read there but the end.
    let mut nothing = [0];
    let received = tokio::select! {
        received = spdy::receive(&mut read, &mut out, &mut err, tty, &pings) => received,
        never = say(write, typed, sizes, pinged) => match never {},
        _ = left.read(&mut nothing) => return None,
    };
    match received {
        Ok(Some(status)) => Some(verdict(&status)),
        // Its own output was refused: by the user who has gone.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => None,
        Ok(None) => Some(Err(gone())),
        Err(error) => Some(Err(RuntimeError::System {
            operation: "read what a program writes".into(),
            cause: error.to_string(),
        })),
    }
}

/// Hands on what is typed, the terminal's sizes, and answers to pings.
async fn say(
    mut write: OwnedWriteHalf,
    mut typed: Option<DuplexStream>,
    mut sizes: Option<watch::Receiver<TerminalSize>>,
    mut pinged: mpsc::UnboundedReceiver<u32>,
) -> std::convert::Infallible {
    let mut piece = vec![0; READ_BYTES];
    loop {
        let frame = tokio::select! {
            count = async { match &mut typed {
                Some(typed) => typed.read(&mut piece).await.unwrap_or(0),
                None => std::future::pending().await,
            } } => {
                if count == 0 {
                    typed = None;
                }
                spdy::data(spdy::STDIN, &piece[..count])
            }
            size = async { match &mut sizes {
                Some(of) => of.changed().await.is_ok().then(|| *of.borrow_and_update()),
                None => std::future::pending().await,
            } } => match size {
                Some(TerminalSize { width, height }) => {
                    spdy::data(spdy::RESIZE, json!({"Width": width, "Height": height}).to_string().as_bytes())
                }
                None => {
                    sizes = None;
                    continue;
                }
            },
            Some(id) = pinged.recv() => spdy::pong(id),
        };
        if write.write_all(&frame).await.is_err() {
            // Why is told by the other direction.
            std::future::pending::<()>().await;
        }
    }
}

/// A `Status` as a program's end.
fn verdict(status: &Value) -> Result<i32, RuntimeError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if status["status"] == "Success" {
        return Ok(0);
    }
    let mut causes = status["details"]["causes"].as_array().into_iter().flatten();
    let code = causes
        .find(|cause| cause["reason"] == "ExitCode")
        .and_then(|cause| text(&cause["message"]).parse().ok());
    match code {
        Some(code) if status["reason"] == "NonZeroExitCode" => Ok(code),
        _ => Err(start_error(&text(&status["message"]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_how_a_program_ended() {
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode", "message": "exit code 7",
            "details": {"causes": [{"reason": "ExitCode", "message": "7"}]}});
        assert_eq!(verdict(&failed).unwrap(), 7);
        assert_eq!(verdict(&json!({"status": "Success"})).unwrap(), 0);
        let text = "error executing command in container: failed to exec in container: failed to start exec \
                    \"x\": OCI runtime exec failed: exec failed: unable to start container process: exec: \"/none\": \
                    stat /none: no such file or directory: unknown";
        let none = json!({"status": "Failure", "reason": "InternalError", "message": text});
        assert_eq!(
            verdict(&none).unwrap_err().to_string(),
            "failed to start: exec: \"/none\": stat /none: no such file or directory"
        );
    }

    #[tokio::test]
    async fn servers_that_want_tls_are_refused_with_advice() {
        let refused = connect("https://127.0.0.1:1/exec/x", StreamOptions::default()).await.unwrap_err();
        assert!(refused.contains("enable_tls_streaming"), "{refused}");
    }
}
