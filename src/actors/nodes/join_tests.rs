//! Machines that join, as the registry sees them: without a network, whose part is tested in `net`.

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::{
    logic::join::{belongs_to, token_object},
    messages::wire::{JoinAnswer, JoinRefusal, JoinRequest},
    model::token::JoinToken,
    net::{Authority, Connector, JoinAsk, LinkConfig, csr::NodeKey},
};

pub(super) const LIFE: Duration = Duration::from_secs(600);

/// A master that admits, and the way of requests to it.
async fn admitting() -> (Master, mpsc::Sender<JoinAsk>) {
    let (asks, asked) = mpsc::channel(4);
    let authority = Arc::new(Authority::ephemeral().unwrap());
    let admission = Arc::new(Admission::new(authority, asked, LIFE));
    (Master::start_with(Some(admission)).await, asks)
}

pub(super) fn token() -> JoinToken {
    JoinToken { id: "abcdef".into(), secret: "0123456789abcdef".into(), pin: [0; 32] }
}

/// Creates the token, valid for an hour.
pub(super) async fn create_token(master: &Master) {
    create_token_until(master, "abcdef", outside_now_plus(3600)).await;
}

/// Creates a token with that id.
pub(super) async fn create_token_until(
    master: &Master,
    id: &str,
    expires: k8s_openapi::jiff::Timestamp,
) -> Key {
    let mut secret = token_object(&JoinToken { id: id.into(), ..token() }, expires, None);
    // As the API's door makes it.
    let texts = secret.as_object_mut().unwrap().remove("stringData").unwrap();
    let texts: BTreeMap<String, String> = serde_json::from_value(texts).unwrap();
    let data: BTreeMap<String, k8s_openapi::ByteString> =
        texts.into_iter().map(|(key, text)| (key, k8s_openapi::ByteString(text.into_bytes()))).collect();
    secret["data"] = serde_json::to_value(data).unwrap();
    master.bench.create(Kind::Secret, secret).await.key.clone()
}

pub(super) fn outside_now_plus(seconds: i64) -> k8s_openapi::jiff::Timestamp {
    let seconds = k8s_openapi::jiff::SignedDuration::from_secs(seconds);
    crate::actors::outside::now().checked_add(seconds).unwrap()
}

/// Asks, from an address whose last byte is `from`.
pub(super) async fn ask(
    asks: &mpsc::Sender<JoinAsk>,
    name: &str,
    key: &NodeKey,
    secret: &str,
    from: u8,
) -> JoinAnswer {
    let (answer, answered) = oneshot::channel();
    let request = JoinRequest {
        token_id: token().id,
        secret: secret.into(),
        name: name.into(),
        csr: key.request().unwrap().into(),
    };
    let address = ([10, 0, 0, from], 1).into();
    asks.send(JoinAsk { address, request, answer }).await.ok().unwrap();
    answered.await.unwrap()
}

#[test]
fn a_machine_that_joins_has_a_node_a_subnet_and_a_name_of_its_own() {
    system(async {
        let (master, asks) = admitting().await;
        let (one, two) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let good = token().secret;
        let unknown = ask(&asks, "n1", &one, &good, 1).await;
        assert!(matches!(unknown, JoinAnswer::Refused(JoinRefusal::TokenUnknown, _)), "{unknown:?}");
        create_token(&master).await;
        // Two machines ask for one name at once: one gets it.
        let (first, second) =
            tokio::join!(ask(&asks, "n1", &one, &good, 1), ask(&asks, "n1", &two, &good, 2));
        assert!(matches!(first, JoinAnswer::Admitted(_)), "{first:?}");
        assert!(matches!(second, JoinAnswer::Refused(..)), "{second:?}");
        let node = master.bench.find(&node_key("n1")).unwrap();
        assert!(belongs_to(&node, one.pin()) && !belongs_to(&node, two.pin()));
        let KindFacet::Node(facet) = &node.facet.of else { panic!("no node") };
        assert_eq!(facet.pod_cidr.as_deref(), Some("10.244.0.0/24"));
        assert!(!facet.ready, "it has said nothing yet");
        // The same one again, as when its answer was lost; the other under another name.
        assert!(matches!(ask(&asks, "n1", &one, &good, 1).await, JoinAnswer::Admitted(_)));
        assert!(matches!(ask(&asks, "n2", &two, &good, 2).await, JoinAnswer::Admitted(_)));
        let node = master.bench.find(&node_key("n2")).unwrap();
        let KindFacet::Node(facet) = &node.facet.of else { panic!("no node") };
        assert_eq!(facet.pod_cidr.as_deref(), Some("10.244.1.0/24"));
        let bad = ask(&asks, "No Name", &two, &good, 2).await;
        assert!(matches!(bad, JoinAnswer::Refused(JoinRefusal::Invalid, _)), "{bad:?}");
        master.stop().await;
    });
}

#[test]
fn who_guesses_is_not_listened_to_for_a_while_and_others_are() {
    system(async {
        let (master, asks) = admitting().await;
        create_token(&master).await;
        let key = NodeKey::generate().unwrap();
        let mut refused = Vec::new();
        for _ in 0..20 {
            let JoinAnswer::Refused(refusal, _) = ask(&asks, "n1", &key, "aaaaaaaaaaaaaaaa", 1).await else {
                panic!("admitted")
            };
            refused.push(refusal);
        }
        assert_eq!(refused[0], JoinRefusal::TokenUnknown);
        assert_eq!(refused[19], JoinRefusal::Busy);
        assert!(matches!(ask(&asks, "n1", &key, &token().secret, 2).await, JoinAnswer::Admitted(_)));
        master.stop().await;
    });
}

/// A master, and nodes that join it: their links are QUIC's own, over loopback, by the clock on the wall.
struct Joined {
    master: Master,
    authority: Arc<Authority>,
    address: std::net::SocketAddr,
    asks: mpsc::Sender<JoinAsk>,
}

impl Joined {
    async fn start() -> Joined {
        let authority = Arc::new(Authority::ephemeral().unwrap());
        let (identity, ca) = (authority.issue_master().unwrap(), authority.certificate().clone());
        let local = ([127, 0, 0, 1], 0).into();
        let listener = Listener::bind(local, &identity, &ca, LinkConfig::default()).unwrap();
        let address = listener.local_addr();
        let (asks, asked) = mpsc::channel(4);
        let admission = Arc::new(Admission::new(authority.clone(), asked, LIFE));
        let master = Master::start_as(Bench::new(), |seed| RegistrySeed {
            listener: Arc::new(Mutex::new(listener)),
            admission: Some(admission),
            ..seed
        });
        let master = master.await;
        create_token(&master).await;
        Joined { master, authority, address, asks }
    }

    /// Admits a machine as that node.
    async fn admit(&self, name: &str, key: &NodeKey) {
        let admitted = ask(&self.asks, name, key, &token().secret, 1).await;
        assert!(matches!(admitted, JoinAnswer::Admitted(_)), "{admitted:?}");
    }

    /// What a machine with that key links by.
    fn dialer(&self, name: &str, key: &NodeKey) -> Connector {
        let csr = key.request().unwrap();
        let certificate = self.authority.certify_node(&name.into(), &csr, LIFE).unwrap();
        let identity = key.with(&certificate).unwrap();
        Connector::new(&identity, self.authority.certificate(), LinkConfig::default()).unwrap()
    }

    async fn link(&self, dialer: &Connector) -> (LinkHandle<ToMaster>, LinkEvents<ToNode>) {
        dialer.connect::<ToMaster, ToNode>(self.address, MASTER).await.unwrap().split()
    }
}

#[test]
fn a_machine_that_was_deleted_is_sent_away_although_another_is_linked_by_its_name() {
    let work = async {
        let joined = Joined::start().await;
        let (before, now) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        joined.admit("n1", &now).await;
        let (before, now) = (joined.dialer("n1", &before), joined.dialer("n1", &now));
        let (handle, _events) = joined.link(&now).await;
        handle.send(Class::Control, &hello()).unwrap();
        joined.master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(true)).await;
        // More often than is believed of a machine that has lost its link.
        for _ in 0..6 {
            let (_handle, mut events) = joined.link(&before).await;
            let event = events.next().await;
            assert!(matches!(event, LinkEvent::Closed(CloseReason::Unwelcome(_))));
        }
        assert!(!handle.is_over());
        assert!(!joined.master.bench.reasons().contains(&"NodeIdentityCopied".to_owned()));
        joined.master.stop().await;
    };
    actix::System::new().block_on(async {
        tokio::time::timeout(Duration::from_secs(60), work).await.expect("it is sent away");
    });
}

#[test]
fn the_actor_of_a_deleted_node_goes_with_its_last_pod() {
    let work = async {
        let joined = Joined::start().await;
        let master = &joined.master;
        for pods in [0, 1] {
            let key = NodeKey::generate().unwrap();
            joined.admit("n1", &key).await;
            let dialer = joined.dialer("n1", &key);
            let (handle, mut events) = joined.link(&dialer).await;
            handle.send(Class::Control, &hello()).unwrap();
            master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(true)).await;
            let bound = match pods {
                0 => None,
                _ => Some(master.bench.create(Kind::Pod, pod("p", "n1")).await),
            };
            master.bench.remove(&node_key("n1")).await;
            while !matches!(events.next().await, LinkEvent::Closed(CloseReason::Unwelcome(_))) {}
            if let Some(bound) = bound {
                assert!(has_actor(master, "n1").await, "it has a pod yet");
                master.bench.remove(&bound.key).await;
            }
            while has_actor(master, "n1").await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        joined.master.stop().await;
    };
    actix::System::new().block_on(async {
        tokio::time::timeout(Duration::from_secs(60), work).await.expect("its actor has gone");
    });
}

#[test]
fn a_node_that_was_deleted_and_comes_again_and_again_is_told_of_once_an_interval() {
    use crate::actors::supervisor::Supervisor;
    let log = Log::default();
    // Links of nodes that joined are QUIC's own, over loopback, by the clock on the wall.
    log.during(|| {
        actix::System::new().block_on(async {
            let authority = Authority::ephemeral().unwrap();
            let (master, ca) = (authority.issue_master().unwrap(), authority.certificate().clone());
            let local = ([127, 0, 0, 1], 0).into();
            let listener = Listener::bind(local, &master, &ca, LinkConfig::default()).unwrap();
            let (address, bench) = (listener.local_addr(), Bench::new());
            let seed = RegistrySeed {
                wiring: bench.wiring(),
                listener: Arc::new(Mutex::new(listener)),
                pod_network: "10.244.0.0/16".into(),
                cluster: "test".into(),
                lost_after: LOST_AFTER,
                admission: None,
                token_key: token_key(),
                no_image_sharing: false,
            };
            let (root, nodes) = (Supervisor::start(SupervisorSpec::new("test")), Slot::new("node registry"));
            root.start_child(child(seed, &nodes)).await.unwrap();
            let key = NodeKey::generate().unwrap();
            let certificate = authority.certify_node(&"n1".into(), &key.request().unwrap(), LIFE).unwrap();
            let identity = key.with(&certificate).unwrap();
            let connector = Connector::new(&identity, &ca, LinkConfig::default()).unwrap();
            for _ in 0..5 {
                let link = connector.connect::<ToMaster, ToNode>(address, MASTER).await.unwrap();
                let (_handle, mut events) = link.split();
                let reason = events.next().await;
                assert!(matches!(reason, LinkEvent::Closed(CloseReason::Unwelcome(_))));
            }
            assert_eq!(log.lines("was sent away"), 1);
            root.shutdown().await.unwrap();
        });
    });
}
