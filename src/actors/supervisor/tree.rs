//! The supervisor: an actor that starts, hears, restarts and stops its children.
//!
//! Owns: the children in the order in which they were started, and the order of their stops and starts. It never waits:
//! each event (a request, news from a child, a timer) changes states, and [`Supervisor::advance`] does what the states
//! now call for, so a slow child holds up nobody but those that must come after it.
//! Invariants: when it ends, by whatever means, no child stays behind; it gives up only after its children are down.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
    time::Duration,
};

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message, Running};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::{
    ChildSpec, Escalation, Exit, Life, Strategy, SupervisorError, SupervisorHandle, SupervisorSpec,
    child::{Child, State, Then},
    control::{Speaker, control},
    handle::{Reply, Request},
    incarnation::{Birth, Launch, Launcher, News, Report},
    life::{Control, next_incarnation},
    metrics,
};
use crate::logic::supervision::{Decision, End, History, Run, decide};

/// A killed actor ends at its next turn. One that does not within this time blocks its thread: it is given up.
pub(super) const KILL_GRACE: Duration = Duration::from_secs(1);

/// Starts the children of a nested supervisor.
type Populate = Arc<dyn Fn(&SupervisorHandle) + Send + Sync>;

/// A position in the order of starts. Never used twice.
type Order = u64;

/// The actor. Spoken to through [`SupervisorHandle`].
pub struct Supervisor {
    spec: SupervisorSpec,
    life: Life,
    handle: SupervisorHandle,
    populate: Populate,
    /// Of all children together.
    history: History,
    origin: Instant,
    children: BTreeMap<Order, Box<Child>>,
    by_name: HashMap<Arc<str>, Order>,
    by_incarnation: HashMap<u64, Order>,
    next: Order,
    closing: Option<Closing>,
}

/// The supervisor is about to end.
#[derive(Default)]
struct Closing {
    /// It gave up, because of this.
    escalation: Option<String>,
    /// Who waits for the end.
    waiting: Vec<Reply<()>>,
}

/// incarnation → supervisor: what became of it.
#[derive(Message)]
#[rtype(result = "()")]
struct Heard {
    incarnation: u64,
    news: News,
}

impl Supervisor {
    /// Starts the root of a tree on the present arbiter. When it gives up, or itself panics, `on_escalate` is called.
    pub fn start(spec: SupervisorSpec) -> SupervisorHandle {
        let handle = SupervisorHandle::new(spec.name);
        let (speaker, control) = control();
        let birth = Birth {
            name: spec.name.into(),
            incarnation: next_incarnation(),
            vitals: Arc::default(),
            control,
            control_of_life: speaker.aside(),
            report: report_of_root(&spec, speaker),
        };
        let of_actor = handle.clone();
        let factory = move |life| Ok(Supervisor::nested(spec.clone(), life, &of_actor, Arc::new(|_| {})));
        Launcher::new(handle.slot.clone(), factory).launch_here(birth);
        handle
    }

    pub(super) fn nested(
        spec: SupervisorSpec,
        life: Life,
        handle: &SupervisorHandle,
        populate: Populate,
    ) -> Supervisor {
        Supervisor {
            spec,
            life,
            handle: handle.clone(),
            populate,
            history: History::default(),
            origin: Instant::now(),
            children: BTreeMap::new(),
            by_name: HashMap::new(),
            by_incarnation: HashMap::new(),
            next: 0,
            closing: None,
        }
    }

    fn start_child(&mut self, spec: ChildSpec, reply: Reply<u64>, ctx: &mut Context<Self>) {
        let supervisor = self.spec.name;
        if self.closing.is_some() {
            let _ = reply.send(Err(SupervisorError::ShuttingDown(supervisor)));
            return;
        }
        if self.by_name.contains_key(&spec.name) {
            let _ = reply.send(Err(SupervisorError::AlreadyExists { supervisor, child: spec.name }));
            return;
        }
        let order = self.next;
        self.next += 1;
        self.by_name.insert(spec.name.clone(), order);
        metrics::known(spec.class, supervisor);
        self.children.insert(order, Box::new(Child::new(spec, reply)));
        self.due(order, ctx);
    }

    fn stop_child(&mut self, name: &Arc<str>, reply: Reply<()>, ctx: &mut Context<Self>) {
        let Some((order, child)) = self.named(name) else {
            let _ = reply.send(Err(self.unknown(name)));
            return;
        };
        match &mut child.state {
            State::Due | State::Waiting => {
                self.forget(order, Exit::Stopped);
                let _ = reply.send(Ok(()));
            }
            State::Starting | State::Running => self.ask_to_stop(order, Then::Forget(vec![reply]), ctx),
            State::Stopping(Then::Forget(replies)) => replies.push(reply),
            State::Stopping(then @ Then::Restart) => *then = Then::Forget(vec![reply]),
        }
        self.advance(ctx);
    }

    fn inject_panic(&mut self, name: &Arc<str>, reply: Reply<()>) {
        if let Some((_, child)) = self.named(name) {
            child.control(Control::Panic("injected".to_owned()));
            let _ = reply.send(Ok(()));
            return;
        }
        let below = self.children.values().find_map(|child| {
            let rest = name.strip_prefix(&*child.spec.name)?.strip_prefix('/')?;
            Some((child.spec.subtree.as_ref()?.slot.address()?, rest))
        });
        match below {
            Some((supervisor, rest)) => supervisor.do_send(Request::InjectPanic(rest.into(), reply)),
            None => drop(reply.send(Err(self.unknown(name)))),
        }
    }

    /// A child's time has come.
    fn due(&mut self, order: Order, ctx: &mut Context<Self>) {
        match self.spec.strategy {
            Strategy::OneForOne => self.launch(order, ctx),
            Strategy::RestForOne => {
                self.children.entry(order).and_modify(|child| child.state = State::Due);
                self.advance(ctx);
            }
        }
    }

    fn launch(&mut self, order: Order, ctx: &mut Context<Self>) {
        let Some(child) = self.children.get_mut(&order) else { return };
        let me = ctx.address();
        let incarnation =
            child.launch(|incarnation| Report::new(move |news| me.do_send(Heard { incarnation, news })));
        debug!(actor = &*child.spec.name, incarnation, "launched");
        self.by_incarnation.insert(incarnation, order);
        self.watch(incarnation, None, ctx);
    }

    /// Does whatever the children's states call for.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        if self.closing.is_some() {
            self.close(ctx);
        } else if self.spec.strategy == Strategy::RestForOne {
            self.restart_rest(ctx);
        }
    }

    /// Takes doomed children down, the last first; when none is left, starts due ones, the first first.
    fn restart_rest(&mut self, ctx: &mut Context<Self>) {
        if let Some((&order, child)) = self.children.iter().rev().find(|(_, child)| child.doomed) {
            if child.alive() {
                self.ask_to_stop(order, Then::Restart, ctx);
            }
            return;
        }
        let next =
            self.children.iter().find(|(_, c)| !matches!(c.state, State::Running | State::Stopping(_)));
        if let Some((&order, child)) = next
            && matches!(child.state, State::Due)
        {
            self.launch(order, ctx);
        }
    }

    /// Takes all children down, and then itself.
    fn close(&mut self, ctx: &mut Context<Self>) {
        let orders: Vec<Order> = self.children.keys().rev().copied().collect();
        for order in orders {
            match self.children.get(&order).map(|child| &child.state) {
                None => continue,
                Some(State::Due | State::Waiting) => {
                    self.forget(order, Exit::Stopped);
                    continue;
                }
                Some(State::Starting | State::Running) => {
                    self.ask_to_stop(order, Then::Forget(Vec::new()), ctx);
                }
                Some(State::Stopping(_)) => {}
            }
            if !self.spec.stop_together {
                return;
            }
        }
        if self.children.is_empty() {
            match self.closing.as_mut().and_then(|closing| closing.escalation.take()) {
                Some(reason) => self.life.fail(reason),
                None => ctx.stop(),
            }
        }
    }

    fn ask_to_stop(&mut self, order: Order, then: Then, ctx: &mut Context<Self>) {
        let Some(child) = self.children.get_mut(&order) else { return };
        child.control(Control::Stop);
        child.state = State::Stopping(then);
        let within = child.spec.shutdown;
        if let Some(current) = child.current.as_ref().filter(|_| within != Duration::MAX) {
            let incarnation = current.incarnation;
            ctx.run_later(within, move |this, ctx| this.kill(incarnation, ctx));
        }
    }

    fn kill(&mut self, incarnation: u64, ctx: &mut Context<Self>) {
        let Some(child) = self.incarnated(incarnation) else { return };
        warn!(actor = &*child.spec.name, incarnation, "killed");
        child.spec.launch.revoke();
        child.control(Control::Kill);
        ctx.run_later(KILL_GRACE, move |this, ctx| this.abandon(incarnation, ctx));
    }

    fn abandon(&mut self, incarnation: u64, ctx: &mut Context<Self>) {
        let Some(child) = self.incarnated(incarnation) else { return };
        error!(actor = &*child.spec.name, incarnation, "abandoned: its thread is blocked");
        metrics::abandoned(child.spec.class);
        self.ended(incarnation, Exit::Killed, ctx);
    }

    /// Asks for a sign of life, and again each time the watchdog's period is over. `seen` is the progress one period
    /// ago.
    fn watch(&mut self, incarnation: u64, seen: Option<u64>, ctx: &mut Context<Self>) {
        let Some(child) = self.incarnated(incarnation).filter(|child| child.alive()) else { return };
        let (Some(within), Some(current)) = (child.spec.watchdog, &mut child.current) else { return };
        let progress = current.vitals.progress();
        if seen == Some(progress) {
            current.stuck = true;
            error!(actor = &*child.spec.name, incarnation, watchdog_ms = within.as_millis() as u64, "stuck");
            self.kill(incarnation, ctx);
            return;
        }
        child.control(Control::Heartbeat);
        ctx.run_later(within, move |this, ctx| this.watch(incarnation, Some(progress), ctx));
    }

    fn ended(&mut self, incarnation: u64, exit: Exit, ctx: &mut Context<Self>) {
        let Some(order) = self.by_incarnation.remove(&incarnation) else {
            debug!(incarnation, %exit, "an abandoned actor ended at last");
            return;
        };
        let Some(child) = self.children.get_mut(&order) else { return };
        let Some(current) = child.current.take() else { return };
        let exit = if current.stuck { Exit::Stuck } else { exit };
        child.ended(&exit);
        match mem::replace(&mut child.state, State::Waiting) {
            State::Stopping(Then::Forget(replies)) => {
                self.forget(order, exit);
                replies.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
            }
            State::Stopping(Then::Restart) => {
                child.doomed = false;
                child.state = State::Due;
            }
            _ if child.doomed => {
                child.doomed = false;
                child.state = State::Due;
            }
            _ if self.closing.is_some() => self.forget(order, exit),
            _ => self.judge(order, exit, current.since.elapsed(), ctx),
        }
        self.advance(ctx);
    }

    /// A child ended that was not asked to.
    fn judge(&mut self, order: Order, exit: Exit, lasted: Duration, ctx: &mut Context<Self>) {
        let now = self.origin.elapsed();
        let Some(child) = self.children.get_mut(&order) else { return };
        let run = Run { end: exit.end(), at: now, lasted };
        match decide(&child.spec.policy, &mut child.history, run, rand::random()) {
            Decision::Stop => {
                match exit.end() {
                    End::Normal => info!(actor = &*child.spec.name, %exit, "ended for good"),
                    End::Failed => warn!(actor = &*child.spec.name, %exit, "ended for good"),
                }
                self.forget(order, exit);
            }
            Decision::RestartAfter(delay) if self.history.admit(self.spec.intensity, now) => {
                let delay_ms = delay.as_millis() as u64;
                warn!(actor = &*child.spec.name, %exit, delay_ms, "to be restarted");
                metrics::restarted(child.spec.class);
                self.restart(order, delay, ctx);
            }
            Decision::RestartAfter(_) | Decision::Escalate => self.escalate(order, exit),
        }
    }

    fn restart(&mut self, order: Order, delay: Duration, ctx: &mut Context<Self>) {
        if self.spec.strategy == Strategy::RestForOne {
            for (_, later) in self.children.range_mut(order + 1..) {
                later.doomed = later.alive();
            }
        }
        if delay.is_zero() {
            self.due(order, ctx);
            return;
        }
        ctx.run_later(delay, move |this, ctx| {
            if this.children.get(&order).is_some_and(|child| matches!(child.state, State::Waiting)) {
                this.due(order, ctx);
            }
        });
    }

    fn escalate(&mut self, order: Order, exit: Exit) {
        let Some(child) = self.children.get(&order) else { return };
        let reason = format!("{} {exit}", child.spec.name);
        error!(supervisor = self.spec.name, actor = &*child.spec.name, %exit, "escalated");
        metrics::escalated(self.spec.name);
        self.closing.get_or_insert_default().escalation.get_or_insert(reason);
        self.forget(order, exit);
    }

    fn forget(&mut self, order: Order, exit: Exit) {
        let Some(mut child) = self.children.remove(&order) else { return };
        self.by_name.remove(&child.spec.name);
        child.ended(&exit);
        if let Some(tell) = child.spec.on_end.take() {
            tell(exit);
        }
    }

    fn named(&mut self, name: &Arc<str>) -> Option<(Order, &mut Child)> {
        let order = *self.by_name.get(name)?;
        Some((order, self.children.get_mut(&order)?))
    }

    fn incarnated(&mut self, incarnation: u64) -> Option<&mut Child> {
        self.children.get_mut(self.by_incarnation.get(&incarnation)?).map(Box::as_mut)
    }

    fn unknown(&self, name: &Arc<str>) -> SupervisorError {
        SupervisorError::NotFound { supervisor: self.spec.name, child: name.clone() }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        (self.populate)(&self.handle);
    }

    fn stopping(&mut self, ctx: &mut Self::Context) -> Running {
        self.closing.get_or_insert_default();
        self.advance(ctx);
        if self.children.is_empty() { Running::Stop } else { Running::Continue }
    }
}

impl Handler<Request> for Supervisor {
    type Result = ();

    fn handle(&mut self, request: Request, ctx: &mut Self::Context) {
        match request {
            Request::Start(spec, reply) => self.start_child(*spec, reply, ctx),
            Request::Stop(name, reply) => self.stop_child(&name, reply, ctx),
            Request::Children(reply) => {
                let _ = reply.send(Ok(self.children.values().map(|child| child.info()).collect()));
            }
            Request::Tree(reply) => {
                let infos = self.children.values().map(|child| (child.info(), child.spec.subtree.clone()));
                let _ = reply.send(Ok(infos.collect()));
            }
            Request::InjectPanic(name, reply) => self.inject_panic(&name, reply),
            Request::Shutdown(reply) => {
                self.closing.get_or_insert_default().waiting.push(reply);
                self.advance(ctx);
            }
        }
    }
}

impl Handler<Heard> for Supervisor {
    type Result = ();

    fn handle(&mut self, heard: Heard, ctx: &mut Self::Context) {
        match heard.news {
            News::Started => {
                let child = self.incarnated(heard.incarnation);
                if let Some(child) = child.filter(|child| matches!(child.state, State::Starting)) {
                    child.runs();
                    self.advance(ctx);
                }
            }
            News::Ended(exit) => self.ended(heard.incarnation, exit, ctx),
        }
    }
}

impl Drop for Supervisor {
    /// By now its address is withdrawn: whoever waits for its end may believe it.
    fn drop(&mut self) {
        let waiting = self.closing.take().map(|closing| closing.waiting).unwrap_or_default();
        if self.children.is_empty() {
            waiting.into_iter().for_each(|reply| drop(reply.send(Ok(()))));
        }
    }
}

/// A root has nobody above it but `on_escalate`. Keeps the root's control channel open.
fn report_of_root(spec: &SupervisorSpec, control: Speaker) -> Report {
    let (supervisor, on_escalate) = (spec.name, spec.on_escalate.clone());
    Report::new(move |news| {
        let _open = &control;
        let reason = match news {
            News::Started | News::Ended(Exit::Normal | Exit::Stopped) => return,
            // The whole system is going down, in order.
            News::Ended(Exit::Lost) => return,
            News::Ended(Exit::Failed(reason)) => reason,
            News::Ended(exit) => format!("the supervisor {exit}"),
        };
        on_escalate(Escalation { supervisor, reason });
    })
}
