//! What the process tells about itself: log lines on standard error, and metrics for `/metrics`.
//!
//! Invariant: an embedding program that installed its own subscriber or recorder keeps it.

use std::{io::IsTerminal as _, sync::Arc, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use crate::{actors::supervisor, net};

/// Bounds of histograms of durations, seconds: a message takes microseconds, a disk milliseconds, a client seconds.
const SECONDS: &[f64] =
    &[0.000_1, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Bounds of histograms of sizes.
const COUNTS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0];
/// How often recorded samples are folded into their histograms, so that they do not pile up between scrapes.
const UPKEEP: Duration = Duration::from_secs(10);

/// Renders every metric in Prometheus' text format.
pub type Render = Arc<dyn Fn() -> String + Send + Sync>;

/// Logs to standard error, `info` and above unless `TROUPE_LOG` says otherwise; colour only on a terminal. What the HTTP
/// library warns of is what clients do every day: they go away before they have heard everything.
pub fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TROUPE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,actix_http=error,troupe=info"));
    // A second call, as in an embedding program, changes nothing.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// Records metrics from now on, within an actix system or tokio runtime. `None` when this process has a recorder.
pub fn init_metrics() -> Option<Render> {
    let seconds = Matcher::Suffix("_seconds".into());
    let handle = PrometheusBuilder::new()
        .set_buckets(COUNTS)
        .and_then(|builder| builder.set_buckets_for_metric(seconds, SECONDS))
        .and_then(PrometheusBuilder::install_recorder)
        .ok()?;
    supervisor::metrics::describe();
    net::metrics::describe();
    let upkeep = handle.clone();
    actix::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            upkeep.run_upkeep();
        }
    });
    Some(Arc::new(move || handle.render()))
}
