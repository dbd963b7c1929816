//! Where a cluster must come to rest once nothing breaks any more.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use troupe::model::{Kind, KindFacet, NodeName, Object, Snapshot, Uid};

use super::{
    cluster::Simulation,
    invariants::{node_of, running},
};

/// Whether a node is ready, and nobody is kept off it.
pub fn is_well(snapshot: &Snapshot, name: &NodeName) -> bool {
    let key = troupe::model::Key::new(Kind::Node, "", name.0.clone());
    snapshot.find(&key).is_some_and(|object| match &object.facet.of {
        KindFacet::Node(node) => node.ready && node.taints.is_empty(),
        _ => false,
    })
}

/// What is not as it should be in the end; nothing when all is.
pub fn unrest(simulation: &Simulation) -> Option<String> {
    let Some(client) = simulation.client() else { return Some("there is no master".into()) };
    let snapshot = client.view().snapshot();
    let live: Vec<_> = simulation.machines.iter().filter(|machine| machine.process.is_some()).collect();
    let is_live = |object: &Object| node_of(object).is_some_and(|node| live.iter().any(|m| m.name == node));
    if let Some(machine) = live.iter().find(|machine| !is_well(&snapshot, &machine.name)) {
        return Some(format!("{} is not ready", machine.name));
    }
    // What really runs, by pod.
    let mut runs: BTreeMap<Uid, usize> = BTreeMap::new();
    for machine in &live {
        running(&machine.sim).for_each(|(uid, _)| *runs.entry(uid).or_default() += 1);
        for (uid, _) in machine.sim.sandboxes() {
            let owned = snapshot.list(Kind::Pod, None).any(|pod| {
                *pod.uid() == uid
                    && pod.facet.meta.deleting.is_none()
                    && node_of(pod).as_ref() == Some(&machine.name)
            });
            if !owned {
                return Some(format!("{} has {uid}, which is nobody's", machine.name));
            }
        }
    }
    for pod in snapshot.list(Kind::Pod, None) {
        let KindFacet::Pod(of) = &pod.facet.of else { continue };
        let lost = of.node.is_some() && !is_live(pod);
        if lost && pod.facet.meta.deleting.is_some() {
            continue;
        }
        let document: v1::Pod = serde_json::from_slice(&pod.json).unwrap();
        let containers = document.spec.map_or(0, |spec| spec.containers.len());
        if lost || pod.facet.meta.deleting.is_some() || !of.ready || runs.get(pod.uid()) != Some(&containers)
        {
            return Some(format!(
                "{} on {:?} is {}{}{}, and {:?} of {containers} containers run",
                pod.key,
                of.node,
                of.phase.as_str(),
                if of.ready { " and ready" } else { "" },
                if pod.facet.meta.deleting.is_some() { " and ending" } else { "" },
                runs.get(pod.uid()).copied().unwrap_or(0)
            ));
        }
    }
    for object in snapshot.list(Kind::ReplicationController, None) {
        let KindFacet::ReplicationController(of) = &object.facet.of else { continue };
        let owned = snapshot.list(Kind::Pod, None).filter(|pod| {
            pod.facet.meta.deleting.is_none() && pod.facet.meta.owners.iter().any(|o| o.uid == *object.uid())
        });
        let document: v1::ReplicationController = serde_json::from_slice(&object.json).unwrap();
        let status = document.status.unwrap_or_default();
        let counts = (owned.count() as i32, status.replicas, status.ready_replicas.unwrap_or(0));
        if counts != (of.replicas, of.replicas, of.replicas) || object.facet.meta.deleting.is_some() {
            return Some(format!("{} wants {}: has, says, ready: {counts:?}", object.key, of.replicas));
        }
    }
    None
}
