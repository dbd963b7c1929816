//! The driver's end of a shim's socket.
//!
//! Owns: one connection as a task that matches answers to calls and hands on what the shim says unasked. Invariant:
//! every call is answered once: by the shim, by the connection's end, or by its timeout; exits are handed on before
//! the answers that follow them.

use std::{collections::HashMap, io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, oneshot},
};

use super::protocol::{self, Call, Fault, Message, Reply, Request};
use crate::runtime::{ContainerId, Exit, RuntimeError};

/// Starting a container takes milliseconds; a shim that needs longer than this is stuck.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Calls wait in line when a shim is busy starting something; a pod has fewer containers than this.
const QUEUE: usize = 64;

/// A connection to one shim.
#[derive(Clone)]
pub(super) struct Client {
    calls: mpsc::Sender<(Request, oneshot::Sender<Result<Reply, Fault>>)>,
}

/// What a shim says unasked.
pub(super) enum Notice {
    Exited {
        id: ContainerId,
        exit: Exit,
    },
    /// The connection ended, and with it surely the shim.
    Gone,
}

impl Client {
    /// Drives `stream` on the current tokio runtime until it ends or every clone of the client is dropped.
    pub(super) fn start(
        stream: std::os::unix::net::UnixStream,
        notices: impl Fn(Notice) + Send + Sync + 'static,
    ) -> io::Result<Client> {
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        let (calls, queue) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            if drive(stream, queue, &notices).await.is_some() {
                notices(Notice::Gone);
            }
        });
        Ok(Client { calls })
    }

    /// Asks and waits.
    pub(super) async fn call(&self, request: Request) -> Result<Reply, RuntimeError> {
        self.call_within(request, CALL_TIMEOUT).await
    }

    /// Asks and waits for so long.
    pub(super) async fn call_within(&self, request: Request, time: Duration) -> Result<Reply, RuntimeError> {
        let operation = || format!("ask the pod's shim to {request:?}");
        let gone = || RuntimeError::System { operation: operation(), cause: "the shim has ended".into() };
        let (answer, wait) = oneshot::channel();
        self.calls.send((request.clone(), answer)).await.map_err(|_| gone())?;
        match tokio::time::timeout(time, wait).await {
            Ok(Ok(result)) => result.map_err(Fault::into_error),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(RuntimeError::System { operation: operation(), cause: "no answer in time".into() }),
        }
    }
}

/// `Some` when the other side ended it, `None` when ours did.
async fn drive(
    mut stream: UnixStream,
    mut queue: mpsc::Receiver<(Request, oneshot::Sender<Result<Reply, Fault>>)>,
    notices: &(impl Fn(Notice) + Send + Sync),
) -> Option<()> {
    let (mut reader, mut writer) = stream.split();
    let mut waiting: HashMap<u64, oneshot::Sender<Result<Reply, Fault>>> = HashMap::new();
    let mut input = Vec::new();
    let mut sequence = 0;
    loop {
        tokio::select! {
            call = queue.recv() => {
                let (request, answer) = call?;
                sequence += 1;
                match protocol::encode(&Call { seq: sequence, request }) {
                    Ok(frame) => {
                        waiting.insert(sequence, answer);
                        if writer.write_all(&frame).await.is_err() {
                            return Some(());
                        }
                    }
                    Err(error) => tracing::error!(%error, "call not sent to a shim"),
                }
            }
            read = reader.read_buf(&mut input) => {
                if !matches!(read, Ok(count) if count > 0) {
                    return Some(());
                }
                loop {
                    match protocol::decode(&mut input) {
                        Ok(Some(Message::Answer { seq, result })) => {
                            if let Some(answer) = waiting.remove(&seq) {
                                // Whoever asked may have stopped waiting.
                                let _ = answer.send(result);
                            }
                        }
                        Ok(Some(Message::Exited { id, exit })) => notices(Notice::Exited { id, exit }),
                        Ok(None) => break,
                        Err(error) => {
                            tracing::error!(%error, "a shim talks nonsense; connection dropped");
                            return Some(());
                        }
                    }
                }
            }
        }
    }
}
