//! Running a program in a container with streams to it: by named pipes that the driver and the program share.
//!
//! Owns: the pipes. The shim only starts the program and reports its end: not a byte passes through it. A program whose
//! driver has gone gets the end of its input and, when it writes, SIGPIPE.

use std::{path::Path, sync::Arc};

use nix::{sys::stat::Mode, unistd::mkfifo};
use tokio::{net::unix::pipe, sync::oneshot};

use super::{
    driver::Driver,
    protocol::{Reply, Request},
    state::{self, INPUT, OUTPUTS, system},
};
use crate::runtime::{ContainerId, ExecStreams, LONGEST_EXEC, RuntimeError};

impl Driver {
    pub(super) async fn exec(
        self: &Arc<Driver>,
        id: &ContainerId,
        command: Vec<String>,
        stdin: bool,
    ) -> Result<ExecStreams, RuntimeError> {
        let (pod, client) = self.ready_to_exec(id)?;
        let dir = pod.dir.container(id).0.join(format!("streams-{}", uuid::Uuid::new_v4().simple()));
        let request = Request::ExecStreams { id: id.clone(), command, dir: dir.clone(), stdin };
        super::exec::check_length(&request)?;
        let pipes = make(&dir, stdin).map_err(system(format!("make pipes for a program in container {id}")));
        let (input, [stdout, stderr]) = match pipes {
            Ok(pipes) => pipes,
            Err(error) => {
                let _ = state::remove_tree(&dir);
                return Err(error);
            }
        };
        let (done, end) = oneshot::channel();
        let operation = format!("run a program in container {id}");
        tokio::spawn(async move {
            let answer = client.call_within(request, LONGEST_EXEC).await;
            let _ = state::remove_tree(&dir);
            // Nobody may be waiting any more.
            let _ = done.send(answer.and_then(|reply| match reply {
                Reply::Ran { code, .. } => Ok(code),
                _ => {
                    Err(RuntimeError::System { operation, cause: "the shim did not say how it ended".into() })
                }
            }));
        });
        let gone =
            || RuntimeError::System { operation: "run a program".into(), cause: "the runtime ended".into() };
        Ok(ExecStreams {
            stdin: input.map(|input| Box::pin(input) as _),
            stdout: Box::pin(stdout),
            stderr: Box::pin(stderr),
            resize: None,
            end: Box::pin(async move { end.await.unwrap_or_else(|_| Err(gone())) }),
        })
    }
}

/// Makes the pipes and opens our ends, before the program opens its own.
fn make(dir: &Path, stdin: bool) -> std::io::Result<(Option<pipe::Sender>, [pipe::Receiver; 2])> {
    std::fs::create_dir(dir)?;
    let make = |name: &str| {
        let path = dir.join(name);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        std::io::Result::Ok(path)
    };
    let input = match stdin {
        // For reading, too: else there would have to be a reader by now.
        true => Some(pipe::OpenOptions::new().read_write(true).open_sender(make(INPUT)?)?),
        false => None,
    };
    let [out, err] = OUTPUTS;
    let open = |name: &str| pipe::OpenOptions::new().open_receiver(make(name)?);
    Ok((input, [open(out)?, open(err)?]))
}
