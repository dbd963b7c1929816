//! What one connection of a node brings, as its actor takes it.
//!
//! Owns: [`Events`], which ends with its connection. It is written out, and no `async` block, because each node has one: that
//! would keep room for the largest event and for each step to it.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::Stream;

use crate::{
    messages::wire,
    net::{LinkEvent, LinkEvents},
};

/// One event of the connection of this number.
pub(super) struct Heard(pub(super) u64, pub(super) LinkEvent<wire::ToMaster>);

/// Those of one connection, until its end.
pub(super) struct Events {
    connection: u64,
    events: Option<LinkEvents<wire::ToMaster>>,
}

impl Events {
    pub(super) fn of(connection: u64, events: LinkEvents<wire::ToMaster>) -> Events {
        Events { connection, events: Some(events) }
    }
}

/// There is one for each node, all the time.
const _: () = assert!(size_of::<Events>() <= 320);

impl Stream for Events {
    type Item = Heard;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        let Some(events) = &mut self.events else { return Poll::Ready(None) };
        let event = ready!(events.poll_next(cx));
        if matches!(event, LinkEvent::Closed(_)) {
            self.events = None;
        }
        Poll::Ready(Some(Heard(self.connection, event)))
    }
}
