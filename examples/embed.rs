//! A cluster inside a larger service, with a container runtime of its own. See `docs/embedding.md`.
//!
//! `cargo run --example embed` serves on 127.0.0.1:8080 until Ctrl-C; `-- --once` tells the whole story against its own
//! routes and exits with 0 only if all of it happened.

#[path = "embed/service.rs"]
mod service;
#[path = "embed/story.rs"]
mod story;
#[path = "embed/tasks.rs"]
mod tasks;

use anyhow::{Result, bail};
use story::{Service, story};

fn main() -> Result<()> {
    let once = match std::env::args().nth(1).as_deref() {
        None => false,
        Some("--once") => true,
        Some(other) => bail!("unknown argument {other}: there is only --once"),
    };
    // Logging is the program's affair, not the library's: this is what `troupe up` does.
    troupe::app::init_tracing();
    let directory = std::env::temp_dir().join(format!("embed-{}", std::process::id()));
    let outcome = actix::System::new().block_on(run(&directory, once));
    // Never there when the start failed early.
    let _ = std::fs::remove_dir_all(&directory);
    outcome
}

async fn run(directory: &std::path::Path, once: bool) -> Result<()> {
    let service = Service::start(directory, if once { "127.0.0.1:0" } else { "127.0.0.1:8080" }).await?;
    println!("serving on http://{}/fleet", service.http());
    let outcome = if once {
        story(service.http(), |line| println!("{line}")).await
    } else {
        tokio::select! {
            signal = tokio::signal::ctrl_c() => signal.map_err(Into::into),
            // The library never ends the process: that too is the program's affair.
            lost = service.cluster().failed() => Err(anyhow::anyhow!("the cluster gave up: {}", lost.reason)),
        }
    };
    let stopped = service.stop().await;
    outcome.and(stopped)
}
