//! A node's link to its master.
//!
//! Owns: the one connection, kept up by [`Dialer`], and the passage between it and the kubelet. Invariants: the kubelet
//! hears of each new connection and then tells the whole picture; what does not fit into a full outbox ends the
//! connection, since the next one begins with the whole picture again. Leaves out what any message means.

use actix::{
    Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, StreamHandler, WrapFuture as _,
};
use futures_util::stream;

use crate::{
    actors::kubelet::StreamAsked,
    actors::supervisor::Life,
    messages::{FromMaster, LinkUp, Port, TellMaster, wire},
    net::{Class, Dialer, LinkEvent, LinkEvents, LinkHandle, NetError},
};

/// What an uplink is made of.
pub struct UplinkSeed {
    /// Makes the dialer; each incarnation has its own.
    pub dialer: std::sync::Arc<dyn Fn() -> Dialer + Send + Sync>,
    /// The kubelet hears of connections…
    pub up: Port<LinkUp>,
    /// …of messages…
    pub messages: Port<FromMaster>,
    /// …and of byte streams.
    pub streams: Port<StreamAsked>,
}

/// The actor.
pub struct Uplink {
    life: Life,
    seed: std::sync::Arc<UplinkSeed>,
    link: Option<LinkHandle<wire::ToMaster>>,
}

impl Uplink {
    /// An uplink that is about to dial.
    pub fn new(life: Life, seed: std::sync::Arc<UplinkSeed>) -> Uplink {
        Uplink { life, seed, link: None }
    }

    fn dial(&mut self, mut dialer: Dialer, ctx: &mut Context<Self>) {
        let dialing = async move {
            let link = dialer.next::<wire::ToMaster, wire::ToNode>().await;
            (dialer, link)
        };
        ctx.spawn(dialing.into_actor(self).map(|(dialer, link), uplink, ctx| {
            uplink.life.beat();
            tracing::info!(master = %link.peer(), "linked to the master");
            let (handle, events) = link.split();
            uplink.link = Some(handle);
            ctx.add_stream(events_of(events, dialer));
            if uplink.seed.up.tell(LinkUp).is_err() {
                // The kubelet is between two incarnations: its next one must begin with a new connection.
                uplink.hang_up("no kubelet");
            }
        }));
    }

    fn hang_up(&mut self, why: &str) {
        if let Some(link) = self.link.take() {
            link.close(why);
        }
    }
}

/// What happens on one connection; the last item hands the dialer back.
#[expect(clippy::large_enum_variant, reason = "one lives at a time, for as long as it is being handled")]
enum Heard {
    Event(LinkEvent<wire::ToNode>),
    Ended(Box<Dialer>),
}

fn events_of(events: LinkEvents<wire::ToNode>, dialer: Dialer) -> impl futures_util::Stream<Item = Heard> {
    stream::unfold(Some((events, dialer)), |state| async move {
        let (mut events, dialer) = state?;
        match events.next().await {
            LinkEvent::Closed(reason) => {
                tracing::info!(%reason, "the link to the master has ended");
                Some((Heard::Ended(Box::new(dialer)), None))
            }
            event => Some((Heard::Event(event), Some((events, dialer)))),
        }
    })
}

impl Actor for Uplink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let dialer = (self.seed.dialer)();
        self.dial(dialer, ctx);
    }
}

impl StreamHandler<Heard> for Uplink {
    fn handle(&mut self, heard: Heard, ctx: &mut Self::Context) {
        self.life.beat();
        let told = match heard {
            Heard::Event(LinkEvent::Message(message)) => self.seed.messages.tell(FromMaster(message)),
            Heard::Event(LinkEvent::Opened(open, responder)) => {
                self.seed.streams.tell(StreamAsked { open, responder })
            }
            Heard::Event(LinkEvent::Closed(_)) => Ok(()),
            Heard::Ended(dialer) => {
                self.link = None;
                self.dial(*dialer, ctx);
                Ok(())
            }
        };
        if told.is_err() {
            self.hang_up("no kubelet");
        }
    }

    /// One connection's events end with it; the actor goes on.
    fn finished(&mut self, _: &mut Self::Context) {}
}

impl Handler<TellMaster> for Uplink {
    type Result = ();

    fn handle(&mut self, told: TellMaster, _: &mut Self::Context) {
        let Some(link) = &self.link else { return };
        let class = match told.message {
            wire::ToMaster::Hello(_) | wire::ToMaster::Goodbye => Class::Control,
            _ => Class::State,
        };
        let sent = match told.key {
            Some(key) => link.send_keyed(class, key, &told.message),
            None => link.send(class, &told.message),
        };
        match sent {
            Ok(()) | Err(NetError::Closed(_)) => {}
            Err(NetError::Full) if matches!(told.message, wire::ToMaster::Events(_)) => {
                tracing::warn!("events dropped: the link is slower than they come");
            }
            Err(error) => {
                tracing::warn!(%error, "the link cannot take more; connecting anew");
                self.hang_up("outbox full");
            }
        }
    }
}
