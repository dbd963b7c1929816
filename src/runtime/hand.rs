//! Drivers that work on a thread of their own, so that a runtime can be called from any tokio runtime and works on when
//! its callers do not wait.
//!
//! Owns: [`Hand`], the thread with its tokio runtime, and what docker and CRI say alike when they begin. Invariant: once
//! a hand is dropped nothing of its driver's touches a file any more: the next one may begin with what it left. Limit:
//! that is waited for [`LAST`] only.

use std::{
    future::Future,
    io,
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::{AbortHandle, JoinError},
};

use super::RuntimeError;

/// Images on their way are read and checked by so many threads at most.
const BLOCKING_THREADS: usize = 4;
/// How long a runtime may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is being written is done in a moment, unless the disk hangs.
const LAST: Duration = Duration::from_secs(2);

/// A driver and its thread.
pub(super) struct Hand<D> {
    driver: Arc<D>,
    handle: Handle,
    /// Dropped, it ends the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl<D: Send + Sync + 'static> Hand<D> {
    /// Begins a driver on a thread named after its runtime. Blocks until it has begun.
    ///
    /// # Errors
    /// Its own, and when there is no thread.
    pub(super) fn start<F>(
        name: &str,
        root: &Path,
        begin: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Hand<D>, RuntimeError>
    where
        F: Future<Output = Result<Arc<D>, RuntimeError>>,
    {
        let operation = || system(format!("open the {name} runtime in {}", root.display()));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name(format!("{name}-blocking"))
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .map_err(operation())?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let (opened, open) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("{name}-runtime"))
            .spawn(move || {
                runtime.block_on(async {
                    let driver = begin().await;
                    let begun = driver.is_ok();
                    // Receiving fails only when `open` below was abandoned.
                    let _ = opened.send(driver);
                    if begun {
                        let _ = stopped.await;
                    }
                });
                runtime.shutdown_timeout(LAST);
            })
            .map_err(operation())?;
        let driver =
            open.recv().unwrap_or_else(|_| Err(operation()(io::Error::other("its thread has died"))))?;
        Ok(Hand { driver, handle, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) fn driver(&self) -> &D {
        &self.driver
    }

    /// Runs a step to its end, even when the caller stops waiting.
    pub(super) async fn run<T, F>(&self, step: impl FnOnce(Arc<D>) -> F) -> Result<T, RuntimeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RuntimeError>> + Send + 'static,
    {
        joined(self.handle.spawn(step(Arc::clone(&self.driver))).await)
    }

    /// Runs a step for as long as the caller waits.
    pub(super) async fn run_along<T, F>(&self, step: impl FnOnce(Arc<D>) -> F) -> Result<T, RuntimeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RuntimeError>> + Send + 'static,
    {
        let running = self.handle.spawn(step(Arc::clone(&self.driver)));
        let _goes_along = GoesAlong(running.abort_handle());
        joined(running.await)
    }
}

impl<D> Drop for Hand<D> {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take().filter(|of| of.thread().id() != thread::current().id()) {
            // It has said itself why it died.
            let _ = thread.join();
        }
    }
}

fn joined<T>(step: Result<Result<T, RuntimeError>, JoinError>) -> Result<T, RuntimeError> {
    step.unwrap_or_else(|error| {
        Err(RuntimeError::System { operation: "run a step".into(), cause: error.to_string() })
    })
}

/// Ends a step with the one who waits for it.
struct GoesAlong(AbortHandle);

impl Drop for GoesAlong {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks something once, on a thread of its own: the caller may be inside a runtime. Blocks.
///
/// # Errors
/// What was answered, or `advice`.
pub(super) fn ask<F>(
    operation: &str,
    advice: &'static str,
    question: impl FnOnce() -> F + Send + 'static,
) -> Result<(), RuntimeError>
where
    F: Future<Output = Result<(), RuntimeError>>,
{
    let runtime = Builder::new_current_thread().enable_all().build().map_err(system(operation))?;
    let asked =
        thread::spawn(move || runtime.block_on(async { tokio::time::timeout(PATIENCE, question()).await }));
    match asked.join() {
        Ok(Ok(answer)) => answer,
        _ => Err(system(operation)(io::Error::other(advice))),
    }
}

pub(super) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let operation = operation.into();
    move |cause| RuntimeError::System { operation, cause: cause.to_string() }
}

pub(super) fn now_ms() -> i64 {
    let age = SystemTime::now().duration_since(UNIX_EPOCH);
    age.map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn hand() -> Hand<AtomicBool> {
        Hand::start("test", Path::new("/"), || async { Ok(Arc::new(AtomicBool::new(false))) }).unwrap()
    }

    #[tokio::test]
    async fn what_is_being_written_is_written_when_the_hand_is_gone() {
        let hand = hand();
        let written = hand.run(|driver| async { Ok(driver) }).await.unwrap();
        let (begun, began) = mpsc::channel();
        let step = hand.run(|driver| async move {
            tokio::task::spawn_blocking(move || {
                begun.send(()).unwrap();
                thread::sleep(Duration::from_millis(50));
                driver.store(true, Ordering::SeqCst);
            });
            Ok(())
        });
        step.await.unwrap();
        began.recv().unwrap();
        drop(hand);
        assert!(written.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_step_goes_on_without_its_caller_or_ends_with_it() {
        let hand = hand();
        let done = hand.run(|driver| async { Ok(driver) }).await.unwrap();
        let step = |driver: Arc<AtomicBool>| async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            driver.store(true, Ordering::SeqCst);
            Ok(())
        };
        drop(tokio::time::timeout(Duration::from_millis(1), hand.run_along(step)).await);
        // One that begins later and takes longer ends after it would have.
        let later = |_| async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            Ok(())
        };
        hand.run(later).await.unwrap();
        assert!(!done.load(Ordering::SeqCst));
        drop(tokio::time::timeout(Duration::from_millis(1), hand.run(step)).await);
        hand.run(later).await.unwrap();
        assert!(done.load(Ordering::SeqCst));
    }

    #[test]
    fn a_driver_that_does_not_begin_is_an_error() {
        let error = || RuntimeError::Config("no".into());
        let none = Hand::<()>::start("test", Path::new("/"), move || async move { Err(error()) });
        assert_eq!(none.err().unwrap().to_string(), error().to_string());
        let silent = ask("ask", "look after it", || async { panic!("it has died") });
        assert!(silent.unwrap_err().to_string().contains("look after it"));
    }
}
