//! What pods use: shown by top, kept within limits, and made room for when the node runs low.

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde_json::{Value, json};

use crate::harness::{Cluster, Options, bare_pod, check, hello, is_ready, ready, shared, text, until};

/// A cluster of its own, with these arguments.
fn with(arguments: &[&'static str]) -> Cluster {
    Cluster::start(Options { arguments: arguments.to_vec(), ..Options::default() })
}

/// What 100,000 bytes that a pod of this cluster writes come to at least on the disk: nothing where there is none.
fn written(cluster: &Cluster) -> u32 {
    let is_memory = statfs(&cluster.data).unwrap().filesystem_type() == TMPFS_MAGIC;
    if is_memory {
        eprintln!(
            "nothing is written to a disk here: {} is in memory; TMPDIR chooses another",
            cluster.data.display()
        );
    }
    if is_memory { 0 } else { 100_000 }
}

/// The numbers of a line of `top`, without their units.
fn numbers(line: &str) -> Vec<u64> {
    let digits = |word: &str| word.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok();
    line.split_whitespace().skip(1).filter_map(digits).collect()
}

#[test]
fn top_shows_what_pods_containers_and_nodes_use() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "top";
    cluster.namespace(ns);
    let empty = cluster.kubectl(&["top", "pods", "-n", ns]);
    assert!(empty.err().contains("No resources found in top namespace."), "{}", empty.err());
    let busy = hello("busy", &["--burn-cpu", "1h", "--allocate", "40Mi"]);
    let idle = hello("idle", &["--listen", "0.0.0.0:8081"]);
    let mut pod = bare_pod("pair", "Always", &[busy, idle]);
    pod["metadata"]["labels"] = json!({"which": "pair"});
    cluster.apply(ns, &pod);
    cluster.until_pod(ns, "pair", "ready", is_ready);
    let line = until("the pod is shown", || {
        let out = cluster.kubectl(&["top", "pods", "-n", ns, "--no-headers", "-l", "which=pair"]).result()?;
        let used = numbers(&out);
        check(used.len() == 2 && used[0] >= 50 && used[1] >= 40, || out.clone())?;
        Ok(out)
    });
    assert!(line.starts_with("pair "), "{line}");
    let out = cluster.kubectl(&["top", "pod", "pair", "-n", ns, "--containers", "--sum"]).ok();
    let lines: Vec<&str> = out.lines().map(str::trim_end).collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"]
    );
    assert!(lines[1].starts_with("pair   busy") && lines[2].starts_with("pair   idle"), "{out}");
    assert!(lines[3].contains("________"), "{out}");
    assert!(cluster.kubectl(&["top", "pods", "-A", "--sort-by=memory"]).ok().contains("pair"));
    let missing = cluster.kubectl(&["top", "pod", "none", "-n", ns]).fails();
    assert!(missing.contains("podmetrics.metrics.k8s.io \"top/none\" not found"), "{missing}");
    until("the node is shown", || {
        let out = cluster.kubectl(&["top", "nodes", "--no-headers"]).result()?;
        let used = numbers(&out);
        check(used.len() == 4 && used[0] > 0 && used[1] <= 100 && used[2] > 0 && used[3] > 0, || out.clone())
    });
    // It is not among the kinds that are meant by short names.
    assert!(cluster.kubectl(&["get", "pods", "-n", ns]).ok().contains("Running"));
}

#[test]
fn the_summary_of_a_node_tells_what_it_its_pods_and_their_containers_use() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "summary";
    cluster.namespace(ns);
    let mut busy =
        hello("busy", &["--burn-cpu", "1h", "--allocate", "40Mi", "--write", "/v/some=0123456789"]);
    busy["resources"] = json!({"limits": {"memory": "256Mi"}});
    busy["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let mut pod = bare_pod("one", "Always", &[busy]);
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    cluster.apply(ns, &pod);
    let pod = cluster.until_pod(ns, "one", "ready", is_ready);
    let path = format!("/api/v1/nodes/{}/proxy/stats/summary", text(&pod["spec"]["nodeName"]));
    let number = |of: &Value| of.as_u64().unwrap_or(0);
    let (summary, found) = until("the pod is told of", || {
        let out = cluster.kubectl(&["get", "--raw", &path]).result()?;
        let summary: Value = serde_json::from_str(&out).map_err(|error| error.to_string())?;
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let found =
            pods.into_iter().find(|of| of["podRef"]["uid"] == pod["metadata"]["uid"]).unwrap_or_default();
        let used = number(&found["containers"][0]["cpu"]["usageNanoCores"]);
        // Sizes may be some seconds old.
        let sizes = [&found["ephemeral-storage"], &found["volume"][0], &found["containers"][0]["logs"]];
        let measured = sizes.iter().all(|size| number(&size["usedBytes"]) > 0);
        // What the machine uses at present is told from two readings, too.
        let machine = number(&summary["node"]["cpu"]["usageNanoCores"]) > 0;
        check(used > 50_000_000 && measured && machine, || summary.to_string())?;
        Ok((summary, found))
    });
    let container = &found["containers"][0];
    let memory = &container["memory"];
    assert_eq!((text(&container["name"]), text(&found["podRef"]["name"])), ("busy", "one"));
    assert!(number(&memory["workingSetBytes"]) >= 40 << 20, "{container}");
    assert!(
        number(&memory["rssBytes"]) >= 40 << 20 && number(&memory["usageBytes"]) >= 40 << 20,
        "{container}"
    );
    assert_eq!(number(&memory["availableBytes"]) + number(&memory["workingSetBytes"]), 256 << 20);
    assert!(number(&container["cpu"]["usageCoreNanoSeconds"]) > 0);
    assert!(container["rootfs"]["usedBytes"].is_u64(), "{container}");
    assert!(text(&found["volume"][0]["name"]) == "v", "{found}");
    assert!(found["network"]["rxBytes"].is_u64() && found["network"]["txBytes"].is_u64(), "{found}");
    assert!(number(&found["process_stats"]["process_count"]) > 0, "{found}");
    let node = &summary["node"];
    assert_eq!(node["nodeName"], pod["spec"]["nodeName"]);
    for (part, field) in [
        ("cpu", "usageNanoCores"),
        ("cpu", "usageCoreNanoSeconds"),
        ("memory", "availableBytes"),
        ("memory", "workingSetBytes"),
        ("memory", "usageBytes"),
        ("memory", "rssBytes"),
        ("fs", "capacityBytes"),
        ("fs", "usedBytes"),
        ("rlimit", "curproc"),
    ] {
        assert!(number(&node[part][field]) > 0, "{part}.{field}: {node}");
    }
    let missing = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/none/proxy/stats/summary"]).fails();
    assert!(missing.contains("nodes \"none\" not found"), "{missing}");
}

#[test]
fn prometheus_finds_what_a_node_and_its_pods_use_under_the_names_it_knows() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "scraped";
    cluster.namespace(ns);
    let much = format!("/v/much={}", "x".repeat(100_000));
    let mut busy = hello("busy", &["--burn-cpu", "1h", "--allocate", "40Mi", "--write", &much]);
    busy["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let mut pod = bare_pod("one", "Always", &[busy]);
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    cluster.apply(ns, &pod);
    let pod = cluster.until_pod(ns, "one", "ready", is_ready);
    let node = text(&pod["spec"]["nodeName"]);
    let page = |name: &str| {
        cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/{name}")])
    };
    let written = written(&cluster);
    let own = ["container=\"busy\"".to_owned(), format!("namespace=\"{ns}\""), "pod=\"one\"".to_owned()];
    let value = |page: &str, metric: &str, labels: &[String]| -> Option<f64> {
        let lines = page
            .lines()
            .filter(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let mut found = lines.filter(|line| labels.iter().all(|label| line.contains(label.as_str())));
        found.next()?.rsplit(' ').next()?.parse().ok()
    };
    until("its use is told", || {
        let resource = page("resource").result()?;
        let cadvisor = page("cadvisor").result()?;
        let of = |page: &str, metric: &str| value(page, metric, &own).unwrap_or(0.0);
        let held = f64::from(40 << 20);
        let told = of(&resource, "container_cpu_usage_seconds_total") > 0.1
            && of(&resource, "container_memory_working_set_bytes") >= held
            && of(&resource, "container_start_time_seconds") > 1e9
            && value(&resource, "pod_cpu_usage_seconds_total", &own[1..]).is_some_and(|used| used > 0.1)
            && value(&resource, "node_memory_working_set_bytes", &[]).is_some_and(|used| used > held)
            && of(&cadvisor, "container_cpu_usage_seconds_total") > 0.1
            && of(&cadvisor, "container_memory_working_set_bytes") >= held
            && value(&cadvisor, "container_fs_writes_bytes_total", &own)
                .is_some_and(|of| of >= f64::from(written))
            && value(&cadvisor, "container_fs_reads_bytes_total", &own).is_some()
            && value(&cadvisor, "container_network_receive_bytes_total", &own[1..]).is_some()
            && value(&cadvisor, "container_network_transmit_bytes_total", &own[1..]).is_some()
            && value(&cadvisor, "machine_cpu_cores", &[]).is_some_and(|cores| cores >= 1.0);
        check(told, || format!("{resource}\n{cadvisor}"))
    });
    let path = format!("/api/v1/nodes/{node}/proxy/stats/summary");
    let summary: Value = serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path]).ok()).unwrap();
    let mine = |of: &&Value| of["podRef"]["uid"] == pod["metadata"]["uid"];
    let found = summary["pods"].as_array().unwrap().iter().find(mine).unwrap();
    for io in [&found["io"], &found["containers"][0]["io"]] {
        assert!(io["writeBytes"].as_u64() >= Some(u64::from(written)) && io["readBytes"].is_u64(), "{found}");
    }
    assert!(page("none").fails().contains("could not find the requested resource"));
}

#[test]
fn a_pod_that_uses_more_of_the_disk_than_it_may_is_evicted() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "evicted";
    cluster.namespace(ns);
    let much = "x".repeat(100_000);
    let writes = |path: &str| hello("c", &["--write", &format!("{path}={much}")]);
    let mut layer = writes("/much");
    layer["resources"] =
        json!({"limits": {"ephemeral-storage": "64Ki"}, "requests": {"ephemeral-storage": "1Ki"}});
    layer["securityContext"] = json!({"runAsUser": 0});
    let mut volume = writes("/v/much");
    volume["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let mut within = hello("c", &["--write", "/little=x"]);
    within["securityContext"] = json!({"runAsUser": 0});
    within["resources"] = json!({"limits": {"ephemeral-storage": "10Mi"}});
    let with_volume = |name: &str, container: Value| {
        let mut pod = bare_pod(name, "Always", &[container]);
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "64Ki"}}]);
        pod
    };
    cluster.apply(ns, &bare_pod("layer", "Always", &[layer]));
    cluster.apply(ns, &with_volume("volume", volume));
    cluster.apply(ns, &with_volume("within", within));
    let gone = |pod: &Value| pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == "Evicted";
    for (name, told) in [
        ("layer", "Pod ephemeral local storage usage exceeds the total limit of containers 64Ki. "),
        ("volume", "Usage of EmptyDir volume \"v\" exceeds the limit \"64Ki\". "),
    ] {
        let pod = cluster.until_pod(ns, name, "evicted", gone);
        assert_eq!(text(&pod["status"]["message"]), told);
        assert_eq!(cluster.until_event(ns, name, "Evicted").trim_end(), told.trim_end(), "{name}");
    }
    assert!(is_ready(&cluster.pod(ns, "within").unwrap()), "who keeps within its limits stays");
}

#[test]
fn a_node_low_on_memory_says_so_takes_no_careless_pods_and_ends_those_it_has() {
    if !ready() {
        return;
    }
    // More than any machine has.
    let cluster = with(&["--eviction-hard", "memory.available<100%"]);
    let condition = |node: &Value| {
        let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == "MemoryPressure").map(|c| text(&c["status"]).to_owned())
    };
    until("the node is low on memory", || {
        let nodes = cluster.try_get(&["nodes"])?;
        let node = &nodes["items"][0];
        let taints = node["spec"]["taints"].to_string();
        check(condition(node).as_deref() == Some("True") && taints.contains("memory-pressure"), || {
            taints.clone()
        })
    });
    cluster.apply("default", &bare_pod("careless", "Always", &[hello("c", &[])]));
    let mut careful = hello("c", &[]);
    careful["resources"] = json!({"requests": {"memory": "1Mi"}});
    cluster.apply("default", &bare_pod("careful", "Always", &[careful]));
    let pod = cluster.until_pod("default", "careful", "evicted", |pod| {
        pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == "Evicted"
    });
    let message = text(&pod["status"]["message"]);
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    let careless = cluster.until_pod("default", "careless", "refused", |pod| {
        pod["status"]["conditions"].to_string().contains("node.kubernetes.io/memory-pressure")
    });
    assert_eq!(careless["status"]["phase"], "Pending");
}

#[test]
fn logs_of_a_flood_are_read_across_their_files_and_stay_within_their_limits() {
    if !ready() {
        return;
    }
    let cluster = with(&["--container-log-max-size", "1Mi", "--container-log-max-files", "4"]);
    let lines = 60_000;
    let pod = bare_pod("flood", "Never", &[hello("c", &["--flood", &lines.to_string(), "--once"])]);
    cluster.apply("default", &pod);
    cluster.until_pod("default", "flood", "done", |pod| pod["status"]["phase"] == "Succeeded");
    let numbers = |log: &str| -> Vec<u32> {
        log.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect()
    };
    let all = numbers(&cluster.kubectl(&["logs", "flood"]).ok());
    // Three to four files of a mebibyte, of lines of some 120 bytes.
    assert!(all.len() > 20_000 && all.len() < 40_000, "{}", all.len());
    assert!(all.windows(2).all(|two| two[1] == two[0] + 1) && all.last() == Some(&(lines - 1)));
    let tail = numbers(&cluster.kubectl(&["logs", "flood", "--tail", "15000"]).ok());
    assert_eq!(tail, all[all.len() - 15_000..]);
}
