//! One pull: from a name to an image of the store.
//!
//! Owns: the order of steps. Invariants: layers that are here are not fetched; what was fetched lies in a staging
//! directory that goes with the pull, however it ends; nothing of the image is visible before all of it is checked.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    http::{Fault, Http},
    progress::Progress,
    reference::Reference,
    session::Session,
};
use crate::runtime::{
    Image, RegistryAuth, RuntimeError,
    images::{
        ImageStore,
        archive::{Blob, Found},
        blocking,
        index::Origin,
        load::{self, layers_of},
        manifest::{Descriptor, OciManifest},
        name::is_hex,
    },
};

/// Layers fetched at once: Docker's number, enough to fill a link.
const LAYERS_AT_ONCE: usize = 3;

/// Pulls what a full name stands for.
pub(super) async fn pull(
    store: &ImageStore,
    http: &Http,
    full: &str,
    auth: Option<&RegistryAuth>,
    progress: &Progress,
) -> Result<Image, RuntimeError> {
    let reference = Reference::parse(full)
        .ok_or_else(|| RuntimeError::InvalidImageName(full.to_owned(), "not a full name".into()))?;
    // A registry that drips is never silent.
    let time = http.config.answers;
    let answers = async {
        let session = Session::open(http, &reference, auth).await?;
        let (manifest, digest) = session.manifest().await?;
        let (config, layers) = parts(manifest)?;
        let document = session.document(&config).await?;
        Ok::<_, RuntimeError>((session, digest, layers, document))
    };
    let late = |_| refused(format!("{full}: its manifest and configuration are not here after {time:?}"));
    let (session, digest, layers, document) = tokio::time::timeout(time, answers).await.map_err(late)??;
    let diff_ids = layers_of(&document, layers.len())?;

    let disk = store.disk.clone();
    // While the first is held no layer goes; the second removes what it has when it is dropped.
    let (loading, staging) = blocking(move || Ok((disk.loading()?, disk.stage()?))).await?;
    let missing = missing(store, &layers, &diff_ids, &staging.path);
    let total = missing.values().map(|(layer, _)| layer.size).fold(0, u64::saturating_add);
    if total > store.limits.archive_bytes {
        return Err(refused(format!("the layers have {total} bytes, more than the image store's limit")));
    }
    progress.begin(diff_ids.len(), missing.len(), total);
    let mut fetches = Vec::new();
    for (layer, file) in missing.values() {
        fetches.push(fetch(&session, layer, file, progress));
    }
    stream::iter(fetches).buffer_unordered(LAYERS_AT_ONCE).try_collect::<()>().await?;

    let blobs = layers.iter().map(|layer| Blob {
        path: missing.get(layer.digest.as_str()).map(|(_, file)| file.clone()).unwrap_or_default(),
        digest: Some(layer.digest.clone()),
    });
    let found = Found { names: vec![full.to_owned()], config: document, layers: blobs.collect() };
    let (store, full, open) = (store.clone(), full.to_owned(), auth.is_none());
    blocking(move || {
        let origin = Origin::Registry { open, digest: Some(digest) };
        load::gathered(&store.disk, &store.limits, &staging, &found, origin)?;
        drop((staging, loading));
        store.disk.sweep()?;
        let image = store.find(&full)?.map(|found| found.image);
        image.ok_or_else(|| refused(format!("{full}: it was removed meanwhile")))
    })
    .await
    .map_err(|error| match error {
        RuntimeError::BadImage(why) => refused(why),
        other => other,
    })
}

async fn fetch(
    session: &Session<'_>,
    layer: &Descriptor,
    file: &Path,
    progress: &Progress,
) -> Result<(), RuntimeError> {
    session.layer(layer, file, progress).await?;
    progress.layer_done();
    Ok(())
}

/// The layers that are not here, each once, and the files they are to be fetched into.
fn missing<'a>(
    store: &ImageStore,
    layers: &'a [Descriptor],
    diff_ids: &[String],
    staging: &Path,
) -> HashMap<&'a str, (&'a Descriptor, PathBuf)> {
    let absent = layers.iter().zip(diff_ids).filter(|(_, id)| store.disk.layer_bytes(id).is_none());
    absent
        .map(|(layer, _)| {
            let file = staging.join(layer.digest.replace(':', "-"));
            (layer.digest.as_str(), (layer, file))
        })
        .collect()
}

/// What an image's manifest must have, and nothing that is no image.
fn parts(manifest: OciManifest) -> Result<(Descriptor, Vec<Descriptor>), RuntimeError> {
    let (Some(config), Some(layers)) = (manifest.config, manifest.layers) else {
        return Err(refused(
            "it has no manifest of a kind that is known (schema 1 is not); push the image again with a current tool",
        ));
    };
    // Helm charts and other artifacts lie in registries, too.
    let image =
        ["", "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
    if !image.contains(&config.media_type.as_str()) {
        return Err(refused(format!("it is no container image, but {}", config.media_type)));
    }
    for layer in layers.iter().chain([&config]) {
        if !layer.digest.strip_prefix("sha256:").is_some_and(|hex| is_hex(hex, 64)) {
            return Err(refused(format!("{:?} is not a sha256 digest", layer.digest)));
        }
        if ["encrypted", "foreign", "nondistributable"].iter().any(|word| layer.media_type.contains(word)) {
            return Err(refused(format!("layers of the kind {} cannot be had", layer.media_type)));
        }
    }
    Ok((config, layers))
}

fn refused(why: impl Into<String>) -> RuntimeError {
    RuntimeError::Pull(why.into())
}

impl From<Fault> for RuntimeError {
    fn from(fault: Fault) -> RuntimeError {
        RuntimeError::Pull(fault.to_string())
    }
}
