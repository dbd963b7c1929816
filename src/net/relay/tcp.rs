//! Connections from a port of the machine to a pod.
//!
//! Invariants: what one side closes for writing is closed at the other, the rest goes on; a connection that ends badly, that
//! the pod does not take, or that is given up in the midst is reset, so that nobody takes a part for the whole; when its pod
//! ends it may go on for [`DRAIN`]; one whose client has vanished ends by itself.

use std::{io, net::SocketAddr, pin::pin, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncWriteExt as _, BufReader, Interest, copy_buf},
    net::{
        TcpListener, TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    select,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Carrier, RETRY, room};

/// A pod is on this machine: it answers at once, or its queue is full.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// For each direction: more makes it hardly faster.
const BUFFER_BYTES: usize = 32 * 1024;
/// A connection on which nothing is said for so long is asked whether its peer is there.
const IDLE_SECONDS: u32 = 60;
/// What a pod said before it ended is still passed on for so long: the pod's removal waits for it.
const DRAIN: Duration = Duration::from_secs(1);
/// How [`room::full`] calls them.
const CONNECTIONS: &str = "connection";

/// Takes connections for ever. While too many are carried they wait in the kernel's queue.
pub(super) async fn serve(listener: TcpListener, carrier: Carrier) {
    let (own, all) = (carrier.room.connections.of_one_port(), &carrier.room.connections);
    loop {
        // Neither is ever closed.
        let Some(own) = own.take(CONNECTIONS).await else { return };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::debug!(%error, target = %carrier.target, "no connection could be accepted");
                room::full(CONNECTIONS);
                sleep(RETRY).await;
                continue;
            }
        };
        let client = Stream::new(client);
        let Some(turn) = all.take(CONNECTIONS).await else { return };
        let (target, stop) = (carrier.target, carrier.tasks.stop.clone());
        carrier.tasks.spawn_lasting(async move {
            let _turns = (own, turn);
            if let Err(error) = carry(client, target, stop).await {
                tracing::debug!(%error, %target, "a relayed connection ended");
            }
        });
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

async fn carry(mut client: Stream, target: SocketAddr, stop: CancellationToken) -> io::Result<()> {
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
    let there = pass(from_client, to_pod);
    let back = async {
        let pod = pass(from_pod, to_client).await;
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
async fn pass<'a>(from: ReadHalf<'a>, mut to: WriteHalf<'a>) -> io::Result<ReadHalf<'a>> {
    let mut from = BufReader::with_capacity(BUFFER_BYTES, from);
    copy_buf(&mut from, &mut to).await?;
    to.shutdown().await?;
    Ok(from.into_inner())
}
