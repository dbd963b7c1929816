//! Connections of the network in one process.
//!
//! Owns: [`Side`], one end, and the [`Wire`] between two. Invariants: each direction falls silent by itself; who hears nothing
//! for the idle timeout takes the other for gone and says nothing more, so that the other hears nothing either and follows
//! by as much; a close travels as a message does, and is lost as one.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rand::rngs::StdRng;
use tokio::sync::{mpsc, watch};

use super::{
    Network, Silence,
    pipe::{lost, pipe},
};
use crate::{
    model::NodeName,
    net::{
        CloseReason,
        transport::{LinkStats, Reader, Writer},
    },
};

/// Streams that were opened and not yet accepted.
const STREAMS: usize = 256;
/// No host has ports but for its listener's; the peers' are not told apart by them.
const PORT: u16 = 1;

type Streams = mpsc::Receiver<(Writer, Reader)>;

/// One side of a connection. The connection ends when all clones of a side are gone.
#[derive(Clone)]
pub(crate) struct Side(Arc<SideInner>);

struct SideInner {
    wire: Arc<Wire>,
    index: usize,
    incoming: tokio::sync::Mutex<Streams>,
    outgoing: mpsc::Sender<(Writer, Reader)>,
}

impl Drop for SideInner {
    fn drop(&mut self) {
        self.wire.close(self.index, "dropped");
    }
}

/// What both sides share.
pub(super) struct Wire {
    pub(super) network: Network,
    ends: [NodeName; 2],
    number: u64,
    /// The network's turn when it was made.
    born: u64,
    closed: [watch::Sender<Option<CloseReason>>; 2],
    /// Who closes for good: the other side need not come again.
    expels: [AtomicBool; 2],
    /// The listener has it.
    given: AtomicBool,
}

impl Side {
    pub(super) fn pair(network: &Network, here: &NodeName, there: &NodeName) -> (Side, Side) {
        let mut state = network.state();
        state.made += 1;
        let wire = Arc::new(Wire {
            network: network.clone(),
            ends: [here.clone(), there.clone()],
            number: state.made,
            born: state.turn,
            closed: [watch::Sender::new(None), watch::Sender::new(None)],
            expels: Default::default(),
            given: AtomicBool::new(false),
        });
        state.wires.retain(|wire| wire.strong_count() > 0);
        state.wires.push(Arc::downgrade(&wire));
        drop(state);
        let (to_there, from_here) = mpsc::channel(STREAMS);
        let (to_here, from_there) = mpsc::channel(STREAMS);
        tokio::spawn(watch_over(wire.clone(), network.new_rng()));
        let side = |index, incoming: Streams, outgoing| {
            let incoming = tokio::sync::Mutex::new(incoming);
            Side(Arc::new(SideInner { wire: wire.clone(), index, incoming, outgoing }))
        };
        (side(0, from_there, to_there), side(1, from_here, to_here))
    }

    pub(super) fn wire(&self) -> &Arc<Wire> {
        &self.0.wire
    }

    pub(crate) async fn open(&self) -> io::Result<(Writer, Reader)> {
        let (wire, here) = (&self.0.wire, self.0.index);
        let (here_writes, there_reads) = pipe(wire, here);
        let (there_writes, here_reads) = pipe(wire, 1 - here);
        tokio::select! {
            sent = self.0.outgoing.send((there_writes, there_reads)) => sent.map_err(|_| lost())?,
            _ = self.closed() => return Err(lost()),
        }
        Ok((here_writes, here_reads))
    }

    pub(crate) async fn accept(&self) -> io::Result<(Writer, Reader)> {
        let mut incoming = self.0.incoming.lock().await;
        tokio::select! {
            stream = incoming.recv() => stream.ok_or_else(lost),
            _ = self.closed() => Err(lost()),
        }
    }

    pub(crate) fn close(&self, reason: &str) {
        self.0.wire.close(self.0.index, reason);
    }

    /// As [`Side::close`], and the peer need not come again.
    pub(crate) fn expel(&self, reason: &str) {
        if let Some(expels) = self.0.wire.expels.get(self.0.index) {
            expels.store(true, Ordering::Relaxed);
        }
        self.close(reason);
    }

    pub(crate) async fn closed(&self) -> CloseReason {
        self.0.wire.closed(self.0.index).await
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.0.wire.closed[self.0.index].borrow().clone()
    }

    pub(crate) fn stats(&self) -> LinkStats {
        let mut state = self.0.wire.network.state();
        let rtt = *state.quality.delay.end() * 2;
        let peer = state.address(&self.0.wire.ends[1 - self.0.index]);
        LinkStats { rtt, peer: Some(SocketAddr::new(peer, PORT)), ..LinkStats::default() }
    }
}

impl Wire {
    /// The listener has it: from now on it is a link.
    pub(super) fn note_given(&self) {
        self.given.store(true, Ordering::Relaxed);
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is between these two.
    pub(super) fn joins(&self, a: &NodeName, b: &NodeName) -> bool {
        let [one, other] = &self.ends;
        (one == a && other == b) || (one == b && other == a)
    }

    /// Whether it is a link that carries both ways.
    pub(super) fn is_up(&self) -> bool {
        let open = self.closed.iter().all(|closed| closed.borrow().is_none());
        open && self.given.load(Ordering::Relaxed)
            && [0, 1].iter().all(|side| self.silence(*side, None).is_none())
    }

    fn close(&self, side: usize, reason: &str) {
        self.end(side, CloseReason::Local(reason.to_owned()));
    }

    /// Whether this is what ended it.
    fn end(&self, side: usize, reason: CloseReason) -> bool {
        self.closed[side].send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        })
    }

    pub(super) fn is_closed(&self, side: usize) -> bool {
        self.closed[side].borrow().is_some()
    }

    pub(super) async fn closed(&self, side: usize) -> CloseReason {
        match self.closed[side].subscribe().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            // The sender lives in `self`.
            _ => CloseReason::Silent,
        }
    }

    async fn either_closed(&self) -> (usize, CloseReason) {
        tokio::select! {
            reason = self.closed(0) => (0, reason),
            reason = self.closed(1) => (1, reason),
        }
    }

    /// The network's turn, which tells whether something was sent before its sender died.
    pub(super) fn turn(&self) -> u64 {
        self.network.state().turn
    }

    /// Why nothing arrives that this side sent then, or sends from now on.
    fn silence(&self, from: usize, sent: Option<u64>) -> Option<Silence> {
        self.network.silence(&self.ends[from], &self.ends[1 - from], self.born, sent)
    }

    /// Whether what this side sent then arrives at present.
    pub(super) fn passes(&self, from: usize, sent: u64) -> bool {
        self.silence(from, Some(sent)).is_none()
    }

    pub(super) async fn until_passes(&self, from: usize, sent: u64) {
        self.until(|| self.passes(from, sent)).await;
    }

    async fn until(&self, holds: impl Fn() -> bool) {
        let mut changes = self.network.0.changes.subscribe();
        while !holds() {
            // The sender lives in the network.
            let _ = changes.changed().await;
        }
    }

    /// Waits until this side has heard nothing for the idle timeout.
    async fn deaf(&self, side: usize) -> Silence {
        let from = 1 - side;
        loop {
            self.until(|| self.silence(from, None).is_some()).await;
            let heard = self.until(|| self.silence(from, None).is_none());
            let in_time = tokio::time::timeout(self.network.0.config.idle_timeout, heard).await;
            if let (Err(_), Some(by)) = (in_time, self.silence(from, None)) {
                return by;
            }
        }
    }
}

/// Carries a close to the other side, and silence to both.
async fn watch_over(wire: Arc<Wire>, mut rng: StdRng) {
    let idle = wire.network.0.config.idle_timeout;
    let (side, by) = tokio::select! {
        biased;
        (side, reason) = wire.either_closed() => return tell_of_close(&wire, side, reason, &mut rng).await,
        by = wire.deaf(0) => (0, by),
        by = wire.deaf(1) => (1, by),
    };
    wire.network.silenced(by);
    wire.end(side, CloseReason::Silent);
    let other = 1 - side;
    if wire.silence(side, None).is_none() {
        tokio::select! {
            _ = wire.closed(other) => {}
            () = tokio::time::sleep(idle) => {}
        }
    }
    wire.end(other, CloseReason::Silent);
}

async fn tell_of_close(wire: &Wire, side: usize, reason: CloseReason, rng: &mut StdRng) {
    let CloseReason::Local(text) = reason else { return };
    tokio::time::sleep(wire.network.delay(rng)).await;
    let other = 1 - side;
    if let Some(by) = wire.silence(side, None) {
        tokio::time::sleep(wire.network.0.config.idle_timeout).await;
        if wire.end(other, CloseReason::Silent) {
            wire.network.silenced(by);
        }
    }
    let expels = wire.expels[side].load(Ordering::Relaxed);
    wire.end(other, if expels { CloseReason::Unwelcome(text) } else { CloseReason::Peer(text) });
}
