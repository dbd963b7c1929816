//! The engine's images between machines.
//!
//! Owns: which images others may have, and their parts. The engine has no way to read one layer, so an image is exported
//! once and kept for as long as its parts are asked for ([`KEPT`]). Invariant: an image that the engine knows from a
//! registry is not given away, because nobody remembers with whose credentials it came. Taking is
//! [`crate::runtime::exchange`]'s.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bollard::query_parameters::ListImagesOptions;
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use super::{
    driver::Driver,
    engine::fault,
    images::{engine_image, names_of},
};
use crate::runtime::{
    Image, Reader, RuntimeError,
    exchange::{Engine, Exchange},
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

/// The image whose parts were asked for last.
#[derive(Default)]
pub(super) struct Exported(AsyncMutex<Option<Export>>);

struct Export {
    image: String,
    packed: Arc<Packed>,
    asked: Instant,
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

    async fn is_without_registry(&self, name: &str) -> Result<bool, RuntimeError> {
        let found = self.inspect_image(&engine_image(name)?).await?;
        Ok(found.is_some_and(|found| found.repo_digests.unwrap_or_default().is_empty()))
    }

    async fn without_registry(&self) -> Result<Vec<(String, String)>, RuntimeError> {
        let all = self.docker.list_images(None::<ListImagesOptions>).await;
        let all = all.map_err(fault("list the engine's images"))?;
        let by_hand = all.into_iter().filter(|image| names_of(&[], &image.repo_digests).is_empty());
        let named = by_hand.flat_map(|image| {
            let names = names_of(&image.repo_tags, &[]);
            names.into_iter().map(move |name| (name, image.id.clone()))
        });
        Ok(named.filter(|(name, _)| name != BUILTIN_IMAGE && name != PAUSE_IMAGE).collect())
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
        let packed = self.exported(image).await?;
        let config = packed.images.iter().find(|packed| packed.id == digest).map(|packed| &packed.config);
        let layer = || packed.layers.iter().find(|(layer, _)| layer == digest).map(|(_, path)| path);
        let path = config.or_else(layer);
        let path = path.ok_or_else(|| RuntimeError::NotFound(format!("layer {digest} of image {image}")))?;
        let file = tokio::fs::File::open(path).await;
        // An open file can be read when its name is gone.
        Ok(Box::pin(file.map_err(system(format!("open {}", path.display())))?))
    }

    /// An image as files. One is kept at a time, for a while.
    async fn exported(self: &Arc<Self>, image: &str) -> Result<Arc<Packed>, RuntimeError> {
        let mut kept = self.exported.0.lock().await;
        if let Some(export) = kept.as_mut().filter(|export| export.image == image) {
            export.asked = Instant::now();
            return Ok(Arc::clone(&export.packed));
        }
        *kept = None;
        let archive = self.save_images(vec![image.to_owned()]).await?;
        let packed = pack::pack(archive, Some(ON_ITS_WAY.to_owned()), &self.config.scratch()).await?;
        if packed.images.iter().any(|packed| packed.id != image) {
            // As with containerd's store of images, which goes by manifests.
            return Err(RuntimeError::Unsupported(
                "docker",
                "give images that its engine names by manifests",
            ));
        }
        let packed = Arc::new(packed);
        *kept = Some(Export { image: image.to_owned(), packed: Arc::clone(&packed), asked: Instant::now() });
        let driver = Arc::clone(self);
        tokio::spawn(async move { driver.forget_export().await });
        Ok(packed)
    }

    /// Removes the exported image's files when nobody has asked for them for a while.
    async fn forget_export(&self) {
        let mut wait = KEPT;
        loop {
            tokio::time::sleep(wait).await;
            let mut kept = self.exported.0.lock().await;
            let Some(export) = kept.as_ref() else { return };
            wait = KEPT.saturating_sub(export.asked.elapsed());
            if wait.is_zero() {
                *kept = None;
                return;
            }
        }
    }
}
