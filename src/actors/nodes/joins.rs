//! Machines that join, as the registry admits them.
//!
//! Owns: the way from a join request to its answer: the limit on wrong guesses, the decision of `logic::join`, the node's
//! subnet and object, which are on disk before the answer, and its certificate; later certificates over a node's own link.
//! Invariants: two machines that ask for one name at once do not both get it (the second creation of the object fails);
//! a certificate is renewed for the key and the name of the link on which it is asked for.

use std::{sync::Arc, time::Duration};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, StreamHandler, WrapFuture as _};
use bytes::Bytes;
use futures_util::stream;
use k8s_openapi::api::core::v1;
use tokio::sync::{Mutex, mpsc};

use super::{NodeRegistry, handle::NodeHandle};
use crate::{
    actors::{commit::commit, outside},
    logic::{
        edit::{self, Edit},
        join::{self, Asked, Refusal, key_annotation, token_name},
        nodes::{new_node, unheard_status},
    },
    messages::{
        Durability,
        wire::{self, Admitted, JoinAnswer, JoinRefusal, JoinRequest},
    },
    model::{Key, Kind, NodeName, Object, seal, token::is_id},
    net::{Authority, Class, JoinAsk, NetError, csr::requested_key},
};

/// How often expired tokens are looked for.
pub(super) const TOKENS_PERIOD: Duration = Duration::from_secs(30);

/// What admits machines.
pub struct Admission {
    authority: Arc<Authority>,
    /// It outlives the registry, so that no request is lost with an incarnation.
    asks: Arc<Mutex<mpsc::Receiver<JoinAsk>>>,
    /// How long a node's certificate is valid.
    life: Duration,
}

impl Admission {
    /// Admits those that ask on `asks`, for `life` each time.
    pub fn new(authority: Arc<Authority>, asks: mpsc::Receiver<JoinAsk>, life: Duration) -> Admission {
        Admission { authority, asks: Arc::new(Mutex::new(asks)), life }
    }

    pub(super) fn asks(&self) -> impl futures_util::Stream<Item = Asks> + use<> {
        stream::unfold(self.asks.clone(), |asks| async move {
            let ask = asks.lock().await.recv().await?;
            Some((Asks(ask), asks))
        })
    }
}

/// A machine asks.
pub(super) struct Asks(JoinAsk);

/// A request that was agreed to.
struct Agreed {
    name: NodeName,
    edits: Vec<Edit>,
    admitted: Admitted,
}

impl NodeRegistry {
    fn agree(&mut self, request: &JoinRequest) -> Result<Agreed, (JoinRefusal, String)> {
        let invalid = |error: NetError| (JoinRefusal::Invalid, error.to_string());
        let Some(admission) = self.seed.admission.clone() else {
            return Err((JoinRefusal::Busy, "this master admits no machines".into()));
        };
        if self.revision.is_none() {
            return Err((JoinRefusal::Busy, "the master is starting; try again".into()));
        }
        let key = requested_key(&request.csr).map_err(invalid)?;
        let name = NodeName::from(request.name.as_str());
        let snapshot = self.seed.wiring.view.snapshot();
        let token = is_id(&request.token_id)
            .then(|| snapshot.find(&Key::new(Kind::Secret, join::NAMESPACE, token_name(&request.token_id))))
            .flatten()
            .and_then(|object| object.parse().ok());
        let node = snapshot.find(&Key::new(Kind::Node, "", name.0.clone()));
        let asked = Asked { token_id: &request.token_id, secret: &request.secret, name: name.as_str(), key };
        let linked = self.links.contains_key(&name);
        join::decide(asked, token.as_ref(), node, linked, outside::now())
            .map_err(|(refusal, text)| (on_wire(refusal), text))?;
        // Says what is wrong with the name, too, before anything is kept under it.
        let certificate =
            admission.authority.certify_node(&name, &request.csr, admission.life).map_err(invalid)?;
        let subnet = self.subnet_for(&name).map_err(|problem| (JoinRefusal::Busy, problem))?;
        let edits = match node {
            Some(_) => Vec::new(),
            None => {
                let now_ms = outside::now().as_millisecond();
                let status = unheard_status(now_ms);
                let uid = outside::uid();
                let mut object =
                    new_node(name.as_str(), &Default::default(), &subnet, status, now_ms, uid.as_str());
                object.metadata.annotations = Some(key_annotation(key));
                let sealed = seal(&object).map_err(|error| (JoinRefusal::Invalid, error.to_string()))?;
                vec![Edit::Create(sealed)]
            }
        };
        let ca = admission.authority.certificate().pem().to_owned();
        let admitted = Admitted { certificate, ca, cluster: self.seed.cluster.clone() };
        Ok(Agreed { name, edits, admitted })
    }
}

impl NodeRegistry {
    /// A join of this name is over. If nothing came of it, and no other is under way, its subnet is free again.
    fn joined(&mut self, name: &NodeName) {
        let left = self.joining.get_mut(name).map_or(0, |count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left > 0 {
            return;
        }
        self.joining.remove(name);
        let exists =
            self.seed.wiring.view.snapshot().find(&Key::new(Kind::Node, "", name.0.clone())).is_some();
        let comes = self.nodes.get(name).is_some_and(|known| known.waiting.is_some());
        if !exists && !comes && !self.links.contains_key(name) {
            self.subnets.remove(name);
        }
    }

    /// Removes tokens whose time has been over for so long that nobody needs to be told so any more.
    pub(super) fn remove_expired_tokens(&mut self, ctx: &mut Context<Self>) {
        self.life.beat();
        let snapshot = self.seed.wiring.view.snapshot();
        let over = |object: &&Arc<Object>| {
            let secret = object.parse::<v1::Secret>().ok();
            secret.is_some_and(|secret| join::is_over_for_good(&secret, outside::now()))
        };
        let candidates = snapshot
            .list(Kind::Secret, Some(join::NAMESPACE))
            .filter(|object| object.key.name.starts_with(join::NAME_PREFIX));
        let edits: Vec<Edit> = candidates
            .filter(over)
            .filter_map(|object| edit::delete(object, outside::now()).ok().flatten())
            .collect();
        if edits.is_empty() {
            return;
        }
        let wiring = self.seed.wiring.clone();
        let work = async move { commit(&wiring, edits, Durability::Hard).await };
        ctx.spawn(work.into_actor(self).map(|outcome, _, _| match outcome {
            Ok(outcome) => tracing::info!(tokens = outcome.made.len(), "expired tokens were removed"),
            // They are looked at again.
            Err(error) => tracing::warn!(%error, "expired tokens were not removed"),
        }));
    }
}

fn on_wire(refusal: Refusal) -> JoinRefusal {
    match refusal {
        Refusal::TokenUnknown => JoinRefusal::TokenUnknown,
        Refusal::TokenExpired => JoinRefusal::TokenExpired,
        Refusal::NameTaken => JoinRefusal::NameTaken,
        Refusal::NodeAlive => JoinRefusal::NodeAlive,
    }
}

impl StreamHandler<Asks> for NodeRegistry {
    fn handle(&mut self, Asks(ask): Asks, ctx: &mut Context<Self>) {
        self.life.beat();
        let (from, now_ms) = (ask.address.ip(), outside::now().as_millisecond());
        // An answer fails when the machine has gone meanwhile: it asks again.
        let refuse = |ask: JoinAsk, refusal, text| drop(ask.answer.send(JoinAnswer::Refused(refusal, text)));
        if !self.attempts.permits(from, now_ms) {
            let text = "too many refused joins from this address; try again in a minute";
            return refuse(ask, JoinRefusal::Busy, text.into());
        }
        let agreed = match self.agree(&ask.request) {
            Ok(agreed) => agreed,
            Err((refusal, text)) => {
                tracing::warn!(node = ask.request.name, %from, ?refusal, text, "a machine may not join");
                if !matches!(refusal, JoinRefusal::Busy | JoinRefusal::NodeAlive) {
                    self.attempts.failed(from, now_ms);
                }
                return refuse(ask, refusal, text);
            }
        };
        let (wiring, name) = (self.seed.wiring.clone(), agreed.name.clone());
        *self.joining.entry(name.clone()).or_default() += 1;
        let work = async move {
            let outcome = commit(&wiring, agreed.edits, Durability::Hard).await;
            let problem = match outcome {
                Ok(outcome) if outcome.overtaken.is_empty() => None,
                Ok(_) => Some("another machine asked for the name at the same time; try again".to_owned()),
                Err(error) => Some(format!("the master cannot write: {error}")),
            };
            let told = match problem {
                None => {
                    tracing::info!(node = %agreed.name, %from, "a machine joins");
                    JoinAnswer::Admitted(agreed.admitted)
                }
                Some(problem) => JoinAnswer::Refused(JoinRefusal::Busy, problem),
            };
            drop(ask.answer.send(told));
        };
        ctx.spawn(work.into_actor(self).map(move |(), registry, _| registry.joined(&name)));
    }

    /// The links' port has failed, which is told elsewhere.
    fn finished(&mut self, _: &mut Context<Self>) {}
}

impl NodeHandle {
    /// A new certificate for the key of this link.
    pub(super) fn renew(&self, csr: &Bytes) {
        let (Some(admission), Some(link)) = (&self.seed.admission, &self.link) else { return };
        let Some(key) = link.joined_key() else { return };
        if !requested_key(csr).is_ok_and(|asked| asked == key) {
            tracing::warn!(node = %self.name, "a node asked for a certificate over a key that is not its own");
            return;
        }
        let certificate = match admission.authority.certify_node(&self.name, csr, admission.life) {
            Ok(certificate) => certificate,
            Err(error) => return tracing::error!(node = %self.name, %error, "no new certificate"),
        };
        tracing::info!(node = %self.name, "the node's certificate is renewed");
        // The node asks again when it does not get it.
        if let Err(error) = link.send(Class::Control, &wire::ToNode::Certificate(certificate)) {
            tracing::warn!(node = %self.name, %error, "the new certificate was not sent");
        }
    }
}
