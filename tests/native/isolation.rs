//! What a container may not do, and what it may.

use super::bench::{Bench, config, sandbox_config};
use troupe::runtime::{ContainerConfig, ContainerRuntime as _, Mount, RuntimeError};

/// `unshare` is refused by the filter and needs no capability for a user namespace, so only the filter can refuse it.
const UNSHARE: &str = "unshare -U true && echo allowed || echo denied";

#[tokio::test]
async fn the_system_call_filter_denies_unless_unconfined() {
    let mut bench = Bench::new().await;
    let (lines, _) = bench.script(|_| (), UNSHARE).await;
    assert_eq!(lines.last().unwrap(), "denied");
    let (lines, _) = bench.script(|config| config.security.seccomp_unconfined = true, UNSHARE).await;
    assert_eq!(lines.last().unwrap(), "allowed");
}

#[tokio::test]
async fn a_profile_from_a_file_takes_the_default_filters_place() {
    let mut bench = Bench::new().await;
    let file = bench.path().join("profile.json");
    let rule = |name: &str, action: &str| serde_json::json!({"names": [name], "action": action});
    let deny = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        rule("mkdirat", "SCMP_ACT_ERRNO"), rule("mkdir", "SCMP_ACT_ERRNO"),
        rule("sethostname", "SCMP_ACT_KILL_PROCESS"),
    ]});
    std::fs::write(&file, deny.to_string()).unwrap();
    let script =
        "mkdir /d && echo made || echo denied; sh -c 'hostname x'; echo $?; unshare -U true && echo allowed";
    for escalate in [false, true] {
        let change = |config: &mut ContainerConfig| {
            config.security.seccomp_profile = Some(file.clone());
            config.security.allow_privilege_escalation = escalate;
        };
        let (lines, _) = bench.script(change, script).await;
        // 159 is 128 and SIGSYS.
        assert_eq!(lines, ["denied", "159", "allowed"], "escalation {escalate}");
    }
    let pod = bench.sandbox("bad").await;
    let mut missing = config("bad", &["true"]);
    missing.security.seccomp_profile = Some(bench.path().join("none.json"));
    let refused = bench.create(&pod, missing).await;
    assert!(matches!(&refused, Err(RuntimeError::Config(text)) if text.contains("none.json")), "{refused:?}");
}

#[tokio::test]
async fn a_denied_system_call_fails_with_eperm_and_clone3_as_if_it_did_not_exist() {
    let mut bench = Bench::new().await;
    // The capability is there, so what refuses is the filter: with SYS_ADMIN it would allow the call.
    let script = "unshare -U true 2>&1; setsid true && echo ordinary calls work";
    let (lines, _) = bench.script(|_| (), script).await;
    assert!(lines[0].ends_with("Operation not permitted"), "{lines:?}");
    assert_eq!(lines[1], "ordinary calls work");
    // This machine's C library starts threads and processes by clone3 where there is one.
    let probe = std::env::current_exe().unwrap();
    let with_probe = |config: &mut ContainerConfig| {
        config.mounts = vec![Mount {
            host_path: probe,
            container_path: "/probe".into(),
            read_only: true,
            ..Mount::default()
        }];
        config.env = vec![("TROUPE_TEST_THREADS".into(), "1".into())];
    };
    let script =
        "/probe --exact native::isolation::starts_a_thread_when_told_to --nocapture | grep -c started";
    let (lines, _) = bench.script(with_probe, script).await;
    assert_eq!(lines, ["1"]);
}

/// Not a test by itself: what the one above runs in a container.
#[test]
fn starts_a_thread_when_told_to() {
    if std::env::var_os("TROUPE_TEST_THREADS").is_some() {
        std::thread::spawn(|| println!("started")).join().unwrap();
    }
}

#[tokio::test]
async fn no_more_processes_are_started_than_allowed() {
    let mut bench = Bench::new().await;
    let limit = troupe::runtime::SandboxConfig { uid: "few".into(), pids_limit: 10, ..sandbox_config() };
    let pod = bench.sandbox_with(limit).await;
    // The shell ends when it cannot fork.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & echo $i; done";
    let id = bench.start(&pod, config("c", &["sh", "-c", script])).await;
    let exit = bench.exit(&id).await;
    let started = bench.output("c").iter().filter(|line| line.starts_with("stdout")).count();
    assert!((5..10).contains(&started), "{:?}", bench.output("c"));
    assert!(bench.output("c").last().unwrap().contains("fork"), "{:?}", bench.output("c"));
    assert_ne!(exit.code, 0);
}

#[tokio::test]
async fn a_container_sees_its_own_cgroup_and_cannot_change_it() {
    let mut bench = Bench::new().await;
    let limit = |config: &mut ContainerConfig| config.resources.memory_limit_bytes = 32 << 20;
    // Its own processes alone are in it: the shell and the one that reads.
    let script = "cd /sys/fs/cgroup; [ -d memory ] && cd memory
        wc -l < cgroup.procs
        echo 1 > memory.limit_in_bytes || echo 1 > memory.max || mkdir more || echo refused";
    let (lines, _) = bench.script(limit, script).await;
    assert_eq!((lines[0].as_str(), lines.last().unwrap().as_str()), ("2", "refused"), "{lines:?}");
    let (lines, _) = bench
        .script(
            |config| config.security.privileged = true,
            "cd /sys/fs/cgroup; [ -d memory ] && cd memory; mkdir more && rmdir more && echo changed",
        )
        .await;
    assert_eq!(lines, ["changed"]);
}

#[tokio::test]
async fn no_more_processor_time_is_used_than_allowed() {
    let mut bench = Bench::new().await;
    let limit = |config: &mut ContainerConfig| config.resources.cpu_limit_milli = 50;
    let script = "timeout -s KILL 1 sh -c 'while true; do true; done'
        cat /sys/fs/cgroup/cpu/cpu.stat /sys/fs/cgroup/cpu.stat 2>/dev/null | grep nr_throttled
        times | tail -n 1";
    let (lines, _) = bench.script(limit, script).await;
    let throttled: u64 = lines[0].strip_prefix("nr_throttled ").unwrap().parse().unwrap();
    assert!(throttled > 0, "{lines:?}");
    // Children's user and system time, `0m0.050s 0m0.010s`.
    let used: f64 = lines[1]
        .split_whitespace()
        .map(|time| time.strip_prefix("0m").unwrap().trim_end_matches('s').parse::<f64>().unwrap())
        .sum();
    assert!(used < 0.3, "{used} s of about one second at a limit of a twentieth: {lines:?}");
}

#[tokio::test]
async fn escalation_allowed_or_not_the_filter_is_on_and_capabilities_are_few() {
    let mut bench = Bench::new().await;
    let script = "grep -E '^(CapBnd|CapPrm|CapEff|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status";
    let own = ["CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb"];
    let rest = ["CapBnd:\t00000000a80425fb", "CapAmb:\t0000000000000000"];
    for (escalate, no_new_privs) in [(false, "NoNewPrivs:\t1"), (true, "NoNewPrivs:\t0")] {
        let (lines, _) =
            bench.script(|config| config.security.allow_privilege_escalation = escalate, script).await;
        let expected: Vec<&str> =
            own.iter().chain(&rest).copied().chain([no_new_privs, "Seccomp:\t2"]).collect();
        assert_eq!(lines, expected, "escalation {escalate}");
        let (lines, _) =
            bench.script(|config| config.security.allow_privilege_escalation = escalate, UNSHARE).await;
        assert_eq!(lines.last().unwrap(), "denied", "escalation {escalate}");
    }
}

#[tokio::test]
async fn another_user_has_no_capabilities_and_its_groups() {
    let mut bench = Bench::new().await;
    for escalate in [false, true] {
        let as_www = |config: &mut ContainerConfig| {
            config.security.user = Some(33);
            config.security.supplemental_groups = vec![4242];
            config.security.allow_privilege_escalation = escalate;
        };
        let (lines, exit) = bench
            .script(as_www, "id -u; id -g; id -G; grep CapEff /proc/self/status; echo x > /dev/stderr")
            .await;
        assert_eq!(
            lines[..4],
            ["33", "34", "34 29 4242", "CapEff:\t0000000000000000"],
            "escalation {escalate}"
        );
        assert_eq!(exit.code, 0, "{lines:?}");
    }
}

#[tokio::test]
async fn capabilities_are_added_and_dropped() {
    let mut bench = Bench::new().await;
    let only = |config: &mut ContainerConfig| {
        config.security.drop_capabilities = vec!["ALL".into()];
        config.security.add_capabilities = vec!["CHOWN".into()];
    };
    let (lines, _) = bench.script(only, "grep -E 'Cap(Eff|Bnd)' /proc/self/status").await;
    assert_eq!(lines, ["CapEff:\t0000000000000001", "CapBnd:\t0000000000000001"]);
    let pod = bench.sandbox("bad").await;
    let mut unknown = config("bad", &["true"]);
    unknown.security.add_capabilities = vec!["FLY".into()];
    let refused = bench.create(&pod, unknown).await;
    assert!(matches!(&refused, Err(RuntimeError::Config(text)) if text.contains("FLY")), "{refused:?}");
}

#[tokio::test]
async fn kernel_interfaces_are_masked_or_read_only() {
    let mut bench = Bench::new().await;
    // Not every kernel has all of them.
    let script = "for f in kcore keys timer_list sched_debug interrupts; do
            [ ! -e /proc/$f ] || [ $(wc -c < /proc/$f) = 0 ] || echo $f shows
        done
        find /proc/acpi /sys/firmware -type f | wc -l
        echo 1 > /proc/sys/kernel/panic || echo sys refused
        echo 1 > /sys/kernel/mm/ksm/run || echo sysfs refused
        mknod /d b 1 0 && cat /d || echo device refused";
    let (lines, _) = bench.script(|_| (), script).await;
    assert_eq!(lines, ["0", "sys refused", "sysfs refused", "device refused"]);
}

#[tokio::test]
async fn a_privileged_container_may_do_all_that() {
    let mut bench = Bench::new().await;
    let script = "unshare -m true && mount -t tmpfs none /tmp && [ -w /proc/sys/kernel/panic ] && echo yes";
    let (lines, exit) = bench.script(|config| config.security.privileged = true, script).await;
    assert_eq!((lines.last().map(String::as_str), exit.code), (Some("yes"), 0), "{lines:?}");
}

#[tokio::test]
async fn a_read_only_root_cannot_be_written_but_volumes_can() {
    let mut bench = Bench::new().await;
    let volumes = [("rw", false), ("ro", true)].map(|(name, read_only)| {
        let host_path = bench.path().join(name);
        std::fs::create_dir(&host_path).unwrap();
        Mount { host_path, container_path: format!("/{name}"), read_only, ..Mount::default() }
    });
    let written = bench.path().join("rw/file");
    let change = |config: &mut ContainerConfig| {
        config.security.read_only_root = true;
        config.mounts = volumes.into();
    };
    let (lines, _) =
        bench.script(change, "for d in / /ro /rw; do touch $d/file 2>/dev/null && echo $d; done").await;
    assert_eq!(lines, ["/rw"]);
    assert!(written.exists());
}

/// Another container may write to a volume at any time.
#[tokio::test]
async fn a_part_of_a_volume_is_what_it_was_when_it_was_checked_and_never_lies_outside() {
    let mut bench = Bench::new().await;
    let volume = bench.path().join("volume");
    let (part, secret) = (volume.join("sub/part"), bench.path().join("secret"));
    for dir in [&part, &secret] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::write(part.join("mine"), "").unwrap();
    std::fs::write(secret.join("theirs"), "").unwrap();
    let pod = bench.sandbox("p").await;
    let listing = |host_path: &std::path::Path| ContainerConfig {
        mounts: vec![Mount {
            host_path: host_path.to_owned(),
            container_path: "/v".into(),
            within: Some(volume.clone()),
            ..Mount::default()
        }],
        ..config("c", &["ls", "/v"])
    };
    let id = bench.create(&pod, listing(&part)).await.unwrap();
    std::fs::rename(&part, volume.join("aside")).unwrap();
    std::os::unix::fs::symlink(&secret, &part).unwrap();
    bench.runtime().start_container(&id).await.unwrap();
    bench.exit(&id).await;
    assert_eq!(bench.output("c"), ["stdout F mine"]);
    // The next one is refused, and what was held of the first is given back with it.
    let refused = bench.try_start(&pod, listing(&part)).await;
    assert!(
        matches!(&refused, Err(RuntimeError::Config(text)) if text.ends_with("leads out of the volume")),
        "{refused:?}"
    );
    bench.runtime().remove_container(&id).await.unwrap();
}

#[tokio::test]
async fn environment_directory_and_identity_are_set() {
    let mut bench = Bench::new().await;
    let change = |config: &mut ContainerConfig| {
        config.working_dir = Some("/made/for/it".into());
        config.env = vec![("A".into(), "1".into()), ("A".into(), "2 3".into())];
    };
    let script = "pwd; echo $A; echo $HOME; hostname; echo $HOSTNAME; cat /etc/hostname; echo $$; ulimit -n";
    let (lines, _) = bench.script(change, script).await;
    assert_eq!(lines, ["/made/for/it", "2 3", "/root", "web", "web", "web", "1", "1024"]);
}

#[tokio::test]
async fn no_descriptor_of_the_runtime_leaks_into_a_container() {
    let mut bench = Bench::new().await;
    // The directory being listed is the one descriptor beyond the standard three.
    let (lines, _) = bench.script(|_| (), "exec ls /proc/self/fd").await;
    assert_eq!(lines, ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn running_as_root_is_refused_when_asked_to() {
    let bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let mut root = config("c", &["true"]);
    root.security.run_as_non_root = true;
    let refused = bench.create(&pod, root).await;
    let expected = "container has runAsNonRoot and image will run as root";
    assert!(matches!(&refused, Err(RuntimeError::Config(text)) if text == expected), "{refused:?}");
}
