//! A link: typed messages and byte streams between two machines that know each other.
//!
//! Owns: [`LinkHandle`] (sends; cloneable) and [`LinkEvents`] (receives; one owner), and the one task between them and
//! the transport, which writes what waits in the outboxes. The link lives while a handle *and* its events live; then the
//! task sends what waits (for a moment), closes and ends: nothing is left behind.
//! Invariants: messages of one class arrive in order; whoever reads slowly slows its peer down, not its own memory;
//! [`LinkEvent::Closed`] comes last, after every message that arrived before a peer's close, and comes again if asked.

use std::{
    future::poll_fn,
    io,
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Sleep, sleep},
};

use super::{
    Class, CloseReason, NetError, Responder, codec,
    ends::Ends,
    frame::{FrameReader, frame},
    heartbeat::{Beating, Heard, Hearts},
    outbox::Outbox,
    stream::{self, MessageStreams},
    transport::{LinkStats, Reader, Transport, Writer},
};
use crate::{
    messages::wire::{ByteStream, Open},
    model::NodeName,
};

/// Bytes handed to the transport in one go: enough for full packets, little enough that a newer message can still
/// replace an older one in the outbox.
const WRITE_BATCH: usize = 64 << 10;
/// How long a closing link tries to send what waits.
const FLUSH: Duration = Duration::from_secs(1);
/// Between a message stream's end and the connection's: longer, and the peer is broken.
const STREAM_END: Duration = Duration::from_secs(2);
/// Byte streams that have been opened but not yet introduced; more wait in the transport.
const INTRODUCTIONS: usize = 32;

/// A live connection to an authenticated peer, before it is split into its two halves. `Out` is what this side says.
pub struct Link<Out, In> {
    handle: LinkHandle<Out>,
    events: LinkEvents<In>,
}

/// What a link is made of: an authenticated transport after the introduction.
pub(crate) struct Session {
    pub(crate) peer: NodeName,
    /// The digest of its key, when it is a node that joined.
    pub(crate) joined_key: Option<[u8; 32]>,
    pub(crate) transport: Transport,
    pub(crate) streams: MessageStreams,
    /// Gives it heartbeats, on the side that listens.
    pub(crate) hearts: Option<Hearts>,
}

impl<Out: Serialize, In: DeserializeOwned> Link<Out, In> {
    /// Must be called within a tokio runtime, on which the link's task will run.
    pub(crate) fn start(session: Session) -> Link<Out, In> {
        metrics::counter!(super::metrics::LINKS_OPENED).increment(1);
        let (beating, heard) = session.hearts.and_then(|hearts| session.transport.beat(&hearts)).unzip();
        let shared = Arc::new(Shared {
            peer: session.peer,
            joined_key: session.joined_key,
            unwelcome: AtomicBool::new(false),
            transport: session.transport,
            heard,
            outboxes: Class::ALL.map(Outbox::new),
            streams: Arc::default(),
            ends: Arc::default(),
        });
        let (control_writer, control_reader) = session.streams.control;
        let (state_writer, state_reader) = session.streams.state;
        tokio::spawn(drive(shared.clone(), control_writer, state_writer, beating));
        Link {
            handle: LinkHandle { alive: Arc::new(Alive(shared.clone())), out: PhantomData },
            events: LinkEvents {
                control: Some(FrameReader::new(control_reader, Class::Control.cap())),
                state: Some(FrameReader::new(state_reader, Class::State.cap())),
                introductions: FuturesUnordered::new(),
                accepting: None,
                ending: None,
                overdue: None,
                over: None,
                opened: false,
                turn: 0,
                shared,
                message: PhantomData,
            },
        }
    }

    /// Who is at the other end, by its certificate.
    pub fn peer(&self) -> &NodeName {
        self.handle.peer()
    }

    /// The sending and the receiving half.
    pub fn split(self) -> (LinkHandle<Out>, LinkEvents<In>) {
        (self.handle, self.events)
    }

    /// Tells the link's end without keeping it alive.
    pub(super) fn ends(&self) -> Arc<Ends> {
        self.events.shared.ends.clone()
    }
}

struct Shared {
    peer: NodeName,
    joined_key: Option<[u8; 32]>,
    /// The peer need not come again.
    unwelcome: AtomicBool,
    transport: Transport,
    /// On the side that gives heartbeats.
    heard: Option<Heard>,
    outboxes: [Outbox; 2],
    /// Held by each byte stream that was opened here, for as long as it lives.
    streams: Arc<()>,
    ends: Arc<Ends>,
}

impl Drop for Shared {
    /// Of a link whose task never ran.
    fn drop(&mut self) {
        self.ends.end(CloseReason::Failed("the link is gone".into()));
    }
}

impl Shared {
    fn outbox(&self, class: Class) -> &Outbox {
        match class {
            Class::Control => &self.outboxes[0],
            Class::State => &self.outboxes[1],
        }
    }

    fn begin_close(&self, reason: &str) {
        self.ends.begin_close(reason);
        self.outboxes.iter().for_each(Outbox::look);
    }
}

/// Closes the link when the last handle goes.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.begin_close("no longer needed");
    }
}

/// The sending half of a link. Cloneable; the link closes when the last clone is dropped.
pub struct LinkHandle<Out> {
    alive: Arc<Alive>,
    out: PhantomData<fn(&Out)>,
}

impl<Out> Clone for LinkHandle<Out> {
    fn clone(&self) -> Self {
        LinkHandle { alive: self.alive.clone(), out: PhantomData }
    }
}

impl<Out: Serialize> LinkHandle<Out> {
    /// Queues a message; never waits.
    ///
    /// # Errors
    /// [`NetError::Full`] when the outbox of the class is full, [`NetError::TooLarge`] when the message exceeds
    /// [`Class::cap`], [`NetError::Closed`]. Nothing was queued then.
    pub fn send(&self, class: Class, message: &Out) -> Result<(), NetError> {
        self.push(class, None, message)
    }

    /// Queues a message that replaces the one still waiting under the same key, in its place in the queue.
    ///
    /// # Errors
    /// As [`LinkHandle::send`].
    pub fn send_keyed(&self, class: Class, key: impl Into<String>, message: &Out) -> Result<(), NetError> {
        self.push(class, Some(key.into()), message)
    }

    fn push(&self, class: Class, key: Option<String>, message: &Out) -> Result<(), NetError> {
        if let Some(reason) = self.shared().ends.over() {
            return Err(NetError::Closed(reason));
        }
        match self.shared().outbox(class).push(key, frame(message, class.cap())?) {
            Ok(false) => Ok(()),
            Ok(true) => {
                metrics::counter!(super::metrics::OUTBOX_REPLACED, "class" => class.label()).increment(1);
                Ok(())
            }
            Err(_) => {
                metrics::counter!(super::metrics::OUTBOX_REFUSED, "class" => class.label()).increment(1);
                Err(NetError::Full)
            }
        }
    }
}

impl<Out> LinkHandle<Out> {
    /// Who is at the other end, by its certificate.
    pub fn peer(&self) -> &NodeName {
        &self.shared().peer
    }

    /// The SHA-256 of the peer's key, when it is a node that joined: see [`super::csr::joined_key`].
    pub fn joined_key(&self) -> Option<[u8; 32]> {
        self.shared().joined_key
    }

    /// Opens a flow of bytes; the peer's owner decides within `timeout` whether it may be.
    ///
    /// # Errors
    /// [`NetError::Refused`] by the peer, [`NetError::TimedOut`], [`NetError::Closed`], [`NetError::Stream`].
    pub async fn open(&self, request: Open, timeout: Duration) -> Result<ByteStream, NetError> {
        let shared = self.shared();
        if let Some(reason) = shared.ends.over() {
            return Err(NetError::Closed(reason));
        }
        match tokio::time::timeout(timeout, stream::open(&shared.transport, &request)).await {
            Ok(Err(NetError::Stream(error))) => Err(match shared.transport.close_reason() {
                Some(reason) => NetError::Closed(reason),
                None => NetError::Stream(error),
            }),
            Ok(outcome) => outcome.map(|opened| stream::counted(opened, shared.streams.clone())),
            Err(_) => Err(NetError::TimedOut("the opening of a byte stream")),
        }
    }

    /// Whether both are handles of one link.
    pub fn is_same(&self, other: &LinkHandle<Out>) -> bool {
        Arc::ptr_eq(&self.alive, &other.alive)
    }

    /// Sends what waits (for at most a second), then closes. Returns at once; see [`LinkHandle::closed`].
    pub fn close(&self, reason: &str) {
        self.shared().begin_close(reason);
    }

    /// As [`LinkHandle::close`], and the peer is told not to come again with the certificate it showed.
    pub fn expel(&self, reason: &str) {
        self.shared().unwelcome.store(true, Ordering::Relaxed);
        self.close(reason);
    }

    /// Whether it has ended, or is about to.
    pub fn is_over(&self) -> bool {
        self.shared().ends.over().is_some()
    }

    /// Waits for the link's end.
    pub async fn closed(&self) -> CloseReason {
        self.shared().ends.wait_closed().await
    }

    /// How the path is doing.
    pub fn stats(&self) -> LinkStats {
        self.shared().transport.stats()
    }

    /// For how long nothing has come, at least; nothing is known of it on the side that dialled.
    pub fn silence(&self) -> Duration {
        self.shared().heard.as_ref().map_or(Duration::ZERO, Heard::silence)
    }

    /// How many messages wait to be sent, and their bytes.
    pub fn queued(&self) -> (usize, usize) {
        let waiting = Class::ALL.map(|class| self.shared().outbox(class).waiting());
        waiting.into_iter().fold((0, 0), |sum, (messages, bytes)| (sum.0 + messages, sum.1 + bytes))
    }

    /// How many byte streams are in use, whichever side opened them.
    pub fn streams(&self) -> usize {
        Arc::strong_count(&self.shared().streams) - 1
    }

    fn shared(&self) -> &Shared {
        &self.alive.0
    }
}

/// What happens on a link.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, for as long as it is being handled")]
pub enum LinkEvent<In> {
    /// The peer said something.
    Message(In),
    /// The peer wants a flow of bytes: answer through the [`Responder`].
    Opened(Open, Responder),
    /// The link has ended. The last event.
    Closed(CloseReason),
}

/// The receiving half of a link. Dropping it closes the link.
pub struct LinkEvents<In> {
    shared: Arc<Shared>,
    control: Option<FrameReader<Reader>>,
    state: Option<FrameReader<Reader>>,
    introductions: FuturesUnordered<BoxFuture<'static, Option<(Open, Responder)>>>,
    /// Waits for the next stream that the peer opens.
    accepting: Option<BoxFuture<'static, io::Result<(Writer, Reader)>>>,
    /// Waits for the link's end…
    ending: Option<BoxFuture<'static, CloseReason>>,
    /// …which is to come by then, since a message stream has ended…
    overdue: Option<Pin<Box<Sleep>>>,
    /// …and has come.
    over: Option<CloseReason>,
    /// The peer has opened a byte stream.
    opened: bool,
    /// What is looked at first, so that nothing that always has something keeps the others waiting.
    turn: usize,
    message: PhantomData<fn() -> In>,
}

impl<In> Drop for LinkEvents<In> {
    fn drop(&mut self) {
        self.shared.begin_close("nobody listens any more");
    }
}

enum Step {
    Frame(Class, io::Result<Option<bytes::Bytes>>),
    Stream((Writer, Reader)),
    Introduced(Option<(Open, Responder)>),
    Overdue,
    Closed(CloseReason),
}

impl<In: DeserializeOwned> LinkEvents<In> {
    /// The next event. Cancel-safe. Not calling it holds the peer up once the windows are full.
    pub async fn next(&mut self) -> LinkEvent<In> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`LinkEvents::next`]: what waits for it holds no more than these events themselves.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<LinkEvent<In>> {
        loop {
            if let Some(reason) = self.over.clone() {
                return Poll::Ready(self.last_words(reason, cx));
            }
            let Poll::Ready(step) = self.poll_step(cx) else { return Poll::Pending };
            match step {
                Step::Frame(class, Ok(Some(frame))) => {
                    if let Some(message) = self.decoded(class, &frame) {
                        return Poll::Ready(LinkEvent::Message(message));
                    }
                }
                Step::Frame(class, outcome) => self.stream_over(class, outcome),
                Step::Stream(halves) => {
                    if !self.opened && self.shared.heard.is_some() {
                        self.shared.transport.expect_streams();
                    }
                    self.opened = true;
                    self.introductions.push(Box::pin(stream::receive_open(halves)));
                }
                Step::Introduced(Some((open, responder))) => {
                    let responder = responder.counted(self.shared.streams.clone());
                    return Poll::Ready(LinkEvent::Opened(open, responder));
                }
                Step::Introduced(None) => {}
                Step::Overdue => self.fail("the peer ended a message stream but not the link"),
                Step::Closed(reason) => self.over = Some(reason),
            }
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        const LOOKS: usize = 6;
        for look in 0..LOOKS {
            let step = match (self.turn + look) % LOOKS {
                0 => self.poll_frame(Class::Control, cx),
                1 => self.poll_frame(Class::State, cx),
                2 => self.poll_introduced(cx),
                3 => self.poll_accepted(cx),
                4 => self.poll_overdue(cx),
                _ => self.poll_closed(cx),
            };
            if step.is_ready() {
                self.turn = (self.turn + look + 1) % LOOKS;
                return step;
            }
        }
        Poll::Pending
    }

    fn poll_frame(&mut self, class: Class, cx: &mut Context<'_>) -> Poll<Step> {
        match self.reader(class) {
            Some(reader) => reader.poll_next(cx).map(|frame| Step::Frame(class, frame)),
            None => Poll::Pending,
        }
    }

    fn poll_introduced(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        match self.introductions.poll_next_unpin(cx) {
            Poll::Ready(Some(introduced)) => Poll::Ready(Step::Introduced(introduced)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        if self.introductions.len() >= INTRODUCTIONS {
            return Poll::Pending;
        }
        let transport = &self.shared.transport;
        let accepting = self.accepting.get_or_insert_with(|| transport.accept_one());
        let Poll::Ready(accepted) = accepting.as_mut().poll(cx) else { return Poll::Pending };
        self.accepting = None;
        // It fails when the connection ends, which is told of apart.
        accepted.map_or(Poll::Pending, |halves| Poll::Ready(Step::Stream(halves)))
    }

    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        match &mut self.overdue {
            Some(overdue) => overdue.as_mut().poll(cx).map(|()| Step::Overdue),
            None => Poll::Pending,
        }
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let ends = &self.shared.ends;
        let ending = self.ending.get_or_insert_with(|| {
            let ends = ends.clone();
            Box::pin(async move { ends.wait_closed().await })
        });
        let closed = ending.as_mut().poll(cx).map(Step::Closed);
        if closed.is_ready() {
            self.ending = None;
        }
        closed
    }

    /// Hands out what had arrived before the peer closed, then the end.
    fn last_words(&mut self, reason: CloseReason, cx: &mut Context<'_>) -> LinkEvent<In> {
        if !matches!(reason, CloseReason::Local(_)) {
            for class in Class::ALL {
                // The connection is over: this yields what was received, then an error, and never waits.
                while let Poll::Ready(Step::Frame(_, Ok(Some(frame)))) = self.poll_frame(class, cx) {
                    if let Some(message) = self.decoded(class, &frame) {
                        return LinkEvent::Message(message);
                    }
                }
                *self.reader(class) = None;
            }
        }
        LinkEvent::Closed(reason)
    }

    fn reader(&mut self, class: Class) -> &mut Option<FrameReader<Reader>> {
        match class {
            Class::Control => &mut self.control,
            Class::State => &mut self.state,
        }
    }

    fn decoded(&self, class: Class, frame: &[u8]) -> Option<In> {
        match codec::decode(frame) {
            Ok(message) => Some(message),
            Err(error) => {
                metrics::counter!(super::metrics::FRAMES_SKIPPED, "class" => class.label()).increment(1);
                tracing::debug!(node = %self.shared.peer, class = class.label(), %error, "skipped a frame");
                None
            }
        }
    }

    fn stream_over(&mut self, class: Class, outcome: io::Result<Option<bytes::Bytes>>) {
        *self.reader(class) = None;
        match outcome {
            // A frame that breaks the protocol: what follows cannot be understood.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData) => self.fail(&error.to_string()),
            // The end of the connection, of which the reason comes apart, or else is overdue soon.
            _ => {
                self.overdue.get_or_insert_with(|| Box::pin(sleep(STREAM_END)));
            }
        }
    }

    fn fail(&mut self, problem: &str) {
        self.overdue = None;
        self.shared.ends.end(CloseReason::Failed(problem.to_owned()));
        self.shared.transport.close(problem);
    }
}

/// Ends the link whenever and however its task ends, even with its runtime.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.ends.end(CloseReason::Failed("the link's task has ended".into()));
        self.0.transport.close("task ended");
    }
}

/// The link's one task: writes both outboxes until the link is closed from either side. What is only for the end is in
/// boxes: there is a task for each link, and most links are idle.
async fn drive(shared: Arc<Shared>, control: Writer, state: Writer, beating: Option<Beating>) {
    let ending = Ending(shared.clone());
    let flushed = async {
        tokio::try_join!(
            write_outbox(&shared, Class::Control, control),
            write_outbox(&shared, Class::State, state)
        )
    };
    let overdue = async {
        shared.ends.wait_closing().await;
        Box::pin(sleep(FLUSH)).await;
    };
    let failure = tokio::select! {
        biased;
        _ = shared.transport.closed() => None,
        outcome = flushed => outcome.err(),
        () = overdue => None,
    };
    let reason = shared.transport.close_reason().unwrap_or_else(|| match (shared.ends.closing(), failure) {
        (Some(reason), _) => CloseReason::Local(reason),
        (None, Some(error)) => CloseReason::Failed(error.to_string()),
        (None, None) => CloseReason::Failed("the link's task has ended".into()),
    });
    tracing::debug!(node = %shared.peer, %reason, "link ended");
    let text = match &reason {
        CloseReason::Local(text) | CloseReason::Failed(text) => text.clone(),
        other => other.to_string(),
    };
    if shared.unwelcome.load(Ordering::Relaxed) {
        shared.transport.expel(&text);
    } else {
        shared.transport.close(&text);
    }
    shared.ends.end(reason);
    drop(ending);
    drop(beating);
}

/// Writes one class's messages as they come; once the link is closing, writes the rest and waits for its arrival.
async fn write_outbox(shared: &Shared, class: Class, mut writer: Writer) -> io::Result<()> {
    let outbox = shared.outbox(class);
    loop {
        // Whoever sets this has the outbox looked at after it.
        let closing = shared.ends.is_closing();
        let frames = outbox.take(WRITE_BATCH);
        match frames.as_slice() {
            [] if closing => return Box::pin(writer.finish()).await,
            [] => outbox.filled().await,
            [frame] => writer.write_all(frame).await?,
            frames => writer.write_all(&frames.concat()).await?,
        }
    }
}
