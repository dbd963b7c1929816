//! Manifests from the web: `-f https://…`.
//!
//! Owns: one GET, with the system's certificate authorities and up to awc's ten redirects. Limits: [`MAX_BYTES`], [`WITHIN`]; no
//! proxies, no credentials: those of the cluster go nowhere else.

use std::{sync::Arc, time::Duration};

use awc::Connector;
use rustls::{ClientConfig, RootCertStore};

use super::error::{CliError, Outcome};

/// A manifest is text that somebody wrote, or a program for somebody.
const MAX_BYTES: usize = 32 << 20;
/// How long all of it may take: such a text over a slow line.
const WITHIN: Duration = Duration::from_secs(120);
/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a file's name is an address.
pub(super) fn is_url(name: &str) -> bool {
    name.starts_with("http://") || name.starts_with("https://")
}

/// The text at an address.
///
/// # Errors
/// With the address and what the server or the connection said.
pub(super) async fn text(url: &str) -> Outcome<String> {
    let fault = |cause: String| CliError::failed(format!("unable to read URL {url:?}, {cause}"));
    let asked = async {
        let http = client(url).map_err(fault)?;
        let mut answer = http.get(url).send().await.map_err(|e| fault(e.to_string()))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(fault(format!("server reported {status}, status code={}", status.as_u16())));
        }
        let body = answer.body().limit(MAX_BYTES).await.map_err(|e| fault(e.to_string()))?;
        String::from_utf8(body.to_vec()).map_err(|_| fault("it is no text".into()))
    };
    let late = |_| fault(format!("it did not come within {}s", WITHIN.as_secs()));
    tokio::time::timeout(WITHIN, asked).await.map_err(late)?
}

fn client(url: &str) -> Result<awc::Client, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    can_trust(url, &roots)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = Connector::new()
        .timeout(CONNECT_TIMEOUT)
        .handshake_timeout(CONNECT_TIMEOUT)
        .rustls_0_23(Arc::new(config));
    Ok(awc::Client::builder().connector(connector).disable_timeout().finish())
}

/// Whether anybody's certificate would be believed, where one is needed.
fn can_trust(url: &str, roots: &RootCertStore) -> Result<(), String> {
    if url.starts_with("https://") && roots.is_empty() {
        return Err("this machine has no certificate authorities: install them (the package ca-certificates), or name a file \
                    of them in SSL_CERT_FILE"
            .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_authorities_says_what_to_do() {
        let none = RootCertStore::empty();
        assert!(can_trust("https://example.com/a.yaml", &none).unwrap_err().contains("ca-certificates"));
        assert!(can_trust("http://example.com/a.yaml", &none).is_ok());
    }
}
