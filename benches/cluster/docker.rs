//! S2d: a controller from none to many on the docker runtime, beside the bare calls to the same engine ([`crate::calls`]).
//!
//! How many pods at once is best for the engine is tried, and the best is the limit. No end is waited for there.

use crate::{
    Options,
    calls::{Calls, Pods},
    cluster::PodWatch,
    ground::{Ground, OF_BARE, On},
    row::{Row, Times, ms},
    scale::{AT_ONCE, prepare, scale_down, scale_up},
};

/// S2d: a controller 0 → 10, 50, 100 pods on docker, all told to be Running.
pub fn up(options: &Options, on: On) -> Vec<Row> {
    let Some(ground) = Ground::open(on) else { return Vec::new() };
    let Some(socket) = ground.socket() else { return Vec::new() };
    let cluster = ground.start(options);
    // The first pod has the engine make everything that it makes once.
    let bare = Pods::like_the_clusters(Calls::new(socket), &cluster);
    let (mut client, _) = prepare(&cluster);
    [10, 50, 100]
        .map(|count| {
            let (mut running, mut first) = (Times::default(), Times::default());
            let mut limits = AT_ONCE.map(|at_once| (at_once, Times::default()));
            for _ in 0..options.rounds(3, 1) {
                // A watch of its own: one that hears nothing while the bare calls are made would be given up.
                let watch = PodWatch::new(&cluster.login());
                let (all_running, all_started) = scale_up(&cluster, &mut client, &watch, count);
                eprintln!("s2d {count}: {}, first instructions {}", ms(all_running), ms(all_started));
                running.push(all_running);
                first.push(all_started);
                scale_down(&cluster, &mut client, &watch, count);
                for (at_once, times) in &mut limits {
                    let time = bare.time_many(count, *at_once);
                    eprintln!("s2d {count}: bare, {at_once} at once {}", ms(time));
                    times.push(time);
                }
            }
            let best = limits.iter().map(|(_, times)| times.mean()).min().unwrap_or_default();
            let ratio = running.mean().as_secs_f64() / best.as_secs_f64();
            let limits = limits.map(|(at_once, times)| format!("{at_once} at once {}", ms(times.mean())));
            Row {
                name: "S2d",
                what: format!("controller 0 → {count} pods Running on docker"),
                troupe: format!(
                    "{} (n={}), {ratio:.2} × bare; first instruction of the last {}",
                    ms(running.mean()),
                    running.len(),
                    ms(first.mean())
                ),
                beside: format!("bare calls to the same engine, {}", limits.join(", ")),
                budget: format!("≤ {OF_BARE} × bare"),
                met: ratio <= OF_BARE,
            }
        })
        .into()
}
