//! Joining over the links' port: who is asked what, and what a stranger can do there.

use super::*;
use crate::{
    messages::wire::{Admitted, JoinAnswer, JoinRefusal, JoinRequest},
    model::token::JoinToken,
    net::{
        csr::NodeKey,
        join::{self, JoinError},
    },
};

fn token(cluster: &Cluster) -> JoinToken {
    let pin = cluster.authority.certificate().public_key_pin().unwrap();
    JoinToken { id: "abcdef".into(), secret: "0123456789abcdef".into(), pin }
}

#[tokio::test]
async fn a_joiner_is_heard_and_answered_and_links_with_what_it_got() {
    let mut cluster = Cluster::new();
    let mut asks = cluster.listener.joins().unwrap();
    assert!(cluster.listener.joins().is_none(), "there is one who reads them");
    let (address, key) = (cluster.listener.local_addr(), NodeKey::generate().unwrap());
    let (token, csr) = (token(&cluster), key.request().unwrap());
    let joining = tokio::spawn(async move { join::join(address, &token, "node-7", csr, None).await });
    let ask = timeout(PATIENCE, asks.recv()).await.unwrap().unwrap();
    assert_eq!((ask.request.token_id.as_str(), ask.request.name.as_str()), ("abcdef", "node-7"));
    assert!(!format!("{:?}", ask.request).contains("0123456789abcdef"), "secrets are not printed");
    let certificate =
        cluster.authority.certify_node(&"node-7".into(), &ask.request.csr, Duration::from_secs(600)).unwrap();
    let ca = cluster.authority.certificate().pem().to_owned();
    let admitted = Admitted { certificate, ca, cluster: "test".into() };
    ask.answer.send(JoinAnswer::Admitted(admitted.clone())).unwrap();
    assert_eq!(joining.await.unwrap().unwrap(), admitted);
    let (identity, ca) =
        (key.with(&admitted.certificate).unwrap(), CaCertificate::from_pem(&admitted.ca).unwrap());
    let connector = Connector::new(&identity, &ca, LinkConfig::default()).unwrap();
    let _node: NodeLink = connector.connect(address, MASTER).await.unwrap();
    let master: MasterLink = timeout(PATIENCE, cluster.listener.accept()).await.unwrap().unwrap();
    assert_eq!(master.peer().as_str(), "node-7");
    assert_eq!(master.split().0.joined_key(), Some(key.pin()));
}

#[tokio::test]
async fn a_joiner_says_nothing_to_another_clusters_master() {
    let mut cluster = Cluster::new();
    let mut asks = cluster.listener.joins().unwrap();
    let csr = NodeKey::generate().unwrap().request().unwrap();
    let foreign = JoinToken { pin: [7; 32], ..token(&cluster) };
    let error = join::join(cluster.listener.local_addr(), &foreign, "node-7", csr, None).await.unwrap_err();
    assert!(matches!(error, JoinError::OtherCluster(_)), "{error}");
    assert!(asks.try_recv().is_err());
    // Nor to a node that claims to be the master: it has the authority's certificate, but not the name.
    let ca = cluster.authority.certificate();
    let impostor = cluster.authority.issue_node(&"node-2".into()).unwrap();
    let mut listener = Listener::bind(local(), &impostor, ca, LinkConfig::default()).unwrap();
    let mut asks = listener.joins().unwrap();
    let csr = NodeKey::generate().unwrap().request().unwrap();
    let refused = join::join(listener.local_addr(), &token(&cluster), "node-7", csr, None).await;
    assert!(refused.is_err() && asks.try_recv().is_err());
}

#[tokio::test]
async fn a_joiner_takes_nothing_but_what_it_asked_for() {
    let mut cluster = Cluster::new();
    let mut asks = cluster.listener.joins().unwrap();
    let (address, token) = (cluster.listener.local_addr(), token(&cluster));
    let other = Authority::ephemeral().unwrap();
    let (key, foreign) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let certified = |of: &Authority, name: &str, key: &NodeKey| {
        of.certify_node(&name.into(), &key.request().unwrap(), Duration::from_secs(600)).unwrap()
    };
    let ca = cluster.authority.certificate().pem();
    for (certificate, ca, says) in [
        (certified(&other, "n1", &key), other.certificate().pem(), "its authority is not the token's"),
        (certified(&cluster.authority, "n1", &foreign), ca, "for another key"),
        (certified(&cluster.authority, "n2", &key), ca, "for another name"),
        ("no certificate".to_owned(), ca, "the certificate"),
        (certified(&cluster.authority, "n1", &key), "no authority", "the CA certificate"),
    ] {
        let (token, csr) = (token.clone(), key.request().unwrap());
        let joining = tokio::spawn(async move { join::join(address, &token, "n1", csr, None).await });
        let ask = timeout(PATIENCE, asks.recv()).await.unwrap().unwrap();
        let admitted = Admitted { certificate, ca: ca.to_owned(), cluster: "test".into() };
        ask.answer.send(JoinAnswer::Admitted(admitted)).unwrap();
        let error = joining.await.unwrap().unwrap_err();
        assert!(
            matches!(error, JoinError::Useless { .. }) && error.to_string().contains(says),
            "{says}: {error}"
        );
    }
}

#[tokio::test]
async fn a_certificate_that_is_forged_in_any_way_is_not_taken() {
    use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose as Usage, IsCa, KeyPair, SanType};

    /// As the authority would make it, but for one thing.
    fn forged(
        of: &Authority,
        key: &KeyPair,
        days: (i64, i64),
        usages: &[Usage],
        dns: &str,
        ca: IsCa,
    ) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "joined");
        params.subject_alt_names = vec![SanType::DnsName(dns.try_into().unwrap())];
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let at = |days: i64| {
            let second = now.checked_add_signed(days * 86_400).unwrap();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second)
        };
        (params.not_before, params.not_after) = (at(days.0), at(days.1));
        params.extended_key_usages = usages.to_vec();
        params.is_ca = ca;
        params.signed_by(key, &of.issuer).unwrap().pem()
    }

    let mut cluster = Cluster::new();
    let mut asks = cluster.listener.joins().unwrap();
    let (address, token) = (cluster.listener.local_addr(), token(&cluster));
    let (own, other) = (&cluster.authority, Authority::ephemeral().unwrap());
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let key = NodeKey::from_pem(&pair.serialize_pem()).unwrap();
    let both = [Usage::ClientAuth, Usage::ServerAuth];
    let dns = "n1.node.troupe.internal";
    let leaf = || IsCa::ExplicitNoCa;
    for (certificate, says) in [
        (forged(&other, &pair, (-1, 1), &both, dns, leaf()), "not signed by the authority"),
        (forged(own, &pair, (-3, -2), &both, dns, leaf()), "has ended already by this machine's clock"),
        (forged(own, &pair, (1, 2), &both, dns, leaf()), "is not valid yet by this machine's clock"),
        (
            forged(own, &pair, (-1, 1), &[Usage::ServerAuth], dns, leaf()),
            "not allow extended key usage for client authentication",
        ),
        (
            forged(own, &pair, (-1, 1), &[Usage::ClientAuth], dns, leaf()),
            "not allow extended key usage for server authentication",
        ),
        (
            forged(own, &pair, (-1, 1), &both, "n2.node.troupe.internal", leaf()),
            "only valid for DnsName(\"n2.node.troupe.internal\")",
        ),
        (
            forged(own, &pair, (-1, 1), &both, dns, IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
            "CaUsedAsEndEntity",
        ),
        (forged(own, &pair, (-1, 1), &both, dns, leaf()), ""),
    ] {
        let (token, csr) = (token.clone(), key.request().unwrap());
        let joining = tokio::spawn(async move { join::join(address, &token, "n1", csr, None).await });
        let ask = timeout(PATIENCE, asks.recv()).await.unwrap().unwrap();
        let ca = own.certificate().pem().to_owned();
        let admitted = Admitted { certificate, ca, cluster: "test".into() };
        ask.answer.send(JoinAnswer::Admitted(admitted)).unwrap();
        match joining.await.unwrap() {
            Ok(_) => assert_eq!(says, "", "it is taken"),
            Err(error) => {
                assert!(matches!(error, JoinError::Useless { .. }), "{error}");
                assert!(!says.is_empty() && error.to_string().contains(says), "{says}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_comes_with_its_reason_and_a_busy_master_says_so() {
    let mut cluster = Cluster::new();
    let mut asks = cluster.listener.joins().unwrap();
    let (address, token) = (cluster.listener.local_addr(), token(&cluster));
    let ask = |token: JoinToken| async move {
        let csr = NodeKey::generate().unwrap().request().unwrap();
        join::join(address, &token, "node-7", csr, None).await.unwrap_err()
    };
    let joining = tokio::spawn(ask(token.clone()));
    let asked = timeout(PATIENCE, asks.recv()).await.unwrap().unwrap();
    asked.answer.send(JoinAnswer::Refused(JoinRefusal::TokenExpired, "too late".into())).unwrap();
    let error = joining.await.unwrap();
    assert!(matches!(&error, JoinError::Refused(JoinRefusal::TokenExpired, text) if text == "too late"));
    // Nobody answers any more.
    drop(asks);
    let error = ask(token).await;
    assert!(matches!(error, JoinError::Refused(JoinRefusal::Busy, _)), "{error}");
}

#[tokio::test]
async fn what_a_stranger_sends_instead_of_a_request_reaches_nobody() {
    let mut cluster = Cluster::new();
    let mut asks = cluster.listener.joins().unwrap();
    let address = cluster.listener.local_addr();
    let request = JoinRequest {
        token_id: "a".into(),
        secret: "b".into(),
        name: "c".into(),
        csr: vec![0; join::JOIN_CAP].into(),
    };
    let whole = frame::frame(&request, 2 * join::JOIN_CAP).unwrap().to_vec();
    let rows: [&[u8]; 4] = [&whole, &[0, 0, 0, 5, 250, 1, 2, 3, 4], &[255; 64], &[0, 0]];
    for bytes in rows {
        let (_endpoint, connection) = raw_connect(address, &cluster.authority, join::ALPN, None).await;
        let connection = connection.unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        // Fails when the master has hung up by then.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        let answer = timeout(PATIENCE, frame::read_frame(&mut receive, join::JOIN_CAP)).await.unwrap();
        if let Ok(answer) = answer {
            let answer = codec::decode::<JoinAnswer>(&answer).unwrap();
            assert!(matches!(answer, JoinAnswer::Refused(JoinRefusal::Invalid, _)), "{answer:?}");
        }
    }
    assert!(asks.try_recv().is_err());
    // Who speaks the links' protocol without a certificate gets no link.
    let (_endpoint, connection) = raw_connect(address, &cluster.authority, tls::ALPN, None).await;
    let reason = timeout(PATIENCE, connection.unwrap().closed()).await.unwrap();
    assert!(matches!(reason, quinn::ConnectionError::ApplicationClosed(_)), "{reason}");
    cluster.links().await;
}

#[tokio::test]
async fn a_stranger_cannot_fill_the_masters_memory() {
    let cluster = Cluster::new();
    let ca = cluster.authority.certificate();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let mut crypto = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    crypto.alpn_protocols = vec![join::ALPN.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    let endpoint = quinn::Endpoint::client(local()).unwrap();
    let config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));
    let address = cluster.listener.local_addr();
    let connection = endpoint.connect_with(config, address, MASTER).unwrap().await.unwrap();
    // One stream is read, up to its frame; the other is not.
    let (_first, _) = connection.open_bi().await.unwrap();
    let (mut second, _) = connection.open_bi().await.unwrap();
    let (mut written, chunk) = (0_usize, [0; 4096]);
    while let Ok(Ok(())) = timeout(Duration::from_millis(500), second.write_all(&chunk)).await {
        written += chunk.len();
        assert!(written <= 64 << 10, "a stranger may have more under way than an introduction needs");
    }
    let third = timeout(Duration::from_millis(100), connection.open_bi()).await;
    assert!(third.is_err(), "nor more streams");
}
