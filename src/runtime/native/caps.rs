//! Which Linux capabilities a container gets.
//!
//! Owns: the default set (Docker's), `add` and `drop` on top of it by Kubernetes' rules, and names. Invariant: never
//! more than the runtime itself has, since asking for those would fail the start.

use std::collections::BTreeSet;

use caps::{CapSet, Capability};

/// What a container gets when nothing is said.
const DEFAULT: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Capabilities by name, without `CAP_`.
pub(super) type Names = BTreeSet<String>;

/// What the calling process may give away.
pub(super) fn available() -> Result<Names, caps::errors::CapsError> {
    Ok(caps::read(None, CapSet::Permitted)?.into_iter().map(bare_name).collect())
}

/// The set of one container. `guard_devices`: a cgroup says which device nodes can be opened; without one, making
/// device nodes would open the node's disks, so `MKNOD` is not a default then.
pub(super) fn for_container(
    add: &[String],
    drop: &[String],
    privileged: bool,
    guard_devices: bool,
    available: &Names,
) -> Result<Names, String> {
    if privileged {
        return Ok(available.clone());
    }
    let mut set: Names = DEFAULT.iter().map(|name| (*name).to_owned()).collect();
    if !guard_devices {
        set.remove("MKNOD");
    }
    let (add, drop) = (normalise(add)?, normalise(drop)?);
    // `ALL` first, whichever side it is on, so that single names refine it.
    if add.contains(ALL) {
        set = available.clone();
    }
    if drop.contains(ALL) {
        set.clear();
    }
    set.extend(add.into_iter().filter(|name| name != ALL));
    set.retain(|name| !drop.contains(name) && available.contains(name));
    Ok(set)
}

const ALL: &str = "ALL";

fn normalise(names: &[String]) -> Result<Names, String> {
    names
        .iter()
        .map(|name| {
            let upper = name.to_ascii_uppercase();
            let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
            if bare == ALL || parse(bare).is_some() {
                Ok(bare.to_owned())
            } else {
                Err(format!("unknown capability {name:?}"))
            }
        })
        .collect()
}

/// The capability of that name.
pub(super) fn parse(bare: &str) -> Option<Capability> {
    format!("CAP_{bare}").parse().ok()
}

fn bare_name(capability: Capability) -> String {
    let name = capability.to_string();
    name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Names {
        caps::all().into_iter().map(bare_name).collect()
    }

    fn check(add: &[&str], drop: &[&str], expected: &[&str]) {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let set = for_container(&own(add), &own(drop), false, true, &all()).unwrap();
        assert_eq!(set, expected.iter().map(|n| (*n).to_owned()).collect::<Names>(), "+{add:?} -{drop:?}");
    }

    #[test]
    fn add_and_drop_refine_the_default_set() {
        check(&[], &[], DEFAULT);
        check(&[], &["ALL"], &[]);
        check(&["NET_ADMIN"], &["all"], &["NET_ADMIN"]);
        check(&["cap_net_admin"], &["ALL", "NET_ADMIN"], &[]);
        check(
            &[],
            &["CHOWN", "CAP_MKNOD", "SETPCAP", "SETFCAP"],
            &[
                "AUDIT_WRITE",
                "DAC_OVERRIDE",
                "FOWNER",
                "FSETID",
                "KILL",
                "NET_BIND_SERVICE",
                "NET_RAW",
                "SETGID",
                "SETUID",
                "SYS_CHROOT",
            ],
        );
    }

    #[test]
    fn unknown_names_are_refused_and_missing_ones_left_out() {
        assert!(for_container(&["FLY".into()], &[], false, true, &all()).is_err());
        let mut few = all();
        few.remove("CHOWN");
        assert!(!for_container(&[], &[], false, true, &few).unwrap().contains("CHOWN"));
        assert_eq!(for_container(&[], &[], true, true, &few).unwrap(), few);
    }

    #[test]
    fn device_nodes_cannot_be_made_where_no_cgroup_guards_them() {
        assert!(!for_container(&[], &[], false, false, &all()).unwrap().contains("MKNOD"));
    }
}
