//! What a valid object is, kind by kind.
//!
//! Owns: Kubernetes' validation (`pkg/apis/core/validation`) of the kinds that Troupe stores, with its fields, reasons
//! and sentences. Invariant: pure and total; runs after defaults have been filled in, so what is still missing was
//! asked for and not given.

mod cluster;
mod container;
mod data;
mod ephemeral;
mod huge_pages;
mod meta;
mod os;
mod pod;
mod probe;
mod resize;
mod resource_field;
mod scheduling;
mod service;
mod stop_signal;
mod update;
mod volume;

pub(crate) use cluster::{
    event, namespace, namespace_status, node, node_update, replication_controller,
    replication_controller_of_late, replication_controller_status,
};
pub(crate) use data::{config_map, config_map_update, secret, secret_update};
pub(crate) use ephemeral::ephemeral_update;
pub(crate) use meta::{meta, meta_update};
pub(crate) use pod::pod;
pub(crate) use resize::resize_update;
pub(crate) use service::{endpoints, service, service_update};
pub(crate) use update::{pod_status_update, pod_update};

use k8s_openapi::api::core::v1::Volume;

/// For numbers that count something.
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// Which sources a volume names (its fields' names); exactly one is right.
pub(crate) fn volume_sources(v: &Volume) -> Vec<&'static str> {
    let set = [
        ("awsElasticBlockStore", v.aws_elastic_block_store.is_some()),
        ("azureDisk", v.azure_disk.is_some()),
        ("azureFile", v.azure_file.is_some()),
        ("cephfs", v.cephfs.is_some()),
        ("cinder", v.cinder.is_some()),
        ("configMap", v.config_map.is_some()),
        ("csi", v.csi.is_some()),
        ("downwardAPI", v.downward_api.is_some()),
        ("emptyDir", v.empty_dir.is_some()),
        ("ephemeral", v.ephemeral.is_some()),
        ("fc", v.fc.is_some()),
        ("flexVolume", v.flex_volume.is_some()),
        ("flocker", v.flocker.is_some()),
        ("gcePersistentDisk", v.gce_persistent_disk.is_some()),
        ("gitRepo", v.git_repo.is_some()),
        ("glusterfs", v.glusterfs.is_some()),
        ("hostPath", v.host_path.is_some()),
        ("image", v.image.is_some()),
        ("iscsi", v.iscsi.is_some()),
        ("nfs", v.nfs.is_some()),
        ("persistentVolumeClaim", v.persistent_volume_claim.is_some()),
        ("photonPersistentDisk", v.photon_persistent_disk.is_some()),
        ("portworxVolume", v.portworx_volume.is_some()),
        ("projected", v.projected.is_some()),
        ("quobyte", v.quobyte.is_some()),
        ("rbd", v.rbd.is_some()),
        ("scaleIO", v.scale_io.is_some()),
        ("secret", v.secret.is_some()),
        ("storageos", v.storageos.is_some()),
        ("vsphereVolume", v.vsphere_volume.is_some()),
    ];
    set.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests;
