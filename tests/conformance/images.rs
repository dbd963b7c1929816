//! Cases: images come, are found by name, and go.

use std::collections::BTreeSet;

use troupe::runtime::{ContainerState, RuntimeError, images::BUILTIN_IMAGE};

use super::{
    archives::{docker, gzip, id, layer, oci, reader, tar},
    harness::{Bench, Harness},
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

pub async fn a_running_container_keeps_its_image<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    bench.runtime().remove_image(BUILTIN_IMAGE).await.unwrap();
    assert!(matches!(bench.create("a", bench.hello("late", &[])).await, Err(RuntimeError::ImageNotFound(_))));
    assert_eq!(bench.state(&id).await, ContainerState::Running);
    bench.restart(async {}).await;
    assert_eq!(bench.state(&id).await, ContainerState::Running);
    bench.runtime().remove_container(&id).await.unwrap();
}
