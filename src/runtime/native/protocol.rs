//! What driver and shim say to each other: JSON frames over a unix socket.
//!
//! Owns: the messages and their framing. A frame is its length (4 bytes, little endian) and that much JSON. Calls carry
//! a number of the caller's which the answer repeats; exits are told to every connection, unasked.
//! Invariant: a shim may outlive many versions of the driver, so fields are only ever added, with defaults.

use std::path::PathBuf;

use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::runtime::{ContainerConfig, ContainerId, Exit, RuntimeError};

/// No frame is longer: records go by file, so frames hold ids, numbers, error texts, a program's output in base64, and its
/// arguments and environment, of which JSON may make six times as much.
pub(super) const MAX_FRAME: usize = 8 * Program::MAX_BYTES;

const LENGTH_BYTES: usize = 4;

/// Driver → shim: do something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Call {
    pub seq: u64,
    pub request: Request,
}

/// What a shim can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Answer when the sandbox is ready.
    Hello,
    /// Mount the root file system of the container described in its directory and write its OCI spec.
    Create {
        id: ContainerId,
        #[serde(default)]
        program: Program,
    },
    /// Run its program.
    Start { id: ContainerId },
    /// Send a signal to its first process; `everyone`: to all of its processes. No error when it has ended.
    Signal { id: ContainerId, signal: i32, everyone: bool },
    /// Unmount and forget an ended or never started container.
    Remove { id: ContainerId },
    /// Run a program in a running container and answer when it has ended; kill it when its time is up.
    Exec { id: ContainerId, command: Vec<String>, timeout_ms: u64 },
    /// The same without a limit, and with the named pipes in `dir` as its streams, or with a terminal whose master goes to
    /// the socket there.
    ExecStreams {
        id: ContainerId,
        command: Vec<String>,
        dir: PathBuf,
        stdin: bool,
        #[serde(default)]
        tty: bool,
    },
    /// Copy what the container's program writes to the named pipes in `dir`, and what comes from there to it. Answered
    /// when that has ended.
    Attach { id: ContainerId, dir: PathBuf, stdin: bool },
    /// Set the size of its terminal in characters.
    Resize { id: ContainerId, width: u16, height: u16 },
    /// Kill every container, answer, exit.
    Shutdown,
}

/// What a container's record leaves out: secrets may be in it, and records are on disk.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Program {
    command: Vec<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Program {
    /// Beyond this the kernel starts nothing: arguments and environment have three quarters of the largest stack.
    pub(super) const MAX_BYTES: usize = 6 << 20;

    /// Takes it out of a container's configuration.
    pub(super) fn take(config: &mut ContainerConfig) -> Program {
        let ContainerConfig { command, args, env, .. } = config;
        Program { command: std::mem::take(command), args: std::mem::take(args), env: std::mem::take(env) }
    }

    /// Puts it back.
    pub(super) fn restore(self, config: &mut ContainerConfig) {
        (config.command, config.args, config.env) = (self.command, self.args, self.env);
    }

    /// How large it is.
    pub(super) fn bytes(&self) -> usize {
        let words = self.command.iter().chain(&self.args).map(String::len).sum::<usize>();
        words + self.env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

/// Shim → driver.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// The answer to a call.
    Answer { seq: u64, result: Result<Reply, Fault> },
    /// A container's program ended; its `exit.json` is written.
    Exited { id: ContainerId, exit: Exit },
}

/// What a call brought.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Done,
    /// To [`Request::Hello`].
    Ready {
        pid: i32,
        /// Knows [`Request::Exec`].
        #[serde(default)]
        execs: bool,
    },
    /// To [`Request::Start`].
    Started {
        pid: i32,
        started_ms: i64,
    },
    /// To [`Request::Exec`].
    Ran {
        code: i32,
        timed_out: bool,
        stdout: ByteString,
        stderr: ByteString,
    },
}

/// Why a call failed: the variants of [`RuntimeError`] that a shim uses, in a form that can be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Fault {
    Start(String),
    Create(String),
    Config(String),
    NotFound(String),
    System { operation: String, cause: String },
}

impl Fault {
    /// A refusal of the system's.
    pub(super) fn system<E: std::fmt::Display>(operation: impl Into<String>) -> impl FnOnce(E) -> Fault {
        let operation = operation.into();
        move |cause| Fault::System { operation, cause: cause.to_string() }
    }

    /// In the trait's words.
    pub(super) fn into_error(self) -> RuntimeError {
        match self {
            Fault::Start(text) => RuntimeError::Start(text),
            Fault::Create(text) => RuntimeError::Create(text),
            Fault::Config(text) => RuntimeError::Config(text),
            Fault::NotFound(what) => RuntimeError::NotFound(what),
            Fault::System { operation, cause } => RuntimeError::System { operation, cause },
        }
    }
}

/// A frame of `value`.
pub(super) fn encode<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, value)?;
    let length = (frame.len() - LENGTH_BYTES) as u32;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Takes the first whole frame out of `buffer`; `None` when more bytes are needed.
pub(super) fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, FrameError> {
    let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let Some(body) = buffer.get(LENGTH_BYTES..LENGTH_BYTES + length) else { return Ok(None) };
    let value = serde_json::from_slice(body)?;
    buffer.drain(..LENGTH_BYTES + length);
    Ok(Some(value))
}

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error("frame of {0} bytes, at most {MAX_FRAME} are allowed")]
    TooLong(usize),
    #[error("frame holds no message")]
    Json(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let one = encode(&Call { seq: 1, request: Request::Hello }).unwrap();
        let two = encode(&Call { seq: 2, request: Request::Start { id: ContainerId("c".into()) } }).unwrap();
        let bytes: Vec<u8> = one.into_iter().chain(two).collect();
        for cut in 0..bytes.len() {
            let mut seen = Vec::new();
            let mut buffer = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(call) = decode::<Call>(&mut buffer).unwrap() {
                    seen.push(call.seq);
                }
            }
            assert_eq!(seen, [1, 2], "cut at {cut}");
        }
    }

    #[test]
    fn a_frame_beyond_the_bound_is_refused_before_it_is_read() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(matches!(decode::<Call>(&mut buffer), Err(FrameError::TooLong(_))));
    }
}
