//! Replication under test: tables for order and counts, a small world for safety and convergence.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    logic::{
        service_accounts::Given,
        testing::{Pods, controller, pod},
    },
    model::Kind,
};

fn read(object: &Arc<Object>) -> Controller {
    Controller::read(object, &object.parse().unwrap()).unwrap()
}

fn now() -> Timestamp {
    "2026-01-02T00:00:00Z".parse().unwrap()
}

fn own(name: &'static str) -> Pods<'static> {
    Pods { name, owner: Some("uid-web"), ..Pods::default() }
}

fn running(name: &'static str, node: &'static str, ready: &'static str) -> Pods<'static> {
    Pods { node: Some(node), phase: "Running", ready_since: Some(ready), ..own(name) }
}

fn names(pods: &[Arc<Object>]) -> Vec<&str> {
    pods.iter().map(|p| &*p.key.name).collect()
}

#[test]
fn scale_down_deletes_in_kubernetes_order() {
    let early = "2026-01-01T00:00:00Z";
    let late = "2026-01-01T12:00:00Z";
    // (what is said, goes first, stays)
    let table = [
        ("unassigned before assigned", own("a"), Pods { node: Some("n"), ..own("b") }),
        (
            "pending before running",
            Pods { node: Some("n"), ..own("a") },
            Pods { node: Some("n"), phase: "Running", ..own("b") },
        ),
        (
            "not ready before ready",
            Pods { node: Some("n"), phase: "Running", ..own("a") },
            running("b", "m", early),
        ),
        ("ready for a shorter time first", running("a", "n", late), running("b", "m", early)),
        ("more restarts first", Pods { restarts: 3, ..running("a", "n", early) }, running("b", "m", early)),
        ("newer first", Pods { created: late, ..running("a", "n", early) }, running("b", "m", early)),
    ];
    let rc = read(&controller("web", "web", 1, Revision(1)));
    for (what, first, stays) in table {
        let pods = [pod(&stays), pod(&first)];
        assert_eq!(names(&decide(&rc, pods.iter(), now()).delete), [first.name], "{what}");
    }
}

#[test]
fn scale_down_thins_out_the_fullest_node() {
    let early = "2026-01-01T00:00:00Z";
    let pods = [running("a", "m", early), running("b", "n", early), running("c", "n", early)];
    let pods: Vec<_> = pods.iter().map(pod).collect();
    let rc = read(&controller("web", "web", 2, Revision(1)));
    let gone = decide(&rc, pods.iter(), now()).delete;
    assert_eq!(gone.len(), 1);
    assert_ne!(&*gone[0].key.name, "a");
}

#[test]
fn ended_and_ending_pods_are_replaced() {
    let rc = read(&controller("web", "web", 3, Revision(1)));
    let pods = [
        pod(&Pods { phase: "Failed", ..own("a") }),
        pod(&Pods { phase: "Succeeded", ..own("b") }),
        pod(&Pods { deleting: true, ..own("c") }),
        pod(&own("d")),
    ];
    let plan = decide(&rc, pods.iter(), now());
    assert_eq!((plan.create, plan.delete.len(), plan.counts.replicas), (2, 0, 1));
}

#[test]
fn matching_orphans_are_adopted_and_strangers_released() {
    let rc = read(&controller("web", "web", 1, Revision(1)));
    let pods = [
        pod(&Pods { name: "orphan", ..Pods::default() }),
        pod(&Pods { app: "debug", ..own("stranger") }),
        pod(&Pods { name: "foreign", owner: Some("uid-other"), ..Pods::default() }),
    ];
    let plan = decide(&rc, pods.iter(), now());
    assert_eq!((names(&plan.adopt), names(&plan.release)), (vec!["orphan"], vec!["stranger"]));
    assert_eq!((plan.create, plan.delete.len()), (0, 0));
    let edits = edits(&rc, &plan, now()).unwrap();
    let owners: Vec<_> = edits
        .iter()
        .map(|e| match e {
            Edit::Replace(sealed, _) => sealed.facet.meta.controller().map(|o| o.uid.to_string()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(owners, [Some("uid-web".to_owned()), None]);
}

#[test]
fn a_controller_being_deleted_neither_creates_nor_adopts() {
    let mut rc = read(&controller("web", "web", 3, Revision(1)));
    rc.deleting = true;
    let pods = [pod(&Pods::default()), pod(&own("a"))];
    let plan = decide(&rc, pods.iter(), now());
    assert!(!plan.acts());
    assert_eq!(plan.counts.replicas, 1);
}

#[test]
fn a_pod_is_available_once_it_was_ready_long_enough() {
    let mut rc = read(&controller("web", "web", 2, Revision(1)));
    rc.min_ready_seconds = 60;
    let pods =
        [pod(&running("a", "n", "2026-01-01T23:58:00Z")), pod(&running("b", "n", "2026-01-01T23:59:30Z"))];
    let plan = decide(&rc, pods.iter(), now());
    assert_eq!(plan.counts, Counts { replicas: 2, fully_labeled: 2, ready: 2, available: 1 });
    assert_eq!(plan.recheck, Some("2026-01-02T00:00:30Z".parse().unwrap()));
}

#[test]
fn a_pod_that_was_ready_before_it_was_made_is_so_since_then() {
    let mut rc = read(&controller("web", "web", 2, Revision(1)));
    rc.min_ready_seconds = 60;
    let made_at = |name, created| pod(&Pods { created, ..running(name, "n", "2026-01-01T19:00:00Z") });
    let pods = [made_at("a", "2026-01-01T23:58:00Z"), made_at("b", "2026-01-01T23:59:30Z")];
    let plan = decide(&rc, pods.iter(), now());
    assert_eq!(plan.counts.available, 1);
    assert_eq!(plan.recheck, Some("2026-01-02T00:00:30Z".parse().unwrap()));
}

#[test]
fn after_the_clock_was_set_back_a_pod_is_available_once_it_was_ready_long_enough_from_then_on() {
    let mut rc = read(&controller("web", "web", 1, Revision(1)));
    rc.min_ready_seconds = 60;
    let before = pod(&running("a", "n", "2026-01-02T05:00:00Z"));
    let plan = decide(&rc, [&before].into_iter(), now());
    assert!(plan.acts());
    assert_eq!((names(&plan.restamp), plan.counts.available), (vec!["a"], 0), "not at once");
    let written = edits(&rc, &plan, now()).unwrap();
    let [Edit::Replace(sealed, _)] = &written[..] else { panic!("{written:?}") };
    let after = Arc::new(sealed.clone().at(Revision(9)));
    for (later_s, available) in [(0, 0), (59, 0), (60, 1)] {
        let plan = decide(&rc, [&after].into_iter(), now() + SignedDuration::from_secs(later_s));
        assert!(!plan.acts(), "it is written once");
        assert_eq!(plan.counts.available, available, "{later_s} s later");
    }
    // Who does not count from it leaves it alone, and so does who sends it away.
    rc.min_ready_seconds = 0;
    let plan = decide(&rc, [&before].into_iter(), now());
    assert!(!plan.acts() && plan.counts.available == 1);
    (rc.min_ready_seconds, rc.replicas) = (60, 0);
    let plan = decide(&rc, [&before].into_iter(), now());
    assert_eq!((plan.restamp.len(), plan.delete.len()), (0, 1));
}

#[test]
fn status_is_written_once_and_keeps_the_time_of_a_failure() {
    let object = controller("web", "web", 2, Revision(1));
    let counts = Counts { replicas: 1, ..Counts::default() };
    let failure = status::Failure { reason: "FailedCreate", message: "no".into() };
    let write = |object: &Arc<Object>, failure: Option<&status::Failure>, at: &str| {
        let typed = object.parse().unwrap();
        status::update(object, &typed, counts, failure, at.parse().unwrap()).unwrap().map(|e| match e {
            Edit::Replace(sealed, _) => Arc::new(sealed.at(Revision(2))),
            other => panic!("{other:?}"),
        })
    };
    let failed = write(&object, Some(&failure), "2026-01-01T00:00:00Z").unwrap();
    assert!(write(&failed, Some(&failure), "2026-01-01T01:00:00Z").is_none());
    let text = std::str::from_utf8(&failed.json).unwrap();
    assert!(text.contains("ReplicaFailure") && text.contains("\"observedGeneration\":1"), "{text}");
    let well = write(&failed, None, "2026-01-01T02:00:00Z").unwrap();
    assert!(!std::str::from_utf8(&well.json).unwrap().contains("ReplicaFailure"));
}

#[test]
fn pods_of_one_batch_have_free_names_and_uids_of_their_own() {
    let object = controller("web", "web", 2, Revision(1));
    let mut suffixes = ["taken", "aaaaa", "aaaaa", "bbbbb"].into_iter();
    let mut uid = 0;
    let mut chance = template::Chance {
        suffix: &mut || suffixes.next().unwrap().to_owned(),
        uid: &mut || {
            uid += 1;
            Uid::from(format!("u{uid}"))
        },
    };
    let rc = read(&object);
    let taken = |n: &str| n == "web-taken";
    let secret = v1::LocalObjectReference { name: "pull".into() };
    let given = Given { pull_secrets: vec![secret], ..Given::default() };
    let batch = template::Batch { count: 2, now: now(), given, taken: &taken };
    let pods = template::pods(&rc, &object.parse().unwrap(), &batch, &mut chance).unwrap();
    let made: Vec<_> = pods.iter().map(|p| (p.key.to_string(), p.facet.meta.uid.to_string())).collect();
    let expected = [("pods/default/web-aaaaa", "u1"), ("pods/default/web-bbbbb", "u2")];
    assert_eq!(made, expected.map(|(k, u)| (k.to_owned(), u.to_owned())));
    assert!(pods.iter().all(|p| p.facet.meta.controller().is_some_and(|o| o.uid == rc.uid)));
    for pod in &pods {
        let pod: serde_json::Value = serde_json::from_slice(pod.document()).unwrap();
        assert_eq!(pod["spec"]["imagePullSecrets"], serde_json::json!([{"name": "pull"}]), "its account's");
    }
}

/// A store, its past, and a controller that sees it late.
struct World {
    history: Vec<BTreeMap<Key, Arc<Object>>>,
    expectation: Expectation,
    next: u32,
}

impl World {
    fn new(replicas: i32) -> World {
        let rc = controller("web", "web", replicas, Revision(0));
        World {
            history: vec![BTreeMap::from([(rc.key.clone(), rc)])],
            expectation: Expectation::default(),
            next: 0,
        }
    }

    fn newest(&self) -> &BTreeMap<Key, Arc<Object>> {
        self.history.last().unwrap()
    }

    fn revision(&self) -> Revision {
        Revision(self.history.len() as u64 - 1)
    }

    fn change(&mut self, change: impl FnOnce(&mut BTreeMap<Key, Arc<Object>>, Revision)) {
        let mut state = self.newest().clone();
        change(&mut state, Revision(self.history.len() as u64));
        self.history.push(state);
    }

    fn pods(&self) -> Vec<Arc<Object>> {
        self.newest().values().filter(|o| o.key.kind == Kind::Pod).cloned().collect()
    }

    fn active(&self) -> usize {
        self.pods().iter().filter(|p| active(p).is_some() && p.facet.meta.controller().is_some()).count()
    }

    fn scale(&mut self, replicas: i32) {
        self.change(|state, revision| {
            let rc = controller("web", "web", replicas, revision);
            state.insert(rc.key.clone(), rc);
        });
    }

    /// A pod takes its next step in life.
    fn live(&mut self, which: usize, how: u8) {
        let pods = self.pods();
        let Some(old) = pods.get(which % pods.len().max(1)) else { return };
        // Nothing that ended or is ending lives again.
        if active(old).is_none() && how < 4 {
            return;
        }
        let owner = old.facet.meta.controller().map(|o| o.uid.to_string());
        let of = Pods { name: &old.key.name, owner: owner.as_deref(), node: Some("n"), ..Pods::default() };
        let early = Some("2026-01-01T00:00:00Z");
        self.change(|state, revision| {
            let new = match how {
                0 => pod(&Pods { phase: "Running", ready_since: early, revision, ..of }),
                1 => pod(&Pods { phase: "Failed", revision, ..of }),
                2 => pod(&Pods { deleting: true, revision, ..of }),
                3 => pod(&Pods { app: "debug", phase: "Running", revision, ..of }),
                _ => {
                    state.remove(&old.key);
                    return;
                }
            };
            state.insert(new.key.clone(), new);
        });
    }

    /// The controller decides on a picture `lag` revisions old and commits; a conflict makes nothing.
    fn sync(&mut self, lag: usize) -> bool {
        let at = self.history.len().saturating_sub(1 + lag);
        if !self.expectation.met_by(Revision(at as u64)) {
            return false;
        }
        let picture = self.history[at].clone();
        let rc = &picture[&Key::new(Kind::ReplicationController, "default", "web")];
        let controller = read(rc);
        let plan = decide(&controller, picture.values().filter(|o| o.key.kind == Kind::Pod), now());
        if !plan.acts() {
            return false;
        }
        let counts = |p: &&Arc<Object>| {
            active(p).is_some() && select::matches(&controller.selector, &*p.facet.meta.labels)
        };
        let (had, wanted) = (picture.values().filter(counts).count(), controller.replicas);
        assert!(plan.delete.len() <= had.saturating_sub(wanted), "deletes more than the surplus");
        assert!(plan.create == 0 || plan.delete.is_empty(), "creates and deletes at once");
        let mut edits = edits(&controller, &plan, now()).unwrap();
        if plan.create > 0 {
            let next = &mut self.next;
            let mut suffix = || {
                *next += 1;
                format!("{next:05}")
            };
            let mut n = 0;
            let seed = self.history.len();
            let mut uid = || {
                n += 1;
                Uid::from(format!("{seed}-{n}"))
            };
            let mut chance = template::Chance { suffix: &mut suffix, uid: &mut uid };
            let batch = template::Batch {
                count: plan.create,
                now: now(),
                given: Given::default(),
                taken: &|_| false,
            };
            let pods = template::pods(&controller, &rc.parse().unwrap(), &batch, &mut chance);
            edits.extend(pods.unwrap().into_iter().map(Edit::Create));
        }
        let holds =
            |base: &Arc<Object>| self.newest().get(&base.key).is_some_and(|o| o.revision == base.revision);
        let clean = edits.iter().all(|e| match e {
            Edit::Create(sealed) => !self.newest().contains_key(&sealed.key),
            Edit::Replace(_, base) | Edit::Remove(base) => holds(base),
        });
        if !clean {
            return true;
        }
        self.change(|state, revision| {
            for edit in edits {
                match edit {
                    Edit::Create(sealed) | Edit::Replace(sealed, _) => {
                        state.insert(sealed.key.clone(), Arc::new(sealed.at(revision)));
                    }
                    Edit::Remove(base) => {
                        state.remove(&base.key);
                    }
                }
            }
        });
        self.expectation.committed(self.revision());
        true
    }
}

#[derive(Clone, Debug)]
enum Step {
    Scale(i32),
    Live(usize, u8),
    Sync(usize),
}

fn step(lives: std::ops::Range<u8>) -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0_i32..6).prop_map(Step::Scale),
        4 => (any::<usize>(), lives).prop_map(|(w, h)| Step::Live(w, h)),
        5 => (0_usize..5).prop_map(Step::Sync),
    ]
}

fn run(world: &mut World, step: Step) {
    match step {
        Step::Scale(replicas) => world.scale(replicas),
        Step::Live(which, how) => world.live(which, how),
        Step::Sync(lag) => {
            world.sync(lag);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn late_pictures_never_lead_to_more_pods_than_were_asked_for(
        // Without relabelling: a pod that a user takes away and gives back may be one too many for a moment.
        steps in proptest::collection::vec(step(0..3), 1..40),
    ) {
        let mut world = World::new(3);
        let mut most = 3;
        for step in steps {
            if let Step::Scale(replicas) = step {
                most = most.max(replicas);
            }
            run(&mut world, step);
            prop_assert!(world.active() <= usize::try_from(most).unwrap());
        }
    }

    #[test]
    fn whatever_happened_before_the_controller_settles_at_its_replicas(
        steps in proptest::collection::vec(step(0..5), 1..40),
        replicas in 0_i32..8,
    ) {
        let mut world = World::new(3);
        for step in steps {
            run(&mut world, step);
        }
        world.scale(replicas);
        let mut rounds = 0;
        while world.sync(0) {
            rounds += 1;
            prop_assert!(rounds < 5, "does not settle");
        }
        prop_assert_eq!(world.active(), usize::try_from(replicas).unwrap());
        let rc = read(&world.newest()[&Key::new(Kind::ReplicationController, "default", "web")]);
        prop_assert!(!decide(&rc, world.pods().iter(), now()).acts(), "not idempotent");
    }
}
