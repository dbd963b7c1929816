//! The store from outside: archives of all kinds, hostile ones among them.

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::{stream::digest_of, *};

/// One entry of a test's tar.
#[derive(Clone, Copy)]
pub(super) enum E<'a> {
    File(&'a str, &'a str),
    Dir(&'a str),
    Sym(&'a str, &'a str),
    Hard(&'a str, &'a str),
    Node(&'a str, EntryType),
    Attr(&'a str, &'a str, &'a str),
}

/// Writes a name as it is: the tar crate's own setters refuse hostile ones.
fn header(name: &str, kind: EntryType, size: u64, link: &str) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(if kind == EntryType::Directory { 0o750 } else { 0o4751 });
    header.set_uid(1234);
    header.set_gid(4321);
    header.set_mtime(1_000_000_000);
    header.set_cksum();
    header
}

pub(super) fn tar(entries: &[E]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for entry in entries {
        let (header, content) = match *entry {
            E::File(name, content) => (header(name, EntryType::Regular, content.len() as u64, ""), content),
            E::Dir(name) => (header(name, EntryType::Directory, 0, ""), ""),
            E::Sym(name, to) => (header(name, EntryType::Symlink, 0, to), ""),
            E::Hard(name, to) => (header(name, EntryType::Link, 0, to), ""),
            E::Node(name, kind) => (header(name, kind, 0, ""), ""),
            E::Attr(name, key, value) => {
                let key = format!("SCHILY.xattr.{key}");
                tar.append_pax_extensions([(key.as_str(), value.as_bytes())]).unwrap();
                (header(name, EntryType::Regular, 0, ""), "")
            }
        };
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

pub(super) fn files(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for (name, content) in entries {
        tar.append(&header(name, EntryType::Regular, content.len() as u64, ""), *content).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(super) fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest_of(layer)).collect();
    json!({
        "architecture": manifest::architecture(), "os": "linux",
        "config": {
            "Entrypoint": ["/bin/app"], "Cmd": ["-v"], "Env": ["A=1"], "WorkingDir": "/srv", "User": "7",
            "StopSignal": "SIGQUIT"
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids}
    })
    .to_string()
    .into_bytes()
}

/// A docker-archive of one image; the table of contents comes last, as Docker writes it.
pub(super) fn docker(names: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers);
    let layer_names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": names, "Layers": layer_names}]).to_string();
    let mut entries: Vec<(&str, &[u8])> = vec![("config.json", &config)];
    entries.extend(layer_names.iter().zip(layers).map(|(name, layer)| (name.as_str(), layer.as_slice())));
    entries.push(("manifest.json", manifest.as_bytes()));
    files(&entries)
}

/// Collects blobs for an OCI layout.
#[derive(Default)]
struct Layout(Vec<(String, Vec<u8>)>);

impl Layout {
    fn blob(&mut self, bytes: Vec<u8>) -> String {
        let digest = digest_of(&bytes);
        self.0.push((format!("blobs/{}", digest.replace(':', "/")), bytes));
        digest
    }

    fn image(&mut self, layers: &[Vec<u8>]) -> String {
        let config = self.blob(config(layers));
        let layers: Vec<Value> =
            layers.iter().map(|layer| json!({"digest": self.blob(gzip(layer)), "size": 1})).collect();
        self.blob(json!({"config": {"digest": config}, "layers": layers}).to_string().into_bytes())
    }

    fn archive(&self, manifests: Value) -> Vec<u8> {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes();
        let mut entries: Vec<(&str, &[u8])> =
            self.0.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect();
        entries.push(("index.json", &index));
        files(&entries)
    }
}

fn named(digest: &str, name: &str) -> Value {
    json!({"digest": digest, "annotations": {"io.containerd.image.name": name}})
}

pub(super) fn reader(bytes: Vec<u8>) -> Reader {
    Box::pin(std::io::Cursor::new(bytes))
}

pub(super) fn store() -> (TempDir, ImageStore) {
    let dir = TempDir::new().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    (dir, store)
}

pub(super) fn layers_in(dir: &TempDir) -> usize {
    fs::read_dir(dir.path().join("layers")).unwrap().count()
}

pub(super) fn nothing_staged(dir: &TempDir) {
    assert_eq!(fs::read_dir(dir.path().join("staging")).unwrap().count(), 0, "a staging directory is left");
}

/// Imports one layer and gives its directory.
async fn layer(entries: &[E<'_>]) -> Result<(TempDir, PathBuf), RuntimeError> {
    let (dir, store) = store();
    store.import(reader(tar(entries)), "x").await?;
    let layer = store.resolve("x")?.unwrap().layers.remove(0);
    Ok((dir, layer))
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

#[tokio::test]
async fn a_docker_archive_gives_its_image_under_its_full_name() {
    let (dir, store) = store();
    let (base, top) = (tar(&[E::File("a", "lower")]), tar(&[E::File("b", "upper!")]));
    let archive = docker(&["app:v1"], &[base.clone(), top.clone()]);
    assert_eq!(store.load(reader(gzip(&archive)), None).await.unwrap(), ["docker.io/library/app:v1"]);
    let image = store.resolve("app:v1").unwrap().unwrap();
    assert_eq!(image.image.id, digest_of(&config(&[base, top])));
    assert_eq!(image.image.names, ["docker.io/library/app:v1"]);
    assert_eq!((image.image.size_bytes, image.image.user.as_str()), (11, "7"));
    assert_eq!(fs::read_to_string(image.layers[0].join("b")).unwrap(), "upper!", "topmost first");
    assert_eq!(fs::read_to_string(image.layers[1].join("a")).unwrap(), "lower");
    assert_eq!((image.entrypoint, image.cmd), (vec!["/bin/app".into()], vec!["-v".into()]));
    assert_eq!((image.env, image.working_dir.as_str()), (vec!["A=1".into()], "/srv"));
    assert_eq!(image.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(store.resolve(&image.image.id).unwrap().unwrap().image, image.image, "found by id too");
    assert!(store.resolve("app").unwrap().is_none());
    nothing_staged(&dir);
}

#[tokio::test]
async fn an_oci_layout_gives_the_image_for_this_machine_out_of_nested_indexes() {
    let (_dir, store) = store();
    let mut layout = Layout::default();
    let ours = layout.image(&[tar(&[E::File("ours", "")])]);
    let other = layout.image(&[tar(&[E::File("other", "")])]);
    let nested = layout.blob(
        json!({"manifests": [
            {"digest": other, "platform": {"os": "linux", "architecture": "s390x"}},
            {"digest": ours, "platform": {"os": "linux", "architecture": manifest::architecture()}},
            {"digest": other, "platform": {"os": "unknown", "architecture": "unknown"}},
        ]})
        .to_string()
        .into_bytes(),
    );
    let archive = layout.archive(json!([named(&nested, "r.io/multi:1")]));
    assert_eq!(store.load(reader(archive), None).await.unwrap(), ["r.io/multi:1"]);
    assert!(store.resolve("r.io/multi:1").unwrap().unwrap().layers[0].join("ours").exists());
}

#[tokio::test]
async fn an_image_for_other_machines_only_is_refused_by_platform() {
    let (_dir, store) = store();
    let mut layout = Layout::default();
    let other = layout.image(&[tar(&[])]);
    let manifests = json!([{"digest": other, "platform": {"os": "linux", "architecture": "s390x"},
                "annotations": {"io.containerd.image.name": "a:1"}}]);
    let error = store.load(reader(layout.archive(manifests)), None).await.unwrap_err().to_string();
    assert!(error.contains("linux/s390x"), "{error}");
}

#[tokio::test]
async fn rename_names_the_only_image_and_no_other() {
    let (_dir, store) = store();
    let archive = docker(&["a:1"], &[tar(&[])]);
    assert_eq!(store.load(reader(archive), Some("r.io/b".into())).await.unwrap(), ["r.io/b:latest"]);
    assert!(store.resolve("a:1").unwrap().is_none());

    let mut layout = Layout::default();
    let one = layout.image(&[tar(&[E::File("1", "")])]);
    let two = layout.image(&[tar(&[E::File("2", "")])]);
    let archive = layout.archive(json!([named(&one, "r.io/one:1"), named(&two, "r.io/two:2")]));
    let error = store.load(reader(archive.clone()), Some("c".into())).await.unwrap_err().to_string();
    assert!(error.contains("2 images"), "{error}");
    assert_eq!(store.load(reader(archive), None).await.unwrap(), ["r.io/one:1", "r.io/two:2"]);
}

#[tokio::test]
async fn an_image_without_name_needs_one() {
    let (dir, store) = store();
    let error = store.load(reader(docker(&[], &[tar(&[])])), None).await.unwrap_err().to_string();
    assert!(error.contains("--name"), "{error}");
    assert_eq!(layers_in(&dir), 0);
}

#[tokio::test]
async fn layers_are_shared_and_go_with_their_last_image() {
    let (dir, store) = store();
    let shared = tar(&[E::File("shared", "1")]);
    let archive = |name, own: &str| docker(&[name], &[shared.clone(), tar(&[E::File(own, "2")])]);
    store.load(reader(archive("a", "own-a")), None).await.unwrap();
    store.load(reader(archive("b", "own-b")), None).await.unwrap();
    assert_eq!(layers_in(&dir), 3);
    store.remove("a").await.unwrap();
    assert_eq!(layers_in(&dir), 2);
    let left = store.resolve("b").unwrap().unwrap();
    assert!(left.layers.iter().all(|layer| layer.exists()));
    store.remove("b").await.unwrap();
    assert_eq!((layers_in(&dir), store.list().unwrap().len()), (0, 0));
    assert!(matches!(store.remove("b").await.unwrap_err(), RuntimeError::ImageNotFound(_)));
    nothing_staged(&dir);
}

#[tokio::test]
async fn an_image_with_two_names_stays_until_both_are_gone() {
    let (dir, store) = store();
    store.load(reader(docker(&["a:1", "b:1"], &[tar(&[])])), None).await.unwrap();
    assert_eq!(store.list().unwrap()[0].names.len(), 2);
    store.remove("a:1").await.unwrap();
    assert!(store.resolve("b:1").unwrap().is_some());
    store.remove("b:1").await.unwrap();
    assert_eq!(layers_in(&dir), 0);
}

#[tokio::test]
async fn a_pinned_image_keeps_its_layers_without_a_name() {
    let (dir, store) = store();
    store.load(reader(docker(&["a"], &[tar(&[])])), None).await.unwrap();
    let pinned = store.pin("a", "container-1").unwrap().unwrap();
    store.remove("a").await.unwrap();
    assert!(store.resolve("a").unwrap().is_none());
    assert!(store.list().unwrap().is_empty());
    let again = ImageStore::open(dir.path()).unwrap();
    assert!(pinned.layers[0].exists(), "the pin survives a restart");
    again.unpin("container-1").unwrap();
    again.unpin("container-1").unwrap();
    ImageStore::open(dir.path()).unwrap();
    assert!(!pinned.layers[0].exists());
    assert!(matches!(store.pin("a", "../x"), Ok(None) | Err(_)));
}

#[tokio::test]
async fn owners_of_pins_are_plain_ids() {
    let (_dir, store) = store();
    store.import(reader(tar(&[])), "x").await.unwrap();
    for owner in ["", "..", "a/b", "../../x", ".hidden"] {
        assert!(matches!(store.pin("x", owner), Err(RuntimeError::Config(_))), "{owner}");
    }
}

#[tokio::test]
async fn leftovers_of_a_crash_go_at_open_but_not_what_is_in_use() {
    let (dir, store) = store();
    let left = dir.path().join("staging/left/deep");
    fs::create_dir_all(&left).unwrap();
    let unplaced = dir.path().join("layers").join("0".repeat(64));
    fs::create_dir(&unplaced).unwrap();
    let in_use = store.disk.stage().unwrap();
    ImageStore::open(dir.path()).unwrap();
    assert!(!left.exists() && !unplaced.exists());
    assert!(in_use.path.exists());
}

#[tokio::test]
async fn an_index_of_another_version_is_refused_and_kept() {
    let (dir, _store) = store();
    let path = dir.path().join("index.json");
    fs::write(&path, r#"{"version":99,"names":{},"images":{}}"#).unwrap();
    let error = ImageStore::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("version 99"), "{error}");
    assert!(fs::read_to_string(&path).unwrap().contains("99"));
}

#[tokio::test]
async fn a_root_file_system_becomes_an_image_of_one_layer() {
    let (_dir, store) = store();
    let rootfs =
        tar(&[E::Dir("./"), E::Dir("./etc/"), E::File("./etc/motd", "hi"), E::Sym("./bin", "usr/bin")]);
    assert_eq!(store.import(reader(gzip(&rootfs)), "root").await.unwrap(), "docker.io/library/root:latest");
    let image = store.resolve("root").unwrap().unwrap();
    assert_eq!(image.image.size_bytes, 2);
    assert!(image.entrypoint.is_empty() && image.cmd.is_empty());
    let layer = &image.layers[0];
    assert_eq!(fs::metadata(layer).unwrap().permissions().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_link(layer.join("bin")).unwrap(), Path::new("usr/bin"));
    let motd = fs::metadata(layer.join("etc/motd")).unwrap();
    assert_eq!((motd.mode() & 0o7777, motd.mtime()), (0o4751, 1_000_000_000));
    assert_eq!(fs::metadata(layer.join("etc")).unwrap().mtime(), 1_000_000_000);
    if is_root() {
        assert_eq!((motd.uid(), motd.gid()), (1234, 4321));
    }
}

#[tokio::test]
async fn whiteouts_become_what_overlayfs_understands() {
    let (_dir, layer) = layer(&[
        E::Dir("d"),
        E::File("d/.wh..wh..opq", ""),
        E::File("d/.wh.gone", ""),
        E::File("kept", "1"),
        E::File(".wh.kept", ""),
        E::File(".wh..wh.plnk", ""),
    ])
    .await
    .unwrap();
    let gone = fs::symlink_metadata(layer.join("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    let key = if is_root() { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
    assert_eq!(xattr::get(layer.join("d"), key).unwrap().as_deref(), Some(&b"y"[..]));
    assert_eq!(
        fs::read_to_string(layer.join("kept")).unwrap(),
        "1",
        "a layer's whiteout spares its own files"
    );
    assert!(
        fs::read_dir(&layer).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().contains(".wh."))
    );
}

#[tokio::test]
async fn hard_links_share_and_devices_are_left_out() {
    let (_dir, layer) = layer(&[
        E::File("a", "x"),
        E::Hard("b", "/a"),
        E::Sym("s", "/nowhere"),
        E::Hard("t", "s"),
        E::Node("null", EntryType::Char),
        E::Node("sda", EntryType::Block),
        E::Node("pipe", EntryType::Fifo),
    ])
    .await
    .unwrap();
    assert_eq!(fs::metadata(layer.join("a")).unwrap().ino(), fs::metadata(layer.join("b")).unwrap().ino());
    assert_eq!(fs::read_link(layer.join("t")).unwrap(), Path::new("/nowhere"));
    assert!(!layer.join("null").exists() && !layer.join("sda").exists());
    assert!(fs::symlink_metadata(layer.join("pipe")).unwrap().file_type().is_fifo());
}

#[tokio::test]
async fn a_later_entry_replaces_an_earlier_one() {
    let (_dir, layer) = layer(&[
        E::File("a", "1"),
        E::File("a", "22"),
        E::Dir("d"),
        E::File("d/f", ""),
        E::File("d", "file now"),
        E::Sym("l", "a"),
        E::File("l", "own"),
    ])
    .await
    .unwrap();
    assert_eq!(fs::read_to_string(layer.join("a")).unwrap(), "22", "not written through the link");
    assert_eq!(fs::read_to_string(layer.join("d")).unwrap(), "file now");
    assert_eq!(fs::read_to_string(layer.join("l")).unwrap(), "own");
}

#[tokio::test]
async fn attributes_are_kept_but_none_that_commands_overlayfs() {
    let (_dir, layer) =
        layer(&[E::Attr("good", "user.note", "hello"), E::Attr("evil", "trusted.overlay.redirect", "/etc")])
            .await
            .unwrap();
    if let Some(value) = xattr::get(layer.join("good"), "user.note").unwrap() {
        assert_eq!(value, b"hello");
    }
    assert!(xattr::get(layer.join("evil"), "trusted.overlay.redirect").unwrap().is_none());
}

#[tokio::test]
async fn nothing_is_written_outside_of_the_layer() {
    let outside = TempDir::new().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let out = outside.path().to_str().unwrap();
    let up = format!("{}{}", "../".repeat(20), &out[1..]);
    let rows: [(&str, Vec<E>); 7] = [
        ("through an absolute link", vec![E::Sym("l", out), E::File("l/victim", "pwned")]),
        ("through a relative link", vec![E::Sym("l", &up), E::File("l/victim", "pwned")]),
        ("through a chain", vec![E::Sym("a", "b"), E::Sym("b", out), E::File("a/new", "pwned")]),
        ("onto a link", vec![E::Sym("l", victim.to_str().unwrap()), E::File("l", "pwned")]),
        ("a whiteout through a link", vec![E::Sym("l", out), E::File("l/.wh.victim", "")]),
        ("a directory's mode through a link", vec![E::Sym("l", out), E::Dir("l/new")]),
        ("over proc", vec![E::Sym("l", "/proc/self/cwd"), E::File("l/new", "pwned")]),
    ];
    for (what, entries) in rows {
        // Whether it lands inside the layer or is refused: outside nothing happens.
        let _ = layer(&entries).await;
        assert_eq!(fs::read_to_string(&victim).unwrap(), "safe", "{what}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{what}");
    }
}

#[tokio::test]
async fn links_inside_the_layer_are_followed_inside() {
    let (_dir, layer) =
        layer(&[E::Dir("usr/lib"), E::Sym("lib", "/usr/lib"), E::File("lib/x", "1")]).await.unwrap();
    assert_eq!(fs::read_to_string(layer.join("usr/lib/x")).unwrap(), "1");
}

#[tokio::test]
async fn hostile_layers_are_refused_and_leave_nothing() {
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let secret = format!("l/{}", "secret");
    let dirs = "d/".repeat(40);
    let rows: [(&str, Vec<E>, &str); 8] = [
        ("up", vec![E::File("../x", "")], "leads out"),
        ("up later", vec![E::File("a/../../x", "")], "leads out"),
        ("hard link up", vec![E::Hard("x", "../../etc/passwd")], "leads out"),
        ("hard link to nothing", vec![E::Hard("x", "etc/passwd")], "not there"),
        (
            "hard link through a link",
            vec![E::Sym("l", outside.path().to_str().unwrap()), E::Hard("x", &secret)],
            "not there",
        ),
        ("hard link to a directory", vec![E::Dir("d"), E::Hard("x", "d")], "directory"),
        ("whiteout of ..", vec![E::File(".wh...", "")], "hides nothing"),
        ("dangling parent", vec![E::Sym("l", "/nope"), E::File("l/x", "")], "not a directory"),
    ];
    for (what, entries, text) in rows {
        let (dir, store) = store();
        let error = store.import(reader(tar(&entries)), "x").await.unwrap_err();
        assert!(matches!(&error, RuntimeError::BadImage(_)), "{what}: {error}");
        assert!(error.to_string().contains(text), "{what}: {error}");
        assert_eq!(layers_in(&dir), 0, "{what}");
        nothing_staged(&dir);
    }
    assert!(layer(&[E::File(&format!("{dirs}f"), "")]).await.is_ok(), "deep but harmless");
}

#[tokio::test]
async fn what_is_no_archive_is_refused() {
    let good = docker(&["a"], &[tar(&[E::File("f", "content")])]);
    let mut wrong_layer = docker(&["a"], &[tar(&[E::File("f", "content")])]);
    let at = wrong_layer.windows(7).position(|w| w == b"content").unwrap();
    wrong_layer[at] = b'C';
    let rows: [(&str, Vec<u8>, &str); 9] = [
        ("empty", vec![], "neither manifest.json"),
        ("noise", vec![7; 5000], "docker save"),
        ("a short text", b"hello".to_vec(), "docker save"),
        ("zstd", vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0], "zstd"),
        ("cut gzip", gzip(&good)[..60].to_vec(), "image archive"),
        ("cut tar", good[..good.len() / 2].to_vec(), "image archive"),
        ("a root file system", tar(&[E::File("etc/motd", "")]), "imported"),
        ("changed layer", wrong_layer, "digest is"),
        ("no json", files(&[("manifest.json", b"{")]), "manifest.json"),
    ];
    for (what, archive, text) in rows {
        let (dir, store) = store();
        let error = store.load(reader(archive), None).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::BadImage(_)), "{what}: {error}");
        assert!(error.to_string().contains(text), "{what}: {error}");
        assert_eq!((layers_in(&dir), store.list().unwrap().len()), (0, 0), "{what}");
        nothing_staged(&dir);
    }
}

#[tokio::test]
async fn a_blob_that_is_not_its_digest_is_refused() {
    let (_dir, store) = store();
    let mut layout = Layout::default();
    let image = layout.image(&[tar(&[E::File("f", "")])]);
    // A layer that unpacks to the same, but whose compressed bytes are others.
    let at = layout.0.iter().position(|(_, bytes)| bytes.starts_with(&[0x1f, 0x8b])).unwrap();
    layout.0[at].1[9] ^= 1;
    let archive = layout.archive(json!([named(&image, "a:1")]));
    let error = store.load(reader(archive), None).await.unwrap_err().to_string();
    assert!(error.contains("digest is"), "{error}");
}

#[tokio::test]
async fn an_index_that_holds_itself_ends() {
    let (_dir, store) = store();
    // A real cycle would need a broken digest, so: a chain longer than anybody needs.
    let mut layout = Layout::default();
    let mut digest = layout.image(&[]);
    for _ in 0..10 {
        digest = layout.blob(json!({"manifests": [{"digest": digest}]}).to_string().into_bytes());
    }
    let error = store.load(reader(layout.archive(json!([named(&digest, "a:1")]))), None).await.unwrap_err();
    assert!(error.to_string().contains("nested too deep"), "{error}");
}

#[tokio::test]
async fn links_between_parts_of_an_archive_are_followed_but_not_for_ever() {
    let (_dir, store) = store();
    let layer = tar(&[E::File("f", "1")]);
    let config = config(&[layer.clone(), layer.clone()]);
    let manifest =
        json!([{"Config": "c", "RepoTags": ["a:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]).to_string();
    let archive = |link: &str| {
        let mut tar = Builder::new(Vec::new());
        for (name, content) in
            [("c", &config[..]), ("1/layer.tar", &layer), ("manifest.json", manifest.as_bytes())]
        {
            tar.append(&header(name, EntryType::Regular, content.len() as u64, ""), content).unwrap();
        }
        tar.append(&header("2/layer.tar", EntryType::Symlink, 0, link), &[][..]).unwrap();
        tar.into_inner().unwrap()
    };
    store.load(reader(archive("../1/layer.tar")), None).await.unwrap();
    assert_eq!(store.resolve("a:1").unwrap().unwrap().layers.len(), 2);

    // A layer that is here already is not looked up, so the other archives meet a store without it.
    let (_dir, store) = super::tests::store();
    for link in ["../2/layer.tar", "/etc/passwd", "../../../../etc/passwd"] {
        let error = store.load(reader(archive(link)), None).await.unwrap_err().to_string();
        assert!(error.contains("is missing"), "{link}: {error}");
    }
}

#[tokio::test]
async fn bombs_end_at_the_limits() {
    let small = Limits { archive_bytes: 100_000, unpacked_bytes: 10_000, entries: 20 };
    let big = "x".repeat(20_000);
    let many: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    let many: Vec<E> = many.iter().map(|n| E::File(n, "")).collect();
    let mut sparse_claim = header("f", EntryType::Regular, 1 << 40, "").as_bytes().to_vec();
    sparse_claim.extend(vec![0; 4096]);
    let hole = |name: &str| {
        let mut hole = header(name, EntryType::GNUSparse, 0, "");
        let gnu = hole.as_gnu_mut().unwrap();
        // 1 GiB.
        gnu.realsize.copy_from_slice(b"10000000000\0");
        gnu.sparse[0].offset.copy_from_slice(b"10000000000\0");
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
        hole.set_cksum();
        let mut tar = hole.as_bytes().to_vec();
        tar.extend([0; 1024]);
        tar
    };
    let pax_hole = {
        let mut tar = Builder::new(Vec::new());
        tar.append_pax_extensions([
            ("GNU.sparse.size", b"1073741824".as_slice()),
            ("GNU.sparse.map", b"0,0".as_slice()),
        ])
        .unwrap();
        tar.append(&header("f", EntryType::Regular, 0, ""), &[][..]).unwrap();
        tar.into_inner().unwrap()
    };
    let rows: [(&str, Vec<u8>, &str); 7] = [
        ("bytes", gzip(&tar(&[E::File("f", &big)])), "limit"),
        ("entries", tar(&many), "more than 20 entries"),
        ("zeros", gzip(&vec![0; 50 << 20]), "limit"),
        ("a claimed size", sparse_claim, "ends within"),
        ("a hole", hole("f"), "limit"),
        ("a hole that is no file", hole(".wh.f"), "limit"),
        ("a hole in pax", pax_hole, "limit"),
    ];
    for (what, layer, text) in rows {
        let dir = TempDir::new().unwrap();
        let store = ImageStore::with_limits(dir.path(), small).unwrap();
        let error = store.import(reader(layer), "x").await.unwrap_err();
        assert!(matches!(&error, RuntimeError::BadImage(_)), "{what}: {error}");
        assert!(error.to_string().contains(text), "{what}: {error}");
        nothing_staged(&dir);
    }
    let dir = TempDir::new().unwrap();
    let store = ImageStore::with_limits(dir.path(), small).unwrap();
    let error = store.load(reader(gzip(&vec![b'x'; 1 << 20])), None).await.unwrap_err();
    assert!(matches!(error, RuntimeError::BadImage(_)));
    for archive in [files(&[("f", &vec![0; 1 << 20])]), hole("f")] {
        let error = store.load(reader(archive), None).await.unwrap_err();
        assert!(error.to_string().contains("limit"), "{error}");
        nothing_staged(&dir);
    }
}

#[tokio::test]
async fn a_name_longer_than_headers_may_be_is_not_read_into_memory() {
    let (_dir, store) = store();
    let mut long_name = header("l", EntryType::GNULongName, 3 << 20, "").as_bytes().to_vec();
    long_name.extend(vec![b'a'; 3 << 20]);
    let error = store.import(reader(long_name), "x").await.unwrap_err().to_string();
    assert!(error.contains("too large"), "{error}");
}

#[tokio::test]
async fn loads_of_the_same_image_at_once_all_succeed() {
    let (dir, store) = store();
    let archive = docker(&["a"], &[tar(&[E::File("f", "1")]), tar(&[E::File("g", "2")])]);
    let loads = (0..8).map(|_| store.load(reader(archive.clone()), None));
    for loaded in futures_util::future::join_all(loads).await {
        assert_eq!(loaded.unwrap(), ["docker.io/library/a:latest"]);
    }
    assert_eq!((layers_in(&dir), store.list().unwrap().len()), (2, 1));
    nothing_staged(&dir);
}

#[tokio::test]
async fn loads_and_removals_at_once_never_leave_an_image_without_layers() {
    let (dir, store) = store();
    let archive = docker(&["a"], &[tar(&[E::File("f", "1")])]);
    for _ in 0..20 {
        let (loaded, _removed) =
            futures_util::future::join(store.load(reader(archive.clone()), None), store.remove("a")).await;
        loaded.unwrap();
        if let Some(image) = store.resolve("a").unwrap() {
            assert!(image.layers.iter().all(|layer| layer.join("f").exists()));
        }
    }
    nothing_staged(&dir);
}

#[tokio::test]
async fn a_reader_that_fails_ends_the_load_and_leaves_nothing() {
    let (dir, store) = store();
    let archive = docker(&["a"], &[tar(&[E::File("f", "1")])]);
    let failing = tokio::io::AsyncReadExt::chain(
        std::io::Cursor::new(archive[..700].to_vec()),
        tokio_util::io::StreamReader::new(futures_util::stream::iter([Err::<bytes::Bytes, _>(
            std::io::Error::other("the client went away"),
        )])),
    );
    let error = store.load(Box::pin(failing), None).await.unwrap_err().to_string();
    assert!(error.contains("went away"), "{error}");
    nothing_staged(&dir);
}

#[tokio::test]
async fn the_built_in_image_follows_the_executable() {
    let (dir, store) = store();
    let exe = dir.path().join("exe");
    fs::write(&exe, "one").unwrap();
    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
    store.ensure_builtin(&exe).await.unwrap();
    let image = store.resolve("troupe.local/hello").unwrap().unwrap();
    assert_eq!(image.entrypoint, ["/hello", "hello"]);
    let hello = image.layers[0].join("hello");
    assert_eq!(fs::metadata(&hello).unwrap().ino(), fs::metadata(&exe).unwrap().ino(), "a hard link");
    assert_eq!(fs::metadata(image.layers[0].join("tmp")).unwrap().mode() & 0o7777, 0o1777);

    store.ensure_builtin(&exe).await.unwrap();
    assert_eq!(store.resolve(BUILTIN_IMAGE).unwrap().unwrap(), image, "nothing changed");

    let new = dir.path().join("new");
    fs::write(&new, "two!").unwrap();
    fs::rename(&new, &exe).unwrap();
    store.ensure_builtin(&exe).await.unwrap();
    let image = store.resolve(BUILTIN_IMAGE).unwrap().unwrap();
    let hello = image.layers[0].join("hello");
    assert_eq!(fs::read_to_string(&hello).unwrap(), "two!");
    // What others may not run is copied, with a mode that lets them.
    assert_eq!(fs::metadata(&hello).unwrap().mode() & 0o777, 0o755);
    assert_eq!(layers_in(&dir), 1, "the old one is gone");
}

#[tokio::test]
async fn no_other_image_gets_the_name_of_the_built_in_one() {
    let (dir, store) = store();
    let exe = dir.path().join("exe");
    fs::write(&exe, "one").unwrap();
    store.ensure_builtin(&exe).await.unwrap();
    let image = store.resolve(BUILTIN_IMAGE).unwrap().unwrap();
    let rootfs = tar(&[E::File("x", "")]);
    let layers = std::slice::from_ref(&rootfs);
    let archive = |names: &[&str]| reader(docker(names, layers));
    let refused = [
        store.load(archive(&["troupe.local/hello:latest"]), None).await.map(drop),
        store.load(archive(&["other", BUILTIN_IMAGE]), None).await.map(drop),
        store.load(archive(&["other"]), Some("troupe.local/hello".into())).await.map(drop),
        store.import(reader(rootfs.clone()), "troupe.local/hello").await.map(drop),
        Pulls::new(store.clone(), RegistryConfig::default()).pull("troupe.local/hello", None).await.map(drop),
    ];
    for outcome in refused {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("it is built in"), "{error}");
    }
    assert_eq!(store.resolve(BUILTIN_IMAGE).unwrap().unwrap(), image);
    assert_eq!(store.list().unwrap().len(), 1, "nothing of a refused archive is kept");
    store.load(archive(&["troupe.local/hello:mine"]), None).await.unwrap();
}

/// A file of ten bytes, `..ab...c..` with zeros for dots, as each version of the pax format packs it.
fn sparse(name: &str) -> [Vec<u8>; 3] {
    let pack = |own: &str, records: &[(&str, &str)], before: &str| {
        let records = records.iter().map(|(key, value)| (format!("GNU.sparse.{key}"), value.as_bytes()));
        let records: Vec<_> = records.collect();
        let mut content = before.as_bytes().to_vec();
        content.resize(content.len().next_multiple_of(512), 0);
        content.extend(b"abc");
        let mut tar = Builder::new(Vec::new());
        tar.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), *value))).unwrap();
        tar.append(&header(own, EntryType::Regular, content.len() as u64, ""), content.as_slice()).unwrap();
        tar.into_inner().unwrap()
    };
    let pieces = [("offset", "2"), ("numbytes", "2"), ("offset", "7"), ("numbytes", "1")];
    let other = "GNUSparseFile.0/f";
    [
        pack(name, &[&[("size", "10"), ("numblocks", "2")], &pieces[..]].concat(), ""),
        pack(other, &[("size", "10"), ("numblocks", "2"), ("name", name), ("map", "2,2,7,1")], ""),
        pack(other, &[("major", "1"), ("minor", "0"), ("name", name), ("realsize", "10")], "2\n2\n2\n7\n1\n"),
    ]
}

#[tokio::test]
async fn sparse_files_are_what_they_were_before_they_were_packed() {
    for (version, layer) in sparse("f").into_iter().enumerate() {
        let (dir, store) = store();
        let archive = docker(&["l"], std::slice::from_ref(&layer));
        store.load(reader(archive), None).await.unwrap();
        store.import(reader(layer.clone()), "i").await.unwrap();
        for name in ["l", "i"] {
            let found = store.resolve(name).unwrap().unwrap();
            let file = found.layers[0].join("f");
            assert_eq!(fs::read(&file).unwrap(), b"\0\0ab\0\0\0c\0\0", "{version}");
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o4751);
        }
        // The layer is written again as it came.
        let mut saved = Vec::new();
        let mut archive = store.save(vec!["l".into()]).await.unwrap();
        tokio::io::AsyncReadExt::read_to_end(&mut archive, &mut saved).await.unwrap();
        assert!(saved.windows(layer.len()).any(|part| part == layer), "{version}");
        nothing_staged(&dir);
    }
}

#[tokio::test]
async fn an_archive_may_itself_be_packed_sparse() {
    // Its table of contents has a hole, which is no JSON: that it is complained of shows that it was read as such.
    for (version, archive) in sparse("manifest.json").into_iter().enumerate() {
        let (_dir, store) = store();
        let error = store.load(reader(archive), None).await.unwrap_err().to_string();
        assert!(error.contains("manifest.json: expected value"), "{version}: {error}");
    }
}

#[tokio::test]
async fn a_saved_layer_is_the_same_to_the_byte_whatever_is_in_it() {
    let (dir, store) = store();
    let long = format!("deep/{}", "n".repeat(90));
    let layer = tar(&[
        E::Dir("etc"),
        E::File("etc/motd", "hello"),
        E::File(&long, "long"),
        E::Sym("link", "etc"),
        E::File("link/through", "a file whose parent is a link"),
        E::Hard("etc/hard", "etc/motd"),
        E::Node("pipe", EntryType::Fifo),
        E::Node("device", EntryType::Char),
        E::Attr("attr", "user.x", "y"),
        E::File(".wh.gone", "what a whiteout carries"),
        E::Dir("opaque"),
        E::File("opaque/.wh..wh..opq", ""),
        E::File("empty", ""),
    ]);
    let mut padded = layer.clone();
    padded.extend([0; 10_240]);
    store.load(reader(docker(&["a"], &[layer.clone(), padded.clone()])), None).await.unwrap();
    let before = store.resolve("a").unwrap().unwrap().image.id;
    let mut saved = Vec::new();
    let mut archive = store.save(vec!["a".into()]).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut archive, &mut saved).await.unwrap();
    let mut entries = tar::Archive::new(saved.as_slice());
    let mut contents = Vec::new();
    for entry in entries.entries().unwrap() {
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry.unwrap(), &mut content).unwrap();
        contents.push(content);
    }
    assert!(contents.contains(&layer) && contents.contains(&padded));
    store.remove("a").await.unwrap();
    assert_eq!(fs::read_dir(dir.path().join("configs")).unwrap().count(), 0);
    // Once as a docker-archive, once as an OCI layout: as what it has no more table of contents for the other.
    for toc in ["index.json", "manifest.json"] {
        let mut part = Builder::new(Vec::new());
        for entry in tar::Archive::new(saved.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.path().unwrap().to_string_lossy() != toc {
                let header = entry.header().clone();
                part.append(&header, &mut entry).unwrap();
            }
        }
        store.load(reader(part.into_inner().unwrap()), None).await.unwrap();
        assert_eq!(store.resolve("a").unwrap().unwrap().image.id, before, "without {toc}");
        store.remove("a").await.unwrap();
    }
    nothing_staged(&dir);
}

#[tokio::test]
async fn a_layer_that_cannot_be_written_again_breaks_the_archive_off() {
    let (_dir, store) = store();
    // A name that is there twice: the first content is gone.
    let twice = tar(&[E::File("f", "first"), E::File("f", "other")]);
    store.load(reader(docker(&["a"], &[twice])), None).await.unwrap();
    store.load(reader(docker(&["b"], &[tar(&[E::File("g", "content")])])), None).await.unwrap();
    let changed = store.resolve("b").unwrap().unwrap().layers[0].join("g");
    fs::write(changed, "changed").unwrap();
    for name in ["a", "b"] {
        let mut archive = store.save(vec![name.into()]).await.unwrap();
        let error = tokio::io::AsyncReadExt::read_to_end(&mut archive, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("cannot be written again"), "{error}");
    }
}
