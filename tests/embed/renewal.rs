//! Certificates within one process: renewed while everything runs.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Node as NodeObject, Secret},
    jiff::Timestamp,
};
use troupe::{
    Client, Cluster, ClusterConfig, Master, MasterConfig, Node, NodeConfig, NodeLogin, Persistence,
    app::KubeletSettings,
    logic::{eviction::Thresholds, join::token_object, supervision::Backoff},
    model::{Key, Kind, KindFacet, Snapshot, token::JoinToken},
    net::{CaCertificate, csr::NodeKey, csr::validity, join::join},
    runtime::sim::{SimConfig, SimMachine, SimRuntime},
};

use crate::support::{WITHIN, system};

/// Long enough to start a cluster in, short enough to see the end of.
const LIFE: Duration = Duration::from_secs(8);

/// Waits until a node is ready; its uid. It must be another one than `not`.
async fn ready(client: &Client, name: &str, not: Option<&str>) -> String {
    let is_ready = |snapshot: &Snapshot| {
        let node = snapshot.find(&Key::new(Kind::Node, "", name))?;
        let ready = matches!(&node.facet.of, KindFacet::Node(node) if node.ready);
        let uid = node.uid().to_string();
        (ready && Some(uid.as_str()) != not).then_some(uid)
    };
    client.until(WITHIN, is_ready).await.unwrap()
}

/// Closes a node's link with its object: it registers itself again over another link.
async fn link_again(client: &Client, name: &str) {
    let uid = client.get::<NodeObject>("", name).unwrap().unwrap().metadata.uid;
    client.delete::<NodeObject>("", name).await.unwrap();
    ready(client, name, uid.as_deref()).await;
}

#[test]
fn a_node_beside_its_master_can_link_again_after_the_end_of_its_first_certificate() {
    system(async {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ClusterConfig::simulated(dir.path()).nodes(["sim"]);
        config.master.certificates = LIFE;
        let cluster = Cluster::start(config).await.unwrap();
        let first = cluster.master().kubeconfig();
        cluster.ready(WITHIN).await.unwrap();
        tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
        assert_ne!(cluster.master().kubeconfig(), first, "the administrator's was renewed");
        link_again(&cluster.client(), "sim").await;
        cluster.ready(WITHIN).await.unwrap();
        cluster.stop().await;
    });
}

/// A simulated node of the embedder's own.
fn own(login: NodeLogin, dir: &Path) -> NodeConfig {
    let machine = SimMachine::new(SimConfig::default()).unwrap();
    NodeConfig {
        login,
        directory: dir.join("node"),
        runtime: Arc::new(SimRuntime::open(machine)),
        labels: Default::default(),
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        max_pods: 10,
        manifests: None,
        crash_loop: Backoff::CRASH_LOOP,
        registry_config: None,
        settings: KubeletSettings { eviction_hard: Thresholds::default(), ..KubeletSettings::default() },
        sockets: None,
        host_ports: None,
        on_escalate: Arc::new(|_| {}),
    }
}

#[test]
fn a_node_that_the_embedder_starts_beside_a_master_is_renewed_as_well() {
    system(async {
        let dir = tempfile::tempdir().unwrap();
        let config = MasterConfig { certificates: LIFE, ..MasterConfig::new(Persistence::Memory) };
        let master = Master::start(config).await.unwrap();
        let client = master.client();
        // A login may be kept for a while, and be over by the time it is used.
        let (login, late) =
            (master.admit_node(&"own".into()).unwrap(), master.admit_node(&"late".into()).unwrap());
        let node = Node::start(own(login, dir.path())).await.unwrap();
        ready(&client, "own", None).await;
        tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
        link_again(&client, "own").await;
        let second = Node::start(own(late, &dir.path().join("late"))).await.unwrap();
        ready(&client, "late", None).await;
        node.stop().await;
        second.stop().await;
        master.stop().await;
    });
}

#[test]
fn a_node_that_the_embedder_had_join_renews_its_certificate_over_its_link() {
    system(async {
        let dir = tempfile::tempdir().unwrap();
        let config = MasterConfig { node_certificates: LIFE, ..MasterConfig::new(Persistence::Memory) };
        let master = Master::start(config).await.unwrap();
        let client = master.client();
        client
            .until(WITHIN, |all| all.find(&Key::new(Kind::Namespace, "", "kube-system")).map(|_| ()))
            .await
            .unwrap();
        let pin = master.ca().public_key_pin().unwrap();
        let token = JoinToken { id: "abcdef".into(), secret: "0123456789abcdef".into(), pin };
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let expires = Timestamp::from_second(i64::try_from(now.as_secs()).unwrap() + 3600).unwrap();
        let secret: Secret = serde_json::from_value(token_object(&token, expires, None)).unwrap();
        client.create(&secret).await.unwrap();
        let key = NodeKey::generate().unwrap();
        let links = SocketAddr::from((Ipv4Addr::LOCALHOST, master.links().port()));
        let admitted = join(links, &token, "own", key.request().unwrap(), None).await.unwrap();
        let end = |certificate: &str| validity(certificate).unwrap().1;
        let first = end(&admitted.certificate);
        let kept: Arc<Mutex<Vec<String>>> = Arc::default();
        let keeps = kept.clone();
        let login = NodeLogin::new(
            "own".into(),
            links.to_string(),
            key.with(&admitted.certificate).unwrap(),
            CaCertificate::from_pem(&admitted.ca).unwrap(),
        );
        let login = login.on_renewed(move |certificate| keeps.lock().unwrap().push(certificate.to_owned()));
        let node = Node::start(own(login, dir.path())).await.unwrap();
        ready(&client, "own", None).await;
        tokio::time::sleep(LIFE + Duration::from_secs(1)).await;
        let last = kept.lock().unwrap().last().cloned().expect("none came");
        assert!(end(&last) > first && key.with(&last).is_ok());
        // Each new one is shown on a new connection; that of the last is there, or on its way.
        ready(&client, "own", None).await;
        node.stop().await;
        // Whoever kept it can start with it.
        let again = NodeLogin::new(
            "own".into(),
            links.to_string(),
            key.with(&last).unwrap(),
            CaCertificate::from_pem(&admitted.ca).unwrap(),
        );
        let node = Node::start(own(again, &dir.path().join("again"))).await.unwrap();
        ready(&client, "own", None).await;
        node.stop().await;
        master.stop().await;
    });
}
