//! The actors of this node's process, when the master asks.
//!
//! Owns: the answer. It is the uplink's and not the kubelet's, so it comes while the kubelet is stuck or down, too.
//! Bounded: [`MOST`] actors, each error cut short; a tree that does not answer is refused before the master gives up.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::{actors::supervisor::SupervisorHandle, messages::ActorState, net::Responder};

/// The supervisors answer out of what they have in hand; the master waits a little longer.
const WITHIN: Duration = Duration::from_millis(800);
/// A node has one for each pod and a few beside: far more than may run on it. What failed goes first.
const MOST: usize = 2000;
/// Of an error as many characters: enough for a sentence.
const ERROR_CHARACTERS: usize = 300;

/// Answers with every actor of the tree.
pub(super) async fn tell(tree: SupervisorHandle, responder: Responder) {
    let Ok(all) = tokio::time::timeout(WITHIN, tree.tree()).await else {
        // Who has gone meanwhile needs no answer.
        let _ = responder.refuse(504, "the node's supervisors did not answer in time").await;
        return;
    };
    let json =
        serde_json::to_vec(&bounded(all.into_iter().map(ActorState::from).collect())).unwrap_or_default();
    let Ok(mut stream) = responder.accept().await else { return };
    let sent = async {
        stream.write.write_all(&json).await?;
        stream.write.shutdown().await
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "the node's actors did not reach the master");
    }
}

fn bounded(mut all: Vec<ActorState>) -> Vec<ActorState> {
    if all.len() > MOST {
        all.sort_by_key(|actor| actor.restarts == 0 && actor.state == "running");
        all.truncate(MOST);
    }
    for actor in &mut all {
        if let Some(error) = &mut actor.last_error {
            *error = error.chars().take(ERROR_CHARACTERS).collect();
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_those_that_failed_are_told() {
        let actor = |n: usize, restarts| ActorState {
            name: format!("pods/{n}"),
            state: "running".into(),
            restarts,
            last_error: (restarts > 0).then(|| "é".repeat(ERROR_CHARACTERS * 2)),
        };
        let mut all: Vec<ActorState> = (0..MOST).map(|n| actor(n, 0)).collect();
        assert_eq!(bounded(all.clone()), all);
        all.push(actor(MOST, 1));
        let told = bounded(all);
        assert_eq!((told.len(), told[0].restarts), (MOST, 1));
        assert_eq!(told[0].last_error.as_ref().unwrap().chars().count(), ERROR_CHARACTERS);
    }
}
