//! Looks at the master's own certificates now and then.
//!
//! Owns: the pace. What is looked at, when it is due and what is then done is its [`Renewal`]'s.

use std::{sync::Arc, time::Duration};

use actix::{Actor, AsyncContext as _, Context};

use crate::{
    actors::supervisor::{ChildSpec, Life},
    messages::Slot,
};

/// Certificates that someone has to replace in time.
pub trait Renewal: Send + Sync {
    /// How often [`Renewal::look`] is to be called.
    fn look_every(&self) -> Duration;
    /// Replaces what is due; what fails is tried again with the next call.
    fn look(&self);
}

/// The actor under its supervisor.
pub fn child(renewal: Arc<dyn Renewal>) -> ChildSpec {
    let slot = Slot::new("certificates");
    ChildSpec::new("certificates", &slot, move |life| {
        Ok(Certificates { _life: life, renewal: renewal.clone() })
    })
}

/// See the file.
pub struct Certificates {
    _life: Life,
    renewal: Arc<dyn Renewal>,
}

impl Actor for Certificates {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // What ends soon is said at the start.
        self.renewal.look();
        ctx.run_interval(self.renewal.look_every(), |actor, _| actor.renewal.look());
    }
}
