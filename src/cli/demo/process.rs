//! What an operator would do outside of Troupe: find a container's process, kill it, fetch a page, press Ctrl-C.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use awc::error::SendRequestError;
use nix::{
    sys::signal::{Signal, kill as send},
    unistd::Pid,
};
use tokio::signal::unix::{SignalKind, signal};

use super::Act;

/// The first process in the cgroup of this container.
pub fn of_container(id: &str) -> Option<i32> {
    if id.is_empty() {
        return None;
    }
    all()
        .into_iter()
        .find(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains(id)))
}

/// The first process that a pod's shim has started: for where there are no cgroups to tell.
pub fn of_pod(uid: &str) -> Option<i32> {
    // The kernel keeps as much of a process' name.
    let name: String = format!("shim {uid}").chars().take(15).collect();
    let named =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name);
    let shim = all().into_iter().find(named)?;
    let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// The cluster's part of a process's cgroup: `troupe-6e7e7a-0`.
pub fn cgroup(pid: i32) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let ours = groups.lines().filter_map(|line| line.rsplit_once(":/")?.1.split('/').next());
    ours.into_iter().find(|name| name.starts_with("troupe")).map(str::to_owned)
}

/// Directories of that cgroup, in whichever hierarchies.
pub fn cgroup_directories(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    std::iter::once(root.to_owned())
        .chain(hierarchies)
        .map(|hierarchy| hierarchy.join(name))
        .filter(|path| path.is_dir())
        .collect()
}

/// The network device that leads to this address, the default route aside.
pub fn device(address: &str) -> Option<String> {
    let address = u32::from_le_bytes(address.parse::<Ipv4Addr>().ok()?.octets());
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    routes.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        let (to, mask) = (number(1)?, number(7)?);
        (mask != 0 && address & mask == to).then(|| words.first().map(|name| (*name).to_owned()))?
    })
}

/// Processes whose command line has this text.
pub fn mentioning(text: &str) -> Vec<(i32, String)> {
    let command = |pid: &i32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned())
    };
    let mine = i32::try_from(std::process::id()).unwrap_or(0);
    all()
        .into_iter()
        .filter(|pid| *pid != mine)
        .filter_map(|pid| command(&pid).filter(|c| c.contains(text)).map(|c| (pid, c)))
        .collect()
}

fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<i32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// SIGKILL.
pub fn kill(pid: i32) -> Act {
    send(Pid::from_raw(pid), Signal::SIGKILL).map_err(|error| format!("kill -9 {pid}: {error}"))
}

/// How long, and how often, a page is asked for whose server is not there yet.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);

/// The page of a pod.
pub async fn fetch(address: &str) -> Act<String> {
    let url = format!("http://{address}:8080/");
    let fault = |error: String| format!("GET {url}: {error}");
    let client = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    let until = Instant::now() + PATIENCE;
    let mut answer = loop {
        match client.get(&url).send().await {
            Ok(answer) => break answer,
            // A container runs some moments before its program listens.
            Err(SendRequestError::Connect(_)) if Instant::now() < until => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(fault(error.to_string())),
        }
    };
    let body = answer.body().await.map_err(|e| fault(e.to_string()))?;
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Waits for SIGINT or SIGTERM.
pub async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
