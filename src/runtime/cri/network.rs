//! The pods' network of a node whose containers a CRI runtime runs.
//!
//! Owns: what the runtime says of its network, and giving it one, which is Troupe itself as network plugin, when it has
//! none. Invariant: a network that the runtime has is used as it is; what is written for it is removed when no pod of
//! any Troupe is in the runtime.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    client::{Client, Fault, SHORT, fault},
    cni, driver,
    driver::Driver,
    labels, proto,
};
use crate::runtime::{
    RuntimeError,
    native::{ipam::Subnet, netlink::Netlink},
};

/// Where plugins and their configurations are by convention.
const PLUGINS: &str = "/opt/cni/bin";
const CONFIGURATIONS: &str = "/etc/cni/net.d";
/// The configuration's file; runtimes take the first by name.
const CONFIGURATION: &str = "10-troupe.conflist";
/// A runtime looks at the directory when something is written there.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: u32 = 400;

/// What a runtime says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    network_ready: bool,
    plugins: PathBuf,
    configurations: PathBuf,
    /// The image that sandboxes are made of, if it tells.
    pub sandbox_image: Option<String>,
    /// Cgroups are made by systemd.
    pub systemd: bool,
    /// Mounts can be read-only all the way down.
    pub recursive_read_only: bool,
}

impl Found {
    pub(super) async fn ask(client: &Client) -> Result<Found, RuntimeError> {
        let request = proto::StatusRequest { verbose: true };
        let asked: Result<proto::StatusResponse, Fault> = client.runtime("Status", &request, SHORT).await;
        Ok(Found::read(&asked.map_err(fault("ask the container runtime for its status"))?))
    }

    fn read(status: &proto::StatusResponse) -> Found {
        let conditions =
            status.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        // Runtimes older than Kubernetes 1.30 say nothing of it. The usual one has no name, also beside its own.
        let mut handlers = status.runtime_handlers.iter().filter(|handler| handler.name.is_empty());
        let recursive_read_only =
            handlers.any(|of| of.features.as_ref().is_some_and(|of| of.recursive_read_only_mounts));
        let network_ready = conditions.iter().any(|of| of.kind == "NetworkReady" && of.status);
        // containerd tells its configuration; others' directories are the usual ones.
        let config: Value =
            status.info.get("config").and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        let path = |pointers: &[&str], usual: &str| {
            let told = pointers.iter().find_map(|pointer| config.pointer(pointer)?.as_str());
            PathBuf::from(told.filter(|told| !told.is_empty()).unwrap_or(usual))
        };
        let image = ["/sandboxImage", "/pinnedImages/sandbox"];
        let image = image.iter().find_map(|pointer| config.pointer(pointer)?.as_str());
        let runtime =
            config.pointer("/containerd/defaultRuntimeName").and_then(Value::as_str).unwrap_or("runc");
        let options = config.pointer(&format!("/containerd/runtimes/{runtime}/options/SystemdCgroup"));
        Found {
            network_ready,
            plugins: path(&["/cni/binDirs/0", "/cni/binDir"], PLUGINS),
            configurations: path(&["/cni/confDir"], CONFIGURATIONS),
            sandbox_image: image.filter(|image| !image.is_empty()).map(str::to_owned),
            systemd: options.and_then(Value::as_bool) == Some(true),
            recursive_read_only,
        }
    }

    fn configuration(&self) -> PathBuf {
        self.configurations.join(CONFIGURATION)
    }
}

pub(super) struct Network {
    found: Found,
    subnet: Option<String>,
}

impl Network {
    pub(super) fn new(found: Found) -> Network {
        Network { found, subnet: None }
    }

    /// Takes the node's subnet, and tells the runtime.
    pub(super) async fn set_pod_cidr(&mut self, driver: &Driver, cidr: &str) -> Result<(), RuntimeError> {
        Subnet::parse(cidr).map_err(|why| RuntimeError::Config(format!("pod subnet {cidr:?}: {why}")))?;
        let addresses = cni::addresses(&driver.config.root);
        tokio::fs::create_dir_all(&addresses)
            .await
            .map_err(super::system(format!("make {}", addresses.display())))?;
        let network_config = Some(proto::NetworkConfig { pod_cidr: cidr.to_owned() });
        let request = proto::UpdateRuntimeConfigRequest {
            runtime_config: Some(proto::RuntimeConfig { network_config }),
        };
        let told: Result<proto::Empty, Fault> =
            driver.client.runtime("UpdateRuntimeConfig", &request, SHORT).await;
        told.map_err(fault("tell the container runtime the node's pod subnet"))?;
        self.subnet = Some(cidr.to_owned());
        self.ensure(driver).await
    }

    /// What the plugin is told about a new sandbox.
    pub(super) async fn annotation(&mut self, driver: &Driver) -> Result<String, RuntimeError> {
        let subnet = self.subnet.clone().ok_or_else(|| RuntimeError::System {
            operation: "give the pod an address".to_owned(),
            cause: "the node has no pod subnet yet".to_owned(),
        })?;
        self.ensure(driver).await?;
        let network =
            cni::Network { root: driver.config.root.clone(), bridge: driver.config.bridge.clone(), subnet };
        serde_json::to_string(&network).map_err(|error| RuntimeError::System {
            operation: "tell the network plugin about a pod".to_owned(),
            cause: error.to_string(),
        })
    }

    /// Gives the runtime a network if it has none.
    async fn ensure(&mut self, driver: &Driver) -> Result<(), RuntimeError> {
        let ours = self.found.configuration();
        if self.found.network_ready && (self.found.foreign() || ours.exists()) {
            return Ok(());
        }
        self.found = Found::ask(&driver.client).await?;
        if self.found.network_ready {
            // It has had our configuration, whose program may be an older file by now.
            return if ours.exists() { self.install(driver).await } else { Ok(()) };
        }
        self.install(driver).await?;
        for _ in 0..LOOKS {
            self.found = Found::ask(&driver.client).await?;
            if self.found.network_ready {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err(RuntimeError::System {
            operation: "give the container runtime a network".to_owned(),
            cause: format!(
                "it does not take {}; what does its log say?",
                self.found.configuration().display()
            ),
        })
    }

    async fn install(&self, driver: &Driver) -> Result<(), RuntimeError> {
        let (found, program) = (self.found.clone(), driver.config.program.clone());
        driver::blocking(move || found.install(&program)).await
    }

    /// Takes the bridge off the node, and the plugin out of a runtime that has no pod of any Troupe.
    pub(super) async fn remove(&mut self, driver: &Driver) -> Result<(), RuntimeError> {
        let bridge = driver.config.bridge.clone();
        driver::blocking(move || {
            let removed = Netlink::open().and_then(|mut netlink| netlink.remove_link(&bridge));
            removed.map_err(super::system(format!("remove the bridge {bridge}")))
        })
        .await?;
        let request = proto::ListPodSandboxRequest { filter: None };
        let listed: Result<proto::ListPodSandboxResponse, Fault> =
            driver.client.runtime("ListPodSandbox", &request, SHORT).await;
        let listed = listed.map_err(fault("list the runtime's sandboxes"))?;
        if listed.items.iter().any(|sandbox| sandbox.labels.contains_key(labels::ROOT)) {
            return Ok(());
        }
        let found = self.found.clone();
        driver::blocking(move || found.uninstall()).await
    }
}

impl Found {
    /// The runtime's network is not ours.
    fn foreign(&self) -> bool {
        self.network_ready && !self.configuration().exists()
    }

    fn install(&self, program: &Path) -> Result<(), RuntimeError> {
        use std::{fs, os::unix::fs::symlink};
        let fault =
            |path: &Path| super::system(format!("give the container runtime a network: {}", path.display()));
        for dir in [&self.plugins, &self.configurations] {
            fs::create_dir_all(dir).map_err(fault(dir))?;
        }
        for name in [cni::PLUGIN, cni::LOOPBACK] {
            let path = self.plugins.join(name);
            match fs::read_link(&path) {
                Ok(target) if target == program => continue,
                Ok(target) if name == cni::PLUGIN || !target.exists() => {
                    fs::remove_file(&path).map_err(fault(&path))?;
                }
                // Another's, which does as well.
                Ok(_) => continue,
                Err(_) if path.exists() => continue,
                Err(_) => {}
            }
            symlink(program, &path).map_err(fault(&path))?;
        }
        let path = self.configuration();
        let text = configuration();
        if fs::read_to_string(&path).is_ok_and(|found| found == text) {
            return Ok(());
        }
        // Runtimes read what they see: it appears whole.
        let beside = self.configurations.join(format!(".{CONFIGURATION}"));
        fs::write(&beside, text).map_err(fault(&beside))?;
        fs::rename(&beside, &path).map_err(fault(&path))
    }

    fn uninstall(&self) -> Result<(), RuntimeError> {
        use std::fs;
        let path = self.configuration();
        if !fs::read_to_string(&path).is_ok_and(|found| found == configuration()) {
            return Ok(());
        }
        fs::remove_file(&path).map_err(super::system(format!("remove {}", path.display())))?;
        let troupe = fs::read_link(self.plugins.join(cni::PLUGIN)).ok();
        for name in [cni::LOOPBACK, cni::PLUGIN] {
            let path = self.plugins.join(name);
            if troupe.is_some() && fs::read_link(&path).ok() == troupe {
                fs::remove_file(&path).map_err(super::system(format!("remove {}", path.display())))?;
            }
        }
        Ok(())
    }
}

/// The network's configuration: the same for all nodes, since each sandbox says which node's it is.
fn configuration() -> String {
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "troupe",
        "plugins": [{"type": cni::PLUGIN, "capabilities": {cni::ANNOTATIONS: true}}],
    });
    format!("{network:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(ready: bool, config: Value) -> Found {
        let condition = proto::RuntimeCondition {
            kind: "NetworkReady".into(),
            status: ready,
            ..proto::RuntimeCondition::default()
        };
        Found::read(&proto::StatusResponse {
            status: Some(proto::RuntimeStatus { conditions: vec![condition] }),
            info: [("config".to_owned(), config.to_string())].into(),
            runtime_handlers: Vec::new(),
        })
    }

    #[test]
    fn whether_mounts_can_be_read_only_all_the_way_down_is_what_the_usual_handler_says() {
        let handler = |name: &str, recursive_read_only_mounts| proto::RuntimeHandler {
            name: name.into(),
            features: Some(proto::RuntimeHandlerFeatures { recursive_read_only_mounts }),
        };
        for (runtime_handlers, can) in [
            (vec![], false),
            (vec![handler("kata", true)], false),
            (vec![handler("kata", false), handler("", true)], true),
            (vec![handler("", false), handler("runc", true)], false),
        ] {
            let status = proto::StatusResponse { runtime_handlers, ..proto::StatusResponse::default() };
            assert_eq!(Found::read(&status).recursive_read_only, can, "{status:?}");
        }
    }

    #[test]
    fn what_a_runtime_tells_of_itself_is_read_and_the_rest_is_as_usual() {
        let found = told(
            false,
            json!({
                "cni": {"binDir": "/b", "confDir": "/c"}, "sandboxImage": "pause:1",
                "containerd": {"defaultRuntimeName": "r", "runtimes": {"r": {"options": {"SystemdCgroup": true}}}},
            }),
        );
        assert_eq!(
            (found.plugins.to_str(), found.configuration().to_str()),
            (Some("/b"), Some("/c/10-troupe.conflist"))
        );
        assert!(found.systemd && !found.network_ready);
        assert_eq!(found.sandbox_image.as_deref(), Some("pause:1"));
        let silent = told(true, Value::Null);
        assert_eq!(silent.plugins, Path::new(PLUGINS));
        assert!(silent.network_ready && !silent.systemd && silent.sandbox_image.is_none());
    }

    #[test]
    fn the_plugin_is_put_where_the_runtime_looks_and_taken_away_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let config = json!({"cni": {"binDir": path("bin"), "confDir": path("conf")}});
        let found = told(false, config);
        std::fs::create_dir_all(path("bin")).unwrap();
        std::fs::write(path("bin/loopback"), "another's").unwrap();
        for program in ["/old/troupe", "/new/troupe"] {
            found.install(Path::new(program)).unwrap();
            assert_eq!(std::fs::read_link(path("bin/troupe")).unwrap(), Path::new(program));
        }
        let written = std::fs::read_to_string(path("conf/10-troupe.conflist")).unwrap();
        assert!(written.contains(cni::ANNOTATIONS), "{written}");
        found.uninstall().unwrap();
        found.uninstall().unwrap();
        assert_eq!(std::fs::read_dir(path("conf")).unwrap().count(), 0);
        assert_eq!(std::fs::read_to_string(path("bin/loopback")).unwrap(), "another's");
        assert!(!path("bin/troupe").exists());
    }
}
