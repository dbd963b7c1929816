//! One cluster for all tests that do not disturb each other.
//!
//! It lives as long as any test holds it: a static would never be dropped, and its containers would outlive the tests.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::{Cluster, Options};

static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// The shared cluster: one node, quick to restart what crashes. Tests use namespaces of their own.
pub fn shared() -> Arc<Cluster> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = shared.upgrade() {
        return cluster;
    }
    let cluster = Arc::new(Cluster::start(Options::default()));
    *shared = Arc::downgrade(&cluster);
    cluster
}
