//! Troupe as a network plugin: what a CRI runtime runs to give a pod its network.
//!
//! Owns: the Container Network Interface's commands ADD, CHECK, DEL and VERSION, for pods on a node's bridge (`troupe`)
//! and for `loopback`, which containerd wants beside. One short process each, single-threaded; which node a pod is of is
//! told by an annotation of its sandbox. Invariants: an address belongs to one sandbox, whose id is in the file named as
//! the address; DEL may be repeated and succeeds for what is gone. Source: the CNI specification, 1.0.0.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    sched::{CloneFlags, setns},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::labels;
use crate::runtime::native::{
    ipam::{Ipam, Subnet},
    netlink::{self, LinkIndex, Netlink},
};

/// The plugin's name: a file of this name in the runtime's directory of plugins is Troupe.
pub(super) const PLUGIN: &str = "troupe";
/// The plugin that brings up `lo`.
pub(super) const LOOPBACK: &str = "loopback";
/// The capability by which a runtime passes a sandbox' annotations on.
pub(super) const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// What the plugin can speak.
const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0"];
/// More than any configuration has.
const LONGEST_INPUT: u64 = 1 << 20;
/// What an address that cannot be had is told with; the driver looks for it.
pub(super) const NO_ADDRESS: &str = "no address is left in the node's pod subnet";

/// What the plugin is told about a sandbox' node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// The runtime's directory, in which addresses are kept.
    pub root: PathBuf,
    pub bridge: String,
    pub subnet: String,
}

impl Network {
    fn addresses(&self) -> PathBuf {
        addresses(&self.root)
    }
}

/// Where the addresses in use are: a file each, with the id of the sandbox that has it.
pub(super) fn addresses(root: &Path) -> PathBuf {
    root.join("addresses")
}

/// Whether this process was started as a network plugin.
pub fn is_meant(arguments: usize) -> bool {
    arguments <= 1 && std::env::var_os("CNI_COMMAND").is_some()
}

/// Does what the environment and standard input ask for; returns the exit code.
pub fn main() -> i32 {
    let (answer, code) = match run() {
        Ok(answer) => (answer, 0),
        Err(Fault { code, text }) => (json!({"cniVersion": "1.0.0", "code": code, "msg": text}), 1),
    };
    if !answer.is_null() {
        // Nobody is left to tell when this fails.
        let _ = io::stdout().write_all(answer.to_string().as_bytes());
    }
    code
}

struct Fault {
    code: u32,
    text: String,
}

/// The specification's codes.
const BAD_VERSION: u32 = 1;
const BAD_ENVIRONMENT: u32 = 4;
const IO: u32 = 5;
const BAD_CONFIGURATION: u32 = 7;
/// Codes from here on are a plugin's own.
const OWN: u32 = 100;

fn fault(code: u32, operation: impl Into<String>) -> impl FnOnce(io::Error) -> Fault {
    move |error| Fault { code, text: format!("{}: {error}", operation.into()) }
}

fn bad(code: u32, text: impl Into<String>) -> Fault {
    Fault { code, text: text.into() }
}

fn variable(name: &str) -> Result<String, Fault> {
    std::env::var(name).map_err(|_| bad(BAD_ENVIRONMENT, format!("{name} is not set")))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    cni_version: String,
    #[serde(rename = "type")]
    kind: String,
    runtime_config: serde_json::Map<String, Value>,
    prev_result: Option<Value>,
}

impl Default for Configuration {
    fn default() -> Configuration {
        // What has no version is of the first one that had versions.
        let (cni_version, kind) = ("0.3.0".to_owned(), String::new());
        Configuration { cni_version, kind, runtime_config: serde_json::Map::new(), prev_result: None }
    }
}

impl Configuration {
    /// The sandbox' node.
    fn network(&self) -> Result<Network, Fault> {
        let annotation =
            self.runtime_config.get(ANNOTATIONS).and_then(|all| all.get(labels::NETWORK)?.as_str());
        let annotation = annotation.ok_or_else(|| {
            bad(
                BAD_CONFIGURATION,
                format!("this sandbox is no Troupe pod's: it has no annotation {} (or the capability {ANNOTATIONS} is missing in the network's configuration)", labels::NETWORK),
            )
        })?;
        serde_json::from_str(annotation)
            .map_err(|e| bad(BAD_CONFIGURATION, format!("{}: {e}", labels::NETWORK)))
    }
}

fn run() -> Result<Value, Fault> {
    let mut text = String::new();
    io::stdin().take(LONGEST_INPUT).read_to_string(&mut text).map_err(fault(IO, "read the configuration"))?;
    let command = variable("CNI_COMMAND")?;
    if command == "VERSION" {
        return Ok(json!({"cniVersion": "1.0.0", "supportedVersions": VERSIONS}));
    }
    let configuration: Configuration =
        serde_json::from_str(&text).map_err(|e| bad(BAD_CONFIGURATION, format!("the configuration: {e}")))?;
    if !VERSIONS.contains(&configuration.cni_version.as_str()) {
        return Err(bad(BAD_VERSION, format!("CNI version {:?} is not spoken", configuration.cni_version)));
    }
    match (command.as_str(), configuration.kind.as_str()) {
        ("ADD", LOOPBACK) => add_loopback(configuration),
        ("ADD", _) => add(&configuration),
        ("DEL", LOOPBACK) | ("CHECK", LOOPBACK) => Ok(Value::Null),
        ("DEL", _) => delete(&configuration),
        ("CHECK", _) => check(&configuration),
        _ => Err(bad(BAD_ENVIRONMENT, format!("CNI_COMMAND {command:?} is not known"))),
    }
}

/// Goes into a sandbox' network namespace, for good.
fn enter(path: &str) -> Result<(), Fault> {
    let namespace = File::open(path).map_err(fault(IO, path))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|e| bad(OWN, format!("enter {path}: {e}")))
}

fn add_loopback(configuration: Configuration) -> Result<Value, Fault> {
    let namespace = variable("CNI_NETNS")?;
    enter(&namespace)?;
    let mut netlink = Netlink::open().map_err(fault(OWN, "open a netlink socket"))?;
    netlink.loopback_up().map_err(fault(OWN, "set lo up"))?;
    Ok(configuration.prev_result.unwrap_or_else(|| {
        json!({
            "cniVersion": configuration.cni_version,
            "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": namespace}],
            "ips": [{"version": "4", "address": "127.0.0.1/8", "interface": 0}],
            "dns": {},
        })
    }))
}

fn add(configuration: &Configuration) -> Result<Value, Fault> {
    let network = configuration.network()?;
    let (id, namespace, interface) =
        (variable("CNI_CONTAINERID")?, variable("CNI_NETNS")?, variable("CNI_IFNAME")?);
    let subnet = Subnet::parse(&network.subnet).map_err(|why| bad(BAD_CONFIGURATION, why))?;
    let address = lease(&network, subnet, &id)?;
    let connected = connect(&network, subnet, address, &id, &namespace, &interface);
    if let Err(error) = connected {
        release(&network, &id)?;
        return Err(error);
    }
    Ok(json!({
        "cniVersion": configuration.cni_version,
        "interfaces": [{"name": interface, "sandbox": namespace}],
        "ips": [{
            "version": "4",
            "address": format!("{address}/{}", subnet.prefix()),
            "gateway": subnet.gateway().to_string(),
            "interface": 0,
        }],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {},
    }))
}

fn connect(
    network: &Network,
    subnet: Subnet,
    address: Ipv4Addr,
    id: &str,
    namespace: &str,
    interface: &str,
) -> Result<(), Fault> {
    let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
    if fs::read_to_string(forward).is_ok_and(|value| value.trim() == "0") {
        fs::write(forward, "1").map_err(fault(OWN, "let the node forward packets (net.ipv4.ip_forward)"))?;
    }
    let mtu = netlink::default_mtu();
    let mut node = Netlink::open().map_err(fault(OWN, "open a netlink socket"))?;
    let bridge = network.bridge.as_str();
    node.ensure_bridge(bridge, subnet.gateway(), subnet.prefix(), mtu)
        .map_err(fault(OWN, format!("make the bridge {bridge}")))?;
    let index = LinkIndex::of(bridge).map_err(fault(OWN, "find the bridge"))?;
    let veth = veth(id);
    // Of an attempt that was cut off.
    node.remove_link(&veth).map_err(fault(OWN, format!("remove the link {veth}")))?;
    enter(namespace)?;
    // The pod's end is born in the namespace that this process is in by now.
    node.add_veth(&veth, interface, std::process::id(), index, mtu)
        .map_err(fault(OWN, format!("connect the pod to {bridge}")))?;
    let mut pod = Netlink::open().map_err(fault(OWN, "open a netlink socket"))?;
    pod.configure_pod(interface, address, subnet.prefix(), subnet.gateway())
        .map_err(fault(OWN, format!("set up {interface}")))
}

fn delete(configuration: &Configuration) -> Result<Value, Fault> {
    let id = variable("CNI_CONTAINERID")?;
    // What was made before annotations were passed on has nothing of ours.
    let Ok(network) = configuration.network() else { return Ok(Value::Null) };
    let veth = veth(&id);
    let mut node = Netlink::open().map_err(fault(OWN, "open a netlink socket"))?;
    node.remove_link(&veth).map_err(fault(OWN, format!("remove the link {veth}")))?;
    release(&network, &id)?;
    Ok(Value::Null)
}

fn check(configuration: &Configuration) -> Result<Value, Fault> {
    let (network, id) = (configuration.network()?, variable("CNI_CONTAINERID")?);
    let veth = veth(&id);
    LinkIndex::of(&veth).map_err(fault(OWN, "the pod's link"))?;
    match leased(&network.addresses(), &id).map_err(fault(IO, "read the addresses in use"))? {
        Some(_) => Ok(Value::Null),
        None => Err(bad(OWN, "the pod's address is not its own any more")),
    }
}

/// The name of the node's end of a pod's link.
fn veth(id: &str) -> String {
    let digest = Sha256::digest(id.as_bytes());
    let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("tc{hex}")
}

/// Holds the addresses still.
fn lock(dir: &Path) -> Result<Flock<File>, Fault> {
    let path = dir.join(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(fault(IO, path.display().to_string()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, e)| bad(IO, format!("lock {}: {e}", path.display())))
}

/// Addresses in use, each with its sandbox' id.
pub(super) fn leases(dir: &Path) -> io::Result<Vec<(Ipv4Addr, String)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Some(address) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        all.push((address, fs::read_to_string(entry.path())?));
    }
    Ok(all)
}

fn leased(dir: &Path, id: &str) -> io::Result<Option<Ipv4Addr>> {
    Ok(leases(dir)?.into_iter().find(|(_, of)| of == id).map(|(address, _)| address))
}

fn lease(network: &Network, subnet: Subnet, id: &str) -> Result<Ipv4Addr, Fault> {
    let dir = network.addresses();
    let _locked = lock(&dir)?;
    let used = leases(&dir).map_err(fault(IO, "read the addresses in use"))?;
    if let Some((address, _)) = used.iter().find(|(_, of)| of == id) {
        return Ok(*address);
    }
    let mut ipam = Ipam::default();
    used.into_iter().for_each(|(address, _)| ipam.adopt(address));
    ipam.set_subnet(subnet);
    let address = ipam.allocate().ok_or_else(|| bad(OWN, format!("{NO_ADDRESS} {}", network.subnet)))?;
    fs::write(dir.join(address.to_string()), id).map_err(fault(IO, "note the pod's address"))?;
    Ok(address)
}

fn release(network: &Network, id: &str) -> Result<(), Fault> {
    let dir = network.addresses();
    if !dir.exists() {
        return Ok(());
    }
    let _locked = lock(&dir)?;
    if let Some(address) = leased(&dir, id).map_err(fault(IO, "read the addresses in use"))? {
        fs::remove_file(dir.join(address.to_string())).map_err(fault(IO, "give back the pod's address"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(root: &Path) -> Network {
        fs::create_dir_all(addresses(root)).unwrap();
        Network { root: root.to_owned(), bridge: "br".into(), subnet: "10.9.0.0/29".into() }
    }

    #[test]
    fn an_address_is_leased_once_until_it_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let (network, subnet) = (network(dir.path()), Subnet::parse("10.9.0.0/29").unwrap());
        let mut given = Vec::new();
        for id in ["a", "b", "c", "d", "e"] {
            given.push(lease(&network, subnet, id).ok().unwrap());
        }
        let again = lease(&network, subnet, "b").ok().unwrap();
        assert_eq!(again, given[1], "the same sandbox has the same one");
        let full = lease(&network, subnet, "f").err().unwrap();
        assert!(full.text.contains("10.9.0.0/29"), "{}", full.text);
        release(&network, "c").ok().unwrap();
        release(&network, "c").ok().unwrap();
        assert_eq!(lease(&network, subnet, "f").ok(), Some(given[2]));
    }

    #[test]
    fn what_is_no_pod_of_ours_is_refused_and_its_end_is_none_of_ours() {
        let configuration: Configuration =
            serde_json::from_value(json!({"cniVersion": "1.0.0", "type": "troupe"})).unwrap();
        let refused = configuration.network().err().unwrap();
        assert!(refused.text.contains("no Troupe pod"), "{}", refused.text);
        let annotation = json!({"root": "/r", "bridge": "b", "subnet": "10.0.0.0/24"}).to_string();
        let configuration: Configuration = serde_json::from_value(json!({
            "runtimeConfig": {ANNOTATIONS: {labels::NETWORK: annotation}}
        }))
        .unwrap();
        assert_eq!(configuration.network().ok().unwrap().bridge, "b");
        assert_eq!(configuration.cni_version, "0.3.0");
    }

    #[test]
    fn names_of_links_are_short_and_differ() {
        assert!(veth("a").len() <= 15);
        assert_ne!(veth("a"), veth("b"));
    }
}
