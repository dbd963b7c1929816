//! Addresses that survive restarts.
//!
//! Owns: [`Slot`], where a supervisor publishes the address of an actor's present incarnation, and [`Port`], what
//! everybody else holds: it sends one type of message to whoever is published now. Between two incarnations a send
//! fails at once with [`SendFailed::Down`]; nothing queues for the dead.

use std::{sync::Arc, time::Duration};

use actix::{Actor, Addr, Handler, Message, Recipient, dev::ToEnvelope};
use arc_swap::ArcSwap;

/// Why a message did not get an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendFailed {
    /// Nobody is published: not started yet, or being restarted.
    #[error("the {0} is not running at the moment")]
    Down(&'static str),
    /// The receiver died before it answered.
    #[error("the {0} died before it answered")]
    Died(&'static str),
    /// No answer in time.
    #[error("the {0} did not answer in time")]
    Timeout(&'static str),
}

/// Where a supervisor publishes the present address of an actor.
pub struct Slot<A: Actor> {
    name: &'static str,
    current: Arc<ArcSwap<Published<A>>>,
}

struct Published<A: Actor> {
    /// On whose behalf: never goes back.
    incarnation: u64,
    address: Option<Addr<A>>,
}

impl<A: Actor> Clone for Slot<A> {
    fn clone(&self) -> Self {
        Slot { name: self.name, current: self.current.clone() }
    }
}

impl<A: Actor> Slot<A> {
    /// An empty slot; `name` is how errors call the actor.
    pub fn new(name: &'static str) -> Slot<A> {
        let nobody = Published { incarnation: 0, address: None };
        Slot { name, current: Arc::new(ArcSwap::from_pointee(nobody)) }
    }

    /// How errors call the actor.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Publishes an address, or withdraws it: for tests and embedders, whose actors nobody restarts.
    pub fn publish(&self, address: Option<Addr<A>>) {
        self.current.rcu(|now| Published { incarnation: now.incarnation, address: address.clone() });
    }

    /// Publishes or withdraws on behalf of an incarnation. Once a later one has spoken, it changes nothing: so what is
    /// late, stuck or abandoned cannot hide its successor.
    pub fn publish_as(&self, incarnation: u64, address: Option<Addr<A>>) {
        self.current.rcu(|now| {
            if now.incarnation > incarnation {
                return now.clone();
            }
            Arc::new(Published { incarnation, address: address.clone() })
        });
    }

    /// The present address.
    pub fn address(&self) -> Option<Addr<A>> {
        self.current.load().address.clone()
    }

    /// A port for one type of message to this actor.
    pub fn port<M>(&self) -> Port<M>
    where
        M: Message + Send + 'static,
        M::Result: Send,
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
    {
        let current = self.current.clone();
        Port {
            name: self.name,
            resolve: Arc::new(move || current.load().address.clone().map(Addr::recipient)),
        }
    }
}

type Resolve<M> = Arc<dyn Fn() -> Option<Recipient<M>> + Send + Sync>;

/// Sends one type of message to an actor, whichever incarnation lives.
pub struct Port<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    name: &'static str,
    resolve: Resolve<M>,
}

impl<M> Clone for Port<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    fn clone(&self) -> Self {
        Port { name: self.name, resolve: self.resolve.clone() }
    }
}

impl<M> Port<M>
where
    M: Message + Send + 'static,
    M::Result: Send,
{
    /// A port to a fixed recipient: for tests and embedders.
    pub fn fixed(name: &'static str, recipient: Recipient<M>) -> Port<M> {
        Port { name, resolve: Arc::new(move || Some(recipient.clone())) }
    }

    /// A port to nobody: for what has no such actor.
    pub fn nobody(name: &'static str) -> Port<M> {
        Port { name, resolve: Arc::new(|| None) }
    }

    /// Sends without waiting for an answer.
    ///
    /// # Errors
    /// [`SendFailed::Down`] when nobody is published.
    pub fn tell(&self, message: M) -> Result<(), SendFailed> {
        let recipient = (self.resolve)().ok_or(SendFailed::Down(self.name))?;
        if !recipient.connected() {
            return Err(SendFailed::Down(self.name));
        }
        recipient.do_send(message);
        Ok(())
    }

    /// Sends and waits for the answer.
    ///
    /// # Errors
    /// When nobody is published, the receiver dies, or `timeout` passes.
    pub async fn ask(&self, message: M, timeout: Duration) -> Result<M::Result, SendFailed> {
        let recipient = (self.resolve)().ok_or(SendFailed::Down(self.name))?;
        match tokio::time::timeout(timeout, recipient.send(message)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(SendFailed::Died(self.name)),
            Err(_) => Err(SendFailed::Timeout(self.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use actix::{Actor, Context, System};

    use super::*;

    struct Nobody;

    impl Actor for Nobody {
        type Context = Context<Self>;
    }

    #[test]
    fn a_late_word_of_an_earlier_incarnation_changes_nothing() {
        System::new().block_on(async {
            let (slot, first, second) = (Slot::new("nobody"), Nobody.start(), Nobody.start());
            slot.publish_as(1, Some(first.clone()));
            slot.publish_as(2, Some(second.clone()));
            slot.publish_as(1, None);
            assert_eq!(slot.address(), Some(second));
            slot.publish_as(2, None);
            slot.publish_as(1, Some(first));
            assert_eq!(slot.address(), None);
        });
    }
}
