//! Sees to it that a container's image is here before the container's turn to start comes.
//!
//! Owns: carrying out what [`crate::logic::pod::images`] decides, the credentials a pull is tried with, and the events
//! on it. Invariants: nobody who waits for a pull holds a turn to start ([`super::Starts`]); a pod that is to end does
//! not wait for its pull, which goes on for others.

use std::time::Instant;

use k8s_openapi::api::core::v1;
use tokio_util::sync::CancellationToken;

use super::{context::NodeContext, pod::PodNoticed, pull_secrets::PodSecrets};
use crate::{
    logic::{
        credentials::{Credentials, Keyring},
        mirrors::is_static,
        pod::{
            Notice, StartFailure,
            images::{
                Elsewhere, Presence, Verdict, decide, not_from_nodes, present, pulled, pulled_from, pulling,
                pulling_from, registry_next,
            },
        },
    },
    messages::{Port, wire::HeldAs},
    model::Uid,
    runtime::{Image, Origin, RegistryAuth, RuntimeError, images::normalize},
};

/// What a start under way tells of its pod, and how it hears that the pod is to end.
#[derive(Clone)]
pub struct Teller {
    /// The pod.
    pub uid: Uid,
    /// Where its events go.
    pub notice: Port<PodNoticed>,
    /// The pod is to end.
    pub ending: CancellationToken,
}

impl Teller {
    /// Tells an event.
    pub fn tell(&self, notice: Notice) {
        // Events are best effort: the kubelet may be between two incarnations.
        let _ = self.notice.tell(PodNoticed { uid: self.uid.clone(), notice });
    }
}

/// The container's image, pulled if its policy says so.
pub async fn ensure_image(
    node: &NodeContext,
    pod: &v1::Pod,
    container: &v1::Container,
    teller: &Teller,
) -> Result<Image, StartFailure> {
    let name = container.image.clone().unwrap_or_default();
    let fault = |error| failed(error, &name);
    let found = node.runtime.image(&name).await.map_err(fault)?;
    let asks = container.image_pull_policy.as_deref() == Some("Always");
    let presence = match &found {
        None => Presence::Absent,
        // How it came matters only to who would ask its registry.
        Some(image) if asks => match node.runtime.image_origin(&name, image).await.map_err(fault)? {
            Origin::Registry => Presence::Pulled,
            Origin::ByHand => Presence::ByHand,
            Origin::Copied => Presence::Copied,
        },
        Some(_) => Presence::Pulled,
    };
    let secrets = PodSecrets::of_pod(pod, &node.configs.now());
    // While nobody knows which there are, there may be some.
    let with_secrets = secrets.as_ref().map_or(true, PodSecrets::are_named);
    let verdict = decide(container.image_pull_policy.as_deref(), presence, with_secrets);
    let mut refused = None;
    if matches!(verdict, Verdict::Fetch | Verdict::Follow) {
        match from_nodes(node, &container.name, &name, found.as_ref(), asks, teller).await? {
            Asked::Got(image) => return Ok(image),
            // Without a newer one the copy that is here does.
            Asked::Not(elsewhere) if verdict == Verdict::Fetch => {
                let next = registry_next(&name, elsewhere, is_static(pod));
                refused = next.map_err(|message| StartFailure::Image { never: false, message })?;
            }
            Asked::Not(_) => {}
        }
    }
    match (verdict, found) {
        (Verdict::Use | Verdict::Follow, Some(image)) => {
            teller.tell(present(&container.name, &name));
            return Ok(image);
        }
        (Verdict::Never, _) => {
            return Err(StartFailure::Image {
                never: true,
                message: format!("Container image \"{name}\" is not present with pull policy of Never"),
            });
        }
        (Verdict::Pull | Verdict::Fetch, _) | (Verdict::Use | Verdict::Follow, None) => {}
    }
    let secrets = secrets.map_err(StartFailure::Config)?;
    teller.tell(pulling(&container.name, &name));
    let begun = Instant::now();
    if let Some(complaint) = secrets.complaint() {
        teller.tell(complaint);
    }
    let outcome = tokio::select! {
        outcome = pull(node, &name, secrets.keyrings) => outcome,
        () = teller.ending.cancelled() => return Err(ending()),
    };
    let outcome = outcome.map_err(|error| with_refusal(error, refused.as_deref()));
    match (outcome, presence) {
        (Ok(image), _) => {
            teller.tell(pulled(&container.name, &name, begun.elapsed(), image.size_bytes));
            Ok(image)
        }
        // Somebody may have brought it while a registry was asked in vain.
        (Err(error), Presence::Absent) => match node.runtime.image(&name).await {
            Ok(Some(image)) => {
                teller.tell(present(&container.name, &name));
                Ok(image)
            }
            _ => Err(failed(error, &name)),
        },
        (Err(error), _) => Err(failed(error, &name)),
    }
}

/// What became of asking other nodes.
enum Asked {
    /// It is here now, or was already what they have.
    Got(Image),
    /// It did not come from there.
    Not(Elsewhere),
}

/// Takes the image from another node, if one has it; `by_hand`: one that somebody brought it to.
async fn from_nodes(
    node: &NodeContext,
    container: &str,
    name: &str,
    found: Option<&Image>,
    by_hand: bool,
    teller: &Teller,
) -> Result<Asked, StartFailure> {
    let Some(full) = normalize(name).ok().filter(|_| node.runtime.takes_images()) else {
        return Ok(Asked::Not(Elsewhere::Nobody));
    };
    let asked = tokio::select! {
        asked = node.peers.holders(&full, by_hand) => asked,
        () = teller.ending.cancelled() => return Err(ending()),
    };
    let holders = match asked {
        Ok(Some(holders)) => holders,
        Ok(None) => return Ok(Asked::Not(Elsewhere::Nobody)),
        Err(why) => {
            tracing::warn!(image = name, why, "the master was not asked which nodes have an image");
            return Ok(Asked::Not(Elsewhere::Unknown(why)));
        }
    };
    if let Some(image) = found.filter(|image| image.id == holders.image.id) {
        teller.tell(present(container, name));
        return Ok(Asked::Got(image.clone()));
    }
    if holders.nodes.is_empty() {
        return Ok(Asked::Not(Elsewhere::Away(holders.away)));
    }
    let begun = Instant::now();
    let was_brought = holders.image.held != HeldAs::Pulled;
    let first = holders.nodes.first().map(ToString::to_string).unwrap_or_default();
    teller.tell(pulling_from(container, name, &first));
    let taken = tokio::select! {
        taken = node.peers.take(node, holders, by_hand) => taken,
        () = teller.ending.cancelled() => return Err(ending()),
    };
    Ok(match taken {
        Ok((image, from)) => {
            teller.tell(pulled_from(container, name, from.as_str(), begun.elapsed(), image.size_bytes));
            Asked::Got(image)
        }
        Err(why) => {
            tracing::warn!(image = name, why, "no other node gave an image that it has");
            teller.tell(not_from_nodes(container, name, &why));
            Asked::Not(Elsewhere::Kept { by_hand: was_brought, why })
        }
    })
}

fn ending() -> StartFailure {
    StartFailure::Image { never: false, message: "the pod is to end".into() }
}

/// A registry's error, and what other nodes did before.
fn with_refusal(error: RuntimeError, refused: Option<&str>) -> RuntimeError {
    match (error, refused) {
        (error @ RuntimeError::InvalidImageName(..), _) | (error, None) => error,
        (error, Some(why)) => RuntimeError::Pull(format!("{error}; other nodes have it, but: {why}")),
    }
}

/// Pulls an image with the first credentials that are good for it: those given, then the node's own; without any when
/// there are none for its registry.
pub async fn pull(node: &NodeContext, name: &str, given: Vec<Keyring>) -> Result<Image, RuntimeError> {
    let full = normalize(name)?;
    let own = node_keyring(node).await?;
    let mut candidates: Vec<&Credentials> = Vec::new();
    for found in given.iter().chain([&own]).flat_map(|keyring| keyring.find(&full)) {
        if !candidates.contains(&found) {
            candidates.push(found);
        }
    }
    let Some((first, others)) = candidates.split_first() else {
        return node.runtime.pull_image(name, None).await;
    };
    let auth =
        |c: &Credentials| Some(RegistryAuth { username: c.username.clone(), password: c.password.clone() });
    let mut outcome = node.runtime.pull_image(name, auth(first)).await;
    for next in others {
        // As Kubernetes: whatever it failed for, the next may do better.
        if outcome.is_ok() {
            break;
        }
        outcome = node.runtime.pull_image(name, auth(next)).await;
    }
    outcome
}

/// The node's own credentials, read anew each time: who mends the file need not restart anything.
async fn node_keyring(node: &NodeContext) -> Result<Keyring, RuntimeError> {
    let Some(path) = &node.registry_config else { return Ok(Keyring::default()) };
    let cannot = |cause: String| RuntimeError::System {
        operation: format!("read the registry configuration {}", path.display()),
        cause,
    };
    let json = tokio::fs::read(path).await.map_err(|e| cannot(e.to_string()))?;
    Keyring::of_config(&json).map_err(cannot)
}

fn failed(error: RuntimeError, image: &str) -> StartFailure {
    match error {
        RuntimeError::InvalidImageName(_, why) => {
            StartFailure::InvalidImageName(format!("Failed to apply default image tag \"{image}\": {why}"))
        }
        other => StartFailure::Image { never: false, message: other.to_string() },
    }
}
