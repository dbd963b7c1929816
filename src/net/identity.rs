//! Who is who: the cluster's certificate authority and what it issues.
//!
//! Owns: [`Authority`] (one key pair, `ca.crt` and `ca.key` in a directory of the caller's), [`Identity`] (a certificate
//! and its key) and [`peer_role`], which reads out of a certificate whose it is. All X.509 v3, ECDSA P-256.
//! Invariants: the key's file is 0600 from its first byte and appears whole or not at all; a node's certificate cannot
//! pass as the master's. Joining machines' certificates: `csr.rs`.

use std::{
    fmt, fs,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

use super::NetError;
use crate::model::NodeName;

/// The name every master's link certificate carries and every node asks for.
pub const MASTER: &str = "master.troupe.internal";

/// The name of the node `name` in its certificate: what to ask for when connecting to it.
pub fn node_server_name(name: &NodeName) -> String {
    format!("{name}{NODE_SUFFIX}")
}

const NODE_SUFFIX: &str = ".node.troupe.internal";
pub(super) const NODE_CN: &str = "system:node:";
pub(super) const NODE_ORGANISATION: &str = "system:nodes";
const MASTER_CN: &str = "system:troupe:master";
const MASTER_ORGANISATION: &str = "system:troupe:masters";

/// Certificates begin in the past: a peer whose clock is behind by less, be it in another time zone by mistake, is not
/// turned away.
pub(crate) const BACKDATE: Duration = Duration::from_secs(86_400);
/// The authority outlives the cluster's hardware.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Kubernetes' usual year for everything else.
const LEAF_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// Leaves room for the suffix in a DNS name of 253 characters.
const NODE_NAME_MAX: usize = 200;

/// The cluster's certificate authority.
pub struct Authority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    certificate: CaCertificate,
    leaf_life: Duration,
}

impl Authority {
    /// The authority in `directory` (which must exist): loaded from `ca.crt` and `ca.key`, or made and kept there. A
    /// missing certificate beside a key (a crash in the middle) is made anew from the key, under which everything
    /// issued before stays valid.
    ///
    /// # Errors
    /// When the files cannot be read or written, or do not belong together.
    pub fn open(directory: &Path) -> Result<Authority, NetError> {
        let (certificate_path, key_path) = (directory.join("ca.crt"), directory.join("ca.key"));
        let key = match (read(&key_path)?, read(&certificate_path)?) {
            (Some(key), Some(certificate)) => return Self::load(&key_path, &key, &certificate),
            (None, Some(_)) => {
                let problem =
                    "missing beside ca.crt; restore it, or remove ca.crt to begin a new cluster".into();
                return Err(NetError::Authority { path: key_path, problem });
            }
            (Some(key), None) => parse_key("ca.key", &key)?,
            (None, None) => {
                let key = generate()?;
                write_atomically(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
                key
            }
        };
        let authority = Self::from_key(key)?;
        write_atomically(&certificate_path, authority.certificate.pem().as_bytes(), 0o644)?;
        Ok(authority)
    }

    /// An authority that is kept nowhere: for tests and throw-away clusters.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn ephemeral() -> Result<Authority, NetError> {
        Self::from_key(generate()?)
    }

    fn from_key(key: KeyPair) -> Result<Authority, NetError> {
        let mut params = params("troupe-ca", &[], AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(unusable("the authority's certificate"))?;
        let certificate = CaCertificate { der: certificate.der().clone(), pem: certificate.pem() };
        Ok(Authority { issuer: Issuer::new(params, key), certificate, leaf_life: LEAF_LIFE })
    }

    fn load(key_path: &Path, key: &str, certificate: &str) -> Result<Authority, NetError> {
        let key = parse_key("ca.key", key)?;
        let certificate = CaCertificate::from_pem(certificate)?;
        if certificate.public_key_pin()? != pin(&key.subject_public_key_info()) {
            let problem = "does not belong to ca.crt; restore the pair from one backup".into();
            return Err(NetError::Authority { path: key_path.into(), problem });
        }
        let issuer = Issuer::from_ca_cert_der(&certificate.der, key).map_err(unusable("ca.crt"))?;
        Ok(Authority { issuer, certificate, leaf_life: LEAF_LIFE })
    }

    /// How long what it issues from now on is valid, but for nodes that join; a year unless this is called.
    #[must_use]
    pub fn with_life(self, leaf_life: Duration) -> Authority {
        Authority { leaf_life, ..self }
    }

    /// The authority's own certificate: what everybody trusts.
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// A node's identity, for both ends of links: `CN=system:node:NAME, O=system:nodes`.
    ///
    /// # Errors
    /// [`NetError::Name`] when the name is no lowercase DNS name or too long.
    pub fn issue_node(&self, name: &NodeName) -> Result<Identity, NetError> {
        if !is_node_name(name.as_str()) {
            return Err(NetError::Name(name.to_string()));
        }
        let mut params = params(&format!("{NODE_CN}{name}"), &[NODE_ORGANISATION], self.leaf_life)?;
        params.subject_alt_names = vec![dns(&node_server_name(name))?];
        self.issue(params, &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// A master's identity on links.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn issue_master(&self) -> Result<Identity, NetError> {
        let mut params = params(MASTER_CN, &[MASTER_ORGANISATION], self.leaf_life)?;
        params.subject_alt_names = vec![dns(MASTER)?];
        self.issue(params, &[ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// The HTTPS server's identity under these names and addresses.
    ///
    /// # Errors
    /// When a name is no DNS name.
    pub fn issue_api_server(&self, names: &[String], ips: &[IpAddr]) -> Result<Identity, NetError> {
        let mut params = params("kube-apiserver", &[], self.leaf_life)?;
        params.subject_alt_names = names.iter().map(|name| dns(name)).collect::<Result<_, _>>()?;
        params.subject_alt_names.extend(ips.iter().map(|ip| SanType::IpAddress(*ip)));
        self.issue(params, &[ExtendedKeyUsagePurpose::ServerAuth])
    }

    /// The administrator: `CN=kubernetes-admin, O=system:masters`.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn issue_admin(&self) -> Result<Identity, NetError> {
        self.issue_client("kubernetes-admin", &["system:masters".into()])
    }

    /// A client of the API: `common_name` is the user, `organisations` are the groups (at most two).
    ///
    /// # Errors
    /// When there are more groups, or no key can be made.
    pub fn issue_client(&self, common_name: &str, organisations: &[String]) -> Result<Identity, NetError> {
        let organisations: Vec<&str> = organisations.iter().map(String::as_str).collect();
        let params = params(common_name, &organisations, self.leaf_life)?;
        self.issue(params, &[ExtendedKeyUsagePurpose::ClientAuth])
    }

    fn issue(
        &self,
        mut params: CertificateParams,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<Identity, NetError> {
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let key = generate()?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(unusable("the new certificate"))?;
        let key_der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Identity {
            chain: vec![certificate.der().clone()],
            certificate_pem: certificate.pem(),
            key: key_der,
            key_pem: key.serialize_pem(),
        })
    }
}

/// The authority's certificate, which is public.
#[derive(Clone, PartialEq, Eq)]
pub struct CaCertificate {
    der: CertificateDer<'static>,
    pem: String,
}

impl CaCertificate {
    /// Reads a certificate in PEM.
    ///
    /// # Errors
    /// When the text holds no certificate.
    pub fn from_pem(pem: &str) -> Result<CaCertificate, NetError> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(unusable("the CA certificate"))?;
        let certificate = CaCertificate { der, pem: pem.into() };
        certificate.public_key_pin()?;
        Ok(certificate)
    }

    /// In DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// In PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the certificate's SubjectPublicKeyInfo (as in HPKP, RFC 7469): survives a re-issued certificate.
    ///
    /// # Errors
    /// When the certificate cannot be parsed.
    pub fn public_key_pin(&self) -> Result<[u8; 32], NetError> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&self.der).map_err(unusable("the CA certificate"))?;
        Ok(pin(parsed.public_key().raw))
    }
}

/// A certificate with its key.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    certificate_pem: String,
    key: PrivateKeyDer<'static>,
    key_pem: String,
}

impl Identity {
    /// Reads an identity that was kept as PEM.
    ///
    /// # Errors
    /// When certificate or key cannot be read.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Identity, NetError> {
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(unusable("the certificate"))?;
        if chain.is_empty() {
            return Err(unusable("the certificate")("no certificate in the file"));
        }
        let der = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(unusable("the key"))?;
        Ok(Identity { chain, certificate_pem: certificate.into(), key: der, key_pem: key.into() })
    }

    /// The certificate chain in DER, the identity's own certificate first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key in DER (PKCS #8).
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// The certificate chain in PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key in PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificates", &self.chain.len()).finish_non_exhaustive()
    }
}

/// Who a certificate that the authority signed belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A master.
    Master,
    /// The node of that name.
    Node(NodeName),
}

/// Reads the role out of a certificate's subject; `None` for those that have no business on links (API clients).
/// The certificate's signature must have been checked before.
pub fn peer_role(certificate: &CertificateDer<'_>) -> Option<Role> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let common_name = subject.iter_common_name().next()?.as_str().ok()?;
    let organisation = subject.iter_organization().next()?.as_str().ok()?;
    match (common_name, organisation) {
        (MASTER_CN, MASTER_ORGANISATION) => Some(Role::Master),
        (node, NODE_ORGANISATION) => {
            node.strip_prefix(NODE_CN).filter(|name| is_node_name(name)).map(|name| Role::Node(name.into()))
        }
        _ => None,
    }
}

/// RFC 1123 subdomain, as Kubernetes wants node names.
pub(super) fn is_node_name(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    name.len() <= NODE_NAME_MAX && name.split('.').all(label)
}

pub(super) fn params(
    common_name: &str,
    organisations: &[&str],
    life: Duration,
) -> Result<CertificateParams, NetError> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    // rcgen keeps one value a type; naming the same type by its OID makes room for a second one.
    let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
    if organisations.len() > types.len() {
        return Err(unusable("the new certificate")("more than two organisations"));
    }
    for (kind, organisation) in types.into_iter().zip(organisations) {
        subject.push(kind, *organisation);
    }
    params.distinguished_name = subject;
    params.serial_number = Some(serial());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + now + life;
    Ok(params)
}

/// No two certificates of one issuer have the same number, also those over one key (RFC 5280, 4.1.2.2): 126 random bits.
fn serial() -> SerialNumber {
    let mut bytes = rand::random::<[u8; 16]>();
    // Positive, and as long as it is.
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

pub(super) fn dns(name: &str) -> Result<SanType, NetError> {
    let text = name.to_owned().try_into().map_err(unusable("a DNS name"))?;
    Ok(SanType::DnsName(text))
}

pub(super) fn generate() -> Result<KeyPair, NetError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(unusable("a new key"))
}

pub(super) fn parse_key(what: &'static str, pem: &str) -> Result<KeyPair, NetError> {
    KeyPair::from_pem(pem).map_err(unusable(what))
}

pub(super) fn unusable<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> NetError {
    move |problem| NetError::Certificate { what, problem: problem.to_string() }
}

pub(super) fn pin(spki: &[u8]) -> [u8; 32] {
    Sha256::digest(spki).into()
}

pub(super) fn read(path: &Path) -> Result<Option<String>, NetError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NetError::File { operation: "read", path: path.into(), source }),
    }
}

/// Under a temporary name, synced, then renamed: the file is there whole or not at all, also after a crash.
pub(super) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), NetError> {
    let mut temporary = PathBuf::from(path);
    temporary.as_mut_os_string().push(".new");
    let write = || {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|source| NetError::File { operation: "write", path: path.into(), source })
}
