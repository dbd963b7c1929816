//! What flows when a user runs a program in a container or attaches to its own: frames of a channel and its bytes, on a
//! byte stream. Forwarded ports have no frames.
//!
//! Owns: the frame (channel, length in 4 bytes big endian, bytes) and the channels, whose numbers are Kubernetes'.
//! Invariant: a frame beyond the bound is refused before it is read.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A program to be run in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The container's name.
    pub container: String,
    /// What to run.
    pub command: Vec<String>,
    /// Something may be typed.
    pub stdin: bool,
    /// On a terminal.
    pub tty: bool,
}

/// A running container's own program to be listened and talked to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The container's name.
    pub container: String,
    /// Something may be typed.
    pub stdin: bool,
    /// The client has a terminal for the container's.
    pub tty: bool,
}

/// A connection to a port of a pod; bytes flow both ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForwardRequest {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The port, on the pod's own loopback.
    pub port: u16,
}

/// No frame is longer.
const MAX_FRAME: usize = 1024 * 1024;

/// What bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Channel {
    /// To the program's standard input.
    Stdin = 0,
    /// From its standard output.
    Stdout = 1,
    /// From its standard error.
    Stderr = 2,
    /// How it ended: a `Status` as JSON.
    Error = 3,
    /// The terminal's size as JSON.
    Resize = 4,
    /// No more comes on the channel that the one byte names.
    Close = 255,
}

impl Channel {
    /// The channel of a number.
    pub fn from_byte(byte: u8) -> Option<Channel> {
        use Channel::{Close, Error, Resize, Stderr, Stdin, Stdout};
        [Stdin, Stdout, Stderr, Error, Resize, Close].into_iter().find(|channel| *channel as u8 == byte)
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// The stream's.
    pub async fn send(self, write: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        write.write_u8(self as u8).await?;
        write.write_u32(length).await?;
        write.write_all(bytes).await
    }

    /// Reads a frame; `None` at the stream's end.
    ///
    /// # Errors
    /// The stream's, and for what is no frame.
    pub async fn receive(read: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(Channel, Vec<u8>)>> {
        let channel = match read.read_u8().await {
            Ok(byte) => Channel::from_byte(byte).ok_or(io::ErrorKind::InvalidData)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        let length = read.read_u32().await? as usize;
        if length > MAX_FRAME {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        read.read_exact(&mut bytes).await?;
        Ok(Some((channel, bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_out_as_they_went_in_and_nonsense_is_refused() {
        let mut wire = Vec::new();
        Channel::Stdin.send(&mut wire, b"typed").await.unwrap();
        Channel::Close.send(&mut wire, &[0]).await.unwrap();
        let mut read = wire.as_slice();
        assert_eq!(Channel::receive(&mut read).await.unwrap(), Some((Channel::Stdin, b"typed".to_vec())));
        assert_eq!(Channel::receive(&mut read).await.unwrap(), Some((Channel::Close, vec![0])));
        assert_eq!(Channel::receive(&mut read).await.unwrap(), None);
        for bad in [&[9, 0, 0, 0, 0][..], &[0, 255, 255, 255, 255], &[0, 0, 0, 0, 5, 1]] {
            assert!(Channel::receive(&mut &*bad).await.is_err(), "{bad:?}");
        }
    }
}
