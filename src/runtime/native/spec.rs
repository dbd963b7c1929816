//! The OCI runtime spec of a container.
//!
//! Owns: Kubernetes' rules for what runs (command, environment, directory) and the isolation every container gets.
//! Pure: facts about the machine and the image's user database come as arguments. The pod's network, IPC and host
//! name are not in the spec: a container inherits those namespaces from its shim.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{
    caps::Names,
    cgroup::NONE_GROUP,
    state::{ContainerRecord, SandboxDir, SandboxRecord},
    user::Identity,
};
use crate::runtime::{HugePageLimit, Mount, Propagation, limits::CPU_PERIOD_US};

/// What the spec depends on beyond the records.
pub(super) struct Facts<'a> {
    pub identity: &'a Identity,
    /// What libcontainer leaves to the step before the program: what the program gets, and what putting on the system
    /// call filter needs.
    pub capabilities: &'a Names,
    /// Its root file system.
    pub root: &'a Path,
    /// The user namespace of the whole pod, if it has one.
    pub users: Option<&'a Path>,
    /// Device nodes of the machine, for privileged containers.
    pub devices: &'a [Device],
    /// The pid namespace of the whole pod, if it has one.
    pub shared_pids: Option<&'a Path>,
    /// Where its cgroups are.
    pub cgroups: Cgroups,
    /// In a user namespace that maps one group only, what belongs to another cannot be mounted.
    pub terminal_group: bool,
    /// The pid namespace is not this user's, so its `/proc` can be shown but not made anew.
    pub foreign_pids: bool,
    /// Swap can be limited.
    pub swap_limit: bool,
    /// Huge pages can be limited.
    pub huge_page_limit: bool,
    /// The highest limit on open files that can be given.
    pub max_open_files: u64,
}

/// What a container is told of its cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// One hierarchy (version 2), in a namespace.
    Unified,
    /// Copies of those that it is in (version 1).
    Shown,
    /// The same, and the runtime library, which does not find those, is to stay at the root of what it finds.
    Aside,
    /// Nothing: there are none that this user may use.
    None,
}

/// A device node.
pub(super) struct Device {
    pub path: PathBuf,
    /// `c` or `b`.
    pub kind: char,
    pub major: u64,
    pub minor: u64,
    pub mode: u32,
}

/// What runs: Kubernetes' `command` replaces the image's entrypoint and drops its cmd; `args` replaces its cmd.
pub(super) fn arguments(record: &ContainerRecord) -> Option<Vec<String>> {
    let (config, image) = (&record.config, &record.image);
    let (program, rest) = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => (&config.command, &config.args),
        (true, false) => (&image.entrypoint, &config.args),
        (true, true) => (&image.entrypoint, &image.cmd),
    };
    let all: Vec<String> = program.iter().chain(rest).cloned().collect();
    (!all.is_empty()).then_some(all)
}

/// The environment, each name once: the later value wins and keeps the earlier one's place.
pub(super) fn environment(record: &ContainerRecord, hostname: &str, home: &str) -> Vec<String> {
    let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut all = vec![own("PATH", DEFAULT_PATH), own("HOSTNAME", hostname), own("HOME", home)];
    if record.config.tty {
        all.push(own("TERM", "xterm"));
    }
    let image = record.image.env.iter().filter_map(|pair| pair.split_once('='));
    all.extend(image.map(|(name, value)| own(name, value)));
    all.extend(record.config.env.iter().cloned());
    let mut unique: Vec<(String, String)> = Vec::with_capacity(all.len());
    for (name, value) in all {
        match unique.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => unique.push((name, value)),
        }
    }
    unique.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the program starts.
pub(super) fn working_dir(record: &ContainerRecord) -> PathBuf {
    let wanted = match &record.config.working_dir {
        Some(dir) if !dir.is_empty() => dir,
        _ => &record.image.working_dir,
    };
    Path::new("/").join(wanted)
}

/// Privileges cannot be gained by running programs.
pub(super) fn no_new_privileges(record: &ContainerRecord) -> bool {
    !record.config.security.privileged && !record.config.security.allow_privilege_escalation
}

/// The spec; `arguments` are not empty.
pub(super) fn build(
    sandbox: &SandboxRecord,
    dir: &SandboxDir,
    record: &ContainerRecord,
    arguments: &[String],
    environment: &[String],
    facts: &Facts<'_>,
) -> serde_json::Result<Spec> {
    let security = &record.config.security;
    let privileged = security.privileged;
    let capabilities: Vec<String> = facts.capabilities.iter().map(|name| format!("CAP_{name}")).collect();
    let mut namespaces = vec![json!({"type": "mount"})];
    if let Some(path) = facts.users {
        namespaces.push(json!({"type": "user", "path": path}));
    }
    match facts.shared_pids {
        Some(path) => namespaces.push(json!({"type": "pid", "path": path})),
        None if sandbox.config.host_pid => {}
        None => namespaces.push(json!({"type": "pid"})),
    }
    if facts.cgroups == Cgroups::Unified {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut process = json!({
        "terminal": record.config.tty,
        "user": {
            "uid": facts.identity.uid,
            "gid": facts.identity.gid,
            "additionalGids": facts.identity.groups,
        },
        "args": arguments,
        "env": environment,
        "cwd": working_dir(record),
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        },
        "rlimits": [{
            "type": "RLIMIT_NOFILE",
            "soft": OPEN_FILES_SOFT.min(facts.max_open_files),
            "hard": OPEN_FILES_HARD.min(facts.max_open_files),
        }],
    });
    if no_new_privileges(record) {
        process["noNewPrivileges"] = true.into();
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": match facts.cgroups {
            Cgroups::None => Path::new("/").join(NONE_GROUP),
            Cgroups::Aside => PathBuf::from("/"),
            Cgroups::Unified | Cgroups::Shown => sandbox.cgroup.join(&record.id.0),
        },
        // Mounts that the node makes under a volume later appear in the container; the other way round they do only under
        // those that are shared with the node, which a slave of it would not be.
        "rootfsPropagation": if record.config.mounts.iter().any(reaches_node) { "shared" } else { "slave" },
    });
    if facts.cgroups == Cgroups::Unified {
        linux["resources"] = resources(sandbox, record, facts);
    }
    if privileged {
        linux["devices"] = facts.devices.iter().map(device).collect();
    } else if !security.unmasked_proc {
        linux["maskedPaths"] = MASKED.into();
        linux["readonlyPaths"] = READ_ONLY.into();
    }
    serde_json::from_value(json!({
        "ociVersion": "1.0.2",
        "root": {"path": facts.root, "readonly": security.read_only_root},
        "process": process,
        "mounts": mounts(dir, record, facts),
        "linux": linux,
    }))
}

/// The group `tty` that terminals belong to, as everywhere.
pub(super) const TERMINAL_GROUP: u32 = 5;
const TERMINALS: &str = "gid=5";

/// systemd's defaults for services, which other runtimes hand on too.
const OPEN_FILES_SOFT: u64 = 1024;
const OPEN_FILES_HARD: u64 = 524_288;

/// Kernel interfaces that show or do too much (Docker's list).
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn mounts(dir: &SandboxDir, record: &ContainerRecord, facts: &Facts<'_>) -> Vec<Value> {
    let mount = |kind: &str, destination: &str, options: &[&str]| json!({"type": kind, "source": kind, "destination": destination, "options": options});
    let access = if record.config.security.privileged { "rw" } else { "ro" };
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if facts.terminal_group {
        terminals.push(TERMINALS);
    }
    let mut mounts = vec![
        if facts.foreign_pids {
            bind(Path::new("/proc"), "/proc", &["nosuid", "noexec", "nodev"])
        } else {
            mount("proc", "/proc", &["nosuid", "noexec", "nodev"])
        },
        mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("devpts", "/dev/pts", &terminals),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", access]),
        bind(&dir.shm(), "/dev/shm", &["nosuid", "nodev", "noexec"]),
    ];
    match facts.cgroups {
        Cgroups::Unified => {
            mounts.push(mount(
                "cgroup",
                "/sys/fs/cgroup",
                &["nosuid", "noexec", "nodev", "relatime", access],
            ));
        }
        Cgroups::Shown | Cgroups::Aside => {
            let groups = dir.container(&record.id).cgroups();
            mounts.push(bind(&groups, "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", access]));
        }
        Cgroups::None => {}
    }
    let config = &record.config;
    let given: Vec<&str> = config.mounts.iter().map(|mount| mount.container_path.as_str()).collect();
    for name in POD_FILES {
        let destination = format!("/etc/{name}");
        if !given.contains(&destination.as_str()) {
            mounts.push(bind(&dir.0.join(name), &destination, &[]));
        }
    }
    mounts.extend(in_order(&config.mounts).into_iter().map(|(_, mount)| volume(mount)));
    if let Some((host, inside)) = &config.termination_message {
        mounts.push(bind(host, inside, &[]));
    }
    mounts
}

/// A container's volumes in the order in which they are mounted, with their numbers: one below another comes after it.
pub(super) fn in_order(mounts: &[Mount]) -> Vec<(usize, &Mount)> {
    let mut own: Vec<_> = mounts.iter().enumerate().collect();
    own.sort_by_key(|(_, mount)| Path::new(&mount.container_path).components().count());
    own
}

fn reaches_node(mount: &Mount) -> bool {
    mount.propagation == Propagation::Bidirectional
}

/// What the library does of a bind is to copy it as it is, so what these words say has to be true of the source: the
/// pod's mounts are slaves of the node's, and the shim holds those that are to be something else.
fn volume(mount: &Mount) -> Value {
    let access: &[&str] = match (mount.read_only, mount.recursive_read_only) {
        (false, _) => &[],
        (true, false) => &["ro"],
        (true, true) => &["ro", "rro"],
    };
    let mut volume = bind(&mount.host_path, &mount.container_path, access);
    match mount.propagation {
        Propagation::Private => {}
        Propagation::HostToContainer => volume["options"][1] = "rslave".into(),
        Propagation::Bidirectional => volume["options"][1] = "rshared".into(),
    }
    volume
}

/// Files of the pod that appear under `/etc` in each of its containers.
pub(super) const POD_FILES: &[&str] = &["hosts", "hostname", "resolv.conf"];

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    let options: Vec<&str> = ["rbind", "rprivate"].iter().chain(options).copied().collect();
    json!({"type": "bind", "source": source, "destination": destination, "options": options})
}

fn device(device: &Device) -> Value {
    json!({
        "path": device.path,
        "type": device.kind.to_string(),
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": 0,
        "gid": 0,
    })
}

/// Limits for libcontainer to set. On version 1 we do it, see [`super::v1`].
fn resources(sandbox: &SandboxRecord, record: &ContainerRecord, facts: &Facts<'_>) -> Value {
    let limits = &record.config.resources;
    let mut cpu = json!({"shares": limits.cpu_shares()});
    if let Some(quota) = limits.cpu_quota_us() {
        cpu["period"] = CPU_PERIOD_US.into();
        cpu["quota"] = quota.into();
    }
    let pids = sandbox.config.pids();
    let mut resources = json!({"cpu": cpu, "pids": {"limit": pids}});
    if limits.memory_limit_bytes > 0 {
        let mut memory = json!({"limit": limits.memory_limit_bytes});
        if facts.swap_limit {
            memory["swap"] = limits.memory_limit_bytes.into();
        }
        resources["memory"] = memory;
    }
    if facts.huge_page_limit {
        let limit = |limit: &HugePageLimit| json!({"pageSize": limit.size(), "limit": limit.limit_bytes});
        resources["hugepageLimits"] = record.config.huge_pages.iter().map(limit).collect();
    }
    if !record.config.security.privileged {
        resources["devices"] = json!([{"allow": false, "access": "rwm"}]);
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{
        ContainerConfig, ContainerId, SandboxConfig, limits::DEFAULT_PIDS, native::state::ImageRecord,
    };

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn record() -> ContainerRecord {
        ContainerRecord {
            id: ContainerId("c1".into()),
            config: ContainerConfig::default(),
            image: ImageRecord::default(),
            created_ms: 0,
        }
    }

    fn spec(change: impl FnOnce(&mut SandboxRecord, &mut ContainerRecord)) -> Spec {
        spec_on(false, change)
    }

    fn spec_on(unified_cgroups: bool, change: impl FnOnce(&mut SandboxRecord, &mut ContainerRecord)) -> Spec {
        let mut sandbox = SandboxRecord {
            config: SandboxConfig::default(),
            network: None,
            cgroup: "/troupe/u1".into(),
            created_ms: 0,
        };
        let mut record = record();
        change(&mut sandbox, &mut record);
        let identity = Identity { uid: 1, gid: 2, groups: vec![3], home: "/".into() };
        let capabilities = Names::from(["CHOWN".to_owned()]);
        let facts = Facts {
            identity: &identity,
            capabilities: &capabilities,
            root: Path::new("rootfs"),
            users: None,
            devices: &[],
            shared_pids: None,
            cgroups: if unified_cgroups { Cgroups::Unified } else { Cgroups::Shown },
            terminal_group: true,
            foreign_pids: false,
            swap_limit: false,
            huge_page_limit: unified_cgroups,
            max_open_files: 4096,
        };
        let dir = SandboxDir("/s".into());
        build(&sandbox, &dir, &record, &strings(&["sh"]), &strings(&["PATH=/bin"]), &facts).unwrap()
    }

    #[test]
    fn command_and_args_follow_kubernetes_rules() {
        for (command, args, expected) in [
            (&[][..], &[][..], &["entry", "cmd"][..]),
            (&["c"], &[], &["c"]),
            (&["c"], &["a"], &["c", "a"]),
            (&[], &["a"], &["entry", "a"]),
        ] {
            let mut record = record();
            record.image.entrypoint = strings(&["entry"]);
            record.image.cmd = strings(&["cmd"]);
            record.config.command = strings(command);
            record.config.args = strings(args);
            assert_eq!(arguments(&record), Some(strings(expected)), "{command:?} {args:?}");
        }
        assert_eq!(arguments(&record()), None);
    }

    #[test]
    fn later_environment_wins_and_names_appear_once() {
        let mut record = record();
        record.image.env = strings(&["PATH=/img", "A=1", "broken"]);
        record.config.env =
            vec![("A".into(), "2".into()), ("B".into(), "x=y".into()), ("B".into(), "".into())];
        assert_eq!(
            environment(&record, "pod", "/root"),
            strings(&["PATH=/img", "HOSTNAME=pod", "HOME=/root", "A=2", "B="])
        );
    }

    #[test]
    fn relative_and_missing_working_directories_are_below_the_root() {
        let mut record = record();
        assert_eq!(working_dir(&record), Path::new("/"));
        record.image.working_dir = "app".into();
        assert_eq!(working_dir(&record), Path::new("/app"));
        record.config.working_dir = Some("/srv".into());
        assert_eq!(working_dir(&record), Path::new("/srv"));
    }

    #[test]
    fn containers_get_isolation_unless_privileged() {
        let plain = spec(|_, _| ());
        let process = plain.process().as_ref().unwrap();
        assert_eq!(process.no_new_privileges(), Some(true));
        let linux = plain.linux().as_ref().unwrap();
        assert!(linux.masked_paths().as_ref().unwrap().contains(&"/proc/kcore".to_owned()));
        assert!(linux.readonly_paths().as_ref().unwrap().contains(&"/proc/sys".to_owned()));
        let unmasked = spec(|_, record| record.config.security.unmasked_proc = true);
        assert!(unmasked.linux().as_ref().unwrap().masked_paths().is_none());
        assert!(unmasked.linux().as_ref().unwrap().readonly_paths().is_none());
        let privileged = spec(|_, record| record.config.security.privileged = true);
        assert_eq!(privileged.process().as_ref().unwrap().no_new_privileges(), None);
        assert!(privileged.linux().as_ref().unwrap().masked_paths().is_none());
    }

    #[test]
    fn limits_become_cgroup_values_where_libcontainer_sets_them() {
        assert!(spec(|_, _| ()).linux().as_ref().unwrap().resources().is_none());
        let spec = spec_on(true, |sandbox, record| {
            sandbox.config.pids_limit = 1;
            record.config.resources.cpu_request_milli = 250;
            record.config.resources.cpu_limit_milli = 1;
            record.config.resources.memory_limit_bytes = 4096;
        });
        let resources = spec.linux().as_ref().unwrap().resources().as_ref().unwrap();
        let cpu = resources.cpu().as_ref().unwrap();
        assert_eq!((cpu.shares(), cpu.period(), cpu.quota()), (Some(256), Some(100_000), Some(1_000)));
        assert_eq!(resources.pids().as_ref().unwrap().limit(), DEFAULT_PIDS);
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(4096));
    }

    #[test]
    fn a_container_has_a_cgroup_of_its_own_below_the_pods() {
        for unified in [false, true] {
            let spec = spec_on(unified, |sandbox, record| {
                sandbox.cgroup = "/troupe/pod".into();
                record.id = crate::runtime::ContainerId("c-1".to_owned());
            });
            let path = spec.linux().as_ref().unwrap().cgroups_path().as_ref().unwrap();
            assert_eq!(path, Path::new("/troupe/pod/c-1"), "{unified}");
        }
    }

    #[test]
    fn nested_mounts_come_after_what_they_are_in_and_replace_pod_files() {
        let spec = spec(|_, record| {
            record.config.mounts = ["/data/in/side", "/data", "/etc/hosts"]
                .map(|path| Mount {
                    host_path: "/h".into(),
                    container_path: path.into(),
                    read_only: true,
                    ..Mount::default()
                })
                .into();
        });
        let destinations: Vec<_> =
            spec.mounts().as_ref().unwrap().iter().map(|m| m.destination().to_str().unwrap()).collect();
        let at = |path| destinations.iter().position(|d| *d == path).unwrap();
        let options = |change: fn(&mut Mount)| {
            let mut mount = Mount { container_path: "/v".into(), ..Mount::default() };
            change(&mut mount);
            volume(&mount)["options"].clone()
        };
        assert_eq!(options(|_| ()), json!(["rbind", "rprivate"]));
        let from_node = options(|mount| mount.propagation = Propagation::HostToContainer);
        assert_eq!(from_node, json!(["rbind", "rslave"]));
        assert_eq!(options(|mount| mount.read_only = true), json!(["rbind", "rprivate", "ro"]));
        let recursive = options(|mount| (mount.read_only, mount.recursive_read_only) = (true, true));
        assert_eq!(recursive, json!(["rbind", "rprivate", "ro", "rro"]));
        assert!(at("/data") < at("/data/in/side"));
        assert_eq!(destinations.iter().filter(|d| **d == "/etc/hosts").count(), 1);
    }
}
