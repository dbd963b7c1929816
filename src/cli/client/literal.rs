//! APIs at an IPv6 address.
//!
//! Owns: how such a one is reached. The HTTP client takes an address' brackets for a part of the server's name, which TLS
//! refuses; so requests go to a name that is none's, at that address, and the certificate is checked for the address.
//! Invariant: the server's certificate has to be for the address in the kubeconfig, as it would have to be for a name.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
};

use awc::http::Uri;
use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

/// What stands in URLs (RFC 2606: no such name is ever given to anybody).
const NOBODY: &str = "ipv6.invalid";

/// A server at an IPv6 address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Literal {
    /// What URLs begin with, without a slash at the end.
    pub base: String,
    /// Where to connect to.
    pub address: SocketAddr,
    /// `[ADDRESS]:PORT`, for the header.
    pub host: String,
}

impl Literal {
    /// Of `https://[ADDRESS]:PORT`; `None` for any other server.
    pub fn of(server: &str) -> Option<Literal> {
        let uri: Uri = server.parse().ok()?;
        let bare = uri.host()?.strip_prefix('[')?.strip_suffix(']')?;
        let address: Ipv6Addr = bare.parse().ok()?;
        let port = uri.port_u16().unwrap_or(443);
        let (scheme, path) = (uri.scheme_str()?, uri.path().trim_end_matches('/'));
        Some(Literal {
            base: format!("{scheme}://{NOBODY}:{port}{path}"),
            address: (address, port).into(),
            host: uri.authority()?.as_str().to_owned(),
        })
    }
}

/// Checks a server's certificate for its address, whatever name the client takes it for.
#[derive(Debug)]
pub struct ForAddress {
    /// Who checks.
    pub by: Arc<dyn ServerCertVerifier>,
    /// The address.
    pub name: ServerName<'static>,
}

impl ServerCertVerifier for ForAddress {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.by.verify_server_cert(cert, intermediates, &self.name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_brackets_is_connected_to_and_others_are_left_as_they_are() {
        let of = |server: &str| {
            Literal::of(server).map(|found| (found.base, found.address.to_string(), found.host))
        };
        let found = |base: &str, address: &str, host: &str| Some((base.into(), address.into(), host.into()));
        assert_eq!(of("https://[::1]:7444"), found("https://ipv6.invalid:7444", "[::1]:7444", "[::1]:7444"));
        assert_eq!(
            of("https://[fd00::1]/k8s"),
            found("https://ipv6.invalid:443/k8s", "[fd00::1]:443", "[fd00::1]")
        );
        for other in ["https://10.0.0.1:6443", "https://master:6443", "https://[no]:1", "none"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
