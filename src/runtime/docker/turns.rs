//! Whose turn it is to have the engine end or remove something.
//!
//! Owns: how many such requests are made at a time: with more an engine takes longer for all of them. Invariant: what takes long, as a
//! program that does not end or a removal that hangs, holds up the others for a moment only.

use std::time::Duration;

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::driver::AT_ONCE;

/// After so long a request does not count any more.
const HELD: Duration = Duration::from_secs(1);

pub(super) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Turns {
        Turns(Semaphore::new(AT_ONCE))
    }
}

impl Turns {
    /// Does something when it is its turn, or `patience` is over.
    pub(super) async fn within<T>(&self, patience: Duration, work: impl Future<Output = T>) -> T {
        let turn = timeout(patience, self.0.acquire()).await;
        let mut work = std::pin::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = sleep(HELD) => drop(turn),
        }
        work.await
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::{join_all, join3};
    use tokio::time::Instant;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn a_few_are_at_it_and_what_takes_long_does_not_count() {
        let (turns, at_it, most) = (Turns::default(), Cell::new(0), Cell::new(0));
        let begun = Instant::now();
        let brief = async || {
            at_it.set(at_it.get() + 1);
            most.set(most.get().max(at_it.get()));
            sleep(MOMENT).await;
            at_it.set(at_it.get() - 1);
        };
        join_all((0..3 * AT_ONCE).map(|_| turns.within(HELD, brief()))).await;
        assert_eq!((most.get(), begun.elapsed()), (AT_ONCE, 3 * MOMENT));
        // All that take long, and one more.
        let begun = Instant::now();
        let long = join_all((0..AT_ONCE).map(|_| turns.within(HELD, sleep(10 * HELD))));
        let next = async {
            turns.within(2 * HELD, async { sleep(MOMENT).await }).await;
            assert_eq!(begun.elapsed(), HELD + MOMENT);
        };
        let hasty = async {
            turns.within(MOMENT, async { sleep(MOMENT).await }).await;
            assert_eq!(begun.elapsed(), 2 * MOMENT);
        };
        // In this order.
        join3(long, next, hasty).await;
        assert_eq!(begun.elapsed(), 10 * HELD);
    }
}
