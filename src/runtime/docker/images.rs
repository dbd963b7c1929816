//! The engine's images in the trait's words.
//!
//! Owns: names, loading, pulling, and the images made of our own program: the built-in one and the sandboxes'. Invariant:
//! what is loaded was checked by [`crate::runtime::images::pack`] first. The engine's images are one for all who use it:
//! what `docker build` made is there for pods, and what is loaded here is there for docker.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bollard::{
    auth::DockerCredentials,
    errors::Error,
    models::{ImageInspect, SystemInfo},
    query_parameters::{CreateImageOptions, ImportImageOptions, ListImagesOptions, RemoveImageOptions},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio_util::io::{ReaderStream, StreamReader};

use super::{
    driver::Driver,
    engine::{self, fault, is_absent},
};
use crate::runtime::{
    Image, Reader, RegistryAuth, RuntimeError,
    disk::Storage,
    exchange::{Engine as _, is_id},
    images::{
        engine_name, normalize,
        pack::{self, PAUSE_IMAGE, PROGRAM_LABEL, Packed, programs},
    },
    refusals,
};

/// Images looked at together.
const AT_ONCE: usize = 8;

/// What is remembered of images.
#[derive(Default)]
pub(super) struct Images {
    /// One load of our own program at a time.
    program: AsyncMutex<()>,
    /// By image id, which stands for its whole content: the user it runs as.
    users: Mutex<HashMap<String, String>>,
    pulls: Mutex<HashMap<PullKey, watch::Receiver<Pulled>>>,
}

/// Who pulls what: the full name, the user and the password.
type PullKey = (String, String, String);
/// How a pull ended, once it has.
type Pulled = Option<Result<Image, RuntimeError>>;

impl Images {
    fn users(&self) -> MutexGuard<'_, HashMap<String, String>> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pulls(&self) -> MutexGuard<'_, HashMap<PullKey, watch::Receiver<Pulled>>> {
        self.pulls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver {
    /// Where the engine has images, and what containers write.
    pub(super) async fn storage(&self) -> Result<Option<Storage>, RuntimeError> {
        let told = self.docker.info().await.map_err(fault("ask where images are"))?;
        Ok(storage(told))
    }

    /// The image of a name in any form, or of an id.
    pub(super) async fn find_image(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        Ok(self.inspect_image(&engine_image(name)?).await?.map(image))
    }

    pub(super) async fn inspect_image(&self, name: &str) -> Result<Option<ImageInspect>, RuntimeError> {
        match self.docker.inspect_image(name).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(fault(format!("look at image {name}"))(error)),
        }
    }

    /// Every image with a name, but the sandboxes'.
    pub(super) async fn list_images(self: &Arc<Self>) -> Result<Vec<Image>, RuntimeError> {
        let all = self.docker.list_images(None::<ListImagesOptions>).await;
        let all = all.map_err(fault("list the engine's images"))?.into_iter().filter_map(|found| {
            let names = names_of(&found.repo_tags, &found.repo_digests);
            let hidden = names.is_empty() || names == [PAUSE_IMAGE];
            (!hidden).then(|| Image {
                id: found.id,
                names,
                size_bytes: u64::try_from(found.size).unwrap_or(0),
                user: String::new(),
                digests: full_names(&found.repo_digests),
            })
        });
        let with_users = stream::iter(all.map(|image| {
            let driver = Arc::clone(self);
            async move { Ok(Image { user: driver.user_of(&image.id).await?, ..image }) }
        }));
        with_users.buffered(AT_ONCE).try_collect().await
    }

    async fn user_of(&self, id: &str) -> Result<String, RuntimeError> {
        if let Some(user) = self.images.users().get(id) {
            return Ok(user.clone());
        }
        let user = self.inspect_image(id).await?.map(|found| image(found).user).unwrap_or_default();
        self.images.users().insert(id.to_owned(), user.clone());
        Ok(user)
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
        names
            .into_iter()
            .next()
            .ok_or_else(|| RuntimeError::InvalidImageName(name.to_owned(), "empty".to_owned()))
    }

    /// Has the engine load what was packed.
    pub(super) async fn hand_over(&self, packed: Packed) -> Result<Vec<String>, RuntimeError> {
        let packed = Arc::new(packed);
        let packing = Arc::clone(&packed);
        let archive = tokio::task::spawn_blocking(move || packing.archive()).await;
        let archive = archive.unwrap_or_else(|error| {
            Err(RuntimeError::System { operation: "pack images".to_owned(), cause: error.to_string() })
        })?;
        let open = tokio::fs::File::open(&archive).await;
        let file = open.map_err(|cause| RuntimeError::System {
            operation: format!("open {}", archive.display()),
            cause: cause.to_string(),
        })?;
        let options = ImportImageOptions { quiet: true, ..ImportImageOptions::default() };
        let answers = self.docker.import_image_stream(options, ReaderStream::new(file), None);
        let done: Result<(), Error> = answers.try_for_each(|_| async { Ok(()) }).await;
        done.map_err(|error| match error {
            Error::DockerStreamError { error } => {
                RuntimeError::BadImage(format!("the docker engine says: {error}"))
            }
            other => fault("load an image into the docker engine")(other),
        })?;
        Ok(packed.names.clone())
    }

    /// The engine's own archive: since its version 25 an OCI layout, too.
    pub(super) async fn save_images(self: &Arc<Self>, names: Vec<String>) -> Result<Reader, RuntimeError> {
        let mut all = Vec::new();
        for name in names {
            let known = engine_image(&name)?;
            // The engine would begin its answer before it looks.
            if self.inspect_image(&known).await?.is_none() {
                return Err(RuntimeError::ImageNotFound(name));
            }
            all.push(known);
        }
        let docker = self.docker.clone();
        let (sender, receiver) = tokio::sync::mpsc::channel(AT_ONCE);
        tokio::spawn(async move {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            let mut chunks = Box::pin(docker.export_images(&all));
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|error| std::io::Error::other(engine::message(&error)));
                if sender.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        let chunks = stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        });
        Ok(Box::pin(StreamReader::new(Box::pin(chunks))))
    }

    pub(super) async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        let full = engine_name(&normalize(name)?);
        // Also one that containers use: they keep its content, as everywhere.
        let options = RemoveImageOptions { force: true, ..RemoveImageOptions::default() };
        match self.docker.remove_image(&full, Some(options), None).await {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Err(RuntimeError::ImageNotFound(name.to_owned())),
            Err(error) => Err(fault(format!("remove image {full}"))(error)),
        }
    }

    /// Makes the images of our own program, unless the engine has them of this very file.
    pub(super) async fn ensure_images(&self) -> Result<(), RuntimeError> {
        let _one_at_a_time = self.images.program.lock().await;
        let identity = pack::program_identity(&self.config.program)?;
        let mut missing = Vec::new();
        for (name, entrypoint) in programs() {
            if self.label_of(&name).await?.as_ref() != Some(&identity) {
                missing.push((name, entrypoint));
            }
        }
        self.load_programs(missing).await
    }

    /// Makes the sandboxes' image when somebody removed it.
    pub(super) async fn ensure_program(&self) -> Result<(), RuntimeError> {
        let _one_at_a_time = self.images.program.lock().await;
        if self.inspect_image(PAUSE_IMAGE).await?.is_some() {
            return Ok(());
        }
        self.load_programs(programs().into_iter().filter(|(name, _)| name == PAUSE_IMAGE).collect()).await
    }

    async fn load_programs(&self, programs: Vec<(String, Vec<String>)>) -> Result<(), RuntimeError> {
        if programs.is_empty() {
            return Ok(());
        }
        let packed = pack::pack_program(&self.config.program, programs, &self.config.scratch()).await?;
        self.hand_over(packed).await.map(drop)
    }

    async fn label_of(&self, name: &str) -> Result<Option<String>, RuntimeError> {
        let found = self.inspect_image(name).await?;
        Ok(found.and_then(|found| found.config?.labels?.get(PROGRAM_LABEL).cloned()))
    }

    /// Pulls an image; calls for the same one at the same time are one pull.
    pub(super) async fn pull_image(
        &self,
        name: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<Image, RuntimeError> {
        let full = normalize(name)?;
        let auth = auth.unwrap_or_default();
        let key = (full.clone(), auth.username.clone(), auth.password.clone());
        let (tell, under_way) = {
            let mut pulls = self.images.pulls();
            match pulls.get(&key) {
                // One whose end was not told was cut off with its caller.
                Some(pull) if pull.has_changed().is_ok() => (None, pull.clone()),
                _ => {
                    let (tell, pull) = watch::channel(None);
                    pulls.insert(key.clone(), pull.clone());
                    (Some(tell), pull)
                }
            }
        };
        if let Some(tell) = tell {
            let result = self.pull(&full, &auth).await;
            self.images.pulls().remove(&key);
            tell.send_replace(Some(result.clone()));
            return result;
        }
        let mut under_way = under_way;
        let result = under_way.wait_for(Option::is_some).await.ok().and_then(|result| result.clone());
        result.unwrap_or_else(|| {
            Err(RuntimeError::System {
                operation: format!("pull image {full}"),
                cause: "it was cut off".to_owned(),
            })
        })
    }

    async fn pull(&self, full: &str, auth: &RegistryAuth) -> Result<Image, RuntimeError> {
        let name = engine_name(full);
        let options = CreateImageOptions { from_image: Some(name.clone()), ..CreateImageOptions::default() };
        let pulling = self.docker.create_image(Some(options), None, credentials(full, auth));
        let done: Result<(), Error> = pulling.try_for_each(|_| async { Ok(()) }).await;
        done.map_err(|error| pull_error(full, &engine::message(&error)))?;
        self.inspect_image(&name)
            .await?
            .map(image)
            .ok_or_else(|| RuntimeError::ImageNotFound(full.to_owned()))
    }
}

/// An image's name in any form, or its id, as the engine takes it.
pub(super) fn engine_image(name: &str) -> Result<String, RuntimeError> {
    if is_id(name) { Ok(name.to_owned()) } else { Ok(engine_name(&normalize(name)?)) }
}

fn image(found: ImageInspect) -> Image {
    let digests = found.repo_digests.unwrap_or_default();
    Image {
        id: found.id.unwrap_or_default(),
        names: names_of(&found.repo_tags.unwrap_or_default(), &digests),
        size_bytes: found.size.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
        user: found.config.and_then(|config| config.user).unwrap_or_default(),
        digests: full_names(&digests),
    }
}

/// Full names, sorted; what has no tag goes by its digests.
pub(super) fn names_of(tags: &[String], digests: &[String]) -> Vec<String> {
    let tags = full_names(tags);
    if tags.is_empty() { full_names(digests) } else { tags }
}

fn full_names(names: &[String]) -> Vec<String> {
    let mut names: Vec<String> = names.iter().filter_map(|name| normalize(name).ok()).collect();
    names.sort();
    names
}

fn credentials(full: &str, auth: &RegistryAuth) -> Option<DockerCredentials> {
    if *auth == RegistryAuth::default() {
        return None;
    }
    let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let server = full.split('/').next().map(str::to_owned);
    Some(match given(&auth.username) {
        Some(username) => DockerCredentials {
            username: Some(username),
            password: given(&auth.password),
            serveraddress: server,
            ..DockerCredentials::default()
        },
        None => DockerCredentials {
            registrytoken: given(&auth.password),
            serveraddress: server,
            ..DockerCredentials::default()
        },
    })
}

/// Why an image was not pulled, and what may help.
fn pull_error(full: &str, text: &str) -> RuntimeError {
    refusals::pull_error(full, text, "the docker engine", "name it in the engine's insecure-registries")
}

/// Where an engine says that its images and its containers' files are, if that is here.
fn storage(told: SystemInfo) -> Option<Storage> {
    // With containerd's snapshotters both are in a directory of containerd's, which the engine does not name.
    let mut rows = told.driver_status.iter().flatten();
    if rows.any(|row| row.first().is_some_and(|name| name == "driver-type")) {
        return None;
    }
    let root = PathBuf::from(told.docker_root_dir?);
    (root.is_absolute() && root.exists()).then(|| Storage { images: root.clone(), layers: root })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_full_sorted_and_never_none() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let digest = format!("b@sha256:{}", "a".repeat(64));
        assert_eq!(
            names_of(&texts(&["b:1", "a"]), &texts(&[&digest])),
            ["docker.io/library/a:latest", "docker.io/library/b:1"]
        );
        assert_eq!(
            names_of(&texts(&["<none>:<none>"]), &texts(&[&digest])),
            [format!("docker.io/library/{digest}")]
        );
        assert!(names_of(&texts(&["<none>:<none>"]), &texts(&["<none>@<none>"])).is_empty());
    }

    #[test]
    fn credentials_go_to_the_images_registry() {
        assert!(credentials("r.io/a:1", &RegistryAuth::default()).is_none());
        let auth = |username: &str| RegistryAuth { username: username.into(), password: "p".into() };
        let basic = credentials("r.io:5000/a:1", &auth("u")).unwrap();
        assert_eq!((basic.username.as_deref(), basic.password.as_deref()), (Some("u"), Some("p")));
        assert_eq!(basic.serveraddress.as_deref(), Some("r.io:5000"));
        let token = credentials("r.io/a:1", &auth("")).unwrap();
        assert_eq!((token.username, token.registrytoken.as_deref()), (None, Some("p")));
    }

    #[test]
    fn images_are_in_the_engines_own_directory_if_that_is_here() {
        let dir = tempfile::tempdir().unwrap();
        let root = || Some(dir.path().to_string_lossy().into_owned());
        let own = SystemInfo { docker_root_dir: root(), ..SystemInfo::default() };
        let both = Storage { images: dir.path().into(), layers: dir.path().into() };
        assert_eq!(storage(own.clone()), Some(both));
        let row = ["driver-type", "io.containerd.snapshotter.v1"].map(str::to_owned).to_vec();
        assert_eq!(storage(SystemInfo { driver_status: Some(vec![row]), ..own }), None);
        let gone = Some("/no/such/directory".to_owned());
        assert_eq!(storage(SystemInfo { docker_root_dir: gone, ..SystemInfo::default() }), None);
    }
}
