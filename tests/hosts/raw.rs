//! Peers made by hand: what an older, a newer, or a hostile program says on the links' port.

use std::{net::SocketAddr, path::Path, sync::Arc};

use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use troupe::net::{Identity, LinkConfig, csr::NodeKey, identity::MASTER};

/// The protocol of links.
pub const LINK: &[u8] = b"troupe/1";
/// The protocol of joins.
pub const JOIN: &[u8] = b"troupe-join/1";

/// Runs work of a peer to its end.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Waits for a thread while the peer goes on.
pub async fn done<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    while !thread.is_finished() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Takes any server's certificate.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(LinkConfig::default().keep_alive));
    Arc::new(transport)
}

/// A connection with these protocols and a certificate or none. Its endpoint must live as long.
pub async fn connect(
    address: SocketAddr,
    protocols: &[&[u8]],
    identity: Option<&Identity>,
) -> (quinn::Endpoint, Result<quinn::Connection, quinn::ConnectionError>) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    let mut tls = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain().to_vec(), identity.key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport());
    let endpoint = quinn::Endpoint::client("0.0.0.0:0".parse().unwrap()).unwrap();
    let connection = endpoint.connect_with(config, address, MASTER).unwrap().await;
    (endpoint, connection)
}

/// A server that speaks these protocols.
pub fn serve(address: SocketAddr, protocols: &[&[u8]], identity: &Identity) -> quinn::Endpoint {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain().to_vec(), identity.key())
        .unwrap();
    tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(transport());
    quinn::Endpoint::server(config, address).unwrap()
}

/// Who the node with this data directory is.
pub fn identity(data: &Path) -> Identity {
    let pki = data.join("pki");
    let certificate = std::fs::read_to_string(pki.join("node.crt")).unwrap();
    NodeKey::open(&pki.join("node.key")).unwrap().with(&certificate).unwrap()
}

/// A frame around these bytes.
pub fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut all = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    all.extend(bytes);
    all
}

/// The two message streams of a link, introduced.
pub struct Streams {
    pub control: (quinn::SendStream, quinn::RecvStream),
    pub state: (quinn::SendStream, quinn::RecvStream),
}

/// Introduces a link as a node does.
pub async fn introduce(connection: &quinn::Connection) -> Streams {
    let mut streams = Vec::new();
    for kind in [0_u8, 1] {
        let (mut send, receive) = connection.open_bi().await.unwrap();
        send.write_all(&[kind]).await.unwrap();
        streams.push((send, receive));
    }
    for (kind, (_, receive)) in streams.iter_mut().enumerate() {
        let mut echoed = [0xff];
        receive.read_exact(&mut echoed).await.unwrap();
        assert_eq!(usize::from(echoed[0]), kind);
    }
    let (Some(state), Some(control)) = (streams.pop(), streams.pop()) else { panic!("two") };
    Streams { control, state }
}

/// The content of the next frame.
pub async fn next(receive: &mut quinn::RecvStream) -> Vec<u8> {
    let mut length = [0; 4];
    receive.read_exact(&mut length).await.unwrap();
    let mut bytes = vec![0; u32::from_be_bytes(length) as usize];
    receive.read_exact(&mut bytes).await.unwrap();
    bytes
}
