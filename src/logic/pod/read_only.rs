//! `recursiveReadOnly`: whether what is mounted below a read-only volume cannot be written through it either.
//!
//! Owns: what a mount comes to where the runtime can do that, and where it cannot, and what is told of a container's
//! mounts. Invariant: what is told is what was done, never `IfPossible`. Rules and words: Kubernetes' (KEP-3857).

use k8s_openapi::api::core::v1;

/// Whether a mount is to be read-only all the way down; `supported`: the runtime can do that.
///
/// # Errors
/// A sentence for the container's waiting state: it is a must, and cannot be.
pub(super) fn recursive(mount: &v1::VolumeMount, supported: bool) -> Result<bool, String> {
    let mode = match mount.recursive_read_only.as_deref() {
        None | Some("" | "Disabled") => return Ok(false),
        Some(mode) => mode,
    };
    let refuse = |why: String| {
        Err(format!("volume {:?} requested recursive read-only mode, but it is not {why}", mount.name))
    };
    if mount.read_only != Some(true) {
        return refuse("read-only".into());
    }
    if let Some(how) = mount.mount_propagation.as_deref().filter(|how| !["", "None"].contains(how)) {
        return refuse(format!("compatible with propagation {how:?}"));
    }
    match mode {
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => refuse("supported by the runtime".into()),
        other => Err(format!("volume {:?} requested unknown recursive read-only mode {other:?}", mount.name)),
    }
}

/// What is told of a container's mounts.
pub(super) fn statuses(mounts: &[v1::VolumeMount], supported: bool) -> Vec<v1::VolumeMountStatus> {
    let told = |mount: &v1::VolumeMount| {
        let read_only = mount.read_only == Some(true);
        // One that is refused is never made.
        let is_recursive = recursive(mount, supported).unwrap_or(false);
        v1::VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only
                .then(|| if is_recursive { "Enabled" } else { "Disabled" }.to_owned()),
        }
    };
    mounts.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mount_is_read_only_all_the_way_down_where_that_is_wanted_and_can_be() {
        let refused =
            |why: &str| Err(format!("volume \"v\" requested recursive read-only mode, but it is not {why}"));
        for (mount, with, without) in [
            (json!({"readOnly": true}), Ok(false), Ok(false)),
            (json!({"readOnly": true, "recursiveReadOnly": "Disabled"}), Ok(false), Ok(false)),
            (json!({"readOnly": true, "recursiveReadOnly": "IfPossible"}), Ok(true), Ok(false)),
            (
                json!({"readOnly": true, "recursiveReadOnly": "Enabled", "mountPropagation": "None"}),
                Ok(true),
                refused("supported by the runtime"),
            ),
            (json!({"recursiveReadOnly": "Enabled"}), refused("read-only"), refused("read-only")),
            (
                json!({"readOnly": true, "recursiveReadOnly": "Enabled", "mountPropagation": "HostToContainer"}),
                refused("compatible with propagation \"HostToContainer\""),
                refused("compatible with propagation \"HostToContainer\""),
            ),
        ] {
            let mut mount = mount;
            (mount["name"], mount["mountPath"]) = ("v".into(), "/v".into());
            let mount: v1::VolumeMount = serde_json::from_value(mount).unwrap();
            assert_eq!(recursive(&mount, true), with, "{mount:?}");
            assert_eq!(recursive(&mount, false), without, "{mount:?}");
            for (supported, outcome) in [(true, with), (false, without)] {
                let told = statuses(std::slice::from_ref(&mount), supported).remove(0);
                let mode = if outcome == Ok(true) { "Enabled" } else { "Disabled" };
                let mode = mount.read_only.map(|_| mode.to_owned());
                assert_eq!((told.read_only, told.recursive_read_only), (mount.read_only, mode));
            }
        }
    }
}
