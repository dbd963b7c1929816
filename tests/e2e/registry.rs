//! Images from registries: Debian's `docker-registry`, pulled from by real clusters.

use std::{io::Write as _, path::Path};

use flate2::{Compression, write::GzEncoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde_json::{Value, json};

use crate::harness::{
    Cluster, Options, Registry, bare_pod, check, digest, is_ready, program, ready, registry_ready, until,
};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// busybox on the machine, if these tests can run at all.
fn busybox() -> Option<std::path::PathBuf> {
    if !ready() || !registry_ready() {
        return None;
    }
    let busybox = program("busybox");
    if busybox.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no busybox");
        eprintln!("skipped: no busybox (apt install busybox-static)");
    }
    busybox
}

/// Shows what became of the layers, then stays.
const SCRIPT: &str = "cat /etc/motd; cat /etc/same; [ -e /gone ] && echo still here; [ -e /d/old ] && echo old; \
    echo done; exec sleep 1000000";

/// Entries of a layer's tar.
enum Entry<'a> {
    File(&'a str, &'a [u8]),
    Link(&'a str, &'a str, tar::EntryType),
}

fn layer(entries: &[Entry]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        match entry {
            Entry::File(name, content) => {
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, name, *content).unwrap();
            }
            Entry::Link(name, to, kind) => {
                header.set_entry_type(*kind);
                header.set_size(0);
                archive.append_link(&mut header, name, to).unwrap();
            }
        }
    }
    archive.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

/// Pushes an image of two layers, gzip and zstd, whose second hides, replaces and links files of its first; `motd` is
/// what it says. Returns the manifest's descriptor.
fn push(registry: &Registry, repository: &str, tag: &str, busybox: &Path, motd: &str, arch: &str) -> Value {
    let busybox = std::fs::read(busybox).unwrap();
    let link = |name| Entry::Link(name, "busybox", tar::EntryType::Symlink);
    let first = layer(&[
        Entry::File("bin/busybox", &busybox),
        link("bin/sh"),
        link("bin/cat"),
        link("bin/sleep"),
        Entry::File("gone", b"x"),
        Entry::File("d/old", b"x"),
        Entry::File("etc/motd", b"of the first layer"),
    ]);
    let motd = format!("{motd}\n");
    let second = layer(&[
        Entry::File(".wh.gone", b""),
        Entry::File("d/.wh..wh..opq", b""),
        Entry::File("etc/motd", motd.as_bytes()),
        Entry::Link("etc/same", "etc/motd", tar::EntryType::Link),
    ]);
    let config = json!({
        "architecture": arch, "os": "linux",
        "config": {"Entrypoint": ["/bin/sh", "-c", SCRIPT], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(&first), digest(&second)]}
    });
    let config = config.to_string().into_bytes();
    let zstd = compress_to_vec(&second[..], CompressionLevel::Fastest);
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let layers = [
        registry.blob(repository, &format!("{kind}+gzip"), &gzip(&first)),
        registry.blob(repository, &format!("{kind}+zstd"), &zstd),
    ];
    let config = registry.blob(repository, "application/vnd.oci.image.config.v1+json", &config);
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    registry.manifest(repository, tag, &manifest)
}

fn here() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn pod(name: &str, image: &str, policy: &str) -> Value {
    bare_pod(name, "Always", &[json!({"name": "c", "image": image, "imagePullPolicy": policy})])
}

fn waiting(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}

#[track_caller]
fn until_says(cluster: &Cluster, pod: &str, wanted: &str) {
    cluster.until_pod("default", pod, "ready", is_ready);
    until(&format!("{pod} says {wanted:?}"), || {
        let log = cluster.kubectl(&["logs", pod]).result()?;
        check(log == wanted, || log.clone())
    });
}

#[test]
fn pods_run_images_of_a_registry_and_what_it_does_not_have_backs_off() {
    let Some(busybox) = busybox() else { return };
    let registry = Registry::start();
    // An index with another platform first, as builders push it; the other is in Docker's form.
    let mut mine = push(&registry, "team/app", "mine", &busybox, "one", here());
    mine["platform"] = json!({"os": "linux", "architecture": here()});
    let config = registry.blob(
        "team/app",
        "application/vnd.docker.container.image.v1+json",
        br#"{"architecture": "s390x", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#,
    );
    let other = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": []});
    let mut other = registry.manifest("team/app", "other", &other);
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = |manifests: Value| json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
    let pushed = registry.manifest("team/app", "v1", &index(json!([other, mine])));
    registry.manifest("team/app", "mainframe", &index(json!([other])));
    let by_digest = registry.name(&format!("team/app@{}", pushed["digest"].as_str().unwrap()));

    let cluster = Cluster::start(Options::default());
    let image = registry.name("team/app:v1");
    cluster.kubectl(&["run", "web", "--image", &image]).ok();
    until_says(&cluster, "web", "one\none\ndone\n");
    assert_eq!(cluster.until_event("default", "web", "Pulling"), format!("Pulling image \"{image}\""));
    let pulled = cluster.until_event("default", "web", "Pulled");
    assert!(pulled.starts_with(&format!("Successfully pulled image \"{image}\" in ")), "{pulled}");
    assert!(pulled.contains(" including waiting). Image size: "), "{pulled}");
    // As in Kubernetes: by the digest of what the tag stood for, the index.
    let shown = cluster.pod("default", "web").unwrap();
    assert_eq!(shown["status"]["containerStatuses"][0]["imageID"], by_digest);
    let told = json!([by_digest, image]);
    until("the node tells the image's digest and tag", || {
        let node = cluster.try_get(&["node", "n1"])?;
        let images = &node["status"]["images"];
        check(images.as_array().is_some_and(|all| all.iter().any(|i| i["names"] == told)), || {
            images.to_string()
        })
    });
    cluster.kubectl(&["run", "exact", "--image", &by_digest]).ok();
    cluster.kubectl(&["run", "again", "--image", &image]).ok();
    until_says(&cluster, "exact", "one\none\ndone\n");
    until_says(&cluster, "again", "one\none\ndone\n");
    let present = cluster.until_event("default", "again", "Pulled");
    assert_eq!(present, format!("Container image \"{image}\" already present on machine"));

    // What it does not have.
    for (name, image, why) in [
        ("nope", "team/app:nope", "manifest unknown"),
        ("norepo", "team/none:1", "team/none:1: "),
        ("elsewhere", "team/app:mainframe", "no matching manifest for linux/"),
    ] {
        let image = registry.name(image);
        cluster.kubectl(&["run", name, "--image", &image]).ok();
        cluster.until_pod("default", name, "in ErrImagePull", |pod| waiting(pod) == "ErrImagePull");
        let failed =
            cluster.until_pod("default", name, "in backoff", |pod| waiting(pod) == "ImagePullBackOff");
        let message = &failed["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
        let told = format!("Back-off pulling image \"{image}\": ErrImagePull: ");
        assert!(message.as_str().unwrap().starts_with(&told), "{message}");
        assert!(message.as_str().unwrap().contains(why), "{message}");
        until(&format!("kubectl shows {name}'s state"), || {
            let shown = cluster.kubectl(&["get", "pod", name]).ok();
            check(shown.contains("ImagePullBackOff") || shown.contains("ErrImagePull"), || shown.clone())
        });
        assert_eq!(
            cluster.until_event("default", name, "BackOff"),
            format!("Back-off pulling image \"{image}\"")
        );
        let described = cluster.kubectl(&["describe", "pod", name]).ok();
        for words in [format!("Failed to pull image \"{image}\": "), "Error: ErrImagePull".into()] {
            assert!(described.contains(&words), "no {words:?} in: {described}");
        }
    }
    // It comes: the next try finds it.
    push(&registry, "team/app", "nope", &busybox, "late", here());
    until_says(&cluster, "nope", "late\nlate\ndone\n");

    // A tag that moves: who says Always gets the new image, who says IfNotPresent keeps the old one.
    push(&registry, "team/app", "moves", &busybox, "old", here());
    let moves = registry.name("team/app:moves");
    cluster.apply("default", &pod("first", &moves, "Always"));
    until_says(&cluster, "first", "old\nold\ndone\n");
    push(&registry, "team/app", "moves", &busybox, "new", here());
    cluster.apply("default", &pod("keeps", &moves, "IfNotPresent"));
    until_says(&cluster, "keeps", "old\nold\ndone\n");
    cluster.apply("default", &pod("asks", &moves, "Always"));
    until_says(&cluster, "asks", "new\nnew\ndone\n");

    // Without its registry what is here runs, except for those who insist on asking.
    drop(registry);
    cluster.apply("default", &pod("offline", &moves, "IfNotPresent"));
    until_says(&cluster, "offline", "new\nnew\ndone\n");
    cluster.apply("default", &pod("insists", &moves, "Always"));
    cluster.until_pod("default", "insists", "not running", |pod| waiting(pod).contains("Pull"));
}

#[test]
fn a_registry_with_tls_and_passwords_is_used_with_the_nodes_credentials() {
    let Some(busybox) = busybox() else { return };
    let registry = Registry::start();
    push(&registry, "team/app", "v1", &busybox, "closed", here());
    let image = registry.closed_name("team/app:v1");
    let troupe = |cluster: &Cluster, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_troupe"));
        command.args(arguments).env("KUBECONFIG", cluster.data.join("admin.kubeconfig"));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    };
    // Nobody knows its authority.
    let cluster = Cluster::start(Options::default());
    let (ok, said) = troupe(&cluster, &["image", "pull", &image]);
    assert!(!ok && said.contains("--registry-ca"), "{said}");
    drop(cluster);

    let leak = |path: &Path| -> &'static str { path.display().to_string().leak() };
    let arguments = vec![
        "--registry-ca",
        leak(&registry.authority()),
        "--registry-config",
        leak(&registry.credentials("wrong")),
    ];
    let cluster = Cluster::start(Options { arguments, ..Options::default() });
    let (ok, said) = troupe(&cluster, &["image", "pull", &image]);
    assert!(!ok && said.contains("does not accept the credentials of user"), "{said}");

    // A pod's own secret, which comes late, and one of its service account.
    let mut own = pod("own", &image, "Always");
    own["spec"]["imagePullSecrets"] = json!([{"name": "pull"}]);
    cluster.apply("default", &own);
    let told = cluster.until_event("default", "own", "FailedToRetrieveImagePullSecret");
    assert!(told.starts_with("Unable to retrieve some image pull secrets (pull)"), "{told}");
    cluster.until_pod("default", "own", "not pulled", |pod| waiting(pod).contains("ImagePull"));
    let server = format!("--docker-server={}", registry.closed_name(""));
    let secret = ["create", "secret", "docker-registry", "pull", server.trim_end_matches('/')];
    let password = ["--docker-username=ann", "--docker-password=right"];
    cluster.kubectl(&[&secret[..], &password].concat()).ok();
    until_says(&cluster, "own", "closed\nclosed\ndone\n");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "puller"},
        "imagePullSecrets": [{"name": "pull"}]});
    cluster.apply("default", &account);
    let mut of_account = pod("of-account", &image, "Always");
    of_account["spec"]["serviceAccountName"] = "puller".into();
    cluster.apply("default", &of_account);
    let given = cluster.until_pod("default", "of-account", "there", |_| true);
    assert_eq!(given["spec"]["imagePullSecrets"], account["imagePullSecrets"], "when it is made");
    until_says(&cluster, "of-account", "closed\nclosed\ndone\n");
    cluster.apply("default", &pod("neither", &image, "Always"));
    cluster.until_pod("default", "neither", "not pulled", |pod| waiting(pod).contains("ImagePull"));

    // The file is read anew for each pull.
    registry.credentials("right");
    let (ok, said) = troupe(&cluster, &["image", "pull", &image]);
    assert!(ok && said.contains(&format!("{image} pulled on n1")), "{said}");
    let (_, said) = troupe(&cluster, &["image", "ls"]);
    assert!(said.contains(&image), "{said}");
    cluster.apply("default", &pod("web", &image, "Always"));
    until_says(&cluster, "web", "closed\nclosed\ndone\n");
}
