//! Changing what a running container may use: its cgroup's files, in either version.
//!
//! Owns: which files, and their order. Invariant: a group never has less memory than the groups in it: what grows is given
//! to the pod first, what shrinks is taken from the container first. The kernel refuses a memory limit below what is in
//! use, and so does this, leaving the limit as it was. A pod's weight is set by itself, to what all of its containers ask
//! for, those that do not run among them.

use std::{fs, io, path::Path};

use super::{
    cgroup::{Cgroup, Hierarchies},
    driver::{Driver, blocking},
    state::system,
};
use crate::{
    model::Uid,
    runtime::{
        ContainerId, ContainerResources, ContainerState, RuntimeError,
        limits::{CPU_PERIOD_US, cpu_shares, cpu_weight},
    },
};

impl Driver {
    pub(super) async fn update_container(
        &self,
        id: &ContainerId,
        resources: ContainerResources,
    ) -> Result<(), RuntimeError> {
        let pod = self.container_pod(id)?;
        if pod.state_of(id) != Some(ContainerState::Running) {
            return Err(RuntimeError::NotFound(format!("running container {id}")));
        }
        let groups = (
            self.hierarchies.group(&pod.record.cgroup),
            self.hierarchies.group(&pod.record.cgroup.join(&id.0)),
        );
        let operation = format!("resize container {id}");
        blocking(move || resize(&groups.0, &groups.1, &resources).map_err(system(operation))).await
    }
}

impl Driver {
    pub(super) async fn update_sandbox(&self, uid: &Uid, cpu_request_milli: i64) -> Result<(), RuntimeError> {
        let pod = self.pod(uid).filter(|pod| pod.ready());
        let pod = pod.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {uid}")))?;
        let (hierarchies, group) = (self.hierarchies.clone(), pod.record.cgroup.clone());
        let failed = system(format!("change the share of pod {uid}"));
        blocking(move || hierarchies.weigh(&group, cpu_request_milli).map_err(failed)).await
    }
}

impl Hierarchies {
    /// Gives a pod's group the weight of what all of its containers ask for. Without the controller all are alike.
    pub(in crate::runtime) fn weigh(&self, path: &Path, cpu_request_milli: i64) -> io::Result<()> {
        let group = self.group(path);
        let Some((dir, unified)) = group.of("cpu") else { return Ok(()) };
        let shares = cpu_shares(cpu_request_milli);
        let (file, weight) =
            if unified { ("cpu.weight", cpu_weight(shares)) } else { ("cpu.shares", shares) };
        match fs::metadata(dir.join(file)) {
            Ok(_) => fs::write(dir.join(file), weight.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn resize(pod: &Cgroup, container: &Cgroup, to: &ContainerResources) -> io::Result<()> {
    if let Some((dir, unified)) = container.of("cpu") {
        cpu(dir, unified, to)?;
    }
    let (Some((own, unified)), Some((pods, _))) = (container.of("memory"), pod.of("memory")) else {
        return Ok(());
    };
    if to.memory_limit_bytes <= 0 {
        return Ok(());
    }
    let (now, wanted) = (limit(own, unified)?, to.memory_limit_bytes.unsigned_abs());
    if now == Some(wanted) {
        return Ok(());
    }
    let used = used(own, unified)?;
    if used.is_some_and(|used| used > wanted) && now.is_none_or(|now| wanted < now) {
        return Err(io::Error::other(format!(
            "a memory limit of {wanted} bytes is below what is in use, {} bytes",
            used.unwrap_or_default()
        )));
    }
    // A pod that has a limit has the sum of its containers'.
    let pods_limit = match (limit(pods, unified)?, now) {
        (Some(pods), Some(now)) => Some(pods.saturating_add(wanted).saturating_sub(now)),
        _ => None,
    };
    let grows = now.is_some_and(|now| wanted > now);
    if let (Some(bytes), true) = (pods_limit, grows) {
        set_limit(pods, unified, bytes, true)?;
    }
    set_limit(own, unified, wanted, grows)?;
    match (pods_limit, grows) {
        (Some(bytes), false) => set_limit(pods, unified, bytes, false),
        _ => Ok(()),
    }
}

fn cpu(dir: &Path, unified: bool, to: &ContainerResources) -> io::Result<()> {
    let quota = to.cpu_quota_us();
    if unified {
        fs::write(dir.join("cpu.weight"), to.cpu_weight().to_string())?;
        let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
        return fs::write(dir.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}"));
    }
    fs::write(dir.join("cpu.shares"), to.cpu_shares().to_string())?;
    if quota.is_some() {
        fs::write(dir.join("cpu.cfs_period_us"), CPU_PERIOD_US.to_string())?;
    }
    fs::write(dir.join("cpu.cfs_quota_us"), quota.unwrap_or(-1).to_string())
}

/// A group's memory limit; none where it is the kernel's largest number.
fn limit(dir: &Path, unified: bool) -> io::Result<Option<u64>> {
    const NONE: u64 = i64::MAX as u64 / 2;
    let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
    Ok(read(dir, file)?.filter(|bytes| *bytes < NONE))
}

fn read(dir: &Path, file: &str) -> io::Result<Option<u64>> {
    Ok(fs::read_to_string(dir.join(file))?.trim().parse().ok())
}

/// Bytes in use that the kernel cannot just take back, as it can cached files.
fn used(dir: &Path, unified: bool) -> io::Result<Option<u64>> {
    let (file, key) =
        if unified { ("memory.current", "file ") } else { ("memory.usage_in_bytes", "total_cache ") };
    // A kernel without statistics is taken at its word.
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    Ok(read(dir, file)?.map(|bytes| bytes.saturating_sub(cached.unwrap_or(0))))
}

/// On version 1 the limit with swap is one more, never below the other: it goes first when both grow.
fn set_limit(dir: &Path, unified: bool, bytes: u64, grows: bool) -> io::Result<()> {
    let bytes = bytes.to_string();
    if unified {
        return fs::write(dir.join("memory.max"), bytes);
    }
    let (memory, swap) = (dir.join("memory.limit_in_bytes"), dir.join("memory.memsw.limit_in_bytes"));
    let swaps = limit_of(&swap).is_some();
    if swaps && grows {
        fs::write(&swap, &bytes)?;
    }
    fs::write(memory, &bytes)?;
    if swaps && !grows { fs::write(swap, bytes) } else { Ok(()) }
}

/// A limit that is set, where the kernel has that file.
fn limit_of(file: &Path) -> Option<u64> {
    const NONE: u64 = i64::MAX as u64 / 2;
    fs::read_to_string(file).ok()?.trim().parse().ok().filter(|bytes| *bytes < NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(unified: bool, container: u64, wanted: i64, used: u64) -> (io::Result<()>, String, String) {
        let root = tempfile::tempdir().unwrap();
        let (memory, swap, current) = match unified {
            true => ("memory.max", "memory.swap.max", "memory.current"),
            false => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.usage_in_bytes"),
        };
        let own = root.path().join("pod/c");
        fs::create_dir_all(&own).unwrap();
        for (file, value) in [("pod", 1000), ("pod/c", container)] {
            fs::write(root.path().join(file).join(memory), value.to_string()).unwrap();
            fs::write(root.path().join(file).join(swap), value.to_string()).unwrap();
            for weight in ["cpu.shares", "cpu.weight"] {
                fs::write(root.path().join(file).join(weight), "2").unwrap();
            }
        }
        // Half as much again is only cached.
        fs::write(own.join(current), (used + used / 2).to_string()).unwrap();
        let cached = format!("rss 1\nfile {0}\ntotal_cache {0}\n", used / 2);
        fs::write(own.join("memory.stat"), cached).unwrap();
        let hierarchies = match unified {
            true => Hierarchies::V2(root.path().into()),
            false => Hierarchies::V1(
                ["cpu", "memory"].map(|name| (name.to_owned(), root.path().to_owned())).into(),
            ),
        };
        let group = |path: &str| hierarchies.group(Path::new(path));
        let to =
            ContainerResources { cpu_request_milli: 500, cpu_limit_milli: 1500, memory_limit_bytes: wanted };
        let done = resize(&group("/pod"), &group("/pod/c"), &to);
        let file = |path: &str, file: &str| fs::read_to_string(root.path().join(path).join(file)).unwrap();
        let cpu = if unified { file("pod/c", "cpu.max") } else { file("pod/c", "cpu.cfs_quota_us") };
        let (weight, expected, two) =
            if unified { ("cpu.weight", "20", "79") } else { ("cpu.shares", "512", "2048") };
        // The pod's is what all of its containers come to, not what one of them moves it by.
        hierarchies.weigh(Path::new("/pod"), 2000).unwrap();
        hierarchies.weigh(Path::new("/nowhere"), 2000).unwrap();
        assert_eq!((file("pod/c", weight), file("pod", weight)), (expected.into(), two.into()));
        (done, format!("{} {}", file("pod", memory), file("pod/c", memory)), cpu)
    }

    #[test]
    fn the_pods_limit_follows_its_containers_and_what_is_in_use_is_not_taken() {
        for unified in [false, true] {
            let cpu = if unified { "150000 100000" } else { "150000" };
            for (wanted, used, after, done) in [
                (600, 0, "1200 600", true),
                (300, 0, "900 300", true),
                (400, 500, "1000 400", true),
                (300, 350, "1000 400", false),
            ] {
                let (outcome, limits, quota) = check(unified, 400, wanted, used);
                assert_eq!(
                    (outcome.is_ok(), limits.as_str(), quota.as_str()),
                    (done, after, cpu),
                    "{wanted}"
                );
            }
        }
    }
}
