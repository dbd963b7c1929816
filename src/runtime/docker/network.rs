//! The pods' network in the engine: a bridge whose subnet is the node's.
//!
//! Owns: making it, and removing those of earlier subnets once no pod is on them. Invariant: an address belongs to one
//! pod, since the engine gives them out. Pods of an earlier subnet keep their address until they end.

use std::collections::HashMap;

use bollard::{
    models::{Ipam, IpamConfig, NetworkCreateRequest},
    query_parameters::{InspectNetworkOptions, ListNetworksOptions},
};

use super::{
    driver::Driver,
    engine::{self, ended, fault},
    labels,
};
use crate::runtime::{RuntimeError, native::ipam::Subnet};

/// A network of the engine.
#[derive(Clone, Debug)]
pub(super) struct Network {
    pub name: String,
}

impl Network {
    /// The network of a subnet, made when it is not there.
    pub(super) async fn ensure(driver: &Driver, cidr: &str) -> Result<Network, RuntimeError> {
        let subnet =
            Subnet::parse(cidr).map_err(|why| RuntimeError::Config(format!("pod subnet {cidr:?}: {why}")))?;
        let network = Network { name: labels::name(&driver.root, &[&cidr.replace('/', "_")]) };
        let operation = || format!("make the network {} for pods", network.name);
        match driver.docker.inspect_network(&network.name, None::<InspectNetworkOptions>).await {
            Ok(_) => {}
            Err(error) if engine::is_absent(&error) => {
                let request = request(&driver.root, &network.name, cidr, &subnet);
                match driver.docker.create_network(request).await {
                    // Another call was faster.
                    Err(error) if engine::status(&error) == Some(409) => {}
                    made => drop(made.map_err(fault(operation()))?),
                }
            }
            Err(error) => return Err(fault(operation())(error)),
        }
        Network::remove_unused(driver, Some(&network)).await?;
        Ok(network)
    }

    /// Removes this root's networks that no pod is on, but one.
    pub(super) async fn remove_unused(driver: &Driver, but: Option<&Network>) -> Result<(), RuntimeError> {
        let options = ListNetworksOptions { filters: Some(labels::filter(&driver.root, &[])) };
        let all = driver.docker.list_networks(Some(options)).await;
        let names =
            all.map_err(fault("list the engine's networks"))?.into_iter().filter_map(|found| found.name);
        for name in names.filter(|name| but.is_none_or(|but| but.name != *name)) {
            match driver.docker.remove_network(&name).await {
                // Pods are still on it.
                Err(error) if engine::status(&error) == Some(403) => {}
                other => ended(other).map_err(fault(format!("remove the network {name}")))?,
            }
        }
        Ok(())
    }
}

fn request(root: &str, name: &str, cidr: &str, subnet: &Subnet) -> NetworkCreateRequest {
    let config = IpamConfig {
        subnet: Some(cidr.to_owned()),
        gateway: Some(subnet.gateway().to_string()),
        ..IpamConfig::default()
    };
    NetworkCreateRequest {
        name: name.to_owned(),
        driver: Some("bridge".to_owned()),
        ipam: Some(Ipam { config: Some(vec![config]), ..Ipam::default() }),
        labels: Some(HashMap::from([(labels::ROOT.to_owned(), root.to_owned())])),
        ..NetworkCreateRequest::default()
    }
}
