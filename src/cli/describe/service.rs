//! Services, with the addresses behind each of their ports.

use serde_json::Value;

use super::write::{Text, list, or_none, plain};
use crate::cli::{error::Outcome, output::table, session::Session, target::Found};

/// How many addresses are told of each port.
const SHOWN: usize = 3;

/// A service.
pub async fn service(text: &mut Text, session: &Session, about: &Found) -> Outcome {
    let service = &about.object;
    let spec = &service["spec"];
    text.head(service);
    text.field(0, "Selector", table::labels(&spec["selector"]));
    text.field(0, "Type", plain(&spec["type"]));
    text.field_if(0, "IP Family Policy", &spec["ipFamilyPolicy"]);
    let joined = |value: &Value| list(value).iter().map(plain).collect::<Vec<_>>().join(",");
    let families = joined(&spec["ipFamilies"]);
    text.field(0, "IP Families", or_none(families));
    text.field(0, "IP", plain(&spec["clusterIP"]));
    text.field(0, "IPs", or_none(joined(&spec["clusterIPs"])));
    if !list(&spec["externalIPs"]).is_empty() {
        text.field(0, "External IPs", joined(&spec["externalIPs"]));
    }
    text.field_if(0, "Desired LoadBalancer IP", &spec["loadBalancerIP"]);
    text.field_if(0, "External Name", &spec["externalName"]);
    let ingress: Vec<String> = list(&service["status"]["loadBalancer"]["ingress"])
        .iter()
        .map(|i| if i["ip"].is_null() { plain(&i["hostname"]) } else { format!("{} (VIP)", plain(&i["ip"])) })
        .collect();
    if !ingress.is_empty() {
        text.field(0, "LoadBalancer Ingress", ingress.join(", "));
    }
    let endpoints = session.kinds().await?.resolve("endpoints")?;
    let endpoints = session.client.get(&endpoints.object(about.namespace.as_deref(), &about.name)).await;
    let endpoints = endpoints.unwrap_or_default();
    for port in list(&spec["ports"]) {
        let name = match plain(&port["name"]) {
            unset if unset.is_empty() => "<unset>".into(),
            name => name,
        };
        let protocol = plain(&port["protocol"]);
        text.line(0, format!("Port:\t{name}\t{}/{protocol}", plain(&port["port"])));
        text.field(0, "TargetPort", format!("{}/{protocol}", plain(&port["targetPort"])));
        if let Some(node_port) = port["nodePort"].as_i64().filter(|p| *p != 0) {
            text.line(0, format!("NodePort:\t{name}\t{node_port}/{protocol}"));
        }
        text.field(0, "Endpoints", behind(&endpoints, &port["name"]));
    }
    text.field(0, "Session Affinity", plain(&spec["sessionAffinity"]));
    text.field_if(0, "External Traffic Policy", &spec["externalTrafficPolicy"]);
    if let Some(port) = spec["healthCheckNodePort"].as_i64().filter(|p| *p != 0) {
        text.field(0, "HealthCheck NodePort", port.to_string());
    }
    text.field_if(0, "Internal Traffic Policy", &spec["internalTrafficPolicy"]);
    if !list(&spec["loadBalancerSourceRanges"]).is_empty() {
        text.field(0, "LoadBalancer Source Ranges", joined(&spec["loadBalancerSourceRanges"]));
    }
    Ok(())
}

/// Addresses of the port of that name.
fn behind(endpoints: &Value, name: &Value) -> String {
    let mut all = Vec::new();
    for subset in list(&endpoints["subsets"]) {
        for port in list(&subset["ports"]).iter().filter(|p| plain(&p["name"]) == plain(name)) {
            for address in list(&subset["addresses"]) {
                let ip = plain(&address["ip"]);
                let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
                all.push(format!("{ip}:{}", plain(&port["port"])));
            }
        }
    }
    let told = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
    match all.len() {
        0 => "<none>".into(),
        n if n > SHOWN => format!("{told} + {} more...", n - SHOWN),
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn some_addresses_are_told_and_the_rest_counted() {
        let addresses =
            |n: usize| -> Value { (1..=n).map(|i| json!({"ip": format!("10.0.0.{i}")})).collect() };
        let endpoints = |n| json!({"subsets": [{"addresses": addresses(n), "ports": [{"port": 80}, {"name": "x", "port": 1}]}]});
        assert_eq!(behind(&endpoints(0), &Value::Null), "<none>");
        assert_eq!(behind(&endpoints(2), &Value::Null), "10.0.0.1:80,10.0.0.2:80");
        assert_eq!(behind(&endpoints(5), &json!("x")), "10.0.0.1:1,10.0.0.2:1,10.0.0.3:1 + 2 more...");
    }
}
