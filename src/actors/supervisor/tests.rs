//! Each feature of supervision, on a paused clock: hours pass in milliseconds, and times can be compared exactly.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use actix::{Actor, ActorContext, Arbiter, AsyncContext, Context, Handler, Message, System, WrapFuture};
use futures_util::FutureExt;
use tokio::{sync::watch, time::Instant};

use super::*;
use crate::{
    logic::supervision::{Backoff, Restart},
    messages::{SendFailed, Slot},
};

mod walk;

/// Longer than anything here takes on the paused clock.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn paused<F: Future<Output = ()>>(test: impl FnOnce(Journal) -> F) {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    System::with_tokio_rt(runtime).block_on(async { test(Journal::new()).await });
}

/// With a real clock, for tests with several threads.
fn unpaused<F: Future<Output = ()>>(test: impl FnOnce(Journal) -> F) {
    System::new().block_on(async { test(Journal::new()).await });
}

/// What happened, in order.
#[derive(Clone)]
struct Journal {
    lines: Arc<watch::Sender<Vec<String>>>,
    /// How many structs of each name exist, and the most there ever were.
    alive: Arc<Mutex<HashMap<String, (i32, i32)>>>,
    origin: Instant,
}

impl Journal {
    fn new() -> Journal {
        Journal {
            lines: Arc::new(watch::channel(Vec::new()).0),
            alive: Arc::default(),
            origin: Instant::now(),
        }
    }

    fn note(&self, line: impl Into<String>) {
        self.lines.send_modify(|lines| lines.push(line.into()));
    }

    fn alive(&self, name: &str, change: i32) {
        let mut alive = self.alive.lock().unwrap();
        let (now, most) = alive.entry(name.to_owned()).or_default();
        *now += change;
        *most = (*now).max(*most);
    }

    fn lines(&self) -> Vec<String> {
        self.lines.borrow().clone()
    }

    fn take(&self) -> Vec<String> {
        let mut taken = Vec::new();
        self.lines.send_modify(|lines| taken = std::mem::take(lines));
        taken
    }

    /// Waits until `line` was noted `times` times.
    async fn saw(&self, line: &str, times: usize) {
        let mut lines = self.lines.subscribe();
        let seen = lines.wait_for(|lines| lines.iter().filter(|l| *l == line).count() >= times);
        if tokio::time::timeout(PATIENCE, seen).await.is_err() {
            panic!("not seen {times} times: {line:?} in {:?}", self.lines());
        }
    }

    fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// An actor that does as it is told and notes its life.
struct Subject {
    life: Life,
    journal: Journal,
    handled: u32,
    panic_when_dropped: bool,
}

impl Subject {
    fn new(life: Life, journal: &Journal) -> Subject {
        journal.alive(life.name(), 1);
        Subject { life, journal: journal.clone(), handled: 0, panic_when_dropped: false }
    }

    fn note(&self, what: &str) {
        self.journal.note(format!("{} {what}", self.life.name()));
    }
}

impl Actor for Subject {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.note("started");
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.note("stopped");
        if self.handled > 0 {
            self.journal.note(self.handled.to_string());
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.journal.alive(self.life.name(), -1);
        self.note("dropped");
        assert!(!self.panic_when_dropped, "in drop");
    }
}

#[derive(Message, Clone, Copy, Debug)]
#[rtype(result = "()")]
enum Do {
    Panic,
    PanicInFuture,
    PanicInDrop,
    Stop,
    Fail,
    FailAndStop,
    /// `ctx.wait` for ever.
    Hang,
    /// `ctx.wait` for so many seconds, with a beat each.
    WorkLong(u64),
    /// Block the thread for so long.
    Block(Duration),
    Count,
    /// Send itself the same again, for ever.
    Flood,
    /// Note something in a second.
    NoteLater,
}

impl Handler<Do> for Subject {
    type Result = ();

    fn handle(&mut self, order: Do, ctx: &mut Context<Self>) {
        match order {
            Do::Panic => panic!("in a handler"),
            Do::PanicInFuture => {
                ctx.spawn(async { panic!("in a future") }.into_actor(self));
            }
            Do::PanicInDrop => {
                self.panic_when_dropped = true;
                ctx.stop();
            }
            Do::Stop => ctx.stop(),
            Do::Fail => self.life.fail("no more"),
            Do::FailAndStop => {
                self.life.fail("no more");
                ctx.stop();
            }
            Do::Hang => ctx.wait(std::future::pending().into_actor(self)),
            Do::WorkLong(secs) => {
                let pulse = self.life.pulse();
                let work = async move {
                    for _ in 0..secs {
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        pulse.beat();
                    }
                };
                ctx.wait(work.into_actor(self));
            }
            Do::Block(time) => std::thread::sleep(time),
            Do::Count => self.handled += 1,
            Do::Flood => ctx.address().do_send(Do::Flood),
            Do::NoteLater => {
                ctx.run_later(Duration::from_secs(1), |this, _| this.note("timer"));
            }
        }
    }
}

#[derive(Message)]
#[rtype(result = "u32")]
struct Handled;

impl Handler<Handled> for Subject {
    type Result = u32;

    fn handle(&mut self, _: Handled, _: &mut Context<Self>) -> u32 {
        self.handled
    }
}

fn subject(name: &str, slot: &Slot<Subject>, journal: &Journal) -> ChildSpec {
    let journal = journal.clone();
    ChildSpec::new(name, slot, move |life| Ok(Subject::new(life, &journal))).backoff(Backoff::NONE)
}

fn tell(slot: &Slot<Subject>, order: Do) {
    slot.port::<Do>().tell(order).unwrap();
}

/// A root whose escalation is noted.
fn root(journal: &Journal, spec: SupervisorSpec) -> SupervisorHandle {
    let journal = journal.clone();
    Supervisor::start(
        spec.on_escalate(move |e| journal.note(format!("{} gave up: {}", e.supervisor, e.reason))),
    )
}

async fn info(supervisor: &SupervisorHandle, name: &str) -> ChildInfo {
    let children = supervisor.children().await.unwrap();
    children.into_iter().find(|child| &*child.name == name).unwrap()
}

/// Starts `names` in this order, each with its slot.
async fn start(
    supervisor: &SupervisorHandle,
    journal: &Journal,
    names: &[&'static str],
) -> Vec<Slot<Subject>> {
    let mut slots = Vec::new();
    for name in names {
        let slot = Slot::new(name);
        supervisor.start_child(subject(name, &slot, journal)).await.unwrap();
        slots.push(slot);
    }
    slots
}

#[test]
fn each_restart_class_answers_each_kind_of_end() {
    const AGAIN: Option<&str> = None;
    for (restart, order, ended_for_good) in [
        (Restart::Permanent, Do::Stop, AGAIN),
        (Restart::Permanent, Do::Panic, AGAIN),
        (Restart::Permanent, Do::PanicInFuture, AGAIN),
        (Restart::Permanent, Do::PanicInDrop, AGAIN),
        (Restart::Permanent, Do::Fail, AGAIN),
        (Restart::Transient, Do::Stop, Some("ended normally")),
        (Restart::Transient, Do::Panic, AGAIN),
        (Restart::Transient, Do::PanicInFuture, AGAIN),
        (Restart::Transient, Do::PanicInDrop, AGAIN),
        (Restart::Transient, Do::Fail, AGAIN),
        (Restart::Transient, Do::FailAndStop, AGAIN),
        (Restart::Temporary, Do::Stop, Some("ended normally")),
        (Restart::Temporary, Do::Panic, Some("panicked: in a handler")),
        (Restart::Temporary, Do::PanicInFuture, Some("panicked: in a future")),
        (Restart::Temporary, Do::PanicInDrop, Some("panicked: in drop")),
        (Restart::Temporary, Do::Fail, Some("failed: no more")),
        (Restart::Temporary, Do::FailAndStop, Some("failed: no more")),
    ] {
        paused(|journal| async move {
            let root = root(&journal, SupervisorSpec::new("root"));
            let slot = Slot::new("subject");
            let ends = journal.clone();
            let spec = subject("a", &slot, &journal)
                .restart(restart)
                .on_end(move |exit| ends.note(exit.to_string()));
            root.start_child(spec).await.unwrap();
            tell(&slot, order);
            match ended_for_good {
                None => {
                    journal.saw("a started", 2).await;
                    assert_eq!(info(&root, "a").await.restarts, 1, "{restart:?} {order:?}");
                }
                Some(exit) => {
                    journal.saw(exit, 1).await;
                    assert_eq!(root.children().await.unwrap(), [], "{restart:?} {order:?}");
                    assert!(slot.address().is_none());
                }
            }
            root.shutdown().await.unwrap();
        });
    }
}

#[test]
fn a_stop_is_orderly_and_frees_the_name() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slots = start(&root, &journal, &["a"]).await;
        let again = root.start_child(subject("a", &slots[0], &journal)).await;
        assert_eq!(again.unwrap_err().to_string(), "root already has a child a");
        root.stop_child("a").await.unwrap();
        assert_eq!(journal.take(), ["a started", "a stopped", "a dropped"]);
        assert_eq!(root.stop_child("a").await.unwrap_err().to_string(), "root has no child a");
        root.start_child(subject("a", &slots[0], &journal)).await.unwrap();
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_factory_error_is_answered_and_tried_again_after_the_backoff() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let (slot, tries, of_factory) = (Slot::new("a"), AtomicU32::new(0), journal.clone());
        let spec = ChildSpec::new("a", &slot, move |life| {
            if tries.fetch_add(1, Ordering::Relaxed) < 2 {
                return Err(std::io::Error::other("disk is on fire").into());
            }
            Ok(Subject::new(life, &of_factory))
        });
        let spec = spec.backoff(Backoff { immediate: 0, jitter: 0.0, ..Backoff::ACTOR });
        let error = root.start_child(spec).await.unwrap_err();
        assert_eq!(error.to_string(), "a could not start: disk is on fire");
        assert_eq!(info(&root, "a").await.state, ChildState::Waiting);
        journal.saw("a started", 1).await;
        assert_eq!(journal.elapsed().as_millis() / 10, 15, "50 ms and 100 ms");
        let info = info(&root, "a").await;
        assert_eq!(
            (info.restarts, info.last_error.as_deref()),
            (2, Some("could not start: disk is on fire"))
        );
        root.shutdown().await.unwrap();
    });
}

#[test]
fn delays_grow_and_are_forgotten_after_a_long_run() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = Slot::new("a");
        let spec = subject("a", &slot, &journal).backoff(Backoff::CRASH_LOOP);
        root.start_child(spec).await.unwrap();
        let mut starts = 1;
        for (run, delay) in [(1, 0), (1, 10), (1, 20), (600, 0), (1, 10)] {
            tokio::time::sleep(Duration::from_secs(run)).await;
            let before = Instant::now();
            tell(&slot, Do::Panic);
            starts += 1;
            journal.saw("a started", starts).await;
            assert_eq!(before.elapsed().as_secs(), delay, "start {starts}");
        }
        root.shutdown().await.unwrap();
    });
}

#[test]
fn jitter_shortens_delays_by_chance() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root").intensity(1000, ms(1)));
        let slot = Slot::new("a");
        let backoff = Backoff { immediate: 0, factor: 1, jitter: 0.5, ..Backoff::CRASH_LOOP };
        root.start_child(subject("a", &slot, &journal).never_escalate().backoff(backoff)).await.unwrap();
        let mut delays = Vec::new();
        for starts in 2..30 {
            let before = Instant::now();
            tell(&slot, Do::Panic);
            journal.saw("a started", starts).await;
            delays.push(before.elapsed());
        }
        assert!(delays.iter().all(|d| (ms(5_000)..=ms(10_002)).contains(d)), "{delays:?}");
        assert!(delays.iter().max().unwrap().abs_diff(*delays.iter().min().unwrap()) > ms(100), "{delays:?}");
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_child_that_fails_too_often_makes_its_supervisor_stop_the_others_and_give_up() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slots = start(&root, &journal, &["a", "b"]).await;
        let slot = Slot::new("c");
        root.start_child(subject("c", &slot, &journal).intensity(2, Duration::from_secs(5))).await.unwrap();
        for starts in [2, 3] {
            tell(&slot, Do::Panic);
            journal.saw("c started", starts).await;
        }
        journal.take();
        tell(&slot, Do::Panic);
        let reason = "root gave up: c panicked: in a handler";
        journal.saw(reason, 1).await;
        assert_eq!(journal.take(), ["c dropped", "b stopped", "b dropped", "a stopped", "a dropped", reason]);
        assert_eq!(root.children().await.unwrap_err(), SupervisorError::Down("root"));
        assert!(slots.iter().all(|slot| slot.address().is_none()));
    });
}

#[test]
fn restarts_spread_over_more_than_the_period_are_no_reason_to_give_up() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root").intensity(2, Duration::from_secs(10)));
        let slot = Slot::new("a");
        root.start_child(subject("a", &slot, &journal).intensity(1, Duration::from_secs(5))).await.unwrap();
        for starts in 2..20 {
            tokio::time::sleep(ms(5_001)).await;
            tell(&slot, Do::Panic);
            journal.saw("a started", starts).await;
        }
        root.shutdown().await.unwrap();
    });
}

#[test]
fn children_that_together_fail_too_often_make_their_supervisor_give_up() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root").intensity(2, Duration::from_secs(5)));
        let slots = start(&root, &journal, &["a", "b", "c"]).await;
        for slot in &slots {
            tell(slot, Do::Panic);
        }
        journal.saw("root gave up: c panicked: in a handler", 1).await;
    });
}

#[test]
fn one_for_one_leaves_the_others_alone() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slots = start(&root, &journal, &["a", "b", "c"]).await;
        journal.take();
        tell(&slots[1], Do::Panic);
        journal.saw("b started", 1).await;
        assert_eq!(journal.take(), ["b dropped", "b started"]);
        root.shutdown().await.unwrap();
        let order = ["c stopped", "c dropped", "b stopped", "b dropped", "a stopped", "a dropped"];
        assert_eq!(journal.take(), order);
    });
}

#[test]
fn rest_for_one_stops_later_children_in_reverse_and_starts_them_again_in_order() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root").strategy(Strategy::RestForOne));
        let slots = start(&root, &journal, &["a", "b", "c", "d"]).await;
        let before = [info(&root, "a").await, info(&root, "d").await];
        journal.take();
        tell(&slots[1], Do::Panic);
        journal.saw("d started", 1).await;
        let order = ["b dropped", "d stopped", "d dropped", "c stopped", "c dropped"];
        assert_eq!(journal.lines()[..5], order);
        assert_eq!(journal.take()[5..], ["b started", "c started", "d started"]);
        assert_eq!(info(&root, "a").await, before[0]);
        assert!(info(&root, "d").await.incarnation > before[1].incarnation);
        assert_eq!(info(&root, "d").await.restarts, 0, "it did not fail");
        root.shutdown().await.unwrap();
    });
}

#[test]
fn rest_for_one_starts_no_child_before_the_earlier_ones_run() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root").strategy(Strategy::RestForOne));
        let (first, second) = (Slot::new("a"), Slot::new("b"));
        let (tries, of_factory) = (AtomicU32::new(0), journal.clone());
        let slow = ChildSpec::new("a", &first, move |life| {
            of_factory.note("a tried");
            if tries.fetch_add(1, Ordering::Relaxed) < 2 {
                return Err("not yet".into());
            }
            Ok(Subject::new(life, &of_factory))
        });
        root.start_child(slow).detach();
        root.start_child(subject("b", &second, &journal)).await.unwrap();
        assert_eq!(journal.take(), ["a tried", "a tried", "a tried", "a started", "b started"]);
        root.shutdown().await.unwrap();
    });
}

struct PanicsAtStart;

impl Actor for PanicsAtStart {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        panic!("in started");
    }
}

#[test]
fn panics_in_the_factory_and_in_started_are_heard() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = Slot::<PanicsAtStart>::new("a");
        let spec = ChildSpec::new("a", &slot, |_| Ok(PanicsAtStart)).restart(Restart::Temporary);
        assert_eq!(root.start_child(spec).await.unwrap_err().to_string(), "a panicked: in started");
        let spec = ChildSpec::new("a", &slot, |_| panic!("in factory")).restart(Restart::Temporary);
        assert_eq!(root.start_child(spec).await.unwrap_err().to_string(), "a panicked: in factory");
        root.shutdown().await.unwrap();
    });
}

#[test]
fn an_injected_panic_is_like_any_other() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let _slots = start(&root, &journal, &["a"]).await;
        root.inject_panic("a").await.unwrap();
        journal.saw("a started", 2).await;
        assert_eq!(info(&root, "a").await.last_error.as_deref(), Some("panicked: injected"));
        assert!(root.inject_panic("z").await.is_err());
        root.shutdown().await.unwrap();
    });
}

#[test]
fn the_address_is_withdrawn_at_death_and_published_again_at_restart() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = Slot::new("subject");
        root.start_child(subject("a", &slot, &journal).backoff(Backoff { immediate: 0, ..Backoff::ACTOR }))
            .await
            .unwrap();
        let port = slot.port::<Handled>();
        assert_eq!(port.ask(Handled, PATIENCE).await, Ok(0));
        let first = info(&root, "a").await.incarnation;
        let old = slot.address().unwrap();
        tell(&slot, Do::Panic);
        assert_eq!(port.ask(Handled, PATIENCE).await, Err(SendFailed::Died("subject")));
        assert_eq!(port.ask(Handled, PATIENCE).await, Err(SendFailed::Down("subject")));
        assert!(!old.connected());
        journal.saw("a started", 2).await;
        assert_eq!(port.ask(Handled, PATIENCE).await, Ok(0));
        let second = info(&root, "a").await.incarnation;
        root.stop_child("a").await.unwrap();
        root.start_child(subject("a", &slot, &journal)).await.unwrap();
        assert!(first < second && second < info(&root, "a").await.incarnation);
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_stuck_actor_is_killed_and_restarted() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = Slot::new("a");
        root.start_child(subject("a", &slot, &journal).watchdog(Duration::from_secs(3))).await.unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(info(&root, "a").await.restarts, 0, "an idle actor is not stuck");
        let before = Instant::now();
        tell(&slot, Do::Hang);
        journal.saw("a started", 2).await;
        assert!((3..=6).contains(&before.elapsed().as_secs()), "{:?}", before.elapsed());
        assert_eq!(info(&root, "a").await.last_error.as_deref(), Some("stuck"));
        assert_eq!(journal.take(), ["a started", "a dropped", "a started"]);
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_watchdog_bears_with_long_work_that_beats() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = Slot::new("a");
        root.start_child(subject("a", &slot, &journal).watchdog(Duration::from_secs(3))).await.unwrap();
        tell(&slot, Do::WorkLong(100));
        assert_eq!(slot.port::<Handled>().ask(Handled, PATIENCE).await, Ok(0));
        assert_eq!(journal.elapsed().as_secs(), 100);
        assert_eq!(info(&root, "a").await.restarts, 0);
        root.shutdown().await.unwrap();
    });
}

#[test]
fn an_actor_that_blocks_its_own_thread_is_replaced_on_another() {
    unpaused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = Slot::new("a");
        root.start_child(subject("a", &slot, &journal).own_arbiter().watchdog(ms(50))).await.unwrap();
        let blocked_for = super::tree::KILL_GRACE * 2;
        tell(&slot, Do::Block(blocked_for));
        journal.saw("a started", 2).await;
        assert!(journal.elapsed() >= super::tree::KILL_GRACE, "it was given the time to end");
        assert_eq!(info(&root, "a").await.last_error.as_deref(), Some("stuck"));
        assert_eq!(journal.take(), ["a started", "a started"]);
        let second = slot.address().unwrap();
        journal.saw("a dropped", 1).await;
        assert_eq!(slot.address().unwrap(), second, "the late end of the first changes nothing");
        assert_eq!(info(&root, "a").await.restarts, 1);
        root.shutdown().await.unwrap();
    });
}

#[test]
fn the_end_of_an_arbiter_is_heard_as_the_loss_of_its_actors() {
    unpaused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let (slot, arbiter, ends) = (Slot::new("a"), Arbiter::new(), journal.clone());
        let spec = subject("a", &slot, &journal).restart(Restart::Temporary).arbiter(arbiter.handle());
        root.start_child(spec.on_end(move |exit| ends.note(exit.to_string()))).await.unwrap();
        arbiter.stop();
        journal.saw("its thread ended", 1).await;
        assert_eq!(journal.take(), ["a started", "a dropped", "its thread ended"]);
        assert!(slot.address().is_none());

        arbiter.join().unwrap();
        let arbiter = Arbiter::new();
        let dead = arbiter.handle();
        arbiter.stop();
        arbiter.join().unwrap();
        let spec = subject("a", &slot, &journal).restart(Restart::Temporary).arbiter(dead);
        assert_eq!(root.start_child(spec).await.unwrap_err().to_string(), "a its thread ended");
        root.shutdown().await.unwrap();
    });
}

/// Takes 3 s to stop.
struct SlowToStop {
    journal: Journal,
    asked: bool,
}

impl Actor for SlowToStop {
    type Context = Context<Self>;

    fn stopping(&mut self, ctx: &mut Self::Context) -> actix::Running {
        if self.asked {
            return actix::Running::Stop;
        }
        self.asked = true;
        ctx.run_later(Duration::from_secs(3), |_, ctx| ctx.stop());
        actix::Running::Continue
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.journal.note("stopped slowly");
    }
}

fn slow(name: &str, journal: &Journal) -> ChildSpec {
    let journal = journal.clone();
    let slot = Slot::new("slow");
    ChildSpec::new(name, &slot, move |_| Ok(SlowToStop { journal: journal.clone(), asked: false }))
}

#[test]
fn a_stop_may_take_its_time_but_no_more() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        for (within, expected_ms, stopped) in [(ms(4_000), 3_000, 1), (ms(2_000), 2_000, 0)] {
            root.start_child(slow("a", &journal).shutdown(within)).await.unwrap();
            let before = Instant::now();
            root.stop_child("a").await.unwrap();
            assert_eq!(before.elapsed().as_millis() / 10, expected_ms / 10);
            assert_eq!(journal.take().len(), stopped);
        }
        root.shutdown().await.unwrap();
    });
}

#[test]
fn children_stop_one_after_the_other_unless_they_may_stop_together() {
    for (spec, expected_secs) in
        [(SupervisorSpec::new("root"), 12), (SupervisorSpec::new("root").stop_together(), 3)]
    {
        paused(|journal| async move {
            let root = root(&journal, spec);
            for name in ["a", "b", "c", "d"] {
                root.start_child(slow(name, &journal)).await.unwrap();
            }
            let before = Instant::now();
            let (one, other) = (root.shutdown(), root.shutdown());
            let late = root.start_child(slow("e", &journal)).await;
            assert_eq!(late, Err(SupervisorError::ShuttingDown("root")));
            one.await.unwrap();
            other.await.unwrap();
            assert_eq!(before.elapsed().as_secs(), expected_secs);
            assert_eq!(root.shutdown().await, Err(SupervisorError::Down("root")));
        });
    }
}

#[test]
fn a_stop_does_not_queue_behind_a_full_mailbox() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = start(&root, &journal, &["a"]).await.remove(0);
        (0..100_000).for_each(|_| tell(&slot, Do::Count));
        let answered = slot.port::<Handled>();
        let mut last = pin!(answered.ask(Handled, PATIENCE));
        assert!((&mut last).now_or_never().is_none());
        // Let it begin with what is queued, and only then ask it to stop.
        tokio::task::yield_now().await;
        root.stop_child("a").await.unwrap();
        let journal = journal.take();
        assert_eq!(journal[..2], ["a started", "a stopped"]);
        let handled: u32 = journal[2].parse().unwrap();
        assert!((1..2_000).contains(&handled), "{handled}");
        assert_eq!(last.await, Err(SendFailed::Died("a")));
        root.shutdown().await.unwrap();
    });
}

#[test]
fn an_actor_under_endless_load_still_hears_timers_heartbeats_and_its_stop() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = Slot::new("a");
        root.start_child(subject("a", &slot, &journal).watchdog(ms(100))).await.unwrap();
        tell(&slot, Do::NoteLater);
        tell(&slot, Do::Flood);
        // The clock cannot jump while the flood keeps the thread busy.
        for _ in 0..20 {
            tokio::task::yield_now().await;
            tokio::time::advance(ms(100)).await;
        }
        assert_eq!(slot.port::<Handled>().ask(Handled, PATIENCE).await, Ok(0));
        assert_eq!(info(&root, "a").await.restarts, 0);
        root.stop_child("a").await.unwrap();
        assert_eq!(journal.take(), ["a started", "a timer", "a stopped", "a dropped"]);
        root.shutdown().await.unwrap();
    });
}

/// root → branch → leaf; the branch gives up after one restart within 5 s.
async fn tree(journal: &Journal) -> (SupervisorHandle, SupervisorHandle, Slot<Subject>) {
    let root = root(journal, SupervisorSpec::new("root").intensity(1, Duration::from_secs(60)));
    let (branch, slot) = (SupervisorHandle::new("branch"), Slot::new("leaf"));
    let (leaf, of_branch) = (slot.clone(), journal.clone());
    let spec = SupervisorSpec::new("branch").intensity(1, Duration::from_secs(5));
    root.start_child(ChildSpec::supervisor(spec, &branch, move |branch| {
        branch.start_child(subject("leaf", &leaf, &of_branch)).detach();
    }))
    .await
    .unwrap();
    journal.saw("leaf started", 1).await;
    (root, branch, slot)
}

#[test]
fn a_supervisor_that_gives_up_is_restarted_by_its_own_with_all_its_children() {
    paused(|journal| async move {
        let (root, branch, slot) = tree(&journal).await;
        branch.start_child(subject("guest", &Slot::new("guest"), &journal)).await.unwrap();
        for starts in [2, 3] {
            tell(&slot, Do::Panic);
            journal.saw("leaf started", starts).await;
        }
        let seen = info(&root, "branch").await;
        assert_eq!(seen.last_error.as_deref(), Some("failed: leaf panicked: in a handler"));
        assert_eq!((info(&branch, "leaf").await.restarts, branch.children().await.unwrap().len()), (0, 1));

        for starts in [4, 5] {
            tell(&slot, Do::Panic);
            if starts == 4 {
                journal.saw("leaf started", starts).await;
            }
        }
        let reason = "root gave up: branch failed: leaf panicked: in a handler";
        journal.saw(reason, 1).await;
        assert_eq!(branch.children().await, Err(SupervisorError::Down("branch")));
    });
}

#[test]
fn a_supervisor_that_panics_takes_its_children_down_and_comes_back() {
    paused(|journal| async move {
        let (root, branch, slot) = tree(&journal).await;
        root.inject_panic("branch").await.unwrap();
        journal.saw("leaf started", 2).await;
        journal.saw("leaf dropped", 1).await;
        assert!(slot.address().is_some());
        assert_eq!(branch.children().await.unwrap().len(), 1);
        journal.take();
        root.shutdown().await.unwrap();
        assert_eq!(journal.take(), ["leaf stopped", "leaf dropped"]);
    });
}

#[test]
fn descendants_are_listed_and_reached_by_their_paths() {
    paused(|journal| async move {
        let (root, _branch, _slot) = tree(&journal).await;
        let names =
            |tree: Vec<ChildInfo>| tree.iter().map(|child| child.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(root.tree().await), ["branch", "branch/leaf"]);
        root.inject_panic("branch/leaf").await.unwrap();
        journal.saw("leaf started", 2).await;
        assert_eq!(root.tree().await[1].restarts, 1);
        let error = root.inject_panic("branch/twig").await.unwrap_err();
        assert_eq!(error.to_string(), "branch has no child twig");
        root.shutdown().await.unwrap();
    });
}

#[test]
fn a_child_that_waits_for_its_restart_can_be_stopped() {
    paused(|journal| async move {
        let root = root(&journal, SupervisorSpec::new("root"));
        let slot = Slot::new("a");
        let backoff = Backoff { immediate: 0, ..Backoff::CRASH_LOOP };
        root.start_child(subject("a", &slot, &journal).backoff(backoff)).await.unwrap();
        tell(&slot, Do::Panic);
        journal.saw("a dropped", 1).await;
        assert_eq!(info(&root, "a").await.state, ChildState::Waiting);
        root.stop_child("a").await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(journal.take(), ["a started", "a dropped"]);
        root.shutdown().await.unwrap();
    });
}
