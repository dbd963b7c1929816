//! Who is speaking, and whether they may.
//!
//! Owns: credentials (a client certificate under the client CA, else a bearer token: a known one, or a service account's)
//! and the present rule of authorisation: `system:masters` and holders of a known token may do everything, others ask
//! about themselves and read what is the same for everyone.
//! Invariant: without credentials there is no answer but 401. Known tokens are looked up by digest, so comparing takes
//! the same time for every wrong one.

use std::{collections::HashMap, sync::Arc};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::{HttpRequest, dev::Extensions, http::Method, rt::net::TcpStream};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    certificate::ServerCertificate,
    clock,
    config::{Tls, User},
    door::Shared,
    error::ApiError,
    query::Query,
    target::Target,
    tokens,
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
pub fn server_config(tls: Tls) -> Result<(ServerConfig, ServerCertificate), TlsError> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    for ca in tls.client_ca {
        roots.add(ca)?;
    }
    let verifier: Arc<dyn ClientCertVerifier> =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
    let certificate = ServerCertificate::new(tls.chain, tls.key)?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate.resolver());
    Ok((config, certificate))
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
    Some(User { name, groups, ..User::default() })
}

/// Known bearer tokens, by digest.
#[derive(Default)]
pub struct Tokens(HashMap<[u8; 32], User>);

impl Tokens {
    /// From plain tokens.
    pub fn new(tokens: HashMap<String, User>) -> Tokens {
        Tokens(tokens.into_iter().map(|(t, u)| (Sha256::digest(t.as_bytes()).into(), u)).collect())
    }

    pub(super) fn find(&self, token: &str) -> Option<&User> {
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
pub fn authenticate(request: &HttpRequest, shared: &Shared) -> Result<Speaker, ApiError> {
    if let Some(header) = request.headers().get("authorization") {
        let token = header.to_str().ok().and_then(|h| {
            let (scheme, token) = h.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        return of_token(token.ok_or(ApiError::Unauthorized)?, shared);
    }
    let Certified(user) = request.conn_data::<Certified>().ok_or(ApiError::Unauthorized)?;
    let may_everything = user.groups.iter().any(|g| g == ADMINISTRATORS);
    Ok(Speaker { user: user.clone(), may_everything })
}

/// Who holds a token.
fn of_token(token: &str, shared: &Shared) -> Result<Speaker, ApiError> {
    if let Some(user) = shared.tokens().find(token) {
        return Ok(Speaker { user: user.clone(), may_everything: true });
    }
    match tokens::holder(token, &[tokens::API_AUDIENCE], shared, clock::now()) {
        Ok((user, _)) => Ok(Speaker { user, may_everything: false }),
        Err(why) => {
            tracing::debug!(%why, "a bearer token is refused");
            Err(ApiError::Unauthorized)
        }
    }
}

/// What asks to be served as somebody else, and as what kind of thing Kubernetes names that; `extra-` is followed by a name.
const IMPERSONATION: [(&str, &str, &str); 4] = [
    ("impersonate-user", "users", ""),
    ("impersonate-group", "groups", ""),
    ("impersonate-uid", "uids", "authentication.k8s.io"),
    ("impersonate-extra-", "userextras", "authentication.k8s.io"),
];

impl Speaker {
    /// Refuses whoever asks to be served as somebody else, since nobody can be yet: least of all as who they are.
    ///
    /// # Errors
    /// 403 when a header says so, in Kubernetes' words.
    pub fn refuse_impersonation(&self, request: &HttpRequest) -> Result<(), ApiError> {
        for (name, resource, group) in IMPERSONATION {
            // What ends in a dash begins others.
            let named =
                |header: &str| if name.ends_with('-') { header.starts_with(name) } else { header == name };
            let Some((_, value)) = request.headers().iter().find(|(header, _)| named(header.as_str())) else {
                continue;
            };
            let user = &self.user.name;
            return Err(ApiError::Forbidden {
                resource: resource.to_owned(),
                name: String::from_utf8_lossy(value.as_bytes()).into_owned(),
                why: format!(
                    "User {user:?} cannot impersonate resource {resource:?} in API group {group:?} at the cluster scope: \
                     this server knows no impersonation"
                ),
                cause: None,
            });
        }
        Ok(())
    }

    /// Refuses who may not do everything.
    ///
    /// # Errors
    /// 403 for others than administrators, in Kubernetes' words.
    pub fn authorise(&self, request: &HttpRequest, target: &Target) -> Result<(), ApiError> {
        if self.may_everything {
            return Ok(());
        }
        let name = &self.user.name;
        let because = format!("only members of {ADMINISTRATORS} may");
        let Target::Resource(resource) = target else {
            let (verb, path) = (request.method().as_str().to_ascii_lowercase(), request.path());
            let why = format!("User {name:?} cannot {verb} path {path:?}: {because}");
            return Err(ApiError::ForbiddenPath(why));
        };
        let watches = Query::parse(request.query_string()).is_ok_and(|query| query.watch);
        let verb = verb(request.method(), resource.name.is_some(), watches);
        let plural = resource.kind.plural();
        let of = match &resource.subresource {
            Some(subresource) => format!("{plural}/{subresource}"),
            None => plural.to_owned(),
        };
        let group = resource.kind.api_version().split_once('/').map_or("", |(group, _)| group);
        let place = match &resource.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        Err(ApiError::Forbidden {
            resource: plural.to_owned(),
            name: resource.name.clone().unwrap_or_default(),
            why: format!(
                "User {name:?} cannot {verb} resource {of:?} in API group {group:?} {place}: {because}"
            ),
            cause: None,
        })
    }
}

/// Kubernetes' verb of a request for objects.
fn verb(method: &Method, named: bool, watches: bool) -> &'static str {
    match *method {
        Method::GET | Method::HEAD if watches => "watch",
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "use",
    }
}
