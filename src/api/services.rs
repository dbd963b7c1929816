//! Addresses and node ports of services.
//!
//! Owns: which cluster IP and node ports a service gets when it is created, and keeps when it is updated. Pure over a
//! snapshot; the caller holds the room's allocation lock from the snapshot until its commit is published, so no two
//! services are given one address. The taken ones are read off the services themselves: there is no second book.

use std::{collections::HashSet, net::Ipv4Addr};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{config::ServiceCidr, error::ApiError};
use crate::model::{Kind, KindFacet, Object, ServiceFacet, Snapshot, admit::Cause};

/// Kubernetes' range of node ports.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;
/// The first addresses are left for those who ask for one by name (the API's own service, DNS).
const STATIC_ADDRESSES: u32 = 16;

/// Completes a new service.
///
/// # Errors
/// 422 for an address or port that is taken or out of range, 503 when there is none left.
pub fn allocate(body: &Bytes, snapshot: &Snapshot, cidr: ServiceCidr) -> Result<Bytes, ApiError> {
    complete(body, None, snapshot, cidr)
}

/// Completes a service's new state: what it does not mention it keeps.
///
/// # Errors
/// As [`allocate`].
pub fn keep(
    body: &Bytes,
    current: &Object,
    snapshot: &Snapshot,
    cidr: ServiceCidr,
) -> Result<Bytes, ApiError> {
    complete(body, Some(current), snapshot, cidr)
}

fn complete(
    body: &Bytes,
    current: Option<&Object>,
    snapshot: &Snapshot,
    cidr: ServiceCidr,
) -> Result<Bytes, ApiError> {
    // What is no service is left to admission, which says what is wrong with it.
    let Ok(mut service) = serde_json::from_slice::<Value>(body) else { return Ok(body.clone()) };
    if !service["spec"].is_object() {
        return Ok(body.clone());
    }
    let name = service["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let others = Taken::read(snapshot, current);
    let previous = current.and_then(|o| match &o.facet.of {
        KindFacet::Service(facet) => Some(&**facet),
        _ => None,
    });
    let invalid = |cause: Cause| ApiError::Invalid {
        kind: Kind::Service.name().into(),
        name: name.clone(),
        causes: vec![cause],
    };
    cluster_ip(&mut service["spec"], previous, &others, cidr).map_err(|e| e.into_error(&invalid))?;
    node_ports(&mut service["spec"], previous, &others).map_err(|e| e.into_error(&invalid))?;
    Ok(service.to_string().into())
}

/// What other services have.
struct Taken {
    addresses: HashSet<Ipv4Addr>,
    ports: HashSet<(String, i64)>,
}

impl Taken {
    fn read(snapshot: &Snapshot, except: Option<&Object>) -> Taken {
        let mut taken = Taken { addresses: HashSet::new(), ports: HashSet::new() };
        for object in snapshot.list(Kind::Service, None) {
            if except.is_some_and(|e| e.key == object.key) {
                continue;
            }
            let KindFacet::Service(service) = &object.facet.of else { continue };
            taken.addresses.extend(service.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok()));
            taken.ports.extend(service.ports.iter().filter_map(|p| {
                let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
                p.node_port.filter(|n| *n > 0).map(|n| (protocol, i64::from(n)))
            }));
        }
        taken
    }
}

enum Refusal {
    Invalid(Cause),
    Exhausted(&'static str),
}

impl Refusal {
    fn invalid(field: impl Into<String>, message: String) -> Refusal {
        Refusal::Invalid(Cause { field: field.into(), reason: "FieldValueInvalid", message })
    }

    fn into_error(self, invalid: &dyn Fn(Cause) -> ApiError) -> ApiError {
        match self {
            Refusal::Invalid(cause) => invalid(cause),
            Refusal::Exhausted(what) => ApiError::Unavailable(format!("no {what} is free")),
        }
    }
}

fn cluster_ip(
    spec: &mut Value,
    previous: Option<&ServiceFacet>,
    taken: &Taken,
    cidr: ServiceCidr,
) -> Result<(), Refusal> {
    if spec["type"].as_str() == Some("ExternalName") {
        return Ok(());
    }
    let asked = spec["clusterIP"].as_str().or(spec["clusterIPs"][0].as_str()).unwrap_or("").to_owned();
    let kept = previous.and_then(|p| p.cluster_ip.clone()).filter(|ip| !ip.is_empty());
    let chosen = match (asked.as_str(), kept) {
        ("", Some(kept)) => kept,
        ("", None) => free_address(taken, cidr).ok_or(Refusal::Exhausted("cluster IP"))?.to_string(),
        ("None", _) => asked,
        (_, Some(kept)) if kept == asked => asked,
        // An update to another address is refused by admission; a new service may ask for a free one.
        (_, Some(_)) => return Ok(()),
        (_, None) => {
            let fail = |why: String| {
                Refusal::invalid(
                    "spec.clusterIPs",
                    format!("Invalid value: [\"{asked}\"]: failed to allocate IP {asked}: {why}"),
                )
            };
            let address: Ipv4Addr = asked.parse().map_err(|_| fail("it is not an IPv4 address".into()))?;
            if !contains(cidr, address) {
                return Err(fail(format!(
                    "the provided IP is not in the valid range. The range of valid IPs is {}/{}",
                    cidr.base, cidr.prefix
                )));
            }
            if taken.addresses.contains(&address) {
                return Err(fail("provided IP is already allocated".into()));
            }
            asked
        }
    };
    spec["clusterIPs"] = json!([chosen]);
    spec["clusterIP"] = chosen.into();
    Ok(())
}

fn size(cidr: ServiceCidr) -> u32 {
    u32::MAX.checked_shr(u32::from(cidr.prefix)).unwrap_or(0)
}

fn contains(cidr: ServiceCidr, address: Ipv4Addr) -> bool {
    let mask = !size(cidr);
    u32::from(address) & mask == u32::from(cidr.base) & mask
}

fn free_address(taken: &Taken, cidr: ServiceCidr) -> Option<Ipv4Addr> {
    let base = u32::from(cidr.base) & !size(cidr);
    // The last address of the network stays free, as broadcast addresses do.
    let (first, last) = (STATIC_ADDRESSES.min(size(cidr)), size(cidr).saturating_sub(1));
    if first > last {
        return None;
    }
    let start = rand::random_range(first..=last);
    (start..=last)
        .chain(first..start)
        .map(|n| Ipv4Addr::from(base + n))
        .find(|a| !taken.addresses.contains(a))
}

fn node_ports(spec: &mut Value, previous: Option<&ServiceFacet>, taken: &Taken) -> Result<(), Refusal> {
    let wants = matches!(spec["type"].as_str(), Some("NodePort" | "LoadBalancer"));
    let changed_type = spec["type"].as_str().is_none_or(|t| t == "ClusterIP");
    let Some(ports) = spec["ports"].as_array_mut() else { return Ok(()) };
    let mut used = taken.ports.clone();
    for (index, port) in ports.iter_mut().enumerate() {
        let Some(port) = port.as_object_mut() else { continue };
        if !wants {
            if changed_type && previous.is_some() {
                port.remove("nodePort");
            }
            continue;
        }
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
        let number = port.get("port").and_then(Value::as_i64);
        let kept = previous.into_iter().flat_map(|p| p.ports.iter()).find_map(|old| {
            let same =
                Some(i64::from(old.port)) == number && *old.protocol.as_deref().unwrap_or("TCP") == protocol;
            old.node_port.filter(|n| same && *n > 0).map(i64::from)
        });
        let asked = port.get("nodePort").and_then(Value::as_i64).filter(|n| *n != 0).or(kept);
        let chosen = match asked {
            Some(asked) => {
                let fail = |why: &str| {
                    Refusal::invalid(
                        format!("spec.ports[{index}].nodePort"),
                        format!("Invalid value: {asked}: {why}"),
                    )
                };
                if !NODE_PORTS.contains(&asked) {
                    return Err(fail(
                        "provided port is not in the valid range. The range of valid ports is 30000-32767",
                    ));
                }
                if used.contains(&(protocol.clone(), asked)) {
                    return Err(fail("provided port is already allocated"));
                }
                asked
            }
            None => {
                let (first, last) = (*NODE_PORTS.start(), *NODE_PORTS.end());
                let start = rand::random_range(NODE_PORTS);
                (start..=last)
                    .chain(first..start)
                    .find(|n| !used.contains(&(protocol.clone(), *n)))
                    .ok_or(Refusal::Exhausted("node port"))?
            }
        };
        used.insert((protocol, chosen));
        port.insert("nodePort".into(), chosen.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Revision, seal_json};

    fn body(spec: Value) -> Bytes {
        json!({ "metadata": { "name": "s", "namespace": "a", "uid": "u" }, "spec": spec }).to_string().into()
    }

    fn stored(body: &Bytes) -> Object {
        seal_json(Kind::Service, body).unwrap().at(Revision(1))
    }

    fn spec(body: &Bytes) -> Value {
        serde_json::from_slice::<Value>(body).unwrap()["spec"].take()
    }

    fn tiny() -> ServiceCidr {
        ServiceCidr { base: Ipv4Addr::new(10, 0, 0, 0), prefix: 27 }
    }

    #[test]
    fn every_service_gets_an_address_of_its_own_until_none_is_left() {
        let mut snapshot = Snapshot::default();
        let mut seen = HashSet::new();
        for n in 0..15 {
            let new = allocate(&body(json!({})), &snapshot, tiny()).unwrap();
            let mut object = stored(&new);
            let ip = spec(&new)["clusterIP"].as_str().unwrap().to_owned();
            assert!(contains(tiny(), ip.parse().unwrap()) && seen.insert(ip), "{new:?}");
            object.key.name = format!("s{n}").into();
            snapshot.insert(Arc::new(object));
        }
        assert_eq!(allocate(&body(json!({})), &snapshot, tiny()).unwrap_err().code(), 503);
    }

    #[test]
    fn addresses_may_be_asked_for_and_are_kept() {
        let cidr = ServiceCidr::default();
        let mut snapshot = Snapshot::default();
        let first = stored(&allocate(&body(json!({"clusterIP": "10.96.0.9"})), &snapshot, cidr).unwrap());
        snapshot.insert(Arc::new(first.clone()));
        let other = |ip: &str| {
            let body = json!({"metadata": {"name": "t", "namespace": "a"}, "spec": {"clusterIP": ip}});
            allocate(&body.to_string().into(), &snapshot, cidr)
        };
        assert!(other("10.96.0.9").unwrap_err().to_string().contains("already allocated"));
        assert!(other("1.2.3.4").unwrap_err().to_string().contains("valid range"));
        assert_eq!(spec(&other("None").unwrap())["clusterIP"], "None");
        let kept = keep(&body(json!({"type": "NodePort", "ports": [{"port": 80}]})), &first, &snapshot, cidr)
            .unwrap();
        assert_eq!(spec(&kept)["clusterIP"], "10.96.0.9");
        let port = spec(&kept)["ports"][0]["nodePort"].as_i64().unwrap();
        assert!(NODE_PORTS.contains(&port));
        let again = keep(
            &body(json!({"type": "NodePort", "ports": [{"port": 80}]})),
            &stored(&kept),
            &snapshot,
            cidr,
        );
        assert_eq!(spec(&again.unwrap())["ports"][0]["nodePort"], port);
    }
}
