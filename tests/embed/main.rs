//! Clusters inside another program: the example's story, several at once, again and again, and after faults.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod again;
mod beside;
mod client;
mod faults;
mod panics;
mod real;
mod renewal;
#[path = "../../examples/embed/service.rs"]
mod service;
#[path = "../../examples/embed/story.rs"]
mod story;
mod support;
#[path = "../../examples/embed/tasks.rs"]
mod tasks;

#[test]
fn the_example_tells_its_whole_story() {
    support::system(async {
        let directory = tempfile::tempdir().unwrap();
        let service = story::Service::start(directory.path(), "127.0.0.1:0").await.unwrap();
        let told = std::cell::Cell::new(0);
        let outcome = story::story(service.http(), |_| told.set(told.get() + 1)).await;
        assert_eq!(service.cluster().nodes().len(), 1);
        service.stop().await.unwrap();
        outcome.unwrap();
        assert_eq!(told.get(), 5);
    });
}
