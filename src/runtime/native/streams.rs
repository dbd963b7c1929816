//! Streams between users and programs in containers: named pipes, and terminals' masters.
//!
//! Owns: the pipes and the masters of programs that users run. The shim only starts such a program and reports its end:
//! not a byte passes through it; one whose driver has gone gets the end of its input, SIGPIPE when it writes, or the
//! hang-up of its terminal. A container's own program is the shim's, which copies its output for those who attach.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::Arc,
};

use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};
use tokio::{
    net::unix::pipe,
    sync::{oneshot, watch},
};

use super::{
    client::Client,
    console::{Console, Terminal},
    driver::Driver,
    protocol::{Reply, Request},
    state::{self, INPUT, OUTPUTS, system},
};
use crate::runtime::{ContainerId, ExecStreams, LONGEST_EXEC, RuntimeError, StreamOptions, TerminalSize};

/// How a program ended, or an attachment.
type End = oneshot::Receiver<Result<i32, RuntimeError>>;

impl Driver {
    pub(super) async fn exec(
        self: &Arc<Driver>,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        let (pod, client) = self.ready_to_exec(id)?;
        let dir = pod.dir.container(id).0.join(format!("streams-{}", uuid::Uuid::new_v4().simple()));
        let StreamOptions { stdin, tty } = options;
        let request = Request::ExecStreams { id: id.clone(), command, dir: dir.clone(), stdin, tty };
        super::exec::check_length(&request)?;
        if tty {
            return on_terminal(id, client, request, &dir, stdin).await;
        }
        let Pipes { stdin, stdout, stderr, kept } = make(&dir, id, stdin)?;
        let end = begin(id, client, request, &dir, kept);
        Ok(streams(stdin, stdout, stderr, None, end))
    }

    pub(super) async fn attach(
        self: &Arc<Driver>,
        id: &ContainerId,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        let (pod, client) = self.ready_to_exec(id)?;
        let terminal = pod.record_of(id).is_some_and(|record| record.config.tty);
        let dir = pod.dir.container(id).0.join(format!("streams-{}", uuid::Uuid::new_v4().simple()));
        let Pipes { stdin, stdout, stderr, kept } = make(&dir, id, options.stdin)?;
        let request = Request::Attach { id: id.clone(), dir: dir.clone(), stdin: options.stdin };
        let end = begin(id, client.clone(), request, &dir, kept);
        let resize = terminal.then(|| {
            let id = id.clone();
            let (resize, mut sizes) = watch::channel(NO_SIZE);
            tokio::spawn(async move {
                while sizes.changed().await.is_ok() {
                    let TerminalSize { width, height } = *sizes.borrow_and_update();
                    let request = Request::Resize { id: id.clone(), width, height };
                    if let Err(error) = client.call(request).await {
                        tracing::debug!(%error, container = %id, "a terminal keeps its size");
                    }
                }
            });
            resize
        });
        Ok(streams(stdin, stdout, stderr, resize, end))
    }
}

/// Before a client has said one.
const NO_SIZE: TerminalSize = TerminalSize { width: 0, height: 0 };

/// Runs a program on a terminal of its own.
async fn on_terminal(
    id: &ContainerId,
    client: Client,
    request: Request,
    dir: &Path,
    stdin: bool,
) -> Result<ExecStreams, RuntimeError> {
    let fault = || system(format!("make a terminal for a program in container {id}"));
    let console = std::fs::create_dir(dir).and_then(|()| Console::listen(dir));
    let console = console.map_err(|error| {
        let _ = state::remove_tree(dir);
        fault()(error)
    })?;
    let mut end = begin(id, client, request, dir, None);
    let master = tokio::select! {
        master = console.receive() => master.map_err(fault())?,
        // It was not started.
        ended = &mut end => return match ended {
            Ok(Err(error)) => Err(error),
            _ => Err(fault()(std::io::Error::other("it ended before it had one"))),
        },
    };
    let terminal = Terminal::new(master).map_err(fault())?;
    let (resize, mut sizes) = watch::channel(NO_SIZE);
    let sized = terminal.clone();
    tokio::spawn(async move {
        while sizes.changed().await.is_ok() {
            let size = *sizes.borrow_and_update();
            if let Err(error) = sized.set_size(size) {
                tracing::debug!(%error, "a terminal keeps its size");
            }
        }
    });
    let stdin = stdin.then(|| terminal.clone());
    Ok(streams(stdin, terminal, tokio::io::empty(), Some(resize), end))
}

fn streams(
    stdin: Option<impl tokio::io::AsyncWrite + Send + 'static>,
    stdout: impl tokio::io::AsyncRead + Send + 'static,
    stderr: impl tokio::io::AsyncRead + Send + 'static,
    resize: Option<watch::Sender<TerminalSize>>,
    end: End,
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

/// Asks the shim, which answers at the end; what is in the directory, and what is kept, is needed until then.
fn begin(id: &ContainerId, client: Client, request: Request, dir: &Path, kept: Option<File>) -> End {
    let (done, end) = oneshot::channel();
    let (operation, dir) = (format!("run a program in container {id}"), dir.to_owned());
    tokio::spawn(async move {
        let answer = client.call_within(request, LONGEST_EXEC).await;
        drop(kept);
        let _ = state::remove_tree(&dir);
        // Nobody may be waiting any more.
        let _ = done.send(answer.and_then(|reply| match reply {
            Reply::Ran { code, .. } => Ok(code),
            _ => Err(RuntimeError::System { operation, cause: "the shim did not say how it ended".into() }),
        }));
    });
    end
}

/// Our ends of a program's pipes.
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    /// A reader of the input: without one, what was typed would be lost when its end comes before the shim's opening.
    kept: Option<File>,
}

/// Makes the pipes and opens our ends, before the program opens its own.
fn make(dir: &Path, id: &ContainerId, stdin: bool) -> Result<Pipes, RuntimeError> {
    let make = |name: &str| {
        let path = dir.join(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        std::io::Result::Ok(path)
    };
    let open = |name: &str| pipe::OpenOptions::new().open_receiver(make(name)?);
    let all = || {
        std::fs::create_dir(dir)?;
        let (mut input, mut kept) = (None, None);
        if stdin {
            let path = make(INPUT)?;
            let not_waiting = OFlag::O_NONBLOCK.bits();
            kept = Some(OpenOptions::new().read(true).custom_flags(not_waiting).open(&path)?);
            input = Some(pipe::OpenOptions::new().open_sender(&path)?);
        }
        let [out, err] = OUTPUTS;
        Ok(Pipes { stdin: input, stdout: open(out)?, stderr: open(err)?, kept })
    };
    all().map_err(|error| {
        let _ = state::remove_tree(dir);
        system(format!("make pipes for a program in container {id}"))(error)
    })
}
