//! A container's image: whether it has to be pulled, and what is told about that, in Kubernetes' words.

use std::time::Duration;

use super::state::{Container, ContainerPhase, Notice, WaitingReason};
use crate::model::NodeName;

/// What a node has under an image's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Absent,
    /// An image that somebody loaded: nobody is asked for a newer one, so that a node without a registry works.
    ByHand,
    /// A copy of one that somebody loaded on another node. It answers as that does, until that is another.
    Copied,
    /// An image that came from its registry.
    Pulled,
}

/// What is to be done about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is here.
    Use,
    /// It is here, unless a newer one was brought to another node.
    Follow,
    /// It is not here: another node that has it gives it, else its registry.
    Fetch,
    /// Its registry is to be asked, and nobody else: what came from there no other node replaces.
    Pull,
    /// It is not here and may not be got.
    Never,
}

/// What `imagePullPolicy` makes of what is here. `secrets`: the pod has `imagePullSecrets`, so it means its registry's.
pub fn decide(policy: Option<&str>, presence: Presence, secrets: bool) -> Verdict {
    match (policy, presence) {
        (_, Presence::ByHand) => Verdict::Use,
        (Some("Always"), Presence::Copied) if !secrets => Verdict::Follow,
        (_, Presence::Copied) => Verdict::Use,
        (Some("Never"), Presence::Absent) => Verdict::Never,
        (Some("Always"), Presence::Pulled) => Verdict::Pull,
        (_, Presence::Pulled) => Verdict::Use,
        (_, Presence::Absent) => Verdict::Fetch,
    }
}

/// What became of asking other nodes for an image that is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// None has it.
    Nobody,
    /// It is not known whether one has it.
    Unknown(String),
    /// Somebody brought it to these nodes, none of which is there.
    Away(Vec<NodeName>),
    /// Some have it, and none gave it.
    Kept {
        /// Somebody brought it there; else it came from its registry.
        by_hand: bool,
        /// What each of them did.
        why: String,
    },
}

/// Whether an image's registry is asked then, with what the nodes said; an error says why it is not. Under the name of what
/// was brought by hand a registry may have a stranger's image, and while nobody can say who has it, it may be such a one.
/// A `static_pod` waits for no master.
pub fn registry_next(image: &str, elsewhere: Elsewhere, static_pod: bool) -> Result<Option<String>, String> {
    match elsewhere {
        Elsewhere::Nobody => Ok(None),
        Elsewhere::Unknown(_) if static_pod => Ok(None),
        Elsewhere::Unknown(why) => Err(format!(
            "cannot ask the master which nodes have image \"{image}\", so its registry is not asked: {why}"
        )),
        Elsewhere::Away(nodes) => Err(format!(
            "image \"{image}\" was brought to nodes by hand, so its registry is not asked; who has it is not connected: {}. It is \
             tried again until such a node is back; load the image on another (troupe image load), or, if they do not come \
             back, kubectl delete node {}",
            named(&nodes, ", "),
            named(&nodes, " "),
        )),
        Elsewhere::Kept { by_hand: false, why } => Ok(Some(why)),
        Elsewhere::Kept { by_hand: true, why } => Err(format!(
            "image \"{image}\" was brought to nodes by hand, so its registry is not asked; other nodes have it, but: {why}"
        )),
    }
}

/// Names in a complaint.
const MOST_NAMED: usize = 5;

fn named(nodes: &[NodeName], between: &str) -> String {
    let names: Vec<&str> = nodes.iter().take(MOST_NAMED).map(NodeName::as_str).collect();
    let rest = nodes.len().saturating_sub(MOST_NAMED);
    let names = names.join(between);
    if rest > 0 { format!("{names}{between}… ({rest} more)") } else { names }
}

/// It was here.
pub fn present(container: &str, image: &str) -> Notice {
    normal(container, "Pulled", format!("Container image \"{image}\" already present on machine"))
}

/// A pull begins.
pub fn pulling(container: &str, image: &str) -> Notice {
    normal(container, "Pulling", format!("Pulling image \"{image}\""))
}

/// A pull from another node begins.
pub fn pulling_from(container: &str, image: &str, node: &str) -> Notice {
    normal(container, "Pulling", format!("Pulling image \"{image}\" from node \"{node}\""))
}

/// A pull from another node has ended well.
pub fn pulled_from(container: &str, image: &str, node: &str, took: Duration, size_bytes: u64) -> Notice {
    let took = go_duration(took);
    let message = format!(
        "Successfully pulled image \"{image}\" from node \"{node}\" in {took} ({took} including waiting). Image size: \
         {size_bytes} bytes."
    );
    normal(container, "Pulled", message)
}

/// No other node gave the image, each for a reason of its own.
pub fn not_from_nodes(container: &str, image: &str, why: &str) -> Notice {
    let message = format!("Failed to pull image \"{image}\" from other nodes: {why}");
    Notice { warning: true, ..normal(container, "Failed", message) }
}

/// A pull has ended well.
pub fn pulled(container: &str, image: &str, took: Duration, size_bytes: u64) -> Notice {
    let took = go_duration(took);
    let message = format!(
        "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {size_bytes} bytes."
    );
    normal(container, "Pulled", message)
}

fn normal(container: &str, reason: &'static str, message: String) -> Notice {
    Notice { container: Some(container.to_owned()), warning: false, reason, message }
}

/// A duration in milliseconds as Go prints it: `313ms`, `1.5s`, `2m0.25s`.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".into();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let fraction = format!("{:03}", rest % 1000);
    let seconds = format!("{}.{}", rest / 1000, fraction.trim_end_matches('0'));
    let seconds = seconds.trim_end_matches('.');
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

pub(super) const ERR_IMAGE_PULL: &str = "ErrImagePull";
pub(super) const BACK_OFF: &str = "ImagePullBackOff";

/// A failed pull shows as such for half of its backoff, but no longer than this; then the backoff shows.
const SHOWN_MS: i64 = 5_000;

/// Until when a pull that is tried again after `delay_ms` shows as failed.
pub(super) fn shown_ms(delay_ms: i64) -> i64 {
    (delay_ms / 2).min(SHOWN_MS)
}

impl Container {
    /// When a failed pull was shown for long enough, the container waits in backoff.
    pub(super) fn show_back_off(&mut self, image: &str, now_ms: i64, notices: &mut Vec<Notice>) {
        let ContainerPhase::Waiting { not_before_ms, why } = &mut self.phase else { return };
        if why.reason != ERR_IMAGE_PULL || *not_before_ms > now_ms || self.pull_again_ms <= now_ms {
            return;
        }
        let told = format!("Back-off pulling image \"{image}\"");
        let cause =
            why.message.take().map(|cause| format!(": {ERR_IMAGE_PULL}: {cause}")).unwrap_or_default();
        *why = WaitingReason { reason: BACK_OFF, message: Some(format!("{told}{cause}")) };
        *not_before_ms = self.pull_again_ms;
        notices.push(normal(&self.name, "BackOff", told));
        let failed = Notice { warning: true, ..normal(&self.name, "Failed", format!("Error: {BACK_OFF}")) };
        notices.push(failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_decides_and_what_was_brought_by_hand_answers_every_policy() {
        use Presence::{Absent, ByHand, Copied, Pulled};
        for (policy, presence, verdict) in [
            (Some("Always"), Absent, Verdict::Fetch),
            (Some("Always"), Pulled, Verdict::Pull),
            (Some("Always"), ByHand, Verdict::Use),
            (Some("Always"), Copied, Verdict::Follow),
            (Some("IfNotPresent"), Copied, Verdict::Use),
            (Some("Never"), Copied, Verdict::Use),
            (Some("IfNotPresent"), Absent, Verdict::Fetch),
            (Some("IfNotPresent"), Pulled, Verdict::Use),
            (Some("IfNotPresent"), ByHand, Verdict::Use),
            (Some("Never"), Absent, Verdict::Never),
            (Some("Never"), Pulled, Verdict::Use),
            (Some("Never"), ByHand, Verdict::Use),
            (None, Absent, Verdict::Fetch),
            (None, Pulled, Verdict::Use),
        ] {
            assert_eq!(decide(policy, presence, false), verdict, "{policy:?} {presence:?}");
        }
        // Who brings secrets means the registry's: no other node's claim replaces what is here.
        assert_eq!(decide(Some("Always"), Copied, true), Verdict::Use);
        assert_eq!(decide(Some("Always"), Pulled, true), Verdict::Pull);
    }

    #[test]
    fn a_registry_is_asked_only_when_it_is_known_that_nobody_brought_the_image() {
        let kept = |by_hand| Elsewhere::Kept { by_hand, why: "node a: busy".into() };
        let unknown = || Elsewhere::Unknown("no link".into());
        assert_eq!(registry_next("i", Elsewhere::Nobody, false), Ok(None));
        assert_eq!(registry_next("i", kept(false), false), Ok(Some("node a: busy".into())));
        assert!(
            registry_next("i", kept(true), true)
                .unwrap_err()
                .ends_with("other nodes have it, but: node a: busy")
        );
        assert!(registry_next("i", unknown(), false).unwrap_err().contains("no link"));
        assert_eq!(registry_next("i", unknown(), true), Ok(None));
        let away = registry_next("i", Elsewhere::Away(vec!["a".into(), "b".into()]), true).unwrap_err();
        assert!(away.contains("its registry is not asked; who has it is not connected: a, b."), "{away}");
        assert!(away.ends_with("kubectl delete node a b"), "{away}");
    }

    #[test]
    fn times_are_told_as_go_tells_them() {
        for (ms, text) in [
            (0, "0s"),
            (313, "313ms"),
            (1000, "1s"),
            (1594, "1.594s"),
            (1500, "1.5s"),
            (60_000, "1m0s"),
            (61_020, "1m1.02s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
        let told = pulled("c", "busybox", Duration::from_millis(1661), 4_269_694).message;
        let kubernetes = "Successfully pulled image \"busybox\" in 1.661s (1.661s including waiting). Image size: \
            4269694 bytes.";
        assert_eq!(told, kubernetes);
    }
}
