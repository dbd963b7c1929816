//! Certificates over keys that their owners made: nodes that join from other machines.
//!
//! Owns: a node's key and its request ([`NodeKey`]), what the authority makes of one ([`Authority::certify_node`]), and
//! [`joined_key`], which tells such a certificate from those of nodes within the master's process. Invariants: a node's
//! key never leaves its machine; of a request only the public key is used (its signature checked), never what it says of
//! itself; the certificate names the node that the master agreed to.

use std::{path::Path, time::Duration};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::{
    Authority, Identity, NetError,
    identity::{
        NODE_CN, NODE_ORGANISATION, dns, generate, is_node_name, node_server_name, params, parse_key, pin,
        unusable, write_atomically,
    },
};
use crate::model::NodeName;

/// Stands in the certificate of a node that joined: it is worth something only while the cluster has that node, with
/// that key.
const JOINED: &str = "joined";

/// A node's key pair.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// The key in a file; made and kept there, for its owner alone, when there is none.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no key.
    pub fn open(path: &Path) -> Result<NodeKey, NetError> {
        match std::fs::read_to_string(path) {
            Ok(pem) => parse_key("the node's key", &pem).map(NodeKey),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = generate()?;
                write_atomically(path, key.serialize_pem().as_bytes(), 0o600)?;
                Ok(NodeKey(key))
            }
            Err(source) => Err(NetError::File { operation: "read", path: path.into(), source }),
        }
    }

    /// A key in PEM.
    ///
    /// # Errors
    /// When it is none.
    pub fn from_pem(pem: &str) -> Result<NodeKey, NetError> {
        parse_key("the node's key", pem).map(NodeKey)
    }

    /// A key that is kept nowhere.
    ///
    /// # Errors
    /// When none can be made.
    pub fn generate() -> Result<NodeKey, NetError> {
        generate().map(NodeKey)
    }

    /// A certificate request over this key, DER.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn request(&self) -> Result<Vec<u8>, NetError> {
        let request = CertificateParams::default()
            .serialize_request(&self.0)
            .map_err(unusable("the certificate request"))?;
        Ok(request.der().to_vec())
    }

    /// SHA-256 of the public key.
    pub fn pin(&self) -> [u8; 32] {
        pin(&self.0.subject_public_key_info())
    }

    /// This key with a certificate for it.
    ///
    /// # Errors
    /// When the certificate cannot be read.
    pub fn with(&self, certificate_pem: &str) -> Result<Identity, NetError> {
        Identity::from_pem(certificate_pem, &self.0.serialize_pem())
    }
}

/// SHA-256 of the public key that a certificate request is for, once its signature was checked.
///
/// # Errors
/// When it is no request, or not signed with its own key.
pub fn requested_key(csr: &[u8]) -> Result<[u8; 32], NetError> {
    Ok(pin(&read(csr)?.public_key.subject_public_key_info()))
}

fn read(csr: &[u8]) -> Result<CertificateSigningRequestParams, NetError> {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(unusable("the certificate request"))
}

impl Authority {
    /// The certificate, PEM, of a node that joins with the key of `csr`. It is valid for `life`.
    ///
    /// # Errors
    /// [`NetError::Name`] for a name that cannot be a node's, [`NetError::Certificate`] for a bad request.
    pub fn certify_node(&self, name: &NodeName, csr: &[u8], life: Duration) -> Result<String, NetError> {
        if !is_node_name(name.as_str()) {
            return Err(NetError::Name(name.to_string()));
        }
        let key = read(csr)?.public_key;
        let mut params = params(&format!("{NODE_CN}{name}"), &[NODE_ORGANISATION], life)?;
        params.distinguished_name.push(DnType::OrganizationalUnitName, JOINED);
        params.subject_alt_names = vec![dns(&node_server_name(name))?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer).map_err(unusable("the new certificate"))?;
        Ok(certificate.pem())
    }
}

/// SHA-256 of the public key of a node that joined; `None` for other certificates. The certificate's signature must have
/// been checked before.
pub fn joined_key(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let unit = parsed.subject().iter_organizational_unit().next()?.as_str().ok()?;
    (unit == JOINED).then(|| pin(parsed.public_key().raw))
}

/// When a certificate (PEM; the first one) begins and ends, in seconds since the epoch.
///
/// # Errors
/// When it cannot be read.
pub fn validity(certificate_pem: &str) -> Result<(i64, i64), NetError> {
    use rustls::pki_types::pem::PemObject as _;
    let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
        .map_err(unusable("the node's certificate"))?;
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&der).map_err(unusable("the node's certificate"))?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::identity::{Role, peer_role};

    #[test]
    fn a_certificate_is_for_the_requests_key_and_the_name_agreed_on() {
        let (authority, key) = (Authority::ephemeral().unwrap(), NodeKey::generate().unwrap());
        let csr = key.request().unwrap();
        assert_eq!(requested_key(&csr).unwrap(), key.pin());
        let pem = authority.certify_node(&"n7".into(), &csr, Duration::from_secs(600)).unwrap();
        let identity = key.with(&pem).unwrap();
        assert_eq!(peer_role(&identity.chain()[0]), Some(Role::Node("n7".into())));
        assert_eq!(joined_key(&identity.chain()[0]), Some(key.pin()));
        let (begin, end) = validity(&pem).unwrap();
        assert_eq!(end - begin, 600 + 86_400);
        let inside = authority.issue_node(&"n1".into()).unwrap();
        assert_eq!(joined_key(&inside.chain()[0]), None);
    }

    #[test]
    fn a_certificate_that_is_made_anew_over_the_same_key_has_a_number_of_its_own() {
        let number = |der: &CertificateDer<'_>| {
            let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
            let bytes = parsed.raw_serial().to_vec();
            assert!(bytes.len() == 16 && bytes[0] & 0x80 == 0, "positive, 20 bytes at most: {bytes:?}");
            bytes
        };
        let dir = tempfile::tempdir().unwrap();
        let before = Authority::open(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let pin = |authority: &Authority| authority.certificate().public_key_pin().unwrap();
        assert_eq!(pin(&before), pin(&authority));
        assert_ne!(number(before.certificate().der()), number(authority.certificate().der()));
        let key = NodeKey::generate().unwrap();
        let of_node = || {
            let life = Duration::from_secs(600);
            let pem = authority.certify_node(&"n7".into(), &key.request().unwrap(), life).unwrap();
            number(&key.with(&pem).unwrap().chain()[0])
        };
        assert_ne!(of_node(), of_node());
    }

    #[test]
    fn a_request_that_was_tampered_with_is_refused() {
        let (authority, key) = (Authority::ephemeral().unwrap(), NodeKey::generate().unwrap());
        let csr = key.request().unwrap();
        for at in 0..csr.len() {
            let mut bad = csr.clone();
            bad[at] ^= 1;
            if let Ok(pin) = requested_key(&bad) {
                assert_eq!(pin, key.pin(), "another key at byte {at}");
            }
        }
        assert!(requested_key(&[]).is_err() && requested_key(&csr[..csr.len() - 1]).is_err());
        assert!(authority.certify_node(&"No Name".into(), &csr, Duration::from_secs(1)).is_err());
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let first = NodeKey::open(&path).unwrap();
        assert_eq!(NodeKey::open(&path).unwrap().pin(), first.pin());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
