//! The streams of a connection: two for messages, and one for each flow of bytes.
//!
//! Owns: what a stream begins with. Its first byte says what it is; a flow of bytes goes on with an `Open` frame, which
//! the other side answers with `Opened` before bytes flow. The dialing side opens the message streams; the accepting
//! side sends their first byte back, and only then is there a link: the peer has accepted our certificate.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::{
    Class, NetError, codec,
    frame::{frame, read_frame},
    transport::{Reader, Transport, Writer, shortened},
};
use crate::messages::wire::{ByteStream, Open, Opened};

/// How long a peer may take to say what a stream is for, once it has opened it.
pub(crate) const INTRODUCTION: Duration = Duration::from_secs(5);
/// A refusal's sentence; longer ones are cut.
const REFUSAL_MAX: usize = 4 << 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Messages(Class),
    Bytes,
}

impl Kind {
    fn byte(self) -> u8 {
        match self {
            Kind::Messages(Class::Control) => 0,
            Kind::Messages(Class::State) => 1,
            Kind::Bytes => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Messages(Class::Control), Kind::Messages(Class::State), Kind::Bytes]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }

    /// What leaves first when several streams have something to send.
    fn priority(self) -> i32 {
        match self {
            Kind::Messages(Class::Control) => 2,
            Kind::Messages(Class::State) => 1,
            Kind::Bytes => 0,
        }
    }
}

/// The two message streams of a link.
pub(crate) struct MessageStreams {
    pub(crate) control: (Writer, Reader),
    pub(crate) state: (Writer, Reader),
}

/// The dialing side's half of the introduction.
pub(crate) async fn introduce(transport: &Transport) -> io::Result<MessageStreams> {
    let mut streams = MessageStreams {
        control: begin(transport, Kind::Messages(Class::Control)).await?,
        state: begin(transport, Kind::Messages(Class::State)).await?,
    };
    for (class, (_, reader)) in [(Class::Control, &mut streams.control), (Class::State, &mut streams.state)] {
        if reader.read_u8().await? != Kind::Messages(class).byte() {
            return Err(broken("the peer confused the message streams"));
        }
    }
    Ok(streams)
}

/// The accepting side's half of the introduction.
pub(crate) async fn await_introduction(transport: &Transport) -> io::Result<MessageStreams> {
    let (mut control, mut state) = (None, None);
    loop {
        let (mut writer, mut reader) = transport.accept().await?;
        let slot = match Kind::from_byte(reader.read_u8().await?) {
            Some(kind @ Kind::Messages(class)) => {
                writer.set_priority(kind.priority());
                writer.write_u8(kind.byte()).await?;
                if class == Class::Control { &mut control } else { &mut state }
            }
            _ => return Err(broken("the peer opened an unexpected stream before its message streams")),
        };
        if slot.replace((writer, reader)).is_some() {
            return Err(broken("the peer opened a message stream twice"));
        }
        if let (Some(_), Some(_)) = (&control, &state) {
            break;
        }
    }
    match (control, state) {
        (Some(control), Some(state)) => Ok(MessageStreams { control, state }),
        _ => Err(broken("a message stream is missing")),
    }
}

/// Opens a flow of bytes and waits for the peer's answer.
pub(crate) async fn open(transport: &Transport, request: &Open) -> Result<ByteStream, NetError> {
    let request = frame(request, codec::OPEN_CAP)?;
    let (mut writer, mut reader) = begin(transport, Kind::Bytes).await.map_err(NetError::Stream)?;
    writer.write_all(&request).await.map_err(NetError::Stream)?;
    match read_message(&mut reader).await? {
        Opened::Ok => Ok(ByteStream { read: Box::pin(reader), write: Box::pin(writer) }),
        Opened::Refused(code, text) => Err(NetError::Refused(code, text)),
    }
}

/// What a peer asks of a stream that it has just opened; `None` when it does not say so in time, or asks for something
/// unknown (which is refused).
pub(crate) async fn receive_open((writer, mut reader): (Writer, Reader)) -> Option<(Open, Responder)> {
    let read = async {
        match Kind::from_byte(reader.read_u8().await.map_err(NetError::Stream)?) {
            Some(Kind::Bytes) => read_message::<Open>(&mut reader).await,
            _ => Err(NetError::Stream(broken("not a byte stream"))),
        }
    };
    match tokio::time::timeout(INTRODUCTION, read).await {
        Ok(Ok(asked)) => Some((asked, Responder { writer, reader, open: None })),
        Ok(Err(NetError::Decode(_))) => {
            metrics::counter!(super::metrics::FRAMES_SKIPPED, "class" => "open").increment(1);
            let text = "the peer is older and does not know this kind of stream";
            // The other side hears a reset instead if this fails.
            let _ = Responder { writer, reader, open: None }.refuse(501, text).await;
            None
        }
        Ok(Err(_)) | Err(_) => None,
    }
}

/// Waits for the other side of a stream to go.
pub type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Answers a request for a flow of bytes. Dropped without an answer, it resets the stream.
pub struct Responder {
    writer: Writer,
    reader: Reader,
    /// Counts as one that is open.
    open: Option<Arc<()>>,
}

impl Responder {
    /// Has it count as open from now on, and the flow that comes of it.
    pub(crate) fn counted(self, open: Arc<()>) -> Responder {
        Responder { open: Some(open), ..self }
    }

    /// Ends when the other side has let go of the stream, whether or not what it sent has been read. An orderly end of
    /// what either side writes is none.
    pub fn gone(&self) -> Gone {
        self.writer.refused()
    }

    /// Says yes: bytes flow.
    ///
    /// # Errors
    /// When the other side has gone meanwhile.
    pub async fn accept(mut self) -> Result<ByteStream, NetError> {
        self.answer(&Opened::Ok).await?;
        let stream = ByteStream { read: Box::pin(self.reader), write: Box::pin(self.writer) };
        Ok(match self.open {
            Some(open) => counted(stream, open),
            None => stream,
        })
    }

    /// Says no: an HTTP status code and a sentence.
    ///
    /// # Errors
    /// When the other side has gone meanwhile.
    pub async fn refuse(mut self, code: u16, text: &str) -> Result<(), NetError> {
        self.answer(&Opened::Refused(code, shortened(text, REFUSAL_MAX).into())).await?;
        self.writer.shutdown().await.map_err(NetError::Stream)
    }

    async fn answer(&mut self, answer: &Opened) -> Result<(), NetError> {
        let answer = frame(answer, codec::OPEN_CAP)?;
        self.writer.write_all(&answer).await.map_err(NetError::Stream)
    }
}

/// Half of a flow of bytes that counts as open while either half lives.
struct Counted<T> {
    half: T,
    _open: Arc<Held>,
}

/// One place among the open flows, which both halves share.
struct Held(#[expect(dead_code, reason = "held for its drop")] Arc<()>);

/// Has a flow of bytes hold `open` for as long as one of its halves lives.
pub(crate) fn counted(stream: ByteStream, open: Arc<()>) -> ByteStream {
    let open = Arc::new(Held(open));
    ByteStream {
        read: Box::pin(Counted { half: stream.read, _open: open.clone() }),
        write: Box::pin(Counted { half: stream.write, _open: open }),
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().half).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().half).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().half).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().half).poll_shutdown(cx)
    }
}

async fn begin(transport: &Transport, kind: Kind) -> io::Result<(Writer, Reader)> {
    let (mut writer, reader) = transport.open().await?;
    writer.set_priority(kind.priority());
    writer.write_u8(kind.byte()).await?;
    Ok((writer, reader))
}

async fn read_message<T: DeserializeOwned>(reader: &mut Reader) -> Result<T, NetError> {
    let bytes = read_frame(reader, codec::OPEN_CAP).await.map_err(NetError::Stream)?;
    codec::decode(&bytes)
}

fn broken(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
