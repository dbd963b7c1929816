//! Whatever is asked of a supervisor, in whatever order: no child lives twice, and none outlives the shutdown.

use proptest::prelude::*;

use super::{Do, Journal, PATIENCE, ms, paused, root, subject};
use crate::{
    actors::supervisor::{self, SupervisorSpec},
    logic::supervision::{Backoff, Intensity, Restart},
    messages::Slot,
};

#[derive(Clone, Debug)]
enum Step {
    Start(usize),
    Stop(usize),
    Tell(usize, Do),
    Inject(usize),
    Pass(std::time::Duration),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    const CHILDREN: std::ops::Range<usize> = 0..4;
    let order = prop_oneof![
        Just(Do::Panic),
        Just(Do::PanicInDrop),
        Just(Do::Stop),
        Just(Do::Fail),
        Just(Do::Hang),
        Just(Do::Count),
    ];
    let step = prop_oneof![
        2 => CHILDREN.prop_map(Step::Start),
        1 => CHILDREN.prop_map(Step::Stop),
        2 => (CHILDREN, order).prop_map(|(child, order)| Step::Tell(child, order)),
        1 => CHILDREN.prop_map(Step::Inject),
        2 => (0..3_000u64).prop_map(|time| Step::Pass(ms(time))),
    ];
    proptest::collection::vec(step, 0..40)
}

/// Does the steps, then shuts down.
async fn walk(journal: Journal, strategy: supervisor::Strategy, steps: Vec<Step>) {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let root = root(&journal, SupervisorSpec::new("root").strategy(strategy).limit(Intensity::UNLIMITED));
    let slots = NAMES.map(Slot::new);
    for step in steps {
        match step {
            Step::Start(child) => {
                let spec = subject(NAMES[child], &slots[child], &journal);
                let spec = spec.never_escalate().backoff(Backoff::ACTOR).watchdog(ms(500));
                let spec = spec.restart([Restart::Permanent, Restart::Transient][child % 2]);
                root.start_child(spec).detach();
            }
            Step::Stop(child) => root.stop_child(NAMES[child]).detach(),
            Step::Tell(child, order) => drop(slots[child].port::<Do>().tell(order)),
            Step::Inject(child) => root.inject_panic(NAMES[child]).detach(),
            Step::Pass(time) => tokio::time::sleep(time).await,
        }
    }
    tokio::time::timeout(PATIENCE, root.shutdown()).await.expect("it ends").unwrap();
    let alive = journal.alive.lock().unwrap();
    assert!(alive.values().all(|&(now, most)| now == 0 && most <= 1), "{alive:?} in {:?}", journal.lines());
    assert!(slots.iter().all(|slot| slot.address().is_none()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_happens_no_child_lives_twice_and_none_outlives_the_shutdown(
        rest in any::<bool>(), steps in steps(),
    ) {
        let strategy = if rest { supervisor::Strategy::RestForOne } else { supervisor::Strategy::OneForOne };
        paused(|journal| walk(journal, strategy, steps));
    }
}
