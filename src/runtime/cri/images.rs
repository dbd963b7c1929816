//! The runtime's images in the trait's words.
//!
//! Owns: names, loading, pulling, and the images made of our own program: the built-in one and the sandboxes'.
//! Invariants: what is loaded was checked by [`crate::runtime::images::pack`] first; in containerd it has its real name,
//! as if pulled. Other runtimes know it by the address it was pulled from, and here it goes by its real name all the
//! same. A runtime's images are one for all who use it. Limits: other runtimes than containerd remove an image with all
//! its names.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::sync::Mutex as AsyncMutex;

use super::{
    client::{Fault, LONG, SHORT, fault},
    driver::Driver,
    proto::{self, ImageSpec},
    serve::{Registry, original},
};
use crate::runtime::{
    Image, Reader, RegistryAuth, RuntimeError,
    disk::Storage,
    exchange::{Engine, Exchange, Present, is_id},
    images::{
        engine_name, normalize,
        pack::{self, PAUSE_IMAGE, PROGRAM_LABEL, Packed, programs},
    },
    refusals,
};

/// For a pull of the largest images over the slowest lines: every pull ends.
const PULL: Duration = Duration::from_secs(3600);
/// How long containerd may take to notice a new name of its own images.
const NOTICE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(5);

pub(super) struct Images {
    /// One load of our own program at a time.
    program: AsyncMutex<()>,
    /// The image that the runtime makes sandboxes of, if it tells.
    sandbox: Option<String>,
}

impl Images {
    pub(super) fn new(sandbox: Option<String>) -> Images {
        Images { program: AsyncMutex::default(), sandbox }
    }

    /// Gives containerd the image that it makes sandboxes of, when somebody removed it: other runtimes pull it.
    pub(super) async fn ensure_sandbox_image(&self, driver: &Driver) -> Result<(), RuntimeError> {
        let Some(name) = self.sandbox.as_ref().filter(|_| driver.has_names()) else { return Ok(()) };
        let _one_at_a_time = self.program.lock().await;
        if driver.image_status(name).await?.is_some() {
            return Ok(());
        }
        let pause: Vec<_> = programs().into_iter().filter(|(name, _)| name == PAUSE_IMAGE).collect();
        driver.load_programs(pause).await?;
        driver.name(PAUSE_IMAGE, &normalize(name)?).await
    }
}

impl Driver {
    /// Where the runtime has images, and what containers write.
    pub(super) async fn storage(&self) -> Result<Option<Storage>, RuntimeError> {
        let asked = self.client.image("ImageFsInfo", &proto::Empty {}, SHORT).await;
        match asked {
            Ok(told) => Ok(storage(&told)),
            Err(fault) if fault.is_unimplemented() => Ok(None),
            Err(fault) => Err(fault.of("ask where images are")),
        }
    }
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
        let by_hand = self.all_images().await?.into_iter().filter(|image| image.repo_digests.is_empty());
        let named = by_hand.map(image).flat_map(|image| {
            let id = image.id;
            // CRI does not tell when it was made, and nothing asks.
            image.names.into_iter().map(move |name| Present { name, id: id.clone(), made_ms: 0 })
        });
        Ok(named.collect())
    }
}

impl Driver {
    /// The runtime's images can be named: it is containerd.
    fn has_names(&self) -> bool {
        self.name == "containerd"
    }

    /// An image by a name that the runtime knows, or its id.
    async fn image_status(&self, name: &str) -> Result<Option<proto::Image>, RuntimeError> {
        Ok(self.inspect_image(name, false).await?.image)
    }

    async fn inspect_image(
        &self,
        name: &str,
        verbose: bool,
    ) -> Result<proto::ImageStatusResponse, RuntimeError> {
        let request = proto::ImageStatusRequest { image: spec(name), verbose };
        let asked = self.client.image("ImageStatus", &request, SHORT).await;
        asked.map_err(fault(format!("look at image {name}")))
    }

    async fn all_images(&self) -> Result<Vec<proto::Image>, RuntimeError> {
        let listed: Result<proto::ListImagesResponse, Fault> =
            self.client.image("ListImages", &proto::Empty {}, SHORT).await;
        Ok(listed.map_err(fault("list the runtime's images"))?.images)
    }

    /// The image of a name in any form, or of an id.
    pub(super) async fn find_image(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        if is_id(name) {
            return Ok(self.image_status(name).await?.map(image));
        }
        let full = normalize(name)?;
        if let Some(found) = self.image_status(&engine_name(&full)).await? {
            return Ok(Some(image(found)));
        }
        if self.has_names() {
            return Ok(None);
        }
        let all = self.all_images().await?;
        Ok(all.into_iter().find(|found| served(found).any(|served| served == full)).map(image))
    }

    /// Every image with a name, but the sandboxes'.
    pub(super) async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        let hidden = self.images.sandbox.as_ref().and_then(|name| normalize(name).ok());
        let all = self.all_images().await?.into_iter().map(image).filter_map(|mut image| {
            image.names.retain(|name| name != PAUSE_IMAGE && Some(name) != hidden.as_ref());
            (!image.names.is_empty()).then_some(image)
        });
        Ok(all.collect())
    }

    pub(super) async fn pull_image(
        &self,
        name: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<Image, RuntimeError> {
        let full = normalize(name)?;
        let name = engine_name(&full);
        self.pull(&name, auth.unwrap_or_default()).await.map_err(|fault| pull_error(&full, &fault.text()))?;
        self.image_status(&name).await?.map(image).ok_or(RuntimeError::ImageNotFound(full))
    }

    async fn pull(&self, name: &str, auth: RegistryAuth) -> Result<(), Fault> {
        let auth = (auth != RegistryAuth::default()).then(|| match auth.username.is_empty() {
            true => proto::AuthConfig { registry_token: auth.password, ..Default::default() },
            false => {
                proto::AuthConfig { username: auth.username, password: auth.password, ..Default::default() }
            }
        });
        let request = proto::PullImageRequest { image: spec(name), auth };
        self.client.image::<_, proto::Empty>("PullImage", &request, PULL).await.map(drop)
    }

    pub(super) async fn load_image(
        &self,
        archive: Reader,
        rename: Option<String>,
    ) -> Result<Vec<String>, RuntimeError> {
        self.bring(pack::pack(archive, rename, &self.config.scratch()).await?).await
    }

    pub(super) async fn import_image(&self, rootfs: Reader, name: &str) -> Result<String, RuntimeError> {
        let names = self.bring(pack::pack_rootfs(rootfs, name, &self.config.scratch()).await?).await?;
        let name = names.into_iter().next();
        name.ok_or_else(|| RuntimeError::InvalidImageName(String::new(), "empty".to_owned()))
    }

    /// Has the runtime pull what was packed, from here.
    async fn hand_over(&self, packed: Packed) -> Result<Vec<String>, RuntimeError> {
        let images: Vec<(String, Vec<String>)> =
            packed.images.iter().map(|image| (image.id.clone(), image.names.clone())).collect();
        let registry = Registry::serve(packed).await?;
        let mut loaded = Vec::new();
        for (id, names) in images {
            for name in names {
                let Some((reference, digest)) = registry.reference(&name) else { continue };
                let pulled = self.pull(&reference, RegistryAuth::default()).await;
                pulled.map_err(|fault| {
                    RuntimeError::BadImage(format!("the container runtime says: {}", fault.text()))
                })?;
                if self.has_names() {
                    self.name(&reference, &name).await?;
                    self.noticed(&name, |found| found.is_some_and(|found| found.id == id)).await?;
                    let repository = reference.rsplit_once(':').map_or(reference.as_str(), |(path, _)| path);
                    for old in [&reference, &format!("{repository}@{digest}")] {
                        self.unname(old).await?;
                    }
                    // By then it goes by its own name alone.
                    self.noticed(&reference, |found| found.is_none()).await?;
                } else {
                    self.drop_older(&name, &reference).await?;
                }
                loaded.push(name);
            }
        }
        Ok(loaded)
    }

    /// Gives an image another name, which it takes from whatever had it.
    async fn name(&self, of: &str, name: &str) -> Result<(), RuntimeError> {
        let operation = || format!("name the image {name}");
        let request = proto::ImageName { name: of.to_owned() };
        let found: Result<proto::ImageRecord, Fault> =
            self.client.containerd("images.v1.Images/Get", &request).await;
        let Some(found) = found.map_err(fault(operation()))?.image else {
            return Err(RuntimeError::ImageNotFound(of.to_owned()));
        };
        let renamed = || proto::ImageRecord {
            image: Some(proto::NamedImage {
                name: name.to_owned(),
                labels: [("io.cri-containerd.image".to_owned(), "managed".to_owned())].into(),
                target: found.target.clone(),
            }),
        };
        let made: Result<proto::ImageRecord, Fault> =
            self.client.containerd("images.v1.Images/Create", &renamed()).await;
        match made {
            Err(Fault::Refused(ALREADY_EXISTS, _)) => {
                let changed: Result<proto::ImageRecord, Fault> =
                    self.client.containerd("images.v1.Images/Update", &renamed()).await;
                changed.map(drop).map_err(fault(operation()))
            }
            other => other.map(drop).map_err(fault(operation())),
        }
    }

    /// Takes a name off an image; says whether there was such a name.
    async fn unname(&self, name: &str) -> Result<bool, RuntimeError> {
        let request = proto::DeleteImageRequest { name: name.to_owned(), sync: true };
        let gone: Result<proto::Empty, Fault> =
            self.client.containerd("images.v1.Images/Delete", &request).await;
        match gone {
            Ok(_) => Ok(true),
            Err(fault) if fault.is_absent() => Ok(false),
            Err(fault) => Err(fault.of(format!("remove image {name}"))),
        }
    }

    /// Waits until containerd's CRI part has noticed what its other part did.
    async fn noticed(
        &self,
        name: &str,
        wanted: impl Fn(Option<&proto::Image>) -> bool,
    ) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + NOTICE;
        while !wanted(self.image_status(name).await?.as_ref()) {
            if Instant::now() > deadline {
                return Err(RuntimeError::System {
                    operation: format!("name the image {name}"),
                    cause: "the container runtime does not notice it".to_owned(),
                });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Removes what went by a name before, in a runtime that knows images by where they came from.
    async fn drop_older(&self, name: &str, reference: &str) -> Result<(), RuntimeError> {
        for found in self.all_images().await? {
            let newest = found.repo_tags.iter().any(|tag| tag == reference);
            if !newest && served(&found).any(|served| served == name) {
                self.remove_all_of(&found.id).await?;
            }
        }
        Ok(())
    }

    /// Removes an image with all its names.
    async fn remove_all_of(&self, id: &str) -> Result<(), RuntimeError> {
        let request = proto::RemoveImageRequest { image: spec(id) };
        let removed: Result<proto::Empty, Fault> = self.client.image("RemoveImage", &request, LONG).await;
        removed.map(drop).map_err(fault(format!("remove image {id}")))
    }

    pub(super) async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        let full = engine_name(&normalize(name)?);
        let absent = || RuntimeError::ImageNotFound(name.to_owned());
        let Some(found) = self.find_image(&full).await? else { return Err(absent()) };
        if !self.has_names() {
            return self.remove_all_of(&found.id).await;
        }
        if !self.unname(&full).await? {
            return Err(absent());
        }
        self.noticed(&full, |found| found.is_none()).await?;
        match self.image_status(&found.id).await? {
            Some(left) if left.repo_tags.is_empty() => self.remove_all_of(&found.id).await,
            _ => Ok(()),
        }
    }

    /// Makes the images of our own program, unless the runtime has them of this very file, and sees that sandboxes can
    /// be made.
    pub(super) async fn ensure_images(&self) -> Result<(), RuntimeError> {
        {
            let _one_at_a_time = self.images.program.lock().await;
            let identity = pack::program_identity(&self.config.program)?;
            let mut missing = Vec::new();
            for (name, entrypoint) in programs() {
                if self.label_of(&name).await?.as_ref() != Some(&identity) {
                    missing.push((name, entrypoint));
                }
            }
            self.load_programs(missing).await?;
        }
        self.images.ensure_sandbox_image(self).await
    }

    async fn load_programs(&self, programs: Vec<(String, Vec<String>)>) -> Result<(), RuntimeError> {
        if programs.is_empty() {
            return Ok(());
        }
        let packed = pack::pack_program(&self.config.program, programs, &self.config.scratch()).await?;
        self.hand_over(packed).await.map(drop)
    }

    /// An image with its user's group, too, where the runtime tells that.
    pub(super) async fn with_group(&self, image: Image) -> Result<Image, RuntimeError> {
        let told = self.image_info(&image.id).await?;
        let user = told.pointer("/imageSpec/config/User").and_then(|user| user.as_str());
        Ok(Image { user: user.map_or_else(|| image.user.clone(), str::to_owned), ..image })
    }

    /// What the runtime tells of an image beyond the interface.
    async fn image_info(&self, id: &str) -> Result<serde_json::Value, RuntimeError> {
        let info = self.inspect_image(id, true).await?.info.remove("info").unwrap_or_default();
        Ok(serde_json::from_str(&info).unwrap_or_default())
    }

    /// Of which file an image of our own program is, as far as the runtime tells.
    async fn label_of(&self, name: &str) -> Result<Option<String>, RuntimeError> {
        let Some(id) = self.find_image(name).await?.map(|found| found.id) else { return Ok(None) };
        let info = self.image_info(&id).await?;
        let labels = ["/imageSpec/config/Labels", "/labels"].iter().find_map(|at| info.pointer(at));
        Ok(labels.and_then(|labels| labels.get(PROGRAM_LABEL)?.as_str()).map(str::to_owned))
    }
}

const ALREADY_EXISTS: u32 = 6;

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image.to_owned() })
}

/// The real names of an image that was loaded from here.
fn served(image: &proto::Image) -> impl Iterator<Item = String> {
    image.repo_tags.iter().filter_map(|tag| original(tag))
}

fn image(found: proto::Image) -> Image {
    let tags = found.repo_tags.iter().map(|tag| original(tag).unwrap_or_else(|| tag.clone()));
    let mut names: Vec<String> = tags.filter_map(|name| normalize(&name).ok()).collect();
    let digests = found.repo_digests.iter().filter(|name| original(name).is_none());
    let mut digests: Vec<String> = digests.filter_map(|name| normalize(name).ok()).collect();
    if names.is_empty() {
        names.clone_from(&digests);
    }
    digests.sort();
    names.sort();
    names.dedup();
    // 0 is also what an image without a user has.
    let uid = found.uid.map(|uid| uid.value.to_string());
    let user = if found.username.is_empty() { uid.unwrap_or_default() } else { found.username };
    Image { id: found.id, names, size_bytes: found.size, user, digests }
}

/// Where a runtime says that its images and its containers' files are, as far as that is here.
fn storage(told: &proto::ImageFsInfoResponse) -> Option<Storage> {
    let place = |all: &[proto::FilesystemUsage]| {
        let path = PathBuf::from(&all.first()?.fs_id.as_ref()?.mountpoint);
        (path.is_absolute() && path.exists()).then_some(path)
    };
    let images = place(&told.image_filesystems)?;
    // Runtimes older than Kubernetes 1.29 tell of images alone; containers' files are beside them.
    let layers = place(&told.container_filesystems).unwrap_or_else(|| images.clone());
    Some(Storage { images, layers })
}

/// Why an image was not pulled, and what may help.
fn pull_error(full: &str, text: &str) -> RuntimeError {
    refusals::pull_error(
        full,
        text,
        "the container runtime",
        "the container runtime's own configuration says for which that is fine",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_by_their_real_names() {
        let found = |tags: &[&str], digests: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
            let found =
                proto::Image { repo_tags: texts(tags), repo_digests: texts(digests), ..Default::default() };
            image(found).names
        };
        let digest = format!("r.io/a@sha256:{}", "a".repeat(64));
        assert_eq!(found(&["r.io/b:1", "a:1"], &[&digest]), ["docker.io/library/a:1", "r.io/b:1"]);
        assert_eq!(found(&["127.0.0.1:4000/troupe/0/r.io/a:1"], &[]), ["r.io/a:1"]);
        assert_eq!(found(&[], &[&digest]), std::slice::from_ref(&digest));
    }

    #[test]
    fn images_are_where_the_runtime_says_if_that_is_here() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &std::path::Path| proto::FilesystemUsage {
            fs_id: Some(proto::FilesystemIdentifier { mountpoint: path.to_string_lossy().into_owned() }),
            ..Default::default()
        };
        let of = |images: Vec<proto::FilesystemUsage>, layers: Vec<proto::FilesystemUsage>| {
            let told =
                proto::ImageFsInfoResponse { image_filesystems: images, container_filesystems: layers };
            storage(&told).map(|storage| (storage.images, storage.layers))
        };
        let (images, layers) = (dir.path().to_owned(), dir.path().join("layers"));
        std::fs::create_dir(&layers).unwrap();
        assert_eq!(of(vec![at(&images)], vec![at(&layers)]), Some((images.clone(), layers)));
        assert_eq!(of(vec![at(&images)], Vec::new()), Some((images.clone(), images)));
        assert_eq!(of(vec![at(&dir.path().join("none"))], Vec::new()), None);
        assert_eq!(of(Vec::new(), Vec::new()), None);
    }
}
