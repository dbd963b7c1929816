//! What the nodes' actors say of themselves, for `troupe cluster status`.
//!
//! Owns: the passage of one question from the registry to every node's actor and back. Bounded in time: an actor that
//! does not answer is told of without its link.

use std::time::Duration;

use actix::{Addr, Handler, Message, MessageResult, ResponseFuture};
use futures_util::future::join_all;

use super::{NodeRegistry, handle::NodeHandle};
use crate::{
    actors::outside,
    messages::{LinkState, NodeState, ShowNodes},
    model::NodeName,
};

/// How long one may take: they share a thread, and answer out of what they have in hand.
const WITHIN: Duration = Duration::from_secs(1);

/// registry → node: how are you, and your link?
#[derive(Message)]
#[rtype(result = "NodeState")]
pub(super) struct ShowNode;

impl Handler<ShowNodes> for NodeRegistry {
    type Result = ResponseFuture<Vec<NodeState>>;

    fn handle(&mut self, _: ShowNodes, _: &mut Self::Context) -> Self::Result {
        let now_ms = outside::now().as_millisecond();
        let asked = self.addresses().map(|(name, address)| {
            let rivals = self.rivals.places(&name, now_ms);
            let first = self.rivals.first(&name);
            async move { NodeState { rivals, first, ..show(name, address).await } }
        });
        Box::pin(join_all(asked.collect::<Vec<_>>()))
    }
}

async fn show(node: NodeName, address: Option<Addr<NodeHandle>>) -> NodeState {
    let asked = async { address?.send(ShowNode).await.ok() };
    let answer = tokio::time::timeout(WITHIN, asked).await.ok().flatten();
    answer.unwrap_or(NodeState {
        node,
        link: None,
        silent: None,
        goodbye: false,
        rivals: Vec::new(),
        first: None,
    })
}

impl Handler<ShowNode> for NodeHandle {
    type Result = MessageResult<ShowNode>;

    fn handle(&mut self, _: ShowNode, _: &mut Self::Context) -> Self::Result {
        let since = self.since.map(|since| since.elapsed());
        let link = self.link.as_ref().map(|link| {
            let (stats, (queued_messages, queued_bytes)) = (link.stats(), link.queued());
            LinkState {
                age: since.unwrap_or_default(),
                peer: stats.peer,
                rtt: stats.rtt,
                lost_packets: stats.lost_packets,
                sent_packets: stats.sent_packets,
                streams: link.streams(),
                queued_messages,
                queued_bytes,
            }
        });
        let silent = since.filter(|_| link.is_none());
        MessageResult(NodeState {
            node: self.name.clone(),
            goodbye: self.goodbye && link.is_none(),
            link,
            silent,
            rivals: Vec::new(),
            first: None,
        })
    }
}
