//! Who a container runs as: numbers out of an image's `user` and its `/etc/passwd` and `/etc/group`.
//!
//! Owns: the rules, on texts; reading the files is the shim's. Security settings win over the image's user.

use super::userns;
use crate::runtime::Security;

/// A process' credentials and home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Beyond `gid`, sorted.
    pub groups: Vec<u32>,
    pub home: String,
}

/// Resolves against the image's user database. Errors are texts for a person.
pub(super) fn resolve(
    security: &Security,
    image_user: &str,
    passwd: &str,
    group: &str,
) -> Result<Identity, String> {
    let (user, image_group) = match image_user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (image_user, None),
    };
    let entry = match security.user {
        Some(uid) => find_user(passwd, |entry| entry.uid == uid).unwrap_or(User::unnamed(uid)),
        None if user.is_empty() => find_user(passwd, |entry| entry.uid == 0).unwrap_or(User::unnamed(0)),
        None => match (find_user(passwd, |entry| entry.name == user), user.parse()) {
            (Some(entry), _) => entry,
            (None, Ok(uid)) => find_user(passwd, |entry| entry.uid == uid).unwrap_or(User::unnamed(uid)),
            (None, Err(_)) => {
                return Err(format!("unable to find user {user}: no matching entries in passwd file"));
            }
        },
    };
    let gid = match (security.group, image_group) {
        (Some(gid), _) => gid,
        // The image's group goes with the image's user, not with another one.
        (None, Some(name)) if security.user.is_none() => find_group(group, name)
            .or(name.parse().ok())
            .ok_or_else(|| format!("unable to find group {name}: no matching entries in group file"))?,
        _ => entry.gid,
    };
    let mut groups = security.supplemental_groups.clone();
    if !entry.name.is_empty() && !security.strict_groups {
        groups.extend(groups_of(group, entry.name));
    }
    // As other runtimes have it: whoever drops the one further on still has what was given to it.
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let home = if entry.home.is_empty() { "/" } else { entry.home };
    Ok(Identity { uid: entry.uid, gid, groups, home: home.to_owned() })
}

/// Splits an identity for this process' user namespace: what a process is made with, and the user and group that it then
/// has to seem to be, where the namespace does not have them. Further groups are left out where none can be given.
pub(super) fn here(mut identity: Identity) -> (Identity, Option<(u32, u32)>) {
    if !userns::may_set_groups() {
        identity.groups.clear();
    }
    let seem = (identity.uid, identity.gid);
    if userns::has_user(identity.uid) && userns::has_group(identity.gid) {
        return (identity, None);
    }
    (identity.uid, identity.gid) = (0, 0);
    // Nobody can be given a group that the namespace does not have.
    identity.groups.retain(|group| userns::has_group(*group));
    (identity, Some(seem))
}

/// Kubernetes' `runAsNonRoot`: refuses what would run as root, or what cannot be told without looking into the image.
pub(in crate::runtime) fn check_non_root(security: &Security, image_user: &str) -> Result<(), String> {
    if !security.run_as_non_root {
        return Ok(());
    }
    let user = image_user.split(':').next().unwrap_or_default();
    match (security.user, user.parse::<u32>()) {
        (Some(0), _) => Err("container's runAsUser breaks non-root policy".into()),
        (Some(_), _) => Ok(()),
        (None, Ok(0)) => Err("container has runAsNonRoot and image will run as root".into()),
        (None, Ok(_)) => Ok(()),
        (None, Err(_)) if user.is_empty() => {
            Err("container has runAsNonRoot and image will run as root".into())
        }
        (None, Err(_)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root"
        )),
    }
}

/// A line of `passwd`.
#[derive(Clone, Copy)]
struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl User<'_> {
    /// A user that the image does not know: its group is root's, as in other runtimes.
    fn unnamed(uid: u32) -> Self {
        User { name: "", uid, gid: 0, home: "" }
    }
}

fn find_user<'a>(passwd: &'a str, wanted: impl Fn(&User<'a>) -> bool) -> Option<User<'a>> {
    passwd
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(User { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
        })
        .find(wanted)
}

/// Lines of `group` as name, number, members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn find_group(group: &str, wanted: &str) -> Option<u32> {
    groups(group).find(|(name, ..)| *name == wanted).map(|(_, gid, _)| gid)
}

fn groups_of<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    groups(group)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34:www:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,www\nwww:x:34:\naudio:x:29:www\n";

    fn check(image: &str, user: Option<u32>, group: Option<u32>, expected: (u32, u32, &[u32], &str)) {
        let security = Security { user, group, supplemental_groups: vec![7], ..Security::default() };
        let got = resolve(&security, image, PASSWD, GROUP).unwrap();
        let (uid, gid, groups, home) = expected;
        assert_eq!(
            got,
            Identity { uid, gid, groups: groups.into(), home: home.into() },
            "{image} {user:?} {group:?}"
        );
    }

    #[test]
    fn names_numbers_and_security_settings_resolve_to_credentials() {
        check("", None, None, (0, 0, &[0, 7, 10], "/root"));
        check("www", None, None, (33, 34, &[7, 10, 29, 34], "/var/www"));
        check("33", None, None, (33, 34, &[7, 10, 29, 34], "/var/www"));
        check("www:wheel", None, None, (33, 10, &[7, 10, 29], "/var/www"));
        check("1234", None, None, (1234, 0, &[0, 7], "/"));
        check("1234:99", None, None, (1234, 99, &[7, 99], "/"));
        check("www:wheel", Some(1000), None, (1000, 0, &[0, 7], "/"));
        check("www", Some(33), Some(5), (33, 5, &[5, 7, 10, 29], "/var/www"));
    }

    #[test]
    fn strict_groups_are_those_that_were_said() {
        let security = Security { supplemental_groups: vec![7], strict_groups: true, ..Security::default() };
        assert_eq!(resolve(&security, "www", PASSWD, GROUP).unwrap().groups, [7, 34]);
    }

    #[test]
    fn names_the_image_does_not_know_are_errors() {
        assert!(resolve(&Security::default(), "nobody", PASSWD, GROUP).unwrap_err().contains("nobody"));
        assert!(resolve(&Security::default(), "www:staff", PASSWD, GROUP).unwrap_err().contains("staff"));
    }

    #[test]
    fn non_root_is_refused_for_root_and_for_names() {
        let wants = |user| Security { run_as_non_root: true, user, ..Security::default() };
        let root = "container has runAsNonRoot and image will run as root";
        assert_eq!(check_non_root(&wants(None), "").unwrap_err(), root);
        assert_eq!(check_non_root(&wants(None), "0:5").unwrap_err(), root);
        assert!(check_non_root(&wants(None), "www").unwrap_err().contains("non-numeric user (www)"));
        assert!(check_non_root(&wants(Some(0)), "33").is_err());
        assert!(check_non_root(&wants(Some(5)), "").is_ok());
        assert!(check_non_root(&wants(None), "33").is_ok());
        assert!(check_non_root(&Security::default(), "").is_ok());
    }
}
