//! A node's link to its master.
//!
//! Owns: the one connection, kept up by [`Dialer`], and the passage between it and the kubelet. Invariants: the kubelet
//! hears of each new connection and then tells the whole picture; what does not fit into a full outbox ends the
//! connection, since the next one begins with the whole picture again. Leaves out what any message means, but for the
//! node's certificate and the question after its actors, which are the process' own matter.

mod actors;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, ResponseFuture, StreamHandler,
    WrapFuture as _,
};
use futures_util::stream;

use crate::{
    actors::{
        kubelet::StreamAsked,
        outside,
        supervisor::{Life, SupervisorHandle},
    },
    messages::{
        AskMaster, FromMaster, LinkUp, OpenError, Port, TellMaster,
        wire::{self, Open},
    },
    net::{Class, CloseReason, Dialer, LinkEvent, LinkEvents, LinkHandle, NetError, identity::MASTER},
};

/// How long the master may take to open a byte stream: it may have to open one to another node first, for which it takes
/// ten seconds.
const OPEN_WITHIN: Duration = Duration::from_secs(15);

/// How often the master is told that a certificate is not kept: so many events of a node are taken only.
const TELL_UNKEPT_AGAIN: Duration = Duration::from_secs(600);

/// A node that joined from another machine, as its link needs to know it.
pub trait Member: Send + Sync {
    /// There is a link, and the master has welcomed the node.
    fn linked(&self);
    /// The link is gone, and another one is sought.
    fn apart(&self) {}
    /// The master does not want this node any more, and why.
    fn turned_away(&self, why: &str);
    /// At which address the machine is at present; `None`: nothing else is known than what it began with.
    fn address(&self) -> Option<IpAddr> {
        None
    }
    /// How often [`Member::renewal`] is to be asked.
    fn look_every(&self) -> Duration;
    /// A request for a new certificate, when it is time for one.
    fn renewal(&self) -> Option<Vec<u8>>;
    /// Takes a new certificate. Whether it is to be shown, on a new connection.
    fn renewed(&self, certificate: &str) -> bool;
    /// What is wrong with the keeping of it, for those who look at the master; asked as often as [`Member::renewal`].
    fn unkept(&self) -> Option<String> {
        None
    }
}

/// node's process → uplink: the node goes and comes back. Answered when the master has heard it, or there is no link.
#[derive(actix::Message)]
#[rtype(result = "()")]
pub struct Leave;

/// What an uplink is made of.
pub struct UplinkSeed {
    /// Makes the dialer; each incarnation has its own.
    pub dialer: Arc<dyn Fn() -> Dialer + Send + Sync>,
    /// The kubelet hears of connections…
    pub up: Port<LinkUp>,
    /// …of messages…
    pub messages: Port<FromMaster>,
    /// …and of byte streams.
    pub streams: Port<StreamAsked>,
    /// Who the node is, when it joined.
    pub member: Option<Arc<dyn Member>>,
    /// The node's name.
    pub node: String,
    /// The root of the node's supervision tree, to be shown.
    pub tree: SupervisorHandle,
}

/// The actor.
pub struct Uplink {
    life: Life,
    seed: Arc<UplinkSeed>,
    link: Option<LinkHandle<wire::ToMaster>>,
    /// It has said goodbye and dials no more.
    left: bool,
    /// When the master was told that the certificate is not kept.
    unkept: Option<Instant>,
}

impl Uplink {
    /// An uplink that is about to dial.
    pub fn new(life: Life, seed: Arc<UplinkSeed>) -> Uplink {
        Uplink { life, seed, link: None, left: false, unkept: None }
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

    /// Asks for a new certificate when it is time; again and again until it comes.
    fn renew(&mut self, member: &dyn Member) {
        let Some(link) = &self.link else { return };
        let Some(request) = member.renewal() else { return };
        if let Err(error) = link.send(Class::Control, &wire::ToMaster::Renew(request.into())) {
            tracing::warn!(%error, "no new certificate asked for");
        }
    }

    /// Has the master show for as long as it is so, and no longer, that the certificate is not kept.
    fn tell_unkept(&mut self, member: &dyn Member) {
        let Some(link) = &self.link else { return };
        let told_ago = self.unkept.map(|told| told.elapsed());
        let Some((warning, reason, message)) = of_unkept(member.unkept(), told_ago) else { return };
        let event = wire::EventReport {
            namespace: String::new(),
            name: self.seed.node.clone(),
            uid: self.seed.node.as_str().into(),
            field_path: None,
            warning,
            reason: reason.into(),
            message,
            at_ms: outside::now().as_millisecond(),
        };
        // What is not told now is with the next look.
        if link.send(Class::State, &wire::ToMaster::Events(vec![event])).is_ok() {
            self.unkept = warning.then(Instant::now);
        }
    }

    fn renewed(&mut self, certificate: &str) {
        if self.seed.member.as_ref().is_some_and(|member| member.renewed(certificate)) {
            self.hang_up("a new certificate is shown");
        }
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
    Ended(Box<Dialer>, CloseReason),
}

fn events_of(events: LinkEvents<wire::ToNode>, dialer: Dialer) -> impl futures_util::Stream<Item = Heard> {
    stream::unfold(Some((events, dialer)), |state| async move {
        let (mut events, dialer) = state?;
        match events.next().await {
            LinkEvent::Closed(reason) => {
                tracing::info!(%reason, "the link to the master has ended");
                Some((Heard::Ended(Box::new(dialer), reason), None))
            }
            event => Some((Heard::Event(event), Some((events, dialer)))),
        }
    })
}

impl Actor for Uplink {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let mut dialer = (self.seed.dialer)();
        if let Some(member) = self.seed.member.clone() {
            let every = member.look_every();
            let told = member.clone();
            dialer = dialer.on_turned_away(Arc::new(move |why| told.turned_away(why)));
            ctx.run_interval(every, move |uplink, _| {
                uplink.renew(member.as_ref());
                uplink.tell_unkept(member.as_ref());
            });
        }
        self.dial(dialer, ctx);
    }
}

impl StreamHandler<Heard> for Uplink {
    fn handle(&mut self, heard: Heard, ctx: &mut Self::Context) {
        self.life.beat();
        let told = match heard {
            Heard::Event(LinkEvent::Message(wire::ToNode::Certificate(certificate))) => {
                self.renewed(&certificate);
                Ok(())
            }
            Heard::Event(LinkEvent::Message(message)) => {
                // Who is not wanted gets no welcome.
                if let (wire::ToNode::Welcome(_), Some(member)) = (&message, &self.seed.member) {
                    member.linked();
                }
                self.seed.messages.tell(FromMaster(message))
            }
            Heard::Event(LinkEvent::Opened(Open::Actors, responder)) => {
                tokio::spawn(actors::tell(self.seed.tree.clone(), responder));
                Ok(())
            }
            Heard::Event(LinkEvent::Opened(open, responder)) => {
                self.seed.streams.tell(StreamAsked { open, responder })
            }
            // Its end is told by the item that follows.
            Heard::Event(LinkEvent::Closed(_)) => Ok(()),
            Heard::Ended(dialer, reason) => {
                self.link = None;
                match (&reason, &self.seed.member) {
                    (CloseReason::Unwelcome(why), Some(member)) => member.turned_away(why),
                    (_, Some(member)) => member.apart(),
                    (_, None) => {}
                }
                if !self.left {
                    self.dial(*dialer, ctx);
                }
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

impl Handler<Leave> for Uplink {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Leave, _: &mut Self::Context) -> Self::Result {
        self.left = true;
        let Some(link) = self.link.take() else { return Box::pin(std::future::ready(())) };
        Box::pin(async move {
            if link.send(Class::Control, &wire::ToMaster::Goodbye).is_ok() {
                // Sends what waits first.
                link.close("the node's process ends");
                link.closed().await;
            }
        })
    }
}

impl Handler<AskMaster> for Uplink {
    type Result = ResponseFuture<Result<wire::ByteStream, OpenError>>;

    fn handle(&mut self, AskMaster(open): AskMaster, _: &mut Self::Context) -> Self::Result {
        let link = self.link.clone();
        Box::pin(async move {
            let link = link.ok_or_else(|| OpenError::NotConnected(MASTER.into()))?;
            let master = link.peer().clone();
            link.open(open, OPEN_WITHIN).await.map_err(|error| match error {
                NetError::Refused(code, text) => OpenError::Refused(code, text),
                other => OpenError::Failed(master, other.to_string()),
            })
        })
    }
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

/// What is to be told of a certificate that is not kept, and whether that is a warning; `told_ago`: when it was told last.
fn of_unkept(why: Option<String>, told_ago: Option<Duration>) -> Option<(bool, &'static str, String)> {
    match (why, told_ago) {
        (Some(_), Some(ago)) if ago < TELL_UNKEPT_AGAIN => None,
        (Some(why), _) => {
            let text = "The node's new certificate is shown, but cannot be kept for the next start";
            Some((true, "CertificateNotKept", format!("{text}: {why}")))
        }
        (None, Some(_)) => {
            Some((false, "CertificateKept", "The node's new certificate is kept by now".to_owned()))
        }
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_certificate_is_not_kept_is_told_now_and_then_and_its_end_once() {
        let told = |why: Option<&str>, ago| {
            of_unkept(why.map(str::to_owned), ago).map(|(warning, reason, _)| (warning, reason))
        };
        let (soon, late) = (Some(Duration::from_secs(60)), Some(TELL_UNKEPT_AGAIN));
        assert_eq!(told(Some("full"), None), Some((true, "CertificateNotKept")));
        assert_eq!(told(Some("full"), soon), None, "each event of a node counts");
        assert_eq!(told(Some("full"), late), Some((true, "CertificateNotKept")));
        assert_eq!(told(None, soon), Some((false, "CertificateKept")));
        assert_eq!(told(None, None), None);
    }
}
