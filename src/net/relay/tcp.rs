//! Connections from a port of the machine to a pod.
//!
//! Invariants: what one side closes for writing is closed at the other, the rest goes on; a connection that ends badly, or that
//! the pod does not take, ends so for the client too; one whose peer has vanished ends by itself.

use std::{io, sync::Arc, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use super::{Carrier, RETRY, TURNS};

/// A pod is on this machine: it answers at once, or its queue is full.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// For each direction: more makes it hardly faster.
const BUFFER_BYTES: usize = 32 * 1024;
/// A connection on which nothing is said for so long is asked whether its peer is there.
const IDLE_SECONDS: u32 = 60;

/// Takes connections for ever. While too many are carried they wait in the kernel's queue.
pub(super) async fn serve(listener: TcpListener, carrier: Carrier) {
    loop {
        // Neither is ever closed.
        let Ok(own) = carrier.own.clone().acquire_owned().await else { return };
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                tracing::debug!(%error, target = %carrier.target, "no connection could be accepted");
                sleep(RETRY).await;
                continue;
            }
        };
        let Ok(turn) = Arc::clone(&TURNS.1).acquire_owned().await else { return };
        let target = carrier.target;
        carrier.tasks.spawn(async move {
            let _turns = (own, turn);
            let carried = carry(client, target).await;
            if let Err(error) = carried {
                tracing::debug!(%error, %target, "a relayed connection ended");
            }
        });
    }
}

async fn carry(mut client: TcpStream, target: std::net::SocketAddr) -> io::Result<()> {
    let mut pod = match timeout(CONNECT_WITHIN, TcpStream::connect(target)).await {
        Ok(Ok(pod)) => pod,
        refused => {
            // As if it had not been taken.
            let _ = client.set_zero_linger();
            return refused.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(drop);
        }
    };
    for stream in [&client, &pod] {
        stream.set_nodelay(true)?;
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &IDLE_SECONDS)?;
    }
    let carried = copy_bidirectional_with_sizes(&mut client, &mut pod, BUFFER_BYTES, BUFFER_BYTES).await;
    if carried.is_err() {
        let _ = (client.set_zero_linger(), pod.set_zero_linger());
    }
    carried.map(drop)
}
