//! How a machine that has a token and nothing else becomes a node: one question, one answer.
//!
//! ```text
//! joiner                                   master (the links' port, ALPN troupe-join/1)
//!   │ ── QUIC, TLS 1.3, no client certificate ──▶ shows its chain, the authority's certificate with it
//!   │ checks the authority's key against the token's pin, and the chain against it
//!   │ ── JoinRequest: token, name, CSR ──────────▶ JoinAsk, to its owner
//!   │ ◀───────────────── JoinAnswer ──────────────
//! ```
//!
//! Invariants: the joiner sends nothing before it knows the master, and takes nothing but what it asked for; a frame is at
//! most [`JOIN_CAP`]; what the request comes to is decided elsewhere.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, oneshot},
};

use super::{
    CaCertificate, NetError, codec,
    csr::{joined_key, requested_key, validity},
    endpoint::{LinkConfig, Sockets, client_endpoint},
    frame::{frame, read_frame},
    identity::{BACKDATE, MASTER, Role, node_server_name, peer_role, pin, unusable},
    tls,
    transport::problem_of,
};
use crate::{
    messages::wire::{Admitted, JoinAnswer, JoinRefusal, JoinRequest},
    model::token::JoinToken,
};

/// The protocol of joining, and its version.
pub(crate) const ALPN: &[u8] = b"troupe-join/1";
/// A request is a few hundred bytes, an answer two certificates.
pub(crate) const JOIN_CAP: usize = 16 << 10;
/// Requests that wait for the owner; each is bounded by [`JOIN_CAP`].
pub(crate) const ASKS: usize = 16;
/// The whole of a join as the joiner sees it: longer than the master's own limit, so that its answer is heard.
const JOIN_WITHIN: Duration = Duration::from_secs(10);

/// Listener → its owner: a machine asks to become a node.
pub struct JoinAsk {
    /// Where it asks from.
    pub address: SocketAddr,
    /// What it asks for.
    pub request: JoinRequest,
    /// Takes the answer. Dropped without one, the joiner is told to try again.
    pub answer: oneshot::Sender<JoinAnswer>,
}

/// The master's half: reads the request, has it answered, sends the answer.
pub(crate) async fn serve(
    connection: &quinn::Connection,
    asks: &mpsc::Sender<JoinAsk>,
) -> Result<(), String> {
    let (mut send, mut receive) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    let answer = answer(&mut receive, &mut send, connection.remote_address(), asks).await?;
    // Fails only when the stream has ended already.
    let _ = send.finish();
    // Until the answer is there, or the joiner gone; the caller limits the time.
    let _ = send.stopped().await;
    match answer {
        JoinAnswer::Admitted(_) => Ok(()),
        JoinAnswer::Refused(_, problem) => Err(problem),
    }
}

/// What the master reads and writes on the stream; its answer.
pub(crate) async fn answer<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    receive: &mut R,
    send: &mut W,
    address: SocketAddr,
    asks: &mpsc::Sender<JoinAsk>,
) -> Result<JoinAnswer, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let bytes = read_frame(receive, JOIN_CAP).await.map_err(|e| failed(&e))?;
    let answer = match codec::decode::<JoinRequest>(&bytes) {
        Ok(request) => {
            let (answer, answered) = oneshot::channel();
            let ask = JoinAsk { address, request, answer };
            match asks.try_send(ask) {
                Ok(()) => answered.await.unwrap_or_else(|_| busy()),
                Err(_) => busy(),
            }
        }
        Err(error) => JoinAnswer::Refused(JoinRefusal::Invalid, error.to_string()),
    };
    let bytes = frame(&answer, JOIN_CAP).map_err(|e| failed(&e))?;
    send.write_all(&bytes).await.map_err(|e| failed(&e))?;
    Ok(answer)
}

fn busy() -> JoinAnswer {
    JoinAnswer::Refused(JoinRefusal::Busy, "the master is busy; try again".into())
}

/// Why a machine did not become a node.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The master said no.
    #[error("{1}")]
    Refused(JoinRefusal, String),
    /// Who answers is not of the cluster that made the token. Nothing was sent.
    #[error(
        "the master at {0} does not belong to the cluster that the token is for: check the address, or have that master \
         make a token (`troupe token create`); nothing was sent to it"
    )]
    OtherCluster(SocketAddr),
    /// Nobody answered, or not as a master does.
    #[error("no answer from a master at {address} (UDP): {problem}")]
    Unreachable {
        /// Where one was looked for.
        address: SocketAddr,
        /// What happened.
        problem: String,
    },
    /// The master admits it, and what it gives is of no use.
    #[error(
        "the master at {address} answers what cannot be right ({problem}): look into its log, and at the version of either \
         side; nothing of it was kept"
    )]
    Useless {
        /// Who answered.
        address: SocketAddr,
        /// What is wrong.
        problem: String,
    },
    /// This side's own fault.
    #[error(transparent)]
    Net(#[from] NetError),
}

/// The joiner's half: asks the master at `address` for the node `name` with the key of `csr` (PKCS #10, DER).
///
/// # Errors
/// See [`JoinError`].
pub async fn join(
    address: SocketAddr,
    token: &JoinToken,
    name: &str,
    csr: Vec<u8>,
    sockets: Option<&Sockets>,
) -> Result<Admitted, JoinError> {
    join_at(address, token, name, csr, sockets, Arc::new(DefaultTimeProvider)).await
}

/// As the machine does whose clock this is.
pub(super) async fn join_at(
    address: SocketAddr,
    token: &JoinToken,
    name: &str,
    csr: Vec<u8>,
    sockets: Option<&Sockets>,
    clock: Arc<dyn TimeProvider>,
) -> Result<Admitted, JoinError> {
    let reads = clock.clone();
    let unreachable = |problem: String| JoinError::Unreachable { address, problem };
    let verifier = Pinned { pin: token.pin, provider: tls::provider() };
    let crypto = tls::joining(Arc::new(verifier), clock)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let settings = LinkConfig { idle_timeout: JOIN_WITHIN, ..LinkConfig::default() };
    let mut transport = settings.transport()?;
    transport.keep_alive_interval(Some(settings.keep_alive));
    config.transport_config(Arc::new(transport));
    let ask = async {
        let endpoint = client_endpoint(address, sockets).map_err(|e| unreachable(e.to_string()))?;
        let connecting =
            endpoint.connect_with(config, address, MASTER).map_err(|e| unreachable(e.to_string()))?;
        let connection = connecting.await.map_err(|error| match is_other_cluster(&error) {
            true => JoinError::OtherCluster(address),
            false => unreachable(problem_of(&error)),
        })?;
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| unreachable(e.to_string()))?;
        let request = JoinRequest {
            token_id: token.id.clone(),
            secret: token.secret.clone(),
            name: name.to_owned(),
            csr: csr.into(),
        };
        let answer = say(&mut receive, &mut send, &request).await?.map_err(|e| unreachable(e.to_string()))?;
        connection.close(quinn::VarInt::from_u32(0), b"");
        endpoint.wait_idle().await;
        let now = reads.current_time().unwrap_or_else(UnixTime::now);
        admitted(&answer, &request, token.pin, address, now)
    };
    match tokio::time::timeout(JOIN_WITHIN, ask).await {
        Ok(outcome) => outcome,
        Err(_) => Err(unreachable("no answer in time".into())),
    }
}

/// What the joiner writes and reads on the stream; the answer's bytes, or how the stream failed.
pub(crate) async fn say<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    receive: &mut R,
    send: &mut W,
    request: &JoinRequest,
) -> Result<io::Result<Vec<u8>>, NetError> {
    let bytes = frame(request, JOIN_CAP)?;
    if let Err(error) = send.write_all(&bytes).await {
        return Ok(Err(error));
    }
    Ok(read_frame(receive, JOIN_CAP).await)
}

/// What an answer comes to: certificates of the cluster that the token is for, and of the node and key that were asked for.
/// They take the place of what a machine that joins again has, so nothing else is let through.
pub(crate) fn admitted(
    answer: &[u8],
    request: &JoinRequest,
    pin: [u8; 32],
    address: SocketAddr,
    now: UnixTime,
) -> Result<Admitted, JoinError> {
    let useless = |problem: &str| JoinError::Useless { address, problem: problem.to_owned() };
    let admitted = match codec::decode(answer).map_err(|error| useless(&error.to_string()))? {
        JoinAnswer::Admitted(admitted) => admitted,
        JoinAnswer::Refused(refusal, text) => return Err(JoinError::Refused(refusal, text)),
    };
    let ca = CaCertificate::from_pem(&admitted.ca).map_err(|error| useless(&error.to_string()))?;
    if ca.public_key_pin().map_err(|error| useless(&error.to_string()))? != pin {
        return Err(useless("its authority is not the token's"));
    }
    let certificate = CertificateDer::from_pem_slice(admitted.certificate.as_bytes())
        .map_err(|error| useless(&format!("the certificate: {error}")))?;
    let key = requested_key(&request.csr)?;
    if joined_key(&certificate) != Some(key) {
        return Err(useless("the certificate is for another key"));
    }
    if peer_role(&certificate) != Some(Role::Node(request.name.as_str().into())) {
        return Err(useless("the certificate is for another name"));
    }
    let (_, end_s) = validity(&admitted.certificate).map_err(|error| useless(&error.to_string()))?;
    verify(&certificate, &ca, forgiving(now, end_s)).map_err(|problem| useless(&problem))?;
    Ok(admitted)
}

/// The time at which to look at a certificate that ends then and was made just now: a clock that is ahead is forgiven as
/// much as one that is behind, by [`BACKDATE`].
fn forgiving(now: UnixTime, end_s: i64) -> UnixTime {
    let end = Duration::from_secs(u64::try_from(end_s).unwrap_or_default());
    let read = Duration::from_secs(now.as_secs());
    let is_forgiven = read > end && read <= end.saturating_add(BACKDATE);
    if is_forgiven { UnixTime::since_unix_epoch(end) } else { now }
}

/// Checks a node's certificate as the master will: signed by the authority, for a time that it is `now`, for links in both roles.
/// Certificates begin a day before they are made, so that a clock which is behind by less is no matter.
pub(crate) fn verify(
    certificate: &CertificateDer<'_>,
    ca: &CaCertificate,
    now: UnixTime,
) -> Result<(), String> {
    let roots = Arc::new(tls::roots(ca).map_err(|error| error.to_string())?);
    let as_client = WebPkiClientVerifier::builder_with_provider(roots.clone(), tls::provider())
        .build()
        .map_err(|error| format!("the authority's certificate: {error}"))?;
    as_client.verify_client_cert(certificate, &[], now).map_err(|error| in_words(&error))?;
    let as_server = WebPkiServerVerifier::builder_with_provider(roots, tls::provider())
        .build()
        .map_err(|error| format!("the authority's certificate: {error}"))?;
    let Some(Role::Node(name)) = peer_role(certificate) else {
        return Err("the certificate is no node's".into());
    };
    let name = ServerName::try_from(node_server_name(&name)).map_err(|error| error.to_string())?;
    as_server
        .verify_server_cert(certificate, &[], &name, &[], now)
        .map(drop)
        .map_err(|error| in_words(&error))
}

/// Checks what is to take the place of a node's certificate (both PEM): of the same node and key, of the authority, for links; at
/// a moment of its life, for a machine whose clock is wrong by more than that keeps its link.
///
/// # Errors
/// [`NetError::Certificate`], which says what is wrong.
pub fn check_renewed(before: &str, after: &str, ca: &CaCertificate) -> Result<(), NetError> {
    const WHAT: &str = "the new certificate";
    let read = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(unusable(WHAT));
    let (old, new) = (read(before)?, read(after)?);
    if peer_role(&old) != peer_role(&new) || joined_key(&old) != joined_key(&new) {
        return Err(unusable(WHAT)("it is another node's"));
    }
    let (begin_s, end_s) = validity(after)?;
    let now_s = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX).min(end_s).max(begin_s);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now_s).unwrap_or_default()));
    verify(&new, ca, now).map_err(unusable(WHAT))
}

fn in_words(error: &TlsError) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    let clocks = "by this machine's clock: compare the clocks of both machines (NTP)";
    match error {
        TlsError::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            format!("the certificate has ended already {clocks}, or have the master give longer ones")
        }
        TlsError::InvalidCertificate(NotValidYet | NotValidYetContext { .. }) => {
            format!("the certificate is not valid yet {clocks}")
        }
        TlsError::InvalidCertificate(BadSignature | UnknownIssuer) => {
            "the certificate is not signed by the authority".to_owned()
        }
        other => format!("the certificate: {other}"),
    }
}

/// Our own verifier's refusal comes back as TLS' alert for it.
fn is_other_cluster(error: &quinn::ConnectionError) -> bool {
    /// `unknown_ca`, RFC 8446.
    const UNKNOWN_CA: u8 = 48;
    let quinn::ConnectionError::TransportError(error) = error else { return false };
    error.code == quinn::TransportErrorCode::crypto(UNKNOWN_CA)
}

/// Trusts the authority of the chain whose public key has this digest, and what it signed for the master.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let unknown = || TlsError::InvalidCertificate(CertificateError::UnknownIssuer);
        let pinned = |certificate: &&CertificateDer<'_>| {
            x509_parser::parse_x509_certificate(certificate)
                .is_ok_and(|(_, parsed)| pin(parsed.public_key().raw) == self.pin)
        };
        let authority = intermediates.iter().find(pinned).ok_or_else(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned()).map_err(|_| unknown())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|_| unknown())?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        // QUIC is TLS 1.3.
        Err(TlsError::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
