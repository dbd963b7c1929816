//! The administrator's kubeconfig: what kubectl needs to find and trust this cluster.

use std::{
    fs, io,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use super::StartError;
use crate::net::{CaCertificate, Identity};

/// The address at which a client on this machine reaches a server that listens there.
pub fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// A kubeconfig with everything inside: server, authority, certificate and key. JSON, which is YAML too.
pub fn text(cluster: &str, api: SocketAddr, ca: &CaCertificate, admin: &Identity) -> String {
    let base64 = |pem: &str| {
        serde_json::to_value(k8s_openapi::ByteString(pem.as_bytes().to_vec())).unwrap_or_default()
    };
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": cluster,
        "clusters": [{"name": cluster, "cluster": {
            "server": format!("https://{}", reachable(api)),
            "certificate-authority-data": base64(ca.pem()),
        }}],
        "users": [{"name": "kubernetes-admin", "user": {
            "client-certificate-data": base64(admin.certificate_pem()),
            "client-key-data": base64(admin.key_pem()),
        }}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": "kubernetes-admin"}}],
    });
    serde_yaml_ng::to_string(&config).unwrap_or_else(|_| config.to_string())
}

/// Writes a file that only its owner may read, replacing it as a whole.
///
/// # Errors
/// With the path and the system's answer.
pub fn write_private(path: &Path, text: &str) -> Result<(), StartError> {
    let fresh = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    write().map_err(|source| StartError::File { path: path.into(), source })
}

/// Whether a file cannot be written because there is no room for it. A start is not ended for that: somebody has to be there
/// who makes room, and evicts.
pub(super) fn no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether a kubeconfig that was written before leads to the same server of the same cluster.
pub(super) fn leads_there(path: &Path, text: &str) -> bool {
    let cluster = |text: &str| {
        let read: serde_json::Value = serde_yaml_ng::from_str(text).ok()?;
        read.get("clusters")?.get(0)?.get("cluster").cloned()
    };
    let before = fs::read_to_string(path).ok().and_then(|before| cluster(&before));
    before.is_some() && before == cluster(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Authority;

    #[test]
    fn a_full_disk_is_told_from_other_faults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.kubeconfig");
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join("admin.new")).unwrap();
        let Err(StartError::File { source, .. }) = write_private(&path, "x") else {
            panic!("it was written")
        };
        assert!(no_room(&source), "{source}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        let Err(StartError::File { source, .. }) = write_private(&dir.path().join("no/file"), "x") else {
            panic!("it was written")
        };
        assert!(!no_room(&source), "{source}");
    }

    #[test]
    fn a_kubeconfig_from_before_leads_to_the_same_server_or_not() {
        let (one, two) = (Authority::ephemeral().unwrap(), Authority::ephemeral().unwrap());
        let written = |authority: &Authority, api: &str| {
            let admin = authority.issue_admin().unwrap();
            text("troupe", api.parse().unwrap(), authority.certificate(), &admin)
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.kubeconfig");
        let now = written(&one, "127.0.0.1:6443");
        assert!(!leads_there(&path, &now), "there is none");
        fs::write(&path, written(&one, "127.0.0.1:6443")).unwrap();
        assert!(leads_there(&path, &now), "another certificate of the administrator's does as well");
        assert!(!leads_there(&path, &written(&one, "127.0.0.1:6444")));
        assert!(!leads_there(&path, &written(&two, "127.0.0.1:6443")));
        fs::write(&path, "").unwrap();
        assert!(!leads_there(&path, &now));
    }

    #[test]
    fn a_kubeconfig_names_an_address_one_can_connect_to() {
        let authority = Authority::ephemeral().unwrap();
        let admin = authority.issue_admin().unwrap();
        let text = text("troupe", "0.0.0.0:6443".parse().unwrap(), authority.certificate(), &admin);
        let read: serde_json::Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(read["clusters"][0]["cluster"]["server"], "https://127.0.0.1:6443");
        assert_eq!(read["contexts"][0]["context"]["user"], "kubernetes-admin");
    }

    #[test]
    fn a_kubeconfig_is_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.kubeconfig");
        write_private(&path, "x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
