//! Which of the programs in a container is a user's, whom the runtime calls by names that it makes up when they start.
//!
//! Owns: who has a program in which container (probes, hooks, users), and telling a new program's name by that nobody
//! else can have it. Invariants: a program that may be another's is nobody's as long as it may be; who hangs in one
//! container holds up nobody in another, and in its own for a moment only. Limits: programs that others than Troupe run
//! there (`crictl exec`) look like ours when they begin in the same moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::runtime::ContainerId;

/// How long a program may take to be seen among a container's; one that was not lives on without its user. As long the
/// next user of the same container waits for it.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// Each look has the runtime start a program of its own, so there are fewer of them the longer it takes.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const LOOK_SELDOM: Duration = Duration::from_secs(2);
/// How long a program may still be listed after the call that ran it has ended.
const LINGERS: Duration = Duration::from_millis(500);

/// Names of programs.
pub(super) type Names = HashSet<String>;

/// Who runs programs where.
#[derive(Default)]
pub(super) struct Programs {
    containers: Mutex<HashMap<ContainerId, Arc<Container>>>,
}

#[derive(Default)]
struct Container {
    /// Held by the user whose program is just being started.
    turn: Arc<AsyncMutex<()>>,
    roster: Mutex<Roster>,
}

impl Container {
    fn roster(&self) -> MutexGuard<'_, Roster> {
        // Each change is one call on the roster, so a panic elsewhere leaves nothing half done.
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Programs {
    /// Somebody has a program in a container until this is dropped.
    pub(super) fn begin(&self, id: &ContainerId) -> Running {
        let mut containers = self.containers.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is in those that only the map has.
        containers.retain(|_, container| Arc::strong_count(container) > 1);
        let container = Arc::clone(containers.entry(id.clone()).or_default());
        let ticket = container.roster().begin();
        Running { container, ticket }
    }
}

/// A program, or one that is being started.
pub(super) struct Running {
    container: Arc<Container>,
    ticket: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.container.roster().end(self.ticket);
    }
}

impl Running {
    /// Before a user's program is started: what there is in the container by then. `list` tells all programs' names; a
    /// runtime that does not gives `None`.
    pub(super) async fn expect(self, list: impl Future<Output = Option<Names>>) -> Expected {
        let turn = timeout(SEEN_WITHIN, Arc::clone(&self.container.turn).lock_owned()).await.ok();
        let mut others = self.container.roster().others(self.ticket);
        let before = list.await;
        others.extend(self.container.roster().others(self.ticket));
        let search = before.map(|before| self.container.roster().search(self.ticket, before, others));
        Expected { running: self, search, turn }
    }
}

/// A user's program that is being started.
pub(super) struct Expected {
    running: Running,
    search: Option<Search>,
    turn: Option<OwnedMutexGuard<()>>,
}

impl Expected {
    /// The program's name, once it is certain; `None` when it is over before, or was never seen. The program counts as
    /// running until what comes beside it is dropped.
    pub(super) async fn see<L: Future<Output = Option<Names>>>(
        self,
        list: impl Fn() -> L,
        over: CancellationToken,
    ) -> (Option<String>, Running) {
        let Expected { running, search, turn } = self;
        let name = match search {
            Some(search) => tokio::select! {
                name = find(&running, search, list, turn) => name,
                () = over.cancelled() => None,
            },
            None => None,
        };
        (name, running)
    }
}

async fn find<L: Future<Output = Option<Names>>>(
    running: &Running,
    mut search: Search,
    list: impl Fn() -> L,
    mut turn: Option<OwnedMutexGuard<()>>,
) -> Option<String> {
    let deadline = Instant::now() + SEEN_WITHIN;
    let mut pause = LOOK_AGAIN;
    loop {
        let listed = list().await?;
        let late = Instant::now() >= deadline;
        let sight = running.container.roster().look(&mut search, &listed);
        if late || sight != Sight::Nothing {
            // The next user can tell it from its own.
            drop(turn.take());
        }
        match sight {
            Sight::This(name) => return Some(name),
            Sight::Nothing if late => return None,
            Sight::Nothing => {}
            Sight::Unclear => pause = (pause * 2).clamp(LINGERS, LOOK_SELDOM),
        }
        sleep(pause).await;
    }
}

/// Who has programs in one container. Pure.
#[derive(Default)]
struct Roster {
    /// By ticket, the program's name if it is known.
    running: BTreeMap<u64, Option<String>>,
    next: u64,
    /// Counts beginnings and ends.
    changes: u64,
}

/// A look for a program of its own.
struct Search {
    ticket: u64,
    /// What was there before it.
    before: Names,
    /// Whose programs are among those.
    known: BTreeSet<u64>,
    /// At the last look.
    changes: u64,
}

/// What a look brought.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sight {
    /// No program is new.
    Nothing,
    /// One is, but it may be another's.
    Unclear,
    /// Here it is.
    This(String),
}

impl Roster {
    fn begin(&mut self) -> u64 {
        self.next += 1;
        self.changes += 1;
        self.running.insert(self.next, None);
        self.next
    }

    fn end(&mut self, ticket: u64) {
        self.changes += 1;
        self.running.remove(&ticket);
    }

    /// Who else has a program whose name is not known.
    fn others(&self, ticket: u64) -> BTreeSet<u64> {
        self.running.iter().filter(|(of, name)| **of != ticket && name.is_none()).map(|(of, _)| *of).collect()
    }

    fn unknown<'a>(&'a self, names: &'a Names) -> impl Iterator<Item = &'a String> {
        names.iter().filter(|name| !self.running.values().flatten().any(|of| of == *name))
    }

    /// Begins a search with what was listed before the program's start, and the others there were while that was listed.
    fn search(&self, ticket: u64, before: Names, others: BTreeSet<u64>) -> Search {
        // Each has one program at most: if there are as many as others, theirs are all there.
        let all = self.unknown(&before).count() >= others.len();
        Search { ticket, before, known: if all { others } else { BTreeSet::new() }, changes: self.changes }
    }

    fn look(&mut self, search: &mut Search, listed: &Names) -> Sight {
        let still = std::mem::replace(&mut search.changes, self.changes) == self.changes;
        let mut new = self.unknown(listed).filter(|name| !search.before.contains(*name)).cloned();
        let sight = match (new.next(), new.next()) {
            (None, _) => return Sight::Nothing,
            // Nobody came or went since the last look, and nobody is there who may yet start one.
            (Some(name), None) if still && self.others(search.ticket).is_subset(&search.known) => {
                Sight::This(name)
            }
            _ => Sight::Unclear,
        };
        drop(new);
        if let Sight::This(name) = &sight {
            self.running.insert(search.ticket, Some(name.clone()));
        }
        sight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Names {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn this(name: &str) -> Sight {
        Sight::This(name.to_owned())
    }

    #[test]
    fn a_program_is_a_users_only_when_it_can_be_nobody_elses() {
        let mut roster = Roster::default();
        let user = roster.begin();
        let mut search = roster.search(user, names(&["old"]), BTreeSet::new());
        assert_eq!(roster.look(&mut search, &names(&["old"])), Sight::Nothing);
        // A probe's came first.
        let probe = roster.begin();
        assert_eq!(roster.look(&mut search, &names(&["old", "probe"])), Sight::Unclear);
        assert_eq!(roster.look(&mut search, &names(&["old", "probe", "user"])), Sight::Unclear);
        roster.end(probe);
        // What has just ended is still listed.
        assert_eq!(roster.look(&mut search, &names(&["old", "probe"])), Sight::Unclear);
        assert_eq!(roster.look(&mut search, &names(&["old", "user"])), this("user"));
    }

    #[test]
    fn whose_program_was_there_before_is_in_nobodys_way() {
        let mut roster = Roster::default();
        let hook = roster.begin();
        let user = roster.begin();
        let others = roster.others(user);
        assert_eq!(others, BTreeSet::from([hook]));
        // The hook's is listed; or it is not, and may be the next that is new.
        let mut listed = roster.search(user, names(&["hook"]), others.clone());
        assert_eq!(roster.look(&mut listed, &names(&["hook", "user"])), this("user"));
        let mut roster = Roster::default();
        let (_, user) = (roster.begin(), roster.begin());
        let mut unlisted = roster.search(user, names(&[]), others);
        assert_eq!(roster.look(&mut unlisted, &names(&["hook"])), Sight::Unclear);
    }

    #[test]
    fn two_users_programs_are_told_apart() {
        let mut roster = Roster::default();
        let first = roster.begin();
        let mut of_first = roster.search(first, names(&[]), BTreeSet::new());
        let second = roster.begin();
        let others = roster.others(second);
        let mut of_second = roster.search(second, names(&["first"]), others);
        assert_eq!(roster.look(&mut of_second, &names(&["first", "second"])), this("second"));
        let both = names(&["first", "second"]);
        assert_eq!(roster.look(&mut of_first, &both), Sight::Unclear, "somebody came");
        assert_eq!(roster.look(&mut of_first, &both), this("first"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_in_one_container_holds_up_nobody_in_another() {
        let programs = Programs::default();
        let (a, b) = (ContainerId("a".to_owned()), ContainerId("b".to_owned()));
        let none = || async { Some(Names::new()) };
        // Its server of streams does not answer.
        let hanging = programs.begin(&a).expect(none()).await;
        let begun = Instant::now();
        drop(programs.begin(&b).expect(none()).await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        let beside = programs.begin(&a).expect(none()).await;
        assert!(begun.elapsed() >= SEEN_WITHIN);
        // What is new there may be the program of either, until one has gone.
        let one = || async { Some(names(&["one"])) };
        let over = CancellationToken::new();
        let unclear = timeout(Duration::from_secs(60), beside.see(one, over.clone())).await;
        assert!(unclear.is_err());
        drop(hanging);
        let alone = programs.begin(&a).expect(none()).await;
        assert_eq!(alone.see(one, over).await.0.as_deref(), Some("one"));
        assert_eq!(programs.begin(&b).container.roster().running.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_that_nobody_sees_or_that_is_over_is_not_waited_for() {
        let programs = Programs::default();
        let id = ContainerId("a".to_owned());
        let none = || async { Some(Names::new()) };
        let begun = Instant::now();
        let unseen = programs.begin(&id).expect(none()).await.see(none, CancellationToken::new()).await;
        assert!(unseen.0.is_none() && begun.elapsed() >= SEEN_WITHIN);
        let over = CancellationToken::new();
        over.cancel();
        assert_eq!(programs.begin(&id).expect(none()).await.see(none, over).await.0, None);
        // Another runtime than containerd does not tell.
        let silent = || async { None };
        let expected = programs.begin(&id).expect(silent()).await;
        assert_eq!(expected.see(silent, CancellationToken::new()).await.0, None);
    }
}
