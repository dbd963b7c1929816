//! Cases: images come, are found by name, and go.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use async_trait::async_trait;
use tokio::io::AsyncReadExt as _;
use troupe::runtime::{
    ContainerConfig, ContainerState, Origin, Reader, RuntimeError,
    images::BUILTIN_IMAGE,
    share::{Came, PartSource, SharedImage},
};

use super::{
    archives::{config, digest, docker, gzip, id, layer, oci, reader, tar},
    harness::{Bench, Harness},
    registry::Registry,
};

/// The names of all images but the built-in one.
async fn names<H: Harness>(bench: &Bench<H>) -> BTreeSet<String> {
    let all = bench.runtime().list_images().await.unwrap();
    all.into_iter().flat_map(|image| image.names).filter(|name| name != BUILTIN_IMAGE).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub async fn a_docker_archive_is_loaded_listed_and_removed<H: Harness>(bench: &mut Bench<H>) {
    let layers = [layer("bin", "one"), layer("etc", "two")];
    let loaded = bench.runtime().load_image(reader(docker(&["app:1"], &layers)), None).await.unwrap();
    assert_eq!(loaded, ["docker.io/library/app:1"]);
    for name in ["app:1", "library/app:1", "docker.io/library/app:1"] {
        let image = bench.runtime().image(name).await.unwrap().unwrap();
        assert_eq!((image.id, image.user.as_str()), (id(&layers), "7"), "{name}");
    }
    assert!(bench.runtime().image("app").await.unwrap().is_none(), "another tag");
    assert_eq!(names(bench).await, set(&["docker.io/library/app:1"]));
    // Loading it again changes nothing.
    bench.runtime().load_image(reader(docker(&["app:1"], &layers)), None).await.unwrap();
    assert_eq!(names(bench).await, set(&["docker.io/library/app:1"]));
    bench.runtime().remove_image("app:1").await.unwrap();
    assert!(bench.runtime().image("app:1").await.unwrap().is_none());
    assert!(matches!(bench.runtime().remove_image("app:1").await, Err(RuntimeError::ImageNotFound(_))));
    assert!(names(bench).await.is_empty());
}

pub async fn an_oci_layout_is_loaded<H: Harness>(bench: &mut Bench<H>) {
    let layers = [layer("bin", "one")];
    let archive = oci("example.org/team/app:v2", &layers);
    let loaded = bench.runtime().load_image(reader(archive), None).await.unwrap();
    assert_eq!(loaded, ["example.org/team/app:v2"]);
    assert_eq!(bench.runtime().image(&loaded[0]).await.unwrap().unwrap().id, id(&layers));
}

pub async fn a_compressed_archive_is_loaded<H: Harness>(bench: &mut Bench<H>) {
    let archive = gzip(&docker(&["app"], &[layer("f", "1")]));
    let loaded = bench.runtime().load_image(reader(archive), None).await.unwrap();
    assert_eq!(loaded, ["docker.io/library/app:latest"]);
}

pub async fn a_root_file_system_is_imported<H: Harness>(bench: &mut Bench<H>) {
    let name = bench.runtime().import_image(reader(layer("etc/motd", "hi")), "mine").await.unwrap();
    assert_eq!(name, "docker.io/library/mine:latest");
    let image = bench.runtime().image("mine").await.unwrap().unwrap();
    assert!(image.id.starts_with("sha256:") && image.names == [name]);
    // It has no program of its own, so a container has to say which.
    bench.runtime().remove_image("mine").await.unwrap();
    assert!(names(bench).await.is_empty());
}

pub async fn rename_names_the_only_image<H: Harness>(bench: &mut Bench<H>) {
    let archive = docker(&["app:1"], &[layer("f", "1")]);
    let loaded = bench.runtime().load_image(reader(archive), Some("other:2".into())).await.unwrap();
    assert_eq!(loaded, ["docker.io/library/other:2"]);
    assert_eq!(names(bench).await, set(&["docker.io/library/other:2"]));
    let nameless = docker(&[], &[layer("f", "1")]);
    let error = bench.runtime().load_image(reader(nameless), None).await.unwrap_err().to_string();
    assert!(error.contains("no name"), "{error}");
}

pub async fn two_names_of_an_image_go_one_by_one<H: Harness>(bench: &mut Bench<H>) {
    let archive = docker(&["app:1", "app:2"], &[layer("f", "1")]);
    bench.runtime().load_image(reader(archive), None).await.unwrap();
    let all = bench.runtime().list_images().await.unwrap();
    let image = all.iter().find(|image| image.names.len() == 2).expect("one image with two names");
    assert_eq!(image.names, ["docker.io/library/app:1", "docker.io/library/app:2"]);
    bench.runtime().remove_image("app:1").await.unwrap();
    assert_eq!(names(bench).await, set(&["docker.io/library/app:2"]));
}

pub async fn what_is_no_archive_is_refused_and_changes_nothing<H: Harness>(bench: &mut Bench<H>) {
    let good = docker(&["app"], &[layer("f", "content")]);
    let mut changed = good.clone();
    let at = changed.windows(7).position(|window| window == b"content").unwrap();
    changed[at] = b'C';
    let rows: [(&str, Vec<u8>); 6] = [
        ("nothing", Vec::new()),
        ("noise", vec![7; 5000]),
        ("half of a tar", good[..good.len() / 2].to_vec()),
        ("half of a gzip", gzip(&good)[..60].to_vec()),
        ("a root file system", layer("etc/motd", "hi")),
        ("a layer that is not its digest", changed),
    ];
    for (what, archive) in rows {
        let error = bench.runtime().load_image(reader(archive), None).await.unwrap_err();
        assert!(matches!(error, RuntimeError::BadImage(_)), "{what}: {error}");
        assert!(names(bench).await.is_empty(), "{what}");
    }
    let error = bench.runtime().import_image(reader(vec![7; 5000]), "x").await.unwrap_err();
    assert!(matches!(error, RuntimeError::BadImage(_)), "{error}");
    // And it still loads what is one.
    bench.runtime().load_image(reader(good), None).await.unwrap();
}

pub async fn archives_that_lead_out_of_their_root_are_refused<H: Harness>(bench: &mut Bench<H>) {
    for name in ["../escaped", "a/../../escaped"] {
        let hostile = tar(&[("fine", b"1"), (name, b"2")]);
        let error = bench.runtime().import_image(reader(hostile.clone()), "x").await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::BadImage(text) if text.contains("leads out")),
            "{name}: {error}"
        );
        let error = bench.runtime().load_image(reader(docker(&["x"], &[hostile])), None).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::BadImage(text) if text.contains("leads out")),
            "{name}: {error}"
        );
    }
    assert!(names(bench).await.is_empty());
}

pub async fn saved_images_come_back_under_the_same_ids<H: Harness>(bench: &mut Bench<H>) {
    let (shared, own) =
        (layer("shared", "1"), tar(&[("bin/app", b"#!"), ("empty", b""), ("big", &[7; 70_000])]));
    let (first, second) = ([shared.clone(), own.clone()], [shared]);
    bench.runtime().load_image(reader(gzip(&docker(&["app:1", "app:2"], &first))), None).await.unwrap();
    bench.runtime().load_image(reader(oci("example.org/team/base:v2", &second)), None).await.unwrap();
    let all = ["app:1", "example.org/team/base:v2", "app:2"].map(str::to_owned);
    let mut saved = Vec::new();
    let mut archive = bench.runtime().save_images(all.to_vec()).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut archive, &mut saved).await.unwrap();
    for name in &all {
        bench.runtime().remove_image(name).await.unwrap();
    }
    assert!(names(bench).await.is_empty());
    let mut loaded = bench.runtime().load_image(reader(saved.clone()), None).await.unwrap();
    loaded.sort();
    assert_eq!(loaded, ["docker.io/library/app:1", "docker.io/library/app:2", "example.org/team/base:v2"]);
    for (name, layers) in [("app:2", &first[..]), ("example.org/team/base:v2", &second[..])] {
        assert_eq!(bench.runtime().image(name).await.unwrap().unwrap().id, id(layers), "{name}");
    }
    // Again, by id.
    let mut again = bench.runtime().save_images(vec![id(&second)]).await.unwrap();
    let mut bytes = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut again, &mut bytes).await.unwrap();
    let renamed = bench.runtime().load_image(reader(bytes), Some("renamed".into())).await.unwrap();
    assert_eq!(bench.runtime().image(&renamed[0]).await.unwrap().unwrap().id, id(&second));
}

pub async fn only_images_that_are_here_are_saved<H: Harness>(bench: &mut Bench<H>) {
    bench.runtime().load_image(reader(docker(&["app"], &[layer("f", "1")])), None).await.unwrap();
    for (name, known) in [("absent.example/none", true), ("Not A Name", false), ("../x", false), ("", false)]
    {
        let error = bench.runtime().save_images(vec!["app".into(), name.into()]).await.err().unwrap();
        let right = match known {
            true => matches!(error, RuntimeError::ImageNotFound(_)),
            false => matches!(error, RuntimeError::InvalidImageName(..)),
        };
        assert!(right, "{name:?}: {error}");
    }
}

pub async fn names_that_are_none_are_refused<H: Harness>(bench: &mut Bench<H>) {
    for name in ["", "Not A Name", "a:b:c", "../x"] {
        let archive = || reader(docker(&["app"], &[layer("f", "1")]));
        for error in [
            bench.runtime().image(name).await.err(),
            bench.runtime().load_image(archive(), Some(name.to_owned())).await.err(),
            bench.runtime().import_image(reader(layer("f", "1")), name).await.err(),
            bench.runtime().remove_image(name).await.err(),
        ] {
            assert!(matches!(&error, Some(RuntimeError::InvalidImageName(..))), "{name:?}: {error:?}");
        }
    }
    assert!(names(bench).await.is_empty());
}

pub async fn what_no_registry_has_is_not_pulled<H: Harness>(bench: &mut Bench<H>) {
    // Nothing listens there.
    let error = bench.runtime().pull_image("127.0.0.1:1/none:1", None).await.unwrap_err();
    assert!(!error.to_string().is_empty(), "a reason");
    let error = bench.runtime().pull_image("Not A Name", None).await.unwrap_err();
    assert!(matches!(error, RuntimeError::InvalidImageName(..)), "{error}");
    assert!(bench.runtime().image("127.0.0.1:1/none:1").await.unwrap().is_none());
    assert!(names(bench).await.is_empty());
}

pub async fn a_pulled_image_goes_by_its_registrys_digest<H: Harness>(bench: &mut Bench<H>) {
    let registry = Registry::start(&layer("bin", "pulled"));
    let (name, wanted) =
        (registry.name("team/app:1"), registry.name(&format!("team/app@{}", registry.digest)));
    let pulled = bench.runtime().pull_image(&name, None).await.unwrap();
    assert_eq!(pulled.digests, std::slice::from_ref(&wanted), "of the index that the tag stands for");
    assert_eq!(pulled.reference(&name), wanted);
    assert!(pulled.id.starts_with("sha256:"), "{pulled:?}");
    let listed = bench.runtime().list_images().await.unwrap();
    let listed = listed.into_iter().find(|image| image.names.contains(&name)).expect("it is listed");
    assert_eq!(listed.digests, std::slice::from_ref(&wanted));

    // Another tag of the same repository is the same.
    let other = registry.name("team/app:2");
    assert_eq!(bench.runtime().pull_image(&other, None).await.unwrap().reference(&other), wanted);
    for name in [&name, &other] {
        let found = bench.runtime().image(name).await.unwrap().unwrap();
        assert_eq!(
            (found.digests.as_slice(), found.reference(name)),
            (&[wanted.clone()][..], wanted.clone())
        );
    }
    bench.runtime().remove_image(&other).await.unwrap();
    assert_eq!(bench.runtime().image(&name).await.unwrap().unwrap().reference(&name), wanted);

    bench.runtime().load_image(reader(docker(&["app:1"], &[layer("bin", "brought")])), None).await.unwrap();
    let brought = bench.runtime().image("app:1").await.unwrap().unwrap();
    assert!(brought.digests.is_empty(), "no registry has it: {brought:?}");
    assert_eq!(brought.reference("app:1"), brought.id);

    bench.sandbox("p").await;
    let config = ContainerConfig { image_ref: wanted.clone(), ..bench.hello("c", &[]) };
    let told = bench.start("p", config).await;
    let untold = bench.start("p", bench.hello("d", &[])).await;
    bench.restart(async {}).await;
    assert_eq!(bench.find(&told).await.unwrap().image_id, wanted, "also to the next process");
    let builtin = bench.runtime().image(BUILTIN_IMAGE).await.unwrap().unwrap();
    assert_eq!(bench.find(&untold).await.unwrap().image_id, builtin.id);
    for name in [name.as_str(), "app:1"] {
        bench.runtime().remove_image(name).await.unwrap();
    }
}

pub async fn a_running_container_keeps_its_image<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    bench.runtime().remove_image(BUILTIN_IMAGE).await.unwrap();
    assert!(matches!(bench.create("a", bench.hello("late", &[])).await, Err(RuntimeError::ImageNotFound(_))));
    assert_eq!(bench.state(&id).await, ContainerState::Running);
    bench.restart(async {}).await;
    assert_eq!(bench.state(&id).await, ContainerState::Running);
    bench.runtime().remove_container(&id).await.unwrap();
}

/// Another machine that has the parts of an image.
struct Giver(BTreeMap<String, Vec<u8>>);

impl Giver {
    fn of(layers: &[Vec<u8>]) -> Giver {
        let config = [config(layers)];
        Giver(config.iter().chain(layers).map(|part| (digest(part), part.clone())).collect())
    }
}

#[async_trait]
impl PartSource for Giver {
    async fn part(&self, digest: &str) -> Result<Reader, String> {
        self.0.get(digest).map(|part| reader(part.clone())).ok_or_else(|| "no such part".to_owned())
    }

    async fn another(&self, _: String) -> bool {
        false
    }
}

async fn shared<H: Harness>(bench: &Bench<H>, name: &str) -> Option<SharedImage> {
    let all = bench.runtime().shared_images().await.unwrap();
    let mut given = all.into_iter().filter(|shared| !matches!(shared.came, Came::Removed { .. }));
    given.find(|shared| shared.name == name)
}

pub async fn an_image_that_was_brought_is_given_part_by_part<H: Harness>(bench: &mut Bench<H>) {
    let layers = [layer("bin", "one"), tar(&[("big", &[7; 200_000]), ("empty", b"")])];
    bench.runtime().load_image(reader(gzip(&docker(&["app:1"], &layers))), None).await.unwrap();
    let app = shared(bench, "docker.io/library/app:1").await.unwrap();
    assert_eq!(app.id, id(&layers));
    assert!(matches!(app.came, Came::ByHand { since_ms } if since_ms > 0), "{app:?}");
    assert!(shared(bench, BUILTIN_IMAGE).await.is_none(), "everybody has that");
    for part in layers.iter().chain([&config(&layers)]) {
        let mut given = bench.runtime().image_part(&app.id, &digest(part)).await.unwrap();
        let mut bytes = Vec::new();
        given.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes == *part, "{} bytes of {}", bytes.len(), part.len());
    }
    let (absent, none) = (digest(b"absent"), id(&[layer("no", "such")]));
    for (image, part) in [(&app.id, &absent), (&none, &none)] {
        let error = bench.runtime().image_part(image, part).await.err().unwrap();
        let absent = matches!(error, RuntimeError::NotFound(_) | RuntimeError::ImageNotFound(_));
        assert!(absent, "{error}");
    }
    // The time since when it is here is kept, also by the next process.
    bench.restart(async {}).await;
    assert_eq!(shared(bench, "docker.io/library/app:1").await, Some(app.clone()));
    bench.runtime().remove_image("app:1").await.unwrap();
    assert!(shared(bench, "docker.io/library/app:1").await.is_none());
    assert!(bench.runtime().image_part(&app.id, &digest(&layers[0])).await.is_err());
}

async fn origin<H: Harness>(bench: &mut Bench<H>, name: &str) -> Origin {
    let image = bench.runtime().image(name).await.unwrap().unwrap();
    bench.runtime().image_origin(name, &image).await.unwrap()
}

pub async fn an_image_is_taken_part_by_part_and_known_for_a_copy<H: Harness>(bench: &mut Bench<H>) {
    assert!(bench.runtime().takes_images());
    let name = "docker.io/library/app:1".to_owned();
    let (first, second) =
        ([layer("bin", "one"), layer("etc", "two")], [layer("bin", "one"), layer("etc", "3")]);
    let offer = |layers: &[Vec<u8>], came| SharedImage { name: name.clone(), id: id(layers), came };
    let (old, new) = (Came::ByHand { since_ms: 5 }, Came::Copied { since_ms: 6 });
    let taken = bench.runtime().take_image(offer(&first, old), Arc::new(Giver::of(&first))).await.unwrap();
    assert_eq!((&taken.id, &taken.names, taken.user.as_str()), (&id(&first), &vec![name.clone()], "7"));
    assert_eq!(origin(bench, &name).await, Origin::Copied, "somebody brought it to the other machine");
    // A newer one of what is a copy takes its place, also in another process.
    bench.restart(async {}).await;
    let taken = bench.runtime().take_image(offer(&second, new), Arc::new(Giver::of(&second))).await.unwrap();
    assert_eq!(taken.id, id(&second));
    assert_eq!(origin(bench, &name).await, Origin::Copied);
    // What somebody brings here stays, whatever others have.
    bench.runtime().load_image(reader(docker(&["app:1"], &first)), None).await.unwrap();
    assert_eq!(origin(bench, &name).await, Origin::ByHand);
    let kept = bench.runtime().take_image(offer(&second, new), Arc::new(Giver::of(&second))).await.unwrap();
    assert_eq!(kept.id, id(&first));
    // And what others pulled is no copy of what was brought.
    bench.runtime().remove_image(&name).await.unwrap();
    bench.runtime().take_image(offer(&first, Came::Pulled), Arc::new(Giver::of(&first))).await.unwrap();
    assert_eq!(origin(bench, &name).await, Origin::Registry);
}

pub async fn parts_that_are_not_what_was_asked_for_leave_nothing<H: Harness>(bench: &mut Bench<H>) {
    let layers = [layer("bin", "one"), layer("etc", "two")];
    let spoil = |which: &[u8]| {
        let mut giver = Giver::of(&layers);
        giver.0.insert(digest(which), layer("other", "content"));
        giver
    };
    let mut lacks = Giver::of(&layers);
    lacks.0.remove(&digest(&layers[1]));
    for giver in [spoil(&layers[1]), spoil(&config(&layers)), lacks] {
        let offer = SharedImage {
            name: "docker.io/library/app:1".to_owned(),
            id: id(&layers),
            came: Came::ByHand { since_ms: 5 },
        };
        let error = bench.runtime().take_image(offer, Arc::new(giver)).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Pull(_)), "{error}");
        assert!(names(bench).await.is_empty());
    }
    for name in [BUILTIN_IMAGE.to_owned(), format!("app@{}", id(&layers)), "Not A Name".to_owned()] {
        let offer = SharedImage { name, id: id(&layers), came: Came::Pulled };
        let refused = bench.runtime().take_image(offer.clone(), Arc::new(Giver::of(&layers))).await;
        assert!(refused.is_err(), "{}", offer.name);
        assert!(names(bench).await.is_empty());
    }
}

pub async fn where_images_are_is_told<H: Harness>(bench: &mut Bench<H>) {
    bench.running("a").await;
    let storage = bench.runtime().storage().await.unwrap().expect("it is known");
    assert!(storage.images.is_dir() && storage.layers.is_dir(), "{storage:?}");
}
