//! Config maps, secrets and volumes: what programs find in their environment and files, and what keeps them waiting.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::mount::MsFlags;
use serde_json::{Value, json};

use crate::harness::{Cluster, Options, bare_pod, check, hello, is_ready, ready, shared, text, until};

/// A secret's value.
const HIDDEN: &str = "s3cret-that-stays-in-memory";

fn config_map(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn secret(name: &str, data: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
}

fn waiting(pod: &Value) -> (&str, &str) {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    (text(&waiting["reason"]), text(&waiting["message"]))
}

/// A pod of one container that mounts one volume at `/v`.
fn mounting(name: &str, source: Value, mount: Value) -> Value {
    let (mut volume, mut at) = (source, mount);
    volume["name"] = "v".into();
    at["name"] = "v".into();
    at["mountPath"] = "/v".into();
    let mut container = hello("c", &[]);
    container["volumeMounts"] = json!([at]);
    let mut pod = bare_pod(name, "Always", &[container]);
    pod["spec"]["volumes"] = json!([volume]);
    pod
}

/// A path as the pod's container sees it.
fn inside(cluster: &Cluster, pod: &Value, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{path}", cluster.pid(pod)))
}

/// Where the node keeps a pod's things.
fn pod_dir(cluster: &Cluster, pod: &Value) -> PathBuf {
    cluster.data.join("nodes/n1/pods").join(text(&pod["metadata"]["uid"]))
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    table.lines().filter(|line| line.contains(&*dir.to_string_lossy())).map(str::to_owned).collect()
}

/// Files below a directory that hold a text; what is mounted there is not looked into.
fn files_with(dir: &Path, needle: &str) -> Vec<PathBuf> {
    let device = fs::metadata(dir).unwrap().dev();
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
            if metadata.is_dir() && metadata.dev() == device {
                pending.push(entry.path());
            } else if metadata.is_file() {
                let bytes = fs::read(entry.path()).unwrap_or_default();
                if bytes.windows(needle.len()).any(|window| window == needle.as_bytes()) {
                    found.push(entry.path());
                }
            }
        }
    }
    found
}

#[test]
fn variables_come_from_config_maps_secrets_and_the_pod_itself() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "variables";
    cluster.namespace(ns);
    cluster.apply(ns, &config_map("app", &json!({"COLOR": "blue", "1st": "skipped"})));
    cluster.apply(ns, &secret("login", &json!({"user": "anna", "password": "pa55-in-env"})));
    let mut container = hello("c", &["--once", "--describe", "--print", "$(COLOR) $(LOGIN_user)"]);
    container["envFrom"] = json!([
        {"configMapRef": {"name": "app"}},
        {"prefix": "LOGIN_", "secretRef": {"name": "login"}},
        {"configMapRef": {"name": "nowhere", "optional": true}}
    ]);
    container["resources"] = json!({"limits": {"memory": "64Mi"}});
    container["env"] = json!([
        {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
        {"name": "URL", "value": "http://$(LOGIN_user):$(PW)@host"},
        {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "app", "key": "none", "optional": true}}},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}
    ]);
    cluster.apply(ns, &bare_pod("env", "Never", &[container]));
    cluster.until_pod(ns, "env", "over", |pod| pod["status"]["phase"] == "Succeeded");
    let log = cluster.kubectl(&["logs", "-n", ns, "env"]).ok();
    let described: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    let env = &described["env"];
    assert_eq!((&env["COLOR"], &env["LOGIN_user"]), (&json!("blue"), &json!("anna")));
    assert_eq!(env["URL"], "http://anna:pa55-in-env@host");
    assert_eq!((&env["MEMORY"], &env["NONE"]), (&json!("64"), &Value::Null));
    let node = cluster.get(&["node", "n1"]);
    assert_eq!(env["CPUS"], node["status"]["allocatable"]["cpu"]);
    assert_eq!(log.lines().nth(1), Some("blue anna"));
    let said = cluster.until_event(ns, "env", "InvalidEnvironmentVariableNames");
    assert!(said.starts_with("Keys [1st] from the EnvFrom configMap variables/app were skipped"), "{said}");
}

#[test]
fn pods_wait_for_what_they_refer_to_and_go_on_when_it_comes() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "waiting";
    cluster.namespace(ns);
    let keyed = |name: &str, source: Value| {
        let mut container = hello("c", &[]);
        container["env"] = json!([{"name": "X", "valueFrom": source}]);
        bare_pod(name, "Always", &[container])
    };
    cluster.apply(ns, &config_map("partial", &json!({"other": "x"})));
    cluster.apply(ns, &keyed("env", json!({"configMapKeyRef": {"name": "late", "key": "k"}})));
    cluster.apply(ns, &keyed("key", json!({"configMapKeyRef": {"name": "partial", "key": "k"}})));
    cluster.apply(ns, &mounting("volume", json!({"secret": {"secretName": "late"}}), json!({})));
    for (name, message) in
        [("env", "configmap \"late\" not found"), ("key", "couldn't find key k in ConfigMap waiting/partial")]
    {
        let expected = ("CreateContainerConfigError", message);
        cluster.until_pod(ns, name, "waiting", |pod| waiting(pod) == expected);
        assert_eq!(cluster.until_event(ns, name, "Failed"), format!("Error: {message}"));
    }
    let said = cluster.until_event(ns, "volume", "FailedMount");
    assert_eq!(said, "MountVolume.SetUp failed for volume \"v\" : secret \"late\" not found");
    let pod = cluster.pod(ns, "volume").unwrap();
    assert_eq!((waiting(&pod).0, text(&pod["status"]["phase"])), ("ContainerCreating", "Pending"));
    cluster.apply(ns, &config_map("late", &json!({"k": "v"})));
    cluster.apply(ns, &config_map("partial", &json!({"k": "v"})));
    cluster.apply(ns, &secret("late", &json!({"k": "v"})));
    for name in ["env", "key", "volume"] {
        let pod = cluster.until_pod(ns, name, "ready", is_ready);
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{name}");
    }
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn mounted_files_change_live_and_secrets_never_touch_the_disk() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "files";
    cluster.namespace(ns);
    cluster.apply(ns, &config_map("app", &json!({"color": "blue", "size": "1"})));
    cluster.apply(ns, &secret("login", &json!({"password": HIDDEN})));
    let mut container = hello("c", &[]);
    container["volumeMounts"] = json!([
        {"name": "app", "mountPath": "/app"},
        {"name": "me", "mountPath": "/me"},
        {"name": "login", "mountPath": "/login"},
        {"name": "all", "mountPath": "/all"},
        {"name": "app", "mountPath": "/etc/color", "subPath": "color"}
    ]);
    container["env"] = json!([
        {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}}]);
    container["args"] = json!(["--write", "/dev/null=$(PW)"]);
    let mut pod = bare_pod("web", "Always", &[container]);
    let labels = json!([{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]);
    pod["spec"]["securityContext"] = json!({"fsGroup": 4242});
    pod["spec"]["volumes"] = json!([
        {"name": "app", "configMap": {"name": "app"}},
        {"name": "login", "secret": {"secretName": "login", "defaultMode": 0o400}},
        {"name": "me", "downwardAPI": {"items": labels}},
        {"name": "all", "projected": {"sources": [
            {"configMap": {"name": "app", "items": [{"key": "size", "path": "deep/size"}]}},
            {"secret": {"name": "login"}},
            {"downwardAPI": {"items": labels}}]}}
    ]);
    cluster.apply(ns, &pod);
    let pod = cluster.until_pod(ns, "web", "ready", is_ready);
    let read = |path: &str| fs::read_to_string(inside(&cluster, &pod, path)).map_err(|e| e.to_string());
    for (path, content) in [
        ("/app/color", "blue"),
        ("/app/size", "1"),
        ("/login/password", HIDDEN),
        ("/all/deep/size", "1"),
        ("/all/password", HIDDEN),
        ("/all/labels", "app=\"web\""),
        ("/etc/color", "blue"),
    ] {
        assert_eq!(read(path).as_deref(), Ok(content), "{path}");
    }
    let password = fs::metadata(inside(&cluster, &pod, "/login/password")).unwrap();
    assert_eq!((password.mode() & 0o7777, password.gid()), (0o440, 4242), "0400, and its group may read");
    assert!(fs::write(inside(&cluster, &pod, "/app/new"), "x").is_err(), "it is mounted read-only");
    let link = fs::read_link(inside(&cluster, &pod, "/app/..data")).unwrap();
    assert!(link.to_string_lossy().starts_with("..20"), "{link:?}");

    // Neither by its volumes nor by its variables and arguments does a secret come to the node's disk.
    assert_eq!(files_with(&cluster.data.join("nodes"), HIDDEN), Vec::<PathBuf>::new());
    assert!(!fs::read_to_string(cluster.log()).unwrap().contains(HIDDEN), "nor into the log");

    let begun = Instant::now();
    cluster.apply(ns, &config_map("app", &json!({"color": "red"})));
    cluster.kubectl(&["label", "pod", "-n", ns, "web", "tier=front"]).ok();
    for (path, content) in [
        ("/app/color", Ok("red")),
        ("/me/labels", Ok("app=\"web\"\ntier=\"front\"")),
        ("/etc/color", Ok("blue")),
    ] {
        until(&format!("{path} is {content:?}"), || {
            check(read(path).as_deref().map_err(|_| ()) == content, || format!("{:?}", read(path)))
        });
    }
    assert!(read("/app/size").is_err(), "a key that is gone is a file that is gone");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // The projection still wants the key that is gone: it keeps what it has, and says so.
    let said = cluster.until_event(ns, "web", "FailedMount");
    assert!(said.contains("references non-existent config key: size"), "{said}");
    assert_eq!(read("/all/deep/size").as_deref(), Ok("1"));

    let dir = pod_dir(&cluster, &pod);
    assert_eq!(mounts_below(&dir).len(), 3, "for the secret, the projection and the downward API");
    cluster.kubectl(&["delete", "pod", "-n", ns, "web"]).ok();
    until("its volumes are gone", || {
        check(!dir.exists() && mounts_below(&dir).is_empty(), || format!("{:?}", mounts_below(&dir)))
    });
}

#[test]
fn volumes_in_memory_are_bounded_and_sub_paths_stay_in_their_volume() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "volumes";
    cluster.namespace(ns);
    let memory = json!({"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
    cluster.apply(ns, &mounting("memory", memory, json!({})));
    let host = cluster.scratch().join("host");
    fs::create_dir_all(host.join("inside")).unwrap();
    fs::create_dir_all(cluster.scratch().join("outside")).unwrap();
    symlink("../outside", host.join("out")).unwrap();
    let on_host = |path: &Path| json!({"hostPath": {"path": path, "type": "Directory"}});
    cluster.apply(ns, &mounting("escape", on_host(&host), json!({"subPath": "out/made"})));
    cluster.apply(ns, &mounting("inside", on_host(&host), json!({"subPath": "inside/made"})));
    let mut named = mounting("named", json!({"emptyDir": {}}), json!({"subPathExpr": "logs/$(NAME)"}));
    named["spec"]["containers"][0]["env"] =
        json!([{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]);
    named["spec"]["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 2000});
    named["spec"]["containers"][0]["args"] = json!(["--write", "/v/note=written"]);
    cluster.apply(ns, &named);
    let mut shared_out = mounting("both", on_host(&host), json!({"mountPropagation": "Bidirectional"}));
    shared_out["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    cluster.apply(ns, &shared_out);

    let pod = cluster.until_pod(ns, "memory", "ready", is_ready);
    let place = inside(&cluster, &pod, "/v");
    let figures = nix::sys::statvfs::statvfs(&place).unwrap();
    assert_eq!(figures.blocks() * figures.fragment_size(), 1 << 20);
    assert_eq!(fs::metadata(&place).unwrap().mode() & 0o7777, 0o777);
    assert!(fs::write(place.join("big"), vec![0; 2 << 20]).is_err(), "it is full");

    cluster.until_pod(ns, "escape", "refused", |pod| {
        let (reason, message) = waiting(pod);
        reason == "CreateContainerConfigError"
            && message.starts_with("failed to prepare subPath for volumeMount \"v\" of container \"c\"")
            && message.ends_with("leads out of the volume")
    });
    assert_eq!(fs::read_dir(cluster.scratch().join("outside")).unwrap().count(), 0);
    let pod = cluster.until_pod(ns, "inside", "ready", is_ready);
    fs::write(host.join("inside/made/note"), "x").unwrap();
    assert_eq!(fs::read_to_string(inside(&cluster, &pod, "/v/note")).unwrap(), "x");
    let pod = cluster.until_pod(ns, "named", "ready", is_ready);
    let note = pod_dir(&cluster, &pod).join("volumes/v/logs/named/note");
    assert_eq!(fs::read_to_string(&note).unwrap(), "written");
    assert_eq!(fs::metadata(&note).unwrap().gid(), 2000, "files are of the volume's group");
    cluster.until_pod(ns, "both", "refused", |pod| {
        waiting(pod).0 == "CreateContainerConfigError" && waiting(pod).1.contains("Bidirectional")
    });
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

/// A mount of the node's that later mounts are told from; taken off when the test ends.
struct Shared(PathBuf);

impl Shared {
    fn at(dir: PathBuf) -> Shared {
        fs::create_dir_all(&dir).unwrap();
        mount_tmpfs(&dir);
        let shared = MsFlags::MS_SHARED;
        nix::mount::mount(None::<&str>, &dir, None::<&str>, shared, None::<&str>).unwrap();
        Shared(dir)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for dir in [self.0.join("later"), self.0.clone()] {
            let _ = nix::mount::umount2(&dir, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn mount_tmpfs(dir: &Path) {
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

#[test]
fn what_the_node_mounts_later_appears_where_that_was_asked_for() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "propagation";
    cluster.namespace(ns);
    let host = Shared::at(cluster.scratch().join("shared"));
    let source = || json!({"hostPath": {"path": host.0}});
    cluster.apply(ns, &mounting("sees", source(), json!({"mountPropagation": "HostToContainer"})));
    cluster.apply(ns, &mounting("plain", source(), json!({})));
    let mut both = mounting("both", source(), json!({"mountPropagation": "Bidirectional"}));
    let told = cluster.kubectl_in(&["apply", "-n", ns, "-f", "-"], &both.to_string()).fails();
    assert!(told.contains("available only to privileged containers"), "{told}");
    both["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    cluster.apply(ns, &both);
    let both = cluster.until_pod(ns, "both", "ready", is_ready);
    let sees = cluster.until_pod(ns, "sees", "ready", is_ready);
    let plain = cluster.until_pod(ns, "plain", "ready", is_ready);
    let later = host.0.join("later");
    fs::create_dir(&later).unwrap();
    mount_tmpfs(&later);
    fs::write(later.join("note"), "x").unwrap();
    assert!(inside(&cluster, &sees, "/v/later/note").exists());
    assert!(inside(&cluster, &both, "/v/later/note").exists());
    assert!(!inside(&cluster, &plain, "/v/later/note").exists());
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn a_later_kubelet_takes_volumes_over_and_nothing_of_them_is_left() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let ns = "default";
    cluster.apply(ns, &secret("login", &json!({"k": "one"})));
    for name in ["stays", "goes"] {
        cluster.apply(ns, &mounting(name, json!({"secret": {"secretName": "login"}}), json!({})));
    }
    let stays = cluster.until_pod(ns, "stays", "ready", is_ready);
    let goes = cluster.until_pod(ns, "goes", "ready", is_ready);
    let pid = cluster.pid(&stays);
    cluster.kill();
    // What a pod left that ended meanwhile, as far as the runtime knows.
    let left = cluster.data.join("nodes/n1/pods/left-behind/volumes/v");
    fs::create_dir_all(&left).unwrap();
    mount_tmpfs(&left);
    cluster.up();
    cluster.apply(ns, &secret("login", &json!({"k": "two"})));
    let file = inside(&cluster, &stays, "/v/k");
    until("the file changes", || {
        let now = fs::read_to_string(&file).map_err(|e| e.to_string())?;
        check(now == "two", || now.clone())
    });
    assert_eq!(cluster.pid(&stays), pid, "the container was not touched");
    let pods = cluster.data.join("nodes/n1/pods");
    cluster.kubectl(&["delete", "pod", "-n", ns, "goes"]).ok();
    until("one volume is left", || {
        let now = mounts_below(&pods);
        check(now.len() == 1 && !pod_dir(&cluster, &goes).exists(), || now.join("\n"))
    });
    cluster.stop();
    let data = cluster.data.to_string_lossy().into_owned();
    let reset = std::process::Command::new(env!("CARGO_BIN_EXE_troupe"))
        .args(["reset", "--data-dir", &data, "--yes"])
        .output()
        .unwrap();
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    assert_eq!(mounts_below(&cluster.data), Vec::<String>::new());
    assert!(!cluster.data.exists());
}
