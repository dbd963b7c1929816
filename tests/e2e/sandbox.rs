//! What a pod as a whole can ask for: the node's network, shared processes, names, sysctls, privileges.

use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::{
    harness::{Cluster, bare_pod, check, hello, is_ready, ready, shared, text, until},
    pods::{rootfs, until_logged},
};

/// Runs a pod to its end and gives its log.
#[track_caller]
fn log_of(cluster: &Cluster, ns: &str, name: &str, arguments: &[&str], spec: Value) -> String {
    let mut pod = bare_pod(name, "Never", &[hello("c", &[arguments, &["--once"]].concat())]);
    merge(&mut pod["spec"], spec);
    cluster.apply(ns, &pod);
    cluster.until_pod(ns, name, "over", |pod| pod["status"]["phase"] == "Succeeded");
    cluster.kubectl(&["logs", "-n", ns, name]).ok()
}

fn merge(into: &mut Value, from: Value) {
    for (field, value) in from.as_object().cloned().unwrap_or_default() {
        if field == "containers" {
            merge(&mut into["containers"][0], value[0].clone());
        } else {
            into[field] = value;
        }
    }
}

#[test]
fn a_pod_on_the_nodes_network_has_its_address_and_ports() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "host-network";
    cluster.namespace(ns);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let listen = format!("127.0.0.1:{port}");
    let mut container = hello("c", &["--print", "at $(IP)", "--describe", "--listen", &listen]);
    container["env"] = json!([{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]);
    let mut pod = bare_pod("host", "Always", &[container]);
    pod["spec"]["hostNetwork"] = true.into();
    cluster.apply(ns, &pod);
    let pod = cluster.until_pod(ns, "host", "ready", is_ready);
    assert_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]);
    assert_eq!(pod["status"]["podIPs"][0]["ip"], pod["status"]["hostIP"]);
    until_logged(&cluster, ns, "host", "c", &format!("listening on {listen}"));
    TcpStream::connect(&listen).expect("it listens on the node's own loopback");
    let log = cluster.kubectl(&["logs", "-n", ns, "host"]).ok();
    assert!(log.contains(&format!("at {}", text(&pod["status"]["hostIP"]))), "{log}");
    let name = nix::unistd::gethostname().unwrap().to_string_lossy().into_owned();
    assert!(log.contains(&format!("\"hostname\":\"{name}\"")), "the node's host name: {log}");
    cluster.kubectl(&["delete", "pod", "-n", ns, "host"]).ok();
    until("its port is free again", || TcpListener::bind(&listen).map_err(|error| error.to_string()));
}

#[test]
fn containers_that_share_a_process_namespace_see_each_other_in_ps() {
    if !ready() {
        return;
    }
    let Some(busybox) = crate::harness::program("busybox") else {
        assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no busybox");
        return eprintln!("skipped: no busybox (apt install busybox-static)");
    };
    let cluster = shared();
    let ns = "processes";
    cluster.namespace(ns);
    let tar = cluster.scratch().join("ps.tar");
    rootfs(&busybox, &tar);
    let uri = "/api/v1/nodes/n1/proxy/images/import?name=ps";
    cluster.kubectl(&["create", "--raw", uri, "-f", tar.to_str().unwrap()]).ok();
    let container = |name: &str, command: &[&str]| json!({"name": name, "image": "ps", "command": command});
    let look = "until /bin/busybox ps | /bin/busybox grep 'sleep 471[1]'; do sleep 0.05; done; /bin/busybox ps; \
                echo seen; exec sleep 4712";
    let containers = [container("one", &["sleep", "4711"]), container("two", &["sh", "-c", look])];
    let mut pod = bare_pod("shared", "Always", &containers);
    pod["spec"]["shareProcessNamespace"] = true.into();
    cluster.apply(ns, &pod);
    let log = until_logged(&cluster, ns, "shared", "two", "seen");
    assert!(log.contains("pause") && log.contains("sleep 4711"), "{log}");
    // One is killed and comes back; the other is not disturbed.
    let pod = cluster.until_pod(ns, "shared", "ready", is_ready);
    let sleeper = cluster.pids(&pod).into_iter().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("4711"))
    });
    crate::harness::kill9(sleeper.unwrap());
    cluster.until_pod(ns, "shared", "ready again", |pod| {
        let counts: Vec<_> = pod["status"]["containerStatuses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["restartCount"].clone())
            .collect();
        counts == [1, 0] && is_ready(pod)
    });
    cluster.kubectl(&["delete", "pod", "-n", ns, "shared"]).ok();
}

#[test]
fn names_resolvers_and_hosts_are_what_the_spec_says() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "names";
    cluster.namespace(ns);
    let spec = json!({
        "hostname": "db", "subdomain": "data", "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.9.8.7"], "searches": ["a.example"],
            "options": [{"name": "ndots", "value": "3"}]},
        "hostAliases": [{"ip": "10.1.1.1", "hostnames": ["one", "two"]}]
    });
    let read = ["--describe", "--read", "/etc/resolv.conf", "--read", "/etc/hosts"];
    let log = log_of(&cluster, ns, "named", &read, spec);
    for said in [
        "\"hostname\":\"db\"",
        "nameserver 10.9.8.7\nsearch a.example\noptions ndots:3\n",
        "\tdb.data.names.svc.cluster.local\tdb\n",
        "10.1.1.1\tone\ttwo\n",
    ] {
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
    let log =
        log_of(&cluster, ns, "full", &["--describe"], json!({"subdomain": "s", "setHostnameAsFQDN": true}));
    assert!(log.contains("\"hostname\":\"full.s.names.svc.cluster.local\""), "{log}");
}

#[test]
fn safe_sysctls_are_set_and_others_refused() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "sysctls";
    cluster.namespace(ns);
    let with = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "77"}]}});
    let name = "net.ipv4.ip_unprivileged_port_start";
    let read = ["--read", "/proc/sys/net/ipv4/ip_unprivileged_port_start"];
    assert_eq!(log_of(&cluster, ns, "safe", &read, with(name)).trim(), "77");
    let mut pod = bare_pod("unsafe", "Always", &[hello("c", &[])]);
    merge(&mut pod["spec"], with("kernel.msgmax"));
    cluster.apply(ns, &pod);
    let failed = cluster.until_pod(ns, "unsafe", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(failed["status"]["reason"], "SysctlForbidden");
    let said = cluster.until_event(ns, "unsafe", "SysctlForbidden");
    assert_eq!(said, "forbidden sysctl: \"kernel.msgmax\" not allowlisted");
    let row = cluster.kubectl(&["get", "pod", "-n", ns, "unsafe", "--no-headers"]).ok();
    assert!(row.contains("SysctlForbidden"), "{row}");
    let no_log = cluster.kubectl(&["logs", "-n", ns, "unsafe"]).fails();
    assert!(no_log.contains("in pod \"unsafe\" is not available"), "{no_log}");
}

#[test]
fn privileges_are_kubernetes_defaults_and_the_filter_is_on() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "privileges";
    cluster.namespace(ns);
    let read = ["--read", "/proc/self/status", "--describe"];
    let own = |context: Value| json!({"containers": [{"securityContext": context}]});
    let log = log_of(&cluster, ns, "plain", &read, json!({}));
    assert!(log.contains("NoNewPrivs:\t0") && log.contains("Seccomp:\t2"), "{log}");
    let log = log_of(&cluster, ns, "strict", &read, own(json!({"allowPrivilegeEscalation": false})));
    assert!(log.contains("NoNewPrivs:\t1") && log.contains("Seccomp:\t2"), "{log}");
    let all = json!({"runAsUser": 1234, "runAsGroup": 5678, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "Unconfined"}});
    let log = log_of(&cluster, ns, "user", &read, own(all));
    for said in ["\"uid\":1234", "\"gid\":5678", "CapBnd:\t0000000000000000", "Seccomp:\t0"] {
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
    // What this node cannot give is refused, not left out.
    let profile = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "nowhere.json"}});
    let mut pod = bare_pod("profile", "Always", &[hello("c", &[])]);
    merge(&mut pod["spec"], own(profile));
    cluster.apply(ns, &pod);
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let pod = cluster
        .until_pod(ns, "profile", "refused", |pod| waiting(pod)["reason"] == "CreateContainerConfigError");
    assert!(text(&waiting(&pod)["message"]).contains("nowhere.json"), "{}", waiting(&pod));
    check(cluster.pids(&pod).is_empty(), || "it runs".into()).unwrap();
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn an_ephemeral_container_looks_into_a_running_pod() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "debug";
    cluster.namespace(ns);
    cluster.apply(ns, &bare_pod("web", "Always", &[hello("c", &["--listen", "127.0.0.1:9999"])]));
    let before = cluster.until_pod(ns, "web", "ready", is_ready);
    let debug = |name: &str, target: &[&str], read: &str| {
        let own =
            ["debug", "-n", ns, "web", "--image=troupe.local/hello", "--image-pull-policy=Never", "-c", name];
        let program = ["--", "/hello", "--once", "--read", read, "--fetch", "http://127.0.0.1:9999/healthz"];
        cluster.kubectl(&[&own[..], target, &program[..]].concat()).ok();
    };
    debug("inside", &["--target=c"], "/proc/1/cmdline");
    debug("beside", &[], "/proc/1/comm");
    for name in ["inside", "beside"] {
        cluster.until_pod(ns, "web", "looked into", |pod| {
            let all = pod["status"]["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
            all.iter().any(|c| c["name"] == name && c["state"]["terminated"]["exitCode"] == 0)
        });
    }
    let log = |name: &str| cluster.kubectl(&["logs", "-n", ns, "web", "-c", name]).ok();
    assert!(log("inside").contains("127.0.0.1:9999"), "the target's command line: {}", log("inside"));
    assert!(log("beside").starts_with("hello"), "its own: {}", log("beside"));
    let after = cluster.pod(ns, "web").unwrap();
    assert!(is_ready(&after));
    assert_eq!(after["status"]["containerStatuses"], before["status"]["containerStatuses"]);
    // They cannot be taken away again, and not be there from the beginning.
    let taken = r#"[{"op": "remove", "path": "/spec/ephemeralContainers/0"}]"#;
    let arguments =
        ["patch", "pod", "-n", ns, "web", "--subresource=ephemeralcontainers", "--type=json", "-p", taken];
    let refused = cluster.kubectl(&arguments).fails();
    assert!(refused.contains("may not be removed"), "{refused}");
    cluster.kubectl(&["delete", "pod", "-n", ns, "web"]).ok();
}
