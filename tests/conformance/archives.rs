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
fn config(layers: &[Vec<u8>]) -> Vec<u8> {
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
