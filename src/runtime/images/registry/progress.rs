//! How far a pull is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::runtime::PullProgress;

/// Counted by whoever works, read by whoever wants to know.
#[derive(Debug, Default)]
pub(in crate::runtime::images) struct Progress {
    layers: AtomicU32,
    layers_done: AtomicU32,
    bytes: AtomicU64,
    total_bytes: AtomicU64,
}

impl Progress {
    /// The layers of the image, those to be fetched, and their bytes.
    pub(in crate::runtime::images) fn begin(&self, layers: usize, missing: usize, total_bytes: u64) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.layers.store(count(layers), Relaxed);
        self.layers_done.store(count(layers.saturating_sub(missing)), Relaxed);
        self.total_bytes.store(total_bytes, Relaxed);
    }

    pub(in crate::runtime::images) fn layer_done(&self) {
        self.layers_done.fetch_add(1, Relaxed);
    }

    pub(in crate::runtime::images) fn got(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// What was got has to be got again.
    pub(in crate::runtime::images) fn lost(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Relaxed);
    }

    pub(in crate::runtime::images) fn now(&self) -> PullProgress {
        PullProgress {
            layers: self.layers.load(Relaxed),
            layers_done: self.layers_done.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            total_bytes: self.total_bytes.load(Relaxed),
        }
    }
}
