//! Images made to harm: what they try happens inside the container or not at all, and layers mean what they should.
//!
//! What archives try while they are unpacked is tested beside the image store; here it is what unpacked ones try.

use std::{fs, path::Path};

use tar::{EntryType, Header};
use troupe::runtime::{ContainerConfig, ContainerRuntime, Mount};

use super::bench::{Bench, busybox, config};

/// One entry of a tar, written as it is.
fn entry(tar: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str) {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    tar.append(&header, std::io::empty()).unwrap();
}

/// The usual root file system, with more entries at its end: of one name, the last counts.
fn rootfs(more: &[(EntryType, &str, &str)]) -> Vec<u8> {
    const TAR_END: usize = 1024;
    let mut tar = tar::Builder::new(Vec::new());
    for (kind, name, link) in more {
        entry(&mut tar, *kind, name, link);
    }
    [&busybox()[..busybox().len() - TAR_END], &tar.into_inner().unwrap()].concat()
}

async fn import(bench: &Bench, name: &str, more: &[(EntryType, &str, &str)]) {
    bench.runtime().import_image(Box::pin(std::io::Cursor::new(rootfs(more))), name).await.unwrap();
}

fn listing(dir: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        all.push(format!("{} {:?}", entry.path().display(), entry.metadata().unwrap().modified().unwrap()));
        if entry.file_type().unwrap().is_dir() {
            all.extend(listing(&entry.path()));
        }
    }
    all.sort();
    all
}

#[tokio::test]
async fn links_where_the_runtime_mounts_or_makes_things_reach_nothing_outside() {
    let mut bench = Bench::new().await;
    let victim = bench.path().join("victim");
    for dir in ["etc", "dev", "proc", "deep/er"] {
        fs::create_dir_all(victim.join(dir)).unwrap();
    }
    for file in ["hosts", "passwd", "group", "etc/hosts"] {
        fs::write(victim.join(file), "root:x:0:0::/:/bin/sh\n").unwrap();
    }
    let before = listing(&victim);
    let away = victim.to_string_lossy().into_owned();
    let up = format!("{}{}", "../".repeat(12), &away[1..]);
    let volume = bench.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let rows =
        ["dev", "proc", "sys", "etc", "tmp", "etc/hosts", "etc/passwd", "etc/resolv.conf", "data", "srv"];
    for (number, name) in rows.into_iter().enumerate() {
        for (way, to) in [("absolute", &away), ("relative", &up)] {
            let inside = match name.rsplit('/').next().unwrap() {
                file @ ("hosts" | "passwd") => format!("{to}/{file}"),
                _ => to.clone(),
            };
            let image = format!("hostile-{number}-{way}");
            import(&bench, &image, &[(EntryType::Symlink, name, &inside)]).await;
            let pod = bench.sandbox(&image).await;
            let container = ContainerConfig {
                image: image.clone(),
                working_dir: Some("/srv/made".into()),
                mounts: vec![Mount {
                    host_path: volume.clone(),
                    container_path: "/data/volume".into(),
                    ..Mount::default()
                }],
                ..config(&image, &["sh", "-c", "echo pwned > /etc/hosts; touch /dev/x /data/x; exit 0"])
            };
            // It may run, all of it inside, or be refused.
            if let Ok(id) = bench.try_start(&pod, container).await {
                bench.exit(&id).await;
            }
            bench.runtime().remove_pod_sandbox(&pod).await.unwrap();
            assert_eq!(listing(&victim), before, "{name} {way}");
        }
    }
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn device_nodes_of_an_image_are_not_there_and_made_ones_do_not_open() {
    let mut bench = Bench::new().await;
    let nodes = [(EntryType::Block, "sda", ""), (EntryType::Char, "mem", "")];
    import(&bench, "devices", &nodes).await;
    let script = "ls /sda /mem 2>/dev/null | wc -l
        mknod /tmp/mem c 1 1 2>/dev/null && cat /tmp/mem > /dev/null 2>&1 || echo refused";
    let (lines, _) = bench.script(|config| config.image = "devices".into(), script).await;
    assert_eq!(lines, ["0", "refused"]);
}

#[tokio::test]
async fn upper_layers_hide_what_they_white_out_in_a_running_container() {
    let mut bench = Bench::new().await;
    let mut below = tar::Builder::new(Vec::new());
    for name in ["kept", "gone", "dir/", "dir/old", "opaque/", "opaque/old"] {
        let kind = if name.ends_with('/') { EntryType::Directory } else { EntryType::Regular };
        entry(&mut below, kind, name, "");
    }
    let mut above = tar::Builder::new(Vec::new());
    for name in [".wh.gone", "dir/", "dir/.wh.old", "dir/new", "opaque/", "opaque/.wh..wh..opq", "opaque/new"]
    {
        let kind = if name.ends_with('/') { EntryType::Directory } else { EntryType::Regular };
        entry(&mut above, kind, name, "");
    }
    let layers = [busybox().to_vec(), below.into_inner().unwrap(), above.into_inner().unwrap()];
    bench
        .runtime()
        .load_image(Box::pin(std::io::Cursor::new(docker("layered", &layers))), None)
        .await
        .unwrap();
    let script =
        "cd /; ls kept gone dir opaque 2>/dev/null | tr '\\n' ' '; echo; mkdir gone && ls gone | wc -l";
    let (lines, _) = bench.script(|config| config.image = "layered".into(), script).await;
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["kept", "dir:", "new", "opaque:", "new"]);
    assert_eq!(lines[1], "0", "what is made anew is empty");
}

/// What `docker save` writes.
fn docker(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    use sha2::Digest;
    let digest = |bytes: &[u8]| {
        sha2::Sha256::digest(bytes)
            .iter()
            .fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
    let paths: Vec<String> = (0..layers.len()).map(|number| format!("{number}.tar")).collect();
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": paths}]).to_string();
    let mut files = vec![("config.json".to_owned(), config.into_bytes())];
    files.extend(paths.into_iter().zip(layers.iter().cloned()));
    files.push(("manifest.json".to_owned(), manifest.into_bytes()));
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}
