//! The way from a supervisor to one incarnation, and from an actor to its own.
//!
//! Owns: what was said and not yet read. Almost always nothing is: a queue that makes room for dozens, as tokio's does, is
//! most of what an idle actor holds. Invariants: what was said is read in order, each once; the one reader is woken for it;
//! once the supervisor's end is gone nothing is taken any more, and the reader hears of it after what was said before.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use super::life::Control;

#[derive(Default)]
struct State {
    said: VecDeque<Control>,
    /// Nothing is taken any more: one of the ends has gone.
    over: bool,
    reader: Option<Waker>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is whole between statements, whoever panicked meanwhile.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something unless it is over.
    fn say(&self, control: Control) {
        let mut state = self.lock();
        if state.over {
            return;
        }
        state.said.push_back(control);
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }

    fn end(&self, is_readers: bool) {
        let mut state = self.lock();
        state.over = true;
        let unread = if is_readers { std::mem::take(&mut state.said) } else { VecDeque::new() };
        let reader = state.reader.take();
        drop(state);
        drop(unread);
        reader.into_iter().for_each(Waker::wake);
    }
}

/// The supervisor's end. When it is dropped the incarnation is to end.
pub(super) struct Speaker(Shared);

/// The actor's own: says something as long as there is a supervisor to hear of it.
pub(super) struct Aside(Shared);

/// The incarnation's end.
pub(super) struct Reader(Shared);

/// Both ends of a new one.
pub(super) fn control() -> (Speaker, Reader) {
    let shared = Shared::default();
    (Speaker(shared.clone()), Reader(shared))
}

impl Speaker {
    /// Says something. Nobody hears it when the incarnation is over, of which news is on the way then.
    pub(super) fn say(&self, control: Control) {
        self.0.say(control);
    }

    pub(super) fn aside(&self) -> Aside {
        Aside(self.0.clone())
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        self.0.end(false);
    }
}

impl Aside {
    pub(super) fn say(&self, control: Control) {
        self.0.say(control);
    }
}

impl Reader {
    /// What was said next; `None` when nothing more comes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Control>> {
        let mut state = self.0.lock();
        match state.said.pop_front() {
            Some(control) => Poll::Ready(Some(control)),
            None if state.over => Poll::Ready(None),
            None => {
                match &mut state.reader {
                    Some(reader) => reader.clone_from(cx.waker()),
                    reader => *reader = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.end(true);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, mem::discriminant};

    use super::*;

    fn now(reader: &mut Reader) -> Poll<Option<Control>> {
        reader.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_was_said_is_read_in_order_and_then_the_end() {
        let (speaker, mut reader) = control();
        let aside = speaker.aside();
        assert!(now(&mut reader).is_pending());
        speaker.say(Control::Stop);
        aside.say(Control::Fail("f".into()));
        speaker.say(Control::Kill);
        drop(speaker);
        aside.say(Control::Heartbeat);
        for wanted in [Control::Stop, Control::Fail("f".into()), Control::Kill] {
            let Poll::Ready(Some(said)) = now(&mut reader) else { panic!("{wanted:?} was said") };
            assert_eq!(discriminant(&said), discriminant(&wanted));
        }
        assert!(matches!(now(&mut reader), Poll::Ready(None)), "nothing is taken after the supervisor's end");
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken_by_a_word_and_by_the_end() {
        let (speaker, mut reader) = control();
        let task = tokio::spawn(async move {
            let first = poll_fn(|cx| reader.poll(cx)).await;
            (first.is_some(), poll_fn(|cx| reader.poll(cx)).await.is_some())
        });
        tokio::task::yield_now().await;
        speaker.say(Control::Heartbeat);
        tokio::task::yield_now().await;
        drop(speaker);
        assert_eq!(task.await.unwrap(), (true, false));
    }

    #[test]
    fn nothing_is_kept_for_a_reader_that_has_gone() {
        let (speaker, reader) = control();
        speaker.say(Control::Stop);
        let shared = speaker.0.clone();
        drop(reader);
        speaker.say(Control::Stop);
        assert!(shared.lock().said.is_empty());
    }

    #[test]
    fn an_idle_one_takes_little_memory() {
        assert!(size_of::<Mutex<State>>() <= 64);
    }
}
