//! Where the native runtime gets images from.
//!
//! Owns: the seam [`ImageSource`] only.

use async_trait::async_trait;

use crate::runtime::{ContainerId, Image, Reader, RuntimeError};
pub use resolved::ResolvedImage;

/// Unpacked images by name.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// The image of that name; `None` when it is not here. May read files.
    fn find(&self, name: &str) -> Result<Option<Image>, RuntimeError>;

    /// The image of that name, ready to be mounted, and kept until [`unpin`](Self::unpin) with the same owner.
    fn pin(&self, name: &str, owner: &ContainerId) -> Result<Option<ResolvedImage>, RuntimeError>;

    /// Ends a pin. Idempotent.
    fn unpin(&self, owner: &ContainerId) -> Result<(), RuntimeError>;

    /// Every image.
    async fn list(&self) -> Result<Vec<Image>, RuntimeError>;

    /// See [`ContainerRuntime::load_image`](crate::runtime::ContainerRuntime::load_image).
    async fn load(&self, archive: Reader, rename: Option<String>) -> Result<Vec<String>, RuntimeError>;

    /// See [`ContainerRuntime::import_image`](crate::runtime::ContainerRuntime::import_image).
    async fn import(&self, rootfs: Reader, name: &str) -> Result<String, RuntimeError>;

    /// See [`ContainerRuntime::remove_image`](crate::runtime::ContainerRuntime::remove_image).
    async fn remove(&self, name: &str) -> Result<(), RuntimeError>;
}

mod resolved {
    use std::path::PathBuf;

    use crate::runtime::Image;

    /// An image ready to be mounted.
    #[derive(Clone, Debug)]
    pub struct ResolvedImage {
        /// Which one it is.
        pub image: Image,
        /// Unpacked layers, topmost first.
        pub layers: Vec<PathBuf>,
        /// The program and its first arguments.
        pub entrypoint: Vec<String>,
        /// Further arguments, unless others are given.
        pub cmd: Vec<String>,
        /// `NAME=VALUE`.
        pub env: Vec<String>,
        /// Where the program starts; empty: `/`.
        pub working_dir: String,
        /// `user[:group]`, names or numbers; empty: root.
        pub user: String,
        /// What ends it; SIGTERM when absent.
        pub stop_signal: Option<String>,
    }
}
