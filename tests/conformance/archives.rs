//! Image archives made for the suite: small ones of each format.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest, Sha256};
use troupe::runtime::Reader;

/// A tar of these files. Names are written as they are, hostile ones too.
pub fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        tar.append(&header, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A layer with one file.
pub fn layer(name: &str, content: &str) -> Vec<u8> {
    tar(&[(name, content.as_bytes())])
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A configuration; its digest is the image's id.
pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "os": "linux",
        "config": {"Entrypoint": ["/app"], "User": "7"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// The id of the image that the functions below put these layers into.
pub fn id(layers: &[Vec<u8>]) -> String {
    digest(&config(layers))
}

/// What `docker save` writes.
pub fn docker(names: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    let paths: Vec<String> = (0..layers.len()).map(|number| format!("{number}/layer.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": names, "Layers": paths}]).to_string();
    let config = config(layers);
    let mut files: Vec<(&str, &[u8])> = vec![("config.json", &config)];
    files.extend(paths.iter().zip(layers).map(|(path, layer)| (path.as_str(), layer.as_slice())));
    files.push(("manifest.json", manifest.as_bytes()));
    tar(&files)
}

/// A program for the image below: it ends with the number of the first signal that it gets as its exit code. So small that
/// it needs no compiler: block all signals, wait for one, exit.
const SIGNALLED: &[u8] = b"\xb8\x0e\0\0\0\x31\xff\x48\x8d\x35\x2b\0\0\0\x31\xd2\x41\xba\x08\0\0\0\x0f\x05\xb8\x80\0\0\0\x48\x8d\x3d\x15\0\0\0\
    \x31\xf6\x31\xd2\x41\xba\x08\0\0\0\x0f\x05\x89\xc7\xb8\x3c\0\0\0\x0f\x05\xff\xff\xff\xff\xff\xff\xff\xff";

/// What `docker save` writes of an image whose program ends with the number of the first signal it gets; `signal` is its
/// `STOPSIGNAL`.
pub fn signalled(name: &str, signal: Option<&str>) -> Vec<u8> {
    signalled_with(name, &json!({"StopSignal": signal}), &[], &[])
}

/// The same, of an image with this configuration beside its entry point, these symlinks (their places and what they say) and
/// these files.
pub fn signalled_with(
    name: &str,
    configured: &serde_json::Value,
    links: &[(&str, &str)],
    files: &[(&str, &str)],
) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    let size = HEADERS + SIGNALLED.len() as u64;
    // Entry, program headers' place, none of sections; then sizes and counts.
    elf.extend([BASE + HEADERS, 64, 0].iter().flat_map(|n: &u64| n.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 1, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
    // One segment: loaded, readable and executable.
    elf.extend([1_u32, 5].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([0, BASE, BASE, size, size, 0x1000].iter().flat_map(|n: &u64| n.to_le_bytes()));
    elf.extend(SIGNALLED);
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(elf.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    layer.append_data(&mut header, "app", elf.as_slice()).unwrap();
    header.set_mode(0o644);
    for (place, content) in files {
        header.set_size(content.len() as u64);
        layer.append_data(&mut header, place, content.as_bytes()).unwrap();
    }
    for (place, target) in links {
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, place, target).unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let mut config = json!({
        "os": "linux",
        "architecture": "amd64",
        "config": configured,
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    });
    config["config"]["Entrypoint"] = json!(["/app"]);
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["0/layer.tar"]}]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    tar(&[
        ("config.json", config.as_bytes()),
        ("0/layer.tar", &layer),
        ("manifest.json", manifest.as_bytes()),
    ])
}

/// Whether that program waits for its signal; before that it would miss it.
pub fn signal_awaited(pid: i32) -> bool {
    const RT_SIGTIMEDWAIT: &str = "128 ";
    std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default().starts_with(RT_SIGTIMEDWAIT)
}

/// An OCI image layout.
pub fn oci(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let mut blobs = Vec::new();
    let mut blob = |bytes: Vec<u8>| {
        let digest = digest(&bytes);
        blobs.push((format!("blobs/{}", digest.replace(':', "/")), bytes));
        digest
    };
    let config = blob(config(layers));
    let layers: Vec<_> = layers.iter().map(|layer| json!({"digest": blob(gzip(layer))})).collect();
    let manifest = blob(json!({"config": {"digest": config}, "layers": layers}).to_string().into_bytes());
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{"digest": manifest, "annotations": {"org.opencontainers.image.ref.name": name}}],
    })
    .to_string();
    let mut files: Vec<(&str, &[u8])> =
        blobs.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    files.push(("index.json", index.as_bytes()));
    tar(&files)
}

pub fn reader(bytes: Vec<u8>) -> Reader {
    Box::pin(std::io::Cursor::new(bytes))
}
