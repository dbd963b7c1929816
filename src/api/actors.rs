//! The actors of nodes' processes, asked for over their links, for `troupe cluster status`.
//!
//! Owns: [`ask`]. Invariants: all nodes are asked at once, and none is waited for longer than [`WITHIN`], so one that hangs
//! holds nobody up; an older one that does not know the question is told apart. What a node says is only shown: it is cut
//! to bounds, and has no control characters, since it ends in terminals.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::AsyncReadExt as _;

use super::log::UNKNOWN_QUESTION;
use crate::{
    messages::{ActorState, OpenError, OpenStream, Port, wire::Open},
    model::NodeName,
};

/// How long a node may take. Its process answers out of what it has in hand.
const WITHIN: Duration = Duration::from_secs(1);
/// The longest answer: that of a node with as many actors as it tells, each with an error.
const ANSWER_BYTES: u64 = 2 << 20;
/// Actors of one node that are shown.
const MOST: usize = 2000;
/// Characters of one of its words.
const CHARACTERS: usize = 300;

/// Why a node's actors are not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Untold {
    /// It is of a version that does not tell.
    Older,
    /// It did not answer, and why.
    Silent(String),
}

/// What each of these nodes says.
pub(super) async fn ask(
    streams: &Port<OpenStream>,
    nodes: Vec<NodeName>,
) -> Vec<(NodeName, Result<Vec<ActorState>, Untold>)> {
    let asked = nodes.into_iter().map(|node| async move {
        let told = tokio::time::timeout(WITHIN, ask_one(streams, &node)).await;
        let told = told.unwrap_or_else(|_| {
            Err(Untold::Silent(format!("node {node} did not tell its actors within {} s", WITHIN.as_secs())))
        });
        (node, told)
    });
    join_all(asked).await
}

async fn ask_one(streams: &Port<OpenStream>, node: &NodeName) -> Result<Vec<ActorState>, Untold> {
    let silent = |why: String| Untold::Silent(format!("node {node} did not tell its actors: {why}"));
    // The whole answer has less time than that.
    let opened = streams.ask(OpenStream { node: node.clone(), open: Open::Actors }, WITHIN * 2).await;
    let stream = match opened.map_err(|error| silent(error.to_string()))? {
        Ok(stream) => stream,
        Err(OpenError::Refused(UNKNOWN_QUESTION, _)) => return Err(Untold::Older),
        Err(error) => return Err(silent(plain(&error.to_string()))),
    };
    let mut json = Vec::new();
    let read = stream.read.take(ANSWER_BYTES).read_to_end(&mut json).await;
    read.map_err(|error| silent(error.to_string()))?;
    let told: Vec<ActorState> = serde_json::from_slice(&json)
        .map_err(|error| silent(format!("it says what is no list: {}", plain(&error.to_string()))))?;
    Ok(shown(told))
}

fn shown(mut told: Vec<ActorState>) -> Vec<ActorState> {
    told.truncate(MOST);
    for actor in &mut told {
        actor.name = plain(&actor.name);
        actor.state = plain(&actor.state).into();
        actor.last_error = actor.last_error.as_deref().map(plain);
    }
    told
}

fn plain(text: &str) -> String {
    text.chars().take(CHARACTERS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use actix::{Actor, Context, Handler, ResponseFuture, System};

    use super::*;
    use crate::messages::wire::ByteStream;

    /// Stands for the registry: what each node answers; one that is not here hangs.
    struct Nodes(HashMap<NodeName, Result<&'static str, OpenError>>);

    impl Actor for Nodes {
        type Context = Context<Self>;
    }

    impl Handler<OpenStream> for Nodes {
        type Result = ResponseFuture<Result<ByteStream, OpenError>>;

        fn handle(&mut self, asked: OpenStream, _: &mut Self::Context) -> Self::Result {
            assert_eq!(asked.open, Open::Actors);
            match self.0.get(&asked.node).cloned() {
                None => Box::pin(std::future::pending()),
                Some(answer) => Box::pin(std::future::ready(answer.map(|json| ByteStream {
                    read: Box::pin(std::io::Cursor::new(json)),
                    write: Box::pin(tokio::io::sink()),
                }))),
            }
        }
    }

    #[test]
    fn nodes_are_asked_at_once_and_who_says_nothing_holds_nobody_up() {
        System::new().block_on(async {
            let pod = r#"[{"name":"node/pods/u\u001b[2J","state":"running","restarts":2,"lastError":"a\nb","newer":1},
                {"name":"node/kubelet","state":"waiting","restarts":0}]"#;
            let old = OpenError::Refused(501, "the peer is older".into());
            let bad: &str = Box::leak(format!("[\"{}\"]", "x".repeat(100_000)).into_boxed_str());
            let answers = [("good", Ok(pod)), ("old", Err(old)), ("bad", Ok(bad))];
            let answers = answers.map(|(node, answer)| (node.into(), answer));
            let port = Port::fixed("node registry", Nodes(answers.into()).start().recipient());
            let names = ["good", "old", "bad", "hung", "hung too"];
            let begun = std::time::Instant::now();
            let told = ask(&port, names.map(NodeName::from).into()).await;
            assert!(begun.elapsed() < WITHIN * 2, "one after the other: {:?}", begun.elapsed());
            assert_eq!(told.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), names);
            let expected = [
                ActorState {
                    name: "node/pods/u [2J".into(),
                    state: "running".into(),
                    restarts: 2,
                    last_error: Some("a b".into()),
                },
                ActorState {
                    name: "node/kubelet".into(),
                    state: "waiting".into(),
                    restarts: 0,
                    last_error: None,
                },
            ];
            assert_eq!(told[0].1.as_deref(), Ok(&expected[..]));
            assert_eq!(told[1].1, Err(Untold::Older));
            assert!(matches!(&told[2].1, Err(Untold::Silent(why)) if why.contains("no list") && why.len() < 2 * CHARACTERS));
            let late = "node hung did not tell its actors within 1 s".to_owned();
            assert_eq!(told[3].1, Err(Untold::Silent(late)));
            assert!(told[4].1.is_err());
        });
    }
}
