//! Pods' ranges of users on this machine (`hostUsers: false`).
//!
//! Owns: the file `userns` in a pod's directory, which is all that is known of its range: a later kubelet finds it there, and
//! the range is free again when the directory goes. All nodes of the process share the machine, so they look at each
//! other's files and take turns.

use std::{
    fs, io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use crate::{
    logic::{
        pod::config::Places,
        user_ranges::{LENGTH, Mappings, free},
    },
    runtime::IdRange,
};

const FILE: &str = "userns";
/// One choice at a time.
static TURN: Mutex<()> = Mutex::new(());

/// The pod's range, chosen if it has none yet. Blocks for a look at every pod's directory.
///
/// # Errors
/// A sentence.
pub fn range_of(node: &Path, places: &Places, uid: &str) -> Result<IdRange, String> {
    let file = places.pod_dir.join(FILE);
    let cannot = |error: io::Error| format!("{}: {error}", file.display());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let first = match read(&file) {
        Some(first) => first,
        None => {
            let first = free(uid, &taken(node)).ok_or("no range of users is free on this machine")?;
            super::volumes::private(places).map_err(cannot)?;
            // Whole or not at all, should this process end.
            let beside = file.with_extension("new");
            let text = serde_json::to_vec(&Mappings::of(first)).map_err(|error| cannot(error.into()))?;
            fs::write(&beside, text).and_then(|()| fs::rename(&beside, &file)).map_err(cannot)?;
            first
        }
    };
    Ok(IdRange { first, count: LENGTH })
}

fn read(file: &Path) -> Option<u32> {
    serde_json::from_slice::<Mappings>(&fs::read(file).ok()?).ok()?.first()
}

/// The ranges of all pods of all nodes beside this one.
fn taken(node: &Path) -> Vec<u32> {
    let nodes = fs::read_dir(node.parent().unwrap_or(node)).into_iter().flatten().flatten();
    let pods = nodes.flat_map(|node| fs::read_dir(node.path().join("pods")).into_iter().flatten().flatten());
    pods.filter_map(|pod| read(&pod.path().join(FILE))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_apart_over_all_nodes_found_again_and_freed() {
        let dir = tempfile::tempdir().unwrap();
        let places = |node: &str, pod: &str| Places {
            pod_dir: dir.path().join(node).join("pods").join(pod),
            log_dir: dir.path().to_owned(),
        };
        // All of them the same pod to the eye that only sees the uid: they begin to look at one place.
        let range =
            |node: &str, pod: &str| range_of(&dir.path().join(node), &places(node, pod), "uid").unwrap();
        let (a, b, c) = (range("n1", "a"), range("n1", "b"), range("n2", "c"));
        for (one, other) in [(a, b), (b, c), (a, c)] {
            assert!(one.first.abs_diff(other.first) >= LENGTH, "{one:?} {other:?}");
        }
        assert_eq!(range("n1", "a"), a, "the same at the next kubelet");
        fs::remove_dir_all(places("n1", "a").pod_dir).unwrap();
        assert_eq!(range("n2", "d"), a, "what a pod had is free when it is gone");
    }
}
