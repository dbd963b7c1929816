//! Whether this process may run containers here.
//!
//! Owns: the questions and, for each "no", a sentence that says what to do.

use std::{fs, path::Path};

use super::{caps, cgroup::Hierarchies, userns};

/// Asks everything at once; the sentences say what is missing and what to do about it.
pub fn check() -> Result<(), Vec<String>> {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        // `troupe` itself enters a user namespace first, where it is; other programs have to.
        missing.push(
            "neither root nor in a user namespace: run troupe as root (sudo), or choose --runtime sim or docker"
                .to_owned(),
        );
    } else {
        let available = caps::available().unwrap_or_default();
        for (name, purpose) in NEEDED {
            if !available.contains(*name) {
                missing.push(format!(
                    "no CAP_{name} ({purpose}): start troupe outside this container, or with --privileged"
                ));
            }
        }
    }
    let systems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    // The kernel loads the module by itself at the first mount, if it has it.
    let module = || {
        let release =
            nix::sys::utsname::uname().map(|name| name.release().to_os_string()).unwrap_or_default();
        let dir = Path::new("/lib/modules").join(release);
        fs::read_to_string(dir.join("modules.dep")).is_ok_and(|modules| modules.contains("/overlay.ko"))
    };
    if !systems.lines().any(|line| line.ends_with("\toverlay")) && !module() {
        missing.push("no overlay file system in the kernel: load it (modprobe overlay)".to_owned());
    }
    if Hierarchies::detect().missing() && !userns::inside() {
        missing.push("no cgroups under /sys/fs/cgroup: mount cgroup2 there".to_owned());
    }
    for (namespace, purpose) in [("net", "addresses"), ("pid", "isolation"), ("mnt", "root file systems")] {
        if !Path::new("/proc/self/ns").join(namespace).exists() {
            missing.push(format!("no {namespace} namespaces in the kernel ({purpose}): use another kernel"));
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(missing) }
}

const NEEDED: &[(&str, &str)] = &[
    ("SYS_ADMIN", "namespaces and mounts"),
    ("NET_ADMIN", "pods' addresses"),
    ("SYS_CHROOT", "root file systems"),
    ("SETPCAP", "taking capabilities away"),
    ("MKNOD", "device nodes"),
    ("KILL", "stopping containers"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_told_of_nothing_and_others_what_to_do() {
        match (nix::unistd::geteuid().is_root(), check()) {
            (false, Err(missing)) => assert!(missing[0].contains("sudo"), "{missing:?}"),
            (false, Ok(())) => panic!("containers without root"),
            (true, Ok(())) => {}
            (true, Err(missing)) => assert!(missing.iter().all(|text| text.contains(": ")), "{missing:?}"),
        }
    }
}
