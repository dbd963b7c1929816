//! Who is speaking, and whether they may.
//!
//! Owns: credentials (a client certificate under the client CA, else a bearer token) and the present rule of
//! authorisation: `system:masters` and holders of a known token may do everything, others nothing.
//! Invariant: without credentials there is no answer but 401. Tokens are looked up by digest, so comparing takes the
//! same time for every wrong one.

use std::{collections::HashMap, sync::Arc};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::{HttpRequest, dev::Extensions, rt::net::TcpStream};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    config::{Tls, User},
    error::ApiError,
};

/// Members may do everything.
pub const ADMINISTRATORS: &str = "system:masters";

/// Why the server could not take its certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate and key do not fit, or are malformed.
    #[error("cannot serve with this certificate and key: {0}")]
    Certificate(#[from] rustls::Error),
    /// The client CA is unusable.
    #[error("cannot verify clients with this certificate authority: {0}")]
    ClientCa(#[from] rustls::server::VerifierBuilderError),
}

/// TLS that asks for a client certificate and goes on without one.
///
/// # Errors
/// When certificates or keys are unusable.
pub fn server_config(tls: Tls) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in tls.client_ca {
        roots.add(ca)?;
    }
    let verifier: Arc<dyn ClientCertVerifier> =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(tls.chain, tls.key)?)
}

/// The user of a connection's client certificate, kept beside the connection so that it is parsed once.
#[derive(Clone)]
struct Certified(User);

/// Looks at a new connection's client certificate.
pub fn on_connect(stream: &TlsStream<TcpStream>, data: &mut Extensions) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(|c| c.first());
    if let Some(user) = certificate.and_then(|c| user_of(c)) {
        data.insert(Certified(user));
    }
}

/// Common name = user, organisations = groups, as in Kubernetes.
fn user_of(certificate: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(User { name, groups })
}

/// Known bearer tokens, by digest.
#[derive(Default)]
pub struct Tokens(HashMap<[u8; 32], User>);

impl Tokens {
    /// From plain tokens.
    pub fn new(tokens: HashMap<String, User>) -> Tokens {
        Tokens(tokens.into_iter().map(|(t, u)| (Sha256::digest(t.as_bytes()).into(), u)).collect())
    }

    fn find(&self, token: &str) -> Option<&User> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.0.get(&digest)
    }
}

/// Who is speaking, and whether they may do everything. Nobody may do only some things yet.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// Who.
    pub user: User,
    /// Administrators, and holders of a known token.
    pub may_everything: bool,
}

/// Who is speaking.
///
/// # Errors
/// 401 without (known) credentials.
pub fn authenticate(request: &HttpRequest, tokens: &Tokens) -> Result<Speaker, ApiError> {
    if let Some(header) = request.headers().get("authorization") {
        let token = header.to_str().ok().and_then(|h| {
            let (scheme, token) = h.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        let user = token.and_then(|t| tokens.find(t)).cloned().ok_or(ApiError::Unauthorized)?;
        return Ok(Speaker { user, may_everything: true });
    }
    let Certified(user) = request.conn_data::<Certified>().ok_or(ApiError::Unauthorized)?;
    let may_everything = user.groups.iter().any(|g| g == ADMINISTRATORS);
    Ok(Speaker { user: user.clone(), may_everything })
}

impl Speaker {
    /// Refuses who may not do everything.
    ///
    /// # Errors
    /// 403 for others than administrators.
    pub fn authorise(&self, request: &HttpRequest) -> Result<(), ApiError> {
        if self.may_everything {
            return Ok(());
        }
        let (name, path) = (&self.user.name, request.path());
        let verb = request.method().as_str().to_ascii_lowercase();
        Err(ApiError::Forbidden {
            resource: path.to_owned(),
            name: String::new(),
            why: format!(
                "User \"{name}\" cannot {verb} path \"{path}\": only members of {ADMINISTRATORS} may"
            ),
            cause: None,
        })
    }
}
