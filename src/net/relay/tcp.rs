//! Connections from a port of the machine to a pod.
//!
//! Invariants: what one side closes for writing is closed at the other, the rest goes on; a connection that ends badly, that
//! the pod does not take, or that is given up in the midst is reset, so that nobody takes a part for the whole; when its pod
//! ends it may go on for [`DRAIN`]; one whose client has vanished ends by itself, as does a silent one when another waits for
//! its place.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{setsockopt, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt as _, BufReader, Interest, ReadBuf, copy_buf},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    select,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Carrier, RETRY,
    connections::{CONNECTIONS, Place},
    room::{self, Part},
};

/// A pod is on this machine: it answers at once, or its queue is full.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// For each direction: more makes it hardly faster.
const BUFFER_BYTES: usize = 32 * 1024;
/// A connection on which nothing is said for so long is asked whether its peer is there.
const IDLE_SECONDS: u32 = 60;
/// What a pod said before it ended is still passed on for so long: the pod's removal waits for it.
pub(super) const DRAIN: Duration = Duration::from_secs(1);

/// Takes connections for ever, as many as a port may have. While too many are carried one waits here, further ones in the
/// kernel's queue.
pub(super) async fn serve(listener: TcpListener, own: Part, carrier: Carrier) {
    loop {
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::debug!(%error, target = %carrier.target, "no connection could be accepted");
                match Refusal::of(&error) {
                    Refusal::One => continue,
                    Refusal::Full => room::full(CONNECTIONS),
                    Refusal::Other => {}
                }
                sleep(RETRY).await;
                continue;
            }
        };
        let client = Stream::new(client);
        // Places never end.
        let Some(place) = carrier.room.connections.take(&own).await else { return };
        let (target, stop) = (carrier.target, carrier.tasks.stop.clone());
        carrier.tasks.spawn_lasting(async move {
            let carried = select! {
                carried = carry(client, target, stop, &place) => carried,
                () = place.given_up() => Err(io::Error::other("another has the place of this silent one")),
            };
            if let Err(error) = carried {
                tracing::debug!(%error, %target, "a relayed connection ended");
            }
        });
    }
}

/// Why a connection is not accepted.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// This one went wrong, as accept(2) tells of it; the next may be right.
    One,
    /// The machine, or the process, has no more room.
    Full,
    /// Something else, which may last: a rule that forbids it (EPERM) may leave the connection in the queue.
    Other,
}

impl Refusal {
    fn of(error: &io::Error) -> Refusal {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(
                Errno::ECONNABORTED
                | Errno::ENETDOWN
                | Errno::EPROTO
                | Errno::ENOPROTOOPT
                | Errno::EHOSTDOWN
                | Errno::ENONET
                | Errno::EHOSTUNREACH
                | Errno::EOPNOTSUPP
                | Errno::ENETUNREACH
                | Errno::ETIMEDOUT,
            ) => Refusal::One,
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => Refusal::Full,
            _ => Refusal::Other,
        }
    }
}

/// A connection that is reset when it is dropped in the midst.
struct Stream {
    inner: TcpStream,
    /// All that was to be said to it is said.
    whole: bool,
}

impl Stream {
    fn new(inner: TcpStream) -> Stream {
        Stream { inner, whole: false }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.whole {
            let _ = self.inner.set_zero_linger();
        }
    }
}

async fn carry(
    mut client: Stream,
    target: SocketAddr,
    stop: CancellationToken,
    place: &Place,
) -> io::Result<()> {
    let connected = select! {
        connected = timeout(CONNECT_WITHIN, TcpStream::connect(target)) => connected,
        () = stop.cancelled() => return Ok(()),
    };
    let mut pod = Stream::new(connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?);
    for stream in [&client.inner, &pod.inner] {
        stream.set_nodelay(true)?;
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &IDLE_SECONDS)?;
    }
    let (from_client, to_client) = client.inner.split();
    let (from_pod, to_pod) = pod.inner.split();
    let there = pass(from_client, to_pod, place);
    let back = async {
        let pod = pass(from_pod, to_client, place).await;
        client.whole = pod.is_ok();
        pod
    };
    let carried = select! {
        carried = pass_both(there, back) => carried,
        () = async { stop.cancelled().await; sleep(DRAIN).await } => Err(io::ErrorKind::TimedOut.into()),
    };
    pod.whole = carried.is_ok();
    carried
}

/// Ends when both directions do, or one badly.
async fn pass_both<'a>(
    there: impl Future<Output = io::Result<ReadHalf<'a>>>,
    back: impl Future<Output = io::Result<ReadHalf<'a>>>,
) -> io::Result<()> {
    let (mut there, mut back) = (pin!(there), pin!(back));
    select! {
        client = &mut there => {
            let client = client?;
            // Nobody reads from it any more, which would tell that it has vanished.
            select! {
                done = back => done.map(drop),
                gone = client.ready(Interest::ERROR) => Err(gone.err().unwrap_or(io::ErrorKind::ConnectionReset.into())),
            }
        }
        done = &mut back => {
            done?;
            there.await.map(drop)
        }
    }
}

/// Passes one direction on to its end, and gives back where it came from.
async fn pass<'a>(from: ReadHalf<'a>, mut to: WriteHalf<'a>, place: &Place) -> io::Result<ReadHalf<'a>> {
    let mut from = BufReader::with_capacity(BUFFER_BYTES, Noted { from, place });
    copy_buf(&mut from, &mut to).await?;
    to.shutdown().await?;
    Ok(from.into_inner().from)
}

/// Notes when something is said.
struct Noted<'a, 'p> {
    from: ReadHalf<'a>,
    place: &'p Place,
}

impl AsyncRead for Noted<'_, '_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.from).poll_read(cx, into);
        if read.is_ready() {
            self.place.note();
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_want_of_room_is_told_as_such_and_what_went_wrong_with_one_holds_up_no_other() {
        for (errno, refusal) in [
            (Errno::ECONNABORTED, Refusal::One),
            (Errno::EHOSTUNREACH, Refusal::One),
            (Errno::EMFILE, Refusal::Full),
            (Errno::ENFILE, Refusal::Full),
            (Errno::ENOMEM, Refusal::Full),
            (Errno::EPERM, Refusal::Other),
        ] {
            assert_eq!(Refusal::of(&errno.into()), refusal, "{errno}");
        }
    }
}
