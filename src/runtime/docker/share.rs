//! The engine's images between machines.
//!
//! Owns: which images others may have, and their parts. The engine has no way to read one layer, so an image is exported
//! once and kept for as long as its parts are asked for ([`KEPT`]). Invariant: an image that the engine knows from a
//! registry is not given away, because nobody remembers with whose credentials it came. Taking is
//! [`crate::runtime::exchange`]'s.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::query_parameters::ListImagesOptions;
use tokio::{sync::OnceCell, time::Instant};

use super::{driver::Driver, engine::fault, images::names_of};
use crate::runtime::{
    Image, Reader, RuntimeError,
    exchange::{Engine, Exchange, Present},
    hand::system,
    images::{
        BUILTIN_IMAGE,
        pack::{self, PAUSE_IMAGE, Packed},
    },
    share::SharedImage,
};

/// An exported image is kept for so long after its last part was asked for.
const KEPT: Duration = Duration::from_secs(60);
/// Exported images get a name on the way, which nobody sees.
const ON_ITS_WAY: &str = "troupe.local/on-its-way";

/// Images kept at once, beyond which the one goes that was asked for longest ago.
const AT_ONCE: usize = 4;

/// The images whose parts were asked for lately, by id.
#[derive(Default)]
pub(super) struct Exported(Mutex<HashMap<String, Export>>);

struct Export {
    /// Empty while it is exported.
    packed: Arc<OnceCell<Packed>>,
    asked: Instant,
}

impl Exported {
    fn kept(&self) -> MutexGuard<'_, HashMap<String, Export>> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of an image, which was asked for just now.
    fn place(&self, image: &str) -> Arc<OnceCell<Packed>> {
        let mut kept = self.kept();
        if kept.len() >= AT_ONCE
            && !kept.contains_key(image)
            && let Some(oldest) = kept.iter().min_by_key(|(_, export)| export.asked).map(|(id, _)| id.clone())
        {
            end(kept.remove(&oldest));
        }
        let new = || Export { packed: Arc::default(), asked: Instant::now() };
        let export = kept.entry(image.to_owned()).or_insert_with(new);
        export.asked = Instant::now();
        Arc::clone(&export.packed)
    }

    /// Removes what nobody has asked for for a while; whether something is left.
    fn sweep(&self) -> bool {
        let mut kept = self.kept();
        let old = kept.iter().filter(|(_, export)| export.asked.elapsed() >= KEPT);
        let old: Vec<String> = old.map(|(image, _)| image.clone()).collect();
        old.iter().for_each(|image| end(kept.remove(image)));
        !kept.is_empty()
    }
}

/// Removes an image's files, which may take a while.
fn end(export: Option<Export>) {
    tokio::task::spawn_blocking(move || drop(export));
}

impl Engine for Driver {
    fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    fn scratch(&self) -> PathBuf {
        self.config.scratch()
    }

    async fn find(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        self.find_image(name).await
    }

    async fn give(&self, packed: Packed) -> Result<Vec<String>, RuntimeError> {
        self.hand_over(packed).await
    }

    async fn without_registry(&self) -> Result<Vec<Present>, RuntimeError> {
        let all = self.docker.list_images(None::<ListImagesOptions>).await;
        let all = all.map_err(fault("list the engine's images"))?;
        let by_hand = all.into_iter().filter(|image| names_of(&[], &image.repo_digests).is_empty());
        let named = by_hand.flat_map(|image| {
            let names = names_of(&image.repo_tags, &[]);
            let made_ms = image.created.saturating_mul(1000);
            names.into_iter().map(move |name| Present { name, id: image.id.clone(), made_ms })
        });
        Ok(named.filter(|image| image.name != BUILTIN_IMAGE && image.name != PAUSE_IMAGE).collect())
    }
}

impl Driver {
    pub(super) async fn shared_images(&self) -> Result<Vec<SharedImage>, RuntimeError> {
        Ok(self.exchange.notes(self).await?.shared())
    }

    pub(super) async fn image_part(
        self: &Arc<Self>,
        image: &str,
        digest: &str,
    ) -> Result<Reader, RuntimeError> {
        if !self.shared_images().await?.iter().any(|shared| shared.id == image) {
            return Err(RuntimeError::ImageNotFound(image.to_owned()));
        }
        let place = self.exported.place(image);
        let packed = place.get_or_try_init(|| self.export(image)).await?;
        let config = packed.images.iter().find(|packed| packed.id == digest).map(|packed| &packed.config);
        let layer = || packed.layers.iter().find(|(layer, _)| layer == digest).map(|(_, path)| path);
        let path = config.or_else(layer);
        let path = path.ok_or_else(|| RuntimeError::NotFound(format!("layer {digest} of image {image}")))?;
        let file = tokio::fs::File::open(path).await;
        // An open file can be read when its name is gone.
        Ok(Box::pin(file.map_err(system(format!("open {}", path.display())))?))
    }

    /// An image as files, which are kept for a while.
    async fn export(self: &Arc<Self>, image: &str) -> Result<Packed, RuntimeError> {
        let archive = self.save_images(vec![image.to_owned()]).await?;
        let packed = pack::pack(archive, Some(ON_ITS_WAY.to_owned()), &self.config.scratch()).await?;
        if packed.images.iter().any(|packed| packed.id != image) {
            // As with containerd's store of images, which goes by manifests.
            return Err(RuntimeError::Unsupported(
                "docker",
                "give images that its engine names by manifests",
            ));
        }
        let driver = Arc::clone(self);
        tokio::spawn(async move {
            while driver.exported.sweep() {
                tokio::time::sleep(KEPT).await;
            }
        });
        Ok(packed)
    }
}
