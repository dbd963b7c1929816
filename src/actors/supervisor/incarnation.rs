//! One incarnation of a supervised actor: the task that makes it, runs it, watches it and buries it.
//!
//! Owns: the task around actix's `ContextFut`. It is polled under `catch_unwind`, so a panic anywhere in the actor (its
//! factory, `started`, a handler, a future of its context, its `Drop`) is caught with its text; [`Report`]'s `Drop`
//! tells of ends that no code of ours sees, like that of the arbiter.
//! Invariants: control is read before each turn, and a turn is at most [`MESSAGES_PER_TURN`] messages: actix's own
//! mailbox would be drained to its end first, so [`Mailbox`] takes its place. The address is withdrawn, then the state
//! dropped, then the end reported. Leaves out: what to do about an end, which is the supervisor's.

use std::{
    any::Any,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context as TaskContext, Poll},
};

use actix::{
    Actor, ActorContext, ActorFuture, Addr, ArbiterHandle, AsyncContext, Context,
    dev::{
        AsyncContextParts, ContextFut, ContextParts, EnvelopeProxy,
        channel::{AddressReceiver, channel},
    },
};
use futures_util::Stream;
use tracing::Span;

use super::{
    control::{Aside, Reader},
    life::{Control, Exit, Life, Vitals, next_incarnation},
    spec::BoxError,
};
use crate::messages::Slot;

/// Messages an actor may handle before control, and the other actors of its thread, are looked at again. tokio's local
/// set does 61 turns before it looks at sockets and timers: some 1,000 messages of a few µs, so some ms.
const MESSAGES_PER_TURN: u32 = 16;

/// Senders that wait (`Addr::send`) park beyond so many queued messages; `do_send` never does.
const MAILBOX_CAPACITY: usize = 256;

/// Makes incarnations of one child, whatever its actor's type.
pub(super) trait Launch: Send {
    /// Makes one on `arbiter`. Its end is reported in any case.
    fn launch(&self, birth: Birth, arbiter: &ArbiterHandle);

    /// The same on the present thread, before it returns.
    fn launch_here(&self, birth: Birth);

    /// Takes the address back from an incarnation that is to be given up, so that it cannot be published again.
    fn revoke(&self);
}

/// What an incarnation is given.
pub(super) struct Birth {
    pub(super) name: Arc<str>,
    pub(super) incarnation: u64,
    pub(super) vitals: Arc<Vitals>,
    pub(super) control: Reader,
    pub(super) control_of_life: Aside,
    pub(super) report: Report,
}

/// incarnation → supervisor.
#[derive(Debug)]
pub(super) enum News {
    /// `started` has run.
    Started,
    /// Over, its state dropped.
    Ended(Exit),
}

/// Tells the supervisor what becomes of one incarnation; the last word is always an end.
pub(super) struct Report {
    tell: Box<dyn Fn(News) + Send>,
    ended: bool,
}

impl Report {
    pub(super) fn new(tell: impl Fn(News) + Send + 'static) -> Report {
        Report { tell: Box::new(tell), ended: false }
    }

    fn started(&self) {
        (self.tell)(News::Started);
    }

    fn ended(mut self, exit: Exit) {
        self.ended = true;
        (self.tell)(News::Ended(exit));
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.ended {
            (self.tell)(News::Ended(Exit::Lost));
        }
    }
}

/// The [`Launch`] of an actor type.
pub(super) struct Launcher<A: Actor, F> {
    factory: Arc<F>,
    slot: Slot<A>,
}

impl<A, F> Launcher<A, F>
where
    A: Actor<Context = Context<A>>,
    F: Fn(Life) -> Result<A, BoxError> + Send + Sync + 'static,
{
    pub(super) fn new(slot: Slot<A>, factory: F) -> Launcher<A, F> {
        Launcher { factory: Arc::new(factory), slot }
    }

    fn prepare(&self, birth: Birth) -> impl FnOnce() + Send + use<A, F> {
        self.slot.publish_as(birth.incarnation, None);
        let (factory, slot) = (self.factory.clone(), self.slot.clone());
        move || be_born(&*factory, slot, birth)
    }
}

impl<A, F> Launch for Launcher<A, F>
where
    A: Actor<Context = Context<A>>,
    F: Fn(Life) -> Result<A, BoxError> + Send + Sync + 'static,
{
    fn launch(&self, birth: Birth, arbiter: &ArbiterHandle) {
        // A dead arbiter drops the closure and the report in it, which then tells of the loss.
        arbiter.spawn_fn(self.prepare(birth));
    }

    fn launch_here(&self, birth: Birth) {
        self.prepare(birth)();
    }

    fn revoke(&self) {
        self.slot.publish_as(next_incarnation(), None);
    }
}

fn be_born<A>(factory: &dyn Fn(Life) -> Result<A, BoxError>, slot: Slot<A>, birth: Birth)
where
    A: Actor<Context = Context<A>>,
{
    let Birth { name, incarnation, vitals, control, control_of_life, report } = birth;
    let span = tracing::info_span!("actor", name = &*name, incarnation);
    let life = Life::new(name, incarnation, vitals.clone(), control_of_life);
    let made = span.in_scope(|| catch_unwind(AssertUnwindSafe(|| factory(life))));
    let actor = match made {
        Ok(Ok(actor)) => actor,
        Ok(Err(error)) => return report.ended(Exit::NotStarted(chain(&*error))),
        Err(panic) => return report.ended(Exit::Panicked(panic_text(&*panic))),
    };

    let (sender, receiver) = channel(MAILBOX_CAPACITY);
    let mut context = Context::new();
    *context.parts() = ContextParts::new(receiver.sender_producer());
    let turn = Rc::new(Turn { left: Cell::new(0), heartbeat: Cell::new(false), vitals });
    context.spawn(Mailbox { receiver, turn: turn.clone() });

    slot.publish_as(incarnation, Some(Addr::new(sender)));
    actix_rt::spawn(Incarnation {
        body: Some(context.into_future(actor)),
        control,
        turn,
        started: false,
        stop_asked: false,
        panic: None,
        slot,
        incarnation,
        report: Some(report),
        span,
    });
}

/// The task of one incarnation.
struct Incarnation<A: Actor<Context = Context<A>>> {
    body: Option<ContextFut<A, Context<A>>>,
    control: Reader,
    turn: Rc<Turn>,
    started: bool,
    stop_asked: bool,
    /// Panic with this text at the next turn.
    panic: Option<String>,
    slot: Slot<A>,
    incarnation: u64,
    report: Option<Report>,
    span: Span,
}

impl<A: Actor<Context = Context<A>>> Future for Incarnation<A> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        let this = self.get_mut();
        let span = this.span.clone();
        let _entered = span.enter();
        if let Some(exit) = this.obey(cx) {
            this.bury(exit);
            return Poll::Ready(());
        }
        match this.take_turn(cx) {
            Poll::Ready(exit) => {
                // An actor may say that it fails and stop in one go: the reason is still in the channel.
                let failed = this.turn.vitals.failed().then(|| this.obey(cx)).flatten();
                this.bury(failed.unwrap_or(exit));
                Poll::Ready(())
            }
            Poll::Pending => {
                if !this.started {
                    this.started = true;
                    this.report.iter().for_each(Report::started);
                }
                Poll::Pending
            }
        }
    }
}

impl<A: Actor<Context = Context<A>>> Incarnation<A> {
    /// Reads all control there is. `Some` when this is the end.
    fn obey(&mut self, cx: &mut TaskContext<'_>) -> Option<Exit> {
        loop {
            match self.control.poll(cx) {
                Poll::Ready(Some(Control::Stop)) => {
                    self.stop_asked = true;
                    self.body.iter_mut().for_each(|body| body.ctx().stop());
                }
                // It is over when the supervisor itself dies: its children do not outlive it.
                Poll::Ready(Some(Control::Kill) | None) => return Some(Exit::Killed),
                Poll::Ready(Some(Control::Fail(reason))) => return Some(Exit::Failed(reason)),
                Poll::Ready(Some(Control::Panic(text))) => self.panic = Some(text),
                Poll::Ready(Some(Control::Heartbeat)) => self.turn.heartbeat.set(true),
                Poll::Pending => return None,
            }
        }
    }

    /// Lets the actor run for a bounded while.
    fn take_turn(&mut self, cx: &mut TaskContext<'_>) -> Poll<Exit> {
        self.turn.left.set(MESSAGES_PER_TURN);
        let (body, injected) = (&mut self.body, &mut self.panic);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            if let Some(text) = injected.take() {
                std::panic::panic_any(text);
            }
            body.as_mut().map_or(Poll::Ready(()), |body| Pin::new(body).poll(cx))
        }));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) if self.stop_asked => Poll::Ready(Exit::Stopped),
            Ok(Poll::Ready(())) => Poll::Ready(Exit::Normal),
            Err(panic) => Poll::Ready(Exit::Panicked(panic_text(&*panic))),
        }
    }

    fn bury(&mut self, exit: Exit) {
        let exit = self.drop_body().unwrap_or(exit);
        if let Some(report) = self.report.take() {
            report.ended(exit);
        }
    }

    /// Withdraws the address and drops the actor's state. `Some` when dropping it panicked.
    fn drop_body(&mut self) -> Option<Exit> {
        let mut body = self.body.take()?;
        self.slot.publish_as(self.incarnation, None);
        // Otherwise its Drop polls the actor once more, in whatever state that is.
        body.ctx().terminate();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(body)));
        dropped.err().map(|panic| Exit::Panicked(panic_text(&*panic)))
    }
}

impl<A: Actor<Context = Context<A>>> Drop for Incarnation<A> {
    /// When the arbiter ends under its tasks.
    fn drop(&mut self) {
        self.drop_body();
    }
}

/// How far the present turn may go. Shared between an incarnation's task and its mailbox.
struct Turn {
    /// Messages that may still be handled.
    left: Cell<u32>,
    /// A heartbeat wants an answer.
    heartbeat: Cell<bool>,
    vitals: Arc<Vitals>,
}

/// Takes messages from the actor's address to its handlers, as a future in its context, a bounded number a turn.
/// Being polled is itself the sign of life: actix polls it only while no `ctx.wait` holds the actor up.
struct Mailbox<A: Actor> {
    receiver: AddressReceiver<A>,
    turn: Rc<Turn>,
}

impl<A: Actor<Context = Context<A>>> ActorFuture<A> for Mailbox<A> {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        actor: &mut A,
        context: &mut Context<A>,
        task: &mut TaskContext<'_>,
    ) -> Poll<()> {
        let this = self.get_mut();
        if this.turn.heartbeat.take() {
            this.turn.vitals.beat();
        }
        while !context.waiting() && !this.turn.vitals.failed() {
            let Some(left) = this.turn.left.get().checked_sub(1) else {
                task.waker().wake_by_ref();
                break;
            };
            let Poll::Ready(Some(mut envelope)) = Pin::new(&mut this.receiver).poll_next(task) else { break };
            this.turn.left.set(left);
            envelope.handle(actor, context);
        }
        // Never ready: a supervised actor ends when it says so or is told to, not when nobody knows its address.
        Poll::Pending
    }
}

/// An error with its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".to_owned())
}
