//! A pod's `/etc/hosts` and `/etc/resolv.conf`, as Kubernetes writes them.

use std::{fs::Permissions, io, net::IpAddr, os::unix::fs::PermissionsExt as _, path::Path};

use super::{SandboxConfig, config::Dns};

/// Writes one of a pod's files, and the directory it is in. Whoever a container runs as can read it, whatever mask of modes
/// this process was started with.
pub(super) async fn write(file: &Path, text: String) -> io::Result<()> {
    tokio::fs::create_dir_all(file.parent().unwrap_or(file)).await?;
    tokio::fs::write(file, text).await?;
    tokio::fs::set_permissions(file, Permissions::from_mode(0o644)).await
}

/// A `resolv.conf`.
pub(super) fn resolv_conf(dns: &Dns) -> String {
    let mut text: String = dns.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    for (word, list) in [("search", &dns.searches), ("options", &dns.options)] {
        if !list.is_empty() {
            text.push_str(&format!("{word} {}\n", list.join(" ")));
        }
    }
    text
}

/// The file of a pod with a network of its own.
pub(super) fn of_pod(config: &SandboxConfig, address: Option<IpAddr>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    if let Some(address) = address {
        let name = config.hostname.split('.').next().unwrap_or_default();
        match config.domain.as_str() {
            "" => text.push_str(&format!("{address}\t{}\n", config.hostname)),
            domain => text.push_str(&format!("{address}\t{name}.{domain}\t{name}\n")),
        }
    }
    text + &aliases(config)
}

/// What `hostAliases` adds to a file.
pub(super) fn aliases(config: &SandboxConfig) -> String {
    let aliases = &config.host_aliases;
    let mut text = String::from(if aliases.is_empty() { "" } else { "\n# Entries added by HostAliases.\n" });
    for (address, names) in aliases {
        text.push_str(&format!("{address}\t{}\n", names.join("\t")));
    }
    text
}
